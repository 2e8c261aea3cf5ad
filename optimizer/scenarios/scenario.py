"""Scenarios as functions: a named list of changes, made to fleet, workloads and what runs now."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from optimizer.domain.fleet import Fleet, Node
from optimizer.domain.placement import Instance, Placement, Replica, node_of
from optimizer.domain.scenario import (
    AddDeployments,
    AddNodes,
    Assign,
    Change,
    Forbid,
    Lose,
    PriceChange,
    RemoveDeployment,
    Scale,
    Scenario,
)
from optimizer.domain.units import PPM, ceil_div
from optimizer.domain.workload import Demand, Deployment, Slo, Workloads

# What an Assign makes where a deployment says nothing yet.
BLANK: dict[str, Callable[..., Any]] = {"slo": Slo, "demand": Demand}


class ScenarioFault(ValueError):
    """A change that cannot be made to this fleet and these workloads."""


class World(NamedTuple):
    """What a scenario changes. ``current`` is what runs now; None: nothing is known to run."""

    fleet: Fleet
    workloads: Workloads
    current: Placement | None


def apply(
    scenario: Scenario,
    fleet: Fleet,
    workloads: Workloads,
    current: Placement | None = None,
    *,
    engines: Iterable[str] | None = None,
) -> World:
    """The world after every change, made in order. Raises ScenarioFault.

    What is forbidden is forbidden to all, deployments that a later change adds included.
    ``engines`` names those there are; None: an engine's name is not checked.
    """
    world = World(fleet, workloads, current)
    for change in scenario.changes:
        world = _made(change, world)
    products = [gpu.name for f in (fleet, world.fleet) for gpu in f.products()]
    bans = tuple((c.kind, c.name) for c in scenario.changes if isinstance(c, Forbid))
    for ban in bans:
        _check_ban(*ban, products, engines)
    _check_prices(world.fleet)
    return world._replace(
        workloads=_forbidden(world.workloads, bans),
        current=_without_gone(world.current, world.fleet),
    )


def _made(change: Change, world: World) -> World:
    match change:
        case Lose():
            return _lose(change, world)
        case Scale():
            return _scale(change, world)
        case AddDeployments():
            return _add_deployments(change, world)
        case RemoveDeployment():
            return _remove_deployment(change, world)
        case AddNodes():
            return _add_nodes(change, world)
        case Assign():
            return _assign(change, world)
        case PriceChange():
            return _price(change, world)
        case Forbid():
            return world  # at the end, for all


# --- nodes ----------------------------------------------------------------------------------------


def _lose(change: Lose, world: World) -> World:
    """Nodes vanish, and with them what runs there.

    A lost GPU keeps its index, so that its neighbours keep theirs, and nothing runs on it again.
    """
    if change.kind == "gpu":
        return _lose_gpu(change.name, world)
    nodes = world.fleet.nodes
    lost = {node.name for node in nodes if change.name in _domains(node, change.kind)}
    if not lost:
        known = [name for node in nodes for name in _domains(node, change.kind)]
        raise _unknown(change.kind, change.name, known)
    left = tuple(node for node in nodes if node.name not in lost)
    fleet = replace(world.fleet, nodes=left)
    return world._replace(fleet=fleet, current=_without_gone(world.current, fleet))


def _domains(node: Node, kind: str) -> tuple[str, ...]:
    """The names by which a node, rack or zone is lost; one that has none goes by its node's."""
    match kind:
        case "node":
            return (node.name,)
        case "rack":
            return (node.rack or node.name, node.rack_domain)
        case "zone":
            return (node.zone or node.rack or node.name, node.zone_domain)
    raise ScenarioFault(f"cannot lose a {kind}; a node, rack, zone or gpu can be lost")


def _lose_gpu(gpu_id: str, world: World) -> World:
    known = [gpu.id for gpu in world.fleet.gpus()]
    if gpu_id not in known:
        raise _unknown("GPU", gpu_id, known)

    def without(node: Node) -> Node:
        if node.name != node_of(gpu_id):
            return node
        index = int(gpu_id.rsplit("/", 1)[1])
        lost = replace(node.device(index), cordoned=True, layout=None)
        others = [device for device in node.devices if device.index != index]
        devices = tuple(sorted([*others, lost], key=lambda device: device.index))
        return replace(node, devices=devices)

    return world._replace(
        fleet=_each_node(world.fleet, without),
        current=_kept(world.current, lambda gpus: gpu_id not in gpus),
    )


