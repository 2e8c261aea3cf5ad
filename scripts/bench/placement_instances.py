"""Seeded fleets and deployments of any size, as placement problems.

Four products in racks of four nodes of eight GPUs; language models of public sizes, offered in MIG
slices, on whole GPUs, in tensor-parallel groups and as shares of a GPU. What a replica serves
follows a roofline (weights read once a step, KV cache of the batch, a prefill that computes), so
slices and groups are worth what they are worth; the numbers are for comparing solvers, not GPUs.
``load`` is the part of the largest demand that a linear program could serve: 1 is a full fleet.
What is kept free, and a replica more for whoever outlives a loss, is taken from the fleet before.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ortools.linear_solver import pywraplp

from optimizer.documents import catalogue
from optimizer.domain.config import Candidate, ReplicaConfig, Shape
from optimizer.domain.fleet import Fleet, Node, Reserve, Sharing
from optimizer.domain.gpu import Gpu, Use
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.domain.workload import Demand, Deployment

PER_NODE, NODES_PER_RACK = 8, 4
# Product, part of the fleet, price per GPU-hour in micros, dense bf16 TFLOP/s, serves fp8.
PRODUCTS = (
    ("a100-80gb-sxm", 0.30, 1_800_000, 312.0, False),
    ("h100-80gb-sxm", 0.35, 3_000_000, 989.0, True),
    ("h200-141gb-sxm", 0.10, 3_800_000, 989.0, True),
    ("l40s", 0.25, 1_000_000, 362.0, True),
)
# Billions of parameters: all, active in one token; GB of KV cache per 1,000 tokens; how common.
MODELS = (
    (1.2, 1.2, 0.03, 6),
    (3.2, 3.2, 0.11, 7),
    (4.0, 4.0, 0.14, 5),
    (7.6, 7.6, 0.06, 10),
    (8.0, 8.0, 0.13, 14),
    (12.2, 12.2, 0.15, 6),
    (14.8, 14.8, 0.16, 8),
    (27.4, 27.4, 0.25, 5),
    (30.5, 3.3, 0.10, 7),
    (32.8, 32.8, 0.26, 7),
    (70.6, 70.6, 0.32, 9),
    (72.7, 72.7, 0.32, 4),
    (117.0, 5.1, 0.07, 5),
    (235.0, 22.0, 0.19, 2),
    (405.0, 405.0, 0.52, 1),
    (671.0, 37.0, 0.07, 2),
)
# Thousands of tokens of context, output tokens, input tokens.
TRAFFIC = ((1, 150, 700), (2, 250, 1500), (4, 300, 3000), (8, 400, 6000))
Products = dict[str, Gpu]
DEPLOYMENTS = {64: 25, 512: 100, 2_000: 300, 4_096: 500, 10_000: 1_000, 50_000: 3_000}


@dataclass(frozen=True, slots=True)
class Family:
    """What to draw: size, load, and which rules some of the deployments ask for."""

    gpus: int
    load: float = 0.8
    seed: int = 1
    rules: frozenset[str] = frozenset()  # spread pin reserve isolation survive

    @property
    def name(self) -> str:
        """Size, load, seed and rules in one word."""
        rules = "+".join(sorted(self.rules))
        return f"{self.gpus}-{self.load}-{self.seed}" + (f"-{rules}" if rules else "")


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A model and its traffic. GB, billions, thousands of tokens."""

    params: float
    active: float
    kv_gb: float
    bytes_per_weight: float
    context: int
    output: int
    input: int


