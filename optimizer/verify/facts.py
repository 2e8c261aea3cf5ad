"""What the judge looks at: a problem and a placement, indexed once."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import FleetGpu, Node, Sharing
from optimizer.domain.gpu import Gpu, MigProfile, PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica, Reserved
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A broken rule: its name, the replica, GPU, node or deployment concerned, and the numbers."""

    rule: str
    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Running:
    """A replica with what is known about it. Unknown GPUs are left out of ``devices``."""

    replica: Replica
    deployment: Deployment | None
    devices: tuple[FleetGpu, ...]
    nodes: tuple[Node, ...]
    candidate: Candidate | None

    @property
    def capacity_mrps(self) -> int:
        """The rate it serves; zero where it runs as no candidate or demand counts replicas."""
        if self.candidate is None or self.deployment is None or self.deployment.demand is None:
            return 0
        return self.candidate.capacity_mrps or 0


@dataclass(frozen=True, slots=True)
class Ground:
    """A problem, indexed."""

    problem: PlacementProblem
    deployments: dict[str, Deployment]
    nodes: dict[str, Node]
    gpus: dict[str, FleetGpu]
    matches: dict[tuple[object, ...], Candidate | None] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: PlacementProblem) -> "Ground":
        """Index a problem."""
        return cls(
            problem,
            {d.name: d for d in problem.deployments},
            {n.name: n for n in problem.fleet.nodes},
            {g.id: g for g in problem.fleet.gpus()},
        )

    def candidate(self, replica: Replica, product: Gpu) -> Candidate | None:
        """The candidate that the replica runs as: of those that agree, the one most like it."""
        key = (
            replica.deployment,
            product.name,
            replica.mig.profile if replica.mig else None,
            replica.share,
            len(replica.gpus),
            replica.config,
        )
        if key not in self.matches:
            offered = self.problem.candidates.get(replica.deployment, ())
            agreeing = [c for c in offered if _agrees(replica, product, c)]
            self.matches[key] = min(agreeing, key=lambda c: _unlike(replica, c), default=None)
        return self.matches[key]

    def run(self, replica: Replica) -> Running:
        """The replica with its deployment, GPUs, nodes and candidate."""
        devices = tuple(self.gpus[g] for g in dict.fromkeys(replica.gpus) if g in self.gpus)
        nodes = tuple({d.node.name: d.node for d in devices}.values())
        products = {d.gpu.name: d.gpu for d in devices}
        candidate = None
        if len(products) == 1:
            candidate = self.candidate(replica, *products.values())
        return Running(replica, self.deployments.get(replica.deployment), devices, nodes, candidate)


@dataclass(frozen=True, slots=True)
class Facts:
    """A placement on its ground, indexed by GPU, node and deployment."""

    ground: Ground
    placement: Placement
    running: tuple[Running, ...]
    on_gpu: dict[str, list[Running]]
    on_node: dict[str, list[Running]]
    of_deployment: dict[str, list[Running]]
    standing: dict[str, list[PlacedProfile]]  # empty MIG instances by GPU
    kept: dict[str, list[Reserved]]  # room kept free, by GPU

    @classmethod
    def of(cls, problem: PlacementProblem, placement: Placement) -> "Facts":
        """Index a problem and a placement."""
        return cls.on(Ground.of(problem), placement)

    @classmethod
    def on(cls, ground: Ground, placement: Placement) -> "Facts":
        """Index a placement."""
        running = tuple(ground.run(replica) for replica in placement.replicas)
        on_gpu: dict[str, list[Running]] = defaultdict(list)
        on_node: dict[str, list[Running]] = defaultdict(list)
        of_deployment: dict[str, list[Running]] = defaultdict(list)
        for one in running:
            of_deployment[one.replica.deployment].append(one)
            for device in one.devices:
                on_gpu[device.id].append(one)
            for node in one.nodes:
                on_node[node.name].append(one)
        standing: dict[str, list[PlacedProfile]] = defaultdict(list)
        for instance in placement.instances:
            standing[instance.gpu].append(instance.placed)
        kept: dict[str, list[Reserved]] = defaultdict(list)
        for piece in placement.reserved:
            for gpu in piece.gpus:
                kept[gpu].append(piece)
        return cls(
            ground,
            placement,
            running,
            dict(on_gpu),
            dict(on_node),
            dict(of_deployment),
            dict(standing),
            dict(kept),
        )

    @property
    def problem(self) -> PlacementProblem:
        """The problem that the placement answers."""
        return self.ground.problem

    @property
    def used(self) -> tuple[str, ...]:
        """GPUs that hold a replica or room kept free; each costs its full price."""
        return tuple(
            dict.fromkeys([*self.on_gpu, *(g for g in self.kept if g in self.ground.gpus)])
        )

    def replicas(self, deployment: Deployment) -> list[Running]:
        """Its running replicas."""
        return self.of_deployment.get(deployment.name, [])


