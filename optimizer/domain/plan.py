"""The plan: a placement, why it is so, what it costs, and how to get there. A plan is data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.domain.config import Prediction, ReplicaConfig
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.outcome import Objective
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.workload import Slo


@dataclass(frozen=True, slots=True)
class PlanInput:
    """A document that the plan was made from."""

    path: str
    sha256: str
    kind: str


@dataclass(frozen=True, slots=True)
class ConfigUse:
    """How many replicas of a deployment run one way on one product, and what they serve."""

    gpu: str
    sharing: str
    profile: str | None
    gpus_per_replica: int
    config: ReplicaConfig
    count: int
    capacity_mrps: int


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """A deployment's part of the plan. Rates in mrps, prices in micros per hour."""

    name: str
    tenant: str
    replicas: int
    configs: tuple[ConfigUse, ...]
    demand_mrps: int | None
    capacity_mrps: int | None
    predicted: Prediction | None
    price_micros: int
    reasons: tuple[str, ...] = ()
    slo: Slo | None = None


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """A MIG instance of the plan and the replica in it, if any."""

    placed: PlacedProfile
    replica: str | None
    memory_slices: int = 0  # 0: not said


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What one GPU holds in the plan."""

    id: str
    gpu: str
    mode: str  # mig | whole | shared | empty
    instances: tuple[PlacedInstance, ...]
    replicas: tuple[str, ...]
    use: Use
    room: Use
    price_micros: int  # what this GPU costs per hour when used
    cordoned: bool = False
    memory_slices: int = 0  # of the whole GPU; 0: the product has no MIG
    rack: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A replica's change: ``before`` None is a start, ``after`` None a stop."""

    replica: str
    kind: str  # start | stop | move | reconfigure
    before: Replica | None
    after: Replica | None
    load_mib: int
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One ordered act and the acts that must come first.

    A start on other GPUs or another instance than the replica's move ends in is a temporary copy:
    it runs as the replica ran before, until a later start, shift, drain and stop move it on.
    """

    id: str
    action: str  # create_instance destroy_instance set_mig_mode start shift_traffic drain stop
    gpus: tuple[str, ...]
    replica: str | None
    after: tuple[str, ...]
    start_s: int
    seconds: int
    because: str
    placed: PlacedProfile | None = None  # the instance created, destroyed, or run in
    enable: bool | None = None  # set_mig_mode


@dataclass(frozen=True, slots=True)
class Unmet:
    """Demand that this plan leaves unserved."""

    deployment: str
    missing_mrps: int
    missing_replicas: int
    reason: str
    smallest_fix: str | None = None


@dataclass(frozen=True, slots=True)
class TenantPrice:
    """What a tenant pays per hour, and the part of it that is unused room."""

    name: str
    price_micros: int
    stranded_micros: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """How the search for the least price stood after so many seconds, in micros per hour."""

    seconds: float
    incumbent: int | None
    bound: int | None


@dataclass(frozen=True, slots=True)
class PlanRun:
    """The only part of a plan that differs between two runs on the same input."""

    seconds: float
    workers: int
    started_at: str
    stopped_by: str
    trajectory: tuple[Sighting, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a person or a machine needs to judge, show and carry out a placement."""

    inputs: tuple[PlanInput, ...]
    options: Mapping[str, Any]
    fleet: str
    unit: str  # currency, or GPUs
    status: str
    objectives: tuple[Objective, ...]
    run: PlanRun
    placement: Placement
    deployments: tuple[DeploymentPlan, ...]
    gpus: tuple[GpuPlan, ...]
    moves: tuple[Move, ...] = ()
    repartitions: tuple[str, ...] = ()  # GPUs whose layout changes
    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()  # replicas whose move has no safe order: they stay as they are
    unmet: tuple[Unmet, ...] = ()
    tenants: tuple[TenantPrice, ...] = ()
    conflict: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reproducible: bool = True
    certificate: Mapping[str, Any] = field(default_factory=dict)
    uses: Mapping[str, Use] = field(default_factory=dict)  # by replica, of each of its GPUs
    version: str = ""

    @property
    def price_micros(self) -> int:
        """The plan's price per hour in millionths of its unit."""
        kept = {gpu for piece in self.placement.reserved for gpu in piece.gpus}
        return sum(g.price_micros for g in self.gpus if g.mode != "empty" or g.id in kept)
