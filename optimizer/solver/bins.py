"""Few GPUs that hold all wanted shares, and how many it takes at least.

Best-fit and exchanges of shares (``squeeze``) give a first answer within a second. The linear
program over fillings, whose fillings are generated, gives the bound (Gilmore and Gomory, 1961).
Dives into it give better answers: what the program uses most is fixed, fillings for what is left
are generated anew, and so on; shares of what a dive found are exchanged again; a dive that ends
above the bound is followed by others that may not begin as it did (limited discrepancy: Sadykov and
others, INFORMS J. Computing 31, 2019).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from optimizer.solver import ear
from optimizer.solver.packing import FEW_NODES, Counts, Packer

EFFORT = 500_000  # in units of PER_EFFORT and PER_SIMPLEX, which take as long
SQUEEZE = 4000  # effort for one GPU less by exchanges, at first and after each dive
ROOT = 0.4  # of the effort for the bound
MOST_ROUNDS = 500
MANY_NODES = 30_000  # of the search for fillings with one first size
PER_EFFORT = 100  # nodes in one unit of effort
PER_SIMPLEX = 500  # simplex iterations times rows in one
DIVE_ROUNDS = 20
MOST_DISCREPANCIES = 4
EARLY = 3  # choices of a dive that later ones may not repeat
PART = 0.05  # of the GPUs still to fill that one step of the first dive fixes
NEAR = 0.8  # a filling used so often, or so often more, is as good as used once more
SLACK = 0.01  # reduced cost of the fillings that a dive begins with
WORTH = 0.01  # by which a new filling must be worth more than a GPU in a dive
TINY = 1e-6

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Filled = tuple[tuple[Counts, int], ...]  # fillings, each with how many GPUs


@dataclass(frozen=True, slots=True)
class Packing:
    """Fillings that hold all that is wanted, and a number of GPUs that is needed for it."""

    filled: Filled
    bound: int

    @property
    def gpus(self) -> int:
        """GPUs that the fillings take."""
        return sum(times for _, times in self.filled)


def pack(
    packer: Packer,
    wanted: Mapping[int, int],
    known: Iterable[Counts] = (),
    *,
    enough: int = 0,
    effort: int = EFFORT,
    told: Callable[[Packing], None] | None = None,
) -> Packing:
    """Few GPUs for ``wanted`` shares by size; ends by proof, at ``enough`` GPUs, or by ``effort``.

    ``known`` fillings may speed it up. ``told`` hears of every better packing and bound.
    """
    asked = np.zeros(len(packer.needs), dtype=np.int64)
    for size, count in wanted.items():
        asked[size] = count
    if (asked[packer.times <= 0] > 0).any():
        raise ValueError("a wanted share is larger than the GPU")
    search = _Search(packer, asked, best_fit(packer, wanted), effort, told)
    search.squeeze(max(search.bound, enough))
    if search.best.total() > max(search.bound, enough):
        search.root(known)
        search.dives(max(search.bound, enough))
    return search.packing


def _volume(packer: Packer, asked: Ints) -> int:
    """GPUs that one dimension alone asks for."""
    needed = (packer.needs * asked[:, None]).sum(axis=0)
    return max(
        (-(-int(n) // int(r)) for n, r in zip(needed, packer.room, strict=True) if r), default=0
    )


def best_fit(packer: Packer, wanted: Mapping[int, int]) -> Counter[Counts]:
    """Largest share first, into the fullest GPU that still takes it."""
    largest = sorted(wanted, key=lambda size: (-packer.parts[size].max(), size))
    items = [size for size in largest for _ in range(wanted[size])]
    held: list[list[int]] = []
    free = np.zeros((len(items), len(packer.room)), dtype=np.int64)
    used = 0
    for size in items:
        need = packer.needs[size]
        fits = (free[:used] >= need).all(axis=1)
        if fits.any():
            loose = free[:used].astype(float) @ (1.0 / np.maximum(1, packer.room))
            at = int(np.where(fits, loose, np.inf).argmin())
        else:
            at, used = used, used + 1
            free[at] = packer.room
            held.append([])
        free[at] -= need
        held[at].append(size)
    return Counter(tuple(sorted(Counter(sizes).items())) for sizes in held)


class _Cover:
    """The linear program of covering what is wanted with known fillings."""

    def __init__(self, packer: Packer, asked: Ints, known: Iterable[Counts]) -> None:
        self.packer = packer
        self.sizes = np.nonzero(asked)[0].tolist()
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.rows = {size: self.lp.Constraint(0.0, self.lp.infinity()) for size in self.sizes}
        self.lp.Objective().SetMinimization()
        self.fillings: dict[Counts, pywraplp.Variable] = {}
        self.duals: Floats = np.zeros(len(asked))
        self.value = 0.0
        self.work = 0  # units of effort
        self.ask(asked)
        for size in self.sizes:
            self.add(((size, min(int(packer.times[size]), int(asked[size]))),))
        for counts in known:
            self.add(counts)

    def ask(self, asked: Ints) -> None:
        """Want so many of each size from now on."""
        self.asked = asked.copy()
        for size, row in self.rows.items():
            row.SetLb(float(asked[size]))

    def add(self, counts: Counts) -> bool:
        """A new filling, without what nobody wants; False where it is known."""
        counts = tuple((size, count) for size, count in counts if size in self.rows)
        if counts in self.fillings or not counts:
            return False
        x = self.fillings[counts] = self.lp.NumVar(0, self.lp.infinity(), "")
        self.lp.Objective().SetCoefficient(x, 1.0)
        for size, count in counts:
            self.rows[size].SetCoefficient(x, count)
        return True

    def solve(self) -> None:
        """Value and duals of the program."""
        self.lp.Solve()
        self.work += 1 + self.lp.iterations() * len(self.rows) // PER_SIMPLEX
        for size, row in self.rows.items():
            self.duals[size] = max(0.0, row.dual_value())
        self.value = float(self.duals @ self.asked)

    def used(self) -> list[tuple[float, Counts]]:
        """Fillings in the solution, by how often."""
        every = ((x.solution_value(), counts) for counts, x in self.fillings.items())
        return [(often, counts) for often, counts in every if often > 1e-9]


class _Search:
    """The best packing and bound so far: exchanges, the program at the root, dives from there."""

    def __init__(
        self,
        packer: Packer,
        asked: Ints,
        best: Counter[Counts],
        effort: int,
        told: Callable[[Packing], None] | None,
    ) -> None:
        self.packer, self.asked, self.left, self.told = packer, asked, effort, told
        self.best, self.bound = best, _volume(packer, asked)
        self._tell()

    @property
    def packing(self) -> Packing:
        """What is known so far."""
        return Packing(tuple(sorted(self.best.items())), self.bound)

    def _tell(self) -> None:
        if self.told:
            self.told(self.packing)

    def _keep(self, found: Counter[Counts]) -> None:
        if found.total() < self.best.total():
            self.best = found
            self._tell()

    def squeeze(self, enough: int) -> None:
        """Exchange shares of the best packing."""
        self._keep(self._squeezed(self.best, enough))

    def _squeezed(self, packed: Counter[Counts], enough: int) -> Counter[Counts]:
        effort = min(SQUEEZE, self.left)
        if effort <= 0 or packed.total() <= enough or ear.heard():
            return packed
        # Numba takes half a second to import, which problems without shared GPUs need not pay.
        from optimizer.solver.squeeze import squeezed

        packed, spent = squeezed(self.packer, packed, self.asked, enough, effort)
        self.left -= spent
        return packed

    def root(self, known: Iterable[Counts]) -> None:
        """Generate fillings until none helps, or the bound cannot rise; the bound, rounded up."""
        cover = self.cover = _Cover(self.packer, self.asked, (*known, *self.best))
        nodes, low, most = FEW_NODES, 0.0, int(self.left * ROOT)
        for _ in range(MOST_ROUNDS):
            cover.solve()
            reach = ceil(cover.value - TINY)
            if reach <= self.bound or ear.heard() or (nodes > FEW_NODES and cover.work > most):
                break
            # Beyond the first look only as far as the rounded bound asks for it.
            goal = cover.value / (reach - 1 + 2 * TINY) if reach > 1 and nodes > FEW_NODES else 1
            found = self.packer.best(
                cover.duals,
                max(1 + TINY, goal),
                exact=nodes > MANY_NODES,
                most=self.asked,
                nodes=min(nodes, MANY_NODES),
                tight=True,
            )
            cover.work += found.nodes // PER_EFFORT
            low = max(low, cover.value / max(1.0, found.bound))
            if ceil(low - TINY) >= reach:
                break
            if sum(map(cover.add, found.all)):
                nodes = FEW_NODES
            elif nodes > MANY_NODES:
                break
            else:
                nodes *= 10
        self.left -= cover.work
        self.bound = max(self.bound, ceil(low - TINY))
        self._tell()

    def dives(self, enough: int) -> None:
        """The best of all dives; the first fixes several fillings at a time."""
        waiting: list[tuple[Counts, ...]] = [()]
        seen = set(waiting)
        part = PART
        while waiting and self.best.total() > enough and self.left > 0 and not ear.heard():
            barred = waiting.pop(0)
            found, order = self._dive(self.best.total() - 1, frozenset(barred), part)
            self._keep(self._squeezed(found, enough))
            part = 0.0
            for counts in order[:EARLY] if len(barred) < MOST_DISCREPANCIES else ():
                other = tuple(sorted({*barred, counts}))
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)

    def _dive(
        self, most: int, barred: frozenset[Counts], part: float
    ) -> tuple[Counter[Counts], list[Counts]]:
        """Fillings, the last of them by best-fit if it comes to more GPUs; and what was chosen."""
        duals = self.cover.duals
        near = [c for c in self.cover.fillings if _worth(duals, c) >= 1 - SLACK]
        cover = _Cover(self.packer, self.asked, near)
        left = self.asked.copy()
        found: Counter[Counts] = Counter()
        order: list[Counts] = []
        while left.any() and not ear.heard():
            cover.ask(left)
            self._generate(cover)
            if found.total() + ceil(cover.value - TINY) > most or cover.work > self.left:
                break
            fixed, chosen = _fixed(cover, left, barred, part)
            if not fixed:
                break
            found += fixed
            order += chosen
        self.left -= cover.work
        rest = {size: int(left[size]) for size in cover.sizes if left[size]}
        return found + best_fit(self.packer, rest), order

    def _generate(self, cover: _Cover) -> None:
        cover.solve()
        for _ in range(DIVE_ROUNDS):
            better = self.packer.best(
                cover.duals, 1 + WORTH, exact=False, most=cover.asked, tight=True
            )
            cover.work += better.nodes // PER_EFFORT
            if not sum(map(cover.add, better.all)):
                break
            cover.solve()


def _worth(duals: Floats, counts: Counts) -> float:
    return sum(float(duals[size]) * count for size, count in counts)


def _fixed(
    cover: _Cover, left: Ints, barred: frozenset[Counts], part: float
) -> tuple[Counter[Counts], list[Counts]]:
    """What the program uses nearly whole, else what it uses most, taken from what is ``left``."""
    used = cover.used()
    whole = Counter({counts: int(often + 1 - NEAR) for often, counts in used})
    fixed = +whole
    for counts, times in fixed.items():
        _subtract(left, counts, times)
    wanted = max(1, int(part * cover.value)) - fixed.total()
    rest = sorted((whole[c] - often, c) for often, c in used if c not in barred)
    chosen: list[Counts] = []
    for _, counts in rest:
        if len(chosen) >= wanted:
            break
        if not fixed or all(left[size] >= count for size, count in counts):
            _subtract(left, counts, 1)
            fixed[counts] += 1
            chosen.append(counts)
    return fixed, chosen


def _subtract(left: Ints, counts: Counts, times: int) -> None:
    for size, count in counts:
        left[size] = max(0, left[size] - count * times)
