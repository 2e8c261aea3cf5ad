"""The bound: Dantzig-Wolfe over deployments on top of the coarse view.

Rows of the coarse formulation that speak of one deployment alone move into its pricing problem
(an exact covering knapsack); the rest couple deployments and are priced by a linear program. The
relaxation is far tighter than the formulation's own, because a mix is integer.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf, isinf

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from optimizer.domain.problem import capacity_mrps, missing_ppm
from optimizer.domain.workload import Deployment
from optimizer.solver.formulation import Expr, Formulation
from optimizer.solver.pricing import Asked, Item, Mix, cheapest_mix

MOST_ROUNDS = 200
MOST_TREE_NODES = 2_000
BIG = 1e4  # price of leaving a deployment out, in units of the dearest objective coefficient


@dataclass(frozen=True, slots=True)
class Row:
    """A coupling row: ``low <= sum(coefficients * variables) <= high``."""

    coefficients: tuple[tuple[int, int], ...]
    low: float
    high: float


@dataclass(slots=True)
class Bound:
    """A proved bound, and what found it: duals by row, mixes by deployment."""

    value: float
    duals: list[float] = field(default_factory=list)
    mixes: dict[str, list[Mix]] = field(default_factory=dict)
    cheapest: dict[str, float] = field(default_factory=dict)


class Master:
    """The linear program over mixes and fillings for one objective of one formulation."""

    def __init__(self, f: Formulation, objective: Expr, complete: frozenset[int]) -> None:
        """``complete``: priorities whose deployments must be served in full."""
        self.f = f
        self.names = {d.name: d for d in f.problem.deployments}
        self.complete = complete
        flat = cp_model.FlatIntExpr(objective)
        self.unit = float(max([1, *(abs(int(c)) for c in flat.coeffs)]))
        self.cost = {v.index: c / self.unit for v, c in zip(flat.vars, flat.coeffs, strict=True)}
        self.offset = flat.offset / self.unit
        self.owner = self._owners()
        self.rows = list(self._coupling_rows())
        self.by_variable: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for r, row in enumerate(self.rows):
            for variable, coefficient in row.coefficients:
                self.by_variable[variable].append((r, coefficient))
        self.items = self._items()
        self.missing = {name: v.index for name, v in f.missing.items()}
        self.missing_indices = frozenset(self.missing.values())
        self.ranges = [_ends(v.domain) for v in f.model.proto.variables]

    def _owners(self) -> dict[int, str]:
        owner = {c.count.index: c.deployment for c in self.f.copies}
        owner.update({v.index: name for name, v in self.f.missing.items()})
        return owner

    def _coupling_rows(self) -> Iterator[Row]:
        for constraint in self.f.model.proto.constraints:
            if not constraint.has_linear() or len(constraint.enforcement_literal):
                continue  # leaving a row out only weakens the bound
            linear = constraint.linear
            owners = {self.owner.get(v) for v in linear.vars}
            if len(owners) == 1 and None not in owners:
                continue
            low, high = _ends(linear.domain)
            yield Row(
                tuple(zip(linear.vars, linear.coeffs, strict=True)),
                -inf if low < -(1 << 60) else float(low),
                inf if high > (1 << 60) else float(high),
            )

    def _items(self) -> dict[str, list[tuple[int, int]]]:
        items: dict[str, list[tuple[int, int]]] = {name: [] for name in self.names}
        for c in self.f.copies:
            capacity = capacity_mrps(self.names[c.deployment], c.candidate)
            asked = self.names[c.deployment].asked_mrps or 0
            items[c.deployment].append((c.count.index, min(capacity, asked)))
        return items

    def price(self, variable: int, duals: list[float]) -> float:
        """Reduced cost of one unit of a variable."""
        pays = sum(coefficient * duals[r] for r, coefficient in self.by_variable[variable])
        return self.cost.get(variable, 0.0) - pays

    def asked(self, d: Deployment, duals: list[float]) -> Asked:
        """What a mix of that deployment must do at these duals."""
        missing = max(0.0, self.price(self.missing[d.name], duals))
        full = d.priority in self.complete
        return Asked(d.asked_mrps or 0, d.min_replicas, d.replica_limit, None if full else missing)

    def priced_items(self, name: str, duals: list[float]) -> list[Item]:
        """The deployment's places at these duals; a price below zero counts as zero."""
        return [
            Item(max(0.0, self.price(variable, duals)), capacity, variable)
            for variable, capacity in self.items[name]
        ]

    def lagrangian(self, duals: list[float], mixes: dict[str, Mix]) -> float:
        """A bound at any duals: what mixes, fillings and right-hand sides cost at least."""
        value = self.offset + sum(mix.bound for mix in mixes.values())
        for row, dual in zip(self.rows, duals, strict=True):
            side = row.low if dual > 0 else row.high
            if dual and isinf(side):
                return -inf
            value += dual * side if dual else 0.0
        for index, (low, high) in enumerate(self.ranges):
            reduced = self.price(index, duals)
            if index not in self.owner:
                value += reduced * (low if reduced > 0 else high)
            elif reduced < 0 and index not in self.missing_indices:
                value += reduced * high  # its item was priced at zero
        return value

    def solve(self) -> Bound:
        """Column generation to the relaxation's optimum; the best bound met on the way."""
        program = _Program(self)
        program.start()
        best = Bound(-inf)
        for _ in range(MOST_ROUNDS):
            duals = program.solve()
            if duals is None:
                break
            mixes = {
                name: cheapest_mix(self.priced_items(name, duals), self.asked(d, duals))
                for name, d in self.names.items()
            }
            value = self.lagrangian(duals, mixes)
            if value > best.value:
                best = Bound(value, duals, {}, {n: m.cost for n, m in mixes.items()})
            better = [(n, mix) for n, mix in mixes.items() if program.improves(n, mix)]
            if not better:
                break
            for name, mix in better:
                program.add(name, mix)
        best.mixes = program.mixes
        return best

    def integer(self, bound: Bound, seconds: float) -> list[int]:
        """Values of all variables in the best integer choice among known mixes; empty if none.

        Ends by nodes, so that it repeats; ``seconds`` is the safety stop.
        """
        program = _Program(self, "SCIP")
        for name, mixes in bound.mixes.items():
            for mix in dict.fromkeys(mixes):
                program.add(name, mix)
        program.lp.SetSolverSpecificParametersAsString(f"limits/nodes = {MOST_TREE_NODES}\n")
        program.lp.SetTimeLimit(max(100, int(seconds * 1000)))
        if program.lp.Solve() not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            return []
        values = [0] * len(self.ranges)
        for index, x in program.fillings.items():
            values[index] = round(x.solution_value())
        for _, mix, x in program.chosen:
            if round(x.solution_value()):
                for variable, count in mix.counts:
                    values[variable] += count
        for name, d in self.names.items():
            served = sum(values[v] * capacity for v, capacity in self.items[name])
            replicas = sum(values[v] for v, _ in self.items[name])
            values[self.missing[name]] = missing_ppm(d, served, replicas)
        return values


