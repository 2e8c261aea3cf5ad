"""Runs one engine and ends everything it started, whatever becomes of whoever asked for it.

Started as a script, so that it is up in a few hundredths of a second:

    python3 -I -S guard.py GRACE_SECONDS COMMAND [ARGUMENT...]

It ends the engine when its own standard input closes (the supervisor that holds the other end is
gone, however it went) or on SIGTERM: SIGTERM to the process group, and after the grace SIGKILL to
every descendant, those with groups of their own included. It exits as the engine did: 128 + n
after signal n, 127 when the command cannot be run.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.05
CANNOT_RUN = 127
ENDING = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str]) -> int:
    """Run ``argv[1:]`` with a grace of ``argv[0]`` seconds; the engine's exit code."""
    grace_s, command = float(argv[0]), list(argv[1:])
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # it signals its whole group, which must be nobody else's
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on_signals()
    guard = os.getpid()
    # A signal that comes before the child has put our handlers off would be lost on it.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    engine = os.fork()
    if engine == 0:
        _become(command, guard)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    status = _watch(engine, wake)
    if status is None:
        status = _end(engine, grace_s)
    _kill_descendants()
    return exit_code(status)


def exit_code(status: int) -> int:
    """The shell's view of a wait status."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def prctl(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing happens, and the closed pipe has to do alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _wake_on_signals() -> int:
    """Turn signals into bytes on a pipe, whose reading end is returned."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def noted(number: int, frame: FrameType | None) -> None:
        """The wake-up pipe tells."""

    for number in (*ENDING, signal.SIGCHLD):
        signal.signal(number, noted)
    return reading


def _become(command: list[str], guard: int) -> None:
    """In the child: turn into the engine, which dies with the guard."""
    signal.set_wakeup_fd(-1)
    for number in (*ENDING, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:  # it died before the line above
        os._exit(CANNOT_RUN)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    os._exit(CANNOT_RUN)


def _watch(engine: int, wake: int) -> int | None:
    """Wait until the engine ends (its status) or has to be ended (None)."""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if 0 in ready and not os.read(0, 4096):
            return None
        if wake in ready:
            numbers = os.read(wake, 4096)
            status = _reap(engine)
            if status is not None:
                return status
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                return None


def _reap(engine: int) -> int | None:
    """Collect ended children, adopted ones too; the engine's status once it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == engine:
                found = status
    return found


def _end(engine: int, grace_s: float) -> int:
    """SIGTERM to the group, SIGKILL after the grace; the engine's status."""
    # The guard leads the group and only notes the signal.
    with contextlib.suppress(OSError):
        os.killpg(os.getpgrp(), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        status = _reap(engine)
        if status is not None:
            return status
        time.sleep(POLL_S)
    os.kill(engine, signal.SIGKILL)
    return os.waitpid(engine, 0)[1]


def _kill_descendants() -> None:
    """SIGKILL whatever the engine left behind; orphans became the guard's own children."""
    for _ in range(100):
        found = list(descendants(os.getpid()))
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap(-1)
        time.sleep(POLL_S / 5)


def descendants(root: int) -> Iterator[int]:
    """Processes below ``root`` in the process tree, those already dead left out."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    state, parent = _state_and_parent(int(name))
                    if state != "Z":
                        children.setdefault(parent, []).append(int(name))
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        yield from below
        todo.extend(below)


def _state_and_parent(pid: int) -> tuple[str, int]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        # The command's name stands in brackets and may hold anything, brackets included.
        state, parent = stat.read().rpartition(")")[2].split()[:2]
    return state, int(parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
