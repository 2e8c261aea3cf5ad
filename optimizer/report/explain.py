"""Explanations in sentences: of a deployment, a replica, a GPU, or the whole plan."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from optimizer.domain import words
from optimizer.domain.config import Candidate, Dropped
from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import MigProfile, PlacedProfile, Use
from optimizer.domain.placement import Replica, node_of, replica_order
from optimizer.domain.plan import DeploymentPlan, GpuPlan, Plan
from optimizer.domain.prices import RoomPrices, may_hold
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.workload import Deployment
from optimizer.report import status

NEAR = 8  # names of a group that a hint shows
Refusals = Mapping[str, tuple[Dropped, ...]]


class UnknownSubject(KeyError):
    """Nothing in the plan has that name."""

    def __init__(self, subject: str, hint: str) -> None:
        super().__init__(f'no deployment, replica or GPU "{subject}" in this plan{hint}')

    def __str__(self) -> str:
        return str(self.args[0])


def explain(
    plan: Plan, problem: PlacementProblem, dropped: Refusals, subject: str | None = None
) -> tuple[str, ...]:
    """Why things are as they are. ``subject``: a deployment, replica id or GPU id; None: the plan.

    Raises UnknownSubject.
    """
    return tuple(_explained(plan, problem, dropped, subject))


def _begun(sentence: str) -> str:
    """With a capital, unless it begins with a number or the name of a product."""
    first = sentence.split(" ", 1)[0]
    return sentence[:1].upper() + sentence[1:] if first.isalpha() else sentence


def _explained(
    plan: Plan, problem: PlacementProblem, dropped: Refusals, subject: str | None
) -> Iterator[str]:
    if subject is None:
        return _plan(plan)
    deployments = {d.name: d for d in plan.deployments}
    gpus = {g.id: g for g in plan.gpus}
    replicas = {r.id: r for r in plan.placement.replicas}
    if subject in deployments:
        asked = problem.deployment(subject)
        return _Why(plan, problem, dropped, deployments[subject], asked).sentences()
    if subject in replicas:
        return _replica(plan, problem, replicas[subject])
    if subject in gpus:
        fleet = {g.id: g for g in problem.fleet.gpus()}
        return _gpu(plan, problem, gpus[subject], fleet[subject])
    raise UnknownSubject(subject, _hint(subject, plan))


def _hint(subject: str, plan: Plan) -> str:
    """What can be asked about a node, tenant or product of that name; else near names."""
    groups = {
        "a node; its GPUs": [g.id for g in plan.gpus if node_of(g.id) == subject],
        "a tenant; its deployments": [d.name for d in plan.deployments if d.tenant == subject],
        "a product; the plan's GPUs of it": [g.id for g in plan.gpus if g.gpu == subject],
        "a rack; its GPUs": [g.id for g in plan.gpus if g.rack == subject],
    }
    for what, members in groups.items():
        if members:
            more = f" and {len(members) - NEAR:,} more" if len(members) > NEAR else ""
            return f"; it is {what}: {', '.join(members[:NEAR])}{more}"
    named = {d.name for d in plan.deployments} | {g.id for g in plan.gpus}
    folded = {
        name.lower(): name for name in sorted({*named, *(r.id for r in plan.placement.replicas)})
    }
    near = [folded[n] for n in get_close_matches(subject.lower(), folded, 3)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    names = [d.name for d in plan.deployments]
    more = f" and {len(names) - NEAR:,} more" if len(names) > NEAR else ""
    return f"; its deployments: {', '.join(names[:NEAR])}{more}" if names else ""


def _plan(plan: Plan) -> Iterator[str]:
    yield f"{plan.fleet}: {status.headline(plan)}."
    if not plan.conflict:
        yield f"{status.totals(plan)}; {status.demand(plan)}."
    for level in status.levels(plan):
        if level.proved:
            yield f"{_begun(level.name)}: {level.value}, and no plan can do better."
        else:
            yield f"{_begun(level.name)}: {level.value}; no plan can go below {level.bound}."
    dear = sorted(plan.deployments, key=lambda d: (-d.price_micros, d.name))[:3]
    dear = [d for d in dear if d.price_micros]
    if dear:
        listed = ", ".join(f"{d.name} {words.price(d.price_micros, plan.unit)}" for d in dear)
        yield f"Most expensive: {listed}."
    unused = sum(t.stranded_micros for t in plan.tenants)
    if unused:
        yield f"{words.price(unused, plan.unit)} pays for unused room on shared and sliced GPUs."
    for one in plan.unmet:
        fix = f" Would help: {one.smallest_fix}." if one.smallest_fix else ""
        yield f"{one.deployment} gets less than asked: {one.reason}.{fix}"
    for rule in plan.conflict:
        yield f"Clashing rule: {rule}."
    yield from (f"{_begun(note)}." for note in plan.notes)


class _Why:
    """One deployment and how it runs."""

    def __init__(
        self,
        plan: Plan,
        problem: PlacementProblem,
        dropped: Refusals,
        part: DeploymentPlan,
        asked: Deployment,
    ) -> None:
        self.plan, self.problem, self.part, self.asked = plan, problem, part, asked
        self.refused = dropped.get(part.name, ())
        self.offered = problem.candidates.get(part.name, ())
        self.products = {g.name: g for g in problem.fleet.products()}
        self.replicas = [r for r in plan.placement.replicas if r.deployment == part.name]

    def sentences(self) -> Iterator[str]:
        """From how it runs to what would have to change."""
        yield self._first()
        if self.replicas:
            yield from (f"{_begun(reason)}." for reason in self.part.reasons)
        smaller = [told for way in self._ways() if (told := self._smaller(way)) is not None]
        yield from dict.fromkeys(smaller)
        yield from self._slo()
        yield from self._rules()
        yield from self._change()

    def _first(self) -> str:
        where = words.gpus(sorted({g for r in self.replicas for g in r.gpus}, key=replica_order))
        told = f"{self.part.name} ({self.part.tenant})"
        if not self.replicas:
            return f"{told} does not run."
        told += f" runs {words.plural(len(self.replicas), 'replica')} on {where}"
        told += f" and pays {words.price(self.part.price_micros, self.plan.unit)}"
        if self.part.demand_mrps is not None:
            asked, room = self.part.demand_mrps, self.part.capacity_mrps or 0
            told += f"; asked {words.rate(asked)}, room for {words.rate(room)}"
        return f"{told}."

    def _ways(self) -> list[Candidate]:
        """The candidates that its replicas run as, each once."""
        found: dict[str, Candidate] = {}
        for replica in self.replicas:
            way = _candidate(self.problem, replica)
            if way is not None:
                found.setdefault(str(way.key), way)
        return list(found.values())

    def _smaller(self, way: Candidate) -> str | None:
        """Why not the next smaller room of the same product."""
        for name in self._smaller_rooms(way):
            label = f"{way.gpu} {name}".strip()
            taken = [c for c in self.offered if c.gpu == way.gpu and _room(c) == name]
            refused = [d for d in self.refused if _about(d, way.gpu, name)]
            mine = {way.config.precision, way.config.engine}
            refused.sort(key=lambda d: (-len(mine & {*d.what.split()}), d.what))
            if any(w.gpu == way.gpu and _room(w) == name for w in self._ways()):
                return None  # it runs there too
            if taken:
                return self._costlier(label, taken, way)
            if refused:
                return f"Not the smaller {refused[0].what}: {refused[0].reason}."
        return None

    def _smaller_rooms(self, way: Candidate) -> list[str]:
        """Names of smaller rooms of that product, the largest first."""
        if way.shape.sharing is Sharing.WHOLE and way.shape.gpus > 1:
            sizes = [n for n in (8, 4, 2) if n < way.shape.gpus]
            return [f"x{n}" for n in sizes] + [""]
        gpu = self.products.get(way.gpu)
        table = gpu.mig if gpu is not None else None
        if table is None or way.shape.sharing is Sharing.SHARED:
            return []
        mine = table.profile(way.shape.profile or "")
        most = table.memory_slices if mine is None else mine.memory_slices
        plain = [p for p in table.profiles if p.plain and p.memory_slices < most]
        plain.sort(key=lambda p: (-p.memory_slices, -p.compute_slices))
        return [p.name for p in plain]

    def _costlier(self, label: str, taken: list[Candidate], way: Candidate) -> str:
        fleet, pin, unit = self.problem.fleet, self.asked.pin, self.plan.unit
        if not any(may_hold(n, t, pin) for n in fleet.nodes for t in taken):
            return f"The smaller {label} fits too, but no GPU that it may run on offers it."
        prices = RoomPrices(fleet)
        costs = [c for t in taken if (c := prices.served_micros(t, pin)) is not None]
        mine = prices.served_micros(way, pin)
        if not costs or mine is None:
            return f"The smaller {label} would do too."
        smaller, here = words.price(min(costs), unit), words.price(mine, unit)
        if smaller == here:
            return f"The smaller {label} fits too, at as much per req/s."
        cheaper = "costs more" if min(costs) > mine else "is cheaper by itself"
        return f"The smaller {label} fits too and {cheaper}: {smaller} per req/s against {here}."

    def _slo(self) -> Iterator[str]:
        predicted, slo = self.part.predicted, self.asked.slo
        if predicted is None or slo is None:
            return
        bands = dict(predicted.error_band_percent)
        for name in ("ttft", "tpot"):
            value, promised = getattr(predicted, f"{name}_ms"), getattr(slo, f"{name}_ms")
            if value is None or promised is None:
                continue
            band = f" (±{words.number(bands[name], 0)} %)" if name in bands else ""
            told = f"{name.upper()} at p{slo.percentile:g}: predicted {words.number(value, 0)} ms"
            left = f"{words.percent((promised - value) / promised, 0)} to spare"
            if value > promised:
                left = "which is missed"
            yield f"{told}{band} of {words.number(promised, 0)} ms, {left}."

    def _rules(self) -> Iterator[str]:
        d = self.asked
        said = []
        if d.spread_node is not None:
            said.append(f"at most {d.spread_node} a node")
        if d.spread_rack is not None:
            said.append(f"at most {d.spread_rack} a rack")
        if d.survive is not None:
            said.append(f"carries its demand without any one {d.survive}")
        if d.isolate != "none":
            said.append(f"isolated by {d.isolate}")
        if d.avoid:
            said.append(f"never on a GPU with {', '.join(d.avoid)}")
        if d.near:
            said.append(f"only on nodes that hold {', '.join(d.near)}")
        if d.pin:
            said.append(f"pinned to {', '.join(d.pin)}")
        if d.max_replicas is not None:
            said.append(f"at most {words.plural(d.max_replicas, 'replica')}")
        if d.min_replicas > 1:
            said.append(f"at least {words.plural(d.min_replicas, 'replica')}")
        if said:
            yield f"Rules on it: {', '.join(said)}."

    def _change(self) -> Iterator[str]:
        """What would have to change for one replica more or fewer, or for any to run."""
        if self.plan.conflict:
            rules = self.plan.conflict
            hold = "cannot all hold" if len(rules) > 1 else "cannot hold"
            yield f"No plan is possible: {', '.join(rules)} {hold}."
            yield from (f"{_begun(note)}." for note in self.plan.notes)
            return
        for one in self.plan.unmet:
            if one.deployment == self.part.name:
                yield f"Short of what is asked: {one.reason}."
                if one.smallest_fix:
                    yield f"Would help: {one.smallest_fix}."
                return
        if self.part.demand_mrps is None or not self.replicas:
            return
        carried, lost = self._carried(self.replicas)
        left = f", which is left without {self.asked.survive} {lost}" if lost else ""
        yield f"One more replica is needed above {words.rate(carried)}{left}."
        fewer = max(
            self._carried([r for r in self.replicas if r != out])[0] for out in self.replicas
        )
        if len(self.replicas) > self.asked.min_replicas and fewer > 0:
            yield f"One replica less would do at {words.rate(fewer)} or below."

    def _carried(self, replicas: list[Replica]) -> tuple[int, str]:
        """The rate that they carry, after the worst loss that they must outlive, and that loss."""
        every = sum(self._rate(r) for r in replicas)
        kind = self.asked.survive
        if kind is None or not replicas:
            return every, ""
        lost: dict[str, int] = {}
        for replica in replicas:
            for domain in {self._domain(node, kind) for node in replica.nodes}:
                lost[domain] = lost.get(domain, 0) + self._rate(replica)
        worst = min(lost, key=lambda name: (-lost[name], name))
        return every - lost[worst], worst.rpartition(":")[2]

    def _domain(self, name: str, kind: str) -> str:
        node = self.problem.fleet.node(name)
        if kind == "node":
            return name
        return node.rack_domain if kind == "rack" else node.zone_domain

    def _rate(self, replica: Replica) -> int:
        way = _candidate(self.problem, replica)
        return 0 if way is None else capacity_mrps(self.asked, way)


def _candidate(problem: PlacementProblem, replica: Replica) -> Candidate | None:
    """The candidate the replica runs as; the same settings before those that merely agree."""
    node = replica.gpus[0].rpartition("/")[0]
    products = {n.name: n.gpu.name for n in problem.fleet.nodes}
    offered = problem.candidates.get(replica.deployment, ())
    fitting = [c for c in offered if replica.runs_as(c, products.get(node, ""))]
    exact = [c for c in fitting if c.config == replica.config]
    return next(iter(exact or fitting), None)


def _room(way: Candidate) -> str:
    if way.shape.profile is not None:
        return way.shape.profile
    return f"x{way.shape.gpus}" if way.shape.gpus > 1 else ""


def _about(one: Dropped, gpu: str, room: str) -> bool:
    """Whether a refusal speaks of that room; ``what`` reads ``h100-80gb-sxm 2g.20gb fp8 vllm``."""
    parts = one.what.split()
    if not parts or parts[0] != gpu:
        return False
    second = parts[1] if len(parts) > 1 else ""
    if room:
        return second == room
    return not (second.startswith("x") or "g." in second or second == "share")


def _replica(plan: Plan, problem: PlacementProblem, replica: Replica) -> Iterator[str]:
    how = words.settings(replica.config)
    yield f"{replica.id} runs on {words.place(replica)}{f' as {how}' if how else ''}."
    way = _candidate(problem, replica)
    if way is not None:
        yield from (f"{_begun(reason)}." for reason in way.reasons)
    for move in plan.moves:
        if move.replica == replica.id:
            was = "" if move.before is None else f" from {words.place(move.before)}"
            yield f"It is to {move.kind}{was}: {move.reason}."
    runs_now = problem.current is not None and problem.current.replicas
    if replica.id in plan.left:
        yield "It stays for now: no safe order of steps was found for its move."
    elif runs_now and all(m.replica != replica.id for m in plan.moves):
        yield f"It stays where it is: {_why_it_stays(problem, replica, way)}."
    yield f"See {replica.deployment} for why it runs this way."


def _why_it_stays(problem: PlacementProblem, replica: Replica, way: Candidate | None) -> str:
    if problem.deployment(replica.deployment).disturb == "never":
        return "its deployment may never be disturbed"
    load = f" would load {words.gib(way.load_mib)} of weights, and it" if way is not None else ""
    return f"moving it{load} is part of no cheaper plan that was found"


def _gpu(plan: Plan, problem: PlacementProblem, part: GpuPlan, gpu: FleetGpu) -> Iterator[str]:
    rack = f", rack {part.rack}" if part.rack else ""
    yield f"{part.id}: {part.gpu}{rack}, {words.price(part.price_micros, plan.unit)} when used."
    if part.cordoned:
        yield "It is cordoned: nothing may run here."
    replicas = {r.id: r for r in plan.placement.replicas}
    held = [replicas[name] for name in part.replicas if name in replicas]
    tenants = {d.name: d.tenant for d in plan.deployments}
    for replica in held:
        room = "the whole GPU"
        if replica.mig is not None:
            room = words.slot(replica.mig)
        elif replica.share is not None:
            room = f"a share of {_use(replica.share)}"
        elif len(replica.gpus) > 1:
            room = f"it whole, one of {len(replica.gpus)} ({words.gpus(replica.gpus)})"
        yield f"{replica.id} ({tenants.get(replica.deployment, '?')}) holds {room}."
    for instance in part.instances:
        if instance.replica is None:
            yield f"{words.slot(instance.placed)} stands empty and may be destroyed."
    if held:
        parts = zip(("memory", "bandwidth", "SMs"), part.use.parts_of(part.room), strict=True)
        shares = [f"{words.percent(used, 0)} of its {name}" for name, used in parts if used]
        yield f"In use: {', '.join(shares)}."
    if not part.cordoned:
        yield from _left(problem, part, gpu, held)


def _left(
    problem: PlacementProblem, part: GpuPlan, gpu: FleetGpu, held: list[Replica]
) -> Iterator[str]:
    """What room is left, and what could still be placed there."""
    if part.mode == "whole":
        return
    if part.mode == "empty":
        yield "It is empty and costs nothing."
        return
    if part.mode == "shared":
        free = _less(part.room, part.use)
        yield f"Left: {_use(free)}."
        shares = [c for c in _offered(problem, gpu) if c.shape.share is not None]
        fitting = [c for c in shares if c.shape.share is not None and c.shape.share.fits_in(free)]
    else:
        layout = [r.mig for r in held if r.mig is not None]
        open_starts = _open_starts(gpu, layout)
        if not open_starts:
            yield "No profile fits beside what it holds."
            return
        listed = ", ".join(f"{n} at {words.runs(s)}" for n, s in open_starts.items())
        yield f"Still fits, one at a time: {listed}."
        fitting = [c for c in _offered(problem, gpu) if c.shape.profile in open_starts]
    names = sorted({c.deployment for c in fitting if _pin_allows(problem, c.deployment, gpu)})
    if not names:
        yield "No replica of this plan's deployments is small enough for that."
    else:
        yield f"By its size that is room for a replica of {', '.join(names)}."


def _pin_allows(problem: PlacementProblem, deployment: str, gpu: FleetGpu) -> bool:
    pinned = {p for d in problem.deployments if d.name == deployment for p in d.pin}
    return not pinned or bool(pinned & {gpu.id, gpu.node.name})


def _offered(problem: PlacementProblem, gpu: FleetGpu) -> list[Candidate]:
    ways = [w for name in sorted(problem.candidates) for w in problem.candidates[name]]
    return [w for w in ways if w.gpu == gpu.gpu.name and not w.running_only]


def _open_starts(gpu: FleetGpu, layout: list[PlacedProfile]) -> dict[str, list[int]]:
    """Plain profiles that may still be created, with their starts, the largest first."""
    table = gpu.gpu.mig
    if table is None:
        return {}

    def size(profile: MigProfile) -> tuple[int, int]:
        return (-profile.memory_slices, -profile.compute_slices)

    found = {}
    for profile in sorted((p for p in table.profiles if p.plain and p.memory_mib), key=size):
        starts = [
            s for s in profile.starts if not table.faults([*layout, PlacedProfile(s, profile.name)])
        ]
        if starts:
            found[profile.name] = starts
    return found


def _less(room: Use, used: Use) -> Use:
    return Use(
        max(0, room.memory_mib - used.memory_mib),
        max(0, room.bandwidth_mbs - used.bandwidth_mbs),
        max(0, room.compute_ppm - used.compute_ppm),
    )


def _use(use: Use) -> str:
    """``6.0 GiB, 250 GB/s, 15 % of the SMs``."""
    bandwidth = words.number(use.bandwidth_mbs / 1000, 0)
    return f"{words.gib(use.memory_mib)}, {bandwidth} GB/s, {use.compute_ppm / 1e4:g} % of the SMs"
