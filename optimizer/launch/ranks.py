"""What each rank of a replica gets on its node: Ray's resources, the devices that it sees, and the
environment of its engine. A replica in one node is a group of one rank.
"""

import os
from collections.abc import Mapping
from typing import Any

from optimizer.launch.devices import device_resource, host_resource, visible
from optimizer.launch.environment import engine_environment
from optimizer.launch.nvml import visible_devices
from optimizer.launch.processes import MARK
from optimizer.launch.values import SIMULATED, ReplicaSpec

SEEN = ("CUDA_VISIBLE_DEVICES", "FLEETSLICE_DEVICES", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES")


def bundles(spec: ReplicaSpec) -> list[dict[str, float]]:
    """Ray's resources of each rank, by node in order."""
    held = dict(spec.resources)
    found = []
    for node in spec.nodes:
        gpus = {device_resource(one.partition(":")[0]) for one in spec.part(node)}
        found.append({name: held[name] for name in (host_resource(node), *sorted(gpus))})
    return found


def options(spec: ReplicaSpec, rank: int, group: Any = None) -> dict[str, Any]:
    """Ray's options for the actor of one rank: its exact place, what it sees.

    ``group``: Ray's placement group, which keeps the places of all ranks or of none.
    """
    devices = spec.part(spec.nodes[rank])
    said: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": 0,
        "resources": bundles(spec)[rank],
        "runtime_env": {
            "env_vars": {
                "CUDA_VISIBLE_DEVICES": visible(devices),
                "FLEETSLICE_DEVICES": ",".join(devices),
                # Without it Ray reorders several devices, and may cut them.
                "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            }
        },
    }
    if group is not None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        said["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, rank)
    return said


def environment(spec: ReplicaSpec, base: Mapping[str, str], node: str) -> dict[str, str]:
    """The engine's environment on one node of the replica. Raises DeviceUnknown."""
    devices = spec.part(node)
    real = spec.engine != SIMULATED
    said = {
        **dict(spec.env),
        "CUDA_VISIBLE_DEVICES": visible_devices(devices) if real else visible(devices),
        "FLEETSLICE_DEVICES": ",".join(devices),
        "FLEETSLICE_REPLICA": spec.id,
        MARK: spec.run,
    }
    return engine_environment(base, said)


def seen() -> dict[str, str]:
    """What this process sees of its devices."""
    return {name: os.environ[name] for name in SEEN if name in os.environ}


def seen_on_node() -> dict[str, str]:
    """The same with Ray's id of the node."""
    import ray

    return {**seen(), "node": ray.get_runtime_context().get_node_id()}
