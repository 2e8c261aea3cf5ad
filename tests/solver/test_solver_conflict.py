"""Impossible plans: which rules clash, and what was found to make a plan possible."""

from dataclasses import replace

import pytest

from builders import a100, candidate, deployment, fleet, node, place, problem, replica
from optimizer.domain.fleet import Limits as Ceilings
from optimizer.domain.fleet import Reserve
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import solve
from optimizer.verify import check_outcome

LIMITS = Limits(effort=5, time_limit_s=60)


def asked(problem: PlacementProblem) -> Outcome:
    outcome = solve(problem, LIMITS)
    assert not (outcome.incumbent and check_outcome(problem, outcome))
    return outcome


def test_what_outlives_a_loss_needs_a_second_domain() -> None:
    """One rack for all: no number of replicas outlives its loss, another rack does."""
    racks = [node(f"n{i}", a100(), 2, rack="r0") for i in range(3)]
    chat = deployment("chat", rps=4, survive="rack", spread_node=2)
    other = deployment("other", rps=1, spread_node=1)
    ways = [candidate(name, a100(), rps=5) for name in ("chat", "other")]
    outcome = asked(problem(fleet(*racks), [chat, other], ways))
    assert outcome.termination is Termination.INFEASIBLE
    assert outcome.conflict == ("survive: chat",)
    assert [note.partition("possible ")[2] for note in outcome.notes] == [
        "with chat.survive rack -> node",
        "with 1 more a100 (1 node of 1, a rack of its own; 1.00 USD/h)",
    ]


def test_only_the_rules_that_clash_are_named() -> None:
    """Two slices stay on each of two GPUs, and a GPU is to be free: too much for the ceiling."""
    machines = fleet(
        node("n0", a100(), 2, price=2.0),
        node("n1", a100(), 1, price=2.0, rack="r1"),
        limits=Ceilings(price_micros_per_hour=4_000_000),
        reserve=(Reserve(1, gpus=1),),
    )
    chat = deployment("chat", replicas=2, disturb="never", spread_rack=2, pin=("n0",))
    ways = [candidate("chat", a100(), profile="3g.40gb")]
    now = place(
        replica("chat/0", "n0/0", mig="3g.40gb@0"), replica("chat/1", "n0/1", mig="3g.40gb@4")
    )
    clash = problem(machines, [chat], ways, now)
    outcome = asked(clash)
    assert outcome.conflict == ("price_limit", "do_not_disturb: chat", "reserve[0]")
    assert outcome.notes == (
        "a plan is possible with limits.price_per_hour 4.00 USD/h -> 6.00 USD/h",
        "a plan is possible without do_not_disturb: chat",
        "a plan is possible without reserve[0]",
    )
    roomy = replace(machines, limits=Ceilings(price_micros_per_hour=6_000_000))
    assert asked(replace(clash, fleet=roomy)).termination is Termination.OPTIMAL


@pytest.mark.slow
def test_a_large_fleet_outlives_losses_and_keeps_room_free() -> None:
    nodes = [node(f"a{i:02}", a100(), 8, price=2.0, rack=f"r{i // 5}") for i in range(40)]
    machines = fleet(*nodes, reserve=(Reserve(3, gpus=8), Reserve(5, "3g.40gb")))
    deployments, ways = [], []
    for i in range(12):
        kind = (None, "node", "rack")[i % 3]
        deployments.append(deployment(f"d{i}", rps=20 + 7 * i, survive=kind, spread_node=4))
        ways += [candidate(f"d{i}", a100(), profile="2g.20gb", rps=3)]
        ways += [candidate(f"d{i}", a100(), rps=9), candidate(f"d{i}", a100(), gpus=2, rps=20)]
    large = problem(machines, deployments, ways)
    outcome = asked(large)
    assert outcome.incumbent is not None
    price = next(o for o in outcome.objectives if o.name == "price_per_hour")
    assert all(o.value == 0 for o in outcome.objectives if o.name == "unmet")
    assert price.gap < 0.1
    assert len(outcome.incumbent.reserved) == 8
