"""One model, every way to run it: does it fit, how fast, what would it cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.domain.config import Shape
from optimizer.domain.engine import EngineCard, ErrorBand, Verdict
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.workload import Extras
from optimizer.sizing import precision as formats
from optimizer.sizing.batching import Embedding, Load, Outlook
from optimizer.sizing.compatibility import Runs, runs, weight_support
from optimizer.sizing.context import context_fault, context_notes
from optimizer.sizing.memory import (
    MemoryBudget,
    Settings,
    kv_tokens_logged,
    longest_context,
    memory_budget,
)
from optimizer.sizing.recommend import Recommendation, recommended
from optimizer.sizing.replica import (
    Serving,
    Way,
    binding,
    no_room,
    serving_of,
    shape_fault,
    too_slow,
)
from optimizer.sizing.residents import NO_EXTRAS
from optimizer.sizing.rooms import Product, Room, mig_room, mig_rooms, whole_room

TENSOR_PARALLEL = (1, 2, 4, 8)
GPUS_PER_NODE = 8  # of a node nobody described
OTHER_PRECISIONS = ("fp8", "int8", "int4", "nvfp4")
PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """The flags of ``fleetslice size``; None: not given."""

    gpu: str | None = None
    mig_profile: str | None = None
    precision: str | None = None
    kv_precision: str | None = None
    attention: str | None = None
    engine: str | None = None
    engine_version: str | None = None
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    window_ratio: float | None = None  # SGLang's swa_full_tokens_ratio
    draft_layers: int = 0  # of an EAGLE or MTP head
    expert_parallel: bool = False
    request_rate: float | None = None
    concurrency: int | None = None
    offline: bool = False
    batch: int | None = None
    input_tokens: int = 1024
    output_tokens: int = 256
    arrival_cv: float = 1.0
    prefix_hit_rate: float = 0.0
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    percentile: float = PERCENTILE
    extras: Extras = NO_EXTRAS
    price_per_gpu_hour: tuple[tuple[str, float], ...] = ()

    @property
    def sets_engine(self) -> bool:
        """Whether any setting of the engine was given."""
        given = (self.gpu_memory_utilization, self.max_model_len, self.max_num_seqs)
        return self.enforce_eager or any(
            value is not None for value in (*given, self.max_num_batched_tokens)
        )

    @property
    def load(self) -> Load:
        """The traffic these flags describe."""
        return Load(
            self.input_tokens,
            self.output_tokens,
            arrival_cv=self.arrival_cv,
            prefix_hit_rate=self.prefix_hit_rate,
            percentile=self.percentile,
        )


@dataclass(frozen=True, slots=True)
class Performance:
    """Speed under the asked load; None: the load gives it no meaning. Ratios: percentile/mean."""

    outlook: Outlook
    ttft_ms: float | None
    tpot_ms: float | None
    ratios: tuple[float, float]
    band: ErrorBand


@dataclass(frozen=True, slots=True)
class SizeEntry:
    """One way to run the model. ``refusal`` None: it fits and keeps the SLO."""

    room: Room
    way: Way
    budget: MemoryBudget | None = None
    logged_tokens: int | None = None
    performance: Performance | None = None
    price_per_hour: float | None = None
    reasons: tuple[str, ...] = ()
    refusal: str | None = None
    recommended: Recommendation | None = None  # where no engine setting was given

    @property
    def price_per_million_output_tokens(self) -> float | None:
        """At the asked load; None without a price or without output."""
        if self.price_per_hour is None or self.performance is None:
            return None
        speed = self.performance.outlook.output_tokens_per_second
        return self.price_per_hour / (speed * 3600) * 1e6 if speed else None

    @property
    def cost_order(self) -> tuple[float, float, str]:
        """Cheapest output first; without prices, fewest GPU-hours per output."""
        speed = 0.0
        if self.performance is not None:
            outlook = self.performance.outlook
            speed = outlook.output_tokens_per_second or outlook.rate
        price = self.price_per_million_output_tokens
        parts = self.room.shape.gpus * _gpu_part(self.room)
        return (math.inf if price is None else price, parts / speed if speed else math.inf, "")


@dataclass(frozen=True, slots=True)
class SizeResult:
    """Candidates cheapest first, and what was refused with reasons."""

    model: ServedModel
    candidates: tuple[SizeEntry, ...]
    refused: tuple[SizeEntry, ...]
    percentile: float = PERCENTILE


def size_model(
    model: ServedModel,
    gpus: Mapping[str, Gpu],
    engines: Mapping[str, EngineCard],
    options: SizeOptions,
) -> SizeResult:
    """Every way the options leave open. With GPU, TP, precision and engine given, exactly one.

    Raises KeyError for a GPU or engine nobody knows, and for a precision that cannot be sized.
    """
    fitting: list[SizeEntry] = []
    refused: list[SizeEntry] = []
    for name in [options.gpu] if options.gpu else sorted(gpus):
        for card in _cards(engines, options):
            for room, tp, pp in _rooms(gpus[name], options):
                for precision in _precisions(model, gpus[name], card, options):
                    kv = model.checkpoint_kv_precision or card.kv_default(precision)
                    way = _way(card, options, precision, kv, tp, pp)
                    entry = _entry(model, card, room, way, options)
                    (fitting if entry.refusal is None else refused).append(entry)
    fitting.sort(key=lambda e: (e.cost_order, _identity(e)))
    refused.sort(key=_identity)
    return SizeResult(model, tuple(fitting), tuple(refused), options.percentile)


def _identity(entry: SizeEntry) -> tuple[Any, ...]:
    way = entry.way
    return (entry.room.gpu.name, entry.room.shape.key, way.engine, way.precision, way.tp, way.pp)


def _cards(engines: Mapping[str, EngineCard], options: SizeOptions) -> list[EngineCard]:
    cards = [engines[options.engine]] if options.engine else [engines[n] for n in sorted(engines)]
    version = options.engine_version
    return [card.with_default(version) for card in cards] if version else cards


def _rooms(gpu: Gpu, options: SizeOptions) -> Iterator[tuple[Room, int, int]]:
    """Rooms with the parallel sizes that fill them. MIG slices form no groups."""
    pp = options.pipeline_parallel or 1
    if options.mig_profile is not None:
        room = mig_room(gpu, options.mig_profile)
        if room is not None or options.gpu is not None:
            yield room or _unknown_slice(gpu, options.mig_profile), options.tensor_parallel or 1, pp
        return
    if options.gpu is None and (options.tensor_parallel or 1) * pp == 1:
        for room in mig_rooms(gpu):
            yield room, 1, 1
    product = Product(gpu, (Node("any", gpu, GPUS_PER_NODE, nvlink_domain=gpu.nvlink_domain),))
    for tp in [options.tensor_parallel] if options.tensor_parallel else TENSOR_PARALLEL:
        if options.tensor_parallel or tp <= GPUS_PER_NODE:
            yield whole_room(product, tp, pp), tp, pp


def _unknown_slice(gpu: Gpu, profile: str) -> Room:
    """A stand-in that carries the name of a profile nobody knows the memory of."""
    whole = whole_room(Product(gpu, ()), 1)
    return Room(gpu, Shape(Sharing.MIG, 1, profile), whole.use, whole.device)


def _precisions(
    model: ServedModel, gpu: Gpu, card: EngineCard, options: SizeOptions
) -> tuple[str, ...]:
    if options.precision is not None:
        formats.scheme(options.precision)
        return (options.precision,)
    own = model.checkpoint_precision
    if own not in formats.SIXTEEN_BIT:
        return (own,)
    if weight_support(card, card.default_version, gpu, own).verdict is Verdict.REFUSED:
        own = next(p for p in formats.SIXTEEN_BIT if p != own)
    return (own, *OTHER_PRECISIONS)


def _way(
    card: EngineCard, options: SizeOptions, precision: str, kv: str | None, tp: int, pp: int
) -> Way:
    return Way(
        engine=card.name,
        version=card.default_version,
        precision=precision,
        kv_precision=options.kv_precision or kv or "bf16",
        attention=options.attention,
        tp=tp,
        pp=pp,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        memory_fraction=options.gpu_memory_utilization,
        max_num_batched_tokens=options.max_num_batched_tokens,
        eager=options.enforce_eager,
        window_ratio=options.window_ratio,
        draft_layers=options.draft_layers,
        expert_parallel=options.expert_parallel,
    )


def _entry(
    model: ServedModel, card: EngineCard, room: Room, way: Way, options: SizeOptions
) -> SizeEntry:
    """One way under the engine's own defaults: fit, then speed."""
    fault = _fault(model, room, way, options)
    kernel = (way.attention,) if way.attention else None
    how = runs(card, way.version, room.gpu, model, way.precision, way.kv_precision, kernel)
    chosen = replace(way, attention=how.attention or way.attention)
    budget = _budget(model, card, room, chosen, options) if _countable(room) else None
    logged = None
    if budget is not None:
        logged = kv_tokens_logged(budget, card.range_of(way.version).memory)
    reason = fault or how.refusal
    advice = None
    if reason is None and budget is not None:
        advice = _recommended(model, card, room, chosen, options)
    if reason is None and budget is not None and not budget.fits:
        reason = _does_not_fit(budget, room, options, advice)
    if reason is not None or budget is None:
        said = reason or "memory unknown"
        return SizeEntry(room, way, budget, logged, refusal=said, recommended=advice)
    entry = _with_speed(model, card, room, chosen, options, budget, logged, how)
    return replace(entry, recommended=advice)


