"""All that knows OR-Tools: columns, formulation, search, exact places."""

from optimizer.solver.search import solve

__all__ = ["solve"]
