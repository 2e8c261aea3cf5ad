"""Marginal prices in words: where the program serves more than the plan does, that is said."""

import pytest

from optimizer.domain.marginal import MarginalPrices, RequestPrice, Slope
from optimizer.report.marginal import WHOLE, marginal_sentences

CHAT = (RequestPrice("chat", Slope(200_000, 300_000)),)


@pytest.mark.parametrize(
    ("serves_all", "short", "told"),
    [(True, True, True), (True, False, False), (False, True, False)],
    ids=["only in fractions", "both serve", "neither serves"],
)
def test_whom_the_program_serves_and_the_plan_does_not(
    serves_all: bool, short: bool, told: bool
) -> None:
    said = list(marginal_sentences(MarginalPrices(serves_all, CHAT, ()), "USD", short=short))
    assert "0.20 USD/h to 0.30 USD/h" in said[0]
    assert (said[-1] == WHOLE) is told
