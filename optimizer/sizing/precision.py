"""Number formats: what a weight and a KV element take, and what stays in 16 bit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheme:
    """A weight precision. ``scope`` says which tensors it packs; the rest takes ``other_bytes``."""

    name: str
    linear_bytes: float
    scope: str = "linear"  # linear | experts (of MoE models) | all (embeddings too)
    other_bytes: float = 2.0
    pad_to: int = 1  # MLP widths are padded to a multiple
    group: int = 1  # widths must divide into groups
    risk: str | None = None


# Bytes per parameter, scales and zero points included. fp8 and int8: per-channel scales are
# negligible. int4: 4 bits, a 16-bit scale and a 4-bit zero per group of 128 (GPTQ, AWQ layout).
# nvfp4: an 8-bit scale per 16; mxfp4: an 8-bit scale per 32 (OCP MX specification).
# bnb-nf4: 4 bits and double-quantised scales, 0.53 on published logs. int2: groups of 64.
_FOUR_BIT = "4-bit weights lose a little quality; check it on your own prompts"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", 4.0, "all", 4.0),
        Scheme("fp16", 2.0),
        Scheme("bf16", 2.0),
        Scheme("fp8", 1.0),
        Scheme("int8", 1.0),
        Scheme("w8a16", 1.0),
        Scheme("int4", 0.5 + 2 / 128 + 0.5 / 128, group=128, risk=_FOUR_BIT),
        Scheme("w4a8", 0.5 + 2 / 128 + 0.5 / 128, group=128, risk=_FOUR_BIT),
        Scheme("bnb-nf4", 0.53, risk=_FOUR_BIT),
        Scheme("nvfp4", 0.5 + 1 / 16, risk=_FOUR_BIT),
        Scheme("mxfp4", 0.5 + 1 / 32, "experts", pad_to=256, risk=_FOUR_BIT),
        Scheme("int2", 0.25 + 4 / 64, group=64, risk="2-bit weights damage most models visibly"),
    )
}

# llama.cpp's bits per weight of a whole model in each mix (its quantize tool prints them).
_GGUF_BITS = {
    "q2_k": 3.35, "q3_k_s": 3.64, "q3_k_m": 4.0, "q3_k_l": 4.3, "q4_0": 4.66, "q4_1": 5.12,
    "q4_k_s": 4.67, "q4_k_m": 4.89, "q5_0": 5.59, "q5_1": 6.05, "q5_k_s": 5.57, "q5_k_m": 5.7,
    "q6_k": 6.56, "q8_0": 8.5, "f16": 16.0, "bf16": 16.0,
}  # fmt: skip

# Bytes per KV element. int8, int4: a 16-bit scale per head of 128. kivi-2bit: 2 bits, 16-bit scale
# and zero per group of 32 (arXiv 2402.02750). kvmix: 2.38 bits on the mean (arXiv 2506.08018).
KV_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0 + 2 / 128,
    "int4": 0.5 + 2 / 128,
    "kivi-2bit": 0.25 + 4 / 32,
    "kvmix": 2.38 / 8,
}

SIXTEEN_BIT = ("bf16", "fp16")


def scheme(name: str) -> Scheme:
    """The scheme of that name; GGUF mixes read ``gguf:q4_k_m``. Raises KeyError."""
    if name.startswith("gguf:"):
        return Scheme(name, _GGUF_BITS[name[5:].lower()] / 8, "all", risk=_FOUR_BIT)
    return SCHEMES[name]


def known(name: str) -> bool:
    """Whether a weight precision of that name can be sized."""
    if name.startswith("gguf:"):
        return name[5:].lower() in _GGUF_BITS
    return name in SCHEMES
