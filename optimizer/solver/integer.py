"""Lexicographic search with CP-SAT: each level carries its bound into the next."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd, isinf
from typing import Any

from ortools.sat.python import cp_model

from optimizer.domain.outcome import Limits, Objective, Progress
from optimizer.domain.units import ceil_div
from optimizer.solver import ear
from optimizer.solver.formulation import Expr, Formulation

# Logical workers: fixed, because CP-SAT's answer depends on their number, and interleaved, so that
# it does not depend on the machine's cores.
LOGICAL_WORKERS = 8
LEAST_S = 0.1  # CP-SAT may crash in less: it then unfolds a solution that it has not found
# Bounds of relaxations are computed in floating point; they are taken down by this much before they
# are rounded up.
SAFETY = 1e-7
NOTHING_KNOWN = -(10**18)  # as a bound
LARGEST_BOUND = 1e17  # beyond it a bound says that nothing is known, or that nothing is possible


@dataclass(frozen=True, slots=True)
class Level:
    """One objective: its value in the solution kept, and the proved bound."""

    name: str
    value: int
    bound: int
    priority: int | None = None

    def objective(self) -> Objective:
        """The same as an outcome tells it."""
        return Objective(self.name, self.value, self.bound, self.priority)


@dataclass(slots=True)
class Clock:
    """What is left of the deterministic effort and of the safety stop; tells who stopped."""

    limits: Limits
    report: Callable[[Progress], None]
    started: float = field(default_factory=time.monotonic)
    effort_spent: float = 0.0
    timed_out: bool = False
    kept_back_s: float = 0.0  # of the safety stop, for what must come after

    @property
    def seconds_left(self) -> float:
        """Seconds until the safety stop; after an interrupt, what is left of its grace."""
        left = self.limits.time_limit_s - (time.monotonic() - self.started) - self.kept_back_s
        grace = ear.grace_left_s()
        return left if grace is None else min(left, grace)

    @property
    def interrupted(self) -> bool:
        """Whether the search is to end with what it has."""
        return ear.heard()


@dataclass(slots=True)
class Answer:
    """What one CP-SAT run said: status, values by variable index, objective value and bound."""

    status: Any
    values: list[int]
    value: int
    bound: int

    @property
    def found(self) -> bool:
        """Whether there is a solution."""
        return self.status in (cp_model.OPTIMAL, cp_model.FEASIBLE)

    @property
    def impossible(self) -> bool:
        """Whether it is proved that there is none."""
        return bool(self.status == cp_model.INFEASIBLE)


class _Watcher(cp_model.CpSolverSolutionCallback):
    def __init__(self, phase: str, report: Callable[[Progress], None], scale: int) -> None:
        super().__init__()
        self._phase, self._report, self._scale = phase, report, scale

    def on_solution_callback(self) -> None:
        """Tell who watches."""
        value = round(self.objective_value) * self._scale
        bound = _ceil(self.best_objective_bound) * self._scale
        self._report(Progress(self._phase, value, bound))

    def on_bound(self, bound: float) -> None:
        """Tell who watches; past every solution it says that there is none."""
        if abs(bound) < LARGEST_BOUND:
            self._report(Progress(self._phase, bound=_ceil(bound) * self._scale))


def run(
    model: cp_model.CpModel,
    clock: Clock,
    phase: str,
    *,
    effort: float,
    gap: float = 0.0,
    scale: int = 1,
    workers: int = LOGICAL_WORKERS,
) -> Answer:
    """One CP-SAT run, interruptible, within deterministic ``effort`` and the safety stop."""
    if clock.seconds_left < LEAST_S:
        clock.timed_out |= not clock.interrupted
        return Answer(cp_model.UNKNOWN, [], 0, NOTHING_KNOWN)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.interleave_search = True
    solver.parameters.random_seed = clock.limits.seed
    solver.parameters.max_deterministic_time = max(0.05, effort)
    solver.parameters.max_time_in_seconds = clock.seconds_left
    solver.parameters.relative_gap_limit = gap
    solver.parameters.catch_sigint_signal = False
    watcher = _Watcher(phase, clock.report, scale) if model.has_objective() else None
    if watcher is not None:
        solver.best_bound_callback = watcher.on_bound
    status: Any = ear.beside(lambda: solver.solve(model, watcher), solver.stop_search)
    response = solver.response_proto
    clock.effort_spent += response.deterministic_time
    if status not in (cp_model.OPTIMAL, cp_model.INFEASIBLE) and clock.seconds_left <= 0.05:
        clock.timed_out = True
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    return Answer(
        status,
        list(response.solution) if found else [],
        round(response.objective_value) if found else 0,
        _ceil(response.best_objective_bound),
    )


def _ceil(bound: float) -> int:
    """Smallest integer not below a float bound, forgiving its rounding noise."""
    if bound != bound or abs(bound) > LARGEST_BOUND:
        return NOTHING_KNOWN
    return -int(-(bound - 1e-6) // 1)


@dataclass(slots=True)
class Search:
    """A lexicographic search over one formulation."""

    f: Formulation
    clock: Clock
    values: list[int] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether a solution is kept; where nothing is asked, the empty one is."""
        return bool(self.values) or not self.f.model.proto.variables

    def at(self, expr: Expr) -> int:
        """Value of an expression in the solution kept."""
        return value_of(expr, self.values)

    def hint(self, model: cp_model.CpModel) -> None:
        """Start the next run of ``model`` (ours or a copy) from the solution kept."""
        model.clear_hints()
        for index, value in enumerate(self.values):
            model.add_hint(model.get_int_var_from_proto_index(index), value)

    def record(self, name: str, expr: Expr, bound: int, priority: int | None = None) -> None:
        """Keep the level that the solution kept reaches, and hold later levels to it."""
        if self.found:
            value = self.at(expr)
            self.levels.append(Level(name, value, min(value, bound), priority))
            self.f.model.add(expr <= value)

    def minimise(
        self,
        name: str,
        expr: Expr,
        *,
        effort: float,
        gap: float = 0.0,
        floor: int = 0,
        priority: int | None = None,
    ) -> Answer:
        """Minimise ``expr``; on success keep the solution, record the level and fix its value.

        ``floor`` is a bound proved elsewhere.
        """
        if self.found and self.at(expr) <= floor:
            self.record(name, expr, floor, priority)
            return Answer(cp_model.OPTIMAL, self.values, self.at(expr), floor)
        scaled, factor = _divided(expr)
        if self.found:
            self.hint(self.f.model)
        if floor > 0:
            self.f.model.add(expr >= floor)
        self.f.model.minimize(scaled)
        answer = run(self.f.model, self.clock, name, effort=effort, gap=gap, scale=factor)
        self.f.model.clear_objective()
        answer.value *= factor
        answer.bound = max(floor, answer.bound * factor)
        if answer.found:
            self.values = answer.values
        if self.found:
            proved = answer.status == cp_model.OPTIMAL and gap == 0
            self.record(name, expr, self.at(expr) if proved else answer.bound, priority)
        return answer


