"""Rebalancing within limits: bounded honestly, never worse with more room to move."""

import random
from dataclasses import replace

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica, use
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import moves
from optimizer.solver import solve
from optimizer.solver.nightly import rebalance_within
from optimizer.solver.rebalance import Ask
from optimizer.verify import check_outcome

SLICED, PLAIN = gpu("sliced", mig="std8"), gpu("plain", memory_gib=48, bandwidth_gbs=864)
LIMITS = Limits(effort=10, time_limit_s=60)


def scattered(seed: int) -> PlacementProblem:
    """Replicas in slices, shares, on whole GPUs and pairs, on more GPUs than they need."""
    dice = random.Random(seed)
    now = place(
        *(replica(f"mig/{i}", f"a/{i}", mig=f"2g.20gb@{dice.choice((0, 2, 4))}") for i in range(3)),
        replica("whole/0", "b/0"),
        *(replica(f"part/{i}", f"b/{i + 1}", share=use(12, 200, 0.3)) for i in range(2)),
        replica("pair/0", "c/0", "c/1"),
    )
    return problem(
        fleet(node("a", SLICED, 3, price=2.0), node("b", PLAIN, 3, price=1.0), node("c", PLAIN, 4)),
        [deployment("mig", rps=3), deployment("whole"), deployment("part", rps=2)]
        + [deployment("pair")],
        [
            candidate("mig", SLICED, profile="2g.20gb", rps=1, load_gib=4),
            candidate("whole", PLAIN, load_gib=8),
            candidate("part", PLAIN, share=use(12, 200, 0.3), rps=1, load_gib=2),
            candidate("pair", PLAIN, gpus=2, load_gib=16),
        ],
        now,
    )


def figures(where: PlacementProblem, outcome: Outcome) -> tuple[int, int]:
    """Price and the copies that start; judged."""
    assert outcome.incumbent is not None
    assert check_outcome(where, outcome) == ()
    price = next(o for o in outcome.objectives if o.name == "price_per_hour")
    starts = [m for m in moves(where, outcome.incumbent) if m.after is not None]
    return price.value, len(starts)


def test_each_move_more_saves_until_nothing_is_left_to_save() -> None:
    where = scattered(1)
    prices = []
    for most in range(5):
        outcome = rebalance_within(where, LIMITS, Ask(max_moves=most))
        price, starts = figures(where, outcome)
        assert outcome.termination is Termination.OPTIMAL
        assert starts <= most
        prices.append(price)
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > prices[-1]
    assert figures(where, solve(where, LIMITS))[0] == prices[-1]


def test_a_load_limit_keeps_the_heavy_ones() -> None:
    where = scattered(2)
    outcome = rebalance_within(where, LIMITS, Ask(max_load_mib=4 * 1024))
    assert outcome.incumbent is not None
    loads = [m.load_mib for m in moves(where, outcome.incumbent)]
    assert 0 < sum(loads) <= 4 * 1024


def test_as_many_gpus_as_asked_are_freed_with_the_least_disruption() -> None:
    where = scattered(3)
    one, two = (rebalance_within(where, LIMITS, Ask(free_gpus=n)) for n in (1, 2))
    for freed, outcome in ((1, one), (2, two)):
        figures(where, outcome)
        assert outcome.incumbent is not None
        used = {g for r in outcome.incumbent.replicas for g in r.gpus}
        assert len(used) <= 8 - freed
        assert next(o for o in outcome.objectives if o.name == "disruption").proved
        price = next(o for o in outcome.objectives if o.name == "price_per_hour")
        assert 0 < price.bound <= figures(where, solve(where, LIMITS))[0]


def test_what_no_plan_can_do_is_called_impossible() -> None:
    where = scattered(4)
    outcome = rebalance_within(where, LIMITS, Ask(free_gpus=8))
    assert outcome.incumbent is None or any(o.value for o in outcome.objectives[:1])
    spared = replace(
        where, deployments=tuple(replace(d, disturb="never") for d in where.deployments)
    )
    assert rebalance_within(spared, LIMITS, Ask(free_gpus=1)).termination is Termination.INFEASIBLE
