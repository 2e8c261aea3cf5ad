"""SCIP with an ear for interrupts: its own handler would take Ctrl-C for itself and go on."""

import threading

from ortools.linear_solver import pywraplp

POLL_S = 0.2


def solve(solver: pywraplp.Solver, *, nodes: int, seconds: float) -> bool:
    """Run within so many nodes of the tree; ``seconds`` is the safety stop. Whether it found any.

    An interrupt ends the run and is raised on.
    """
    solver.SetSolverSpecificParametersAsString(f"limits/nodes = {nodes}\nmisc/catchctrlc = FALSE\n")
    solver.SetTimeLimit(max(100, int(seconds * 1000)))
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(solver.Solve()), daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
    except KeyboardInterrupt:
        solver.InterruptSolve()
        thread.join()
        raise
    return status[0] in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE)
