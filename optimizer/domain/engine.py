"""Serving engines as data: how a version budgets memory, what it costs, what it can run where."""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

from optimizer.domain.gpu import Gpu

_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.?post(\d+))?(?:\.?dev(\d+))?")
_STAGES = {"a": 1, "b": 2, "rc": 3}
_FINAL = 4


@lru_cache(maxsize=1024)
def version_key(version: str) -> tuple[tuple[int, ...], int, int, int, int]:
    """A sort key of a PEP 440 version, its local part left out. Raises ValueError."""
    match = _VERSION.match(version.strip().lower())
    if match is None:
        raise ValueError(f"not a version: {version!r}")
    release, stage, number, post, dev = match.groups()
    parts = tuple(int(p) for p in release.split("."))
    while len(parts) > 1 and parts[-1] == 0:
        parts = parts[:-1]
    if stage is None and post is None and dev is not None:
        return (parts, 0, 0, 0, int(dev))
    return (
        parts,
        _STAGES[stage] if stage else _FINAL,
        int(number or 0),
        int(post) + 1 if post is not None else 0,
        int(dev) if dev is not None else 1 << 30,
    )


class Verdict(StrEnum):
    """How an engine runs something on some GPU."""

    NATIVE = "native"
    FALLBACK = "fallback"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Support:
    """One row of a compatibility table. Empty selectors mean any; the first row that fits speaks.

    ``gpus`` names architectures (``hopper``), compute capabilities (``12.0``) or products.
    """

    verdict: Verdict
    reason: str
    source: str = ""
    gpus: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    kv_precisions: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    since: str | None = None
    gemm: str | None = None  # the peak its matrix products reach: bf16, fp8, int8, fp4
    compute_factor: float = 1.0  # cost of a fallback, as a factor on that peak


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Parts of the datasheet's bandwidth and dense peak that an engine reaches on some GPUs."""

    gpus: tuple[str, ...]
    bandwidth: float
    compute: float


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the engine takes where no flag says otherwise, on devices of at least that memory."""

    memory_gib_at_least: int
    max_num_seqs: int
    max_num_batched_tokens: int
    except_gpus: tuple[str, ...] = ()
    before: str | None = None  # only for versions before this one
    graph_batch: tuple[tuple[int, int], ...] = ()  # (tp at least, largest captured batch)


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory an engine leaves free by default; its fraction is then what remains of the device.

    reserve = base + per_token x max(step tokens, least_tokens) + per_graph_batch x largest
    captured batch + per_gpu x tp x pp, at least ``least_mib`` on devices over ``large_gib``.
    """

    base_mib: float
    per_token_mib: float
    least_tokens: int
    per_graph_batch_mib: float
    per_gpu_mib: float
    large_gib: int
    least_mib: int


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """How a version shares out a device. Pairs are (tensor parallel size at least, MiB).

    ``share`` says what the fraction is of, and what it must hold:
    ``total``: of the device; weights, activation, runtime (and graphs inside) and KV.
    ``free``: of what is free before loading; weights and KV; the rest lives beside them.
    ``rest``: of what is free after loading and a peak run; KV alone.
    """

    default_fraction: float
    block_tokens: int
    hybrid_groups: bool  # windows and states save memory; else every layer keeps the context
    graphs_inside: bool  # the budget holds the CUDA graphs; else they come on top
    sampler_bytes: float  # activation: per sequence and vocabulary entry
    moe_workspace: bool  # expert buffers stay allocated beside the sampler's
    activation_base_mib: int
    multimodal_activation_mib: int
    non_torch_mib: tuple[tuple[int, int], ...]
    before_budget_mib: tuple[tuple[int, int], ...]
    graph_mib_per_layer: float  # with the full set of capture sizes
    graph_mib_per_moe_layer: float
    graph_mib_base: float
    tokens_logged: str  # "concurrency": floor(concurrency x length); "groups": blocks over groups
    share: str = "total"
    charges_neighbours: bool = False  # memory of other processes counts against the budget
    hybrid_models: tuple[str, ...] = ()  # model types whose windows save memory; empty: any
    window_ratio: float | None = None  # windowed layers have a pool of their own, so long
    state_ratio: float | None = None  # states have a pool of their own: its bytes over KV bytes
    pool_part: float = 1.0  # of the share, the part that the KV pool really takes
    whole_prompts_up_to: int | None = None  # max_model_len to which prefill is not chunked
    reserve: Reserve | None = None  # what the default fraction leaves, instead of a constant


