"""GPU memory of one replica as its engine will budget it, MiB by MiB.

    requested = total x fraction;  kv = requested - weights - activation - non_torch - graphs

(vllm/v1/worker/gpu_worker.py; the identity holds within 0.09 GiB on 85 of 86 published logs.)
The simplest case, one dense model with 16-bit cache, is the textbook formula
M = P x bytes / t + B x T x (2 x L x H_kv x d_head x bytes) + scratch.
"""

from bisect import bisect_right
from dataclasses import dataclass

from optimizer.domain.engine import Defaults, EngineCard, MemoryRule, on
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.units import MIB
from optimizer.domain.workload import Extras
from optimizer.sizing.kvcache import KvLayout, kv_layout
from optimizer.sizing.precision import KV_BYTES, scheme
from optimizer.sizing.weights import Weights, moe_layers, padded_vocabulary, weights

# CUDA-graph sizes captured by default: 1, 2, 4, then every 8 to 256, every 16 to 512, at most
# twice max_num_seqs (vllm/config/compilation.py).
_CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
GRAPH_SIZES = len(_CAPTURE_SIZES)
SPARE_MIB = 512  # and 2 %: what a start needs free beside the budget (notes on published starts)
SPARE_PERCENT = 2
HIGHEST_FRACTION = 0.95
NO_EXTRAS = Extras()


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
        return self.max_concurrency >= 1 and self.used_mib <= self.total_mib

    @property
    def least_mib(self) -> int:
        """What the engine would need to start with room for one full-length request."""
        request = self.layout.bytes_per_request(self.max_model_len, self.max_num_batched_tokens)
        inside = self.cuda_graphs_mib if self.graphs_inside else 0
        fixed = self.weights_mib + self.activation_mib + self.runtime_mib + inside
        return fixed + _up(request) + self.outside_mib


def by_tp(pairs: tuple[tuple[int, int], ...], tp: int) -> int:
    """The value of the last row whose tensor-parallel size is reached."""
    return [value for least, value in pairs if tp >= least][-1]


def defaults_for(card: EngineCard, gpu: Gpu, total_mib: int) -> Defaults:
    """What the engine takes on a device of that memory where no flag says otherwise."""
    for row in card.defaults:
        excepted = bool(row.except_gpus) and on(row.except_gpus, gpu)
        if total_mib >= row.memory_gib_at_least * 1024 and not excepted:
            return row
    return card.defaults[-1]


def activation_bytes(
    model: ServedModel, rule: MemoryRule, settings: Settings, seqs: int, tokens: int
) -> float:
    """Peak of the profile run on one GPU.

    act = max(c x seqs x vocab + 2 x tokens x hidden, tokens x (3 I/tp + 3 hidden) x 2) + moe
    + base, moe = tokens x top_k x (max(2 I_moe/tp, hidden) + I_moe/tp) x 2; where its buffers do
    not stay allocated, moe counts beside the second term only. Fitted on published vLLM logs;
    the sampler leads, so the peak does not fall with tp.
    """
    h, tp = model.hidden_size, settings.tp
    moe = 0.0
    if model.moe is not None and scheme(settings.precision).scope != "experts":
        width = model.moe.intermediate_size / tp
        moe = tokens * model.moe.experts_per_token * (max(2 * width, h) + width) * 2
    sampler = 0.0 if model.task == "embed" else rule.sampler_bytes * seqs * padded_vocabulary(model)
    sampler += 2 * tokens * h
    wide = tokens * (3 * model.intermediate_size / tp + 3 * h) * 2 + moe
    if rule.moe_workspace:
        sampler += moe
    vision = rule.multimodal_activation_mib * MIB if model.vision_params else 0
    return max(sampler, wide) + rule.activation_base_mib * MIB + vision


def cuda_graph_mib(model: ServedModel, rule: MemoryRule, seqs: int, eager: bool) -> int:
    """MiB of captured graphs: by layer, for the captured batch sizes.

    Fitted on vLLM 0.18 and 0.19 logs, whose own estimate is off by -0.26 to +0.57 GiB.
    """
    if eager:
        return 0
    sizes = bisect_right(_CAPTURE_SIZES, max(2, 2 * seqs))
    full = rule.graph_mib_base + rule.graph_mib_per_layer * model.layers
    full += rule.graph_mib_per_moe_layer * moe_layers(model)
    return int(full * sizes / GRAPH_SIZES) + 1


