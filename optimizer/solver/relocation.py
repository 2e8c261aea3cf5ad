"""Problems in which only the places of replicas are open, solved to proof at any size.

Where every deployment runs in one way, as MIG instances of one product, a plan can do nothing but
move them, start what is missing and stop what nobody asks for any more. ``consolidate`` is then no
shortcut: its bounds hold for every plan.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.placement import Instance, Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.measure import disruption_mib
from optimizer.solver.rebalance import KEEPS, Ask, consolidate


def only_places(problem: PlacementProblem) -> bool:
    """Whether nothing but places is open: see above."""
    fleet = problem.fleet
    products = {node.gpu.name for node in fleet.nodes if Sharing.MIG in node.sharing}
    running = problem.current.replicas if problem.current is not None else ()
    names = {d.name for d in problem.deployments}
    if fleet.reserve or fleet.limits.price_micros_per_hour is not None or len(products) != 1:
        return False
    if not running or any(r.deployment not in names for r in running):
        return False
    by_name = _by_deployment(running)
    return all(_one_way(problem, d, by_name[d.name], *products) for d in problem.deployments)


def _one_way(
    problem: PlacementProblem, d: Deployment, running: list[Replica], product: str
) -> bool:
    ways = problem.candidates.get(d.name, ())
    if len(ways) != 1 or ways[0].shape.profile is None or ways[0].gpu != product:
        return False
    alike = all(replica.runs_as(ways[0], product) for replica in running)
    told_apart = d.disturb == "never" or d.near or d.survive or d.pin
    return alike and not (told_apart and len(running) > _asked(d, ways[0]))


def _by_deployment(replicas: Sequence[Replica]) -> dict[str, list[Replica]]:
    found: dict[str, list[Replica]] = defaultdict(list)
    for replica in replicas:
        found[replica.deployment].append(replica)
    return found


def _asked(d: Deployment, way: Candidate) -> int:
    """How many replicas of that way are asked for, within the deployment's limit."""
    wanted = d.min_replicas
    if d.asked_mrps and way.capacity_mrps:
        wanted = max(wanted, ceil_div(d.asked_mrps, way.capacity_mrps))
    return wanted if d.replica_limit is None else min(wanted, d.replica_limit)


def told_apart(problem: PlacementProblem) -> bool:
    """Whether rules look at who lies beside whom, so that today's places may break them."""
    fleet = problem.fleet
    return (
        any(
            d.pin or d.avoid or d.near or d.survive or d.spread_node or d.spread_rack
            for d in problem.deployments
        )
        or any(d.isolate != "none" for d in problem.deployments)
        or any(n.layouts_fixed or n.cpu_millicores or n.host_memory_mib for n in fleet.nodes)
        or fleet.limits.rack_power_w is not None
    )


def relocate(problem: PlacementProblem, limits: Limits, ask: Ask | None = None) -> Outcome:
    """Least price, then least disruption, as far as ``ask`` allows.

    Nothing is found where what is missing finds no room: whom to serve is then a choice. Who stops
    where fewer are asked for is chosen beforehand, so that the disruption is not bounded then.
    """
    going = {replica.id for replica in _surplus(problem)}
    outcome = consolidate(_without(problem, going), limits, ask)
    if outcome.incumbent is None:
        return outcome
    disruption = disruption_mib(problem, outcome.incumbent)
    objectives = tuple(
        replace(o, value=disruption, bound=0 if going else o.bound) if o.name == "disruption" else o
        for o in outcome.objectives
    )
    spoken_for = [o for o in objectives if o.name != "stranded"]
    termination, stopped_by = Termination.LIMIT, "effort"
    if all(o.proved for o in spoken_for):
        termination, stopped_by = Termination.OPTIMAL, "proof"
    elif limits.gap > 0 and all(o.gap <= limits.gap for o in spoken_for):
        termination, stopped_by = Termination.WITHIN_GAP, "gap"
    notes = tuple(note for note in outcome.notes if note != KEEPS)
    return replace(
        outcome,
        objectives=objectives,
        termination=termination,
        stopped_by=stopped_by,
        notes=notes,
    )


def _surplus(problem: PlacementProblem) -> Iterator[Replica]:
    """Replicas above what is asked, those with the fewest neighbours first."""
    assert problem.current is not None
    beside = Counter(r.gpus[0] for r in problem.current.replicas)
    running = _by_deployment(problem.current.replicas)
    for d in problem.deployments:
        mine = running[d.name]
        over = len(mine) - _asked(d, problem.candidates[d.name][0])
        lonely = sorted(mine, key=lambda r: (beside[r.gpus[0]], -r.number))
        yield from lonely[: max(0, over)]


def _without(problem: PlacementProblem, going: set[str]) -> PlacementProblem:
    """The problem after the surplus has stopped; its instances stand empty."""
    if not going or problem.current is None:
        return problem
    kept = tuple(r for r in problem.current.replicas if r.id not in going)
    freed = tuple(
        Instance(r.gpus[0], r.mig)
        for r in problem.current.replicas
        if r.id in going and r.mig is not None
    )
    current = Placement(kept, (*problem.current.instances, *freed))
    return replace(problem, current=current)
