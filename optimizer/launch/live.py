"""What runs on a Ray cluster, as a placement: replicas of ours where their plan put them, and the
room that others hold, which is nobody's to take.

Ray says how much of each GPU is taken (``devices``); what replicas of ours take is known from
themselves; the rest is somebody else's, be it an actor, a task or a placement group.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from optimizer.domain.gpu import Use
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.launch import cluster
from optimizer.launch.devices import device_resource, host_resource
from optimizer.launch.journal import recorded
from optimizer.launch.run import Run, find
from optimizer.launch.session import NAMESPACE, session
from optimizer.launch.values import LaunchRefused, ReplicaSpec, Row, State

# Ray counts in steps of 1e-4, and parts are rounded down.
LEAST_PART = 1e-3
SETTLE_S = 3.0
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class LiveState:
    """What runs of one fleet. ``foreign``: what others hold, each as a replica of a deployment of
    its own, named ``others.…``, with ``by`` saying whose it is; ``doubts``: what could not be told.
    """

    fleet: str | None
    placement: Placement
    foreign: tuple[Replica, ...] = ()
    by: Mapping[str, str] | None = None  # deployment of a foreign replica -> who holds it
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """What Ray says: the part of each GPU that is taken, by whom as far as it is told, and how
    many GPUs of Ray's own counting are taken on each node."""

    parts: Mapping[str, float]
    holders: Mapping[str, Sequence[str]]
    plain: Mapping[str, float]


def live_state(
    run_dir: Path | str | None = None, address: str | None = None, fleet: str | None = None
) -> LiveState:
    """What runs now: of one run folder, or of the one launch of this user, or on a cluster.

    ``fleet`` chooses where a cluster holds several. Raises LaunchRefused.
    """
    run = _run(run_dir, address, fleet)
    if run is None and address is None:
        where = f" in {run_dir}" if run_dir is not None else ""
        raise LaunchRefused(f"nothing was launched{where}; name a cluster with --address")
    empty: tuple[Instance, ...] = ()
    if run is not None:
        if not run.alive or run.address is None:
            raise LaunchRefused(f"the Ray of fleet {run.fleet} is gone; nothing of it runs")
        fleet, empty = run.fleet, recorded(run.folder, run.id)
    with _connected(run, address) as ray:
        actors = cluster.running(ray)
        rows = cluster.rows(ray, actors)
        specs = [actor.spec for actor in actors.values() if actor.spec is not None]
        known = _parts(specs)
        taken = _taken(ray)
        end_at = time.monotonic() + SETTLE_S
        while _unexplained(taken, known) and time.monotonic() < end_at:
            time.sleep(0.3)  # Ray hears of freed resources with a delay
            taken = _taken(ray)
    return account(fleet, specs, rows, taken, empty)


def _run(run_dir: Path | str | None, address: str | None, fleet: str | None) -> Run | None:
    runs = [run for run in find(run_dir, address) if fleet in (None, run.fleet)]
    if len(runs) > 1:
        names = ", ".join(f"{run.fleet} (--run-dir {run.folder})" for run in runs)
        raise LaunchRefused(f"several launches run; say which: {names}")
    return runs[0] if runs else None


def _connected(run: Run | None, address: str | None) -> AbstractContextManager[Any]:
    if run is not None:
        return session(str(run.address), run.token_path, ours=run.embedded)
    return session(str(address), None, ours=False)


def account(
    fleet: str | None,
    specs: Sequence[ReplicaSpec],
    rows: Sequence[Row],
    taken: Taken,
    empty: Iterable[Instance] = (),
) -> LiveState:
    """The same from what was asked. Raises LaunchRefused when it is unclear which fleet is meant.

    Of two copies of a replica the one that serves counts, the later one first.
    """
    fleet = _fleet(fleet, specs)
    states = {(r["fleet"], r["replica"], r["generation"]): r["state"] for r in rows}
    ready = {key for key, state in states.items() if state == State.READY}
    by_copy = sorted(
        specs, key=lambda s: ((s.fleet, s.id, s.generation) in ready, s.generation), reverse=True
    )
    ours: dict[str, Replica] = {}
    foreign: list[tuple[Replica, str]] = []
    doubts = [
        f"{r['replica']}: {r['reason'] or r['state']}" for r in rows if r["state"] == State.PENDING
    ]
    for spec in by_copy:
        if spec.replica is None:
            doubts.append(f"{spec.id} was launched by a version that does not say as what")
        elif spec.fleet == fleet and spec.id not in ours:
            ours[spec.id] = spec.replica
        else:
            if spec.fleet == fleet:
                where = " and ".join(spec.devices)
                doubts.append(f"{spec.id} runs a second time, on {where}: finish its rebalance")
            foreign.append((spec.replica, f"{spec.fleet}/{spec.copy_name}"))
    rest, unclear = _rest(taken, specs)
    doubts += unclear
    named = [_as_other(one, who, n) for n, (one, who) in enumerate([*foreign, *rest])]
    held = {(gpu, r.mig) for r in (*ours.values(), *(one for one, _ in named)) for gpu in r.gpus}
    return LiveState(
        fleet,
        Placement(
            tuple(sorted(ours.values(), key=lambda r: replica_order(r.id))),
            tuple(i for i in empty if (i.gpu, i.placed) not in held),
        ),
        tuple(one for one, _ in named),
        {one.deployment: who for one, who in named},
        tuple(doubts),
    )


