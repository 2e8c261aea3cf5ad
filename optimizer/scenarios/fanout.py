"""Scenarios on Ray: the setting is sent once, and each task carries a scenario and no more."""

import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optimizer.domain.scenario import Scenario
from optimizer.launch import LaunchRefused, head
from optimizer.launch.environment import package_path
from optimizer.launch.run import new_run
from optimizer.launch.session import SIGTERM_EXIT, session
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import (
    Again,
    Done,
    Planner,
    Run,
    Setting,
    Spent,
    Work,
    ready,
    timed,
)

TRIES = 3  # of a scenario whose worker or node is lost
START_S = 60.0
POLL_S = 1.0
# Over the safety stop of a search: sizing, judging, and a cluster that is slow to start workers.
SILENCE_S = 180.0


@contextmanager
def on_ray(setting: Setting, workers: int, address: str | None) -> Iterator[Run]:
    """What answers scenarios ``workers`` at a time, each once. Raises LaunchRefused."""
    with cluster(address) as ray:
        yield _Fanout(ray, setting, workers, own=address is None).run


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray at ``address``, or a local one of our own that ends with this context or process."""
    if address is not None:
        with session(address, None, ours=False, runtime_env=_code()) as ray, _terminable():
            yield ray
        return
    with tempfile.TemporaryDirectory(prefix="fleetslice-whatif-") as folder:
        run = head.start(new_run("whatif", Path(folder)), {}, detach=False, deadline_s=START_S)
        try:
            with session(str(run.address), run.token_path, ours=True) as ray, _terminable():
                yield ray
        finally:
            head.end(run)


def cpu_share(ray: Any, workers: int, own: bool) -> float:
    """The CPUs of one worker: more workers than cores share those of our own Ray."""
    cpus = float(ray.cluster_resources().get("CPU", 0.0))
    return min(1.0, cpus / workers) if own else 1.0


def _code() -> dict[str, Any]:
    """This package, for a cluster that has Ray and our libraries but not us."""
    return {"py_modules": [str(Path(package_path()) / "optimizer")]}


def _versions() -> tuple[tuple[str, str], ...]:
    """What must be the same everywhere: another solver gives other answers."""
    return tuple((name, version(name)) for name in ("numpy", "ortools"))


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is taken as Ctrl-C: an exit raised in Ray's own code would lose its exit code."""
    heard = []

    def interrupt(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if heard:
            raise SystemExit(SIGTERM_EXIT) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class _Try:
    index: int
    scenario: Scenario
    number: int  # 1 the first time


class _Fanout:
    """The tasks of one evaluation."""

    def __init__(self, ray: Any, setting: Setting, workers: int, own: bool) -> None:
        self.ray = ray
        self.workers = workers
        self.waiting: list[_Try] = []
        self.pending: dict[Any, _Try] = {}
        self.box = [ray.put(setting), _versions()]
        self.patience_s = setting.limits.time_limit_s + SILENCE_S
        share = cpu_share(ray, workers, own)
        # Retries are ours: Ray's own are silent, and a scenario that kills its worker must end.
        self.task = ray.remote(_answer).options(num_cpus=share, max_retries=0)

    def run(self, work: Work, done: Done, again: Again) -> None:
        """Until every scenario has its answer."""
        self.waiting = [_Try(index, scenario, 1) for index, scenario in reversed(work)]
        heard = time.monotonic()
        try:
            while self.waiting or self.pending:
                self._submit()
                ready, _ = self.ray.wait(list(self.pending), timeout=POLL_S)
                for reference in ready:
                    heard = time.monotonic()
                    self._collect(reference, done, again)
                if time.monotonic() - heard > self.patience_s:
                    raise LaunchRefused(
                        f"Ray gave no answer for {self.patience_s:.0f} s; has it free CPUs?",
                        hint="ray status shows what it waits for",
                    )
        finally:
            for reference in self.pending:
                self.ray.cancel(reference, force=True)
            self.pending.clear()

    def _submit(self) -> None:
        while self.waiting and len(self.pending) < self.workers:
            one = self.waiting.pop()
            self.pending[self.task.remote(self.box, one.scenario)] = one

    def _collect(self, reference: Any, done: Done, again: Again) -> None:
        one = self.pending.pop(reference)
        spent = Spent()
        try:
            answer, spent = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            answer = Answer(one.scenario.name, failed=_told(error.cause))
        except self.ray.exceptions.RayError as error:
            if one.number < TRIES:
                again(one.index)
                self.waiting.append(_Try(one.index, one.scenario, one.number + 1))
                return
            reason = f"its worker was lost {TRIES} times, at last: {_told(error)}"
            answer = Answer(one.scenario.name, failed=reason)
        done(one.index, answer, spent)


def _told(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Of each worker process: the planner of the setting it saw last.
_planners: dict[Any, Planner] = {}


def _answer(box: list[Any], scenario: Scenario) -> tuple[Answer, Spent]:
    """On a worker: fetch the setting once, then answer. The box keeps Ray from fetching it anew."""
    import ray

    reference, wanted = box
    if reference not in _planners:
        if (there := _versions()) != wanted:
            raise RuntimeError(f"node {platform.node()} has {there}, but {wanted} is asked")
        _planners.clear()
        _planners[reference] = ready(ray.get(reference))
    return timed(_planners[reference], scenario)
