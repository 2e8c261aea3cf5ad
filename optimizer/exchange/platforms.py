"""KServe and Dynamo: their custom resources around the same containers."""

from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.kubernetes import container
from optimizer.exchange.serving import Group, groups

KSERVE_FORMAT = "serving.kserve.io/v1beta1"
DYNAMO_FORMAT = "nvidia.com/v1beta1"


def export_kserve(source: Source) -> Export:
    """An InferenceService per group, with the engine's own container."""
    found, notes = groups(source)
    documents = tuple(_inference_service(source, g) for g in found)
    return Export(KSERVE_FORMAT, (Artifact("kserve.yaml", documents),), tuple(notes))


def _inference_service(source: Source, group: Group) -> Document:
    one = {**container(source, group), "name": "kserve-container"}
    predictor: dict[str, Any] = {
        "minReplicas": len(group.replicas),
        "maxReplicas": len(group.replicas),
        "nodeSelector": {"kubernetes.io/hostname": group.node},
        "containers": [one],
    }
    return {
        "apiVersion": KSERVE_FORMAT,
        "kind": "InferenceService",
        "metadata": {"name": group.name, "namespace": source.namespace},
        "spec": {"predictor": predictor},
    }


def export_dynamo(source: Source) -> Export:
    """A DynamoGraphDeployment per deployment: a frontend, and a worker component per group."""
    found, notes = groups(source)
    by_name: dict[str, list[Group]] = {}
    for group in found:
        by_name.setdefault(group.deployment, []).append(group)
    documents = tuple(_graph(source, name, members) for name, members in by_name.items())
    told = [*notes, "the workers run the engine's own server; disaggregation is not planned"]
    return Export(DYNAMO_FORMAT, (Artifact("dynamo.yaml", documents),), tuple(told))


def _graph(source: Source, name: str, members: list[Group]) -> Document:
    components: list[dict[str, Any]] = [{"name": "frontend", "type": "frontend", "replicas": 1}]
    for group in members:
        pod = {
            "nodeSelector": {"kubernetes.io/hostname": group.node},
            "containers": [container(source, group)],
        }
        components.append(
            {
                "name": group.name,
                "type": "worker",
                "replicas": len(group.replicas),
                "podTemplate": {"spec": pod},
            }
        )
    return {
        "apiVersion": DYNAMO_FORMAT,
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": name, "namespace": source.namespace},
        "spec": {"components": components},
    }
