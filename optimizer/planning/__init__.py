"""From what runs now to what should run: moves, steps, and the plan that says so."""

from optimizer.planning.compose import compose
from optimizer.planning.moves import moves, repartitions
from optimizer.planning.order import Ordered, order

__all__ = ["Ordered", "compose", "moves", "order", "repartitions"]
