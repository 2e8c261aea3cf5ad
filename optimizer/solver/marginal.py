"""Marginal prices: what one more request per second costs, what one more GPU of a class saves.

They are those of a linear program that bounds every plan's price: the coarse view, where replicas
may be fractions. Its value is convex in a demand and in a number of GPUs, so its duals a little to
the left and a little to the right are its one-sided derivatives, and these are the ends of the
dual optimal face: where they differ, every price between them is a marginal price.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import inf

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from optimizer.domain.fleet import Sharing
from optimizer.domain.marginal import GpuWorth, MarginalPrices, RequestPrice, Slope
from optimizer.domain.problem import PlacementProblem, capacity_mrps, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import coarse_sites
from optimizer.solver.formulation import (
    RULES,
    build,
    demand_met,
    domains_apart,
    interconnect,
    replica_bounds,
    slot_legality,
    survive,
)

STEP = 1e-4  # relative: how far beside the demand, or the number of GPUs, duals are read
HELD = 1e-9  # how much more than the least may be missing once that is held
UNBOUNDED = 1 << 60
MOST_CLASSES = 8
MANY_WAYS = 50_000  # times pinned nodes


def marginal_prices(
    problem: PlacementProblem, asked: Collection[str], classes: int = MOST_CLASSES
) -> MarginalPrices | None:
    """Slopes for the deployments named, in document order, and for the largest classes of GPUs.

    None: not even the linear program keeps all hard rules.
    """
    program = _Program(with_reserve(_fewer_pins(problem, asked)))
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
    program = _Program(with_reserve(problem))
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


@dataclass(frozen=True, slots=True)
class _Sized:
    """A row or column bound that grows with the GPUs of a class."""

    bound: pywraplp.Constraint | pywraplp.Variable
    high: float


class _Program:
    """The relaxation, warm between questions."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.f = build(problem, coarse_sites(problem), rules=())
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.sized: dict[int, list[_Sized]] = defaultdict(list)
        self.short: tuple[int, float] | None = None  # a priority not served in full, how much
        self.serves_all = True
        self.unmet_slopes: dict[int, Slope] = {}
        self.missing: dict[str, pywraplp.Variable] = {}
        tagged = self._rules()
        self.x = self._columns()
        self._rows(tagged)
        self.demands = {d.name: list(self._demand(d)) for d in problem.deployments}

    # --- the program

    def _rules(self) -> dict[int, object]:
        """Every rule but those that speak of demand; the rule of each row that knows GPUs."""
        tagged: dict[int, object] = {}
        for rule in RULES:
            if rule in (demand_met, replica_bounds, survive):
                continue
            for constraint in rule(self.f):
                index = self.f.model.add(constraint).index
                if rule in (slot_legality, interconnect):
                    tagged[index] = rule
        return tagged

    def _columns(self) -> list[pywraplp.Variable]:
        flat = cp_model.FlatIntExpr(self.f.price_micros())
        costs = {v.index: int(c) for v, c in zip(flat.vars, flat.coeffs, strict=True)}
        self.unit = float(max([1, *costs.values()]))
        groups: dict[tuple[int, int], int] = {}
        sites: dict[int, tuple[int, float]] = {}
        for c in self.f.copies:
            high = inf  # slots bound it
            if c.candidate.shape.sharing is Sharing.WHOLE:
                key = (c.site, c.candidate.shape.gpus)
                if key not in groups:
                    groups[key] = self.f.sites[c.site].groups(c.candidate.shape.gpus)
                high = float(groups[key]) or inf
            sites[c.count.index] = (c.site, high)
        for (s, _, _), uses in self.f._uses.items():
            for use in uses:
                sites.setdefault(use.index, (s, inf))
        columns = []
        objective = self.lp.Objective()
        objective.SetMinimization()
        for index, one in enumerate(self.f.model.proto.variables):
            site, high = sites.get(index, (None, float(list(one.domain)[-1])))
            column = self.lp.NumVar(0.0, high, "")
            objective.SetCoefficient(column, costs.get(index, 0) / self.unit)
            columns.append(column)
            if site is not None and high < inf:
                self.sized[site].append(_Sized(column, high))
        self.costs = costs
        return columns

    def _rows(self, tagged: dict[int, object]) -> None:
        in_use = {frozenset(use.index for use in uses): at[0] for at, uses in self.f._uses.items()}
        site_of = {c.count.index: c.site for c in self.f.copies}
        for index, one in enumerate(self.f.model.proto.constraints):
            if not one.has_linear() or len(one.enforcement_literal):
                continue  # leaving a row out only weakens the bound
            ends, variables = list(one.linear.domain), list(one.linear.vars)
            low = -inf if ends[0] < -UNBOUNDED else float(ends[0])
            high = inf if ends[-1] > UNBOUNDED else float(ends[-1])
            scale = float(max([1, *map(abs, one.linear.coeffs)]))
            row = self.lp.Constraint(low / scale, high / scale)
            for v, c in zip(variables, one.linear.coeffs, strict=True):
                row.SetCoefficient(self.x[v], row.GetCoefficient(self.x[v]) + c / scale)
            site = in_use.get(frozenset(variables)) if tagged.get(index) is slot_legality else None
            if tagged.get(index) is interconnect and variables:
                site = site_of.get(variables[0])
            if site is not None and 0 < high < inf:
                self.sized[site].append(_Sized(row, high / scale))

    def _demand(self, d: Deployment) -> Iterator[pywraplp.Constraint]:
        """The rows that ask for a deployment's rate, each divided by it; and its other bounds."""
        copies = self.f.of(d.name)
        rates = [(self.x[c.count.index], capacity_mrps(d, c.candidate), c.site) for c in copies]
        gone = self.lp.NumVar(0.0, 0.0, "")
        self.missing[d.name] = gone
        if d.min_replicas:
            row = self.lp.Constraint(d.min_replicas, inf)
            row.SetCoefficient(gone, d.min_replicas)
            for x, _, _ in rates:
                row.SetCoefficient(x, 1.0)
        if d.replica_limit is not None:
            row = self.lp.Constraint(0.0, d.replica_limit)
            for x, _, _ in rates:
                row.SetCoefficient(x, 1.0)
        if d.asked_mrps:
            yield self._rate_row(d, gone, [(x, rate / d.asked_mrps) for x, rate, _ in rates])
        if not d.asked_mrps or d.survive is None:
            return
        for among, number in domains_apart(self.f.sites, d.survive):
            left = dict.fromkeys(among, 1 - 1 / number)
            parts = [(x, rate / d.asked_mrps * left.get(s, 1.0)) for x, rate, s in rates]
            yield self._rate_row(d, gone, parts)

    def _rate_row(
        self,
        d: Deployment,
        gone: pywraplp.Variable,
        parts: list[tuple[pywraplp.Variable, float]],
    ) -> pywraplp.Constraint:
        row = self.lp.Constraint(1.0, inf)
        row.SetCoefficient(gone, 1.0 if d.survive is None else 0.0)
        for x, part in parts:
            row.SetCoefficient(x, part)
        return row

    # --- levels

    def _solve(self) -> bool:
        return bool(self.lp.Solve() == pywraplp.Solver.OPTIMAL)

    def value(self) -> float:
        """The price in micros per hour."""
        return float(self.lp.Objective().Value() * self.unit)

    def settle(self, classes: int) -> bool:
        """Serve everybody, or leave as little unserved as can be, higher priorities first.

        False: hard rules clash.
        """
        self.serves_all = self._solve()
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
            if not self._solve():
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
        return self._solve()

    # --- slopes

    def request(self, name: str) -> Slope:
        """Micros per hour for one request per second more of that deployment."""
        rows = self.demands[name]
        asked = (self.problem.deployment(name).asked_mrps or 0) / 1000
        found: list[float | None] = []
        for side in (1 - STEP, 1 + STEP):
            for row in rows:
                row.SetLb(side)
            if not self._solve():
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
            if not self._solve():
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
