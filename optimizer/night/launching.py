"""The part of a night that changes what runs, and what is said when it stops half-way."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.documents import read_plan
from optimizer.domain.plan import Plan
from optimizer.domain.words import plural
from optimizer.launch import Event, LaunchRefused, LaunchResult, PlanStale, drift, launch, rollback
from optimizer.launch.acts import digest
from optimizer.launch.journal import DONE, JOURNAL, RUNNING, Kind, Undertaking
from optimizer.launch.lost import begun
from optimizer.launch.lost import withdraw_lost as withdrawn
from optimizer.night.record import PLAN
from optimizer.night.values import Code, NightRefused, Order
from optimizer.optimize import BrokenPlan

if TYPE_CHECKING:
    from optimizer.engines import Known

Tell = Callable[[str], None]
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Done:
    """What a launch or a way back came to."""

    partial: bool
    told: str
    moves_done: int = 0
    lines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: tuple[dict[str, Any], ...] = ()


def carried_out(order: Order, plan: Plan, tell: Tell) -> Done:
    """Launch the plan, from where it is, and look whether all is as it says.

    Raises PlanStale and LaunchRefused.
    """
    result = None if _is_done(order, plan) else _launched(order, plan, tell)
    differences = drift(plan, order.run_dir)
    lines = [] if result is None else _failures(result)
    failed = () if result is None else result.failed
    broken = {f.replica for f in failed}
    for one in differences:
        if one.replica not in broken:
            lines.append(f"{one.replica}: {one.kind}: {one.detail}")
    not_there = {one.replica for one in differences} | broken
    moved = [move.replica for move in plan.moves]
    done = sum(replica not in not_there for replica in moved)
    return Done(
        bool(lines),
        f"{done} of {plural(len(moved), 'move')} made",
        done,
        tuple(lines),
        failed=() if result is None else _rows(result),
    )


def _is_done(order: Order, plan: Plan) -> bool:
    """Whether that plan was carried out to its end already, and only the night cut short."""
    latest = begun(order.run_dir)
    is_it = latest is not None and latest.kind is Kind.REBALANCE and latest.state == DONE
    return is_it and latest is not None and latest.plan == digest(plan)


def _launched(order: Order, plan: Plan, tell: Tell) -> LaunchResult:
    return launch(
        plan,
        engine=order.engine,
        address=order.address,
        detach=True,
        run_dir=order.run_dir,
        progress=_watch(tell),
        deadline_s=order.step_s,
        known=_known(order),
        router=order.router,
    )


def _known(order: Order) -> "Known | None":
    """What real engines ask for and the plan does not carry."""
    from optimizer.engines import Known

    documents = order.documents
    assert documents.workloads is not None
    assert documents.fleet is not None
    engines = {card.name: card for card in documents.catalogue.engine_cards()}
    gpus = {gpu.name: gpu for gpu in documents.fleet.products()}
    return Known.of(documents.workloads.deployments, engines, gpus)


def half(order: Order) -> Undertaking | None:
    """What is begun and not ended. Raises LaunchRefused when nobody can tell."""
    latest = begun(order.run_dir)
    return latest if latest is not None and latest.state == RUNNING else None


def goes_back(order: Order) -> bool:
    """Whether a way back is begun and not ended."""
    try:
        latest = half(order)
    except LaunchRefused:
        return False  # said where the launch goes on
    return latest is not None and latest.kind is Kind.ROLLBACK


def half_done(order: Order, plan: Path) -> bool:
    """Whether that plan, or its way back, is begun and not ended: somebody must go on with it."""
    if not plan.exists():
        return False
    try:
        latest = half(order)
    except LaunchRefused:
        return True  # nobody can tell, so it may be
    return latest is not None and latest.plan == digest(read_plan(plan))


def rolled_back(order: Order, tell: Tell) -> Done | None:
    """Undo what was half carried out; None where no move was begun. Raises LaunchRefused."""
    latest = half(order)
    if latest is None or latest.kind is Kind.LAUNCH:
        return None
    result = rollback(order.run_dir, progress=_watch(tell), deadline_s=order.step_s)
    lines = tuple(_failures(result))
    told = f"{plural(len(result.done), 'step')} undone"
    return Done(result.partial, told, lines=lines or (told,), failed=_rows(result))


def mend(order: Order, nights: Sequence[Path], tell: Tell) -> None:
    """Two copies of a replica are left of steps that failed: try their plan again, else undo it."""
    latest = begun(order.run_dir)
    if latest is None or latest.kind is Kind.LAUNCH or latest.state == DONE:
        return
    for folder in reversed(nights):
        path = folder / PLAN
        if latest.kind is Kind.REBALANCE and path.exists():
            plan = read_plan(path)
            if digest(plan) == latest.plan:
                if carried_out(order, plan, tell).partial:
                    break
                return
    rollback(order.run_dir, progress=_watch(tell), deadline_s=order.step_s)


def withdraw_lost(order: Order) -> tuple[str, ...]:
    """Give up replicas whose node is gone. Raises LaunchRefused."""
    return withdrawn(order.run_dir)


def journal_is_lost(order: Order) -> tuple[str, ...]:
    """What a person can do about a launch's journal that cannot be read; nothing where it can."""
    try:
        half(order)
    except LaunchRefused:
        journal = order.run_dir / JOURNAL
        return (
            "replicas that run say themselves what they are, so it can be done without:",
            f"mv {journal} {journal}.corrupt; rm -f {journal}-wal {journal}-shm",
            "then start it again",
        )
    return ()


def ways_out(order: Order, plan: Path | None = None) -> tuple[str, ...]:
    """What a person can do about a launch that is not whole."""
    if lost := journal_is_lost(order):
        return lost
    where = f"--run-dir {order.run_dir}"
    how = " --engine simulated" if order.engine == "simulated" else ""
    lines = [f"look:    fleetslice status {where}"]
    if plan is not None:
        lines.append(f"go on:   fleetslice launch {plan} --yes{how} {where}")
    lines.append(f"go back: fleetslice launch --rollback --yes {where}")
    return tuple(lines)


def told(error: Exception) -> tuple[Code | None, tuple[str, ...]]:
    """Exit code and words for a failure that is known; no code for one that is not."""
    lines = tuple(str(error).splitlines())
    match error:
        case NightRefused():
            return error.code, error.lines
        case PlanStale():
            return Code.DRIFTED, lines
        case LaunchRefused():
            return Code.ERROR, lines
        case BrokenPlan():
            first = "the judge refuses the plan that was found, a defect of fleetslice:"
            return Code.BROKEN, (first, *lines)
        case sqlite3.Error():
            return Code.ERROR, (f"the launch's journal cannot be written: {error}",)
        case _:
            return None, ()


def _failures(result: LaunchResult) -> list[str]:
    lines = []
    for one in result.failed[:SHOWN]:
        step = f"step {one.step}: " if one.step else ""
        lines.append(f"{step}{one.replica}: {one.reason}")
    if result.blocked:
        lines.append(f"not done, because they need what failed: {', '.join(result.blocked)}")
    return lines


def _rows(result: LaunchResult) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"step": f.step or "", "replica": f.replica, "reason": f.reason, "log": list(f.log)}
        for f in result.failed
    )


def _watch(tell: Tell) -> Callable[[Event], None]:
    return lambda e: tell(f"  {e.replica}: {e.state}" + (f" ({e.detail})" if e.detail else ""))
