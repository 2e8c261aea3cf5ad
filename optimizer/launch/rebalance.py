"""A rebalancing plan, from what runs to its end: begun, gone on with, or undone."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from optimizer.domain.placement import Replica, replica_order
from optimizer.domain.plan import Plan
from optimizer.engines import Known
from optimizer.launch import cluster, traffic
from optimizer.launch.acts import as_started, digest, script, undoing
from optimizer.launch.carry import Steps
from optimizer.launch.devices import device
from optimizer.launch.instances import instances_of
from optimizer.launch.journal import (
    DONE,
    RUNNING,
    Act,
    CopyState,
    Generations,
    Journal,
    Kind,
    StepState,
    Undertaking,
)
from optimizer.launch.run import Run, locked, the_run, write
from optimizer.launch.session import session
from optimizer.launch.specs import specify
from optimizer.launch.values import (
    SIMULATED,
    Event,
    LaunchRefused,
    LaunchResult,
    Patience,
    PlanStale,
    ReplicaSpec,
)

Tell = Callable[[Event], None]


class Said(TypedDict):
    """What ``specify`` is told beside plan and replicas."""

    simulated: bool
    known: Known | None
    run: str
    patience: Patience | None
    faults: Mapping[str, str] | None
    log_folder: str | None


def unfinished(journal: Journal, plan: Plan) -> Undertaking | None:
    """The undertaking of this very plan to go on with, if it is not done.

    Raises LaunchRefused while another one is half carried out.
    """
    latest = journal.latest()
    if latest is None or latest.kind is Kind.LAUNCH or latest.state == DONE:
        return None
    if latest.kind is Kind.REBALANCE and latest.plan == digest(plan):
        return latest
    if latest.state == RUNNING:
        ways = "launch --rollback undoes it"
        if latest.kind is Kind.REBALANCE:
            ways = f"launch its plan again to go on, or {ways}"
        else:
            ways = "launch --rollback goes on with it"
        raise LaunchRefused(f"a {latest.kind} is half carried out; {ways}")
    return None


def is_done(journal: Journal, plan: Plan) -> bool:
    """Whether this rebalancing plan was the last thing done."""
    latest = journal.latest()
    if latest is None or latest.kind is Kind.ROLLBACK or latest.plan != digest(plan):
        return False
    return latest.state == DONE or latest.kind is Kind.LAUNCH  # it starts what went missing since


def as_they_run(specs: Sequence[ReplicaSpec], journal: Journal) -> tuple[ReplicaSpec, ...]:
    """The specs with the generations that serve, or were the last to."""
    last = dict(last_generations(journal))
    last |= {c.spec.id: c.spec.generation for c in journal.live() if c.state is CopyState.SERVING}
    return tuple(replace(spec, generation=last.get(spec.id, 0)) for spec in specs)


def go_on(
    run: Run,
    journal: Journal,
    half: Undertaking | None,
    plan: Plan,
    said: Said,
    tell: Tell,
    step_s: float,
) -> LaunchResult:
    """Carry a rebalancing plan out, from where it is when it is ``half`` done."""
    if run.address is None:
        raise PlanStale(f"nothing of fleet {plan.fleet} runs")
    with session(run.address, run.token_path, ours=run.embedded) as ray:
        if half is None:
            undertaking = begin(ray, run, journal, plan, said)
        else:
            undertaking = half
            refresh(journal, half, plan, said)
        return carry_out(ray, run, journal, undertaking, tell, step_s)


def refresh(journal: Journal, half: Undertaking, plan: Plan, said: Said) -> None:
    """Copies that are still to start are started as it is said now: what made them fail may be
    mended since."""
    moves = {move.replica: move for move in plan.moves}
    steps = {step.id: step for step in plan.steps}
    states = {(c.spec.id, c.spec.generation): c.state for c in journal.copies()}
    for entry in journal.entries(half.id):
        act = entry.act
        if act.action != "start" or act.replica is None:
            continue
        if states[act.replica, act.generation] not in (CopyState.PLANNED, CopyState.GONE):
            continue
        if entry.state is not StepState.DONE:
            move = moves[act.replica]
            replica = as_started(steps[act.id], move.before, move.after)
            [spec] = specify(plan, [replica], **said)
            journal.put_copy(replace(spec, generation=act.generation), CopyState.PLANNED)


def rollback(
    run_dir: Path | str | None = None,
    address: str | None = None,
    *,
    progress: Tell | None = None,
    deadline_s: float = 600.0,
) -> LaunchResult:
    """Undo the rebalance that was carried out last, whole or half; go on with it after a kill.

    Each step has ``deadline_s`` seconds. Raises LaunchRefused when there is nothing to undo.
    """
    run = the_run(run_dir, address)
    with locked(run.folder):
        if not run.alive or run.address is None:
            raise LaunchRefused(f"the Ray of fleet {run.fleet} is gone; nothing can be moved back")
        with (
            Journal(run.folder, run.id) as journal,
            session(run.address, run.token_path, ours=run.embedded) as ray,
        ):
            tell = progress or (lambda event: None)
            return carry_out(ray, run, journal, undo(journal), tell, deadline_s)


def begin(ray: Any, run: Run, journal: Journal, plan: Plan, said: Said) -> Undertaking:
    """Write a rebalancing plan ahead. Raises PlanStale, and LaunchRefused for what cannot go."""
    there = _there(ray, run, plan, journal.started())
    differences = tuple(stale(plan, there))
    if differences:
        raise PlanStale(*differences)
    adopted = [spec for specs in there.values() for spec in specs]
    for spec in adopted:
        journal.put_copy(spec, CopyState.SERVING)
    serving = {spec.id: spec.generation for spec in adopted}
    found = script(plan, serving, last_generations(journal))
    keys = list(found.new)
    specs = specify(plan, [found.new[key] for key in keys], together=False, **said)
    new = [
        replace(spec, generation=generation)
        for (_, generation), spec in zip(keys, specs, strict=True)
    ]
    reasons = cluster.faults(ray, new, ())
    if reasons:
        raise LaunchRefused(*reasons)
    if not said["simulated"]:
        cluster.check_engines(ray, new)
    return journal.begin(Kind.REBALANCE, digest(plan), found.acts, new, serving, found.goal)


def _there(
    ray: Any, run: Run, plan: Plan, started: Mapping[str, ReplicaSpec]
) -> dict[str, list[ReplicaSpec]]:
    """The copies of ours that run, by replica."""
    names = {*run.replicas, *(r.id for r in plan.placement.replicas)}
    names |= {move.replica for move in plan.moves}
    found: dict[str, list[ReplicaSpec]] = {}
    for actor in cluster.running(ray, cluster.copies(ray, plan.fleet, names), started).values():
        if actor.spec is not None and actor.spec.run == run.id:
            found.setdefault(actor.spec.id, []).append(actor.spec)
    return found


def stale(plan: Plan, there: Mapping[str, Sequence[ReplicaSpec]]) -> Iterator[str]:
    """How what runs differs from what the plan was made from, a replica a line."""
    wanted: dict[str, Replica | None] = {r.id: r for r in plan.placement.replicas}
    wanted |= {move.replica: move.before for move in plan.moves}
    for name in sorted({*wanted, *there}, key=replica_order):
        specs, before = there.get(name, ()), wanted.get(name)
        where = " and ".join(" and ".join(spec.devices) for spec in specs)
        if before is None:
            if specs:
                yield f"{name} runs on {where}, the plan was made without it"
            continue
        planned = [device(before, gpu) for gpu in before.gpus]
        was = f"the plan was made with it on {' and '.join(planned)}"
        if not specs:
            yield f"{name} does not run, {was}"
        elif len(specs) > 1:
            yield f"{name} runs {len(specs)} times, on {where}; {was}"
        elif list(specs[0].devices) != planned:
            yield f"{name} runs on {where}, {was}"
        elif specs[0].engine not in (SIMULATED, before.config.engine or specs[0].engine):
            yield f"{name} runs {specs[0].engine}, the plan was made with {before.config.engine}"


def last_generations(journal: Journal) -> Generations:
    """The highest generation that there was of each replica."""
    return {copy.spec.id: copy.spec.generation for copy in journal.copies()}


def undo(journal: Journal) -> Undertaking:
    """Write the way back ahead, or find it written. Raises LaunchRefused without a way back."""
    latest = journal.latest()
    if latest is None or latest.kind is Kind.LAUNCH:
        raise LaunchRefused("nothing was moved, so there is no earlier placement to return to")
    if latest.kind is Kind.ROLLBACK:
        if latest.state == DONE:
            raise LaunchRefused("the last good placement runs already")
        return latest
    specs = {(c.spec.id, c.spec.generation): c.spec for c in journal.copies()}
    acts, new = undoing(journal.entries(latest.id), specs, last_generations(journal))
    goal = {**latest.base, **_came_back(latest.base, acts)}
    return journal.begin(Kind.ROLLBACK, latest.plan, acts, new, latest.goal, goal)


def _came_back(base: Generations, acts: Sequence[Act]) -> Generations:
    """Who serves at the end of the way back: the copy that came last of each of ``base``."""
    found: dict[str, int] = {}
    for act in acts:
        if act.action == "shift_traffic" and act.replica is not None and act.replica in base:
            found[act.replica] = act.generation
    return found


def carry_out(
    ray: Any, run: Run, journal: Journal, undertaking: Undertaking, tell: Tell, step_s: float
) -> LaunchResult:
    """Do what is not done of it; returns when all is, or when nothing more can be."""
    began = time.monotonic()
    names = {*run.replicas, *undertaking.base, *undertaking.goal}
    run = replace(run, replicas=tuple(sorted(names, key=replica_order)))
    write(run)  # before anything starts, so that whatever happens it can be stopped
    router = traffic.find(ray, run.fleet, run.id)
    steps = Steps(ray, journal, undertaking, instances_of(ray, journal), tell, step_s, router)
    blocked = steps.carry_out()
    live = {copy.spec.actor_name: copy.spec for copy in journal.live()}
    ids = sorted({spec.id for spec in live.values()}, key=replica_order)
    write(replace(run, replicas=tuple(ids)))
    entries = journal.entries(undertaking.id)
    done = [e.act for e in entries if e.state is StepState.DONE]
    started = tuple(sorted({a.replica for a in done if a.action == "start" and a.replica}))
    return LaunchResult(
        fleet=run.fleet,
        run_dir=run.folder,
        address=str(run.address),
        embedded=run.embedded,
        rows=tuple(cluster.rows(ray, cluster.running(ray, live))),
        started=started,
        kept=tuple(name for name in ids if name not in started),
        failed=tuple(steps.failed),
        seconds=round(time.monotonic() - began, 3),
        done=tuple(act.id for act in done),
        blocked=blocked,
        endpoint=traffic.address(ray, router),
    )
