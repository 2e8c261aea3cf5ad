"""From what runs now to what should run: moves, steps, and the plan that says so."""

from optimizer.planning.compose import compose
from optimizer.planning.makespan import Makespan, makespan
from optimizer.planning.moves import moves, repartitions
from optimizer.planning.order import Ordered, order
from optimizer.planning.pace import Pace
from optimizer.planning.reach import reached
from optimizer.planning.undo import spared, undo

__all__ = [
    "Makespan",
    "Ordered",
    "Pace",
    "compose",
    "makespan",
    "moves",
    "order",
    "reached",
    "repartitions",
    "spared",
    "undo",
]
