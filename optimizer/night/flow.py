"""One night, from the lock to the report.

Nothing is changed before the phase ``launch``, so a night cut short before it begins anew from
what runs; in it the launch's own journal goes on, or back; after it only the report is missing.
"""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from optimizer.documents import read_plan, sha256, write_text
from optimizer.domain.policy import CutShort, Policy
from optimizer.launch.values import LaunchRefused, PlanStale
from optimizer.night import launching, record, rules, summary
from optimizer.night.lock import only_one
from optimizer.night.metrics import text as metrics_text
from optimizer.night.notify import notify
from optimizer.night.planning import Made, Running, imported, judged_again, planned, simulated
from optimizer.night.record import Record
from optimizer.night.values import Code, Ending, NightRefused, Order, Outcome, Phase

# A start within so many hours belongs to the night that it finds cut short.
SAME_NIGHT_H = 12.0
# What runs may change while a night plans; then it plans again, so often.
PLANS_MOST = 3
# Less free room than that, and reports and journals might not be written to their end.
ROOM_MIB = 64
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Tell = Callable[[str], None]
Now = Callable[[], datetime]


def local_now() -> datetime:
    """This moment, in local time: freezes are days of whoever runs the fleet."""
    return datetime.now().astimezone()


def nightly(order: Order, tell: Tell = lambda line: None, now: Now = local_now) -> Ending:
    """Carry out one night, or go on with the one that was cut short.

    Raises NightRefused where not even a run folder can say how it ended: the lock is held, the
    disk is full, or the last night's journal is corrupt.
    """
    try:
        order.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        with only_one(order.runs):
            _check_room(order.runs)
            return _Start(order, tell, now).carry_out()
    except OSError as error:
        where = error.filename or order.runs
        text = f"{where}: {error.strerror or error}"
        raise NightRefused(Code.ERROR, text, *_full(error)) from error


def _check_room(runs: Path) -> None:
    free_mib = shutil.disk_usage(runs).free >> 20
    if free_mib < ROOM_MIB:
        raise NightRefused(
            Code.ERROR,
            f"{runs}: {free_mib} MiB are free, a night wants {ROOM_MIB}; nothing was changed",
            "make room there, or keep fewer nights: keep_runs in the policy",
        )


def _full(error: OSError) -> tuple[str, ...]:
    mended = "make room" if error.errno in FULL else "mend that"
    return (
        "nothing was changed that the journals do not know of",
        f"{mended}, then start it again: it goes on where it was",
    )


class _Start:
    """One start of the command, with the lock held."""

    def __init__(self, order: Order, tell: Tell, now: Now) -> None:
        self.order, self.tell, self.now = order, tell, now
        policy = order.documents.policy
        assert policy is not None
        self.policy: Policy = policy
        self.documents = {
            str(Path(one.path).resolve()): one.sha256 for one in order.documents.inputs
        }

    def carry_out(self) -> Ending:
        """The last night's rest, then tonight, unless that was tonight."""
        last = record.latest(self.order.runs)
        if last is not None and last.outcome is not None and not last.reported:
            self.tell(f"{last.name} ended without its report: writing it")
            ending = _Night(self, last).finish(_ending(last))
            if self._is_tonight(last):
                return ending
        elif last is not None and last.launching:
            ending = self._go_on(last)
            if self._is_tonight(last) or ending.code not in (Code.DONE, Code.UNMET):
                return ending
        elif last is not None and last.outcome is None:
            self.tell(f"{last.name} was cut short before it changed anything: beginning it anew")
            return _Night(self, self._again(last, self.documents)).carry_out()
        elif last is not None and last.outcome is Outcome.WAITING:
            if last.approval_path.exists():
                return self._approved(last)
            record.write(replace(last, outcome=Outcome.SUPERSEDED))
        fleet = self.order.documents.fleet
        assert fleet is not None
        begun = record.begin(self.order.runs, fleet.name, self.now(), self.documents)
        return _Night(self, begun).carry_out()

    def _is_tonight(self, last: Record) -> bool:
        age = self.now() - datetime.fromisoformat(last.began)
        return dict(last.documents) == self.documents and age < timedelta(hours=SAME_NIGHT_H)

    def _again(self, last: Record, documents: dict[str, str]) -> Record:
        again = replace(
            last,
            starts=last.starts + 1,
            process=os.getpid(),
            documents=tuple(sorted(documents.items())),
        )
        record.write(again)
        return again

    def _go_on(self, last: Record) -> Ending:
        """What becomes of a launch that was cut short, as the policy says."""
        night = _Night(self, self._again(last, dict(last.documents)))
        way = self.policy.cut_short
        if way is CutShort.RESUME and launching.goes_back(self.order):
            way = CutShort.ROLLBACK  # once begun, the way back is gone to its end
        self.tell(f"{last.name} was cut short while it launched: {way}")
        match way:
            case CutShort.RESUME:
                return night.launch()
            case CutShort.ROLLBACK:
                return night.roll_back()
            case CutShort.ASK:
                return night.ask()

    def _approved(self, last: Record) -> Ending:
        """Launch a plan that a person approved, if it is still the one, and still young."""
        if when := rules.frozen(self.policy, self.now().date()):
            lines = (f"{last.name} is approved, but {when}; it waits on",)
            return Ending(Outcome.FROZEN, Code.DONE, lines, last.folder)
        night = _Night(self, self._again(last, dict(last.documents)))
        faults = approval_faults(last, self.policy, self.documents, self.now())
        if faults:
            way_out = "nothing was changed; start it again for a new plan"
            return night.finish(night.ending(Outcome.STALE, Code.DRIFTED, *faults, way_out))
        night.record = replace(night.record, outcome=None, reported=False, code=None, lines=())
        return night.launch(approved=True)


