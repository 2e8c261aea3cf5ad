"""A plan's devices in Ray's words: every GPU is a resource of its own.

Ray packs fractions of GPUs itself and would break a feasible plan, so every GPU is a resource
``dev:<node>/<index>`` with the amount 1, and a replica takes its part of exactly the GPUs that the
plan names: all of a whole GPU, its memory slices of a MIG GPU, its share's part of a shared one.
Layouts may change later without a restart of Ray's node. ``host:<node>`` says which machine of the
fleet a Ray node is.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Replica, node_of
from optimizer.domain.plan import GpuPlan, Plan

# Ray counts in steps of 1e-4; rounding down keeps the parts of one GPU within it.
STEP = 10_000
HOST_PART = 1 / STEP
SEPARATOR = ":"


def device(replica: Replica, gpu: str) -> str:
    """``n1/0``, or ``n1/3:3g.40gb@4`` for a MIG instance."""
    if replica.mig is None:
        return gpu
    return f"{gpu}{SEPARATOR}{replica.mig.profile}@{replica.mig.start}"


def device_resource(gpu: str) -> str:
    """The name of a GPU among Ray's resources."""
    return f"dev:{gpu}"


def host_resource(node: str) -> str:
    """The name of a node among Ray's resources."""
    return f"host:{node}"


def clashes(replicas: Sequence[Replica]) -> list[str]:
    """Devices that two replicas would hold at once, though neither is a share."""
    holders: dict[str, list[str]] = {}
    for replica in replicas:
        for gpu in replica.gpus if replica.share is None else ():
            holders.setdefault(device(replica, gpu), []).append(replica.id)
    return [
        f"{' and '.join(ids)} are both placed on {name}"
        for name, ids in sorted(holders.items())
        if len(ids) > 1
    ]


def resources(replica: Replica, gpus: Mapping[str, GpuPlan]) -> tuple[tuple[str, float], ...]:
    """Ray's resources that hold a replica to its nodes and devices."""
    parts = [(device_resource(g), _part(replica, gpus[g])) for g in replica.gpus]
    return (*((host_resource(node), HOST_PART) for node in replica.nodes), *parts)


def _part(replica: Replica, gpu: GpuPlan) -> float:
    """The part of one GPU that the replica takes, in Ray's steps, rounded down."""
    if replica.share is not None:
        part = replica.share.memory_mib * STEP // max(1, gpu.room.memory_mib)
    elif replica.mig is not None:
        slices = _memory_slices(replica.mig, gpu)
        if slices and gpu.memory_slices:
            part = slices * STEP // gpu.memory_slices
        else:
            part = STEP // max(1, len(gpu.instances))
    else:
        part = STEP
    return min(STEP, max(1, part)) / STEP


def _memory_slices(placed: PlacedProfile, gpu: GpuPlan) -> int:
    """Memory slices of an instance, also of one that the plan's end does not have; 0: unknown.

    Of the latter by its name: ``3g.40gb`` is four slices of 10 GB.
    """
    known = [i.memory_slices for i in gpu.instances if i.placed.profile == placed.profile]
    if known and known[0]:
        return known[0]
    said = re.search(r"\.(\d+)gb", placed.profile)
    if said is None or not gpu.room.memory_mib or not gpu.memory_slices:
        return 0
    return max(1, round(int(said[1]) * 1024 * gpu.memory_slices / gpu.room.memory_mib))


def visible(devices: Sequence[str]) -> str:
    """What CUDA_VISIBLE_DEVICES says for devices of one node; a MIG instance goes by the plan's
    name until its UUID is asked on the node, so that nothing else can be seen meanwhile."""
    return ",".join(d if SEPARATOR in d else d.rpartition("/")[2] for d in devices)


def declared(plan: Plan, node: str | None = None) -> dict[str, float]:
    """Ray's resources of the plan's GPUs, and of the nodes that hold them; of one node if named."""
    found = {}
    for gpu in plan.gpus:
        home = node_of(gpu.id)
        if node in (None, home):
            found[host_resource(home)] = 1.0
            found[device_resource(gpu.id)] = 1.0
    return dict(sorted(found.items()))


def node_setup(plan: Plan, head: str = "HEAD:6379") -> tuple[str, ...]:
    """The ``ray start`` line of each node of the plan, by node; ``head`` is the cluster's address.

    Ray decides with it what may run where. With ``--num-gpus=0`` it hands the devices to nobody by
    its own counting, which knows neither instances nor who is where.
    """
    nodes = sorted({node_of(gpu.id) for gpu in plan.gpus})
    lines = []
    for node in nodes:
        said = json.dumps({name: int(amount) for name, amount in declared(plan, node).items()})
        line = ["ray", "start", f"--address={head}", "--num-gpus=0", f"--resources={said}"]
        lines.append(f"{node}: RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token {shlex.join(line)}")
    return tuple(lines)