def value_of(expr: Expr, values: list[int]) -> int:
    """Value of a linear expression under ``values`` (by variable index)."""
    if isinstance(expr, int):
        return expr
    flat = cp_model.FlatIntExpr(expr)
    terms = zip(flat.vars, flat.coeffs, strict=True)
    return int(sum(c * values[v.index] for v, c in terms) + flat.offset)


def common_divisor(expr: Expr) -> int:
    """Greatest common divisor of an expression's coefficients and offset; at least 1."""
    if isinstance(expr, int):
        return 1
    flat = cp_model.FlatIntExpr(expr)
    return max(1, gcd(*(int(c) for c in flat.coeffs), int(flat.offset)))


def rounded(bound: float, step: int) -> int:
    """The least value that is not below a float bound: a multiple of ``step``, from zero up."""
    if isinf(bound):
        return 0
    safe = bound - SAFETY * max(1.0, abs(bound))
    return max(0, ceil_div(int(-(-safe // 1)), step) * step)


def _divided(expr: Expr) -> tuple[Expr, int]:
    """The expression divided by the common divisor of its coefficients, and that divisor."""
    factor = common_divisor(expr)
    if factor == 1:
        return expr, 1
    flat = cp_model.FlatIntExpr(expr)
    terms = [int(c) // factor * v for v, c in zip(flat.vars, flat.coeffs, strict=True)]
    return cp_model.LinearExpr.sum(terms) + int(flat.offset) // factor, factor


def priorities(f: Formulation) -> list[int]:
    """Priority levels, highest first."""
    return sorted({d.priority for d in f.problem.deployments}, reverse=True)