def _countable(room: Room) -> bool:
    if room.shape.sharing is not Sharing.MIG:
        return True
    return mig_room(room.gpu, room.shape.profile or "") is not None


def _fault(model: ServedModel, room: Room, way: Way, options: SizeOptions) -> str | None:
    if not _countable(room):
        return f"{room.gpu.name} has no profile {room.shape.profile} of known memory"
    if room.shape.sharing is Sharing.MIG and way.tp * way.pp > 1:
        return "MIG slices form no groups: tensor and pipeline parallel need whole GPUs"
    length = options.max_model_len or model.max_position_embeddings
    if length and (fault := context_fault(model, length)) is not None:
        return fault
    asked = options.input_tokens + (0 if model.task == "embed" else options.output_tokens)
    if length and asked > length:
        return f"input and output of {asked} tokens are longer than max_model_len {length}"
    return shape_fault(model, way.precision, way.tp, way.pp)


def _recommended(
    model: ServedModel, card: EngineCard, room: Room, way: Way, options: SizeOptions
) -> Recommendation | None:
    """Flags that start with a margin, where the user gave none."""
    if options.sets_engine:
        return None
    least = options.input_tokens + (0 if model.task == "embed" else options.output_tokens)

    def budget_of(settings: Settings) -> MemoryBudget:
        return _budget_of(model, card, room, way, options, settings, fill=True)

    return recommended(card, _settings(model, way), budget_of, least)


