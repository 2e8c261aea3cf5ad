"""Ctrl-C while a search runs: the first ends the phase it is in, a second one is raised."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.2
LEAVING_S = 2.0  # that a second interrupt waits for work to stop
GRACE_S = 20.0  # after an interrupt, for placing and judging what was found


class _Ear:
    """When an interrupt was heard; signals belong to the process, and so does this."""

    at: float | None = None


def heard() -> bool:
    """Whether the search that runs, or ran last, was interrupted."""
    return _Ear.at is not None


def grace_left_s() -> float | None:
    """Seconds that an interrupted search may still take; None: it was not interrupted."""
    return None if _Ear.at is None else GRACE_S - (time.monotonic() - _Ear.at)


@contextmanager
def listening() -> Iterator[None]:
    """SIGINT and SIGTERM are noted in place of raised, once. Does nothing beside the main thread.

    An exception out of a signal may strike between any two steps and lose what was found.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        first, _Ear.at = _Ear.at is None, _Ear.at or time.monotonic()
        handler = before[signal.Signals(number)]
        assert callable(handler)
        try:
            handler(number, frame)  # whoever listened before learns of it too
        except KeyboardInterrupt:
            if not first:
                raise

    _Ear.at = None
    changed = [number for number, handler in before.items() if callable(handler)]
    for number in changed:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


def beside(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """What ``work`` gives, done in a thread of its own that ``stop`` ends where one interrupts.

    An interrupt heard earlier leaves the work what is left of its grace.
    """
    box: list[T] = []
    done = threading.Event()  # Thread.join() of Python 3.11 forgets the thread when interrupted

    def run() -> None:
        try:
            box.append(work())
        finally:
            done.set()

    before = heard()
    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.wait(POLL_S):
            grace = grace_left_s()
            if grace is not None and (not before or grace <= 0):
                stop()
    except KeyboardInterrupt:
        stop()
        done.wait(LEAVING_S)
        raise
    return box[0]
