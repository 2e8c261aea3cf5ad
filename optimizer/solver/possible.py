"""Whether the hard rules of a problem can all hold, asked again and again of its variants."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from optimizer.domain.fleet import Fleet
from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.columns import Site, coarse_sites, fine_sites
from optimizer.solver.easing import Part, parts, without
from optimizer.solver.foresee import all_given_room, demanding, within_reach
from optimizer.solver.formulation import Expr, Formulation, build
from optimizer.solver.integer import Answer, Clock, run
from optimizer.solver.large import is_large
from optimizer.solver.losses import enough_left

EFFORT = 2.0  # deterministic, of one question
SHORT_EFFORT = 0.3  # of a question whether a change helps, and of how little of it does
LEFT_OUT_EFFORT = 0.1  # of a question whether a rule is needed for a clash
SECONDS = 20.0  # of all questions; a set that time left unfinished clashes, but may be too large
MOST_PLACES = 4_000  # ways of running times nodes, when a large fleet's nodes are told apart

Pins = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(slots=True)
class Asking:
    """Questions of what is possible, on one clock."""

    clock: Clock
    finished: bool = True
    views: list[tuple[Fleet, Pins, tuple[Site, ...]]] = field(default_factory=list)

    @classmethod
    def within(cls, limits: Limits) -> "Asking":
        """A clock for all questions of one clash."""
        some = replace(limits, time_limit_s=min(SECONDS, limits.time_limit_s))
        return cls(Clock(some, lambda _: None))

    def surely(self, problem: PlacementProblem) -> bool:
        """Whether it is possible, on a large fleet as far as giving room greedily shows."""
        only = within_reach(demanding(problem))
        return all_given_room(only) or (not is_large(only) and self.helps(only))

    def helps(self, problem: PlacementProblem) -> bool:
        """Whether a changed problem was found to be possible, by a short look."""
        return self.possible(problem, SHORT_EFFORT) is True

    def possible(self, problem: PlacementProblem, effort: float = EFFORT) -> bool | None:
        """Whether all hard rules can hold at once; None: not settled.

        By giving room greedily; else by a view of alike nodes together, and one of every node
        where that is not too large. Where it is, what the first view allows counts as possible.
        """
        if self.clock.seconds_left <= 0:
            self.finished = False
            return None
        only = within_reach(demanding(problem))
        if all_given_room(only):
            return True
        if is_large(only):
            answer = self._run(build(only, self._coarse(only)), effort)
            if answer.impossible:
                return False
            if _places(only) > MOST_PLACES:
                return True if answer.found else None
        answer = self._run(build(only, fine_sites(only)), effort)
        if answer.impossible:
            return False
        return True if answer.found else None

    def least(self, problem: PlacementProblem, goal: Callable[[Formulation], Expr]) -> int | None:
        """The least of a number under which the hard rules were found to hold; None: unknown."""
        only = within_reach(demanding(problem))
        f = build(only, self._coarse(only) if is_large(only) else fine_sites(only))
        expr = goal(f)
        f.model.minimize(expr)
        answer = self._run(f, SHORT_EFFORT)
        return answer.value if answer.found else None

    def _run(self, f: Formulation, effort: float) -> Answer:
        """A short look by one worker, which refutes most; by all where that settles nothing."""
        for row in enough_left(f):
            f.model.add(row)
        answer = run(f.model, self.clock, "conflict", effort=min(effort, SHORT_EFFORT), workers=1)
        if answer.found or answer.impossible or effort <= SHORT_EFFORT:
            return answer
        return run(f.model, self.clock, "conflict", effort=effort)

    def _coarse(self, problem: PlacementProblem) -> tuple[Site, ...]:
        """Alike nodes together; a fleet is looked through once for all questions of it."""
        pins = tuple((d.name, d.pin) for d in problem.deployments if d.pin)
        for fleet, known, sites in self.views:
            if fleet is problem.fleet and known == pins:
                return sites
        sites = coarse_sites(problem)
        self.views.append((problem.fleet, pins, sites))
        return sites

    def minimal(self, problem: PlacementProblem) -> list[Part]:
        """Rules that clash together, none of which can be left out.

        First all rules about a deployment are left out at once, then each by itself.
        """
        kept = list(parts(problem))
        owners = dict.fromkeys(part.owner for part in kept)
        groups = [[part for part in kept if part.owner == owner] for owner in owners]
        few = [part for group in self._needed(problem, groups, []) for part in group]
        gone = [part for part in kept if part not in few]
        singles = [[part] for part in kept if part in few]
        return [part for (part,) in self._needed(problem, singles, gone)]

    def _needed(
        self, problem: PlacementProblem, groups: list[list[Part]], gone: list[Part]
    ) -> list[list[Part]]:
        """Groups of rules none of which can be left out, while those ``gone`` are.

        Halves, quarters and so on are left out first.
        """
        size = max(1, len(groups) // 2)
        while True:
            first = 0
            while first < len(groups):
                tried = [part for group in groups[first : first + size] for part in group]
                if self.possible(without(problem, [*gone, *tried]), LEFT_OUT_EFFORT) is False:
                    groups, gone = [*groups[:first], *groups[first + size :]], [*gone, *tried]
                else:
                    first += size
            if size == 1:
                return groups
            size //= 2


def _places(problem: PlacementProblem) -> int:
    return sum(map(len, problem.candidates.values())) * len(problem.fleet.nodes)
