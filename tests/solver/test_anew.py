"""Replicas laid anew: as cheap as can be, and by every rule."""

import random
from dataclasses import replace

import pytest

from bruteforce import brute_force
from builders import a100, candidate, deployment, fleet, node, problem
from optimizer.domain.gpu import PlacedProfile
from optimizer.solver import anew
from optimizer.solver.anew import Anew, Ground, mended
from optimizer.solver.measure import frail, price_micros, unmet_ppm
from optimizer.solver.scatter import cut
from optimizer.solver.where import Seat, settle
from optimizer.verify import verify
from randomproblems import random_problem

SMALL = candidate("chat", a100(), profile="3g.40gb", rps=5)
WHOLE = candidate("chat", a100(), rps=12)
OTHER = candidate("other", a100(), profile="3g.40gb", rps=5)


def test_a_replica_is_added_where_a_loss_would_leave_too_little():
    machines = fleet(*(node(f"n{i}", a100(), 2, price=2.0) for i in range(2)))
    asked = problem(machines, [deployment("chat", rps=5, survive="node")], [SMALL])
    alone = [Seat("chat", SMALL, ("n0/0",), PlacedProfile(0, "3g.40gb"))]
    assert frail(asked, settle(asked, alone)) == ["chat"]
    more = settle(asked, mended(asked, alone, ["chat"], 60.0))
    assert not frail(asked, more)
    assert len(more.replicas) == 2


def test_who_lies_in_the_way_of_a_pin_goes_elsewhere():
    machines = fleet(*(node(f"n{i}", a100(), 1, price=2.0) for i in range(2)))
    deployments = [deployment("chat", rps=12, pin=("n0",)), deployment("other", rps=5)]
    asked = problem(machines, deployments, [WHOLE, OTHER])
    before = [Seat("other", OTHER, ("n0/0",), PlacedProfile(0, "3g.40gb"))]
    after = settle(asked, mended(asked, before, ["chat"], 60.0))
    assert [r.gpus for r in after.replicas] == [("n0/0",), ("n1/0",)]
    assert not verify(asked, after)


@pytest.mark.parametrize(
    ("seeds", "least"),
    [(range(10), 1), pytest.param(range(10, 250), 20, marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_all_laid_anew_costs_what_brute_force_says(monkeypatch, seeds, least):
    monkeypatch.setattr(anew, "MOST_EMPTY_SHARED", 8)
    agreed = survived = 0
    for seed in seeds:
        dice = random.Random(seed)
        asked = replace(random_problem(seed), current=None)
        losses = [dice.choice((None, "node", "rack")) for _ in asked.deployments]
        some = zip(asked.deployments, losses, strict=True)
        asked = replace(asked, deployments=tuple(replace(d, survive=s) for d, s in some))
        ground = Ground(asked)
        paired = any(n.nvlink_domain == "pair" for n in asked.fleet.nodes)
        if ground.tied or paired:
            continue
        names = frozenset(d.name for d in asked.deployments)
        seats = Anew(ground, [], set(), names).chosen(10.0, 60.0)
        truth = brute_force(asked)
        if truth is None or any(ppm for _, ppm in truth.score.unmet_ppm):
            assert seats is None, seed
            continue
        assert seats is not None, seed
        found = settle(asked, cut(asked, seats))
        assert not verify(asked, found), seed
        assert not any(unmet_ppm(asked, found).values())
        assert price_micros(asked, found) == truth.score.price_micros, seed
        agreed += 1
        survived += any(d.survive and d.asked_mrps for d in asked.deployments)
    assert agreed >= least
    assert survived >= least // 4
