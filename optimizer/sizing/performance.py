"""How fast a replica runs: one forward step, continuous batching at a rate, capacity in an SLO.

    t_lin  = ((W/BW)^p + (2 A T/F)^p)^(1/p)     weights against bandwidth, flops against peak
    t_attn = KV read against bandwidth;  t_comm = two all-reduces a layer;  t_host = launches
    step   = t_lin + t_attn + t_comm + t_host

Constants are the engine card's, fitted on published measurements. Seconds throughout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

from optimizer.domain.engine import EngineCard, HostRule, Rates
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.domain.units import ceil_div
from optimizer.sizing.compatibility import Runs
from optimizer.sizing.kvcache import layer_kinds
from optimizer.sizing.precision import KV_BYTES, scheme
from optimizer.sizing.weights import Parameters, moe_layers, parameters, position_bytes, weights

# Measured over 159 MLPerf Poisson runs: p99 over mean. A log-normal of mean 1 through that point
# gives the other percentiles: ratio(p) = exp(sigma z - sigma^2/2), z the normal quantile.
TPOT_P99_OVER_MEAN = 1.17
TTFT_P99_OVER_MEAN = 2.5
PCIE_GBS = {3: 15.75, 4: 31.5, 5: 63.0, 6: 126.0}  # 16 lanes, one direction (PCI-SIG)
# Closed-loop benchmarks send some ten requests a user, the first of all users at once. Eight fits
# published TTFT best: a user's later requests also meet some of the others.
ROUNDS_PER_USER = 8
_P99 = NormalDist().inv_cdf(0.99)
_STEPS = 14  # halvings: 2^-14 of the batch is far under the model's error
_CLOSE = 1e-3  # as near as a latency must come to its limit
_FAR_BEYOND = 3.0  # logarithms: waiting without end counts as e^3 times a limit,
_NEGLIGIBLE = 1e-9  # and a state without limits as far inside
_BUSIEST = 0.98  # of the prefill budget: beyond, waiting times mean nothing


@dataclass(frozen=True, slots=True)
class Device:
    """The part of a GPU that a replica runs on, and the link between its GPUs."""

    gpu: Gpu
    bandwidth_gbs: float
    compute: float = 1.0  # part of the GPU's SMs
    link_gbs: float = 0.0  # one direction, between the GPUs of a tensor-parallel group
    nvlink: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """Mean traffic. ``prefix_hit_rate``: part of the prompt already in the prefix cache."""

    input_tokens: float
    output_tokens: float
    arrival_cv: float = 1.0
    length_cv: float = 0.0
    prefix_hit_rate: float = 0.0
    percentile: float = 95.0


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of one forward step on one GPU, precomputed per model, precision and device."""

    memory_dense_s: float  # weights read by every step
    memory_experts_s: float  # all experts
    expert_share: float  # k/E; 0 without experts
    token_flop_s: float  # products of one token, head included
    prompt_flop_s: float  # the same without the head
    kv_s: tuple[tuple[float, float], ...]  # (width in tokens, seconds per token of context)
    state_s: float  # per sequence
    attention_s: float  # prompt attention: per token and token of context, over full layers
    window_attention_s: tuple[tuple[float, float], ...]
    comm_base_s: float
    comm_token_s: float
    host_s: float
    sequence_s: float
    power: float
    stages: int = 1

    def products(self, decoding: float, prompt: float = 0.0) -> float:
        """Matrix products of a step: tokens of decoding sequences, and of prompts without a head.

        Experts that no token meets are not read: E (1 - (1 - k/E)^T) are.
        """
        memory = self.memory_dense_s
        if self.expert_share:
            memory += self.memory_experts_s * (1 - (1 - self.expert_share) ** (decoding + prompt))
        p = self.power
        compute = self.token_flop_s * decoding + self.prompt_flop_s * prompt
        return float((memory**p + compute**p) ** (1 / p))

    def sequence(self, context: float) -> float:
        """What each sequence of that context adds to a step beside its matrix products."""
        kv = sum(s * min(context, w) for w, s in self.kv_s)
        return kv + self.state_s + self.comm_token_s + self.sequence_s

    def decode(self, batch: float, sequence: float) -> float:
        """A step in which ``batch`` sequences each get a token; ``sequence``: of their context."""
        share = max(1.0, batch / self.stages)
        step = self.products(share) + share * sequence + self.comm_base_s + self.host_s
        return step * self.stages

    def decode_and_prompt(
        self, batch: float, sequence: float, new: float, chunk: float
    ) -> tuple[float, float]:
        """A decoding step, and what the products of a prompt add to the steps that it shares."""
        share = max(1.0, batch / self.stages)
        part, alone = min(new, chunk), self.products(share)
        step = alone + share * sequence + self.comm_base_s + self.host_s
        return step * self.stages, (self.products(share, part) - alone) * new / part

    def attention(self, tokens: float, cached: float = 0.0) -> float:
        """What a prompt takes beside its products, its first part cached: attention, exchange."""
        new = max(1.0, tokens - cached)
        context = cached + new / 2
        pairs = new * context * self.attention_s
        pairs += sum(new * min(context, w) * s for w, s in self.window_attention_s)
        return pairs + new * self.comm_token_s

    def prefill_batch(self, tokens: float, length: float) -> float:
        """A step of nothing but prompts of that length, as embedding models run."""
        prompts = tokens / length
        attention = prompts * self.attention(length)
        fixed = self.comm_base_s + self.host_s + self.sequence_s * prompts
        return self.products(0.0, tokens) + attention + fixed


