"""Scenarios answered: each is a whole plan, in this process or on Ray, alike to the last bit.

The answer of a scenario depends on the baseline, the scenario and the limits only. Neither the
number of Ray workers nor the machine's cores enter it: a search has a fixed number of logical
workers, and ends by gap or deterministic effort. The time limit is a safety stop; an answer that
it cut short says so.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.domain.outcome import Limits, Outcome
from optimizer.domain.plan import Plan, PlanRun
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.scenario import Scenario
from optimizer.optimize import (
    BrokenPlan,
    Inputs,
    Planned,
    beyond_pins,
    judged,
    mended,
    nearly,
    pose,
)
from optimizer.scenarios.answer import Answer, Summary, summary
from optimizer.scenarios.compare import compared
from optimizer.scenarios.journal import Journal
from optimizer.scenarios.reuse import SizedBefore
from optimizer.scenarios.scenario import ScenarioFault, World, apply
from optimizer.sizing import Sizing

if TYPE_CHECKING:
    from optimizer.solver.warm import Known


@dataclass(frozen=True, slots=True)
class Setting:
    """What all scenarios share; ``inputs.current`` is what each starts from.

    ``known``: what solving the baseline taught; None: each scenario is planned from scratch.
    ``fixes``: for who is short, changes are solved that would serve them. ``serving``: all that is
    asked is whether everybody can be served, so plans near to what runs are tried hard first.
    """

    inputs: Inputs
    sizing: Sizing
    limits: Limits
    before: Summary
    known: "Known | None" = None
    fixes: bool = False
    serving: bool = False


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that answers took where they were made: by the clock, and of a processor."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


@dataclass(frozen=True, slots=True)
class Tally:
    """How far an evaluation is; ``answer`` is the latest, None while a scenario is tried again."""

    total: int
    finished: int
    failed: int
    retried: int
    reused: int  # of those finished, answered by an earlier, interrupted run
    answer: Answer | None = None
    spent: Spent = Spent()  # on the answers made in this run


Report = Callable[[Tally], None]
Work = Sequence[tuple[int, Scenario]]
Done = Callable[[int, Answer, Spent], None]  # called as answers come
Again = Callable[[int], None]  # a worker or node was lost: its scenario goes to another
Run = Callable[[Work, Done, Again], None]


def setting(inputs: Inputs, baseline: Planned, limits: Limits, *, fresh: bool = False) -> Setting:
    """The common ground of scenarios: they start from the baseline's plan unless ``fresh``."""
    from optimizer.solver.warm import known  # OR-Tools takes half a second to import

    plan = baseline.plan
    planned = plan.status not in ("infeasible", "nothing_found")
    running = plan.placement if planned else inputs.current
    return Setting(
        inputs=replace(inputs, current=None if fresh else running, documents=()),
        sizing=baseline.sizing,
        limits=limits,
        before=summary(plan, gap=limits.gap),
        known=None if fresh or running is None else known(baseline.problem),
    )


def at_any_price(setting: Setting) -> Setting:
    """The same, where all that is asked is who can be served."""
    return replace(setting, limits=replace(setting.limits, gap=1.0))


def comparing(setting: Setting) -> Setting:
    """The same with limits that are near enough for a large fleet that runs (``nearly``).

    A scenario planned from scratch is left as it is.
    """
    if setting.known is None:
        return setting
    return replace(setting, limits=nearly(setting.limits, setting.inputs.fleet))


class Planner:
    """Plans scenarios of one setting, and keeps what they have in common."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        inputs = setting.inputs
        self.sized = SizedBefore(inputs.engines, inputs.gpus)
        self.sized.know(inputs.fleet, inputs.workloads.deployments, setting.sizing)

    def answer(self, scenario: Scenario) -> Answer:
        """The scenario's answer; one that cannot be made or planned says why in ``failed``."""
        try:
            plan = self.plan(scenario, brief=True).plan
        except ScenarioFault as fault:
            return Answer(scenario.name, failed=str(fault))
        except Exception as error:  # whatever one scenario meets, the rest must finish
            first = (str(error).strip() or "no more is said").splitlines()[0]
            return Answer(scenario.name, failed=f"{type(error).__name__}: {first}")
        if plan.run.stopped_by == "interrupt":
            raise KeyboardInterrupt
        return compared(self.setting.before, summary(plan, scenario.name, self.setting.limits.gap))

    def plan(self, scenario: Scenario, *, brief: bool = False) -> Planned:
        """The scenario's plan, without steps and reasons if ``brief``.

        Raises ScenarioFault, BrokenPlan.
        """
        from optimizer.planning import compose

        problem, sizing = self.posed(scenario)
        inputs = replace(self.setting.inputs, fleet=problem.fleet)
        outcome = beyond_pins(problem, self._outcome(problem), inputs, self.setting.limits)
        # Only what differs between two runs on the same input is left open.
        run = PlanRun(0.0, self.setting.limits.workers, "", outcome.stopped_by)
        plan: Plan = compose(
            problem,
            outcome,
            inputs=(),
            options={},
            run=run,
            dropped=sizing.dropped,
            brief=brief,
        )
        if self.setting.fixes:
            plan = replace(plan, unmet=mended(plan, problem, inputs))
        return Planned(plan, problem, sizing)

    def posed(self, scenario: Scenario) -> tuple[PlacementProblem, Sizing]:
        """What the scenario asks to be solved. Raises ScenarioFault."""
        world = self.world(scenario)
        sizing = self.sized.size(world.fleet, world.workloads.deployments, world.current)
        return pose(replace(self.setting.inputs, **world._asdict()), sizing)

    def _outcome(self, problem: PlacementProblem) -> Outcome:
        from optimizer.solver.serving import serve
        from optimizer.solver.warm import solve_warm

        limits, before = self.setting.limits, self.setting.known
        search = serve if self.setting.serving else solve_warm
        if before is not None and not problem.fleet.reserve:
            try:
                return judged(problem, limits, search=partial(search, before=before))
            except BrokenPlan:
                pass  # a repair leaves some rules to the judge; it said no, so search from scratch
        return judged(problem, limits)

    def world(self, scenario: Scenario) -> World:
        """The fleet, workloads and what runs, as the scenario has them. Raises ScenarioFault."""
        base = self.setting.inputs
        return apply(scenario, base.fleet, base.workloads, base.current, engines=base.engines)


