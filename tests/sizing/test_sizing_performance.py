"""The step model and continuous batching: laws, and a few measured points."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.domain.model import ServedModel
from optimizer.sizing.batching import (
    TPOT_P99_OVER_MEAN,
    TTFT_P99_OVER_MEAN,
    Batching,
    Load,
    continuous,
    percentile_ratio,
    prompts_only,
)
from optimizer.sizing.compatibility import runs
from optimizer.sizing.performance import Device, StepModel, padded, step_model
from sizing_examples import A100, EMBEDDER_8B, H100, LLAMA_8B, LLAMA_70B, QWEN3_30B_A3B, vllm

CARD = vllm()
VERSION = CARD.default_version
CHAT = Load(input_tokens=900, output_tokens=220)


def step(
    model: ServedModel = LLAMA_8B,
    device: Device | None = None,
    precision: str = "bf16",
    tp: int = 1,
    pp: int = 1,
) -> StepModel:
    device = device or Device(H100, 3350, 1.0, 450)
    how = runs(CARD, VERSION, device.gpu, model, precision, "bf16")
    found = step_model(model, CARD, VERSION, device, how, precision, "bf16", tp, pp)
    assert found is not None
    return found


def chat(model: StepModel | None = None, load: Load = CHAT, limit: float = 256) -> Batching:
    return continuous(model or step(), load, limit, 8192, 0.049)


def test_one_sequence_reads_the_weights_once():
    """Batch 1 on an H100: 16 GB of weights at 98 % of 3.35 TB/s, and 32 layers of launches."""
    reading = 2 * (8_030_261_248 - 128256 * 4096) / (3350e9 * 0.98)
    found = chat().at_batch(0.001).tpot_ms / 1e3
    assert reading + 32 * 41e-6 < found < 1.1 * (reading + 32 * 41e-6)


def test_little_holds():
    state = chat().at_batch(64)
    assert state.concurrency == pytest.approx(state.rate * 220 * state.tpot_ms / 1e3)


@given(st.floats(0.01, 0.95))
def test_rate_and_batch_are_inverse(part: float):
    serving = chat()
    rate = serving.at_batch(256).rate * part
    state = serving.at_rate(rate)
    assert state is not None
    assert state.rate == pytest.approx(rate, rel=1e-4)


def test_beyond_the_batch_limit_there_is_no_state():
    serving = chat()
    assert serving.at_rate(serving.at_batch(256).rate * 1.01) is None


@given(st.floats(1, 255))
def test_more_traffic_is_slower(batch: float):
    fewer, more = chat().at_batch(batch), chat().at_batch(batch + 1)
    assert more.rate > fewer.rate
    assert more.tpot_ms > fewer.tpot_ms
    assert more.ttft_ms > fewer.ttft_ms


@pytest.mark.parametrize(("ttft", "tpot"), [(None, 30), (200, None), (200, 30)])
def test_capacity_sits_at_the_limit(ttft: float | None, tpot: float | None):
    serving = chat()
    best = serving.largest(ttft, tpot)
    assert best is not None
    ratios = serving.ratios(best)
    inside = [best.ttft_ms * ratios[0] <= ttft] if ttft else []
    inside += [best.tpot_ms * ratios[1] <= tpot] if tpot else []
    assert all(inside)
    beyond = serving.at_batch(best.concurrency * 1.02)
    late = (ttft and beyond.ttft_ms * ratios[0] > ttft) or (
        tpot and beyond.tpot_ms * ratios[1] > tpot
    )
    assert late


def test_an_slo_nobody_can_keep():
    assert chat().largest(None, 2) is None
    assert chat().largest(40, None) is None


@given(st.floats(15, 90), st.floats(0, 30))
def test_a_looser_slo_never_costs_capacity(tpot: float, more: float):
    tight, loose = chat().largest(None, tpot), chat().largest(None, tpot + more)
    assert tight is not None
    assert loose is not None
    assert loose.rate >= tight.rate * 0.999


def test_a_slice_is_slower_than_its_gpu():
    whole, part = chat(), chat(step(device=Device(H100, 3350 / 2, 60 / 132)))
    assert part.at_batch(32).tpot_ms > whole.at_batch(32).tpot_ms
    assert part.at_batch(32).rate < whole.at_batch(32).rate


def test_prefix_hits_carry_more_traffic():
    hit = chat(load=replace(CHAT, prefix_hit_rate=0.5))
    assert hit.at_batch(64).rate > chat().at_batch(64).rate


def test_bursts_wait_longer():
    bursty = chat(load=replace(CHAT, arrival_cv=3.0))
    assert bursty.at_batch(64).ttft_ms > chat().at_batch(64).ttft_ms
    assert bursty.at_batch(64).late_tpot_ms > chat().at_batch(64).late_tpot_ms


def test_groups_of_gpus_are_faster_but_not_by_their_number():
    one, two = chat(step(LLAMA_70B, precision="fp8")), chat(step(LLAMA_70B, None, "fp8", 2))
    gain = one.at_batch(8).tpot_ms / two.at_batch(8).tpot_ms
    assert 1.2 < gain < 2


def test_pcie_costs_more_than_nvlink():
    pcie = Device(A100, 2039, 1.0, 31.5, nvlink=False)
    nvlink = Device(A100, 2039, 1.0, 300)
    slow, fast = chat(step(LLAMA_70B, pcie, tp=4)), chat(step(LLAMA_70B, nvlink, tp=4))
    assert slow.at_batch(64).tpot_ms > fast.at_batch(64).tpot_ms


def test_few_tokens_touch_few_experts():
    moe = step(QWEN3_30B_A3B)
    assert moe.products(1) < 0.2 * moe.products(64)


@pytest.mark.parametrize(
    ("percentile", "over_mean"), [(99, TTFT_P99_OVER_MEAN), (99, TPOT_P99_OVER_MEAN)]
)
def test_the_measured_percentile_comes_back(percentile: float, over_mean: float):
    assert percentile_ratio(percentile, over_mean) == pytest.approx(over_mean)


def test_percentiles_are_ordered():
    found = [percentile_ratio(p, TTFT_P99_OVER_MEAN) for p in (50, 90, 95, 99, 99.9)]
    assert found == sorted(found)
    assert found[0] < 1


def test_users_of_a_closed_loop_all_wait_or_run():
    serving = chat()
    state = serving.closed_loop(64)
    users = state.rate * (state.ttft_ms + 220 * state.tpot_ms) / 1e3
    assert users == pytest.approx(64, rel=1e-3)
    crowded = serving.closed_loop(2000)
    assert crowded.concurrency == 256
    users = crowded.rate * (crowded.ttft_ms + 220 * crowded.tpot_ms) / 1e3
    assert users == pytest.approx(2000, rel=1e-3)


def test_a_fixed_batch_runs_in_waves_beyond_the_limit():
    serving = chat(limit=16)
    assert serving.static(32).rate == pytest.approx(serving.static(16).rate)
    assert serving.static(32).ttft_ms > serving.static(16).ttft_ms


def test_embedding_serves_prompts_only():
    load = Load(input_tokens=400, output_tokens=0)
    serving = prompts_only(step(EMBEDDER_8B), load, 64, 8192, 0.049)
    best = serving.largest(500, None)
    assert best is not None
    assert best.ttft_ms * serving.ratios(best)[0] <= 500
    assert best.rate < serving.offline().rate
    assert serving.largest(1, None) is None


@pytest.mark.parametrize(("columns", "cost"), [(128, 1.0), (4096, 1.0), (96, 7 / 6), (192, 7 / 6)])
def test_tiles_that_are_not_full_cost_their_whole(columns: float, cost: float):
    assert padded(columns) == pytest.approx(cost)


def test_odd_widths_are_slower_on_many_gpus():
    """768 columns an expert over 8 GPUs leave 96: three quarters of a tile."""
    whole, split = step(QWEN3_30B_A3B), step(QWEN3_30B_A3B, tp=8)
    assert split.token_flop_s * 8 > 1.05 * whole.token_flop_s


def test_a_pipeline_waits_for_the_stage_with_the_output_layer():
    whole, staged = step(LLAMA_70B), step(LLAMA_70B, pp=4)
    heads = [s.token_flop_s - s.prompt_flop_s for s in (whole, staged)]
    assert heads[0] == pytest.approx(heads[1])
    assert staged.prompt_flop_s == pytest.approx(whole.prompt_flop_s / 4)
