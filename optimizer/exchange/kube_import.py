"""Kubernetes: what kubectl prints of nodes and pods to a Fleet, its State and its Workloads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optimizer.domain import words
from optimizer.domain.gpu import PlacedProfile
from optimizer.exchange import kube_dra as dra
from optimizer.exchange import kube_objects as kube
from optimizer.exchange.imported import (
    MOST_GPUS,
    PRICES,
    CannotRead,
    File,
    Import,
    Imported,
    Input,
)
from optimizer.exchange.kube_nodes import KubeNode, Told, close, read_node
from optimizer.exchange.smi_import import import_nvidia_smi

FORMAT = "kubernetes"
DEPLOYMENT, TENANT = "fleetslice.io/deployment", "fleetslice.io/tenant"
_OVER = {"Succeeded", "Failed"}
_NO_NODE = (
    "no node with GPUs among the files; add kubectl get nodes -o json (tables and describe "
    "are not read)"
)
Shape = tuple[str, int]  # a MIG profile, or "" for whole GPUs; and how many


@dataclass(frozen=True, slots=True)
class _Pod:
    """A pod that holds GPUs."""

    name: str
    deployment: str
    tenant: str
    node: str | None
    shape: Shape
    asked: kube.Asked
    ours: bool  # fleetslice wrote its manifest
    raw: kube.Object
    held: tuple[dra.Device, ...] = ()  # by claims, which name their devices
    claims: tuple[str, ...] = ()


def import_kubernetes(given: Input) -> Import:
    """A fleet of the nodes with GPUs; with pods, what runs there and what should. CannotRead."""
    found, captures = kube.objects(given)
    told, pods_told = Told(), Told()
    found = kube.once(found, told.left_out.append)
    nodes, allocated = _offered(found, given, told)
    if not nodes:
        raise CannotRead(*(told.left_out or [_NO_NODE]))
    _measure(nodes, captures, given, told)
    raw_pods = [o for o in found if o.get("kind") == "Pod" and _lives(o)]
    pods = _pods(raw_pods, nodes, allocated, pods_told)
    dra.close_unknown(allocated, {c for p in pods for c in p.claims}, nodes, told)
    _close_shared(nodes, raw_pods, allocated, told)
    _take_host_room(nodes, raw_pods)
    replicas, empty = _placed(pods, nodes, pods_told)
    documents = [_fleet(given, nodes, told)]
    if any(n.layouts for n in nodes.values()) or replicas:
        claimed = sum(bool(p.held) for p in pods)
        documents.append(_state(given, replicas, empty, nodes, pods_told, bool(raw_pods), claimed))
    wanted = _workloads(pods, nodes, pods_told)
    if wanted:
        documents.append(_workloads_document(given, wanted))
    return Import(FORMAT, tuple(documents), (*told.left_out, *pods_told.left_out))


def running_pods(given: Input) -> dict[str, kube.Object]:
    """A running pod of each deployment, by the name that an import gives it. Raises CannotRead.

    Of a pod that holds its devices by claims, those claims are left out: a plan gives it others.
    """
    found, _ = kube.objects(given)
    told = Told()
    found = kube.once(found, told.left_out.append)
    nodes, allocated = _offered(found, given, told)
    raw_pods = [o for o in found if o.get("kind") == "Pod" and _lives(o)]
    pods = _pods(raw_pods, nodes, allocated, told)
    return {pod.deployment: _unclaimed(pod) for pod in reversed(pods)}


def _unclaimed(pod: _Pod) -> kube.Object:
    if not pod.held:
        return pod.raw
    gone = dra.claims_of_devices(pod.raw, set(pod.claims))
    spec = dict(kube.mapping(pod.raw, "spec"))
    kept = [c for c in kube.entries(spec, "resourceClaims") if c.get("name") not in gone]
    return {**pod.raw, "spec": {**spec, "resourceClaims": kept}}


def _offered(
    found: list[kube.Object], given: Input, told: Told
) -> tuple[dict[str, KubeNode], dict[str, dra.Claim]]:
    """The nodes with GPUs, by ResourceSlices where there are any, and the claims on them."""
    nodes = _nodes(found, given, told)
    devices = dra.offered(found, nodes, given, told)
    return nodes, dra.claims(found, devices, nodes, told)


def _nodes(found: list[kube.Object], given: Input, told: Told) -> dict[str, KubeNode]:
    nodes: dict[str, KubeNode] = {}
    bare, sliced = 0, dra.sliced(found)
    for node in (o for o in found if o.get("kind") == "Node"):
        if kube.text(node, "metadata", "name") in sliced:
            continue
        before = len(told.left_out)
        read = read_node(node, given, told)
        if read is not None:
            nodes[read.name] = read
        bare += read is None and len(told.left_out) == before
    if bare:
        told.notes.append(f"{words.plural(bare, 'node')} without GPUs")
    return nodes


def _measure(nodes: dict[str, KubeNode], captures: list[File], given: Input, told: Told) -> None:
    """Captures of nvidia-smi beside the objects say what labels cannot: GPUs and starts."""
    if not captures:
        return
    found = import_nvidia_smi(replace(given, files=tuple(captures)))
    told.notes += found.documents[0].notes
    told.left_out += found.left_out
    for entry in found.documents[0].data["nodes"]:
        node = nodes.get(entry["name"])
        if node is None or entry["gpu"] != node.gpu.name:
            raise CannotRead(
                f"a capture of nvidia-smi shows {entry['gpus']} x {entry['gpu']} in "
                f"{entry['name']}, which is no such node here; put it into a folder named after "
                "its node"
            )
        devices = entry.get("devices", {})
        divided = {int(i): d for i, d in devices.items() if d.get("mig_enabled")}
        if any("layout" not in d for d in divided.values()):
            continue
        node.gpus = node.entry["gpus"] = max(node.gpus, entry["gpus"])
        node.devices, node.exact = dict(devices), True
        node.undivided = frozenset(i for i in range(node.gpus) if i not in divided)
        close(node, node.closed, "which of its GPUs are broken no capture says", told)
        node.layouts = {
            i: tuple(PlacedProfile(p["start"], p["profile"]) for p in d["layout"])
            for i, d in divided.items()
        }


def _lives(pod: kube.Object) -> bool:
    return (
        kube.text(pod, "status", "phase") not in _OVER
        and kube.at(pod, "metadata", "deletionTimestamp") is None
    )


def _pods(
    found: list[kube.Object],
    nodes: Mapping[str, KubeNode],
    allocated: Mapping[str, dra.Claim],
    told: Told,
) -> list[_Pod]:
    """The pods that hold GPUs which can be told, by name."""
    pods: list[_Pod] = []
    for raw in sorted(found, key=_full_name):
        asked = kube.asked(raw)
        if not asked.accelerated:
            continue
        name, node = _full_name(raw), kube.text(raw, "spec", "nodeName")
        held, claims, why = _claimed(raw, asked, node, allocated)
        shape: Shape | None = None
        if held:
            shape, why = _shape_of(held)
        elif not why:
            shape, why = _shape(asked, nodes.get(node) if node else None)
        if node is not None and node not in nodes:
            why = f"its node {node} is not among the nodes"
        if shape is None or why:
            told.left_out.append(f"pod {name}: {why}")
            continue
        labels = kube.mapping(raw, "metadata", "labels")
        space = str(kube.at(raw, "metadata", "namespace") or "default")
        ours = DEPLOYMENT in labels
        true = kube.mapping(raw, "metadata", "annotations")
        deployment = str(true.get(DEPLOYMENT) or labels[DEPLOYMENT]) if ours else kube.owner(raw)
        tenant = str(true.get(TENANT) or labels.get(TENANT) or space)
        pod = _Pod(name, deployment, tenant, node, shape, asked, ours, raw, held, claims)
        pods.append(pod)
    return _renamed(pods)


def _full_name(pod: kube.Object) -> str:
    space = kube.at(pod, "metadata", "namespace") or "default"
    return f"{space}/{kube.at(pod, 'metadata', 'name')}"


def _claimed(
    raw: kube.Object, asked: kube.Asked, node: str | None, allocated: Mapping[str, dra.Claim]
) -> tuple[tuple[dra.Device, ...], tuple[str, ...], str]:
    """The devices that the pod's claims name, the claims, and why that cannot be said."""
    if kube.CLAIM not in asked.others:
        return (), (), ""
    found, why = dra.of_pod(raw, allocated)
    held = tuple(sorted({d for c in found for d in c.devices}, key=lambda d: d.index))
    if held and {d.node for d in held} != {node}:
        why = "its claim holds devices of another node"
    elif held and asked.devices and kube.at(raw, "status", kube.EXTENDED) is None:
        why = "holds devices both by a claim and of the device plugin"
    return held if not why else (), tuple(c.name for c in found if c.devices), why


