"""A replica under traffic: batching at a rate, latencies at a percentile, capacity inside an SLO.

Steps last as ``performance`` has it. Seconds throughout, but for what an Outlook says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from optimizer.sizing import queueing
from optimizer.sizing.performance import StepModel

# Measured over 159 MLPerf Poisson runs: p99 over mean. A log-normal of mean 1 through that point
# gives the other percentiles: ratio(p) = exp(sigma z - sigma^2/2), z the normal quantile.
TPOT_P99_OVER_MEAN = 1.17
TTFT_P99_OVER_MEAN = 2.5
# Closed-loop benchmarks send some ten requests a user, the first of all users at once. Eight fits
# published TTFT best: a user's later requests also meet some of the others.
ROUNDS_PER_USER = 8
_P99 = NormalDist().inv_cdf(0.99)
_STEPS = 14  # halvings: 2^-14 of the batch is far under the model's error
_CLOSE = 3e-3  # as near as a latency must come to its limit
_FAR_BEYOND = 3.0  # logarithms: waiting without end counts as e^3 times a limit,
_NEGLIGIBLE = 1e-9  # and a state without limits as far inside
_BUSIEST = 0.98  # of the prefill budget: beyond, waiting times mean nothing
# Percentiles over means, of what they come to without: then 19 of 20 simulated states stay inside.
_LATER, _SLOWER = 1.45, 1.8
_FEW = 0.05  # prompts: fewer change no rate
_MOST_ELASTIC = 0.95  # of a step in its batch


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
class Outlook:
    """A replica at some rate. Times in ms; ``rate`` in requests per second.

    ``late_``: at the load's percentile, where it was worked out.
    """

    rate: float
    concurrency: float
    tpot_ms: float
    ttft_ms: float
    output_tokens_per_second: float
    late_ttft_ms: float = 0.0
    late_tpot_ms: float = 0.0


class _Line(NamedTuple):
    """Prompts that wait for their turn, seconds."""

    rate: float
    busy: float  # part of the time
    service: float
    waits: float  # on the mean
    part: float  # of the prompts that wait
    uneven: float  # variance of a prompt's own time over its squared mean
    cycle: float  # from one step to the next
    under_way: float  # what an arrival waits for of the step that it meets
    together: float  # how far prompts share steps: 0 one by one, 1 all


@lru_cache(maxsize=1024)
def percentile_ratio(percentile: float, p99_over_mean: float) -> float:
    """The percentile over the mean, log-normal through the measured p99.

    sigma^2/2 - z99 sigma + ln(p99/mean) = 0; ratio = exp(sigma z - sigma^2/2).
    """
    sigma = _P99 - math.sqrt(max(0.0, _P99**2 - 2 * math.log(p99_over_mean)))
    return math.exp(sigma * normal_quantile(percentile) - sigma**2 / 2)


def log_normal_ratio(percentile: float, spread: float) -> float:
    """The percentile over the mean of a log-normal whose variance is ``spread`` squared means."""
    variance = math.log(1 + spread)
    return math.exp(math.sqrt(variance) * normal_quantile(percentile) - variance / 2)


@lru_cache(maxsize=1024)
def normal_quantile(percentile: float) -> float:
    """How many standard deviations above the mean that percentile lies."""
    return NormalDist().inv_cdf(min(99.99, max(0.01, percentile)) / 100)


@dataclass(frozen=True, slots=True)
class Batching:
    """Continuous batching of one replica: its step, its limits and its traffic."""

    step: StepModel
    load: Load
    batch_limit: float  # sequences at once: max_num_seqs, and what the KV cache holds
    chunk: int  # prompt tokens one step may take
    front_end_s: float
    attention_s: float  # what one prompt takes beside its products,
    pairs_s: float  # and what of it grows by the square of its length
    sequence_s: float  # what one running sequence adds to a step
    new_tokens: float  # of a prompt: those that the prefix cache does not hold
    packed: float  # prompts that a step holds, at least 1
    in_flight: bool = True  # else a batch runs to its end before the next begins
    full_rate: float = math.inf  # at the batch limit
    chunks: float = 1.0  # steps that a prompt takes part in,
    room: float = 0.0  # and how many others its last one has room for
    luck: float = 0.0  # -ln of the part beyond the percentile; 0: of a median

    def at_batch(self, batch: float) -> Outlook:
        """The steady state in which arrivals keep ``batch`` sequences running.

        TPOT = (f s + pm X (1 + cv^2)/O)/(1 - lambda pm), and lambda by Little's law: prompts take
        their part rho = lambda pm of the time, s is a decoding step, X the clump that comes right
        behind a request, beyond what comes by chance. f = 1 + rho/(2 (1 - rho)^2 (b+1)) + e V/b:
        batches grow when steps are long. V is the batch's variance over its mean, e the elasticity
        of s (linear noise about the fixed point).
        """
        if not self.in_flight:
            return self._whole_batches(batch)
        load, lengths = self.load, self.load.length_cv**2
        step, products = self.step.decode_and_prompt(
            batch, self.sequence_s, self.new_tokens, self.chunk
        )
        prompt, bare = products + self.attention_s, load.output_tokens * step
        rate = batch / (bare + batch * prompt)
        elastic = min(_MOST_ELASTIC, self.step.elasticity(batch, self.sequence_s, step))
        rho = rate * prompt
        bunched = 1 - 0.5 / self.packed  # long prompts come out of their queue one by one
        gain = 1 + bunched * (1 / (1 - rho) ** 2 - 1)
        noise = bunched * rho * (1 + lengths) * gain / (2 * (batch + 1))
        wide = 1.0
        if load.arrival_cv != 1:
            wide = self._wideness(self._line(rate, step, prompt), bare)
        seen = elastic * wide / (1 - elastic) / (batch + 1)
        longer = 1 + noise + seen
        line = self._line(batch / (longer * bare + batch * prompt), step, prompt)
        clump = self._clump(line, bare)
        rate = batch / (longer * bare + prompt * clump + batch * prompt)
        tpot = longer * step + prompt * clump * (1 + lengths) / load.output_tokens
        tpot /= 1 - rate * prompt
        if clump > _FEW:
            line = self._line(rate, step, prompt)
        if line.busy >= _BUSIEST:
            return Outlook(rate, batch, tpot * 1e3, math.inf, rate * load.output_tokens)
        ttft, late = self._first_token(line, batch, step * (1 + seen), prompt, wide)
        slow = self._slow(line, prompt, tpot, clump, elastic * seen)
        return Outlook(
            rate, batch, tpot * 1e3, ttft * 1e3, rate * load.output_tokens, late * 1e3, slow * 1e3
        )

    def _line(self, rate: float, step: float, prompt: float) -> _Line:
        """Prompts in line: those that fit go together, long ones one by one.

        In the queue a prompt takes S = pm + s I/C. Beside the wait for those before it an arrival
        waits for what is under way: steps last s/(1 - rho) on the mean, and serve what came in the
        step before (a gated vacation: s (1 + rho)/(2 (1 - rho))).
        """
        load, rho = self.load, min(_BUSIEST, rate * prompt)
        together = 1 - 1 / self.packed
        busy = rate * (prompt + step * self.new_tokens / self.chunk)
        uneven = 0.0
        if load.length_cv:
            uneven = queueing.power_spread(load.length_cv, self.pairs_s / prompt)
        service = prompt + step * min(1.0, self.new_tokens / self.chunk)
        waits, part = queueing.wait(min(_BUSIEST, busy), service, load.arrival_cv, uneven)
        cycle = step / (1 - rho)
        under_way = together * cycle * (1 + rho) / 2 + (1 - together) * step / 2
        return _Line(rate, busy, service, waits, part, uneven, cycle, under_way, together)

    def _clump(self, line: _Line, decoding: float) -> float:
        """Prompts of a burst that come behind a request and make its decoding longer."""
        cv, rate, idle = self.load.arrival_cv, line.rate, max(0.1, 1 - line.busy)
        left = rate * line.waits * line.waits / (line.waits + decoding) * idle
        if cv == 1:
            return left
        met = rate * (line.waits + line.under_way + decoding / idle)
        return max(0.0, queueing.companions(met, cv) - met + left)

    def _wideness(self, line: _Line, decoding: float) -> float:
        """Variance over mean of the sequences under way, were steps always as long.

        1 + (ca^2 - 1) E min(O, O')/E O for bursts that come as they are; at most what a line that
        is busy part of the time lets through, D/S of them one behind the other.
        """
        load = self.load
        bursts = (load.arrival_cv**2 - 1) * queueing.shared_part(load.length_cv)
        if bursts <= 0:
            return 1 + bursts
        through = (1 - min(_BUSIEST, line.busy)) * decoding / line.service
        return 1 + bursts * through / (bursts + through)

    def _first_token(
        self, line: _Line, batch: float, step: float, prompt: float, wide: float
    ) -> tuple[float, float]:
        """TTFT, seconds: the mean, and at the load's percentile.

        Front end + pm + chunks s + what is under way + the line + those that share its last step +
        the wait for a place. Each is unlucky apart: excesses over means add up as squares. A chunk
        passes the stages of a pipeline one after the other, so the last comes (stages - 1)/chunks
        of pm later.
        """
        load, cv, rate = self.load, self.load.arrival_cv, line.rate
        met = line.waits + line.under_way + prompt * (self.chunks - 1)
        behind, joined = rate * met, rate * line.cycle / 2
        if cv != 1:
            behind = queueing.companions(behind, cv)
            joined = queueing.companions(joined, cv)
        if behind > self.room:
            behind = self.room
        after = prompt * (line.together * joined + (1 - line.together) * behind)
        taken = min(batch, _BUSIEST * self.batch_limit)
        push = 1 / (1 - min(_BUSIEST, rate * prompt))
        place, full = queueing.place_wait(self.batch_limit, taken, rate, self.full_rate, wide, push)
        through = prompt * (1 + (self.step.stages - 1) / self.chunks)
        mean = self.front_end_s + through + self.chunks * step + line.under_way + line.waits
        mean += after + place
        luck = self.luck
        if luck <= 0:
            return mean, mean
        waits = queueing.wait_tail(line.waits, line.part, line.busy, prompt, line.uneven, luck)
        place_late = queueing.exponential_tail(place, full, luck) - place if place else 0.0
        long = 0.0
        if line.uneven:
            long = prompt * (log_normal_ratio(load.percentile, line.uneven) - 1)
        cycle = line.cycle * load.percentile / 100 - line.under_way
        late = long**2 + cycle**2 + (after * (luck - 1)) ** 2
        if waits > line.waits:
            late += (waits - line.waits) ** 2
        if place_late > 0:
            late += place_late**2
        return mean, mean + _LATER * math.sqrt(late)

    def _slow(self, line: _Line, prompt: float, tpot: float, clump: float, others: float) -> float:
        """TPOT at the load's percentile, seconds: the luck of prompts, and of a full batch."""
        load, lengths = self.load, self.load.length_cv**2
        if self.luck <= 0:
            return tpot
        holds = load.output_tokens * tpot
        expected = line.rate * holds
        bursts = 0.0
        if load.arrival_cv != 1:
            bursts = queueing.companions(expected, load.arrival_cv) - expected
        met = expected * max(0.0, 1 + lengths + 2 * bursts) + clump * (1 + clump + lengths)
        tail = self.luck - 1  # exponential, in standard deviations
        unlucky = tail * math.sqrt(met) * prompt / load.output_tokens * (1 + lengths)
        unlucky /= 1 - min(_BUSIEST, line.rate * prompt)
        crowded = tail * math.sqrt(others) * tpot
        worst = _SLOWER * crowded + prompt * self.packed  # a full chunk in every step
        return tpot + min(_SLOWER * math.hypot(unlucky, crowded), worst)

    def _filled(self, batch: float) -> Outlook:
        """The state in which exactly ``batch`` sequences run all the time."""
        if not self.in_flight:
            return self._whole_batches(batch)
        load, new = self.load, self.new_tokens
        step, products = self.step.decode_and_prompt(batch, self.sequence_s, new, self.chunk)
        prompt = products + self.attention_s
        rate = batch / (load.output_tokens * step + batch * prompt)
        tpot = step / (1 - rate * prompt)
        line = self._line(rate, step, prompt)
        through = prompt * (1 + (self.step.stages - 1) / self.chunks)
        ttft = self.front_end_s + through + step + line.under_way + line.waits
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
        prompts *= self.step.stages  # the batch is in one stage at a time
        return (
            self.front_end_s + prompts + step,
            prompts + (self.load.output_tokens + 1) * step,
            step,
        )

    def at_rate(self, rate: float, above: Outlook | None = None) -> Outlook | None:
        """The steady state at an arrival rate; None beyond what the batch limit can carry.

        ``above``: a state known to carry no less.
        """
        most = above or self.at_batch(self.batch_limit)
        if most.rate < rate:
            return None
        # Batches grow faster than rates: a square is below where the rate is not far.
        least = self.at_batch(most.concurrency * (rate / most.rate) ** 2)
        if least.rate >= rate:
            most, least = least, self.at_batch(most.concurrency * _NEGLIGIBLE)
        if least.rate >= rate:
            return least

        def excess(state: Outlook) -> float:
            return state.rate / rate - 1

        return self._edge(excess, least, most, _CLOSE / 300)

    def offline(self) -> Outlook:
        """All requests queued at once: the batch limit is always full."""
        return self._filled(self.batch_limit)

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
        state = self._filled(batch)
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

    def largest(
        self, ttft_ms: float | None, tpot_ms: float | None, enough: float = 0.0
    ) -> Outlook | None:
        """The busiest state whose latencies at the percentile stay inside; None: not even idle.

        Without limits, the offline maximum: the largest batch that its prompts can feed. Where the
        rate is sure to be below ``enough``, some state that carries less than that.
        """
        tpot_limit = math.inf if tpot_ms is None else tpot_ms
        ttft_limit = math.inf if ttft_ms is None else ttft_ms

        def excess(state: Outlook) -> float:
            """How far beyond a limit, as a logarithm; below zero inside."""
            if math.isinf(state.ttft_ms):
                return _FAR_BEYOND
            ttft, tpot = self.ratios(state)
            worst = max(ttft * state.ttft_ms / ttft_limit, tpot * state.tpot_ms / tpot_limit)
            if worst <= 0:
                return -_FAR_BEYOND  # no limits
            return min(_FAR_BEYOND, math.log(worst))

        best = self.at_batch(self.batch_limit)
        if excess(best) <= 0:
            return best
        least = self.at_batch(self.batch_limit / 2**_STEPS)
        if excess(least) > 0:
            return None
        return self._edge(excess, least, best, _CLOSE, enough)

    def _edge(
        self,
        excess: Callable[[Outlook], float],
        inside: Outlook,
        beyond: Outlook,
        close: float,
        enough: float = 0.0,
    ) -> Outlook:
        """The last state inside, to within ``close``: false position (Illinois).

        It aims at half of that below the edge, so that it lands inside. Where all that is left
        carries less than ``enough``, what lies beyond will do.
        """
        low, high = excess(inside) + close / 2, excess(beyond) + close / 2
        side = 0
        for _ in range(2 * _STEPS):
            if beyond.rate < enough:
                return beyond
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

    def ratios(self, state: Outlook) -> tuple[float, float]:
        """TTFT and TPOT at the load's percentile over their means, at least as measured."""
        p = self.load.percentile
        ttft = percentile_ratio(p, TTFT_P99_OVER_MEAN)
        tpot = percentile_ratio(p, TPOT_P99_OVER_MEAN)
        if not math.isfinite(state.ttft_ms) or state.late_ttft_ms <= 0:
            return ttft, tpot
        late, slow = state.late_ttft_ms / state.ttft_ms, state.late_tpot_ms / state.tpot_ms
        return max(ttft, late), max(tpot, slow)


def continuous(
    step: StepModel,
    load: Load,
    batch_limit: float,
    chunk: int,
    front_end_s: float,
    in_flight: bool = True,
) -> Batching:
    """The batching of a replica under that load.

    A running sequence's mean context is its prompt and half its output; where lengths vary, long
    outputs are met more often: O (1 + cv^2)/2. So are the pairs of long prompts: I^2 (1 + cv^2).
    """
    cached = load.input_tokens * load.prefix_hit_rate
    new = max(1.0, load.input_tokens - cached)
    varied = 1 + load.length_cv**2
    context = load.input_tokens + load.output_tokens * varied / 2
    exchange = step.attention(1.0) * (load.input_tokens - cached)
    pairs = step.attention(load.input_tokens, cached) - exchange
    sequence, attention = step.sequence(context), exchange + pairs * varied
    full, products = step.decode_and_prompt(batch_limit, sequence, new, chunk)
    busiest = load.output_tokens * full + batch_limit * (products + attention)
    chunks = queueing.chunks_of(new, chunk, load.length_cv)
    return Batching(
        step,
        load,
        batch_limit,
        chunk,
        front_end_s,
        attention_s=attention,
        pairs_s=pairs * varied,
        sequence_s=sequence,
        new_tokens=new,
        packed=max(1.0, chunk / new),
        in_flight=in_flight,
        full_rate=batch_limit / busiest if busiest else math.inf,
        chunks=chunks,
        room=(chunks * chunk / new - 1) / (2 if load.length_cv else 1),
        luck=queueing.luck(load.percentile),
    )


@dataclass(frozen=True, slots=True)
class Embedding:
    """Prefill-only serving: prompts in, vectors out."""

    step: StepModel
    load: Load
    batch_limit: float
    chunk: int
    front_end_s: float
    tokens: float  # of a full step
    full_s: float  # that step,
    full_rate: float  # and the prompts that it serves
    alone_s: float  # a step of one prompt

    def ratios(self, state: Outlook) -> tuple[float, float]:
        """Latency at the percentile over its mean, and 1: there is no TPOT."""
        del state
        return percentile_ratio(self.load.percentile, TTFT_P99_OVER_MEAN), 1.0

    def at_load(self, busy: float) -> Outlook:
        """The steady state at that part of the largest rate (a full step of prompts)."""
        full, rate = self.full_s, busy * self.full_rate
        spread = self.load.arrival_cv**2 + self.load.length_cv**2
        wait = busy * full * spread / (2 * max(1e-9, 1 - busy))
        latency = self.front_end_s + self.alone_s + full * busy + wait
        return Outlook(rate, rate * latency, 0.0, latency * 1e3, 0.0)

    def at_rate(self, rate: float, above: Outlook | None = None) -> Outlook | None:
        """The steady state at an arrival rate; None beyond the largest."""
        del above
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

    def largest(
        self, ttft_ms: float | None, tpot_ms: float | None, enough: float = 0.0
    ) -> Outlook | None:
        """The busiest state whose latency at the percentile stays inside; None: not even idle.

        Where the rate is sure to be below ``enough``, some state that carries less than that.
        """
        del tpot_ms
        limit = math.inf if ttft_ms is None else ttft_ms / self.ratios(self.at_load(0.0))[0]
        low, high, found = 0.0, _BUSIEST, None
        busiest = self.at_load(high)
        if busiest.ttft_ms <= limit:
            return busiest
        for _ in range(_STEPS):
            if found is not None and busiest.rate / _BUSIEST * high < enough:
                return self.at_load(high)  # rates grow with the load in proportion
            middle = (low + high) / 2
            state = self.at_load(middle)
            if state.ttft_ms <= limit:
                low, found = middle, state
            else:
                high = middle
        return found


def prompts_only(
    step: StepModel, load: Load, batch_limit: float, chunk: int, front_end_s: float
) -> Embedding:
    """The batching of an embedding model: a full step is a chunk, or all places taken."""
    length = max(1.0, load.input_tokens)
    tokens = max(length, min(chunk, batch_limit * length))
    full = step.prefill_batch(tokens, length)
    alone = step.prefill_batch(length, length) * step.stages
    rate = tokens / length / full
    return Embedding(step, load, batch_limit, chunk, front_end_s, tokens, full, rate, alone)