@dataclass(frozen=True, slots=True)
class Outlook:
    """A replica at some rate. Times in ms; ``rate`` in requests per second."""

    rate: float
    concurrency: float
    tpot_ms: float
    ttft_ms: float
    output_tokens_per_second: float


def peak_tflops(gpu: Gpu, gemm: str) -> float | None:
    """Dense peak of a product's kind; 16-bit kinds stand in for one another; None: unknown."""
    peak = gpu.dense_tflops.get(gemm)
    if peak is None and gemm in ("bf16", "fp16"):
        peak = gpu.dense_tflops.get("fp16") or gpu.dense_tflops.get("bf16")
    return peak


@lru_cache(maxsize=4096)
def step_model(
    model: ServedModel,
    card: EngineCard,
    version: str,
    device: Device,
    how: Runs,
    precision: str,
    kv_precision: str = "bf16",
    tp: int = 1,
    pp: int = 1,
) -> StepModel | None:
    """The step of that replica, or None where the datasheet has no peak for its products."""
    peak, attention_peak = peak_tflops(device.gpu, how.gemm), peak_tflops(device.gpu, "bf16")
    reached = card.efficiency(device.gpu)
    if peak is None or attention_peak is None or reached is None:
        return None
    rates, host = card.rates, card.range_of(version).host
    flops = peak * 1e12 * device.compute * reached.compute * how.compute_factor
    if how.gemm == "fp4":
        flops *= rates.fp4_gemm
    attention_flops = attention_peak * 1e12 * device.compute * reached.compute
    attention_flops *= rates.prompt_attention * how.attention_factor
    bandwidth = device.bandwidth_gbs * 1e9 * reached.bandwidth
    s, p = scheme(precision), parameters(model, tp)
    held = weights(model, s, tp, pp)
    active, expert_active = _active(model, p, pp)
    moe_s = 2 * expert_active / (flops * rates.moe_gemm)
    head = p.embedding if model.tied_embeddings else p.head
    head = 0.0 if model.task == "embed" else head / pp
    kv, state, attention, windows = _attention_seconds(
        model, kv_precision, tp, pp, bandwidth * rates.kv_bandwidth, attention_flops
    )
    comm_base, comm_token = _communication(model, device, rates, tp, pp)
    layers = ceil_div(model.layers, pp)
    head_bytes = held.embedding if model.tied_embeddings else held.head
    other = held.other - p.vision * s.other_bytes - position_bytes(model)
    return StepModel(
        memory_dense_s=(held.linear + other + head_bytes) / bandwidth,
        memory_experts_s=held.experts / bandwidth,
        expert_share=model.moe.experts_per_token / model.moe.experts if model.moe else 0.0,
        token_flop_s=2 * (active + head) / flops + moe_s,
        prompt_flop_s=2 * active / flops + moe_s,
        kv_s=kv,
        state_s=state,
        attention_s=attention,
        window_attention_s=windows,
        comm_base_s=comm_base,
        comm_token_s=comm_token,
        host_s=_host_seconds(model, host, layers),
        sequence_s=host.sequence_us / 1e6,
        power=rates.sum_power,
        stages=pp,
    )


