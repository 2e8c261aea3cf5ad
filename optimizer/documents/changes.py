"""The changes of a scenario to the domain, with everything that is wrong in them.

They are read in order against a ``Stage``, the raw fleet and deployments as they stand by then: a
node that an earlier change adds may be lost by a later one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.deployments import (
    ENGINES,
    Surroundings,
    WorkloadsReading,
    build_deployment,
    deployment_faults,
    engine_name,
    product_name,
)
from optimizer.documents.faults import Fault, Path, listed, shown, unknown
from optimizer.documents.fleets import (
    FleetReading,
    build_node,
    place_fault,
    read_entry,
    unknown_product,
)
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.fleet import NodeDoc
from optimizer.documents.schema.workloads import DeploymentDoc
from optimizer.documents.wording import either
from optimizer.domain.scenario import (
    AddDeployments,
    AddNodes,
    Change,
    Forbid,
    Lose,
    PriceChange,
    RemoveDeployment,
    Scale,
)
from optimizer.domain.units import PPM, scaled

Say = Callable[..., Fault]
Entry = dict[str, Any]


@dataclass(slots=True)
class Stage:
    """Fleet and deployments as one scenario has changed them so far.

    ``fleet`` None: none was given, so no node can be told to be unknown; ``deployments_sure`` says
    the same of deployments. ``sound``: both are given without faults. ``clean``: nor has the
    scenario any so far, so changes can be built. ``dirty`` entries have faults of their own.
    """

    catalogue: Catalogue
    fleet: FleetReading | None
    deployments: dict[str, Entry]
    deployments_sure: bool
    sound: bool
    clean: bool
    base_products: Callable[[], Iterable[str]] = tuple
    faults: list[Fault] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    dirty: set[str] = field(default_factory=set)
    priced_at: list[tuple[str, Callable[[str], Fault]]] = field(default_factory=list)

    def fault(self, fault: Fault) -> None:
        """Notes one; nothing is built from now on."""
        self.faults.append(fault)
        self.clean = False

    def take(self, faults: Iterable[Fault]) -> None:
        """Notes several."""
        for fault in faults:
            self.fault(fault)

    @classmethod
    def nowhere(cls) -> "Stage":
        """Of no documents: to judge what does not depend on any."""
        return cls(Catalogue(), None, {}, deployments_sure=False, sound=False, clean=False)

    def copy(self) -> "Stage":
        """The same by now, to go on from apart."""
        f = self.fleet
        return replace(
            self,
            fleet=None if f is None else FleetReading(f.document, [], dict(f.nodes), f.sure),
            deployments=dict(self.deployments),
            faults=list(self.faults),
            gone=set(self.gone),
            dirty=set(self.dirty),
            priced_at=list(self.priced_at),
        )

    @property
    def fleet_sure(self) -> bool:
        """Whether every node there is could be told."""
        return self.fleet is not None and self.fleet.sure

    def no_node(self, name: str) -> str:
        """The fault of a node that is not there, or not any more."""
        assert self.fleet is not None
        if name in self.gone:
            return f'an earlier change of this scenario takes "{name}" away; change it before that'
        return unknown("node", name, self.fleet.nodes)

    def no_deployment(self, name: str) -> str:
        """The fault of a deployment that is not there, or not any more."""
        if f"deployments.{name}" in self.gone:
            return f'an earlier change of this scenario removes "{name}"; change it before that'
        return unknown("deployment", name, sorted(self.deployments))

    def node(self, name: str) -> Entry:
        """The raw entry of one node, by its own name."""
        assert self.fleet is not None
        return {**self.fleet.nodes[name].raw, "name": name}

    def surroundings(self) -> Surroundings:
        """What a deployment may refer to by now."""
        names = frozenset(self.deployments)
        return Surroundings(self.catalogue, self.fleet, names, self.deployments_sure)


class World(NamedTuple):
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


def below(say: Say, *base: str | int) -> Say:
    """``say`` of what stands below ``base``."""

    def said(path: Path, message: str, *, key: bool = False) -> Fault:
        return say((*base, *path), message, key=key)

    return said


def only(stage: Stage, raw: Entry, fields: tuple[str, ...], say: Say) -> str | None:
    """The one field of ``fields`` that is given; none or several are a fault."""
    given = [f for f in fields if raw.get(f) is not None]
    if not given:
        nulls = [f for f in fields if f in raw]
        if nulls:
            stage.fault(say((nulls[0],), "is empty; give a value"))
        elif set(raw) <= {
            "by",
            "from",
            "to",
            "steps",
            "values",
        }:  # else a field is unknown, and told to be
            stage.fault(say((), f"says nothing; give one of {either(list(fields))}"))
        return None
    for more in given[1:]:
        message = f"goes not together with {given[0]}; keep one of the two"
        stage.fault(say((more,), message, key=True))
    return given[0]


def read_change(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    """The domain's changes of one entry; faults go to the stage."""
    from optimizer.documents.assignments import assign  # it needs the stage, which is ours

    if not isinstance(raw, dict):
        return
    kind = only(stage, raw, KINDS_OF_CHANGE, say)
    if kind is None:
        return
    read = assign if kind == "set" else _READERS[kind]
    yield from read(stage, raw[kind], below(say, kind))


