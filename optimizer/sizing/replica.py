"""One way to run an LLM replica: does it fit, how fast is it, what may placement count on."""

import math
from dataclasses import dataclass, replace

from optimizer.domain.config import Prediction
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.units import gib
from optimizer.domain.workload import Demand, Extras, Slo
from optimizer.sizing import precision as formats
from optimizer.sizing.batching import Batching, Embedding, Load, Outlook, continuous, prompts_only
from optimizer.sizing.compatibility import Runs, runs
from optimizer.sizing.context import context_fault, context_notes
from optimizer.sizing.memory import MemoryBudget, Settings, memory_budget
from optimizer.sizing.performance import step_model
from optimizer.sizing.residents import NO_EXTRAS
from optimizer.sizing.rooms import Room

Serving = Batching | Embedding

LENGTH_STEP = 1024
LEAST_LENGTH = 4096
WITHOUT_STAGES = ("tgi",)  # its launcher only shards: --num-shard
SEQUENCES = (8, 16, 32, 64, 128, 256, 512, 1024)
SPARE_SEQUENCES = 1.25  # max_num_seqs over the batch at capacity: bursts should not be cut off


@dataclass(frozen=True, slots=True)
class Way:
    """What is chosen: engine and version, formats, parallel sizes; None: to be chosen."""

    engine: str
    version: str
    precision: str
    kv_precision: str = "bf16"
    attention: str | None = None
    tp: int = 1
    pp: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    memory_fraction: float | None = None
    max_num_batched_tokens: int | None = None
    eager: bool = False
    window_ratio: float | None = None
    draft_layers: int = 0
    expert_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """A way that a product can run, its kernel and context length chosen."""

    way: Way
    how: Runs


@dataclass(frozen=True, slots=True)
class Sized:
    """A way that fits and keeps the SLO. ``rate`` is the guarded capacity; None: no demand.

    ``best``: its state at capacity, without the guard.
    """

    way: Way
    budget: MemoryBudget
    how: Runs
    serving: Serving | None = None
    rate: float | None = None
    best: Outlook | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a way is not offered; memory as far as it could be counted."""

    reason: str
    budget: MemoryBudget | None = None
    how: Runs | None = None


def context_length(model: ServedModel, demand: Demand | None) -> int:
    """max_model_len: what the demand names, else input + output rounded up to 1024.

    At least 4096, at most the length the model was trained for.
    """
    if demand is not None and demand.max_context_tokens is not None:
        return demand.max_context_tokens
    tokens = 0
    if demand is not None:
        tokens = (demand.input_tokens or 0) + (demand.output_tokens or 0)
    length = max(LEAST_LENGTH, -(-tokens // LENGTH_STEP) * LENGTH_STEP)
    return min(length, model.max_position_embeddings or length)


def shape_fault(model: ServedModel, precision: str, tp: int, pp: int) -> str | None:
    """Why a model cannot be divided so, or None."""
    if model.attention_heads % tp:
        return f"{model.attention_heads} attention heads do not divide over {tp} GPUs"
    kv = model.kv_heads
    if model.mla is None and kv % tp and tp % kv:
        return f"{kv} KV heads neither divide over {tp} GPUs nor copy evenly"
    if pp > model.layers:
        return f"{model.layers} layers are fewer than {pp} stages"
    group = formats.scheme(precision).group
    widths = [model.intermediate_size] if model.moe is None else [model.moe.intermediate_size]
    for width in widths:
        if tp > 1 and (width % tp or (width // tp) % group):
            return f"width {width} over {tp} GPUs does not divide into groups of {group}"
    return None


def share_fault(card: EngineCard, room: Room, way: Way) -> str | None:
    """Why an engine cannot be held to a share of a GPU, or None.

    Fractions of the device add up to at most one with what each takes beside; a fraction of what
    is free at start depends on the neighbours that started before.
    """
    rule = card.range_of(way.version).memory
    if room.shape.share is None:
        return None
    if rule.charges_neighbours:
        return f"{card.name} {way.version} counts what its neighbours on a GPU hold as its own"
    if rule.share == "total":
        return None
    return f"{card.name} takes a part of what is free at its start: a share of a GPU cannot hold it"


def load_of(demand: Demand, slo: Slo | None) -> Load:
    """The traffic that one replica sees: the deployment's mean request."""
    return Load(
        input_tokens=demand.input_tokens or 0,
        output_tokens=demand.output_tokens or 0,
        arrival_cv=demand.arrival_cv,
        length_cv=demand.length_cv,
        prefix_hit_rate=demand.prefix_hit_rate,
        percentile=slo.percentile if slo else Slo().percentile,
    )


