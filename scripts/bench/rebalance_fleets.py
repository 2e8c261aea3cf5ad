"""Fragmented MIG fleets for the rebalancing benchmarks: problems of our own domain.

Family M2: A100-80GB, profiles drawn alike until the next would pass ``load`` of all compute slices,
each at a random legal place. M4: also unequal weights, spread, pinned and undisturbed deployments.
"""

import random
from collections.abc import Sequence
from functools import lru_cache

from optimizer.domain.config import Candidate, ReplicaConfig, Shape
from optimizer.domain.fleet import Fleet, Node, Sharing
from optimizer.domain.gpu import Gpu, MigProfile, MigTable, PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica, replica_order
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment

GIB = 1024
# Compute slices, memory slices, starts, most (NVIDIA MIG User Guide, A100-80GB).
PROFILES = {
    "1g.10gb": (1, 1, (0, 1, 2, 3, 4, 5, 6), 7),
    "1g.20gb": (1, 2, (0, 2, 4, 6), 4),
    "2g.20gb": (2, 2, (0, 2, 4), 3),
    "3g.40gb": (3, 4, (0, 4), 2),
    "4g.40gb": (4, 4, (0,), 1),
    "7g.80gb": (7, 8, (0,), 1),
}
NAMES = tuple(PROFILES)
GIB_OF = {"1g": (2, 8), "2g": (6, 16), "3g": (14, 34), "4g": (14, 34), "7g": (30, 70)}
GPUS_PER_NODE = 8


def a100() -> Gpu:
    """An A100-80GB, as far as these problems look at it."""
    profiles = tuple(
        MigProfile(name, compute, memory, starts, most, memory_mib=memory * 10 * GIB)
        for name, (compute, memory, starts, most) in PROFILES.items()
    )
    return Gpu(
        "a100-80gb-sxm", "nvidia", "ampere", "8.0", 80.0, 2039.0,
        memory_mib_usable=80 * GIB, mig=MigTable(7, 8, profiles),
    )  # fmt: skip


