"""Kubernetes: Deployments pinned to nodes, Services, disruption budgets, DRA claim templates."""

from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.kube_names import dns_label, label_value
from optimizer.exchange.kube_pods import claims, owner_text, pod_spec
from optimizer.exchange.serving import PORT, Group, groups, image

FORMAT = "apps/v1, policy/v1, resource.k8s.io/v1"
NAME, PART_OF = "app.kubernetes.io/name", "app.kubernetes.io/part-of"
DEPLOYMENT, GROUP = "fleetslice.io/deployment", "fleetslice.io/group"
TENANT = "fleetslice.io/tenant"
# NCCL between the GPUs of one pod needs more than the 64 MiB that a container has by default.
SHM = {"name": "shm", "emptyDir": {"medium": "Memory"}}
SHM_MOUNT = {"name": "shm", "mountPath": "/dev/shm"}
# Gated models want a token; without the secret the variable is left out.
TOKEN = {
    "name": "HF_TOKEN",
    "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}},
}
PROFILE = "device.attributes['gpu.nvidia.com'].profile == '{profile}'"


def export(source: Source) -> Export:
    """One manifest with all that Kubernetes can carry; notes say what it cannot."""
    found, notes = groups(source, pods=True)
    documents: list[Document] = [_deployment(source, g) for g in found]
    ours = dict.fromkeys(g.deployment for g in found if g.served is not None)
    for name in ours:
        documents += [_service(source, name), _budget(source, name)]
    made = {(_claims_in(source, g), _claim_name(g)): g for g in found}
    templates = [_claim(space, name, made[space, name]) for space, name in sorted(made)]
    told = [*notes]
    if ours:
        told.append(
            f"gated models: kubectl -n {source.namespace} create secret generic hf-token "
            "--from-literal token=TOKEN"
        )
    for name in dict.fromkeys(g.deployment for g in found if g.served is None):
        told.append(
            f"{name}: once its new pods are ready, delete {owner_text(source.pods[name])}, which "
            "ran it; its Service and disruption budget stay"
        )
    claiming = sorted(n for n, pod in source.pods.items() if claims(pod))
    if claiming:
        told.append(f"{', '.join(claiming)}: claims by the templates of dra.yaml; apply it first")
    if any(g.first.mig and g.strategy != "single" and g.deployment not in claiming for g in found):
        told.append(
            "slices are asked of the device plugin (strategy mixed), which may give a replica any "
            "slice of its profile on its node"
        )
    if templates and not claiming:
        told.append(
            "dra.yaml has claim templates for clusters with DRA: name one in a pod's "
            "resourceClaims in place of its nvidia.com/ resource"
        )
    artifacts = [Artifact("kubernetes.yaml", tuple(documents))]
    if templates:
        artifacts.append(Artifact("dra.yaml", tuple(templates)))
    return Export(FORMAT, tuple(artifacts), tuple(told))


def _meta(source: Source, name: str, deployment: str, tenant: str | None = None) -> dict[str, Any]:
    labels = {PART_OF: "fleetslice", NAME: label_value(deployment)}
    if tenant is not None:
        labels[TENANT] = label_value(tenant)
    return {"name": name, "namespace": source.namespace, "labels": labels}


def _true_names(group: Group) -> dict[str, Any]:
    """Annotations that keep the names which a label's value cannot hold."""
    true = {DEPLOYMENT: group.deployment, TENANT: group.tenant}
    changed = {k: v for k, v in true.items() if label_value(v) != v}
    return {"annotations": changed} if changed else {}


