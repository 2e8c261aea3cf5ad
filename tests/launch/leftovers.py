"""Which processes something left behind, told without the code under test."""

import os
import time
from pathlib import Path


def processes_with(*marks: str) -> list[str]:
    """Living processes with one of the marks in their environment or command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            said = (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if state != "Z" and any(mark.encode() in said for mark in marks):
            found.append(f"{folder.name}: {said[:400]!r}")
    return found


def left_behind(*marks: str, within_s: float = 10.0) -> list[str]:
    """As ``processes_with``, after those that are just ending got their time."""
    deadline = time.monotonic() + within_s
    while (found := processes_with(*marks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def until(true: object, within_s: float = 30.0) -> bool:
    """Whether the function gives something true in time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