def mode(running: Iterable[Running]) -> Sharing | None:
    """The mode that these replicas put their GPU in (the first one's); None without any."""
    return next((r.replica.shape.sharing for r in running), None)


def profile_of(product: Gpu, placed: PlacedProfile) -> MigProfile | None:
    """The profile by its name or one of a driver's other spellings; None if there is none."""
    return product.mig.profile(placed.profile) if product.mig else None


def room_of(replica: Replica, product: Gpu) -> Use | None:
    """What one GPU gives this replica; None where nobody knows."""
    if replica.share is not None:
        return replica.share
    if replica.mig is None:
        return product.room
    profile = profile_of(product, replica.mig)
    return product.slice_room(profile) if profile else None


def stays(replica: Replica, current: dict[str, Replica]) -> bool:
    """Whether the replica of that id runs there today, in that room and that way."""
    before = current.get(replica.id)
    return (
        before is not None
        and before.deployment == replica.deployment
        and sorted(before.gpus) == sorted(replica.gpus)
        and before.mig == replica.mig
        and before.share == replica.share
        and before.config.agrees_with(replica.config)
    )


def current_replicas(problem: PlacementProblem) -> dict[str, Replica]:
    """What runs now, by id; nothing without a state."""
    return {r.id: r for r in problem.current.replicas} if problem.current else {}


def _agrees(replica: Replica, product: Gpu, candidate: Candidate) -> bool:
    shape, mine = candidate.shape, replica.shape
    if (candidate.gpu, shape.sharing, shape.gpus) != (product.name, mine.sharing, mine.gpus):
        return False
    if replica.mig is not None and shape.profile != replica.mig.profile:
        theirs = product.mig.profile(shape.profile or "") if product.mig else None
        if theirs is None or theirs != profile_of(product, replica.mig):
            return False
    return replica.config.agrees_with(candidate.config)


def _unlike(replica: Replica, candidate: Candidate) -> tuple[bool, ...]:
    share = replica.share
    return (
        share is not None and not candidate.use.fits_in(share),
        candidate.running_only,
        candidate.config != replica.config,
        share is not None and candidate.shape.share != share,
    )


def fixed_layouts(problem: PlacementProblem) -> dict[str, list[PlacedProfile]]:
    """The MIG instances, in order, of GPUs whose layout is fixed: given, else what stands today."""
    fixed = {g.id: g for g in problem.fleet.gpus() if g.node.layouts_fixed}
    today: dict[str, list[PlacedProfile]] = defaultdict(list)
    if fixed and problem.current is not None:
        for replica in problem.current.replicas:
            if replica.mig is not None:
                today[replica.gpus[0]].append(replica.mig)
        for instance in problem.current.instances:
            today[instance.gpu].append(instance.placed)
    return {
        id: sorted(gpu.device.layout if gpu.device.layout is not None else today[id])
        for id, gpu in fixed.items()
    }
