"""Arrivals: drawn from a demand's statistics, or a recorded trace fitted to it."""

import math
import random
from collections.abc import Iterator

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
    trace: Trace, demand: Demand, seconds: float, seed: int | str, longest: int | None = None
) -> Iterator[Request]:
    """The trace at the demand's mean rate, with lengths of the demand's means, over and over.

    Keeps the trace's rhythm second by second: a rate k times the trace's gives each request k
    copies on the mean, each moved by up to the mean gap; lengths are scaled to the demand's mean.
    ``longest``: input and output together are cut to what the replicas accept.
    """
    requests = trace.requests
    if not requests or trace.seconds <= 0:
        return
    draw = random.Random(seed)
    times = demand.rate_mrps / 1000 * trace.seconds / len(requests)
    scale_in = (demand.input_tokens or 1) * len(requests) / sum(r.input_tokens for r in requests)
    scale_out = (demand.output_tokens or 1) * len(requests) / sum(r.output_tokens for r in requests)
    gap = trace.seconds / len(requests)
    rounds = math.ceil(seconds / trace.seconds)
    for turn in range(rounds):
        copies: list[Request] = []
        for r in requests:
            count = int(times) + (draw.random() < times - int(times))
            for _ in range(count):
                at = turn * trace.seconds + r.at_s + (draw.random() * gap if times > 1 else 0.0)
                copies.append(_scaled(r, at, scale_in, scale_out, demand, longest))
        copies.sort(key=lambda c: c.at_s)
        yield from (c for c in copies if c.at_s < seconds)


def _scaled(
    r: Request, at: float, scale_in: float, scale_out: float, demand: Demand, longest: int | None
) -> Request:
    prompt = max(1, round(r.input_tokens * scale_in))
    output = max(1, round(r.output_tokens * scale_out))
    if longest is not None:
        output = min(output, longest - 1)
        prompt = min(prompt, longest - output)
    return Request(at, prompt, output, int(prompt * demand.prefix_hit_rate))


def of_deployment(trace: Trace, name: str) -> tuple[Request, ...]:
    """The trace's own requests for a deployment; empty where it names none."""
    return tuple(r for r in trace.requests if r.deployment == name)
