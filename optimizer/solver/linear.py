"""One level of the fine view by branch and bound over its linear relaxation (SCIP).

Where few moves are allowed most of the fleet stays as it is, and the relaxation says so: its bound
is near and the tree small. CP-SAT finds good placements there and proves little.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from optimizer.solver import scip
from optimizer.solver.formulation import Expr
from optimizer.solver.integer import common_divisor, value_of
from optimizer.solver.tighten import rounded

UNBOUNDED = 2**62  # beyond it an end of a CP-SAT domain means that there is none


@dataclass(frozen=True, slots=True)
class Tree:
    """What the tree found: values by variable index (empty: nothing better), and the bound."""

    values: list[int]
    bound: int


def minimise(
    model: cp_model.CpModel,
    expr: Expr,
    start: Sequence[int],
    *,
    nodes: int,
    seconds: float,
    enough: float | None = None,
) -> Tree:
    """Minimise ``expr`` over the model's linear rows, from a known solution if there is one.

    Rows that hold only under a condition are left out: the bound stands, and a solution that
    breaks one is not told. ``nodes`` of the tree at most; ``seconds`` is the safety stop. A value
    of at most ``enough`` ends the search.
    """
    solver = pywraplp.Solver.CreateSolver("SCIP")
    variables = []
    for one in model.proto.variables:
        ends = list(one.domain)
        variables.append(solver.IntVar(ends[0], ends[-1], ""))
    for row in model.proto.constraints:
        if row.has_linear() and not list(row.enforcement_literal):
            _row(solver, variables, row.linear)
    unit = common_divisor(expr)
    flat = cp_model.FlatIntExpr(expr)
    objective = solver.Objective()
    for index, count in _summed((v.index for v in flat.vars), flat.coeffs).items():
        objective.SetCoefficient(variables[index], count / unit)
    objective.SetOffset(flat.offset / unit)
    objective.SetMinimization()
    if start:
        solver.SetHint(variables, [float(value) for value in start])
    stop = None if enough is None else enough / unit
    if not scip.solve(solver, nodes=nodes, seconds=seconds, enough=stop):
        return Tree([], 0)
    bound = rounded(objective.BestBound() * unit, unit)
    values = [round(v.solution_value()) for v in variables]
    better = not start or value_of(expr, values) < value_of(expr, list(start))
    return Tree(values if better and _holds(model, values) else [], bound)


def _summed(indexes, counts) -> dict[int, int]:  # type: ignore[no-untyped-def]
    found: dict[int, int] = {}
    for index, count in zip(indexes, counts, strict=True):
        found[index] = found.get(index, 0) + int(count)
    return found


def _row(solver: pywraplp.Solver, variables: list[pywraplp.Variable], linear: object) -> None:
    """The row divided by its largest coefficient."""
    terms = _summed(linear.vars, linear.coeffs)  # type: ignore[attr-defined]
    ends = list(linear.domain)  # type: ignore[attr-defined]
    scale = float(max([1, *map(abs, terms.values())]))
    low = -inf if ends[0] < -UNBOUNDED else ends[0] / scale
    high = inf if ends[-1] > UNBOUNDED else ends[-1] / scale
    row = solver.Constraint(low, high)
    for index, count in terms.items():
        row.SetCoefficient(variables[index], count / scale)


def _holds(model: cp_model.CpModel, values: list[int]) -> bool:
    """Whether every row holds exactly, those under a condition too."""
    for row in model.proto.constraints:
        if not row.has_linear():
            return False
        if all(_true(literal, values) for literal in row.enforcement_literal):
            linear, ends = row.linear, list(row.linear.domain)
            pairs = zip(linear.vars, linear.coeffs, strict=True)
            if not ends[0] <= sum(c * values[v] for v, c in pairs) <= ends[-1]:
                return False
    return True


def _true(literal: int, values: list[int]) -> bool:
    return values[literal] == 1 if literal >= 0 else values[-literal - 1] == 0
