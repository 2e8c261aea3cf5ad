"""What runs on a Ray cluster of ours, and whether it can take what a plan asks."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.domain.placement import replica_order
from optimizer.domain.words import plural
from optimizer.launch.actor import probe_resources
from optimizer.launch.devices import device_resource, host_resource
from optimizer.launch.session import NAMESPACE
from optimizer.launch.values import WITHOUT_GPUS, LaunchRefused, ReplicaSpec, Row, State, copy_of

ANSWER_S = 10.0
# Ray hears of freed resources with a delay.
SETTLE_S = 5.0
TINY = 1e-6
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Running:
    """A replica's actor and what it is; ``spec`` None when nobody can tell."""

    name: str
    handle: Any
    spec: ReplicaSpec | None


def running(
    ray: Any,
    names: Iterable[str] | None = None,
    started: Mapping[str, ReplicaSpec] | None = None,
) -> dict[str, Running]:
    """Actors of ours on the cluster, by name; only those named.

    ``started``: what is known to have been started, for actors that do not answer yet.
    """
    there = named(ray)
    wanted = sorted(there if names is None else there & set(names))
    handles = {}
    for name in wanted:
        try:
            handles[name] = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            continue  # it ended in between
    answers = ask(ray, {name: handle.spec for name, handle in handles.items()})
    specs = {**(started or {}), **answers}
    return {name: Running(name, handle, specs.get(name)) for name, handle in handles.items()}


def away(ray: Any, nodes: Iterable[str]) -> str:
    """An addition to a reason: those of the plan's nodes that are not on the cluster, if any."""
    there = {name for node in ray.nodes() if node["Alive"] for name in node["Resources"]}
    gone = [node for node in sorted(set(nodes)) if host_resource(node) not in there]
    are = "nodes {} are" if len(gone) > 1 else "node {} is"
    return f"; {are.format(' and '.join(gone))} not on the cluster" if gone else ""


def named(ray: Any) -> set[str]:
    """Names of the actors of ours that live on the cluster."""
    every = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in every if actor["namespace"] == NAMESPACE}


def copies(ray: Any, fleet: str, replicas: Iterable[str]) -> set[str]:
    """Names of the living actors of these replicas, of every generation."""
    wanted = set(replicas)
    ours = {name for name in named(ray) if name.startswith(f"{fleet}/")}
    return {name for name in ours if copy_of(name.removeprefix(f"{fleet}/"))[0] in wanted}


def ask(ray: Any, methods: Mapping[str, Any], within_s: float = ANSWER_S) -> dict[str, Any]:
    """Call a method of several actors at once; the answers that came in time, by name."""
    pending = {method.remote(): name for name, method in methods.items()}
    if not pending:
        return {}
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=within_s)
    answers = {}
    for reference in done:
        try:
            answers[pending[reference]] = ray.get(reference)
        except ray.exceptions.RayError:
            continue  # it ended in between, or its worker did
    return answers


def rows(ray: Any, actors: Mapping[str, Running]) -> list[Row]:
    """The reports of these actors, in the order of replicas; silent ones are pending."""
    found = ask(ray, {name: actor.handle.report for name, actor in actors.items()})
    silent = [name for name in actors if name not in found]
    listed = [*found.values(), *(absent(name, State.PENDING, "no answer") for name in silent)]
    return sorted(listed, key=row_order)


def row_order(row: Row) -> tuple[str, tuple[str, int], int]:
    """Sort key of rows: by fleet, replica and generation."""
    return (row["fleet"], replica_order(row["replica"]), row["generation"])


def absent(name: str, state: State, reason: str) -> Row:
    """The row of a replica that cannot speak for itself; ``name`` is its actor's."""
    fleet, _, copy = name.partition("/")
    replica, generation = copy_of(copy)
    return {
        "replica": replica,
        "generation": generation,
        "deployment": replica.rpartition("/")[0],
        "tenant": None,
        "node": None,
        "devices": [],
        "engine": None,
        "state": str(state),
        "reason": reason,
        "url": None,
        "uptime_s": 0.0,
        "restarts": 0,
        "last_end": "",
        "last_log": "",
        "pid": None,
        "host": None,
        "ray_node": None,
        "log_file": None,
        "fleet": fleet,
        "run": None,
        "ever_ready": False,
    }