def _active(model: ServedModel, p: Parameters, pp: int) -> tuple[float, float]:
    """Parameters a token meets on one rank and stage: dense ones without the head, experts."""
    dense = p.attention + p.replicated + p.mlp + p.shared_experts
    experts = 0.0
    if model.moe is not None:
        experts = p.experts * model.moe.experts_per_token / model.moe.experts
    return dense / pp, experts / pp


def _attention_seconds(
    model: ServedModel, kv_precision: str, tp: int, pp: int, bandwidth: float, flops: float
) -> tuple[
    tuple[tuple[float, float], ...], float, float, tuple[tuple[float, float], ...]
]:  # fmt: skip
    """KV reads by width, state reads, and prompt attention over full and windowed layers."""
    kv: list[tuple[float, float]] = []
    windows: list[tuple[float, float]] = []
    state = full = 0.0
    heads = model.attention_heads / tp
    size = model.global_head_size or model.head_size
    if model.mla is not None:
        size = (model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim) // 2
    for kind in layer_kinds(model, KV_BYTES[kv_precision], tp):
        width = float(kind.width) if kind.width else math.inf
        per_pair = 4 * heads * size * kind.layers / pp / flops
        if kind.span == "state":
            state += 2 * kind.state_bytes * kind.layers / pp / bandwidth
            continue
        kv.append((width, kind.bytes_per_token * kind.layers / pp / bandwidth))
        if kind.width:
            windows.append((width, per_pair))
        else:
            full += per_pair
    return tuple(kv), state, full, tuple(windows)


def _communication(
    model: ServedModel, device: Device, rates: Rates, tp: int, pp: int
) -> tuple[float, float]:
    """Two all-reduces a layer: a fixed part, and seconds per token."""
    if tp == 1:
        return 0.0, 0.0
    latency = rates.nvlink_latency_us if device.nvlink else rates.pcie_latency_us
    reached = rates.nvlink_efficiency if device.nvlink else rates.pcie_efficiency
    layers = 2 * model.layers / pp
    ring = 2 * (tp - 1) / tp * model.hidden_size * 2 / (device.link_gbs * 1e9 * reached)
    return layers * latency / 1e6, layers * ring


def _host_seconds(model: ServedModel, host: HostRule, layers: int) -> float:
    sparse = moe_layers(model) * layers / model.layers
    return (layers * host.layer_us + sparse * host.moe_layer_us + host.step_us) / 1e6


@lru_cache(maxsize=1024)
def percentile_ratio(percentile: float, p99_over_mean: float) -> float:
    """The percentile over the mean, log-normal through the measured p99.

    sigma^2/2 - z99 sigma + ln(p99/mean) = 0; ratio = exp(sigma z - sigma^2/2).
    """
    sigma = _P99 - math.sqrt(max(0.0, _P99**2 - 2 * math.log(p99_over_mean)))
    z = NormalDist().inv_cdf(min(99.99, max(0.01, percentile)) / 100)
    return math.exp(sigma * z - sigma**2 / 2)


