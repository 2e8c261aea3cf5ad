"""Certificates prove no more than what is true, whatever they say; and refuse what they do not."""

import random
from dataclasses import replace

import pytest

from bruteforce import brute_force
from optimizer.domain.gpu import Gpu
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve
from optimizer.verify import check_outcome
from optimizer.verify.certificate import proved_micros
from randomproblems import random_problem

LIMITS = Limits(effort=5, time_limit_s=60, workers=1)


def served(seed: int) -> tuple[PlacementProblem, int] | None:
    """A random problem and its least price, where everybody can be served."""
    problem = random_problem(seed)
    best = brute_force(problem)
    if best is None or any(ppm for _, ppm in best.score.unmet_ppm):
        return None
    return problem, best.score.price_micros


def made_up(dice: random.Random, problem: PlacementProblem) -> dict[str, object]:
    """Values that nobody computed."""

    def row(gpu: Gpu, price: int) -> dict[str, object]:
        profiles = [p.name for p in gpu.mig.profiles] if gpu.mig else []
        ways = [c for some in problem.candidates.values() for c in some if c.gpu == gpu.name]
        shares = {c.shape.share for c in ways if c.shape.share is not None}
        return {
            "gpu": gpu.name,
            "price_micros": price,
            "whole": dice.uniform(0, 2) * price,
            "mig": {name: dice.uniform(0, 1) * price for name in profiles},
            "shares": [
                [s.memory_mib, s.bandwidth_mbs, s.compute_ppm, dice.uniform(0, 1) * price]
                for s in sorted(shares, key=str)
            ],
        }

    kinds = {(n.gpu.name, problem.fleet.price_micros(n)): n.gpu for n in problem.fleet.nodes}
    return {"values": [row(gpu, price) for (_, price), gpu in sorted(kinds.items())]}


def test_made_up_values_prove_nothing_false() -> None:
    tried = proved = 0
    for seed in range(120):
        found = served(seed)
        if found is None:
            continue
        problem, price = found
        dice = random.Random(seed)
        for _ in range(20):
            bound = proved_micros(problem, made_up(dice, problem))
            assert bound <= price + 1, seed
            tried += 1
            proved += bound > 0
    assert tried > 500
    assert proved > 100


@pytest.mark.parametrize("seeds", [range(0, 60), range(60, 120)], ids=["0-59", "60-119"])
def test_the_solvers_certificates_hold_and_larger_claims_are_refused(seeds: range) -> None:
    tight = 0
    for seed in seeds:
        found = served(seed)
        if found is None:
            continue
        problem, price = found
        outcome = solve(problem, LIMITS)
        bound = outcome.certificate["bound_micros"]
        assert bound <= price
        assert not check_outcome(problem, outcome)
        tight += bound >= 0.9 * price
        boast = {**outcome.certificate, "bound_micros": price + 10_000}
        said = check_outcome(problem, replace(outcome, certificate=boast))
        assert [violation.rule for violation in said] == ["certificate"]
    assert tight >= 5
