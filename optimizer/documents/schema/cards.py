"""The catalogue's kinds Gpu and Model."""

from typing import Annotated, Any, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Choice,
    Count,
    Head,
    KvPrecision,
    Name,
    Part,
    Positive,
    Precision,
    Several,
    Strict,
    Text,
)

Link = Annotated[str, Choice("NVLink domain", ("node", "pair", "none"))]
Kept = Annotated[
    str,
    Choice("class of tensors", ("attention", "mixers", "mlp", "shared_experts", "experts")),
]
Task = Annotated[str, Choice("task", ("generate", "embed"))]


class PriceDoc(Strict):
    """An indicative price of one GPU-hour and who published it."""

    usd: Positive
    source: Text | None = None


class ProfileDoc(Strict):
    """One MIG profile of a product."""

    name: Text
    profile_id: Count | None = None
    nvml_profile: Count | None = None
    compute_slices: Several
    memory_slices: Several
    memory_gib: Positive | None = None
    memory_mib: Several | None = None
    memory_mib_lower_bound: Several | None = None
    memory_mib_estimate: Several | None = None
    sms: Several | None = None
    sm: Several | None = None
    engines: dict[str, Count | None] = Field({})
    starts: list[Annotated[int, Field(ge=0, le=63)]] = Field(min_length=1)
    max_instances: Several
    placements: Text | None = None
    source: Any = None
    sources: Any = None
    placements_source: Any = None
    unverified: Any = None
    note: Any = None
    notes: Any = None


class MigDoc(Strict):
    """What a product can be cut into."""

    compute_slices: Several
    memory_slices: Several
    full_gpu_sm: Several | None = None
    full_gpu_sms: Several | None = None
    name_aliases: dict[str, str] = Field({})
    profiles: list[ProfileDoc] = Field(min_length=1)
    min_driver: Any = None
    driver_of_numbers: Any = None
    other_drivers: Any = None
    pci_device_ids: list[str] = Field([])
    total_memory_mib: Several | None = None
    placements_status: Any = None
    numbers: Any = None
    sources: Any = None
    unverified: Any = None
    notes: Any = None


class GpuDoc(Head):
    """A GPU product's datasheet; unknown is null."""

    kind: Literal["Gpu"] = Field(description="Gpu")
    name: Name = Field(description="its key, such as h100-80gb-sxm")
    product_names: list[Text] = Field([], description="as nvidia-smi prints them")
    vendor: Text = "NVIDIA"
    architecture: Text = Field(description="such as hopper")
    compute_capability: Text | None = Field(None, description="such as 9.0, in quotes")
    memory_gb: Positive = Field(description="the vendor's figure")
    memory_type: Text | None = None
    memory_mib_reported: Several | None = Field(None, description="as nvidia-smi prints it")
    memory_mib_usable: Several | None = Field(None, description="CUDA's total")
    memory_bandwidth_gbs: Positive = Field(description="GB/s, the vendor's peak")
    sm_count: Several | None = None
    dense_tflops: dict[str, Amount | None] = Field({}, description="dense peak by precision")
    native: list[Text] = Field([])
    nvlink_gbs: Positive | None = Field(None, description="GB/s, both directions together")
    nvlink_domain: Link = "node"
    pcie_gen: Several | None = None
    tdp_w: Positive | None = None
    mig: MigDoc | None = None
    price_usd_hour: list[PriceDoc] = Field([])
    sources: Any = None
    unverified: list[Text] = Field([])
    notes: Any = None


class RepackDoc(Strict):
    """A quantised repack: another id of the same network."""

    id: Text
    precision: Precision
    scheme: Text | None = None
    symmetric: bool = Field(False, description="integers without zero points")
    keeps: dict[Kept, Part] = Field({}, description="part of each class left in 16 bit")


class ModelDoc(Head):
    """A model in the terms of a Hugging Face ``config.json``."""

    kind: Literal["Model"] = Field(description="Model")
    name: Name = Field(description="such as llama-3.1-8b")
    aliases: list[Text] = Field([], description="Hugging Face ids")
    repacks: list[RepackDoc] = Field([])
    task: Task = "generate"
    model_type: Text | None = None
    checkpoint_precision: Precision = "bf16"
    max_position_embeddings: Several | None = None
    max_positions: dict[str, Several] = Field({}, description="of ids tuned for longer contexts")
    num_hidden_layers: Several = Field(description="layers")
    hidden_size: Several = Field(description="width")
    intermediate_size: Count | None = None
    num_attention_heads: Several = Field(description="attention heads")
    num_key_value_heads: Several | None = None
    head_dim: Several | None = None
    vocab_size: Several = Field(description="vocabulary entries")
    tie_word_embeddings: bool = False
    mlp: Annotated[str, Choice("kind of MLP", ("gated", "2-matrix"))] = "gated"
    sliding_window: Several | None = None
    local_rope: bool = Field(False, description="windowed layers have rotary tables of their own")
    mlp_layers: Count | None = Field(None, description="layers with an MLP, where not all have one")
    full_attention_layers: Count | None = None
    sliding_attention_layers: Count = 0
    chunked_attention_layers: Count = 0
    attention_chunk_size: Several | None = None
    linear_attention_layers: Count = 0
    linear_num_key_heads: Several | None = None
    linear_num_value_heads: Several | None = None
    linear_key_head_dim: Several | None = None
    linear_value_head_dim: Several | None = None
    linear_conv_kernel_dim: Several | None = None
    mamba_ssm_dtype: Annotated[str, Choice("type of states", ("float32", "bfloat16"))] = "bfloat16"
    linear_state_bytes: Count | None = None
    linear_layer_params: Count | None = None
    attn_output_gate: bool = False
    cross_attention_layers: Count = 0
    global_head_dim: Several | None = None
    num_global_key_value_heads: Several | None = None
    attention_k_eq_v: bool = False
    num_experts: Several | None = None
    num_experts_per_tok: Several | None = None
    moe_intermediate_size: Several | None = None
    n_shared_experts: Count = 0
    shared_expert_intermediate_size: Several | None = None
    first_k_dense_replace: Count = 0
    interleave_moe_layer_step: Several = 1
    dense_intermediate_size: Several | None = None
    kv_lora_rank: Several | None = None
    q_lora_rank: Several | None = None
    qk_rope_head_dim: Several | None = None
    qk_nope_head_dim: Several | None = None
    v_head_dim: Several | None = None
    index_head_dim: Several | None = None
    index_n_heads: Several | None = None
    indexer_full_layers: Count | None = None
    swa_num_key_value_heads: Several | None = None
    swa_head_dim: Several | None = None
    num_nextn_predict_layers: Count = 0
    mtp_num_hidden_layers: Count = 0
    vision_params_b: Amount | None = None
    kept_16bit: dict[Kept, Part] = Field({}, description="part of each class left in 16 bit")
    quantization_group_size: Several | None = None
    quantization_symmetric: bool = False
    checkpoint_kv_precision: KvPrecision | None = None
    checkpoint_bytes: Annotated[int, Field(gt=0)] | None = Field(
        None, description="of the safetensors files"
    )
    rotary_positions: Several | None = Field(
        None, description="length of the rotary table, where longer than the context"
    )
    rope_scaling: Text | None = Field(None, description="how max_position_embeddings is reached")
    original_max_position_embeddings: Several | None = None
    computed: Any = None
    source: Any = None
    sources: Any = None
    unverified: list[Text] = Field([])
    note: Any = None
    notes: Any = None