def check_prices(stage: Stage) -> None:
    """After all changes every node has a price, or none has."""
    if stage.fleet is None or not stage.priced_at:
        return
    priced = {n: f.raw.get("price_per_gpu_hour") is not None for n, f in stage.fleet.nodes.items()}
    touched = dict(stage.priced_at)
    others = [n for n in priced if n not in touched]
    if len(set(priced.values())) < 2 or not others:
        return
    for name, say in touched.items():
        if name not in priced or priced[name] == priced[others[0]]:
            continue
        if priced[others[0]]:
            stage.fault(say(f"is missing, but {others[0]} has a price; give it one too"))
        else:
            stage.fault(say(f"is given, but {others[0]} has no price; leave it out"))


# --- nodes ----------------------------------------------------------------------------------------


def _lose(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, dict):
        return
    kind = only(stage, raw, ("node", "rack", "zone", "gpu"), say)
    name = look.text(raw, kind) if kind else None
    if kind is None or name is None:
        return
    problem = _lose_gpu(stage, name) if kind == "gpu" else _lose_nodes(stage, kind, name)
    if problem is not None:
        stage.fault(say((kind,), problem))
    yield Lose(kind, name)


def _lose_gpu(stage: Stage, name: str) -> str | None:
    node, slash, _ = name.rpartition("/")
    if not slash:
        return f'must read NODE/INDEX, got "{shown(name)}"'
    if node in stage.gone:
        return stage.no_node(node)
    return place_fault(name, stage.fleet) if stage.fleet is not None and stage.fleet.sure else None


def _lose_nodes(stage: Stage, kind: str, name: str) -> str | None:
    fleet = stage.fleet
    if fleet is None:
        return None
    if kind == "node":
        lost = [name] if name in fleet.nodes else []
    else:
        lost = [node for node in fleet.nodes if domain(stage, node, kind) == name]
    for node in lost:
        stage.gone.add(node)
        del fleet.nodes[node]
    if lost or not fleet.sure:
        return None
    if kind == "node":
        return stage.no_node(name)
    return unknown(kind, name, sorted({domain(stage, node, kind) for node in fleet.nodes}))


def domain(stage: Stage, node: str, kind: str) -> str:
    """The node, rack or zone that a node falls with; one without a rack is its own."""
    assert stage.fleet is not None
    raw = stage.fleet.nodes[node].raw
    rack = look.text(raw, "rack") or node
    return {"node": node, "rack": rack, "zone": look.text(raw, "zone") or rack}[kind]


def _add_nodes(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, list):
        return
    made = []
    for index, entry in enumerate(raw):
        if isinstance(entry, dict):
            made.append((entry, _add_node(stage, entry, below(say, index))))
    if not stage.clean:
        return
    nodes = []
    for entry, names in made:
        gpu = stage.catalogue.gpu(entry["gpu"])
        assert gpu is not None
        doc = NodeDoc.model_validate(entry)
        nodes += [build_node(doc, name, gpu) for name in names]
    yield AddNodes(tuple(nodes))


def _add_node(stage: Stage, entry: Entry, say: Say) -> tuple[str, ...]:
    known = stage.fleet
    fleet = FleetReading(known.document, [], known.nodes, known.sure) if known else None
    if fleet is None:
        fleet = FleetReading(RawDocument("", "Fleet", {}, ""), sure=False)
    names = read_entry(
        fleet,
        entry,
        stage.catalogue,
        say,
        lambda name: f'node "{name}" is in the fleet already; choose another name',
    )
    stage.gone -= set(names)
    if known is not None:
        known.sure = fleet.sure
        stage.priced_at += [(name, partial(say, ("price_per_gpu_hour",))) for name in names[:1]]
    stage.take(fleet.faults)
    if not stage.clean:
        stage.dirty |= {f"nodes.{name}" for name in names}
    return names


