"""Valid cards of the catalogue to domain values."""

from types import MappingProxyType
from typing import Any

from optimizer.documents.schema.cards import GpuDoc, MigDoc, ModelDoc, ProfileDoc
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu, MigProfile, MigTable
from optimizer.domain.model import Mla, Moe, ServedModel


def engine(raw: dict[str, Any]) -> EngineCard:
    """The engine of a valid document."""
    from optimizer.documents import engine_card  # here: few commands read engines

    return engine_card.parse(raw)


def gpu_spellings(gpu: Gpu) -> list[str]:
    """The exact product names of nvidia-smi, and as Kubernetes labels spell them."""
    return [s for name in gpu.product_names for s in (name, name.replace(" ", "-"))]


def model_spellings(model: ServedModel) -> list[str]:
    """Aliases and the ids of repacks."""
    return [*model.aliases, *(name for name, _ in model.repacks)]


def gpu(raw: dict[str, Any]) -> Gpu:
    """The product of a valid datasheet."""
    doc = GpuDoc.model_validate(raw)
    return Gpu(
        name=doc.name,
        vendor=doc.vendor,
        architecture=doc.architecture,
        compute_capability=doc.compute_capability or "",
        memory_gb=doc.memory_gb,
        memory_bandwidth_gbs=doc.memory_bandwidth_gbs,
        memory_mib_reported=doc.memory_mib_reported,
        memory_mib_usable=doc.memory_mib_usable,
        sms=doc.sm_count,
        dense_tflops=MappingProxyType(dict(doc.dense_tflops)),
        native=tuple(doc.native),
        nvlink_gbs=doc.nvlink_gbs,
        nvlink_domain=doc.nvlink_domain if doc.nvlink_gbs is not None else "none",
        pcie_gen=doc.pcie_gen,
        tdp_w=None if doc.tdp_w is None else round(doc.tdp_w),
        mig=None if doc.mig is None else _mig(doc.mig),
        product_names=tuple(doc.product_names),
        unverified=tuple(doc.unverified),
    )


def _mig(doc: MigDoc) -> MigTable:
    return MigTable(
        compute_slices=doc.compute_slices,
        memory_slices=doc.memory_slices,
        profiles=tuple(_profile(p) for p in doc.profiles),
        full_gpu_sms=doc.full_gpu_sm or doc.full_gpu_sms,
        name_aliases=tuple(sorted(doc.name_aliases.items())),
    )


def _profile(doc: ProfileDoc) -> MigProfile:
    return MigProfile(
        name=doc.name,
        compute_slices=doc.compute_slices,
        memory_slices=doc.memory_slices,
        starts=tuple(sorted(doc.starts)),
        max_instances=doc.max_instances,
        profile_id=doc.profile_id,
        memory_mib=doc.memory_mib,
        sms=doc.sms or doc.sm,
        engines=tuple(sorted((k, v) for k, v in doc.engines.items() if v is not None)),
    )


def model(raw: dict[str, Any]) -> ServedModel:
    """The network of a valid model card. Raises ValueError where its numbers cannot be."""
    doc = ModelDoc.model_validate(raw)
    other = (
        doc.sliding_attention_layers + doc.chunked_attention_layers + doc.linear_attention_layers
    )
    full = doc.full_attention_layers
    if other > doc.num_hidden_layers or (
        full is not None and full + other != doc.num_hidden_layers
    ):
        raise ValueError(
            f"num_hidden_layers is {doc.num_hidden_layers}, but the layers by kind of attention "
            f"add up to {other + (full or 0)}"
        )
    head_size = doc.head_dim or _mla_head(doc) or doc.hidden_size // doc.num_attention_heads
    return ServedModel(
        name=doc.name,
        layers=doc.num_hidden_layers,
        hidden_size=doc.hidden_size,
        intermediate_size=doc.intermediate_size or 0,
        attention_heads=doc.num_attention_heads,
        kv_heads=doc.swa_num_key_value_heads or doc.num_key_value_heads or doc.num_attention_heads,
        head_size=head_size,
        vocab_size=doc.vocab_size,
        tied_embeddings=doc.tie_word_embeddings,
        task=doc.task,
        model_type=doc.model_type,
        checkpoint_precision=doc.checkpoint_precision,
        max_position_embeddings=doc.max_position_embeddings,
        gated_mlp=doc.mlp == "gated",
        sliding_window=doc.sliding_window,
        sliding_layers=doc.sliding_attention_layers,
        chunked_layers=doc.chunked_attention_layers,
        chunk_size=doc.attention_chunk_size,
        linear_layers=doc.linear_attention_layers,
        linear_state_bytes=_linear_state_bytes(doc),
        linear_layer_params=_linear_layer_params(doc),
        attention_gate=doc.attn_output_gate,
        v_head_size=None if doc.kv_lora_rank else doc.v_head_dim,
        cross_attention_layers=doc.cross_attention_layers,
        global_head_size=doc.global_head_dim,
        global_kv_heads=doc.num_global_key_value_heads
        or (doc.num_key_value_heads if doc.swa_num_key_value_heads else None),
        keys_equal_values=doc.attention_k_eq_v,
        moe=_moe(doc),
        mla=_mla(doc),
        mtp_layers=doc.num_nextn_predict_layers + doc.mtp_num_hidden_layers,
        mlp_layers=doc.mlp_layers,
        local_rope=doc.local_rope,
        kept_16bit=tuple(sorted(doc.kept_16bit.items())),
        quant_symmetric=doc.quantization_symmetric,
        symmetric_repacks=tuple(r.id for r in doc.repacks if r.symmetric),
        quant_group=doc.quantization_group_size,
        checkpoint_kv_precision=doc.checkpoint_kv_precision,
        checkpoint_bytes=doc.checkpoint_bytes,
        rope_scaling=doc.rope_scaling,
        rotary_positions=doc.rotary_positions,
        original_positions=doc.original_max_position_embeddings,
        vision_params=round((doc.vision_params_b or 0) * 1e9),
        aliases=tuple(doc.aliases),
        repacks=tuple((r.id, r.precision) for r in doc.repacks),
        positions=tuple(sorted(doc.max_positions.items())),
        repack_keeps=tuple((r.id, tuple(sorted(r.keeps.items()))) for r in doc.repacks if r.keeps),
        unverified=tuple(doc.unverified),
    )


