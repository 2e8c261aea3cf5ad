"""The folder of one night, and its journal: which phase it is in, and what it came to.

``night.json`` is replaced as a whole whenever a phase begins or ends, so that whoever comes after
a kill finds either the one or the other.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optimizer.documents import write_json, write_text
from optimizer.night.values import Code, NightRefused, Outcome, Phase

JOURNAL = "night.json"
PLAN = "plan.json"
APPROVAL = "approval"
INPUTS = "inputs"
VERSION = 1
NAME = re.compile(r"(\d{8}T\d{6}Z)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Passed:
    """A phase that was begun; ``ended`` None: it was cut short, or is at work."""

    phase: Phase
    began: str
    ended: str | None = None
    told: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one night. ``documents``: path and hash of what it was made from."""

    folder: Path
    fleet: str
    began: str
    process: int
    documents: tuple[tuple[str, str], ...]
    phases: tuple[Passed, ...] = ()
    starts: int = 1
    plan_sha256: str | None = None
    outcome: Outcome | None = None
    code: Code | None = None
    lines: tuple[str, ...] = ()
    ended: str | None = None
    reported: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    @property
    def phase(self) -> Phase | None:
        """The one that was begun last."""
        return self.phases[-1].phase if self.phases else None

    @property
    def launching(self) -> bool:
        """Whether it had begun to change what runs, and nobody knows how far it came."""
        return self.outcome is None and any(p.phase is Phase.LAUNCH for p in self.phases)

    @property
    def plan_path(self) -> Path:
        """The plan, once there is one."""
        return self.folder / PLAN

    @property
    def approval_path(self) -> Path:
        """Where a person approves the plan."""
        return self.folder / APPROVAL

    def with_phase(self, phase: Phase, now: str) -> "Record":
        """The same in the next phase."""
        return replace(self, phases=(*self.phases, Passed(phase, now)))

    def told(self, text: str, now: str) -> "Record":
        """The same with its phase ended."""
        last = replace(self.phases[-1], ended=now, told=text)
        return replace(self, phases=(*self.phases[:-1], last))


def stamp(now: datetime) -> str:
    """A moment as journals have it."""
    return now.isoformat(timespec="seconds")


def write(record: Record) -> None:
    """Put it in its folder, whole or not at all. Raises OSError."""
    said = asdict(record)
    said.pop("folder")
    write_json(record.folder / JOURNAL, {"version": VERSION, **said})


def read(folder: Path) -> Record:
    """What the folder says. Raises NightRefused when it cannot be read."""
    path = folder / JOURNAL
    try:
        said = json.loads(path.read_text("utf-8"))
        if said.pop("version") != VERSION:
            raise ValueError("written by another version of fleetslice")
        phases = tuple(Passed(**{**p, "phase": Phase(p["phase"])}) for p in said.pop("phases"))
        code, outcome = said.pop("code"), said.pop("outcome")
        return Record(
            folder=folder,
            phases=phases,
            code=None if code is None else Code(code),
            outcome=None if outcome is None else Outcome(outcome),
            lines=tuple(said.pop("lines")),
            documents=tuple((p, s) for p, s in said.pop("documents")),
            **said,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NightRefused(
            Code.ERROR,
            f"{path}: the journal of the last night cannot be read ({error})",
            "nothing was changed tonight; whether that night had ended nobody can say",
            "look at what runs (fleetslice status) and, once it is as it should be, move the",
            f"folder away: mv {folder} {folder}.corrupt",
        ) from error


def begin(runs: Path, fleet: str, now: datetime, documents: Mapping[str, str]) -> Record:
    """A folder for a new night. Raises OSError."""
    folder = runs / _next_name(runs, now)
    record = Record(folder, fleet, stamp(now), os.getpid(), tuple(sorted(documents.items())))
    draft = runs / f".{folder.name}"
    draft.mkdir(mode=0o700)
    try:
        write(replace(record, folder=draft))
        draft.rename(folder)  # a night's folder is never there without its journal
    except BaseException:  # an interrupt too leaves nothing half-made behind
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return record


def _next_name(runs: Path, now: datetime) -> str:
    """A name after all others, also when clocks are set back: UTC, numbered within a second."""
    stem, number = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ"), 1
    for folder in nights(runs)[-1:]:
        last = NAME.fullmatch(folder.name)
        if last is not None and last[1] >= stem:
            stem, number = last[1], int(last[2] or 1) + 1
    return stem if number == 1 else f"{stem}-{number}"


def keep_inputs(record: Record) -> None:
    """Copies of the documents, so that the night can be understood later. Raises OSError."""
    folder = record.folder / INPUTS
    folder.mkdir(mode=0o700, exist_ok=True)
    for number, (path, _) in enumerate(record.documents):
        target = folder / f"{number:02}-{Path(path).name}"
        write_text(target, Path(path).read_text("utf-8"))


def nights(runs: Path) -> tuple[Path, ...]:
    """Folders of nights, oldest first; one that was given another name is left alone."""
    found = [(NAME.fullmatch(p.name), p) for p in runs.iterdir()] if runs.is_dir() else []
    aged = [(match[1], int(match[2] or 1), path) for match, path in found if match is not None]
    return tuple(path for _, _, path in sorted(aged))


def latest(runs: Path) -> Record | None:
    """The last night. Raises NightRefused when its journal is corrupt."""
    found = nights(runs)
    return read(found[-1]) if found else None


def sweep(record: Record) -> None:
    """Remove what a kill left half-written: drafts of files, beside the files themselves."""
    for folder in (record.folder, record.folder / INPUTS, record.folder.parent):
        for draft in folder.glob(".*") if folder.is_dir() else ():
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)  # a night that never began
            else:
                draft.unlink(missing_ok=True)


def prune(runs: Path, keep: int) -> None:
    """Remove all but the last so many nights."""
    for folder in nights(runs)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)
