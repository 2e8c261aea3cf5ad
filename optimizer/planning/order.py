"""Order: moves become steps that keep every customer served on the way.

A list schedule over a simulated fleet. A replica starts once its place is free, its old copy
drains once the new one serves, an instance is cut or destroyed only while nobody is in it, and a
deployment never serves less than it does now or asks, whichever is less. Those with the longest
way behind them go first; a node loads so many replicas at once, the fleet so many in all.

Where moves wait for each other in a circle, some are taken aside to free places first. A whole
part of moves that hang together is opened only when there is room for all whom it takes aside, and
after the parts it waits for: so no part holds room that another needs to go on (the banker's
rule). Where no room is enough, one at a time makes a stop at any free place; without one, a replica
is drained first if the rest carry the demand; else the circle is left as it is, and named.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from optimizer.domain.placement import Placement, replica_order
from optimizer.domain.plan import Move, Step
from optimizer.domain.problem import PlacementProblem
from optimizer.planning.pace import DEFAULT_PACE, Pace
from optimizer.planning.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Ordered:
    """Steps in an order that works, and the replicas whose moves found none (``left``)."""

    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why: tuple[tuple[str, str], ...] = ()  # of each left, why it stays


def order(
    problem: PlacementProblem,
    placement: Placement,
    moves: tuple[Move, ...],
    pace: Pace = DEFAULT_PACE,
) -> Ordered:
    """Steps that carry out the moves, make-before-break, with start times and dependencies.

    Any order of execution that respects ``after`` keeps rooms and floors; played one by one as
    listed they do too. What does not end inside the window is left, as if it had not been asked.
    """
    with _without_cycle_search():
        return _ordered(problem, placement, moves, pace)


@contextmanager
def _without_cycle_search() -> Iterator[None]:
    """Python looks for garbage in cycles, a third of the time here, where there is none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _ordered(
    problem: PlacementProblem, placement: Placement, moves: tuple[Move, ...], pace: Pace
) -> Ordered:
    left: dict[str, str] = {}
    while True:
        todo = [m for m in moves if m.replica not in left]
        run = Schedule(problem, placement, todo, left, pace)
        run.play()
        late = run.late()
        left |= {**run.left, **late}
        if late:
            continue
        # Who stays may serve more than planned for the end: a floor is then higher than was kept.
        if not run.left or not (run.spoiled or run.floors != run.floors_with(left)):
            break
    notes = tuple(f"{name} stays as it is: {why}" for name, why in sorted(left.items()))
    names = tuple(sorted(left, key=replica_order))
    return Ordered(run.drafts.steps(), names, notes, tuple((name, left[name]) for name in names))
