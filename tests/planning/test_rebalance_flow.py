"""Rebalancing by flows: proved least price and least disruption, the curve, and its limits."""

from dataclasses import replace

import pytest

from bruteforce import brute_force
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import moves, order
from optimizer.verify import check_outcome, objectives, replay, verify
from scripts.bench.rebalance_fleets import fragmented

rebalance = pytest.importorskip("optimizer.solver.rebalance")

LIMITS = Limits(time_limit_s=60)


def consolidated(problem: PlacementProblem, **ask: int) -> Outcome:
    """The outcome, judged."""
    outcome = rebalance.consolidate(problem, LIMITS, rebalance.Ask(**ask))
    assert outcome.incumbent is not None
    assert check_outcome(problem, outcome) == ()
    return outcome


def figures(outcome: Outcome) -> tuple[int, int]:
    """Price and disruption."""
    by_name = {o.name: o.value for o in outcome.objectives}
    return by_name["price_per_hour"], by_name["disruption"]


def test_agrees_with_brute_force() -> None:
    checked = moved = 0
    for seed in range(7):
        problem = fragmented(3, load=0.45, seed=seed)
        truth = brute_force(problem)
        if truth is None:
            continue
        outcome = consolidated(problem)
        assert outcome.termination is Termination.OPTIMAL
        assert objectives(problem, outcome.incumbent).levels == truth.score.levels, f"seed {seed}"
        checked += 1
        moved += len(moves(problem, outcome.incumbent))
    assert checked >= 6
    assert moved > 3


def test_a_fleet_of_eighty() -> None:
    """The least price is proved, the steps play back, and again there is nothing to do."""
    problem = fragmented(80)
    outcome = consolidated(problem)
    assert outcome.termination is Termination.OPTIMAL
    found = outcome.incumbent
    assert found is not None
    assert problem.current is not None
    changes = moves(problem, found)
    steps = order(problem, found, changes)
    assert replay(problem, problem.current, steps.steps, found, left=steps.left) == ()
    again = consolidated(replace(problem, current=found))
    assert again.incumbent == found


def test_rules_that_tell_replicas_apart() -> None:
    problem = fragmented(40, deployments=30, rules=True, seed=4)
    outcome = consolidated(problem)
    found = outcome.incumbent
    assert found is not None
    assert verify(problem, found) == ()
    assert figures(outcome)[0] < objectives(problem, problem.current).price_micros
    kept = {d.name for d in problem.deployments if d.disturb == "never"}
    assert kept
    assert not kept & {m.replica.rpartition("/")[0] for m in moves(problem, found)}


def test_the_curve_falls_and_its_ends_are_known() -> None:
    problem = fragmented(60, seed=2)
    curve = rebalance.frontier(problem, LIMITS, 6)
    prices = [p.price_micros for p in curve]
    efforts = [p.disruption_mib for p in curve]
    assert prices == sorted(prices, reverse=True)
    assert efforts == sorted(efforts)
    assert all(p.proved for p in curve)
    assert efforts[0] == 0
    assert (prices[-1], efforts[-1]) == figures(consolidated(problem))
    bend = rebalance.knee(curve)
    assert bend in curve[1:-1]
    outcome = rebalance.at_point(problem, LIMITS, bend)
    assert check_outcome(problem, outcome) == ()
    assert figures(outcome) == (bend.price_micros, bend.disruption_mib)
    assert len(moves(problem, outcome.incumbent)) == bend.moves


def test_limits_on_moves_load_and_gpus() -> None:
    problem = fragmented(60, seed=2, deployments=20)
    free = consolidated(problem)
    assert free.incumbent is not None
    most = len(moves(problem, free.incumbent)) // 2
    few = consolidated(problem, max_moves=most)
    assert few.incumbent is not None
    assert 0 < len(moves(problem, few.incumbent)) <= most
    light = consolidated(problem, max_load_mib=40 * 1024)
    assert light.incumbent is not None
    assert sum(m.load_mib for m in moves(problem, light.incumbent)) <= 40 * 1024
    five = consolidated(problem, free_gpus=5)
    now = objectives(problem, problem.current).price_micros
    assert figures(free)[0] < figures(few)[0] < now
    assert figures(five)[0] <= now - 5 * 1_000_000


def test_cordoned_gpus_are_emptied() -> None:
    problem = fragmented(24, seed=3)
    first, *others = problem.fleet.nodes
    fleet = replace(problem.fleet, nodes=(replace(first, cordoned=True), *others))
    outcome = consolidated(replace(problem, fleet=fleet))
    assert outcome.incumbent is not None
    assert not [r for r in outcome.incumbent.replicas if first.name in r.nodes]


def test_missing_replicas_start_in_the_same_run() -> None:
    problem = fragmented(24, seed=5)
    grown = [replace(d, min_replicas=d.min_replicas + 2) for d in problem.deployments]
    problem = replace(problem, deployments=tuple(grown))
    outcome = consolidated(problem)
    assert outcome.incumbent is not None
    kinds = [m.kind for m in moves(problem, outcome.incumbent)]
    assert kinds.count("start") == 2 * len(grown)
    assert all(o.value == 0 for o in outcome.objectives if o.name == "unmet")
    assert outcome.termination is Termination.OPTIMAL
