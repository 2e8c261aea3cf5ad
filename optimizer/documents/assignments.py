"""A scenario's ``set``: values for single fields of deployments and nodes.

The raw entry with the new values in it is judged as if it stood in its own document, so that every
check there holds here too.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

from pydantic import BaseModel

from optimizer.documents import look
from optimizer.documents.changes import Entry, Say, Stage
from optimizer.documents.deployments import build_deployment, deployment_faults
from optimizer.documents.faults import Fault, Path, dotted, shown
from optimizer.documents.fleets import NodeFacts, build_node, node_faults, unknown_product
from optimizer.documents.schema.fleet import NodeDoc
from optimizer.documents.schema.workloads import DeploymentDoc
from optimizer.documents.wording import complaints
from optimizer.domain.fleet import Node
from optimizer.domain.scenario import Assign
from optimizer.domain.workload import Deployment

Attributes = tuple[tuple[str, ...], ...]

# Fields of documents that the domain holds elsewhere or in several attributes; all others stand
# where they stand in the document.
_OF_DEPLOYMENTS: dict[Path, Attributes] = {
    ("model",): (("model",), ("precision",)),
    ("demand", "requests_per_second"): (("demand", "rate_mrps"),),
    ("demand", "peak_factor"): (("demand", "peak_factor_ppm"),),
    ("extras", "lora"): (("extras", "lora_count"), ("extras", "lora_rank")),
    ("host", "cpu_cores"): (("host_cpu_millicores",),),
    ("host", "memory_gib"): (("host_memory_mib",),),
    ("host",): (("host_cpu_millicores",), ("host_memory_mib",)),
    ("replicas", "min"): (("min_replicas",),),
    ("replicas", "max"): (("max_replicas",),),
    ("replicas",): (("min_replicas",), ("max_replicas",)),
    ("spread", "node"): (("spread_node",),),
    ("spread", "rack"): (("spread_rack",),),
    ("spread",): (("spread_node",), ("spread_rack",)),
}
_OF_NODES: dict[Path, Attributes] = {
    # What a node may be used for, its links and its layouts follow from the product.
    ("gpu",): (("gpu",), ("sharing",), ("nvlink_domain",), ("devices",)),
    ("price_per_gpu_hour",): (("price_micros_per_gpu_hour",),),
    ("mig_layouts",): (("layouts_fixed",),),
    ("cpu_cores",): (("cpu_millicores",),),
    ("memory_gib",): (("host_memory_mib",),),
}
_HOLDERS = ("demand", "slo", "allow", "extras")  # attributes that hold attributes


class _Setting(NamedTuple):
    """One line of a ``set``: its key, and the field that it means."""

    key: str
    path: tuple[str, ...]
    value: Any


def assign(stage: Stage, raw: Any, say: Say) -> Iterator[Assign]:
    """The domain's assignments of one ``set``; all its lines are judged together."""
    if not isinstance(raw, dict):
        return
    targets: dict[tuple[str, str], list[_Setting]] = {}
    for key, value in raw.items():
        found = _target(stage, key, say)
        if found is not None:
            kind, name, path = found
            targets.setdefault((kind, name), []).append(_Setting(key, path, value))
    for (kind, name), settings in targets.items():
        if _twice(stage, settings, say):
            continue
        change = _deployment if kind == "deployment" else _node
        yield from change(stage, name, settings, say)


def _target(stage: Stage, key: str, say: Say) -> tuple[str, str, tuple[str, ...]] | None:
    """Deployment or node, its name, and the field's path. Names may hold dots."""
    plural, _, rest = key.partition(".")
    kind = {"deployments": "deployment", "nodes": "node"}.get(plural)
    if kind is None or not rest:
        message = "must read deployments.NAME.FIELD or nodes.NAME.FIELD"
        stage.fault(say((key,), message, key=True))
        return None
    known: Collection[str] = stage.deployments
    sure = stage.deployments_sure
    if kind == "node":
        known, sure = stage.fleet.nodes if stage.fleet else (), stage.fleet_sure
    parts = rest.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    there = next((name for name in names if name in known), None)
    name = there if there is not None else parts[0]
    path = tuple(rest[len(name) + 1 :].split(".")) if len(rest) > len(name) else ()
    problem = None
    if there is None and sure:
        problem = stage.no_node(name) if kind == "node" else stage.no_deployment(name)
    elif not path or "" in path:
        problem = f"names no field; write {plural}.{shown(name)}.FIELD"
    elif path == ("name",):
        problem = f'{kind} "{shown(name)}" cannot be renamed; remove it and add another'
    if problem is not None:
        stage.fault(say((key,), problem, key=True))
        return None
    return kind, name, path


def _twice(stage: Stage, settings: list[_Setting], say: Say) -> bool:
    """Whether two lines set the same field, or one a field inside the other's."""
    found = False
    for index, later in enumerate(settings):
        for first in settings[:index]:
            depth = min(len(first.path), len(later.path))
            if first.path[:depth] == later.path[:depth]:
                message = f'sets what "{shown(first.key)}" sets too; keep one of the two'
                stage.fault(say((later.key,), message, key=True))
                found = True
    return found


