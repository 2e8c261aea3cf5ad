"""Why nothing is possible: a minimal set of rules that clash, and what would make it possible.

Most rules only forbid, and no replica at all keeps them. So a clash takes a rule that demands
something (``reserve``, ``survive``, ``do_not_disturb``), and only what those speak of is looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from optimizer.domain import words
from optimizer.domain.fleet import Fleet, Node
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import (
    Site,
    coarse_sites,
    fine_sites,
    fixed_layout,
    keeps_layout,
    may_stay,
)
from optimizer.solver.easing import Change, Easing, Part, least, parts, without
from optimizer.solver.foresee import clashing, demanding, demands
from optimizer.solver.formulation import build
from optimizer.solver.integer import Clock, run
from optimizer.solver.large import is_large
from optimizer.solver.measure import frail
from optimizer.solver.promises import Resize, slo_fixes

Pins = tuple[tuple[str, tuple[str, ...]], ...]
EFFORT = 2.0  # deterministic, of one question
SECONDS = 20.0  # of all questions; a set that time left unfinished clashes, but may be too large
# Nodes, and GPUs of each, that are tried of a product, the fewest GPUs first.
SIZES = tuple(
    sorted(
        ((count, gpus) for count in (1, 2, 3, 4) for gpus in (1, 2, 4, 8)),
        key=lambda size: (size[0] * size[1], size),
    )
)


def clash(problem: PlacementProblem, limits: Limits, outcome: Outcome) -> Outcome:
    """The outcome, or where rules clash the proof of that: their names, and fixes as notes."""
    wide = with_reserve(problem)
    if not any(demands(wide, d) for d in wide.deployments):
        return outcome
    found = outcome.incumbent
    if found is not None and _demands_hold(problem, found):
        return outcome
    asking = _asking(limits)
    if asking.possible(wide) is not False:
        return Outcome(
            Termination.NOTHING_FOUND,
            stopped_by=outcome.stopped_by if found is None else "effort",
            reproducible=outcome.reproducible,
        )
    return _infeasible(asking, wide, wide)


def foreseen(problem: PlacementProblem, limits: Limits) -> Outcome | None:
    """A clash that shows before any search: its outcome; None: none showed."""
    asking = _asking(limits)
    few = clashing(with_reserve(problem), asking.possible)
    return None if few is None else _infeasible(asking, few, with_reserve(problem))


def with_slo_fixes(
    problem: PlacementProblem, outcome: Outcome, limits: Limits, resize: Resize
) -> Outcome:
    """A clash's outcome, with the least relaxed promise of an SLO that lets its rules hold.

    More is carried by each replica then. ``resize`` gives the ways to run under another SLO.
    """
    told = [r.partition(": ")[2] for r in outcome.conflict if r.startswith("survive: ")]
    asking, wide = _asking(limits), with_reserve(problem)
    names = {d.name: d for d in wide.deployments}
    notes: list[str] = []
    few, said = demanding(wide), "a plan is possible"
    if is_large(few):
        few = demanding(wide, {r.partition(": ")[2] or r for r in outcome.conflict})
        said = "these rules can hold"
    for name in told:

        def helps(changed: Deployment, few: PlacementProblem = few) -> bool | None:
            some = tuple(changed if d.name == changed.name else d for d in few.deployments)
            offered = {**few.candidates, changed.name: tuple(resize(changed))}
            return asking.possible(replace(few, deployments=some, candidates=offered))

        for _, fix in slo_fixes(names[name], helps):
            notes.append(f"{said} with {name}.slo: {fix}")
    return replace(outcome, notes=(*outcome.notes, *notes))


def _asking(limits: Limits) -> "_Asking":
    within = replace(limits, time_limit_s=min(SECONDS, limits.time_limit_s))
    return _Asking(Clock(within, lambda _: None))


def _infeasible(asking: "_Asking", few: PlacementProblem, whole: PlacementProblem) -> Outcome:
    """What clashes in a part of the problem; fixes are solved for it, and for all that is small."""
    core = asking.minimal(few)
    alone = few is whole or is_large(demanding(whole))
    told = "a plan is possible" if few is whole or not alone else "these rules can hold"
    fixes = tuple(
        f"{told} {said}"
        for said, change in asking.fixes(few, core)
        if alone or asking.possible(change(whole))
    )
    return Outcome(
        Termination.INFEASIBLE,
        conflict=tuple(part.name for part in core),
        notes=fixes,
        stopped_by="proof",
        reproducible=asking.finished,
    )


@dataclass(slots=True)
class _Asking:
    """Questions of what is possible, on one clock."""

    clock: Clock
    finished: bool = True
    views: list[tuple[Fleet, Pins, tuple[Site, ...]]] = field(default_factory=list)

    def possible(self, problem: PlacementProblem) -> bool | None:
        """Whether all hard rules can hold at once; None: not settled."""
        if self.clock.seconds_left <= 0:
            self.finished = False
            return None
        only = demanding(problem)
        answer = run(build(only, self._sites(only)).model, self.clock, "conflict", effort=EFFORT)
        if answer.impossible:
            return False
        return True if answer.found else None

    def _sites(self, problem: PlacementProblem) -> tuple[Site, ...]:
        """The view of the fleet; a large one is looked through once for all questions of it."""
        if not is_large(problem):
            return fine_sites(problem)
        pins = tuple((d.name, d.pin) for d in problem.deployments if d.pin)
        for fleet, known, sites in self.views:
            if fleet is problem.fleet and known == pins:
                return sites
        sites = coarse_sites(problem)
        self.views.append((problem.fleet, pins, sites))
        return sites

    def minimal(self, problem: PlacementProblem) -> list[Part]:
        """Rules that clash together, none of which can be left out; chunks are left out first."""
        kept = list(parts(problem))
        size = max(1, len(kept) // 2)
        gone: list[Part] = []
        while True:
            first = 0
            while first < len(kept):
                fewer = [*kept[:first], *kept[first + size :]]
                tried = kept[first : first + size]
                if self.possible(without(problem, [*gone, *tried])) is False:
                    kept, gone = fewer, [*gone, *tried]
                else:
                    first += size
            if size == 1:
                return kept
            size //= 2

    def fixes(
        self, problem: PlacementProblem, core: Sequence[Part]
    ) -> Iterator[tuple[str, Change]]:
        """Single changes each of which was found to make a plan possible: rules, then GPUs."""
        for part in core:
            eased = self.eased(problem, part)
            if eased is not None:
                yield eased
            elif self.possible(part.without(problem)):
                yield f"without {part.name}", part.without
        for node in {n.gpu.name: n for n in reversed(problem.fleet.nodes)}.values():
            sizes = [size for size in SIZES if size[1] <= node.gpus]
            if not self.possible(_grown(problem, node, *sizes[-1])):
                continue
            for count, gpus in sizes:
                grown = partial(_grown, node=node, count=count, gpus=gpus)
                if self.possible(grown(problem)):
                    yield f"with {_grown_words(node, count, gpus)}", grown
                    break

    def eased(self, problem: PlacementProblem, part: Part) -> tuple[str, Change] | None:
        """The smallest change of the rule's number that helps."""
        for easing in part.easings:
            helps = partial(self._helps, problem, easing)
            step = least(easing.steps, helps)
            if step is not None:
                return f"with {easing.words(step)}", partial(easing.at, step=step)
        return None

    def _helps(self, problem: PlacementProblem, easing: Easing, step: int) -> bool:
        return self.possible(easing.at(problem, step)) is True


def _grown_words(node: Node, count: int, gpus: int) -> str:
    like = f"{words.plural(count, 'node')} of {gpus}, each a rack of its own"
    return f"{count * gpus} more {node.gpu.name} ({like})"


def _grown(problem: PlacementProblem, node: Node, count: int, gpus: int) -> PlacementProblem:
    new = tuple(
        replace(
            node, name=f"new {i}", gpus=gpus, rack=None, devices=(), cordoned=False,
            layouts_fixed=False,
        )
        for i in range(count)
    )  # fmt: skip
    names = tuple(one.name for one in new)
    deployments = tuple(
        replace(d, pin=(*d.pin, *names)) if d.reserve and node.name in d.pin else d
        for d in problem.deployments
    )
    fleet = replace(problem.fleet, nodes=(*problem.fleet.nodes, *new))
    return replace(problem, fleet=fleet, deployments=deployments)


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
