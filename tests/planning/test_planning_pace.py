"""Pace: loads at once, the window, and how near the shortest makespan the steps come."""

from collections import Counter

import pytest

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement, node_of
from optimizer.domain.plan import Step
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import Ordered, Pace, makespan, moves, order
from optimizer.planning.circles import aside, circular, components, tails
from optimizer.verify import check_outcome, replay
from scripts.bench.rebalance_fleets import fragmented, relayout

PLAIN = gpu("plain")
WIDE = Pace(loads_per_node=99)


def crowd(count: int, load_gib: float = 60) -> tuple[PlacementProblem, Placement]:
    """``count`` replicas go from node a to node b; each load takes a minute."""
    where = problem(
        fleet(node("a", PLAIN, count), node("b", PLAIN, count)),
        [deployment("chat", replicas=count)],
        [candidate("chat", PLAIN, load_gib=load_gib)],
        place(*(replica(f"chat/{i}", f"a/{i}") for i in range(count))),
    )
    return where, place(*(replica(f"chat/{i}", f"b/{i}") for i in range(count)))


def ordered(where: PlacementProblem, later: Placement, pace: Pace) -> Ordered:
    """The steps, found right by the judge."""
    found = order(where, later, moves(where, later), pace)
    assert where.current is not None
    assert replay(where, where.current, found.steps, later, left=found.left) == ()
    return found


def most_at_once(steps: tuple[Step, ...], node_too: bool = False) -> int:
    """The most loads that run at one moment, in the fleet or on one node."""
    starts = [s for s in steps if s.action == "start"]
    busiest = 0
    for one in starts:
        running = [s for s in starts if s.start_s <= one.start_s < s.start_s + s.seconds]
        by_node = Counter(node_of(s.gpus[0]) for s in running)
        busiest = max(busiest, by_node[node_of(one.gpus[0])] if node_too else len(running))
    return busiest


@pytest.mark.parametrize("most", [1, 2, 6])
def test_loads_on_one_node(most: int) -> None:
    found = ordered(*crowd(6), Pace(loads_per_node=most))
    assert most_at_once(found.steps, node_too=True) == most


@pytest.mark.parametrize("most", [1, 3, None])
def test_loads_in_the_fleet(most: int | None) -> None:
    found = ordered(*crowd(6), Pace(loads_per_node=99, loads_at_once=most))
    assert most_at_once(found.steps) == (most or 6)


def test_makespan_reaches_its_bound_where_nothing_waits() -> None:
    for pace, why in ((WIDE, "chain"), (Pace(1), "node"), (Pace(99, 1), "fleet")):
        took = makespan(ordered(*crowd(4), pace).steps, pace)
        assert (took.seconds, took.because) == (took.bound, why)
    assert makespan((), WIDE).seconds == 0


def test_what_does_not_fit_the_window_is_left() -> None:
    """Loads of 60 s one after another and 40 s of hand-over: two end within 160 s."""
    where, later = crowd(4)
    found = ordered(where, later, Pace(loads_per_node=1, window_s=160))
    assert len(found.left) == 2
    assert makespan(found.steps).seconds <= 160
    assert "window of 160 s" in found.notes[0]
    assert ordered(where, later, Pace(loads_per_node=1, window_s=30)).steps == ()


def test_the_most_valuable_moves_come_first_in_a_window() -> None:
    """a/0 is freed by one replica, a/1 by two halves: the one saves as much for less."""
    where, later = crowd(3)
    dear = problem(
        fleet(node("a", PLAIN, 3, price=1.0), node("c", PLAIN, 1, price=9.0), node("b", PLAIN, 3)),
        [deployment("chat", replicas=3)],
        where.candidates["chat"],
        place(replica("chat/0", "a/0"), replica("chat/1", "a/1"), replica("chat/2", "c/0")),
    )
    found = ordered(dear, later, Pace(loads_per_node=1, window_s=120))
    assert found.left == ("chat/0", "chat/1")


def test_full_layouts_in_circles() -> None:
    """Two spare GPUs suffice; with more the makespan comes near its bound."""
    problem, later = relayout(48, spares=2)
    tight = ordered(problem, later, Pace())
    assert tight.left == ()
    problem, later = relayout(48, spares=16)
    pace = Pace(loads_at_once=4)
    wide = ordered(problem, later, pace)
    assert wide.left == ()
    assert makespan(wide.steps, pace).ratio < 1.1


WAITS = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["a"], "f": ["f"]}


def test_circles() -> None:
    found = [sorted(c) for c in components(list(WAITS), WAITS)]
    assert sorted(found) == [["a", "b", "c"], ["d"], ["e"], ["f"]]
    assert found.index(["d"]) < found.index(["a", "b", "c"]) < found.index(["e"])
    assert [circular(c, WAITS) for c in (["a", "b", "c"], ["d"], ["f"])] == [True, False, True]
    assert aside(["a", "b", "c"], WAITS, lambda n: 1.0 if n == "b" else 9.0) == ["b"]
    assert aside(["f"], WAITS, lambda n: 1.0) == ["f"]


def test_tails_are_the_longest_way_to_the_end() -> None:
    waits = {"a": [], "b": ["a"], "c": ["b"], "d": ["a"]}
    assert tails(list(waits), waits, lambda n: 2.0) == {"a": 6.0, "b": 4.0, "c": 2.0, "d": 2.0}


def occupied_cuts(where: PlacementProblem, steps: tuple[Step, ...]) -> list[str]:
    """Instances that are created or destroyed while somebody is on their GPU."""
    assert where.current is not None
    on = Counter(gpu for r in where.current.replicas for gpu in r.gpus)
    events = [(s.start_s + s.seconds, 0, s) for s in steps if s.action == "stop"]
    events += [(s.start_s, 2, s) for s in steps if s.action == "start"]
    cuts = ("create_instance", "destroy_instance")
    events += [(s.start_s, 1, s) for s in steps if s.action in cuts]
    found = []
    for _, kind, step in sorted(events, key=lambda e: (e[0], e[1], e[2].id)):
        if kind == 1 and on[step.gpus[0]]:
            found.append(step.id)
        on.update(dict.fromkeys(step.gpus, (-1, 0, 1)[kind]))
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["instance by instance", "whole GPUs"])
def test_both_manners_of_repartition(whole: bool) -> None:
    """Where only empty GPUs can be cut, more must move and no cut has a neighbour."""
    rebalance = pytest.importorskip("optimizer.solver.rebalance")
    where = fragmented(48, seed=3)
    outcome = rebalance.consolidate(where, Limits(time_limit_s=60), rebalance.Ask(whole_gpus=whole))
    assert outcome.incumbent is not None
    assert check_outcome(where, outcome) == ()
    found = ordered(where, outcome.incumbent, Pace(whole_gpus=whole))
    assert found.left == ()
    assert bool(occupied_cuts(where, found.steps)) is not whole
