"""The kind Plan, which this program writes and reads back."""

from typing import Annotated, Any, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Choice,
    GpuId,
    Head,
    Profile,
    ReplicaId,
    Strict,
    Text,
)
from optimizer.documents.schema.state import ConfigDoc, InstanceDoc, ShareDoc

FORMAT = "1.0"
MODES = ("mig", "whole", "shared", "empty")
STATUSES = ("optimal", "within_gap", "limit", "infeasible", "nothing_found")
KINDS_OF_MOVE = ("start", "stop", "move", "reconfigure")
ACTIONS = (
    *("create_instance", "destroy_instance", "set_mig_mode"),
    *("start", "shift_traffic", "drain", "stop"),
)
# A plan is written by a program: sums may be large, and so may figures of a huge fleet.
Whole = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(ge=0)]


class InputDoc(Strict):
    """A document that the plan was made from."""

    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    kind: str


class PriorityDoc(Strict):
    """Unmet demand of one priority."""

    priority: int
    value: Real
    bound: Real


class ObjectiveDoc(Strict):
    """One objective: unmet is a sum of shares, disruption and stranded are GiB."""

    name: Annotated[str, Choice("objective", ("unmet", "price_per_hour", "disruption", "stranded"))]
    value: Real
    bound: float
    gap: Real
    priorities: list[PriorityDoc] = Field([], description="of unmet: priority by priority")


class SightingDoc(Strict):
    """How the search for the least price stood after so many seconds."""

    seconds: Real
    price_per_hour: Real | None = Field(None, description="of the best placement so far")
    bound: float | None = Field(None, description="no placement costs less")


class RunDoc(Strict):
    """What differs between two runs on the same input."""

    seconds: Real
    workers: Whole
    started_at: str
    stopped_by: str
    trajectory: list[SightingDoc] = Field([], description="bound and price over time")


class OutcomeDoc(Strict):
    """What is known, and why the search stopped."""

    status: Annotated[str, Choice("status", STATUSES)]
    objectives: list[ObjectiveDoc] = Field([])
    reproducible: bool = True
    conflict: list[str] = Field([], description="rules that cannot all hold")
    notes: list[str] = Field([])
    run: RunDoc


class UseDoc(Strict):
    """What is taken of a GPU, or what it has to give."""

    memory_mib: Whole
    bandwidth_gbs: Real
    compute_fraction: Real


class PredictedDoc(Strict):
    """What a replica is predicted to do."""

    ttft_ms: Real | None = None
    tpot_ms: Real | None = None
    ttft_mean_ms: Real | None = None
    tpot_mean_ms: Real | None = None
    concurrency: Real | None = None
    output_tokens_per_second: Real | None = None
    error_band_percent: dict[str, Real] = Field({})


class ConfigUseDoc(ConfigDoc):
    """How many replicas run one way on one product."""

    gpu: Text
    sharing: Annotated[str, Choice("way of sharing", MODES[:3])]
    mig_profile: Text | None = None
    gpus: Whole = Field(description="GPUs per replica")
    count: Whole
    requests_per_second: Real


class PlanSloDoc(Strict):
    """The latency promised."""

    ttft_ms: Real | None = None
    tpot_ms: Real | None = None
    percentile: Real


class DeploymentPlanDoc(Strict):
    """A deployment's part of the plan."""

    name: Text
    tenant: Text
    replicas: Whole
    configs: list[ConfigUseDoc] = Field([])
    demand_rps: Real | None = None
    capacity_rps: Real | None = None
    slo: PlanSloDoc | None = None
    predicted: PredictedDoc | None = None
    price_per_hour: Real
    reasons: list[str] = Field([])


class PlacedReplicaDoc(Strict):
    """A replica as in State, and what it takes of each of its GPUs."""

    id: ReplicaId
    deployment: Text
    gpus: list[GpuId] = Field(min_length=1)
    mig: Profile | None = None
    share: ShareDoc | None = None
    config: ConfigDoc
    use: UseDoc | None = None


class ReservedDoc(Strict):
    """Room kept free for an entry of the fleet's reserve: whole GPUs, or a MIG position."""

    entry: int = Field(ge=0, description="place in the fleet's list, from 0")
    gpus: list[GpuId] = Field(min_length=1)
    mig: Profile | None = None


class PlacedInstanceDoc(Profile):
    """A MIG instance and the replica in it."""

    replica: str | None = None
    memory_slices: Whole = 0


class GpuPlanDoc(Strict):
    """What one GPU holds."""

    id: GpuId
    gpu: Text
    rack: Text | None = None
    mode: Annotated[str, Choice("mode", MODES)]
    cordoned: bool = False
    price_per_hour: Real
    memory_slices: Whole = 0
    instances: list[PlacedInstanceDoc] = Field([])
    replicas: list[str] = Field([])
    use: UseDoc
    room: UseDoc


class EndDoc(Strict):
    """One end of a move."""

    gpus: list[GpuId] = Field(min_length=1)
    mig: Profile | None = None
    share: ShareDoc | None = None
    config: ConfigDoc


class MoveDoc(Strict):
    """A replica's change."""

    replica: ReplicaId
    kind: Annotated[str, Choice("kind of move", KINDS_OF_MOVE)]
    from_: EndDoc | None = Field(None, alias="from")
    to: EndDoc | None = None
    load_gib: Real
    reason: str


class StepDoc(Strict):
    """One ordered act."""

    id: Text
    action: Annotated[str, Choice("action", ACTIONS)]
    gpus: list[GpuId]
    replica: str | None = None
    after: list[str] = Field([])
    start_s: Whole
    seconds: Whole
    because: str
    instance: Profile | None = None
    mig_enabled: bool | None = None


class UnmetDoc(Strict):
    """Demand left unserved."""

    deployment: Text
    missing_rps: Real
    missing_replicas: Whole
    reason: str
    smallest_fix: str | None = None


class TenantDoc(Strict):
    """What a tenant pays."""

    name: Text
    price_per_hour: Real
    stranded_price_per_hour: Real


class PlanDoc(Head):
    """A Plan document."""

    kind: Literal["Plan"] = Field(description="Plan")
    format_version: Literal["1.0"] = Field(description="1.0")
    fleetslice_version: str = ""
    fleet: str
    unit: str = Field(description="the currency, or GPUs where no node has a price")
    price_per_hour: Real
    inputs: list[InputDoc] = Field([])
    options: dict[str, Any] = Field({})
    outcome: OutcomeDoc
    deployments: list[DeploymentPlanDoc]
    replicas: list[PlacedReplicaDoc]
    instances: list[InstanceDoc] = Field([], description="MIG instances that stand empty")
    reserved: list[ReservedDoc] = Field([], description="room kept free for the fleet's reserve")
    gpus: list[GpuPlanDoc]
    moves: list[MoveDoc] = Field([])
    repartitions: list[GpuId] = Field([], description="GPUs whose layout changes")
    steps: list[StepDoc] = Field([])
    left: list[str] = Field([], description="replicas whose move has no safe order")
    unmet: list[UnmetDoc] = Field([])
    tenants: list[TenantDoc] = Field([])
    certificate: dict[str, Any] = Field({})
