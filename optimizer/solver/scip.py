"""SCIP with an ear for interrupts: its own handler would take Ctrl-C for itself and go on."""

import threading

from ortools.linear_solver import pywraplp

POLL_S = 0.2


def solve(
    solver: pywraplp.Solver, *, nodes: int, seconds: float, enough: float | None = None
) -> bool:
    """Run within so many nodes of the tree; ``seconds`` is the safety stop. Whether it found any.

    A solution of at most ``enough`` ends the run. An interrupt ends it too, and is raised on.
    """
    settings = [f"limits/nodes = {nodes}", "misc/catchctrlc = FALSE"]
    if enough is not None:
        settings.append(f"limits/primal = {enough!r}")
    solver.SetSolverSpecificParametersAsString("\n".join([*settings, ""]))
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