def on_product(
    model: ServedModel,
    card: EngineCard,
    gpu: Gpu,
    way: Way,
    demand: Demand | None,
    attention: tuple[str, ...] | None = None,
) -> Ready | Refusal:
    """What a way means in every room of a product, or why it runs in none."""
    kernel = (way.attention,) if way.attention else attention
    how = runs(card, way.version, gpu, model, way.precision, way.kv_precision, kernel)
    if how.refusal is not None:
        return Refusal(how.refusal)
    length = way.max_model_len or context_length(model, demand)
    fault = shape_fault(model, way.precision, way.tp, way.pp) or context_fault(model, length)
    if way.pp > 1 and card.name in WITHOUT_STAGES:
        fault = f"{card.name} has no pipeline parallelism"
    if fault is not None:
        return Refusal(fault, how=how)
    return Ready(replace(way, max_model_len=length, attention=how.attention), how)


def size_way(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    ready: Ready,
    demand: Demand | None,
    slo: Slo | None,
    extras: Extras = NO_EXTRAS,
    enough: float = 0.0,
) -> Sized | Refusal:
    """One way in one room: fit, speed, capacity inside the SLO, or the reason why not.

    ``enough``: a guarded capacity below which the way is not wanted; some rate below it will do.
    """
    way, how = ready.way, ready.how
    fault = share_fault(card, room, way)
    if fault is not None:
        return Refusal(fault, how=how)
    budget = _budget(model, card, room, way, extras)
    fits = budget.surely_fits
    if not fits and way.max_num_seqs is None:
        budget = _budget(model, card, room, way, extras, SEQUENCES[0])
        fits = budget.surely_fits
    if not fits:
        return Refusal(no_room(budget, room), budget, how)
    if demand is None:
        return Sized(way, budget, how)
    return _capacity(model, card, room, way, budget, how, load_of(demand, slo), slo, extras, enough)


def _budget(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    extras: Extras,
    seqs: int | None = None,
) -> MemoryBudget:
    """The way's memory; ``seqs``: with so many sequences where the way leaves them open."""
    settings = Settings(
        precision=way.precision,
        kv_precision=way.kv_precision,
        tp=way.tp,
        pp=way.pp,
        max_model_len=way.max_model_len or LEAST_LENGTH,
        max_num_seqs=way.max_num_seqs or seqs,
        max_num_batched_tokens=way.max_num_batched_tokens,
        fraction=way.memory_fraction,
        eager=way.eager,
        attention=way.attention or "",
    )
    device = room.gpu.usable_mib if room.shape.share is not None else room.total_mib
    return memory_budget(
        model,
        card,
        room.gpu,
        settings,
        total_mib=room.total_mib,
        device_mib=device,
        version=way.version,
        extras=extras,
        fill=True,
    )


def no_room(budget: MemoryBudget, room: Room) -> str:
    """Why it does not fit, in numbers."""
    request = budget.layout.bytes_per_request(budget.max_model_len, budget.max_num_batched_tokens)
    inside = budget.cuda_graphs_mib if budget.graphs_inside else 0
    if budget.max_concurrency >= 1 and budget.used_mib > budget.total_mib:
        return (
            f"its budget of {gib(budget.budget_mib):.1f} GiB and {gib(budget.outside_mib):.1f} GiB "
            f"beside it are more than the {gib(budget.total_mib):.1f} GiB of {room.name}: give the "
            "engine a smaller fraction"
        )
    parts = [
        f"weights {gib(budget.weights_mib):.1f} GiB",
        f"activation {gib(budget.activation_mib):.1f}",
        f"runtime {gib(budget.runtime_mib + inside + budget.outside_mib):.1f}",
        f"KV of one {budget.max_model_len}-token request {request / 2**30:.2f}",
    ]
    short = budget.least_mib - budget.total_mib
    lacking = f": {gib(short):.1f} GiB too little" if short > 0 else ""
    return (
        f"{' + '.join(parts)} need {gib(budget.least_mib):.1f} GiB, {room.name} has "
        f"{gib(budget.total_mib):.1f} GiB, {gib(budget.budget_mib):.1f} of them for the engine"
        f"{lacking}"
    )


