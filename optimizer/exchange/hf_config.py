"""A Hugging Face ``config.json`` to the facts of a model card, architecture by architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
Facts = dict[str, Any]


class CannotImport(ValueError):
    """A config that cannot become a model card; the message says what is missing."""


# Where a fact stands in a config, first spelling first.
SPELLINGS = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": (
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
        "max_sequence_length",
    ),
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"),
        "top_k_experts",
    ),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
}
REQUIRED = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    "vocab_size",
)
# Taken as they are where a config has them.
SAME = (
    *("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
    *("index_head_dim", "index_n_heads", "num_nextn_predict_layers", "mtp_num_hidden_layers"),
    *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"),
    *("linear_value_head_dim", "linear_conv_kernel_dim", "attn_output_gate"),
    *("global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "mamba_ssm_dtype"),
)


def first(config: Config, name: str) -> Any:
    """The value of a fact under any of its spellings; None where there is none."""
    for key in SPELLINGS.get(name, (name,)):
        if config.get(key) is not None:
            return config[key]
    return None


@dataclass(frozen=True, slots=True)
class Family:
    """How one ``model_type`` differs from a Llama: defaults of its config class and extra facts."""

    tied: bool = False
    two_matrices: bool = False
    task: str = "generate"
    extra: Callable[[Config, Facts], None] | None = None
    widths: int = 0  # MLP width as a multiple of the hidden size, where a config may leave it out


def _moe(config: Config, facts: Facts) -> None:
    """Experts as wide as ``moe_intermediate_size``, else as ``intermediate_size``."""
    experts = first(config, "num_experts")
    if not experts:
        return
    facts["num_experts"] = experts
    facts["num_experts_per_tok"] = first(config, "num_experts_per_tok")
    facts["moe_intermediate_size"] = (
        config.get("moe_intermediate_size")
        or config.get("expert_ffn_hidden_size")
        or facts["intermediate_size"]
    )
    dense = config.get("first_k_dense_replace") or config.get("moe_layer_start_index")
    facts["first_k_dense_replace"] = dense or 0
    facts["n_shared_experts"] = first(config, "n_shared_experts") or 0
    shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size")
    if shared:
        facts["shared_expert_intermediate_size"] = shared
    if (config.get("decoder_sparse_step") or 1) > 1:
        facts["interleave_moe_layer_step"] = config["decoder_sparse_step"]
    dense = config.get("mlp_only_layers") or []
    if dense:
        if sorted(dense) != list(range(len(dense))):
            raise CannotImport(f"mlp_only_layers {dense}: dense layers among experts, not before")
        facts["first_k_dense_replace"] = len(dense)
    missing = [n for n in ("num_experts_per_tok", "moe_intermediate_size") if not facts.get(n)]
    if missing:
        raise CannotImport(f"num_experts is {experts}, but {' and '.join(missing)} is missing")


def _layers_of(kinds: list[str], facts: Facts) -> None:
    """Counts of layers by kind, out of ``layer_types``."""
    count = len(kinds)
    sliding = sum(k in ("sliding_attention", "sliding") for k in kinds)
    chunked = sum(k == "chunked_attention" for k in kinds)
    linear = sum(k in ("linear_attention", "mamba", "conv", "recurrent") for k in kinds)
    known = sliding + chunked + linear + sum(k in ("full_attention", "attention") for k in kinds)
    if known != count:
        strange = sorted(set(kinds) - {"full_attention", "attention"})
        raise CannotImport(f"layer_types holds kinds that are not known here: {strange}")
    facts["sliding_attention_layers"] = sliding
    facts["chunked_attention_layers"] = chunked
    facts["linear_attention_layers"] = linear


def _every(pattern: int, facts: Facts, what: str) -> None:
    """All but each ``pattern``-th layer are of a kind."""
    layers = facts["num_hidden_layers"]
    facts[what] = layers - layers // pattern


def _windows(config: Config, facts: Facts, pattern: int) -> None:
    """Windowed layers by ``layer_types``, else all but each ``pattern``-th; 1: every layer."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return
    facts["sliding_window"] = window
    if config.get("layer_types"):
        _layers_of(config["layer_types"], facts)
    elif pattern > 1:
        said = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        said = len(said) if isinstance(said, str) else said  # as "LLLG"
        _every(said or pattern, facts, "sliding_attention_layers")
    else:
        facts["sliding_attention_layers"] = facts["num_hidden_layers"]