def _settings(model: ServedModel, way: Way) -> Settings:
    return Settings(
        precision=way.precision,
        kv_precision=way.kv_precision,
        tp=way.tp,
        pp=way.pp,
        max_model_len=way.max_model_len or model.max_position_embeddings or 4096,
        max_num_seqs=way.max_num_seqs,
        max_num_batched_tokens=way.max_num_batched_tokens,
        fraction=way.memory_fraction,
        eager=way.eager,
        attention=way.attention or "",
        window_ratio=way.window_ratio,
        draft_layers=way.draft_layers,
        expert_parallel=way.expert_parallel,
    )


def _budget(
    model: ServedModel, card: EngineCard, room: Room, way: Way, options: SizeOptions
) -> MemoryBudget:
    return _budget_of(model, card, room, way, options, _settings(model, way))


def _budget_of(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    options: SizeOptions,
    settings: Settings,
    *,
    fill: bool = False,
) -> MemoryBudget:
    return memory_budget(
        model,
        card,
        room.gpu,
        settings,
        total_mib=room.total_mib,
        version=way.version,
        extras=options.extras,
        fill=fill,
    )


def _does_not_fit(
    budget: MemoryBudget, room: Room, options: SizeOptions, advice: Recommendation | None
) -> str:
    """Why, and flags with which it would fit; else the largest context that would."""
    reason = no_room(budget, room)
    if advice is not None:
        return f"{reason}; {' '.join(advice.flags)} would fit"
    longest = longest_context(budget)
    if 0 < longest < budget.max_model_len and not options.max_model_len:
        return f"{reason}; --max-model-len {longest} would fit"
    return reason


