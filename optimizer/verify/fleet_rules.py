"""Rules about the fleet as a whole: what may not change, what must stay free, what it may cost."""

from collections import Counter
from collections.abc import Iterator

from optimizer.domain.fleet import FleetGpu, Reserve, Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement, Replica, Reserved
from optimizer.domain.problem import asked_of, reserve_name
from optimizer.domain.workload import Deployment
from optimizer.verify.facts import (
    Facts,
    Violation,
    current_replicas,
    fixed_layouts,
    profile_of,
    stays,
)
from optimizer.verify.recount import price_micros
from optimizer.verify.rules import (
    allowed,
    anti_affinity,
    cordon,
    device_bandwidth,
    device_compute,
    device_memory,
    host_cpu,
    host_memory,
    identity,
    interconnect,
    isolation,
    network_bandwidth,
    pin,
    replica_bounds,
    slot_legality,
    spread,
)
from optimizer.verify.slots import layout_faults

# Rules that more replicas can only break further: what keeps them alone may stay where it is.
MONOTONE = (
    identity,
    slot_legality,
    device_memory,
    device_bandwidth,
    device_compute,
    host_cpu,
    host_memory,
    network_bandwidth,
    interconnect,
    replica_bounds,
    spread,
    isolation,
    anti_affinity,
    pin,
    allowed,
    cordon,
)


def fixed_layout(facts: Facts) -> Iterator[Violation]:
    """The MIG instances of a node with fixed layouts are those given, no more and no fewer."""
    for id, given in fixed_layouts(facts.problem).items():
        now = _layout(facts, id)
        if now != given:
            said = f"holds {_words(now)}, fixed to {_words(given)}"
            yield Violation("fixed_layout", id, said)


def _layout(facts: Facts, id: str) -> list[PlacedProfile]:
    held = [r.replica.mig for r in facts.on_gpu.get(id, []) if r.replica.mig]
    return sorted([*held, *facts.standing.get(id, [])])


def _words(layout: list[PlacedProfile]) -> str:
    return " ".join(f"{p.profile}@{p.start}" for p in layout) or "no instance"


def do_not_disturb(facts: Facts) -> Iterator[Violation]:
    """A replica of a deployment with ``disturb: never`` stays where it runs, if it may.

    It may where it breaks no rule on its own; that it clashes with others is for people to settle.
    """
    never = {d.name for d in facts.problem.deployments if d.disturb == "never"}
    if not never:
        return
    current = current_replicas(facts.problem)
    kept = {r.id for r in facts.placement.replicas if stays(r, current)}
    gone = [r for r in current.values() if r.deployment in never and r.id not in kept]
    disturbed = [r for r in gone if _holds(facts, r)]
    after = {r.id: r for r in facts.placement.replicas}
    for replica in disturbed:
        now = ", ".join(after[replica.id].gpus) if replica.id in after else "nowhere"
        said = f"ran on {', '.join(replica.gpus)} and may stay there, is planned on {now}"
        yield Violation("do_not_disturb", replica.id, said)


def _holds(facts: Facts, replica: Replica) -> bool:
    """Whether the replica could stay, if it were all that ran."""
    alone = Facts.on(facts.ground, Placement((replica,)))
    fits = not any(True for rule in MONOTONE for _ in rule(alone))
    return fits and all(_keeps_layout(facts, gpu, replica) for gpu in replica.gpus)


def _keeps_layout(facts: Facts, id: str, replica: Replica) -> bool:
    """Whether a layout that is fixed has its instance, or none where it holds the whole GPU."""
    layout = facts.ground.gpus[id].device.layout
    if not facts.ground.gpus[id].node.layouts_fixed or layout is None:
        return True
    return replica.mig in layout if replica.mig else not layout


def reserve(facts: Facts) -> Iterator[Violation]:
    """The room kept free on purpose is named, and each piece of it could hold a replica of anyone.

    A piece is whole GPUs of one node, or a MIG position beside what runs; no two take the same.
    """
    for number, entry in enumerate(facts.problem.fleet.reserve):
        pieces = [piece for piece in facts.placement.reserved if piece.entry == number]
        what = entry.profile or f"{entry.gpus} x {entry.gpu or 'any GPU'}"
        for piece in pieces:
            fault = _piece_fault(facts, entry, piece)
            if fault:
                where = ", ".join(piece.gpus)
                yield Violation("reserve", reserve_name(number), f"{what} on {where}: {fault}")
        if len(pieces) < entry.count:
            said = f"{what}: {len(pieces)} kept free of {entry.count}"
            yield Violation("reserve", reserve_name(number), said)
    entries = range(len(facts.problem.fleet.reserve))
    for piece in facts.placement.reserved:
        if piece.entry not in entries:
            said = f"room on {', '.join(piece.gpus)} is kept free for no entry"
            yield Violation("reserve", reserve_name(piece.entry), said)


