"""What a solver's outcome says otherwise than brute force and the judge."""

from bruteforce import Optimum
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.problem import PlacementProblem
from optimizer.verify import check_outcome, objectives, verify


def disagreement(problem: PlacementProblem, outcome: Outcome, truth: Optimum | None) -> str | None:
    """The first fault; None when all agree. No ``truth``: brute force finds it infeasible."""
    if truth is None:
        ok = outcome.termination is Termination.INFEASIBLE
        return None if ok else f"{outcome.termination}, brute force finds it infeasible"
    if outcome.incumbent is None:
        return f"no plan ({outcome.termination}); brute force has {truth.score.levels}"
    broken = [*verify(problem, outcome.incumbent), *check_outcome(problem, outcome)]
    if broken:
        return f"{broken[0]} and {len(broken) - 1} more"
    found = objectives(problem, outcome.incumbent).levels
    if outcome.termination is Termination.OPTIMAL and found != truth.score.levels:
        return f"calls {found} optimal, brute force has {truth.score.levels}"
    if found < truth.score.levels:
        return f"has {found}, better than everything: {truth.score.levels}"
    return overclaimed(outcome, truth)


def overclaimed(outcome: Outcome, truth: Optimum) -> str | None:
    """A bound above the true optimum, looked at level by level while earlier values are best."""
    levels = [o for o in outcome.objectives if o.name != "stranded"]
    for objective, best in zip(levels, truth.score.levels, strict=False):
        if objective.bound > best:
            return f"{objective.name} bounded by {objective.bound}, the optimum is {best}"
        if objective.value != best:
            return None
    return None
