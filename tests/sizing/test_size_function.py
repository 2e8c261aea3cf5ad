"""``optimizer.size``: the answer of ``fleetslice size MODEL -o json`` from Python."""

import pytest

import optimizer

ONE = {"gpu": "h100-80gb-sxm", "tensor_parallel": 1, "precision": "bf16"}


def test_one_way_is_predicted_as_its_start_was_logged():
    """Qwen3 14B, vLLM 0.19 on an H100: 27.52 GiB of weights, 45.23 of KV (0.18: the same terms)."""
    said = optimizer.size(
        "Qwen/Qwen3-14B",
        engine="vllm@0.18.0",
        gpu_memory_utilization=0.95,
        max_model_len=8192,
        **ONE,
    )
    (entry,) = said["candidates"]
    memory = entry["memory"]
    assert memory["weights_mib"] / 1024 == pytest.approx(27.52, rel=0.005)
    assert memory["kv_cache_mib"] / 1024 == pytest.approx(45.23, rel=0.01)
    assert memory["max_concurrency"] == pytest.approx(36.18, rel=0.01)
    assert entry["recommended"] is None


def test_without_engine_flags_some_are_recommended():
    (entry,) = optimizer.size("qwen3-14b", engine="sglang", **ONE)["candidates"]
    flags = entry["recommended"]["flags"]
    assert flags[0] == "--mem-fraction-static"
    assert "--context-length" in flags


def test_what_does_not_fit_says_with_which_flags_it_would():
    (entry,) = optimizer.size("llama-3.1-8b", engine="vllm", **(ONE | {"gpu": "l4"}))["refused"]
    assert "--max-model-len" in entry["reason"]
    assert entry["reason"].endswith("would fit")


@pytest.mark.parametrize("kv", ["kivi-2bit", "kvmix", "recent-16bit", "int4"])
def test_schemes_that_nobody_runs_are_sized_and_refused(kv):
    (entry,) = optimizer.size(
        *("llama-3.1-8b",), engine="vllm", kv_precision=kv, max_model_len=8192, **ONE
    )["refused"]
    assert "does not run" in entry["reason"]
    assert entry["memory"]["kv_cache_tokens"] > 500_000


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("lama-3.1-8b", {}, "did you mean"),
        ("./nowhere", {}, "no config.json"),
        ("llama-3.1-8b", {"gpu": "h100"}, 'no GPU "h100"'),
        ("llama-3.1-8b", {"engine": "vlm"}, 'no engine "vlm"'),
    ],
)
def test_what_nobody_knows_is_refused(model, more, said):
    with pytest.raises(ValueError, match=said):
        optimizer.size(model, **more)