def approval_faults(
    waiting: Record, policy: Policy, documents: dict[str, str], now: datetime
) -> tuple[str, ...]:
    """Why an approval does not hold: of another plan, too late, or the documents have changed."""
    found = []
    said = waiting.approval_path.read_text("utf-8", errors="replace").split()[:1]
    if sha256(waiting.plan_path) != waiting.plan_sha256:
        found.append(f"{waiting.plan_path} is no longer the plan that was to be approved")
    elif said != [waiting.plan_sha256]:
        found.append(f"{waiting.approval_path} approves another plan than that of {waiting.name}")
    age_h = (now - datetime.fromisoformat(waiting.began)) / timedelta(hours=1)
    if age_h > policy.approval_hours:
        found.append(
            f"the plan of {waiting.name} is {age_h:.0f} hours old; it can be approved for "
            f"{policy.approval_hours:g}"
        )
    before = dict(waiting.documents)
    for path in sorted({*before, *documents}):
        if before.get(path) != documents.get(path):
            found.append(f"{path} has changed since the plan was made")
    return tuple(found)


def _ending(last: Record) -> Ending:
    assert last.outcome is not None
    assert last.code is not None
    return Ending(last.outcome, last.code, last.lines, last.folder, last.facts)


class _Night:
    """One night at work in its folder."""

    def __init__(self, start: _Start, begun: Record) -> None:
        self.order, self.policy = start.order, start.policy
        self._tell, self._now = start.tell, start.now
        self.record = begun
        self.notes: list[str] = []
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
            lines = (f"what runs changed under {PLANS_MOST} plans in a row; nothing was changed",)
            return self.finish(self.ending(Outcome.FAILED, Code.DRIFTED, *lines))
        except (NightRefused, LaunchRefused, RuntimeError, sqlite3.Error) as error:
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
        if not plan.moves:
            if not self.order.dry_run:
                launching.withdraw_lost(self.order)
            return self.ending(Outcome.NOTHING, code, *summary.nothing(plan))
        self._begin(Phase.APPROVE)
        lines = summary.change(plan, self.record.facts)
        if self.order.dry_run:
            self._end("only looked")
            return self.ending(Outcome.LOOKED, Code.CHANGED, *lines, "nothing was changed")
        if when := rules.frozen(self.policy, self._now().date()):
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
        except (NightRefused, LaunchRefused, RuntimeError, sqlite3.Error) as error:
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
            self._end("; ".join(stale.differences[:5]))
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

    def ask(self) -> Ending:
        """Say what a person must do; the night stays cut short until somebody has done it."""
        if not launching.half_done(self.order, self.record.plan_path):
            self._unlaunch()
            return self.carry_out()
        first = "a launch was cut short, and the policy leaves it to a person:"
        ways_out = launching.ways_out(self.order, self.record.plan_path)
        ending = self.ending(Outcome.PARTLY, Code.PARTLY, first, *ways_out)
        self._tell_whom(ending)
        return ending

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
        self._say(reported=True)
        record.prune(self.order.runs, self.policy.keep_runs)
        self._tell_whom(ending)
        return ending

    def _report(self, ending: Ending) -> None:
        folder = self.record.folder
        made = self.record.plan_sha256
        whole = made is not None and sha256(self.record.plan_path) == made
        plan = read_plan(self.record.plan_path) if whole else None
        data = summary.data(self.record, self.notes, self.failed, self.simulated)
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
        ending = self.ending(Outcome.FAILED, code, *lines)
        return self.finish(ending)

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
