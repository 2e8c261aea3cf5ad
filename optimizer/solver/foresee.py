"""Clashes that can be told before the search: of one deployment, of a few, or of all their room.

What hard rules demand is given room greedily first (``witness``); where all of it finds some,
nothing clashes. Else who finds none on an empty fleet is asked about alone; then the linear
relaxation, whose duals say who clashes; then those who compete for the nodes of whoever was left
over, a few at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from optimizer.domain.fleet import FleetGpu
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import may_stay
from optimizer.solver.large import never_moved
from optimizer.solver.relaxation import Relaxation
from optimizer.solver.witness import Witness

ROUNDS = 4  # of giving room, each time first to those left over before
LEFT_OVER = 4  # deployments, about whose company is asked
MOST_TOGETHER = 60  # deployments in one question about company
NARROW = 64  # nodes that somebody who competes for some of them may use

Possible = Callable[[PlacementProblem], bool | None]


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


def clashing(problem: PlacementProblem, possible: Possible) -> PlacementProblem | None:
    """A part of the problem whose hard rules clash by themselves; None: none was found.

    ``possible`` says whether the hard rules of a small problem can all hold.
    """
    only = demanding(problem)
    if not only.deployments:
        return None
    alone = Witness(only)
    gpus = {gpu.id: gpu for gpu in only.fleet.gpus()} if never_moved(only) else {}
    for d in only.deployments:
        if demands(problem, d) and not _fits_alone(only, alone, d, gpus):
            one = demanding(problem, {d.name})
            if possible(one) is False:
                return one
    left = left_over(only)
    if left == []:
        return None
    bound = Relaxation(only, hard=True)
    if not bound.solve():
        names = bound.binding()
        few = demanding(problem, names) if names else only
        return few if possible(few) is False else None  # floats alone prove nothing
    return clashing_company(only, left or (), possible)


def all_given_room(problem: PlacementProblem) -> bool:
    """Whether room was found for all that hard rules demand."""
    return room_given(problem) is not None


def room_given(problem: PlacementProblem) -> Witness | None:
    """The fleet filled with all that hard rules demand; None: it was not found to fit."""
    if never_moved(problem):
        return None
    witness = Witness(problem)
    return witness if all(map(witness.place, _choosing(problem))) else None


def left_over(problem: PlacementProblem) -> list[str] | None:
    """Who is given no room; whoever was left over chooses first in the next round.

    None: what runs must stay, so that no room is given at all.
    """
    if never_moved(problem):
        return None
    order, failed = _choosing(problem), list[Deployment]()
    for _ in range(ROUNDS):
        witness = Witness(problem)
        failed = [d for d in order if not witness.place(d)]
        if not failed:
            break
        names = {d.name for d in failed}
        order = [*failed, *(d for d in order if d.name not in names)]
    return [d.name for d in failed]


def _choosing(problem: PlacementProblem) -> list[Deployment]:
    """Who demands room: first who can use fewest nodes, then whose replicas are largest."""
    reach = _Reach(problem)
    some = [d for d in problem.deployments if demands(problem, d)]
    return sorted(some, key=lambda d: (len(reach.nodes(d)), -reach.least_gpus(d)))


def clashing_company(
    problem: PlacementProblem, left: Sequence[str], possible: Possible
) -> PlacementProblem | None:
    """Of those left over one with whom it competes, if they clash; None: that was not found."""
    asked: set[frozenset[str]] = set()
    reach = _Reach(problem)
    for name in left[:LEFT_OVER]:
        for some in _company(problem, reach, name):
            if some in asked or len(some) > MOST_TOGETHER:
                continue
            asked.add(some)
            few = demanding(problem, set(some))
            if possible(few) is False:
                return few
    return None


def _company(problem: PlacementProblem, reach: "_Reach", name: str) -> Iterator[frozenset[str]]:
    """Who can run nowhere but on its nodes; then whoever can run on some of these and few more."""
    some = [d for d in problem.deployments if demands(problem, d)]
    base = reach.nodes(problem.deployment(name))
    yield frozenset(d.name for d in some if reach.nodes(d) <= base)
    narrow = [d for d in some if len(reach.nodes(d)) <= max(NARROW, 2 * len(base))]
    together = {name}
    while True:
        more = {d.name for d in narrow if reach.nodes(d) & base} - together
        if not more or len(together) + len(more) > MOST_TOGETHER:
            break
        together |= more
        base = base.union(*(reach.nodes(d) for d in narrow if d.name in more))
    yield frozenset(together)


class _Reach:
    """On which nodes a deployment may run at all."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.product = {n.name: n.gpu.name for n in problem.fleet.nodes if n.open_gpus()}
        self._known: dict[object, frozenset[str]] = {}

    def nodes(self, d: Deployment) -> frozenset[str]:
        """By name."""
        products = frozenset(way.gpu for way in self.problem.candidates.get(d.name, ()))
        key = (products, d.pin)
        if key not in self._known:
            names = {p.partition("/")[0] for p in d.pin} if d.pin else self.product.keys()
            self._known[key] = frozenset(n for n in names if self.product.get(n) in products)
        return self._known[key]

    def least_gpus(self, d: Deployment) -> int:
        """Of one replica."""
        return min((w.shape.gpus for w in self.problem.candidates.get(d.name, ())), default=0)


def within_reach(problem: PlacementProblem) -> PlacementProblem:
    """The problem without the nodes on which nobody may run."""
    reach = _Reach(problem)
    names = frozenset[str]().union(*(reach.nodes(d) for d in problem.deployments))
    if len(names) == len(problem.fleet.nodes):
        return problem
    nodes = tuple(node for node in problem.fleet.nodes if node.name in names)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))


def _fits_alone(
    problem: PlacementProblem, alone: Witness, d: Deployment, gpus: Mapping[str, FleetGpu]
) -> bool:
    """Whether what is demanded of it fits while nobody else is there; False says nothing."""
    if not _may_stay(problem, d, gpus):
        return False
    return not (d.reserve or (d.survive and d.asked_mrps)) or alone.fits_alone(d)


def _may_stay(problem: PlacementProblem, d: Deployment, gpus: Mapping[str, FleetGpu]) -> bool:
    """Whether what runs and must not be disturbed is within the limits of its own rules."""
    if d.disturb != "never" or problem.current is None:
        return True
    nodes, racks, count = Counter[str](), Counter[str](), 0
    for replica in problem.current.replicas:
        if replica.deployment != d.name or not may_stay(problem, replica, gpus):
            continue
        count += 1
        here = [gpus[gpu].node for gpu in replica.gpus]
        nodes.update({node.name for node in here})
        racks.update({node.rack_domain for node in here})
    within = d.replica_limit is None or count <= d.replica_limit
    within &= d.spread_node is None or max(nodes.values(), default=0) <= d.spread_node
    within &= d.spread_rack is None or max(racks.values(), default=0) <= d.spread_rack
    return within and not (count and (d.survive or d.near))
