"""Which ways to run each deployment are worth offering to placement, and why the rest is not."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.domain.config import Candidate, Dropped, ReplicaConfig
from optimizer.domain.engine import EngineCard, Verdict
from optimizer.domain.fleet import Fleet, Sharing
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.placement import Placement, Replica, node_of
from optimizer.domain.units import MIB, PPM, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.sizing import fixed
from optimizer.sizing.compatibility import weight_support
from optimizer.sizing.performance import handed_over
from optimizer.sizing.precision import SIXTEEN_BIT, known, scheme
from optimizer.sizing.replica import (
    Ready,
    Refusal,
    Sized,
    Way,
    on_product,
    predicted,
    reasons,
    settled,
    size_way,
)
from optimizer.sizing.rooms import (
    Product,
    Room,
    mig_room,
    products,
    rooms,
    share_room,
    whole_room,
)
from optimizer.sizing.weights import weights

DEFAULT_ENGINES = ("vllm", "sglang", "tensorrt-llm")
IN_ONE_NODE = ("tensorrt-llm",)  # trtllm-serve (TensorRT-LLM, trtllm-serve multi-node: mpirun)


@dataclass(frozen=True, slots=True)
class Sizing:
    """Candidates and refusals by deployment; every deployment has an entry, empty or not."""

    candidates: dict[str, tuple[Candidate, ...]]
    dropped: dict[str, tuple[Dropped, ...]]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A way that fits, and its room."""

    room: Room
    sized: Sized
    card: EngineCard

    @property
    def capacity_mrps(self) -> int | None:
        """The guarded capacity, rounded down."""
        return None if self.sized.rate is None else int(self.sized.rate * 1000)


def size(
    fleet: Fleet,
    deployments: Iterable[Deployment],
    engines: Mapping[str, EngineCard],
    running: Placement | None = None,
    gpus: Mapping[str, Gpu] | None = None,
) -> Sizing:
    """Candidates of each deployment on the fleet's products, and every way dropped with a reason.

    ``running``: what runs now; configurations of replicas that are still legal are offered too,
    marked ``running_only`` where they would not be offered otherwise. ``gpus``: datasheets by name
    for ``needs.measured_on``; the fleet's own products are known without.
    """
    everything = products(fleet)
    sheets = {**(gpus or {}), **{product.gpu.name: product.gpu for product in everything}}
    runs: dict[str, list[Replica]] = defaultdict(list)
    for replica in running.replicas if running else ():
        runs[replica.deployment].append(replica)
    on = {p.gpu.name: p for p in everything}
    product_of = {node.name: on[node.gpu.name] for node in fleet.nodes} if runs else {}
    found: dict[str, tuple[Candidate, ...]] = {}
    dropped: dict[str, tuple[Dropped, ...]] = {}
    sized: dict[object, tuple[list[Candidate], list[Dropped]]] = {}
    for deployment in deployments:
        alike = looked_at(deployment)
        if alike not in sized:
            usable = products(fleet, deployment.pin) if deployment.pin else everything
            sized[alike] = _size_one(usable, deployment, engines, sheets)
        candidates, refused = _of(deployment.name, *sized[alike])
        replicas = runs.get(deployment.name, ())
        kept = _with_running(product_of, deployment, engines, sheets, candidates, replicas)
        found[deployment.name] = tuple(sorted(kept, key=lambda c: c.key))
        dropped[deployment.name] = tuple(refused)
    return Sizing(found, dropped)


def looked_at(deployment: Deployment) -> object:
    """All that its ways depend on, but for the fleet: not who it is, nor beside whom it may run.

    How much is asked matters only to what the stages of a pipeline hand over.
    """
    demand = deployment.demand
    if demand is not None and deployment.allow.pipeline_parallel == (1,):
        demand = replace(demand, rate_mrps=1, peak_factor_ppm=PPM)
    return (
        deployment.model,
        deployment.precision,
        deployment.needs,
        deployment.measured,
        demand,
        deployment.slo,
        deployment.allow,
        deployment.extras,
        deployment.pin,
    )


