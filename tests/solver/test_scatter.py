"""Replicas moved apart: rules that look at nodes are kept where exchanges can keep them."""

from dataclasses import replace

from builders import a100, candidate, deployment, fleet, node, problem
from optimizer.domain.gpu import PlacedProfile
from optimizer.solver.measure import frail
from optimizer.solver.scatter import reinforced, scattered
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


def test_a_replica_is_added_where_a_loss_would_leave_too_little():
    asked = posed(5, survive="node")
    alone = TOGETHER[:1]
    assert frail(asked, settle(asked, alone)) == ["chat"]
    more = settle(asked, reinforced(asked, alone))
    assert not frail(asked, more)
    assert len(more.replicas) == 2