def _add_nodes(change: AddNodes, world: World) -> World:
    taken = {node.name for node in world.fleet.nodes}
    for node in change.nodes:
        if node.name in taken:
            raise ScenarioFault(f'node "{node.name}" is in the fleet already')
        taken.add(node.name)
    fleet = replace(world.fleet, nodes=(*world.fleet.nodes, *change.nodes))
    return world._replace(fleet=fleet)


def _price(change: PriceChange, world: World) -> World:
    """Prices of a product times a factor, to the nearest millionth of the currency."""
    there = [node for node in world.fleet.nodes if node.gpu.name == change.gpu]
    if not there:
        raise _unknown("GPU product", change.gpu, [gpu.name for gpu in world.fleet.products()])
    if not world.fleet.priced:
        raise ScenarioFault("no node has a price, so none can change; give the nodes prices")

    def priced(node: Node) -> Node:
        before = node.price_micros_per_gpu_hour
        if node.gpu.name != change.gpu or before is None:
            return node
        return replace(node, price_micros_per_gpu_hour=round(Fraction(before * change.by_ppm, PPM)))

    return world._replace(fleet=_each_node(world.fleet, priced))


def _check_prices(fleet: Fleet) -> None:
    without = [node.name for node in fleet.nodes if node.price_micros_per_gpu_hour is None]
    if fleet.priced and without:
        raise ScenarioFault(
            f'node "{without[0]}" has no price while others have one; give it price_per_gpu_hour'
        )


def _each_node(fleet: Fleet, change: Callable[[Node], Node]) -> Fleet:
    return replace(fleet, nodes=tuple(change(node) for node in fleet.nodes))


# --- deployments ----------------------------------------------------------------------------------


def _scale(change: Scale, world: World) -> World:
    """Demand times a factor, rounded up; without demand, the number of replicas asked."""
    deployments = world.workloads.deployments
    match change.kind:
        case "all":
            meant = {d.name for d in deployments}
        case "tenant":
            meant = {d.name for d in deployments if d.tenant == change.name}
            known = [d.tenant for d in deployments]
        case "deployment":
            meant = {d.name for d in deployments if d.name == change.name}
            known = [d.name for d in deployments]
        case _:
            raise ScenarioFault(f"cannot scale a {change.kind}; a deployment, a tenant or all can")
    if not meant and change.kind != "all":
        raise _unknown(change.kind, change.name or "", known)
    return world._replace(
        workloads=_each(
            world.workloads, lambda d: _scaled(d, change.by_ppm) if d.name in meant else d
        )
    )


def _scaled(deployment: Deployment, by_ppm: int) -> Deployment:
    demand = deployment.demand
    if demand is None:
        return replace(deployment, min_replicas=ceil_div(deployment.min_replicas * by_ppm, PPM))
    rate = ceil_div(demand.rate_mrps * by_ppm, PPM)
    return replace(deployment, demand=replace(demand, rate_mrps=rate))


def _add_deployments(change: AddDeployments, world: World) -> World:
    taken = {d.name for d in world.workloads.deployments}
    for deployment in change.deployments:
        if deployment.name in taken:
            raise ScenarioFault(f'deployment "{deployment.name}" is there already')
        taken.add(deployment.name)
    every = (*world.workloads.deployments, *change.deployments)
    return world._replace(workloads=replace(world.workloads, deployments=every))


def _remove_deployment(change: RemoveDeployment, world: World) -> World:
    """It asks for nothing more, and its replicas are gone; their MIG instances stand empty."""
    deployments = world.workloads.deployments
    names = [d.name for d in deployments]
    if change.name not in names:
        raise _unknown("deployment", change.name, names)
    beside = next((d.name for d in deployments if change.name in d.near), None)
    if beside is not None and beside != change.name:
        raise ScenarioFault(
            f'"{beside}" must be near "{change.name}"; set deployments.{beside}.near as well'
        )
    left = tuple(
        replace(d, avoid=tuple(name for name in d.avoid if name != change.name))
        for d in deployments
        if d.name != change.name
    )
    return world._replace(
        workloads=replace(world.workloads, deployments=left),
        current=_ended(world.current, change.name),
    )


def _ended(current: Placement | None, deployment: str) -> Placement | None:
    if current is None:
        return None
    ended = [r for r in current.replicas if r.deployment == deployment]
    emptied = [Instance(r.gpus[0], r.mig) for r in ended if r.mig is not None]
    return Placement(
        tuple(r for r in current.replicas if r.deployment != deployment),
        tuple(sorted([*current.instances, *emptied], key=lambda i: (i.gpu, i.placed))),
    )


def _each(workloads: Workloads, change: Callable[[Deployment], Deployment]) -> Workloads:
    return replace(workloads, deployments=tuple(change(d) for d in workloads.deployments))


# --- bans -----------------------------------------------------------------------------------------


