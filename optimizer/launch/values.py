"""What launching speaks in: replicas to start, their states, results and refusals."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from optimizer.domain.placement import Replica, node_of

SIMULATED = "simulated"
AUTO = "auto"
ENGINES = (AUTO, SIMULATED)

Row = dict[str, Any]


REASONS_SHOWN = 20


class LaunchRefused(Exception):
    """Nothing was started or stopped, and why; one reason a line.

    ``hint`` is a way out that holds for all of them; ``reasons`` has those too many to show.
    """

    def __init__(self, *reasons: str, hint: str | None = None) -> None:
        more = len(reasons) - REASONS_SHOWN
        lines = [*reasons[:REASONS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        super().__init__("\n".join([*lines, *([hint] if hint else [])]))
        self.reasons = reasons
        self.hint = hint


WITHOUT_GPUS = "to try the plan without GPUs: --engine simulated"


class PlanStale(Exception):
    """What runs is not what the plan was made from; ``differences`` says where, one a line."""

    def __init__(self, *differences: str) -> None:
        more = len(differences) - REASONS_SHOWN
        rest = [f"and {more} more"] if more > 0 else []
        head = "what runs is not what this plan was made from; plan again from what runs:"
        super().__init__("\n".join([head, *differences[:REASONS_SHOWN], *rest]))
        self.differences = differences


class LayoutRefused(Exception):
    """The layout of a GPU is left as it is, and why."""


class State(StrEnum):
    """Where a replica stands. ``missing``: it should run and does not."""

    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"  # its engine ended and is started again after a pause
    STOPPING = "stopping"
    STOPPED = "stopped"
    PENDING = "pending"  # Ray has not started its actor yet
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a supervisor waits for what. Seconds.

    ``ready_s``: from start to the first healthy answer. ``misses`` health checks in a row may
    fail. The pause before a restart doubles from ``backoff_s`` to ``backoff_most_s``, and starts
    over once an engine has served for ``settled_s``.
    """

    ready_s: float = 1800.0
    health_every_s: float = 2.0
    health_within_s: float = 5.0
    misses: int = 3
    backoff_s: float = 1.0
    backoff_most_s: float = 60.0
    settled_s: float = 60.0
    grace_s: float = 10.0


def copy_name(replica: str, generation: int) -> str:
    """The name of one copy of a replica; the first bears the replica's own."""
    return f"{replica}#{generation}" if generation else replica


def copy_of(name: str) -> tuple[str, int]:
    """Replica and generation of a copy's name."""
    replica, _, generation = name.partition("#")
    return replica, int(generation) if generation.isdigit() else 0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One replica as it is to run: where, on which devices, by which command.

    ``devices`` in the plan's words (``n1/0``, ``n1/3:3g.40gb@4``); ``resources`` are Ray's, which
    hold the replica to its nodes and devices; ``argv`` carries the mark ``{port}``, ``others`` is
    the command on every node of a group but the first, which is ``node``.
    """

    id: str
    deployment: str
    tenant: str
    fleet: str
    run: str
    node: str
    devices: tuple[str, ...]
    resources: tuple[tuple[str, float], ...]
    engine: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    health: str = "/health"
    patience: Patience = Patience()
    log_folder: str | None = None
    generation: int = 0  # tells the copies of a replica apart while it moves
    replica: Replica | None = None  # as the plan has it
    others: tuple[str, ...] = ()

    @property
    def copy_name(self) -> str:
        """``chat/0``, or ``chat/0#2`` for a copy of a later generation."""
        return copy_name(self.id, self.generation)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes of its ranks, in their order."""
        return tuple(sorted({node_of(one.partition(":")[0]) for one in self.devices}))

    def part(self, node: str) -> tuple[str, ...]:
        """Its devices on one node."""
        return tuple(d for d in self.devices if node_of(d.partition(":")[0]) == node)

    @property
    def actor_name(self) -> str:
        """Its name in Ray's namespace of this product."""
        return f"{self.fleet}/{self.copy_name}"

    @property
    def likeness(self) -> tuple[object, ...]:
        """What must be equal for a running replica to count as this one."""
        return (self.devices, self.engine, self.argv, self.env)


@dataclass(frozen=True, slots=True)
class Event:
    """A word about a running launch or stop, for whoever watches."""

    replica: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica that is not ready, why, and the last lines of its engine's log.

    ``step``: the step of a rebalancing plan that failed; without a replica, one on a GPU's layout,
    and ``replica`` names the GPU.
    """

    replica: str
    reason: str
    log: tuple[str, ...] = ()
    step: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchResult:
    """What a launch came to. ``rows`` as of ``status``; ``kept`` ran already and still do.

    Of a rebalancing plan also the steps that are ``done``, and those ``blocked`` because a step
    that they need failed.
    """

    fleet: str
    run_dir: Path
    address: str
    embedded: bool
    rows: tuple[Row, ...]
    started: tuple[str, ...]
    kept: tuple[str, ...]
    failed: tuple[Failure, ...]
    seconds: float
    done: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    endpoint: str | None = None  # of the router: before /<deployment>/v1
    serve: str | None = None  # of Ray Serve: the same

    @property
    def ready(self) -> tuple[str, ...]:
        """Replicas that serve."""
        return tuple(row["replica"] for row in self.rows if row["state"] == State.READY)

    @property
    def partial(self) -> bool:
        """Whether something that was asked for does not serve."""
        return bool(self.failed)


@dataclass(frozen=True, slots=True)
class StopResult:
    """What a stop came to. ``left`` could not be ended; ``cluster_ended``: our own Ray is gone."""

    stopped: tuple[str, ...]
    left: tuple[str, ...] = ()
    cluster_ended: bool = False
    notes: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Whether something still runs that should not."""
        return bool(self.left)
