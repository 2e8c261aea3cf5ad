"""The served model: architecture facts in the terms of a Hugging Face ``config.json``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moe:
    """Mixture of experts. Dense: the first ``first_dense`` layers and all but each ``step``-th."""

    experts: int
    experts_per_token: int
    intermediate_size: int
    shared_experts: int = 0
    shared_intermediate_size: int = 0
    first_dense: int = 0
    layer_step: int = 1
    dense_intermediate_size: int | None = None


@dataclass(frozen=True, slots=True)
class Mla:
    """Multi-head latent attention: sizes of the compressed KV and of the query parts."""

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    index_head_dim: int | None = None
    index_heads: int | None = None
    indexer_layers: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One network that can be served. Counts of layers by attention kind add up to ``layers``."""

    name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    tied_embeddings: bool
    task: str = "generate"  # generate | embed
    model_type: str | None = None
    checkpoint_precision: str = "bf16"
    max_position_embeddings: int | None = None
    gated_mlp: bool = True  # gate, up and down; False: up and down only
    sliding_window: int | None = None
    sliding_layers: int = 0
    chunked_layers: int = 0  # chunked-local attention of width chunk_size
    chunk_size: int | None = None
    linear_layers: int = 0  # linear attention or Mamba: constant state per request
    linear_state_bytes: int = 0  # per layer and request, 16 bit
    linear_layer_params: int = 0  # the mixer of one such layer
    attention_gate: bool = False  # queries carry an output gate of their own width
    v_head_size: int | None = None  # where it differs from head_size
    cross_attention_layers: int = 0
    global_head_size: int | None = None  # full-attention layers, where they differ
    global_kv_heads: int | None = None
    keys_equal_values: bool = False  # full-attention layers store one tensor
    moe: Moe | None = None
    mla: Mla | None = None
    mtp_layers: int = 0
    mlp_layers: int | None = None  # where layers of a mixer alone have no MLP of their own
    local_rope: bool = False  # windowed layers have rotary frequencies of their own
    vision_params: int = 0
    kept_16bit: tuple[
        tuple[str, float], ...
    ] = ()  # part of a class that a packed checkpoint leaves
    checkpoint_kv_precision: str | None = None  # where the checkpoint asks for one
    quant_group: int | None = None  # the checkpoint's group size, where it is not the usual one
    quant_symmetric: bool = False  # the checkpoint's integers have no zero points
    rotary_positions: int | None = None  # of the rotary table, where longer than the context
    rope_scaling: str | None = None  # method by which max_position_embeddings was reached
    original_positions: int | None = None  # length trained before scaling
    checkpoint_bytes: int | None = None  # of the safetensors files, where their index was read
    aliases: tuple[str, ...] = ()
    repacks: tuple[tuple[str, str], ...] = ()  # (id, precision)
    repack_keeps: tuple[tuple[str, tuple[tuple[str, float], ...]], ...] = ()  # id: kept_16bit
    symmetric_repacks: tuple[str, ...] = ()  # ids whose integers have no zero points
    positions: tuple[tuple[str, int], ...] = ()  # id: max_position_embeddings where it differs
    unverified: tuple[str, ...] = ()

    def __hash__(self) -> int:
        # Many caches ask, and all fields compare.
        return hash((self.name, self.layers, self.vocab_size))

    @property
    def full_attention_layers(self) -> int:
        """Layers whose KV cache keeps the whole context."""
        return self.layers - self.sliding_layers - self.chunked_layers - self.linear_layers

    @property
    def attention_kind(self) -> str:
        """MLA, MHA, MQA or GQA."""
        if self.mla is not None:
            return "MLA"
        if self.kv_heads == self.attention_heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"
