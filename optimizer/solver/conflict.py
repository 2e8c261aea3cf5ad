"""Why nothing is possible: minimal sets of rules that clash, and what would make it possible.

Most rules only forbid, and no replica at all keeps them. So a clash takes a rule that demands
something (``reserve``, ``survive``, ``do_not_disturb``), and only what those speak of is looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import fixed_layout, keeps_layout, may_stay
from optimizer.solver.easing import Part, without
from optimizer.solver.fixes import Fix, fixes
from optimizer.solver.foresee import clashing, clashing_company, demanding, demands
from optimizer.solver.large import is_large
from optimizer.solver.measure import frail
from optimizer.solver.possible import Asking
from optimizer.solver.promises import Resize, slo_fixes

MOST_CLASHES = 3  # of rules that have nothing to do with each other
POSSIBLE = "a plan is possible"
HOLD = "these rules can hold"


def clash(problem: PlacementProblem, limits: Limits, outcome: Outcome) -> Outcome:
    """The outcome, or where rules clash the proof of that: their names, and fixes as notes."""
    wide = with_reserve(problem)
    if not any(demands(wide, d) for d in wide.deployments):
        return outcome
    found = outcome.incumbent
    if found is not None and _demands_hold(problem, found):
        return outcome
    asking = Asking.within(limits)
    short = [] if found is None else frail(problem, found)
    few = clashing_company(demanding(wide), short, asking.possible)
    if few is None and asking.possible(wide) is not False:
        return Outcome(
            Termination.NOTHING_FOUND,
            stopped_by=outcome.stopped_by if found is None else "effort",
            reproducible=outcome.reproducible,
        )
    return _infeasible(asking, few or wide, wide)


def foreseen(problem: PlacementProblem, limits: Limits) -> Outcome | None:
    """A clash that shows before any search: its outcome; None: none showed."""
    asking, wide = Asking.within(limits), with_reserve(problem)
    few = clashing(wide, asking.possible)
    return None if few is None else _infeasible(asking, few, wide)


def with_slo_fixes(
    problem: PlacementProblem, outcome: Outcome, limits: Limits, resize: Resize
) -> Outcome:
    """A clash's outcome, with the least relaxed promise of an SLO that lets its rules hold.

    More is carried by each replica then. ``resize`` gives the ways to run under another SLO.
    """
    told = [r.partition(": ")[2] for r in outcome.conflict if r.startswith("survive: ")]
    asking, wide = Asking.within(limits), with_reserve(problem)
    names = {d.name: d for d in wide.deployments}
    few = demanding(wide, {r.partition(": ")[2] or r for r in outcome.conflict})
    notes: list[str] = []
    for name in told:

        def eased(base: PlacementProblem, changed: Deployment) -> PlacementProblem:
            some = tuple(changed if d.name == changed.name else d for d in base.deployments)
            offered = {**base.candidates, changed.name: tuple(resize(changed))}
            return replace(base, deployments=some, candidates=offered)

        for base, said in ((wide, POSSIBLE), (few, HOLD)):
            if is_large(base) and said is POSSIBLE:
                continue
            found = list(
                slo_fixes(names[name], lambda d, base=base: asking.helps(eased(base, d)))  # type: ignore[misc]
            )
            notes += [f"{said} with {name}.slo: {fix}" for _, fix in found]
            if found:
                break
    return replace(outcome, notes=(*outcome.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Clash:
    """A minimal set of clashing rules, and single changes with which these can hold."""

    core: Sequence[Part]
    fixes: Sequence[Fix]

    @property
    def names(self) -> str:
        """The rules in one line."""
        return ", ".join(part.name for part in self.core)


def _infeasible(asking: Asking, few: PlacementProblem, whole: PlacementProblem) -> Outcome:
    """What clashes in a part of the problem, and in the rest of it; what would let it hold."""
    cores = list(_cores(asking, few, whole))
    clashes = []
    for number, core in enumerate(cores):
        others = [part for other in (*cores[:number], *cores[number + 1 :]) for part in other]
        clashes.append(_Clash(core, _fixes(asking, core, without(whole, others))))
    return Outcome(
        Termination.INFEASIBLE,
        conflict=tuple(part.name for part in cores[0]),
        notes=tuple(_notes(asking, clashes, whole)),
        stopped_by="proof",
        reproducible=asking.finished,
    )


def _cores(asking: Asking, few: PlacementProblem, whole: PlacementProblem) -> Iterator[list[Part]]:
    """Minimal sets of clashing rules that have no rule in common."""
    core = asking.minimal(few)
    yield core
    left = whole
    for _ in range(MOST_CLASHES - 1):
        left = without(left, core)
        more = clashing(left, asking.possible)
        if more is None:
            return
        core = asking.minimal(more)
        yield core


def _fixes(asking: Asking, core: Sequence[Part], whole: PlacementProblem) -> list[Fix]:
    """Changes that help all that is demanded; on large fleets only whom the clash is about."""
    all_of_it = demanding(whole)
    found = [] if is_large(all_of_it) else fixes(asking, all_of_it, core)
    owners = {part.owner for part in core if part.owner is not None}
    return found or fixes(asking, demanding(whole, owners), core)


def _notes(asking: Asking, clashes: Sequence[_Clash], whole: PlacementProblem) -> Iterator[str]:
    """What would help: each change by itself, or with several clashes one change for each."""
    if len(clashes) == 1:
        (one,) = clashes
        for told, change in one.fixes:
            said = POSSIBLE if asking.surely(change(whole)) else HOLD
            yield f"{said} {told}"
        return
    first = [clash.fixes[0] for clash in clashes if clash.fixes]
    changed = whole
    for _, change in first:
        changed = change(changed)
    if len(first) == len(clashes) and asking.surely(changed):
        yield f"{POSSIBLE} {' and '.join(told for told, _ in first)}"
    for number, clash in enumerate(clashes):
        if number:
            yield f"these clash as well: {clash.names}"
        for told, _ in clash.fixes:
            yield f"{clash.names} can hold {told}"


def _demands_hold(problem: PlacementProblem, found: Placement) -> bool:
    """Whether the placement outlives the losses it must, and left alone whom it must."""
    never = {d.name for d in problem.deployments if d.disturb == "never"}
    there = {(r.id, r.mig, tuple(sorted(r.gpus))) for r in found.replicas}
    gpus, fixed = {gpu.id: gpu for gpu in problem.fleet.gpus()}, fixed_layout(problem)
    return not frail(problem, found) and all(
        (r.id, r.mig, tuple(sorted(r.gpus))) in there
        for r in (problem.current.replicas if problem.current else ())
        if r.deployment in never
        and may_stay(problem, r, gpus) is not None
        and keeps_layout(r, fixed)
    )
