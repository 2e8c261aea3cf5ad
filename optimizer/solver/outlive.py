"""How much a deployment must serve so that no loss of a domain leaves it short.

A loss may take what is served beyond what is asked: the spare. So no domain (node, rack or zone)
holds more than that, and all together no more than that times their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from optimizer.domain.units import ceil_div
from optimizer.solver.pricing import Item

MOST_LOST = 3  # replicas of the largest size that mixes are told apart by

Rates = list[tuple[int, int]]  # what one replica serves, and how many there are
Domains = tuple[tuple[int, frozenset[int]], ...]  # how many domains, and the places in them


def domains_needed(spare: int, replicas: Rates) -> int:
    """At least so many domains hold these replicas where each holds at most ``spare``.

    Of replicas that serve ``rate`` or more it holds at most ``spare // rate``; beside those that
    leave no room for it, others need domains of their own (bin packing's L2: Martello and Toth,
    Discrete Applied Mathematics 28, 1990).
    """
    least = [int(any(n for _, n in replicas))]
    if spare:
        least.append(ceil_div(sum(rate * n for rate, n in replicas), spare))
    for rate in {rate for rate, n in replicas if n and 0 < rate <= spare}:
        as_large = sum(n for other, n in replicas if other >= rate)
        least.append(ceil_div(as_large, spare // rate))
        if 2 * rate <= spare:
            least.append(_beside_large(spare, replicas, rate))
    return max(least)


def _beside_large(spare: int, replicas: Rates, rate: int) -> int:
    """Domains for replicas beside which ``rate`` has no room, for halves, and for the rest."""
    full = sum(n for other, n in replicas if other > spare - rate)
    half = [(other, n) for other, n in replicas if spare < 2 * other <= 2 * (spare - rate)]
    small = sum(other * n for other, n in replicas if rate <= other and 2 * other <= spare)
    halves = sum(n for _, n in half)
    room = halves * spare - sum(other * n for other, n in half)
    return full + halves + ceil_div(max(0, small - room), spare)


def spares(
    domains: Domains, asked: int, items: Sequence[Item], largest: int
) -> Iterator[tuple[int, list[Item]]]:
    """What to serve at least, and of what, where the spare is one, two or more of the largest.

    Every mix whose largest replica serves ``largest`` is among these. Of R domains that each hold
    at most the spare, R - 1 carry what is asked: R / (R - 1) of it is served.
    """
    number = sum(n for n, _ in domains)
    if domains and number < 2:
        return
    least = ceil_div(asked * number, number - 1) if domains else 0
    for lost in range(1, MOST_LOST + 1):
        rate = max(least, asked + lost * largest)
        few = _capped(domains, items, (lost + 1) * largest - 1, rate)
        if lost == MOST_LOST or few is None:
            yield rate, list(items)
            return
        yield rate, few


def _capped(domains: Domains, items: Sequence[Item], spare: int, rate: int) -> list[Item] | None:
    """The items, as many of each as lie in its domains; None where that limits none of use."""
    found, limits = [], False
    for item in items:
        number = next((n for n, places in domains if item.variable in places), None)
        most = None if number is None else number * (spare // item.capacity)
        if most is None or most >= ceil_div(rate, item.capacity):
            found.append(item)
            continue
        limits = True
        found.append(replace(item, most=most if item.most is None else min(most, item.most)))
    return found if limits else None
