"""All that knows OR-Tools: columns, formulation, search, exact places."""

from collections.abc import Callable
from functools import partial

from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.conflict import clash, foreseen
from optimizer.solver.reserve import reserve
from optimizer.solver.search import solve as search

__all__ = ["solve"]


def solve(
    problem: PlacementProblem,
    limits: Limits,
    progress: Callable[[Progress], None] | None = None,
    hint: Placement | None = None,
) -> Outcome:
    """Place the deployments: least unmet demand, then least price, then fewest moves.

    Room is kept free as the fleet's reserve asks. Where rules clash the outcome says which.
    ``hint``: a placement to begin with.
    """
    clashes = foreseen(problem, limits)
    if clashes is not None:
        return clashes
    how = search if hint is None else partial(search, hint=hint)
    return clash(problem, limits, reserve(how, problem, limits, progress))