def _shape_of(held: tuple[dra.Device, ...]) -> tuple[Shape | None, str]:
    parts = [d.placed.profile for d in held if d.placed is not None]
    if not parts:
        return ("", len(held)), ""
    if len(parts) < len(held):
        return None, "holds whole GPUs and slices"
    if len(parts) > 1:
        return None, f"holds {len(parts)} slices ({', '.join(parts)}); a replica here holds one"
    return (parts[0], 1), ""


def _shape(asked: kube.Asked, node: KubeNode | None) -> tuple[Shape | None, str]:
    """What the pod holds in our words, or why that cannot be said."""
    others = [o for o in asked.others if o != kube.CLAIM]
    if others or not asked.devices:
        return None, f"takes {', '.join(others or asked.others)}, which is not read here"
    if len(asked.devices) > 1:
        return None, f"holds devices of two kinds ({', '.join(r for r, _ in asked.devices)})"
    resource, number = asked.devices[0]
    if resource.endswith(kube.SHARED) or (node is not None and node.shared):
        return None, f"shares GPUs in turns ({resource}), which promises it no room"
    if resource.startswith(kube.MIG):
        name = kube.profile_of(resource)
        known = node.gpu.mig.profile(name) if node is not None and node.gpu.mig else None
        profile = known.name if known else name
    else:
        profile = (node.single or "") if node is not None else ""
    if number > MOST_GPUS:
        return None, f"asks for {number} GPUs, more than a node has"
    if profile and number > 1:
        return None, f"holds {number} slices {profile}; a replica here holds one"
    return (profile, number), ""


