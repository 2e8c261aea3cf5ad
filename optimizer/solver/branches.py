"""Branching on how many whole GPUs, and groups of them, are given out: for unmet demand.

A full fleet leaves no count of GPUs open. But the relaxation gives parts of whole GPUs and of
groups to many deployments; each branch on such a count lifts the bound, until so few mixes are
within reach of the best solution known that an integer program decides the branch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from math import ceil, floor, isinf

from optimizer.solver.integer import SAFETY, value_of
from optimizer.solver.leaves import Box, Closed, Leaf, Leaves, share
from optimizer.solver.master import Bound, Master, Program, Row

MOST_BRANCHES = 200
MOST_DECIDED = 40
MOST_TRIED = 6  # counts whose branches are compared
FEW_MIXES = 2_500  # an integer program decides among so many
NEAR = 0.015  # of a bound: a target that is decided where the best solution is too far
MOST_NODES = 500  # of one integer program's tree
LAST_NODES = 3_000  # where a branch is tried again at the end
MOST_AGAIN = 3
LARGEST_GROUP = 64
WHOLE = 1e-5


class Groups(Leaves):
    """Boxes of whole GPUs given out, by site, and of rows that limit groups of them."""

    most_nodes = MOST_NODES

    def limited(self) -> list[int]:
        """The rows that limit groups."""
        return [k for k, row in enumerate(self.master.rows) if _limits_groups(self.master, row)]

    @cached_property
    def takes(self) -> list[int]:
        """The variables that say how many whole GPUs are given out."""
        master = self.master
        takes = [x.index for some in master.f.taken_whole.values() for _, x in some]
        return sorted({v for v in takes if v not in master.owner})

    @property
    def whole(self) -> Box:
        """The box of everything."""
        master = self.master
        rows = [(0, int(master.row_highs[k])) for k in self.rows]
        takes = [(int(master.lows[v]), int(master.highs[v])) for v in self.takes]
        return (*rows, *takes)

    def enter(self, box: Box) -> None:
        """Keep to the box from now on."""
        for row, (_, most) in zip(self.rows, box, strict=False):
            self.master.row_highs[row] = most
        for row, (least, _) in zip(self.rows, box, strict=False):
            self.master.row_lows[row] = least
        for v, (least, most) in zip(self.takes, box[len(self.rows) :], strict=True):
            self.master.lows[v], self.master.highs[v] = least, most
        self.bind(self.program, box)

    def bind(self, program: Program, box: Box) -> None:
        """Keep a program to the box."""
        for row, (least, most) in zip(self.rows, box, strict=False):
            program.rows[row].SetBounds(least, most)
        for v, (least, most) in zip(self.takes, box[len(self.rows) :], strict=True):
            program.fillings[v].SetBounds(least, most)

    def counts(self) -> list[float]:
        """What the program's solution makes of the box's counts."""
        times: dict[int, float] = {}
        for _, mix, x in self.program.chosen:
            part = x.solution_value()
            if part > 1e-9:
                for v, count in mix.counts:
                    times[v] = times.get(v, 0.0) + part * count
        rows = [
            sum(c * times.get(v, 0.0) for v, c in self.master.rows[row].coefficients)
            for row in self.rows
        ]
        return [*rows, *(self.program.fillings[v].solution_value() for v in self.takes)]


def _limits_groups(master: Master, row: Row) -> bool:
    """Whether a row adds up groups of whole GPUs of several deployments, up to a limit."""
    owners = {master.owner.get(v) for v, _ in row.coefficients}
    placed = None not in owners and not any(
        v in master.missing_indices for v, _ in row.coefficients
    )
    small = all(0 < c <= LARGEST_GROUP for _, c in row.coefficients)
    return placed and len(owners) > 1 and small and isinf(row.low) and not isinf(row.high)


@dataclass(slots=True)
class Branching:
    """The open branches, and the best solution met."""

    groups: Groups
    value: int
    values: list[int] = field(default_factory=list)
    heap: list[tuple[int, int, Box]] = field(default_factory=list)
    number: int = 0
    decided: int = 0
    given_up: list[tuple[int, Box]] = field(default_factory=list)  # what could not be decided

    def run(self, low: int) -> Closed:
        """Branch in the order of bounds."""
        groups = self.groups
        most, decided = (share(n, groups.part) for n in (MOST_BRANCHES, MOST_DECIDED))
        self.push(low, groups.whole)
        while self.heap and self.heap[0][0] < self.value and groups.seconds_left() > 0:
            if groups.boxes >= most or self.decided >= decided:
                break
            low, _, box = heappop(self.heap)
            best, counts = groups.within(box, self.value)
            low = max(low, groups.low(best))
            if low >= self.value:
                continue
            if counts is None:
                self.given_up.append((low, box))
            elif not self.settled(box, best, low) and not self.split(box, counts, low):
                near = min(self.value - groups.step, low + int(NEAR * low))
                if not self.decide(box, best, near, low):
                    self.given_up.append((low, box))
        if not self.heap or self.heap[0][0] >= self.value:
            self.again()
        lows = [low for low, _ in self.given_up] + [low for low, _, _ in self.heap]
        return Closed(min([self.value, *lows]), self.values)

    def again(self) -> None:
        """Try what was given up with a larger tree, as long as that decides it."""
        groups = self.groups
        groups.nodes = share(LAST_NODES, groups.part)
        for _ in range(min(MOST_AGAIN, len(self.given_up))):
            low, box = min(self.given_up)
            best, _ = groups.within(box, self.value)
            if low < self.value:
                if not best.duals.size:  # the program gave up, and knows no prices
                    break
                if not self.decide(box, best, self.value - groups.step, low):
                    break
            self.given_up.remove((low, box))

    def push(self, low: int, box: Box) -> None:
        self.number += 1
        heappush(self.heap, (low, -self.number, box))

    def settled(self, box: Box, best: Bound, low: int) -> bool:
        """Whether an integer program said all that is asked of the branch, or part of it."""
        near = min(self.value - self.groups.step, low + int(NEAR * low))
        for target in (self.value - self.groups.step, near):
            if self.few(box, best, target):
                return self.decide(box, best, target, low)
        return False

    def decide(self, box: Box, best: Bound, target: int, low: int) -> bool:
        """Ask an integer program whether the branch holds anything within the target."""
        self.decided += 1
        verdict = self.groups.decide(box, best, target)
        if verdict.values:
            self.take(verdict.values)
            self.push(max(low, verdict.low), box)
        elif verdict.impossible:
            self.push(target + self.groups.step, box)
        return bool(verdict.values) or verdict.impossible

    def few(self, box: Box, best: Bound, target: int) -> bool:
        """Whether few enough mixes are within reach of the target."""
        master = self.groups.master
        slack = target / master.unit - best.value + SAFETY * max(1.0, abs(best.value))
        mixes = self.groups.mixes(Leaf(box, best, target, slack, master.prices(best.duals)))
        many = FEW_MIXES + 1
        return sum(many if some is None else len(some) for some in mixes.values()) < many

    def take(self, values: list[int]) -> None:
        self.values = values
        self.value = value_of(self.groups.master.objective, values)

    def split(self, box: Box, counts: list[float], low: int) -> bool:
        """At the count whose two branches are bounded best; False where all counts are whole."""
        parts = [min(c - floor(c), ceil(c) - c) for c in counts]
        tried = sorted((k for k, p in enumerate(parts) if p > WHOLE), key=lambda k: (-parts[k], k))
        best: list[tuple[int, Box]] = []
        for at in tried[:MOST_TRIED]:
            ends = ((box[at][0], floor(counts[at])), (floor(counts[at]) + 1, box[at][1]))
            some = [(*box[:at], part, *box[at + 1 :]) for part in ends if part[0] <= part[1]]
            lows = [max(low, self.groups.low(self.groups.within(b, self.value)[0])) for b in some]
            if not best or sorted(lows) > sorted(n for n, _ in best):
                best = list(zip(lows, some, strict=True))
        for bound, part in best:
            self.push(bound, part)
        return bool(best)


def branched(
    master: Master,
    bound: Bound,
    step: int,
    known: tuple[int, int],
    seconds_left: Callable[[], float],
    part: float = 1.0,
) -> Closed:
    """What is proved between the bound and value ``known``, and a better solution if one is met.

    ``part``: of all the work that may go into it.
    """
    low, value = known
    if not master.costs[~master.filling].any():
        return Closed(low)  # a price: what is given out whole says little of it
    kept = [a.copy() for a in (master.row_lows, master.row_highs, master.lows, master.highs)]
    groups = Groups(master, bound, step, seconds_left, part)
    try:
        return Branching(groups, value).run(low)
    finally:
        master.row_lows[:], master.row_highs[:], master.lows[:], master.highs[:] = kept
