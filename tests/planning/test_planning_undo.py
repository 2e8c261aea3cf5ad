"""Undo: moves that gain nothing are taken back, moves that save are kept."""

from dataclasses import replace

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import moves, spared, undo
from optimizer.verify import check_outcome, objectives, verify
from transitions import transition

PLAIN = gpu("plain")


def asked(now: Placement) -> PlacementProblem:
    """Up to two replicas of x, y and z each, on four GPUs of two prices."""
    return problem(
        fleet(node("a", PLAIN, 2, price=1.0), node("b", PLAIN, 2, price=3.0)),
        [deployment(name, rps=1) for name in "xyz"],
        [candidate(name, PLAIN, rps=1) for name in "xyz"],
        now,
    )


NOW = place(replica("x/0", "a/0"), replica("y/0", "a/1"), replica("z/0", "b/0"))


def test_a_swap_for_nothing_is_taken_back() -> None:
    """Neither can go back alone: the other is in its place."""
    later = place(replica("x/0", "a/1"), replica("y/0", "a/0"), replica("z/0", "b/0"))
    assert undo(asked(NOW), later) == NOW


def test_what_saves_is_kept() -> None:
    """y makes way for z, and a start that nobody needs goes with the dear GPU it runs on."""
    now = place(replica("x/0", "a/0"), replica("z/0", "b/0"))
    later = place(replica("x/0", "a/0"), replica("y/0", "b/1"), replica("z/0", "a/1"))
    where = asked(now)
    assert undo(where, later) == later
    more = place(*later.replicas, replica("x/1", "b/0"))
    assert undo(where, more) == later


def test_the_outcome_says_what_it_is_worth_now() -> None:
    later = place(replica("x/0", "a/1"), replica("y/0", "a/0"), replica("z/0", "b/0"))
    where = asked(NOW)
    score = objectives(where, later)
    told = (
        Objective("unmet", 0, 0, where.deployments[0].priority),
        Objective("price_per_hour", score.price_micros, score.price_micros),
        Objective("disruption", score.disruption_mib or 0, 0),
        Objective("stranded", 0, 0),
    )
    found = spared(where, Outcome(Termination.LIMIT, later, told))
    assert check_outcome(where, found) == ()
    assert (found.incumbent, found.termination) == (NOW, Termination.OPTIMAL)


def test_never_worse_under_any_rule() -> None:
    fewer = 0
    for seed in range(40):
        where, later = transition(seed)
        where = replace(
            where, deployments=tuple(replace(d, isolate="none") for d in where.deployments)
        )
        if verify(where, later):
            continue
        found = undo(where, later)
        before, after = objectives(where, later), objectives(where, found)
        assert verify(where, found) == ()
        assert after.levels <= before.levels
        assert len(moves(where, found)) <= len(moves(where, later))
        fewer += len(moves(where, found)) < len(moves(where, later))
    assert fewer > 5
