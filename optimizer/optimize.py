"""The flow in one function: documents' values in, a verified plan out."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from optimizer.domain.config import Candidate
from optimizer.domain.engine import EngineCard
from optimizer.domain.fleet import Fleet
from optimizer.domain.gpu import Gpu
from optimizer.domain.outcome import Limits, Objective, Outcome, Progress, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Plan, PlanInput, PlanRun, Unmet
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment, Workloads
from optimizer.sizing import SizeOptions, Sizing, size, size_json, size_model
from optimizer.trajectory import Trajectory

if TYPE_CHECKING:
    from optimizer.planning import Pace
    from optimizer.solver.promises import Resize

Progressing = Callable[[Progress], None] | None
Search = Callable[[PlacementProblem, Limits, Progressing], Outcome]


LARGE_GAP = 0.01  # of large fleets that run, where none is asked
MENDED = 3  # deployments that go short, whose changes are sought in every plan
WITHOUT_CERTIFICATE = (
    "the judge could not confirm the solver's certificate of the price, so the plan carries none"
)


class BrokenPlan(RuntimeError):
    """The judge found fault with the solver's answer: a defect of ours, never shown as a plan."""

    def __init__(self, violations: tuple[Any, ...]) -> None:
        super().__init__("\n".join(f"{v.rule}: {v.subject}: {v.message}" for v in violations))
        self.violations = violations


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan is made from. ``current`` is what runs now; None: nothing, place from scratch."""

    fleet: Fleet
    workloads: Workloads
    engines: Mapping[str, EngineCard]
    current: Placement | None = None
    documents: tuple[PlanInput, ...] = ()
    gpus: Mapping[str, Gpu] = field(default_factory=dict)  # that needs were measured on


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it was made with, for whoever explains it."""

    plan: Plan
    problem: PlacementProblem
    sizing: Sizing


@dataclass(frozen=True, slots=True)
class Clocks:
    """The world's part: wall clock and stop watch, as arguments so that tests can hold them."""

    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    stopwatch: Callable[[], float] = time.monotonic


def size_one(
    model: str, *, engine: str | None = None, beside: Iterable[str] = (), **settings: Any
) -> dict[str, Any]:
    """Every way to run one model: what ``fleetslice size MODEL -o json`` prints.

    ``model``: of the catalogue, a Hugging Face id, a ``config.json`` or its folder, ``hf:NAME``.
    ``engine``: as ``vllm@0.19.0``. ``beside``: folders with cards of the user's own. ``settings``:
    the fields of ``SizeOptions``, such as ``gpu``, ``tensor_parallel``, ``max_model_len``. Raises
    ValueError for a model, GPU or engine nobody knows.
    """
    from optimizer.documents import catalogue
    from optimizer.documents.deployments import model_fault

    known = catalogue(beside)
    found = known.model(model)
    if found is None:
        raise ValueError(model_fault(model, known))
    served, packed = found
    name, _, version = (engine or "").partition("@")
    settings.setdefault("precision", packed)
    options = SizeOptions(engine=name or None, engine_version=version or None, **settings)
    gpus = {gpu.name: gpu for gpu in known.gpus.all()}
    engines = {card.name: card for card in known.engine_cards()}
    for what, asked, all_names in (("GPU", options.gpu, gpus), ("engine", name, engines)):
        if asked and asked not in all_names:
            raise ValueError(f'no {what} "{asked}"; known: {", ".join(sorted(all_names))}')
    return size_json(size_model(served, gpus, engines, options))


def pose(inputs: Inputs, sizing: Sizing | None = None) -> tuple[PlacementProblem, Sizing]:
    """Size every way to run every deployment, if not done already, and state the problem."""
    sizing = sizing or size(
        inputs.fleet, inputs.workloads.deployments, inputs.engines, inputs.current, inputs.gpus
    )
    problem = PlacementProblem(
        inputs.fleet, inputs.workloads.deployments, sizing.candidates, inputs.current
    )
    return problem, sizing


def judged(
    problem: PlacementProblem,
    limits: Limits,
    progress: Progressing = None,
    search: Search | None = None,
) -> Outcome:
    """Solve, and have the judge confirm every rule and every claimed number. Raises BrokenPlan.

    ``search`` in place of the usual one: rebalancing within limits.
    """
    from optimizer.solver import solve  # OR-Tools takes half a second to import
    from optimizer.verify import check_outcome

    for shortcut in _shortcuts(problem, limits) if search is None else ():
        outcome = shortcut(problem, limits, progress)
        # What breaks a rule today may take more than these look at.
        if outcome.incumbent is not None and not check_outcome(problem, outcome):
            return outcome
    outcome = (search or solve)(problem, limits, progress)
    if search is None and outcome.termination is Termination.NOTHING_FOUND:
        outcome = _around_or_as_now(problem, limits, outcome)
    if outcome.incumbent is None:
        return outcome
    violations = check_outcome(problem, outcome)
    if violations and all(v.rule == "certificate" for v in violations):
        # The plan holds; only its proof does not, so it goes out without one and says so.
        outcome = replace(outcome, certificate={}, notes=(*outcome.notes, WITHOUT_CERTIFICATE))
        violations = check_outcome(problem, outcome)
    if violations:
        raise BrokenPlan(violations)
    return outcome