def _mistral(config: Config, facts: Facts) -> None:
    _windows(config, facts, 1)
    _moe(config, facts)


def _qwen(config: Config, facts: Facts) -> None:
    """Windows only where switched on, for layers from ``max_window_layers``."""
    if config.get("use_sliding_window") and config.get("sliding_window"):
        facts["sliding_window"] = config["sliding_window"]
        full = min(config.get("max_window_layers") or 0, facts["num_hidden_layers"])
        facts["sliding_attention_layers"] = facts["num_hidden_layers"] - full
    _moe(config, facts)


def _gemma2(config: Config, facts: Facts) -> None:
    _windows(config, facts, 2)


def _gemma3(config: Config, facts: Facts) -> None:
    _windows(config, facts, 6)
    facts["local_rope"] = True


def _gemma4(config: Config, facts: Facts) -> None:
    _gemma3(config, facts)
    if config.get("num_kv_shared_layers") or config.get("hidden_size_per_layer_input"):
        raise CannotImport("layers that share KV or have inputs of their own are not modelled")
    if config.get("enable_moe_block"):
        _moe(config, facts)
        facts["shared_expert_intermediate_size"] = facts["intermediate_size"]


def _cohere2(config: Config, facts: Facts) -> None:
    _windows(config, facts, 4)


def _laguna(config: Config, facts: Facts) -> None:
    """Layers of several head counts: the most of any layer, which errs to the large side."""
    facts["num_attention_heads"] = (
        max(config.get("num_attention_heads_per_layer") or [0]) or facts["num_attention_heads"]
    )
    _windows(config, facts, 1)
    _moe(config, facts)


def _mimo(config: Config, facts: Facts) -> None:
    """Windowed layers with KV heads of their own; values narrower than keys."""
    _windows(config, facts, 1)
    pattern = config.get("hybrid_layer_pattern")
    if isinstance(pattern, list) and not config.get("layer_types"):
        facts["sliding_attention_layers"] = sum(bool(kind) for kind in pattern)
    if config.get("swa_num_key_value_heads"):
        facts["swa_num_key_value_heads"] = config["swa_num_key_value_heads"]
    _moe(config, facts)


def _gpt_oss(config: Config, facts: Facts) -> None:
    _windows(config, facts, 2)
    _moe(config, facts)


def _llama4(config: Config, facts: Facts) -> None:
    """Three of four layers attend in chunks; every ``interleave``-th has experts and one shared."""
    _moe(config, facts)
    layers = facts["num_hidden_layers"]
    facts["chunked_attention_layers"] = layers - layers // (config.get("no_rope_layer_step") or 4)
    facts["attention_chunk_size"] = config.get("attention_chunk_size") or 8192
    facts["interleave_moe_layer_step"] = config.get("interleave_moe_layer_step") or 1
    facts["dense_intermediate_size"] = config.get("intermediate_size_mlp")
    facts["n_shared_experts"] = 1


def _mla(config: Config, facts: Facts) -> None:
    _moe(config, facts)
    facts.pop("head_dim", None)
    if config.get("index_head_dim"):
        facts["indexer_full_layers"] = facts["num_hidden_layers"]


def _delta_net(config: Config, facts: Facts) -> None:
    """Gated delta networks but for each ``full_attention_interval``-th layer; gated queries."""
    if config.get("layer_types"):
        _layers_of(config["layer_types"], facts)
    else:
        interval = config.get("full_attention_interval") or 4
        _every(interval, facts, "linear_attention_layers")
    facts.setdefault("attn_output_gate", True)
    _moe(config, facts)