def _piece_fault(facts: Facts, entry: Reserve, piece: Reserved) -> str | None:
    """Why the piece is not what the entry asks for, or is not free."""
    here = [facts.ground.gpus[id] for id in dict.fromkeys(piece.gpus) if id in facts.ground.gpus]
    if not here or len(here) < len(piece.gpus):
        return "names no GPU, an unknown one or one twice"
    for gpu in here:
        if gpu.cordoned:
            return f"{gpu.id} is cordoned"
        if not asked_of(entry, gpu.node):
            return f"{gpu.id} is not of the product and labels asked for"
        lonely = [d.name for d in facts.problem.deployments if _alone_on(facts, d, gpu)]
        if lonely:
            return f"{gpu.id} is {lonely[0]}'s alone"
    if entry.profile is not None:
        return _position_fault(facts, entry.profile, piece, here)
    return _group_fault(facts, entry.gpus or 1, here)


def _alone_on(facts: Facts, deployment: Deployment, gpu: FleetGpu) -> bool:
    """Whether the deployment runs there and bears nobody else, so that the room is not anyone's."""
    if deployment.isolate == "none":
        return False
    alone = facts.on_node.get(gpu.node.name, []) if deployment.isolate == "node" else []
    return any(
        one.replica.deployment == deployment.name for one in (*alone, *facts.on_gpu.get(gpu.id, []))
    )


def _position_fault(
    facts: Facts, profile: str, piece: Reserved, here: list[FleetGpu]
) -> str | None:
    gpu = here[0]
    wanted = gpu.gpu.mig.profile(profile) if gpu.gpu.mig else None
    if len(here) > 1 or piece.mig is None or wanted is None:
        return "is no MIG position of that profile"
    if profile_of(gpu.gpu, piece.mig) != wanted or Sharing.MIG not in gpu.node.sharing:
        return "is no MIG position of that profile"
    running = facts.on_gpu.get(gpu.id, [])
    others = facts.kept[gpu.id]
    if any(one.replica.mig is None for one in running) or any(p.mig is None for p in others):
        return "the GPU is taken whole or shared"
    if gpu.node.layouts_fixed and piece.mig not in facts.standing.get(gpu.id, []):
        return "the layout is fixed and has no such instance free"
    held = [r.replica.mig for r in running if r.replica.mig] + [p.mig for p in others if p.mig]
    faults = layout_faults(gpu.gpu, sorted(held))
    return faults[0] if faults else None


def _group_fault(facts: Facts, size: int, here: list[FleetGpu]) -> str | None:
    if len(here) != size or len({gpu.node.name for gpu in here}) > 1:
        return f"is not {size} GPUs of one node"
    if Sharing.WHOLE not in here[0].node.sharing:
        return f"node {here[0].node.name} gives out no whole GPUs"
    low, high = here[0].device.index, here[-1].device.index
    if size == 2 and here[0].node.nvlink_domain == "pair" and low // 2 != high // 2:
        return "is no bridged pair"
    for gpu in here:
        if facts.on_gpu.get(gpu.id) or len(facts.kept[gpu.id]) > 1:
            return f"{gpu.id} is in use"
        if gpu.node.layouts_fixed and facts.standing.get(gpu.id):
            return f"{gpu.id} is cut for good"
    return None


def price_limit(facts: Facts) -> Iterator[Violation]:
    """The price per hour stays within the fleet's ceiling."""
    limit = facts.problem.fleet.limits.price_micros_per_hour
    price = price_micros(facts)
    if limit is not None and price > limit:
        said = f"{price} micros per hour, at most {limit}"
        yield Violation("price_limit", facts.problem.fleet.name, said)


def power_limit(facts: Facts) -> Iterator[Violation]:
    """The TDP of a rack's used GPUs stays within the ceiling; an unknown TDP counts nothing."""
    limit = facts.problem.fleet.limits.rack_power_w
    if limit is None:
        return
    watts: Counter[str] = Counter()
    for id in facts.used:
        gpu = facts.ground.gpus[id]
        watts[gpu.node.rack_domain] += gpu.gpu.tdp_w or 0
    for rack, power in watts.items():
        if power > limit:
            yield Violation("power_limit", rack, f"{power} W of used GPUs, at most {limit}")
