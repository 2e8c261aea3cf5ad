"""Seeded random problems small enough for brute force, touching every rule of the solver.

``random_problem(seed)`` gives the same problem for the same seed. ``traits(problem)`` says in words
what is in one, so that a property test can count what it really tried. No seed is infeasible: with
these rules an empty placement is always legal, and what cannot be served is unmet.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from builders import a30_like, candidate, deployment, fleet, gpu, node, use
from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.fleet import Device, Fleet, Limits, Node, Reserve, Sharing
from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.domain.placement import Instance, Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.verify.slots import layout_faults

PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=864, tdp_w=350)
SLICED = a30_like()
LARGE = gpu("large", memory_gib=80, mig="std8", tdp_w=400)
PROFILES = {"a30": ("1g.6gb", "2g.12gb", "4g.24gb"), "large": ("2g.20gb", "3g.40gb", "4g.40gb")}
NAMES = ("chat", "embed", "vision")
# Each problem is about a few of these; all at once would leave nothing that can be served.
TOPICS = (
    "cordon",
    "host",
    "spread",
    "isolate",
    "pin",
    "priority",
    "bounds",
    "twins",
    "pair",
    "max",
    "avoid",
    "near",
    "limits",
)
FULL = "full"  # enough demand that GPUs must be shared well


def random_problem(seed: int) -> PlacementProblem:
    """One to three nodes, at most four GPUs, one to three deployments; a third with a state."""
    dice = random.Random(seed)
    about = frozenset(dice.sample(TOPICS, dice.randint(1, 5)))
    if dice.random() < 0.5:
        about |= {FULL}
    machines = _fleet(dice, about)
    names = NAMES[: dice.choice((1, 2, 2, 3, 3))]
    ways = {name: _candidates(dice, name, machines) for name in names}
    deployments = tuple(_deployment(dice, about, name, ways[name], machines) for name in names)
    if "avoid" in about and len(deployments) > 1:
        deployments = _avoiding(dice, deployments)
    if "near" in about and len(deployments) > 1:
        first, second, *rest = dice.sample(deployments, len(deployments))
        first = replace(first, near=(second.name,))
        deployments = tuple(sorted((first, second, *rest), key=lambda d: d.name))
    problem = PlacementProblem(machines, deployments, ways)
    return replace(problem, current=_state(dice, problem)) if dice.random() < 0.4 else problem


def _fleet(dice: random.Random, about: frozenset[str]) -> Fleet:
    products = dice.choice(((SLICED,), (PLAIN,), (SLICED, PLAIN), (SLICED, PLAIN), (LARGE, PLAIN)))
    priced = dice.random() < 0.85
    nodes: list[Node] = []
    left = 3 if LARGE in products else 4
    for index in range(dice.choice((1, 2, 3, 3))):
        if not left:
            break
        count = dice.randint(1, min(left, 2 if index else 3))
        left -= count
        product = products[index % len(products)]
        nodes.append(_node(dice, about, f"n{index}", product, count, priced))
    if len(nodes) > 1 and "twins" in about:  # two nodes that differ in nothing but the name
        twin = nodes[0] if nodes[0].gpus <= left + nodes[-1].gpus else replace(nodes[0], gpus=1)
        nodes[-1] = replace(twin, name=nodes[-1].name, devices=())
    return fleet(*nodes, limits=_limits(dice, nodes) if "limits" in about else Limits())


def _limits(dice: random.Random, nodes: list[Node]) -> Limits:
    """Ceilings that a full fleet does not keep."""
    price = sum(n.gpus * (n.price_micros_per_gpu_hour or 1_000_000) for n in nodes)
    return Limits(
        price_micros_per_hour=dice.choice((None, int(price * 0.6), int(price * 0.8))),
        rack_power_w=dice.choice((None, 300, 700)),
    )


def _avoiding(dice: random.Random, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """One or two of them avoid another."""
    names = [d.name for d in deployments]
    shy = dice.sample(names, dice.choice((1, 2)))
    others = {name: dice.choice([n for n in names if n != name]) for name in shy}
    return tuple(replace(d, avoid=(others[d.name],)) if d.name in shy else d for d in deployments)


def _node(
    dice: random.Random, about: frozenset[str], name: str, product: Gpu, count: int, priced: bool
) -> Node:
    modes = ("mig whole", "mig", "mig whole shared") if product.mig else ("whole shared", "shared")
    cordoned = [i for i in range(count) if "cordon" in about and dice.random() < 0.3]
    host = "host" in about
    return node(
        name,
        product,
        count,
        price=dice.choice((1.0, 1.5, 2.0, 3.25)) if priced else None,
        sharing=dice.choice((modes[0], modes[0], modes[0], *modes)),
        rack=dice.choice((None, "r0", "r0", "r1")),
        nvlink_domain=dice.choice(("pair", "none")) if "pair" in about else "node",
        cordoned="cordon" in about and dice.random() < 0.15,
        devices=tuple(Device(i, cordoned=True) for i in cordoned),
        cpu_cores=dice.choice((None, 4, 8)) if host else None,
        memory_gib=dice.choice((None, 32, 64)) if host else None,
    )


def _candidates(dice: random.Random, name: str, machines: Fleet) -> tuple[Candidate, ...]:
    menu = [one for product in machines.products() for one in _menu(dice, name, product, machines)]
    picked = dice.sample(menu, min(len(menu), dice.randint(1, 3)))
    settings = ("bf16", "fp8", "int4")
    found = []
    for one, precision in zip(picked, settings, strict=False):
        config = replace(one.config, engine="vllm", precision=precision)
        found.append(replace(one, config=config, load_mib=dice.choice((512, 1024, 4096, 9000))))
    return tuple(found)


def _menu(dice: random.Random, name: str, product: Gpu, machines: Fleet) -> Iterator[Candidate]:
    def rate(size: float) -> float:
        return round(size * dice.uniform(0.7, 1.3), 2)

    for profile in PROFILES.get(product.name, ()):
        yield candidate(name, product, profile=profile, rps=rate(int(profile[0])))
    yield candidate(name, product, rps=rate(5))
    if any(one.gpu == product and one.gpus > 1 for one in machines.nodes):
        yield candidate(name, product, gpus=2, rps=rate(9))
    memory = round(product.room.memory_mib / 1024 * dice.choice((0.3, 0.45, 0.6)), 1)
    bandwidth = product.room.bandwidth_mbs / 1000 * dice.choice((0.1, 0.35, 0.55))
    share = use(memory, int(bandwidth), dice.choice((0.1, 0.3, 0.6)))
    yield candidate(name, product, share=share, rps=rate(2))


def _deployment(
    dice: random.Random,
    about: frozenset[str],
    name: str,
    ways: tuple[Candidate, ...],
    machines: Fleet,
) -> Deployment:
    def maybe(topic: str, *values: Any) -> Any:
        """The first value, or any of them where the problem is about this."""
        return dice.choice(values) if topic in about else values[0]

    counted = dice.random() < 0.25
    copies = (2, 2, 3, 4) if FULL in about else (1, 1, 1, 2, 3)
    rates = [way.capacity_mrps or 0 for way in ways]
    asked = min(rates) * dice.choice(copies) * dice.uniform(0.5, 1.0) / 1000
    return deployment(
        name,
        rps=None if counted else max(0.1, round(asked, 2)),
        replicas=dice.choice(copies[:3]) if counted else maybe("bounds", 0, 1, 2),
        max_replicas=None if counted else maybe("max", None, 1, 2, 3),
        tenant=dice.choice(("acme", "globex")),
        priority=maybe("priority", 0, 0, 10),
        spread_node=maybe("spread", None, None, 1, 2),
        spread_rack=maybe("spread", None, None, 1, 2),
        isolate=maybe("isolate", "none", "none", "tenant", "gpu", "node"),
        pin=_pin(dice, machines) if "pin" in about else (),
        cpu_cores=maybe("host", 0, 2, 3),
        memory_gib=maybe("host", 0, 16, 24),
    )


def _pin(dice: random.Random, machines: Fleet) -> tuple[str, ...]:
    if dice.random() < 0.4:
        return ()
    ids = [gpu.id for gpu in machines.gpus()]
    places = [one.name for one in machines.nodes] + ids
    return tuple(sorted(dice.sample(places, min(len(places), dice.choice((1, 2))))))


def _state(dice: random.Random, problem: PlacementProblem) -> Placement:
    """Up to four replicas that really could run, whatever the other rules say, and empty instances.

    Some run on a GPU that the fleet lost, or belong to a deployment that is gone.
    """
    gpus = list(problem.fleet.gpus())
    layouts: dict[str, list[PlacedProfile]] = {g.id: [] for g in gpus}
    used: dict[str, Sharing] = {}
    replicas: list[Replica] = []
    ways = [way for ways in problem.candidates.values() for way in ways]
    for number in range(dice.randint(1, 4)):
        way = dice.choice(ways)
        spot = dice.choice(gpus)
        found = _start(dice, way, spot.gpu, layouts[spot.id])
        free = spot.id not in used and not layouts[spot.id]
        mode = way.shape.sharing
        if way.gpu != spot.gpu.name or mode not in spot.node.sharing or way.shape.gpus > 1:
            continue
        if mode is Sharing.MIG and found and used.get(spot.id, mode) is mode:
            layouts[spot.id].append(found)
        elif mode is Sharing.MIG or not free:
            continue
        used[spot.id] = mode
        name = way.deployment
        replica = Replica(f"{name}/{number}", name, (spot.id,), found, way.shape.share, way.config)
        replicas.append(replica)
    empty = [e for g in gpus if used.get(g.id, Sharing.MIG) is Sharing.MIG
             for e in _empty(dice, g.id, g.gpu, layouts[g.id])]  # fmt: skip
    if dice.random() < 0.2:
        replicas.append(Replica("gone/0", "gone", ("lost/0",), None, None, ReplicaConfig()))
    return Placement(tuple(sorted(replicas, key=lambda r: r.id)), tuple(empty))


def _start(
    dice: random.Random, way: Candidate, product: Gpu, layout: list[PlacedProfile]
) -> PlacedProfile | None:
    profile = product.mig.profile(way.shape.profile or "") if product.mig else None
    places = [PlacedProfile(start, profile.name) for start in profile.starts] if profile else []
    legal = [place for place in places if not layout_faults(product, [*layout, place])]
    return dice.choice(legal) if legal else None


def _empty(
    dice: random.Random, id: str, product: Gpu, layout: list[PlacedProfile]
) -> Iterator[Instance]:
    for name in PROFILES.get(product.name, ()) if dice.random() < 0.5 else ():
        profile = product.mig.profile(name) if product.mig else None
        starts = list(profile.starts) if profile else []
        place = PlacedProfile(dice.choice(starts), name)
        if dice.random() < 0.5 and not layout_faults(product, [*layout, place]):
            layout.append(place)
            yield Instance(id, place)


def traits(problem: PlacementProblem) -> set[str]:
    """What is in a problem, in words: rules that say something, kinds of room, a state."""
    found = {"state"} if problem.current else set()
    for one in problem.fleet.nodes:
        found |= {"cordon"} if one.cordoned or one.devices else set()
        found |= {"host_cpu"} if one.cpu_millicores else set()
        found |= {"host_memory"} if one.host_memory_mib else set()
        found |= {"pair"} if one.nvlink_domain == "pair" and one.gpus > 1 else set()
    found |= {"price limit"} if problem.fleet.limits.price_micros_per_hour else set()
    found |= {"power limit"} if problem.fleet.limits.rack_power_w else set()
    found |= {"near"} if any(d.near for d in problem.deployments) else set()
    found |= {"avoid"} if any(d.avoid for d in problem.deployments) else set()
    found |= {"free of charge"} if not problem.fleet.priced else set()
    for d in problem.deployments:
        found |= {f"isolate {d.isolate}"}
        found |= {"spread node"} if d.spread_node else set()
        found |= {"spread rack"} if d.spread_rack else set()
        found |= {"pin GPU" if "/" in name else "pin node" for name in d.pin}
        found |= {"rate" if d.demand else "count"}
        found |= {"max"} if d.max_replicas else set()
        found |= {"rate and min"} if d.demand and d.min_replicas else set()
    for ways in problem.candidates.values():
        found |= {str(way.shape.sharing) for way in ways}
        found |= {"group"} if any(way.shape.gpus > 1 for way in ways) else set()
    found |= {"priorities"} if len({d.priority for d in problem.deployments}) > 1 else set()
    return found


RULES = ("fixed", "survive", "never", "reserve")


def ruled_problem(seed: int, *rules: str) -> PlacementProblem:
    """A random problem with rules added that make others impossible: may be infeasible."""
    problem, dice = random_problem(seed), random.Random(f"{seed} {rules}")
    if "never" in rules and problem.current is None:
        problem = replace(problem, current=_state(dice, problem))
    if "fixed" in rules:
        nodes = tuple(_fixed(dice, one) for one in problem.fleet.nodes)
        problem = replace(problem, fleet=replace(problem.fleet, nodes=nodes))
    if "reserve" in rules:
        kept = tuple(_reserve(dice, problem.fleet) for _ in range(dice.choice((1, 1, 2))))
        problem = replace(problem, fleet=replace(problem.fleet, reserve=kept))
    deployments = problem.deployments
    if "survive" in rules:
        deployments = tuple(_surviving(dice, problem, d) for d in deployments)
    if "never" in rules:
        deployments = tuple(
            replace(d, disturb=dice.choice(("never", "never", "avoid", "allowed")))
            for d in deployments
        )
    return replace(problem, deployments=deployments)


def _surviving(dice: random.Random, problem: PlacementProblem, d: Deployment) -> Deployment:
    """Sometimes one that outlives a loss, of so little demand that it may."""
    if d.demand is None or dice.random() < 0.5:
        return d
    rates = [way.capacity_mrps or 0 for way in problem.candidates[d.name]]
    demand = replace(d.demand, rate_mrps=max(1, int(min(rates) * dice.choice((0.6, 1, 1.4)))))
    return replace(d, demand=demand, survive=dice.choice(("node", "node", "rack", "zone")))


def _fixed(dice: random.Random, one: Node) -> Node:
    """A node whose MIG layouts may not change; some are given, others are what stands today."""
    if one.gpu.mig is None or dice.random() < 0.2:
        return one
    devices = {device.index: device for device in one.devices}
    for index in range(one.gpus):
        if dice.random() < 0.7:
            layout: list[PlacedProfile] = []
            for _ in range(3):
                name = dice.choice(PROFILES[one.gpu.name])
                profile = one.gpu.mig.profile(name)
                place = PlacedProfile(dice.choice(profile.starts if profile else (0,)), name)
                if not layout_faults(one.gpu, [*layout, place]):
                    layout.append(place)
            device = devices.get(index, Device(index))
            devices[index] = replace(device, layout=tuple(sorted(layout)))
    return replace(one, layouts_fixed=True, devices=tuple(devices.values()))


def _reserve(dice: random.Random, machines: Fleet) -> Reserve:
    """A slice or GPUs to be kept free."""
    product = dice.choice(machines.products())
    labels = dice.choice(((), (), (("pool", "prod"),)))
    if product.mig is not None and dice.random() < 0.7:
        return Reserve(dice.choice((1, 1, 2)), dice.choice(PROFILES[product.name]), labels=labels)
    gpu_name = dice.choice((None, product.name))
    return Reserve(1, gpus=dice.choice((1, 1, 2)), gpu=gpu_name, labels=labels)
