"""Processes of this machine: which are alive, and which belong to a run."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.05
MARK = "FLEETSLICE_RUN"  # in the environment of everything that a run starts


@dataclass(frozen=True, slots=True)
class Process:
    """A process by its number and the time it started, so that a reused number is told apart.

    ``started`` is in clock ticks since boot; None where the system does not say.
    """

    pid: int
    started: int | None = None

    @property
    def alive(self) -> bool:
        """Whether this very process runs (one that ended and waits for its parent does not)."""
        found = _stat(self.pid)
        if found is None:
            return not PROC.exists() and _answers(self.pid)
        return found.state != "Z" and self.started in (None, found.started)


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    session: int
    started: int


def process(pid: int) -> Process:
    """The process of that number as it runs now."""
    found = _stat(pid)
    return Process(pid, None if found is None else found.started)


def of_run(run_id: str, head: Process | None = None) -> tuple[Process, ...]:
    """Processes that a run started, by number: those that carry its mark, and its head's session.

    Ray's daemons rewrite their own command line and lose the mark with it, but they stay in the
    session that the head opened.
    """
    mark = f"{MARK}={run_id}".encode()
    session = None
    if head is not None:
        leader = _stat(head.pid)
        if leader is None or head.started in (None, leader.started):
            session = head.pid
    found = []
    for pid in _pids():
        stat = _stat(pid)
        if stat is None or stat.state == "Z" or pid == os.getpid():
            continue
        if stat.session == session or mark in _environment(pid).split(b"\0"):
            found.append(Process(pid, stat.started))
    return tuple(found)


def end(processes: Iterable[Process], grace_s: float) -> tuple[Process, ...]:
    """SIGTERM, after the grace SIGKILL; those that are still alive a moment later."""
    left = tuple(p for p in processes if p.alive)
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        for one in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, number)
        left = wait_gone(left, patience)
        if not left:
            break
    return left


def wait_gone(processes: Iterable[Process], deadline_s: float) -> tuple[Process, ...]:
    """Those still alive when all are gone or the deadline has passed."""
    end_at = time.monotonic() + deadline_s
    left = tuple(p for p in processes if p.alive)
    while left and time.monotonic() < end_at:
        time.sleep(POLL_S)
        left = tuple(p for p in left if p.alive)
    return left


def _pids() -> list[int]:
    if not PROC.exists():
        return []
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())


def _stat(pid: int) -> _Stat | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name stands in brackets and may hold anything, brackets included.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def _environment(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return b""


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
