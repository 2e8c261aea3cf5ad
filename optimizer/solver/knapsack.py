"""The compiled part of packing: depth-first search for fillings of one GPU worth more than a floor.

Sizes come in order of falling rate (value per surrogate room), so that a node can stop at the first
size whose rate no longer reaches the floor. Numba makes this a thousand times faster than numpy
calls at every node.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from optimizer.solver.packing import UNITS

DEEPEST = 256  # shares in one filling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """Compiled at its first call, and kept on disk where there is a folder to write to."""
    try:
        return cast(Compiled, njit(cache=True)(function))
    except RuntimeError:  # numba found no such folder
        return cast(Compiled, njit(function))


@compiled
def worth(units: Ints, values: Floats) -> Floats:
    """The most value by room in one dimension, in units; sizes rounded down and taken freely."""
    top = np.zeros(UNITS + 1)
    for size in range(len(units)):
        top[units[size]] = max(top[units[size]], values[size])
    best = np.zeros(UNITS + 1)
    if top[0] > 0:
        best[:] = np.inf
        return best
    sizes = np.nonzero(top)[0]
    for room in range(1, UNITS + 1):
        best[room] = best[room - 1]
        for unit in sizes:
            if unit > room:
                break
            best[room] = max(best[room], top[unit] + best[room - unit])
    return best


@compiled
def _fits(need: Ints, left: Ints) -> bool:
    for axis in range(len(need)):  # noqa: SIM110 numba compiles no generators
        if need[axis] > left[axis]:
            return False
    return True


@compiled
def _take(need: Ints, left: Ints, after: Ints, weights: Floats) -> float:
    """Write what is left after a share; its surrogate room."""
    room = 0.0
    for axis in range(len(need)):
        after[axis] = left[axis] - need[axis]
        room += after[axis] * weights[axis]
    return room


@compiled
def _completed(need: Ints, left: Ints, worths: Floats, per_unit: Floats) -> float:
    """The most that fits beside a share, each dimension taken alone."""
    least = np.inf
    for axis in range(len(need)):
        # Rounding up a little keeps this a bound.
        unit = int((left[axis] - need[axis]) * per_unit[axis] + 1e-7)
        least = min(least, worths[axis, unit])
    return least


@compiled
def worth_once(units: Ints, values: Floats, most: Ints) -> Floats:
    """As ``worth``, each size taken at most so often."""
    best = np.zeros(UNITS + 1)
    for size in range(len(units)):
        if units[size] > 0 and most[size] * units[size] >= UNITS:  # as often as there is room
            for room in range(units[size], UNITS + 1):
                best[room] = max(best[room], best[room - units[size]] + values[size])
            continue
        left, batch = most[size], 1
        while left > 0:  # batches of 1, 2, 4... make up any number
            times = min(batch, left)
            unit, value = units[size] * times, values[size] * times
            for room in range(UNITS, unit - 1, -1):
                best[room] = max(best[room], best[room - unit] + value)
            left, batch = left - times, batch * 2
    return best


@compiled
def _exceeds(
    size: int, room: float, goal: float, values: Floats, most: Ints, per_value: Floats
) -> bool:
    """Whether sizes from this one on, the last of them cut, may be worth more than a goal.

    Dantzig, Operations Research 5, 1957, in surrogate room; ``per_value``: of all of a size.
    """
    while size < len(values) and room > 0 and goal >= 0:
        value = values[size] * most[size]
        if per_value[size] >= room:
            return value * room > goal * per_value[size]
        goal -= value
        room -= per_value[size]
        size += 1
    return goal < 0


@compiled
def search(
    values: Floats,
    needs: Ints,
    room: Ints,
    most: Ints,
    rate: Floats,
    weights: Floats,
    worths: Floats,
    floor: float,
    most_nodes: int,
    one: bool,
    tight: bool,
) -> tuple[NDArray[np.int32], Ints, Floats, float, int]:
    """For each first size the best filling worth more than ``floor``: sizes, how many, its value.

    With ``one`` only fillings better than those before. Then the greatest bound of the first sizes
    whose search took more than ``most_nodes`` (with ``one``: all together), 0 where none did; and
    the nodes of all. ``tight``: bounds mind how many of a size there are at most.
    """
    number, axes = needs.shape
    per_unit = UNITS / np.maximum(1, room)
    found = np.zeros((number, DEEPEST), np.int32)
    lengths, best = np.zeros(number, np.int64), np.zeros(number)
    left = np.zeros((DEEPEST + 1, axes), np.int64)
    value, surrogate = np.zeros(DEEPEST + 1), np.zeros(DEEPEST + 1)
    taken, following = np.zeros(DEEPEST, np.int64), np.zeros(DEEPEST + 1, np.int64)
    count = np.zeros(number, np.int64)
    given_up, nodes, seen = 0.0, 0, 0
    wide = np.zeros(number)  # surrogate room of all there may be of a size
    for size in range(number):
        for axis in range(axes):
            wide[size] += needs[size, axis] * weights[axis] * most[size]
    left[0] = room
    for first in range(number):
        if most[first] <= 0 or not _fits(needs[first], room):
            continue
        goal = floor
        surrogate[1] = _take(needs[first], room, left[1], weights)
        value[1], following[1], taken[0] = values[first], first, first
        rest = _completed(needs[first], room, worths, per_unit)
        whole = value[1] + min(rest, rate[first] * surrogate[1])
        if whole <= goal:
            continue
        count[first] = 1
        depth, nodes = 1, nodes if one else 0
        if value[1] > goal:
            goal = best[first] = value[1]
            found[first, 0], lengths[first] = first, 1
        while depth > 0:
            held, beside, size = value[depth], left[depth], following[depth]
            short = goal - held
            while size < number and rate[size] * surrogate[depth] > short:
                if count[size] < most[size] and _fits(needs[size], beside):
                    rest = _completed(needs[size], beside, worths, per_unit)
                    if values[size] + rest > short:
                        if tight and not _exceeds(
                            size, surrogate[depth], short, values, most, wide
                        ):
                            size = number
                        break
                size += 1
            else:
                size = number
            if size >= number or depth >= DEEPEST or nodes >= most_nodes:
                if size < number:
                    given_up = max(given_up, whole)
                depth -= 1
                count[taken[depth]] -= 1
                continue
            nodes += 1
            following[depth] = size + 1
            taken[depth] = size
            count[size] += 1
            surrogate[depth + 1] = _take(needs[size], beside, left[depth + 1], weights)
            depth += 1
            value[depth], following[depth] = held + values[size], size
            if value[depth] > goal:
                goal = best[first] = value[depth]
                found[first, :depth] = taken[:depth]
                lengths[first] = depth
        seen += nodes
        if one:
            floor, seen = goal, nodes
    return found, lengths, best, given_up, seen
