"""Weights against numbers worked out by hand and laws that hold for every model."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.domain.model import Mla, Moe, ServedModel
from optimizer.sizing.precision import SCHEMES, known, scheme
from optimizer.sizing.weights import allocator_bytes, kv_heads_on_rank, parameters, weights
from sizing_examples import DEEPSEEK_V3, EMBEDDER_8B, GPT_OSS_20B, LLAMA_8B, QWEN3_30B_A3B

GIB = 1 << 30
BARE = replace(LLAMA_8B, max_position_embeddings=None)  # without rotary tables


@st.composite
def models(draw: st.DrawFn) -> ServedModel:
    """Dense, MoE and MLA models whose heads divide over up to eight GPUs."""
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    width = draw(st.integers(4, 64)) * 256
    moe = draw(st.sampled_from([None, Moe(8, 2, 1024), Moe(64, 6, 512, 2, first_dense=1)]))
    mla = draw(st.sampled_from([None, Mla(512, 64, 128, 128), Mla(256, 32, 64, 64, 768)]))
    return ServedModel(
        "any",
        layers=draw(st.integers(2, 90)),
        hidden_size=draw(st.integers(4, 64)) * 128,
        intermediate_size=width,
        attention_heads=heads,
        kv_heads=draw(st.sampled_from([1, 2, 4, 8])),
        head_size=draw(st.sampled_from([64, 128])),
        vocab_size=draw(st.integers(1000, 200_000)),
        tied_embeddings=draw(st.booleans()),
        moe=moe,
        mla=mla,
    )


def test_llama_8b_has_its_published_parameter_count():
    assert parameters(LLAMA_8B).total == 8_030_261_248


def test_qwen3_30b_has_its_published_parameter_count():
    assert parameters(QWEN3_30B_A3B).total == pytest.approx(30.532e9, rel=1e-4)


def test_deepseek_v3_has_its_published_parameter_count():
    assert parameters(DEEPSEEK_V3).total == pytest.approx(671.0e9, rel=2e-3)


def test_sixteen_bit_weights_are_two_bytes_a_parameter():
    assert weights(BARE, scheme("bf16")).total == 2 * 8_030_261_248


def test_rotary_tables_are_as_long_as_the_trained_context():
    longer = weights(LLAMA_8B, scheme("bf16")).total - weights(BARE, scheme("bf16")).total
    assert longer == 131072 * 128 * 2


def test_tensors_take_whole_pages_of_the_allocator():
    """Qwen2.5 7B: q, k, v of 31.5 MiB take 32; gate and up of 259 MiB take 260; down 130."""
    qwen = replace(
        BARE, layers=28, hidden_size=3584, intermediate_size=18944, attention_heads=28, kv_heads=4
    )
    assert allocator_bytes(qwen, 1, 2.0) == 28 * 2 * (1 << 20)
    assert allocator_bytes(BARE, 1, 2.0) == 0


def test_fp8_leaves_embedding_head_and_norms_in_sixteen_bit():
    found = weights(BARE, scheme("fp8"))
    assert found.linear == 6_979_321_856
    assert found.embedding == found.head == 2 * 128256 * 4096
    assert found.other == 2 * 65 * 4096


def test_mxfp4_packs_experts_only_and_pads_them():
    found = weights(GPT_OSS_20B, scheme("mxfp4"))
    assert found.experts == 24 * 32 * 3 * 2880 * 3072 * (0.5 + 1 / 32)
    assert found.total / GIB == pytest.approx(13.47, rel=0.005)  # vLLM log of gpt-oss-20b, H100


def test_an_embedding_model_loads_no_head():
    with_head = replace(EMBEDDER_8B, task="generate")
    missing = parameters(with_head).total - parameters(EMBEDDER_8B).total
    assert missing == 151936 * 4096


def test_the_vocabulary_is_padded_to_64():
    odd = replace(LLAMA_8B, vocab_size=128_200)
    assert parameters(odd).embedding == 128_256 * 4096


@pytest.mark.parametrize(("tp", "heads"), [(1, 8), (4, 2), (8, 1), (16, 1)])
def test_kv_heads_are_copied_beyond_one_per_gpu(tp: int, heads: int):
    assert kv_heads_on_rank(8, tp) == heads


@pytest.mark.parametrize("name", ["gguf:q4_k_m", "gguf:Q8_0", "nvfp4"])
def test_known_precisions(name: str):
    assert known(name)
    assert scheme(name).linear_bytes > 0


@pytest.mark.parametrize("name", ["gguf:q4_k_xxl", "fp5", "FP8"])
def test_unknown_precisions(name: str):
    assert not known(name)


@given(models(), st.sampled_from(sorted(SCHEMES)))
def test_tensor_parallelism_never_raises_linear_weights(model: ServedModel, precision: str):
    totals = [weights(model, scheme(precision), tp) for tp in (1, 2, 4, 8)]
    for fewer, more in pairwise(totals):
        assert more.linear <= fewer.linear
        assert more.experts <= fewer.experts
        assert more.total <= fewer.total


@given(models(), st.integers(1, 8))
def test_weights_grow_with_the_model(model: ServedModel, more: int):
    bf16 = scheme("bf16")
    base = weights(model, bf16).total
    assert weights(replace(model, layers=model.layers + more), bf16).total > base
    assert weights(replace(model, hidden_size=model.hidden_size + 128), bf16).total > base
    assert weights(replace(model, vocab_size=model.vocab_size + 64), bf16).total > base


@given(models())
def test_weights_grow_with_bits(model: ServedModel):
    order = ("int2", "int4", "nvfp4", "fp8", "bf16", "fp32")
    sizes = [weights(model, scheme(name)).total for name in order]
    assert sizes == sorted(sizes)


@given(models(), st.sampled_from([1, 2, 4]))
def test_a_pipeline_stage_holds_at_most_the_whole(model: ServedModel, pp: int):
    bf16 = scheme("bf16")
    stage, whole = weights(model, bf16, 1, pp).total, weights(model, bf16).total
    assert stage <= whole
    assert stage * pp >= (whole - weights(model, bf16).embedding) * 0.99


def test_symmetric_checkpoints_have_no_zero_points():
    """cpatonn's Qwen3 30B weighs 15.61 GiB in vLLM's log, 0.64 % less than with zero points."""
    assert scheme("int4").linear_bytes == 0.5 + 2.5 / 128
    assert scheme("int4", None, True).linear_bytes == 0.5 + 2 / 128
    assert scheme("int4", 32, True).linear_bytes == 0.5 + 2 / 32
    assert scheme("fp8", 128, True) == scheme("fp8")
