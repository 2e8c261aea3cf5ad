"""One self-contained page: the plan as a map, tables and a time line; nothing is loaded."""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any

from optimizer.domain import words
from optimizer.domain.placement import node_of, replica_order
from optimizer.domain.plan import DeploymentPlan, GpuPlan, Move, Plan, Step
from optimizer.domain.units import MIB_PER_GIB, MICROS, money
from optimizer.report import compared, frontier, status
from optimizer.report.amounts import by_deployment, paid, two
from optimizer.report.changes import kind_of
from optimizer.report.chart import Chart, chart, stairs
from optimizer.report.data import deployment_rows
from optimizer.report.diff import Diff, sentences, side
from optimizer.report.ink import PALETTE
from optimizer.report.pieces import Layout, Piece
from optimizer.report.tables import end, moves_sentence, ordered

STEPS = 400  # bars of the time line; more would hide each other
ACTIONS = (
    "create_instance",
    "destroy_instance",
    "set_mig_mode",
    "start",
    "shift_traffic",
    "drain",
    "stop",
)
TICKS = (5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)  # s between two labels
Row = dict[str, Any]
NO_FACTS: Row = {"replicas": {}, "deployments": {}}


def render_html(
    plan: Plan,
    whatif: Mapping[str, Any] | None = None,
    curve: Mapping[str, Any] | None = None,
    night: Mapping[str, Any] | None = None,
) -> str:
    """The page of a plan.

    With ``whatif`` (as of ``whatif -o json``) its scenarios too, with ``curve`` (as of
    ``rebalance --frontier -o json``) the price against disruption, with ``night`` (as of
    ``night.summary.data``) what became of it.
    """
    tenants = sorted({d.tenant for d in plan.deployments})
    parts = (status.totals(plan), status.slos(plan)) if status.planned(plan) else ()
    lead = "".join(f"{part}. " for part in parts if part)
    costs, nodes = by_deployment(plan), list(_nodes(plan, Layout(plan)))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(tenants)}
    page: str = _page("report" if night is None else "night").render(
        plan=plan,
        night=night,
        title=plan.fleet,
        headline=status.headline(plan),
        status=plan.status,
        lead=lead,
        met=status.demand(plan) if status.planned(plan) else "",
        short=bool(plan.unmet),
        undone=status.undone(plan),
        counted=status.counted(plan),
        total=_total(plan),
        actions=[a for a in ACTIONS if any(s.action == a for s in plan.steps[:STEPS])],
        found=status.planned(plan),
        levels=status.levels(plan),
        over_time=_over_time(plan),
        unmet=[(u, status.missing(plan, u)) for u in plan.unmet],
        left=status.left(plan),
        way_out=status.way_out(plan),
        colours=colours,
        priced=plan.unit != words.GPUS,
        nodes=nodes,
        cordoned=any(g.cordoned for g in plan.gpus),
        stranded=any(
            p.kind == "stranded" for n in nodes for g in n["gpus"] for _, p in g["pieces"]
        ),
        facts=_script_json(_facts(plan)),
        deployments=[_deployment(d, row, costs) for d, row in _paired(plan)],
        tenants=_tenants(plan),
        products=_products(plan),
        moves=[_move(m, plan.left) for m in plan.moves],
        moves_told=moves_sentence(plan) if plan.moves else "",
        lanes=_lanes(plan),
        ticks=_ticks(end(plan)),
        steps_hidden=max(0, len(plan.steps) - STEPS),
        duration=words.duration(end(plan)),
        whatif=None if whatif is None else _whatif(whatif, plan),
        frontier=None if curve is None else _frontier(curve),
    )
    return page


def render_frontier_html(curve: Mapping[str, Any], fleet: str) -> str:
    """The page of ``rebalance --frontier`` alone."""
    page: str = _page("curve").render(
        title=fleet,
        headline=words.plural(len(curve["points"]), "point"),
        status="limit",
        lead="",
        colours={},
        facts=_script_json(NO_FACTS),
        frontier=_frontier(curve),
    )
    return page


