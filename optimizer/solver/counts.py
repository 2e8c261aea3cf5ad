"""Branching on how many GPUs of each price are in use: what lifts the bound of mid-sized fleets.

The relaxation uses parts of GPUs. With a few hundred of them that part is most of the gap: the
price is a sum of prices times whole counts, so every branch (a range of one count) pushes its own
relaxation to the next sum that counts can have. Few branches decide it, because kinds of GPU are
few, and a branch whose program is cheap enough anyway is split without being priced. Where all
counts are decided, what is left is to serve everybody with them: see ``leaf``.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, floor, inf, isinf

from optimizer.solver.bulk import Choice
from optimizer.solver.leaf import Decided, Effort, decide, fewer_is_easier
from optimizer.solver.master import Bound, Floats, Master, Program
from optimizer.solver.tighten import rounded

MOST_BRANCHES = 80
MOST_ROUNDS = 15
LEAF_NODES = 500  # of the tree that decides one choice of all counts
MOST_LEAVES = 12
LEAF_ROUNDS = 20
NO_BETTER = 1e-6  # relative distance of program and bound at which a leaf's is good enough
WHOLE = 1e-5  # a count that near to an integer is one

Box = tuple[tuple[int, int], ...]  # least and most GPUs in use, by kind


@dataclass(slots=True)
class Tree:
    """The branches of one master, all in one linear program whose ranges change."""

    master: Master
    step: int  # every price is a multiple of it
    seconds: float = 60.0  # the safety stop of deciding one leaf
    program: Program = field(init=False)
    branches: int = 0
    leaves: int = 0
    better: Choice | None = None  # of the price that was decided last

    @property
    def decides(self) -> bool:
        """Whether it can say of decided counts that they do or that they do not."""
        outlive = any(d.survive for d in self.master.names.values())
        return not outlive and fewer_is_easier(self.master)

    def lifted(self, bound: Bound, value: float = inf, enough: float = inf) -> int:
        """A bound on the price between what is known and ``value``; ends at ``enough``."""
        rows = self.master.count_rows
        ends = self.master.row_lows[rows].copy(), self.master.row_highs[rows].copy()
        self._begin(bound)
        try:
            return self._search(rounded(bound.value * self.master.unit, self.step), value, enough)
        finally:
            self.master.row_lows[rows], self.master.row_highs[rows] = ends

    def _begin(self, bound: Bound) -> None:
        self.program = Program(self.master)
        self.program.start()
        for name, mixes in bound.mixes.items():
            for mix in mixes:
                self.program.add(name, mix)
        for number, fillings in enumerate(bound.fillings):
            for counts in fillings:
                self.program.fill(number, counts, None)

    def _search(self, low: int, value: float, enough: float) -> int:
        whole = tuple((0, most) for most in self.master.counted)
        open_boxes: list[tuple[int, int, Box]] = [(low, 0, whole)]
        undecided: list[float] = [value]  # prices that may be reached, though we found no way
        number = 0
        while open_boxes and self.branches < MOST_BRANCHES:
            low, _, box = open_boxes[0]
            if low >= min(value, enough) or self.better is not None:
                break
            heappop(open_boxes)
            self.branches += 1
            if all(least == most for least, most in box):
                price = self._price(box)
                if price > low:
                    heappush(open_boxes, (price, number, box))
                elif self.leaves >= MOST_LEAVES:
                    undecided.append(low)
                    break
                elif not self._refuted(box, price, prove=len(undecided) == 1):
                    undecided.append(low)
                continue
            proved, counts = self._priced(box, low + self.step)
            parts = [box] if counts is None else _split(box, counts)
            if (proved <= low and parts == [box]) or not parts:
                undecided.append(low)  # nothing more can be said here
                continue
            for part in parts:
                number += 1
                heappush(open_boxes, (max(low, proved), number, part))
        least = min([*undecided, *(low for low, _, _ in open_boxes)])
        return low if isinf(least) else int(least)  # where nobody can be served, any bound holds

    def _refuted(self, box: Box, price: int, *, prove: bool) -> bool:
        """Whether it is proved that so many GPUs do not do; if they do, ``better`` says how.

        After one that could not be decided, proofs lift the bound no more.
        """
        self.leaves += 1
        decided = self._leaf(box, price, prove)
        self.better = decided.choice
        return decided.impossible

    def _price(self, box: Box) -> int:
        prices = self.master.counted_prices
        return sum(most * each for (_, most), each in zip(box, prices, strict=True))

    def _leaf(self, box: Box, price: int, prove: bool) -> Decided:
        """Whether so many GPUs of each kind serve everybody; fewer would do as well."""
        if not self.decides:
            return Decided()
        for row, (_, most) in zip(self.master.count_rows, box, strict=True):
            self.master.row_lows[row], self.master.row_highs[row] = -inf, most
            self.program.rows[row].SetBounds(-inf, most)
        best = Bound(-inf)
        for _ in range(LEAF_ROUNDS):
            duals = self.program.solve()
            if duals is None:
                return Decided()
            added = self.master.generate(self.program, duals, duals, best, exact=True)
            if self.program.value - best.value <= NO_BETTER * abs(best.value):
                break
            if not added and not self.program.guessing:
                break
            self.program.guessing = bool(added) and self.program.guessing
        if best.value == -inf:
            return Decided()
        best.fillings = self.program.pool_fillings
        effort = Effort(self.seconds, LEAF_NODES)
        return decide(self.master, best, price / self.master.unit, effort, prove=prove)

    def _priced(self, box: Box, target: int) -> tuple[int, list[float] | None]:
        """What is proved of a box: at least ``target``, or less and the counts to split it at."""
        for row, (least, most) in zip(self.master.count_rows, box, strict=True):
            self.master.row_lows[row], self.master.row_highs[row] = least, most
            self.program.rows[row].SetBounds(least, most)
        best, proved = Bound(-float("inf")), 0
        counts: list[float] = []
        for _ in range(MOST_ROUNDS):
            duals = self.program.solve()
            if duals is None:
                return 0, None
            counts = self._counts()  # new columns end what the program tells of its solution
            if self.program.value * self.master.unit <= target - self.step * (1 - WHOLE):
                break
            added = self.master.generate(self.program, duals, duals, best, exact=True)
            proved = rounded(best.value * self.master.unit, self.step)
            if proved >= target:
                return proved, None
            if not added:
                break
        return proved, counts

    def _counts(self) -> list[float]:
        values: Floats = self.master.lows * 0.0
        for index, x in self.program.fillings.items():
            values[index] = x.solution_value()
        return [
            sum(times * float(values[v]) for v, times in self.master.rows[row].coefficients)
            for row in self.master.count_rows
        ]


def _split(box: Box, counts: list[float]) -> list[Box]:
    """Around the count that is least whole, else around one that may still vary; none: fixed."""
    parts = [min(count - floor(count), ceil(count) - count) for count in counts]
    at = max(range(len(box)), key=parts.__getitem__)
    if parts[at] > WHOLE:
        ranges = [(box[at][0], floor(counts[at])), (floor(counts[at]) + 1, box[at][1])]
    else:
        at = max(range(len(box)), key=lambda k: box[k][1] - box[k][0])
        count = round(counts[at])
        if box[at][0] == box[at][1]:
            return []
        ranges = [(box[at][0], count - 1), (count, count), (count + 1, box[at][1])]
    return [(*box[:at], (least, most), *box[at + 1 :]) for least, most in ranges if least <= most]