def _around_or_as_now(problem: PlacementProblem, limits: Limits, outcome: Outcome) -> Outcome:
    """Where a search found nothing: the better of a plan around what must stay, and what runs.

    Either only where it keeps every rule; nothing is claimed of what is best.
    """
    from optimizer.solver.around import NOTE, around
    from optimizer.verify import objectives, verify

    if problem.current is None or outcome.stopped_by == "interrupt":
        return outcome
    beside = around(problem, limits)
    options = [(beside, NOTE)] if beside is not None else []
    options.append((problem.current, "no better placement was found than what runs now"))
    sound = [(p, note) for p, note in options if not verify(problem, p)]
    if not sound:
        return outcome
    found, note = min(sound, key=lambda one: objectives(problem, one[0]).levels)
    score = objectives(problem, found)
    told = (
        *(Objective("unmet", ppm, 0, priority) for priority, ppm in score.unmet_ppm),
        Objective("price_per_hour", score.price_micros, 0),
        Objective("disruption", score.disruption_mib or 0, 0),
        Objective("stranded", score.stranded_mib, 0),
    )
    notes = (*outcome.notes, note)
    return replace(
        outcome, termination=Termination.LIMIT, incumbent=found, objectives=told, notes=notes
    )


def _shortcuts(problem: PlacementProblem, limits: Limits) -> Iterator[Search]:
    """Searches that start from what runs, for the judge to accept, before the usual one."""
    from optimizer.solver.large import is_large
    from optimizer.solver.relocation import only_places, relocate
    from optimizer.solver.warm import solve_near

    running = problem.current is not None and bool(problem.current.replicas)
    if only_places(problem):
        yield lambda problem, limits, _: relocate(problem, limits)
    elif running and limits.gap and is_large(problem) and not problem.fleet.reserve:
        yield solve_near


def nearly(limits: Limits, fleet: Fleet) -> Limits:
    """The limits for a fleet that runs; where none is asked, large ones get a gap of 1 %.

    A proof is out of reach there, and the last parts of a per cent take most of the time and of
    the moves.
    """
    from optimizer.solver.large import MANY_GPUS

    gpus = sum(node.gpus for node in fleet.nodes)
    return limits if limits.gap or gpus <= MANY_GPUS else replace(limits, gap=LARGE_GAP)


def optimize(
    inputs: Inputs,
    limits: Limits,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progressing = None,
    clocks: Clocks | None = None,
    version: str = "",
    search: Search | None = None,
    pace: "Pace | None" = None,
) -> Planned:
    """From documents to a verified plan: size, place, judge, compose.

    ``search`` takes the place of the usual one; ``pace`` says how much may be done at once.
    """
    from optimizer.planning import Pace, compose, reached, spared

    clocks = clocks or Clocks()
    started, watch = clocks.now(), clocks.stopwatch()
    trajectory = Trajectory(clocks.stopwatch, progress or (lambda _: None))
    problem, sizing = pose(inputs)
    outcome = spared(problem, judged(problem, limits, trajectory, search), limits.gap)
    outcome = promises_eased(problem, beyond_pins(problem, outcome, inputs, limits), inputs, limits)
    outcome, ordered = reached(problem, outcome, pace or Pace(), limits.gap)
    run = PlanRun(
        seconds=round(clocks.stopwatch() - watch, 3),
        workers=limits.workers,
        started_at=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        stopped_by=outcome.stopped_by,
        trajectory=trajectory.end(outcome),
    )
    plan = compose(
        problem,
        outcome,
        inputs=inputs.documents,
        options=options or {},
        run=run,
        dropped=sizing.dropped,
        version=version,
        ordered=ordered,
    )
    return Planned(replace(plan, unmet=mended(plan, problem, inputs)), problem, sizing)


def beyond_pins(
    problem: PlacementProblem, outcome: Outcome, inputs: Inputs, limits: Limits
) -> Outcome:
    """An impossible outcome, its clash told anew with ways to run on products beyond the pins.

    Pinned deployments are sized for the products of their pins only, so without this leaving a pin
    out would seem to help less than it does.
    """
    pinned = tuple(replace(d, pin=()) for d in problem.deployments if d.pin and d.survive)
    if outcome.termination is not Termination.INFEASIBLE or not pinned:
        return outcome
    from optimizer.solver.conflict import clash, foreseen

    fleet = problem.fleet
    wider = size(fleet, pinned, inputs.engines, problem.current, inputs.gpus).candidates
    wide = replace(problem, candidates={**problem.candidates, **wider})
    told = foreseen(wide, limits) or clash(wide, limits, outcome)
    return told if told.termination is Termination.INFEASIBLE else outcome


def promises_eased(
    problem: PlacementProblem, outcome: Outcome, inputs: Inputs, limits: Limits
) -> Outcome:
    """An impossible outcome, with the promises of SLOs that would have to give way."""
    if outcome.termination is not Termination.INFEASIBLE:
        return outcome
    from optimizer.solver.conflict import with_slo_fixes

    return with_slo_fixes(problem, outcome, limits, resizing(inputs))


def resizing(inputs: Inputs) -> "Resize":
    """The ways to run a deployment that was changed, or on another fleet."""

    def resized(deployment: Deployment, fleet: Fleet | None = None) -> tuple[Candidate, ...]:
        sizing = size(fleet or inputs.fleet, (deployment,), inputs.engines, None, inputs.gpus)
        return sizing.candidates[deployment.name]

    return resized


def mended(
    plan: Plan, problem: PlacementProblem, inputs: Inputs, only: str | None = None
) -> tuple[Unmet, ...]:
    """What goes short, the first few (or ``only`` that one) with changes that would serve them.

    Each change was solved.
    """
    from optimizer.solver.remedy import remedy

    found = []
    names = [one.deployment for one in plan.unmet][:MENDED] if only is None else [only]
    for one in plan.unmet:
        told = None
        if one.deployment in names:
            told = remedy(problem, plan.placement, one.deployment, resizing(inputs))
        found.append(one if told is None else told.applied(one))
    return tuple(found)
