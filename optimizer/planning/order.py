"""Order: moves become steps."""

from dataclasses import dataclass

from optimizer.domain.placement import Placement
from optimizer.domain.plan import Move, Step
from optimizer.domain.problem import PlacementProblem


@dataclass(frozen=True, slots=True)
class Ordered:
    """Steps in an order that works, and the moves that could not be ordered (``left``)."""

    steps: tuple[Step, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def order(problem: PlacementProblem, placement: Placement, moves: tuple[Move, ...]) -> Ordered:
    """Steps."""
    return Ordered()
