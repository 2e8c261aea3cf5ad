"""What engines run where, as their documentation states it, against the cards.

Each row: engine, version, product, what is asked, and the verdict, with where it is written.
"""

import pytest

from optimizer.documents import catalogue
from optimizer.domain.engine import EngineCard, Support
from optimizer.sizing.compatibility import attention_support, kv_support, weight_support

CATALOGUE = catalogue()
CARDS = {card.name: card for card in CATALOGUE.engine_cards()}

VLLM_Q = "vLLM docs, Quantization: supported hardware"
VLLM_FP8 = "vLLM docs, FP8 W8A8: compute capability above 8.9; weight-only by Marlin on Ampere"
VLLM_KV = "vLLM docs, Quantized KV cache"
VLLM_A = "vLLM docs, Attention backends"
SGLANG_Q = "SGLang docs, Quantization"
SGLANG_A = "SGLang docs, Attention backend"
TRT = "TensorRT-LLM docs, Support matrix and Numerical precision"
TGI = "Text Generation Inference docs, Quantization"
FA3 = "FlashAttention README: version 3 is for Hopper"
TURING = "NVIDIA, CUDA Programming Guide: bf16 needs compute capability 8.0"

W, KV, ATT = "weights", "kv", "attention"
FACTS = [
    ("vllm", "0.19.0", "h100-80gb-sxm", W, "fp8", "native", VLLM_FP8),
    ("vllm", "0.19.0", "l40s", W, "fp8", "native", VLLM_FP8),
    ("vllm", "0.19.0", "l4", W, "fp8", "native", VLLM_FP8),
    ("vllm", "0.19.0", "b200-180gb-sxm", W, "fp8", "native", VLLM_FP8),
    ("vllm", "0.19.0", "a100-80gb-sxm", W, "fp8", "fallback", VLLM_FP8),
    ("vllm", "0.19.0", "a30", W, "fp8", "fallback", VLLM_FP8),
    ("vllm", "0.10.0", "t4", W, "fp8", "refused", VLLM_Q),
    ("vllm", "0.19.0", "t4", W, "bf16", "refused", TURING),
    ("vllm", "0.19.0", "t4", W, "fp16", "native", TURING),
    ("vllm", "0.19.0", "a100-80gb-sxm", W, "int8", "native", VLLM_Q),
    ("vllm", "0.19.0", "t4", W, "int8", "native", VLLM_Q),
    ("vllm", "0.19.0", "b200-180gb-sxm", W, "int8", "refused", VLLM_Q),
    ("vllm", "0.19.0", "a10", W, "int4", "native", VLLM_Q),
    ("vllm", "0.19.0", "h100-80gb-sxm", W, "w4a8", "native", VLLM_Q),
    ("vllm", "0.19.0", "a100-80gb-sxm", W, "w4a8", "refused", VLLM_Q),
    ("vllm", "0.19.0", "b200-180gb-sxm", W, "nvfp4", "native", VLLM_Q),
    ("vllm", "0.19.0", "h200-141gb-sxm", W, "nvfp4", "fallback", VLLM_Q),
    ("vllm", "0.19.0", "h200-141gb-sxm", W, "mxfp4", "fallback", VLLM_Q),
    ("vllm", "0.19.0", "h100-80gb-sxm", W, "gguf:q4_k_m", "fallback", VLLM_Q),
    ("vllm", "0.19.0", "h100-80gb-sxm", W, "int2", "refused", VLLM_Q),
    ("vllm", "0.19.0", "h100-80gb-sxm", KV, "fp8", "native", VLLM_KV),
    ("vllm", "0.19.0", "a100-80gb-sxm", KV, "fp8", "fallback", VLLM_KV),
    ("vllm", "0.19.0", "h100-80gb-sxm", KV, "int8", "refused", VLLM_KV),
    ("vllm", "0.19.0", "h100-80gb-sxm", KV, "kivi-2bit", "refused", VLLM_KV),
    ("vllm", "0.19.0", "h100-80gb-sxm", ATT, "flash-3", "native", FA3),
    ("vllm", "0.19.0", "a100-80gb-sxm", ATT, "flash-3", "refused", FA3),
    ("vllm", "0.19.0", "b200-180gb-sxm", ATT, "flash-3", "refused", FA3),
    ("vllm", "0.19.0", "t4", ATT, "flash-2", "refused", VLLM_A),
    ("sglang", "0.5.9", "h100-80gb-sxm", W, "fp8", "native", SGLANG_Q),
    ("sglang", "0.5.9", "a100-80gb-sxm", W, "fp8", "fallback", SGLANG_Q),
    ("sglang", "0.5.9", "b200-180gb-sxm", W, "nvfp4", "native", SGLANG_Q),
    ("sglang", "0.5.9", "l40s", ATT, "flash-3", "refused", SGLANG_A),
    ("sglang", "0.5.9", "h100-80gb-sxm", KV, "int8", "refused", SGLANG_Q),
    ("tensorrt-llm", "1.0.0", "h100-80gb-sxm", W, "fp8", "native", TRT),
    ("tensorrt-llm", "1.0.0", "a100-80gb-sxm", W, "fp8", "refused", TRT),
    ("tensorrt-llm", "1.0.0", "a100-80gb-sxm", KV, "fp8", "refused", TRT),
    ("tensorrt-llm", "1.0.0", "a100-80gb-sxm", KV, "int8", "native", TRT),
    ("tensorrt-llm", "1.0.0", "l40s", W, "w4a8", "native", TRT),
    ("tensorrt-llm", "1.0.0", "h100-80gb-sxm", W, "nvfp4", "refused", TRT),
    ("tensorrt-llm", "0.20.0", "h100-80gb-sxm", W, "mxfp4", "refused", TRT),
    ("tensorrt-llm", "1.0.0", "t4", W, "fp16", "refused", TRT),
    ("tensorrt-llm", "1.0.0", "h100-80gb-sxm", W, "gguf:q4_k_m", "refused", TRT),
    ("tgi", "3.3.5", "h100-80gb-sxm", W, "fp8", "native", TGI),
    ("tgi", "3.3.5", "a100-80gb-sxm", W, "fp8", "fallback", TGI),
    ("tgi", "3.3.5", "a100-80gb-sxm", KV, "fp8", "refused", TGI),
    ("tgi", "3.3.5", "t4", W, "bf16", "refused", TURING),
]