def lora_bytes(model: ServedModel, extras: Extras, tp: int) -> float:
    """Adapters in 16 bit: rank x (inputs + outputs) of every linear layer, per adapter."""
    if not extras.lora_count:
        return 0.0
    q = model.attention_heads * model.head_size
    kv = 2 * model.kv_heads * model.head_size
    h, wide = model.hidden_size, model.intermediate_size
    sides = (h + q) + (2 * h + kv) + (q + h) + 3 * (h + wide)
    return extras.lora_count * extras.lora_rank * model.layers * sides * 2 / tp


def best_fraction(total_mib: int, outside_mib: int) -> float:
    """The largest share of the device to hand the engine, in thousandths, rounded down.

    Leaves what is taken beside the budget and a margin of max(2 %, 0.5 GiB): peers' starts fail
    on less. At most 0.95.
    """
    spare = max(SPARE_MIB, total_mib * SPARE_PERCENT // 100)
    thousandths = max(0, total_mib - outside_mib - spare) * 1000 // total_mib
    return min(HIGHEST_FRACTION, thousandths / 1000)


def outside_budget_mib(
    model: ServedModel, rule: MemoryRule, settings: Settings, seqs: int, other_mib: int = 0
) -> int:
    """Taken before the budget is measured (contexts, communicators), and graphs of old versions."""
    graphs = 0 if rule.graphs_inside else cuda_graph_mib(model, rule, seqs, settings.eager)
    return by_tp(rule.before_budget_mib, settings.tp * settings.pp) + graphs + other_mib


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
    rule = card.range_of(version or card.default_version).memory
    row = defaults_for(card, gpu, total)
    seqs = settings.max_num_seqs or row.max_num_seqs
    tokens = settings.max_num_batched_tokens or row.max_num_batched_tokens
    outside = outside_budget_mib(model, rule, settings, seqs, extras.other_mib)
    fraction = settings.fraction
    if fraction is None:
        fraction = _share_fraction(total, device, outside) if fill else rule.default_fraction
    held = weights(model, scheme(settings.precision), settings.tp, settings.pp)
    weights_mib = _up(held.total + lora_bytes(model, extras, settings.tp) + _draft(extras))
    activation = _up(activation_bytes(model, rule, settings, seqs, tokens))
    runtime = by_tp(rule.non_torch_mib, settings.tp)
    graphs = cuda_graph_mib(model, rule, seqs, settings.eager)
    budget = int(device * fraction)
    inside = graphs if rule.graphs_inside else 0
    kv = budget - weights_mib - activation - runtime - inside
    layout = kv_layout(
        model,
        KV_BYTES[settings.kv_precision],
        settings.tp,
        settings.pp,
        rule.block_tokens,
        rule.hybrid_groups,
    )
    blocks = layout.blocks(kv * MIB)
    return MemoryBudget(
        total_mib=total,
        fraction=fraction,
        budget_mib=budget,
        weights_mib=weights_mib,
        activation_mib=activation,
        runtime_mib=runtime,
        cuda_graphs_mib=graphs,
        graphs_inside=rule.graphs_inside,
        kv_cache_mib=kv,
        outside_mib=outside,
        layout=layout,
        blocks=blocks,
        max_model_len=settings.max_model_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        weights=held,
    )


def longest_context(budget: MemoryBudget) -> int:
    """The longest max_model_len, in steps of 1024 tokens, that would fit; 0 if none does."""
    chunk, low, high = budget.max_num_batched_tokens, 0, budget.max_model_len // 1024
    while low < high:
        middle = (low + high + 1) // 2
        if budget.layout.blocks_per_request(middle * 1024, chunk) <= budget.blocks:
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
    groups = sum(g.count for g in budget.layout.groups)
    block = min((g.block_tokens for g in budget.layout.groups), default=0)
    return budget.blocks // max(1, groups) * block


def _share_fraction(total_mib: int, device_mib: int, outside_mib: int) -> float:
    if device_mib == total_mib:
        return best_fraction(total_mib, outside_mib)
    thousandths = max(0, total_mib - outside_mib) * 1000 // device_mib
    return min(HIGHEST_FRACTION, thousandths / 1000)


def _draft(extras: Extras) -> float:
    if extras.draft_model is None:
        return 0.0
    draft = extras.draft_model
    return weights(draft, scheme(draft.checkpoint_precision)).total


def _up(size_bytes: float) -> int:
    return int(-(-size_bytes // MIB))
