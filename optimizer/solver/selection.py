"""One mix for each deployment, as a mixed integer program over what couples them.

Shared GPUs enter it by one row a pool, made of the duals (a dual-feasible function: what a filling
is worth divided by what the best is worth adds up to at most the GPUs in use), so that no filling
needs a variable.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
from ortools.math_opt.python import mathopt

from optimizer.domain.problem import missing_ppm
from optimizer.solver import ear
from optimizer.solver.master import Floats, Master
from optimizer.solver.pricing import Mix

MIP_GAP = 5e-5
NEARLY = 1e-7  # relative, on what is computed in floating point

Share = tuple[mathopt.LinearConstraint, float]


@dataclass(slots=True)
class Selection:
    """The program at some duals; its rows have the ranges that the master's have now."""

    master: Master
    duals: Floats
    margins: list[float]  # GPUs that each pool leaves empty
    worths: list[float] | None = None  # the most that a GPU of each pool can be worth, if proved
    model: mathopt.Model = field(default_factory=mathopt.Model)
    rows: dict[int, mathopt.LinearConstraint] = field(init=False)
    shares: dict[int, list[Share]] = field(init=False)
    mixes: list[tuple[Mix, mathopt.Variable]] = field(default_factory=list)
    fillings: dict[int, mathopt.Variable] = field(default_factory=dict)
    opened: dict[int, mathopt.Variable] = field(default_factory=dict)
    impossible: bool = False  # the solver proved that nothing can be selected

    def __post_init__(self) -> None:
        master = self.master
        generated = {r for p in master.pools for r in (*p.size_rows, p.gpu_row)}
        self.rows = {
            r: self.model.add_linear_constraint(lb=low, ub=high)
            for r, (low, high) in enumerate(zip(master.row_lows, master.row_highs, strict=True))
            if r not in generated and not (np.isinf(low) and np.isinf(high))
        }
        self.shares = self._pool_rows()

    def _pool_rows(self) -> dict[int, list[Share]]:
        """For each pool: GPUs in use, less what each share is worth, is at least the margin."""
        found: dict[int, list[Share]] = defaultdict(list)
        master = self.master
        known = self.worths or [float(self.duals[pool.gpu_row]) for pool in master.pools]
        for pool, margin, worth in zip(master.pools, self.margins, known, strict=True):
            row = self.model.add_linear_constraint(lb=margin)
            room = pool.packer.parts
            for number, r in enumerate(pool.size_rows):
                # Without a price, the part that a share takes: a guess, so left out of proofs.
                guess = 0.0 if self.worths else room[number].max()
                part = self.duals[r] / worth if worth > 0 else guess
                for v, _ in master.rows[r].coefficients:
                    found[v].append((row, -max(0.0, float(part))))
            for v, _ in master.rows[pool.gpu_row].coefficients:
                found[v].append((row, 1.0))
        return found

    def offer(self, near: Iterable[tuple[str, Mix]]) -> None:
        """Deployments choose one of these mixes."""
        one: dict[str, mathopt.LinearConstraint] = {}
        for name, mix in near:
            if name not in one:
                one[name] = self.model.add_linear_constraint(lb=1.0, ub=1.0)
            x = self.model.add_binary_variable()
            self.mixes.append((mix, x))
            one[name].set_coefficient(x, 1.0)
            missing = (self.master.missing[name], mix.missing_ppm)
            self._enter(x, (*mix.counts, missing))

    def leave_open(self, name: str, least: float, most: float) -> None:
        """A deployment of too many mixes, served in full: it takes each place so often.

        Its places cost at least and at most so much at the duals.
        """
        master, model, d = self.master, self.model, self.master.names[name]
        served = model.add_linear_constraint(lb=float(d.asked_mrps or 0))
        limit = float("inf") if d.replica_limit is None else float(d.replica_limit)
        running = model.add_linear_constraint(lb=float(d.min_replicas), ub=limit)
        paid = model.add_linear_constraint(lb=least - NEARLY * max(1.0, least), ub=most)
        for item in master.priced_items(d, master.prices(self.duals)):
            high = float(master.highs[item.variable])
            if item.price > 0:
                high = min(high, float(int(most / item.price + NEARLY)))
            x = self.opened[item.variable] = model.add_integer_variable(lb=0.0, ub=high)
            served.set_coefficient(x, float(item.capacity))
            running.set_coefficient(x, 1.0)
            paid.set_coefficient(x, item.price)
            self._enter(x, ((item.variable, 1),))
        for row in (*master.own_rows[name], *master.paid_rows[name]):
            if np.isinf(row.low):
                own = model.add_linear_constraint(ub=row.high)
                for v, times in row.coefficients:
                    if v in self.opened:
                        own.set_coefficient(self.opened[v], float(times))

    def fill(self, slack: float) -> None:
        """Ways to use GPUs, but for those whose reduced cost is above ``slack``."""
        master = self.master
        prices = master.prices(self.duals)
        for index in np.nonzero(master.filling)[0].tolist():
            low, high = master.ranges[index]
            if prices[index] > slack and not low:
                continue
            self.fillings[index] = x = self.model.add_integer_variable(lb=low, ub=high)
            self._enter(x, ((index, 1),))

    def _enter(self, x: mathopt.Variable, counts: tuple[tuple[int, float], ...]) -> None:
        into: dict[mathopt.LinearConstraint, float] = defaultdict(float)
        cost = 0.0
        for variable, count in counts:
            cost += count * float(self.master.costs[variable])
            for r, times in self.master.by_variable.get(variable, ()):
                if r in self.rows:
                    into[self.rows[r]] += times * count
            for row, part in self.shares.get(variable, ()):
                into[row] += part * count
        for row, coefficient in into.items():
            row.set_coefficient(x, coefficient)
        self.model.objective.set_linear_coefficient(x, cost)

    def solve(self, seconds: float, nodes: int, gap: float = MIP_GAP) -> list[int] | None:
        """Values of all variables by HiGHS; ends by gap or nodes, ``seconds`` is the safety stop.

        HiGHS takes no interrupt: the first is answered when it ends by itself, the second at once.
        """
        params = mathopt.SolveParameters(
            time_limit=timedelta(seconds=max(1.0, seconds)),
            node_limit=nodes,
            relative_gap_tolerance=gap,
        )
        result = ear.beside(
            lambda: mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=params),
            lambda: None,
        )
        if not result.has_primal_feasible_solution():
            self.impossible = result.termination.reason == mathopt.TerminationReason.INFEASIBLE
            return None
        return self._values(result)

    def _values(self, result: mathopt.SolveResult) -> list[int]:
        chosen = result.variable_values()
        values = [0] * len(self.master.ranges)
        for index, x in self.fillings.items():
            values[index] = round(chosen[x])
        for index, x in self.opened.items():
            values[index] = round(chosen[x])
        for mix, x in self.mixes:
            if round(chosen[x]):
                for variable, count in mix.counts:
                    values[variable] += count
        for name, d in self.master.names.items():
            served = sum(values[v] * capacity for v, capacity in self.master.items[name])
            replicas = sum(values[v] for v, _ in self.master.items[name])
            values[self.master.missing[name]] = missing_ppm(d, served, replicas)
        return values
