"""SCIP with an ear for interrupts: its own handler would take Ctrl-C for itself and go on."""

from dataclasses import dataclass
from math import inf

from ortools.linear_solver import pywraplp

from optimizer.solver import ear, hush


@dataclass(frozen=True, slots=True)
class Ended:
    """What a run knows: whether it found a solution, and whether it says that there is none.

    ``bound``: no solution is better, if one was found.
    """

    found: bool
    impossible: bool
    bound: float = -inf


def solve(
    solver: pywraplp.Solver, *, nodes: int, seconds: float, enough: float | None = None
) -> bool:
    """Run within so many nodes of the tree; ``seconds`` is the safety stop. Whether it found any.

    A solution of at most ``enough`` ends the run. An interrupt ends it too.
    """
    return decide(solver, nodes=nodes, seconds=seconds, enough=enough).found


def decide(
    solver: pywraplp.Solver, *, nodes: int, seconds: float, enough: float | None = None
) -> Ended:
    """The same, telling "there is none" from "none found"."""
    settings = [f"limits/nodes = {nodes}", "misc/catchctrlc = FALSE", "timing/clocktype = 2"]
    if enough is not None:
        settings.append(f"limits/primal = {enough!r}")
    solver.SetSolverSpecificParametersAsString("\n".join([*settings, ""]))
    solver.SetTimeLimit(max(100, int(seconds * 1000)))
    with hush.without(hush.SCIP):
        status = ear.beside(solver.Solve, solver.InterruptSolve)
    found = status in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE)
    bound = float(solver.Objective().BestBound()) if found else -inf
    return Ended(found, status == pywraplp.Solver.INFEASIBLE, bound)