def _deployment(source: Source, group: Group) -> Document:
    labels = {DEPLOYMENT: label_value(group.deployment), GROUP: group.name}
    meta = _meta(source, group.name, group.deployment, group.tenant)
    selects = {"kubernetes.io/hostname": group.node}
    if group.served is None:  # its own labels stay: its Service selects by them
        pod = source.pods[group.deployment]
        meta["namespace"] = pod["metadata"].get("namespace", source.namespace)
        own, spec = pod_spec(pod, group.resource, selects, _claim_name(group))
    else:
        own = {NAME: label_value(group.deployment)}
        spec = pod_of(source, group)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": len(group.replicas),
            "selector": {"matchLabels": labels},
            # A new replica needs a device of its own, and the plan has none to spare.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
            },
            "template": {
                "metadata": {
                    "labels": {**own, **labels, TENANT: label_value(group.tenant)},
                    **_true_names(group),
                },
                "spec": spec,
            },
        },
    }


def container(source: Source, group: Group) -> dict[str, Any]:
    """The engine's container with its devices, probes and command line."""
    resource, count = group.resource
    amount = {resource: str(count)}
    deployment = source.known.deployments[group.deployment]
    requests = dict(amount)
    if deployment.host_cpu_millicores:
        requests["cpu"] = f"{deployment.host_cpu_millicores}m"
    if deployment.host_memory_mib:
        requests["memory"] = f"{deployment.host_memory_mib}Mi"
    probe = {"httpGet": {"path": group.command.health, "port": PORT}}
    return {
        "name": "main",
        "image": image(source, group),
        "command": [*_everywhere(group.command.argv)],
        "env": [*({"name": n, "value": v} for n, v in group.command.env), TOKEN],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": amount, "requests": requests},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 180},
        **({"volumeMounts": [SHM_MOUNT]} if len(group.first.gpus) > 1 else {}),
    }


def pod_of(source: Source, group: Group, name: str = "main") -> dict[str, Any]:
    """The pod around it: on its node, with shared memory where several GPUs work together."""
    spec: dict[str, Any] = {
        "nodeSelector": {"kubernetes.io/hostname": group.node},
        "containers": [{**container(source, group), "name": name}],
    }
    return spec | ({"volumes": [SHM]} if len(group.first.gpus) > 1 else {})


def _everywhere(argv: tuple[str, ...]) -> list[str]:
    """In a pod the engine listens on the pod's address, not on loopback."""
    return ["0.0.0.0" if a == "127.0.0.1" else a for a in argv]


def _service(source: Source, name: str) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(source, dns_label(name), name),
        "spec": {
            "selector": {NAME: label_value(name)},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }


def _budget(source: Source, name: str) -> Document:
    floor = max(1, source.known.deployments[name].min_replicas)
    running = sum(r.deployment == name for r in source.plan.placement.replicas)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(source, dns_label(name), name),
        # A budget of all replicas would block every drain of a node.
        "spec": {
            "minAvailable": max(0, min(floor, running - 1)),
            "selector": {"matchLabels": {NAME: label_value(name)}},
        },
    }


def _claims_in(source: Source, group: Group) -> str:
    """The namespace of the group's pods: a claim's template must lie there."""
    if group.served is not None:
        return source.namespace
    return str(source.pods[group.deployment]["metadata"].get("namespace", source.namespace))


def _claim_name(group: Group) -> str:
    """``mig-3g-40gb`` or ``gpu-2``: one template for each kind of device."""
    mig = group.first.mig
    if mig is None:
        return f"gpu-{len(group.first.gpus)}"
    return f"mig-{mig.profile.replace('.', '-').replace('+', '-')}"


def _claim(namespace: str, name: str, group: Group) -> Document:
    exactly: dict[str, Any] = {
        "deviceClassName": "gpu.nvidia.com",
        "allocationMode": "ExactCount",
        "count": len(group.first.gpus),
    }
    if group.first.mig is not None:
        chosen = {"cel": {"expression": PROFILE.format(profile=group.first.mig.profile)}}
        exactly = {"deviceClassName": "mig.nvidia.com", "selectors": [chosen]}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"spec": {"devices": {"requests": [{"name": "device", "exactly": exactly}]}}},
    }
