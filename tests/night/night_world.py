"""A cluster in memory, in place of Ray: what a night reads and changes there."""

from dataclasses import replace
from pathlib import Path

from nightly_documents import paths

from optimizer.documents import load
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import Plan
from optimizer.launch import LaunchResult, LiveState
from optimizer.launch.acts import digest
from optimizer.launch.journal import DONE, RUNNING, Kind, Undertaking
from optimizer.launch.lost import Standing
from optimizer.launch.values import Failure
from optimizer.night import Order
from optimizer.optimize import Inputs, Planned, optimize

GPUS = frozenset(f"{node}/{i}" for node in ("n1", "n2", "n3") for i in (0, 1))


# Plans of problems that came before: searching for each again would take the tests minutes.
_PLANNED: dict[str, Planned] = {}


def planned(inputs: Inputs, limits: Limits, **said: object) -> Planned:
    """As ``optimize``, which is asked once for each problem."""
    key = repr((inputs.fleet, inputs.workloads, inputs.current, limits))
    if key not in _PLANNED:
        _PLANNED[key] = optimize(inputs, limits, **said)  # type: ignore[arg-type]
    found = _PLANNED[key]
    return replace(found, plan=replace(found.plan, inputs=inputs.documents))


class Killed(BaseException):
    """As SIGKILL: nothing that runs can hold it up."""


class World:
    """What runs, and how its launch stands; ``before_end`` runs in the middle of each launch."""

    def __init__(self) -> None:
        self.placement = Placement()
        self.standing = Standing(GPUS, began=True)
        self.latest: Undertaking | None = None
        self.launches = 0
        self.failed: tuple[Failure, ...] = ()
        self.refused: Exception | None = None
        self.rolled_back = 0
        self.withdrawn: tuple[str, ...] = ()
        self.before_end = lambda: None
        self._base = self.placement

    def put(self, monkeypatch) -> "World":
        """In the place of the launch's functions that nights call."""
        planning, launching = "optimizer.night.planning", "optimizer.night.launching"
        monkeypatch.setattr(f"{planning}.standing", self.stands)
        monkeypatch.setattr(
            f"{planning}.live_state", lambda *_: LiveState("nights", self.placement)
        )
        monkeypatch.setattr(f"{planning}.optimize", planned)
        monkeypatch.setattr(f"{launching}.launch", self.launch)
        monkeypatch.setattr(f"{launching}.rollback", self.rollback)
        monkeypatch.setattr(f"{launching}.begun", lambda _: self.latest)
        monkeypatch.setattr(f"{launching}.drift", lambda *_: ())
        monkeypatch.setattr(f"{launching}.withdrawn", lambda _: self.withdrawn)
        return self

    def stands(self, *_: object) -> Standing:
        if self.refused is not None:
            raise self.refused
        return self.standing

    def launch(self, plan: Plan, **_: object) -> LaunchResult:
        if self.refused is not None:
            raise self.refused
        self.launches += 1
        if self.latest is None or self.latest.plan != digest(plan):
            self._base = self.placement
        self.latest = Undertaking(1, Kind.REBALANCE, digest(plan), RUNNING, {}, {})
        self.placement = Placement()  # half-way nobody may take it for what runs
        self.before_end()
        self.placement = plan.placement
        self.latest = replace(self.latest, state=DONE)
        return self._result(plan.placement.replicas)

    def rollback(self, *_: object, **__: object) -> LaunchResult:
        assert self.latest is not None
        self.rolled_back += 1
        self.placement = self._base
        self.latest = replace(self.latest, kind=Kind.ROLLBACK, state=DONE)
        return self._result(self.placement.replicas)

    def _result(self, replicas: tuple[Replica, ...]) -> LaunchResult:
        ids = tuple(one.id for one in replicas)
        return LaunchResult("nights", Path("run"), "a:1", False, (), ids, (), self.failed, 0.1)


def order(folder: Path, **said: object) -> Order:
    """A night of the documents in a folder."""
    return Order(
        load(paths(folder), need=("Policy", "Fleet", "Workloads")),
        Limits(effort=2),
        folder / "nights",
        folder / "run",
        engine="simulated",
        **said,
    )
