"""Workloads: what customers ask for."""

from dataclasses import dataclass

from optimizer.domain.model import ServedModel
from optimizer.domain.units import ceil_div

AVOID_WEIGHT = 8  # of a load for a deployment that says ``disturb: avoid``


@dataclass(frozen=True, slots=True)
class Demand:
    """Traffic. Token counts are means; rates in thousandths of a request per second."""

    rate_mrps: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    max_context_tokens: int | None = None
    arrival_cv: float = 1.0
    peak_factor_ppm: int = 1_000_000
    prefix_hit_rate: float = 0.0
    length_cv: float = 0.0

    @property
    def peak_mrps(self) -> int:
        """The rate that replicas carry together: mean times peak factor, rounded up."""
        return ceil_div(self.rate_mrps * self.peak_factor_ppm, 1_000_000)


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency promised at ``percentile``; None: not promised."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float = 95


@dataclass(frozen=True, slots=True)
class Allow:
    """What a deployment may use. None: the defaults of the documents."""

    precisions: tuple[str, ...] | None = None
    kv_precisions: tuple[str, ...] | None = None
    attention: tuple[str, ...] | None = None
    engines: tuple[str, ...] | None = None
    gpus: tuple[str, ...] | None = None
    sharing: tuple[str, ...] | None = None
    tensor_parallel: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_parallel: tuple[int, ...] = (1,)
    forbidden: tuple[tuple[str, str], ...] = ()  # (gpu | precision | engine, name), from scenarios


@dataclass(frozen=True, slots=True)
class Extras:
    """Residents beside weights and KV cache."""

    lora_count: int = 0
    lora_rank: int = 0
    draft_model: ServedModel | None = None
    other_mib: int = 0
    prefix_cache_tokens: int = 0  # KV cache kept for shared prefixes, beside running requests


@dataclass(frozen=True, slots=True)
class Needs:
    """What one replica of a deployment that is not an LLM takes on the GPU.

    Either ``memory_mib`` (with bandwidth and compute, of whichever GPU is used, or scaled by dense
    bf16 peak from ``measured_on``), or exactly one of ``mig_profile``, ``gpus``, ``gpu_ppm``.
    """

    memory_mib: int | None = None
    bandwidth_mbs: int = 0
    compute_ppm: int = 0
    measured_on: str | None = None
    mig_profile: str | None = None
    gpus: int | None = None
    gpu_ppm: int | None = None


@dataclass(frozen=True, slots=True)
class MeasuredOption:
    """A way to run a replica whose capacity was measured: a MIG slice, or whole GPUs."""

    gpu: str
    rate_mrps: int
    mig_profile: str | None = None
    gpus: int = 1
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """One served model with one SLO and one demand.

    Exactly one of ``model``, ``needs`` and ``measured`` says how it runs. Without ``demand``,
    exactly ``min_replicas`` replicas run.
    """

    name: str
    tenant: str = "default"
    model: ServedModel | None = None
    precision: str | None = None  # fixed by the id of a quantised repack
    needs: Needs | None = None
    measured: tuple[MeasuredOption, ...] = ()
    demand: Demand | None = None
    slo: Slo | None = None
    allow: Allow = Allow()
    extras: Extras = Extras()
    host_cpu_millicores: int = 0
    host_memory_mib: int = 0
    min_replicas: int = 1
    max_replicas: int | None = None
    spread_node: int | None = None
    spread_rack: int | None = None
    survive: str | None = None
    isolate: str = "none"  # none | tenant | gpu | node
    avoid: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    pin: tuple[str, ...] = ()
    priority: int = 0
    disturb: str = "allowed"  # allowed | avoid | never
    reserve: bool = False  # stands for room kept free: all of its replicas must find a place

    @property
    def move_weight(self) -> int:
        """How many times a load of its weights counts in the disruption."""
        return AVOID_WEIGHT if self.disturb == "avoid" else 1

    @property
    def asked_mrps(self) -> int | None:
        """The rate to serve, or None where only a number of replicas is asked."""
        return None if self.demand is None else self.demand.peak_mrps

    @property
    def replica_limit(self) -> int | None:
        """The most replicas that may run; None: no limit."""
        return self.min_replicas if self.demand is None else self.max_replicas


@dataclass(frozen=True, slots=True)
class Workloads:
    """Deployments in document order."""

    name: str
    deployments: tuple[Deployment, ...]

    def deployment(self, name: str) -> Deployment:
        """The deployment of that name. Raises KeyError."""
        for deployment in self.deployments:
            if deployment.name == name:
                return deployment
        raise KeyError(name)
