"""What runs, made to fit again: what may stay stays, and the judge finds nothing wrong with it."""

import random
from dataclasses import replace

import pytest

from builders import a100, candidate, deployment, fleet, node, place, problem, replica
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement
from optimizer.solver import measure
from optimizer.solver.repair import repaired, stayers
from optimizer.solver.warm import known, least_load_mib, solve_warm
from optimizer.verify import check_outcome, verify
from randomproblems import random_problem

CHAT = candidate("chat", a100(), profile="3g.40gb", rps=5)
RUNS = place(
    replica("chat/0", "n0/0", mig="3g.40gb@0"),
    replica("chat/1", "n0/0", mig="3g.40gb@4"),
    replica("chat/2", "n1/0", mig="3g.40gb@0"),
)


def asked(rps, current=RUNS, nodes=2, **other):
    machines = fleet(*(node(f"n{i}", a100(), 1, price=2.0) for i in range(nodes)))
    return problem(machines, [deployment("chat", rps=rps, **other)], [CHAT], current)


@pytest.mark.parametrize(("rps", "ids"), [(15, [0, 1, 2]), (10, [0, 1]), (20, [0, 1, 2, 3])])
def test_just_enough_runs_and_nothing_moves(rps, ids):
    posed = asked(rps)
    found = repaired(posed, posed.current)
    assert [r.id for r in found.replicas] == [f"chat/{i}" for i in ids]
    assert not verify(posed, found)
    kept = [r for r in found.replicas if r.id in {r.id for r in RUNS.replicas}]
    assert all(r in RUNS.replicas for r in kept)


def test_the_replica_goes_that_leaves_a_gpu_empty():
    posed = asked(10)
    assert measure.price_micros(posed, repaired(posed, posed.current)) == 2_000_000


def test_a_lost_node_is_made_up_for_elsewhere():
    posed = asked(15)
    nodes = [node("n1", a100(), 1, price=2.0), node("n2", a100(), 1, price=2.0)]
    found = repaired(replace(posed, fleet=fleet(*nodes)), posed.current)
    assert sorted(r.gpus[0] for r in found.replicas) == ["n1/0", "n1/0", "n2/0"]


def test_what_finds_no_room_is_missing_and_breaks_no_rule():
    posed = asked(100, spread_node=1)
    found = repaired(posed, posed.current)
    assert len(found.replicas) == 2
    assert not verify(posed, found)


def test_repairs_of_random_problems_pass_the_judge():
    repairs = 0
    for seed in range(120):
        posed = random_problem(seed)
        for rounds in (0, 8):
            found = repaired(posed, posed.current, rounds=rounds, seed=seed)
            assert not verify(posed, found), (seed, rounds)
            repairs += bool(found.replicas)
    assert repairs > 150


def test_a_repair_repeats():
    posed = random_problem(3)
    assert repaired(posed, posed.current, rounds=20) == repaired(posed, posed.current, rounds=20)


def test_more_rounds_are_never_worse():
    for seed in range(30):
        posed = random_problem(seed)
        unmet, prices = [], []
        for rounds in (0, 10, 20):
            found = repaired(posed, posed.current, rounds=rounds)
            unmet.append(list(measure.unmet_ppm(posed, found).values()))
            prices.append(measure.price_micros(posed, found))
        scores = list(zip(unmet, prices, strict=True))
        assert scores == sorted(scores, reverse=True), seed


def test_the_least_load_is_what_the_lost_replica_weighs():
    posed = asked(15)
    alone = replace(posed, fleet=fleet(node("n1", a100(), 1), node("n2", a100(), 1)))
    assert least_load_mib(posed, stayers(posed, posed.current)) == 0
    assert least_load_mib(alone, stayers(alone, alone.current)) == 2 * CHAT.load_mib


def test_a_warm_search_ends_at_a_repair_within_the_gap():
    posed = asked(20)
    outcome = solve_warm(posed, Limits(gap=0.01, effort=5.0), before=known(asked(15)))
    assert all(o.proved for o in outcome.objectives if o.name in ("unmet", "price_per_hour"))
    assert {r.id for r in RUNS.replicas} < {r.id for r in outcome.incumbent.replicas}


def test_a_warm_search_agrees_with_the_judge_and_is_no_worse_than_from_scratch():
    solve = pytest.importorskip("optimizer.solver").solve
    limits = Limits(effort=5.0, time_limit_s=60.0)
    dice, met = random.Random(1), 0
    for seed in dice.sample(range(250), 12):
        posed = random_problem(seed)
        if posed.current is None:
            posed = replace(posed, current=Placement())
        outcome = solve_warm(posed, limits, before=known(posed))
        assert not check_outcome(posed, outcome), seed
        cold = solve(posed, limits)
        proved = all(o.proved for o in cold.objectives if o.name != "stranded")
        if proved:
            for a, b in zip(cold.objectives, outcome.objectives, strict=True):
                if a.name != "stranded":
                    assert b.bound <= a.value <= b.value, seed
            met += 1
    assert met >= 8
