"""Branching on how many GPUs of each price are in use: what lifts the bound of mid-sized fleets.

The relaxation uses parts of GPUs. With a few hundred of them that part is most of the gap: the
price is a sum of prices times whole counts, so every branch (a range of one count) pushes its own
relaxation to the next sum that counts can have. Few branches decide it, because kinds of GPU are
few, and a branch whose program is cheap enough anyway is split without being priced.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, floor

from optimizer.solver.master import Bound, Floats, Master, Program
from optimizer.solver.tighten import rounded

MOST_BRANCHES = 80
MOST_ROUNDS = 15
WHOLE = 1e-5  # a count that near to an integer is one

Box = tuple[tuple[int, int], ...]  # least and most GPUs in use, by kind and those used whole


@dataclass(slots=True)
class Tree:
    """The branches of one master, all in one linear program whose ranges change."""

    master: Master
    step: int  # every price is a multiple of it
    program: Program = field(init=False)
    branches: int = 0

    def lifted(self, bound: Bound, value: int, enough: int) -> int:
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

    def _search(self, low: int, value: int, enough: int) -> int:
        whole = tuple((0, most) for most in self.master.counted)
        open_boxes: list[tuple[int, int, Box]] = [(low, 0, whole)]
        number = 0
        while open_boxes and self.branches < MOST_BRANCHES:
            low, _, box = open_boxes[0]
            if low >= min(value, enough):
                break
            heappop(open_boxes)
            self.branches += 1
            proved, counts = self._priced(box, low + self.step)
            parts = [box] if counts is None else _split(box, counts)
            if (proved <= low and parts == [box]) or not parts:
                heappush(open_boxes, (low, 0, box))
                break  # nothing more can be said here
            for part in parts:
                number += 1
                heappush(open_boxes, (max(low, proved), number, part))
        return min([value, *(low for low, _, _ in open_boxes)])

    def _priced(self, box: Box, target: int) -> tuple[int, list[float] | None]:
        """What is proved of a box: at least ``target``, or less and the counts to split it at."""
        for row, (least, most) in zip(self.master.count_rows, box, strict=True):
            self.master.row_lows[row], self.master.row_highs[row] = least, most
            self.program.rows[row].SetBounds(least, most)
        best, proved = Bound(-float("inf")), 0
        for _ in range(MOST_ROUNDS):
            duals = self.program.solve()
            if duals is None:
                return 0, None
            if self.program.value * self.master.unit <= target - self.step * (1 - WHOLE):
                break
            added = self.master.generate(self.program, duals, duals, best, exact=True)
            proved = rounded(best.value * self.master.unit, self.step)
            if proved >= target:
                return proved, None
            if not added:
                break
        return proved, self._counts()

    def _counts(self) -> list[float]:
        values: Floats = self.master.lows * 0.0
        for index, x in self.program.fillings.items():
            values[index] = x.solution_value()
        return [
            sum(times * float(values[v]) for v, times in self.master.rows[row].coefficients)
            for row in self.master.count_rows
        ]


def _split(box: Box, counts: list[float]) -> list[Box]:
    """Around the count that is least whole, else around one that may still vary; none: fixed.

    Counts of all GPUs of a kind, the first half, come before those of whole ones.
    """
    parts = [min(count - floor(count), ceil(count) - count) for count in counts]
    half = len(box) // 2
    at = max(range(half), key=parts.__getitem__)
    if parts[at] <= WHOLE:
        at = max(range(half, len(box)), key=parts.__getitem__)
    if parts[at] > WHOLE:
        ranges = [(box[at][0], floor(counts[at])), (floor(counts[at]) + 1, box[at][1])]
    else:
        at = max(range(len(box)), key=lambda k: box[k][1] - box[k][0])
        count = round(counts[at])
        if box[at][0] == box[at][1]:
            return []
        ranges = [(box[at][0], count - 1), (count, count), (count + 1, box[at][1])]
    return [(*box[:at], (least, most), *box[at + 1 :]) for least, most in ranges if least <= most]
