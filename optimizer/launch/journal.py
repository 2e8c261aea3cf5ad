"""The journal of a run: every step is written down before it is done and confirmed after.

SQLite in the run folder, in WAL mode with every write synced: what is in it survives a SIGKILL and
a power cut. It says which copies of each replica there are (``generation`` tells them apart), as
what each was started, which undertakings there were (``launch``, ``rebalance``, ``rollback``) and
how far their steps came. It belongs to one run: another run in the folder begins anew.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from optimizer.domain.config import ReplicaConfig
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.placement import Instance, Replica
from optimizer.launch.values import LaunchRefused, Patience, ReplicaSpec

JOURNAL = "journal.sqlite"
VERSION = 2  # of the tables; a journal lives no longer than its run
SCHEMA = """
CREATE TABLE run (id TEXT NOT NULL);
CREATE TABLE undertakings (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, plan TEXT NOT NULL, state TEXT NOT NULL,
    base TEXT NOT NULL, goal TEXT NOT NULL, began TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE steps (
    undertaking INTEGER NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, act TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', log TEXT NOT NULL DEFAULT '[]',
    changed TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (undertaking, id)
);
CREATE TABLE copies (
    replica TEXT NOT NULL, generation INTEGER NOT NULL, devices TEXT NOT NULL,
    state TEXT NOT NULL, spec TEXT NOT NULL, PRIMARY KEY (replica, generation)
);
CREATE TABLE instances (
    gpu TEXT NOT NULL, start INTEGER NOT NULL, profile TEXT NOT NULL, PRIMARY KEY (gpu, start)
);
CREATE TABLE modes (gpu TEXT PRIMARY KEY, mig INTEGER NOT NULL);
"""

Generations = Mapping[str, int]  # replica -> the generation that serves


class StepState(StrEnum):
    """How far a step came. ``intent``: begun, and maybe done."""

    WAITING = "waiting"
    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"


class CopyState(StrEnum):
    """How far a copy of a replica came. ``planned``: its actor was never asked for."""

    PLANNED = "planned"
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


LIVE = (CopyState.STARTING, CopyState.SERVING, CopyState.DRAINING)


class Kind(StrEnum):
    """What an undertaking is."""

    LAUNCH = "launch"
    REBALANCE = "rebalance"
    ROLLBACK = "rollback"


RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass(frozen=True, slots=True)
class Act:
    """A step of a plan with the copy that it is about."""

    id: str
    action: str
    gpus: tuple[str, ...]
    after: tuple[str, ...] = ()
    replica: str | None = None
    generation: int = 0
    placed: PlacedProfile | None = None
    enable: bool | None = None
    because: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An act of an undertaking and how far it came."""

    act: Act
    state: StepState
    reason: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Undertaking:
    """A plan being carried out, or that was. ``base`` served before it, ``goal`` shall after."""

    id: int
    kind: Kind
    plan: str
    state: str
    base: Generations
    goal: Generations


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a replica."""

    spec: ReplicaSpec
    state: CopyState


class Journal:
    """The open journal of one run."""

    def __init__(self, folder: Path, run: str) -> None:
        """Open it for writing; begin anew when it is another run's. Raises LaunchRefused."""
        path = folder / JOURNAL
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            if _run_of(self._db) != run:
                self._create(run)
            [version] = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise LaunchRefused(f"the journal {path} cannot be used: {error}") from error
        if version != VERSION:
            raise LaunchRefused(f"the journal {path} was written by another version of fleetslice")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def _create(self, run: str) -> None:
        listed = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        with self._whole():
            for (table,) in listed:
                self._db.execute(f'DROP TABLE "{table}"')
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO run VALUES (?)", (run,))
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _whole(self) -> "_Transaction":
        return _Transaction(self._db)

    # --- undertakings and their steps

    def begin(
        self,
        kind: Kind,
        plan: str,
        acts: Sequence[Act],
        new: Iterable[ReplicaSpec],
        base: Generations,
        goal: Generations,
    ) -> Undertaking:
        """Write a whole undertaking ahead: its steps, and the copies that they will start."""
        with self._whole():
            self._db.execute("UPDATE undertakings SET state = ? WHERE state = ?", (FAILED, RUNNING))
            cursor = self._db.execute(
                "INSERT INTO undertakings (kind, plan, state, base, goal) VALUES (?, ?, ?, ?, ?)",
                (kind, plan, RUNNING, json.dumps(dict(base)), json.dumps(dict(goal))),
            )
            number = cursor.lastrowid
            self._db.executemany(
                "INSERT INTO steps (undertaking, seq, id, act, state) VALUES (?, ?, ?, ?, ?)",
                [
                    (number, n, act.id, json.dumps(asdict(act)), StepState.WAITING)
                    for n, act in enumerate(acts)
                ],
            )
            for spec in new:
                self.put_copy(spec, CopyState.PLANNED)
        found = self.latest()
        assert found is not None
        return found

    def latest(self) -> Undertaking | None:
        """The undertaking that was begun last."""
        row = self._db.execute(
            "SELECT id, kind, plan, state, base, goal FROM undertakings ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return None if row is None else _undertaking(row)

    def entries(self, undertaking: int) -> tuple[Entry, ...]:
        """Its steps in their order."""
        rows = self._db.execute(
            "SELECT act, state, reason, log FROM steps WHERE undertaking = ? ORDER BY seq",
            (undertaking,),
        )
        return tuple(
            Entry(_act(json.loads(act)), StepState(state), reason, tuple(json.loads(log)))
            for act, state, reason, log in rows
        )

    def mark(
        self,
        undertaking: int,
        step: str,
        state: StepState,
        reason: str = "",
        log: Sequence[str] = (),
    ) -> None:
        """How far a step came: its intent before anything is done, its end after."""
        self._db.execute(
            "UPDATE steps SET state = ?, reason = ?, log = ?, changed = CURRENT_TIMESTAMP "
            "WHERE undertaking = ? AND id = ?",
            (state, reason, json.dumps(list(log)), undertaking, step),
        )

    def close(self, undertaking: int, state: str) -> None:
        """How the undertaking ended, or that it goes on."""
        self._db.execute("UPDATE undertakings SET state = ? WHERE id = ?", (state, undertaking))

    # --- copies

    def started(self) -> dict[str, ReplicaSpec]:
        """What was started and may run, by the name of its actor."""
        return {copy.spec.actor_name: copy.spec for copy in self.live()}

    def put_copy(self, spec: ReplicaSpec, state: CopyState) -> None:
        """Write a copy down, whatever was known of it before."""
        devices, said = " ".join(spec.devices), json.dumps(asdict(spec))
        self._db.execute(
            "INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?)",
            (spec.id, spec.generation, devices, state, said),
        )

    def copies(self) -> tuple[Copy, ...]:
        """Every copy that there was, by replica and generation."""
        rows = self._db.execute("SELECT spec, state FROM copies ORDER BY replica, generation")
        return tuple(Copy(_spec(json.loads(spec)), CopyState(state)) for spec, state in rows)

    def live(self) -> tuple[Copy, ...]:
        """The copies that may run."""
        return tuple(copy for copy in self.copies() if copy.state in LIVE)

    def set_copy(self, replica: str, generation: int, state: CopyState) -> None:
        """How far a copy came."""
        self._db.execute(
            "UPDATE copies SET state = ? WHERE replica = ? AND generation = ?",
            (state, replica, generation),
        )

    # --- what the recorded MIG layouts are

    def layout(self, gpu: str) -> dict[int, str]:
        """Profile by start of the instances recorded on a GPU."""
        rows = self._db.execute("SELECT start, profile FROM instances WHERE gpu = ?", (gpu,))
        return dict(rows.fetchall())

    def instances(self) -> tuple[Instance, ...]:
        """All instances recorded, by GPU and start."""
        rows = self._db.execute("SELECT gpu, start, profile FROM instances ORDER BY gpu, start")
        return tuple(Instance(gpu, PlacedProfile(start, profile)) for gpu, start, profile in rows)

    def record(self, gpu: str, placed: PlacedProfile, there: bool) -> None:
        """That an instance is there, or no longer."""
        self._db.execute("DELETE FROM instances WHERE gpu = ? AND start = ?", (gpu, placed.start))
        if there:
            self._db.execute(
                "INSERT INTO instances VALUES (?, ?, ?)", (gpu, placed.start, placed.profile)
            )

    def record_mode(self, gpu: str, enable: bool) -> None:
        """Whether MIG is on."""
        self._db.execute("INSERT OR REPLACE INTO modes VALUES (?, ?)", (gpu, int(enable)))


class _Transaction:
    """All of the block's writes, or none."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.execute("COMMIT" if error is None else "ROLLBACK")


def _run_of(db: sqlite3.Connection) -> str | None:
    there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'run'").fetchone()
    row = db.execute("SELECT id FROM run").fetchone() if there else None
    return None if row is None else str(row[0])


def peek(folder: Path, run: str) -> tuple[tuple[Copy, ...], Undertaking | None]:
    """Every copy and the latest undertaking, for who only looks; nothing where none is."""
    if not _is_of(folder, run):
        return (), None
    with Journal(folder, run) as journal:
        return journal.copies(), journal.latest()


def recorded(folder: Path, run: str) -> tuple[Instance, ...]:
    """The MIG instances that a run has made, as its journal has them."""
    if not _is_of(folder, run):
        return ()
    with Journal(folder, run) as journal:
        return journal.instances()


def _is_of(folder: Path, run: str) -> bool:
    """Whether the folder holds a journal of that run. Raises LaunchRefused."""
    path = folder / JOURNAL
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10.0)) as db:
            return _run_of(db) == run
    except sqlite3.Error as error:
        raise LaunchRefused(f"the journal {path} cannot be read: {error}") from error


def _undertaking(row: tuple[int, str, str, str, str, str]) -> Undertaking:
    number, kind, plan, state, base, goal = row
    return Undertaking(number, Kind(kind), plan, state, json.loads(base), json.loads(goal))


def _act(said: dict[str, object]) -> Act:
    act = Act(**said)  # type: ignore[arg-type]
    placed = said["placed"]
    return replace(
        act,
        gpus=tuple(act.gpus),
        after=tuple(act.after),
        placed=PlacedProfile(**placed) if isinstance(placed, dict) else None,
    )


def _spec(said: dict[str, object]) -> ReplicaSpec:
    spec = ReplicaSpec(**said)  # type: ignore[arg-type]
    patience = said["patience"]
    assert isinstance(patience, dict)
    return replace(
        spec,
        devices=tuple(spec.devices),
        resources=tuple((name, amount) for name, amount in spec.resources),
        argv=tuple(spec.argv),
        others=tuple(spec.others),
        env=tuple((name, value) for name, value in spec.env),
        patience=Patience(**patience),
        replica=_replica(said.get("replica")),
    )


def _replica(said: object) -> Replica | None:
    if not isinstance(said, dict):
        return None
    mig, share = said["mig"], said["share"]
    return Replica(
        said["id"],
        said["deployment"],
        tuple(said["gpus"]),
        None if mig is None else PlacedProfile(**mig),
        None if share is None else Use(**share),
        ReplicaConfig(**said["config"]),
    )
