"""Families of scenarios: many members from one entry, each a list of changes."""

import json
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from pathlib import Path as File
from statistics import NormalDist
from typing import Any, NamedTuple

from optimizer.documents import look
from optimizer.documents.changes import (
    Entry,
    Say,
    Stage,
    World,
    below,
    check_prices,
    domain,
    only,
    read_change,
    scaled_whom,
    tenants,
)
from optimizer.documents.faults import Fault, Path, shown
from optimizer.documents.reading import read
from optimizer.documents.schema.scenarios import MOST_SCENARIOS, WINDOW_S, ScenarioDoc
from optimizer.documents.traffic import read_trace
from optimizer.documents.wording import complaints, quoted
from optimizer.domain.scenario import Change, Scale
from optimizer.domain.trace import Trace
from optimizer.domain.units import PPM

ITEM = "{item}"
FAMILIES = ("for_each", "scale", "grid", "random_demand")
WHOSE = ("deployment", "tenant", "all")
PARAMETERS = (*WHOSE, "price", "set")
MOST_LABEL = 40  # characters of a value in a scenario's name

Busyness = dict[str | None, tuple[float, ...]]


class Member(NamedTuple):
    """One scenario of a family; ``clean``: nothing is known to be wrong with the documents."""

    label: str
    changes: tuple[Change, ...]
    faults: tuple[Fault, ...]
    clean: bool


class _Step(NamedTuple):
    """One step of an axis: raw changes with whoever tells their faults, and those made already."""

    label: str
    raw: tuple[tuple[Entry, Say], ...] = ()
    made: tuple[Change, ...] = ()


@dataclass(slots=True)
class Traces:
    """Traces by name or file: those given, and those that a Scenarios document names beside it."""

    given: Sequence[Trace] = ()
    folder: File = field(default_factory=File)
    _read: dict[str, Trace | str] = field(default_factory=dict)
    _busy: dict[tuple[str, float], Busyness] = field(default_factory=dict)

    def busyness(self, name: str, window_s: float) -> Busyness:
        """That of the trace, counted once; nothing where there is no such trace."""
        if (name, window_s) not in self._busy:
            trace = self.find(name)
            found = {} if isinstance(trace, str) else trace.busyness(window_s)
            self._busy[name, window_s] = found
        return self._busy[name, window_s]

    def find(self, name: str) -> Trace | str:
        """The trace, or what is wrong with it."""
        there = next((trace for trace in self.given if trace.name == name), None)
        if there is not None:
            return there
        if name not in self._read:
            self._read[name] = self._from_file(name)
        return self._read[name]

    def _from_file(self, name: str) -> Trace | str:
        files = [str(self.folder / name), name]
        file = next((f for f in files if os.path.isfile(f)), None)
        if file is None:
            known = ", ".join(trace.name for trace in self.given)
            given = f"; traces given: {known}" if known else ""
            return f'no trace "{shown(name)}" among the documents, and no such file{given}'
        found = read([file])
        faults = list(found.faults)
        for document in found.of("Trace"):
            trace, more = read_trace(document)
            if trace is not None:
                return trace
            faults += more
        return str(faults[0]) if faults else f"{file} holds no Trace"


def family_faults(raw: Entry, traces: Traces, say: Say) -> Iterator[Fault]:
    """What is wrong with the family itself, whatever the fleet and the workloads."""
    given = [f for f in FAMILIES if raw.get(f) is not None]
    nulls = [f for f in FAMILIES if f in raw]
    if not given and nulls:
        yield say((nulls[0],), "is empty; give a value")
    elif not given:
        yield say((), f"says nothing; give one of {', '.join(FAMILIES)}")
    yield from _change_faults(raw, given, say)
    for path, axis in _axes(raw):
        yield from _axis_faults(axis, path[0] == "scale", below(say, *path))
    drawn = raw.get("random_demand")
    if isinstance(drawn, dict):
        yield from _draw_faults(drawn, traces, below(say, "random_demand"))