def _of(
    name: str, ways: list[Candidate], refused: list[Dropped]
) -> tuple[list[Candidate], list[Dropped]]:
    """The ways of another deployment that is sized alike, as this one's."""
    return (
        [way if way.deployment == name else replace(way, deployment=name) for way in ways],
        [one if one.deployment == name else replace(one, deployment=name) for one in refused],
    )


def _size_one(
    usable: Sequence[Product],
    deployment: Deployment,
    engines: Mapping[str, EngineCard],
    gpus: Mapping[str, Gpu],
) -> tuple[list[Candidate], list[Dropped]]:
    offered, refused = [], []
    for product in usable:
        reason = gpu_refusal(deployment, product.gpu)
        if reason is not None:
            refused.append(Dropped(deployment.name, product.gpu.name, reason))
        else:
            offered.append(product)
    if deployment.model is None:
        candidates, more = fixed.candidates(deployment, offered, gpus)
        return candidates, refused + more
    candidates, more = _llm(deployment, deployment.model, offered, engines)
    return candidates, refused + more


def gpu_refusal(deployment: Deployment, gpu: Gpu) -> str | None:
    """Why the deployment may not use a product at all, or None."""
    allow = deployment.allow
    if allow.gpus is not None and gpu.name not in allow.gpus:
        return f"not among allow.gpus ({', '.join(allow.gpus)})"
    if ("gpu", gpu.name) in allow.forbidden:
        return "forbidden by the scenario"
    return None


def _llm(
    deployment: Deployment,
    model: ServedModel,
    offered: Sequence[Product],
    engines: Mapping[str, EngineCard],
) -> tuple[list[Candidate], list[Dropped]]:
    dropped: list[Dropped] = []
    demand = deployment.demand
    if demand is not None and not _lengths_known(deployment, model):
        reason = "demand names no input_tokens or output_tokens"
        return [], [Dropped(deployment.name, model.name, reason)]
    cards = _cards(deployment, engines, dropped)
    evaluated: list[Evaluated] = []
    for product in offered:
        evaluated.extend(_on_product(deployment, model, product, cards, dropped))
    kept = _undominated(deployment, evaluated, dropped)
    found = [_candidate(deployment, model, _settled(deployment, model, e)) for e in kept]
    return found, _once(dropped)


def _on_product(
    deployment: Deployment,
    model: ServedModel,
    product: Product,
    cards: Sequence[EngineCard],
    dropped: list[Dropped],
) -> Iterator[Evaluated]:
    """Every way that fits in each room of a product, sized so far that the best is known."""
    known_ways: dict[tuple[int, int, str], list[tuple[Way, Ready | Refusal]]] = {}
    for room in _rooms_for(deployment, product):
        shape, most = room.shape, 0
        for card in cards:
            key = (shape.gpus, shape.stages, card.name)
            if key not in known_ways:  # the same in every room of so many GPUs
                known_ways[key] = list(_ready(deployment, model, room, card, dropped))
            for way, ready in known_ways[key]:
                found = _evaluate(deployment, model, room, card, way, ready, dropped, most / 1000)
                if found is not None:
                    most = max(most, found.capacity_mrps or 0)
                    yield found


def _ready(
    deployment: Deployment,
    model: ServedModel,
    room: Room,
    card: EngineCard,
    dropped: list[Dropped],
) -> Iterator[tuple[Way, Ready | Refusal]]:
    for way in ways(deployment, model, room, card, dropped):
        if way.pp > 1 and card.name in IN_ONE_NODE:
            reason = "its stages may come to lie in several nodes, which it serves under MPI only"
            dropped.append(Dropped(deployment.name, _label(room, way), reason))
            continue
        kernels = deployment.allow.attention
        yield way, on_product(model, card, room.gpu, way, deployment.demand, kernels)


def _lengths_known(deployment: Deployment, model: ServedModel) -> bool:
    demand = deployment.demand
    assert demand is not None
    return bool(demand.input_tokens) and (model.task == "embed" or bool(demand.output_tokens))


def _once(dropped: list[Dropped]) -> list[Dropped]:
    return list(dict.fromkeys(dropped))


