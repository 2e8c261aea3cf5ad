"""Reach: a plan ends in a state that its steps reach, under every rule, as good as can be."""

from dataclasses import replace

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import Ordered, Pace, moves, reached
from optimizer.verify import check_outcome, objectives, replay, verify
from transitions import transition

PLAIN, DEAR = gpu("plain"), gpu("dear")


def outcome(where: PlacementProblem, later: Placement) -> Outcome:
    """A target with bounds of nothing."""
    score = objectives(where, later)
    return Outcome(
        Termination.LIMIT,
        later,
        (
            *(Objective("unmet", ppm, 0, priority) for priority, ppm in score.unmet_ppm),
            Objective("price_per_hour", score.price_micros, 0),
            Objective("disruption", score.disruption_mib or 0, 0),
            Objective("stranded", score.stranded_mib, 0),
        ),
    )


def ended(
    where: PlacementProblem, later: Placement, pace: Pace | None = None
) -> tuple[Outcome, Ordered]:
    """Where the steps to a target end; the judge finds nothing wrong with either."""
    found, ordered = reached(where, outcome(where, later), pace or Pace())
    assert found.incumbent is not None
    assert where.current is not None
    assert check_outcome(where, found) == ()
    broken = replay(where, where.current, ordered.steps, found.incumbent, left=ordered.left)
    assert broken == ()
    return found, ordered


def swapping(*more: str, dear: int = 0) -> tuple[PlacementProblem, Placement]:
    """x and y change places, so that z may move from a dear GPU to a cheap one."""
    machines = fleet(node("a", PLAIN, 3, price=1.0), node("b", DEAR, 1 + dear, price=9.0))
    ways = [candidate(name, PLAIN, rps=1) for name in "xyz"]
    ways += [candidate(name, DEAR, rps=1) for name in ("z", *more)]
    now = place(replica("x/0", "a/0"), replica("y/0", "a/1"), replica("z/0", "b/0"))
    later = place(replica("x/0", "a/1"), replica("y/0", "a/0"), replica("z/0", "a/2"))
    return problem(machines, [deployment(n, rps=1) for n in "xyz"], ways, now), later


def test_what_has_an_order_stays_as_it_is() -> None:
    where, _ = swapping()
    later = place(replica("x/0", "a/0"), replica("y/0", "a/1"), replica("z/0", "a/2"))
    told = outcome(where, later)
    found, ordered = reached(where, told)
    assert (found, ordered.left) == (told, ())
    assert [s.action for s in ordered.steps] == ["start", "shift_traffic", "drain", "stop"]


def test_a_circle_without_room_is_taken_back() -> None:
    """Nobody gains by the swap, and no place is free for it: z alone moves."""
    where, later = swapping()
    where = replace(where, fleet=replace(where.fleet, nodes=where.fleet.nodes[:1]))
    now = place(replica("x/0", "a/0"), replica("y/0", "a/1"), replica("z/0", "a/2"))
    later = place(replica("x/0", "a/1"), replica("y/0", "a/0"), replica("z/0", "a/2"))
    found, ordered = ended(replace(where, current=now), later)
    assert (found.incumbent, ordered.steps, ordered.left) == (now, (), ())
    assert found.notes[0] == "not all of the best plan found can be done in one night"
    assert "as now, for another night: x/0, y/0" in found.notes


def test_one_of_a_circle_goes_elsewhere_where_that_serves_more() -> None:
    """x and y want each other's kind of GPU to serve more, and only a dear one is free."""
    kinds = gpu("one"), gpu("two"), DEAR
    machines = fleet(*(node(n, kind, 1) for n, kind in zip("abc", kinds, strict=True)))
    ways = [
        candidate("x", kinds[0], rps=1), candidate("x", kinds[1], rps=2),
        candidate("x", kinds[2], rps=2), candidate("y", kinds[1], rps=1),
        candidate("y", kinds[0], rps=2),
    ]  # fmt: skip
    now = place(replica("x/0", "a/0"), replica("y/0", "b/0"))
    where = problem(machines, [deployment("x", rps=2), deployment("y", rps=2)], ways, now)
    found, ordered = ended(where, place(replica("x/0", "b/0"), replica("y/0", "a/0")))
    assert found.incumbent == place(replica("x/0", "c/0"), replica("y/0", "a/0"))
    assert ordered.left == ()
    assert "otherwise than in that plan: x/0" in found.notes


def test_what_cannot_be_served_without_an_order_stays_named() -> None:
    """The same without a third GPU: the target alone serves all, so it is told what is undone."""
    kinds = gpu("one"), gpu("two")
    machines = fleet(*(node(n, kind, 1) for n, kind in zip("ab", kinds, strict=True)))
    ways = [
        candidate(name, kinds[number ^ (rps - 1)], rps=rps)
        for number, name in enumerate("xy")
        for rps in (1, 2)
    ]
    now = place(replica("x/0", "a/0"), replica("y/0", "b/0"))
    where = problem(machines, [deployment("x", rps=2), deployment("y", rps=2)], ways, now)
    later = place(replica("x/0", "b/0"), replica("y/0", "a/0"))
    found, ordered = reached(where, outcome(where, later))
    assert found.incumbent == later
    assert ordered.left == ("x/0", "y/0")


def test_what_the_window_leaves_is_for_another_night() -> None:
    where, _ = swapping()
    later = place(replica("x/0", "a/0"), replica("y/0", "a/1"), replica("z/0", "a/2"))
    found, ordered = ended(where, later, Pace(window_s=20))
    assert (found.incumbent, ordered) == (where.current, Ordered())
    assert found.notes[0].endswith("all of it would save 8.00 USD/h")


def test_random_targets_are_reached_or_named() -> None:
    complete = changed = 0
    for seed in range(60):
        where, later = transition(seed, fill=0.9)
        if verify(where, later):
            continue
        found, ordered = reached(where, outcome(where, later))
        assert where.current is not None
        assert found.incumbent is not None
        broken = replay(where, where.current, ordered.steps, found.incumbent, left=ordered.left)
        assert broken == (), f"seed {seed}: {broken[0]}"
        assert check_outcome(where, found) == (), f"seed {seed}"
        told = objectives(where, found.incumbent).unmet_ppm
        assert told <= objectives(where, later).unmet_ppm
        complete += not ordered.left
        changed += found.incumbent != later and bool(moves(where, found.incumbent))
    assert complete > 20
    assert changed > 5
