"""The way of large fleets (counts by decomposition, dealt to nodes) on small ones."""

from collections import Counter
from collections.abc import Callable

import pytest
from agreement import disagreement
from stagedproblems import staged_problem

from bruteforce import Search
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import large, solve
from randomproblems import random_problem, ruled_problem

LIMITS = Limits(effort=4, time_limit_s=60, workers=1)
MOST_SPOTS = 60  # brute force takes minutes beyond
KINDS: dict[str, Callable[[int], PlacementProblem]] = {
    "plain": random_problem,
    "of fixed layouts": lambda seed: ruled_problem(seed, "fixed"),
    "with pipelines": staged_problem,
}


@pytest.fixture(autouse=True)
def _every_fleet_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "MANY_GPUS", 0)
    monkeypatch.setattr(large, "FEW_WAYS", -1)


def fault_of(asked: PlacementProblem, met: Counter[str]) -> str | None:
    """What the solver says otherwise, no plan included."""
    search = Search(asked)
    if sum(map(len, search.spots.values())) > MOST_SPOTS:
        return None
    outcome = solve(asked, LIMITS)
    met[outcome.termination.name] += 1
    return disagreement(asked, outcome, search.run())


@pytest.mark.parametrize("kind", KINDS)
def test_dealing_agrees_with_brute_force(kind: str) -> None:
    met: Counter[str] = Counter()
    assert not [seed for seed in range(25) if fault_of(KINDS[kind](seed), met)]
    assert met["OPTIMAL"] > 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dealing_agrees_with_brute_force_on_many(kind: str) -> None:
    met: Counter[str] = Counter()
    assert not [seed for seed in range(25, 150) if fault_of(KINDS[kind](seed), met)]
    assert met["OPTIMAL"] > 30
