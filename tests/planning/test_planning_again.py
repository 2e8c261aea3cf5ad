"""Relations of the whole: planning again from a plan's own result moves nothing."""

import random
from dataclasses import replace

import pytest

from optimizer.domain.outcome import Limits, Outcome
from optimizer.domain.placement import Placement
from optimizer.domain.plan import PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import compose, moves
from optimizer.verify import check_plan, objectives
from randomproblems import random_problem

solve = pytest.importorskip("optimizer.solver").solve

LIMITS = Limits(effort=20, time_limit_s=60, workers=1)
RUN = PlanRun(0.1, 1, "2026-01-01T00:00:00Z", "proof")
SEEDS = range(500, 512)


def planned(seed: int) -> tuple[PlacementProblem, Outcome]:
    """A random problem from scratch and its outcome, proved."""
    problem = replace(random_problem(seed), current=None)
    return problem, solve(problem, LIMITS)


def relabelled(placement: Placement, seed: int) -> Placement:
    """Replicas of one deployment that run alike exchange their ids."""
    dice, found = random.Random(seed), []
    for name in sorted({r.deployment for r in placement.replicas}):
        mine = [r for r in placement.replicas if r.deployment == name]
        ids = [r.id for r in mine]
        dice.shuffle(ids)
        found += [replace(r, id=id) for r, id in zip(mine, ids, strict=True)]
    return replace(placement, replicas=tuple(found))


def test_again_moves_nothing() -> None:
    """Nor when equal replicas have changed their names: that is no move."""
    settled = 0
    for seed in SEEDS[:8]:
        problem, outcome = planned(seed)
        if outcome.incumbent is None or not outcome.incumbent.replicas:
            continue
        for now in (outcome.incumbent, relabelled(outcome.incumbent, seed)):
            again = replace(problem, current=now)
            second = solve(again, LIMITS)
            assert second.incumbent is not None
            assert moves(again, second.incumbent) == (), f"seed {seed}"
            assert objectives(again, second.incumbent).disruption_mib == 0
            settled += 1
    assert settled > 8


def test_every_composed_plan_is_true() -> None:
    """The judge recounts each figure of plans from scratch and from a state, steps included."""
    moved = 0
    for seed in SEEDS:
        problem = random_problem(seed)
        outcome = solve(problem, LIMITS)
        plan = compose(problem, outcome, inputs=(), options={}, run=RUN, dropped={})
        assert check_plan(problem, plan) == (), f"seed {seed}"
        moved += len(plan.moves)
    assert moved > len(SEEDS)
