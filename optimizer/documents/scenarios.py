"""Scenarios documents to the domain: families expanded, the faulty ones kept apart."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from statistics import NormalDist
from typing import Any, NamedTuple

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.changes import (
    Entry,
    Say,
    Stage,
    below,
    check_prices,
    domain,
    read_change,
    scaled_whom,
    tenants,
)
from optimizer.documents.deployments import WorkloadsReading
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
from optimizer.domain.scenario import Change, Scale, Scenario
from optimizer.domain.units import PPM

ITEM = "{item}"
_FAMILIES = ("for_each", "scale", "grid", "random_demand")


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


class _World(NamedTuple):
    """What scenarios change."""

    catalogue: Catalogue
    fleet: FleetReading | None
    workloads: WorkloadsReading | None

    def stage(self, *, clean: bool) -> Stage:
        """The start of one scenario."""
        fleet, workloads = self.fleet, self.workloads
        known = fleet is not None and fleet.fleet is not None
        known &= workloads is not None and workloads.workloads is not None
        return Stage(
            catalogue=self.catalogue,
            fleet=FleetReading(fleet.document, [], dict(fleet.nodes), fleet.sure)
            if fleet
            else None,
            deployments={n: raw for n, (_, _, raw) in workloads.raw.items()} if workloads else {},
            deployments_sure=workloads is not None and workloads.sure,
            sound=known,
            clean=clean and known,
            base_products=lambda: fleet.products if fleet else (),
        )


def read_scenarios(
    documents: list[RawDocument],
    catalogue: Catalogue,
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None,
) -> ScenariosReading:
    """The scenarios of all documents in document order, families after the single ones."""
    reading = ScenariosReading()
    reader = _Reader(reading, _World(catalogue, fleet, workloads))
    for document in documents:
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

    def __init__(self, reading: ScenariosReading, world: _World) -> None:
        self.reading = reading
        self.world = world

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
            faults += _family_faults(raw, say)
            faults += self._whose(raw, say)
        if faults or not isinstance(raw, dict):
            self._bad(name, faults)
        elif raw.get("for_each") is not None:
            self._for_each(name, raw, say)
        else:
            self._multiplied(name, raw, say)

    def _whose(self, raw: Entry, say: Say) -> list[Fault]:
        """Names of nobody under ``scale`` and ``grid``."""
        stage = self.world.stage(clean=True)
        for path, scale in _scales(raw):
            list(scaled_whom(stage, scale, below(say, *path)))
        return stage.faults

    def _for_each(self, name: str, raw: Entry, say: Say) -> None:
        """The changes once for each item, with ``{item}`` replaced."""
        kind = raw["for_each"]
        items = _items(self.world, kind)
        if items is None:  # nobody knows the items; the changes can still be judged
            stage_free = _World(self.world.catalogue, None, None)
            _Reader(self.reading, stage_free)._item(f"{name}/{ITEM}", raw, "item", say)
            return
        for item in items:
            self._item(f"{name}/{item}", raw, item, say)

    def _item(self, name: str, raw: Entry, item: str, say: Say) -> None:
        written: dict[str, str] = {}
        changed = _replaced(raw["changes"], item, written)

        def said(path: Path, message: str, *, key: bool = False) -> Fault:
            back = tuple(written.get(p, p) if isinstance(p, str) else p for p in path)
            return say(back, message, key=key)

        entry = {"name": "item", "changes": changed}
        faults = [said(p, m, key=k) for p, m, k in complaints(ScenarioDoc, entry)]
        self._member(name, changed, said, faults)

    def _multiplied(self, name: str, raw: Entry, say: Say) -> None:
        """The members of families that scale demand."""
        scaled = [_scaled(self.world, scale, below(say, *path)) for path, scale in _scales(raw)]
        made = _grid(*scaled) if scaled else _random(self.world, raw)
        for member, changes in made:
            stage = self.world.stage(clean=True)
            self._settle(f"{name}/{member}", changes, stage, say)

    def _member(self, name: str, raw: Any, say: Say, faults: list[Fault]) -> None:
        """One scenario of raw changes."""
        stage = self.world.stage(clean=not faults)
        stage.faults += faults
        changes: list[Change] = []
        for index, change in enumerate(raw if isinstance(raw, list) else ()):
            changes += read_change(stage, change, below(say, "changes", index))
        check_prices(stage)
        self._settle(name, tuple(changes), stage, say)

    def _settle(self, name: str, changes: tuple[Change, ...], stage: Stage, say: Say) -> None:
        """Takes a scenario in, or keeps it apart with its faults."""
        here = say(("name",), "")
        first = self.reading.places.get(name)
        if first is not None:
            file, line = first
            place = f"line {line}" if file == here.file else f"{file}:{line}"
            message = f'scenario "{shown(name)}" is named at {place} already; rename one'
            stage.fault(say(("name",), message))
        elif len(self.reading.places) >= MOST_SCENARIOS:
            message = f"more than {MOST_SCENARIOS:,} scenarios in all; ask fewer at a time"
            stage.fault(say((), message))
        else:
            self.reading.places[name] = (here.file, here.line)
        if stage.faults:
            self._bad(name, stage.faults)
        elif stage.clean:
            self.reading.scenarios.append(Scenario(name, changes))
            self.reading.order.append(name)

    def _bad(self, name: str, faults: list[Fault]) -> None:
        self.reading.bad.append((name, tuple(sorted(set(faults)))))
        self.reading.order.append(name)


def _sayer(document: RawDocument, base: Path) -> Say:
    def say(path: Path, message: str, *, key: bool = False) -> Fault:
        return document.fault((*base, *path), message, key=key)

    return say


def _family_faults(raw: Entry, say: Say) -> Iterator[Fault]:
    """Exactly one kind of family; changes go with ``for_each``."""
    given = [f for f in _FAMILIES if raw.get(f) is not None]
    nulls = [f for f in _FAMILIES if f in raw]
    if not given and nulls:
        yield say((nulls[0],), "is empty; give a value")
    elif not given:
        yield say((), f"says nothing; give one of {', '.join(_FAMILIES)}")
    for more in given[1:]:
        yield say((more,), f"goes not together with {given[0]}; keep one of the two", key=True)
    changes = raw.get("changes")
    if "for_each" in given:
        if "changes" not in raw:
            yield say((), f'misses changes; say what happens to each "{ITEM}"')
        elif not isinstance(changes, list) or not changes:
            yield say(("changes",), "must be a list with at least one change")
        elif not _mentions(changes):
            message = f'never speak of "{ITEM}", so all would be the same; put it into a change'
            yield say(("changes",), message)
    elif "changes" in raw and given:
        yield say(("changes",), "goes with for_each only", key=True)
    for path, scale in _scales(raw):
        if scale.get("steps") == 1 and scale.get("from") != scale.get("to"):
            message = "must be at least 2 to reach from one factor to another, got 1"
            yield say((*path, "steps"), message)


def _scales(raw: Entry) -> list[tuple[Path, Entry]]:
    """What a family says of factors, each with its place: one ``scale``, or those of a ``grid``."""
    grid = raw.get("grid")
    found: list[tuple[Path, Any]] = [(("scale",), raw.get("scale"))]
    found += [(("grid", i), one) for i, one in enumerate(grid if isinstance(grid, list) else ())]
    return [(path, scale) for path, scale in found if isinstance(scale, dict)]


def _mentions(value: Any) -> bool:
    if isinstance(value, str):
        return ITEM in value
    if isinstance(value, dict):
        return any(ITEM in key or _mentions(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_mentions, value))


def _replaced(value: Any, item: str, written: dict[str, str]) -> Any:
    """``value`` with ``{item}`` replaced; ``written`` learns how changed keys were written."""
    if isinstance(value, str):
        return value.replace(ITEM, item)
    if isinstance(value, list):
        return [_replaced(inner, item, written) for inner in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, inner in value.items():
        new = key.replace(ITEM, item)
        if new != key:
            written[new] = key
        found[new] = _replaced(inner, item, written)
    return found


def _items(world: _World, kind: str) -> list[str] | None:
    """What a ``for_each`` runs over; None where the documents do not say."""
    stage = world.stage(clean=True)
    if kind in ("deployment", "tenant"):
        if world.workloads is None:
            return None
        return list(stage.deployments) if kind == "deployment" else tenants(stage)
    if stage.fleet is None:
        return None
    return list(dict.fromkeys(domain(stage, node, kind) for node in stage.fleet.nodes))


Member = tuple[str, tuple[Change, ...]]


def _grid(*axes: Iterator[Member]) -> Iterator[Member]:
    """Each member of one with each of the other, both changes made: ``growth/1.5,2.0``."""
    for some in product(*axes):
        changes = tuple(change for _, changes in some for change in changes)
        yield ",".join(name for name, _ in some), changes


def _scaled(world: _World, scale: Entry, say: Say) -> Iterator[Member]:
    """Factors from first to last, evenly, to a millionth: ``growth/1.5``."""
    whom = list(scaled_whom(world.stage(clean=True), scale, say))
    first, last = (Fraction(str(scale[end])) for end in ("from", "to"))
    steps = scale["steps"]
    factors = [first + (last - first) * i / max(1, steps - 1) for i in range(steps)]
    for by_ppm in dict.fromkeys(round(factor * PPM) for factor in factors):
        changes = tuple(Scale(kind, name, by_ppm) for kind, name in whom)
        yield str(by_ppm / PPM), changes


def _random(world: _World, raw: Entry) -> Iterator[Member]:
    """Lognormal factors of mean 1, exp(sigma z - sigma^2 / 2) with z normal.

    Each deployment's factors come from the seed and its own name, so that neither the order of
    deployments nor another deployment changes them. Deployments without demand keep their replicas.
    """
    said = raw["random_demand"]
    sigma, normal = said["sigma"], NormalDist()
    loads = world.stage(clean=True).deployments
    names = [name for name, entry in loads.items() if entry.get("demand") is not None]
    draws = {name: random.Random(f"{said['seed']}/{name}") for name in names}
    for number in range(1, said["count"] + 1):
        changes = []
        for name in names:
            # random() is below 1 and may be 0, where the normal distribution has no value.
            chance = max(draws[name].random(), 2.0**-53)
            factor = math.exp(sigma * normal.inv_cdf(chance) - sigma**2 / 2)
            changes.append(Scale("deployment", name, max(1, round(factor * PPM))))
        yield str(number), tuple(changes)
