"""Memory of a step: the profile run's peak, attention scratch by kernel, CUDA graphs."""

from bisect import bisect_right

from optimizer.domain.engine import MemoryRule
from optimizer.domain.model import ServedModel
from optimizer.domain.units import MIB, ceil_div
from optimizer.sizing.precision import scheme
from optimizer.sizing.weights import moe_layers, padded_vocabulary

# CUDA-graph sizes captured by default: 1, 2, 4, then every 8 to 256, every 16 to 512, at most
# twice max_num_seqs (vllm/config/compilation.py).
_CAPTURE_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
GRAPH_SIZES = len(_CAPTURE_SIZES)

PARTITION = 512  # context tokens of one partition of the paged kernel (paged_attention_v2)
SPARSE_BLOCK = 64  # context tokens that share one score of a sparse kernel's selection
# Workspace that a kernel's library allocates once, MiB (FLASHINFER_WORKSPACE_BUFFER_SIZE).
WORKSPACE_MIB = {"flashinfer": 394, "flashinfer-mla": 394, "trtllm-mla": 394}


def attention_scratch_bytes(
    kernel: str, model: ServedModel, tokens: int, context: int, seqs: int, tp: int = 1
) -> float:
    """M_scratch of one layer's attention on one rank; layers run one after another.

    standard: the 16-bit scores and their 32-bit softmax, heads x tokens x context x 6.
    FlashAttention 1, 2, 3 and FlashInfer: outputs and a 32-bit log-sum a row, heads x tokens x
    (2 d + 4). paged: partial results of each 512 tokens of context a sequence, heads x seqs x
    partitions x (d + 2) x 4. sparse: block scores beside the flash kernel's. linear: the state.
    """
    heads = ceil_div(model.attention_heads, tp)
    width = model.head_size
    flash = float(heads * tokens * (2 * width + 4))
    if kernel == "standard":
        return float(heads * tokens * context * 6)
    if kernel == "paged":
        partitions = ceil_div(max(1, context), PARTITION)
        return flash + heads * seqs * partitions * (width + 2) * 4.0
    if kernel == "sparse":
        return flash + heads * tokens * ceil_div(max(1, context), SPARSE_BLOCK) * 4.0
    if kernel == "linear":
        return float(2 * tokens * heads * width + seqs * model.linear_state_bytes / tp)
    return flash


def moe_workspace_bytes(model: ServedModel, precision: str, tokens: int, tp: int) -> float:
    """Buffers of fused experts: tokens x top_k x (max(2 I/tp, hidden) + I/tp) x 2.

    None where only the experts are packed: gpt-oss kernels write no such buffer.
    """
    if model.moe is None or scheme(precision).scope == "experts":
        return 0.0
    width = model.moe.intermediate_size / tp
    rows = tokens * model.moe.experts_per_token
    return rows * (max(2 * width, model.hidden_size) + width) * 2


def activation_bytes(
    model: ServedModel,
    rule: MemoryRule,
    *,
    precision: str,
    tp: int,
    seqs: int,
    tokens: int,
    kernel: str = "",
    context: int = 0,
) -> float:
    """Peak of the profile run on one GPU.

    act = max(c x seqs x vocab + 2 x tokens x hidden, tokens x (3 I/tp + 3 hidden) x 2) + moe
    + base; where expert buffers do not stay allocated, moe counts beside the second term only.
    Fitted on published vLLM logs; the sampler leads, so the peak does not fall with tp. Attention
    runs while the second term's buffers wait: what it takes beyond them counts.
    """
    h = model.hidden_size
    moe = moe_workspace_bytes(model, precision, tokens, tp)
    sampler = 0.0 if model.task == "embed" else rule.sampler_bytes * seqs * padded_vocabulary(model)
    sampler += 2 * tokens * h
    wide = tokens * (3 * model.intermediate_size / tp + 3 * h) * 2 + moe
    scratch = attention_scratch_bytes(kernel, model, tokens, context, seqs, tp) if kernel else 0.0
    if rule.moe_workspace:
        sampler += moe
    vision = rule.multimodal_activation_mib * MIB if model.vision_params else 0
    peak = max(sampler, wide, scratch + tokens * 3 * h * 2)
    return peak + rule.activation_base_mib * MIB + vision


def cuda_graph_mib(model: ServedModel, rule: MemoryRule, largest: int, eager: bool) -> int:
    """MiB of captured graphs: by layer, for the batch sizes captured up to the largest.

    Fitted on vLLM 0.18 and 0.19 logs, whose own estimate is off by -0.26 to +0.57 GiB.
    """
    if eager:
        return 0
    sizes = bisect_right(_CAPTURE_SIZES, max(2, largest))
    full = rule.graph_mib_base + rule.graph_mib_per_layer * model.layers
    full += rule.graph_mib_per_moe_layer * moe_layers(model)
    return int(full * sizes / GRAPH_SIZES) + 1
