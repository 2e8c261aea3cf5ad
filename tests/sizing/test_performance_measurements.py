"""Predicted speed against published measurements: the bars of the issue, and the roofline."""

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
from performance_score import BARS, Score, barred, errors_by, scored, spread


@cache
def ours() -> list[Score]:
    return scored()


@cache
def roofline() -> list[Score]:
    return scored(roofline=True)


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(BARS))
def test_bars(group: str):
    errors = [error for _, error in errors_by(ours(), barred)[group]]
    median, p90 = spread(errors)
    assert len(errors) > 300
    assert median <= BARS[group][0]
    assert p90 <= BARS[group][1]


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(BARS))
def test_a_textbook_roofline_is_twice_as_far_off(group: str):
    mine, theirs = (
        spread([error for _, error in errors_by(found, barred)[group]])[0]
        for found in (ours(), roofline())
    )
    assert theirs > 2 * mine


@pytest.mark.slow
def test_few_rows_are_refused():
    refused = [s for s in ours() if s.refusal is not None]
    assert len(refused) < 0.05 * len(ours())
