"""KServe and Dynamo: their custom resources around the same containers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.kube_names import dns_label
from optimizer.exchange.kubernetes import container, pod_of
from optimizer.exchange.serving import Group, groups

KSERVE_FORMAT = "serving.kserve.io/v1beta1"
DYNAMO_FORMAT = "nvidia.com/v1beta1"
DYNAMO_MOST = 25  # components of one graph, the frontend among them
DYNAMO_VERSION = "1.6.0"
DYNAMO_IMAGE = "nvcr.io/nvidia/ai-dynamo/{runtime}:{version}"
# Dynamo's worker of an engine, and the image that has it.
DYNAMO_WORKERS = {
    "sglang": ("dynamo.sglang", "sglang-runtime"),
    "vllm": ("dynamo.vllm", "vllm-runtime"),
}
# How an engine's own server starts; what follows is for the engine (vLLM: the model first).
SERVERS = {"sglang": ("python3", "-m", "sglang.launch_server"), "vllm": ("vllm", "serve")}


def export_kserve(source: Source) -> Export:
    """An InferenceService per group, with the engine's own container."""
    found, notes = groups(source)
    documents = tuple(_inference_service(source, g) for g in found)
    return Export(KSERVE_FORMAT, (Artifact("kserve.yaml", documents),), tuple(notes))


def _inference_service(source: Source, group: Group) -> Document:
    predictor: dict[str, Any] = {
        "minReplicas": len(group.replicas),
        "maxReplicas": len(group.replicas),
        **pod_of(source, group, "kserve-container"),
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
        if group.first.config.engine in DYNAMO_WORKERS:
            by_name.setdefault(group.deployment, []).append(group)
        else:
            notes.append(f"{group.ids} left out: no Dynamo worker of {group.first.config.engine}")
    documents = tuple(_graph(source, name, members) for name, members in by_name.items())
    for name, members in by_name.items():
        if len(members) >= DYNAMO_MOST:
            notes.append(f"{name}: a graph takes {DYNAMO_MOST} components; split its manifest")
    told = [*notes, "workers serve whole requests; disaggregation is not planned"]
    return Export(DYNAMO_FORMAT, (Artifact("dynamo.yaml", documents),), tuple(told))


def _graph(source: Source, name: str, members: list[Group]) -> Document:
    engine = members[0].first.config.engine or ""
    runtime = DYNAMO_IMAGE.format(runtime=DYNAMO_WORKERS[engine][1], version=DYNAMO_VERSION)
    frontend = {"name": "main", "image": source.images.get("dynamo", runtime)}
    components: list[dict[str, Any]] = [
        {
            "name": "frontend",
            "type": "frontend",
            "replicas": 1,
            "podTemplate": {"spec": {"containers": [frontend]}},
        }
    ]
    for group in members:
        pod = {
            "nodeSelector": {"kubernetes.io/hostname": group.node},
            "containers": [_dynamo_worker(source, group)],
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
        "metadata": {"name": dns_label(name), "namespace": source.namespace},
        "spec": {"backendFramework": engine, "components": components},
    }


def _dynamo_worker(source: Source, group: Group) -> dict[str, Any]:
    """Dynamo's own worker around the engine: the engine's flags, without an HTTP server's."""
    engine = group.first.config.engine or ""
    module, runtime = DYNAMO_WORKERS[engine]
    image = DYNAMO_IMAGE.format(runtime=runtime, version=DYNAMO_VERSION)
    one = container(replace(source, images={engine: source.images.get("dynamo", image)}), group)
    flags = group.command.argv[len(SERVERS[engine]) :]
    words = list(_without_server(flags if engine == "sglang" else ("--model", *flags)))
    kept = {k: v for k, v in one.items() if k in ("name", "image", "env", "resources")}
    return {**kept, "command": ["python3", "-m", module, *words]}


def _without_server(flags: tuple[str, ...]) -> Iterator[str]:
    """The flags but host and port, which the frontend has."""
    skip = False
    for word in flags:
        if skip or word in ("--host", "--port"):
            skip = not skip
            continue
        yield word
