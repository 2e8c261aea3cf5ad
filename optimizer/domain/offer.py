"""What can be bought: nodes on offer, and what they cost."""

from dataclasses import dataclass, replace

from optimizer.domain.fleet import Node
from optimizer.domain.units import PPM, ceil_div


@dataclass(frozen=True, slots=True)
class Discount:
    """Whoever takes at least ``nodes`` of an offer pays so much less for each of them."""

    nodes: int
    off_ppm: int


@dataclass(frozen=True, slots=True)
class Commitment:
    """Whoever takes a node for ``months`` pays so much less for it."""

    months: int
    off_ppm: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A node that can be had for ``price_micros`` an hour, none or ``least`` to ``most`` of them.

    ``term_months``: for how long they must be taken at that price; 0: for as long as one likes.
    """

    node: Node
    price_micros: int
    most: int = 4
    least: int = 1
    discounts: tuple[Discount, ...] = ()
    commitments: tuple[Commitment, ...] = ()
    term_months: int = 0

    @property
    def name(self) -> str:
        """The offer's name; its nodes are numbered from it."""
        return self.node.name

    @property
    def counts(self) -> range:
        """How many can be taken, other than none."""
        return range(self.least, self.most + 1)

    def total_micros(self, count: int) -> int:
        """What so many cost an hour: list price less the largest discount for that many."""
        off = max((d.off_ppm for d in self.discounts if count >= d.nodes), default=0)
        return count * _less(self.price_micros, off)

    @property
    def cheapest_micros(self) -> int:
        """What a node costs at the least, however many are taken."""
        return min(_less(self.price_micros, d.off_ppm) for d in (*self.discounts, Discount(1, 0)))

    def kept_for(self, months: int) -> "Offer":
        """The offer at the best price for whoever needs the nodes for ``months``."""
        fitting = [c for c in self.commitments if c.months <= months]
        if not fitting:
            return self
        best = max(fitting, key=lambda c: (c.off_ppm, -c.months))
        price = _less(self.price_micros, best.off_ppm)
        return replace(self, price_micros=price, term_months=best.months, commitments=())


@dataclass(frozen=True, slots=True)
class PriceList:
    """A Prices document. ``gpus``: what a GPU of each product in the fleet costs an hour."""

    name: str
    currency: str
    offers: tuple[Offer, ...] = ()
    gpus: tuple[tuple[str, int], ...] = ()


def _less(micros: int, off_ppm: int) -> int:
    """A price less a part of it, rounded up to the millionth."""
    return ceil_div(micros * (PPM - off_ppm), PPM)
