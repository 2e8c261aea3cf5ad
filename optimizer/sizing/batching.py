"""A replica under traffic: batching at a rate, latencies at a percentile, capacity inside an SLO.

Steps last as ``performance`` has it. Seconds throughout, but for what an Outlook says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

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
_CLUMPED = 1.7  # standard deviation over mean, from simulations of 20 to 95 % load
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

    ``prompt_ms``: the mean request's own prompt, a part of its TTFT. Spreads are variances over
    squared means, of what requests see: of a prompt's time, of the rest of TTFT, of TPOT.
    """

    rate: float
    concurrency: float
    tpot_ms: float
    ttft_ms: float
    output_tokens_per_second: float
    prompt_ms: float = 0.0
    prompt_spread: float = 0.0
    wait_spread: float = 0.0
    tpot_spread: float = 0.0


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
    attention_s: float  # what one prompt takes beside its products
    sequence_s: float  # what one running sequence adds to a step
    new_tokens: float  # of a prompt: those that the prefix cache does not hold
    packed: float  # prompts that a step holds, at least 1
    in_flight: bool = True  # else a batch runs to its end before the next begins

    def at_batch(self, batch: float) -> Outlook:
        """The steady state in which Poisson-like arrivals keep ``batch`` sequences running.

        lambda = b/(O f s + b pm), TPOT = f s/(1 - lambda pm): Little's law, where prompts take
        their part rho = lambda pm of the time, s is a decoding step, and f = 1 + rho ca^2 /
        (2 (1 - rho)^2 (b+1)) + e V/b: batches grow when steps are long. V = (1 + ca^2/(1-rho)^2) /
        (2 (1-e)) is the batch's variance over its mean, e the elasticity of s (linear noise about
        the fixed point; ca^2 with the prompts' variation).

        TTFT = front end + pm + chunks s + what is under way on arrival + the queue. A step lasts
        T = s + pm N, N the arrivals of the step before: E T = s/(1-rho), Var T = lambda pm^2 ca^2
        E T/(1 - rho^2). An arrival meets one of mean M = E T^2/E T, waits for half of it, and then
        for the prompts that came with it: M/2 + rho M. Where a chunk holds few prompts they queue
        one by one instead: lambda S^2 (ca^2 + cs^2)/(2 (1 - lambda S)), S = pm + s I/C (Kingman).
        """
        if not self.in_flight:
            return self._whole_batches(batch)
        load = self.load
        step, products = self.step.decode_and_prompt(
            batch, self.sequence_s, self.new_tokens, self.chunk
        )
        prompt = products + self.attention_s
        rate = batch / (load.output_tokens * step + batch * prompt)
        rho = rate * prompt
        varied, lengths = load.arrival_cv**2 + load.length_cv**2, load.length_cv**2
        bunched = 1 - 0.5 / self.packed  # long prompts come out of their queue one by one
        gain = 1 + bunched * (1 / (1 - rho) ** 2 - 1)
        elastic = min(_MOST_ELASTIC, self.step.elasticity(batch, self.sequence_s, step))
        wide = (1 + varied * gain) / (2 * (1 - elastic))
        noise = bunched * rho * varied * gain / (2 * (batch + 1))
        longer = 1 + noise + elastic * wide / (batch + 1)
        rate = batch / (load.output_tokens * longer * step + batch * prompt)
        rho = rate * prompt
        tpot = longer * step / (1 - rho)
        first, variance = self._first_token(rate, step, prompt)
        ttft = self.front_end_s + first
        rest = ttft - prompt
        own = rate * (prompt / (1 - rho)) ** 2 * varied / (load.output_tokens * tpot)
        own *= (1 + lengths) ** 2  # short outputs meet the luck of few steps
        others = elastic**2 * wide / (batch + 1)
        return Outlook(
            rate,
            batch,
            tpot * 1e3,
            ttft * 1e3,
            rate * load.output_tokens,
            prompt * 1e3,
            lengths * (1 + self.attention_s / prompt) ** 2,  # attention grows by the square
            variance / rest**2 if math.isfinite(rest) else 0.0,
            (math.sqrt(own) + math.sqrt(others)) ** 2,
        )

    def _first_token(self, rate: float, step: float, prompt: float) -> tuple[float, float]:
        """Mean time from the front end to the first token; variance without its own prompt."""
        load, new, rho = self.load, self.new_tokens, rate * prompt
        spread = load.arrival_cv**2 + load.length_cv**2
        packed = self.packed
        service = prompt + step / packed
        busy = rate * (prompt + step * new / self.chunk)
        if busy >= _BUSIEST:
            return math.inf, 0.0
        mean = step / (1 - rho)
        variance = rate * prompt**2 * spread * mean / (1 - rho**2)
        met = mean + variance / mean
        together = 1 - 1 / packed
        uneven = load.length_cv**2 * (1 + self.attention_s / prompt) ** 2
        queue = rate * service**2 * (load.arrival_cv**2 + uneven) / (2 * (1 - busy))
        waited = together * (0.5 + rho) * met + (1 - together) * (step / 2 + queue)
        # Steps with prompts come in clumps: that part of the wait has a tail beyond exponential.
        clumps = (_CLUMPED * (0.5 + rho) * variance / mean) ** 2 * (1 + load.length_cv**2)
        others = together * (met**2 / 12 + clumps) + (1 - together) * (step**2 / 12 + 2 * queue**2)
        chunks = math.ceil(new / self.chunk)
        return prompt + chunks * step + waited, others

    def _filled(self, batch: float) -> Outlook:
        """The state in which exactly ``batch`` sequences run all the time."""
        if not self.in_flight:
            return self._whole_batches(batch)
        load, new = self.load, self.new_tokens
        step, products = self.step.decode_and_prompt(batch, self.sequence_s, new, self.chunk)
        prompt = products + self.attention_s
        rate = batch / (load.output_tokens * step + batch * prompt)
        tpot = step / (1 - rate * prompt)
        first, _ = self._first_token(rate, step, prompt)
        ttft = (self.front_end_s + first) * 1e3
        return Outlook(rate, batch, tpot * 1e3, ttft, rate * load.output_tokens)

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
        """TTFT and TPOT at the load's percentile over their means, at least as measured.

        A prompt and its wait are unlucky apart: their excesses add up as squares.
        """
        p = self.load.percentile
        ttft = percentile_ratio(p, TTFT_P99_OVER_MEAN)
        tpot = percentile_ratio(p, TPOT_P99_OVER_MEAN)
        if p <= 50 or not math.isfinite(state.ttft_ms):
            return ttft, tpot
        spread = state.prompt_spread
        long = state.prompt_ms * (log_normal_ratio(p, spread) - 1) if spread else 0.0
        late = (state.ttft_ms - state.prompt_ms) * (log_normal_ratio(p, state.wait_spread) - 1)
        ttft = max(ttft, 1 + math.hypot(long, late) / state.ttft_ms)
        return ttft, max(tpot, log_normal_ratio(p, state.tpot_spread))


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
    return Batching(
        step,
        load,
        batch_limit,
        chunk,
        front_end_s,
        attention_s=exchange + pairs * varied,
        sequence_s=step.sequence(context),
        new_tokens=new,
        packed=max(1.0, chunk / new),
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
    tokens: float  # of a full step
    full_s: float  # that step
    alone_s: float  # a step of one prompt

    def ratios(self, state: Outlook) -> tuple[float, float]:
        """Latency at the percentile over its mean, and 1: there is no TPOT."""
        del state
        return percentile_ratio(self.load.percentile, TTFT_P99_OVER_MEAN), 1.0

    def at_load(self, busy: float) -> Outlook:
        """The steady state at that part of the largest rate (a full step of prompts)."""
        full = self.full_s
        rate = busy * self.tokens / max(1.0, self.load.input_tokens) / full
        spread = self.load.arrival_cv**2 + self.load.length_cv**2
        wait = busy * full * spread / (2 * max(1e-9, 1 - busy))
        latency = self.front_end_s + self.alone_s + full * busy + wait
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
    full, alone = step.prefill_batch(tokens, length), step.prefill_batch(length, length)
    return Embedding(step, load, batch_limit, chunk, front_end_s, tokens, full, alone)
