"""Ray Serve: a config file of Serve LLM applications, and KubeRay manifests around it."""

import json
from collections.abc import Iterator
from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.serving import Group, groups, image

FORMAT = "Ray Serve config, ray.serve.llm"
KUBERAY_FORMAT = "ray.io/v1"
BUILDER = "ray.serve.llm:build_openai_app"


def export(source: Source) -> Export:
    """One application per deployment; each group of replicas is a model config of it."""
    found, notes = groups(source)
    return Export(FORMAT, (Artifact("serve.yaml", (_config(found),)),), (*notes, *_told(found)))


def export_kuberay(source: Source) -> Export:
    """A RayService whose worker groups are the device kinds that the plan uses."""
    found, notes = groups(source)
    service = {
        "apiVersion": KUBERAY_FORMAT,
        "kind": "RayService",
        "metadata": {"name": "fleetslice", "namespace": source.namespace},
        "spec": {
            "serveConfigV2": json.dumps(_config(found), indent=2) + "\n",
            "rayClusterConfig": {
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _pod(_head_image(source, found), {}, None),
                },
                "workerGroupSpecs": list(_workers(source, found)),
            },
        },
    }
    return Export(
        KUBERAY_FORMAT, (Artifact("ray-service.yaml", (service,)),), (*notes, *_told(found))
    )


def _told(found: list[Group]) -> Iterator[str]:
    if any(g.first.config.engine != "vllm" for g in found):
        yield "ray.serve.llm runs vLLM only; groups of other engines are left out"
    if any(g.first.mig for g in found):
        yield "Ray counts a slice as a GPU: run one worker per slice, with its MIG UUID visible"


def _config(found: list[Group]) -> dict[str, Any]:
    by_name: dict[str, list[Group]] = {}
    for group in found:
        if group.first.config.engine == "vllm":
            by_name.setdefault(group.deployment, []).append(group)
    applications = [
        {
            "name": name,
            "route_prefix": f"/{name}",
            "import_path": BUILDER,
            "args": {"llm_configs": [_llm_config(g) for g in members]},
        }
        for name, members in by_name.items()
    ]
    return {"proxy_location": "EveryNode", "applications": applications}


def _llm_config(group: Group) -> dict[str, Any]:
    config = group.first.config
    kwargs: dict[str, Any] = {
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "gpu_memory_utilization": config.memory_fraction,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "kv_cache_dtype": "fp8" if config.kv_precision == "fp8" else "auto",
    }
    argv = group.command.argv
    if "--quantization" in argv:
        kwargs["quantization"] = argv[argv.index("--quantization") + 1]
    bundle = {"GPU": 1, f"node:{group.node}": 0.001}
    return {
        "model_loading_config": {"model_id": group.name, "model_source": group.model_id},
        "deployment_config": {"num_replicas": len(group.replicas)},
        "engine_kwargs": {name: value for name, value in kwargs.items() if value is not None},
        "placement_group_config": {"bundles": [bundle] * len(group.first.gpus)},
    }


def _head_image(source: Source, found: list[Group]) -> str:
    return source.images.get("ray") or (image(source, found[0]) if found else "rayproject/ray")


def _workers(source: Source, found: list[Group]) -> Iterator[dict[str, Any]]:
    """A worker group per node and kind of device; one worker per device that serves."""
    seen: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        if group.first.config.engine == "vllm":
            seen.setdefault((group.node, group.resource[0]), []).append(group)
    for (node, resource), members in sorted(seen.items()):
        devices = sum(len(g.replicas) * g.resource[1] for g in members)
        whole = resource == "nvidia.com/gpu"
        workers, each = (1, devices) if whole else (devices, 1)
        name = f"{node}-{resource.removeprefix('nvidia.com/').replace('.', '-')}"
        said = json.dumps({f"node:{node}": 1})
        yield {
            "groupName": name,
            "replicas": workers,
            "minReplicas": workers,
            "maxReplicas": workers,
            "rayStartParams": {"num-gpus": str(each), "resources": f"'{said}'"},
            "template": _pod(image(source, members[0]), {resource: str(each)}, node),
        }


def _pod(container_image: str, devices: dict[str, str], node: str | None) -> Document:
    container: dict[str, Any] = {"name": "ray", "image": container_image}
    if devices:
        container["resources"] = {"limits": devices, "requests": devices}
    spec: dict[str, Any] = {"containers": [container]}
    if node is not None:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"spec": spec}
