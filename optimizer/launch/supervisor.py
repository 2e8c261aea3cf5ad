"""Keeps one replica's engine alive: starts it, watches its health, starts it again."""

import http.client
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from optimizer.domain.words import plural
from optimizer.engines import EngineCommand, Rendezvous
from optimizer.launch import ranks
from optimizer.launch.child import Child, Log, free_port
from optimizer.launch.environment import with_package
from optimizer.launch.nvml import DeviceUnknown
from optimizer.launch.values import ReplicaSpec, Row, State

HOST = "127.0.0.1"
LOOK_EVERY_S = 0.1  # at the child's exit, and at its health while it starts
LOOK_LONG_S = 1.0  # once a start has taken LONG_START_S
LONG_START_S = 10.0
LINES_SHOWN = 20


class Others(Protocol):
    """The other ranks of a group."""

    def begin(self) -> Rendezvous:
        """Start them; where they meet."""

    def ended(self) -> str | None:
        """Why not all of them run; None while they do."""

    def end(self) -> None:
        """End them, within their grace."""


class Supervisor:
    """Runs the engine of ``spec`` until told to stop. ``report`` may be called at any time."""

    def __init__(
        self,
        spec: ReplicaSpec,
        base: Mapping[str, str] | None = None,
        members: "Others | None" = None,
    ) -> None:
        """``members``: the other ranks of a group over several nodes, which live and end as one."""
        self.spec = spec
        self._members = members
        self._base = with_package(os.environ if base is None else base)
        self._log = Log(spec.log_folder, spec.copy_name)
        self._stopping = threading.Event()
        self._state = State.STARTING
        self._reason = ""
        self._since = time.time()
        self._restarts = 0
        self._last_end = ""
        self._ever_ready = False
        self._port: int | None = None
        self._child: Child | None = None
        # One thread for the whole life: a guard's pipe must not close with a thread that is done.
        self._thread = threading.Thread(target=self._run, name=f"supervise {spec.id}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> Row:
        """End the engine and all it started, within the spec's grace; the last report."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.report()

    def report(self) -> Row:
        """One row of ``status``. ``uptime_s`` counts from readiness, 0 while not ready;
        ``last_end`` is why the engine's last life ended, if it lived before."""
        child, spec = self._child, self.spec
        last = self._log.last(1)
        ready = self._state is State.READY
        return {
            "replica": spec.id,
            "generation": spec.generation,
            "deployment": spec.deployment,
            "tenant": spec.tenant,
            "node": spec.node,
            "devices": list(spec.devices),
            "engine": spec.engine,
            "state": str(self._state),
            "reason": self._reason,
            "url": None if self._port is None else f"http://{HOST}:{self._port}",
            "uptime_s": round(time.time() - self._since, 1) if ready else 0.0,
            "restarts": self._restarts,
            "last_end": self._last_end,
            "last_log": last[0] if last else "",
            "pid": None if child is None else child.pid,
            "host": socket.gethostname(),
            "log_file": None if self._log.path is None else str(self._log.path),
            "fleet": spec.fleet,
            "run": spec.run,
            "ever_ready": self._ever_ready,
        }

    def tail(self, lines: int = LINES_SHOWN) -> tuple[str, ...]:
        """The last lines of the engine's log."""
        return self._log.last(lines)

    def in_flight(self) -> int | None:
        """Requests its engine is at work on, or has waiting; None where it does not tell."""
        port = self._port
        return None if port is None else requests_in_flight(port)

    def _run(self) -> None:
        pause = self.spec.patience.backoff_s
        while not self._stopping.is_set():
            began = time.monotonic()
            reason = self._live()
            if self._stopping.is_set():
                break
            if time.monotonic() - began >= self.spec.patience.settled_s:
                pause = self.spec.patience.backoff_s
            self._last_end = reason
            self._set(State.BACKOFF, f"{reason}; starts again in {pause:g} s")
            self._stopping.wait(pause)
            pause = min(2 * pause, self.spec.patience.backoff_most_s)
            self._restarts += not self._stopping.is_set()
        self._set(State.STOPPED, "")

    def _live(self) -> str:
        """One life of the engine, from start to end; why it ended."""
        self._set(State.STARTING, "")
        port = free_port()
        try:
            env = ranks.environment(self.spec, self._base, self.spec.nodes[0])
            meeting = None if self._members is None else self._members.begin()
            argv = EngineCommand(self.spec.argv).on(port, meeting).argv
            self._child = Child(argv, env, self._log, self.spec.patience.grace_s)
            self._port = port
            return self._until_ready(port) or self._while_healthy(port)
        except DeviceUnknown as unknown:
            return str(unknown)
        except OSError as error:
            return f"cannot start a process: {error.strerror}"
        finally:
            if self._stopping.is_set():
                self._set(State.STOPPING, "")
            if self._child is not None:
                self._child.end()
            if self._members is not None:
                self._members.end()
            self._child, self._port = None, None

    def _until_ready(self, port: int) -> str | None:
        """Wait for the first healthy answer; None, or why there will be none."""
        began = time.monotonic()
        while not self._stopping.is_set():
            ended = self._ended()
            if ended:
                return ended
            waited = time.monotonic() - began
            if waited > self.spec.patience.ready_s:
                return f"not ready within {self.spec.patience.ready_s:g} s"
            if healthy(port, self.spec.health, self.spec.patience.health_within_s):
                self._ever_ready = True
                self._set(State.READY, "")
                return None
            self._stopping.wait(LOOK_EVERY_S if waited < LONG_START_S else LOOK_LONG_S)
        return "stopped"

    def _while_healthy(self, port: int) -> str:
        """Watch a ready engine; why it no longer serves."""
        patience, misses = self.spec.patience, 0
        checked = time.monotonic()
        while not self._stopping.is_set():
            ended = self._ended()
            if ended:
                return ended
            if time.monotonic() - checked >= patience.health_every_s:
                well = healthy(port, self.spec.health, patience.health_within_s)
                misses = 0 if well else misses + 1
                checked = time.monotonic()
            if misses >= patience.misses:
                return f"{plural(misses, 'health check')} in a row failed"
            self._stopping.wait(LOOK_EVERY_S)
        return "stopped"

    def _ended(self) -> str | None:
        code = None if self._child is None else self._child.exit_code
        if code is not None:
            return f"its engine ended with exit code {code}"
        return None if self._members is None else self._members.ended()

    def _set(self, state: State, reason: str) -> None:
        self._state, self._reason, self._since = state, reason, time.time()


def healthy(port: int, path: str, within_s: float) -> bool:
    """Whether the engine on that port of this machine answers 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=within_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# What engines call their requests at work and in the queue (vLLM, SGLang, TGI).
IN_FLIGHT = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "tgi_batch_current_size",
    "tgi_queue_size",
)


def requests_in_flight(port: int) -> int | None:
    """The sum of the gauges in ``IN_FLIGHT``; None when the engine has none of them."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode(errors="replace").splitlines()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    found = [line for line in lines if line.partition("{")[0].partition(" ")[0] in IN_FLIGHT]
    return round(sum(float(line.split()[-1]) for line in found)) if found else None
