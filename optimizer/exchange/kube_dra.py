"""Dynamic resource allocation: ResourceSlices say which GPUs there are, claims who holds them.

Attribute and device names are those of NVIDIA's DRA driver (dra-driver-nvidia-gpu,
cmd/gpu-kubelet-plugin: deviceinfo.go, partitions.go); the objects are resource.k8s.io/v1, and
v1beta1, which wraps a device's facts in ``basic``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.exchange import kube_objects as kube
from optimizer.exchange.imported import CannotRead, Input
from optimizer.exchange.kube_nodes import KubeNode, Told, node_entry
from optimizer.exchange.products import product

DRIVER = "gpu.nvidia.com"
_BUS = ("resource.kubernetes.io/pciBusID", "pcieBusID", "pciBusID")
_SLICE = re.compile(r"memory-?[sS]lice-?(\d+)$")  # memorySlice3, memory-slice-3
_MINOR = re.compile(r"gpu-(\d+)(?:-|$)")
Key = tuple[str, str]  # pool and device


@dataclass(frozen=True, slots=True)
class Device:
    """A whole GPU, or a MIG instance on it; ``made``: it exists, and is no mere possibility."""

    node: str
    index: int
    placed: PlacedProfile | None = None
    made: bool = True


@dataclass(slots=True)
class _Seen:
    """What the slices of one node say before anything is concluded."""

    wholes: dict[str, kube.Object] = field(default_factory=dict)  # by device name
    parts: dict[str, kube.Object] = field(default_factory=dict)
    pools: dict[str, str] = field(default_factory=dict)  # device name: pool


def offered(
    found: Sequence[kube.Object], nodes: dict[str, KubeNode], given: Input, told: Told
) -> dict[Key, Device]:
    """The devices of the slices; their nodes are added to ``nodes``. Raises CannotRead."""
    devices: dict[Key, Device] = {}
    raw = {str(kube.at(o, "metadata", "name")): o for o in found if o.get("kind") == "Node"}
    for name, seen in sorted(_by_node(found, told).items()):
        whose = {"kind": "Node", "metadata": {"name": name}}
        node = _node(name, seen, raw.get(name, whose), given, told)
        if node is None:
            continue
        if name not in raw:
            told.unsaid.append(f"{name}: its labels, CPU and memory; add kubectl get nodes")
        nodes[name] = node
        indexes = _indexes(seen)
        for device in seen.wholes:
            devices[seen.pools[device], device] = Device(name, indexes[_parent(seen, device)])
        for device, facts in seen.parts.items():
            devices[seen.pools[device], device] = Device(
                name,
                indexes[_parent(seen, device)],
                _placed(name, device, facts, node.gpu),
                made=_attribute(facts, "uuid") is not None,
            )
        _lay_out(node, [d for d in devices.values() if d.node == name and d.made])
    return devices


def sliced(found: Sequence[kube.Object]) -> set[str]:
    """The nodes whose GPUs ResourceSlices tell."""
    return {
        str(kube.at(o, "spec", "nodeName"))
        for o in found
        if o.get("kind") == "ResourceSlice" and kube.text(o, "spec", "driver") == DRIVER
    }


def _by_node(found: Sequence[kube.Object], told: Told) -> dict[str, _Seen]:
    """The newest generation of each pool, whole or refused."""
    slices = [
        o
        for o in found
        if o.get("kind") == "ResourceSlice" and kube.text(o, "spec", "driver") == DRIVER
    ]
    newest: dict[str, int] = {}
    for one in slices:
        pool = str(kube.text(one, "spec", "pool", "name"))
        newest[pool] = max(newest.get(pool, 0), _generation(one))
    seen: dict[str, _Seen] = {}
    for pool, generation in sorted(newest.items()):
        parts = [
            o
            for o in slices
            if kube.text(o, "spec", "pool", "name") == pool and _generation(o) == generation
        ]
        wanted = kube.count(kube.text(parts[0], "spec", "pool", "resourceSliceCount")) or 1
        if len(parts) < wanted:
            raise CannotRead(
                f"pool {pool}: {len(parts)} of its {wanted} ResourceSlices; capture them all"
            )
        for one in parts:
            name = kube.text(one, "spec", "nodeName")
            if name is None:
                told.left_out.append(f"pool {pool}: its devices belong to no one node")
                continue
            _take(one, pool, seen.setdefault(name, _Seen()), told)
    return seen


def _generation(one: kube.Object) -> int:
    return kube.count(kube.text(one, "spec", "pool", "generation"))


def _take(one: kube.Object, pool: str, seen: _Seen, told: Told) -> None:
    for device in kube.entries(one, "spec", "devices"):
        name = str(device.get("name"))
        facts = {**kube.mapping(device, "basic"), **device}
        kind = _attribute(facts, "type")
        seen.pools[name] = pool
        match kind:
            case "gpu":
                seen.wholes[name] = facts
            case "mig":
                seen.parts[name] = facts
            case _:
                told.left_out.append(f"pool {pool}: device {name} of type {kind}")


def _attribute(facts: kube.Object, name: str) -> str | None:
    """The value of an attribute, whatever its type; the driver's domain may stand before it."""
    attributes = kube.mapping(facts, "attributes")
    value = attributes.get(name, attributes.get(f"{DRIVER}/{name}"))
    if not isinstance(value, Mapping) or not value:
        return None
    return str(next(iter(value.values())))