def generate(family: Family) -> PlacementProblem:
    """The problem of that family; the same for the same family."""
    dice = random.Random(f"{family.gpus} {family.seed}")
    machines = _fleet(family.gpus)
    catalogue_of = {gpu.name: gpu for gpu in machines.products()}
    number = DEPLOYMENTS.get(family.gpus, max(25, family.gpus // 10))
    tenants = max(3, number // 6)
    deployments: list[Deployment] = []
    offered: dict[str, tuple[Candidate, ...]] = {}
    wanted: dict[str, float] = {}
    while len(deployments) < number:
        name = f"d{len(deployments):04}"
        drawn = _draw(dice, large=family.gpus >= 512)
        products = _allowed(dice, drawn)
        ways = tuple(w for w in _ways(dice, name, drawn, catalogue_of, products) if w.capacity_mrps)
        size = math.exp(dice.gauss(0, 1.1)) * (2.5 if drawn.params >= 60 else 1.0)
        tenant = f"t{dice.randrange(tenants):03}"
        if not ways:
            continue
        offered[name] = ways
        wanted[name] = size * max(_rate_per_price(way, catalogue_of) for way in ways)
        deployments.append(Deployment(name, tenant=tenant, demand=Demand(1), min_replicas=1))
    drawn = PlacementProblem(machines, tuple(deployments), offered)
    drawn = _asking(drawn, family.load * _largest_scale(drawn, wanted), wanted)
    ruled = _with_rules(family, drawn)
    return _asking(ruled, family.load * _largest_scale(ruled, wanted), wanted)


def _asking(problem: PlacementProblem, scale: float, wanted: dict[str, float]) -> PlacementProblem:
    asked = (
        replace(d, demand=Demand(max(1, int(scale * wanted[d.name])))) for d in problem.deployments
    )
    return replace(problem, deployments=tuple(asked))


def _fleet(gpus: int) -> Fleet:
    cards = catalogue()
    nodes = gpus // PER_NODE
    counts = [round(nodes * part) for _, part, *_ in PRODUCTS]
    counts[1] += nodes - sum(counts)
    found: list[Node] = []
    for (name, _, price, _, _), count in zip(PRODUCTS, counts, strict=True):
        gpu = cards.gpu(name)
        assert gpu is not None
        modes = (Sharing.MIG, Sharing.WHOLE) if gpu.mig else (Sharing.WHOLE, Sharing.SHARED)
        for index in range(count):
            rack = f"{name}-r{index // NODES_PER_RACK:03}"
            found.append(
                Node(
                    f"{name}-{index:04}",
                    gpu,
                    PER_NODE,
                    rack=rack,
                    price_micros_per_gpu_hour=price,
                    sharing=modes,
                    nvlink_domain="node" if gpu.mig else "none",
                    cpu_millicores=192_000,
                    host_memory_mib=2 * 1024 * 1024,
                )
            )
    return Fleet(f"seeded-{gpus}", tuple(found))


def _draw(dice: random.Random, large: bool) -> _Drawn:
    models = [m for m in MODELS if large or m[0] <= 150]
    params, active, kv, _ = dice.choices(models, [m[3] for m in models])[0]
    quantised = dice.choices((2.0, 1.0, 0.55), (4, 4, 2))[0]
    return _Drawn(params, active, kv, quantised, *dice.choice(TRAFFIC))


def _allowed(dice: random.Random, drawn: _Drawn) -> set[str]:
    names = [name for name, *_ in PRODUCTS]
    allowed = set(names)
    if dice.random() < 0.15:
        allowed = set(dice.sample(names, 2))
    return allowed | ({"h100-80gb-sxm"} if drawn.params > 60 else set())


def _ways(
    dice: random.Random, name: str, drawn: _Drawn, products: Products, allowed: set[str]
) -> Iterator[Candidate]:
    for gpu in products.values():
        if gpu.name not in allowed:
            continue
        tflops, fp8 = next((t, f) for n, _, _, t, f in PRODUCTS if n == gpu.name)
        weight = 2.0 if drawn.bytes_per_weight == 1.0 and not fp8 else drawn.bytes_per_weight
        speed = tflops * (1.8 if weight == 1.0 else 1.0)

        def way(
            shape: Shape, room: Use, part: float, efficiency: float, gpu: Gpu = gpu,
            weight: float = weight, speed: float = speed,
        ) -> Candidate:  # fmt: skip
            gib, bandwidth = room.memory_mib / 1024, room.bandwidth_mbs / 1000
            rate = _mrps(drawn, weight, gib, bandwidth, speed * part * efficiency)
            need = shape.share or (Use() if shape.gpus > 1 else room)
            load = int(drawn.params * weight * 954)
            config = ReplicaConfig(engine="vllm", tensor_parallel=shape.gpus)
            return Candidate(name, gpu.name, shape, need, config, rate, load)

        yield from _whole(gpu, way)
        yield from _sliced(gpu, way) if gpu.mig else _shares(dice, gpu, drawn, weight, way)


def _whole(gpu: Gpu, way) -> Iterator[Candidate]:  # type: ignore[no-untyped-def]
    sizes = ((1, 1.0), (2, 0.93), (4, 0.86), (8, 0.78)) if gpu.mig else ((1, 1.0),)
    for size, efficiency in sizes:
        room = gpu.room
        joined = Use(room.memory_mib * size, room.bandwidth_mbs * size, room.compute_ppm)
        yield way(Shape(Sharing.WHOLE, size), joined, float(size), efficiency)


def _sliced(gpu: Gpu, way) -> Iterator[Candidate]:  # type: ignore[no-untyped-def]
    for profile in gpu.mig.profiles if gpu.mig else ():
        room = gpu.slice_room(profile)
        if room is not None and profile.plain and profile.memory_slices <= 4:
            part = room.compute_ppm / 1e6
            yield way(Shape(Sharing.MIG, 1, profile.name), room, part, 0.97)


def _shares(
    dice: random.Random, gpu: Gpu, drawn: _Drawn, weight: float, way
) -> Iterator[Candidate]:  # type: ignore[no-untyped-def]
    for low, high in ((0.07, 0.18), (0.18, 0.33), (0.33, 0.62)):
        part = dice.uniform(low, high)
        compute = part * dice.uniform(0.3, 1.1)
        memory = max(part + 0.1, min(0.95, drawn.params * weight / 46 + 0.15))
        room = gpu.room
        share = Use(
            int(memory * room.memory_mib), int(part * room.bandwidth_mbs), int(compute * 1e6)
        )
        yield way(Shape(Sharing.SHARED, 1, None, share), share, part, 0.95)


def _mrps(drawn: _Drawn, weight: float, gib: float, bandwidth: float, tflops: float) -> int:
    """Thousandths of a request per second by a roofline; zero where the model does not fit."""
    weights = drawn.params * weight
    each = drawn.kv_gb * drawn.context
    free = gib * 1.0737 * 0.94 - weights - 1.5
    if free < 2 * each:
        return 0
    batch = min(96, int(free / each))
    dense = drawn.active >= drawn.params
    read = weights if dense else weights * min(1.0, drawn.active / drawn.params * (1 + batch / 6))
    step = (read + batch * each * 0.6) / (bandwidth * 0.75) + batch * 2 * drawn.active / (
        tflops * 500
    )
    prefill = drawn.input * 2 * drawn.active / (tflops * 450)
    return int(1000 / (step * drawn.output / batch + prefill))


def _gpus_of(way: Candidate, products: Products) -> float:
    """GPUs that one replica takes, as a fraction."""
    product = products[way.gpu]
    if way.shape.share is not None:
        return max(way.shape.share.parts_of(product.room))
    profile = product.mig.profile(way.shape.profile or "") if product.mig else None
    if product.mig is not None and profile is not None:
        by_memory = profile.memory_slices / product.mig.memory_slices
        return max(by_memory, profile.compute_slices / product.mig.compute_slices)
    return float(way.shape.gpus)


def _rate_per_price(way: Candidate, products: Products) -> float:
    price = next(p for n, _, p, *_ in PRODUCTS if n == way.gpu) / 1e6
    return (way.capacity_mrps or 0) / (_gpus_of(way, products) * price) * 2.6


def _largest_scale(problem: PlacementProblem, wanted: dict[str, float]) -> float:
    """The largest common factor on all demands that fractional replicas could serve."""
    products = {gpu.name: gpu for gpu in problem.fleet.products()}
    lp = pywraplp.Solver.CreateSolver("GLOP")
    scale = lp.NumVar(0, lp.infinity(), "")
    taken = _taken(problem, products)
    room: dict[str, pywraplp.Constraint] = {}
    for node in problem.fleet.nodes:
        if node.gpu.name not in room:
            room[node.gpu.name] = lp.Constraint(-lp.infinity(), -taken[node.gpu.name])
        row = room[node.gpu.name]
        row.SetUb(row.ub() + node.gpus)
    for name, ways in problem.candidates.items():
        served = lp.Constraint(0, lp.infinity())
        served.SetCoefficient(scale, -wanted[name])
        for way in ways:
            x = lp.NumVar(0, lp.infinity(), "")
            served.SetCoefficient(x, way.capacity_mrps or 0)
            room[way.gpu].SetCoefficient(x, _gpus_of(way, products))
    lp.Maximize(scale)
    lp.Solve()
    return scale.solution_value()


def _taken(problem: PlacementProblem, products: Products) -> dict[str, float]:
    """GPUs by product that rules take: room kept free, and a replica to outlive a loss."""
    found: dict[str, float] = defaultdict(float)
    for kept in with_reserve(problem).deployments:
        ways = with_reserve(problem).candidates[kept.name]
        if kept.reserve or kept.survive:
            way = max(ways, key=lambda w: (_rate_per_price(w, products), w.key))
            found[way.gpu] += _gpus_of(way, products) * (kept.min_replicas if kept.reserve else 1)
    return found


def _with_rules(family: Family, problem: PlacementProblem) -> PlacementProblem:
    """Some deployments ask for the family's rules; drawn apart, so that demands stay the same."""
    dice = random.Random(f"rules {family.gpus} {family.seed}")
    machines = problem.fleet
    names = [node.name for node in machines.nodes]
    pins = _pins(family, problem) if "pin" in family.rules else {}
    alone = {f"t{i:03}" for i in range(1000) if dice.random() < 0.1}
    found = []
    for d in problem.deployments:
        spread, _, survive = dice.random(), dice.random(), dice.random()
        dice.choice(names)
        if d.name in pins:
            d = replace(d, pin=(pins[d.name],))
            spread = survive = 1.0  # one node is neither apart nor outlived
        if "spread" in family.rules and spread < 0.5:
            d = replace(d, spread_node=2 if spread < 0.25 else 4, min_replicas=2)
            if spread < 0.1:
                d = replace(d, spread_rack=4)
        if "survive" in family.rules and survive < 0.25:
            d = replace(d, survive="node")
        if "isolation" in family.rules and d.tenant in alone:
            d = replace(d, isolate="tenant")
        found.append(d)
    if "reserve" in family.rules:
        few = max(1, family.gpus // 50)
        kept = (
            Reserve(few, profile="1g.10gb", gpu="a100-80gb-sxm"),
            Reserve(few, profile="3g.40gb", gpu="h100-80gb-sxm"),
            Reserve(max(1, family.gpus // 256), gpus=8, gpu="h100-80gb-sxm"),
        )
        machines = replace(machines, reserve=kept)
    return replace(problem, fleet=machines, deployments=tuple(found))


def _pins(family: Family, problem: PlacementProblem) -> dict[str, str]:
    """One in 25 deployments, at least two, with a node of its own where it needs half the GPUs."""
    dice = random.Random(f"pins {family.gpus} {family.seed}")
    by_product: dict[str, list[str]] = defaultdict(list)
    for node in problem.fleet.nodes:
        by_product[node.gpu.name].append(node.name)
    products = {gpu.name: gpu for gpu in problem.fleet.products()}
    found: dict[str, str] = {}
    for d in dice.sample(problem.deployments, len(problem.deployments)):
        small = {
            way.gpu
            for way in problem.candidates[d.name]
            if math.ceil((d.asked_mrps or 0) / (way.capacity_mrps or 1)) * _gpus_of(way, products)
            <= PER_NODE / 2
        }
        free = [n for gpu in sorted(small) for n in by_product[gpu] if n not in found.values()]
        if free and len(found) < max(2, len(problem.deployments) // 25):
            found[d.name] = dice.choice(free)
    return found
