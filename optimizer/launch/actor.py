"""The actor that stands for one replica on Ray: it runs on the replica's node, holds its devices
and supervises its engine. Over several nodes it leads a group."""

from contextlib import suppress
from typing import Any

from optimizer.launch import ranks
from optimizer.launch.devices import HOST_PART, host_resource
from optimizer.launch.group import Members
from optimizer.launch.session import NAMESPACE
from optimizer.launch.supervisor import LINES_SHOWN, Supervisor
from optimizer.launch.values import ReplicaSpec, Row


class ReplicaActor:
    """Thin: everything it does is the supervisor's."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._members = Members(spec) if len(spec.nodes) > 1 else None
        self._supervisor = Supervisor(spec, members=self._members)
        self._supervisor.start()

    def spec(self) -> ReplicaSpec:
        """What it was started as."""
        return self._supervisor.spec

    def report(self) -> Row:
        """A row of ``status``."""
        return {**self._supervisor.report(), "ray_node": ranks.seen_on_node()["node"]}

    def tail(self, lines: int = LINES_SHOWN) -> tuple[str, ...]:
        """The last lines of its engine's log."""
        return self._supervisor.tail(lines)

    def environment(self) -> dict[str, str]:
        """What the actor itself sees of its devices."""
        return ranks.seen()

    def environments(self) -> list[dict[str, str]]:
        """The same of every rank of its group, with Ray's ids of their nodes."""
        others = [] if self._members is None else self._members.environments()
        return [ranks.seen_on_node(), *others]

    def in_flight(self) -> int | None:
        """Requests at work in its engine; None where it does not tell."""
        return self._supervisor.in_flight()

    def stop(self) -> Row:
        """End the engine, within its grace."""
        return self._supervisor.stop()


def start(ray: Any, spec: ReplicaSpec) -> Any:
    """The actor of a replica, asked for under its name at its exact place.

    It is detached: it outlives the launch that started it, and restarts with its worker. The places
    of a group over several nodes are kept together, by a placement group of the same name.
    """
    said = {
        "name": spec.actor_name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        **ranks.options(spec, 0, _group(ray, spec) if len(spec.nodes) > 1 else None),
    }
    return ray.remote(ReplicaActor).options(**said).remote(spec)


def _group(ray: Any, spec: ReplicaSpec) -> Any:
    with suppress(ValueError):  # there is none of that name yet
        return ray.util.get_placement_group(spec.actor_name)
    return ray.util.placement_group(
        ranks.bundles(spec), strategy="PACK", name=spec.actor_name, lifetime="detached"
    )


def end(ray: Any, name: str, handle: Any) -> None:
    """End a replica's actor of that name for good, and give up the places of its group."""
    if handle is not None:
        ray.kill(handle, no_restart=True)
    with suppress(ValueError):  # in one node there is no group
        ray.util.remove_placement_group(ray.util.get_placement_group(name))


def probe_resources(node: str) -> dict[str, float]:
    """Ray's resources of a task that looks at a node."""
    return {host_resource(node): HOST_PART}