def _with_speed(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    options: SizeOptions,
    budget: MemoryBudget,
    logged: int | None,
    how: Runs,
) -> SizeEntry:
    serving = serving_of(model, card, room, way, budget, how, options.load)
    if serving is None:
        reason = f"the datasheet of {room.gpu.name} has no {how.gemm} peak"
        return SizeEntry(room, way, budget, logged, refusal=reason)
    found = _under_load(serving, options)
    if isinstance(found, str):
        return SizeEntry(room, way, budget, logged, refusal=found)
    outlook, ttft, tpot = found
    band = card.moe_band if model.moe is not None else card.dense_band
    performance = Performance(outlook, ttft, tpot, serving.ratios(outlook), band)
    reasons = [_limit(serving, outlook, budget, options)]
    if _asks_capacity(options):
        reasons.append(f"placement counts on {card.guard:.0%} of this rate, a guard band")
    reasons.extend(how.notes)
    if risk := formats.scheme(way.precision).risk:
        reasons.append(risk)
    reasons.extend(context_notes(model, budget.max_model_len, way.kv_precision))
    if room.slow_link:
        reasons.append("its GPUs talk over PCIe; the cost is counted")
    price = _price(room, options)
    return SizeEntry(room, way, budget, logged, performance, price, tuple(reasons))


def _limit(serving: Serving, outlook: Outlook, budget: MemoryBudget, options: SizeOptions) -> str:
    """What keeps the rate from being larger: of a given load that leaves room, the load itself."""
    full = isinstance(serving, Embedding) or outlook.concurrency >= serving.batch_limit * 0.999
    if options.request_rate is not None:
        return f"carries the {options.request_rate:g} requests/s asked"
    if options.concurrency is not None and not full:
        return f"bound by --concurrency {options.concurrency}: nobody waits for a place"
    if options.batch is not None and not full:
        return f"bound by --batch {options.batch}: it fits at once"
    return f"bound by {binding(serving, outlook, budget, options.ttft_ms, options.tpot_ms)}"


def _asks_capacity(options: SizeOptions) -> bool:
    given = (options.request_rate, options.concurrency, options.batch)
    return not options.offline and all(value is None for value in given)


def _under_load(
    serving: Serving, options: SizeOptions
) -> tuple[Outlook, float | None, float | None] | str:
    """The state under the asked load with its mean TTFT and TPOT, or why it cannot be."""
    if _asks_capacity(options):
        best = serving.largest(options.ttft_ms, options.tpot_ms)
        if best is None:
            return too_slow(serving, options.ttft_ms, options.tpot_ms)
        return _checked(serving, best, options, best.ttft_ms)
    if options.offline:
        best = serving.offline()
        return best, None, _tpot(serving, best)
    if options.concurrency is not None:
        state = serving.closed_loop(options.concurrency)
        return _checked(serving, state, options, state.ttft_ms)
    if options.batch is not None:
        state = serving.static(options.batch)
        return _checked(serving, state, options, state.ttft_ms)
    assert options.request_rate is not None
    reached = serving.at_rate(options.request_rate)
    if reached is None or math.isinf(reached.ttft_ms):
        top = serving.largest(None, None)
        most = top.rate if top else 0.0
        return f"{options.request_rate:g} requests/s is beyond the {most:.2f} it can carry"
    return _checked(serving, reached, options, reached.ttft_ms)


def _tpot(serving: Serving, outlook: Outlook) -> float | None:
    return None if isinstance(serving, Embedding) else outlook.tpot_ms


def _checked(
    serving: Serving, outlook: Outlook, options: SizeOptions, ttft: float
) -> tuple[Outlook, float | None, float | None] | str:
    ratios, p = serving.ratios(outlook), f"p{options.percentile:g}"
    if options.tpot_ms is not None and outlook.tpot_ms * ratios[1] > options.tpot_ms * 1.001:
        return f"TPOT {outlook.tpot_ms * ratios[1]:.0f} ms ({p}), SLO {options.tpot_ms:g} ms"
    if options.ttft_ms is not None and ttft * ratios[0] > options.ttft_ms * 1.001:
        return f"TTFT {ttft * ratios[0]:.0f} ms ({p}), SLO {options.ttft_ms:g} ms"
    return outlook, ttft, _tpot(serving, outlook)


def _gpu_part(room: Room) -> float:
    """The part of a GPU's price that one room pays: a slice by its memory slices."""
    mig, name = room.gpu.mig, room.shape.profile
    profile = mig.profile(name) if mig is not None and name is not None else None
    if mig is None or profile is None:
        return 1.0
    return profile.memory_slices / mig.memory_slices


def _price(room: Room, options: SizeOptions) -> float | None:
    price = dict(options.price_per_gpu_hour).get(room.gpu.name)
    return None if price is None else price * room.shape.gpus * _gpu_part(room)


