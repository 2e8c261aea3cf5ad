"""Demand left unserved: how much, what was short, and what would help."""

from collections.abc import Mapping

from optimizer.domain.config import Dropped
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Unmet
from optimizer.domain.problem import PlacementProblem, missing_ppm
from optimizer.planning.match import Matcher


def unmet(
    problem: PlacementProblem, placement: Placement, dropped: Mapping[str, tuple[Dropped, ...]]
) -> tuple[Unmet, ...]:
    """Every deployment that gets less than it asks, in document order."""
    matcher = Matcher(problem)
    found = []
    for deployment in problem.deployments:
        mine = [r for r in placement.replicas if r.deployment == deployment.name]
        served = sum(matcher.capacity_mrps(r) for r in mine)
        if not missing_ppm(deployment, served, len(mine)):
            continue
        found.append(
            Unmet(
                deployment.name,
                max(0, (deployment.asked_mrps or 0) - served),
                max(0, deployment.min_replicas - len(mine)),
                "no room",
            )
        )
    return tuple(found)
