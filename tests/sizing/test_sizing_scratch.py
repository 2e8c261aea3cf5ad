"""Scratch by attention kernel, context lengths, KV schemes and recommended flags."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.domain.workload import Extras
from optimizer.sizing.context import context_fault, context_notes
from optimizer.sizing.kvcache import kv_cache_bytes_per_token, kv_layout
from optimizer.sizing.memory import Settings, memory_budget
from optimizer.sizing.precision import KV_SCHEMES, kv_named, kv_scheme, scheme
from optimizer.sizing.recommend import recommended
from optimizer.sizing.scratch import attention_scratch_bytes
from optimizer.sizing.weights import stages, weights
from sizing_examples import DEEPSEEK_V3, H100, LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, vllm

KERNELS = ("standard", "flash-1", "flash-2", "flash-3", "paged", "sparse", "linear")


def scratch(kernel: str, tokens: int = 2048, context: int = 2048, tp: int = 1) -> float:
    return attention_scratch_bytes(kernel, LLAMA_8B, tokens, context, 16, tp)


def test_standard_attention_is_quadratic_and_flash_is_linear():
    assert scratch("standard", 4096, 4096) == 4 * scratch("standard")
    assert scratch("flash-3", 4096, 4096) == 2 * scratch("flash-3")
    assert scratch("flash-3", 2048, 131_072) == scratch("flash-3")
    assert scratch("standard") == 32 * 2048 * 2048 * 6


def test_the_paged_kernel_keeps_partial_results_of_512_tokens():
    more = scratch("paged", 1, 8192) - scratch("paged", 1, 512)
    assert more == 32 * 16 * 15 * (128 + 2) * 4


@given(
    st.sampled_from(KERNELS),
    st.integers(1, 8192),
    st.integers(1, 8192),
    st.sampled_from([1, 2, 4, 8]),
)
def test_scratch_grows_with_the_step_and_never_with_tp(kernel, tokens, more, tp):
    assert scratch(kernel, tokens + more, 4096) >= scratch(kernel, tokens, 4096)
    assert scratch(kernel, tokens, 4096, tp) <= scratch(kernel, tokens, 4096)


def test_a_quadratic_kernel_shows_in_the_budget():
    long = Settings("bf16", max_model_len=32_768, max_num_batched_tokens=8192)
    flash = memory_budget(LLAMA_8B, vllm(), H100, replace(long, attention="flash-3"))
    standard = memory_budget(LLAMA_8B, vllm(), H100, replace(long, attention="standard"))
    assert standard.activation_mib > flash.activation_mib + 40_000


@pytest.mark.parametrize(
    ("layers", "pp", "sizes"),
    [(32, 1, [32]), (61, 2, [31, 30]), (62, 4, [15, 16, 16, 15]), (63, 4, [16, 16, 16, 15])],
)
def test_stages_divide_layers_as_vllm_does(layers, pp, sizes):
    found = list(stages(layers, pp))
    assert [stop - start for start, stop in found] == sizes
    assert found[0][0] == 0
    assert found[-1][1] == layers


def test_the_dense_layers_of_deepseek_lie_on_the_first_stage():
    """The second stage of two holds more experts, although it has a layer less."""
    whole, stage = (weights(DEEPSEEK_V3, scheme("fp8"), 8, pp) for pp in (1, 2))
    assert stage.experts == pytest.approx(whole.experts * 30 / 58)


def test_tied_embeddings_are_copied_to_the_last_stage():
    tied = replace(LLAMA_8B, tied_embeddings=True)
    stage = weights(tied, scheme("bf16"), 1, 2)
    assert stage.embedding + stage.head == weights(tied, scheme("bf16")).embedding


@pytest.mark.parametrize("name", sorted(KV_SCHEMES))
def test_a_request_keeps_its_recent_tokens_in_sixteen_bit(name):
    kv = kv_scheme(name)
    layout = kv_layout(LLAMA_8B, kv.element_bytes, recent_tokens=kv.recent_tokens)
    elements = kv_cache_bytes_per_token(LLAMA_8B) / 2
    beside = layout.bytes_per_request(16_384, 2048) - 16_384 * elements * kv.element_bytes
    assert beside == pytest.approx(
        kv.recent_tokens * elements * (2 - kv.element_bytes), abs=layout.block_bytes
    )


def test_fewer_bits_take_less_cache():
    sizes = [
        kv_scheme(n).element_bytes for n in ("kivi-2bit", "kvmix", "int4", "fp8", "int8", "bf16")
    ]
    assert sizes == sorted(sizes)
    assert kv_scheme("kvmix").element_bytes * 8 == pytest.approx(2.3 + 1)


@pytest.mark.parametrize(
    ("said", "name"), [("auto", None), ("fp8_e4m3", "fp8"), ("bfloat16", "bf16"), ("int8", "int8")]
)
def test_engines_spellings_of_kv_precisions(said, name):
    assert kv_named(said) == name


def test_contexts_beyond_training_need_scaling():
    assert context_fault(LLAMA_8B, 131_072) is None
    assert "needs a RoPE scaling method" in context_fault(LLAMA_8B, 131_073)
    scaled = replace(LLAMA_8B, rope_scaling="yarn", original_positions=32_768)
    assert context_notes(scaled, 32_768, "bf16") == ()
    assert "yarn scaling" in context_notes(scaled, 32_769, "bf16")[0]
    assert "rounding" in context_notes(scaled, 32_769, "fp8")[1]
    assert "loses quality" in context_notes(LLAMA_8B, 100, "int4")[0]


def test_a_draft_model_takes_weights_and_cache():
    settings = Settings("bf16", tp=4)
    alone = memory_budget(LLAMA_70B, vllm(), H100, settings)
    drafted = memory_budget(LLAMA_70B, vllm(), H100, settings, extras=Extras(draft_model=LLAMA_8B))
    assert drafted.weights_mib - alone.weights_mib > 15_000 // 4
    token = alone.layout.block_bytes / 16
    assert drafted.layout.block_bytes / 16 == pytest.approx(token * (80 + 32) / 80)


def test_an_eagle_head_keeps_kv_like_one_more_layer():
    """Llama 3.1 8B with EAGLE: 33 x 4096 bytes a token (vllm issue 19996)."""
    drafted = memory_budget(LLAMA_8B, vllm(), H100, Settings("bf16", draft_layers=1))
    assert drafted.layout.block_bytes == 33 * 4096 * 16


@pytest.mark.parametrize("model", [LLAMA_8B, QWEN3_30B_A3B, LLAMA_70B], ids=lambda m: m.name)
def test_recommended_flags_start_with_a_margin(model):
    settings = Settings("bf16", max_model_len=131_072, tp=4)

    def budget_of(asked: Settings):
        return memory_budget(model, vllm(), H100, asked, fill=True)

    found = recommended(vllm(), settings, budget_of, 1280)
    assert found.budget.surely_fits
    assert found.flags[0] == "--gpu-memory-utilization"
    assert found.flags[2:4] == ("--max-model-len", str(found.budget.max_model_len))
    assert found.budget.max_model_len >= 1280


def test_nothing_is_recommended_where_nothing_fits():
    def budget_of(asked: Settings):
        return memory_budget(LLAMA_70B, vllm(), H100, asked, fill=True)

    assert recommended(vllm(), Settings("bf16", max_model_len=8192), budget_of, 100) is None


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_the_cache_of_latent_attention_does_not_shrink_with_tp(tp, pp):
    one, many = kv_layout(DEEPSEEK_V3, 2.0, 1, pp), kv_layout(DEEPSEEK_V3, 2.0, tp, pp)
    assert one.block_bytes == many.block_bytes


def test_a_head_weighs_a_layer_and_a_projection():
    plain, headed = (
        memory_budget(LLAMA_8B, vllm(), H100, Settings("bf16", draft_layers=n)) for n in (0, 1)
    )
    layer = 4096 * (4096 * 2 + 1024 * 2) + 3 * 4096 * 14336 + 2 * 4096**2
    assert headed.weights_mib - plain.weights_mib == pytest.approx(2 * layer / 2**20, abs=1)


def test_whole_experts_round_up_on_the_fullest_rank():
    bf16 = scheme("bf16")
    odd = replace(QWEN3_30B_A3B, moe=replace(QWEN3_30B_A3B.moe, experts=130))
    parts, whole = weights(odd, bf16, 4), weights(odd, bf16, 4, 1, True)
    assert whole.experts == pytest.approx(parts.experts * 33 / 32.5)
    even = weights(QWEN3_30B_A3B, bf16, 4)
    assert weights(QWEN3_30B_A3B, bf16, 4, 1, True) == even


def test_prefixes_keep_blocks_from_running_requests():
    settings = Settings("bf16", max_model_len=8192)
    plain = memory_budget(LLAMA_8B, vllm(), H100, settings)
    kept = memory_budget(LLAMA_8B, vllm(), H100, settings, extras=Extras(prefix_cache_tokens=1600))
    assert plain.free_blocks - kept.free_blocks == 100
    assert kept.blocks == plain.blocks
    most = Extras(prefix_cache_tokens=plain.kv_cache_tokens)
    assert not memory_budget(LLAMA_8B, vllm(), H100, settings, extras=most).fits