def fragmented(
    gpus: int, *, load: float = 0.6, seed: int = 1, deployments: int = 0, rules: bool = False
) -> PlacementProblem:
    """A fleet of ``gpus`` with about ``load`` of its compute slices in use, placed at random.

    Without ``deployments`` there is one for each profile and every load is 1 GiB; with them each
    has a profile and weights of its own, and with ``rules`` some are spread, pinned or held.
    """
    dice = random.Random(seed)
    product = a100()
    names = [f"d{i:04d}" for i in range(deployments)] or [n.replace(".", "-") for n in NAMES]
    profile_of = {
        name: dice.choice(NAMES) if deployments else NAMES[i] for i, name in enumerate(names)
    }
    placed = _scatter(dice, product, gpus, _drawn(dice, names, profile_of, gpus, load))
    nodes = [f"n{i:05d}" for i in range(-(-gpus // GPUS_PER_NODE))]
    replicas: list[Replica] = []
    counts = dict.fromkeys(names, 0)
    for gpu, name, slot in placed:
        id = f"{nodes[gpu // GPUS_PER_NODE]}/{gpu % GPUS_PER_NODE}"
        replicas.append(Replica(f"{name}/{counts[name]}", name, (id,), slot, None, ReplicaConfig()))
        counts[name] += 1
    ways = {
        name: (
            Candidate(
                name,
                product.name,
                Shape(Sharing.MIG, 1, profile_of[name]),
                Use(),
                load_mib=GIB * (dice.randint(*GIB_OF[profile_of[name][:2]]) if deployments else 1),
            ),
        )
        for name in names
    }
    machines = tuple(
        Node(
            name,
            product,
            min(GPUS_PER_NODE, gpus - i * GPUS_PER_NODE),
            rack=f"r{i // 8:04d}",
            sharing=(Sharing.MIG, Sharing.WHOLE),
        )
        for i, name in enumerate(nodes)
    )
    asked = tuple(_deployment(dice, name, counts[name], replicas, rules) for name in names)
    replicas.sort(key=lambda r: replica_order(r.id))
    return PlacementProblem(Fleet(f"m2-{gpus}", machines), asked, ways, Placement(tuple(replicas)))


def _drawn(
    dice: random.Random, names: Sequence[str], profile_of: dict[str, str], gpus: int, load: float
) -> list[tuple[str, str]]:
    drawn, used = [], 0
    while True:
        name = dice.choice(names)
        compute = PROFILES[profile_of[name]][0]
        if used + compute > load * 7 * gpus:
            return drawn
        used += compute
        drawn.append((name, profile_of[name]))


def _scatter(
    dice: random.Random, product: Gpu, gpus: int, drawn: Sequence[tuple[str, str]]
) -> list[tuple[int, str, PlacedProfile]]:
    """Each at a random legal place of a random GPU; what finds none in 1,000 tries is left out."""
    assert product.mig is not None
    layouts: list[list[PlacedProfile]] = [[] for _ in range(gpus)]
    placed = []
    for name, profile in drawn:
        for _ in range(1000):
            gpu = dice.randrange(gpus)
            slot = PlacedProfile(dice.choice(PROFILES[profile][2]), profile)
            if not product.mig.faults([*layouts[gpu], slot]):
                layouts[gpu].append(slot)
                placed.append((gpu, name, slot))
                break
    return placed


def _deployment(
    dice: random.Random, name: str, count: int, replicas: Sequence[Replica], rules: bool
) -> Deployment:
    """As many replicas as run; some of the rules that its present places keep."""
    if not rules:
        return Deployment(name, min_replicas=count)
    mine = [r for r in replicas if r.deployment == name]
    most = max((sum(r.nodes == s.nodes for r in mine) for s in mine), default=1)
    kind = dice.random()
    return Deployment(
        name,
        min_replicas=count,
        spread_node=max(2, most) if kind < 0.5 else None,
        pin=tuple(sorted({r.nodes[0] for r in mine})) if 0.5 <= kind < 0.54 else (),
        disturb="never" if 0.54 <= kind < 0.58 else "avoid" if 0.58 <= kind < 0.62 else "allowed",
    )


@lru_cache(maxsize=1)
def _full_layouts() -> list[tuple[PlacedProfile, ...]]:
    """The layouts of an A100 to which nothing can be added."""
    table = a100().mig
    assert table is not None
    every = list(table.layouts(NAMES))
    return [a for a in every if not any(set(a) < set(b) for b in every)]


def relayout(
    gpus: int, *, spares: int = 2, fill: float = 0.97, seed: int = 1
) -> tuple[PlacementProblem, Placement]:
    """Full layouts that change places in rings of six GPUs, half of them; ``spares`` are empty.

    Every replica of a ring goes to a random instance of its profile on the next GPU of the ring or
    any other: the moves wait for each other in circles.
    """
    dice = random.Random(seed)
    product = a100()
    layouts = [dice.choice(_full_layouts()) for _ in range(gpus)]
    now = [
        (gpu, slot) for gpu, layout in enumerate(layouts) for slot in layout if dice.random() < fill
    ]
    target = dict(enumerate(now))
    ring_of = list(range(gpus))
    dice.shuffle(ring_of)
    for first in range(0, gpus, 6):
        ring = ring_of[first : first + 6]
        if len(ring) < 2 or dice.random() < 0.5:
            continue
        seats: dict[str, list[tuple[int, PlacedProfile]]] = {}
        for gpu, following in zip(ring, [*ring[1:], ring[0]], strict=True):
            for slot in layouts[gpu]:
                seats.setdefault(slot.profile, []).append((following, slot))
        for number, (gpu, slot) in enumerate(now):
            if gpu in ring:
                free = seats[slot.profile]
                target[number] = free.pop(dice.randrange(len(free)))
    return _relaid(product, gpus + spares, now, target, dice)


def _relaid(
    product: Gpu,
    gpus: int,
    now: Sequence[tuple[int, PlacedProfile]],
    target: dict[int, tuple[int, PlacedProfile]],
    dice: random.Random,
) -> tuple[PlacementProblem, Placement]:
    nodes = [f"n{i:05d}" for i in range(-(-gpus // GPUS_PER_NODE))]

    def replica(number: int, gpu: int, slot: PlacedProfile) -> Replica:
        id = f"{nodes[gpu // GPUS_PER_NODE]}/{gpu % GPUS_PER_NODE}"
        name = f"d{number:05d}"
        return Replica(f"{name}/0", name, (id,), slot, None, ReplicaConfig())

    before = [replica(number, gpu, slot) for number, (gpu, slot) in enumerate(now)]
    after = [replica(number, *target[number]) for number in range(len(now))]
    ways = {
        one.deployment: (
            Candidate(
                one.deployment,
                product.name,
                Shape(Sharing.MIG, 1, slot.profile),
                Use(),
                load_mib=GIB * dice.randint(2, 40),
            ),
        )
        for one, (_, slot) in zip(before, now, strict=True)
    }
    machines = tuple(
        Node(name, product, min(GPUS_PER_NODE, gpus - i * GPUS_PER_NODE), sharing=(Sharing.MIG,))
        for i, name in enumerate(nodes)
    )
    problem = PlacementProblem(
        Fleet(f"relayout-{gpus}", machines),
        tuple(Deployment(one.deployment) for one in before),
        ways,
        Placement(tuple(before)),
    )
    return problem, Placement(tuple(after))