def _cards(
    deployment: Deployment, engines: Mapping[str, EngineCard], dropped: list[Dropped]
) -> list[EngineCard]:
    """Cards of the allowed engines; those without a card are named as dropped."""
    asked = deployment.allow.engines
    found = []
    for name in asked or DEFAULT_ENGINES:
        if ("engine", name) in deployment.allow.forbidden:
            dropped.append(Dropped(deployment.name, name, "forbidden by the scenario"))
        elif name in engines:
            found.append(engines[name])
        elif asked is not None:
            dropped.append(Dropped(deployment.name, name, "no engine card of that name yet"))
    return found


def _rooms_for(deployment: Deployment, product: Product) -> Iterable[Room]:
    allow = deployment.allow
    sizes = {(tp, pp) for tp in allow.tensor_parallel for pp in allow.pipeline_parallel}
    return rooms(product, allow.sharing, sizes)


def ways(
    deployment: Deployment,
    model: ServedModel,
    room: Room,
    card: EngineCard,
    dropped: list[Dropped],
) -> Iterable[Way]:
    """Every way worth trying in a room: the parallel sizes that fill it, formats.

    A replica that runs in a room that is not allowed runs in no way.
    """
    allow, tp, pp = deployment.allow, room.shape.block, room.shape.stages
    if tp not in allow.tensor_parallel or pp not in allow.pipeline_parallel:
        return
    for precision in precisions(deployment, model, room.gpu, card):
        if ("precision", precision) in allow.forbidden:
            dropped.append(Dropped(deployment.name, precision, "forbidden by the scenario"))
            continue
        if not known(precision):
            dropped.append(Dropped(deployment.name, precision, "no such precision can be sized"))
            continue
        for kv in allow.kv_precisions or ("bf16",):
            yield Way(card.name, card.default_version, precision, kv, tp=tp, pp=pp)


def precisions(
    deployment: Deployment, model: ServedModel, gpu: Gpu, card: EngineCard
) -> tuple[str, ...]:
    """What is allowed; by default the checkpoint's own, and fp8 where the GPU computes in it.

    A GPU without bf16 runs a bf16 checkpoint in fp16.
    """
    if deployment.precision is not None:
        asked = deployment.allow.precisions
        return (deployment.precision,) if not asked or deployment.precision in asked else ()
    if deployment.allow.precisions is not None:
        return deployment.allow.precisions
    own = model.checkpoint_precision
    version = card.default_version
    if own == "bf16" and weight_support(card, version, gpu, own).verdict is Verdict.REFUSED:
        own = "fp16"
    native = weight_support(card, version, gpu, "fp8").verdict is Verdict.NATIVE
    return (own, "fp8") if own in SIXTEEN_BIT and native else (own,)


def _evaluate(
    deployment: Deployment,
    model: ServedModel,
    room: Room,
    card: EngineCard,
    way: Way,
    ready: Ready | Refusal,
    dropped: list[Dropped],
    enough: float = 0.0,
) -> Evaluated | None:
    found: Sized | Refusal
    if isinstance(ready, Refusal):
        found = ready
    else:
        d = deployment
        found = size_way(model, card, room, ready, d.demand, d.slo, d.extras, enough)
    if isinstance(found, Refusal):
        dropped.append(Dropped(deployment.name, _label(room, way), found.reason))
        return None
    rate = found.rate
    if rate is not None and rate * 1000 < 1:
        dropped.append(Dropped(deployment.name, _label(room, way), "serves under 0.001 requests/s"))
        return None
    return Evaluated(room, found, card)


def _label(room: Room, way: Way) -> str:
    kv = "" if way.kv_precision == "bf16" else f" kv {way.kv_precision}"
    return f"{room.name} {way.precision}{kv} {way.engine}"