def ready(setting: Setting) -> Planner:
    """A planner; the garbage collector does not walk through the common ground again and again."""
    planner = Planner(setting)
    gc.collect()
    gc.freeze()
    return planner


def timed(planner: Planner, scenario: Scenario) -> tuple[Answer, Spent]:
    """The answer, and what it took in this process."""
    wall, cpu = time.monotonic(), time.process_time()
    answer = planner.answer(scenario)
    return answer, Spent(time.monotonic() - wall, time.process_time() - cpu)


def evaluate(
    setting: Setting,
    scenarios: Sequence[Scenario],
    *,
    workers: int = 0,
    address: str | None = None,
    out: Path | None = None,
    report: Report | None = None,
) -> tuple[Answer, ...]:
    """Every scenario's answer, in the order given.

    ``workers`` 0: one after the other in this process; else so many at once on Ray, a local one of
    our own or the cluster at ``address``. ``out``: a file of one answer a line, written as they
    come; what it holds already, of the same baseline, limits and scenario, is not asked again.
    Raises LaunchRefused where Ray is not to be had.
    """
    tell = report or (lambda tally: None)
    with Journal(out, setting) if out is not None else nullcontext() as journal:
        known = journal.known(scenarios) if journal is not None else {}
        answers: dict[int, Answer] = dict(known)
        tally = Tally(len(scenarios), len(known), failed=0, retried=0, reused=len(known))
        tell(tally)

        def done(index: int, answer: Answer, spent: Spent) -> None:
            nonlocal tally
            if journal is not None:
                journal.write(scenarios[index], answer)
            answers[index] = answer
            failed = tally.failed + (answer.failed is not None)
            spent += tally.spent
            tally = replace(tally, finished=len(answers), failed=failed, answer=answer, spent=spent)
            tell(tally)

        def again(index: int) -> None:
            nonlocal tally
            tally = replace(tally, retried=tally.retried + 1, answer=None)
            tell(tally)

        left = [(i, s) for i, s in enumerate(scenarios) if i not in known]
        if left:
            with _answering(setting, workers, address) as run:
                run(left, done, again)
    return tuple(answers[i] for i in range(len(scenarios)))


@contextmanager
def asking(
    setting: Setting, *, workers: int = 0, address: str | None = None, report: Report | None = None
) -> Iterator[Callable[[Sequence[Scenario]], tuple[Answer, ...]]]:
    """What answers scenarios again and again, on one Ray. Raises LaunchRefused."""
    tally = Tally(0, 0, 0, 0, 0)
    with _answering(setting, workers, address) as run:

        def ask(scenarios: Sequence[Scenario]) -> tuple[Answer, ...]:
            answers: dict[int, Answer] = {}

            def count(answer: Answer | None, **changed: Any) -> None:
                nonlocal tally
                tally = replace(tally, answer=answer, **changed)
                if report is not None:
                    report(tally)

            def done(index: int, answer: Answer, spent: Spent) -> None:
                answers[index] = answer
                failed = tally.failed + (answer.failed is not None)
                count(answer, finished=tally.finished + 1, failed=failed)

            count(None, total=tally.total + len(scenarios))
            run(tuple(enumerate(scenarios)), done, lambda _: count(None, retried=tally.retried + 1))
            return tuple(answers[i] for i in range(len(scenarios)))

        yield ask


@contextmanager
def _answering(setting: Setting, workers: int, address: str | None) -> Iterator[Run]:
    if workers:
        from optimizer.scenarios.fanout import on_ray

        with on_ray(setting, workers, address) as run:
            yield run
        return
    planner = ready(setting)

    def one_by_one(work: Work, done: Done, again: Again) -> None:
        for index, scenario in work:
            done(index, *timed(planner, scenario))

    yield one_by_one
