"""Looks at what was launched, and takes it down."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimizer.domain.placement import replica_order
from optimizer.launch import actor, applications, cluster, head, processes, traffic
from optimizer.launch.apply import Watcher, end_actors
from optimizer.launch.journal import LIVE, CopyState, Journal, peek
from optimizer.launch.run import Run, find, forget, locked, read, the_run, write
from optimizer.launch.session import NAMESPACE, session
from optimizer.launch.values import Event, LaunchRefused, Row, State, StopResult, copy_of

GONE_S = 15.0
LOOK_EVERY_S = 0.5


def status(run_dir: Path | str | None = None, address: str | None = None) -> list[Row]:
    """A row for each replica that was launched and not stopped: where it runs, how it is.

    Of one run folder, or of all of this user's. With ``address`` alone, all replicas of ours on
    that cluster, whoever launched them. A replica that should run and does not is ``missing``.
    While a replica moves it has a row for each copy, told apart by ``generation``; ``planned`` is
    where it is to run once all steps are done (None: nowhere; without steps, where it was started).
    Keys: replica, generation, planned, deployment, tenant, fleet, node, devices, engine, state,
    reason, url, uptime_s, restarts, last_end, last_log, pid, host, log_file. Raises LaunchRefused.
    """
    runs = find(run_dir, address)
    if not runs and address is not None:
        with session(address, None, ours=False) as ray:
            return cluster.rows(ray, cluster.running(ray))
    return [row for run in runs for row in _status(run)]


def _status(run: Run) -> list[Row]:
    copies, latest = peek(run.folder, run.id)
    live = [copy for copy in copies if copy.state in LIVE]
    wanted = {copy.spec.actor_name for copy in live}
    recorded = {copy.spec.id for copy in live}
    wanted |= {f"{run.fleet}/{replica}" for replica in run.replicas if replica not in recorded}
    rows = _rows(run, sorted(wanted))
    planned = {
        copy.spec.id: list(copy.spec.devices)
        for copy in copies
        if latest is not None and latest.goal.get(copy.spec.id) == copy.spec.generation
    }
    return sorted(
        ({**row, "planned": planned.get(row["replica"])} for row in rows), key=cluster.row_order
    )


def _rows(run: Run, wanted: Sequence[str]) -> list[Row]:
    if not run.alive or run.address is None:
        why = "its Ray is gone; stop clears what is left" if run.head else "never started"
        return [cluster.absent(name, State.MISSING, why) for name in wanted]
    with session(run.address, run.token_path, ours=run.embedded) as ray:
        found = cluster.running(ray, wanted)
        rows = cluster.rows(ray, found)
    lost = [name for name in wanted if name not in found]
    return rows + [cluster.absent(name, State.MISSING, "its actor is gone") for name in lost]


def stop(
    run_dir: Path | str | None = None,
    address: str | None = None,
    only: str | None = None,
    *,
    progress: Watcher | None = None,
) -> StopResult:
    """End what was launched from a run folder, and nothing else.

    Engines get their grace. With the last replica our own Ray ends too, also when it or its
    launcher was killed. ``only``: a tenant, a deployment or a replica. Without ``run_dir`` the
    one run of this user. Raises LaunchRefused when it is unclear what to stop.
    """
    run = the_run(run_dir, address)
    with locked(run.folder):
        run = read(run.folder) or run
        tell = progress or (lambda event: None)
        if not run.alive or run.address is None:
            if only is not None:
                raise LaunchRefused(f"the Ray of fleet {run.fleet} is gone; stop it without --only")
            lasting = head.end(run)
            return StopResult(run.replicas, _told(lasting), cluster_ended=True)
        try:
            stopped, notes, others = _stop_replicas(run, only, tell)
        except LaunchRefused:
            # Our own Ray that answers nobody can still be ended, whole.
            if not run.embedded or only is not None:
                raise
            stopped, notes, others = run.replicas, ("Ray did not answer",), False
        rest = tuple(r for r in run.replicas if r not in stopped)
        if rest or others:
            write(replace(run, replicas=rest))
            return StopResult(stopped, notes=notes)
        if not run.embedded:
            forget(run)
            return StopResult(stopped, notes=notes)
        lasting = head.end(run)
        return StopResult(stopped, _told(lasting), cluster_ended=True, notes=notes)


def _told(lasting: Sequence[processes.Process]) -> tuple[str, ...]:
    return tuple(f"process {p.pid}" for p in lasting)


def _stop_replicas(
    run: Run, only: str | None, tell: Watcher
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Replicas stopped, notes, and whether others still use our Ray."""
    assert run.address is not None
    with session(run.address, run.token_path, ours=run.embedded) as ray:
        names = {f"{run.fleet}/{replica}": replica for replica in run.replicas}
        copies = cluster.copies(ray, run.fleet, run.replicas)
        names |= {name: copy_of(name.removeprefix(f"{run.fleet}/"))[0] for name in copies}
        found = cluster.running(ray, names)
        # Of the same name, but started by another launch: not ours to end.
        ours = {n: a for n, a in found.items() if a.spec is None or a.spec.run == run.id}
        chosen = {n: a for n, a in ours.items() if _is_meant(names[n], a, only)}
        alive = {names[n] for n in ours}
        gone = [r for r in run.replicas if r not in alive and _is_meant(r, None, only)]
        if only is not None and not chosen and not gone:
            raise LaunchRefused(f"nothing of {only!r} runs")
        for name in chosen:
            tell(Event(names[name], State.STOPPING))
        end_actors(ray, {name: one.handle for name, one in chosen.items()})
        _wait_gone(ray, list(chosen))
        for name in chosen:
            tell(Event(names[name], State.STOPPED))
        stopped = tuple(sorted({*gone, *(names[n] for n in chosen)}, key=replica_order))
        with Journal(run.folder, run.id) as journal:
            for copy in journal.live():
                if copy.spec.id in stopped:
                    if len(copy.spec.nodes) > 1:  # its places are kept also without its actor
                        actor.end(ray, copy.spec.actor_name, None)
                    journal.set_copy(copy.spec.id, copy.spec.generation, CopyState.GONE)
            if set(run.replicas) <= set(stopped):
                applications.end(ray, run)
                traffic.end(ray, run.fleet, run.id)
            else:
                traffic.publish(ray, run.fleet, run.id, journal.live())
        notes = tuple(f"{replica} was gone already" for replica in sorted(gone, key=replica_order))
        others = run.embedded and _foreign(ray, set(names))
    if others:
        notes += ("other actors use this Ray; it goes on",)
    return stopped, notes, others


