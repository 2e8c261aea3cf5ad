"""Counts near to what runs, what runs made to agree with counts, and answers found that way."""

import random
from dataclasses import replace

import pytest

from builders import a100, candidate, deployment, fleet, node, place, problem, replica
from optimizer.domain.outcome import Limits
from optimizer.solver import solve, warm
from optimizer.solver.columns import coarse_sites
from optimizer.solver.formulation import build
from optimizer.solver.integer import Clock
from optimizer.solver.master import Master
from optimizer.solver.nearby import least_unmet, nearby
from optimizer.solver.refit import refitted, squeezed
from optimizer.solver.repair import stayers
from optimizer.solver.warm import known, solve_warm
from optimizer.verify import check_outcome, verify
from randomproblems import random_problem

CHAT = candidate("chat", a100(), profile="3g.40gb", rps=5)
BIG = candidate("big", a100(), gpus=2, rps=10)
APART = place(
    replica("chat/0", "n0/0", mig="3g.40gb@0"),
    replica("chat/1", "n1/0", mig="3g.40gb@0"),
)


def two_nodes(big_rps=10):
    machines = fleet(*(node(f"n{i}", a100(), 2, price=2.0) for i in range(2)))
    asked = [deployment("chat", rps=10), deployment("big", rps=big_rps)]
    return problem(machines, asked, [CHAT, BIG], APART)


def counted(posed, **replicas):
    """The coarse view, and values in which so many replicas of each deployment run."""
    f = build(posed, coarse_sites(posed))
    values = [0] * len(f.model.proto.variables)
    for c in f.copies:
        values[c.count.index] = replicas[c.deployment]
    return f, values


def test_a_smaller_replica_makes_way_for_a_group():
    posed = two_nodes()
    f, values = counted(posed, chat=2, big=1)
    found = refitted(f, values, stayers(posed, APART)).placement()
    assert not verify(posed, found)
    assert len({r.gpus[0] for r in found.replicas if r.deployment == "chat"}) == 1
    assert sum(r in APART.replicas for r in found.replicas) == 1


def test_what_agrees_with_the_counts_stays():
    posed = two_nodes(big_rps=0.001)
    f, values = counted(posed, chat=2, big=0)
    repair = refitted(f, values, stayers(posed, APART))
    assert set(APART.replicas) <= set(repair.placement().replicas)


def test_a_gpu_that_holds_little_is_emptied_only_where_the_price_asks_for_it():
    posed = replace(two_nodes(), deployments=(deployment("chat", rps=10),))
    f, values = counted(posed, chat=2, big=0)
    for enough, gpus in ((4_000_000.0, 2), (3_000_000.0, 1)):
        repair = refitted(f, values, stayers(posed, APART))
        squeezed(repair, enough)
        assert len({r.gpus[0] for r in repair.placement().replicas}) == gpus


def test_counts_keep_what_runs_where_that_is_cheap_enough():
    posed = two_nodes()
    f = build(posed, coarse_sites(posed))
    master = Master(f, f.price_micros(), frozenset({0}))
    place_of = {c.deployment: c.count.index for c in f.copies}
    kept = {"chat": warm.Counter({place_of["chat"]: 2})}
    values = nearby(master, master.solve(), kept, Clock(Limits(gap=0.1), print), 1.0)
    assert (values[place_of["chat"]], values[place_of["big"]]) == (2, 1)


@pytest.mark.parametrize("priorities", [2, 10], ids=["two ranks", "more ranks than 63 bits hold"])
def test_of_many_priorities_the_highest_are_served(priorities):
    names = [f"d{rank}" for rank in range(priorities)]
    asked = [deployment(name, rps=5, priority=rank) for rank, name in enumerate(names)]
    machines = fleet(node("n0", a100(), 1, price=2.0))
    posed = problem(
        machines, asked, [candidate(n, a100(), profile="4g.40gb", rps=5) for n in names]
    )
    f = build(posed, coarse_sites(posed))
    master = Master(f, f.price_micros(), frozenset())
    highest = priorities - 1
    by_unmet = Master(f, f.unmet_ppm(highest), frozenset())
    proof = by_unmet, by_unmet.solve()
    values = least_unmet(master, proof, {}, Clock(Limits(), print), 1.0)
    assert {c.deployment for c in f.copies if values[c.count.index]} == {f"d{highest}"}


def test_answers_within_a_gap_pass_the_judge_and_their_bounds_hold(monkeypatch):
    limits, near, proved = Limits(gap=0.2, effort=5.0, time_limit_s=60.0), 0, 0
    searched = []
    usual = warm.solve
    monkeypatch.setattr(warm, "solve", lambda *a: searched.append(1) or usual(*a))
    for seed in random.Random(4).sample(range(250), 40):
        before = random_problem(seed)
        current = solve(before, Limits(gap=0.05, effort=2.0)).incumbent
        if current is None:
            continue
        grown = tuple(d if d.demand is None else more(d) for d in before.deployments)
        posed = replace(before, deployments=grown, current=current)
        searched.clear()
        outcome = solve_warm(posed, limits, before=known(before))
        assert not check_outcome(posed, outcome), seed
        near += not searched
        cold = solve(posed, Limits(effort=5.0, time_limit_s=60.0))
        for a, b in zip(cold.objectives, outcome.objectives, strict=True):
            if not a.proved or a.name in ("disruption", "stranded"):
                break
            assert b.bound <= a.value <= b.value, (seed, a.name)
            proved += 1
            if a.value != b.value:
                break
    assert near >= 10
    assert proved >= 30


def more(d):
    return replace(d, demand=replace(d.demand, rate_mrps=d.demand.rate_mrps * 3 // 2))
