"""A deployment's replicas under its traffic, and every deployment of a plan."""

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from optimizer.domain.trace import Request
from optimizer.domain.workload import Slo
from optimizer.simulation.server import Job, Server, ServerSpec


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
    traffic: Iterable[Request],
    slo: Slo | None,
    routing: Routing = Routing.LEAST_LOADED,
) -> Replayed:
    """Route the requests, in order of time, over the replicas and see how each fares."""
    log = _Log(replicas, slo)
    servers = [Server(one.spec, log.end_of(one.spec.front_end_s)) for one in replicas]
    pick = _least_loaded if routing is Routing.LEAST_LOADED else _in_turn
    turns = [0.0] * len(replicas)
    last = 0.0
    for request in traffic:
        last = request.at_s
        index = pick(servers, replicas, turns, last)
        log.requests += 1
        servers[index].offer(
            Job(last, request.input_tokens, request.output_tokens, request.cached_tokens)
        )
    for server in servers:
        server.advance(math.inf)
    return log.summary(name, servers, last)


def _least_loaded(
    servers: list[Server], replicas: Sequence[Served], turns: list[float], now: float
) -> int:
    del turns
    best, least = 0, math.inf
    for index, server in enumerate(servers):
        if server.due <= now:
            server.advance(now)
        load = (server.outstanding + 1) / replicas[index].capacity
        if load < least:
            best, least = index, load
    return best


def _in_turn(
    servers: list[Server], replicas: Sequence[Served], turns: list[float], now: float
) -> int:
    del servers, now
    best = min(range(len(turns)), key=lambda i: (turns[i] + 1) / replicas[i].capacity)
    turns[best] += 1
    return best


class _Log:
    """Latencies as requests leave."""

    def __init__(self, replicas: Sequence[Served], slo: Slo | None) -> None:
        self.slo = slo or Slo()
        self.promised = slo is not None
        self.decodes = all(one.spec.decodes for one in replicas)
        self.requests = 0
        self.failed = 0
        self.ttft = array("d")
        self.tpot = array("d")
        self.inside = 0

    def end_of(self, front_end_s: float) -> Callable[[Job], None]:
        """What a replica of that front end calls with each request that leaves."""

        def end(job: Job) -> None:
            self.end(job, front_end_s)

        return end

    def end(self, job: Job, front_end_s: float) -> None:
        if job.failed or math.isnan(job.first):
            self.failed += 1
            return
        ttft = (job.first - job.at + front_end_s) * 1e3
        self.ttft.append(ttft)
        tpot = 0.0
        if job.output > 1 and self.decodes:
            tpot = (job.end - job.first) / (job.output - 1) * 1e3
            self.tpot.append(tpot)
        slo = self.slo
        late = slo.ttft_ms is not None and ttft > slo.ttft_ms
        slow = slo.tpot_ms is not None and tpot > slo.tpot_ms
        self.inside += not (late or slow)

    def summary(self, name: str, servers: Sequence[Server], last: float) -> Replayed:
        seconds = max(last, 1e-9)
        limited = self.slo.ttft_ms is not None or self.slo.tpot_ms is not None
        done = len(self.ttft)
        end = max([seconds, *(s.now for s in servers if s.busy_s)])
        return Replayed(
            deployment=name,
            requests=self.requests,
            failed=self.failed,
            seconds=seconds,
            ttft=_attained(self.ttft, self.slo.ttft_ms, self.slo.percentile),
            tpot=_attained(self.tpot, self.slo.tpot_ms, self.slo.percentile),
            both_attained=self.inside / done if limited and done else None,
            percentile=self.slo.percentile,
            busy=sum(s.busy_s for s in servers) / (end * len(servers)),
            kv_peak=max(s.kv_peak / s.spec.kv_tokens for s in servers),
            preemptions=sum(s.preemptions for s in servers),
        )


def _attained(values: "array[float]", limit: float | None, percentile: float) -> Attained:
    if not values:
        return Attained(0.0, 0.0, 0.0, 0.0, limit, None if limit is None else 1.0)
    ordered = sorted(values)

    def at(part: float) -> float:
        """The smallest value that at least that part of the requests stays within."""
        return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * part / 100) - 1)]

    return Attained(
        mean_ms=math.fsum(values) / len(values),
        p50_ms=at(50),
        slo_ms=at(percentile),
        p99_ms=at(99),
        limit_ms=limit,
        attained=None if limit is None else bisect_right(ordered, limit) / len(ordered),
    )