def _is_meant(replica: str, there: cluster.Running | None, only: str | None) -> bool:
    if only is None or only in (replica, replica.rpartition("/")[0]):
        return True
    return there is not None and there.spec is not None and only == there.spec.tenant


def _wait_gone(ray: Any, names: Sequence[str]) -> None:
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline and cluster.named(ray) & set(names):
        time.sleep(0.1)


def _foreign(ray: Any, ours: set[str]) -> bool:
    """Whether named actors of anybody else live on the cluster."""
    every = ray.util.list_named_actors(all_namespaces=True)
    return any(
        a["namespace"] != traffic.TRAFFIC and (a["namespace"] != NAMESPACE or a["name"] not in ours)
        for a in every
    )


def attend(run_dir: Path | str) -> StopResult:
    """Stay until interrupted (Ctrl-C, SIGTERM) or until the run is gone, then take it down.

    For a launch in the foreground. Interrupts end the wait and are not raised on.
    """
    folder = Path(run_dir)
    with _interruptible() as interrupted:
        while not interrupted:
            run = read(folder)
            if run is None:
                return StopResult((), cluster_ended=True)  # stopped from another shell
            if not run.alive:
                break
            time.sleep(LOOK_EVERY_S)
    return stop(folder)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that gets the numbers of SIGINT and SIGTERM as they arrive."""
    heard: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda n, frame: heard.append(n))
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
