"""What runs where, as the vLLM card has it."""

from dataclasses import replace

import pytest

from optimizer.domain.engine import Verdict, version_key
from optimizer.domain.gpu import Gpu
from optimizer.sizing.compatibility import best_kernel, kv_support, runs, weight_support
from sizing_examples import A100, B200, DEEPSEEK_V3, H100, L40S, LLAMA_8B, T4, vllm

CARD = vllm()
VERSION = CARD.default_version


@pytest.mark.parametrize(
    ("gpu", "precision", "verdict"),
    [
        (A100, "bf16", Verdict.NATIVE),
        (T4, "bf16", Verdict.REFUSED),
        (T4, "fp16", Verdict.NATIVE),
        (L40S, "fp8", Verdict.NATIVE),
        (H100, "fp8", Verdict.NATIVE),
        (A100, "fp8", Verdict.FALLBACK),
        (A100, "int8", Verdict.NATIVE),
        (B200, "int8", Verdict.REFUSED),
        (A100, "int4", Verdict.NATIVE),
        (H100, "nvfp4", Verdict.FALLBACK),
        (B200, "nvfp4", Verdict.NATIVE),
        (H100, "mxfp4", Verdict.FALLBACK),
        (H100, "int2", Verdict.REFUSED),
        (H100, "gguf:q4_k_m", Verdict.FALLBACK),
    ],
)
def test_weights_on_gpus(gpu: Gpu, precision: str, verdict: Verdict):
    row = weight_support(CARD, VERSION, gpu, precision)
    assert row.verdict is verdict
    assert row.reason


@pytest.mark.parametrize(
    ("gpu", "kv", "verdict"),
    [
        (H100, "bf16", Verdict.NATIVE),
        (H100, "fp8", Verdict.NATIVE),
        (T4, "fp8", Verdict.FALLBACK),
        (H100, "int8", Verdict.FALLBACK),
        (H100, "int4", Verdict.REFUSED),
        (H100, "kivi-2bit", Verdict.REFUSED),
    ],
)
def test_kv_on_gpus(gpu: Gpu, kv: str, verdict: Verdict):
    assert kv_support(CARD, VERSION, gpu, kv).verdict is verdict


@pytest.mark.parametrize(
    ("gpu", "kv", "kernel"),
    [
        (H100, "bf16", "flash-3"),
        (H100, "fp8", "flash-3"),
        (A100, "bf16", "flash-2"),
        (A100, "fp8", "flashinfer"),
        (L40S, "bf16", "flash-2"),
        (B200, "bf16", "flashinfer"),
        (T4, "bf16", "flashinfer"),
        (H100, "int8", "paged"),
    ],
)
def test_the_best_kernel(gpu: Gpu, kv: str, kernel: str):
    assert best_kernel(CARD, VERSION, gpu, LLAMA_8B, kv)[0] == kernel


def test_flash_3_is_hoppers():
    assert runs(CARD, VERSION, A100, LLAMA_8B, "bf16", "bf16", ("flash-3",)).refusal


def test_flash_2_takes_no_fp8_kv():
    found = runs(CARD, VERSION, H100, LLAMA_8B, "bf16", "fp8", ("flash-2",))
    assert "FP8 KV" in (found.refusal or "")


def test_mla_models_have_their_own_kernels():
    assert best_kernel(CARD, VERSION, H100, DEEPSEEK_V3, "bf16")[0] == "flash-mla"
    assert best_kernel(CARD, VERSION, H100, DEEPSEEK_V3, "bf16", ("flash-3",))[0] == "flash-mla"


def test_a_fallback_says_what_it_costs():
    found = runs(CARD, VERSION, A100, LLAMA_8B, "fp8", "bf16")
    assert found.fallback
    assert found.gemm == "bf16"
    assert any("FP8" in note for note in found.notes)


def test_a_gpu_nobody_measured_is_refused():
    alien = replace(H100, name="alien", architecture="alien", compute_capability="1.0")
    assert runs(CARD, VERSION, alien, LLAMA_8B, "bf16", "bf16").refusal


def test_every_row_of_the_card_names_a_known_source():
    sources = dict(CARD.sources)
    for row in (*CARD.precisions, *CARD.kv, *CARD.attention):
        assert row.source in sources, row


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("0.9.2", "0.10.0"),
        ("0.19.2rc1.dev206+g95995bbef", "0.19.2"),
        ("0.19.1", "0.19.2rc1.dev206"),
        ("1.0.0rc3", "1.0.0"),
        ("0.5.3", "0.5.3.post1"),
        ("0.29.1rc1.dev17", "0.29.1rc1"),
    ],
)
def test_versions_are_ordered(earlier: str, later: str):
    assert version_key(earlier) < version_key(later)


def test_equal_versions_and_nonsense():
    assert version_key("v1.0") == version_key("1")
    with pytest.raises(ValueError):
        version_key("nightly")


@pytest.mark.parametrize(("version", "inside"), [("0.20.2", False), ("0.21.0", True), ("9", True)])
def test_a_version_falls_into_its_range(version: str, inside: bool):
    assert CARD.range_of(version).memory.graphs_inside is inside


def test_a_version_older_than_all_takes_the_oldest():
    assert CARD.range_of("0.0.1") == CARD.versions[0]