def faults(ray: Any, specs: Sequence[ReplicaSpec], new: Sequence[ReplicaSpec]) -> list[str]:
    """Why the cluster cannot run ``specs``, of which ``new`` are to start; empty when it can."""
    found = _absent_devices(ray, specs)
    if found:
        return found
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = _taken_devices(ray.available_resources(), new)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def _absent_devices(ray: Any, specs: Sequence[ReplicaSpec]) -> list[str]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = []
    for host in sorted({node for spec in specs for node in spec.nodes}):
        there = [resources for resources in nodes if host_resource(host) in resources]
        if not there:
            found.append(
                f"node {host} is not on the cluster: none of its {plural(len(nodes), 'node')} "
                f"offers {host_resource(host)} (the line to start it: launch --node-setup)"
            )
            continue
        gpus = sorted({d.partition(":")[0] for spec in specs for d in spec.part(host)})
        missing = [g for g in gpus if not any(device_resource(g) in r for r in there)]
        if missing:
            names = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
            found.append(f"node {host} does not offer {plural(len(missing), 'GPU')}: {names}")
    return found


def _taken_devices(free: Mapping[str, float], new: Sequence[ReplicaSpec]) -> list[str]:
    needed: dict[str, float] = {}
    by: dict[str, list[str]] = {}
    for spec in new:
        for name, amount in spec.resources:
            needed[name] = needed.get(name, 0.0) + amount
            by.setdefault(name, []).append(spec.id)
    return [
        f"{name.partition(':')[2]} is taken: {', '.join(by[name])} would need {amount:.4g} of it, "
        f"{free.get(name, 0.0):.4g} is free"
        for name, amount in sorted(needed.items())
        if amount > free.get(name, 0.0) + TINY
    ]


def engine_faults(programs: Iterable[str]) -> list[str]:
    """Why this machine cannot run these engines: no such program, or no GPU."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = [
        f"{program} is not installed"
        for program in sorted(set(programs))
        if shutil.which(program, path=path) is None
    ]
    if not any(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev")):
        found.append("there is no NVIDIA GPU")
    return found


def check_engines_here(specs: Sequence[ReplicaSpec] = ()) -> None:
    """Look on this machine for GPUs and engines. Raises LaunchRefused naming all that lacks."""
    _refuse({"this machine": engine_faults(spec.argv[0] for spec in specs)})


def check_engines(ray: Any, specs: Sequence[ReplicaSpec]) -> None:
    """Look on every node for its GPUs and engines. Raises LaunchRefused naming all that lacks."""
    programs: dict[str, set[str]] = {}
    for spec in specs:
        for node in spec.nodes:
            programs.setdefault(node, set()).add(spec.argv[0])
    _refuse(_probe(ray, programs))


def _refuse(found: Mapping[str, Sequence[str]]) -> None:
    reasons = [f"{where}: {fault}" for where, all_of in sorted(found.items()) for fault in all_of]
    if reasons:
        raise LaunchRefused(*reasons, hint=WITHOUT_GPUS)


def _probe(ray: Any, programs: Mapping[str, set[str]]) -> dict[str, list[str]]:
    look = ray.remote(engine_faults)
    pending = {
        look.options(num_cpus=0, resources=probe_resources(node), max_retries=0).remote(
            sorted(names)
        ): node
        for node, names in sorted(programs.items())
    }
    done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=3 * ANSWER_S)
    found = {node: ["does not answer"] for node in programs}
    for reference in done:
        try:
            found[pending[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            found[pending[reference]] = [str(error).splitlines()[0]]
    return found
