"""Around what must stay: a large fleet planned beside the GPUs that nobody may disturb.

The formulation that knows what runs is for smaller fleets. Here every GPU that holds a replica of a
deployment with ``disturb: never`` is left as it is, with all who run on it, and the others are
planned for what those do not serve. The judge has the last word, since rules that reach over both
parts are not seen.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace

from optimizer.domain.fleet import Fleet, Node
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver import measure
from optimizer.solver.large import never_moved
from optimizer.solver.search import solve

NOTE = "GPUs that hold what nobody may disturb are left as they are; no bound is claimed"


def around(problem: PlacementProblem, limits: Limits) -> Placement | None:
    """A placement beside what must stay; None where nothing must or none was found."""
    if problem.current is None or problem.fleet.reserve or not never_moved(problem):
        return None
    never = {d.name for d in problem.deployments if d.disturb == "never"}
    gpus = {g for r in problem.current.replicas if r.deployment in never for g in r.gpus}
    while True:  # whoever touches one of them stays on all of its GPUs
        kept = [r for r in problem.current.replicas if gpus & set(r.gpus)]
        wider = {g for r in kept for g in r.gpus}
        if wider <= gpus:
            break
        gpus |= wider
    found = solve(_beside(problem, kept, gpus), limits).incumbent
    if found is None:
        return None
    return _together(problem, kept, gpus, found)


def _beside(
    problem: PlacementProblem, kept: Collection[Replica], gpus: Collection[str]
) -> PlacementProblem:
    """The other GPUs, and what is still asked of them."""
    candidate_of = measure.candidates_of(problem)
    served: Counter[str] = Counter()
    count = Counter(r.deployment for r in kept)
    asked = {d.name: d for d in problem.deployments}
    for replica in kept:
        way = candidate_of(replica)
        if way is not None and replica.deployment in asked:
            served[replica.deployment] += capacity_mrps(asked[replica.deployment], way)
    assert problem.current is not None
    ids = {r.id for r in kept}
    current = replace(
        problem.current,
        replicas=tuple(r for r in problem.current.replicas if r.id not in ids),
        instances=tuple(i for i in problem.current.instances if i.gpu not in gpus),
    )
    deployments = tuple(_less(d, served[d.name], count[d.name]) for d in problem.deployments)
    fleet = _without(problem.fleet, gpus)
    return replace(problem, fleet=fleet, deployments=deployments, current=current)


def _less(d: Deployment, served: int, count: int) -> Deployment:
    """What is left to ask once that much is served by so many replicas."""
    most = None if d.max_replicas is None else max(0, d.max_replicas - count)
    least = max(0, d.min_replicas - count)
    demand, asked = d.demand, d.asked_mrps
    if demand is not None and asked:
        left = max(0, asked - served)
        fewer = replace(demand, rate_mrps=ceil_div(demand.rate_mrps * left, asked))
        if fewer.peak_mrps < left:
            fewer = replace(fewer, rate_mrps=fewer.rate_mrps + 1)
        demand = fewer if left else None
    return replace(d, demand=demand, min_replicas=least, max_replicas=most, disturb="allowed")


def _without(fleet: Fleet, gpus: Collection[str]) -> Fleet:
    """The fleet with these GPUs cordoned."""
    by_node: dict[str, set[int]] = defaultdict(set)
    for gpu in gpus:
        node, _, index = gpu.rpartition("/")
        by_node[node].add(int(index))
    return replace(fleet, nodes=tuple(_cordoned(n, by_node[n.name]) for n in fleet.nodes))


def _cordoned(node: Node, indexes: Collection[int]) -> Node:
    if not indexes:
        return node
    every = {i: node.device(i) for i in range(node.gpus)}
    devices = tuple(replace(d, cordoned=d.cordoned or i in indexes) for i, d in every.items())
    return replace(node, devices=devices)


def _together(
    problem: PlacementProblem,
    kept: Collection[Replica],
    gpus: Collection[str],
    found: Placement,
) -> Placement:
    """Both parts as one; who is new gets a number that nobody has."""
    assert problem.current is not None
    running = {r.id for r in problem.current.replicas}
    taken: dict[str, set[int]] = defaultdict(set)
    for replica in problem.current.replicas:
        taken[replica.deployment].add(replica.number)
    replicas = list(kept)
    ids = {r.id for r in kept}
    for replica in found.replicas:
        if replica.id not in running or replica.id in ids:
            mine = taken[replica.deployment]
            number = next(n for n in range(len(mine) + 1) if n not in mine)
            mine.add(number)
            replica = replace(replica, id=f"{replica.deployment}/{number}")
        replicas.append(replica)
    empties = [i for i in problem.current.instances if i.gpu in gpus]
    return Placement(
        tuple(sorted(replicas, key=lambda r: replica_order(r.id))),
        tuple(sorted([*found.instances, *empties], key=lambda i: (i.gpu, i.placed))),
    )
