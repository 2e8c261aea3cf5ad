"""Good mixes for all deployments at once: one or two kinds of replica each, by numpy.

Most of the work of column generation is done by these; the exact search only has to beat them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.domain.units import PPM
from optimizer.domain.workload import Deployment
from optimizer.solver.pricing import Mix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_CELLS = 2_000_000  # deployments x kinds x kinds looked at in one go
MOST_KINDS = 64  # of a deployment that are paired: the cheapest for what they serve


class QuickPricing:
    """The deployments as padded arrays: a row each, a column for each place of a replica."""

    def __init__(
        self, deployments: Sequence[Deployment], items: Sequence[Sequence[tuple[int, int, int]]]
    ) -> None:
        """``items``: variable, capacity and the most replicas, of each place of a deployment."""
        self.names = [d.name for d in deployments]
        self.rows = {name: row for row, name in enumerate(self.names)}
        rows, width = len(deployments), max([1, *map(len, items)])
        self.variables: Ints = np.full((rows, width), -1, dtype=np.int64)
        self.capacity: Ints = np.zeros((rows, width), dtype=np.int64)
        self.most: Ints = np.zeros((rows, width), dtype=np.int64)
        for row, places in enumerate(items):
            for column, (variable, capacity, most) in enumerate(places):
                self.variables[row, column] = variable
                self.capacity[row, column] = capacity
                self.most[row, column] = most
        self.asked: Ints = np.array([d.asked_mrps or 0 for d in deployments], dtype=np.int64)
        self.least: Ints = np.array([d.min_replicas for d in deployments], dtype=np.int64)
        unlimited = 1 << 40
        limits = [unlimited if d.replica_limit is None else d.replica_limit for d in deployments]
        self.limit: Ints = np.array(limits, dtype=np.int64)

    def mixes(self, prices: Floats, missing_prices: Floats) -> list[Mix]:
        """A good mix for each deployment at these prices by variable (cost infinite: none).

        ``missing_prices`` per millionth of missing demand, infinite where none may be missing.
        """
        padded = np.append(prices, np.inf)
        found: list[Mix] = []
        width = min(MOST_KINDS, self.variables.shape[1])
        step = max(1, MOST_CELLS // max(1, width**2))
        for low in range(0, len(self.names), step):
            part = slice(low, min(low + step, len(self.names)))
            found += self._some(part, padded[self.variables[part]], missing_prices[part])
        return found

    def _cheapest(self, part: slice, price: Floats) -> Ints:
        """The columns that are paired, by row: all, or of many the cheapest for what they serve."""
        rows, width = price.shape
        if width <= MOST_KINDS:
            return np.broadcast_to(np.arange(width), (rows, width))
        rate = price / np.maximum(1, self.capacity[part])
        return np.sort(np.argsort(rate, axis=1, kind="stable")[:, :MOST_KINDS], axis=1)

    def _some(self, part: slice, price: Floats, missing_price: Floats) -> list[Mix]:
        columns = self._cheapest(part, price)
        price = np.take_along_axis(price, columns, axis=1)
        capacity = np.take_along_axis(self.capacity[part], columns, axis=1)
        most = np.take_along_axis(self.most[part], columns, axis=1)
        cost, first, n_first, second, n_second, missing = self._pairs(part, price, capacity, most)
        none = np.where(
            (self.asked[part] > 0) | (self.least[part] > 0), missing_price * float(PPM), 0.0
        )
        found = []
        for row, best in enumerate(cost.argmin(axis=1)):
            paid = float(cost[row, best])
            if none[row] <= paid:
                idle = PPM if none[row] > 0 or np.isinf(paid) else 0
                found.append(Mix(float(none[row]), 0.0, (), float(idle)))
                continue
            counts: dict[int, int] = {}
            for column, number in (
                (int(first[row, best]), int(n_first[row, best])),
                (int(second[row, best]), int(n_second[row, best])),
            ):
                if number:
                    variable = int(self.variables[part.start + row, columns[row, column]])
                    counts[variable] = counts.get(variable, 0) + number
            gap = float(missing[row, best])
            found.append(Mix(paid, 0.0, tuple(sorted(counts.items())), gap))
        return found

    def _pairs(
        self, part: slice, price: Floats, capacity: Ints, most: Ints
    ) -> tuple[Floats, Ints, Ints, Ints, Ints, Floats]:
        """Costs of mixes: k of one kind by its share of the demand, the rest of the best other.

        For each kind there are four: all of it, and k, k - 1, k - 2 of it with another.
        """
        asked, least = self.asked[part][:, None], self.least[part][:, None]
        limit = self.limit[part][:, None]
        rows, width = capacity.shape
        serves = capacity > 0
        divisor = np.maximum(1, capacity)
        columns = np.broadcast_to(np.arange(width), (rows, width))
        options = []
        alone = np.maximum(np.where(asked > 0, -(-asked // divisor), 0), least)
        fine = (alone <= np.minimum(most, limit)) & (serves | (asked == 0)) & np.isfinite(price)
        # What nobody needs (no rate, no minimum) is served by nothing.
        options.append(
            (np.where(fine, alone * _finite(price), np.inf), columns, alone, columns, 0 * alone)
        )
        for fewer in range(3):
            k = np.minimum(np.minimum(asked // divisor - fewer, most), limit)
            usable = (k > 0) & serves & np.isfinite(price)
            k = np.where(usable, k, 0)
            rest = np.maximum(0, asked - k * capacity)
            number = -(-rest[:, :, None] // divisor[:, None, :])  # rows x first x second
            total = k[:, :, None] + number
            fits = (
                (number <= most[:, None, :])
                & serves[:, None, :]
                & (total >= least[:, :, None])
                & (total <= limit[:, :, None])
            )
            paid = np.where(fits, number * _finite(price)[:, None, :], np.inf)
            paid = np.where(np.isinf(price)[:, None, :], np.inf, paid)
            second = paid.argmin(axis=2)
            rest_paid = np.take_along_axis(paid, second[:, :, None], axis=2)[:, :, 0]
            n_second = np.take_along_axis(number, second[:, :, None], axis=2)[:, :, 0]
            cost = np.where(usable, k * _finite(price) + rest_paid, np.inf)
            options.append((cost, columns, k, second, n_second))
        joined = [np.concatenate(parts, axis=1) for parts in zip(*options, strict=True)]
        cost, first, n_first, second, n_second = joined
        return cost, first, n_first, second, n_second, np.zeros_like(cost)


def _finite(price: Floats) -> Floats:
    return np.where(np.isfinite(price), price, 0.0)
