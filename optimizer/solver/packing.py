"""Fillings of one shared GPU at given prices: an exact knapsack in all its dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from optimizer.domain.gpu import Use

MOST_NODES = 20_000_000  # of the search for the best filling: a second
FEW_NODES = 300  # where a good one for each first size will do
MOST_MET = 300
MOST_IN_GPU = 64  # shares that need nothing of a GPU
MOST_REPAIRS = 40
UNITS = 2048  # of room in each dimension, for bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = tuple[tuple[int, int], ...]  # (size, how often)


@dataclass(frozen=True, slots=True)
class Packed:
    """The best filling found, its value, and a value that no filling exceeds."""

    value: float
    bound: float
    counts: Counts
    others: tuple[Counts, ...] = ()  # good ones met on the way, best first
    nodes: int = 0  # of the search

    @property
    def all(self) -> tuple[Counts, ...]:
        """Every filling found."""
        return (self.counts, *self.others) if self.counts else ()


class Packer:
    """Fillings of one kind of GPU with shares of given sizes."""

    def __init__(self, room: Sequence[int], needs: Sequence[Sequence[int]]) -> None:
        """``needs`` of each size in the dimensions of the ``room``."""
        self.room: Ints = np.array(room, dtype=np.int64)
        self.needs: Ints = np.array(needs, dtype=np.int64).reshape(-1, len(self.room))
        self.parts: Floats = self.needs / np.maximum(1, self.room)
        self.times = self._times()
        self.fitting = (self.times > 0) & self.needs.any(axis=1)

    @classmethod
    def of_shares(cls, room: Use, sizes: Sequence[Use]) -> "Packer":
        """In memory, bandwidth and compute."""
        needs = [(u.memory_mib, u.bandwidth_mbs, u.compute_ppm) for u in sizes]
        return cls((room.memory_mib, room.bandwidth_mbs, room.compute_ppm), needs)

    def _times(self) -> Ints:
        """How often each size alone fits."""
        often = np.where(self.needs > 0, self.room // np.maximum(1, self.needs), MOST_IN_GPU)
        return np.asarray(often.min(axis=1, initial=MOST_IN_GPU), dtype=np.int64)

    def best(
        self,
        values: Floats,
        target: float = 0.0,
        *,
        exact: bool = True,
        most: Ints | None = None,
        nodes: int = FEW_NODES,
        tight: bool = False,
    ) -> Packed:
        """The filling of most value; of no interest where it does not exceed ``target``.

        Without ``exact`` the best of many good ones, and a bound only where ``nodes`` for each
        first size were enough. ``most``: of each size; bounds
        mind it where they are ``tight``, which pays where a size is wanted once or twice.
        """
        quick = self._search(values, target, nodes, most, one=False, tight=tight)
        if quick.bound <= max(target, quick.value):
            return quick
        if not exact:
            return replace(quick, bound=inf)
        floor = max(target, quick.value)
        best = self._search(values, floor, MOST_NODES, most, one=True, tight=tight)
        seen = quick.nodes + best.nodes
        if best.value <= quick.value:
            return replace(quick, bound=max(best.bound, floor), nodes=seen)
        others = (*best.others, *quick.all)[:MOST_MET]
        return Packed(best.value, max(best.bound, best.value), best.counts, others, seen)

    def _search(
        self,
        values: Floats,
        target: float,
        nodes: int,
        most: Ints | None,
        *,
        one: bool,
        tight: bool,
    ) -> Packed:
        """Fillings worth more than ``target``, best first."""
        from optimizer.solver import knapsack  # late, as in worth_by_room

        limit = self.times if most is None else np.minimum(self.times, most)
        at = np.nonzero((values > 0) & (limit > 0) & self.fitting)[0]
        if not len(at):
            return Packed(0.0, 0.0, ())
        weights = surrogate(values[at], self.parts[at], limit[at] if tight else None)
        rate = values[at] / (self.parts[at] @ weights)
        order = np.argsort(-rate, kind="stable")
        at, rate = at[order], rate[order]
        needs, worth = self.needs[at], values[at]
        units = needs * UNITS // np.maximum(1, self.room)
        worths = np.stack(
            [
                knapsack.worth_once(column, worth, limit[at])
                if tight
                else knapsack.worth(column, worth)
                for column in np.ascontiguousarray(units.T)
            ]
        )
        floor = target * (1 + 1e-12)
        per_room = weights / np.maximum(1, self.room)
        found, lengths, best, given_up, seen = knapsack.search(
            worth, needs, self.room, limit[at], rate, per_room, worths, floor, nodes, one, tight
        )
        kept = [first for first in np.argsort(-best, kind="stable") if lengths[first]]
        fillings = [_counted(at[found[first, : lengths[first]]].tolist()) for first in kept]
        value = float(best[kept[0]]) if kept else 0.0
        bound = max(value, target, given_up)
        if not kept:
            return Packed(0.0, bound, (), nodes=seen)
        return Packed(value, bound, fillings[0], tuple(dict.fromkeys(fillings[1:])), seen)

    def repaired(self, values: Floats, target: float, wanted: Ints) -> tuple[Floats, list[Counts]]:
        """Values lowered until no filling is worth more than ``target``, and fillings that were.

        Sizes that nobody wants are lowered first: that costs a bound the least.
        """
        values = values.copy()
        broken: list[Counts] = []
        for _ in range(MOST_REPAIRS):
            over = self.best(values, target * (1 + 1e-9)).all
            if not over:
                break
            broken += over
            for counts in over:
                excess = sum(float(values[j]) * n for j, n in counts) - target
                if excess <= 0:
                    continue
                idle = [(j, n) for j, n in counts if not wanted[j]]
                for some in (idle, counts):
                    held = sum(float(values[j]) * n for j, n in some)
                    cut = min(excess, held)
                    if cut > 0:
                        for j, _ in some:
                            values[j] *= 1 - cut / held
                        excess -= cut
        return values, broken

    def neighbours(self, number: int) -> list[tuple[int, int]]:
        """Pairs (small, large): the nearest sizes that need no less in any dimension."""
        found = []
        for small, need in enumerate(self.needs):
            larger = (self.needs >= need).all(axis=1)
            larger[small] = False
            equal = (self.needs == need).all(axis=1)
            larger[:small] &= ~equal[:small]
            at = np.nonzero(larger)[0]
            if len(at):
                excess = (self.parts[at] - self.parts[small]).sum(axis=1)
                nearest = at[np.argsort(excess, kind="stable")[:number]]
                found += [(small, int(large)) for large in nearest]
        return found


def worth_by_room(units: Ints, values: Floats) -> Floats:
    """The most value by room in one dimension, sizes rounded down to units and taken freely."""
    # Numba takes half a second to import, which problems without shared GPUs need not pay.
    from optimizer.solver import knapsack

    return knapsack.worth(np.ascontiguousarray(units), values)


def surrogate(values: Floats, parts: Floats, most: Ints | None = None) -> Floats:
    """Weights of the dimensions that bound what all values can add up to, and do it best.

    The duals of the knapsack's linear relaxation. Where sizes may be taken at will, no value
    exceeds its size's weighted parts; with ``most`` of each, the weights bound what fits best.
    """
    lp = pywraplp.Solver.CreateSolver("GLOP")
    rows = [lp.Constraint(-lp.infinity(), 1.0) for _ in range(parts.shape[1])]
    goal = lp.Objective()
    goal.SetMaximization()
    limits = [lp.infinity()] * len(values) if most is None else most.tolist()
    for value, part, limit in zip(values.tolist(), parts.tolist(), limits, strict=True):
        x = lp.NumVar(0.0, limit, "")
        goal.SetCoefficient(x, value)
        for row, one in zip(rows, part, strict=True):
            row.SetCoefficient(x, one)
    if lp.Solve() != pywraplp.Solver.OPTIMAL:
        return np.full(len(rows), float((values / parts.max(axis=1)).max()))
    weights = np.array([max(0.0, row.dual_value()) for row in rows])
    return weights + max(1e-12, 1e-6 * float(weights.max()))  # no size's room is worth nothing


def _counted(sizes: list[int]) -> Counts:
    counts: dict[int, int] = {}
    for size in sizes:
        counts[size] = counts.get(size, 0) + 1
    return tuple(sorted(counts.items()))
