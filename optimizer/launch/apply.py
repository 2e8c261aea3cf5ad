"""Carries out a plan: starts what is missing, waits until it serves, says what does not."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.domain.placement import Replica
from optimizer.domain.plan import Plan
from optimizer.engines import Known
from optimizer.launch import actor, applications, cluster, head, rebalance, traffic
from optimizer.launch.acts import digest, rebalances
from optimizer.launch.carry import GIVE_UP_RESTARTS, LOOK_EVERY_S
from optimizer.launch.cluster import Running
from optimizer.launch.devices import declared
from optimizer.launch.instances import Instances, OnNodes, prepare
from optimizer.launch.journal import DONE, FAILED, Act, CopyState, Journal, Kind, StepState
from optimizer.launch.run import LOGS, Run, folder_of, forget, locked, new_run, read, write
from optimizer.launch.session import session
from optimizer.launch.specs import select, specify
from optimizer.launch.values import (
    AUTO,
    ENGINES,
    SIMULATED,
    Event,
    Failure,
    LaunchRefused,
    LaunchResult,
    LayoutRefused,
    Patience,
    ReplicaSpec,
    Row,
    State,
)

Watcher = Callable[[Event], None]

DEADLINE_S = 600.0
OUT_OF_REACH = (
    "the router does not reach it: engines listen on their own node only; to reach other nodes "
    "name an address for it with --host"
)
# A node's resources are one argument of Ray's; beyond this only what is launched is declared.
DECLARED_MOST = 2000


def launch(
    plan: Plan,
    *,
    engine: str = AUTO,
    address: str | None = None,
    only: str | None = None,
    detach: bool = False,
    run_dir: Path | str | None = None,
    progress: Watcher | None = None,
    deadline_s: float = DEADLINE_S,
    known: Known | None = None,
    patience: Patience | None = None,
    faults: Mapping[str, str] | None = None,
    router: bool = False,
    host: str | None = None,
    serve: bool = False,
) -> LaunchResult:
    """Run each replica of the plan (of one tenant or deployment with ``only``) where it says.

    A rebalancing plan (it has steps, and moves of what runs) is carried out step by step, each
    within ``deadline_s``; launched again after a kill or a failure it goes on.

    Without ``address`` on a Ray of our own on this machine, which ends with this process unless
    ``detach``. Replicas that run already as the plan says are kept. Returns when all serve or
    have failed, at the latest after ``deadline_s`` seconds; what failed stays supervised, so that
    ``status`` shows it, until ``stop``. ``engine`` is ``auto`` (the plan's engines) or
    ``simulated``; ``faults`` makes simulated engines fail, by replica id.

    ``router`` gives every deployment one address that stays while its replicas move. It listens
    on loopback; on ``host`` where one is named, and then asks for the token in the run folder.
    ``serve``: each deployment is also a Ray Serve application, which passes on to the router.

    Raises LaunchRefused, with every reason, when nothing was started, and PlanStale when a
    rebalancing plan was made from something else than what runs. On an interruption it takes down
    what it started and raises on; a rebalance stays where it is.
    """
    began = time.monotonic()
    replicas = _asked_for(plan, engine, only, serve=serve, address=address)
    folder = Path(run_dir).resolve() if run_dir is not None else folder_of(plan.fleet)
    to = _To(router or serve or host is not None, host, serve)
    how = _How(engine, address, detach, began, deadline_s, progress or _silent, to)
    with _opened(plan, folder, address) as (run, journal):
        said: rebalance.Said = {
            "simulated": engine == SIMULATED,
            "known": known,
            "run": run.id,
            "patience": patience,
            "faults": faults,
            "log_folder": str(folder / LOGS) if run.embedded or address is None else None,
        }
        half = rebalance.unfinished(journal, plan)
        if half is not None or (rebalances(plan) and not rebalance.is_done(journal, plan)):
            result = rebalance.go_on(run, journal, half, plan, said, how.tell, deadline_s)
            if not to.router:
                return result
            with session(result.address, run.token_path, ours=run.embedded) as ray:
                return _publish(ray, run, journal, result, to)
        specs = rebalance.as_they_run(specify(plan, replicas, **said), journal)
        return _start_missing(run, journal, plan, replicas, specs, how)


def _asked_for(
    plan: Plan, engine: str, only: str | None, *, serve: bool, address: str | None
) -> tuple[Replica, ...]:
    """The replicas to run. Raises LaunchRefused for what can be seen before the cluster is."""
    if engine not in ENGINES:
        raise LaunchRefused(f"no engine {engine!r} to launch with; say {' or '.join(ENGINES)}")
    if rebalances(plan) and only is not None:
        raise LaunchRefused("a rebalancing plan is carried out whole: --only cannot go with it")
    replicas = select(plan, only)
    if serve:
        applications.check()
    if engine != SIMULATED and address is None:
        cluster.check_engines_here()  # before all else that real engines would lack
    return replicas


@dataclass(frozen=True, slots=True)
class _To:
    """Where a user wants traffic to arrive."""

    router: bool
    host: str | None
    serve: bool


@dataclass(frozen=True, slots=True)
class _How:
    """How a user wants a launch done, and when it began."""

    engine: str
    address: str | None
    detach: bool
    began: float
    deadline_s: float
    tell: Watcher
    to: _To

    @property
    def end_at(self) -> float:
        return self.began + self.deadline_s


def _start_missing(
    run: Run,
    journal: Journal,
    plan: Plan,
    replicas: Sequence[Replica],
    specs: Sequence[ReplicaSpec],
    how: _How,
) -> LaunchResult:
    """Start what does not run yet, on the cluster that there is or on a Ray of our own."""
    real = how.engine != SIMULATED
    if real and how.address is None:
        cluster.check_engines_here(specs)
    with _own_ray(run, plan, replicas, how) as run:
        assert run.address is not None
        with session(run.address, run.token_path, ours=run.embedded) as ray:
            if real:
                refuse(cluster.faults(ray, specs, ()))
                cluster.check_engines(ray, specs)
                cut(OnNodes(ray, journal), replicas, how.end_at)
            work = _Launch(ray, run, specs, journal, how.tell, how.end_at)
            result = work.carry_out(how.began, digest(plan))
            return _publish(ray, run, journal, result, how.to)


def _publish(ray: Any, run: Run, journal: Journal, result: LaunchResult, to: _To) -> LaunchResult:
    """Send traffic to what serves, through the router that there is or is asked for."""
    copies = journal.live()
    how = traffic.asked(run, to.host) if to.router else None
    endpoint, far = traffic.publish(ray, run.fleet, run.id, copies, how)
    missed = tuple(Failure(name, OUT_OF_REACH) for name in far)
    result = replace(result, endpoint=endpoint, failed=(*result.failed, *missed))
    if how is None or not to.serve:
        return result
    names = {copy.spec.deployment for copy in copies}
    run, at = applications.publish(ray, read(run.folder) or run, names, how)
    write(run)
    return replace(result, serve=at)


@contextmanager
def _opened(plan: Plan, folder: Path, address: str | None) -> Iterator[tuple[Run, Journal]]:
    """The run of a folder, ours alone meanwhile, and its journal."""
    with locked(folder):
        there = read(folder)
        if address is None and rebalances(plan) and there is not None and not there.embedded:
            address = there.address  # what is moved says where it runs
        run = _open(plan, folder, address)
        with Journal(folder, run.id) as journal:
            yield run, journal


def cut(instances: Instances, replicas: Sequence[Replica], end_at: float) -> None:
    """Make the MIG instances that replicas need and that are not there. Raises LaunchRefused."""
    try:
        for waits_for in prepare(instances, replicas):
            if time.monotonic() > end_at:
                raise LaunchRefused(f"not done within the deadline: {waits_for}")
            time.sleep(LOOK_EVERY_S)
    except LayoutRefused as refused:
        raise LaunchRefused(str(refused)) from None


def refuse(reasons: Sequence[str]) -> None:
    """Raise LaunchRefused when there is any reason."""
    if reasons:
        raise LaunchRefused(*reasons)


def _silent(event: Event) -> None:
    """Nobody watches."""


def _open(plan: Plan, folder: Path, address: str | None) -> Run:
    """The run to go on with, or a new one. Raises LaunchRefused when the folder is taken."""
    run = read(folder)
    if run is not None and run.embedded and not (run.alive and run.address):
        head.end(run)  # what is left of a Ray that was killed, or whose launch was as it started
        run = None
    if run is None:
        return new_run(plan.fleet, folder, address)
    if run.fleet != plan.fleet:
        raise LaunchRefused(
            f"{folder} holds a running launch of fleet {run.fleet}; stop it first, or name "
            "another folder: --run-dir"
        )
    if address != (None if run.embedded else run.address):
        raise LaunchRefused(
            f"fleet {run.fleet} is launched on {_where(run)} already; stop it first, or name "
            "another folder: --run-dir"
        )
    return run


def _where(run: Run) -> str:
    return "the embedded Ray" if run.embedded else str(run.address)


@contextmanager
def _own_ray(run: Run, plan: Plan, replicas: Sequence[Replica], how: _How) -> Iterator[Run]:
    """The run with a live address: our own Ray is started, and ended again on any failure."""
    if run.address is not None or how.address is not None:
        yield run
        return
    resources = declared(plan)
    if len(resources) > DECLARED_MOST:
        wanted = {f"dev:{gpu}" for r in replicas for gpu in r.gpus}
        wanted |= {f"host:{node}" for r in replicas for node in r.nodes}
        resources = {name: amount for name, amount in resources.items() if name in wanted}
    started = head.start(run, resources, detach=how.detach, deadline_s=how.deadline_s)
    try:
        yield started
    except BaseException:
        head.end(started)
        raise


class _Launch:
    """One launch at work on a connected cluster."""

    def __init__(
        self,
        ray: Any,
        run: Run,
        specs: Sequence[ReplicaSpec],
        journal: Journal,
        tell: Watcher,
        end_at: float,
    ) -> None:
        self._ray, self._run, self._specs, self._tell = ray, run, specs, tell
        self._journal = journal
        self._undertaking: int | None = None  # in the journal, once anything is to start
        self._end_at = end_at
        self._handles: dict[str, Any] = {}
        self._rows: dict[str, Row] = {}
        self._said: dict[str, str] = {}
        self._failed: dict[str, Failure] = {}

    def carry_out(self, began: float, plan: str) -> LaunchResult:
        """Check, start, wait. Raises LaunchRefused before anything is started.

        ``plan``: its digest.
        """
        kept = self._kept()
        new = [spec for spec in self._specs if spec.id not in kept]
        refuse(cluster.faults(self._ray, self._specs, new))
        before = self._run
        ids = sorted({*self._run.replicas, *(spec.id for spec in self._specs)})
        self._run = replace(self._run, replicas=tuple(ids))
        write(self._run)  # before anything starts, so that whatever happens it can be stopped
        self._write_ahead(plan, kept, new)
        try:
            self._start_and_wait(new)
        except BaseException:
            begun = {s.actor_name: self._handles[s.id] for s in new if s.id in self._handles}
            end_actors(self._ray, begun)
            self._withdraw(new)
            write(before) if before.replicas else forget(before)
            raise
        if self._undertaking is not None:
            self._journal.close(self._undertaking, FAILED if self._failed else DONE)
        return LaunchResult(
            fleet=self._run.fleet,
            run_dir=self._run.folder,
            address=str(self._run.address),
            embedded=self._run.embedded,
            rows=tuple(self._rows[spec.id] for spec in self._specs if spec.id in self._rows),
            started=tuple(spec.id for spec in new),
            kept=tuple(spec.id for spec in self._specs if spec.id in kept),
            failed=tuple(self._failed[s.id] for s in self._specs if s.id in self._failed),
            seconds=round(time.monotonic() - began, 3),
        )

    def _write_ahead(self, plan: str, kept: Collection[str], new: Sequence[ReplicaSpec]) -> None:
        for spec in self._specs:
            if spec.id in kept:
                self._journal.put_copy(spec, CopyState.SERVING)
        if not new:
            return
        base = {c.spec.id: c.spec.generation for c in self._journal.live()}
        goal = base | {spec.id: spec.generation for spec in new}
        acts = [
            Act(f"start {s.id}", "start", s.devices, (), s.id, s.generation, because="missing")
            for s in new
        ]
        self._undertaking = self._journal.begin(Kind.LAUNCH, plan, acts, new, base, goal).id

    def _withdraw(self, new: Sequence[ReplicaSpec]) -> None:
        for spec in new:
            self._journal.set_copy(spec.id, spec.generation, CopyState.GONE)
        if self._undertaking is not None:
            self._journal.close(self._undertaking, FAILED)

    def _mark(self, replica: str, step: StepState, copy: CopyState | None, why: str = "") -> None:
        """Of a replica that this launch starts; of one that is kept nothing is written."""
        if self._undertaking is None:
            return
        spec = next(spec for spec in self._specs if spec.id == replica)
        self._journal.mark(self._undertaking, f"start {replica}", step, why)
        if copy is not None:
            self._journal.set_copy(replica, spec.generation, copy)

    def _kept(self) -> set[str]:
        """Replicas that run already as the plan says. Raises LaunchRefused for others' names."""
        specs = {spec.actor_name: spec for spec in self._specs}
        found = cluster.running(self._ray, specs, self._journal.started())
        clashes = [fault for name in found if (fault := self._clash(found[name], specs[name]))]
        refuse(clashes)
        self._handles = {specs[name].id: actor.handle for name, actor in found.items()}
        return set(self._handles)

    def _clash(self, there: Running, wanted: ReplicaSpec) -> str | None:
        if there.spec is None:
            return f"{wanted.id}: an actor of that name does not answer; stop it first"
        if there.spec.run != wanted.run:
            return f"{wanted.id} runs already, started by another launch of fleet {wanted.fleet}"
        if there.spec.likeness == wanted.likeness:
            return None
        where = " and ".join(there.spec.devices)
        if there.spec.devices == wanted.devices:
            return f"{wanted.id} runs on {where} with another command; stop it first"
        return (
            f"{wanted.id} runs on {where}, the plan has it on {' and '.join(wanted.devices)}; "
            "to move it make a plan of steps with fleetslice rebalance, or stop it first"
        )

    def _start_and_wait(self, new: Sequence[ReplicaSpec]) -> None:
        waiting = list(new)
        asked: dict[Any, str] = {}
        open_ids = [spec.id for spec in self._specs]
        while open_ids and time.monotonic() < self._end_at:
            waiting = self._start_free(waiting, open_ids)
            for replica in open_ids:
                if replica in self._handles and replica not in asked.values():
                    asked[self._handles[replica].report.remote()] = replica
            done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_EVERY_S)
            for reference in done:
                self._hear(asked.pop(reference), reference)
            open_ids = [i for i in open_ids if not self._settled(i)]
            if done and open_ids:
                time.sleep(LOOK_EVERY_S)
        for replica in open_ids:
            self._give_up(replica, self._late(replica))

    def _start_free(
        self, waiting: Sequence[ReplicaSpec], open_ids: Sequence[str]
    ) -> list[ReplicaSpec]:
        """Start every replica on whose devices no engine is starting; those that must wait.

        Engines on one GPU start one after another: each measures the memory that is free.
        Simulated ones measure nothing.
        """
        starting = [s for s in self._specs if s.id in open_ids and s.id in self._handles]
        busy = {d for spec in starting if spec.engine != SIMULATED for d in spec.devices}
        later = []
        for spec in waiting:
            if busy & set(spec.devices):
                later.append(spec)
                continue
            if spec.engine != SIMULATED:
                busy |= set(spec.devices)
            self._mark(spec.id, StepState.INTENT, CopyState.STARTING)
            self._handles[spec.id] = actor.start(self._ray, spec)
            self._note(spec.id, State.PENDING, f"on {', '.join(spec.devices)}")
        return later

    def _hear(self, replica: str, reference: Any) -> None:
        try:
            row = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._give_up(replica, f"its actor ended: {str(error).strip().splitlines()[0]}")
            return
        self._rows[replica] = row
        url = row["url"] if row["state"] == State.READY else ""
        self._note(replica, row["state"], row["reason"] or url)

    def _settled(self, replica: str) -> bool:
        if replica in self._failed:
            return True
        row = self._rows.get(replica)
        if row is not None and row["state"] == State.READY:
            self._mark(replica, StepState.DONE, CopyState.SERVING)
            return True
        if row is None:
            return False
        if row["restarts"] >= GIVE_UP_RESTARTS and not row["ever_ready"]:
            self._give_up(replica, f"never ready in {row['restarts']} starts: {row['last_end']}")
            return True
        return False

    def _late(self, replica: str) -> str:
        row = self._rows.get(replica)
        if row is None and replica not in self._handles:
            return "not started within the deadline: its GPU's other engines were still starting"
        if row is None:
            nodes = next(spec.nodes for spec in self._specs if spec.id == replica)
            away = cluster.away(self._ray, nodes)
            return f"Ray did not start its actor within the deadline{away}"
        why = row["reason"] or row["last_end"]
        reason = f" ({why})" if why else ""
        return f"{row['state']}{reason} when the deadline passed"

    def _give_up(self, replica: str, reason: str) -> None:
        log: tuple[str, ...] = ()
        if replica in self._rows:
            tail = {replica: self._handles[replica].tail}
            log = cluster.ask(self._ray, tail, within_s=2.0).get(replica, ())
        self._failed[replica] = Failure(replica, reason, log)
        self._mark(replica, StepState.FAILED, None, reason)
        self._note(replica, "failed", reason)

    def _note(self, replica: str, state: str, detail: str) -> None:
        if self._said.get(replica) != state:
            self._said[replica] = state
            self._tell(Event(replica, state, detail))


def end_actors(ray: Any, handles: Mapping[str, Any], within_s: float = 30.0) -> None:
    """Let engines end within their grace, then end their actors for good, all by actors' names."""
    cluster.ask(ray, {name: handle.stop for name, handle in handles.items()}, within_s)
    for name, handle in handles.items():
        actor.end(ray, name, handle)