def _undominated(
    deployment: Deployment, evaluated: Sequence[Evaluated], dropped: list[Dropped]
) -> list[Evaluated]:
    """The best way of each room, less rooms that a smaller one of the same product beats.

    Shares and groups of whole GPUs: a smaller one leaves more to others wherever it fits, as do as
    many GPUs in smaller blocks. MIG profiles stay side by side: which one is free depends on the
    layout.
    """
    best: dict[tuple[object, ...], Evaluated] = {}
    for e in evaluated:
        key = (e.room.gpu.name, e.room.shape.key)
        have = best.get(key)
        if have is None:
            best[key] = e
            continue
        better, worse = (e, have) if _rank(e) > _rank(have) else (have, e)
        best[key] = better
        winner = _label(better.room, better.sized.way)
        reason = f"{winner} serves {_served(better)} in the same room"
        dropped.append(Dropped(deployment.name, _label(worse.room, worse.sized.way), reason))
    kept: list[Evaluated] = []
    for e in sorted(best.values(), key=_size_order):
        smaller = next((k for k in kept if _smaller_is_enough(k, e)), None)
        if smaller is None:
            kept.append(e)
            continue
        reason = f"{smaller.room.name} is smaller and serves {_served(smaller)}"
        dropped.append(Dropped(deployment.name, _label(e.room, e.sized.way), reason))
    return kept


def _rank(e: Evaluated) -> tuple[float, float]:
    """More capacity is better, then fewer bytes read per token."""
    native = 0.0 if e.sized.how.fallback else 1.0
    return (float(e.capacity_mrps or 0), native)


def _served(e: Evaluated) -> str:
    capacity = e.capacity_mrps
    return "one replica" if capacity is None else f"{capacity / 1000:g} requests/s"


def _size_order(e: Evaluated) -> tuple[str, str, int, int, int]:
    shape = e.room.shape
    return (e.room.gpu.name, shape.sharing.value, shape.gpus, e.room.use.memory_mib, shape.block)


def _smaller_is_enough(smaller: Evaluated, larger: Evaluated) -> bool:
    if smaller.room.gpu.name != larger.room.gpu.name:
        return False
    if smaller.room.shape.sharing is not larger.room.shape.sharing:
        return False
    if smaller.room.shape.sharing is Sharing.MIG:
        return False
    if smaller.room.shape.block > larger.room.shape.block:
        return False  # it may find no node where the other does
    return (smaller.capacity_mrps or 0) >= (larger.capacity_mrps or 0)


def _settled(deployment: Deployment, model: ServedModel, e: Evaluated) -> Evaluated:
    return replace(e, sized=settled(model, e.card, e.room, e.sized, deployment.extras))


def _candidate(deployment: Deployment, model: ServedModel, e: Evaluated) -> Candidate:
    way = e.sized.way
    total = weights(model, scheme(way.precision), way.tp, way.pp).total * way.tp * way.pp
    memory = e.room.use.memory_mib
    if e.room.shape.sharing is not Sharing.SHARED:
        memory = e.sized.budget.used_mib
    handed, said = network_mbs(deployment, model, way.pp, e.capacity_mrps), []
    if way.pp > 1:
        said.append(f"its {way.pp} stages hand over at most {handed} MB/s, each to the next")
    return Candidate(
        deployment=deployment.name,
        gpu=e.room.gpu.name,
        shape=e.room.shape,
        use=replace(e.room.use, memory_mib=memory),
        config=config_of(way),
        capacity_mrps=e.capacity_mrps,
        load_mib=ceil_div(int(total) + 1, MIB),
        network_mbs=handed,
        predicted=predicted(e.card, model, e.sized),
        reasons=(*reasons(model, e.sized, e.room, deployment.slo), *said),
    )


def network_mbs(
    deployment: Deployment, model: ServedModel, stages: int, capacity_mrps: int | None
) -> int:
    """MB/s that one stage hands to the next when the replica is as busy as it may get.

    tokens/s x bytes a token (``performance.handed_over``): each token of a prompt that the prefix
    cache lacks and each token of output passes every boundary once. No more requests come than are
    asked; without a demand nobody knows how many, and nothing is counted.
    """
    demand = deployment.demand
    if stages == 1 or demand is None or capacity_mrps is None:
        return 0
    new = (demand.input_tokens or 0) * (1 - demand.prefix_hit_rate)
    tokens = min(capacity_mrps, demand.peak_mrps) / 1000 * (new + (demand.output_tokens or 0))
    return math.ceil(tokens * handed_over(model) / 1e6)


