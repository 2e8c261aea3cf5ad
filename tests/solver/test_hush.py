"""What SCIP writes to stderr about its own troubles is dropped; all else passes."""

import os

from ortools.linear_solver import pywraplp

from optimizer.solver import hush, scip

NOISE = (
    b"[lp.c:15072] ERROR: unresolved numerical troubles in LP 3 cannot be dealt with\n"
    b"Caught exception in factorization: XLEAST01\n"
)


def test_lines_of_scip_are_dropped_and_others_pass(capfd):
    with hush.without(hush.SCIP):
        os.write(2, b"before\n" + NOISE)
        os.write(2, b"[not.noise] yet begins alike\nCaught")
        os.write(2, b" exception <x>\nlast, without an end")
    os.write(2, b"; after\n" + NOISE[:12])
    told = "before\n[not.noise] yet begins alike\nlast, without an end; after\n"
    assert capfd.readouterr().err == told + NOISE[:12].decode()


class Loud:
    """A solver of a program that is solved, and says so to everybody."""

    def __init__(self) -> None:
        self.real = pywraplp.Solver.CreateSolver("SCIP")
        self.real.IntVar(0, 1, "x")

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def Solve(self) -> int:  # noqa: N802
        os.write(2, NOISE + b"a fault of ours\n")
        return self.real.Solve()


def test_a_solver_that_gets_over_its_troubles_is_quiet(capfd):
    assert scip.decide(Loud(), nodes=10, seconds=10).found
    assert capfd.readouterr().err == "a fault of ours\n"
