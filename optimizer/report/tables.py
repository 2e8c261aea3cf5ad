"""The tables of a plan: what runs where, prices, unmet demand, moves, steps, bounds, inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.placement import replica_order
from optimizer.domain.plan import DeploymentPlan, Move, Plan, Step
from optimizer.report import status
from optimizer.report.amounts import by_deployment, paid, two
from optimizer.report.changes import Alike, alike
from optimizer.report.ink import Ink

WIDE = 120  # from here on the tables show places and error bands in the row
Part = Callable[[Plan, Ink], Iterator[RenderableType]]
MOVES = 60
STEPS = 60
BOLD = Style(bold=True)
MISSED, NEAR = " !", " ~"  # slower than the SLO; within the error band of it
VERDICTS = {"late": MISSED, "near": NEAR, "good": ""}


def running(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """What runs where, by tenant, with predictions beside the SLOs."""
    if not plan.deployments:
        return
    wide = ink.width >= WIDE
    table = ink.table(title="What runs where", caption=_legend(plan, wide, ink))
    table.add_column("deployment", no_wrap=True, max_width=28 if wide else 18)
    table.add_column("replicas and how", ratio=None)
    if wide:
        table.add_column("where", max_width=40)
    table.add_column("req/s\nasked/room", justify="right", no_wrap=True)
    table.add_column("TTFT ms\npred/SLO", justify="right", no_wrap=True)
    table.add_column("TPOT ms\npred/SLO", justify="right", no_wrap=True)
    if wide:
        table.add_column(
            plan.unit if plan.unit == words.GPUS else f"{plan.unit}/h", justify="right"
        )
    costs = by_deployment(plan) if wide else {}
    for tenant, group in groupby(ordered(plan), lambda d: d.tenant):
        table.add_section()
        table.add_row(Text(tenant, ink.name(tenant) + BOLD))
        for deployment in group:
            table.add_row(*_running_row(plan, deployment, ink, costs))
    yield table


def ordered(plan: Plan) -> list[DeploymentPlan]:
    """The deployments by tenant, who pays most first; of a tenant, what costs most first."""
    paid: dict[str, int] = {}
    for d in plan.deployments:
        paid[d.tenant] = paid.get(d.tenant, 0) + d.price_micros
    return sorted(
        plan.deployments, key=lambda d: (-paid[d.tenant], d.tenant, -d.price_micros, d.name)
    )


def _running_row(
    plan: Plan, deployment: DeploymentPlan, ink: Ink, costs: Mapping[str, str]
) -> list[RenderableType]:
    """With ``costs``, by deployment, also where it runs and what it costs."""
    how = "\n".join(ways(deployment, ink.glyphs.times)) or "nothing runs"
    row: list[RenderableType] = [Text(f"  {deployment.name}"), Text(how)]
    if costs:
        row.append(Text(where(plan, deployment.name)))
    row.append(_rates(deployment))
    row += [_time(deployment, name, ink if costs else None) for name in ("ttft", "tpot")]
    if costs:
        row.append(Text(costs.get(deployment.name, money(deployment.price_micros))))
    return row


def ways(deployment: DeploymentPlan, times: str = " x") -> list[str]:
    """``2 x h100-80gb-sxm 3g.40gb fp8 vllm``; ways that read the same are counted together."""
    counts: dict[str, int] = {}
    for use in deployment.configs:
        where = words.room(use.gpu, use.profile, use.sharing, use.gpus_per_replica)
        how = f"{where} {words.settings(use.config)}".rstrip()
        counts[how] = counts.get(how, 0) + use.count
    return [f"{count}{times} {how}" for how, count in counts.items()]


def where(plan: Plan, deployment: str) -> str:
    """The GPUs of a deployment, those of one node together."""
    found: dict[str, None] = {}
    for replica in plan.placement.replicas:
        if replica.deployment == deployment:
            found.update(dict.fromkeys(replica.gpus))
    return words.gpus(sorted(found, key=replica_order))


def _rates(deployment: DeploymentPlan) -> Text:
    if deployment.demand_mrps is None:
        return Text(words.plural(deployment.replicas, "replica"))
    asked, room = deployment.demand_mrps / 1000, (deployment.capacity_mrps or 0) / 1000
    text = Text(f"{words.number(asked, 2)}/{words.number(room, 2)}")
    if room < asked:
        text.append(MISSED).stylize("bold red")
    return text


def _time(deployment: DeploymentPlan, name: str, ink: Ink | None) -> Text:
    """Predicted beside promised, with the band where ``ink`` is given, marked where it may miss."""
    promised = getattr(deployment.slo, f"{name}_ms", None)
    one = status.promise(deployment, name)
    if one is None:
        return Text("-" if promised is None else f"?/{words.number(promised, 0)}")
    text = Text(words.number(one.value_ms, 0 if one.value_ms >= 20 else 1))
    if ink is not None and one.band is not None:
        text.append(f" {ink.glyphs.band}{words.number(one.band, 0)} %")
    if promised is None:
        return text
    text.append(f"/{words.number(promised, 0)}{VERDICTS[one.verdict]}")
    text.stylize({"late": "bold red", "near": "yellow", "good": ""}[one.verdict])
    return text


def _legend(plan: Plan, wide: bool, ink: Ink) -> str:
    told = []
    bands = _bands(plan)
    if bands and not wide:
        said = ", ".join(f"{n.upper()} {ink.glyphs.band}{r} %" for n, r in bands)
        told.append(f"p90 error of the predictions: {said}")
    marks = _marks(plan)
    if NEAR in marks:
        told.append("~ may miss its SLO within that error")
    if MISSED in marks:
        told.append("! misses what is asked")
    return ". ".join(told)


def _bands(plan: Plan) -> list[tuple[str, str]]:
    """The least and the widest error of each predicted time."""
    found = []
    for name in ("ttft", "tpot"):
        values = [
            dict(d.predicted.error_band_percent)[name]
            for d in plan.deployments
            if d.predicted is not None and name in dict(d.predicted.error_band_percent)
        ]
        if values:
            low, high = words.number(min(values), 0), words.number(max(values), 0)
            found.append((name, low if low == high else f"{low} to {high}"))
    return found


def _marks(plan: Plan) -> set[str]:
    marks = {VERDICTS[p.verdict] for p in status.promises(plan)}
    if any(d.demand_mrps and (d.capacity_mrps or 0) < d.demand_mrps for d in plan.deployments):
        marks.add(MISSED)
    return marks


def prices(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """The price per hour by tenant; the last row is the sum, to the last digit.

    Where the table before has no room for the prices of deployments, they stand here.
    """
    if not plan.tenants:
        return
    narrow = ink.width < WIDE
    title = "Price per hour by tenant" if plan.unit != words.GPUS else "GPUs by tenant"
    table = ink.table(title=title)
    table.add_column("tenant", no_wrap=True)
    table.add_column(plan.unit, justify="right", no_wrap=True)
    table.add_column("of it\nunused room" if narrow else "of it unused room", justify="right")
    table.add_column("share", no_wrap=True)
    if narrow:
        table.add_column("by deployment")
    tenants = paid(plan)
    for tenant in tenants:
        bar = ink.glyphs.bar * round(tenant.percent / (10 if narrow else 5))
        share = Text(bar, ink.name(tenant.name))
        share.append(f"{' ' * bool(bar)}{tenant.percent} %")
        each = ", ".join(f"{name} {two(c)}" for name, c in tenant.deployments.items())
        row = tenant.name, two(tenant.cents), two(tenant.unused_cents), share
        table.add_row(*row, *([each] if narrow else []))
    table.add_section()
    total, unused = sum(t.cents for t in tenants), sum(t.unused_cents for t in tenants)
    table.add_row("total", two(total), two(unused), "", style="bold")
    yield table


def money(micros: int) -> str:
    """Millionths as an amount with two digits after the point."""
    return f"{micros / 1_000_000:,.2f}"


def unmet(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """Demand that is not served, why, and what would help."""
    if not plan.unmet:
        return
    yield Text("Unmet demand", "bold red")
    for one in plan.unmet:
        text = Text(f"{ink.glyphs.bad} ", "bold red").append(one.deployment, "bold")
        text.append(f" misses {status.missing(plan, one)}")
        text.append(f": {ink.plain(one.reason)}")
        if one.smallest_fix:
            text.append(f"\n  would help: {ink.plain(one.smallest_fix)}", "green")
        yield text


def moves(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """The moves; of plans from scratch one sentence."""
    if not plan.moves:
        return
    if status.from_scratch(plan):
        yield Text(moves_sentence(plan))
        return
    told = alike(plan.moves, plan.left)
    yield _moves_table(told[:MOVES], ink, moves_sentence(plan))
    rest = sum(one.count for one in told[MOVES:])
    if rest > 0:
        yield Text(f"and {words.plural(rest, 'more move')} in the JSON", "dim")
    if left := status.left(plan):
        yield Text(left, "yellow")


def moves_sentence(plan: Plan) -> str:
    """``To do in about 6 min: 3 moves, 1 start; 42.0 GiB to load, 2 GPUs repartitioned``.

    What is left for want of a safe order is counted apart.
    """
    doing = [m for m in plan.moves if m.replica not in plan.left]
    load = words.gib(sum(m.load_mib for m in doing))
    took = f" in about {words.duration(end(plan))}" if plan.steps else ""
    told = f"To do{took}: {_kinds(doing) or 'nothing'}; {load} to load"
    if plan.repartitions:
        told += f", {words.plural(len(plan.repartitions), 'GPU')} repartitioned"
    if undone := len(plan.moves) - len(doing):
        told += f"; {words.plural(undone, 'change')} left undone"
    return told


def _kinds(changes: Sequence[Move]) -> str:
    counts: dict[str, int] = {}
    for kind in ("move", "reconfigure", "start", "stop"):
        counts[kind] = sum(m.kind == kind for m in changes)
    return ", ".join(words.plural(n, k) for k, n in counts.items() if n)


def _moves_table(changes: Sequence[Alike], ink: Ink, title: str) -> Table:
    table = ink.table(title=title)
    table.add_column("replica", no_wrap=True, max_width=24)
    table.add_column("kind", no_wrap=True)
    table.add_column("from", max_width=26)
    table.add_column("to", max_width=26)
    if ink.width >= 100:
        table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("why")
    for one in changes:
        row = [one.replicas, one.kind, one.before, one.after]
        row += [one.load] if ink.width >= 100 else []
        table.add_row(*row, ink.plain(one.reason))
    return table


def steps(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """The steps with their times; of plans from scratch only how long they take."""
    if not plan.steps:
        return
    told = f"{words.plural(len(plan.steps), 'step')}, about {words.duration(end(plan))}"
    if status.from_scratch(plan):
        yield Text(f"Steps: {told} (weights at 2 GiB/s, two loads a node at once).")
        return
    table = ink.table(title=f"Steps ({told}; weights at 2 GiB/s, two loads a node at once)")
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("takes", justify="right", no_wrap=True)
    table.add_column("step", no_wrap=True)
    table.add_column("what", no_wrap=True)
    wide = ink.width >= WIDE
    if wide:
        table.add_column("why")
    for step in plan.steps[:STEPS]:
        row = [words.clock(step.start_s), words.duration(step.seconds), step.action, _what(step)]
        table.add_row(*row, *([ink.plain(step.because)] if wide else []))
    yield table
    rest = len(plan.steps) - STEPS
    if rest > 0:
        yield Text(f"and {words.plural(rest, 'more step')} in the JSON", "dim")


def end(plan: Plan) -> int:
    """Seconds until the last step is done."""
    return max((s.start_s + s.seconds for s in plan.steps), default=0)


def _what(step: Step) -> str:
    where = words.gpus(step.gpus)
    place = f" {words.slot(step.placed)}" if step.placed is not None else ""
    if step.replica is None:
        mode = {True: " on", False: " off", None: ""}[step.enable]
        return f"{where}{place}{mode}"
    return f"{step.replica} {where}{place}"


def bounds(plan: Plan, ink: Ink) -> Iterator[RenderableType]:
    """Each objective, the bound no plan can beat, and the gap between."""
    if not plan.objectives:
        return
    table = ink.table(title="Value and bound", caption=status.counted(plan))
    table.add_column("objective", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column("no plan below", justify="right")
    table.add_column("gap", justify="right", no_wrap=True)
    for level in status.levels(plan):
        gap = Text(level.gap, "green" if level.proved else "yellow")
        table.add_row(level.name, level.value, level.bound, gap)
    yield table


def inputs(plan: Plan) -> Iterator[RenderableType]:
    """What the plan was made from."""
    if plan.inputs:
        listed = ", ".join(f"{i.path} ({i.sha256[:8]})" for i in plan.inputs)
        yield Text(f"Made from {listed}", "dim")
    by = f"fleetslice {plan.version}, " if plan.version else ""
    if not plan.reproducible:
        yield Text("Cut short by the clock: another run may give another plan.", "yellow")
    if by:
        yield Text(f"{by}{words.duration(plan.run.seconds)}", "dim")