def _fleet(fleet: str | None, specs: Iterable[ReplicaSpec]) -> str | None:
    there = sorted({spec.fleet for spec in specs})
    if fleet is not None or not there:
        return fleet
    if len(there) > 1:
        raise LaunchRefused(f"several fleets run there: {', '.join(there)}; say which: --name")
    return there[0]


def _as_other(one: Replica, who: str, number: int) -> tuple[Replica, str]:
    """A replica under a name of its own, that no deployment of the user's bears."""
    place = re.sub(r"[^A-Za-z0-9_-]", "-", one.gpus[0])
    name = f"{OTHERS}.{place}.{number}"
    return replace(one, id=f"{name}/0", deployment=name), who


def _parts(specs: Iterable[ReplicaSpec]) -> dict[str, float]:
    """The part of each GPU that these replicas take."""
    found: dict[str, float] = {}
    for spec in specs:
        for name, amount in spec.resources:
            if not name.startswith(host_resource("")):
                gpu = name.partition(":")[2]
                found[gpu] = found.get(gpu, 0.0) + amount
    return found


def _unexplained(taken: Taken, known: Mapping[str, float]) -> list[str]:
    """GPUs of which more is taken than anybody is known to hold."""
    return [
        gpu
        for gpu, part in taken.parts.items()
        if part - known.get(gpu, 0.0) > LEAST_PART and not taken.holders.get(gpu)
    ]


def _rest(
    taken: Taken, specs: Sequence[ReplicaSpec]
) -> tuple[list[tuple[Replica, str]], list[str]]:
    """What others hold of each GPU, and what cannot be said of it.

    A whole GPU where nothing of ours runs on it; beside shares of ours as much memory as its part
    is in proportion to theirs.
    """
    known = _parts(specs)
    found, unclear = [], []
    for gpu in sorted(taken.parts, key=replica_order):
        part = taken.parts[gpu] - known.get(gpu, 0.0)
        if part <= LEAST_PART:
            continue
        who = ", ".join(taken.holders.get(gpu, ())) or "a task or placement group"
        there = [s for s in specs if device_resource(gpu) in dict(s.resources)]
        shares = [s for s in there if s.replica is not None and s.replica.share is not None]
        if not there:
            found.append((Replica("", "", (gpu,)), who))
        elif shares and shares[0].replica is not None and shares[0].replica.share is not None:
            whole = (
                shares[0].replica.share.memory_mib / dict(shares[0].resources)[device_resource(gpu)]
            )
            share = Use(int(whole * part), 0, int(part * 1_000_000))
            found.append((Replica("", "", (gpu,), share=share), who))
        else:
            unclear.append(f"{who} holds {part:.4g} of {gpu}, and which instance is not told")
    for node, count in sorted(taken.plain.items()):
        unclear.append(
            f"node {node}: {count:g} of Ray's own GPUs are taken, and which is not told; start it "
            "with --num-gpus=0 (launch --node-setup)"
        )
    return found, unclear


def _taken(ray: Any) -> Taken:
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    parts: dict[str, float] = {}
    plain: dict[str, float] = {}
    for node in ray.nodes():
        total = node["Resources"] if node["Alive"] else {}
        left = free.get(node["NodeID"], {})
        hosts = [name.partition(":")[2] for name in total if name.startswith(host_resource(""))]
        for name, amount in total.items():
            used = amount - left.get(name, 0.0)
            if name.startswith(device_resource("")):
                parts[name.partition(":")[2]] = used
            elif name == "GPU" and used > LEAST_PART and hosts:
                plain[hosts[0]] = used
    return Taken(parts, _holders(ray), plain)


def _holders(ray: Any) -> dict[str, list[str]]:
    """Living actors that are not ours, by the GPUs that they ask for."""
    from ray._private.state import state

    gcs_pb2: Any = import_module("ray.core.generated.gcs_pb2")

    found: dict[str, list[str]] = {}
    for raw in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(raw)
        if actor.ray_namespace == NAMESPACE:
            continue
        name = actor.name or f"{actor.class_name} {actor.actor_id.hex()[:8]}"
        for resource in actor.required_resources:
            if resource.startswith(device_resource("")):
                found.setdefault(resource.partition(":")[2], []).append(name)
    return {gpu: sorted(names) for gpu, names in found.items()}
