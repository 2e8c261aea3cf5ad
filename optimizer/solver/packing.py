"""The best way to fill one shared GPU at given prices: an exact knapsack in three dimensions."""

from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from optimizer.domain.gpu import Use

MOST_NODES = 20_000
MOST_MET = 300
MOST_FIRST = 600  # sizes tried as the first, and as fillers

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
    others: tuple[Counts, ...] = ()  # good ones met on the way


class Packer:
    """Fillings of one kind of GPU with shares of given sizes."""

    def __init__(self, room: Use, sizes: tuple[Use, ...]) -> None:
        self.sizes = sizes
        needs = [(u.memory_mib, u.bandwidth_mbs, u.compute_ppm) for u in sizes]
        self.needs: Ints = np.array(needs, dtype=np.int64).reshape(-1, 3)
        self.room: Ints = np.array(
            (room.memory_mib, room.bandwidth_mbs, room.compute_ppm), dtype=np.int64
        )
        self.parts: Floats = self.needs / np.maximum(1, self.room)
        self.weights: Floats = np.full(3, 1 / 3)  # of the three dimensions

    def best(self, values: Floats, target: float = 0.0, *, exact: bool = True) -> Packed:
        """The filling of most value; of no interest where it does not exceed ``target``.

        Without ``exact`` the best of many good ones, and no bound.
        """
        values = np.where((self.needs <= self.room).all(axis=1), values, 0.0)
        if not len(values) or values.max() <= 0:
            return Packed(0.0, 0.0, ())
        theta, surrogate = self._surrogate(values)
        known = self._greedy(values, surrogate, theta * surrogate - values, theta - target)
        floor = max(known.value, target)
        if not exact:
            return replace(known, bound=inf)
        return _Fill(self, values, known, floor).run()

    def repaired(self, values: Floats, target: float, wanted: Ints) -> tuple[Floats, list[Counts]]:
        """Values lowered until no filling is worth more than ``target``, and fillings that were.

        Sizes that nobody wants are lowered first: that costs a bound the least.
        """
        values = values.copy()
        broken: list[Counts] = []
        for _ in range(MOST_REPAIRS):
            over = self._over(values, target)
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

    def _over(self, values: Floats, target: float) -> list[Counts]:
        """Fillings worth more than ``target``: many greedy ones, else by search."""
        quick = self.best(values, target, exact=False)
        limit = target * (1 + 1e-9)
        over = [
            counts
            for counts in (quick.counts, *quick.others)
            if sum(float(values[j]) * n for j, n in counts) > limit
        ]
        worth = np.where((self.needs <= self.room).all(axis=1), values, 0.0)
        if over or not worth.any():
            return over
        search = _Fill(self, worth, Packed(0.0, 0.0, ()), limit, collect=True)
        search.run()
        return search.met

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

    def _surrogate(self, values: Floats) -> tuple[float, Floats]:
        """Weights of the three dimensions (summing to 1) that make the rate bound small."""
        worth = np.nonzero(values > 0)[0]
        parts, v = self.parts[worth], values[worth]
        best = self.weights
        rate = float((v / np.maximum(1e-12, parts @ best)).max())
        step = 0.25
        while step > 1e-4:
            moved = False
            for into in range(3):
                for out in range(3):
                    by = min(step, best[out])
                    if into == out or by <= 0:
                        continue
                    trial = best.copy()
                    trial[into] += by
                    trial[out] -= by
                    other = float((v / np.maximum(1e-12, parts @ trial)).max())
                    if other < rate * (1 - 1e-9):
                        best, rate, moved = trial, other, True
            if not moved:
                step /= 2
        self.weights = best
        return rate, self.parts @ best

    def _greedy(
        self,
        values: Floats,
        surrogate: Floats,
        loss: Floats,
        slack: float,
    ) -> Packed:
        """For each hopeful first size: filled up with the best rate, all first sizes at once."""
        first = np.nonzero((values > 0) & (loss <= max(slack, 1e-9)))[0]
        if not len(first):
            first = np.array([int((values / np.maximum(1e-12, surrogate)).argmax())])
        first = first[np.argsort(loss[first], kind="stable")][:MOST_FIRST]
        rate = np.where(values > 0, values / np.maximum(1e-12, surrogate), -1.0)
        order = np.argsort(-rate, kind="stable")[:MOST_FIRST]
        order = order[rate[order] > 0]
        needs = self.needs[order]
        left = self.room - self.needs[first]
        chosen = [[int(one)] for one in first]
        alive = np.arange(len(first))
        while len(alive):
            fits = (needs[None, :, :] <= left[alive][:, None, :]).all(axis=2)
            any_fits = np.logical_or.reduce(fits, axis=1)
            alive, picks = alive[any_fits], order[fits.argmax(axis=1)[any_fits]]
            left[alive] -= self.needs[picks]
            for row, pick in zip(alive.tolist(), picks.tolist(), strict=True):
                chosen[row].append(pick)
        found = sorted(
            {_counted(sizes): float(values[sizes].sum()) for sizes in chosen}.items(),
            key=lambda item: (-item[1], item[0]),
        )
        (best, value), *others = found
        return Packed(value, value, best, tuple(counts for counts, _ in others[:MOST_MET]))


