"""The catalogue's kind Engine: its schema, and the way into the domain."""

import copy
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optimizer.domain import engine as domain


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reserve(_Strict):
    """What the default fraction leaves free."""

    base_mib: float = Field(ge=0)
    per_token_mib: float = Field(ge=0)
    least_tokens: int = Field(ge=0)
    per_graph_batch_mib: float = Field(ge=0)
    per_gpu_mib: float = Field(ge=0)
    large_gib: int = Field(ge=0)
    least_mib: int = Field(ge=0)


class Memory(_Strict):
    """How a version range shares out a device."""

    default_fraction: float = Field(gt=0, le=1)
    block_tokens: int = Field(gt=0)
    hybrid_groups: bool
    graphs_inside: bool
    sampler_bytes: float = Field(ge=0)
    moe_workspace: bool
    activation_base_mib: int = Field(ge=0)
    multimodal_activation_mib: int = Field(ge=0)
    non_torch_mib: dict[int, int]
    before_budget_mib: dict[int, int]
    graph_mib_per_layer: float = Field(ge=0)
    graph_mib_per_moe_layer: float = Field(ge=0)
    graph_mib_base: float = Field(ge=0)
    tokens_logged: Literal["groups", "concurrency"]
    share: Literal["total", "free", "rest"] = "total"
    charges_neighbours: bool = False
    hybrid_models: list[str] = []
    window_ratio: float | None = Field(default=None, gt=0, le=1)
    state_ratio: float | None = Field(default=None, gt=0)
    pool_part: float = Field(default=1.0, gt=0, le=1)
    whole_prompts_up_to: int | None = Field(default=None, gt=0)
    reserve: Reserve | None = None

    @field_validator("non_torch_mib", "before_budget_mib")
    @classmethod
    def _starts_at_one(cls, value: dict[int, int]) -> dict[int, int]:
        if 1 not in value:
            raise ValueError("needs a figure for tensor parallel size 1")
        return value


class Host(_Strict):
    """Time of a step beside the GPU's own work."""

    layer_us: float = Field(ge=0)
    moe_layer_us: float = Field(ge=0)
    step_us: float = Field(ge=0)
    sequence_us: float = Field(ge=0)
    front_end_ms: float = Field(ge=0)
    kv_output_fraction: float = Field(gt=0, le=1)


class VersionRange(_Strict):
    """What holds from a version on; fields left out are inherited from the range before."""

    since: str
    memory: dict[str, Any] = {}
    host: dict[str, Any] = {}


class DefaultsRow(_Strict):
    """Engine defaults on devices of at least that memory."""

    memory_gib_at_least: int = Field(ge=0)
    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    except_gpus: list[str] = []
    before: str | None = None
    graph_batch: dict[int, int] = {}


class Rates(_Strict):
    """Constants of the step model."""

    sum_power: float = Field(ge=1)
    kv_bandwidth: float = Field(gt=0)
    prompt_attention: float = Field(gt=0)
    moe_gemm: float = Field(gt=0)
    fp4_gemm: float = Field(gt=0)
    nvlink_latency_us: float = Field(ge=0)
    pcie_latency_us: float = Field(ge=0)
    nvlink_efficiency: float = Field(gt=0)
    pcie_efficiency: float = Field(gt=0)


class EfficiencyRow(_Strict):
    """Parts of datasheet bandwidth and dense peak reached on some GPUs."""

    gpus: list[str] = Field(min_length=1)
    bandwidth: float = Field(gt=0, le=1)
    compute: float = Field(gt=0, le=1)


class SupportRow(_Strict):
    """One row of a compatibility table."""

    verdict: domain.Verdict
    reason: str
    source: str
    gpus: list[str] = []
    precisions: list[str] = []
    kv_precisions: list[str] = []
    attention: list[str] = []
    since: str | None = None
    gemm: str | None = None
    compute_factor: float = Field(default=1.0, gt=0)


class Band(_Strict):
    """p90 errors in percent."""

    ttft: float
    tpot: float
    throughput: float


