"""The ``quantization_config`` of a checkpoint: precision, group size, and what it left alone."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.exchange.hf_config import CannotImport, Facts

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint is packed to. ``kept``: classes of tensors in 16 bit, and which part."""

    precision: str
    group: int | None = None
    kept: dict[str, float] = field(default_factory=dict)
    kv_precision: str | None = None
    symmetric: bool = False  # integers without zero points


def quantization_of(config: Config, facts: Facts) -> Quantization | None:
    """How the checkpoint is quantised; None: it is not. Raises CannotImport on unknown methods."""
    said = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(said, Mapping):
        return None
    method = str(said.get("quant_method") or said.get("quant_algo") or "").lower()
    reader = READERS.get(method)
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise CannotImport(f'quantization method "{method}" is not known here; known: {known}')
    precision, group = reader(said)
    kept = kept_classes(said, facts)
    return Quantization(precision, group, kept, _kv(said), _symmetric(said))


def _bits(said: Config) -> int:
    for name in ("bits", "w_bit", "wbits", "nbits"):
        if isinstance(said.get(name), int):
            return int(said[name])
    raise CannotImport("quantization_config does not say how many bits")


def _grouped(said: Config) -> tuple[str, int | None]:
    """GPTQ, AWQ, AutoRound, HQQ: integers of so many bits with scales per group."""
    bits = _bits(said)
    names = {2: "int2", 4: "int4", 8: "w8a16"}
    if bits not in names:
        raise CannotImport(f"{bits}-bit groups have no scheme here; known: 2, 4, 8")
    group = said.get("group_size", said.get("q_group_size"))
    return names[bits], group if isinstance(group, int) and group > 0 else None


def _bitsandbytes(said: Config) -> tuple[str, int | None]:
    eight = said.get("load_in_8bit") or said.get("_load_in_8bit")
    return ("int8", None) if eight else ("bnb-nf4", None)


def _compressed(said: Config) -> tuple[str, int | None]:
    """compressed-tensors: the first group of its config speaks."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CannotImport("quantization_config has no config_groups with weights")
    activations = first.get("input_activations") if isinstance(first, Mapping) else None
    bits, kind = weights.get("num_bits"), weights.get("type")
    group = weights.get("group_size")
    group = group if isinstance(group, int) and group > 0 else None
    if kind == "float":
        if bits == 4:
            return ("mxfp4" if group == 32 else "nvfp4"), None
        return "fp8", None
    if bits == 8:
        return ("int8", None) if activations else ("w8a16", group)
    if bits == 4:
        return ("w4a8" if activations else "int4"), group
    if bits == 2:
        return "int2", group
    raise CannotImport(f"compressed-tensors of {bits} bits have no scheme here")


def _modelopt(said: Config) -> tuple[str, int | None]:
    inner = said.get("quantization")
    algorithm = str(said.get("quant_algo") or (inner or {}).get("quant_algo") or "").upper()
    names = {
        "FP8": "fp8",
        "FP8_PB_WO": "fp8",
        "NVFP4": "nvfp4",
        "NVFP4_AWQ": "nvfp4",
        "W4A16_AWQ": "int4",
        "W4A8_AWQ": "w4a8",
        "W8A8_SQ_PER_CHANNEL": "int8",
        "W8A16": "w8a16",
    }
    if algorithm not in names:
        raise CannotImport(f'modelopt algorithm "{algorithm}" has no scheme here')
    return names[algorithm], None


def _fp8(said: Config) -> tuple[str, int | None]:
    return "fp8", None


def _mxfp4(said: Config) -> tuple[str, int | None]:
    return "mxfp4", None


READERS = {
    **dict.fromkeys(
        ("gptq", "awq", "auto-round", "intel/auto-round", "hqq", "gptq_marlin"), _grouped
    ),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    **dict.fromkeys(("modelopt", "modelopt_fp4", "fp8_pb_wo", "nvfp4"), _modelopt),
    **dict.fromkeys(("fp8", "fbgemm_fp8"), _fp8),
    "mxfp4": _mxfp4,
}


def _kv(said: Config) -> str | None:
    """The KV cache's precision where the checkpoint asks for one."""
    scheme = said.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and scheme.get("num_bits") == 8:
        return "fp8" if scheme.get("type") == "float" else "int8"
    algorithm = said.get("kv_cache_quant_algo")
    return "fp8" if isinstance(algorithm, str) and algorithm.upper() == "FP8" else None


