"""The least that room for one more deployment can cost, and the nodes where that is reached.

A domain (one GPU, a node, a rack: as far as the deployment's rules look) gives a rate for the GPUs
that it switches on; what it gives beside what runs is free. Over domains this is a knapsack, solved
exactly by adding them one by one over the price. A loss is outlived if and only if for some M

    sum over domains of min(rate, M) >= asked + M,

because whatever one of them gave beyond M was not counted. Where a domain is as large as a
zone, what it gives by price is such a knapsack itself. Limits on all replicas, host room and the
fleet's ceilings are left to whoever tries the nodes named, so the price is a lower bound.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd, inf, isinf

import numpy as np
from numpy.typing import NDArray

from optimizer.domain.gpu import MigTable, PlacedProfile
from optimizer.domain.units import ceil_div
from optimizer.solver.columns import Multiset, additions

Rates = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Domain:
    """Alike domains: for each number of GPUs switched on, of one price, the most that they give."""

    names: tuple[str, ...]
    price: int
    gives: tuple[int, ...]  # by number of GPUs switched on


@dataclass(frozen=True, slots=True)
class Found:
    """The least price, the domains that are used there, and how many GPUs each switches on."""

    price: int
    names: tuple[str, ...]
    switched: Mapping[str, int] = field(default_factory=dict)


@lru_cache(maxsize=65536)
def fillings(
    table: MigTable, taken: tuple[PlacedProfile, ...], profiles: tuple[str, ...]
) -> tuple[Multiset, ...]:
    """What fits beside instances that stay, remembered."""
    return additions(table, taken, profiles)


def by_count(rates: Iterable[Sequence[int]], most: int) -> tuple[int, ...]:
    """Of several ways to fill a GPU, each its replicas' rates: the best with 0, 1, ... replicas."""
    best = [0] * (most + 1)
    for some in rates:
        total = 0
        for number, rate in enumerate(sorted(some, reverse=True)[:most], 1):
            total += rate
            best[number] = max(best[number], total)
    for number in range(1, most + 1):
        best[number] = max(best[number], best[number - 1])
    return tuple(best)


def joined(one: Sequence[int], other: Sequence[int], most: int) -> tuple[int, ...]:
    """The best of two rooms together with 0, 1, ... replicas."""
    return tuple(
        max(one[k] + other[n - k] for k in range(n + 1) if k < len(one) and n - k < len(other))
        for n in range(min(most, len(one) + len(other) - 2) + 1)
    )


def cheapest(domains: Sequence[Domain], asked: int, outlive: bool) -> Found | None:
    """The least price at which all of ``asked`` is given; None: it never is."""
    if not outlive:
        return _reached(domains, asked, None, _by_parts(domains, asked, None))
    caps = {min(g, asked) for d in domains for g in d.gives if g}
    tries = sorted((_by_parts(domains, asked + cap, cap), -cap) for cap in caps)
    best: Found | None = None
    for low, cap in tries:
        if isinf(low) or (best is not None and low >= best.price):
            break
        below = None if best is None else best.price
        best = _reached(domains, asked - cap, -cap, low, below) or best
    return best


def _capped(rate: int, cap: int | None) -> int:
    return rate if cap is None else min(rate, cap)


def _by_parts(domains: Sequence[Domain], asked: int, cap: int | None) -> float:
    """A lower bound on the price: GPUs in any parts, the best value first."""
    free = sum(len(d.names) * _capped(d.gives[0], cap) for d in domains)
    offers = []
    for d in domains:
        base = _capped(d.gives[0], cap)
        best = max(
            ((_capped(g, cap) - base) / n for n, g in enumerate(d.gives[1:], 1)), default=0.0
        )
        if best > 0:
            offers.append((d.price / best, len(d.names) * (_capped(max(d.gives), cap) - base)))
    left, price = asked - free, 0.0
    for each, most in sorted(offers):
        if left <= 0:
            break
        price += each * min(left, most)
        left -= most
    return price if left <= 0 else inf


