"""Closing a level exactly: branch on counts of GPUs, and in each leaf choose among all mixes left.

A leaf says how many GPUs of each price may be in use. There the relaxation is close to what the
leaf's own price is, so few mixes can be in a solution: all others cost more above the cheapest of
their deployment than the target leaves. They are listed, and an integer program chooses among them.
Leaves come in the order of their bounds, so the first with a solution proves the optimum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil, floor, inf, isinf

import numpy as np
from ortools.linear_solver import pywraplp

from optimizer.domain.units import PPM
from optimizer.solver import scip
from optimizer.solver.integer import SAFETY, rounded, value_of
from optimizer.solver.master import Bound, Floats, Master, Program, Row
from optimizer.solver.mixes import Wanted, every_mix
from optimizer.solver.pricing import Mix

MOST_BOXES = 400
MOST_ROUNDS = 40
MOST_MIXES = 1_500  # of a deployment that an integer program chooses from
MOST_NODES = 2_000  # of its tree
FEW_NODES = 300  # the same where solutions are not looked for
FIRST_SPAN = 0.02  # of a bound, where targets above it begin
NEAREST = 1_000  # and at least so far from it
MOST_HALVINGS = 2
WHOLE = 1e-5  # a count that near to an integer is one

Box = tuple[tuple[int, int], ...]  # least and most GPUs in use, by kind


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether there is a solution within a target: its values, or that there is none.

    ``low``: no solution is better than that, where values were found.
    """

    values: list[int] = field(default_factory=list)
    impossible: bool = False
    low: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """What is proved of a level, and a solution better than the one known, if there is one."""

    floor: int
    values: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A box with a bound of it, the prices there, and how far above it a target lies."""

    box: Box
    best: Bound
    target: int
    slack: float  # in units of the master
    prices: Floats


def share(most: int, part: float) -> int:
    """A part of the most work, but some."""
    return max(1, int(most * part))


def separable(master: Master) -> bool:
    """Whether leaving idle replicas out keeps every rule, so that mixes without them are enough."""
    if any(d.survive and d.asked_mrps for d in master.names.values()):
        return False
    if (master.costs < 0).any():
        return False
    missing = master.missing_indices
    for row in master.rows:
        placed = [(v, c) for v, c in row.coefficients if v in master.owner and v not in missing]
        if any(_needed(row, c) for _, c in placed) and not _given_back(master, row):
            return False
    return all(
        isinf(row.low) or any(v in missing for v, _ in row.coefficients)
        for rows in master.own_rows.values()
        for row in rows
    )


def _needed(row: Row, coefficient: int) -> bool:
    """Whether a row may ask for more of a variable."""
    return not isinf(row.low if coefficient > 0 else row.high)


def _given_back(master: Master, row: Row) -> bool:
    """Whether a row only says which GPUs replicas take: without one, they take fewer."""
    taken = [(v, c) for v, c in row.coefficients if v not in master.owner]
    others = {c > 0 for v, c in row.coefficients if v in master.owner}
    return all(abs(c) == 1 and others == {c < 0} for _, c in taken) and all(
        master.rows[r] is row or not _needed(master.rows[r], c)
        for v, _ in taken
        for r, c in master.by_variable[v]
    )


class Leaves:
    """The boxes of one master, all in one linear program whose ranges change."""

    most_nodes = MOST_NODES

    def __init__(
        self,
        master: Master,
        bound: Bound,
        step: int,
        seconds_left: Callable[[], float],
        part: float = 1.0,
    ) -> None:
        """``step``: every value of the objective is a multiple of it; ``part``: of all work."""
        self.master, self.step, self.seconds_left = master, step, seconds_left
        cells = {(site.gpu.name, site.price_micros) for _, site, _, _ in master.f.cells()}
        self.prices = [price for _, price in sorted(cells)]
        self.rows = self.limited()
        self.boxes, self.nodes, self.part = 0, share(self.most_nodes, part), part
        self.program = Program(master)
        self.program.start()
        for name, mixes in bound.mixes.items():
            for mix in mixes:
                self.program.add(name, mix)
        for number, fillings in enumerate(bound.fillings):
            for counts in fillings:
                self.program.fill(number, counts, None)

    def limited(self) -> list[int]:
        """The rows whose sides the first counts of a box are."""
        return self.master.count_rows[: len(self.prices)]

    def within(self, box: Box, target: int) -> tuple[Bound, list[float] | None]:
        """The best bound of a box, generated until it passes ``target``, and the counts there."""
        self.enter(box)
        self.boxes += 1
        best, counts = Bound(-inf), None
        for _ in range(MOST_ROUNDS):
            duals = self.program.solve()
            if duals is None:
                return best, None
            counts = self.counts()
            added = self.master.generate(self.program, duals, duals, best, exact=True)
            if not added or self.low(best) > target:
                break
        return best, counts

    def enter(self, box: Box) -> None:
        """Keep to the box from now on."""
        for row, (least, most) in zip(self.rows, box, strict=True):
            self.master.row_lows[row], self.master.row_highs[row] = least, most
        self.bind(self.program, box)

    def bind(self, program: Program, box: Box) -> None:
        """Keep a program to the box."""
        for row, (least, most) in zip(self.rows, box, strict=True):
            program.rows[row].SetBounds(least, most)

    def low(self, best: Bound) -> int:
        """The least value of the objective that a bound allows."""
        return rounded(best.value * self.master.unit, self.step)

    def counts(self) -> list[float]:
        """What the program's solution makes of the box's counts."""
        values: Floats = self.master.lows * 0.0
        for index, x in self.program.fillings.items():
            values[index] = x.solution_value()
        return [
            sum(times * float(values[v]) for v, times in self.master.rows[row].coefficients)
            for row in self.rows
        ]

    def decide(self, box: Box, best: Bound, target: int) -> Verdict:
        """Whether the box holds a solution of at most ``target``, by all mixes that it could use.

        ``best``: a bound of the box, whose prices say which.
        """
        open_leaf = self._leaf(box, best, target)
        if open_leaf.slack < 0:
            return Verdict(impossible=True)
        mixes = self.mixes(open_leaf)
        verdict = self._choose(open_leaf, mixes, relaxed=False)
        if verdict.impossible and self.master.pools:
            # None among the fillings known; others are allowed for by what they are worth.
            relaxed = self._choose(open_leaf, mixes, relaxed=True)
            return Verdict(impossible=relaxed.impossible)
        return verdict

    def refute(self, box: Box, best: Bound, target: int) -> Verdict:
        """The same, but only whether there is none."""
        open_leaf = self._leaf(box, best, target)
        if open_leaf.slack < 0:
            return Verdict(impossible=True)
        relaxed = self._choose(open_leaf, self.mixes(open_leaf), relaxed=True)
        return Verdict(impossible=relaxed.impossible)

    def _leaf(self, box: Box, best: Bound, target: int) -> Leaf:
        slack = target / self.master.unit - best.value + SAFETY * max(1.0, abs(best.value))
        return Leaf(box, best, target, slack, self.master.prices(best.duals))

    def mixes(self, leaf: Leaf) -> dict[str, list[Mix] | None]:
        """All mixes of reduced cost within the slack; None where they are too many."""
        found: dict[str, list[Mix] | None] = {}
        for name, d in self.master.names.items():
            skip = self.master.asked(d, leaf.prices).missing_price
            wanted = Wanted(leaf.best.cheapest[name] + leaf.slack, skip, MOST_MIXES)
            found[name] = every_mix(d, self.master.priced_items(d, leaf.prices), wanted)
        return found

    def _choose(self, leaf: Leaf, mixes: dict[str, list[Mix] | None], *, relaxed: bool) -> Verdict:
        master = self.master
        program = Program(master, "SCIP")
        self.bind(program, leaf.box)
        self._limit(program, leaf)
        loose: dict[int, pywraplp.Variable] = {}
        for name, some in mixes.items():
            if some is None:
                loose |= self._loose(program, leaf, name)
            for mix in some or ():
                program.add(name, mix)
        if relaxed:
            self._allow(program, leaf, loose)
        else:
            for number, fillings in enumerate(self.program.pool_fillings):
                program.exchange(number)
                for counts in fillings:
                    program.fill(number, counts, None)
        self._cap(program, leaf.target, loose)
        enough = leaf.target / master.unit - master.offset if self.step > 1 else None
        ended = scip.decide(
            program.lp, nodes=self.nodes, seconds=self.seconds_left() / 2, enough=enough
        )
        if not ended.found:
            return Verdict(impossible=ended.impossible)
        values = master.values_in(program)
        for variable, x in loose.items():
            values[variable] = round(x.solution_value())
        values = master.with_missing(values)
        if value_of(master.objective, values) > leaf.target:
            return Verdict()
        return Verdict(values, low=rounded((ended.bound + master.offset) * master.unit, self.step))

    def _loose(self, program: Program, leaf: Leaf, name: str) -> dict[int, pywraplp.Variable]:
        """A deployment of too many mixes: how often it takes each place, and its own rows.

        Its places together cost no less than its cheapest mix, and more by the slack at most.
        """
        master, lp, cheapest = self.master, program.lp, leaf.best.cheapest[name]
        d, inf_ = master.names[name], program.lp.infinity()
        program.choose[name].SetBounds(0, 0)
        found: dict[int, pywraplp.Variable] = {}
        asked = d.asked_mrps or 0
        served = lp.Constraint(float(asked), inf_)
        running = lp.Constraint(float(d.min_replicas), inf_)
        limited = lp.Constraint(-inf_, inf_ if d.replica_limit is None else float(d.replica_limit))
        paid = lp.Constraint(cheapest - SAFETY * max(1.0, cheapest), cheapest + leaf.slack)
        for item in master.priced_items(d, leaf.prices):
            most = float(master.highs[item.variable])
            if item.price > 0:
                most = min(most, float(int((cheapest + leaf.slack) / item.price + SAFETY)))
            x = found[item.variable] = lp.IntVar(0.0, most, "")
            self._set(program, x, item.variable)
            served.SetCoefficient(x, item.capacity)
            running.SetCoefficient(x, 1.0)
            limited.SetCoefficient(x, 1.0)
            paid.SetCoefficient(x, item.price)
        if not master.in_full(d):
            variable = master.missing[name]
            x = found[variable] = lp.NumVar(0.0, float(PPM), "")
            self._set(program, x, variable)
            served.SetCoefficient(x, asked / PPM)
            running.SetCoefficient(x, d.min_replicas / PPM)
            paid.SetCoefficient(x, max(0.0, float(leaf.prices[variable])))
        for row in (*master.own_rows[name], *master.paid_rows[name]):
            if isinf(row.low):
                own = lp.Constraint(-inf_, row.high)
                for v, c in row.coefficients:
                    if v in found:  # of who must be served in full nothing is missing
                        own.SetCoefficient(found[v], c)
        return found

    def _set(self, program: Program, x: pywraplp.Variable, variable: int) -> None:
        program.lp.Objective().SetCoefficient(x, float(self.master.costs[variable]))
        for row, c in self.master.by_variable[variable]:
            program.rows[row].SetCoefficient(x, c)

    def _limit(self, program: Program, leaf: Leaf) -> None:
        """A filling of reduced cost r occurs at most slack / r times."""
        for index, x in program.fillings.items():
            low, high = float(self.master.lows[index]), float(self.master.highs[index])
            reduced = float(leaf.prices[index])
            if reduced > 0 and leaf.slack / reduced < high - low:
                x.SetUb(low + max(0, int(leaf.slack / reduced)))

    def _cap(self, program: Program, target: int, loose: dict[int, pywraplp.Variable]) -> None:
        """Only what costs at most the target."""
        lp, master = program.lp, self.master
        row = lp.Constraint(-lp.infinity(), target / master.unit - master.offset + SAFETY)
        chosen = (x for _, _, x in program.chosen)
        for x in [*program.fillings.values(), *chosen, *loose.values()]:
            cost = lp.Objective().GetCoefficient(x)
            if cost:
                row.SetCoefficient(x, cost)

    def _allow(self, program: Program, leaf: Leaf, loose: dict[int, pywraplp.Variable]) -> None:
        """In the place of fillings: what a pool holds is worth at most what its GPUs can hold."""
        lp, master, best = program.lp, self.master, leaf.best
        packed = master.packed(best.duals, exact=True)
        for pool, filling in zip(master.pools, packed, strict=True):
            worth: dict[int, float] = {}
            for row in pool.size_rows:
                program.rows[row].SetBounds(-lp.infinity(), lp.infinity())
                value = max(0.0, float(best.duals[row])) / max(filling.bound, 1e-12)
                worth.update({v: value for v, _ in master.rows[row].coefficients})
            holds = lp.Constraint(-lp.infinity(), SAFETY)
            for v, _ in master.rows[pool.gpu_row].coefficients:
                holds.SetCoefficient(program.fillings[v], -1.0)
            for v, x in loose.items():
                holds.SetCoefficient(x, worth.get(v, 0.0))
            for _, mix, x in program.chosen:
                total = sum(worth.get(v, 0.0) * count for v, count in mix.counts)
                if total:
                    holds.SetCoefficient(x, total)


def closed(
    master: Master,
    bound: Bound,
    step: int,
    known: tuple[int, int],
    seconds_left: Callable[[], float],
    part: float = 1.0,
) -> Closed:
    """The least value between what is proved and what is found, or that there is none.

    Of prices by leaves in the order of their bounds, else by targets further and further away.
    ``part``: of all the work that may go into it.
    """
    leaves = Leaves(master, bound, step, seconds_left, part)
    low, value = known
    if master.costs[~master.filling].any():
        # Not a price of GPUs.
        return _nearer(leaves, leaves.decide, bound, max(low, leaves.low(bound)), value)
    ends = master.row_lows[leaves.rows].copy(), master.row_highs[leaves.rows].copy()
    try:
        return _best_first(leaves, max(low, leaves.low(bound)), value)
    finally:
        master.row_lows[leaves.rows], master.row_highs[leaves.rows] = ends


def lifted(
    master: Master,
    bound: Bound,
    step: int,
    known: tuple[int, int],
    seconds_left: Callable[[], float],
) -> int:
    """The least value between what is proved and what is found that small trees do not refute."""
    leaves = Leaves(master, bound, step, seconds_left)
    leaves.nodes = FEW_NODES
    return _nearer(leaves, leaves.refute, bound, *known).floor


def _best_first(leaves: Leaves, low: int, value: int) -> Closed:
    counted = leaves.master.counted[: len(leaves.rows)]
    heap: list[tuple[int, int, Box]] = [(low, 0, tuple((0, most) for most in counted))]
    number, undecided, most = 0, value, share(MOST_BOXES, leaves.part)
    while heap and heap[0][0] < value and leaves.boxes < most and leaves.seconds_left() > 0:
        low, _, box = heappop(heap)
        if all(least == most for least, most in box):
            verdict = _leaf(leaves, box, low)
            if verdict.values:
                return Closed(min(low, undecided), verdict.values)
            if not verdict.impossible:
                undecided = min(undecided, low)
            continue
        best, counts = leaves.within(box, low)
        low = max(low, leaves.low(best))
        if low >= value:
            continue
        for part in _split(box, counts):
            cost = sum(p * least for p, (least, _) in zip(leaves.prices, part, strict=True))
            number -= 1
            heappush(heap, (max(low, cost), number, part))
    return Closed(min([value, undecided, *(low for low, _, _ in heap)]))


def _nearer(
    leaves: Leaves,
    decide: Callable[[Box, Bound, int], Verdict],
    bound: Bound,
    low: int,
    value: int,
) -> Closed:
    """By targets above the bound: what is near it is few mixes away.

    A target that is not decided is followed by nearer ones.
    """
    whole: Box = tuple((0, most) for most in leaves.master.counted[: len(leaves.rows)])
    span, halved = max(NEAREST, int(low * FIRST_SPAN)), 0
    while low < value and halved <= MOST_HALVINGS and leaves.seconds_left() > 0:
        target = min(value - leaves.step, low + span)
        verdict = decide(whole, bound, target)
        if verdict.values:
            return Closed(max(low, verdict.low), verdict.values)
        if verdict.impossible:
            low, span = target + leaves.step, span if halved else 2 * span
        else:
            halved, span = halved + 1, span // 2
    return Closed(min(low, value))


def _leaf(leaves: Leaves, box: Box, low: int) -> Verdict:
    """Whether so many GPUs can do it; a way with fewer would do as well."""
    wide: Box = tuple((0, most) for _, most in box)
    price = sum(p * most for p, (_, most) in zip(leaves.prices, box, strict=True))
    best, _ = leaves.within(wide, price)
    return leaves.decide(wide, best, max(low, price))


def _split(box: Box, counts: Sequence[float] | None) -> list[Box]:
    """Around the count that is least whole, else around one that may still vary."""
    at, count = int(np.argmax([most - least for least, most in box])), 0.0
    if counts is not None:
        parts = [min(count - floor(count), ceil(count) - count) for count in counts]
        if max(parts) > WHOLE:
            at = int(np.argmax(parts))
            ranges = [(box[at][0], floor(counts[at])), (floor(counts[at]) + 1, box[at][1])]
            return _replaced(box, at, ranges)
        count = counts[at]
    middle = min(max(round(count), box[at][0]), box[at][1])
    ranges = [(box[at][0], middle - 1), (middle, middle), (middle + 1, box[at][1])]
    return _replaced(box, at, ranges)


def _replaced(box: Box, at: int, ranges: Sequence[tuple[int, int]]) -> list[Box]:
    return [(*box[:at], ends, *box[at + 1 :]) for ends in ranges if ends[0] <= ends[1]]
