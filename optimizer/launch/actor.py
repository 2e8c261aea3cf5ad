"""The actor that stands for one replica on Ray: it runs on the replica's node, holds its devices
and supervises its engine."""

import os
from typing import Any

from optimizer.launch.devices import HOST_PART, host_resource
from optimizer.launch.session import NAMESPACE
from optimizer.launch.supervisor import LINES_SHOWN, Supervisor
from optimizer.launch.values import ReplicaSpec, Row

SEEN = ("CUDA_VISIBLE_DEVICES", "FLEETSLICE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES")


class ReplicaActor:
    """Thin: everything it does is the supervisor's."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._supervisor = Supervisor(spec)
        self._supervisor.start()

    def spec(self) -> ReplicaSpec:
        """What it was started as."""
        return self._supervisor.spec

    def report(self) -> Row:
        """A row of ``status``."""
        return self._supervisor.report()

    def tail(self, lines: int = LINES_SHOWN) -> tuple[str, ...]:
        """The last lines of its engine's log."""
        return self._supervisor.tail(lines)

    def environment(self) -> dict[str, str]:
        """What the actor itself sees of its devices."""
        return seen()

    def environments(self) -> list[dict[str, str]]:
        """The same with the Ray node it is on, of every rank of its group."""
        return [seen_on_node()]

    def in_flight(self) -> int | None:
        """Requests at work in its engine; None where it does not tell."""
        return self._supervisor.in_flight()

    def stop(self) -> Row:
        """End the engine, within its grace."""
        return self._supervisor.stop()


def seen() -> dict[str, str]:
    """What this process sees of its devices."""
    return {name: os.environ[name] for name in SEEN if name in os.environ}


def seen_on_node() -> dict[str, str]:
    """The same with Ray's id of the node."""
    import ray

    return {**seen(), "node": ray.get_runtime_context().get_node_id()}


def options(spec: ReplicaSpec) -> dict[str, Any]:
    """Ray's options for the actor of a replica: its name, its exact place, what it sees.

    It is detached: it outlives the launch that started it, and restarts with its worker.
    """
    return {
        "name": spec.actor_name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": 0,
        "num_gpus": 0,
        "resources": dict(spec.resources),
        "runtime_env": {
            "env_vars": {
                "CUDA_VISIBLE_DEVICES": spec.visible,
                "FLEETSLICE_DEVICES": ",".join(spec.devices),
                # Without it Ray reorders several devices, and may cut them.
                "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            }
        },
    }


def probe_resources(node: str) -> dict[str, float]:
    """Ray's resources of a task that looks at a node."""
    return {host_resource(node): HOST_PART}
