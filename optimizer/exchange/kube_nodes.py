"""Nodes of Kubernetes to nodes of a Fleet: products, GPUs, and how they are divided."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.exchange import kube_objects as kube
from optimizer.exchange.imported import MOST_GPUS, Input
from optimizer.exchange.products import placements, product

LABEL = "nvidia.com/gpu."
_SINGLE = re.compile(r"^(?P<product>.+)-MIG-(?P<profile>\d+g\.\d+gb.*)$")
_ZONES = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
_KEPT = re.compile(
    r"(?:^|/)(?:mig\.strategy|instance-type|nodepool|gke-nodepool|nodegroup|agentpool|pool|capacity-type)$"
)
GKE = "cloud.google.com/gke-"
# What Google calls the accelerators of its machine families (A2, A3, A4, G2, N1).
GKE_PRODUCTS = {
    "nvidia-a100-80gb": "a100-80gb-sxm",
    "nvidia-b200": "b200-180gb-sxm",
    "nvidia-h100-80gb": "h100-80gb-sxm",
    "nvidia-h100-mega-80gb": "h100-80gb-sxm",
    "nvidia-h200-141gb": "h200-141gb-sxm",
    "nvidia-l4": "l4",
    "nvidia-tesla-a100": "a100-40gb-sxm",
    "nvidia-tesla-t4": "t4",
}
_USUAL_TAINTS = {"nvidia.com/gpu", "sku", "node.kubernetes.io/unschedulable"}


@dataclass(slots=True)
class KubeNode:
    """A node, its product, and the MIG instances that its device plugin offers.

    ``layouts`` holds one layout per divided GPU, by index; positions are ours unless ``exact``.
    """

    name: str
    gpu: Gpu
    gpus: int
    labels: Mapping[str, Any]
    shared: bool = False
    single: str | None = None  # the profile that stands as nvidia.com/gpu
    layouts: dict[int, tuple[PlacedProfile, ...]] = field(default_factory=dict)
    undivided: frozenset[int] = frozenset()
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    exact: bool = False
    fixed: bool = False
    closed: int = 0  # undivided GPUs cordoned because nobody hands them out
    unknown: list[str] = field(default_factory=list)  # why nobody knows what is free there
    entry: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Told:
    """What an import has to say besides its documents."""

    unsaid: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_node(node: kube.Object, given: Input, told: Told) -> KubeNode | None:
    """The node, or None where it has no GPU or its GPUs cannot be told."""
    name = str(kube.at(node, "metadata", "name") or "")
    labels = kube.mapping(node, "metadata", "labels")
    capacity = kube.mapping(node, "status", "capacity")
    capacity = capacity or kube.mapping(node, "status", "allocatable")
    devices = {r: kube.count(n) for r, n in capacity.items() if kube.is_device(r)}
    strange = [r for r, n in sorted(capacity.items()) if kube.strange_device(r) and str(n) != "0"]
    if strange:
        told.notes.append(f"node {name}: resources that are not read: {', '.join(strange)}")
    if not any(devices.values()) and not kube.count(labels.get(f"{LABEL}count")):
        return None
    spelling = str(labels.get(f"{LABEL}product") or "") or _gke(labels)
    shared = spelling.endswith("-SHARED") or any(r.endswith(kube.SHARED) for r in devices)
    shared |= f"{GKE}gpu-sharing-strategy" in labels
    single = _SINGLE.match(spelling.removesuffix("-SHARED"))
    base = single["product"] if single else spelling.removesuffix("-SHARED")
    if base.endswith("-MIG-INVALID"):
        told.left_out.append(
            f"node {name}: {spelling}: strategy single found instances that are not alike; set "
            "strategy mixed, or make them alike"
        )
        return None
    gpu = _gpu(name, base, labels, given, told)
    if gpu is None:
        return None
    found = KubeNode(name, gpu, 0, labels, shared=shared)
    replicas = kube.count(labels.get(f"{LABEL}replicas"))
    found.shared |= replicas > 1
    if any(r.startswith(kube.MIG) and r.endswith(kube.SHARED) for r in devices):
        found.unknown.append("pods take its MIG instances in turns")
    if single:
        # Strategy single wants all instances of a node alike; a plan would mix them.
        found.fixed = True
        _single(found, kube.profile_of(single["profile"]), devices, given, told)
    else:
        _count(found, devices, given, told)
    if not found.gpus:
        return None
    _broken(found, node, told)
    found.entry = node_entry(found, node, told)
    return found


def _broken(found: KubeNode, node: kube.Object, told: Told) -> None:
    """Devices that the kubelet no longer hands out: unhealthy ones stay in the capacity alone."""
    capacity = kube.mapping(node, "status", "capacity")
    room = kube.mapping(node, "status", "allocatable")
    for resource in sorted(capacity):
        if not kube.is_device(resource) or resource not in room:
            continue
        lost = kube.count(capacity[resource]) - kube.count(room[resource])
        if lost <= 0:
            continue
        if resource == kube.GPU and not found.single and not found.shared:
            close(found, lost, f"{lost} of its {kube.GPU} are not allocatable", told)
        else:
            found.unknown.append(f"{lost} of its {resource} are not allocatable")


def close(found: KubeNode, lost: int, why: str, told: Told) -> None:
    """Cordons so many undivided GPUs of a node; which ones nobody said."""
    taken = sorted(found.undivided)[-lost:] if lost else []
    found.undivided, found.closed = found.undivided - set(taken), len(taken)
    for index in map(str, taken):
        found.devices[index] = found.devices.get(index, {}) | {"cordoned": True}
    if taken:
        which = ", ".join(map(str, taken))
        told.notes.append(f"node {found.name}: {why}; GPU {which} stands for them, cordoned")


def _gke(labels: Mapping[str, Any]) -> str:
    """The product in GPU Feature Discovery's words, by the labels of Google's node pools."""
    known = GKE_PRODUCTS.get(str(labels.get(f"{GKE}accelerator")), "")
    size = str(labels.get(f"{GKE}gpu-partition-size") or "")
    return f"{known}-MIG-{size}" if known and size else known


def _gpu(
    name: str, spelling: str, labels: Mapping[str, Any], given: Input, told: Told
) -> Gpu | None:
    if not spelling and given.gpu is None:
        told.left_out.append(
            f"node {name}: no label {LABEL}product, so its product is not known; run GPU Feature "
            "Discovery, or say --gpu PRODUCT"
        )
        return None
    asked = spelling or str(given.gpu)
    found = product(asked, given.gpus)
    if found is None:
        told.left_out.append(f"node {name}: no datasheet of {asked}; write one as gpus/NAME.yaml")
    return found


def _count(found: KubeNode, devices: Mapping[str, int], given: Input, told: Told) -> None:
    """Whole GPUs and slices, strategy none or mixed."""
    offered = devices.get(kube.GPU, 0)
    slices = {
        kube.profile_of(r): n
        for r, n in devices.items()
        if n and r.startswith(kube.MIG) and not r.endswith(kube.SHARED)
    }
    labelled = kube.count(found.labels.get(f"{LABEL}count"))
    found.gpus = labelled or given.count or 0
    if not found.gpus and not slices and not found.shared:
        found.gpus = offered
        told.notes.append(f"node {found.name}: no label {LABEL}count; its capacity was counted")
    if found.gpus > MOST_GPUS:
        told.left_out.append(f"node {found.name}: {found.gpus} GPUs are more than a node has")
        found.gpus = 0
        return
    if not found.gpus:
        told.left_out.append(
            f"node {found.name}: how many GPUs it has (label {LABEL}count); say --gpus N"
        )
        return
    if offered > found.gpus:
        found.shared = True
        told.notes.append(
            f"node {found.name}: offers {offered} x {kube.GPU} on {found.gpus} GPUs, so GPUs are "
            "shared there"
        )
    if found.shared:
        whole = found.gpus if not slices else 0
    else:
        whole = offered if slices or found.labels.get("nvidia.com/mig.strategy") else found.gpus
    hidden = 0
    if not slices and kube.GPU in devices and offered < found.gpus and not found.shared:
        hidden, whole = found.gpus - offered, found.gpus
    found.undivided = frozenset(range(whole))
    if hidden:
        why = f"{found.gpus} GPUs, and its device plugin offers {offered}: {hidden} may be broken"
        close(found, hidden, f"{why} or divided without instances", told)
    _divide(found, slices, told)


def _single(
    found: KubeNode, profile: str, devices: Mapping[str, int], given: Input, told: Told
) -> None:
    """Strategy single: every instance alike, offered as ``nvidia.com/gpu``."""
    mig = found.gpu.mig
    known = mig.profile(profile) if mig else None
    if known is None:
        told.left_out.append(f"node {found.name}: {found.gpu.name} has no profile {profile}")
        return
    instances = kube.count(found.labels.get(f"{LABEL}count")) or devices.get(kube.GPU, 0)
    each = known.max_instances
    found.gpus = given.count or -(-instances // each)
    if instances % each or given.count:
        told.notes.append(
            f"node {found.name}: {instances} x {known.name} were laid on {found.gpus} GPUs; the "
            "labels of strategy single do not say how many GPUs there are"
        )
    found.single = known.name
    told.notes.append(
        f"node {found.name}: strategy single wants all instances alike, so its layouts are fixed; "
        "change to strategy mixed to let plans change them"
    )
    _divide(found, {known.name: instances}, told)


def _divide(found: KubeNode, slices: Mapping[str, int], told: Told) -> None:
    """Layouts that hold those instances; the labels say neither GPU nor start."""
    divided = [i for i in range(found.gpus) if i not in found.undivided]
    mig = found.gpu.mig
    if not slices or mig is None:
        return
    names: list[str] = []
    for name, number in sorted(slices.items()):
        profile = mig.profile(name)
        if profile is None:
            told.left_out.append(f"node {found.name}: {found.gpu.name} has no profile {name}")
            found.unknown.append("its MIG instances cannot be told")
            return
        # More than can be are one too many, however many.
        names += [profile.name] * min(number, len(divided) * profile.max_instances + 1)
    layouts = pack(found.gpu, tuple(names), len(divided))
    if layouts is None:
        counts = ", ".join(f"{n} x {p}" for p, n in sorted(slices.items()))
        told.left_out.append(
            f"node {found.name}: its instances ({counts}): they do not fit {len(divided)} GPUs"
        )
        found.unknown.append("what it says of its MIG instances cannot be so")
        return
    found.layouts = dict(zip(divided, layouts, strict=True))


@lru_cache(maxsize=1024)
def pack(gpu: Gpu, names: tuple[str, ...], gpus: int) -> list[tuple[PlacedProfile, ...]] | None:
    """Legal layouts of so many GPUs that hold those profiles, alike where they can be alike.

    None where none was found: largest profiles first, each on the first GPU that still takes it.
    """
    if not gpus:
        return [] if not names else None
    kinds = sorted(set(names))
    if all(names.count(k) % gpus == 0 for k in kinds):
        each = [k for k in kinds for _ in range(names.count(k) // gpus)]
        alike = placements(gpu, each, most=1)
        if alike:
            return alike * gpus
    slices = {p.name: p.memory_slices for p in gpu.mig.profiles} if gpu.mig else {}
    held: list[list[str]] = [[] for _ in range(gpus)]
    for name in sorted(names, key=lambda n: (-slices.get(n, 0), n)):
        room = next((h for h in held if placements(gpu, [*h, name], most=1)), None)
        if room is None:
            return None
        room.append(name)
    return [placements(gpu, h, most=1)[0] for h in held]


def node_entry(found: KubeNode, node: kube.Object, told: Told) -> dict[str, Any]:
    """The node as a Fleet has it, without its devices."""
    entry: dict[str, Any] = {"name": found.name, "gpu": found.gpu.name, "gpus": found.gpus}
    zone = next((str(found.labels[z]) for z in _ZONES if found.labels.get(z)), None)
    rack = next(
        (str(v) for k, v in sorted(found.labels.items()) if k.endswith("/rack") or k == "rack"),
        None,
    )
    clique = str(found.labels.get(f"{LABEL}clique") or "")
    room = kube.mapping(node, "status", "allocatable") or kube.mapping(node, "status", "capacity")
    cores, memory = kube.quantity(room.get("cpu")), kube.quantity(room.get("memory"))
    entry |= {"mig_layouts": "fixed"} if found.fixed else {}
    entry |= {"rack": rack} if rack else {}
    entry |= {"zone": zone} if zone else {}
    entry |= {"nvlink_domain": clique} if clique else {}
    entry |= {"cpu_cores": round(cores, 3)} if cores else {}
    entry |= {"memory_gib": round(memory / 2**30, 2)} if memory else {}
    why = [*_closed(node), *found.unknown]
    if why:
        entry["cordoned"] = True
        told.notes.append(f"node {found.name} is cordoned: {', '.join(why)}")
    kept = {k: str(v) for k, v in sorted(found.labels.items()) if _KEPT.search(k) and str(v)}
    entry |= {"labels": kept} if kept else {}
    return entry


def _closed(node: kube.Object) -> list[str]:
    """Why nothing new may be placed there, as far as anyone can see from outside."""
    why = ["unschedulable"] if kube.at(node, "spec", "unschedulable") is True else []
    for taint in kube.entries(node, "spec", "taints"):
        key, effect = str(taint.get("key")), taint.get("effect")
        if effect in ("NoSchedule", "NoExecute") and key not in _USUAL_TAINTS:
            value = f"={taint['value']}" if taint.get("value") else ""
            why.append(f"taint {key}{value}")
    for condition in kube.entries(node, "status", "conditions"):
        if condition.get("type") == "Ready" and str(condition.get("status")) != "True":
            why.append("not ready")
    return list(dict.fromkeys(why))
