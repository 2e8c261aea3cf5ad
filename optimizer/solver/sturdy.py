"""Mixes that can lie far enough apart, and the choice among them.

Column generation asks of a mix only that the loss of its largest replica leaves enough. With rows
that say how many nodes a mix needs (``apart``) other mixes are worth having: with more to spare,
so that a node may hold more, or on products where nodes are free.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isinf

import numpy as np
from ortools.math_opt.python import mathopt

from optimizer.domain.workload import Deployment
from optimizer.solver.apart import Apart, Room
from optimizer.solver.bulk import Choice, choose
from optimizer.solver.master import Bound, Floats, Master
from optimizer.solver.outlive import MOST_LOST, spares
from optimizer.solver.pricing import Asked, Item, Mix, cheapest_mix
from optimizer.solver.selection import Selection

ROUNDS = 3
NODES = 50  # of the tree that chooses: what is left then is less than placing adds
GAP = 5e-4  # where it ends, likewise


def choice(master: Master, bound: Bound, seconds: float) -> Choice | None:
    """The best integer choice found under rows of ``apart``; by those that it needs mixes for."""
    known = Sturdy(master, bound)
    known.generate()
    return known.chosen(seconds)


@dataclass(slots=True)
class Sturdy:
    """Mixes under rows of ``apart``."""

    master: Master
    bound: Bound
    known: dict[str, set[tuple[tuple[int, int], ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self.bound = replace(self.bound, mixes={n: list(m) for n, m in self.bound.mixes.items()})
        self.known = {n: {mix.counts for mix in some} for n, some in self.bound.mixes.items()}

    def generate(self) -> None:
        """Column generation: mixes cheaper than what the program pays, until there are none."""
        for _ in range(ROUNDS):
            priced = _Priced(self.master, self.bound)
            if not priced.solve():
                return
            wanted = [(name, mix) for name, mix in priced.mixes() if priced.improves(name, mix)]
            if not sum(self._add(name, mix) for name, mix in wanted):
                return

    def _add(self, name: str, mix: Mix) -> bool:
        """False where it is known or its deployment's own rows bar it; rows it pays for may be."""
        counts = dict(mix.counts)
        barred = any(
            sum(c * counts.get(v, 0) for v, c in row.coefficients) > row.high
            for row in self.master.own_rows[name]
            if isinf(row.low)
        )
        if barred or mix.counts in self.known[name]:
            return False
        self.known[name].add(mix.counts)
        self.bound.mixes[name].append(mix)
        return True

    def chosen(self, seconds: float) -> Choice | None:
        """The best integer choice among all of them."""
        bind = Apart(self.master).bind
        return choose(self.master, self.bound, seconds, nodes=NODES, bind=bind, gap=GAP)