def _renamed(pods: list[_Pod]) -> list[_Pod]:
    """One name in several namespaces, or of several shapes, becomes several names."""
    spaces: dict[str, set[str]] = {}
    shapes: dict[tuple[str, str], set[Shape]] = {}
    for pod in pods:
        spaces.setdefault(pod.deployment, set()).add(pod.tenant)
        shapes.setdefault((pod.tenant, pod.deployment), set()).add(pod.shape)
    renamed = []
    for pod in pods:
        name = pod.deployment
        if not pod.ours and len(spaces[pod.deployment]) > 1:
            name = f"{pod.tenant}.{name}"
        if not pod.ours and len(shapes[pod.tenant, pod.deployment]) > 1:
            profile, number = pod.shape
            name = f"{name}-{profile or f'{number}gpu'}"
        renamed.append(replace(pod, deployment=name))
    return renamed


def _close_shared(
    nodes: Mapping[str, KubeNode],
    pods: list[kube.Object],
    allocated: Mapping[str, dra.Claim],
    told: Told,
) -> None:
    """Where pods share GPUs in turns nobody knows what is free, so nothing new is placed."""
    used = {kube.text(p, "spec", "nodeName") for p in pods if kube.asked(p).accelerated}
    strange = {
        kube.text(p, "spec", "nodeName")
        for p in pods
        if any(o != kube.CLAIM for o in kube.asked(p).others) or not dra.known(p, allocated)
    }
    for node in nodes.values():
        if node.name in strange:
            node.entry["cordoned"] = True
            told.notes.append(f"node {node.name} is cordoned: pods take devices of it otherwise")
        if not node.shared:
            continue
        told.notes.append(
            f"node {node.name}: its GPUs are shared in turns (-SHARED); shares are no room"
        )
        if node.name in used:
            node.entry["cordoned"] = True
            told.notes.append(f"node {node.name} is cordoned: what its shares hold is not known")