def config_of(way: Way) -> ReplicaConfig:
    """The engine settings of a settled way."""
    return ReplicaConfig(
        engine=way.engine,
        engine_version=way.version,
        precision=way.precision,
        kv_precision=way.kv_precision,
        attention=way.attention,
        tensor_parallel=way.tp,
        pipeline_parallel=way.pp,
        max_model_len=way.max_model_len,
        max_num_seqs=way.max_num_seqs,
        memory_fraction=way.memory_fraction,
    )


def _with_running(
    product_of: Mapping[str, Product],
    deployment: Deployment,
    engines: Mapping[str, EngineCard],
    gpus: Mapping[str, Gpu],
    candidates: list[Candidate],
    replicas: Sequence[Replica],
) -> list[Candidate]:
    """The candidates, and those that replicas run as today though none offers it to new ones."""
    kept = list(candidates)
    for replica in sorted(replicas, key=lambda r: r.id):
        product = product_of.get(node_of(replica.gpus[0])) if replica.gpus else None
        if product is None or any(replica.runs_as(c, product.gpu.name) for c in kept):
            continue
        if gpu_refusal(deployment, product.gpu) is not None:
            continue
        candidate = _running(deployment, engines, gpus, product, replica)
        if candidate is not None and candidate.key not in {c.key for c in kept}:
            kept.append(replace(candidate, running_only=True))
    return kept


def _running(
    deployment: Deployment,
    engines: Mapping[str, EngineCard],
    gpus: Mapping[str, Gpu],
    product: Product,
    replica: Replica,
) -> Candidate | None:
    """The candidate a replica runs as, its unsaid settings completed; None: no longer legal."""
    room = _room_of(product, replica)
    if room is None or not _mode_allowed(deployment, room):
        return None
    if deployment.model is None:
        return fixed.running(deployment, room, replica, gpus)
    found = _as_run(deployment, engines, room, replica)
    return None if found is None else _candidate(deployment, deployment.model, found)


def running_as(
    fleet: Fleet, deployment: Deployment, engines: Mapping[str, EngineCard], replica: Replica
) -> Evaluated | None:
    """A replica of a model as it runs in a plan or a state; None: it cannot be sized so."""
    nodes = {node.name: node for node in fleet.nodes}
    node = nodes.get(node_of(replica.gpus[0])) if replica.gpus else None
    if node is None or deployment.model is None:
        return None
    product = next(p for p in products(fleet) if p.gpu.name == node.gpu.name)
    room = _room_of(product, replica)
    return None if room is None else _as_run(deployment, engines, room, replica)


def _as_run(
    deployment: Deployment, engines: Mapping[str, EngineCard], room: Room, replica: Replica
) -> Evaluated | None:
    """The way that agrees with all that is said of a replica, its unsaid settings completed."""
    model, said = deployment.model, replica.config
    assert model is not None
    if deployment.demand is not None and not _lengths_known(deployment, model):
        return None
    for card in _cards(deployment, engines, []):
        if said.engine not in (None, card.name):
            continue
        for way in ways(deployment, model, room, card, []):
            way = _completed(way, said)
            if not config_of(way).agrees_with(said):
                continue
            kernels = deployment.allow.attention
            ready = on_product(model, card, room.gpu, way, deployment.demand, kernels)
            found = _evaluate(deployment, model, room, card, way, ready, [])
            if found is None:
                continue
            found = _settled(deployment, model, found)
            if config_of(found.sized.way).agrees_with(said):
                return found
    return None


def _completed(way: Way, said: ReplicaConfig) -> Way:
    return replace(
        way,
        version=said.engine_version or way.version,
        attention=said.attention,
        max_model_len=said.max_model_len,
        max_num_seqs=said.max_num_seqs,
        memory_fraction=said.memory_fraction,
    )


def _room_of(product: Product, replica: Replica) -> Room | None:
    if replica.mig is not None:
        return mig_room(product.gpu, replica.mig.profile)
    if replica.share is not None:
        return share_room(product.gpu, replica.share)
    shape = replica.shape
    return whole_room(product, shape.block, shape.stages)


def _mode_allowed(deployment: Deployment, room: Room) -> bool:
    modes = deployment.allow.sharing
    return modes is None or room.shape.sharing.value in modes
