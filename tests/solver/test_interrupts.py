"""Ctrl-C during a search: the first ends it with what it has, the second ends it at once."""

import os
import signal
import threading
import time

import pytest

from builders import a100, candidate, deployment, fleet, node, problem
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver import ear, solve
from optimizer.solver.master import Master
from optimizer.verify import verify


def slices_of_two_nodes() -> PlacementProblem:
    """Two deployments that share the slices of eight A100s."""
    product = a100()
    return problem(
        fleet(node("a", product, 4, price=2.0), node("b", product, 4, price=3.0)),
        [deployment("chat", rps=7), deployment("rank", rps=5)],
        [
            candidate("chat", product, profile="2g.20gb", rps=1),
            candidate("chat", product, profile="3g.40gb", rps=2),
            candidate("rank", product, profile="1g.10gb", rps=1),
        ],
    )


def interrupted_while_generating(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The first round of column generation is interrupted so many times."""
    generate = Master.generate

    def meanwhile(self: Master, *args: object, **more: object) -> int:
        if not ear.heard():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return generate(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Master, "generate", meanwhile)


def test_an_interrupt_while_columns_are_generated_leaves_a_plan(monkeypatch) -> None:
    interrupted_while_generating(monkeypatch, times=1)
    where = slices_of_two_nodes()
    outcome = solve(where, Limits())
    assert outcome.stopped_by == "interrupt"
    assert not outcome.reproducible
    assert outcome.incumbent is not None
    assert verify(where, outcome.incumbent) == ()
    assert all(level.bound <= level.value for level in outcome.objectives)


def test_a_second_interrupt_is_raised(monkeypatch) -> None:
    interrupted_while_generating(monkeypatch, times=2)
    with pytest.raises(KeyboardInterrupt):
        solve(slices_of_two_nodes(), Limits())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_earlier_interrupt_is_forgotten(monkeypatch) -> None:
    with ear.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert ear.heard()
    assert solve(slices_of_two_nodes(), Limits()).stopped_by == "proof"


@pytest.mark.parametrize(("earlier", "stopped"), [(False, True), (True, False)])
def test_work_beside_is_stopped_by_what_comes_during_it(earlier: bool, stopped: bool) -> None:
    """What was heard before has its grace, so the work may end by itself."""
    stop = threading.Event()

    def work() -> bool:
        if not earlier:
            os.kill(os.getpid(), signal.SIGINT)
        return stop.wait(5 if not earlier else 0.5)

    with ear.listening():
        if earlier:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # the handler runs between two instructions
        assert ear.beside(work, stop.set) is stopped