def serving_of(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    budget: MemoryBudget,
    how: Runs,
    load: Load,
) -> Serving | None:
    """The replica's batching under that load; None where its speed is unknown."""
    step = step_model(
        model, card, way.version, room.device, how, way.precision, way.kv_precision, way.tp, way.pp
    )
    if step is None:
        return None
    host = card.range_of(way.version).host
    held = load.input_tokens + host.kv_output_fraction * load.output_tokens
    chunk = budget.max_num_batched_tokens
    blocks = budget.layout.blocks_per_request(max(1, math.ceil(held)), chunk)
    limit = min(float(budget.max_num_seqs), budget.free_blocks / blocks if blocks else math.inf)
    front_end = host.front_end_ms / 1e3
    if model.task == "embed":
        return prompts_only(step, load, limit, chunk, front_end)
    return continuous(step, load, limit, chunk, front_end, card.batching == "in-flight")


def _capacity(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    budget: MemoryBudget,
    how: Runs,
    load: Load,
    slo: Slo | None,
    extras: Extras,
    enough: float,
) -> Sized | Refusal:
    serving = serving_of(model, card, room, way, budget, how, load)
    if serving is None:
        return Refusal(f"the datasheet of {room.gpu.name} has no {how.gemm} peak", budget, how)
    ttft, tpot = limits_of(slo)
    best = serving.largest(ttft, tpot, enough / card.guard)
    if best is None:
        return Refusal(too_slow(serving, ttft, tpot), budget, how)
    wanted = best.rate * card.guard >= enough
    if wanted and way.max_num_seqs is None and best.concurrency >= serving.batch_limit:
        fewer = _fewer_sequences(model, card, room, way, budget, best, extras)
        if fewer is not budget:  # the KV cache was the limit and has grown
            grown = serving_of(model, card, room, way, fewer, how, load)
            assert grown is not None
            found = grown.largest(ttft, tpot, enough / card.guard) or best
            way = replace(way, max_num_seqs=fewer.max_num_seqs)
            return Sized(way, fewer, how, grown, found.rate * card.guard, found)
    return Sized(way, budget, how, serving, best.rate * card.guard, best)


def limits_of(slo: Slo | None) -> tuple[float | None, float | None]:
    """TTFT and TPOT limits, ms."""
    return (slo.ttft_ms, slo.tpot_ms) if slo else (None, None)


def _fewer_sequences(
    model: ServedModel,
    card: EngineCard,
    room: Room,
    way: Way,
    budget: MemoryBudget,
    best: Outlook,
    extras: Extras,
) -> MemoryBudget:
    """The budget of no more sequences than the batch at capacity needs: the rest is KV cache."""
    wanted = best.concurrency * SPARE_SEQUENCES
    seqs = next((s for s in SEQUENCES if s >= wanted), SEQUENCES[-1])
    if seqs >= budget.max_num_seqs:
        return budget
    return _budget(model, card, room, way, extras, seqs)


def settled(
    model: ServedModel, card: EngineCard, room: Room, sized: Sized, extras: Extras
) -> Sized:
    """The way with what was left open: max_num_seqs, the memory fraction.

    max_num_seqs starts at the engine's default and shrinks to what the batch at capacity needs.
    """
    way, budget = sized.way, sized.budget
    if way.max_num_seqs is None and sized.best is not None:
        budget = _fewer_sequences(model, card, room, way, budget, sized.best, extras)
    way = replace(way, max_num_seqs=budget.max_num_seqs, memory_fraction=budget.fraction)
    return replace(sized, way=way, budget=budget)


