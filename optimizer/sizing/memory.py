"""GPU memory of one replica as its engine will budget it, MiB by MiB.

Three rules share out a device (``share`` of an engine card):

    total: kv = total x fraction - weights - activation - non_torch - graphs       (vLLM)
    free:  kv = free_before_load x fraction - weights - non_torch                  (SGLang)
    rest:  kv = (total - what a start and a peak run leave in use) x fraction      (TensorRT, TGI)

(vllm/v1/worker/gpu_worker.py: the identity holds within 0.09 GiB on 85 of 86 published logs;
sources of the others in their cards.) The simplest case, one dense model with 16-bit cache, is
the textbook formula M = P x bytes / t + B x T x (2 x L x H_kv x d_head x bytes) + scratch.
"""

from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.engine import Defaults, EngineCard, MemoryRule, on, version_key
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.units import MIB
from optimizer.domain.workload import Extras
from optimizer.sizing.kvcache import KvLayout, PoolRule, kv_layout, with_draft_layers
from optimizer.sizing.precision import kv_scheme, scheme
from optimizer.sizing.residents import NO_EXTRAS, draft_kv_bytes, draft_weight_bytes, lora_bytes
from optimizer.sizing.scratch import WORKSPACE_MIB, activation_bytes, cuda_graph_mib
from optimizer.sizing.weights import Weights, head_bytes, weights

SPARE_MIB = 512  # and 2 %: what a start needs free beside the budget (notes on published starts)
SPARE_PERCENT = 2
GROUP_SPARE_MIB = 1024  # communicators of a group vary more than anyone has logged
HIGHEST_FRACTION = 0.95
PCIE_GROUP_MIB = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """How one engine start is configured. ``fraction`` None: the engine's own default."""

    precision: str
    kv_precision: str = "bf16"
    tp: int = 1
    pp: int = 1
    max_model_len: int = 4096
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    fraction: float | None = None
    eager: bool = False
    attention: str = ""
    window_ratio: float | None = None  # of windowed to full tokens, where pools are separate
    draft_layers: int = 0  # full layers of an EAGLE or MTP head, which keep KV as the model's do
    expert_parallel: bool = False  # whole experts on each rank, not a part of every one


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """MiB of one GPU; needs are rounded up, the KV cache is the rest.

    budget = weights + activation + runtime + kv_cache, and + cuda_graphs where ``graphs_inside``.
    ``kv_cache_mib`` below zero: it does not fit. ``outside_mib`` is taken beside the budget.
    """

    total_mib: int
    fraction: float
    budget_mib: int
    weights_mib: int
    activation_mib: int
    runtime_mib: int
    cuda_graphs_mib: int
    graphs_inside: bool
    kv_cache_mib: int
    outside_mib: int
    layout: KvLayout
    blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    weights: Weights
    reserved_blocks: int = 0  # kept for shared prefixes

    @property
    def free_blocks(self) -> int:
        """Blocks that running requests may fill."""
        return max(0, self.blocks - self.reserved_blocks)

    @property
    def request_blocks(self) -> int:
        """Blocks that one request of the full context takes."""
        return self.layout.blocks_per_request(self.max_model_len, self.max_num_batched_tokens)

    @property
    def max_concurrency(self) -> float:
        """Requests of the full context that the KV cache holds at once."""
        return self.blocks / self.request_blocks if self.request_blocks else 0.0

    @property
    def kv_cache_tokens(self) -> int:
        """floor(max_concurrency x max_model_len)."""
        return int(self.max_concurrency * self.max_model_len)

    @property
    def used_mib(self) -> int:
        """All that the replica takes of the GPU."""
        return self.budget_mib + self.outside_mib

    @property
    def fits(self) -> bool:
        """Whether the engine starts: one full-length request has room, and so has the budget."""
        return self.free_blocks >= max(1, self.request_blocks) and self.used_mib <= self.total_mib

    @property
    def margin_mib(self) -> int:
        """How far predictions lay from published starts: 2 % of the budget covers nine of ten."""
        return self.budget_mib * SPARE_PERCENT // 100

    @property
    def surely_fits(self) -> bool:
        """Whether it starts even if the KV cache comes out smaller by the margin."""
        request = self.request_blocks
        blocks = self.layout.blocks((self.kv_cache_mib - self.margin_mib) * MIB)
        surely = blocks - self.reserved_blocks >= request
        return surely and self.free_blocks >= max(1, request) and self.used_mib <= self.total_mib

    @property
    def least_mib(self) -> int:
        """What the engine would need to start with room for one full-length request."""
        request = self.layout.bytes_per_request(self.max_model_len, self.max_num_batched_tokens)
        inside = self.cuda_graphs_mib if self.graphs_inside else 0
        fixed = self.weights_mib + self.activation_mib + self.runtime_mib + inside
        kept = self.reserved_blocks * self.layout.block_bytes
        return fixed + _up(request + kept) + self.outside_mib


