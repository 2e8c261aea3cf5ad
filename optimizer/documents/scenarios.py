"""Scenarios documents to the domain: families expanded, the faulty ones kept apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.changes import Say, World, below, check_prices, read_change
from optimizer.documents.deployments import WorkloadsReading
from optimizer.documents.families import Traces, family_faults, members, unknown_whom
from optimizer.documents.faults import Fault, Path, shown
from optimizer.documents.fleets import FleetReading
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.scenarios import (
    MOST_SCENARIOS,
    FamilyDoc,
    OutlineDoc,
    ScenarioDoc,
)
from optimizer.documents.wording import complaints
from optimizer.domain.scenario import Change, Scenario
from optimizer.domain.trace import Trace


@dataclass(slots=True)
class ScenariosReading:
    """All Scenarios documents. ``faults`` are those of no single scenario."""

    faults: list[Fault] = field(default_factory=list)
    scenarios: list[Scenario] = field(default_factory=list)
    bad: list[tuple[str, tuple[Fault, ...]]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)  # of all names, the bad ones too
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def told(self) -> Iterator[Fault]:
        """Every fault; of many about the same place, as a family's members have, the first."""
        yield from self.faults
        seen: set[tuple[str, int, int, str]] = set()
        for _, faults in self.bad:
            for fault in faults:
                place = (fault.file, fault.line, fault.column, fault.path)
                if place not in seen or not fault.line:
                    yield fault
            seen |= {(f.file, f.line, f.column, f.path) for f in faults}


def read_scenarios(
    documents: list[RawDocument],
    catalogue: Catalogue,
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None,
    traces: Sequence[Trace] = (),
) -> ScenariosReading:
    """The scenarios of all documents in document order, families after the single ones.

    ``traces``: those that families of random demand may draw from by name.
    """
    reading = ScenariosReading()
    for document in documents:
        beside = Traces(traces, File(document.file).parent)
        reader = _Reader(reading, World(catalogue, fleet, workloads), beside)
        outline = [
            document.fault(p, m, key=k) for p, m, k in complaints(OutlineDoc, document.value)
        ]
        reading.faults += outline
        entries = [
            *look.each(document.value, "scenarios[]"),
            *look.each(document.value, "families[]"),
        ]
        if not entries and not outline:
            message = "holds no scenario; give at least one under scenarios or families"
            reading.faults.append(document.fault((), message))
        for path, raw in entries:
            read = reader.scenario if path[0] == "scenarios" else reader.family
            read(document, path, raw)
    return reading


class _Reader:
    """Reads entry by entry; what comes of it goes to the reading."""

    def __init__(self, reading: ScenariosReading, world: World, traces: Traces) -> None:
        self.reading = reading
        self.world = world
        self.traces = traces

    def scenario(self, document: RawDocument, path: Path, raw: Any) -> None:
        """One entry of ``scenarios``."""
        say = _sayer(document, path)
        faults = [say(p, m, key=k) for p, m, k in complaints(ScenarioDoc, raw)]
        name = look.text(raw, "name") or f"{path[0]}[{path[1]}]"
        self._member(name, look.at(raw, "changes"), say, faults)

    def family(self, document: RawDocument, path: Path, raw: Any) -> None:
        """One entry of ``families``."""
        say = _sayer(document, path)
        name = look.text(raw, "name") or f"{path[0]}[{path[1]}]"
        outline = {**raw, "changes": None} if isinstance(raw, dict) and "changes" in raw else raw
        faults = [say(p, m, key=k) for p, m, k in complaints(FamilyDoc, outline)]
        if isinstance(raw, dict):
            faults += family_faults(raw, self.traces, say)
            faults += unknown_whom(self.world, raw, say)
        if faults or not isinstance(raw, dict):
            self._bad(name, faults)
            return
        found = list(members(self.world, self.traces, raw, say))
        told = {member.faults for member in found}
        if len(found) > 1 and len(told) == 1 and found[0].faults:
            self._bad(name, list(found[0].faults))  # of all members alike, so of the family
            return
        for one in found:
            self._settle(f"{name}/{one.label}", one.changes, one.faults, one.clean, say)

    def _member(self, name: str, raw: Any, say: Say, faults: list[Fault]) -> None:
        """One scenario of raw changes."""
        stage = self.world.stage(clean=not faults)
        stage.faults += faults
        changes: list[Change] = []
        for index, change in enumerate(raw if isinstance(raw, list) else ()):
            changes += read_change(stage, change, below(say, "changes", index))
        check_prices(stage)
        self._settle(name, tuple(changes), stage.faults, stage.clean, say)

    def _settle(
        self,
        name: str,
        changes: tuple[Change, ...],
        found: Sequence[Fault],
        clean: bool,
        say: Say,
    ) -> None:
        """Takes a scenario in, or keeps it apart with its faults."""
        faults = list(found)
        here = say(("name",), "")
        first = self.reading.places.get(name)
        if first is not None:
            file, line = first
            place = f"line {line}" if file == here.file else f"{file}:{line}"
            message = f'scenario "{shown(name)}" is named at {place} already; rename one'
            faults.append(say(("name",), message))
        elif len(self.reading.places) >= MOST_SCENARIOS:
            message = f"more than {MOST_SCENARIOS:,} scenarios in all; ask fewer at a time"
            faults.append(say((), message))
        else:
            self.reading.places[name] = (here.file, here.line)
        if faults:
            self._bad(name, faults)
        elif clean:
            self.reading.scenarios.append(Scenario(name, changes))
            self.reading.order.append(name)

    def _bad(self, name: str, faults: list[Fault]) -> None:
        self.reading.bad.append((name, tuple(sorted(set(faults)))))
        self.reading.order.append(name)


def _sayer(document: RawDocument, base: Path) -> Say:
    def say(path: Path, message: str, *, key: bool = False) -> Fault:
        return document.fault((*base, *path), message, key=key)

    return say