@dataclass(frozen=True, slots=True)
class Batching:
    """Continuous batching of one replica: its step, its limits and its traffic."""

    step: StepModel
    load: Load
    batch_limit: float  # sequences at once: max_num_seqs, and what the KV cache holds
    chunk: int  # prompt tokens one step may take
    front_end_s: float
    attention_s: float  # what one prompt takes beside its products
    sequence_s: float  # what one running sequence adds to a step
    new_tokens: float  # of a prompt: those that the prefix cache does not hold
    in_flight: bool = True  # else a batch runs to its end before the next begins

    def at_batch(self, batch: float) -> Outlook:
        """The steady state that keeps ``batch`` sequences running.

        lambda = b/(O step + b pm), TPOT = step/(1 - lambda pm) (Little's law; prompts take their
        part of every step); TTFT = front end + pm + chunks x step + step/2 + the queue's wait
        lambda S^2 (ca^2 + cs^2)/(2 (1 - lambda S)), S = pm + step x I/C (Kingman).
        """
        if not self.in_flight:
            return self._whole_batches(batch)
        load, new = self.load, self.new_tokens
        step, products = self.step.decode_and_prompt(batch, self.sequence_s, new, self.chunk)
        prompt = products + self.attention_s
        rate = batch / (load.output_tokens * step + batch * prompt)
        service = prompt + step * new / self.chunk
        busy = rate * service
        wait = math.inf
        if busy < _BUSIEST:
            spread = load.arrival_cv**2 + load.length_cv**2
            wait = rate * service**2 * spread / (2 * (1 - busy))
        chunks = math.ceil(new / self.chunk)
        ttft = self.front_end_s + prompt + (chunks + 0.5) * step + wait
        tpot = step / (1 - rate * prompt)
        return Outlook(rate, batch, tpot * 1e3, ttft * 1e3, rate * load.output_tokens)

    def _whole_batches(self, batch: float) -> Outlook:
        """Static and dynamic batching: prompts together, then outputs, then the next batch.

        A request waits for half of the batch before its own, or for the busy part of the time
        where one at a time is enough.
        """
        first, whole, step = self._one_batch(max(1.0, batch))
        rate = batch / whole
        wait = min(1.0, batch) * whole / 2
        tokens = self.load.output_tokens
        return Outlook(rate, batch, step * 1e3, (first + wait) * 1e3, rate * tokens)

    def _one_batch(self, batch: float) -> tuple[float, float, float]:
        """Seconds to the first tokens of one batch, to its end, and of one of its steps."""
        step = self.step.decode(batch, self.sequence_s)
        prompts = self.step.products(0.0, batch * self.new_tokens) + batch * self.attention_s
        return (
            self.front_end_s + prompts + step,
            prompts + (self.load.output_tokens + 1) * step,
            step,
        )

    def at_rate(self, rate: float) -> Outlook | None:
        """The steady state at an arrival rate; None beyond what the batch limit can carry."""
        most, least = self.at_batch(self.batch_limit), self.at_batch(self.batch_limit * _NEGLIGIBLE)
        if most.rate < rate:
            return None
        if least.rate >= rate:
            return least

        def excess(state: Outlook) -> float:
            return state.rate / rate - 1

        return self._edge(excess, least, most, _CLOSE / 100)

    def offline(self) -> Outlook:
        """All requests queued at once: the batch limit is always full."""
        return self.at_batch(self.batch_limit)

    def closed_loop(self, users: float) -> Outlook:
        """So many users, each asking again when answered: users = rate x (TTFT + O x TPOT).

        Beyond the batch limit they wait in line before their first token. The mean TTFT counts
        the start, when all ask at once, as one of ``ROUNDS_PER_USER`` requests: a prompt then
        waits for half of the others.
        """
        low, high = 0.0, min(users, self.batch_limit)
        if self._users(high, users) <= users:
            full = self._unqueued(high, users)
            waiting = users / full.rate - self.load.output_tokens * full.tpot_ms / 1e3
            return replace(full, ttft_ms=max(full.ttft_ms, waiting * 1e3))
        for _ in range(2 * _STEPS):
            middle = (low + high) / 2
            if self._users(middle, users) < users:
                low = middle
            else:
                high = middle
        return self._unqueued(high, users)

    def static(self, batch: int) -> Outlook:
        """One fixed batch: all prompts first, then all outputs; in waves beyond the limit."""
        together = min(float(batch), self.batch_limit)
        waves = math.ceil(batch / together)
        first, whole, step = self._one_batch(together)
        rate = batch / (waves * whole)
        ttft = first + (waves - 1) / 2 * whole
        return Outlook(rate, together, step * 1e3, ttft * 1e3, rate * self.load.output_tokens)

    def _unqueued(self, batch: float, users: float) -> Outlook:
        """A closed loop's state: nobody waits for a place, but all have started at once."""
        state = self.at_batch(batch)
        if not self.in_flight:
            return state
        new, chunk = self.new_tokens, self.chunk
        step, products = self.step.decode_and_prompt(batch, self.sequence_s, new, chunk)
        _, full_chunk = self.step.decode_and_prompt(batch, self.sequence_s, chunk, chunk)
        one_of_many = full_chunk * new / chunk + self.attention_s
        start = users / 2 / ROUNDS_PER_USER * one_of_many
        ttft = self.front_end_s + products + self.attention_s
        ttft += (math.ceil(new / chunk) + 0.5) * step + start
        return replace(state, ttft_ms=ttft * 1e3)

    def _users(self, batch: float, users: float) -> float:
        """How many users keep that batch running, given how many start."""
        state = self._unqueued(batch, users)
        return state.rate * (state.ttft_ms + self.load.output_tokens * state.tpot_ms) / 1e3

    def largest(self, ttft_ms: float | None, tpot_ms: float | None) -> Outlook | None:
        """The busiest state whose latencies at the percentile stay inside; None: not even idle.

        Without limits, the offline maximum: the largest batch that its prompts can feed.
        """
        ratios = self.ratios
        tpot_limit = math.inf if tpot_ms is None else tpot_ms / ratios[1]
        ttft_limit = math.inf if ttft_ms is None else ttft_ms / ratios[0]

        def excess(state: Outlook) -> float:
            """How far beyond a limit, as a logarithm; below zero inside."""
            if math.isinf(state.ttft_ms):
                return _FAR_BEYOND
            worst = max(state.tpot_ms / tpot_limit, state.ttft_ms / ttft_limit, _NEGLIGIBLE)
            return min(_FAR_BEYOND, math.log(worst))

        best, least = self.at_batch(self.batch_limit), self.at_batch(self.batch_limit / 2**_STEPS)
        if excess(best) <= 0:
            return best
        if excess(least) > 0:
            return None
        return self._edge(excess, least, best, _CLOSE)

    def _edge(
        self,
        excess: Callable[[Outlook], float],
        inside: Outlook,
        beyond: Outlook,
        close: float,
    ) -> Outlook:
        """The last state inside, to within ``close``: false position (Illinois).

        It aims at half of that below the edge, so that it lands inside.
        """
        low, high = excess(inside) + close / 2, excess(beyond) + close / 2
        side = 0
        for _ in range(2 * _STEPS):
            part = low / (low - high) if low < 0 else 0.5
            width = beyond.concurrency - inside.concurrency
            state = self.at_batch(inside.concurrency + width * part)
            found = excess(state)
            if found <= 0:
                inside, low = state, found + close / 2
                high /= 1 + (side < 0)  # the same end moved twice: draw the next guess to the other
                side = -1
                if found > -close:
                    break
            else:
                beyond, high = state, found + close / 2
                low /= 1 + (side > 0)
                side = 1
        return inside

    @property
    def ratios(self) -> tuple[float, float]:
        """TTFT and TPOT at the load's percentile over their means; bursts widen both."""
        burst = max(1.0, self.load.arrival_cv)
        ttft = percentile_ratio(self.load.percentile, TTFT_P99_OVER_MEAN)
        tpot = percentile_ratio(self.load.percentile, TPOT_P99_OVER_MEAN)
        if self.load.percentile <= 50:
            return ttft, tpot
        return ttft, max(tpot, 1 + (tpot - 1) * burst)