def _ends(domain: Iterable[int]) -> tuple[int, int]:
    """Least and greatest value of a domain (negative indices into one do not work)."""
    values = list(domain)
    return values[0], values[-1]


class _Program:
    """The restricted master: relaxed (GLOP) or in integers (SCIP)."""

    def __init__(self, master: Master, backend: str = "GLOP") -> None:
        self.m = master
        self.lp = pywraplp.Solver.CreateSolver(backend)
        self.integer = backend != "GLOP"
        self.rows = [
            self.lp.Constraint(
                -self.lp.infinity() if isinf(r.low) else r.low,
                self.lp.infinity() if isinf(r.high) else r.high,
            )
            for r in master.rows
        ]
        self.choose = {name: self.lp.Constraint(1.0, 1.0) for name in master.names}
        self.mixes: dict[str, list[Mix]] = {name: [] for name in master.names}
        self.chosen: list[tuple[str, Mix, pywraplp.Variable]] = []
        self.fillings: dict[int, pywraplp.Variable] = {}
        self._last: dict[str, float] = {}
        objective = self.lp.Objective()
        objective.SetMinimization()
        for index, (low, high) in enumerate(master.ranges):
            if index in master.owner:
                continue
            x = self.fillings[index] = self.lp.Var(low, high, self.integer, "")
            objective.SetCoefficient(x, master.cost.get(index, 0.0))
            for r, coefficient in master.by_variable[index]:
                self.rows[r].SetCoefficient(x, coefficient)

    def start(self) -> None:
        """Make it feasible: leaving out at a high price, and mixes of one kind."""
        for name, d in self.m.names.items():
            out = self.lp.NumVar(0, self.lp.infinity(), "")
            self.lp.Objective().SetCoefficient(out, BIG)
            self.choose[name].SetCoefficient(out, 1.0)
            for variable, capacity in self.m.items[name]:
                self._plain(name, d, variable, capacity)

    def _plain(self, name: str, d: Deployment, variable: int, capacity: int) -> None:
        """Start with the mixes of one kind."""
        if d.asked_mrps and not capacity:
            return
        count = -(-(d.asked_mrps or 0) // capacity) if capacity else 0
        count = max(count, d.min_replicas)
        if d.replica_limit is None or count <= d.replica_limit:
            self.add(name, Mix(0.0, 0.0, ((variable, count),) if count else ()))

    def add(self, name: str, mix: Mix) -> None:
        """A new column."""
        x = self.lp.Var(0, 1 if self.integer else self.lp.infinity(), self.integer, "")
        self.chosen.append((name, mix, x))
        self.choose[name].SetCoefficient(x, 1.0)
        missing = self.m.missing[name]
        cost = 0.0
        coefficients: dict[int, float] = defaultdict(float)
        for variable, count in (*mix.counts, (missing, mix.missing_ppm)):
            cost += count * self.m.cost.get(variable, 0.0)
            for r, coefficient in self.m.by_variable[variable]:
                coefficients[r] += coefficient * count
        self.lp.Objective().SetCoefficient(x, cost)
        for r, summed in coefficients.items():
            self.rows[r].SetCoefficient(x, summed)
        self.mixes[name].append(mix)

    def solve(self) -> list[float] | None:
        """Duals by row, each on the side of its sense; None when GLOP gives up."""
        if self.lp.Solve() != pywraplp.Solver.OPTIMAL:
            return None
        self._last = {name: row.dual_value() for name, row in self.choose.items()}
        return [
            self._signed(row, c.dual_value()) for row, c in zip(self.m.rows, self.rows, strict=True)
        ]

    @staticmethod
    def _signed(row: Row, dual: float) -> float:
        if isinf(row.low):
            return min(0.0, dual)
        return max(0.0, dual) if isinf(row.high) else dual

    def improves(self, name: str, mix: Mix) -> bool:
        """Whether the mix is cheaper than what the program pays for the deployment."""
        paid = self._last[name]
        return not isinf(mix.cost) and mix.cost < paid - 1e-7 * max(1.0, abs(paid))