def _forbidden(workloads: Workloads, bans: tuple[tuple[str, str], ...]) -> Workloads:
    if not bans:
        return workloads

    def barred(deployment: Deployment) -> Deployment:
        every = tuple(dict.fromkeys((*deployment.allow.forbidden, *bans)))
        return replace(deployment, allow=replace(deployment.allow, forbidden=every))

    return _each(workloads, barred)


def _check_ban(
    kind: str, name: str, products: Sequence[str], engines: Iterable[str] | None
) -> None:
    from optimizer.sizing.precision import SCHEMES, known

    match kind:
        case "gpu" if name not in products:
            raise _unknown("GPU product in the fleet", name, products)
        case "precision" if not known(name):
            raise _unknown("precision", name, SCHEMES)
        case "engine" if engines is not None and name not in (there := sorted(engines)):
            raise _unknown("engine", name, there)
        case "gpu" | "precision" | "engine":
            return
    raise ScenarioFault(f"cannot forbid a {kind}; a gpu, precision or engine can be forbidden")


# --- one field ------------------------------------------------------------------------------------


def _assign(change: Assign, world: World) -> World:
    """A field of one deployment or node gets another value."""
    if change.path[:1] == ("name",):
        raise ScenarioFault(f'{change.kind} "{change.name}" cannot be renamed')
    whole = f"{change.kind}s.{change.name}"
    if change.kind == "deployment":
        _known("deployment", change.name, [d.name for d in world.workloads.deployments])
        workloads = _each(
            world.workloads, lambda d: _with(d, change, whole) if d.name == change.name else d
        )
        return world._replace(workloads=workloads)
    if change.kind != "node":
        raise ScenarioFault(f"cannot set a field of a {change.kind}; of a deployment or node only")
    _known("node", change.name, [n.name for n in world.fleet.nodes])
    fleet = _each_node(
        world.fleet, lambda n: _with(n, change, whole) if n.name == change.name else n
    )
    current = world.current
    if change.path[:1] == ("gpu",):  # other hardware: nothing that ran there still does
        current = _kept(current, lambda gpus: change.name not in map(node_of, gpus))
    return world._replace(fleet=fleet, current=_without_gone(current, fleet))


def _with(thing: Any, change: Assign, whole: str) -> Any:
    """``thing`` with the value at the change's path."""
    return _replaced(thing, change.path, change.value, whole)


def _replaced(thing: Any, path: tuple[str, ...], value: Any, where: str) -> Any:
    if not path:
        return value
    attribute, rest = path[0], path[1:]
    names = [f.name for f in fields(thing)] if is_dataclass(thing) else []
    if attribute not in names:
        raise ScenarioFault(f"{where}: {_no('field', attribute, names)}")
    inside, where = getattr(thing, attribute), f"{where}.{attribute}"
    if rest and inside is None:
        return replace(thing, **{attribute: _blank(attribute, rest, value, where)})
    return replace(thing, **{attribute: _replaced(inside, rest, value, where)})


def _blank(attribute: str, rest: tuple[str, ...], value: Any, where: str) -> Any:
    """A value where there was none, with that one field set."""
    made = BLANK.get(attribute)
    try:
        if made is not None and len(rest) == 1:
            return made(**{rest[0]: value})
    except TypeError:
        pass  # it needs more than this one field
    raise ScenarioFault(f"{where} says nothing yet, so {'.'.join(rest)} cannot be set in it alone")


# --- what runs now --------------------------------------------------------------------------------


def _without_gone(current: Placement | None, fleet: Fleet) -> Placement | None:
    """What runs now, less all that had a GPU which the fleet no longer has."""
    there = {gpu.id for gpu in fleet.gpus()}
    return _kept(current, there.issuperset)


def _kept(
    current: Placement | None, still_there: Callable[[tuple[str, ...]], bool]
) -> Placement | None:
    if current is None:
        return None

    def stays(one: Replica | Instance) -> bool:
        return still_there(one.gpus if isinstance(one, Replica) else (one.gpu,))

    return Placement(
        tuple(replica for replica in current.replicas if stays(replica)),
        tuple(instance for instance in current.instances if stays(instance)),
    )


# --- faults ---------------------------------------------------------------------------------------


def _known(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise _unknown(what, name, known)


def _unknown(what: str, name: str, known: Iterable[str]) -> ScenarioFault:
    return ScenarioFault(_no(what, name, known))


def _no(what: str, name: str, known: Iterable[str]) -> str:
    """``no node "h100-9"; did you mean "h100-09"?``"""
    from optimizer.documents.faults import unknown  # brings the schemas along

    return unknown(what, name, known)
