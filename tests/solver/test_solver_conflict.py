"""Impossible plans: which rules clash, and what was found to make a plan possible."""

import random
from dataclasses import replace

import pytest
from ortools.sat.python import cp_model

from builders import a100, candidate, deployment, fleet, node, place, problem, replica
from optimizer.domain.fleet import Limits as Ceilings
from optimizer.domain.fleet import Reserve
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.solver import solve
from optimizer.solver.columns import fine_sites
from optimizer.solver.easing import parts, without
from optimizer.solver.fixes import fixes
from optimizer.solver.foresee import clashing, demanding
from optimizer.solver.formulation import build
from optimizer.solver.possible import Asking
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


def test_clashes_that_have_nothing_in_common_are_told_apart() -> None:
    """One is pinned to a single rack that it must outlive, the other may have one replica."""
    machines = fleet(*(node(f"n{i}", a100(), 2, rack=f"r{i}") for i in range(3)))
    chat = deployment("chat", rps=4, survive="rack", pin=("n0",))
    lone = deployment("lone", rps=4, survive="node", max_replicas=1)
    ways = [candidate(name, a100(), rps=5) for name in ("chat", "lone")]
    outcome = asked(problem(machines, [chat, lone], ways))
    assert outcome.conflict == ("pin: chat", "survive: chat")
    assert outcome.notes[0] == (
        "a plan is possible without pin: chat and with lone.replicas.max 1 -> 2"
    )
    assert "these clash as well: replica_bounds: lone, survive: lone" in outcome.notes


def drawn(seed: int) -> PlacementProblem:
    """A few who must outlive a loss, room to be kept free and ceilings, on few GPUs."""
    dice = random.Random(seed)
    nodes = [node(f"n{i}", a100(), dice.randint(1, 2), price=2.0, rack=f"r{i // 2}",
                  cordoned=dice.random() < 0.15) for i in range(4)]  # fmt: skip
    limits = Ceilings(price_micros_per_hour=dice.choice((None, 6_000_000, 10_000_000)))
    kept = (Reserve(dice.randint(1, 3), gpus=1),) if dice.random() < 0.5 else ()
    deployments, ways = [], []
    for i in range(dice.randint(1, 3)):
        deployments.append(
            deployment(
                f"d{i}",
                rps=dice.randint(2, 9),
                tenant=f"t{i % 2}",
                survive=dice.choice(("node", "rack", None)),
                isolate=dice.choice(("none", "gpu", "node")),
                spread_node=dice.choice((None, 1)),
                max_replicas=dice.choice((None, 2, 3)),
                pin=dice.choice(((), ("n0", "n1"), ("n1", "n2", "n3"))),
            )
        )
        ways += [candidate(f"d{i}", a100(), profile="3g.40gb", rps=3)]
        ways += [candidate(f"d{i}", a100(), rps=6)]
    return problem(fleet(*nodes, limits=limits, reserve=kept), deployments, ways)


def fine(asked_of: PlacementProblem) -> bool:
    """Whether the hard rules can all hold, by the whole formulation alone."""
    only = demanding(asked_of)
    model = build(only, fine_sites(only)).model
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    return bool(solver.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE))


def test_every_rule_that_is_named_is_needed_and_every_fix_helps() -> None:
    clashed = cleared = 0
    for seed in range(50):
        wide = with_reserve(drawn(seed))
        asking = Asking.within(LIMITS)
        holds = fine(wide)
        assert asking.possible(wide) is holds, seed
        few = clashing(wide, asking.possible)
        if few is None:
            cleared += holds
            continue
        assert not holds, seed
        clashed += 1
        core = asking.minimal(few)
        others = [part for part in parts(few) if part.name not in {p.name for p in core}]
        assert not fine(without(few, others)), seed
        for part in core:
            assert fine(without(few, [*others, part])), (seed, part.name)
        assert all(fine(change(few)) for _, change in fixes(asking, few, core)), seed
    assert clashed > 8
    assert cleared > 8
