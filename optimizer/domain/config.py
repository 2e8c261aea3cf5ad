"""Replica configurations: one way to run a replica, what it takes and what it serves."""

from dataclasses import dataclass, fields

from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Use


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """Engine settings of a replica. None: not said (in a State) or the engine's default."""

    engine: str | None = None
    engine_version: str | None = None
    precision: str | None = None
    kv_precision: str | None = None
    attention: str | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    memory_fraction: float | None = None

    def agrees_with(self, other: "ReplicaConfig") -> bool:
        """Whether no field that both name differs: a State may say less than a plan."""
        return self == other or all(
            mine is None or theirs is None or mine == theirs
            for name in SETTINGS
            for mine, theirs in [(getattr(self, name), getattr(other, name))]
        )


SETTINGS = tuple(field.name for field in fields(ReplicaConfig))


@dataclass(frozen=True, slots=True)
class Shape:
    """The room a replica takes: one MIG instance, ``gpus`` whole GPUs, or a share of one GPU.

    Whole GPUs lie in one node, or with several ``stages`` each stage's equal block of them does.
    """

    sharing: Sharing
    gpus: int = 1
    profile: str | None = None
    share: Use | None = None
    stages: int = 1

    @property
    def block(self) -> int:
        """GPUs that must lie together: those of one stage."""
        return self.gpus // self.stages

    @property
    def key(self) -> tuple[str, int, str, tuple[int, int, int], int]:
        """A sortable name of the shape."""
        share = self.share or Use()
        triple = (share.memory_mib, share.bandwidth_mbs, share.compute_ppm)
        return (self.sharing.value, self.gpus, self.profile or "", triple, self.stages)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a replica is predicted to do at capacity. Milliseconds; bands are p90 errors in %."""

    ttft_ms: float | None = None  # at the SLO's percentile
    tpot_ms: float | None = None
    ttft_mean_ms: float | None = None
    tpot_mean_ms: float | None = None
    concurrency: float | None = None
    output_tokens_per_second: float | None = None
    error_band_percent: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run one deployment on one product, found to fit.

    ``use`` is per GPU; ``capacity_mrps`` the rate one replica serves inside the SLO (None: counted
    in replicas, not in requests); ``load_mib`` the weights that a start must load, over all GPUs;
    ``network_mbs`` what each of its nodes' links carries, in each direction, where its stages lie
    in several nodes.
    """

    deployment: str
    gpu: str
    shape: Shape
    use: Use
    config: ReplicaConfig = ReplicaConfig()
    capacity_mrps: int | None = None
    load_mib: int = 0
    network_mbs: int = 0
    predicted: Prediction | None = None
    reasons: tuple[str, ...] = ()
    running_only: bool = False  # kept because a replica runs so today; not offered to new ones

    @property
    def key(self) -> tuple[object, ...]:
        """A sortable identity within the deployment."""
        c = self.config
        return (
            self.gpu,
            self.shape.key,
            c.engine or "",
            c.engine_version or "",
            c.precision or "",
            c.kv_precision or "",
            c.attention or "",
            c.tensor_parallel,
            c.pipeline_parallel,
            c.max_model_len or 0,
            c.max_num_seqs or 0,
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """A way to run a deployment that is not offered, and why."""

    deployment: str
    what: str  # "h100-80gb-sxm 1g.10gb bf16"
    reason: str
