"""Clashes that can be told before the search: of one deployment by itself, or of all their room.

What a rule demands of one deployment mostly fits an empty fleet at once, each replica on GPUs of
its own; that is looked at first, for each. Who is not cleared so is asked about alone. The room of
all together is asked of the linear relaxation, whose duals say which of them clash.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import domain_of, fixed_layout, may_stay
from optimizer.solver.relaxation import Relaxation

WAYS_TRIED = 4  # of a deployment, those that carry most


def demands(problem: PlacementProblem, d: Deployment) -> bool:
    """Whether a hard rule demands replicas of it."""
    running = problem.current.replicas if problem.current else ()
    never = d.disturb == "never" and any(r.deployment == d.name for r in running)
    return d.reserve or bool(d.survive and d.asked_mrps) or never


def demanding(problem: PlacementProblem, among: set[str] | None = None) -> PlacementProblem:
    """The problem of those only that a rule demands replicas of, and whom they want near.

    ``among``: of these only.
    """
    names = {d.name: d for d in problem.deployments}
    queue = [
        d.name
        for d in problem.deployments
        if demands(problem, d) and (among is None or d.name in among)
    ]
    kept = set[str]()
    while queue:
        name = queue.pop()
        if name in names and name not in kept:
            kept.add(name)
            queue.extend(names[name].near)
    some = tuple(d for d in problem.deployments if d.name in kept)
    offered = {d.name: problem.candidates.get(d.name, ()) for d in some}
    return replace(problem, deployments=some, candidates=offered)


def clashing(
    problem: PlacementProblem, possible: Callable[[PlacementProblem], bool | None]
) -> PlacementProblem | None:
    """A part of the problem whose hard rules clash by themselves; None: none was found.

    ``possible`` says whether the hard rules of a small problem can all hold.
    """
    only = demanding(problem)
    if not only.deployments:
        return None
    alone = _Alone(only)
    for d in only.deployments:
        if demands(problem, d) and not alone.fits(d):
            one = demanding(problem, {d.name})
            if possible(one) is False:
                return one
    bound = Relaxation(only, hard=True)
    if bound.solve():
        return None
    names = bound.binding()
    few = demanding(problem, names) if names else only
    return few if possible(few) is False else None  # floats alone prove nothing


@dataclass(frozen=True, slots=True)
class _Seat:
    node: Node
    gpus: int


class _Alone:
    """Whether what is demanded of one deployment fits the fleet while nobody else is there."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.fixed = fixed_layout(problem)
        self.gpus = {gpu.id: gpu for gpu in problem.fleet.gpus()}
        self.free: dict[str, list[str]] = {}
        for node in problem.fleet.nodes:
            ids = (f"{node.name}/{i}" for i in node.open_gpus())
            self.free[node.name] = [gpu for gpu in ids if not self.fixed.get(gpu)]

    def fits(self, d: Deployment) -> bool:
        """True where a placement was found; False says nothing."""
        if d.near or not self._may_stay(d):
            return False
        if not (d.reserve or (d.survive and d.asked_mrps)):
            return True
        offered = self.problem.candidates.get(d.name, ())
        ways = sorted(offered, key=lambda w: (-capacity_mrps(d, w), w.shape.gpus, str(w.key)))
        return any(self._fits(d, way) for way in self._few(ways))

    def _few(self, ways: list[Candidate]) -> list[Candidate]:
        """The best of each product, and so many more."""
        first = {way.gpu: way for way in reversed(ways)}
        return [*first.values(), *[w for w in ways if w not in first.values()][:WAYS_TRIED]]

    def _may_stay(self, d: Deployment) -> bool:
        """Whether what runs and must not be disturbed is within the limits of its own rules."""
        if d.disturb != "never" or self.problem.current is None:
            return True
        nodes, racks, count = Counter[str](), Counter[str](), 0
        for replica in self.problem.current.replicas:
            if replica.deployment != d.name or not may_stay(self.problem, replica, self.gpus):
                continue
            count += 1
            here = [self.gpus[gpu].node for gpu in replica.gpus]
            nodes.update({node.name for node in here})
            racks.update({node.rack_domain for node in here})
        within = d.replica_limit is None or count <= d.replica_limit
        within &= d.spread_node is None or max(nodes.values(), default=0) <= d.spread_node
        within &= d.spread_rack is None or max(racks.values(), default=0) <= d.spread_rack
        return within and not (count and d.survive)

    def _fits(self, d: Deployment, way: Candidate) -> bool:
        rate, asked = capacity_mrps(d, way), d.asked_mrps or 0
        if d.survive and not rate:
            return False
        count, racks = 0, Counter[str]()
        lost: Counter[str] = Counter()
        used: list[_Seat] = []
        for node in self._in_turn(d, way):
            if d.spread_rack is not None and racks[node.rack_domain] >= d.spread_rack:
                continue
            racks[node.rack_domain] += 1
            count += 1
            used.append(_Seat(node, way.shape.gpus))
            if d.survive:
                lost[domain_of(node, d.survive)] += 1
            left = count - max(lost.values(), default=0)
            if d.replica_limit is not None and count > d.replica_limit:
                return False
            if left * rate >= asked if d.survive else count >= d.min_replicas:
                return self._affordable(used)
        return False

    def _in_turn(self, d: Deployment, way: Candidate) -> Iterator[Node]:
        """Nodes with room for a replica, from one domain after the other, again and again."""
        groups: dict[str, list[Node]] = defaultdict(list)
        for node in self.problem.fleet.nodes:
            times = self._times(d, way, node)
            if times:
                groups[domain_of(node, d.survive or "node")] += [node] * times
        turn = 0
        while any(turn < len(some) for some in groups.values()):
            yield from (some[turn] for some in groups.values() if turn < len(some))
            turn += 1

    def _times(self, d: Deployment, way: Candidate, node: Node) -> int:
        if node.gpu.name != way.gpu or way.shape.sharing not in node.sharing:
            return 0
        free = self.free[node.name]
        if d.pin and node.name not in d.pin:
            free = [gpu for gpu in free if gpu in d.pin]
        if way.shape.gpus > 1 and node.nvlink_domain == "pair":
            return 0  # which of them are bridged is not looked at
        times = len(free) // way.shape.gpus
        for need, room in (
            (d.host_cpu_millicores, node.cpu_millicores),
            (d.host_memory_mib, node.host_memory_mib),
        ):
            if need and room is not None:
                times = min(times, room // need)
        return times if d.spread_node is None else min(times, d.spread_node)

    def _affordable(self, used: list[_Seat]) -> bool:
        """Whether the fleet's ceilings bear these GPUs, each of them used by this one alone."""
        fleet = self.problem.fleet
        price, watts = 0, Counter[str]()
        for seat in used:
            price += fleet.price_micros(seat.node) * seat.gpus
            watts[seat.node.rack_domain] += (seat.node.gpu.tdp_w or 0) * seat.gpus
        limits = fleet.limits
        dear = limits.price_micros_per_hour is not None and price > limits.price_micros_per_hour
        hot = limits.rack_power_w is not None and max(watts.values()) > limits.rack_power_w
        return not dear and not hot