def _parent(seen: _Seen, device: str) -> str:
    """The UUID of the GPU that a device is or lies on, else what its name says of it."""
    facts = seen.parts.get(device) or seen.wholes[device]
    said = _attribute(facts, "parentUUID" if device in seen.parts else "uuid")
    minor = _MINOR.match(device)
    return said or (minor[0].rstrip("-") if minor else device)


def _indexes(seen: _Seen) -> dict[str, int]:
    """nvidia-smi's index of each GPU: they count in the order of their PCI addresses.

    Where a slice does not say those, in the order of the minor numbers in device names.
    """
    order: dict[str, tuple[str, int]] = {}
    for device in (*seen.wholes, *seen.parts):
        facts = seen.wholes.get(device) or seen.parts[device]
        where = next((b for name in _BUS if (b := _attribute(facts, name))), "")
        minor = _MINOR.match(device)
        known = order.get(_parent(seen, device), ("", 0))
        order[_parent(seen, device)] = (known[0] or where, int(minor[1]) if minor else 0)
    if not all(where for where, _ in order.values()):
        order = {gpu: ("", minor) for gpu, (_, minor) in order.items()}
    return {gpu: index for index, gpu in enumerate(sorted(order, key=lambda g: (order[g], g)))}


def _node(name: str, seen: _Seen, raw: kube.Object, given: Input, told: Told) -> KubeNode | None:
    """The node with its GPUs, none of them divided yet."""
    every = [*seen.wholes.values(), *seen.parts.values()]
    spellings = sorted({s for facts in every if (s := _attribute(facts, "productName"))})
    if len(spellings) != 1:
        seen_ones = ", ".join(spellings) or "none"
        told.left_out.append(f"node {name}: its ResourceSlices name {seen_ones} as products")
        return None
    gpu = product(spellings[0], given.gpus)
    if gpu is None:
        told.left_out.append(
            f"node {name}: no datasheet of {spellings[0]}; write one as gpus/NAME.yaml"
        )
        return None
    indexes = _indexes(seen)
    labels = kube.mapping(raw, "metadata", "labels")
    node = KubeNode(name, gpu, len(indexes), labels, exact=True)
    node.undivided = frozenset(range(node.gpus))
    for device, facts in seen.wholes.items():
        index = str(indexes[_parent(seen, device)])
        uuid = _attribute(facts, "uuid")
        node.devices[index] = {"uuid": uuid} if uuid else {}
        tainted = [
            str(t.get("key"))
            for t in kube.entries(facts, "taints")
            if t.get("effect") in ("NoSchedule", "NoExecute")
        ]
        if tainted:
            node.devices[index]["cordoned"] = True
            told.notes.append(f"{name}/{index} is cordoned: taint {', '.join(tainted)}")
    for device in seen.parts:
        parent = _parent(seen, device)
        if parent.startswith("GPU-"):
            node.devices.setdefault(str(indexes[parent]), {}).setdefault("uuid", parent)
    if seen.parts and not any(_attribute(f, "uuid") for f in seen.parts.values()):
        told.notes.append(
            f"node {name}: its DRA driver makes MIG instances when pods claim them; leave MIG to it"
        )
    node.entry = node_entry(node, raw, told)
    return node


def _placed(node: str, device: str, facts: kube.Object, gpu: Gpu) -> PlacedProfile:
    """Profile and start: by the memory slices that the device takes. Raises CannotRead."""
    name = _attribute(facts, "profile") or ""
    profile = gpu.mig.profile(name) if gpu.mig else None
    if profile is None:
        raise CannotRead(f"node {node}: device {device}: {gpu.name} has no profile {name!r}")
    taken = sorted({int(m[1]) for n in _amounts(facts) if (m := _SLICE.match(n))})
    if not taken:
        raise CannotRead(f"node {node}: device {device} does not say which memory slices it takes")
    whole = taken == list(range(taken[0], taken[0] + profile.memory_slices))
    if not whole or taken[0] not in profile.starts:
        raise CannotRead(
            f"node {node}: device {device}: {profile.name} takes {profile.memory_slices} memory "
            f"slices from one of {', '.join(map(str, profile.starts))}, not {taken}"
        )
    return PlacedProfile(taken[0], profile.name)


def _amounts(facts: kube.Object) -> Iterator[str]:
    yield from kube.mapping(facts, "capacity")
    for consumed in kube.entries(facts, "consumesCounters"):
        yield from kube.mapping(consumed, "counters")


