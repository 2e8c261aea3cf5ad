"""Small fleets, deployments and placements for tests, one readable line each.

>>> a100 = gpu("a100", mig="std8")
>>> two = fleet(node("n0", a100, price=2.0), node("n1", a100, price=1.0))
>>> chat = deployment("chat", rps=3)
>>> small = candidate("chat", a100, profile="1g.10gb", rps=1)
>>> asked = problem(two, [chat], [small])
>>> done = place(replica("chat/0", "n0/0", mig="1g.10gb@6"), empty=["n0/0 3g.40gb@0"])
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from optimizer.domain.config import Candidate, ReplicaConfig, Shape
from optimizer.domain.fleet import Device, Fleet, Node, Sharing
from optimizer.domain.gpu import Gpu, MigProfile, MigTable, PlacedProfile, Use
from optimizer.domain.placement import Instance, Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import MIB_PER_GIB, scaled, scaled_down, scaled_up
from optimizer.domain.workload import Demand, Deployment

# (compute slices, memory slices, starts, max instances) of the plain profiles, and 1g with double
# memory; the grid that A100, H100 and H200 share (NVIDIA MIG User Guide; nvidia-smi mig -lgipp).
STD8 = (
    (1, 1, (0, 1, 2, 3, 4, 5, 6), 7),
    (1, 2, (0, 2, 4, 6), 4),
    (2, 2, (0, 2, 4), 3),
    (3, 4, (0, 4), 2),
    (4, 4, (0,), 1),
    (7, 8, (0,), 1),
)
STD4 = ((1, 1, (0, 1, 2, 3), 4), (2, 2, (0, 2), 2), (4, 4, (0,), 1))


def mig_table(kind: str, memory_gib: int) -> MigTable:
    """``std8``: five plain profiles, 1g double; ``std8+me``: media engines too; ``std4``: A30."""
    rows, slices = (STD4, 4) if kind == "std4" else (STD8, 8)
    media = kind == "std8+me"
    profiles = []
    for compute, memory, starts, most in rows:
        name = f"{compute}g.{memory * memory_gib // slices}gb"
        whole = memory == slices
        profile = MigProfile(
            name,
            compute,
            memory,
            starts,
            most,
            memory_mib=memory * memory_gib * MIB_PER_GIB // slices,
            engines=(("ofa", 1),) if media and whole else (),
        )
        profiles.append(profile)
        if media and (compute, memory) == (1, 1):
            profiles.append(
                replace(profile, name=f"{name}+me", max_instances=1, engines=(("ofa", 1),))
            )
    return MigTable(4 if kind == "std4" else 7, slices, tuple(profiles))


def gpu(
    name: str = "toy",
    *,
    memory_gib: int = 80,
    bandwidth_gbs: float = 2000,
    mig: str | None = None,
    **other: Any,
) -> Gpu:
    """A product whose usable memory is exactly ``memory_gib``; ``mig`` as in ``mig_table``."""
    return Gpu(
        name=name,
        vendor="nvidia",
        architecture="toy",
        compute_capability="8.0",
        memory_gb=memory_gib * 1.073741824,
        memory_bandwidth_gbs=bandwidth_gbs,
        memory_mib_usable=memory_gib * MIB_PER_GIB,
        mig=mig_table(mig, memory_gib) if mig else None,
        **other,
    )


def a100() -> Gpu:
    """80 GiB in eight memory slices: 1g.10gb, 1g.20gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb."""
    return gpu("a100", mig="std8")


def a30_like() -> Gpu:
    """24 GiB in four slices: 1g.6gb, 2g.12gb, 4g.24gb."""
    return gpu("a30", memory_gib=24, bandwidth_gbs=900, mig="std4")


def node(
    name: str = "n0",
    product: Gpu | None = None,
    gpus: int = 1,
    *,
    price: float | None = 1.0,
    sharing: str | None = None,
    cordoned_gpus: Iterable[int] = (),
    cpu_cores: float | None = None,
    memory_gib: float | None = None,
    **other: Any,
) -> Node:
    """A machine; ``sharing`` in words ("mig whole"), by default as documents have it."""
    product = product or gpu()
    words = sharing or ("mig whole" if product.mig else "whole shared")
    return Node(
        name=name,
        gpu=product,
        gpus=gpus,
        price_micros_per_gpu_hour=None if price is None else scaled(price, 1_000_000),
        sharing=tuple(Sharing(word) for word in words.split()),
        cpu_millicores=None if cpu_cores is None else scaled_down(cpu_cores, 1000),
        host_memory_mib=None if memory_gib is None else scaled_down(memory_gib, MIB_PER_GIB),
        devices=other.pop("devices", ()) or tuple(Device(i, cordoned=True) for i in cordoned_gpus),
        **other,
    )


def fleet(*nodes: Node, **other: Any) -> Fleet:
    """A fleet of these nodes; of one toy node when none is given."""
    return Fleet("toy", nodes or (node(),), **other)


def deployment(
    name: str = "chat",
    *,
    rps: float | None = None,
    replicas: int | None = None,
    max_replicas: int | None = None,
    cpu_cores: float = 0,
    memory_gib: float = 0,
    **other: Any,
) -> Deployment:
    """Demand of ``rps``, or ``replicas`` copies when no rate is given; both: rate and minimum."""
    if replicas is None:
        replicas = 1 if rps is None else 0
    return Deployment(
        name=name,
        demand=None if rps is None else Demand(scaled_up(rps, 1000)),
        min_replicas=replicas,
        max_replicas=max_replicas,
        host_cpu_millicores=scaled_up(cpu_cores, 1000),
        host_memory_mib=scaled_up(memory_gib, MIB_PER_GIB),
        **other,
    )


def use(memory_gib: float = 0, bandwidth_gbs: float = 0, compute: float = 0) -> Use:
    """GiB, GB/s and a fraction of the SMs."""
    return Use(
        scaled_up(memory_gib, MIB_PER_GIB),
        scaled_up(bandwidth_gbs, 1000),
        scaled_up(compute, 1_000_000),
    )


def candidate(
    name: str = "chat",
    product: Gpu | None = None,
    *,
    profile: str | None = None,
    gpus: int | None = None,
    share: Use | None = None,
    rps: float | None = None,
    load_gib: float = 1,
    takes: Use | None = None,
    config: ReplicaConfig | None = None,
    **other: Any,
) -> Candidate:
    """One way to run ``name``: in a MIG ``profile``, on ``gpus`` whole GPUs, or in a ``share``."""
    product = product or gpu()
    if profile is not None:
        shape = Shape(Sharing.MIG, 1, profile)
    elif share is not None:
        shape = Shape(Sharing.SHARED, 1, None, share)
    else:
        shape = Shape(Sharing.WHOLE, gpus or 1, stages=config.pipeline_parallel if config else 1)
    return Candidate(
        deployment=name,
        gpu=product.name,
        shape=shape,
        use=takes or share or Use(),
        config=config or ReplicaConfig(tensor_parallel=gpus or 1),
        capacity_mrps=None if rps is None else scaled_down(rps, 1000),
        load_mib=scaled_up(load_gib, MIB_PER_GIB),
        **other,
    )


def problem(
    machines: Fleet,
    deployments: Sequence[Deployment],
    candidates: Iterable[Candidate] = (),
    current: Placement | None = None,
) -> PlacementProblem:
    """A placement problem; candidates are sorted to their deployments."""
    by_name: dict[str, tuple[Candidate, ...]] = {d.name: () for d in deployments}
    for one in candidates:
        by_name[one.deployment] = (*by_name.get(one.deployment, ()), one)
    return PlacementProblem(machines, tuple(deployments), by_name, current)


def placed(text: str) -> PlacedProfile:
    """``3g.40gb@4`` as a value."""
    profile, _, start = text.partition("@")
    return PlacedProfile(int(start), profile)


def replica(
    id: str,
    *gpus: str,
    mig: str | None = None,
    share: Use | None = None,
    config: ReplicaConfig | None = None,
) -> Replica:
    """``replica("chat/0", "n0/0", mig="3g.40gb@4")``; whole GPUs without ``mig`` and ``share``."""
    return Replica(
        id=id,
        deployment=id.rsplit("/", 1)[0],
        gpus=gpus,
        mig=placed(mig) if mig else None,
        share=share,
        config=config or ReplicaConfig(tensor_parallel=max(1, len(gpus))),
    )


def instance(text: str) -> Instance:
    """``n0/0 3g.40gb@4``: an instance that stands empty."""
    where, _, what = text.partition(" ")
    return Instance(where, placed(what))


def place(*replicas: Replica, empty: Iterable[str] = ()) -> Placement:
    """A placement of these replicas, and instances that stand empty (``n0/0 3g.40gb@4``)."""
    return Placement(replicas, tuple(instance(text) for text in empty))