def render_night_html(night: Mapping[str, Any]) -> str:
    """The page of a night that made no plan."""
    page: str = _page("night_alone").render(
        title=night["fleet"],
        headline=night["headline"],
        status="infeasible",
        lead="",
        colours={},
        facts=_script_json(NO_FACTS),
        night=night,
    )
    return page


def render_diff_html(found: Diff, before: str, after: str) -> str:
    """The page of a difference; ``before`` and ``after`` name the two sides."""
    sides = [
        (c.replica, found.tenant_of(c), c.kind, side(c.before), side(c.after))
        for c in found.changes
    ]
    page: str = _page("diff").render(
        title=f"{before} to {after}",
        headline="the same" if found.same else "different",
        status="optimal" if found.same else "limit",
        lead="",
        colours={},
        facts=_script_json(NO_FACTS),
        diff=found,
        sentences=sentences(found),
        changes=sides,
    )
    return page


@lru_cache(maxsize=3)
def _page(name: str) -> Any:
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("optimizer.report", "page")
    pages = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(f"{name}.html.j2")


def _script_json(data: Any) -> str:
    """JSON that may stand inside a script element, whatever its texts say."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# --- the map --------------------------------------------------------------------------------------


def _nodes(plan: Plan, layout: Layout) -> Iterator[Row]:
    for name, run in groupby(plan.gpus, lambda g: node_of(g.id)):
        gpus = list(run)
        first = gpus[0]
        yield {
            "name": name,
            "product": first.gpu,
            "rack": first.rack or "",
            "price": words.price(first.price_micros, plan.unit),
            "used": sum(g.mode != "empty" for g in gpus),
            "gpus": [_gpu(g, layout) for g in gpus],
        }


def _gpu(gpu: GpuPlan, layout: Layout) -> Row:
    memory, bandwidth, compute = (round(100 * part) for part in gpu.use.parts_of(gpu.room))
    if gpu.mode == "empty":
        pieces = [Piece(0, 1, "free")]
        told = "cordoned, empty" if gpu.cordoned else "empty"
    else:
        pieces = layout.pieces(gpu)
        told = f"{', '.join(gpu.replicas)}; {memory} % of memory"
    return {
        "index": gpu.id.rpartition("/")[2],
        "id": gpu.id,
        "cordoned": gpu.cordoned,
        "empty": gpu.mode == "empty",
        "told": told,
        "memory": memory,
        "bandwidth": bandwidth,
        "compute": compute,
        "pieces": [(round(100 * (p.end - p.start), 2), p) for p in pieces],
    }


def _facts(plan: Plan) -> Row:
    """What a hover shows: replicas by id, and the predictions of their deployments."""
    known = {d.name: d for d in plan.deployments}
    return {
        "replicas": {
            r.id: [r.deployment, words.place(r), words.settings(r.config), _use(plan, r.id)]
            for r in plan.placement.replicas
        },
        "deployments": {
            name: {
                "tenant": d.tenant,
                "rate": "" if d.demand_mrps is None else words.rate(d.demand_mrps),
                "room": "" if d.capacity_mrps is None else words.rate(d.capacity_mrps),
                "ttft": _told_time(d, "ttft"),
                "tpot": _told_time(d, "tpot"),
            }
            for name, d in known.items()
        },
    }


def _use(plan: Plan, replica: str) -> str:
    use = plan.uses.get(replica)
    if use is None:
        return ""
    bandwidth = words.number(use.bandwidth_mbs / 1000, 0)
    return (
        f"{words.gib(use.memory_mib)}, {bandwidth} GB/s, {words.percent(use.compute_ppm / 1e6, 0)}"
        " of the SMs"
    )


def _told_time(d: DeploymentPlan, name: str) -> str:
    one = status.promise(d, name)
    return "" if one is None else str(one)


# --- tables ---------------------------------------------------------------------------------------


def _paired(plan: Plan) -> Iterator[tuple[DeploymentPlan, Row]]:
    return zip(ordered(plan), deployment_rows(plan), strict=True)


def _deployment(d: DeploymentPlan, row: Row, costs: Mapping[str, str]) -> Row:
    return {
        **row,
        "price": costs.get(d.name, f"{row['price_per_hour']:,.2f}"),
        "asked": "" if d.demand_mrps is None else words.number(d.demand_mrps / 1000, 2),
        "room": "" if d.capacity_mrps is None else words.number(d.capacity_mrps / 1000, 2),
        "ttft": _against(d, "ttft"),
        "tpot": _against(d, "tpot"),
        "reasons": d.reasons,
    }


def _against(d: DeploymentPlan, name: str) -> Row | None:
    """A prediction on a scale that ends at 1.5 times the SLO (or at the band's end)."""
    one = status.promise(d, name)
    if one is None:
        return None
    value, band, promised = one.value_ms, (one.band or 0) / 100, one.promised_ms
    end = 1.5 * promised if promised is not None else value * (1 + band) or 1.0
    return {
        "value": value,
        "text": str(one),
        "at": min(100, round(100 * value / end, 1)),
        "low": min(100, round(100 * value * max(0.0, 1 - band) / end, 1)),
        "high": min(100, round(100 * value * (1 + band) / end, 1)),
        "slo": None if promised is None else round(100 / 1.5, 1),
        "verdict": one.verdict,
    }


def _tenants(plan: Plan) -> list[Row]:
    return [
        {
            "name": t.name,
            "price": two(t.cents),
            "unused": two(t.unused_cents),
            "part": t.percent,
            "deployments": [(name, two(cents)) for name, cents in t.deployments.items()],
        }
        for t in paid(plan)
    ]


def _total(plan: Plan) -> Row:
    """The last row of the table of tenants."""
    found = paid(plan)
    return {
        "price": two(sum(t.cents for t in found)),
        "unused": two(sum(t.unused_cents for t in found)),
    }


def _products(plan: Plan) -> list[Row]:
    """How full the used GPUs of each product are, in memory, bandwidth and compute."""
    rows = []
    for product, run in groupby(sorted(plan.gpus, key=lambda g: g.gpu), lambda g: g.gpu):
        gpus = list(run)
        used = [g for g in gpus if g.mode != "empty"]
        parts = [g.use.parts_of(g.room) for g in used]
        means = [round(100 * sum(p) / len(used)) for p in zip(*parts, strict=True)] or [0, 0, 0]
        rows.append(
            {
                "name": product,
                "count": len(gpus),
                "used": len(used),
                "price": f"{money(sum(g.price_micros for g in used)):,.2f}",
                "bars": list(zip(("memory", "bandwidth", "compute"), means, strict=True)),
            }
        )
    return rows


def _move(move: Move, left: Collection[str]) -> Row:
    return {
        "replica": move.replica,
        "kind": kind_of(move, left),
        "before": "" if move.before is None else words.place(move.before),
        "after": "" if move.after is None else words.place(move.after),
        "gib": words.number(move.load_mib / MIB_PER_GIB, 1) if move.load_mib else "",
        "reason": move.reason,
    }


# --- the time line --------------------------------------------------------------------------------


def _ticks(last: int) -> list[tuple[float, str]]:
    """Where the time line is labelled, in percent of its width."""
    step = next((s for s in TICKS if last <= 8 * s), max(1, last))
    return [(round(100 * at / max(1, last), 2), words.clock(at)) for at in range(0, last + 1, step)]


def _lanes(plan: Plan) -> list[Row]:
    """A lane per GPU, or per group of GPUs, by its first step; bars at the same time lie apart."""
    steps, last = plan.steps[:STEPS], max(1, end(plan))
    by_place = sorted(steps, key=lambda s: (_lane(s), s.start_s, s.id))
    lanes = []
    for place, run in groupby(by_place, _lane):
        free: list[int] = []  # when each row of the lane is free again
        bars = []
        for step in run:
            row = next((i for i, at in enumerate(free) if at <= step.start_s), len(free))
            free[row:] = [step.start_s + step.seconds, *free[row + 1 :]]
            bars.append(_bar(step, row, last))
        lanes.append({"name": words.gpus(place), "rows": len(free), "bars": bars})
    return sorted(lanes, key=lambda lane: lane["bars"][0]["left"])


def _bar(step: Step, row: int, last: int) -> Row:
    what = f"{step.action.replace('_', ' ')} {step.replica or ''}".rstrip()
    took = words.duration(step.seconds)
    return {
        "left": round(100 * step.start_s / last, 2),
        "width": max(0.4, round(100 * step.seconds / last, 2)),
        "row": row,
        "action": step.action,
        "told": f"{words.clock(step.start_s)} {what} ({took}): {step.because}",
    }


def _lane(step: Step) -> tuple[str, ...]:
    return tuple(sorted(step.gpus, key=replica_order))


# --- what if --------------------------------------------------------------------------------------


def _whatif(data: Mapping[str, Any], plan: Plan) -> Row:
    baseline, scenarios = compared.rows(data)
    return {
        "baseline": baseline,
        "rows": scenarios,
        "survivals": compared.survivals(data, plan),
        "sweeps": [(f"{s.family}: the price", _curve(s, plan)) for s in compared.sweeps(data)],
    }


def _curve(sweep: compared.Sweep, plan: Plan) -> Chart:
    """The price along a sweep; what leaves something unserved is marked."""
    points = []
    for at, row in sweep.points:
        short = f", {', '.join(row.unmet)} short" if row.unmet else ""
        price = row.price or 0.0
        told = f"{at:g}: {words.price(round(price * MICROS), plan.unit)}{short}"
        points.append((at, price, told, "bad" if row.unmet else "good"))
    return chart(points, sweep.family, plan.unit if plan.unit == words.GPUS else f"{plan.unit}/h")


def _over_time(plan: Plan) -> Chart | None:
    """Price and bound while the search ran, as stairs; None where fewer than two were seen."""
    seen = plan.run.trajectory
    priced = [(s.seconds, s.incumbent) for s in seen if s.incumbent is not None]
    bounds = [(s.seconds, s.bound / MICROS) for s in seen if s.bound is not None]
    if len({s.seconds for s in seen}) < 2 or not priced:
        return None
    first_at = {value: at for at, value in reversed(priced)}
    points = [
        (at, value / MICROS, f"{words.price(value, plan.unit)} after {at:.1f} s", "good")
        for at, value in priced
        if first_at[value] == at
    ]
    return chart(
        points,
        "seconds",
        plan.unit if plan.unit == words.GPUS else f"{plan.unit}/h",
        from_zero=False,
        line=stairs([(at, value / MICROS) for at, value in priced]),
        floor=stairs(bounds),
    )


def _frontier(curve: Mapping[str, Any]) -> Row:
    unit = str(curve["unit"])
    points = [
        (
            p["disruption_gib"],
            p["price_per_hour"],
            f"{words.price(round(p['price_per_hour'] * MICROS), unit)} after "
            f"{words.plural(p['moves'], 'move')}, {words.number(p['disruption_gib'], 1)} GiB"
            f"{', the knee' if p['knee'] else ''}",
            "best" if p["knee"] else "good",
        )
        for p in curve["points"]
    ]
    columns = frontier.columns(unit)
    return {
        "title": frontier.TITLE,
        "told": frontier.told(curve),
        "columns": columns,
        "rows": frontier.rows(curve),
        "chart": chart(points, "GiB to load", columns[0], from_zero=False) if points else None,
    }
