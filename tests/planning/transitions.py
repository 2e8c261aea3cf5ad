"""Random pairs of legal placements on small fleets, for tests of the order of steps."""

import random
from dataclasses import replace

from builders import candidate, deployment, fleet, gpu, node, place, problem, replica, use
from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.planning.places import places
from optimizer.planning.rooms import Rooms

SLICED = gpu("sliced", mig="std8")
PLAIN = gpu("plain", memory_gib=48, bandwidth_gbs=864)
CONFIG = ReplicaConfig(engine="vllm", precision="bf16")
FASTER = replace(CONFIG, precision="fp8")


def transition(seed: int, fill: float = 0.8) -> tuple[PlacementProblem, Placement]:
    """A problem with a current placement, and another legal placement of much the same replicas."""
    dice = random.Random(seed)
    machines = fleet(
        node("a", SLICED, dice.randint(1, 3), rack="r1"),
        node("b", SLICED, dice.randint(1, 3), rack="r2", cpu_cores=dice.choice((None, 12))),
        node("c", PLAIN, dice.randint(2, 4), rack="r2"),
    )
    names = [f"d{i}" for i in range(dice.randint(2, 6))]
    ways = {name: _ways(dice, name) for name in names}
    deployments = [
        replace(
            deployment(name, rps=dice.choice((1, 3, 8)), cpu_cores=dice.choice((0, 0, 2))),
            tenant=dice.choice(("acme", "globex")),
            isolate=dice.choice(("none", "none", "none", "tenant")),
            spread_node=dice.choice((None, None, 3)),
        )
        for name in names
    ]
    asked = problem(machines, deployments, [way for name in names for way in ways[name]])
    now = _fill(dice, asked, names, fill)
    later = _fill(dice, asked, names, fill)
    return replace(asked, current=now), later


def _ways(dice: random.Random, name: str) -> list[Candidate]:
    every = [
        candidate(name, SLICED, profile="1g.10gb", rps=1, config=CONFIG, load_gib=1),
        candidate(name, SLICED, profile="2g.20gb", rps=2, config=CONFIG, load_gib=4),
        candidate(name, SLICED, profile="3g.40gb", rps=3, config=CONFIG, load_gib=4),
        candidate(name, SLICED, profile="3g.40gb", rps=4, config=FASTER, load_gib=2),
        candidate(name, SLICED, gpus=1, rps=7, config=CONFIG, load_gib=4),
        candidate(name, PLAIN, gpus=1, rps=5, config=CONFIG, load_gib=4),
        candidate(name, PLAIN, gpus=2, rps=9, config=CONFIG, load_gib=8),
        candidate(name, PLAIN, share=use(15, 200, 0.3), rps=1.5, config=CONFIG, load_gib=4),
    ]
    return dice.sample(every, dice.randint(2, 4))


def _fill(dice: random.Random, asked: PlacementProblem, names: list[str], fill: float) -> Placement:
    """Replicas at random free places until the dice say enough."""
    rooms = Rooms(asked, None, {})
    found: list[Replica] = []
    counts = dict.fromkeys(names, 0)
    for _ in range(40):
        name = dice.choice(names)
        way = dice.choice(asked.candidates[name])
        like = Replica(
            f"{name}/{counts[name]}",
            name,
            ("?",) * way.shape.gpus,
            replica("x/0", "?", mig=f"{way.shape.profile}@0").mig if way.shape.profile else None,
            way.shape.share,
            way.config,
        )
        free = list(places(asked.fleet.gpus(), rooms, like, way.gpu))
        if not free or dice.random() > fill:
            continue
        chosen = dice.choice(free)
        rooms.prepare(chosen)
        rooms.take(chosen)
        counts[name] += 1
        found.append(chosen)
    return place(*sorted(found, key=lambda r: r.id))
