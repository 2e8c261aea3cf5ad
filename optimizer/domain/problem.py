"""The placement problem: all that the solver and the judge are given."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from optimizer.domain.config import Candidate, ReplicaConfig, Shape
from optimizer.domain.fleet import Fleet, Node, Reserve, Sharing
from optimizer.domain.gpu import Gpu, Use
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


def with_reserve(problem: PlacementProblem) -> PlacementProblem:
    """The same problem with each entry of the reserve as a deployment that must run.

    Its replicas load nothing and take exactly the room to be kept free. No other tenant is like
    its own, so what asks for isolation lies apart from it.
    """
    if not problem.fleet.reserve:
        return problem
    first = max((d.priority for d in problem.deployments), default=0)
    deployments, candidates = list(problem.deployments), dict(problem.candidates)
    for number, entry in enumerate(problem.fleet.reserve):
        name = reserve_name(number)
        nodes = [node for node in problem.fleet.nodes if asked_of(entry, node)]
        deployments.append(
            Deployment(
                name,
                tenant=name,
                min_replicas=entry.count,
                pin=tuple(node.name for node in nodes) if entry.labels else (),
                priority=first,
                reserve=True,
            )
        )
        products = {node.gpu.name: node.gpu for node in nodes}
        candidates[name] = tuple(
            Candidate(name, gpu.name, shape, Use(), ReplicaConfig(tensor_parallel=shape.gpus))
            for _, gpu in sorted(products.items())
            for shape in _room_of(entry, gpu)
        )
    fleet = replace(problem.fleet, reserve=())
    return PlacementProblem(fleet, tuple(deployments), candidates, problem.current)


def reserve_name(number: int) -> str:
    """What an entry of the reserve is called: by its place in the list."""
    return f"reserve[{number}]"


def asked_of(entry: Reserve, node: Node) -> bool:
    """Whether room on that node does for the entry: its product and its labels."""
    labels = dict(node.labels)
    named = entry.gpu is None or entry.gpu == node.gpu.name
    return named and all(labels.get(key) == value for key, value in entry.labels)


def _room_of(entry: Reserve, gpu: Gpu) -> Iterator[Shape]:
    profile = gpu.mig.profile(entry.profile) if gpu.mig and entry.profile else None
    if profile is not None:
        yield Shape(Sharing.MIG, 1, profile.name)
    elif entry.profile is None:
        yield Shape(Sharing.WHOLE, entry.gpus or 1)


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
