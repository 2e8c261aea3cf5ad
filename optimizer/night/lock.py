"""One night at a time: a lock that ends with the process that holds it, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimizer.night import record
from optimizer.night.values import Code, NightRefused

LOCK = "lock"


@contextmanager
def only_one(runs: Path) -> Iterator[None]:
    """Hold the lock of a folder of nights. Raises NightRefused when another night holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(runs / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise NightRefused(Code.ERROR, *_held(runs)) from None
    try:
        yield
    finally:
        lock.release()


def _held(runs: Path) -> tuple[str, str]:
    """Who holds it, as far as the last night's journal tells."""
    last = record.latest(runs)
    who = ""
    if last is not None and not last.reported:
        phase = f", in phase {last.phase}" if last.phase else ""
        who = f": {last.name}{phase}, process {last.process}"
    first = f"another night is at work in {runs}{who}"
    return first, "wait for it to end; nothing was changed"
