"""Our own Ray on this machine: one command a process, and nothing left behind, however it ends."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launchplans import launch_plan
from leftovers import left_behind, processes_with, until
from optimizer.documents import plan_json, write_json
from optimizer.launch.run import read

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(120)]

# A launch whose engine is never ready, and which says so; for signals that arrive meanwhile. Its
# process has imported Ray before, with settings of its own.
LAUNCHING = """
import os, sys, ray
from launchplans import WHOLE, launch_plan
from optimizer.launch import launch
launch(
    launch_plan([WHOLE]), engine="simulated", run_dir=sys.argv[1], detach=sys.argv[2] == "detach",
    faults={WHOLE.id: "never-ready"},
    progress=lambda event: os.write(1, f"{event.state}\\n".encode()),
)
"""


def fleetslice(*arguments: object) -> tuple[int, str]:
    """Exit code and standard output of a command of its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "optimizer", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path):
    """A run folder; nothing that a launch in it started lives on after the test."""
    yield tmp_path / "run"
    run = read(tmp_path / "run")
    if run is not None:
        fleetslice("stop", "--run-dir", run.folder)
    assert left_behind(str(tmp_path)) == []


@pytest.fixture
def plan(tmp_path) -> Path:
    path = tmp_path / "toy.plan.json"
    write_json(path, plan_json(launch_plan()))
    return path


def marks(folder: Path) -> tuple[str, ...]:
    """What everything that the run started carries."""
    run = read(folder)
    assert run is not None
    assert run.temp is not None
    return run.id, run.temp, str(folder)


def rows(folder: Path) -> dict[str, dict[str, object]]:
    _, out = fleetslice("status", "--run-dir", folder, "-o", "json")
    return {row["replica"]: row for row in json.loads(out)["replicas"]}


def test_launch_status_stop_each_in_a_process_of_its_own(plan, folder):
    said = ("launch", plan, "--run-dir", folder, "--engine", "simulated", "--yes", "-o", "json")
    code, out = fleetslice(*said, "--only", "acme")
    assert code == 0
    assert [r["state"] for r in json.loads(out)["replicas"]] == ["ready"] * 3
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = rows(folder)
    assert sorted(before) == ["big/0", "chat/0", "chat/1"]

    assert fleetslice("drift", plan, "--run-dir", folder, "--only", "acme") == (0, "no drift\n")
    code, out = fleetslice("drift", plan, "--run-dir", folder)
    assert code == 5
    assert out.startswith("code/0: missing: should run on n1/1 and does not\n")

    code, _ = fleetslice(*said, "--only", "code")
    assert code == 0
    after = rows(folder)
    assert {name: after[name]["pid"] for name in before} == {n: r["pid"] for n, r in before.items()}
    assert after["code/0"]["state"] == "ready"

    everything = marks(folder)
    code, out = fleetslice("stop", "--run-dir", folder)
    assert (code, out) == (0, "stopped 4 replicas; the local Ray ended too\n")
    assert left_behind(*everything) == []
    assert not Path(everything[1]).exists()
    assert fleetslice("stop", "--run-dir", folder)[0] == 1


def test_a_killed_head_is_told_and_cleared(plan, folder):
    said = ("launch", plan, "--run-dir", folder, "--engine", "simulated", "--yes")
    assert fleetslice(*said, "--only", "code")[0] == 0
    everything = marks(folder)
    os.kill(read(folder).head.pid, signal.SIGKILL)
    assert until(lambda: rows(folder)["code/0"]["state"] == "missing")
    code, out = fleetslice("stop", "--run-dir", folder)
    assert (code, out) == (0, "stopped 1 replica; the local Ray ended too\n")
    assert left_behind(*everything) == []


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGTERM, "attend"), (signal.SIGINT, "detach"), (signal.SIGKILL, "detach")],
)
def test_a_launch_that_is_ended_midway_leaves_nothing(folder, number, how):
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHING, str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == "pending\n"
        assert process.stdout.readline() == "starting\n"
        everything = marks(folder)
        assert processes_with(everything[0])
        process.send_signal(number)
        code = process.wait(60)
    assert code == {signal.SIGTERM: 143}.get(number, -number)
    if (number, how) == (signal.SIGKILL, "detach"):
        # Nobody could clean up: what was started lives on, is shown, and can be stopped.
        assert rows(folder)["code/0"]["state"] == "starting"
        assert fleetslice("stop", "--run-dir", folder)[0] == 0
    assert left_behind(*everything, within_s=30) == []


def test_a_launch_in_the_foreground_ends_with_its_terminal(plan, folder):
    said = ["launch", str(plan), "--run-dir", str(folder), "--engine", "simulated", "--yes"]
    process = subprocess.Popen(
        [sys.executable, "-m", "optimizer", *said, "--only", "code", "--foreground"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert any(line.startswith("end:") for line in process.stderr)
        everything = marks(folder)
        process.send_signal(signal.SIGINT)
        # 130 where the signal came before it began to wait; the pipe to Ray closes then.
        assert process.wait(60) in (0, 130)
    assert left_behind(*everything) == []
