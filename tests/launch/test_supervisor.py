"""One replica's engine, kept alive by its supervisor; real processes, no Ray."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from launchplans import WHOLE, launch_plan
from leftovers import left_behind, until
from optimizer.launch import guard
from optimizer.launch.specs import specify
from optimizer.launch.supervisor import Supervisor
from optimizer.launch.values import Patience

QUICK = Patience(
    ready_s=20, health_every_s=0.1, misses=2, backoff_s=0.05, backoff_most_s=0.2, grace_s=5
)


@pytest.fixture
def supervise(request, tmp_path):
    """Starts a supervised simulated engine with a fault on demand; all end with the test."""
    begun = []

    def start(fault: str | None = None, patience: Patience = QUICK, **said: object) -> Supervisor:
        mark = f"test-{request.node.name}-{os.getpid()}"
        [spec] = specify(
            launch_plan([WHOLE]),
            [WHOLE],
            simulated=True,
            run=mark,
            patience=patience,
            faults={WHOLE.id: fault} if fault else None,
            log_folder=str(tmp_path),
        )
        one = Supervisor(replace(spec, **said))
        one.start()
        begun.append(one)
        return one

    yield start
    for one in begun:
        one.stop()
        assert left_behind(one.spec.run) == []


def state(one: Supervisor) -> str:
    return one.report()["state"]


def test_an_engine_becomes_ready_and_ends(supervise, tmp_path):
    one = supervise()
    assert until(lambda: state(one) == "ready")
    row = one.report()
    assert row["url"].startswith("http://127.0.0.1:")
    assert row["restarts"] == 0
    one.stop()
    assert state(one) == "stopped"
    assert one.tail()[-1] == "stopped"
    assert (tmp_path / "code.0.log").read_text().splitlines() == list(one.tail())


def test_a_crashing_engine_starts_again_after_ever_longer_pauses(supervise):
    one = supervise("exit")
    seen = []

    def four_pauses() -> bool:
        reason = one.report()["reason"]
        if reason and reason not in seen:
            seen.append(reason)
        return len(seen) == 3 and one.report()["restarts"] >= 4

    assert until(four_pauses), seen
    ended = "its engine ended with exit code 3; starts again in"
    assert seen == [f"{ended} {pause} s" for pause in ("0.05", "0.1", "0.2")]
    assert "fault on demand: exit at start" in one.tail()
    assert one.report()["ever_ready"] is False


def test_a_killed_engine_is_ready_again(supervise):
    one = supervise()
    assert until(lambda: state(one) == "ready")
    os.kill(one.report()["pid"], signal.SIGKILL)
    assert until(lambda: one.report()["restarts"] == 1 and state(one) == "ready")


def test_an_engine_that_fails_its_health_checks_starts_again(supervise):
    one = supervise("unhealthy-after:0.5")
    assert until(lambda: state(one) == "ready")
    assert until(lambda: one.report()["restarts"] == 1)


def test_an_engine_that_is_never_ready_is_said_to_be(supervise):
    one = supervise("never-ready", replace(QUICK, ready_s=0.5))
    assert until(lambda: "not ready within 0.5 s" in one.report()["reason"])


def test_a_program_that_is_not_there_is_named(supervise):
    one = supervise(argv=("no-such-engine", "serve"))
    assert until(lambda: "exit code 127" in one.report()["reason"])
    assert "cannot run no-such-engine: No such file or directory" in one.tail()


def test_no_word_of_a_document_reaches_a_shell(supervise, tmp_path):
    one = supervise(argv=("echo", f"$(touch {tmp_path}/shell)", ";", f"touch {tmp_path}/shell"))
    assert until(lambda: one.tail())
    assert one.tail()[0].startswith("$(touch")
    assert not (tmp_path / "shell").exists()


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
os.write(1, bytes([117, 112, 10]))
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["its pipe closes", "SIGTERM"])
def test_a_guard_leaves_nothing_behind(how, tmp_path):
    script = tmp_path / "stubborn.py"
    script.write_text(STUBBORN)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, "0.2", sys.executable, "-S", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        assert [process.stdout.readline() for _ in range(2)] == [b"up\n", b"up\n"]
        if how == "its pipe closes":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert left_behind(str(script)) == []


def test_a_guard_that_is_given_up_at_once_ends_its_engine_without_waiting():
    argv = [sys.executable, "-I", "-S", guard.__file__, "600", "sleep", "600"]
    for _ in range(5):
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_guard_exits_as_its_engine_did():
    def code(*command: str) -> int:
        argv = [sys.executable, "-I", "-S", guard.__file__, "1", *command]
        with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
            return process.wait(20)

    assert code("sh", "-c", "exit 7") == 7
    assert code("sh", "-c", "kill -9 $$") == 137
