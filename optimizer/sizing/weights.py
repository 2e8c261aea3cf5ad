"""Weights of one GPU, tensor class by tensor class."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from optimizer.domain.model import Moe, ServedModel
from optimizer.domain.units import MIB, ceil_div
from optimizer.sizing.precision import Scheme

VOCABULARY_PADDING = 64  # vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters that one tensor-parallel rank holds, over all layers."""

    attention: float  # q, k, v, o; MLA's up-projections
    mixers: float  # linear attention and Mamba
    replicated: float  # norms, routers, MLA's down-projections, sparse indexers
    mlp: float  # dense feed-forward layers
    experts: float
    shared_experts: float
    embedding: float
    head: float  # 0 where tied to the embedding or not loaded
    vision: float
    absorbed: float  # MLA: kv_b kept a second time, in 16 bit

    @property
    def total(self) -> float:
        """All that the checkpoint's text and vision parts hold on this rank."""
        return (
            self.attention + self.mixers + self.replicated + self.mlp + self.experts
            + self.shared_experts + self.embedding + self.head + self.vision
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of one GPU by tensor class."""

    linear: float
    experts: float
    embedding: float
    head: float
    other: float  # norms, routers, MLA's copies, vision, rotary tables
    rounding: float  # lost in the allocator's pages

    @property
    def total(self) -> float:
        """All of them."""
        parts = self.linear + self.experts + self.embedding + self.head
        return parts + self.other + self.rounding


def padded_vocabulary(model: ServedModel) -> int:
    """The vocabulary as engines allocate it, padded to a multiple of 64."""
    return ceil_div(model.vocab_size, VOCABULARY_PADDING) * VOCABULARY_PADDING


def kv_heads_on_rank(kv_heads: int, tp: int) -> int:
    """KV heads a rank holds: beyond one per GPU, tensor parallelism copies instead of dividing."""
    return max(1, ceil_div(kv_heads, tp))


def moe_layers(model: ServedModel) -> int:
    """Layers with experts: after ``first_dense``, every ``layer_step``-th."""
    if model.moe is None:
        return 0
    return (model.layers - model.moe.first_dense) // model.moe.layer_step


def mlp_layers(model: ServedModel, start: int, stop: int) -> tuple[int, int]:
    """Layers with a dense MLP and layers with experts, of those from ``start`` to ``stop``.

    Layers of a mixer alone (``mlp_layers`` of the model fewer than its layers) have neither.
    """
    moe = model.moe
    if moe is None:
        count = stop - start
        if model.mlp_layers is not None:
            count = ceil_div(count * model.mlp_layers, model.layers)
        return count, 0
    sparse = sum(
        index >= moe.first_dense and (index - moe.first_dense + 1) % moe.layer_step == 0
        for index in range(start, stop)
    )
    return stop - start - sparse, sparse


def stages(layers: int, pp: int) -> Iterator[tuple[int, int]]:
    """First and last-but-one layer of each pipeline stage.

    What does not divide goes, one layer each, to the stages before the last, from the back
    (vllm/distributed/utils.py: get_pp_indices).
    """
    base, rest = divmod(layers, pp)
    start = 0
    for stage in range(pp):
        longer = pp - 1 - rest <= stage < pp - 1
        yield start, start + base + longer
        start += base + longer


def shared_width(moe: Moe) -> int:
    """Width of all shared experts together."""
    width = moe.shared_intermediate_size or moe.intermediate_size
    count = moe.shared_experts or (1 if moe.shared_intermediate_size else 0)
    return count * width


@lru_cache(maxsize=4096)
def parameters(model: ServedModel, tp: int = 1, mlp_pad: int = 1) -> Parameters:
    """Parameters on one of ``tp`` ranks, all layers.

    Linear layers divide by ``tp``; k and v keep at least one head; norms, routers and MLA's
    down-projections are on every rank. ``mlp_pad``: multiple that expert widths are padded to.
    """
    h, matrices = model.hidden_size, 3 if model.gated_mlp else 2
    attention, replicated = _attention(model, tp)
    replicated += (2 * model.layers + 1) * h
    dense, sparse = mlp_layers(model, 0, model.layers)
    experts = shared = 0.0
    dense_width = model.intermediate_size
    if model.moe is not None:
        moe = model.moe
        dense_width = moe.dense_intermediate_size or model.intermediate_size
        width = ceil_div(moe.intermediate_size, mlp_pad) * mlp_pad
        experts = sparse * moe.experts * matrices * h * width / tp
        shared = sparse * matrices * h * shared_width(moe) / tp
        replicated += sparse * h * moe.experts
    vocabulary = padded_vocabulary(model) * h / tp
    return Parameters(
        attention=attention,
        mixers=model.linear_layers * model.linear_layer_params / tp,
        replicated=replicated,
        mlp=dense * matrices * h * dense_width / tp,
        experts=experts,
        shared_experts=shared,
        embedding=vocabulary,
        head=0.0 if model.tied_embeddings or model.task == "embed" else vocabulary,
        vision=model.vision_params / tp,
        absorbed=_absorbed(model, tp),
    )


def _attention(model: ServedModel, tp: int) -> tuple[float, float]:
    """Parameters divided over ranks, and those on every rank."""
    if model.mla is not None:
        return _mla_attention(model, tp)
    local_layers = model.sliding_layers + model.chunked_layers
    full = model.full_attention_layers * _layer_attention(
        model,
        tp,
        model.global_kv_heads or model.kv_heads,
        model.global_head_size or model.head_size,
        model.keys_equal_values,
    )
    local = local_layers * _layer_attention(model, tp, model.kv_heads, model.head_size, False)
    return full + local, 0.0


def _layer_attention(
    model: ServedModel, tp: int, kv_heads: int, head_size: int, keys_equal_values: bool
) -> float:
    values = model.v_head_size or head_size
    queries = model.attention_heads * head_size * (2 if model.attention_gate else 1)
    heads = queries + model.attention_heads * values
    kv = kv_heads_on_rank(kv_heads, tp) * (head_size + (0 if keys_equal_values else values))
    return model.hidden_size * (heads / tp + kv)


def _mla_attention(model: ServedModel, tp: int) -> tuple[float, float]:
    mla, h, heads = model.mla, model.hidden_size, model.attention_heads
    assert mla is not None
    query_width = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    up = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    up += (mla.q_lora_rank or h) * query_width + heads * mla.v_head_dim * h
    down = h * (mla.kv_lora_rank + mla.qk_rope_head_dim + (mla.q_lora_rank or 0))
    indexer = 0
    if mla.index_head_dim and mla.index_heads:
        source = mla.q_lora_rank or h
        indexer = source * mla.index_heads * mla.index_head_dim
        indexer += h * (mla.index_head_dim + mla.index_heads)
    return model.layers * up / tp, float(model.layers * down + mla.indexer_layers * indexer)


def _absorbed(model: ServedModel, tp: int) -> float:
    if model.mla is None:
        return 0.0
    mla = model.mla
    width = mla.qk_nope_head_dim + mla.v_head_dim
    return model.layers * mla.kv_lora_rank * (model.attention_heads / tp) * width


@lru_cache(maxsize=4096)
def weights(
    model: ServedModel, scheme: Scheme, tp: int = 1, pp: int = 1, expert_parallel: bool = False
) -> Weights:
    """Bytes of weights on the fullest GPU of ``tp`` x ``pp``.

    w = linear x q + 16-bit (embedding, head, norms, routers, MLA copies, vision). With stages,
    the first holds the embedding and the vision tower, the last the head (a copy where tied).
    The vision tower is divided like the rest (vLLM's default, ``mm_encoder_tp_mode``).
    """
    found = [
        _stage(model, scheme, tp, start, stop, first=not start, last=stop == model.layers)
        for start, stop in stages(model.layers, pp)
    ]
    fullest = max(found, key=lambda stage: stage.total)
    if expert_parallel and model.moe is not None:  # whole experts: the fullest rank rounds up
        experts = model.moe.experts
        fullest = replace(fullest, experts=fullest.experts * ceil_div(experts, tp) * tp / experts)
    return replace(fullest, other=fullest.other + unnamed_bytes(model, scheme) / (tp * pp))


def head_bytes(model: ServedModel, scheme: Scheme, layers: int, tp: int) -> float:
    """Layers of an EAGLE or MTP head on one rank: each as a layer of the model, and a projection.

    The projection takes the token's embedding and the last hidden state, 2 h x h in 16 bit; the
    embedding and the output layer are the model's own.
    """
    if not layers:
        return 0.0
    p = parameters(model, tp, scheme.pad_to)
    dense, sparse = mlp_layers(model, 0, model.layers)
    full = max(1, model.layers - model.linear_layers)
    layer = p.attention / full * class_bytes(model, scheme, "attention")
    if sparse:
        layer += p.experts / sparse * class_bytes(model, scheme, "experts")
        layer += p.shared_experts / sparse * class_bytes(model, scheme, "shared_experts")
    else:
        layer += p.mlp / max(1, dense) * class_bytes(model, scheme, "mlp")
    return layers * (layer + 2 * model.hidden_size**2 * scheme.other_bytes)


def unnamed_bytes(model: ServedModel, scheme: Scheme) -> float:
    """What the checkpoint's files hold beyond (or short of) the classes counted here.

    Biases, projectors, scales, odd layers: spread over all ranks. Only where the files were read
    and are loaded as they are; layers that predict further tokens are in them but not loaded.
    """
    own = model.checkpoint_precision
    loaded = scheme.name == own or {scheme.name, own} == {"bf16", "fp16"}
    if model.checkpoint_bytes is None or not loaded or model.mtp_layers:
        return 0.0
    p = parameters(model, 1, scheme.pad_to)
    padding = (padded_vocabulary(model) - model.vocab_size) * model.hidden_size
    embeddings = p.embedding - padding + (p.head - padding if p.head else 0.0)
    q, other = scheme.linear_bytes, scheme.other_bytes
    counted = embeddings * (q if scheme.scope == "all" else other)
    counted += (p.replicated + p.vision) * other
    for tensors in ("attention", "mixers", "mlp", "shared_experts", "experts"):
        counted += getattr(p, tensors) * class_bytes(model, scheme, tensors)
    return model.checkpoint_bytes - counted


def _stage(
    model: ServedModel, scheme: Scheme, tp: int, start: int, stop: int, *, first: bool, last: bool
) -> Weights:
    p = parameters(model, tp, scheme.pad_to)
    part = (stop - start) / model.layers
    dense, sparse = mlp_layers(model, start, stop)
    all_dense, all_sparse = mlp_layers(model, 0, model.layers)
    of_dense, of_sparse = dense / max(1, all_dense), sparse / max(1, all_sparse)
    linear = (
        p.attention * part * class_bytes(model, scheme, "attention")
        + p.mixers * part * class_bytes(model, scheme, "mixers")
        + p.mlp * of_dense * class_bytes(model, scheme, "mlp")
        + p.shared_experts * of_sparse * class_bytes(model, scheme, "shared_experts")
    )
    other = scheme.other_bytes
    everywhere = scheme.linear_bytes if scheme.scope == "all" else other
    copied = p.embedding if model.tied_embeddings and not first else 0.0
    spread = (p.replicated + p.absorbed) * part * other + (p.vision * other if first else 0.0)
    return Weights(
        linear=linear,
        experts=p.experts * of_sparse * class_bytes(model, scheme, "experts"),
        embedding=p.embedding * everywhere if first else 0.0,
        head=(p.head + copied) * everywhere if last else 0.0,
        other=spread + position_bytes(model),
        rounding=allocator_bytes(model, tp, scheme.packed_bytes) * part,
    )


def class_bytes(model: ServedModel, scheme: Scheme, tensors: str) -> float:
    """Bytes per parameter of a class of linear tensors.

    Experts-only schemes pack nothing else of a MoE model; a checkpoint may keep more in 16 bit.
    """
    if scheme.scope == "experts" and model.moe is not None and tensors != "experts":
        return scheme.other_bytes
    if scheme.linear_bytes >= scheme.other_bytes:
        return scheme.linear_bytes
    kept = dict(model.kept_16bit).get(tensors, 0.0)
    return kept * scheme.other_bytes + (1 - kept) * scheme.linear_bytes


# Models with a learned table of positions, as wide as the model, instead of rotary tables.
_LEARNED_POSITIONS = ("opt", "gpt2", "gpt_bigcode")
_NO_POSITIONS = ("bloom", "mpt", "nemotron_h", "mamba", "mamba2")


def position_bytes(model: ServedModel) -> float:
    """The 16-bit table of rotary sines and cosines, one for all layers, as long as trained.

    Windowed and full layers of other frequencies have a table each; one scaled linearly is longer
    by that factor (vllm, LinearScalingRotaryEmbedding), one for images and time four times
    (MRotaryEmbedding); some models learn positions.
    """
    length = model.max_position_embeddings or 0
    if model.model_type in _NO_POSITIONS:
        return 0.0
    if model.model_type in _LEARNED_POSITIONS:
        return 2.0 * length * model.hidden_size
    width = model.mla.qk_rope_head_dim if model.mla is not None else model.head_size
    local = length if model.local_rope else 0
    return 2.0 * width * ((model.rotary_positions or length) + local)


def allocator_bytes(model: ServedModel, tp: int, bytes_per_parameter: float) -> float:
    """What PyTorch's caching allocator loses over the linear tensors of all layers.

    A tensor of 10 MiB or more takes a multiple of 2 MiB; a rest of more than 1 MiB is given to
    other tensors (c10/cuda/CUDACachingAllocator.cpp: kMinLargeAlloc, kRoundLarge, kSmallSize).
    Dense layers only: fused experts are few large tensors.
    """
    if model.moe is not None or model.mla is not None or model.linear_layers:
        return 0.0
    h, heads = model.hidden_size, model.attention_heads
    kv = 2 * kv_heads_on_rank(model.kv_heads, tp) * model.head_size
    inward = (2 if model.gated_mlp else 1) * model.intermediate_size / tp
    widths = (heads * model.head_size / tp + kv, heads * model.head_size / tp, inward)
    tensors = (*widths, model.intermediate_size / tp)
    return model.layers * sum(_lost(h * width * bytes_per_parameter) for width in tensors)


def _lost(size: float) -> float:
    if size < 10 * MIB:
        return 0.0
    rest = -size % (2 * MIB)
    return rest if rest <= MIB else 0.0
