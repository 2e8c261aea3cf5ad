"""The command as a scheduler meets it: what it prints, and how it ends."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from night_world import World
from nightly_documents import paths, put
from typer.testing import CliRunner

from optimizer.cli.app import app
from optimizer.night import record

HOLDS = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def typed(folder: Path, *flags: str) -> list[str]:
    quick = ["--run-dir", str(folder / "run"), "--effort", "2", "--engine", "simulated"]
    return ["nightly", *map(str, paths(folder)), *quick, *flags]


def run(folder: Path, *flags: str, **how: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; without --address nothing runs, and no Ray is started
    to look."""
    return subprocess.run(
        [sys.executable, "-m", "optimizer", "-q", *typed(folder, *flags)],
        capture_output=True,
        text=True,
        timeout=120,
        **how,  # type: ignore[call-overload]
    )


def test_a_night_that_finds_nothing_says_so_in_two_lines(monkeypatch, tmp_path):
    put(tmp_path)
    World().put(monkeypatch)
    first = CliRunner().invoke(app, ["-q", *typed(tmp_path)])
    assert first.exit_code == 0, first.output
    second = CliRunner().invoke(app, ["-q", *typed(tmp_path)])
    folder = record.nights(tmp_path / "run" / "nights")[-1]
    assert second.output.splitlines() == [
        "nothing worth doing: 5 replicas for 5.00 USD/h, proved best",
        f"report: {folder / 'report.html'}",
    ]


def test_what_a_night_cannot_be_made_from_is_a_wrong_usage(monkeypatch, tmp_path):
    put(tmp_path)
    World().put(monkeypatch)
    (tmp_path / "state.yaml").write_text("kind: State\nversion: 1\nreplicas: []\n")
    asked = CliRunner().invoke(app, [*typed(tmp_path), str(tmp_path / "state.yaml")])
    assert asked.exit_code == 2
    assert "a night reads from the cluster what runs" in asked.output
    without = [a for a in typed(tmp_path) if not a.endswith("policy.yaml")]
    asked = CliRunner().invoke(app, without)
    assert asked.exit_code == 2
    assert "no Policy among the documents" in asked.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path):
    put(tmp_path)
    runs = tmp_path / "run" / "nights"
    runs.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(runs / "lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused = run(tmp_path, "--dry-run")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        f"another night is at work in {runs}",
        "wait for it to end; nothing was changed",
    ]
    assert record.nights(runs) == ()
    assert run(tmp_path, "--dry-run").returncode == 10


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_told_and_nothing_is_half_written(tmp_path):
    put(tmp_path)

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    full = run(tmp_path, "--dry-run", preexec_fn=little_room)
    assert full.returncode == 1, full.stdout
    assert "File too large" in full.stderr.splitlines()[0]
    assert "make room, then start it again: it goes on where it was" in full.stderr
    [folder] = record.nights(tmp_path / "run" / "nights")
    assert not (folder / "plan.json").exists()
    assert [p for p in folder.rglob(".*") if p.is_file()] == []
    again = run(tmp_path, "--dry-run")
    assert again.returncode == 10
    assert record.nights(tmp_path / "run" / "nights") == (folder,)


@pytest.mark.slow
def test_a_cluster_that_nobody_reaches_ends_the_night(tmp_path):
    put(tmp_path)
    ended = run(tmp_path, "--address", "127.0.0.1:9")
    assert ended.returncode == 1
    first, second = ended.stdout.splitlines()
    assert first.startswith("no Ray answers at 127.0.0.1:9: ")
    assert second.startswith("report: ")
    assert os.listdir(tmp_path / "run") == ["nights"]