def unknown_whom(world: World, raw: Entry, say: Say) -> list[Fault]:
    """Names of nobody, told beside the family's other faults; changes might bring them first."""
    stage = world.stage(clean=True)
    if "for_each" not in raw and "changes" not in raw:
        for path, axis in _axes(raw):
            if any(axis.get(name) is not None for name in WHOSE):
                list(scaled_whom(stage, axis, below(say, *path)))
    return stage.faults


def members(world: World, traces: Traces, raw: Entry, say: Say) -> Iterator[Member]:
    """Each item with each step of each axis, the common changes first."""
    items: list[str] | None = [""]
    if raw.get("for_each") is not None:
        items = _items(world, raw["for_each"])
    if items is None:  # nobody knows the items; the changes can still be judged
        nowhere = World(world.catalogue, None, None)
        yield from _of_item(nowhere, traces, _replaced(raw, "item", {}), ITEM, say)
        return
    for item in items:
        written: dict[str, str] = {}
        mine = _replaced(raw, item, written) if item else raw
        yield from _of_item(world, traces, mine, item, _as_written(say, written))


def _of_item(world: World, traces: Traces, raw: Entry, item: str, say: Say) -> Iterator[Member]:
    """The members of one item; what is wrong with its changes is told once."""
    stage, common = world.stage(clean=True), list[Change]()
    for path, message, key in complaints(ScenarioDoc, {**_HEADLESS, **_changes(raw)}):
        stage.fault(say(path, message, key=key))
    for index, change in enumerate(raw.get("changes") or ()):
        common += read_change(stage, change, below(say, "changes", index))
    axes = [_steps(axis, below(say, *path)) for path, axis in _axes(raw)]
    if raw.get("random_demand") is not None and not stage.faults:
        axes.append(_random(stage, traces, raw["random_demand"]))
    count = math.prod(map(len, axes))
    if count > MOST_SCENARIOS:
        stage.fault(
            say((), f"stands for {count:,} scenarios; at most {MOST_SCENARIOS:,} are asked")
        )
    if stage.faults:
        yield Member(item, (), tuple(stage.faults), False)
        return
    for steps in product(*axes):
        here, changes = stage.copy(), [*common]
        for step in steps:
            for change, tell in step.raw:
                changes += read_change(here, change, tell)
            changes += step.made
        check_prices(here)
        label = ",".join(text for text in (item, *(step.label for step in steps)) if text)
        yield Member(label, tuple(changes), tuple(here.faults), here.clean)


_HEADLESS: Entry = {"name": "item"}


def _changes(raw: Entry) -> Entry:
    """The common changes of a family, as those of a scenario; nothing at all is allowed here."""
    changes = raw.get("changes")
    return {"changes": [{"scale": {"all": True, "by": 1}}] if changes is None else changes}


# --- faults ---------------------------------------------------------------------------------------


def _change_faults(raw: Entry, given: Sequence[str], say: Say) -> Iterator[Fault]:
    """Changes are a list; those of ``for_each`` speak of the item, or a step does."""
    changes = raw.get("changes")
    if "changes" in raw and (not isinstance(changes, list) or not changes):
        yield say(("changes",), "must be a list with at least one change")
        return
    if "for_each" not in given:
        if "changes" in raw and _mentions(changes):
            yield say(("changes",), f'speak of "{ITEM}", which goes with for_each only')
        return
    if "changes" not in raw and len(given) == 1:
        yield say((), f'misses changes; say what happens to each "{ITEM}"')
    elif not _mentions({name: raw.get(name) for name in (*FAMILIES[1:], "changes")}):
        message = f'never speak of "{ITEM}", so all would be the same; put it into a change'
        yield say(("changes",) if "changes" in raw else (), message)


