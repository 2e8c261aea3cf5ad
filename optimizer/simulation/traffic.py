"""Arrivals: drawn from a demand's statistics, or a recorded trace fitted to it."""

import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.domain.trace import Request, Trace
from optimizer.domain.workload import Demand


def synthetic(
    demand: Demand, seconds: float, seed: int | str, *, peak: bool = True
) -> Iterator[Request]:
    """Arrivals at the demand's peak (or mean) rate, gamma distributed; lengths log-normal.

    Gamma gaps of shape 1/cv^2 have the demand's ``arrival_cv``; log-normal lengths of
    sigma^2 = ln(1 + cv^2) its ``length_cv``.
    """
    draw = random.Random(seed)
    rate = (demand.peak_mrps if peak else demand.rate_mrps) / 1000
    if rate <= 0:
        return
    shape = 1 / max(1e-6, demand.arrival_cv**2)
    lengths = _Lengths(demand, draw)
    now = draw.gammavariate(shape, 1 / (shape * rate))
    while now < seconds:
        yield lengths.request(now)
        now += draw.gammavariate(shape, 1 / (shape * rate))


class _Lengths:
    """Draws request lengths of a demand."""

    def __init__(self, demand: Demand, draw: random.Random) -> None:
        self.demand = demand
        self.draw = draw
        self.sigma = math.sqrt(math.log(1 + demand.length_cv**2))

    def request(self, at_s: float) -> Request:
        prompt = self._tokens(self.demand.input_tokens or 1)
        cached = int(prompt * self.demand.prefix_hit_rate)
        return Request(at_s, prompt, self._tokens(self.demand.output_tokens or 1), cached)

    def _tokens(self, mean: int) -> int:
        if self.sigma == 0:
            return mean
        return max(1, round(mean * self.draw.lognormvariate(-(self.sigma**2) / 2, self.sigma)))


def fitted(
    trace: Trace,
    demand: Demand,
    seconds: float,
    seed: int | str,
    longest: int | None = None,
    *,
    lengths_vary_as: str = "demand",
) -> Iterator[Request]:
    """The trace at the demand's mean rate, with lengths of the demand's means, over and over.

    A demand of k times the trace's rate is k independent copies of it, each turned by an offset of
    its own, as more customers of the same kind would be; a part of a copy drops requests at random.
    Lengths are scaled to the demand's means, and vary as the demand says or as in the trace.
    ``longest``: input and output together are cut to what the replicas accept.
    """
    if trace.windows:
        yield from _by_rates(trace, demand, seconds, seed)
        return
    requests = trace.requests
    if not requests or trace.seconds <= 0:
        return
    draw = random.Random(seed)
    times = demand.rate_mrps / 1000 * trace.seconds / len(requests)
    vary = demand.length_cv if lengths_vary_as == "demand" else None
    prompts = _Scale.of([r.input_tokens for r in requests], demand.input_tokens or 1, vary)
    outputs = _Scale.of([r.output_tokens for r in requests], demand.output_tokens or 1, vary)
    offsets = [draw.random() * trace.seconds for _ in range(int(times))]
    streams = [_turned(requests, trace.seconds, offset, 1.0, draw) for offset in offsets]
    if times > len(offsets):
        part = times - len(offsets)
        streams.append(_turned(requests, trace.seconds, 0.0, part, random.Random(f"{seed}/part")))
    for at, r in heapq.merge(*streams, key=lambda found: found[0]):
        if at >= seconds:
            return
        prompt, output = prompts(r.input_tokens), outputs(r.output_tokens)
        if longest is not None:
            output = min(output, longest - 1)
            prompt = min(prompt, longest - output)
        yield Request(at, prompt, output, int(prompt * demand.prefix_hit_rate))


def _by_rates(trace: Trace, demand: Demand, seconds: float, seed: int | str) -> Iterator[Request]:
    """Arrivals at the demand's mean rate times each window's part of the trace's mean."""
    draw = random.Random(seed)
    lengths = _Lengths(demand, draw)
    ends = [w.at_s for w in trace.windows[1:]] + [trace.seconds]
    spans = [end - w.at_s for w, end in zip(trace.windows, ends, strict=True)]
    sent = math.fsum(w.requests_per_second * s for w, s in zip(trace.windows, spans, strict=True))
    if sent <= 0:
        return
    scale = demand.rate_mrps / 1000 * trace.seconds / sent
    for turn in itertools.count():
        for window, span in zip(trace.windows, spans, strict=True):
            rate, shape = window.requests_per_second * scale, 1 / max(1e-6, window.arrival_cv**2)
            start = turn * trace.seconds + window.at_s
            at = draw.gammavariate(shape, 1 / (shape * rate)) if rate > 0 else span
            while at < span:
                if start + at >= seconds:
                    return
                yield lengths.request(start + at)
                at += draw.gammavariate(shape, 1 / (shape * rate))
        if (turn + 1) * trace.seconds >= seconds:
            return


@dataclass(frozen=True, slots=True)
class _Scale:
    """Lengths of a trace to lengths of another mean and another standard deviation."""

    mean: float
    target: float
    stretch: float  # of the distance from the mean

    @classmethod
    def of(cls, lengths: Sequence[int], target: float, length_cv: float | None) -> "_Scale":
        mean = math.fsum(lengths) / len(lengths)
        varies = math.sqrt(math.fsum((n - mean) ** 2 for n in lengths) / len(lengths)) / mean
        stretch = 1.0 if length_cv is None or varies == 0 else length_cv / varies
        return cls(mean, target, stretch)

    def __call__(self, length: int) -> int:
        return max(1, round(self.target * (1 + (length / self.mean - 1) * self.stretch)))


def _turned(
    requests: Sequence[Request], seconds: float, offset: float, part: float, draw: random.Random
) -> Iterator[tuple[float, Request]]:
    """A trace without end that starts at ``offset`` in it, and a random part of its requests."""
    first = bisect_left(requests, offset, key=lambda r: r.at_s)
    for turn in itertools.count():
        for r in requests[first if turn == 0 else 0 :]:
            if part >= 1 or draw.random() < part:
                yield turn * seconds + r.at_s - offset, r


def of_deployment(trace: Trace, name: str) -> tuple[Request, ...]:
    """The trace's own requests for a deployment; empty where it names none."""
    return tuple(r for r in trace.requests if r.deployment == name)
