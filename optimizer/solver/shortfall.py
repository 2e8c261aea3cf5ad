"""A bound on unmet demand that knows that replicas are missing in whole numbers."""

from math import floor

from optimizer.domain.units import PPM
from optimizer.solver.master import Bound, Master
from optimizer.solver.pricing import Asked, Item, cheapest_mix

SCALE = 1e9  # of the dearest replica, for whole numbers in the knapsack


def whole_shortfall(master: Master, bound: Bound) -> float:
    """The bound on unmet demand of one priority, in ppm, raised where deployments count replicas.

    The duals say what each replica's place is worth at least (w) and what all places are worth
    together (W). Of n replicas k are missing, so sum w (n - k) <= W. The cheapest way to miss that
    much is a covering knapsack in whole numbers; its relaxation is the bound given.
    """
    if not len(bound.duals):
        return bound.value  # no program was solved: somebody has no way to be served at all
    prices = master.prices(bound.duals)
    worth: dict[str, float] = {}
    over = bound.value * master.unit
    for name, d in master.names.items():
        missing = master.missing[name]
        changed = abs(prices[missing] - master.costs[missing]) > 1e-9
        if d.demand is not None or not d.min_replicas or changed or master.in_full(d):
            continue  # what its cheapest mix costs stays in the bound
        places = [max(0.0, float(prices[v])) for v, _ in master.items[name]]
        if places and master.costs[missing] > 0:
            worth[name] = min(places) * master.unit
            over += worth[name] * d.min_replicas - bound.cheapest[name] * master.unit
    most = max(worth.values(), default=0.0)
    if over <= 0 or most <= 0:
        return bound.value
    items = [
        Item(
            float(master.costs[master.missing[name]]) * master.unit * PPM / d.min_replicas,
            -floor(-each / most * SCALE),
            number,
            d.min_replicas,
        )
        for number, (name, each) in enumerate(worth.items())
        for d in [master.names[name]]
    ]
    least = cheapest_mix(items, Asked(floor(over / most * SCALE), 0, None)).bound
    return max(bound.value, least / master.unit)
