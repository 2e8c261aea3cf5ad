"""One start of the command: the lock, what the last night left, and then tonight."""

import errno
import os
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from optimizer.documents import sha256
from optimizer.domain.policy import CutShort, Policy
from optimizer.night import launching, record, rules
from optimizer.night.flow import Night, Now, Tell
from optimizer.night.lock import only_one
from optimizer.night.record import Record
from optimizer.night.values import Code, Ending, NightRefused, Order, Outcome

# A start within so many hours belongs to the night that it finds cut short.
SAME_NIGHT_H = 12.0
# Less free room than that, and reports and journals might not be written to their end.
ROOM_MIB = 64
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        if last is not None and self.order.dry_run and (stays := _stays(last)) is not None:
            return stays
        if last is not None and last.outcome is not None and not last.reported:
            self.tell(f"{last.name} ended without its report: writing it")
            ending = self._night(last).finish(_ending(last))
            if self._is_tonight(last):
                return ending
        elif last is not None and last.launching:
            ending = self._go_on(last)
            if self._is_tonight(last) or ending.code not in (Code.DONE, Code.UNMET):
                return ending
        elif last is not None and last.outcome is None:
            self.tell(f"{last.name} was cut short before it changed anything: beginning it anew")
            return self._night(self._again(last, self.documents)).carry_out()
        elif last is not None and last.outcome is Outcome.WAITING:
            if last.approval_path.exists():
                return self._approved(last)
            record.write(replace(last, outcome=Outcome.SUPERSEDED))
        fleet = self.order.documents.fleet
        assert fleet is not None
        begun = record.begin(self.order.runs, fleet.name, self.now(), self.documents)
        return self._night(begun).carry_out()

    def _night(self, begun: Record) -> Night:
        return Night(self.order, begun, self.tell, self.now)

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
        night = self._night(self._again(last, dict(last.documents)))
        way = self.policy.cut_short
        if way is CutShort.RESUME and launching.goes_back(self.order):
            way = CutShort.ROLLBACK  # once begun, the way back is gone to its end
        why = f"{last.name} was cut short while it launched"
        if when := rules.frozen(self.policy, self.now().date()):
            way, why = CutShort.ASK, f"{why}, and {when}"
        self.tell(f"{why}: {way}")
        match way:
            case CutShort.RESUME:
                return night.launch()
            case CutShort.ROLLBACK:
                return night.roll_back()
            case CutShort.ASK:
                return night.ask(why)

    def _approved(self, last: Record) -> Ending:
        """Launch a plan that a person approved, if it is still the one, and still young."""
        if when := rules.frozen(self.policy, self.now().date()):
            lines = (f"{last.name} is approved, but {when}; it waits on",)
            return Ending(Outcome.FROZEN, Code.DONE, lines, last.folder)
        night = self._night(self._again(last, dict(last.documents)))
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


def _stays(last: Record) -> Ending | None:
    """What a mere look leaves as it is: a launch cut short, a plan that waits for approval."""
    if last.launching:
        lines = (f"{last.name} was cut short while it launched", "without --dry-run it is taken up")
        return Ending(Outcome.LOOKED, Code.CHANGED, lines, last.folder)
    if last.outcome is Outcome.WAITING:
        return Ending(Outcome.WAITING, Code.CHANGED, last.lines, last.folder)
    return None


def _ending(last: Record) -> Ending:
    assert last.outcome is not None
    assert last.code is not None
    return Ending(last.outcome, last.code, last.lines, last.folder, last.facts)
