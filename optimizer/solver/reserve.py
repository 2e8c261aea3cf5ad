"""Room kept free: placed like deployments that must run, then named apart from the replicas."""

from collections.abc import Callable
from dataclasses import replace

from optimizer.domain.outcome import Limits, Objective, Outcome, Progress, Termination
from optimizer.domain.placement import Placement, Replica, Reserved
from optimizer.domain.problem import PlacementProblem, reserve_name, with_reserve
from optimizer.domain.units import MIB_PER_GIB
from optimizer.solver.measure import disruption_mib
from optimizer.solver.where import still_standing

Progressing = Callable[[Progress], None] | None
Search = Callable[[PlacementProblem, Limits, Progressing], Outcome]


def reserve(
    search: Search, problem: PlacementProblem, limits: Limits, progress: Progressing = None
) -> Outcome:
    """The outcome of a search that keeps the room free which the fleet's reserve asks for."""
    if not problem.fleet.reserve:
        return search(problem, limits, progress)
    outcome = search(with_reserve(problem), limits, progress)
    found = outcome.incumbent
    if found is None:
        return outcome
    incumbent = _apart(problem, found)
    if any(
        sum(piece.entry == number for piece in incumbent.reserved) < entry.count
        for number, entry in enumerate(problem.fleet.reserve)
    ):
        return Outcome(
            Termination.NOTHING_FOUND,
            stopped_by=outcome.stopped_by,
            reproducible=outcome.reproducible,
        )
    objectives = tuple(_counted(problem, incumbent, o) for o in outcome.objectives)
    proved = all(o.proved for o in objectives if o.name != "stranded")
    lost = outcome.termination is Termination.OPTIMAL and not proved
    return replace(
        outcome,
        incumbent=incumbent,
        objectives=objectives,
        termination=Termination.LIMIT if lost else outcome.termination,
        stopped_by="effort" if lost else outcome.stopped_by,
    )


def _apart(problem: PlacementProblem, found: Placement) -> Placement:
    """The placement with the pieces of the reserve named as such."""
    entries = {reserve_name(number): number for number in range(len(problem.fleet.reserve))}
    kept: list[Reserved] = []
    replicas: list[Replica] = []
    for replica in found.replicas:
        if replica.deployment in entries:
            kept.append(Reserved(entries[replica.deployment], replica.gpus, replica.mig))
        else:
            replicas.append(replica)
    return Placement(tuple(replicas), still_standing(problem, replicas), tuple(kept))


def _counted(problem: PlacementProblem, found: Placement, objective: Objective) -> Objective:
    """The disruption without what the search counted for room that nobody need cut yet."""
    if objective.name != "disruption":
        return objective
    value = disruption_mib(problem, found)
    uncut = MIB_PER_GIB * len(found.reserved) if value < objective.value else 0
    # Another placement may save as much; none can save more than one cut for each piece.
    most = objective.bound - (uncut or MIB_PER_GIB * len(found.reserved))
    return replace(objective, value=value, bound=max(0, min(value, most)))