def by_tp(pairs: tuple[tuple[int, int], ...], tp: int) -> int:
    """The value of the last row whose tensor-parallel size is reached."""
    return [value for least, value in pairs if tp >= least][-1]


def defaults_for(
    card: EngineCard, gpu: Gpu, total_mib: int, version: str | None = None
) -> Defaults:
    """What the engine takes on a device of that memory where no flag says otherwise."""
    key = version_key(version or card.default_version)
    for row in card.defaults:
        excepted = bool(row.except_gpus) and on(row.except_gpus, gpu)
        excepted |= row.before is not None and key >= version_key(row.before)
        if total_mib >= row.memory_gib_at_least * 1024 and not excepted:
            return row
    return card.defaults[-1]


def best_fraction(total_mib: int, outside_mib: int, gpus: int = 1) -> float:
    """The largest share of the device to hand the engine, in thousandths, rounded down.

    Leaves what is taken beside the budget and a margin of max(2 %, 0.5 GiB), and 1 GiB more in a
    group of GPUs: peers' starts fail on less. At most 0.95.
    """
    spare = max(SPARE_MIB, total_mib * SPARE_PERCENT // 100)
    spare += GROUP_SPARE_MIB if gpus > 1 else 0
    thousandths = max(0, total_mib - outside_mib - spare) * 1000 // total_mib
    return min(HIGHEST_FRACTION, thousandths / 1000)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a start takes whatever its fraction, MiB."""

    rule: MemoryRule
    row: Defaults
    seqs: int
    tokens: int
    weights_mib: int
    activation_mib: int
    runtime_mib: int
    graphs_mib: int
    before_mib: int  # taken before the engine measures
    held: Weights
    layout: KvLayout
    reserved_blocks: int  # kept for shared prefixes

    @property
    def inside_mib(self) -> int:
        """Graphs that the budget holds."""
        return self.graphs_mib if self.rule.graphs_inside else 0

    @property
    def outside_mib(self) -> int:
        """Taken beside the budget."""
        return self.before_mib + (0 if self.rule.graphs_inside else self.graphs_mib)

    @property
    def fixed_mib(self) -> int:
        """The budget without its KV cache."""
        return self.weights_mib + self.activation_mib + self.runtime_mib + self.inside_mib


def memory_budget(
    model: ServedModel,
    card: EngineCard,
    gpu: Gpu,
    settings: Settings,
    *,
    total_mib: int | None = None,
    device_mib: int | None = None,
    version: str | None = None,
    extras: Extras = NO_EXTRAS,
    fill: bool = False,
) -> MemoryBudget:
    """What that engine would take of one GPU (or slice, or share) of ``total_mib``.

    ``fill``: where ``settings.fraction`` is None take the largest safe one, not the engine's own
    default. ``device_mib``: what the engine sees as its device, where that is more than it may
    take (a share of a GPU); fractions are of the device.
    """
    total = gpu.usable_mib if total_mib is None else total_mib
    device = total if device_mib is None else device_mib
    version = version or card.default_version
    row = defaults_for(card, gpu, total, version)
    terms = _terms(model, card, version, row, bool(gpu.nvlink_gbs), settings, extras)
    fraction = settings.fraction
    if fraction is None and fill:
        fraction = _safe_fraction(terms, total, device, settings)
    if fraction is None:
        fraction = default_fraction(terms.rule, terms.row, gpu, total, settings, terms.tokens)
    kv = _kv_mib(terms, device, fraction)
    return MemoryBudget(
        total_mib=total,
        fraction=fraction,
        budget_mib=terms.fixed_mib + kv,
        weights_mib=terms.weights_mib,
        activation_mib=terms.activation_mib,
        runtime_mib=terms.runtime_mib,
        cuda_graphs_mib=terms.graphs_mib,
        graphs_inside=terms.rule.graphs_inside,
        kv_cache_mib=kv,
        outside_mib=terms.outside_mib,
        layout=terms.layout,
        blocks=terms.layout.blocks(kv * MIB),
        max_model_len=settings.max_model_len,
        max_num_seqs=terms.seqs,
        max_num_batched_tokens=terms.tokens,
        weights=terms.held,
        reserved_blocks=terms.reserved_blocks,
    )


def _reserved_blocks(layout: KvLayout, tokens: int) -> int:
    """Blocks that so many tokens of shared prefixes take."""
    return layout.blocks_per_request(tokens, tokens) if tokens else 0


@lru_cache(maxsize=65536)
def _terms(
    model: ServedModel,
    card: EngineCard,
    version: str,
    row: Defaults,
    nvlink: bool,
    settings: Settings,
    extras: Extras,
) -> _Terms:
    """The same on every device that shares a row of defaults: a fleet asks many times."""
    rule, tp = card.range_of(version).memory, settings.tp
    seqs = settings.max_num_seqs or row.max_num_seqs
    tokens = settings.max_num_batched_tokens or step_tokens(rule, row, settings.max_model_len)
    packed = scheme(settings.precision, model.quant_group, model.quant_symmetric)
    held = weights(model, packed, tp, settings.pp, settings.expert_parallel)
    beside = head_bytes(model, packed, settings.draft_layers, tp)
    beside += lora_bytes(model, extras, tp) + draft_weight_bytes(extras, tp)
    largest = by_tp(row.graph_batch, tp) if row.graph_batch else 2 * seqs
    # Only vLLM profiles its sampler with every sequence it may ever run.
    sampled = seqs if rule.share == "total" else min(seqs, largest)
    peak = activation_bytes(
        model,
        rule,
        precision=settings.precision,
        tp=tp,
        seqs=min(sampled, tokens),
        tokens=tokens,
        kernel=settings.attention,
        context=settings.max_model_len,
    )
    # Communicators take buffers first over NVLink; over PCIe (two RTX 4090 run at 0.98) they do not
    before = by_tp(rule.before_budget_mib, tp * settings.pp if nvlink else 1)
    layout = _layout(model, rule, settings, extras)
    return _Terms(
        rule=rule,
        row=row,
        seqs=seqs,
        tokens=tokens,
        weights_mib=_up(held.total + beside),
        activation_mib=_up(peak),
        runtime_mib=non_torch_mib(rule, tp, nvlink=nvlink),
        graphs_mib=cuda_graph_mib(model, rule, min(largest, 2 * seqs), settings.eager),
        before_mib=before + WORKSPACE_MIB.get(settings.attention, 0) + extras.other_mib,
        held=held,
        layout=layout,
        reserved_blocks=_reserved_blocks(layout, extras.prefix_cache_tokens),
    )


def non_torch_mib(rule: MemoryRule, tp: int, *, nvlink: bool) -> int:
    """Outside PyTorch's allocator: libraries, and in a group the communicator's buffers.

    Cards carry what was logged over NVLink; over PCIe a group takes 0.5 GiB more than one GPU at
    most (F: two and four RTX 3090 and 4090, club-3090 issues 104 and 127, vllm issue 13061).
    """
    over_nvlink = by_tp(rule.non_torch_mib, tp)
    if tp == 1 or nvlink:
        return over_nvlink
    return min(over_nvlink, by_tp(rule.non_torch_mib, 1) + PCIE_GROUP_MIB)


def step_tokens(rule: MemoryRule, row: Defaults, max_model_len: int) -> int:
    """max_num_batched_tokens by default; without chunked prefill a step holds a whole prompt."""
    whole = rule.whole_prompts_up_to
    if whole is not None and max_model_len <= whole:
        return max(row.max_num_batched_tokens, max_model_len)
    return row.max_num_batched_tokens


def default_fraction(
    rule: MemoryRule, row: Defaults, gpu: Gpu, total_mib: int, settings: Settings, tokens: int
) -> float:
    """The engine's own: a constant, or what a reserve leaves of the device (three decimals)."""
    reserve = rule.reserve
    if reserve is None:
        return rule.default_fraction
    device = total_mib if total_mib < gpu.usable_mib else gpu.memory_mib_reported or total_mib
    left = reserve.base_mib + reserve.per_token_mib * max(tokens, reserve.least_tokens)
    if row.graph_batch:
        left += reserve.per_graph_batch_mib * by_tp(row.graph_batch, settings.tp)
    left += reserve.per_gpu_mib * settings.tp * settings.pp
    if device > reserve.large_gib * 1024:
        left = max(left, reserve.least_mib)
    return max(0.0, round((device - left) / device, 3))


def _kv_mib(terms: _Terms, device_mib: int, fraction: float) -> int:
    """KV cache by the engine's rule; below zero where the rest takes more than the fraction."""
    if terms.rule.share == "total":
        return int(device_mib * fraction) - terms.fixed_mib
    free = device_mib - terms.before_mib
    if terms.rule.share == "free":
        return int(free * fraction) - terms.weights_mib - terms.runtime_mib
    rest = free - terms.fixed_mib
    return int(rest * fraction * terms.rule.pool_part) if rest > 0 else rest


def _safe_fraction(terms: _Terms, total_mib: int, device_mib: int, settings: Settings) -> float:
    """The largest fraction that leaves what lives beside it and a margin, by the engine's rule."""
    gpus = settings.tp * settings.pp
    if terms.rule.share == "total":
        if device_mib == total_mib:
            return best_fraction(total_mib, terms.outside_mib, gpus)
        thousandths = max(0, total_mib - terms.outside_mib) * 1000 // device_mib
        return min(HIGHEST_FRACTION, thousandths / 1000)
    spare = max(SPARE_MIB, total_mib * SPARE_PERCENT // 100) + (GROUP_SPARE_MIB if gpus > 1 else 0)
    free = max(1, total_mib - terms.before_mib)
    if terms.rule.share == "free":
        beside = terms.activation_mib + terms.runtime_mib + terms.graphs_mib + spare
        return min(HIGHEST_FRACTION, max(0, free - beside) * 1000 // free / 1000)
    rest = max(1, free - terms.fixed_mib)
    room = max(0, rest - terms.graphs_mib - spare)
    return min(terms.rule.default_fraction, room * 1000 // rest / 1000)


def pool_rule(model: ServedModel, rule: MemoryRule, window_ratio: float | None = None) -> PoolRule:
    """How that version lays out this model's KV cache."""
    saves = not rule.hybrid_models or model.model_type in rule.hybrid_models
    hybrid = rule.hybrid_groups and saves
    return PoolRule(
        rule.block_tokens,
        hybrid,
        (window_ratio or rule.window_ratio) if hybrid and rule.window_ratio else None,
        rule.state_ratio if model.linear_layers else None,
    )


def _layout(model: ServedModel, rule: MemoryRule, settings: Settings, extras: Extras) -> KvLayout:
    kv = kv_scheme(settings.kv_precision)
    draft = draft_kv_bytes(extras, kv.element_bytes, settings.tp)
    return kv_layout(
        with_draft_layers(model, settings.draft_layers),
        kv.element_bytes,
        settings.tp,
        settings.pp,
        pool_rule(model, rule, settings.window_ratio),
        draft_bytes=draft,
        recent_tokens=kv.recent_tokens,
    )


def longest_context(budget: MemoryBudget, blocks: int | None = None) -> int:
    """The longest max_model_len, in steps of 1024 tokens, that would fit; 0 if none does.

    ``blocks``: what the cache holds, where that is not the budget's own.
    """
    chunk, low, high = budget.max_num_batched_tokens, 0, budget.max_model_len // 1024
    held = (budget.blocks if blocks is None else blocks) - budget.reserved_blocks
    while low < high:
        middle = (low + high + 1) // 2
        if budget.layout.blocks_per_request(middle * 1024, chunk) <= held:
            low = middle
        else:
            high = middle - 1
    return low * 1024


def kv_tokens_logged(budget: MemoryBudget, rule: MemoryRule) -> int:
    """The "GPU KV cache size" that this version prints.

    Old wording: blocks // groups x block size, as if every group kept the whole context (it
    understates hybrids); new wording: floor(max_concurrency x max_model_len).
    """
    if rule.tokens_logged == "concurrency":
        return budget.kv_cache_tokens
    groups = 1 if budget.layout.separate else sum(g.count for g in budget.layout.groups)
    block = min((g.block_tokens for g in budget.layout.groups), default=0)
    return budget.blocks // max(1, groups) * block


def _up(size_bytes: float) -> int:
    return int(-(-size_bytes // MIB))
