"""Random problems small enough for brute force, in which deployments may run as pipelines.

``staged_problem`` adds pipelines to those of ``randomproblems``; in ``wide_problem`` nodes are so
small that most pipelines lie in several, and rules look at nodes and racks.
"""

import random
from dataclasses import replace

from builders import candidate, deployment, fleet, node
from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.fleet import Fleet, Node, Reserve, Sharing
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from randomproblems import PLAIN, SLICED, random_problem, ruled_problem

SPLITS = ((1, 2), (1, 2), (2, 2), (1, 3), (1, 4))  # GPUs of a stage, stages


def staged_problem(seed: int, *rules: str) -> PlacementProblem:
    """A random problem; most deployments may be pipelines, some nodes have a slow network."""
    problem = ruled_problem(seed, *rules) if rules else random_problem(seed)
    dice = random.Random(f"stages {seed}")
    networks = dice.random() < 0.6
    nodes = tuple(_networked(dice, one, networks) for one in problem.fleet.nodes)
    problem = replace(problem, fleet=replace(problem.fleet, nodes=nodes))
    ways = {
        d.name: _with_pipelines(dice, d.name, problem.candidates[d.name], problem.fleet)
        for d in problem.deployments
    }
    problem = replace(problem, candidates=ways)
    return replace(problem, current=_running(dice, problem)) if problem.current else problem


def _networked(dice: random.Random, one: Node, slow: bool) -> Node:
    """A node that gives out whole GPUs, a rack of few, perhaps with a slow network."""
    sharing = tuple(dict.fromkeys((*one.sharing, Sharing.WHOLE)))
    network = dice.choice((None, 0.1, 0.15, 0.2, 0.3)) if slow else None
    return replace(one, sharing=sharing, network_gbs=network)


def _with_pipelines(
    dice: random.Random, name: str, ways: tuple[Candidate, ...], machines: Fleet
) -> tuple[Candidate, ...]:
    products = [p for p in machines.products() if _gpus(machines, p) > 1]
    if not products or dice.random() < 0.2:
        return ways
    product = dice.choice(products)
    block, stages = dice.choice(SPLITS)
    if block * stages > _gpus(machines, product):
        block, stages = 1, 2
    way = candidate(
        name,
        product,
        gpus=block * stages,
        rps=round(4.0 * block * stages * dice.uniform(0.7, 1.3), 2),
        load_gib=dice.choice((1, 4)),
        network_mbs=dice.choice((0, 60, 100, 150)),
        config=ReplicaConfig("vllm", tensor_parallel=block, pipeline_parallel=stages),
    )
    kept = ways if dice.random() < 0.5 else ways[:1]
    return (way,) if dice.random() < 0.4 else (*kept, way)


def _gpus(machines: Fleet, product: Gpu) -> int:
    return sum(node.gpus for node in machines.nodes if node.gpu == product)


def _running(dice: random.Random, problem: PlacementProblem) -> Placement | None:
    """What runs, and on GPUs that nobody holds perhaps a pipeline."""
    current = problem.current
    assert current is not None
    busy = {g for r in current.replicas for g in r.gpus} | {i.gpu for i in current.instances}
    for ways in problem.candidates.values():
        for way in ways:
            free = [g for g in problem.fleet.gpus() if g.gpu.name == way.gpu and g.id not in busy]
            if way.shape.stages == 1 or len(free) < way.shape.gpus or dice.random() < 0.3:
                continue
            gpus = tuple(g.id for g in dice.sample(free, way.shape.gpus))
            busy |= set(gpus)
            number = 10 + len(current.replicas)
            one = Replica(f"{way.deployment}/{number}", way.deployment, gpus, config=way.config)
            replicas = tuple(sorted((*current.replicas, one), key=lambda r: r.id))
            current = replace(current, replicas=replicas)
    return current


def wide_problem(seed: int) -> PlacementProblem:
    """Two to four nodes of one or two GPUs, two deployments that mostly run as pipelines."""
    dice = random.Random(f"wide {seed}")
    product = dice.choice((PLAIN, PLAIN, SLICED))
    networks, pairs = dice.random() < 0.5, dice.random() < 0.2
    nodes = tuple(
        node(
            f"n{index}",
            product,
            dice.choice((1, 1, 2)),
            price=dice.choice((1.0, 1.0, 1.5)),
            rack=dice.choice((None, "r0", "r0", "r1")),
            nvlink_domain="pair" if pairs else "node",
            network_gbs=dice.choice((None, 0.1, 0.15, 0.2, 0.3)) if networks else None,
            cordoned=dice.random() < 0.05,
            cpu_cores=dice.choice((None, 4, 8)),
        )
        for index in range(dice.choice((2, 3, 3, 4)))
    )
    kept = (Reserve(1, gpus=1),) if dice.random() < 0.15 else ()
    machines = fleet(*nodes, reserve=kept)
    names = ("chat", "embed")[: dice.choice((1, 2, 2))]
    ways: dict[str, tuple[Candidate, ...]] = {}
    for name in names:
        single = candidate(name, product, rps=round(5 * dice.uniform(0.7, 1.3), 2))
        ways[name] = _with_pipelines(dice, name, (single,), machines)
    deployments = tuple(_asking(dice, name, ways[name], machines) for name in names)
    if len(names) == 2 and dice.random() < 0.25:
        deployments = (replace(deployments[0], near=("embed",)), deployments[1])
    problem = PlacementProblem(machines, deployments, ways)
    if dice.random() < 0.4:
        problem = replace(problem, current=_running(dice, replace(problem, current=Placement())))
    return problem


def _asking(
    dice: random.Random, name: str, ways: tuple[Candidate, ...], machines: Fleet
) -> Deployment:
    def maybe(chance: float, *values: object) -> object:
        return dice.choice(values) if dice.random() < chance else None

    rates = [way.capacity_mrps or 0 for way in ways]
    survive = maybe(0.3, "node", "node", "rack")
    asked = min(rates) / 1000 * dice.choice((0.6, 0.9) if survive else (0.9, 1.8, 2.7))
    ids = [one.name for one in machines.nodes] + [gpu.id for gpu in machines.gpus()]
    return deployment(
        name,
        rps=round(max(0.1, asked), 2),
        tenant=dice.choice(("acme", "globex")),
        priority=dice.choice((0, 0, 10)),
        spread_node=maybe(0.3, 1, 2),
        spread_rack=maybe(0.3, 1, 2),
        survive=survive,
        isolate=dice.choice(("none", "none", "none", "tenant", "gpu", "node")),
        pin=tuple(dice.sample(ids, min(len(ids), 4))) if dice.random() < 0.15 else (),
        max_replicas=maybe(0.2, 1, 2),
        cpu_cores=dice.choice((0, 0, 2, 3)),
        disturb=dice.choice(("allowed", "allowed", "avoid", "never")),
    )
