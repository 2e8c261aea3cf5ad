"""The memory model against published engine starts: the bars it must keep."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "bench"))
import memory_score


@pytest.fixture(scope="module")
def scores():
    found, _ = memory_score.scored()
    return found


@pytest.mark.parametrize(
    ("quantity", "rows"), [("weights", 80), ("kv_tokens", 65), ("activation", 35), ("kv", 35)]
)
def test_published_starts_are_predicted_within_the_bars(scores, quantity: str, rows: int):
    count, median, p90, _ = memory_score.percentiles(scores, quantity)
    median_bar, p90_bar = memory_score.BARS[quantity]
    assert count >= rows
    assert median <= median_bar
    assert p90 <= p90_bar


def test_no_start_that_was_refused_for_memory_is_said_to_fit(scores):
    failed, optimistic = memory_score.refused(scores)
    assert len(failed) >= 4
    assert optimistic == []


def test_starts_that_succeeded_are_said_to_fit(scores):
    """All but one, whose log contradicts itself."""
    _, _, wrong = memory_score.started(scores)
    assert wrong == ["s025"]


def test_every_large_error_has_a_cause(scores):
    assert not [memory_score.line(s) for s in scores if "unexplained" in memory_score.cause(s)]