def asked(card: EngineCard, version: str, product: str, what: str, name: str) -> Support:
    gpu = CATALOGUE.gpu(product)
    assert gpu is not None
    if what == W:
        return weight_support(card, version, gpu, name)
    if what == KV:
        return kv_support(card, version, gpu, name)
    return attention_support(card, version, gpu, name, "bf16")


@pytest.mark.parametrize(
    ("engine", "version", "product", "what", "name", "verdict", "source"),
    FACTS,
    ids=[f"{e} {v} {name} {what} on {gpu}" for e, v, gpu, what, name, _, _ in FACTS],
)
def test_fact(
    engine: str, version: str, product: str, what: str, name: str, verdict: str, source: str
):
    row = asked(CARDS[engine], version, product, what, name)
    assert row.verdict == verdict, f"{row.reason}; but: {source}"
    assert row.reason


@pytest.mark.parametrize("engine", sorted(CARDS))
def test_every_row_names_a_known_source(engine: str):
    card = CARDS[engine]
    sources = dict(card.sources)
    for row in (*card.precisions, *card.kv, *card.attention):
        assert row.source in sources, row


@pytest.mark.parametrize("engine", sorted(CARDS))
def test_a_fallback_states_its_cost(engine: str):
    """By a slower kind of products, or a factor on them; of a KV precision, by its reason."""
    card = CARDS[engine]
    for row in card.precisions:
        if row.verdict == "fallback":
            assert row.gemm in ("bf16", "fp32") or row.compute_factor < 1, row
