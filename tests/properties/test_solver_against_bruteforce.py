"""On small random problems the solver agrees with brute force, and the judge with both."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from agreement import disagreement

from bruteforce import Optimum, brute_force
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.verify import objectives
from randomproblems import random_problem, traits

solve = pytest.importorskip("optimizer.solver").solve

SEEDS = range(250)
BATCHES = [SEEDS[i : i + 25] for i in range(0, len(SEEDS), 25)]
LIMITS = Limits(effort=20, time_limit_s=60, workers=1)


@cache
def exact(seed: int) -> Optimum:
    found = brute_force(random_problem(seed))
    assert found is not None
    return found


@cache
def solved(seed: int) -> Outcome:
    return solve(random_problem(seed), LIMITS)


def least_gpus_cost(outcome: Outcome) -> tuple[int, ...]:
    """The levels before disruption: unmet demand by priority, then price."""
    wanted = ("unmet", "price_per_hour")
    return tuple(o.value for o in outcome.objectives if o.name in wanted)


def fault_of(seed: int) -> str | None:
    return disagreement(random_problem(seed), solved(seed), exact(seed))


@pytest.mark.parametrize("seeds", BATCHES, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_agrees_with_brute_force(seeds: range) -> None:
    wrong = {seed: fault for seed in seeds if (fault := fault_of(seed))}
    assert not wrong


def test_most_are_proved_and_every_rule_was_tried() -> None:
    proved = sum(solved(seed).termination is Termination.OPTIMAL for seed in SEEDS)
    assert proved >= 0.95 * len(SEEDS)


def test_the_seeds_cover_every_rule() -> None:
    tried = Counter(trait for seed in SEEDS for trait in traits(random_problem(seed)))
    overloaded = sum(any(ppm for _, ppm in exact(seed).score.unmet_ppm) for seed in SEEDS)
    moved = sum(bool(exact(seed).score.disruption_mib) for seed in SEEDS)
    assert min(tried.values()) >= 12, tried
    assert len(tried) >= 27, sorted(tried)
    assert 60 <= overloaded <= 190
    assert moved >= 40


@pytest.mark.parametrize("seed", range(300, 330))
def test_listing_order_does_not_change_the_cost(seed: int) -> None:
    problem = random_problem(seed)
    assert cost(shuffled(problem, seed)) == cost(problem)


@pytest.mark.parametrize("seed", range(330, 360))
def test_one_more_node_never_costs(seed: int) -> None:
    problem = random_problem(seed)
    extra = replace(problem.fleet.nodes[0], name="extra", devices=(), cordoned=False)
    larger = replace(problem, fleet=replace(problem.fleet, nodes=(*problem.fleet.nodes, extra)))
    assert cost(larger) <= cost(problem)


@pytest.mark.parametrize("seed", range(360, 390))
def test_twice_the_prices_cost_twice(seed: int) -> None:
    problem = random_problem(seed)
    *unmet, price = cost(problem)
    assert cost(dearer(problem)) == (*unmet, price * (2 if problem.fleet.priced else 1))


@pytest.mark.parametrize("seed", range(390, 430))
def test_planning_again_from_the_result_moves_nothing(seed: int) -> None:
    problem = random_problem(seed)
    first = solve(problem, LIMITS)
    again = solve(replace(problem, current=first.incumbent), LIMITS)
    assert again.incumbent is not None
    score = objectives(replace(problem, current=first.incumbent), again.incumbent)
    assert score.disruption_mib == 0
    assert least_gpus_cost(again) == least_gpus_cost(first)


def cost(problem: PlacementProblem) -> tuple[int, ...]:
    outcome = solve(problem, LIMITS)
    assert outcome.termination is Termination.OPTIMAL
    return least_gpus_cost(outcome)


def shuffled(problem: PlacementProblem, seed: int) -> PlacementProblem:
    dice = random.Random(seed)
    nodes, deployments = list(problem.fleet.nodes), list(problem.deployments)
    ways = {
        name: dice.sample(offered, len(offered)) for name, offered in problem.candidates.items()
    }
    dice.shuffle(nodes)
    dice.shuffle(deployments)
    return replace(
        problem,
        fleet=replace(problem.fleet, nodes=tuple(nodes)),
        deployments=tuple(deployments),
        candidates={name: tuple(offered) for name, offered in ways.items()},
    )


def dearer(problem: PlacementProblem) -> PlacementProblem:
    nodes = (
        replace(one, price_micros_per_gpu_hour=2 * (one.price_micros_per_gpu_hour or 0))
        for one in problem.fleet.nodes
    )
    ceiling = problem.fleet.limits.price_micros_per_hour
    limits = replace(problem.fleet.limits, price_micros_per_hour=ceiling and 2 * ceiling)
    if not problem.fleet.priced:
        return problem
    return replace(problem, fleet=replace(problem.fleet, nodes=tuple(nodes), limits=limits))
