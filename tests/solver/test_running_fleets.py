"""Large fleets that run: a price within the gap is reached near to what runs."""

from dataclasses import replace

import pytest

from optimizer.domain.outcome import Limits, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.optimize import judged, nearly
from optimizer.planning.moves import moves
from scripts.bench.placement_instances import Family, generate

LIMITS = Limits(gap=0.02, effort=10.0)


@pytest.fixture(scope="module")
def running() -> PlacementProblem:
    problem = generate(Family(264, 0.6, 3))
    return replace(problem, current=judged(problem, LIMITS).incumbent)


def test_little_moves_when_one_deployment_grows(running: PlacementProblem) -> None:
    grown = max(running.deployments, key=lambda d: d.asked_mrps or 0)
    assert grown.demand is not None
    rate = grown.demand.rate_mrps * 6 // 5
    more = replace(grown, demand=replace(grown.demand, rate_mrps=rate))
    asked = tuple(more if d.name == grown.name else d for d in running.deployments)
    problem = replace(running, deployments=asked)
    outcome = judged(problem, LIMITS)
    assert outcome.incumbent is not None
    assert running.current is not None
    assert all(o.gap <= LIMITS.gap for o in outcome.objectives if o.name == "price_per_hour")
    assert outcome.certificate
    moved = [move for move in moves(problem, outcome.incumbent) if move.kind == "move"]
    assert len(moved) <= len(running.current.replicas) // 10


def test_nothing_moves_where_nothing_changes(running: PlacementProblem) -> None:
    outcome = judged(running, LIMITS)
    assert outcome.incumbent is not None
    assert moves(running, outcome.incumbent) == ()
    assert outcome.termination is not Termination.LIMIT


def test_a_gap_that_is_asked_stays(running: PlacementProblem) -> None:
    assert nearly(LIMITS, running.fleet) == LIMITS
    assert nearly(Limits(), running.fleet).gap > 0
