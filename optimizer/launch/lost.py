"""What the cluster offers, and replicas that were lost with their nodes."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimizer.domain.placement import replica_order
from optimizer.launch import actor, traffic
from optimizer.launch.devices import device_resource, host_resource
from optimizer.launch.journal import (
    LIVE,
    RUNNING,
    Copy,
    CopyState,
    Journal,
    Kind,
    Undertaking,
    peek,
)
from optimizer.launch.run import Run, locked, read, write
from optimizer.launch.session import NAMESPACE, session


@dataclass(frozen=True, slots=True)
class Standing:
    """How a launch stands. ``gpus``: those that the cluster offers; None: it is not started yet.

    ``known``: replicas that were started; ``lost``: those whose node is gone from the cluster, with
    the node; ``doubled``: those of which two copies may run; ``half``: what is half carried out, if
    anything; ``began``: whether anything was launched from the folder.
    """

    gpus: frozenset[str] | None = None
    lost: tuple[tuple[str, str], ...] = ()
    known: frozenset[str] = frozenset()
    doubled: tuple[str, ...] = ()
    half: str | None = None
    began: bool = False


def standing(run_dir: Path | str, address: str | None = None) -> Standing:
    """How what was launched from a run folder stands, or what a cluster offers to a first launch.

    Our own Ray that is gone counts as not started. Raises LaunchRefused.
    """
    run = read(Path(run_dir))
    if run is not None and run.embedded and not (run.alive and run.address):
        return Standing(began=True)
    if run is None and address is None:
        return Standing()
    copies, latest = ((), None) if run is None else peek(run.folder, run.id)
    with _session(run, address) as ray:
        hosts, gpus = _offered(ray)
    live = [copy for copy in copies if copy.state in LIVE]
    lost = {c.spec.id: away[0] for c in live if (away := _away(c, hosts))}
    counted = Counter(c.spec.id for c in live if not _away(c, hosts))
    half = latest is not None and latest.state == RUNNING and latest.kind is not Kind.LAUNCH
    return Standing(
        gpus,
        tuple(sorted(lost.items(), key=lambda one: replica_order(one[0]))),
        frozenset(c.spec.id for c in live),
        tuple(sorted(name for name, count in counted.items() if count > 1)),
        str(latest.kind) if half and latest is not None else None,
        run is not None,
    )


def begun(run_dir: Path | str) -> Undertaking | None:
    """What was begun last from a run folder. Raises LaunchRefused when that cannot be read."""
    run = read(Path(run_dir))
    return None if run is None else peek(run.folder, run.id)[1]


def withdraw_lost(run_dir: Path | str) -> tuple[str, ...]:
    """Give up copies whose node is gone from the cluster: else they would come back with it.

    The names of the copies. Raises LaunchRefused.
    """
    run = read(Path(run_dir))
    if run is None or not run.alive or run.address is None:
        return ()
    with locked(run.folder), session(run.address, run.token_path, ours=run.embedded) as ray:
        run = read(run.folder) or run
        with Journal(run.folder, run.id) as journal:
            hosts, _ = _offered(ray)
            gone = [copy for copy in journal.live() if _away(copy, hosts)]
            for copy in gone:
                _give_up(ray, journal, copy)
            if gone:
                left = {copy.spec.id for copy in journal.live()}
                ids = tuple(r for r in run.replicas if r in left)
                write(replace(run, replicas=ids))
                traffic.publish(ray, run.fleet, run.id, journal.live())
    return tuple(copy.spec.copy_name for copy in gone)


def _away(copy: Copy, hosts: frozenset[str]) -> list[str]:
    """Those of its nodes that are not on the cluster."""
    return [node for node in copy.spec.nodes if node not in hosts]


def _give_up(ray: Any, journal: Journal, copy: Copy) -> None:
    handle = None
    with suppress(ValueError):  # it is gone already
        handle = ray.get_actor(copy.spec.actor_name, namespace=NAMESPACE)
    actor.end(ray, copy.spec.actor_name, handle)
    journal.set_copy(copy.spec.id, copy.spec.generation, CopyState.GONE)


def _session(run: Run | None, address: str | None) -> Any:
    if run is not None:
        return session(str(run.address), run.token_path, ours=run.embedded)
    return session(str(address), None, ours=False)


def _offered(ray: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Nodes of the fleet that are on the cluster, and their GPUs."""
    there: list[Mapping[str, float]] = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    names = {name for resources in there for name in resources}

    def after(mark: str) -> frozenset[str]:
        return frozenset(n.removeprefix(mark) for n in names if n.startswith(mark))

    return after(host_resource("")), after(device_resource(""))