def _qwen35(config: Config, facts: Facts) -> None:
    _delta_net(config, facts)
    facts.setdefault("mamba_ssm_dtype", "float32")


def mamba2_facts(
    hidden: int, heads: int, head: int, groups: int, state: int, window: int
) -> tuple[int, int]:
    """Parameters of a Mamba 2 mixer, and bytes of its 16-bit state per request.

    In: gate, x, B, C and a step per head; a convolution over x, B, C; A, D, bias, norm; out.
    """
    inner = heads * head
    channels = inner + 2 * groups * state
    parameters = hidden * (inner + channels + heads) + channels * (window + 1)
    parameters += 3 * heads + inner + inner * hidden
    return parameters, 2 * (inner * state + channels * (window - 1))


def _nemotron_h(config: Config, facts: Facts) -> None:
    """Blocks of one kind each: Mamba 2 (M), attention (*) or MLP (-)."""
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        raise CannotImport("hybrid_override_pattern is missing: which blocks are Mamba is unknown")
    if set(pattern) - set("M*-"):
        raise CannotImport("blocks of experts among Mamba blocks are not modelled")
    mamba, attention = pattern.count("M"), pattern.count("*")
    facts["num_hidden_layers"] = mamba + attention
    facts["linear_attention_layers"] = mamba
    facts["mlp_layers"] = pattern.count("-")
    _mamba2(
        config,
        facts,
        ("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel"),
    )