def _axis_faults(axis: Entry, of_demand: bool, say: Say) -> Iterator[Fault]:
    """One parameter, and either its first, last and number of steps or its values."""
    judge = Stage.nowhere()
    what = only(judge, axis, WHOSE if of_demand else PARAMETERS, say)
    yield from judge.faults
    span = [f for f in ("from", "to", "steps") if axis.get(f) is not None]
    if axis.get("values") is not None:
        for more in span:
            yield say((more,), "goes not together with values; keep one of the two", key=True)
        for index, value in enumerate(axis["values"] if isinstance(axis["values"], list) else ()):
            yield from _factor_faults(what, value, ("values", index), say)
        return
    if not of_demand:
        for name in ("from", "to", "steps"):
            if name not in span:
                yield say((), f"misses {name}; give from, to and steps, or values")
                return
    if axis.get("steps") == 1 and axis.get("from") != axis.get("to"):
        message = "must be at least 2 to reach from one factor to another, got 1"
        yield say(("steps",), message)
    for name in () if of_demand else ("from", "to"):
        yield from _factor_faults(what, axis[name], (name,), say)


def _factor_faults(what: str | None, value: Any, path: Path, say: Say) -> Iterator[Fault]:
    """A factor of demand is above 0, one of a price at least 0; a field takes what it takes."""
    if what is None or what == "set":
        return
    least = 0.0 if what == "price" else 1e-6
    sound = isinstance(value, int | float) and not isinstance(value, bool)
    if not sound or not least <= value <= 1e6:
        word = "at least 0" if what == "price" else "above 0"
        yield say(path, f"must be a factor {word}, at most 1,000,000, got {quoted(value)}")


def _draw_faults(drawn: Entry, traces: Traces, say: Say) -> Iterator[Fault]:
    """A distribution or a trace that has windows to draw."""
    judge = Stage.nowhere()
    what = only(judge, {k: v for k, v in drawn.items() if k in _DRAWN}, _DRAWN, say)
    yield from judge.faults
    seconds = drawn.get("window_seconds", WINDOW_S)
    if what == "sigma" and "window_seconds" in drawn:
        yield say(("window_seconds",), "goes with trace only", key=True)
    name = look.text(drawn, "trace")
    if what != "trace" or name is None or not isinstance(seconds, int | float) or seconds <= 0:
        return
    trace = traces.find(name)
    if isinstance(trace, str):
        yield say(("trace",), trace)
    elif len(traces.busyness(name, seconds).get(None, ())) < 2:
        message = (
            f"lasts {trace.seconds:g} s: not two whole windows with traffic; take shorter ones"
        )
        yield say(("trace",), message)


_DRAWN = ("sigma", "trace")


# --- items ----------------------------------------------------------------------------------------


def _items(world: World, kind: str) -> list[str] | None:
    """What a ``for_each`` runs over; None where the documents do not say."""
    stage = world.stage(clean=True)
    if kind in ("deployment", "tenant"):
        if world.workloads is None:
            return None
        return list(stage.deployments) if kind == "deployment" else tenants(stage)
    if stage.fleet is None:
        return None
    return list(dict.fromkeys(domain(stage, node, kind) for node in stage.fleet.nodes))


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


def _as_written(say: Say, written: dict[str, str]) -> Say:
    """``say`` of places whose keys held ``{item}``."""

    def said(path: Path, message: str, *, key: bool = False) -> Fault:
        back = tuple(written.get(p, p) if isinstance(p, str) else p for p in path)
        return say(back, message, key=key)

    return said


# --- steps ----------------------------------------------------------------------------------------


def _axes(raw: Entry) -> list[tuple[Path, Entry]]:
    """What a family says of parameters, each with its place: ``scale``, then those of ``grid``."""
    grid = raw.get("grid")
    found: list[tuple[Path, Any]] = [(("scale",), raw.get("scale"))]
    found += [(("grid", i), one) for i, one in enumerate(grid if isinstance(grid, list) else ())]
    return [(path, axis) for path, axis in found if isinstance(axis, dict)]


