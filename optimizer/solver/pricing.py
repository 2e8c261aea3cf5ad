"""The cheapest mix of configurations that serves one deployment: an exact covering knapsack."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf

from optimizer.domain.units import PPM, ceil_div

MOST_NODES = 20_000


@dataclass(frozen=True, slots=True)
class Item:
    """A place for a replica: its price (by duals), what it serves, the variable that counts it."""

    price: float
    capacity: int
    variable: int
    most: int | None = None  # so many replicas fit there; None: more than can be of use


@dataclass(frozen=True, slots=True)
class Asked:
    """What a mix must do. ``missing_price`` is per ppm of missing share; None: none may be."""

    rate: int
    min_replicas: int
    limit: int | None
    missing_price: float | None = None

    def missing_ppm(self, rate: int, replicas: int) -> float:
        """Missing share in ppm, not rounded (so it never exceeds the true one)."""
        parts = [0.0]
        if self.rate:
            parts.append(PPM * max(0, self.rate - rate) / self.rate)
        if self.min_replicas:
            parts.append(PPM * max(0, self.min_replicas - replicas) / self.min_replicas)
        return max(parts)


@dataclass(frozen=True, slots=True)
class Mix:
    """Counts by variable, and ``bound``: no mix is cheaper at these prices."""

    cost: float
    bound: float
    counts: tuple[tuple[int, int], ...]
    missing_ppm: float = 0.0


def cheapest_mix(
    items: Sequence[Item], asked: Asked, forced: Item | None = None, known: Mix | None = None
) -> Mix:
    """The cheapest mix; with ``forced`` the cheapest that holds at least one of that item.

    ``known`` is a mix to beat; it is returned where nothing does.

    Exact unless the search tree outgrows its cap; then ``bound`` is the linear relaxation's.
    Cost is infinite when no mix does what is asked.
    """
    search = _Search(_undominated(items), asked)
    if known is not None and not isinf(known.cost):
        search.best, search.best_missing = known.cost, known.missing_ppm
        search.best_counts = list(known.counts)
    if forced is not None:
        search.run(forced.price, forced.capacity, 1)
        counts = [*search.best_counts, (forced.variable, 1)]
    else:
        search.run(0.0, 0, 0)
        counts = search.best_counts
    merged: dict[int, int] = {}
    for variable, count in counts:
        merged[variable] = merged.get(variable, 0) + count
    bound = search.best if search.nodes <= MOST_NODES else min(search.best, search.root_bound)
    return Mix(search.best, bound, tuple(sorted(merged.items())), search.best_missing)


def _undominated(items: Sequence[Item]) -> list[Item]:
    """Items that no other beats in price and capacity both, cheapest per unit served first.

    One replaces the other one to one, so this holds under any limit on the number of replicas,
    unless there is no room for so many of the better one.
    """
    kept: list[Item] = []
    least = inf
    for item in sorted(items, key=lambda i: (-i.capacity, i.price, i.variable)):
        if item.price < least:
            kept.append(item)
            least = item.price if item.most is None else least
    return sorted(kept, key=lambda i: (i.price / i.capacity if i.capacity else inf, i.variable))


class _Search:
    """Depth first over how often each item is taken, best price per unit served first."""

    def __init__(self, items: list[Item], asked: Asked) -> None:
        self.items = items
        self.asked = asked
        self.best, self.best_missing = inf, 0.0
        self.best_counts: list[tuple[int, int]] = []
        self.nodes = 0
        self.root_bound = -inf
        self.by_price = sorted(items, key=lambda i: i.price)
        self.ratio = [i.price / i.capacity if i.capacity else inf for i in items] + [inf]
        skip = asked.missing_price
        self.skip_ratio = inf if skip is None else skip * PPM / max(1, asked.rate)

    def run(self, cost: float, rate: int, replicas: int) -> None:
        self.root_bound = cost + self._rest(0, rate)
        self._descend(0, cost, rate, replicas, [])

    def _rest(self, index: int, rate: int) -> float:
        """At least this much more for what is left, by items from ``index`` on or not at all."""
        left = max(0, self.asked.rate - rate)
        return left * min(self.ratio[index], self.skip_ratio) if left else 0.0

    def _descend(
        self, index: int, cost: float, rate: int, replicas: int, taken: list[tuple[int, int]]
    ) -> None:
        self.nodes += 1
        self._finish(cost, rate, replicas, taken)
        left = self.asked.rate - rate
        if left <= 0 or index == len(self.items) or self.nodes > MOST_NODES:
            return
        item = self.items[index]
        if not item.capacity or cost + self._rest(index, rate) >= self.best:
            return
        most = ceil_div(left, item.capacity)
        if item.most is not None:
            most = min(most, item.most)
        if self.asked.limit is not None:
            most = min(most, self.asked.limit - replicas)
        for count in range(most, -1, -1):
            paid, served = cost + count * item.price, rate + count * item.capacity
            if paid + self._rest(index + 1, served) >= self.best and count < most:
                break  # fewer of the best item only costs more
            chosen = [*taken, (item.variable, count)] if count else taken
            self._descend(index + 1, paid, served, replicas + count, chosen)

    def _finish(self, cost: float, rate: int, replicas: int, taken: list[tuple[int, int]]) -> None:
        """Stop here: fill up towards the least number of replicas, by price and where is room."""
        fill = max(0, self.asked.min_replicas - replicas)
        if self.asked.limit is not None:
            fill = max(0, min(fill, self.asked.limit - replicas))
        self._compare(cost, rate, replicas, taken)
        for item in self.by_price if fill else ():
            more = fill
            if item.most is not None:
                more = min(fill, item.most - sum(n for v, n in taken if v == item.variable))
            if more > 0:
                taken = [*taken, (item.variable, more)]
                cost, rate = cost + more * item.price, rate + more * item.capacity
                fill, replicas = fill - more, replicas + more
                self._compare(cost, rate, replicas, taken)
            if not fill:
                return

    def _compare(self, cost: float, rate: int, replicas: int, taken: list[tuple[int, int]]) -> None:
        """Keep these replicas if they and what they miss cost least so far."""
        missing = self.asked.missing_ppm(rate, replicas)
        if missing and self.asked.missing_price is None:
            return
        cost += missing * (self.asked.missing_price or 0.0)
        if cost < self.best:
            self.best, self.best_counts, self.best_missing = cost, taken, missing