def _reached(
    domains: Sequence[Domain], asked: int, cap: int | None, low: float, below: int | None = None
) -> Found | None:
    """The least price at which domains of at most ``cap`` each give ``asked``.

    None: it is not less than ``below``, or they never do. ``low``: a lower bound on it.
    """
    free = sum(len(d.names) * _capped(d.gives[0], cap) for d in domains)
    if free >= asked:
        return Found(0, _free(domains, asked, cap, {}))
    most = sum(len(d.names) * max(_capped(g, cap) for g in d.gives) for d in domains)
    if most < asked:
        return None
    paid = [d for d in domains if len(d.gives) > 1 and max(d.gives) > d.gives[0]]
    unit = gcd(*(d.price for d in paid))
    if not unit:
        used = {name: _capped(max(d.gives), cap) for d in paid for name in d.names}
        return Found(0, _free(domains, asked, cap, used))
    largest = inf if below is None else (below - 1) // unit
    budget = int(1.02 * low) // unit + 2 * max(d.price for d in paid) // unit
    while True:
        budget = int(min(budget, largest))
        found = _within(paid, asked - free, cap, unit, budget)
        if found is not None:
            price, used, switched = found
            return Found(price, _free(domains, asked, cap, used), switched)
        if budget >= largest:
            return None
        budget *= 2


Taken = list[tuple[Domain, str, NDArray[np.int16]]]


def _within(
    paid: Sequence[Domain],
    short: int,
    cap: int | None,
    unit: int,
    budget: int,
) -> tuple[int, dict[str, int], dict[str, int]] | None:
    """The least price within so many units at which ``short`` more is given, and by whom."""
    best, taken = _by_price(paid, cap, unit, budget)
    enough = np.flatnonzero(best >= short)
    if not len(enough):
        return None
    at = int(enough[0])
    switched = _chosen(taken, unit, at)
    used = {n: _capped(d.gives[switched[n]], cap) for d, n, _ in taken if n in switched}
    return at * unit, used, switched