def _steps(axis: Entry, say: Say) -> list[_Step]:
    """The steps of one parameter, as the changes that a scenario would list."""
    what = next(name for name in PARAMETERS if axis.get(name) is not None)
    listed = axis.get("values")
    values = _span(axis, what) if listed is None else [_factor(v, what) for v in listed]
    steps: dict[str, _Step] = {}
    for index, value in enumerate(values):
        place: Path = ("set",) if listed is None else ("values", index)
        label = _label(value, index)
        if what == "set":
            raw, tell = {"set": {axis["set"]: value}}, _at(say, ("set",), place)
        elif what == "price":
            raw, tell = {"price": {"gpu": axis["price"], "by": value}}, _at(say, ("price",))
        else:
            raw, tell = {"scale": {what: axis[what], "by": value}}, _at(say, ())
        steps.setdefault(label, _Step(label, ((raw, tell),)))
    return list(steps.values())


def _span(axis: Entry, what: str) -> list[float | int]:
    """From first to last, evenly, to a millionth; ``set`` gets whole numbers as such."""
    first, last = (Fraction(str(axis[end])) for end in ("from", "to"))
    steps = axis["steps"]
    found = [first + (last - first) * i / max(1, steps - 1) for i in range(steps)]
    return [_factor(value, what) for value in found]


def _factor(value: Any, what: str) -> Any:
    """A factor to a millionth, ``1.0``; a value of a field as it is, ``40``."""
    if what == "set" and not isinstance(value, Fraction):
        return value
    ppm = round(Fraction(str(value)) * PPM)
    return ppm // PPM if what == "set" and ppm % PPM == 0 else ppm / PPM


def _label(value: Any, index: int) -> str:
    """How a value reads in a scenario's name; a long one goes by its number."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if text and len(text) <= MOST_LABEL else f"#{index + 1}"


def _at(say: Say, parameter: Path, value: Path | None = None) -> Say:
    """``say`` of a change that stands nowhere as such: at the parameter, or at its value."""

    def said(path: Path, message: str, *, key: bool = False) -> Fault:
        if not parameter:
            return say(path[1:], message, key=key)
        return say(parameter if key or value is None else value, message)

    return said


def _random(stage: Stage, traces: Traces, drawn: Entry) -> list[_Step]:
    """Random factors of mean 1 for the deployments with a rate: others keep their replicas.

    Each deployment's factors come from the seed and its own name, so that neither the order of
    deployments nor another deployment changes them; ``together``, all get the same draw.
    """
    names = [n for n, entry in stage.deployments.items() if entry.get("demand") is not None]
    seed, shared = drawn["seed"], random.Random(str(drawn["seed"]))
    draws = {n: shared if drawn.get("together") else random.Random(f"{seed}/{n}") for n in names}
    busy: Busyness = {}
    if drawn.get("trace") is not None:
        busy = traces.busyness(drawn["trace"], drawn.get("window_seconds", WINDOW_S))
    steps = []
    for number in range(1, drawn["count"] + 1):
        chance = shared.random() if drawn.get("together") else None
        changes = []
        for name in names:
            luck = draws[name].random() if chance is None else chance
            factor = _of_trace(busy, name, luck) if busy else _lognormal(drawn["sigma"], luck)
            changes.append(Scale("deployment", name, max(1, round(factor * PPM))))
        steps.append(_Step(str(number), made=tuple(changes)))
    return steps


def _lognormal(sigma: float, chance: float) -> float:
    """exp(sigma z - sigma^2 / 2) with z normal, at that quantile: mean 1."""
    # random() is below 1 and may be 0, where the normal distribution has no value.
    return math.exp(sigma * NormalDist().inv_cdf(max(chance, 2.0**-53)) - sigma**2 / 2)


def _of_trace(busy: Busyness, name: str, chance: float) -> float:
    """A window's rate over the mean, of the deployment's own requests where the trace has them."""
    windows = busy.get(name) or busy[None]
    return windows[int(chance * len(windows))]