def _symmetric(said: Config) -> bool:
    """compressed-tensors store no zero points of symmetric weights; GPTQ stores them always."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    return isinstance(weights, Mapping) and bool(weights.get("symmetric", True))


IGNORE_LISTS = ("ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules")


def ignored(said: Config) -> list[str]:
    """The patterns of modules that stay in 16 bit."""
    found: list[str] = []
    for name in (*IGNORE_LISTS, "llm_int8_skip_modules"):
        value = said.get(name)
        if isinstance(value, list):
            found += [str(v) for v in value]
    inner = said.get("quantization")
    return found + (ignored(inner) if isinstance(inner, Mapping) else [])


def kept_classes(said: Config, facts: Facts) -> dict[str, float]:
    """Classes of linear tensors that the ignore list names, and the part of each that it names.

    Names of every layer's modules are held against the list, weighted by their sizes; exceptions
    of single layers count as their part.
    """
    patterns = ignored(said)
    if not patterns:
        return {}
    matchers = [_matcher(p) for p in patterns]
    totals: dict[str, float] = {}
    kept: dict[str, float] = {}
    for tensors, name, size in module_names(facts):
        totals[tensors] = totals.get(tensors, 0.0) + size
        if any(match(name) for match in matchers):
            kept[tensors] = kept.get(tensors, 0.0) + size
    return {t: round(kept[t] / totals[t], 6) for t in sorted(kept)}


def _matcher(pattern: str) -> Callable[[str], object]:
    """A pattern as engines read it: a regular expression, a wildcard, or a part of the name."""
    if pattern.startswith("re:"):
        try:
            compiled = re.compile(pattern[3:])
        except re.error as error:
            raise CannotImport(
                f'ignore pattern "{pattern}" is no regular expression: {error}'
            ) from None
        return compiled.match
    if "*" in pattern:
        return re.compile(".*".join(re.escape(part) for part in pattern.split("*"))).search
    bare = re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", pattern)
    return re.compile(rf"(^|\.){re.escape(bare)}(\.|$)").search


def module_names(facts: Facts) -> Iterator[tuple[str, str, float]]:
    """Class, name and relative size of each linear module of the text model."""
    layers = facts["num_hidden_layers"]
    experts, first_dense = facts.get("num_experts"), facts.get("first_k_dense_replace") or 0
    linear = facts.get("linear_attention_layers") or 0
    every = layers // (layers - linear) if 0 < linear < layers else 0
    for layer in range(layers):
        base = f"model.layers.{layer}"
        mixer = linear == layers or (every and (layer + 1) % every != 0)
        if mixer:
            yield "mixers", f"{base}.linear_attn.in_proj_qkvz", 2.0
            yield "mixers", f"{base}.linear_attn.out_proj", 1.0
        else:
            for name, size in _attention_sizes(facts):
                yield "attention", f"{base}.self_attn.{name}", size
        if experts and layer >= first_dense:
            for part in ("gate_proj", "up_proj", "down_proj"):
                yield "experts", f"{base}.mlp.experts.0.{part}", 1.0
                if facts.get("n_shared_experts") or facts.get("shared_expert_intermediate_size"):
                    yield "shared_experts", f"{base}.mlp.{_shared(facts)}.{part}", 1.0
        else:
            for part in ("gate_proj", "up_proj", "down_proj"):
                yield "mlp", f"{base}.mlp.{part}", 1.0


def _shared(facts: Facts) -> str:
    return "shared_experts" if facts.get("n_shared_experts") else "shared_expert"


def _attention_sizes(facts: Facts) -> tuple[tuple[str, float], ...]:
    if facts.get("kv_lora_rank"):
        return (("q_b_proj", 2.0), ("kv_b_proj", 1.0), ("o_proj", 2.0))
    heads = facts["num_attention_heads"]
    kv = (facts.get("num_key_value_heads") or heads) / heads
    return (("q_proj", 1.0), ("k_proj", kv), ("v_proj", kv), ("o_proj", 1.0))
