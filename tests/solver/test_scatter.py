"""Replicas moved apart: rules that look at nodes are kept where exchanges can keep them."""

from dataclasses import replace

from ortools.sat.python import cp_model

from builders import a100, candidate, deployment, fleet, gpu, node, problem
from optimizer.domain.gpu import PlacedProfile
from optimizer.solver.columns import coarse_sites
from optimizer.solver.deal import deal
from optimizer.solver.formulation import build
from optimizer.solver.large import unpinned
from optimizer.solver.measure import frail
from optimizer.solver.scatter import scattered
from optimizer.solver.where import Seat, settle
from optimizer.verify import verify

SMALL = candidate("chat", a100(), profile="3g.40gb", rps=5)
OTHER = candidate("other", a100(), profile="3g.40gb", rps=5)
GROUP = candidate("large", a100(), gpus=2, rps=9)


def seat(way, *gpus, start=None):
    mig = None if start is None else PlacedProfile(start, way.shape.profile)
    return Seat(way.deployment, way, gpus, mig)


def posed(rps, nodes=2, **chat):
    machines = fleet(*(node(f"n{i}", a100(), 2, price=2.0) for i in range(nodes)))
    deployments = [
        deployment("chat", rps=rps, **chat),
        deployment("other", rps=10),
        deployment("large", rps=9),
    ]
    return problem(machines, deployments, [SMALL, OTHER, GROUP])


TOGETHER = [
    seat(SMALL, "n0/0", start=0),
    seat(SMALL, "n0/0", start=4),
    seat(OTHER, "n1/0", start=0),
    seat(OTHER, "n1/0", start=4),
]


def test_two_in_one_node_change_with_others_until_a_loss_leaves_one():
    asked = posed(5, survive="node")
    assert frail(asked, settle(asked, TOGETHER)) == ["chat"]
    apart = settle(asked, scattered(asked, TOGETHER))
    assert not frail(asked, apart)
    assert not [v for v in verify(asked, apart) if v.rule != "demand_met"]


def test_spread_leaves_out_what_no_exchange_brings_apart():
    asked = posed(5, nodes=1, spread_node=1)
    kept = scattered(asked, TOGETHER[:2])
    assert len(kept) == 1


def test_who_is_pinned_stays():
    asked = posed(5, spread_node=1, pin=("n0",))
    assert {s.gpus for s in scattered(asked, TOGETHER) if s.deployment == "chat"} == {("n0/0",)}


def test_groups_change_with_single_gpus():
    seats = [
        seat(GROUP, "n0/0", "n0/1"),
        seat(OTHER, "n1/0", start=0),
        seat(OTHER, "n1/1", start=0),
    ]
    asked = posed(5)
    two = replace(asked.deployment("other"), spread_node=1)
    asked = replace(asked, deployments=(asked.deployments[0], two, asked.deployments[2]))
    assert len(scattered(asked, seats)) == 2  # both lie in one node whichever way: one is left out
    wide = posed(5, nodes=3)
    wide = replace(wide, deployments=(wide.deployments[0], two, wide.deployments[2]))
    assert len(scattered(wide, seats)) == 3


def test_a_pin_to_one_node_is_a_pin_to_its_product_in_the_view():
    plain = gpu("plain", memory_gib=48)
    ways = [candidate("chat", plain, rps=5), candidate("chat", a100(), rps=9)]
    nodes = [node("n0", a100(), 2), node("n1", a100(), 2), node("p0", plain, 2)]
    home = problem(fleet(*nodes), [deployment("chat", rps=5, pin=("n1",))], ways)
    view = unpinned(home)
    assert [way.gpu for way in view.candidates["chat"]] == [a100().name]
    assert not view.deployments[0].pin
    assert len(coarse_sites(view)) == 2
    wide = problem(fleet(*nodes), [deployment("chat", rps=5, pin=("n0", "n1"))], ways)
    assert unpinned(wide) is None


def test_who_is_pinned_is_dealt_to_its_node_whatever_the_counts_know_of_it():
    nodes = [node(f"n{i}", a100(), 2) for i in range(3)]
    posed = problem(
        fleet(*nodes),
        [deployment("chat", rps=10, pin=("n2",)), deployment("large", rps=18)],
        [SMALL, GROUP],
    )
    f = build(unpinned(posed), coarse_sites(unpinned(posed)))
    solver = cp_model.CpSolver()
    for missing in f.missing.values():
        f.model.add(missing == 0)
    f.model.minimize(f.price_micros())
    assert solver.solve(f.model) == cp_model.OPTIMAL
    values = [int(v) for v in solver.response_proto.solution]
    found = settle(posed, deal(f, values, [], posed))
    assert len(found.replicas) == 4
    assert not verify(posed, found)
