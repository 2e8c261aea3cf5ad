"""Running pods as templates: what they were asked to be, without what a cluster added."""

from collections.abc import Mapping
from typing import Any

from optimizer.exchange import kube_objects as kube

# Filled in by admission and by the scheduler; a template leaves them to the next cluster.
_ADDED = {"nodeName", "priority", "preemptionPolicy", "serviceAccount", "schedulerName"}
_ADDED |= {"hostname", "subdomain", "ephemeralContainers"}
_ADDED_LABELS = {"pod-template-hash", "controller-revision-hash", "pod-template-generation"}
_ADDED_LABELS |= {"batch.kubernetes.io/controller-uid", "controller-uid", "job-name"}
_ADDED_TAINTS = {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
_TOKEN = "kube-api-access-"


CLAIM = "gpu"  # what a pod calls the claim on its devices


def claims(pod: kube.Object) -> bool:
    """Whether the pod holds devices by claims: containers name some that its spec lacks by now."""
    return any(_claiming(pod, c) for c in kube.entries(pod, "spec", "containers"))


def _claiming(pod: kube.Object, container: kube.Object) -> bool:
    there = {c.get("name") for c in kube.entries(pod, "spec", "resourceClaims")}
    return any(c.get("name") not in there for c in kube.entries(container, "resources", "claims"))


def pod_spec(
    pod: kube.Object, resource: tuple[str, int], selects: Mapping[str, str], template: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Labels and spec of a template that asks for that resource on the nodes it selects.

    A pod that holds devices by claims (DRA) claims by ``template`` instead.
    """
    labels = kube.mapping(pod, "metadata", "labels")
    spec = {k: v for k, v in kube.mapping(pod, "spec").items() if k not in _ADDED}
    spec["containers"] = [
        _claimant(c, spec) if _claiming(pod, c) else _container(c, resource)
        for c in kube.entries(pod, "spec", "containers")
    ]
    if claims(pod):
        mine = {"name": CLAIM, "resourceClaimTemplateName": template}
        spec["resourceClaims"] = [*kube.entries(pod, "spec", "resourceClaims"), mine]
    if "initContainers" in spec:
        spec["initContainers"] = [_mounts(c) for c in kube.entries(pod, "spec", "initContainers")]
    volumes = kube.entries(pod, "spec", "volumes")
    spec["volumes"] = [v for v in volumes if not str(v.get("name")).startswith(_TOKEN)]
    tolerated = kube.entries(pod, "spec", "tolerations")
    spec["tolerations"] = [t for t in tolerated if t.get("key") not in _ADDED_TAINTS]
    spec["nodeSelector"] = {**kube.mapping(pod, "spec", "nodeSelector"), **selects}
    plain = {k: v for k, v in spec.items() if v not in ([], {}, None)}
    return {k: v for k, v in labels.items() if k not in _ADDED_LABELS}, plain


def _claimant(container: kube.Object, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The container with the plan's claim in place of the one it held."""
    there = {c.get("name") for c in kube.entries(spec, "resourceClaims")}
    kept = [c for c in kube.entries(container, "resources", "claims") if c.get("name") in there]
    found = _mounts(container)
    found["resources"] = {
        **kube.mapping(container, "resources"),
        "claims": [*kept, {"name": CLAIM}],
    }
    return found


def _container(container: kube.Object, resource: tuple[str, int]) -> dict[str, Any]:
    """The container; the one that holds devices is given the plan's."""
    found = _mounts(container)
    amounts = kube.mapping(container, "resources")
    held = [r for part in amounts.values() if isinstance(part, Mapping) for r in part]
    if not any(map(kube.is_device, held)):
        return found
    name, count = resource
    found["resources"] = {
        **amounts,
        **{
            part: {
                **{r: v for r, v in kube.mapping(amounts, part).items() if not kube.is_device(r)},
                name: str(count),
            }
            for part in ("limits", "requests")
        },
    }
    return found


def _mounts(container: kube.Object) -> dict[str, Any]:
    mounts = kube.entries(container, "volumeMounts")
    kept = [m for m in mounts if not str(m.get("name")).startswith(_TOKEN)]
    found = {k: v for k, v in container.items() if k != "volumeMounts"}
    return {**found, "volumeMounts": kept} if kept else found


def owner_text(pod: kube.Object) -> str:
    """``Deployment search/ranker``: what made the pod."""
    space = kube.at(pod, "metadata", "namespace") or "default"
    for reference in kube.entries(pod, "metadata", "ownerReferences"):
        kind = str(reference.get("kind"))
        hashed = "pod-template-hash" in kube.mapping(pod, "metadata", "labels")
        made = "Deployment" if kind == "ReplicaSet" and hashed else kind
        return f"{made} {space}/{kube.owner(pod)}"
    return f"Pod {space}/{kube.owner(pod)}"