def _lay_out(node: KubeNode, made: Sequence[Device]) -> None:
    """The instances that stand on each GPU of the node. Raises CannotRead where they overlap."""
    for device in made:
        if device.placed is not None:
            known = node.layouts.get(device.index, ())
            node.layouts[device.index] = tuple(sorted({*known, device.placed}))
    node.undivided -= set(node.layouts)
    for index, layout in sorted(node.layouts.items()):
        faults = node.gpu.mig.faults(layout) if node.gpu.mig else []
        if faults:
            raise CannotRead(f"{node.name}/{index}: not possible on {node.gpu.name}: {faults[0]}")
        entry = node.devices.setdefault(str(index), {})
        entry["mig_enabled"] = True
        entry["layout"] = [{"profile": p.profile, "start": p.start} for p in layout]


@dataclass(frozen=True, slots=True)
class Claim:
    """An allocated claim: its devices of our driver, and the pods that it is reserved for."""

    name: str
    devices: tuple[Device, ...]
    pods: tuple[str, ...]


def claims(
    found: Sequence[kube.Object],
    devices: Mapping[Key, Device],
    nodes: Mapping[str, KubeNode],
    told: Told,
) -> dict[str, Claim]:
    """Allocated claims by ``namespace/name``; the instances made for them are laid out."""
    allocated: dict[str, Claim] = {}
    for one in (o for o in found if o.get("kind") == "ResourceClaim"):
        space = str(kube.at(one, "metadata", "namespace") or "default")
        name = f"{space}/{kube.at(one, 'metadata', 'name')}"
        results = [
            r
            for r in kube.entries(one, "status", "allocation", "devices", "results")
            if r.get("driver") == DRIVER and r.get("adminAccess") is not True
        ]
        keys = [(str(r.get("pool")), str(r.get("device"))) for r in results]
        strange = [f"{pool}/{device}" for pool, device in keys if (pool, device) not in devices]
        if strange:
            told.left_out.append(f"claim {name}: {strange[0]} is in no ResourceSlice given")
            continue
        if kube.at(one, "status", "allocation") is not None:
            reserved = kube.entries(one, "status", "reservedFor")
            pods = tuple(f"{space}/{r.get('name')}" for r in reserved)
            allocated[name] = Claim(name, tuple(devices[k] for k in keys), pods)
    for claim in allocated.values():
        for device in claim.devices:
            _lay_out(nodes[device.node], [device])
    return allocated


def of_pod(pod: kube.Object, allocated: Mapping[str, Claim]) -> tuple[list[Claim], str]:
    """The claims that the pod holds devices by, or why they cannot be told."""
    held = []
    for name in _claim_names(pod):
        claim = allocated.get(name)
        if claim is None:
            return [], (
                "its resource claim (DRA) is not among the allocated ones of the files; add "
                "kubectl get resourceslices,resourceclaims -A -o json"
            )
        if claim.devices and len(claim.pods) > 1:
            return [], f"shares its resource claim {claim.name} with other pods"
        held.append(claim)
    return held, ""


def known(pod: kube.Object, allocated: Mapping[str, Claim]) -> bool:
    """Whether the files say what each claim of the pod holds."""
    return all(name in allocated for name in _claim_names(pod))


def claims_of_devices(pod: kube.Object, allocated: set[str]) -> set[str]:
    """What the pod itself calls those claims."""
    asked = [str(c.get("name")) for c in kube.entries(pod, "spec", "resourceClaims")]
    return {name for name, full in zip(asked, _claim_names(pod), strict=False) if full in allocated}


def _claim_names(pod: kube.Object) -> list[str]:
    """``namespace/name`` of the pod's claims in its order, those made of templates too."""
    space = str(kube.at(pod, "metadata", "namespace") or "default")
    made = {
        str(s.get("name")): s.get("resourceClaimName")
        for s in kube.entries(pod, "status", "resourceClaimStatuses")
    }
    names = [
        c.get("resourceClaimName") or made.get(str(c.get("name")))
        for c in kube.entries(pod, "spec", "resourceClaims")
    ]
    extended = kube.text(pod, "status", kube.EXTENDED, "resourceClaimName")
    return [f"{space}/{name}" for name in (*names, *([extended] if extended else []))]


def close_unknown(
    allocated: Mapping[str, Claim], known: set[str], nodes: Mapping[str, KubeNode], told: Told
) -> None:
    """Devices of claims that no replica stands for are taken; nothing more goes on their GPUs."""
    for name, claim in sorted(allocated.items()):
        if name in known:
            continue
        for device in claim.devices:
            entry = nodes[device.node].devices.setdefault(str(device.index), {})
            entry["cordoned"] = True
            told.notes.append(f"{device.node}/{device.index} is cordoned: claim {name} holds it")