class _Priced:
    """The relaxation of the program with rows of ``apart``, and what it charges."""

    def __init__(self, master: Master, bound: Bound) -> None:
        self.master, self.apart = master, Apart(master)
        self.selection = Selection(master, bound.duals, [0.0] * len(master.pools))
        self.selection.offer((name, mix) for name, some in bound.mixes.items() for mix in some)
        self.selection.fill(inf)
        self.apart.bind(self.selection)
        self.duals: Floats = np.zeros(len(master.rows))
        self.prices: Floats = master.costs.copy()
        self.paid: dict[str, float] = {}  # by the cheapest mix of each deployment that is known
        self.charged: dict[tuple[str, Room], float] = {}  # for each node that a mix needs

    def solve(self) -> bool:
        """Solve it; False where it has no optimum."""
        model = self.selection.model
        for v in list(model.variables()):
            v.integer = False
        result = mathopt.solve(model, mathopt.SolverType.GLOP)
        if result.termination.reason != mathopt.TerminationReason.OPTIMAL:
            return False
        found = result.dual_values()
        self._charge_rows(found)
        self.charged = {key: -found[row] for key, row in self.apart.rows.items() if found[row] < 0}
        self.prices = self.master.prices(self.duals)
        self._charge_rooms()
        for mix, _ in self.selection.mixes:
            if mix.counts and not mix.missing_ppm:
                name = self.apart.copies[mix.counts[0][0]].deployment
                self.paid[name] = min(self.paid.get(name, inf), self.cost(mix))
        return True

    def _charge_rows(self, found: Mapping[mathopt.LinearConstraint, float]) -> None:
        """Duals by the master's rows, on the side of their sense."""
        master = self.master
        for r, row in self.selection.rows.items():
            self.duals[r] = found[row]
        for pool in master.pools:
            # The one row of a pool charges its GPUs; its shares by their parts of that.
            gpus = [v for v, _ in master.rows[pool.gpu_row].coefficients]
            (row, _) = self.selection.shares[gpus[0]][0]
            self.duals[pool.gpu_row] = found[row]
            for r in pool.size_rows:
                part = [
                    k
                    for v, _ in master.rows[r].coefficients
                    for row2, k in self.selection.shares[v]
                    if row2 == row
                ][:1]
                self.duals[r] = -found[row] * part[0] if part else 0.0
        low, high = np.isinf(master.row_lows), np.isinf(master.row_highs)
        self.duals = np.where(low, np.minimum(0.0, self.duals), self.duals)
        self.duals = np.where(high, np.maximum(0.0, self.duals), self.duals)

    def _charge_rooms(self) -> None:
        """Groups pay for the blocks they take; ways to use GPUs earn by the rooms they give."""
        by_room: dict[Room, float] = defaultdict(float)
        for (_, room), charge in self.charged.items():
            by_room[room] += charge
        for v, c in self.apart.copies.items():
            self.prices[v] += sum(by_room[room] * n for room, n in self.apart.groups(c))
        for filling in self.master.f.fillings:
            earned = sum(by_room[room] for room in self.apart.gives(filling))
            self.prices[filling.count.index] -= earned

    def cost(self, mix: Mix) -> float:
        """What a mix costs at these prices, with the nodes that it needs."""
        cost = sum(max(0.0, float(self.prices[v])) * n for v, n in mix.counts)
        for name, room, number in self.apart.needs(mix.counts) if mix.counts else ():
            cost += self.charged.get((name, room), 0.0) * number
        return cost

    def improves(self, name: str, mix: Mix) -> bool:
        """Whether the program pays more now."""
        if not mix.counts or mix.missing_ppm or isinf(mix.cost):
            return False
        paid = self.paid.get(name, inf)
        return self.cost(mix) < paid - 1e-7 * max(1.0, abs(paid))

    def mixes(self) -> Iterator[tuple[str, Mix]]:
        """Cheap mixes of each deployment."""
        quick = self.master.quick_mixes(self.prices)
        for (name, d), mix in zip(self.master.names.items(), quick, strict=True):
            if not d.survive or not d.asked_mrps:
                yield name, mix
                continue
            for sturdy in self._outliving(d):
                yield name, sturdy

    def _outliving(self, d: Deployment) -> Iterator[Mix]:
        """For each size that may be the largest: mixes that spare one, two or three of it."""
        master, asked = self.master, self.master.asked(d, self.prices)
        items = [
            replace(item, most=int(master.highs[item.variable]))
            for item in master.priced_items(d, self.prices)
            if item.capacity and master.highs[item.variable] >= 1
        ]
        for largest in sorted({item.capacity for item in items}):
            some = [item for item in items if item.capacity <= largest]
            limited = dict(enumerate(spares(master.domains[d.name], asked.rate, some, largest), 1))
            for lost in range(1, MOST_LOST + 1):
                spare = lost * largest
                rate, few = limited.get(lost, (asked.rate + spare, some))
                dearer = [replace(i, price=i.price + self._nodes(d, i, spare)) for i in few]
                want = Asked(rate, asked.min_replicas, asked.limit)
                best = cheapest_mix(dearer, want)
                whole = None if isinf(best.cost) else master.spread_out(d, dict(best.counts), some)
                if whole:
                    yield Mix(best.cost, 0.0, tuple(sorted(whole.items())))

    def _nodes(self, d: Deployment, item: Item, spare: int) -> float:
        """What a replica pays of the nodes that as many of it need as a loss may take."""
        together = max(1, min(spare // item.capacity, d.spread_node or spare))
        here = self.apart.rooms(self.apart.copies[item.variable])
        return sum(self.charged.get((d.name, room), 0.0) for room in here) / together
