"""Arrivals: drawn from a demand's statistics, or a recorded trace fitted to it.

They come in blocks of many, as columns: an hour of a fleet is millions of requests.
"""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.domain.trace import Request, Trace
from optimizer.domain.workload import Demand

Times = NDArray[np.float64]
Counts = NDArray[np.int64]
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests in order of time, column by column."""

    at_s: Times
    input_tokens: Counts
    output_tokens: Counts
    cached_tokens: Counts

    def __len__(self) -> int:
        return len(self.at_s)

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "Arrivals":
        """The same requests as columns."""
        return cls(
            np.array([r.at_s for r in requests], dtype=np.float64),
            np.array([r.input_tokens for r in requests], dtype=np.int64),
            np.array([r.output_tokens for r in requests], dtype=np.int64),
            np.array([r.cached_tokens for r in requests], dtype=np.int64),
        )

    def before(self, seconds: float) -> "Arrivals":
        """Those earlier than that."""
        end = int(np.searchsorted(self.at_s, seconds))
        return Arrivals(
            self.at_s[:end],
            self.input_tokens[:end],
            self.output_tokens[:end],
            self.cached_tokens[:end],
        )


def synthetic(
    demand: Demand, seconds: float, seed: int | str, *, peak: bool = True
) -> Iterator[Arrivals]:
    """Arrivals at the demand's peak (or mean) rate, gamma distributed; lengths log-normal.

    Gamma gaps of shape 1/cv^2 have the demand's ``arrival_cv``; log-normal lengths of
    sigma^2 = ln(1 + cv^2) its ``length_cv``.
    """
    draw = _generator(seed)
    rate = (demand.peak_mrps if peak else demand.rate_mrps) / 1000
    if rate <= 0:
        return
    now, size = 0.0, int(min(_BLOCK, rate * seconds * 1.1 + 64))
    while now < seconds:
        at = now + np.cumsum(_gaps(draw, rate, demand.arrival_cv, size))
        now = float(at[-1])
        yield _drawn(demand, draw, at).before(seconds)


def _generator(seed: int | str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(str(seed).encode()).digest()))


def _gaps(draw: np.random.Generator, rate: float, cv: float, size: int) -> Times:
    shape = 1 / max(1e-6, cv**2)
    return draw.gamma(shape, 1 / (shape * rate), size)


def _drawn(demand: Demand, draw: np.random.Generator, at: Times) -> Arrivals:
    """Requests of those times, their lengths drawn."""
    prompts = _lengths(demand, draw, demand.input_tokens or 1, len(at))
    outputs = _lengths(demand, draw, demand.output_tokens or 1, len(at))
    return Arrivals(at, prompts, outputs, _part(prompts, demand.prefix_hit_rate))


def _lengths(demand: Demand, draw: np.random.Generator, mean: int, size: int) -> Counts:
    sigma = math.sqrt(math.log(1 + demand.length_cv**2))
    if sigma == 0:
        return np.full(size, mean, dtype=np.int64)
    drawn = mean * draw.lognormal(-(sigma**2) / 2, sigma, size)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def _part(prompts: Counts, hit_rate: float) -> Counts:
    return (prompts * hit_rate).astype(np.int64)


def fitted(
    trace: Trace,
    demand: Demand,
    seconds: float,
    seed: int | str,
    longest: int | None = None,
    *,
    lengths_vary_as: str = "demand",
) -> Iterator[Arrivals]:
    """The trace at the demand's mean rate, with lengths of the demand's means, over and over.

    A demand of k times the trace's rate is k independent copies of it, each turned by an offset of
    its own, as more customers of the same kind would be; a part of a copy drops requests at random.
    Lengths are scaled to the demand's means, and vary as the demand says or as in the trace.
    ``longest``: input and output together are cut to what the replicas accept.
    """
    if trace.windows:
        yield from _by_rates(trace, demand, seconds, seed)
        return
    if not trace.requests or trace.seconds <= 0:
        return
    times = demand.rate_mrps / 1000 * trace.seconds / len(trace.requests)
    if times <= 0:
        return
    recorded = Arrivals.of(trace.requests)
    one = _scaled(recorded, demand, longest, lengths_vary_as)
    draw = random.Random(seed)
    copies = _Copies(recorded.at_s, trace.seconds, int(times), draw)
    part = _Part(recorded.at_s, trace.seconds, times - int(times), random.Random(f"{seed}/part"))
    span = max(1e-3, _BLOCK / (len(trace.requests) * times) * trace.seconds)
    for block in range(math.ceil(seconds / span)):
        until = min(seconds, (block + 1) * span)
        found = [copies.until(until), part.until(until)]
        at = np.concatenate([times for times, _ in found])
        index = np.concatenate([which for _, which in found])
        order = np.argsort(at, kind="stable")
        index = index[order]
        yield Arrivals(
            at[order], one.input_tokens[index], one.output_tokens[index], one.cached_tokens[index]
        )


def _scaled(
    recorded: Arrivals, demand: Demand, longest: int | None, lengths_vary_as: str
) -> Arrivals:
    """The trace's requests with the demand's lengths."""
    vary = demand.length_cv if lengths_vary_as == "demand" else None
    prompts = _stretched(recorded.input_tokens, demand.input_tokens or 1, vary)
    outputs = _stretched(recorded.output_tokens, demand.output_tokens or 1, vary)
    if longest is not None:
        outputs = np.minimum(outputs, longest - 1)
        prompts = np.minimum(prompts, longest - outputs)
    return Arrivals(recorded.at_s, prompts, outputs, _part(prompts, demand.prefix_hit_rate))


def _stretched(lengths: Counts, target: float, length_cv: float | None) -> Counts:
    """Lengths of a trace to lengths of another mean and another standard deviation."""
    mean = math.fsum(lengths) / len(lengths)
    varies = math.sqrt(math.fsum((lengths - mean) ** 2) / len(lengths)) / mean
    stretch = 1.0 if length_cv is None or varies == 0 else length_cv / varies
    scaled = target * (1 + (lengths / mean - 1) * stretch)
    return np.maximum(1, np.rint(scaled)).astype(np.int64)


class _Copies:
    """Whole copies of a trace without end, each of which starts at an offset of its own in it."""

    def __init__(self, at_s: Times, seconds: float, copies: int, draw: random.Random) -> None:
        self.at_s, self.seconds = at_s, seconds
        self.offsets = np.array([draw.random() * seconds for _ in range(copies)])
        self.next = np.searchsorted(at_s, self.offsets)  # counted on over all turns

    def until(self, time: float) -> tuple[Times, Counts]:
        """The next requests before that time, copy by copy: when, and which of the trace."""
        size = len(self.at_s)
        turn = np.floor((time + self.offsets) / self.seconds)
        inside = np.searchsorted(self.at_s, time + self.offsets - turn * self.seconds)
        stop = np.maximum(self.next, turn.astype(np.int64) * size + inside)
        counts = stop - self.next
        copy = np.repeat(np.arange(len(counts)), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        turns, index = np.divmod(np.arange(len(copy)) - before + self.next[copy], size)
        self.next = stop
        return turns * self.seconds + self.at_s[index] - self.offsets[copy], index


class _Part:
    """A random part of a trace without end."""

    def __init__(self, at_s: Times, seconds: float, part: float, draw: random.Random) -> None:
        self.at_s, self.seconds, self.part, self.draw = at_s, seconds, part, draw
        self.turn, self.index = 0, np.empty(0, dtype=np.int64)
        self.left = np.empty(0, dtype=np.float64)

    def until(self, time: float) -> tuple[Times, Counts]:
        """The next requests before that time: when, and which of the trace."""
        while self.part > 0 and self.turn * self.seconds < time:
            taken = [i for i in range(len(self.at_s)) if self.draw.random() < self.part]
            index = np.array(taken, dtype=np.int64)
            self.left = np.concatenate([self.left, self.turn * self.seconds + self.at_s[index]])
            self.index = np.concatenate([self.index, index])
            self.turn += 1
        end = int(np.searchsorted(self.left, time))
        found = self.left[:end], self.index[:end]
        self.left, self.index = self.left[end:], self.index[end:]
        return found


def _by_rates(trace: Trace, demand: Demand, seconds: float, seed: int | str) -> Iterator[Arrivals]:
    """Arrivals at the demand's mean rate times each window's part of the trace's mean."""
    draw = _generator(seed)
    ends = [w.at_s for w in trace.windows[1:]] + [trace.seconds]
    spans = [end - w.at_s for w, end in zip(trace.windows, ends, strict=True)]
    sent = math.fsum(w.requests_per_second * s for w, s in zip(trace.windows, spans, strict=True))
    if sent <= 0:
        return
    scale = demand.rate_mrps / 1000 * trace.seconds / sent
    for turn in range(math.ceil(seconds / trace.seconds)):
        for window, span in zip(trace.windows, spans, strict=True):
            rate, start = window.requests_per_second * scale, turn * trace.seconds + window.at_s
            if rate <= 0 or start >= seconds:
                continue
            at = start + _renewals(draw, rate, window.arrival_cv, span)
            for first in range(0, len(at), _BLOCK):
                yield _drawn(demand, draw, at[first : first + _BLOCK]).before(seconds)


def _renewals(draw: np.random.Generator, rate: float, cv: float, span: float) -> Times:
    """Times of arrivals within a span."""
    size, found, now = int(rate * span * 1.1) + 64, [], 0.0
    while now < span:
        at = now + np.cumsum(_gaps(draw, rate, cv, size))
        now = float(at[-1])
        found.append(at)
    whole = np.concatenate(found)
    return whole[: int(np.searchsorted(whole, span))]


def of_deployment(trace: Trace, name: str) -> tuple[Request, ...]:
    """The trace's own requests for a deployment; empty where it names none."""
    return tuple(r for r in trace.requests if r.deployment == name)


def one_by_one(blocks: Iterable[Arrivals]) -> Iterator[Request]:
    """The same requests, each for itself."""
    for block in blocks:
        columns = (block.at_s, block.input_tokens, block.output_tokens, block.cached_tokens)
        for at, prompt, output, cached in zip(*(c.tolist() for c in columns), strict=True):
            yield Request(at, prompt, output, cached)
