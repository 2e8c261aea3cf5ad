"""KV cache: bytes per token and rank, block pools, and how many requests they hold."""

from dataclasses import dataclass
from functools import lru_cache

from optimizer.domain.model import Mla, ServedModel
from optimizer.domain.units import ceil_div
from optimizer.sizing.weights import kv_heads_on_rank

# Layers of the largest kind are padded to a multiple of the smallest kind's, unless they are
# nearly equal (vllm/v1/core/kv_cache_utils.py, _get_kv_cache_groups_uniform_page_size).
NEARLY_EQUAL = 1.5


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers of a rank that keep KV in the same way."""

    span: str  # full | window | chunk | state
    layers: int
    bytes_per_token: float  # of one layer; 0 for a state
    width: int = 0  # tokens of a window or chunk
    state_bytes: int = 0  # per request and layer


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Groups of one kind in the shared pool: each takes its own blocks."""

    span: str
    count: int
    block_tokens: int
    width: int = 0


@dataclass(frozen=True, slots=True)
class KvLayout:
    """A pool of blocks; one block holds ``block_bytes`` over the layers of one group."""

    block_bytes: float
    groups: tuple[KvGroup, ...]
    kinds: tuple[LayerKind, ...]

    def blocks(self, available_bytes: float) -> int:
        """Blocks that fit, rounded down."""
        return max(0, int(available_bytes // self.block_bytes)) if self.block_bytes else 0

    def blocks_per_request(self, tokens: int, chunk: int) -> int:
        """Blocks one request of ``tokens`` context takes; ``chunk``: tokens of one step.

        Full layers ceil(L/bs); a window ceil(min(w-1+chunk, L)/bs)+1; chunked-local
        ceil(min(w+chunk, L)/bs); a state 1 (vllm/v1/kv_cache_interface.py).
        """
        return sum(g.count * _group_blocks(g, tokens, chunk) for g in self.groups)

    def bytes_per_request(self, tokens: int, chunk: int) -> float:
        """Bytes those blocks take."""
        return self.blocks_per_request(tokens, chunk) * self.block_bytes


def _group_blocks(group: KvGroup, tokens: int, chunk: int) -> int:
    if group.span == "state":
        return 1
    if group.span == "window":
        return ceil_div(min(group.width - 1 + chunk, tokens), group.block_tokens) + 1
    if group.span == "chunk":
        return ceil_div(min(group.width + chunk, tokens), group.block_tokens)
    return ceil_div(tokens, group.block_tokens)


@lru_cache(maxsize=4096)
def layer_kinds(model: ServedModel, kv_bytes: float, tp: int = 1) -> tuple[LayerKind, ...]:
    """Kinds of layers with the KV bytes one token takes in one layer of one rank.

    MHA, GQA, MQA: 2 x max(1, kv_heads/tp) x head_dim x b. MLA: (kv_lora_rank +
    qk_rope_head_dim) x b on every rank alike. A linear-attention layer keeps one state.
    """
    kinds: list[LayerKind] = []
    if model.mla is not None:
        return (LayerKind("full", model.layers, _mla_bytes_per_token(model, model.mla, kv_bytes)),)
    local = _bytes_per_token(model, model.kv_heads, model.head_size, kv_bytes, tp)
    if model.full_attention_layers:
        heads = model.global_kv_heads or model.kv_heads
        size = model.global_head_size or model.head_size
        per_token = _bytes_per_token(model, heads, size, kv_bytes, tp)
        layers = model.full_attention_layers - model.cross_attention_layers
        kinds.append(LayerKind("full", layers, per_token))
    if model.sliding_layers and model.sliding_window:
        kinds.append(LayerKind("window", model.sliding_layers, local, model.sliding_window))
    if model.chunked_layers and model.chunk_size:
        kinds.append(LayerKind("chunk", model.chunked_layers, local, model.chunk_size))
    if model.linear_layers:
        state = ceil_div(model.linear_state_bytes, tp)
        kinds.append(LayerKind("state", model.linear_layers, 0.0, state_bytes=state))
    return tuple(kinds)


def _mla_bytes_per_token(model: ServedModel, mla: Mla, kv_bytes: float) -> float:
    """The latent and the rotary key; sparse attention adds an index on some layers.

    With an index, an 8-bit cache is vLLM's ``fp8_ds_mla``: 512 latent bytes, four 32-bit scales
    and a 16-bit rotary key, 656 in all.
    """
    latent = (mla.kv_lora_rank + mla.qk_rope_head_dim) * kv_bytes
    if not mla.index_head_dim:
        return latent
    if kv_bytes == 1:
        latent = mla.kv_lora_rank + 16 + 2 * mla.qk_rope_head_dim
    return latent + (mla.index_head_dim + 4) * mla.indexer_layers / model.layers


def _bytes_per_token(
    model: ServedModel, kv_heads: int, head_size: int, kv_bytes: float, tp: int
) -> float:
    values = model.v_head_size or head_size
    return kv_heads_on_rank(kv_heads, tp) * (head_size + values) * kv_bytes


def kv_cache_bytes_per_token(model: ServedModel, kv_bytes: float = 2.0, tp: int = 1) -> float:
    """KV bytes that one more token of context takes on a rank if every layer keeps all of it."""
    return sum(k.layers * k.bytes_per_token for k in layer_kinds(model, kv_bytes, tp))


@lru_cache(maxsize=4096)
def kv_layout(
    model: ServedModel,
    kv_bytes: float = 2.0,
    tp: int = 1,
    pp: int = 1,
    block_tokens: int = 16,
    hybrid: bool = True,
) -> KvLayout:
    """The block pool of one rank.

    One kind of layer: a block spans all its layers. Several: layers are grouped by kind, every
    group as long as the smallest kind (as the largest where it is under 1.5 times the smallest),
    kinds padded to a multiple; all groups share one pool of equal blocks. Not ``hybrid`` (old
    engines): windowed layers keep the whole context like full ones.
    """
    kinds = tuple(
        LayerKind(k.span, ceil_div(k.layers, pp), k.bytes_per_token, k.width, k.state_bytes)
        for k in layer_kinds(model, kv_bytes, tp)
    )
    kinds = tuple(k for k in kinds if k.layers)
    if not hybrid:
        kinds = _all_full(kinds)
    if not kinds:
        return KvLayout(0.0, (), ())
    smallest, largest = min(k.layers for k in kinds), max(k.layers for k in kinds)
    group_size = largest if largest < NEARLY_EQUAL * smallest else smallest
    page = _page_bytes(kinds, block_tokens)
    widest = max(k.bytes_per_token for k in kinds)
    groups = tuple(
        KvGroup(
            k.span,
            ceil_div(k.layers, group_size),
            _tokens(page, k.bytes_per_token or widest, block_tokens),
            k.width,
        )
        for k in kinds
    )
    return KvLayout(page * group_size, groups, kinds)


def _all_full(kinds: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """One kind that keeps everything; it takes the mean bytes of those it stands for."""
    layers = sum(k.layers for k in kinds if k.span != "state")
    total = sum(k.layers * k.bytes_per_token for k in kinds)
    states = tuple(k for k in kinds if k.span == "state")
    return (LayerKind("full", layers, total / layers), *states) if layers else states


def _page_bytes(kinds: tuple[LayerKind, ...], block_tokens: int) -> float:
    """Bytes of a block in one layer, the same for all kinds: large enough for a whole state."""
    per_token = max((k.bytes_per_token for k in kinds), default=0.0)
    state = max(k.state_bytes for k in kinds)
    if not per_token:
        return float(state)
    blocks = max(1, ceil_div(state, int(per_token * block_tokens)))
    return per_token * block_tokens * blocks


def _tokens(page: float, bytes_per_token: float, block_tokens: int) -> int:
    """Tokens in a block of one layer, a multiple of the engine's own block."""
    if not bytes_per_token:
        return block_tokens
    return max(1, int(page / bytes_per_token / block_tokens)) * block_tokens
