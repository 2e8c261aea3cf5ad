"""``fleetslice size``: entries, their identities and their order."""

import json

import pytest

from optimizer.domain.model import ServedModel
from optimizer.sizing import SizeOptions, size_json, size_model
from sizing_examples import A100, H100, L40S, LLAMA_8B, LLAMA_70B, vllm

GPUS = {gpu.name: gpu for gpu in (A100, H100, L40S)}
ONE = {"gpu": H100.name, "tensor_parallel": 1, "precision": "bf16", "engine": "vllm"}


def sized(model: ServedModel = LLAMA_8B, **options: object) -> dict:
    answer = size_json(size_model(model, GPUS, {"vllm": vllm()}, SizeOptions(**options)))  # type: ignore[arg-type]
    json.dumps(answer, allow_nan=False)
    return answer


@pytest.mark.parametrize("extra", [{}, {"mig_profile": "3g.40gb", "max_model_len": 8192}])
def test_fully_chosen_means_one_entry(extra: dict):
    found = sized(**ONE, **extra)
    assert len(found["candidates"]) + len(found["refused"]) == 1
    assert found["candidates"][0]["mig_profile"] == extra.get("mig_profile")


def test_what_is_open_is_enumerated():
    found = sized(max_model_len=8192)
    entries = found["candidates"] + found["refused"]
    assert {e["gpu"] for e in entries} == set(GPUS)
    assert {e["tensor_parallel"] for e in entries} == {1, 2, 4, 8}
    assert {"bf16", "fp8", "int4"} <= {e["precision"] for e in entries}
    assert {e["mig_profile"] for e in entries} == {None, "1g.10gb", "3g.40gb"}


@pytest.mark.parametrize("version", ["0.16.0", "0.19.0", "0.21.0", "0.30.0"])
def test_memory_adds_up(version: str):
    found = sized(**ONE, engine_version=version)
    for entry in found["candidates"]:
        m = entry["memory"]
        parts = m["weights_mib"] + m["activation_mib"] + m["runtime_mib"] + m["kv_cache_mib"]
        parts += m["cuda_graphs_mib"] if m["cuda_graphs_inside_budget"] else 0
        assert m["budget_mib"] == parts
        assert m["kv_cache_tokens"] == int(m["max_concurrency"] * m["max_model_len"])


def test_the_cheapest_output_comes_first():
    prices = ((H100.name, 2.5), (A100.name, 1.5), (L40S.name, 1.0))
    found = sized(max_model_len=8192, tpot_ms=50, price_per_gpu_hour=prices)["candidates"]
    costs = [e["price_per_million_output_tokens"] for e in found]
    assert costs == sorted(costs)
    assert None not in costs


def test_a_slice_costs_its_memory_slices():
    prices = ((H100.name, 2.4),)
    found = sized(**ONE, mig_profile="3g.40gb", max_model_len=8192, price_per_gpu_hour=prices)
    assert found["candidates"][0]["price_per_hour"] == pytest.approx(1.2)


def test_what_does_not_fit_says_what_would():
    tight = {**ONE, "precision": "fp8", "gpu_memory_utilization": 0.95}
    reason = sized(LLAMA_70B, **tight)["refused"][0]["reason"]
    length = int(reason.split("--max-model-len ")[1].split()[0])
    shorter = {**tight, "max_model_len": length}
    assert sized(LLAMA_70B, **shorter)["candidates"]
    assert sized(LLAMA_70B, **{**shorter, "max_model_len": length + 1024})["refused"]


def test_too_large_is_refused_with_its_memory():
    found = sized(LLAMA_70B, **ONE)
    assert not found["candidates"]
    assert found["refused"][0]["memory"]["weights_mib"] > 130_000
    assert "GiB" in found["refused"][0]["reason"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mig_profile": "9g.99gb"}, "no profile"),
        ({"mig_profile": "3g.40gb", "tensor_parallel": 2}, "no groups"),
        ({"max_model_len": 999_999}, "RoPE"),
        ({"max_model_len": 512}, "longer than max_model_len"),
        ({"kv_precision": "kivi-2bit"}, "research scheme"),
        ({"precision": "int2"}, "2-bit"),
        ({"tpot_ms": 1.0}, "SLO 1 ms"),
        ({"request_rate": 10_000.0}, "beyond"),
    ],
)
def test_refusals_have_reasons(options: dict, word: str):
    found = sized(**{**ONE, **options})
    assert not found["candidates"]
    assert word in found["refused"][0]["reason"]


@pytest.mark.parametrize(
    "load",
    [{"concurrency": 32}, {"batch": 32}, {"offline": True}, {"request_rate": 4.0}],
    ids=["closed loop", "static", "offline", "open loop"],
)
def test_loads(load: dict):
    found = sized(**ONE, **load)["candidates"][0]["performance"]
    assert found["tpot_ms"] > 0
    assert found["requests_per_second"] > 0
    if "request_rate" in load:
        assert found["requests_per_second"] == pytest.approx(4.0, rel=1e-3)
    if load.get("offline"):
        assert found["ttft_ms"] is None


def test_percentiles_carry_their_name():
    found = sized(**ONE, percentile=99.0, request_rate=4.0)["candidates"][0]["performance"]
    assert found["ttft_p99_ms"] == pytest.approx(2.5 * found["ttft_ms"], rel=1e-3)
    assert 1.17 <= found["tpot_p99_ms"] / found["tpot_ms"] < 1.4


def test_capacity_keeps_the_slo():
    found = sized(**ONE, ttft_ms=800.0, tpot_ms=40.0)["candidates"][0]["performance"]
    assert found["tpot_p95_ms"] <= 40.001
    assert found["ttft_p95_ms"] <= 800.001


def test_an_unknown_gpu_is_a_key_error():
    with pytest.raises(KeyError):
        sized(gpu="abacus")


def test_the_pareto_set_has_the_cheapest_and_the_fastest():
    found = sized(gpu="h100-80gb-sxm", precision="fp8", ttft_ms=2000.0, tpot_ms=60.0)["candidates"]
    best = [c for c in found if c["pareto"]]
    assert found[0]["pareto"]
    assert min(found, key=lambda c: c["performance"]["tpot_ms"]) in best
    tpots = [c["performance"]["tpot_ms"] for c in best]
    assert tpots == sorted(tpots, reverse=True)
    assert len(best) < len(found)
