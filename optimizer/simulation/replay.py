"""A deployment's replicas under its traffic, and every deployment of a plan."""

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from optimizer.domain.workload import Slo
from optimizer.simulation.prompts import PromptServer
from optimizer.simulation.server import Job, Server, ServerSpec
from optimizer.simulation.traffic import Arrivals, Times


class Routing(StrEnum):
    """How requests are spread over replicas."""

    LEAST_LOADED = "least-loaded"  # fewest requests under way for what the replica can carry
    ROUND_ROBIN = "round-robin"  # in turn, as often as the replica can carry


@dataclass(frozen=True, slots=True)
class Served:
    """One replica: what it can do, and the part of the traffic it is there for."""

    replica: str
    spec: ServerSpec
    capacity: float  # requests per second; only ratios matter


@dataclass(frozen=True, slots=True)
class Attained:
    """A latency as replayed, ms. ``attained``: part of the requests inside the limit, if any."""

    mean_ms: float
    p50_ms: float
    slo_ms: float  # at the SLO's percentile
    p99_ms: float
    limit_ms: float | None
    attained: float | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a deployment's traffic."""

    deployment: str
    requests: int
    failed: int  # longer than any KV cache of it
    seconds: float
    ttft: Attained
    tpot: Attained
    both_attained: float | None  # part of the requests inside both limits
    percentile: float
    busy: float  # part of the time that its replicas worked
    kv_peak: float  # fullest KV cache, as part of it
    preemptions: int

    @property
    def meets(self) -> bool:
        """Whether each promised latency is kept at the SLO's percentile."""
        parts = [a.attained for a in (self.ttft, self.tpot) if a.attained is not None]
        kept = all(part * 100 >= self.percentile for part in parts)
        return kept and self.failed * 100 <= self.requests * (100 - self.percentile)


def replay_deployment(
    name: str,
    replicas: Sequence[Served],
    traffic: Iterable[Arrivals],
    slo: Slo | None,
    routing: Routing = Routing.LEAST_LOADED,
) -> Replayed:
    """Route the requests, in order of time, over the replicas and see how each fares."""
    log = _Log()
    servers = [_server(one.spec, log) for one in replicas]
    capacities = [one.capacity for one in replicas]
    pick = (_least_loaded if routing is Routing.LEAST_LOADED else _in_turn)(servers, capacities)
    last, requests = 0.0, 0
    for block in traffic:
        requests += len(block)
        columns = (block.at_s, block.input_tokens, block.output_tokens, block.cached_tokens)
        for last, prompt, output, cached in zip(*(c.tolist() for c in columns), strict=True):
            pick(last).ask(last, prompt, output, cached)
    for server in servers:
        server.advance(math.inf)
        if isinstance(server, PromptServer):
            log.prompts(server)
    return _summary(name, servers, log, slo, requests, last)


def _server(spec: ServerSpec, log: "_Log") -> Server | PromptServer:
    return Server(spec, log.end_of(spec.front_end_s)) if spec.decodes else PromptServer(spec)


def _least_loaded(
    servers: Sequence[Server | PromptServer], capacities: Sequence[float]
) -> Callable[[float], Server | PromptServer]:
    """The replica with the fewest requests under way for what it can carry."""
    paired = list(zip(servers, capacities, strict=True))

    def pick(now: float) -> Server | PromptServer:
        least, best = math.inf, servers[0]
        for server, capacity in paired:
            if server.due <= now:
                server.advance(now)
            load = (server.outstanding + 1) / capacity
            if load < least:
                least, best = load, server
        return best

    return pick


def _in_turn(
    servers: Sequence[Server | PromptServer], capacities: Sequence[float]
) -> Callable[[float], Server | PromptServer]:
    """One after the other, as often as each can carry."""
    turns = [0.0] * len(servers)

    def pick(now: float) -> Server | PromptServer:
        del now
        best = min(range(len(turns)), key=lambda i: (turns[i] + 1) / capacities[i])
        turns[best] += 1
        return servers[best]

    return pick


class _Log:
    """Latencies as requests leave, ms; a request without a second token has no TPOT (NaN)."""

    def __init__(self) -> None:
        self.failed = 0
        self.ttft = array("d")
        self.tpot = array("d")

    def end_of(self, front_end_s: float) -> Callable[[Job], None]:
        """What a replica of that front end calls with each request that leaves."""
        ttft, tpot = self.ttft.append, self.tpot.append

        def end(job: Job) -> None:
            first = job.first
            if job.failed or first != first:  # NaN: it never began
                self.failed += 1
                return
            ttft((first - job.at + front_end_s) * 1e3)
            more = job.output - 1
            tpot((job.end - first) / more * 1e3 if more else math.nan)

        return end

    def prompts(self, server: PromptServer) -> None:
        """The latencies of a replica that only takes prompts."""
        found = (server.latencies_s + server.spec.front_end_s) * 1e3
        self.ttft.frombytes(found.tobytes())
        self.tpot.frombytes(np.full(len(found), math.nan).tobytes())


def _summary(
    name: str,
    servers: Sequence[Server | PromptServer],
    log: _Log,
    slo: Slo | None,
    requests: int,
    last: float,
) -> Replayed:
    slo = slo or Slo()
    seconds = max(last, 1e-9)
    ttft, tpot = np.frombuffer(log.ttft), np.frombuffer(log.tpot)
    late = np.zeros(len(ttft), dtype=bool)
    for values, limit in ((ttft, slo.ttft_ms), (tpot, slo.tpot_ms)):
        if limit is not None:
            late |= values > limit
    limited = slo.ttft_ms is not None or slo.tpot_ms is not None
    end = max([seconds, *(s.now for s in servers if s.busy_s)])
    decoding = [s for s in servers if isinstance(s, Server)]
    return Replayed(
        deployment=name,
        requests=requests,
        failed=log.failed,
        seconds=seconds,
        ttft=_attained(ttft, slo.ttft_ms, slo.percentile),
        tpot=_attained(tpot[~np.isnan(tpot)], slo.tpot_ms, slo.percentile),
        both_attained=1 - float(late.mean()) if limited and len(late) else None,
        percentile=slo.percentile,
        busy=sum(s.busy_s for s in servers) / (end * len(servers)),
        kv_peak=max((s.kv_peak / s.spec.kv_tokens for s in decoding), default=0.0),
        preemptions=sum(s.preemptions for s in decoding),
    )


def _attained(values: Times, limit: float | None, percentile: float) -> Attained:
    if not len(values):
        return Attained(0.0, 0.0, 0.0, 0.0, limit, None if limit is None else 1.0)
    ordered = np.sort(values)

    def at(part: float) -> float:
        """The smallest value that at least that part of the requests stays within."""
        return float(ordered[min(len(ordered) - 1, math.ceil(len(ordered) * part / 100) - 1)])

    inside = int(np.searchsorted(ordered, limit, side="right")) if limit is not None else 0
    return Attained(
        mean_ms=float(values.mean()),
        p50_ms=at(50),
        slo_ms=at(percentile),
        p99_ms=at(99),
        limit_ms=limit,
        attained=None if limit is None else inside / len(ordered),
    )
