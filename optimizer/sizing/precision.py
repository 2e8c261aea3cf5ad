"""Number formats: what a weight and a KV element take, and what stays in 16 bit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scheme:
    """A weight precision. ``scope`` says which tensors it packs; the rest takes ``other_bytes``.

    ``linear_bytes`` per parameter, ``scale_bytes`` of them in tensors of scales and zero points.
    """

    name: str
    linear_bytes: float
    scope: str = "linear"  # linear | experts (of MoE models) | all (embeddings too)
    other_bytes: float = 2.0
    pad_to: int = 1  # MLP widths are padded to a multiple
    group: int = 1  # widths must divide into groups
    scale_bytes: float = 0.0
    risk: str | None = None

    @property
    def packed_bytes(self) -> float:
        """Bytes per parameter of the packed weights alone."""
        return self.linear_bytes - self.scale_bytes


def _grouped(
    name: str, bits: int, group: int, risk: str | None = None, *, symmetric: bool = False
) -> Scheme:
    """Integers with a 16-bit scale per group, and a zero point of their own width (GPTQ, AWQ).

    Symmetric compressed-tensors have no zero points.
    """
    scales = (2 + (0 if symmetric else bits / 8)) / group
    return Scheme(name, bits / 8 + scales, group=group, scale_bytes=scales, risk=risk)


# Bytes per parameter, scales and zero points included. fp8 and int8: per-channel scales are
# negligible. nvfp4: an 8-bit scale per 16; mxfp4: an 8-bit scale per 32 (OCP MX specification).
# bnb-nf4: 4 bits and double-quantised scales, 0.53 on published logs.
_FOUR_BIT = "4-bit weights lose a little quality; check it on your own prompts"
_TWO_BIT = "2-bit weights damage most models visibly"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32", 4.0, "all", 4.0),
        Scheme("fp16", 2.0),
        Scheme("bf16", 2.0),
        Scheme("fp8", 1.0),
        Scheme("int8", 1.0),
        _grouped("w8a16", 8, 128),
        _grouped("int4", 4, 128, _FOUR_BIT),
        _grouped("w4a8", 4, 128, _FOUR_BIT),
        Scheme("bnb-nf4", 0.53, scale_bytes=0.03, risk=_FOUR_BIT),
        Scheme("nvfp4", 0.5 + 1 / 16, scale_bytes=1 / 16, risk=_FOUR_BIT),
        Scheme("mxfp4", 0.5 + 1 / 32, "experts", pad_to=256, scale_bytes=1 / 32, risk=_FOUR_BIT),
        _grouped("int2", 2, 64, _TWO_BIT),
    )
}

# llama.cpp's bits per weight of a whole model in each mix (its quantize tool prints them).
_GGUF_BITS = {
    "iq1_s": 1.78, "iq2_xxs": 2.38, "iq2_xs": 2.59, "iq2_s": 2.74, "iq2_m": 2.94, "q2_k": 3.35,
    "q2_k_s": 3.18, "iq3_xxs": 3.27, "iq3_s": 3.66, "iq3_m": 3.76, "q3_k_s": 3.64, "q3_k_m": 4.0,
    "q3_k_l": 4.3, "iq4_xs": 4.46, "iq4_nl": 4.68, "q4_0": 4.66, "q4_1": 5.12, "q4_k_s": 4.67,
    "q4_k_m": 4.89, "q5_0": 5.59, "q5_1": 6.05, "q5_k_s": 5.57, "q5_k_m": 5.7, "q6_k": 6.56,
    "q8_0": 8.5, "f16": 16.0, "bf16": 16.0,
}  # fmt: skip
_THREE_BITS = 3.5  # mixes below are as risky as 2-bit weights


@dataclass(frozen=True, slots=True)
class KvScheme:
    """A KV precision. ``recent_tokens`` of each request stay in 16 bit beside the packed ones."""

    name: str
    element_bytes: float
    recent_tokens: int = 0
    risk: str | None = None


def _mixed_bits(shares: tuple[tuple[float, int], ...]) -> float:
    """Mean bits of layers that are packed to different widths; shares add up to one."""
    return sum(part * bits for part, bits in shares)


_SCALES_PER_32 = 4 / 32  # a 16-bit scale and zero per group of 32
# KVmix (arXiv 2506.08018): a fifth of the layers keeps keys in 3 and values in 4 bits, the rest 2.
_KVMIX_BITS = (_mixed_bits(((0.2, 3), (0.8, 2))) + _mixed_bits(((0.2, 4), (0.8, 2)))) / 2
_LOW_KV = "a KV cache below 8 bits loses quality on long contexts; check it on your own prompts"
# int8, int4: a 16-bit scale per head of 128. kivi-2bit: 2 bits, scale and zero per group of 32, the
# last 128 tokens in 16 bit (arXiv 2402.02750). recent-16bit: 4 bits but for the last 128 tokens.
KV_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        KvScheme("bf16", 2.0),
        KvScheme("fp16", 2.0),
        KvScheme("fp8", 1.0),
        KvScheme("int8", 1.0 + 2 / 128),
        KvScheme("int4", 0.5 + 2 / 128, risk=_LOW_KV),
        KvScheme("recent-16bit", 0.5 + 2 / 128, 128, _LOW_KV),
        KvScheme("kivi-2bit", 2 / 8 + _SCALES_PER_32, 128, _LOW_KV),
        KvScheme("kvmix", _KVMIX_BITS / 8 + _SCALES_PER_32, 128, _LOW_KV),
    )
}
KV_BYTES = {name: kv.element_bytes for name, kv in KV_SCHEMES.items()}

SIXTEEN_BIT = ("bf16", "fp16")


def scheme(name: str, group: int | None = None, symmetric: bool = False) -> Scheme:
    """The scheme of that name; GGUF mixes read ``gguf:q4_k_m``. Raises KeyError.

    ``group``: the checkpoint's own group size, where it is not the usual one; ``symmetric``: it
    has no zero points.
    """
    if name.startswith("gguf:"):
        bits = _GGUF_BITS[name[5:].lower()]
        return Scheme(name, bits / 8, "all", risk=_TWO_BIT if bits < _THREE_BITS else _FOUR_BIT)
    found = SCHEMES[name]
    if found.group == 1 or (not symmetric and group in (None, found.group)):
        return found
    bits = round(found.packed_bytes * 8)
    return _grouped(name, bits, group or found.group, found.risk, symmetric=symmetric)


def kv_scheme(name: str) -> KvScheme:
    """The KV precision of that name. Raises KeyError."""
    return KV_SCHEMES[name]


# As engines spell KV precisions; what they decide by themselves is None.
_KV_SPELLINGS = {
    "auto": None,
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "fp8_inc": "fp8",
    "fp8_ds_mla": "fp8",
}


def kv_named(spelling: str | None) -> str | None:
    """A KV precision by an engine's spelling; None: the engine's own. Others are left as said."""
    return _KV_SPELLINGS.get(spelling, spelling) if spelling is not None else None


def known(name: str) -> bool:
    """Whether a weight precision of that name can be sized."""
    if name.startswith("gguf:"):
        return name[5:].lower() in _GGUF_BITS
    return name in SCHEMES
