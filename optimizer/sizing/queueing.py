"""Waiting lines of requests that arrive by chance, or in bursts. Any one unit of time.

Arrivals are a renewal process with gamma gaps whose standard deviation is ``cv`` means: 1 is
Poisson; above, requests come in clumps.
"""

import math
from functools import lru_cache
from statistics import NormalDist

_CDF, _QUANTILE = NormalDist().cdf, NormalDist().inv_cdf
_ROUNDS = 12
_EXACT = 1e-4
_FARTHEST = 6.0  # standard deviations: beyond, nobody waits for a place


def companions(expected: float, cv: float) -> float:
    """Arrivals in a time after one arrival, where ``expected`` come in such a time on the mean.

    The renewal function m(t), from its transform f/(s (1 - f)), f = (1 + s cv^2/lambda)^(-1/cv^2),
    at s = 1/t: exact for Poisson, for short times up to Gamma(1 + 1/cv^2), and for long ones,
    expected + (cv^2 - 1)/2.
    """
    if cv == 1 or expected <= 0:
        return max(0.0, expected)
    square = max(1e-2, cv * cv)
    growth = math.log1p(square / expected) / square
    return 1 / math.expm1(growth) if growth < 700 else 0.0


def delayed(busy: float, cv: float) -> float:
    """The part of arrivals that have to wait for a server that is ``busy`` part of the time.

    The root sigma of sigma = E exp(-(1 - sigma) gap/service) of GI/M/1: an arrival then waits for
    service/(1 - sigma), exponentially (Kleinrock, Queueing Systems 1, 6.4).
    """
    if cv == 1:
        return busy
    square = max(1e-2, cv * cv)
    found = max(busy / 2, 1 - 2 * (1 - busy) / (square + 1))
    for _ in range(_ROUNDS):
        base = 1 + (1 - found) * square / busy
        value = base ** (-1 / square)
        step = (value - found) / (1 - value / (busy * base))
        found = min(1 - 1e-9, max(1e-9, found + step))
        if abs(step) < _EXACT:
            break
    return found


def wait(busy: float, service: float, cv: float, service_spread: float) -> tuple[float, float]:
    """Mean wait in a line of one server, and the part of arrivals that wait at all.

    GI/M/1, by how services vary (variance over squared mean): right for M/G/1, and where clumps
    wait for whole services of those before them.
    """
    if busy <= 0:
        return 0.0, 0.0
    if cv == 1:
        return service * busy / (1 - busy) * (1 + service_spread) / 2, busy
    part, square = delayed(busy, cv), cv * cv
    varies = 1 - (1 - service_spread) * 2 / (square + 1) ** 2
    return service * part / (1 - part) * max(0.0, varies), part


def place_wait(
    places: float, taken: float, rate: float, full_rate: float, wideness: float, push: float
) -> tuple[float, float]:
    """Mean wait for one of many places, and the part that wait (Halfin and Whitt 1981).

    ``taken`` of ``places`` on the mean; ``full_rate`` leave when all are taken. ``wideness``: the
    variance of how many would be taken over its mean, were each held as long as ever; who stays
    longer in a crowd makes it wider, d ln taken/d ln rate times, and so does who keeps the others
    longer: by the square of how many more places each takes so, ``push``.
    """
    if taken >= places or rate >= full_rate:
        return math.inf, 1.0
    stiff = math.log(full_rate / rate) / math.log(places / taken)
    beta = (places - taken) / math.sqrt(max(1e-9, taken * wideness / stiff)) / push
    if beta > _FARTHEST:
        return 0.0, 0.0
    full = 1 / (1 + beta * math.sqrt(2 * math.pi) * _CDF(beta) * math.exp(beta * beta / 2))
    return full * (1 + wideness) / 2 / (full_rate - rate), full


def power_spread(length_cv: float, squared: float) -> float:
    """Variance over squared mean of a time that grows with a log-normal length.

    ``squared``: the part of the mean that grows by the length's square, the rest in proportion.
    E I^n = (E I)^n (1 + cv^2)^(n (n-1)/2).
    """
    varied, plain = 1 + length_cv**2, 1 - squared
    return (
        plain**2 * (varied - 1)
        + 2 * plain * squared * (varied**2 - 1)
        + squared**2 * (varied**4 - 1)
    )


@lru_cache(maxsize=1024)
def shared_part(length_cv: float) -> float:
    """E min(X, Y)/E X of two log-normal lengths: how far bursts show in what is under way.

    One less the Gini coefficient, erf(sigma/2).
    """
    return 1 - math.erf(math.sqrt(math.log(1 + length_cv**2)) / 2)


@lru_cache(maxsize=4096)
def chunks_of(prompt: float, chunk: int, length_cv: float) -> float:
    """Steps that a prompt takes part in on the mean, its length log-normal."""
    if length_cv == 0:
        return float(math.ceil(prompt / chunk))
    sigma = math.sqrt(math.log(1 + length_cv**2))
    found, edge = 1.0, chunk / prompt
    for _ in range(64):
        beyond = 1 - _CDF(math.log(edge) / sigma + sigma / 2)
        found += beyond
        edge += chunk / prompt
        if beyond < _EXACT:
            break
    return found


@lru_cache(maxsize=1024)
def luck(percentile: float) -> float:
    """How many means an exponential time lies at that percentile; 0 at a median and below."""
    return -math.log(1 - min(99.99, percentile) / 100) if percentile > 50 else 0.0


def exponential_tail(mean: float, part: float, luck: float) -> float:
    """Where ``part`` wait, exponentially, and all ``mean``: as late as that luck has it."""
    late = math.log(part) + luck
    return mean / part * late if late > 0 else 0.0


def wait_tail(
    mean: float, part: float, busy: float, service: float, spread: float, luck: float
) -> float:
    """A wait in line at a percentile.

    Exponential, or one long service in front: rho/(1 - rho) P(residual > x) (Pakes 1975), the
    residual of a log-normal service being of the length that arrivals meet.
    """
    if part <= 0:
        return 0.0
    found = exponential_tail(mean, part, luck)
    if spread <= 0:
        return found
    odds = min(0.5, math.exp(-luck) * (1 - busy) / busy)
    variance = math.log1p(spread)
    met = service * math.exp(variance / 2 - math.sqrt(variance) * _QUANTILE(odds))
    return max(found, met)
