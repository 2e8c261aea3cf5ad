"""Pipelines over nodes, alone and with every other rule, against brute force."""

from collections import Counter

import pytest
from agreement import disagreement
from stagedproblems import staged_problem, wide_problem

from bruteforce import Search
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve

LIMITS = Limits(effort=20, time_limit_s=60, workers=1)
MOST_SPOTS = 60  # brute force takes minutes beyond
KINDS = {"wide": wide_problem, "with slices and shares": staged_problem}


def fault_of(asked: PlacementProblem, met: Counter[str]) -> str | None:
    """What the solver says otherwise; counts what its plan holds."""
    search = Search(asked)
    if sum(map(len, search.spots.values())) > MOST_SPOTS:
        return None
    outcome = solve(asked, LIMITS)
    for one in outcome.incumbent.replicas if outcome.incumbent else ():
        if one.shape.stages > 1:
            met["over nodes" if len(one.nodes) > 1 else "in one node"] += 1
    return disagreement(asked, outcome, search.run())


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_brute_force(kind: str) -> None:
    met: Counter[str] = Counter()
    assert not [seed for seed in range(12) if fault_of(KINDS[kind](seed), met)]
    assert met


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_brute_force_on_many(kind: str) -> None:
    met: Counter[str] = Counter()
    assert not [seed for seed in range(12, 180) if fault_of(KINDS[kind](seed), met)]
    assert set(met) == {"over nodes", "in one node"}