def _deployment(stage: Stage, name: str, settings: list[_Setting], say: Say) -> Iterator[Assign]:
    before = stage.deployments.get(name)
    raw = _with(before or {}, settings)
    judge = _Judge(stage, f"deployments.{name}", settings, say)
    judge.schema(DeploymentDoc, raw)
    around = stage.surroundings()
    judge.others(lambda said: deployment_faults(raw, around, said))
    if before is None or judge.found:  # what is wrong is told; later changes see it as it was
        return
    stage.deployments[name] = raw
    if stage.clean:
        after = build_deployment(DeploymentDoc.model_validate(raw), stage.catalogue)
        yield from _assigned("deployment", name, settings, _OF_DEPLOYMENTS, before, after)


def _node(stage: Stage, name: str, settings: list[_Setting], say: Say) -> Iterator[Assign]:
    known = stage.fleet is not None and name in stage.fleet.nodes
    before = stage.node(name) if known else None
    raw = _with(before or {}, settings)
    spelling = look.text(raw, "gpu")
    gpu = stage.catalogue.gpu(spelling) if spelling is not None else None
    judge = _Judge(stage, f"nodes.{name}", settings, say)
    judge.schema(NodeDoc, raw)
    if spelling is not None and gpu is None:
        message = unknown_product(spelling, stage.catalogue)
        judge.others(lambda said: iter([said(("gpu",), message)]))
    judge.others(lambda said: node_faults(raw, gpu, 1, said))
    if before is None or stage.fleet is None or judge.found:
        return
    stage.fleet.nodes[name] = NodeFacts(name, gpu, look.whole(raw, "gpus"), raw)
    for setting in settings:
        if setting.path == ("price_per_gpu_hour",):
            key = setting.key
            stage.priced_at.append((name, partial(say, (key,))))
    if stage.clean and gpu is not None:
        after = build_node(NodeDoc.model_validate(raw), name, gpu)
        yield from _assigned("node", name, settings, _OF_NODES, before, after)


def _with(raw: Entry, settings: list[_Setting]) -> Entry:
    """The entry with every value put in; mappings on the way are made."""
    for setting in settings:
        raw = _put(raw, setting.path, setting.value)
    return raw


def _put(holder: Any, path: tuple[str, ...], value: Any) -> Entry:
    held = holder if isinstance(holder, dict) else {}
    inner = value if len(path) == 1 else _put(held.get(path[0]), path[1:], value)
    return {**held, path[0]: inner}


class _Judge:
    """Faults of a changed entry, told at the line of the ``set`` that made them."""

    def __init__(self, stage: Stage, entry: str, settings: list[_Setting], say: Say) -> None:
        self.stage = stage
        self.entry = entry
        self.settings = settings
        self._say = say
        self.by_schema = False
        self.found = False
        # Where the entry had no faults before, all are new.
        self.whole = stage.sound and entry not in stage.dirty

    def schema(self, model: type[BaseModel], raw: Entry) -> None:
        """Whatever the schema refuses."""
        self.by_schema = True
        for path, message, key in complaints(model, raw):
            self._note(self._located(path, message, key=key))
        self.by_schema = False

    def others(self, check: Callable[[Say], Iterator[Fault]]) -> None:
        """Whatever a check says of the lines set here, and of others if they were right before."""
        for fault in check(self._located):
            self._note(fault)

    def _note(self, fault: Fault) -> None:
        if fault.line >= 0:
            self.stage.fault(fault)
            self.found = True

    def _located(self, path: Path, message: str, *, key: bool = False) -> Fault:
        for setting in self.settings:
            depth = len(setting.path)
            if path[:depth] == setting.path:
                return self._say((setting.key, *path[depth:]), message, key=key)
        for setting in self.settings:
            if setting.path[: len(path)] == path and path and (self.whole or self.by_schema):
                return self._told(setting, path, message)
        if self.whole:
            return self._told(self.settings[0], path, message)
        return Fault("", -1, 0, "", "")  # of a field that nobody set here

    def _told(self, setting: _Setting, path: Path, message: str) -> Fault:
        """Of a line that is right in itself, but not together with the rest of its entry."""
        where = ".".join(part for part in (self.entry, dotted(path)) if part)
        return self._say((setting.key,), f"then {where} is wrong: {message}", key=True)


def _assigned(
    kind: str,
    name: str,
    settings: list[_Setting],
    table: dict[Path, Attributes],
    before: Entry,
    after: Deployment | Node,
) -> Iterator[Assign]:
    """One assignment for each attribute that the settings speak of."""
    attributes = dict.fromkeys(
        attribute for s in settings for attribute in _attributes(s.path, table, before)
    )
    for path in attributes:
        value: Any = after
        for part in path:
            value = getattr(value, part)
        yield Assign(kind, name, path, value)


def _attributes(path: tuple[str, ...], table: dict[Path, Attributes], before: Entry) -> Attributes:
    for length in range(len(path), 0, -1):
        if path[:length] in table:
            found = table[path[:length]]
            break
    else:
        found = (path[:2] if path[0] in _HOLDERS else path[:1],)
    # Where nothing was said yet, the whole of it is new.
    return tuple(
        a if len(a) == 1 or a[0] in ("allow", "extras") or before.get(a[0]) is not None else a[:1]
        for a in found
    )