def too_slow(serving: Serving, ttft: float | None, tpot: float | None) -> str:
    """The latency that breaks the SLO even with next to no traffic."""
    idle = serving.at_load(0.01) if isinstance(serving, Embedding) else serving.at_batch(0.01)
    p = f"p{serving.load.percentile:g}"
    ratios = serving.ratios(idle)
    said = []
    if tpot is not None and idle.tpot_ms * ratios[1] > tpot:
        said.append(
            f"TPOT {_over(idle.tpot_ms * ratios[1], tpot)} ms at batch 1 ({p}), SLO {tpot:g} ms"
        )
    if ttft is not None and idle.ttft_ms * ratios[0] > ttft:
        said.append(
            f"TTFT {_over(idle.ttft_ms * ratios[0], ttft)} ms unloaded ({p}), SLO {ttft:g} ms"
        )
    return "; ".join(said) or "no rate keeps TTFT and TPOT inside the SLO"


def _over(ms: float, limit: float) -> str:
    """A time above its limit, with as many digits as it takes to see that it is above."""
    told = (f"{ms:.{digits}f}" for digits in range(4))
    return next((text for text in told if float(text) > limit), f"{ms:g}")


def binding(
    serving: Serving,
    best: Outlook,
    budget: MemoryBudget,
    ttft: float | None,
    tpot: float | None,
) -> str:
    """What keeps the capacity from being larger."""
    if isinstance(serving, Embedding):
        return "the TTFT limit" if ttft is not None else "prefill speed"
    if best.concurrency >= serving.batch_limit * 0.999:
        if serving.batch_limit >= budget.max_num_seqs:
            return f"max_num_seqs {budget.max_num_seqs}"
        return f"KV cache ({budget.kv_cache_tokens} tokens)"
    near = 0.99
    ratios = serving.ratios(best)
    if tpot is not None and best.tpot_ms * ratios[1] >= near * tpot:
        return "the TPOT limit"
    if ttft is not None and best.ttft_ms * ratios[0] >= near * ttft:
        return "the TTFT limit"
    return "prefill speed"


def predicted(card: EngineCard, model: ServedModel, sized: Sized) -> Prediction | None:
    """What the replica does at its guarded capacity."""
    if sized.serving is None or sized.rate is None:
        return None
    state = sized.serving.at_rate(sized.rate, sized.best)
    if state is None:
        return None
    band = card.moe_band if model.moe is not None else card.dense_band
    ttft, tpot = sized.serving.ratios(state)
    decodes = model.task != "embed"
    return Prediction(
        ttft_ms=round(state.ttft_ms * ttft, 3),
        tpot_ms=round(state.tpot_ms * tpot, 3) if decodes else None,
        ttft_mean_ms=round(state.ttft_ms, 3),
        tpot_mean_ms=round(state.tpot_ms, 3) if decodes else None,
        concurrency=round(state.concurrency, 3),
        output_tokens_per_second=round(state.output_tokens_per_second, 3),
        error_band_percent=(
            ("ttft", band.ttft),
            ("tpot", band.tpot),
            ("throughput", band.throughput),
        ),
    )


def reasons(model: ServedModel, sized: Sized, room: Room, slo: Slo | None) -> tuple[str, ...]:
    """Why this way: its memory, what binds it, and what it gives up."""
    b = sized.budget
    said = [
        f"{room.name}: weights {gib(b.weights_mib):.1f} GiB, KV cache {gib(b.kv_cache_mib):.1f} GiB"
        f" ({b.kv_cache_tokens} tokens), activation and runtime "
        f"{gib(b.activation_mib + b.runtime_mib):.1f} GiB, of {gib(b.total_mib):.1f} GiB"
    ]
    if sized.rate is not None and sized.serving is not None and sized.best is not None:
        bound = binding(sized.serving, sized.best, b, *limits_of(slo))
        said.append(f"capacity {sized.rate:.2f} requests/s is bound by {bound}")
    said.extend(sized.how.notes)
    risk = formats.scheme(sized.way.precision).risk
    if risk:
        said.append(risk)
    said.extend(context_notes(model, b.max_model_len, sized.way.kv_precision))
    if room.shape.share is not None:
        said.append("engines on one GPU must start one after the other, each after the last serves")
    if room.slow_link:
        said.append("its GPUs talk over PCIe on some node; the cost is counted")
    return tuple(said)