def _counted(sizes: list[int]) -> Counts:
    counts: dict[int, int] = {}
    for size in sizes:
        counts[size] = counts.get(size, 0) + 1
    return tuple(sorted(counts.items()))


class _Fill:
    """Depth first; what room is left is worth at most what each dimension alone would allow."""

    def __init__(
        self,
        packer: Packer,
        values: Floats,
        known: Packed,
        floor: float,
        *,
        collect: bool = False,
    ) -> None:
        """With ``collect`` every filling above the floor is met, up to a number."""
        self.collect = collect
        hopeful = np.nonzero(values > 0)[0]
        self.sizes = hopeful[np.argsort(-values[hopeful], kind="stable")]
        self.values = values[self.sizes]
        self.needs = packer.needs[self.sizes]
        self.room = np.maximum(1, packer.room)
        self.whole = packer.room
        units = self.needs * UNITS // self.room
        self.worth = np.stack([_worth(units[:, axis], self.values) for axis in range(3)])
        self.known, self.floor = known, floor
        self.nodes = 0
        self.open_bound = 0.0
        self.met: list[Counts] = []

    def run(self) -> Packed:
        self._descend(0, self.whole, 0.0, [])
        bound = max(self.floor, self.open_bound)
        others = (*self.met, *self.known.others)[:MOST_MET]
        return Packed(self.known.value, bound, self.known.counts, others)

    def _descend(self, first: int, left: Ints, value: float, taken: list[int]) -> None:
        rest = left - self.needs[first:]
        fits = (rest >= 0).all(axis=1)
        if not fits.any():
            return
        index = np.nonzero(fits)[0]
        units = rest[index] * UNITS // self.room
        completed = np.minimum.reduce([self.worth[axis][units[:, axis]] for axis in range(3)])
        most = value + self.values[first:][index] + completed
        for at in np.argsort(-most, kind="stable").tolist():
            if most[at] <= self.floor * (1 + 1e-12):
                return
            self.nodes += 1
            if self.nodes > MOST_NODES or (self.collect and len(self.met) >= MOST_MET):
                self.open_bound = max(self.open_bound, float(most[at]))
                return
            one = first + int(index[at])
            got = value + float(self.values[one])
            taken.append(one)
            if self.collect and got > self.floor:
                self.met.append(_counted([int(self.sizes[one]) for one in taken]))
            elif not self.collect and got > self.known.value:
                self._keep(got, taken)
            self._descend(one, rest[index[at]], got, taken)
            taken.pop()

    def _keep(self, value: float, taken: list[int]) -> None:
        self.met.append(self.known.counts)
        counts = _counted([int(self.sizes[one]) for one in taken])
        self.known = Packed(value, value, counts, self.known.others)
        self.floor = max(self.floor, value)


def _worth(units: Ints, values: Floats) -> Floats:
    """The most value by room in one dimension, sizes rounded down to units and taken freely."""
    best = np.zeros(UNITS + 1)
    free = float(values[units == 0].max()) if (units == 0).any() else 0.0
    if free > 0:
        return np.full(UNITS + 1, np.inf)
    top = np.zeros(UNITS + 1)
    np.maximum.at(top, units, values)
    sizes = np.nonzero(top)[0]
    top = top[sizes]
    for room in range(int(sizes[0]), UNITS + 1):
        fitting = int(np.searchsorted(sizes, room, side="right"))
        best[room] = max(
            best[room - 1], float((top[:fitting] + best[room - sizes[:fitting]]).max())
        )
    return best
