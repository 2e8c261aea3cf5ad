"""Replay: random changes of place, one after another, break no floor and no room.

Permuted full layouts, swaps of tensor-parallel groups and mixed fleets, with and without spare
room. ``FLEETSLICE_REPLAYS=1000 pytest tests/planning/test_planning_replay.py`` plays more.
"""

import os
import random
from collections import Counter

import pytest

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import Pace, moves, order
from optimizer.verify import replay
from scripts.bench.rebalance_fleets import relayout
from transitions import transition

CASES = int(os.environ.get("FLEETSLICE_REPLAYS", "100"))
PLAIN = gpu("plain")


def full_layouts(seed: int) -> tuple[PlacementProblem, Placement]:
    """Full layouts in rings, with no, one or two spare GPUs."""
    dice = random.Random(seed)
    gpus, fill = dice.choice((6, 12, 18)), dice.choice((0.9, 1.0))
    return relayout(gpus, spares=dice.randint(0, 2), fill=fill, seed=seed)


def groups(seed: int) -> tuple[PlacementProblem, Placement]:
    """Groups of 8, 4, 2 and 1 on full nodes change places; sometimes there is a free node."""
    dice = random.Random(seed)
    count = dice.randint(2, 4)
    now: list[tuple[int, int, int]] = []  # node, first GPU, GPUs
    for number in range(count):
        first = 0
        while first < 8:
            size = dice.choice([s for s in (1, 2, 4, 8) if s <= 8 - first and first % s == 0])
            now.append((number, first, size))
            first += size
    seats: dict[int, list[tuple[int, int]]] = {}
    for number, first, size in now:
        seats.setdefault(size, []).append((number, first))
    for some in seats.values():
        dice.shuffle(some)
    before, after = [], []
    sizes: dict[str, int] = {}
    for i, (number, first, size) in enumerate(now):
        name = f"d{i // 2}-{size}"  # up to two replicas each, so that a floor may have room
        sizes[name] = size
        to_node, to_first = seats[size].pop()
        before.append(replica(f"{name}/{i % 2}", *(f"n{number}/{first + k}" for k in range(size))))
        after.append(
            replica(f"{name}/{i % 2}", *(f"n{to_node}/{to_first + k}" for k in range(size)))
        )
    asked = [deployment(name, rps=dice.choice((1, 2))) for name in sizes]
    ways = [
        candidate(name, PLAIN, gpus=size, rps=1, load_gib=dice.randint(1, 40))
        for name, size in sizes.items()
    ]
    spare = [node("spare", PLAIN, 8)] * dice.randint(0, 1)
    where = problem(
        fleet(*(node(f"n{i}", PLAIN, 8) for i in range(count)), *spare),
        asked,
        ways,
        place(*sorted(before, key=lambda r: r.id)),
    )
    return where, place(*sorted(after, key=lambda r: r.id))


KINDS = {"full layouts": full_layouts, "groups": groups, "mixed": transition}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_breaks_on_the_way(kind: str) -> None:
    told: Counter[str] = Counter()
    for seed in range(CASES // len(KINDS)):
        where, later = KINDS[kind](seed)
        changes = moves(where, later)
        window = (None, 400)[seed % 2]
        pace = Pace(1 + seed % 3, (None, 2)[seed % 2], window, whole_gpus=seed % 5 == 0)
        found = order(where, later, changes, pace)
        assert where.current is not None
        broken = replay(where, where.current, found.steps, later, left=found.left)
        assert broken == (), f"{kind}, seed {seed}: {broken[0]}"
        assert len(found.notes) == len(found.left)
        if window is not None:
            assert all(s.start_s + s.seconds <= window for s in found.steps)
        told["done"] += len(changes) - len(found.left)
        told["left"] += len(found.left)
    assert told["done"] > 0
    assert told["left"] > 0
