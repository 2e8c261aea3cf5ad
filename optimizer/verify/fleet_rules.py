"""Rules about the fleet as a whole: what may not change, what must stay free, what it may cost."""

from collections import Counter
from collections.abc import Iterator

from optimizer.domain.fleet import FleetGpu, Reserve, Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement, Replica
from optimizer.verify.facts import Facts, Running, Violation, current_replicas, stays
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
    pin,
    replica_bounds,
    slot_legality,
    spread,
)
from optimizer.verify.slots import most_instances

# Rules that more replicas can only break further: what keeps them alone may stay where it is.
MONOTONE = (
    identity,
    slot_legality,
    device_memory,
    device_bandwidth,
    device_compute,
    host_cpu,
    host_memory,
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
    if not any(node.layouts_fixed for node in facts.problem.fleet.nodes):
        return
    current = facts.problem.current
    today = Facts.on(facts.ground, current) if current else None
    for id, gpu in facts.ground.gpus.items():
        if not gpu.node.layouts_fixed:
            continue
        if gpu.device.layout is not None:
            given = sorted(gpu.device.layout)
        else:
            given = _layout(today, id) if today else []
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
    """Replicas of deployments with ``disturb: never`` stay exactly where they run, if they can."""
    never = {d.name for d in facts.problem.deployments if d.disturb == "never"}
    if not never:
        return
    current = current_replicas(facts.problem)
    kept = {r.id for r in facts.placement.replicas if stays(r, current)}
    held = [r for r in current.values() if r.deployment in never and r.id in kept]
    gone = [r for r in current.values() if r.deployment in never and r.id not in kept]
    disturbed = gone if _hold(facts, [*held, *gone]) else []
    if not disturbed:
        disturbed = [r for r in gone if _hold(facts, [*held, r])]
    after = {r.id: r for r in facts.placement.replicas}
    for replica in disturbed:
        now = ", ".join(after[replica.id].gpus) if replica.id in after else "nowhere"
        said = f"ran on {', '.join(replica.gpus)} and may stay there, is planned on {now}"
        yield Violation("do_not_disturb", replica.id, said)


def _hold(facts: Facts, replicas: list[Replica]) -> bool:
    """Whether these replicas could all stay, if they were all that ran."""
    alone = Facts.on(facts.ground, Placement(tuple(replicas)))
    return not any(True for rule in MONOTONE for _ in rule(alone))


def reserve(facts: Facts) -> Iterator[Violation]:
    """The room kept free on purpose is there: each entry, looked at alone, fits in what is free."""
    for entry in facts.problem.fleet.reserve:
        free = sum(_free_for(facts, entry).values())
        if free < entry.count:
            what = entry.profile or f"{entry.gpus} x {entry.gpu or 'any GPU'}"
            yield Violation("reserve", what, f"room for {free}, {entry.count} kept free")


def _free_for(facts: Facts, entry: Reserve) -> Counter[str]:
    """How many pieces of a reserve each node still has room for."""
    found: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for id, gpu in facts.ground.gpus.items():
        if gpu.cordoned or not _asked_here(entry, gpu):
            continue
        running = facts.on_gpu.get(id, [])
        if entry.profile is not None:
            found[gpu.node.name] += _free_instances(gpu, running, entry.profile)
        elif not running:
            whole[gpu.node.name] += 1
    for name, count in whole.items():
        found[name] += count // (entry.gpus or 1)
    return found


def _asked_here(entry: Reserve, gpu: FleetGpu) -> bool:
    labels = dict(gpu.node.labels)
    named = entry.gpu is None or entry.gpu == gpu.gpu.name
    return named and all(labels.get(key) == value for key, value in entry.labels)


def _free_instances(gpu: FleetGpu, running: list[Running], profile: str) -> int:
    held = [r.replica.mig for r in running if r.replica.mig]
    if Sharing.MIG not in gpu.node.sharing or len(held) < len(running):
        return 0
    return most_instances(gpu.gpu, held, profile)


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
    for id in facts.on_gpu:
        gpu = facts.ground.gpus[id]
        watts[gpu.node.rack_domain] += gpu.gpu.tdp_w or 0
    for rack, power in watts.items():
        if power > limit:
            yield Violation("power_limit", rack, f"{power} W of used GPUs, at most {limit}")
