"""What the journal holds, also after the writer is killed in the middle."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from launchplans import MIG_SLICES, launch_plan
from optimizer.domain.gpu import PlacedProfile
from optimizer.launch import LaunchRefused
from optimizer.launch.journal import Act, CopyState, Journal, Kind, StepState, peek
from optimizer.launch.specs import specify

PLAN = launch_plan(MIG_SLICES)
OLD, _ = specify(PLAN, MIG_SLICES, simulated=True, run="r1")
NEW = replace(OLD, generation=1, devices=("n1/1",))
ACTS = (
    Act("s1", "create_instance", ("n1/1",), placed=PlacedProfile(4, "3g.40gb")),
    Act("s2", "start", ("n1/1",), ("s1",), OLD.id, 1, PlacedProfile(4, "3g.40gb")),
)

KILLED = """
import os, signal, sys
from pathlib import Path
from optimizer.launch.journal import Journal, StepState
with Journal(Path(sys.argv[1]), "r1") as journal:
    journal.mark(1, "s1", StepState.DONE)
    journal.mark(1, "s2", StepState.INTENT)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_ahead_is_read_after_a_kill(tmp_path):
    with Journal(tmp_path, "r1") as journal:
        journal.begin(Kind.REBALANCE, "p1", ACTS, (OLD, NEW), {OLD.id: 0}, {OLD.id: 1})
        journal.set_copy(OLD.id, 0, CopyState.SERVING)
        journal.set_copy(OLD.id, 1, CopyState.STARTING)
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    with Journal(tmp_path, "r1") as journal:
        latest = journal.latest()
        entries = journal.entries(latest.id)
        copies = journal.live()
    assert (latest.kind, latest.state, latest.goal) == (Kind.REBALANCE, "running", {OLD.id: 1})
    assert [entry.act for entry in entries] == list(ACTS)
    assert [entry.state for entry in entries] == [StepState.DONE, StepState.INTENT]
    assert [copy.spec for copy in copies] == [OLD, NEW]
    assert [copy.spec.copy_name for copy in copies] == ["chat/0", "chat/0#1"]
    assert (tmp_path / "journal.sqlite").stat().st_mode & 0o077 == 0


def test_what_is_no_journal_is_refused(tmp_path):
    (tmp_path / "journal.sqlite").write_text("not a database at all, but long enough for one" * 9)
    with pytest.raises(LaunchRefused, match="cannot be used"):
        Journal(tmp_path, "r1")
    with pytest.raises(LaunchRefused, match="cannot be read"):
        peek(tmp_path, "r1")


def test_another_run_in_the_folder_begins_anew(tmp_path):
    with Journal(tmp_path, "r1") as journal:
        journal.begin(Kind.LAUNCH, "p1", ACTS, (OLD,), {}, {OLD.id: 0})
        journal.set_copy(OLD.id, 0, CopyState.SERVING)
    assert peek(tmp_path, "r1")[0][0].spec == OLD
    assert peek(tmp_path, "r2") == ((), None)
    with Journal(tmp_path, "r2") as journal:
        assert journal.latest() is None
        assert journal.copies() == ()