class Bands(_Strict):
    """Error bands by kind of model."""

    dense: Band
    moe: Band


class EngineDocument(_Strict):
    """An engine card, as in ``workloads/engines/vllm.yaml``."""

    kind: Literal["Engine"]
    version: Literal[1]
    name: str
    aliases: list[str] = []
    default_version: str
    batching: Literal["in-flight", "dynamic", "static"]
    flags: dict[
        Literal["fraction", "max_model_len", "max_num_seqs", "max_num_batched_tokens"], str
    ] = {}
    versions: Annotated[list[VersionRange], Field(min_length=1)]
    defaults: Annotated[list[DefaultsRow], Field(min_length=1)]
    rates: Rates
    efficiencies: list[EfficiencyRow]
    error_band_percent: Bands
    guard: float = Field(gt=0, le=1)
    precisions: list[SupportRow]
    kv: list[SupportRow]
    kv_default: dict[str, str] = {}
    attention: list[SupportRow]
    sources: dict[str, str]

    @field_validator("versions")
    @classmethod
    def _ordered(cls, value: list[VersionRange]) -> list[VersionRange]:
        keys = [domain.version_key(v.since) for v in value]
        if keys != sorted(keys):
            raise ValueError("version ranges must be ordered, oldest first")
        inherited(value)
        return value


def inherited(ranges: list[VersionRange]) -> tuple[domain.EngineVersion, ...]:
    """Each range with all that it inherits. Raises ValidationError where a figure is missing."""
    memory: dict[str, Any] = {}
    host: dict[str, Any] = {}
    found = []
    for row in ranges:
        memory, host = {**memory, **row.memory}, {**host, **row.host}
        found.append(
            domain.EngineVersion(
                row.since,
                _memory(Memory.model_validate(copy.deepcopy(memory))),
                domain.HostRule(**Host.model_validate(host).model_dump()),
            )
        )
    return tuple(found)


def _memory(memory: Memory) -> domain.MemoryRule:
    fields = memory.model_dump()
    for name in ("non_torch_mib", "before_budget_mib"):
        fields[name] = tuple(sorted(fields[name].items()))
    fields["hybrid_models"] = tuple(memory.hybrid_models)
    fields["reserve"] = memory.reserve and domain.Reserve(**memory.reserve.model_dump())
    return domain.MemoryRule(**fields)


def _support(rows: list[SupportRow]) -> tuple[domain.Support, ...]:
    return tuple(domain.Support(**_tuples(row)) for row in rows)


def _defaults(row: DefaultsRow) -> domain.Defaults:
    fields = _tuples(row)
    fields["graph_batch"] = tuple(sorted(row.graph_batch.items()))
    return domain.Defaults(**fields)


def _tuples(row: BaseModel) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in row.model_dump().items()}


def to_domain(card: EngineDocument) -> domain.EngineCard:
    """The frozen value of a valid document."""
    bands = card.error_band_percent
    return domain.EngineCard(
        name=card.name,
        default_version=card.default_version,
        batching=card.batching,
        versions=inherited(card.versions),
        defaults=tuple(_defaults(row) for row in card.defaults),
        rates=domain.Rates(**card.rates.model_dump()),
        efficiencies=tuple(domain.Efficiency(**_tuples(row)) for row in card.efficiencies),
        precisions=_support(card.precisions),
        kv=_support(card.kv),
        attention=_support(card.attention),
        dense_band=domain.ErrorBand(**bands.dense.model_dump()),
        moe_band=domain.ErrorBand(**bands.moe.model_dump()),
        guard=card.guard,
        flags=tuple((str(name), flag) for name, flag in card.flags.items()),
        kv_defaults=tuple(sorted(card.kv_default.items())),
        aliases=tuple(card.aliases),
        sources=tuple(sorted(card.sources.items())),
    )


def parse(raw: dict[str, Any]) -> domain.EngineCard:
    """The engine a document describes. Raises pydantic's ValidationError."""
    return to_domain(EngineDocument.model_validate(raw))
