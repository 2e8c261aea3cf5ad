"""Whole budgets: identities, and published engine starts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.documents import catalogue
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.workload import Extras
from optimizer.sizing.memory import (
    Settings,
    best_fraction,
    cuda_graph_mib,
    defaults_for,
    longest_context,
    memory_budget,
    non_torch_mib,
)
from sizing_examples import (
    A100,
    DEEPSEEK_V3,
    H100,
    LLAMA_8B,
    LLAMA_70B,
    QWEN3_30B_A3B,
    T4,
    vllm,
)

LOGGED = Settings("bf16", max_model_len=8192, max_num_seqs=1024, max_num_batched_tokens=8192)


def budget(model: ServedModel = LLAMA_8B, settings: Settings = LOGGED, gpu: Gpu = H100, **more):
    return memory_budget(model, vllm(), gpu, settings, **more)


@pytest.mark.parametrize("version", ["0.17.1", "0.19.0", "0.21.0", "0.28.0"])
def test_the_budget_is_the_sum_of_its_parts(version: str):
    b = budget(version=version)
    graphs = b.cuda_graphs_mib if b.graphs_inside else 0
    assert (
        b.budget_mib == b.weights_mib + b.activation_mib + b.runtime_mib + b.kv_cache_mib + graphs
    )
    assert b.kv_cache_tokens == int(b.max_concurrency * b.max_model_len)
    assert b.graphs_inside is (version >= "0.21")


@pytest.mark.parametrize(
    ("model", "precision", "tp", "fraction", "kv_gib"),
    [
        (QWEN3_30B_A3B, "bf16", 1, 0.95, 15.41),
        (LLAMA_70B, "fp8", 2, 0.95, 37.28),
        (LLAMA_70B, "fp8", 4, 0.95, 54.09),
        (LLAMA_70B, "int8", 2, 0.95, 37.28),
    ],
)
def test_kv_of_published_starts(model, precision, tp, fraction, kv_gib):
    """vLLM 0.19.0 on H100, llm-d-planner pull request 205."""
    settings = replace(LOGGED, precision=precision, tp=tp, fraction=fraction)
    found = budget(model, settings, version="0.19.0").kv_cache_mib / 1024
    assert found == pytest.approx(kv_gib, rel=0.02)


def test_graphs_come_on_top_of_old_budgets():
    told = replace(LOGGED, fraction=0.9)
    old, new = (budget(settings=told, version=v) for v in ("0.19.0", "0.21.0"))
    assert old.kv_cache_mib - new.kv_cache_mib == new.cuda_graphs_mib
    assert old.outside_mib - new.outside_mib == new.cuda_graphs_mib


def test_the_sampler_of_old_versions_takes_more():
    assert budget(version="0.16.0").activation_mib > 2 * budget(version="0.17.0").activation_mib


def test_eager_mode_captures_nothing():
    rule = vllm().range_of("0.21.0").memory
    assert cuda_graph_mib(LLAMA_8B, rule, 256, eager=True) == 0
    assert cuda_graph_mib(LLAMA_8B, rule, 8, False) < cuda_graph_mib(LLAMA_8B, rule, 256, False)


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"), [(H100, 1024, 8192), (A100, 256, 2048), (T4, 256, 2048)]
)
def test_defaults_follow_the_device(gpu: Gpu, seqs: int, tokens: int):
    row = defaults_for(vllm(), gpu, gpu.usable_mib)
    assert (row.max_num_seqs, row.max_num_batched_tokens) == (seqs, tokens)


def test_a_slice_has_the_defaults_of_its_own_size():
    assert defaults_for(vllm(), H100, 9984).max_num_seqs == 256


@pytest.mark.parametrize(
    ("total", "outside", "fraction"), [(81090, 522, 0.95), (9984, 522, 0.896), (600, 522, 0.0)]
)
def test_the_safe_fraction_leaves_room(total: int, outside: int, fraction: float):
    assert best_fraction(total, outside) == fraction


def test_too_large_a_model_says_what_it_lacks():
    b = budget(LLAMA_70B)
    assert not b.fits
    assert b.kv_cache_mib < 0
    assert b.blocks == 0
    assert b.least_mib > H100.usable_mib


def test_a_request_of_full_length_must_fit():
    long = replace(LOGGED, max_model_len=131072)
    b = budget(LLAMA_8B, long, H100, total_mib=24 * 1024)
    assert not b.fits
    assert 0 < longest_context(b) < 131072
    shorter = replace(long, max_model_len=longest_context(b))
    assert budget(LLAMA_8B, shorter, H100, total_mib=24 * 1024).fits


def test_extras_take_their_share():
    lora = Extras(lora_count=4, lora_rank=16)
    base, more = budget(), budget(extras=lora)
    assert more.weights_mib > base.weights_mib
    other = budget(extras=Extras(other_mib=1000))
    assert other.outside_mib == base.outside_mib + 1000


SIZES = st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, DEEPSEEK_V3])


@given(SIZES, st.integers(1, 512), st.integers(1, 512))
def test_a_larger_batch_leaves_less_cache(model: ServedModel, seqs: int, more: int):
    few = budget(model, replace(LOGGED, max_num_seqs=seqs))
    many = budget(model, replace(LOGGED, max_num_seqs=seqs + more))
    assert many.kv_cache_mib <= few.kv_cache_mib


@given(SIZES, st.sampled_from(["fp8", "int4", "bf16"]), st.floats(0.3, 0.94))
def test_more_budget_holds_more(model: ServedModel, precision: str, fraction: float):
    small = budget(model, replace(LOGGED, precision=precision, fraction=fraction))
    large = budget(model, replace(LOGGED, precision=precision, fraction=fraction + 0.05))
    assert large.kv_cache_tokens >= small.kv_cache_tokens


@given(SIZES, st.integers(1024, 60_000), st.integers(1, 9000))
def test_a_longer_context_lowers_concurrency(model: ServedModel, length: int, more: int):
    short = budget(model, replace(LOGGED, max_model_len=length, tp=8))
    long = budget(model, replace(LOGGED, max_model_len=length + more, tp=8))
    assert long.max_concurrency <= short.max_concurrency
    assert long.least_mib >= short.least_mib


def test_communicators_take_less_over_pcie():
    """Two RTX 3090, vLLM 0.20.2, Qwen3.6 27B: at most 0.77 GiB are left for what is no tensor."""
    rule = vllm().range_of("0.20.2").memory
    assert non_torch_mib(rule, 2, nvlink=True) == 2140
    over_pcie = [non_torch_mib(rule, tp, nvlink=False) for tp in (1, 2, 8)]
    assert over_pcie == [256, 256 + 512, 256 + 512]
    assert non_torch_mib(rule, 1, nvlink=True) == 256


def test_blocks_of_a_hybrid_hold_a_whole_state():
    """Qwen3.8 27B with FP8 KV: vLLM sets blocks of 1,568 tokens, 0.13 % over the state's page."""
    qwen = catalogue().model("qwen3.8-27b")[0]
    b = budget(qwen, replace(LOGGED, precision="nvfp4", kv_precision="fp8"))
    assert {g.block_tokens for g in b.layout.groups} == {1568}
    state = next(k.state_bytes for k in b.layout.kinds if k.span == "state")
    assert 1568 * 2048 / state == pytest.approx(1.0013, abs=1e-4)
