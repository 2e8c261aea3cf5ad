"""Measured points to factors, and factors back into predictions."""

from dataclasses import replace

import pytest

from optimizer.documents import DocumentFaults, catalogue, load
from optimizer.domain.engine import Correction
from optimizer.sizing.calibration import Point, calibrate, point_of
from optimizer.sizing.single import size_model

CATALOGUE = catalogue()
ENGINES = {card.name: card for card in CATALOGUE.engine_cards()}
GPU = CATALOGUE.gpu("h100-80gb-sxm")
MODEL = CATALOGUE.model("llama-3.1-8b")
assert GPU is not None
assert MODEL is not None


def point(users: int, **measured: str) -> Point:
    row = {
        "engine_version": "0.19.0",
        "precision": "bf16",
        "input_tokens": "1000",
        "output_tokens": "200",
        "concurrency": str(users),
        **measured,
    }
    return point_of(f"row {users}", row, *MODEL, GPU, "vllm")


def told(one: Point, by: Correction | None = None):
    card = replace(ENGINES["vllm"], corrections=(by,) if by else ())
    found = size_model(one.model, {GPU.name: GPU}, {"vllm": card}, one.options)
    return found.candidates[0].performance


def test_a_machine_that_is_slower_all_over_is_found_out():
    true = Correction("vllm", "h100-80gb-sxm", "llama-3.1-8b", 1.3, 0.8, 1)
    points = []
    for users in (4, 16, 48):
        seen = told(point(users), true)
        points.append(point(users, tpot_ms=str(seen.tpot_ms), ttft_ms=str(seen.ttft_ms)))
    (found,), useless = calibrate(points, ENGINES)
    assert useless == []
    assert found.correction.step == pytest.approx(1.3, rel=0.01)
    assert found.correction.prompt == pytest.approx(0.8, rel=0.02)
    assert found.error_percent < 1 < found.before_percent


def test_throughput_alone_corrects_steps():
    seen = told(point(16), Correction("vllm", "h100-80gb-sxm", "llama-3.1-8b", 1.5, 1, 1))
    speed = seen.outlook.output_tokens_per_second
    (found,), _ = calibrate([point(16, out_tok_s=str(speed))], ENGINES)
    assert found.correction.step == pytest.approx(1.5, rel=0.02)
    assert found.correction.prompt == 1.0


def test_one_bad_run_does_not_count():
    points = [point(users, tpot_ms=str(told(point(users)).tpot_ms)) for users in (4, 8, 16, 32)]
    bad = point(64, tpot_ms=str(5 * told(point(64)).tpot_ms))
    (found,), _ = calibrate([*points, bad], ENGINES)
    assert found.correction.step == pytest.approx(1.0, abs=0.02)


def test_points_that_say_nothing_are_told():
    huge = replace(point(8, tpot_ms="9"), place="row x")
    huge = replace(huge, options=replace(huge.options, max_model_len=10_000_000))
    found, useless = calibrate([point(4), huge], ENGINES)
    assert found == []
    assert [place for place, _ in useless] == ["row 4", "row x"]


DOCUMENT = """kind: Calibration
version: 1
corrections:
- engine: vllm
  gpu: h100-80gb-sxm
  model: llama-3.1-8b
  step: 2.0
  prompt: 1.0
  points: 3
  error_percent: 5
"""


def test_a_calibration_holds_wherever_it_is_given(tmp_path):
    file = tmp_path / "calibration.yaml"
    file.write_text(DOCUMENT, encoding="utf-8")
    cards = {c.name: c for c in load([file], need=()).catalogue.engine_cards()}
    plain, corrected = (
        size_model(MODEL[0], {GPU.name: GPU}, engines, point(1).options).candidates[0].performance
        for engines in (ENGINES, cards)
    )
    assert corrected.tpot_ms == pytest.approx(2 * plain.tpot_ms, rel=0.02)


def test_a_calibration_of_unknown_things_is_a_fault(tmp_path):
    file = tmp_path / "calibration.yaml"
    file.write_text(DOCUMENT.replace("h100-80gb-sxm", "h100-80gb-sxn"), encoding="utf-8")
    with pytest.raises(DocumentFaults, match=r"5:\d+: corrections\[0\].gpu: .*h100-80gb-sxm"):
        load([file], need=())
