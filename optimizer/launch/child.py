"""One life of one engine: a child process under a guard, and the log it writes."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from optimizer.launch import guard

LINES_KEPT = 200
LINE_BYTES = 8192
LOG_BYTES = 8 << 20
# Beyond its grace a guard needs a moment to kill what is left and to collect it.
GUARD_EXTRA_S = 5.0


class Log:
    """The last lines an engine wrote, and a file of bounded size where a folder is given."""

    def __init__(self, folder: str | None, name: str) -> None:
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._logger: logging.Logger | None = None
        self.path: Path | None = None
        if folder is not None:
            self.path = Path(folder) / f"{name.replace('/', '.')}.log"
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._logger = logging.Logger(name)
            self._logger.addHandler(
                RotatingFileHandler(self.path, maxBytes=LOG_BYTES, backupCount=1, delay=True)
            )

    def write(self, line: str) -> None:
        """Keep one line."""
        self._lines.append(line)
        if self._logger is not None:
            self._logger.info(line)

    def last(self, count: int) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._lines)[-count:]


class Child:
    """A command running under a guard, in a process group of its own, its output in ``log``."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], log: Log, grace_s: float
    ) -> None:
        self._grace_s = grace_s
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(grace_s), *argv],
            stdin=subprocess.PIPE,  # held open: its end tells the guard that we are gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The guard's process, which is also the group's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """As a shell would say it; None while it runs."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def end(self) -> int:
        """Ask the guard to end everything, kill it where it does not; the exit code."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(self._grace_s + GUARD_EXTRA_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(1.0)
        return self.exit_code or 0

    def _read(self, log: Log) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while raw := output.readline(LINE_BYTES):
                log.write(raw.decode(errors="replace").rstrip())


def free_port() -> int:
    """A port of the loopback interface that nobody holds right now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
