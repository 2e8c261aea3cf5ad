"""Prices: who pays what of a GPU, and what a candidate costs per served request."""

from collections.abc import Collection, Sequence
from fractions import Fraction

from optimizer.domain.config import Candidate, Shape
from optimizer.domain.fleet import Fleet, Node
from optimizer.domain.gpu import Gpu


def split(total: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """``total`` in proportion to ``weights``, adding up exactly (largest remainder)."""
    whole = sum(weights)
    if whole <= 0:
        return tuple(0 for _ in weights)
    exact = [total * w / whole for w in weights]
    parts = [int(e) for e in exact]
    remainders = [e - p for e, p in zip(exact, parts, strict=True)]
    order = sorted(range(len(weights)), key=lambda i: (-remainders[i], i))
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return tuple(parts)


def held(gpu: Gpu, shape: Shape) -> Fraction:
    """The part of one GPU that a replica of this shape holds.

    Whole: all of it. MIG: its memory slices over the GPU's. Shared: the largest of its three
    fractions.
    """
    if shape.share is not None:
        share, room = shape.share, gpu.room
        return max(
            Fraction(share.memory_mib, max(1, room.memory_mib)),
            Fraction(share.bandwidth_mbs, max(1, room.bandwidth_mbs)),
            Fraction(share.compute_ppm, max(1, room.compute_ppm)),
        )
    profile = None if shape.profile is None or gpu.mig is None else gpu.mig.profile(shape.profile)
    if profile is None or gpu.mig is None:
        return Fraction(1)
    return Fraction(profile.memory_slices, gpu.mig.memory_slices)


def may_hold(node: Node, candidate: Candidate, pin: Collection[str] = ()) -> bool:
    """Whether a replica could start on that node at all: product, mode, cordon and pin."""
    if node.gpu.name != candidate.gpu or candidate.shape.sharing not in node.sharing:
        return False
    allowed = [
        g for g in node.open_gpus() if not pin or node.name in pin or f"{node.name}/{g}" in pin
    ]
    return len(allowed) >= candidate.shape.block


class RoomPrices:
    """What rooms of a fleet cost; each kind of room is looked up among the nodes once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._cheapest: dict[tuple[object, ...], tuple[int, Gpu] | None] = {}

    def room_micros(self, candidate: Candidate, pin: Collection[str] = ()) -> int | None:
        """Micros per hour of the room one replica takes, on the cheapest node that may hold it.

        Unused room beside it is not counted. None when no node of the fleet may hold it.
        """
        shape = candidate.shape
        key = candidate.gpu, shape.sharing, shape.block, *pin
        if key not in self._cheapest:
            self._cheapest[key] = self._look(candidate, pin)
        best = self._cheapest[key]
        return None if best is None else int(best[0] * held(best[1], shape) * shape.gpus)

    def _look(self, candidate: Candidate, pin: Collection[str]) -> tuple[int, Gpu] | None:
        best: tuple[int, Gpu] | None = None
        for node in self.fleet.nodes:
            if node.gpu.name != candidate.gpu:
                continue
            price = self.fleet.price_micros(node)
            if (best is None or price < best[0]) and may_hold(node, candidate, pin):
                best = (price, node.gpu)
        return best

    def served_micros(self, candidate: Candidate, pin: Collection[str] = ()) -> int | None:
        """Micros per hour for one request per second served; None when either side is unknown."""
        price = self.room_micros(candidate, pin)
        if price is None or not candidate.capacity_mrps:
            return None
        return price * 1000 // candidate.capacity_mrps