def _take_host_room(nodes: Mapping[str, KubeNode], pods: list[kube.Object]) -> None:
    """CPU and memory that pods without GPUs ask for are not there for replicas."""
    for pod in pods:
        node = nodes.get(kube.text(pod, "spec", "nodeName") or "")
        asked = kube.asked(pod)
        if node is None or asked.accelerated:
            continue
        for name, amount, digits in (("cpu_cores", asked.cores, 3), ("memory_gib", asked.gib, 2)):
            if name in node.entry:
                node.entry[name] = round(max(0.001, node.entry[name] - amount), digits)


def _placed(
    pods: list[_Pod], nodes: Mapping[str, KubeNode], told: Told
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Replicas of the pods that have a node, and the instances that stand empty."""
    free = {
        n.name: [(i, p) for i, layout in sorted(n.layouts.items()) for p in layout]
        for n in nodes.values()
    }
    whole = {n.name: sorted(n.undivided) for n in nodes.values()}
    replicas: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for pod in sorted(pods, key=lambda p: not p.held):  # claims name devices, others take the rest
        if pod.node is None:
            continue
        profile, count = pod.shape
        where: dict[str, Any] | None = None
        if pod.held:
            where = _named(pod, free[pod.node], whole[pod.node])
        elif profile:
            slot = next((s for s in free[pod.node] if s[1].profile == profile), None)
            if slot is not None:
                free[pod.node].remove(slot)
                mig = {"profile": profile, "start": slot[1].start}
                where = {"gpus": [f"{pod.node}/{slot[0]}"], "mig": mig}
        elif len(whole[pod.node]) >= count:
            taken, whole[pod.node] = whole[pod.node][:count], whole[pod.node][count:]
            where = {"gpus": [f"{pod.node}/{i}" for i in taken]}
        if where is None:
            told.left_out.append(f"pod {pod.name}: no room for it is left in {pod.node}")
            continue
        number = numbers[pod.deployment] = numbers.get(pod.deployment, -1) + 1
        replicas.append({"id": f"{pod.deployment}/{number}", "deployment": pod.deployment, **where})
    empty = [
        {"gpu": f"{name}/{index}", "profile": placed.profile, "start": placed.start}
        for name, slots in free.items()
        for index, placed in slots
    ]
    return replicas, empty


def _named(
    pod: _Pod, free: list[tuple[int, PlacedProfile]], whole: list[int]
) -> dict[str, Any] | None:
    """Just the devices that the pod's claims name; None where another holds them already."""
    for device in pod.held:
        if device.placed is None and device.index in whole:
            whole.remove(device.index)
        elif device.placed is not None and (device.index, device.placed) in free:
            free.remove((device.index, device.placed))
        else:
            return None
    where: dict[str, Any] = {"gpus": [f"{d.node}/{d.index}" for d in pod.held]}
    placed = pod.held[0].placed
    return where | (
        {"mig": {"profile": placed.profile, "start": placed.start}} if placed is not None else {}
    )


def _fleet(given: Input, nodes: Mapping[str, KubeNode], told: Told) -> Imported:
    entries = []
    for node in nodes.values():
        entry = dict(node.entry)
        laid = {
            str(i): {"mig_enabled": True, "layout": _layout(layout)}
            for i, layout in sorted(node.layouts.items())
        }
        devices = node.devices if node.exact else laid | node.devices
        entry |= {"devices": devices} if devices else {}
        entries.append(entry)
    unsaid = [PRICES, *told.unsaid]
    if any("rack" not in e for e in entries):
        unsaid.append("rack of every node: a node without a rack fails alone")
    guessed = [n.name for n in nodes.values() if n.layouts and not n.exact]
    if guessed:
        shown = ", ".join(guessed[:8]) + (f" and {len(guessed) - 8} more" if guessed[8:] else "")
        unsaid.append(
            f"on which GPU and where each MIG instance stands in {shown}: labels only "
            "count them, so these positions are one legal way; before a plan changes MIG, add "
            "captures of nvidia-smi -L and mig -lgi, in folders named after the nodes"
        )
    data = {"kind": "Fleet", "version": 1, "name": given.name, "nodes": entries}
    return Imported(data, tuple(unsaid), tuple(told.notes))


def _layout(layout: tuple[PlacedProfile, ...]) -> list[dict[str, Any]]:
    return [{"profile": p.profile, "start": p.start} for p in layout]


def _state(
    given: Input,
    replicas: list[dict[str, Any]],
    empty: list[dict[str, Any]],
    nodes: Mapping[str, KubeNode],
    told: Told,
    any_pods: bool,
    claimed: int,
) -> Imported:
    data: dict[str, Any] = {"kind": "State", "version": 1, "fleet": given.name}
    data["replicas"] = replicas
    data |= {"instances": empty} if empty else {}
    unsaid = []
    if not any_pods:
        unsaid.append("what runs: no pod was among the files, so every instance stands empty")
    if len(replicas) > claimed:
        unsaid.append(
            "which device of its kind each pod holds: one of its node is named; pods of one node "
            "and kind are alike to a plan"
        )
    return Imported(data, tuple(unsaid), tuple(told.notes))


def _workloads(pods: list[_Pod], nodes: Mapping[str, KubeNode], told: Told) -> list[dict[str, Any]]:
    """A deployment for each owner: as many replicas as it has pods, each as large as they are."""
    by_name: dict[str, list[_Pod]] = {}
    for pod in pods:
        by_name.setdefault(pod.deployment, []).append(pod)
    found = []
    for name, members in sorted(by_name.items()):
        shapes = {p.shape for p in members}
        if len(shapes) > 1:
            told.left_out.append(
                f"deployment {name}: fleetslice runs it in {len(shapes)} shapes; use the Workloads "
                "that its plan was made from"
            )
            continue
        found.append(_deployment(name, members, nodes))
    return found


def _deployment(name: str, members: list[_Pod], nodes: Mapping[str, KubeNode]) -> dict[str, Any]:
    first = members[0]
    profile, number = first.shape
    entry: dict[str, Any] = {"name": name, "tenant": first.tenant}
    entry["needs"] = {"mig_profile": profile} if profile else {"gpus": number}
    entry["replicas"] = {"min": len(members)}
    cores, gib = max(p.asked.cores for p in members), max(p.asked.gib for p in members)
    host = {"cpu_cores": round(cores, 3), "memory_gib": round(gib, 3)}
    entry |= {"host": {k: v for k, v in host.items() if v}} if any(host.values()) else {}
    if not first.ours:
        able = [n.name for n in nodes.values() if kube.matches(n.labels, first.raw)]
        entry |= {"pin": able} if able and len(able) < len(nodes) else {}
    if _alone(first.raw):
        entry["spread"] = {"node": 1}
    return entry


def _alone(pod: kube.Object) -> bool:
    """Whether its anti-affinity keeps two of its kind off one node."""
    terms = kube.entries(
        kube.mapping(pod, "spec", "affinity", "podAntiAffinity"),
        "requiredDuringSchedulingIgnoredDuringExecution",
    )
    labels = kube.mapping(pod, "metadata", "labels")
    return any(
        term.get("topologyKey") == "kubernetes.io/hostname"
        and _selects(kube.mapping(term, "labelSelector"), labels)
        for term in terms
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    plain = kube.mapping(selector, "matchLabels")
    listed = list(_listed(selector))
    return bool(plain or listed) and all(
        str(labels.get(k)) in values
        for k, values in [*((k, [str(v)]) for k, v in plain.items()), *listed]
    )


def _listed(selector: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for expression in kube.entries(selector, "matchExpressions"):
        if expression.get("operator") == "In":
            yield str(expression.get("key")), [str(v) for v in expression.get("values") or ()]


def _workloads_document(given: Input, deployments: list[dict[str, Any]]) -> Imported:
    data = {"kind": "Workloads", "version": 1, "name": given.name, "deployments": deployments}
    return Imported(
        data,
        unsaid=(
            "models and traffic: each deployment keeps the devices and the number of replicas that "
            "its pods have; name model, demand and slo, and replicas are counted and sized",
        ),
    )
