"""All mixes of one deployment that cost at most so much at given prices: few, near a bound."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from optimizer.domain.problem import missing_ppm
from optimizer.domain.units import PPM, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.pricing import Item, Mix

MOST_LOOKS = 50_000  # at mixes, kept or not


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which mixes: of at most ``limit`` at a ``missing_price`` per ppm (None: nothing may be)."""

    limit: float
    missing_price: float | None
    most: int  # mixes; more are not listed
    looks: int = MOST_LOOKS


@dataclass(slots=True)
class _Listing:
    """Depth first over how often each item is taken, best price per unit served first."""

    d: Deployment
    items: list[Item]
    wanted: Wanted
    found: list[Mix] = field(default_factory=list)
    looks: int = 0
    per_rate: float = inf  # what it costs to leave one unit of rate out
    ratios: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        skip = self.wanted.missing_price
        if skip is not None:
            self.per_rate = skip * PPM / max(1, self.d.asked_mrps or 0)
        self.ratios = [i.price / i.capacity if i.capacity else inf for i in self.items] + [inf]

    @property
    def full(self) -> bool:
        return len(self.found) > self.wanted.most or self.looks > self.wanted.looks

    def keep(self, cost: float, left: int, taken: list[tuple[Item, int]]) -> None:
        replicas = sum(count for _, count in taken)
        missing = missing_ppm(self.d, (self.d.asked_mrps or 0) - left, replicas)
        total = cost + missing * (self.wanted.missing_price or 0.0)
        if total <= self.wanted.limit and (self.wanted.missing_price is not None or not missing):
            counts = tuple(sorted((item.variable, count) for item, count in taken))
            self.found.append(Mix(total, total, counts, float(missing)))

    def at_least(self, cost: float, left: int, index: int) -> float:
        """What a mix costs that goes on with items from ``index`` on, or leaves the rest out."""
        return cost + max(0, left) * min(self.ratios[index], self.per_rate) if left > 0 else cost

    def take(self, first: int, cost: float, left: int, taken: list[tuple[Item, int]]) -> None:
        replicas = sum(count for _, count in taken)
        short = max(0, self.d.min_replicas - replicas)
        done = left <= 0 and not short
        if done or self.wanted.missing_price is not None:
            self.keep(cost, left, taken)
        for index in range(first, 0 if done else len(self.items)):
            self.looks += 1
            if self.full or self.at_least(cost, left, index) > self.wanted.limit:
                return
            self._take_some(index, cost, left, taken, replicas)

    def _take_some(
        self, index: int, cost: float, left: int, taken: list[tuple[Item, int]], replicas: int
    ) -> None:
        item, limit = self.items[index], self.d.replica_limit
        enough = ceil_div(left, item.capacity) if left > 0 and item.capacity else 0
        times = max(enough, self.d.min_replicas - replicas)
        times = times if item.most is None else min(times, item.most)
        times = times if limit is None else min(times, limit - replicas)
        for count in range(times, 0, -1):
            self.looks += 1
            if self.full:
                return
            paid, rest = cost + count * item.price, left - count * item.capacity
            if self.at_least(paid, rest, index + 1) > self.wanted.limit:
                continue
            more = [*taken, (item, count)]
            spare = replicas + count > self.d.min_replicas
            if not (spare and any(one.capacity <= -rest for one, _ in more)):
                self.take(index + 1, paid, rest, more)


def every_mix(d: Deployment, items: Sequence[Item], wanted: Wanted) -> list[Mix] | None:
    """Every mix within the limit in which no replica is idle; None where they are too many.

    A replica is idle if without it nothing more is missing. Taking idle ones out keeps whatever a
    mix keeps, so those listed are enough.
    """
    useful = [i for i in items if i.capacity or d.min_replicas]
    ordered = sorted(
        useful, key=lambda i: (i.price / i.capacity if i.capacity else inf, -i.capacity, i.variable)
    )
    listing = _Listing(d, ordered, wanted)
    listing.take(0, 0.0, d.asked_mrps or 0, [])
    return None if listing.full else listing.found
