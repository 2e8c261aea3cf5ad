"""The linear relaxation of the coarse view: replicas may be fractions, demand is a row of its own.

It bounds every plan's price, and where it has no solution no plan keeps the rules.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from optimizer.domain.fleet import Sharing
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import Site, coarse_sites
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

UNBOUNDED = 1 << 60


@dataclass(frozen=True, slots=True)
class Sized:
    """A row or column bound that grows with the GPUs of a class."""

    bound: pywraplp.Constraint | pywraplp.Variable
    high: float


class Relaxation:
    """The program, warm between questions; everybody is to be served in full."""

    def __init__(
        self,
        problem: PlacementProblem,
        sites: tuple[Site, ...] | None = None,
        *,
        hard: bool = False,
    ) -> None:
        """``hard``: only what hard rules demand is asked for, and all of that may be missing."""
        self.problem, self.hard = problem, hard
        self.f = build(problem, coarse_sites(problem) if sites is None else sites, rules=())
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        self.sized: dict[int, list[Sized]] = defaultdict(list)
        self.missing: dict[str, pywraplp.Variable] = {}
        tagged = self._rules()
        self.x = self._columns()
        self._rows(tagged)
        self.asking: dict[str, list[pywraplp.Constraint]] = defaultdict(list)
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
            if c.parts:
                continue  # a pipeline may lie in several sites
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
                self.sized[site].append(Sized(column, high))
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
                self.sized[site].append(Sized(row, high / scale))

    def _demand(self, d: Deployment) -> Iterator[pywraplp.Constraint]:
        """The rows that ask for a deployment's rate, each divided by it; and its other bounds."""
        copies = self.f.of(d.name)
        # What may lie in several sites is lost with none of them for sure.
        sites = [{site for site, _ in c.lies} for c in copies]
        rates = [
            (self.x[c.count.index], capacity_mrps(d, c.candidate), c.site if len(s) == 1 else None)
            for c, s in zip(copies, sites, strict=True)
        ]
        gone = self.lp.NumVar(0.0, 0.0, "")
        self.missing[d.name] = gone
        if d.min_replicas and (d.reserve or not self.hard):
            row = self._row(d, 1.0, inf, [(x, 1 / d.min_replicas) for x, _, _ in rates])
            row.SetCoefficient(gone, 1.0)
        if d.replica_limit is not None:
            self._row(d, 0.0, d.replica_limit, [(x, 1.0) for x, _, _ in rates])
        if not d.asked_mrps or (self.hard and not d.survive):
            return
        yield self._rate_row(d, gone, [(x, rate / d.asked_mrps) for x, rate, _ in rates])
        if d.survive is None:
            return
        for among, number in domains_apart(self.f.sites, d.survive):
            left: dict[int | None, float] = dict.fromkeys(among, 1 - 1 / number)
            parts = [(x, rate / d.asked_mrps * left.get(s, 1.0)) for x, rate, s in rates]
            yield self._rate_row(d, gone, parts)

    def _rate_row(
        self, d: Deployment, gone: pywraplp.Variable, parts: list[tuple[pywraplp.Variable, float]]
    ) -> pywraplp.Constraint:
        row = self._row(d, 1.0, inf, parts)
        row.SetCoefficient(gone, 1.0 if d.survive is None or self.hard else 0.0)
        return row

    def _row(
        self,
        d: Deployment,
        low: float,
        high: float,
        parts: list[tuple[pywraplp.Variable, float]],
    ) -> pywraplp.Constraint:
        row = self.lp.Constraint(low, high)
        for x, part in parts:
            row.SetCoefficient(x, part)
        self.asking[d.name].append(row)
        return row

    def solve(self) -> bool:
        """Whether the program has a solution, and it was found."""
        return bool(self.lp.Solve() == pywraplp.Solver.OPTIMAL)

    def binding(self) -> set[str]:
        """Deployments whose rows prove that not everybody can be served; empty: none do.

        The least sum of what is missing is proved by duals: the rows with one clash by themselves.
        """
        objective = self.lp.Objective()
        objective.Clear()
        objective.SetMinimization()
        for gone in self.missing.values():
            gone.SetUb(1.0)
            objective.SetCoefficient(gone, 1.0)
        if not self.solve() or objective.Value() < 1e-7:
            return set()
        return {
            name
            for name, rows in self.asking.items()
            if any(abs(row.dual_value()) > 1e-9 for row in rows)
        }