def continuous(
    step: StepModel,
    load: Load,
    batch_limit: float,
    chunk: int,
    front_end_s: float,
    in_flight: bool = True,
) -> Batching:
    """The batching of a replica under that load.

    A running sequence's mean context is its prompt and half its output.
    """
    cached = load.input_tokens * load.prefix_hit_rate
    context = load.input_tokens + load.output_tokens / 2
    return Batching(
        step,
        load,
        batch_limit,
        chunk,
        front_end_s,
        attention_s=step.attention(load.input_tokens, cached),
        sequence_s=step.sequence(context),
        new_tokens=max(1.0, load.input_tokens - cached),
        in_flight=in_flight,
    )


@dataclass(frozen=True, slots=True)
class Embedding:
    """Prefill-only serving: prompts in, vectors out."""

    step: StepModel
    load: Load
    batch_limit: float
    chunk: int
    front_end_s: float

    @property
    def ratios(self) -> tuple[float, float]:
        """Latency at the percentile over its mean, and 1: there is no TPOT."""
        return percentile_ratio(self.load.percentile, TTFT_P99_OVER_MEAN), 1.0

    def at_load(self, busy: float) -> Outlook:
        """The steady state at that part of the largest rate (a full step of prompts)."""
        length = max(1.0, self.load.input_tokens)
        tokens = max(length, min(self.chunk, self.batch_limit * length))
        full = self.step.prefill_batch(tokens, length)
        rate = busy * tokens / length / full
        alone = self.step.prefill_batch(length, length)
        spread = self.load.arrival_cv**2 + self.load.length_cv**2
        wait = busy * full * spread / (2 * max(1e-9, 1 - busy))
        latency = self.front_end_s + alone + full * busy + wait
        return Outlook(rate, rate * latency, 0.0, latency * 1e3, 0.0)

    def at_rate(self, rate: float) -> Outlook | None:
        """The steady state at an arrival rate; None beyond the largest."""
        top = self.at_load(1.0).rate
        return self.at_load(rate / top) if rate < top else None

    def offline(self) -> Outlook:
        """All prompts queued at once."""
        return self.at_load(1.0)

    def closed_loop(self, users: float) -> Outlook:
        """So many users, each asking again when answered: users = rate x latency."""
        one = self.at_load(0.0)
        top = self.at_load(1.0).rate
        rate = min(top, users / (one.ttft_ms / 1e3))
        return replace(one, rate=rate, concurrency=users, ttft_ms=users / rate * 1e3)

    def static(self, batch: int) -> Outlook:
        """One fixed batch of prompts."""
        length = max(1.0, self.load.input_tokens)
        seconds = self.step.prefill_batch(batch * length, length)
        latency = (self.front_end_s + seconds) * 1e3
        return Outlook(batch / seconds, float(batch), 0.0, latency, 0.0)

    def largest(self, ttft_ms: float | None, tpot_ms: float | None) -> Outlook | None:
        """The busiest state whose latency at the percentile stays inside; None: not even idle."""
        del tpot_ms
        limit = math.inf if ttft_ms is None else ttft_ms / self.ratios[0]
        low, high, found = 0.0, _BUSIEST, None
        if self.at_load(high).ttft_ms <= limit:
            return self.at_load(high)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            state = self.at_load(middle)
            if state.ttft_ms <= limit:
                low, found = middle, state
            else:
                high = middle
        return found