def _by_price(
    paid: Sequence[Domain], cap: int | None, unit: int, budget: int
) -> tuple[Rates, Taken]:
    """The most given beyond what is free, by units of price; and what each domain has in it."""
    best: Rates = np.zeros(budget + 1, dtype=np.int64)
    taken: Taken = []
    for d in paid:
        base = _capped(d.gives[0], cap)
        cost = d.price // unit
        options = [
            (n, n * cost, _capped(g, cap) - base)
            for n, g in enumerate(d.gives)
            if n and _capped(g, cap) > base and n * cost <= budget
        ]
        if not options:
            continue
        for name in d.names[: budget // max(1, options[0][1])]:
            more, choice = best.copy(), np.zeros(budget + 1, dtype=np.int16)
            for n, price, gain in options:
                tried = best[: budget + 1 - price] + gain
                better = tried > more[price:]
                more[price:][better] = tried[better]
                choice[price:][better] = n
            if not choice.any():
                break
            best = more
            taken.append((d, name, choice))
    return best, taken


def _chosen(taken: Taken, unit: int, at: int) -> dict[str, int]:
    """GPUs switched on by each domain where so many units are paid."""
    switched: dict[str, int] = {}
    for d, name, choice in reversed(taken):
        n = int(choice[at])
        if n:
            switched[name] = n
            at -= n * d.price // unit
    return switched


def _free(
    domains: Sequence[Domain], asked: int, cap: int | None, used: Mapping[str, int]
) -> tuple[str, ...]:
    """The domains used, and of those that cost nothing the best until all is given."""
    left = asked - sum(used.values())
    rest = sorted(
        ((_capped(d.gives[0], cap), name) for d in domains for name in d.names if d.gives[0]),
        key=lambda pair: (-pair[0], pair[1]),
    )
    found = list(used)
    for rate, name in rest:
        if left <= 0:
            break
        if name not in used:
            found.append(name)
            left -= rate
    return tuple(found)


def cheapest_apart(areas: Mapping[str, Sequence[Domain]], asked: int) -> Found | None:
    """The least price at which any one area can be lost and ``asked`` is still given."""
    number = len(areas)
    if number < 2:
        return None
    every = [d for some in areas.values() for d in some]
    low = _by_parts(every, ceil_div(asked * number, number - 1), None)
    if isinf(low):
        return None
    paid = [d for d in every if len(d.gives) > 1 and max(d.gives) > d.gives[0]]
    unit = max(1, gcd(*(d.price for d in paid)))
    dearest = sum(len(d.names) * d.price * (len(d.gives) - 1) for d in paid) // unit
    budget = int(1.05 * low) // unit + 2 * max((d.price for d in paid), default=0) // unit
    while True:
        budget = min(budget, dearest)
        found = _areas_within(
            [_Area.of(some, asked, unit, budget) for some in areas.values()], asked
        )
        if found is not None:
            price, names = found
            return Found(price * unit, names)
        if budget >= dearest:
            return None
        budget *= 2


@dataclass(frozen=True, slots=True)
class _Area:
    """What an area gives at most, by units of price; more than is asked does not count."""

    domains: Sequence[Domain]
    free: int
    gives: Rates
    taken: Taken
    unit: int

    @classmethod
    def of(cls, domains: Sequence[Domain], asked: int, unit: int, budget: int) -> "_Area":
        """``asked``: nothing beyond it is of use."""
        free = sum(len(d.names) * d.gives[0] for d in domains)
        paid = [d for d in domains if len(d.gives) > 1 and max(d.gives) > d.gives[0]]
        more, taken = _by_price(paid, None, unit, budget)
        return cls(domains, free, np.minimum(free + more, asked), taken, unit)

    def names(self, paid: int, wanted: int) -> tuple[str, ...]:
        """Domains that give that much where so many units are paid."""
        switched = _chosen(self.taken, self.unit, paid)
        used = {n: d.gives[switched[n]] for d, n, _ in self.taken if n in switched}
        return _free(self.domains, wanted, None, used)


def _areas_within(areas: Sequence[_Area], asked: int) -> tuple[int, tuple[str, ...]] | None:
    """The least price in units, and who gives what is asked at that price."""
    caps = sorted({int(rate) for area in areas for rate in np.unique(area.gives) if rate})
    best: tuple[int, int, list[int]] | None = None
    most = len(areas[0].gives) - 1
    for cap in (cap for cap in caps if cap * (len(areas) - 1) >= asked):
        rates = [np.minimum(area.gives[: most + 1], cap) for area in areas]
        paid = _least_paid(rates, asked + cap)
        if paid is not None:
            best = (sum(paid), cap, paid)
            most = sum(paid) - 1
        if most < 0:
            break
    if best is None:
        return None
    price, cap, paid = best
    names = (n for area, units in zip(areas, paid, strict=True) for n in area.names(units, cap))
    return price, tuple(names)


def _least_paid(rates: Sequence[Rates], asked: int) -> list[int] | None:
    """The least units paid to all so that these give ``asked`` together, by whom."""
    sums = [rates[0]]
    for more in rates[1:]:
        sums.append(_together(sums[-1], more))
    enough = np.flatnonzero(sums[-1] >= asked)
    if not len(enough):
        return None
    left, paid = int(enough[0]), [0] * len(rates)
    for number in range(len(rates) - 1, 0, -1):
        units = np.arange(left + 1)
        both = sums[number - 1][left - units] + rates[number][units]
        paid[number] = int(np.argmax(both))
        left -= paid[number]
    paid[0] = left
    return paid


def _together(one: Rates, other: Rates) -> Rates:
    """The most that two give, by the units paid to both."""
    size = len(one)
    padded = np.concatenate([np.full(size - 1, -(1 << 40)), one])
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[:, ::-1]
    found: Rates = (windows + other).max(axis=1)
    return found


def grouped(found: Iterator[tuple[str, int, tuple[int, ...]]]) -> list[Domain]:
    """Domains by price and what they give, those that give nothing left out."""
    alike: dict[tuple[int, tuple[int, ...]], list[str]] = defaultdict(list)
    for name, price, gives in found:
        if any(gives):
            alike[price, gives].append(name)
    return [Domain(tuple(names), price, gives) for (price, gives), names in alike.items()]