def _mla_head(doc: ModelDoc) -> int | None:
    """Width of a query head where latent attention splits it in two."""
    if doc.qk_nope_head_dim is None or doc.qk_rope_head_dim is None:
        return None
    return doc.qk_nope_head_dim + doc.qk_rope_head_dim


def _moe(doc: ModelDoc) -> Moe | None:
    if doc.num_experts is None:
        return None
    if doc.num_experts_per_tok is None or doc.moe_intermediate_size is None:
        raise ValueError("num_experts needs num_experts_per_tok and moe_intermediate_size too")
    return Moe(
        experts=doc.num_experts,
        experts_per_token=doc.num_experts_per_tok,
        intermediate_size=doc.moe_intermediate_size,
        shared_experts=doc.n_shared_experts,
        shared_intermediate_size=doc.shared_expert_intermediate_size or 0,
        first_dense=doc.first_k_dense_replace,
        layer_step=doc.interleave_moe_layer_step,
        dense_intermediate_size=doc.dense_intermediate_size,
    )


def _mla(doc: ModelDoc) -> Mla | None:
    if doc.kv_lora_rank is None:
        return None
    if doc.qk_rope_head_dim is None or doc.qk_nope_head_dim is None or doc.v_head_dim is None:
        raise ValueError("kv_lora_rank needs qk_rope_head_dim, qk_nope_head_dim and v_head_dim too")
    return Mla(
        kv_lora_rank=doc.kv_lora_rank,
        qk_rope_head_dim=doc.qk_rope_head_dim,
        qk_nope_head_dim=doc.qk_nope_head_dim,
        v_head_dim=doc.v_head_dim,
        q_lora_rank=doc.q_lora_rank,
        index_head_dim=doc.index_head_dim,
        index_heads=doc.index_n_heads,
        indexer_layers=doc.indexer_full_layers or 0,
    )


def _linear_sizes(doc: ModelDoc) -> tuple[int, int, int, int, int] | None:
    """Key heads, value heads, key width, value width, convolution; of a gated delta network."""
    sizes = (
        doc.linear_num_key_heads,
        doc.linear_num_value_heads,
        doc.linear_key_head_dim,
        doc.linear_value_head_dim,
    )
    if any(s is None for s in sizes):
        return None
    key_heads, value_heads, key, value = (s or 0 for s in sizes)
    return key_heads, value_heads, key, value, doc.linear_conv_kernel_dim or 1


def _linear_state_bytes(doc: ModelDoc) -> int:
    """Constant state of one layer and request: the delta rule's matrix, in 32 bit where the
    config says so, and the convolution's window (Hugging Face ``Qwen3NextGatedDeltaNet``)."""
    if doc.linear_state_bytes is not None:
        return doc.linear_state_bytes
    sizes = _linear_sizes(doc)
    if sizes is None:
        return 0
    key_heads, value_heads, key, value, window = sizes
    channels = 2 * key_heads * key + value_heads * value
    element = 4 if doc.mamba_ssm_dtype == "float32" else 2
    return element * value_heads * key * value + 2 * channels * (window - 1)


def _linear_layer_params(doc: ModelDoc) -> int:
    """Parameters of one linear-attention mixer: projections in (q, k, v, z, b, a), convolution,
    decay and norm, projection out (Hugging Face ``Qwen3NextGatedDeltaNet``)."""
    if doc.linear_layer_params is not None:
        return doc.linear_layer_params
    sizes = _linear_sizes(doc)
    if sizes is None:
        return 0
    key_heads, value_heads, key, value, window = sizes
    channels = 2 * key_heads * key + value_heads * value
    inward = doc.hidden_size * (channels + value_heads * value + 2 * value_heads)
    return (
        inward + channels * window + 2 * value_heads + value + value_heads * value * doc.hidden_size
    )
