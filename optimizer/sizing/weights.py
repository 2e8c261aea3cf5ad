"""Weights of one GPU, tensor class by tensor class."""

from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.model import Moe, ServedModel
from optimizer.domain.units import MIB, ceil_div
from optimizer.sizing.precision import Scheme

VOCABULARY_PADDING = 64  # vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters that one tensor-parallel rank holds, over all layers."""

    attention: float  # q, k, v, o; MLA's up-projections; linear attention's projections
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
            self.attention + self.replicated + self.mlp + self.experts + self.shared_experts
            + self.embedding + self.head + self.vision
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
    sparse = moe_layers(model)
    attention, replicated = _attention(model, tp)
    replicated += (2 * model.layers + 1) * h
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
        replicated=replicated,
        mlp=(model.layers - sparse) * matrices * h * dense_width / tp,
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
    linear = model.linear_layers * model.linear_layer_params / tp
    return full + local + linear, 0.0


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
def weights(model: ServedModel, scheme: Scheme, tp: int = 1, pp: int = 1) -> Weights:
    """Bytes of weights on the fullest GPU of ``tp`` x ``pp``.

    w = linear x q + 16-bit (embedding, head, norms, routers, MLA copies, vision); layers are
    divided over stages rounded up; with stages, the first holds the embedding and the last the
    head. The vision tower is divided like the rest (vLLM's default, ``mm_encoder_tp_mode``).
    """
    p = parameters(model, tp, scheme.pad_to)
    stage = ceil_div(model.layers, pp) / model.layers
    q, other = scheme.linear_bytes, scheme.other_bytes
    experts_only = scheme.scope == "experts" and model.moe is not None
    linear = p.attention + p.mlp + p.shared_experts
    everywhere = q if scheme.scope == "all" else other
    embedding, head = p.embedding * everywhere, p.head * everywhere
    if pp > 1:
        embedding, head = (embedding, 0.0) if embedding >= head else (0.0, head)
    return Weights(
        linear=linear * (other if experts_only else q) * stage,
        experts=p.experts * q * stage,
        embedding=embedding,
        head=head,
        other=((p.replicated + p.absorbed) * stage + p.vision) * other + rotary_bytes(model),
        rounding=0.0 if experts_only else allocator_bytes(model, tp, q) * stage,
    )


def rotary_bytes(model: ServedModel) -> float:
    """The table of rotary sines and cosines, one for all layers, in 16 bit, as long as trained."""
    width = model.mla.qk_rope_head_dim if model.mla is not None else model.head_size
    return 2.0 * (model.max_position_embeddings or 0) * width


def allocator_bytes(model: ServedModel, tp: int, bytes_per_parameter: float) -> float:
    """What PyTorch's caching allocator loses over the linear tensors of all layers.

    A tensor of 10 MiB or more takes a multiple of 2 MiB; a rest of more than 1 MiB is given to
    other tensors (c10/cuda/CUDACachingAllocator.cpp: kMinLargeAlloc, kRoundLarge, kSmallSize).
    Dense layers only: fused experts are few large tensors.
    """
    if model.moe is not None or model.mla is not None:
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
