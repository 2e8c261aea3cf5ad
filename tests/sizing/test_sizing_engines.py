"""Each engine's own memory rule, against its source and published starts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.documents import catalogue
from optimizer.domain.config import Shape
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Use
from optimizer.sizing.kvcache import kv_layout
from optimizer.sizing.memory import (
    Settings,
    default_fraction,
    defaults_for,
    memory_budget,
    pool_rule,
)
from optimizer.sizing.replica import Way, share_fault
from optimizer.sizing.rooms import share_room
from sizing_examples import DEEPSEEK_V3, H100, LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, T4, card

GIB = 1 << 30
ENGINES = ("sglang", "tensorrt-llm", "tgi", "vllm")
PLAIN = Settings("bf16", max_model_len=8192)


def budget(engine, model=LLAMA_8B, settings=PLAIN, gpu=H100, **more):
    return memory_budget(model, card(engine), gpu, settings, **more)


@given(
    st.sampled_from(ENGINES),
    st.sampled_from([LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, DEEPSEEK_V3]),
    st.sampled_from(["bf16", "fp8", "int4"]),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
)
def test_the_parts_add_up_whatever_the_engine(engine, model, precision, tp, fill):
    b = budget(engine, model, replace(PLAIN, precision=precision, tp=tp), fill=fill)
    inside = b.cuda_graphs_mib if b.graphs_inside else 0
    parts = b.weights_mib + b.activation_mib + b.runtime_mib + b.kv_cache_mib + inside
    assert b.budget_mib == parts
    if fill and b.kv_cache_mib > 0:
        assert b.used_mib <= b.total_mib - 512


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slice_is_budgeted_by_its_own_total(engine):
    b = budget(engine, settings=replace(PLAIN, precision="fp8"), total_mib=20_096)
    assert b.total_mib == 20_096
    assert b.used_mib <= 20_096


@pytest.mark.parametrize(
    ("product", "tp", "fraction"),
    [("h100-80gb-sxm", 1, 0.835), ("h100-80gb-sxm", 8, 0.818), ("l4", 1, 0.837), ("t4", 1, 0.757)],
)
def test_sglang_leaves_its_reserve(product, tp, fraction):
    """(mem - 512 - 1.5 x chunk - 2 x largest graph - 128 x tp) / mem, at least 10 GiB over 60."""
    gpu, sglang = catalogue().gpu(product), card("sglang")
    rule = sglang.range_of("0.5.9").memory
    row = defaults_for(sglang, gpu, gpu.usable_mib)
    settings = replace(PLAIN, tp=tp)
    tokens = row.max_num_batched_tokens
    assert default_fraction(rule, row, gpu, gpu.usable_mib, settings, tokens) == fraction


def test_sglang_gives_weights_and_cache_a_part_of_what_is_free():
    b = budget("sglang", settings=replace(PLAIN, fraction=0.8))
    assert b.weights_mib + b.kv_cache_mib == int((H100.usable_mib - 522) * 0.8)
    assert b.layout.block_bytes == 131_072  # one token


@pytest.mark.parametrize(
    ("model", "ratio", "kv_gib", "full"),
    [
        ("gemma-4-26b-a4b", 0.1, 10.12, 530_280),
        ("gemma-4-26b-a4b", 0.8, 10.12, 117_840),
        ("gemma-4-31b", 0.1, 9.92, 130_144),
        ("gemma-4-31b", 0.8, 8.32, 24_248),
    ],
)
def test_pools_of_published_sglang_starts(model, ratio, kv_gib, full):
    """Full tokens = KV / (F x full layers + r x S x windowed layers), two RTX 3090."""
    served = catalogue().model(model)[0]
    rule = pool_rule(served, card("sglang").range_of("0.5.10").memory, ratio)
    layout = kv_layout(served, 2.0, 2, rule=rule)
    assert layout.blocks(kv_gib * GIB) == pytest.approx(full, rel=2e-3)


def test_windows_have_a_pool_only_where_that_version_gives_one():
    gemma = catalogue().model("gemma-4-31b")[0]
    sglang = card("sglang")
    assert pool_rule(gemma, sglang.range_of("0.5.10").memory).window_ratio == 0.8
    assert not pool_rule(gemma, sglang.range_of("0.5.9").memory).hybrid


def test_states_take_a_fixed_ratio_beside_the_cache():
    hybrid = catalogue().model("qwen3-next-80b-a3b")[0]
    layout = kv_layout(hybrid, rule=pool_rule(hybrid, card("sglang").range_of("0.5.9").memory))
    cell = 2 * 2 * 256 * 2 * 12  # bytes a token takes in 12 full layers
    assert layout.block_bytes == pytest.approx(cell * 1.9)
    states = 36 * hybrid.linear_state_bytes * 3
    assert layout.blocks_per_request(1, 1) == -(-states // (cell * 0.9))


def test_tensorrt_llm_takes_a_part_of_the_rest():
    """Issue 2268: 0.9 of 21.89 GiB free made 631 blocks of 64 tokens."""
    qwen = catalogue().model("qwen1.5-7b")[0]
    rule = card("tensorrt-llm").range_of("0.13.0").memory
    layout = kv_layout(qwen, rule=pool_rule(qwen, rule))
    assert layout.blocks(0.9 * 21.89 * GIB) == pytest.approx(631, abs=1)
    b = budget("tensorrt-llm")
    rest = b.total_mib - 522 - b.weights_mib - b.activation_mib - b.runtime_mib
    assert b.kv_cache_mib == int(rest * 0.9)


def test_tgi_keeps_its_wiggle_room():
    b = budget("tgi")
    rest = b.total_mib - 522 - b.weights_mib - b.activation_mib - b.runtime_mib
    assert b.kv_cache_mib == int(rest * 1.0 * 0.93)


def test_old_vllm_profiles_a_whole_prompt():
    """vLLM 0.6 on an RTX 3090: a peak of 2.99 GiB at a context of 29,000 (issue 10517)."""
    settings = replace(PLAIN, max_model_len=29_000)
    old = budget("vllm", settings=settings, total_mib=24_145, version="0.6.0")
    assert old.max_num_batched_tokens == 29_000
    assert old.activation_mib / 1024 == pytest.approx(2.99, rel=0.03)
    assert not old.fits
    new = budget("vllm", settings=settings, total_mib=24_145, version="0.9.0")
    assert new.activation_mib < old.activation_mib


@pytest.mark.parametrize(
    ("engine", "version", "refused"),
    [
        ("vllm", "0.21.0", False),
        ("vllm", "0.6.0", True),
        ("sglang", "0.5.9", True),
        ("tgi", "3.3.5", True),
    ],
)
def test_only_engines_that_mind_their_own_memory_share_a_gpu(engine, version, refused):
    room = share_room(H100, H100.fraction(500_000))
    way = Way(engine, version, "bf16")
    assert (share_fault(card(engine), room, way) is not None) is refused


@given(st.lists(st.sampled_from([125_000, 250_000, 375_000, 500_000]), min_size=1, max_size=8))
def test_engines_on_one_gpu_stay_inside_it(shares):
    """sum(fraction x device + what each takes beside) is at most the device."""
    while sum(shares) > 1_000_000:
        shares.pop()
    used = 0
    for ppm in shares:
        share = H100.fraction(ppm)
        b = memory_budget(
            *(LLAMA_8B, card("vllm"), H100, replace(PLAIN, max_num_seqs=8)),
            total_mib=share.memory_mib,
            device_mib=H100.usable_mib,
            fill=True,
        )
        used += b.used_mib
        assert b.used_mib <= share.memory_mib
    assert used <= H100.usable_mib


def test_a_share_names_its_shape():
    room = share_room(T4, T4.fraction(250_000))
    assert room.shape == Shape(Sharing.SHARED, 1, None, T4.fraction(250_000))
    assert isinstance(room.use, Use)