def _bamba(config: Config, facts: Facts) -> None:
    """Mamba 2 but for the layers listed as attention, each with an MLP."""
    if config.get("layer_types"):
        _layers_of(config["layer_types"], facts)
    else:
        full = len(config.get("attn_layer_indices") or ())
        facts["linear_attention_layers"] = facts["num_hidden_layers"] - full
    head = config.get("mamba_d_head")
    if not isinstance(head, int):
        inner = (config.get("mamba_expand") or 2) * facts["hidden_size"]
        config = {**config, "mamba_d_head": inner // (config.get("mamba_n_heads") or 1)}
    names = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv")
    _mamba2(config, facts, names)
    _moe(config, facts)


def _mamba2(config: Config, facts: Facts, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not isinstance(config.get(name), int)]
    if missing:
        raise CannotImport(f"Mamba layers need {', '.join(missing)}")
    heads, head, groups, state, window = (config[name] for name in names)
    parameters, size = mamba2_facts(facts["hidden_size"], heads, head, groups, state, window)
    facts["linear_layer_params"], facts["linear_state_bytes"] = parameters, size


def _mllama(config: Config, facts: Facts) -> None:
    facts["cross_attention_layers"] = len(config.get("cross_attention_layers") or ())


def _falcon(config: Config, facts: Facts) -> None:
    """One KV head where ``multi_query`` and not the new decoder."""
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        facts["num_key_value_heads"] = 1


def _bigcode(config: Config, facts: Facts) -> None:
    if config.get("multi_query", True):
        facts["num_key_value_heads"] = 1


def _qwen1(config: Config, facts: Facts) -> None:
    """Gate and up are each half as wide as ``intermediate_size`` says."""
    facts["intermediate_size"] //= 2


def _chatglm(config: Config, facts: Facts) -> None:
    if config.get("multi_query_attention"):
        facts["num_key_value_heads"] = config.get("multi_query_group_num")


def _mpt(config: Config, facts: Facts) -> None:
    inner = config.get("attn_config")
    if isinstance(inner, Mapping) and inner.get("kv_n_heads"):
        facts["num_key_value_heads"] = inner["kv_n_heads"]


_PLAIN = Family()
_EXPERTS = Family(extra=_moe)
_MLA = Family(extra=_mla)
_QWEN = Family(extra=_qwen)
_MISTRAL = Family(extra=_mistral)
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            *("llama", "granite", "olmo", "olmo2", "stablelm", "phi3small", "arcee", "internlm2"),
            *("glm", "glm4", "baichuan", "yi", "exaone", "seed_oss", "hunyuan_v1_dense", "mimo"),
            *("apertus", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava"),
            *("llava_next", "llava_onevision", "idefics3", "smolvlm", "dots_ocr", "aya_vision"),
        ),
        _PLAIN,
    ),
    **dict.fromkeys(("ernie4_5", "smollm3", "cohere", "helium", "minicpm"), Family(tied=True)),
    "gemma": Family(tied=True),
    "gemma2": Family(tied=True, extra=_gemma2),
    "gemma3": Family(tied=True, extra=_gemma3),
    "gemma3_text": Family(tied=True, extra=_gemma3),
    "gemma4": Family(tied=True, extra=_gemma4),
    "gemma4_text": Family(tied=True, extra=_gemma4),
    "cohere2": Family(tied=True, extra=_cohere2),
    **dict.fromkeys(
        ("mistral", "ministral", "mistral3", "pixtral", "phi3", "mixtral", "phimoe", "exaone4"),
        _MISTRAL,
    ),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "qwen2_audio"), _QWEN),
    **dict.fromkeys(
        (
            *("qwen3_vl_moe", "granitemoe", "granitemoeshared", "olmoe", "glm4_moe", "glm4v_moe"),
            *("ernie4_5_moe", "minimax_m2", "dots1", "deepseek", "bailing_moe", "hunyuan_v1_moe"),
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_vl", "minicpm3"),
            *("glm_moe_dsa", "glm4_moe_lite"),
        ),
        _MLA,
    ),
    "gpt_oss": Family(extra=_gpt_oss),
    "laguna": Family(extra=_laguna),
    "mimo_v2_flash": Family(extra=_mimo),
    "llama4": Family(extra=_llama4),
    "llama4_text": Family(extra=_llama4),
    "mllama": Family(extra=_mllama),
    "qwen3_next": Family(extra=_delta_net),
    "qwen3_5": Family(extra=_qwen35),
    "qwen3_5_moe": Family(extra=_qwen35),
    "nemotron_h": Family(two_matrices=True, extra=_nemotron_h),
    "bamba": Family(extra=_bamba),
    "granitemoehybrid": Family(extra=_bamba),
    "qwen": Family(extra=_qwen1),
    "chatglm": Family(extra=_chatglm),
    "falcon": Family(tied=True, two_matrices=True, extra=_falcon, widths=4),
    "gpt2": Family(tied=True, two_matrices=True, widths=4),
    "gpt_bigcode": Family(tied=True, two_matrices=True, extra=_bigcode, widths=4),
    "gpt_neox": Family(two_matrices=True),
    "gptj": Family(two_matrices=True, widths=4),
    "starcoder2": Family(tied=True, two_matrices=True, extra=_mistral),
    "opt": Family(tied=True, two_matrices=True),
    "bloom": Family(tied=True, two_matrices=True, widths=4),
    "mpt": Family(tied=True, two_matrices=True, extra=_mpt, widths=4),
    "phi": Family(two_matrices=True),
    "nemotron": Family(two_matrices=True),
    "bert": Family(tied=True, two_matrices=True, task="embed"),
    "xlm-roberta": Family(tied=True, two_matrices=True, task="embed"),
    "roberta": Family(tied=True, two_matrices=True, task="embed"),
}
# Ends of architecture names that serve embeddings, whatever the model type.
_EMBEDS = ("Model", "ForSequenceClassification", "ForTextEncoding")


# What transformers' config classes fill in where a nested text config leaves a fact out.
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
_GEMMA3 = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
_MISTRAL_DEFAULTS = _LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
NESTED_DEFAULTS: dict[str, Config] = {
    "llama": _LLAMA,
    "gemma3_text": _GEMMA3,
    "mistral": _MISTRAL_DEFAULTS,
}


