"""Troubles that native code gets over by itself and writes to stderr, kept from people."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

# SCIP's own: numerical troubles of its linear programs, which it answers by solving them anew.
SCIP = re.compile(rb"\[[\w./-]+\.(?:c|cpp|h|hpp):\d+\] ?(?:ERROR|Error|WARNING)|Caught exception")
BEGINS = (b"[", b"C")  # what such a line begins with
CHUNK = 65536


@contextmanager
def without(noise: re.Pattern[bytes]) -> Iterator[None]:
    """Lines that begin as ``noise`` does are dropped from stderr; all others pass as they come.

    Python's and native code's alike, for both write to the same file descriptor.
    """
    try:
        real = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    source, sink = os.pipe()
    _flush()
    os.dup2(sink, 2)
    os.close(sink)
    reader = Thread(target=_pass_on, args=(source, real, noise), daemon=True)
    reader.start()
    try:
        yield
    finally:
        _flush()
        os.dup2(real, 2)  # the last end to write to: the reader comes to its end
        reader.join()
        os.close(real)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def _pass_on(source: int, to: int, noise: re.Pattern[bytes]) -> None:
    held = b""
    while chunk := os.read(source, CHUNK):
        *lines, held = (held + chunk).splitlines(keepends=True) or [b""]
        if held.endswith(b"\n") or not held.startswith(BEGINS):
            lines, held = [*lines, held], b""
        _write(to, b"".join(line for line in lines if not noise.match(line)))
    if not noise.match(held):
        _write(to, held)
    os.close(source)


def _write(to: int, text: bytes) -> None:
    while text:
        try:
            text = text[os.write(to, text) :]
        except OSError:  # nobody reads stderr any more
            return