def pareto(entries: Sequence[SizeEntry]) -> tuple[SizeEntry, ...]:
    """The entries that no other is both cheaper than per output and faster than, cheapest first.

    Faster is a shorter TPOT, or TTFT where nothing is decoded.
    """
    found: list[SizeEntry] = []
    fastest = math.inf
    for entry in sorted(entries, key=lambda e: (e.cost_order, _latency(e), _identity(e))):
        if _latency(entry) < fastest:
            fastest = _latency(entry)
            found.append(entry)
    return tuple(found)


def _latency(entry: SizeEntry) -> float:
    told = entry.performance
    if told is None:
        return math.inf
    return told.outlook.tpot_ms or told.outlook.ttft_ms


def size_json(result: SizeResult) -> dict[str, Any]:
    """The answer as ``size -o json`` prints it."""
    best = {id(e) for e in pareto(result.candidates)}
    return {
        "model": result.model.name,
        "candidates": [
            {**_entry_json(e, result.percentile), "pareto": id(e) in best}
            for e in result.candidates
        ],
        "refused": [_entry_json(e, result.percentile) for e in result.refused],
    }


def _entry_json(entry: SizeEntry, percentile: float) -> dict[str, Any]:
    way = entry.way
    said: dict[str, Any] = {
        "gpu": entry.room.gpu.name,
        "mig_profile": entry.room.shape.profile,
        "tensor_parallel": way.tp,
        "pipeline_parallel": way.pp,
        "precision": way.precision,
        "kv_precision": way.kv_precision,
        "attention": way.attention,
        "engine": way.engine,
        "engine_version": way.version,
        "memory": _memory_json(entry),
        "recommended": _advice_json(entry.recommended),
    }
    if entry.refusal is not None:
        return {**said, "reason": entry.refusal}
    return {
        **said,
        "performance": _performance_json(entry.performance, percentile),
        "price_per_hour": _rounded(entry.price_per_hour, 6),
        "price_per_million_output_tokens": _rounded(entry.price_per_million_output_tokens, 6),
        "reasons": list(entry.reasons),
    }


def _advice_json(advice: Recommendation | None) -> dict[str, Any] | None:
    if advice is None:
        return None
    return {
        "flags": list(advice.flags),
        "gpu_memory_utilization": advice.budget.fraction,
        "max_model_len": advice.budget.max_model_len,
        "max_num_seqs": advice.budget.max_num_seqs,
        "max_num_batched_tokens": advice.budget.max_num_batched_tokens,
        "kv_cache_tokens": advice.budget.kv_cache_tokens,
        "max_concurrency": round(advice.budget.max_concurrency, 3),
    }


def _memory_json(entry: SizeEntry) -> dict[str, Any] | None:
    b = entry.budget
    if b is None:
        return None
    return {
        "total_mib": b.total_mib,
        "budget_mib": b.budget_mib,
        "weights_mib": b.weights_mib,
        "activation_mib": b.activation_mib,
        "runtime_mib": b.runtime_mib,
        "kv_cache_mib": b.kv_cache_mib,
        "cuda_graphs_mib": b.cuda_graphs_mib,
        "cuda_graphs_inside_budget": b.graphs_inside,
        "outside_budget_mib": b.outside_mib,
        "max_model_len": b.max_model_len,
        "max_num_seqs": b.max_num_seqs,
        "max_num_batched_tokens": b.max_num_batched_tokens,
        "gpu_memory_utilization": b.fraction,
        "max_concurrency": b.max_concurrency,
        "kv_cache_tokens": b.kv_cache_tokens,
        "kv_cache_tokens_logged": entry.logged_tokens,
    }


def _performance_json(found: Performance | None, percentile: float) -> dict[str, Any] | None:
    if found is None:
        return None
    p = f"p{percentile:g}"
    ttft, tpot = found.ttft_ms, found.tpot_ms
    at_ttft = None if ttft is None else ttft * found.ratios[0]
    at_tpot = None if tpot is None else tpot * found.ratios[1]
    return {
        "ttft_ms": _rounded(ttft, 3),
        "tpot_ms": _rounded(tpot, 3),
        f"ttft_{p}_ms": _rounded(at_ttft, 3),
        f"tpot_{p}_ms": _rounded(at_tpot, 3),
        "requests_per_second": _rounded(found.outlook.rate, 4),
        "output_tokens_per_second": _rounded(found.outlook.output_tokens_per_second, 2),
        "concurrency": _rounded(found.outlook.concurrency, 2),
        "error_band_percent": {
            "ttft": found.band.ttft,
            "tpot": found.band.tpot,
            "throughput": found.band.throughput,
        },
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or math.isinf(value) else round(value, digits)
