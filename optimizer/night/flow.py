"""One night at work: its phases, from what runs to the report.

Nothing is changed before the phase ``launch``, so a night cut short before it begins anew from
what runs; in it the launch's own journal goes on, or back; after it only the report is missing.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from optimizer.documents import read_plan, sha256, write_text
from optimizer.launch.values import LaunchRefused, PlanStale
from optimizer.night import launching, record, rules, summary
from optimizer.night.metrics import text as metrics_text
from optimizer.night.notify import notify
from optimizer.night.planning import Made, Running, imported, judged_again, planned, simulated
from optimizer.night.record import Record
from optimizer.night.values import Code, Ending, NightRefused, Order, Outcome, Phase
from optimizer.optimize import BrokenPlan

# What runs may change while a night plans; then it plans again, so often.
PLANS_MOST = 3
SHOWN = 5  # differences

Tell = Callable[[str], None]
Now = Callable[[], datetime]


class Night:
    """One night at work in its folder."""

    def __init__(self, order: Order, begun: Record, tell: Tell, now: Now) -> None:
        assert order.documents.policy is not None
        self.order, self.policy = order, order.documents.policy
        self._tell, self._now = tell, now
        self.record = begun
        self.notes: list[str] = []
        self.stale: tuple[str, ...] = ()  # how what ran differed from the last plan's start
        self.failed: list[dict[str, object]] = []
        self.simulated: list[dict[str, object]] = []

    # --- phases

    def carry_out(self) -> Ending:
        """All phases, from what runs now."""
        try:
            record.keep_inputs(self.record)
            for _ in range(PLANS_MOST):
                ending = self._once()
                if ending is not None:
                    return self.finish(ending)
            first = f"what runs changed under {PLANS_MOST} plans in a row; nothing was changed:"
            return self.finish(self.ending(Outcome.FAILED, Code.DRIFTED, first, *self.stale))
        except (NightRefused, LaunchRefused, BrokenPlan, sqlite3.Error) as error:
            return self._failed(error)

    def _once(self) -> Ending | None:
        """From what runs to the end; None when what runs changed meanwhile."""
        running = self._import()
        running = self._check(running)
        made = self._rebalance(running)
        if made.plan is None:
            return self.ending(Outcome.NO_PLAN, made.code, *made.lines)
        self._verify(made)
        if missed := self._simulate(made):
            names = ", ".join(missed)
            lines = (f"would miss its SLO in the replay: {names}", "so nothing was changed")
            return self.ending(Outcome.HELD, Code.BROKEN, *lines)
        if (ending := self._approve(made)) is not None:
            return ending
        return self._launch(approved=False)

    def _import(self) -> Running:
        self._begin(Phase.IMPORT)
        running = imported(self.order, self.record.folder)
        self._end(running.told)
        return running

    def _check(self, running: Running) -> Running:
        self._begin(Phase.CHECK)
        if running.standing.doubled:
            self._tell(f"two copies run of {', '.join(running.standing.doubled)}: mending")
            launching.mend(self.order, record.nights(self.order.runs), self._tell)
            running = imported(self.order, self.record.folder)
        running = running.checked(self.order, self.policy)
        self.notes += running.notes
        self._end("; ".join(running.notes) or "all is as it should be")
        return running

    def _rebalance(self, running: Running) -> Made:
        self._begin(Phase.REBALANCE)
        made = planned(self.order, self.policy, running, self.record.folder)
        self.notes += made.notes
        self._say(plan_sha256=made.sha256, facts={**self.record.facts, **made.facts})
        self._end(made.told)
        return made

    def _verify(self, made: Made) -> None:
        self._begin(Phase.VERIFY)
        rules_held = judged_again(made, self.record.folder)
        self._end(f"the judge finds {rules_held} rules kept")

    def _simulate(self, made: Made) -> tuple[str, ...]:
        """Deployments that would miss their SLO; nothing without a trace."""
        if not self.order.documents.traces or not made.moves:
            return ()
        assert made.plan is not None
        self._begin(Phase.SIMULATE)
        self.simulated = simulated(self.order, made)
        meets = {str(row["deployment"]): bool(row["meets"]) for row in self.simulated}
        short = sorted(name for name, met in meets.items() if not met)
        told = f"miss their SLO: {', '.join(short)}" if short else "every SLO is met"
        self._end(f"{len(meets)} deployments replayed; {told}")
        return rules.missed(made.plan, meets)

    def _approve(self, made: Made) -> Ending | None:
        """Why the night ends here without changing anything; None when it may act."""
        assert made.plan is not None
        plan = made.plan
        code = Code.UNMET if plan.unmet else Code.PARTLY if plan.left else Code.DONE
        when = rules.frozen(self.policy, self._now().date())
        if not plan.moves:
            if not self.order.dry_run and when is None:
                launching.withdraw_lost(self.order)
            return self.ending(Outcome.NOTHING, code, *summary.nothing(plan))
        self._begin(Phase.APPROVE)
        lines = summary.change(plan, self.record.facts)
        if self.order.dry_run:
            self._end("only looked")
            return self.ending(Outcome.LOOKED, Code.CHANGED, *lines, "nothing was changed")
        if when is not None:
            self._end(when)
            return self.ending(Outcome.FROZEN, code, *lines, f"{when}; nothing was changed")
        if why := rules.waits_for_approval(plan, self.policy):
            self._end("; ".join(why))
            until = self._now() + timedelta(hours=self.policy.approval_hours)
            lines = (*lines, *summary.how_to_approve(self.record, why, until))
            return self.ending(Outcome.WAITING, Code.CHANGED, *lines)
        self._end("may be done without approval")
        return None

    def launch(self, *, approved: bool = False) -> Ending:
        """Carry the plan out, from where it is."""
        try:
            ending = self._launch(approved)
            if ending is not None:
                return self.finish(ending)
            if not approved:
                return self.carry_out()
            why = "the approval is stale: what runs is not what the plan was made from"
            way_out = "nothing was changed; start it again for a new plan"
            return self.finish(self.ending(Outcome.STALE, Code.DRIFTED, why, way_out))
        except (NightRefused, LaunchRefused, BrokenPlan, sqlite3.Error) as error:
            return self._failed(error)

    def _launch(self, approved: bool) -> Ending | None:
        self._begin(Phase.LAUNCH)
        plan = read_plan(self.record.plan_path)
        lost = launching.withdraw_lost(self.order)
        if lost:
            self.notes.append(f"given up with their node: {', '.join(lost)}")
        try:
            done = launching.carried_out(self.order, plan, self._tell)
        except PlanStale as stale:
            self.stale = stale.differences[:SHOWN]
            self._end("; ".join(self.stale))
            self._unlaunch()
            self._tell("what runs has changed since the plan was made")
            return None
        self.failed = list(done.failed)
        self.notes += done.notes
        self._end(done.told)
        self._say(facts={**self.record.facts, "moves_done": done.moves_done})
        lines = (*summary.change(plan, self.record.facts, done=True), *done.lines)
        if done.partial:
            return self.ending(Outcome.PARTLY, Code.PARTLY, *lines, *launching.ways_out(self.order))
        code = Code.UNMET if plan.unmet else Code.PARTLY if plan.left else Code.DONE
        return self.ending(Outcome.DONE, code, *lines)

    def _unlaunch(self) -> None:
        """The launch was refused before it began, so nothing is cut short."""
        phases = tuple(p for p in self.record.phases if p.phase is not Phase.LAUNCH)
        self._say(phases=phases)

    def roll_back(self) -> Ending:
        """Return to the placement before, where the launch had begun to change it."""
        try:
            done = launching.rolled_back(self.order, self._tell)
        except (LaunchRefused, sqlite3.Error) as error:
            return self._failed(error)
        if done is None:
            self._unlaunch()
            return self.carry_out()
        self.failed = list(done.failed)
        lines = ("the launch was cut short and is undone, as the policy says", *done.lines)
        outcome = Outcome.PARTLY if done.partial else Outcome.UNDONE
        return self.finish(self.ending(outcome, Code.PARTLY, *lines))

    def ask(self, why: str) -> Ending:
        """Say what a person must do; the night stays cut short until somebody has done it."""
        if not launching.half_done(self.order, self.record.plan_path):
            self._unlaunch()
            return self.carry_out()
        return self._stays_half(Code.PARTLY, (f"{why}, so it is left to a person:",))

    # --- ends

    def ending(self, outcome: Outcome, code: Code, *lines: str) -> Ending:
        """How it ended, with what is known."""
        began = datetime.fromisoformat(self.record.began)
        now = self._now()
        facts = {
            **self.record.facts,
            "duration_seconds": round((now - began).total_seconds(), 3),
            "end_timestamp_seconds": int(now.timestamp()),
            "starts": self.record.starts,
            "exit_code": int(code),
        }
        return Ending(outcome, code, lines, self.record.folder, facts)

    def finish(self, ending: Ending) -> Ending:
        """Write down how it ended, then the report; tell whom the policy names."""
        self._say(
            outcome=ending.outcome,
            code=ending.code,
            lines=ending.lines,
            facts=dict(ending.facts),
            ended=record.stamp(self._now()),
        )
        self._report(ending)
        record.sweep(self.record)
        self._say(reported=True)
        record.prune(self.order.runs, self.policy.keep_runs)
        self._tell_whom(ending)
        return ending

    def _report(self, ending: Ending) -> None:
        folder = self.record.folder
        made = self.record.plan_sha256
        whole = made is not None and sha256(self.record.plan_path) == made
        plan = read_plan(self.record.plan_path) if whole else None
        ended = replace(self.record, outcome=ending.outcome, code=ending.code, lines=ending.lines)
        data = summary.data(ended, self.notes, self.failed, self.simulated)
        from optimizer.report.night import night_html, night_markdown

        write_text(folder / "report.md", night_markdown(data, plan))
        write_text(folder / "report.html", night_html(data, plan))
        exposition = metrics_text(self.record.fleet, ending.outcome, ending.facts)
        write_text(folder / "metrics.prom", exposition)
        write_text(self.order.runs / "metrics.prom", exposition)

    def _tell_whom(self, ending: Ending) -> None:
        if (why := notify(self.policy, ending)) is not None:
            self._tell(f"nobody was told: {why}")

    def _failed(self, error: Exception) -> Ending:
        """The end for a reason that is known; one that nobody expects is raised on."""
        code, lines = launching.told(error)
        if code is None:
            raise error
        if self.record.launching:
            if launching.half_done(self.order, self.record.plan_path):
                return self._stays_half(code, lines)
            self._unlaunch()
        way_out = launching.journal_is_lost(self.order)
        return self.finish(self.ending(Outcome.FAILED, code, *lines, *way_out))

    def _stays_half(self, code: Code, lines: tuple[str, ...]) -> Ending:
        """A launch that began and cannot go on now: the next start goes on with it."""
        lines = (*lines, *launching.ways_out(self.order, self.record.plan_path))
        ending = self.ending(Outcome.PARTLY, code, *lines)
        with suppress(OSError):  # the disk may be what stands in the way
            self._report(ending)
        self._tell_whom(ending)
        return ending

    # --- the record

    def _begin(self, phase: Phase) -> None:
        self._put(self.record.with_phase(phase, record.stamp(self._now())))

    def _end(self, told: str) -> None:
        self._tell(f"{self.record.phase}: {told}")
        self._put(self.record.told(told, record.stamp(self._now())))

    def _say(self, **said: object) -> None:
        self._put(replace(self.record, **said))  # type: ignore[arg-type]

    def _put(self, changed: Record) -> None:
        record.write(changed)
        self.record = changed