@dataclass(frozen=True, slots=True)
class HostRule:
    """Time a step costs beside the GPU's own work, and how batches form."""

    layer_us: float
    moe_layer_us: float
    step_us: float
    sequence_us: float
    front_end_ms: float
    kv_output_fraction: float  # part of the output a running request holds on the mean


@dataclass(frozen=True, slots=True)
class EngineVersion:
    """One range of versions, from ``since`` up to the next range."""

    since: str
    memory: MemoryRule
    host: HostRule


@dataclass(frozen=True, slots=True)
class Rates:
    """Constants of the step model that no version changed; see the card for their sources."""

    sum_power: float  # t = (memory^p + compute^p)^(1/p)
    kv_bandwidth: float
    prompt_attention: float
    moe_gemm: float
    fp4_gemm: float
    nvlink_latency_us: float
    pcie_latency_us: float
    nvlink_efficiency: float
    pcie_efficiency: float


@dataclass(frozen=True, slots=True)
class ErrorBand:
    """Measured p90 errors in percent of a kind of model: the band printed with predictions."""

    ttft: float
    tpot: float
    throughput: float


@dataclass(frozen=True, slots=True)
class Correction:
    """Measured over predicted time of decoding steps and of prompts, on so many points."""

    engine: str
    gpu: str
    model: str
    step: float
    prompt: float
    points: int


@dataclass(frozen=True, slots=True)
class EngineCard:
    """One engine: version ranges (oldest first), rates and compatibility tables."""

    name: str
    default_version: str
    batching: str  # in-flight | dynamic | static
    versions: tuple[EngineVersion, ...]
    defaults: tuple[Defaults, ...]
    rates: Rates
    efficiencies: tuple[Efficiency, ...]
    precisions: tuple[Support, ...]
    kv: tuple[Support, ...]
    attention: tuple[Support, ...]  # best first
    dense_band: ErrorBand = ErrorBand(0, 0, 0)
    moe_band: ErrorBand = ErrorBand(0, 0, 0)
    guard: float = 1.0  # part of the predicted capacity that placement may count on
    flags: tuple[tuple[str, str], ...] = ()  # setting, and the flag that says it
    kv_defaults: tuple[tuple[str, str], ...] = ()  # (weight precision, KV its checkpoints ask for)
    corrections: tuple[Correction, ...] = ()  # of a calibration
    aliases: tuple[str, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)

    def range_of(self, version: str) -> EngineVersion:
        """The range a version falls in; the nearest earlier one, or the oldest."""
        key = version_key(version)
        fitting = (v for v in reversed(self.versions) if version_key(v.since) <= key)
        return next(fitting, self.versions[0])

    def version_note(self, version: str) -> str | None:
        """Whose facts stand in for a version outside of those known; None for a known one."""
        newest = max(self.default_version, self.versions[-1].since, key=version_key)
        used = f"; the facts of {self.range_of(version).since} are used"
        if version_key(version) < version_key(self.versions[0].since):
            return f"{self.name} {version} is older than what is known here{used}"
        if version_key(version) > version_key(newest):
            return f"{self.name} {version} is newer than what is known here, {newest}{used}"
        return None

    def with_default(self, version: str) -> "EngineCard":
        """The same card for another default version. Raises ValueError on a malformed version."""
        version_key(version)
        return replace(self, default_version=version)

    def kv_default(self, precision: str) -> str | None:
        """The KV precision that its checkpoints of a weight precision ask for; None: 16 bit."""
        return dict(self.kv_defaults).get(precision)

    def correction(self, gpu: Gpu, model: str) -> Correction | None:
        """What was measured for that model on that product; None: the card's constants hold."""
        fits = (c for c in self.corrections if (c.gpu, c.model) == (gpu.name, model))
        return next(fits, None)

    def efficiency(self, gpu: Gpu) -> Efficiency | None:
        """What this engine reaches on the product; None where nobody has measured any."""
        return next((e for e in self.efficiencies if on(e.gpus, gpu)), None)


def on(selectors: tuple[str, ...], gpu: Gpu) -> bool:
    """Whether a product is meant: by architecture, compute capability or name; empty means any."""
    names = (gpu.architecture, gpu.compute_capability, gpu.name)
    return not selectors or any(name in selectors for name in names)