def text_part(config: Config) -> Config:
    """The language model's part of a multimodal config, with the defaults of its class."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            if name == "thinker_config":
                return text_part(inner)
            return {**NESTED_DEFAULTS.get(str(inner.get("model_type")), {}), **inner}
    return config


def family_of(config: Config) -> tuple[str, Family]:
    """The ``model_type`` and its family. Raises CannotImport on one that nobody taught us."""
    text = text_part(config)
    for source in (config, text):
        name = source.get("model_type")
        if isinstance(name, str) and name in FAMILIES:
            return name, FAMILIES[name]
    named = config.get("model_type") or text.get("model_type")
    if not named:
        raise CannotImport("there is no model_type, so nobody can say how its layers are built")
    raise CannotImport(
        f'model_type "{named}" is not known here. A model card needs, for it: which layers keep '
        "the whole context, a window or a state; whether the MLP is gated; how experts are laid "
        f"out; whether embeddings are tied. Known: {', '.join(sorted(FAMILIES))}"
    )


def facts_of(config: Config) -> Facts:
    """The architecture's facts in the words of a model card. Raises CannotImport."""
    name, family = family_of(config)
    text = text_part(config)
    facts: Facts = {"model_type": name}
    for fact in SPELLINGS:
        if fact not in ("num_experts", "num_experts_per_tok", "n_shared_experts"):
            value = first(text, fact)
            if value is not None:
                facts[fact] = value
    if "intermediate_size" not in facts and family.widths and "hidden_size" in facts:
        facts["intermediate_size"] = family.widths * facts["hidden_size"]
    if "intermediate_size" not in facts and text.get("moe_intermediate_size"):
        facts["intermediate_size"] = 0
    missing = [fact for fact in REQUIRED if fact not in facts]
    if missing:
        raise CannotImport(f"{', '.join(missing)} missing from the config of a {name}")
    facts |= {fact: text[fact] for fact in SAME if text.get(fact) is not None}
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    facts["tie_word_embeddings"] = family.tied if tied is None else bool(tied)
    facts["mlp"] = "2-matrix" if family.two_matrices else "gated"
    if text.get("is_gated_act"):
        facts["mlp"] = "gated"
    facts["task"] = _task(config, family)
    if family.extra is not None:
        family.extra(text, facts)
    _rope(text, facts)
    return facts


def _task(config: Config, family: Family) -> str:
    named = config.get("architectures")
    if isinstance(named, list) and named and str(named[0]).endswith(_EMBEDS):
        return "embed"
    return family.task


# Methods that leave the length a config names as it is.
_NOT_LONGER = (None, "default", "mrope", "proportional", "llama3", "longrope", "su")


# Methods whose table engines build for the length times the factor.
_LONGER_TABLE = ("linear", "dynamic")
_COUNTED = ("gemma3",)  # architectures whose configs name the length after scaling


def _rope(config: Config, facts: Facts) -> None:
    """Scaled rotary positions: YaRN and its kind multiply the trained length.

    Unless the config already counts it, as publishers do who trained that far.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(scaling, Mapping) and isinstance(scaling.get("full_attention"), Mapping):
        scaling = scaling["full_attention"]
    if not isinstance(scaling, Mapping):
        return
    method = scaling.get("rope_type") or scaling.get("type")
    if (method == "mrope" or scaling.get("mrope_section")) and first(
        config, "max_position_embeddings"
    ):
        facts["rotary_positions"] = 4 * first(config, "max_position_embeddings")
    factor, length = scaling.get("factor"), first(config, "max_position_embeddings")
    if method in _NOT_LONGER or not isinstance(factor, int | float) or not length:
        return
    if method in _LONGER_TABLE:
        facts["rotary_positions"] = int(length * factor)
    if str(facts["model_type"]).startswith(_COUNTED):
        return
    facts["rope_scaling"] = str(method)
    trained = scaling.get("original_max_position_embeddings") or length
    if length == trained:
        facts["original_max_position_embeddings"] = length
        facts["max_position_embeddings"] = int(length * factor)
