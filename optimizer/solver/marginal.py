"""Marginal prices: what one more request per second costs, what one more GPU of a class saves.

They are those of a linear program that bounds every plan's price: the coarse view, where replicas
may be fractions. Its value is convex in a demand and in a number of GPUs, so its duals a little to
the left and a little to the right are its one-sided derivatives, and these are the ends of the
dual optimal face: where they differ, every price between them is a marginal price.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from math import inf

from ortools.linear_solver import pywraplp

from optimizer.domain.marginal import GpuWorth, MarginalPrices, RequestPrice, Slope
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.solver.relaxation import Relaxation

STEP = 1e-4  # relative: how far beside the demand, or the number of GPUs, duals are read
HELD = 1e-9  # how much more than the least may be missing once that is held
MOST_CLASSES = 8
MANY_WAYS = 50_000  # times pinned nodes


def marginal_prices(
    problem: PlacementProblem, asked: Collection[str], classes: int = MOST_CLASSES
) -> MarginalPrices | None:
    """Slopes for the deployments named, in document order, and for the largest classes of GPUs.

    None: not even the linear program keeps all hard rules.
    """
    program = _Slopes(with_reserve(_fewer_pins(problem, asked)))
    if not program.settle(classes):
        return None
    requests = tuple(
        RequestPrice(d.name, program.request(d.name))
        for d in problem.deployments
        if d.name in asked and d.asked_mrps
    )
    gpus = tuple(program.gpus(classes))
    return MarginalPrices(program.serves_all, requests, gpus)


def least_price_micros(problem: PlacementProblem) -> float | None:
    """The linear program's value; None: it does not serve everybody."""
    program = _Slopes(with_reserve(problem))
    return program.value() if program.settle(0) and program.serves_all else None


def _fewer_pins(problem: PlacementProblem, asked: Collection[str]) -> PlacementProblem:
    """Where pins split a large fleet into many classes: without those of who is not asked about.

    The program still bounds every plan.
    """
    pinned = {p for d in problem.deployments for p in d.pin}
    ways = sum(map(len, problem.candidates.values()))
    if len(pinned) * ways <= MANY_WAYS:
        return problem
    some = (d if d.name in asked else replace(d, pin=()) for d in problem.deployments)
    return replace(problem, deployments=tuple(some))


class _Slopes(Relaxation):
    """The relaxation at the demand asked, and what changes a little beside it."""

    def __init__(self, problem: PlacementProblem) -> None:
        super().__init__(problem)
        self.short: tuple[int, float] | None = None  # a priority not served in full, how much
        self.serves_all = True
        self.unmet_slopes: dict[int, Slope] = {}

    def value(self) -> float:
        """The price in micros per hour."""
        return float(self.lp.Objective().Value() * self.unit)

    def settle(self, classes: int) -> bool:
        """Serve everybody, or leave as little unserved as can be, higher priorities first.

        False: hard rules clash.
        """
        self.serves_all = self.solve()
        if self.serves_all:
            return True
        levels: dict[int, list[pywraplp.Variable]] = defaultdict(list)
        for d in self.problem.deployments:
            if not d.reserve:
                self.missing[d.name].SetUb(1.0)
                levels[d.priority].append(self.missing[d.name])
        objective = self.lp.Objective()
        for priority in sorted(levels, reverse=True):
            objective.Clear()
            objective.SetMinimization()
            for gone in levels[priority]:
                objective.SetCoefficient(gone, 1.0)
            if not self.solve():
                return False
            least = objective.Value()
            if least > HELD and self.short is None:
                self.short = (priority, least)
                self.unmet_slopes = {s: self._worth(s, 1.0) for s in self._classes(classes)}
            row = self.lp.Constraint(-inf, least + HELD)
            for gone in levels[priority]:
                row.SetCoefficient(gone, 1.0)
        objective.Clear()
        objective.SetMinimization()
        for index, cost in self.costs.items():
            objective.SetCoefficient(self.x[index], cost / self.unit)
        return self.solve()

    def request(self, name: str) -> Slope:
        """Micros per hour for one request per second more of that deployment."""
        rows = self.demands[name]
        asked = (self.problem.deployment(name).asked_mrps or 0) / 1000
        found: list[float | None] = []
        for side in (1 - STEP, 1 + STEP):
            for row in rows:
                row.SetLb(side)
            if not self.solve():
                found.append(None)
                continue
            price = sum(max(0.0, row.dual_value()) for row in rows) * self.unit / asked
            found.append(_rounded(price))
        for row in rows:
            row.SetLb(1.0)
        return Slope(found[0], found[1])

    def _classes(self, most: int) -> list[int]:
        sites = self.f.sites
        found = [s for s, site in enumerate(sites) if site.gpus and self.sized[s]]
        return sorted(sorted(found, key=lambda s: (-sites[s].gpus, s))[:most])

    def gpus(self, most: int) -> Iterator[GpuWorth]:
        """The largest classes with what one more of their GPUs saves, and what it serves."""
        for s in self._classes(most):
            site = self.f.sites[s]
            yield GpuWorth(
                site.gpu.name,
                tuple(node.name for node in site.nodes),
                site.gpus,
                self._worth(s, self.unit),
                self.unmet_slopes.get(s),
            )

    def _worth(self, s: int, unit: float) -> Slope:
        """How much less the goal is for one GPU more (``low``), how much more for one less."""
        found: list[float | None] = []
        for side in (1 + STEP, 1 - STEP):
            for one in self.sized[s]:
                one.bound.SetUb(one.high * side)
            if not self.solve():
                found.append(None)
                continue
            slope = sum(_dual(one.bound) * one.high for one in self.sized[s])
            found.append(_rounded(-slope * unit / self.f.sites[s].gpus))
        for one in self.sized[s]:
            one.bound.SetUb(one.high)
        return Slope(found[0], found[1])


def _rounded(value: float) -> float:
    """To six digits after the comma, so that noise reads as zero."""
    return max(0.0, round(value, 6))


def _dual(bound: pywraplp.Constraint | pywraplp.Variable) -> float:
    """What the goal gains by a looser upper end: never above zero."""
    if isinstance(bound, pywraplp.Variable):
        return min(0.0, float(bound.reduced_cost()))
    return min(0.0, float(bound.dual_value()))
