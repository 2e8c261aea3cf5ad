"""KV cache: bytes per token and rank, block pools, and how many requests they hold."""

import math
from dataclasses import dataclass, replace
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
    """Groups of one kind in the shared pool: each takes its own blocks.

    ``share``: in a pool of its own, how many blocks (or states) there are for one of the layout.
    """

    span: str
    count: int
    block_tokens: int
    width: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class KvLayout:
    """A pool of blocks; one block holds ``block_bytes`` over the layers of one group.

    ``separate``: each group has a pool of its own, filled side by side; a block is then one of
    the largest pool with what the other pools take beside it. ``recent_bytes``: what a request
    keeps in 16 bit beside packed blocks.
    """

    block_bytes: float
    groups: tuple[KvGroup, ...]
    kinds: tuple[LayerKind, ...]
    separate: bool = False
    recent_bytes: float = 0.0

    def blocks(self, available_bytes: float) -> int:
        """Blocks that fit, rounded down."""
        return max(0, int(available_bytes // self.block_bytes)) if self.block_bytes else 0

    def blocks_per_request(self, tokens: int, chunk: int) -> int:
        """Blocks one request of ``tokens`` context takes; ``chunk``: tokens of one step.

        Full layers ceil(L/bs); a window ceil(min(w-1+chunk, L)/bs)+1; chunked-local
        ceil(min(w+chunk, L)/bs); a state 1 (vllm/v1/kv_cache_interface.py). Of separate pools the
        scarcest counts.
        """
        needs = [g.count * _group_blocks(g, tokens, chunk) / g.share for g in self.groups]
        blocks = max(needs, default=0) if self.separate else sum(needs)
        recent = self.recent_bytes / self.block_bytes if self.block_bytes else 0.0
        return math.ceil(blocks + recent)

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


def with_draft_layers(model: ServedModel, count: int) -> ServedModel:
    """The model with so many full layers more: an EAGLE or MTP head keeps KV like its target."""
    return replace(model, layers=model.layers + count) if count else model


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


@dataclass(frozen=True, slots=True)
class PoolRule:
    """How an engine lays out its pool; the names are those of its card."""

    block_tokens: int = 16
    hybrid: bool = True  # windows and states save memory; else windowed layers keep the context
    window_ratio: float | None = None  # windowed layers have a pool of their own, so long
    state_ratio: float | None = None  # states have a pool of their own: its bytes over KV bytes


SHARED_POOL = PoolRule()
# With its prefix cache SGLang keeps three states for each running request
# (MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO).
STATES_PER_REQUEST = 3


@lru_cache(maxsize=4096)
def kv_layout(
    model: ServedModel,
    kv_bytes: float = 2.0,
    tp: int = 1,
    pp: int = 1,
    rule: PoolRule = SHARED_POOL,
    *,
    draft_bytes: float = 0.0,
    recent_tokens: int = 0,
) -> KvLayout:
    """The block pool of one rank.

    One kind of layer: a block spans all its layers. Several: layers are grouped by kind, every
    group as long as the smallest kind (as the largest where it is under 1.5 times the smallest),
    kinds padded to a multiple; all groups share one pool of equal blocks. Not ``hybrid``:
    windowed layers keep the whole context like full ones. ``draft_bytes``: KV bytes a token of a
    speculative draft takes beside. ``recent_tokens`` of each request are held in 16 bit.
    """
    kinds = tuple(
        LayerKind(k.span, ceil_div(k.layers, pp), k.bytes_per_token, k.width, k.state_bytes)
        for k in layer_kinds(model, kv_bytes, tp)
    )
    kinds = tuple(k for k in kinds if k.layers)
    if not rule.hybrid:
        kinds = _all_full(kinds)
    if not kinds:
        return KvLayout(0.0, (), ())
    recent = sum(k.layers * k.bytes_per_token for k in kinds) * max(0.0, 2.0 / kv_bytes - 1)
    extra = recent * recent_tokens
    if rule.window_ratio is not None or rule.state_ratio is not None:
        return _separate_pools(kinds, rule, draft_bytes, extra)
    smallest, largest = min(k.layers for k in kinds), max(k.layers for k in kinds)
    group_size = largest if largest < NEARLY_EQUAL * smallest else smallest
    page = _page_bytes(kinds, rule.block_tokens)
    widest = max(k.bytes_per_token for k in kinds)
    groups = tuple(
        KvGroup(
            k.span,
            ceil_div(k.layers, group_size),
            _tokens(page, k.bytes_per_token or widest, rule.block_tokens),
            k.width,
        )
        for k in kinds
    )
    block = page * group_size + draft_bytes * groups[0].block_tokens
    return KvLayout(block, groups, kinds, recent_bytes=extra)


def _separate_pools(
    kinds: tuple[LayerKind, ...], rule: PoolRule, draft_bytes: float, recent_bytes: float
) -> KvLayout:
    """A pool of full layers, one of windowed layers, one of states (SGLang).

    tokens = kv / (F x full layers + r x S x windowed layers), r windowed tokens for each; states
    take a fixed ratio of the KV bytes beside (model_runner_kv_cache_mixin.py).
    """
    ratio = rule.window_ratio or 1.0
    full = [k for k in kinds if k.span == "full"]
    short = [k for k in kinds if k.span in ("window", "chunk")]
    states = [k for k in kinds if k.span == "state"]
    if not full and short:
        full, short = [LayerKind("full", k.layers, k.bytes_per_token) for k in short], []
    cell = draft_bytes + sum(k.layers * k.bytes_per_token for k in full)
    cell += ratio * sum(k.layers * k.bytes_per_token for k in short)
    groups = [KvGroup("full", 1, rule.block_tokens)] if full else []
    groups += [KvGroup(k.span, 1, rule.block_tokens, k.width, ratio) for k in short]
    block = cell * rule.block_tokens
    state = sum(k.layers * k.state_bytes for k in states) * STATES_PER_REQUEST
    if state and block:
        beside = block * (rule.state_ratio or 1.0)
        groups.append(KvGroup("state", 1, rule.block_tokens, share=beside / state))
        block += beside
    elif state:
        block = float(state)
        groups.append(KvGroup("state", 1, rule.block_tokens))
    return KvLayout(block, tuple(groups), kinds, separate=True, recent_bytes=recent_bytes)


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