def _price(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    name = _product(stage, raw, say)
    by = look.at(raw, "by")
    if name is None or not isinstance(by, int | float):
        return
    fleet = stage.fleet
    if fleet is not None and fleet.products_sure:
        if name not in fleet.products:
            stage.fault(say(("gpu",), _no_product(name, fleet)))
        elif all(f.raw.get("price_per_gpu_hour") is None for f in fleet.nodes.values()):
            stage.fault(say((), "no node has a price, so none can change; give the nodes prices"))
    if stage.clean:
        yield PriceChange(name, scaled(by, PPM))


def _product(stage: Stage, raw: Any, say: Say) -> str | None:
    """The key of the product under ``gpu``; a fault where nobody knows it."""
    spelling = look.text(raw, "gpu")
    if spelling is None:
        return None
    if stage.catalogue.gpu(spelling) is None:
        stage.fault(say(("gpu",), unknown_product(spelling, stage.catalogue)))
        return None
    return product_name(spelling, stage.catalogue)


def _no_product(name: str, fleet: FleetReading) -> str:
    return f"the fleet has no {name}; it has {listed(list(fleet.products)) or 'no GPU'}"


# --- deployments ----------------------------------------------------------------------------------


def _scale(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, dict):
        return
    by = raw.get("by")
    for kind, name in scaled_whom(stage, raw, say):
        if stage.clean and isinstance(by, int | float):
            yield Scale(kind, name, scaled(by, PPM))


def scaled_whom(stage: Stage, raw: Entry, say: Say) -> Iterator[tuple[str, str | None]]:
    """Whose demand a ``scale`` speaks of, if that can be told."""
    kind = only(stage, raw, ("deployment", "tenant", "all"), say)
    if kind == "all":
        yield kind, None
    name = look.text(raw, kind) if kind else None
    if kind is None or name is None:
        return
    if stage.deployments_sure and kind == "deployment" and name not in stage.deployments:
        stage.fault(say((kind,), stage.no_deployment(name)))
    elif stage.deployments_sure and kind == "tenant" and name not in tenants(stage):
        stage.fault(say((kind,), unknown(kind, name, tenants(stage))))
    yield kind, name


def tenants(stage: Stage) -> list[str]:
    """The tenants there are by now, sorted."""
    return sorted({look.text(r, "tenant") or "default" for r in stage.deployments.values()})


def _add_deployments(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, list):
        return
    for index, entry in enumerate(raw):
        name = look.text(entry, "name")
        if name is None:
            stage.deployments_sure = False
        elif name in stage.deployments:
            message = f'deployment "{shown(name)}" is there already; choose another name'
            stage.fault(say((index, "name"), message))
        else:
            stage.deployments[name] = entry
    around = stage.surroundings()
    for index, entry in enumerate(raw):
        if isinstance(entry, dict):
            stage.take(deployment_faults(entry, around, below(say, index)))
            if not stage.clean:
                stage.dirty.add(f"deployments.{entry.get('name')}")
    if stage.clean:
        docs = [DeploymentDoc.model_validate(entry) for entry in raw]
        yield AddDeployments(tuple(build_deployment(d, stage.catalogue) for d in docs))


def _remove_deployment(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, str):
        return
    if raw not in stage.deployments:
        if stage.deployments_sure:
            stage.fault(say((), stage.no_deployment(raw)))
    else:
        stage.gone.add(f"deployments.{raw}")
        del stage.deployments[raw]
        for name, entry in stage.deployments.items():
            if raw in [n for _, n in look.texts(entry, "near[]")]:
                message = f'"{name}" must be near "{raw}"; set deployments.{name}.near first'
                stage.fault(say((), message))
    yield RemoveDeployment(raw)


def _forbid(stage: Stage, raw: Any, say: Say) -> Iterator[Change]:
    if not isinstance(raw, dict):
        return
    kind = only(stage, raw, ("gpu", "precision", "engine"), say)
    name = look.text(raw, kind) if kind else None
    if kind is None or name is None:
        return
    if kind == "gpu":
        product, fleet = _product(stage, raw, say), stage.fleet
        name = product or name
        there = {*stage.base_products(), *(fleet.products if fleet else ())}
        if product and fleet is not None and fleet.products_sure and product not in there:
            stage.fault(say(("gpu",), _no_product(product, fleet)))
    elif kind == "engine":
        engines = stage.catalogue.engines
        if name not in ENGINES and engines.find(name) is None:
            stage.fault(say(("engine",), unknown("engine", name, [*ENGINES, *engines.names()])))
        name = engine_name(name, stage.catalogue)
    yield Forbid(kind, name)


_READERS: dict[str, Callable[[Stage, Any, Say], Iterator[Change]]] = {
    "lose": _lose,
    "scale": _scale,
    "add_deployments": _add_deployments,
    "remove_deployment": _remove_deployment,
    "add_nodes": _add_nodes,
    "forbid": _forbid,
    "price": _price,
}
KINDS_OF_CHANGE = (*_READERS, "set")
