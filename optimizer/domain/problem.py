"""The placement problem: all that the solver and the judge are given."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Fleet
from optimizer.domain.placement import Placement
from optimizer.domain.workload import Deployment


@dataclass(frozen=True, slots=True)
class PlacementProblem:
    """Fleet, deployments in document order, their candidates by name, and what runs now."""

    fleet: Fleet
    deployments: tuple[Deployment, ...]
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)
    current: Placement | None = None

    def deployment(self, name: str) -> Deployment:
        """The deployment of that name. Raises KeyError."""
        for deployment in self.deployments:
            if deployment.name == name:
                return deployment
        raise KeyError(name)


def capacity_mrps(deployment: Deployment, candidate: Candidate) -> int:
    """What one replica adds to the served rate; zero where demand is counted in replicas."""
    return 0 if deployment.demand is None else (candidate.capacity_mrps or 0)


def missing_ppm(deployment: Deployment, served_mrps: int, replicas: int) -> int:
    """Missing over asked, millionths rounded up: of rate or ``min_replicas``, the larger."""
    short = max(0, deployment.min_replicas - replicas)
    parts = [-(-1_000_000 * short // deployment.min_replicas) if deployment.min_replicas else 0]
    if deployment.asked_mrps:
        gap = max(0, deployment.asked_mrps - served_mrps)
        parts.append(-(-1_000_000 * gap // deployment.asked_mrps))
    return max(parts)
