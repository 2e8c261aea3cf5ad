"""Rules that can make a problem infeasible: each and all together, against brute force."""

import pytest

from bruteforce import brute_force
from optimizer.domain.outcome import Limits, Termination
from optimizer.solver import solve
from optimizer.verify import check_outcome, objectives, verify
from randomproblems import ruled_problem

LIMITS = Limits(effort=20, time_limit_s=60, workers=1)
EACH = {"fixed": ("fixed",)}


def disagreement(seed: int, rules: tuple[str, ...]) -> str | None:
    """What the solver says otherwise than brute force or the judge; None when all agree."""
    problem = ruled_problem(seed, *rules)
    truth, outcome = brute_force(problem), solve(problem, LIMITS)
    if truth is None:
        ok = outcome.termination is Termination.INFEASIBLE
        return None if ok else f"{outcome.termination}, brute force finds it infeasible"
    if outcome.incumbent is None:
        return f"no plan ({outcome.termination}); brute force has {truth.score.levels}"
    broken = [*verify(problem, outcome.incumbent), *check_outcome(problem, outcome)]
    if broken:
        return f"{broken[0]} and {len(broken) - 1} more"
    found = objectives(problem, outcome.incumbent).levels
    if outcome.termination is Termination.OPTIMAL and found != truth.score.levels:
        return f"calls {found} optimal, brute force has {truth.score.levels}"
    if found < truth.score.levels:
        return f"has {found}, better than everything: {truth.score.levels}"
    return None


@pytest.mark.parametrize("rules", EACH.values(), ids=EACH)
def test_agrees_with_brute_force(rules: tuple[str, ...]) -> None:
    wrong = {seed: fault for seed in range(40) if (fault := disagreement(seed, rules))}
    assert not wrong
