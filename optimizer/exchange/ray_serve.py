"""Ray Serve: a config file of Serve LLM applications, and KubeRay manifests around it."""

import json
from collections.abc import Iterator
from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.serving import Group, groups

FORMAT = "Ray Serve config, ray.serve.llm"
KUBERAY_FORMAT = "ray.io/v1"
BUILDER = "ray.serve.llm:build_openai_app"
RAY_VERSION = "2.60.0"
RAY_IMAGE = f"rayproject/ray-llm:{RAY_VERSION}-py312-cu130"
NIGHTLY = "0 3 * * *"
# Said by Serve itself or by the model's source, so no argument of the engine.
_SERVED = {"host", "port", "served_model_name"}


def export(source: Source) -> Export:
    """One application per deployment; each group of replicas is a model config of it."""
    found, notes = _ours(source)
    starts = tuple(_starts(found))
    return Export(FORMAT, (Artifact("serve.yaml", (_config(found),)),), (*notes, *starts))


def export_kuberay(source: Source) -> Export:
    """A RayService, the same cluster alone, and a nightly job that plans again.

    A worker group stands for one kind of device on one node, so that a bundle finds its own.
    """
    found, notes = _ours(source)
    cluster = _cluster(source, found)
    service = {
        **_head("RayService", source),
        "spec": {
            "serveConfigV2": json.dumps(_config(found), indent=2) + "\n",
            "rayClusterConfig": cluster,
        },
    }
    artifacts = [
        Artifact("ray-service.yaml", (service,)),
        Artifact("ray-cluster.yaml", ({**_head("RayCluster", source), "spec": cluster},)),
    ]
    if "fleetslice" in source.images:
        artifacts.append(Artifact("ray-cron-job.yaml", (_nightly(source),)))
    else:
        notes.append("a nightly RayCronJob needs an image: --image fleetslice=IMAGE")
    if "ray" not in source.images:
        notes.append(f"workers run {RAY_IMAGE}; --image ray=IMAGE says another")
    return Export(KUBERAY_FORMAT, tuple(artifacts), tuple(notes))


def _ours(source: Source) -> tuple[list[Group], list[str]]:
    found, notes = groups(source)
    others = [g for g in found if g.first.config.engine != "vllm"]
    for group in others:
        engine = group.first.config.engine
        notes.append(f"{group.ids} left out: ray.serve.llm runs vLLM only, not {engine}")
    kept = [g for g in found if g.first.config.engine == "vllm"]
    several = {g.deployment for g in kept if sum(o.deployment == g.deployment for o in kept) > 1}
    if several:
        notes.append(
            f"{', '.join(sorted(several))}: several groups, each a model of its own name; spread "
            "requests over them by their replicas"
        )
    return kept, notes


def _head(kind: str, source: Source) -> dict[str, Any]:
    metadata = {"name": "fleetslice", "namespace": source.namespace}
    return {"apiVersion": KUBERAY_FORMAT, "kind": kind, "metadata": metadata}


def device(group: Group) -> str:
    """A resource of our own for one kind of device on one node: Ray would take any ``GPU``."""
    kind = group.first.mig.profile if group.first.mig else "gpu"
    return f"fleetslice.{group.node}.{kind}"


def _config(found: list[Group]) -> dict[str, Any]:
    by_name: dict[str, list[Group]] = {}
    for group in found:
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
    bundle = {"GPU": 1, device(group): 1}
    return {
        "model_loading_config": {"model_id": group.name, "model_source": group.model_id},
        "deployment_config": {"num_replicas": len(group.replicas)},
        "engine_kwargs": _engine_kwargs(group.command.argv[3:]),
        "placement_group_config": {"bundles": [bundle] * len(group.first.gpus)},
    }


def _engine_kwargs(flags: tuple[str, ...]) -> dict[str, Any]:
    """The engine's flags as arguments: ``--max-num-seqs 64`` is ``max_num_seqs=64``."""
    found: dict[str, Any] = {}
    name = None
    for word in flags:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            found[name] = True
        elif name is not None:
            found[name] = _value(word)
    return {k: v for k, v in found.items() if k not in _SERVED}


def _value(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _devices(found: list[Group]) -> dict[str, tuple[Group, int]]:
    """Of each kind of device: a group that has it, and how many the plan uses."""
    counted: dict[str, tuple[Group, int]] = {}
    for group in found:
        first, before = counted.get(device(group), (group, 0))
        used = len(group.replicas) * len(group.first.gpus)
        counted[device(group)] = (first, before + used)
    return dict(sorted(counted.items()))


def _starts(found: list[Group]) -> Iterator[str]:
    """How to start Ray where no operator does it."""
    for name, (group, count) in _devices(found).items():
        said = json.dumps({name: count})
        sliced = ", with CUDA_VISIBLE_DEVICES set to those slices' UUIDs" if group.first.mig else ""
        yield f"on {group.node}: ray start --num-gpus {count} --resources '{said}'{sliced}"


def _cluster(source: Source, found: list[Group]) -> dict[str, Any]:
    return {
        "rayVersion": RAY_VERSION,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": _pod(source, {}, None),
        },
        "workerGroupSpecs": [_workers(source, *pair) for pair in _devices(found).items()],
    }


def _workers(source: Source, name: str, used: tuple[Group, int]) -> dict[str, Any]:
    """Whole GPUs of a node in one worker; a worker for each slice, since it sees but one."""
    group, count = used
    workers, each = (count, 1) if group.first.mig else (1, count)
    kind = name.removeprefix("fleetslice.")
    return {
        "groupName": kind.replace(".", "-").replace("+", "-").lower(),
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
        # The operator writes values into a shell command, so the JSON is quoted for the shell.
        "rayStartParams": {
            "num-gpus": str(each),
            "resources": f"'{json.dumps({name: each})}'",
        },
        "template": _pod(source, {group.resource[0]: str(each)}, group.node),
    }


def _pod(source: Source, devices: dict[str, str], node: str | None) -> Document:
    container: dict[str, Any] = {"name": "ray", "image": source.images.get("ray", RAY_IMAGE)}
    if devices:
        container["resources"] = {"limits": devices, "requests": devices}
    spec: dict[str, Any] = {"containers": [container]}
    if node is not None:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"spec": spec}


def _nightly(source: Source) -> Document:
    """Plans again each night, on a cluster of its own, from documents mounted at /documents."""
    volume = {"name": "documents", "persistentVolumeClaim": {"claimName": "fleetslice-documents"}}
    container = {
        "name": "ray",
        "image": source.images["fleetslice"],
        "volumeMounts": [{"name": "documents", "mountPath": "/documents"}],
    }
    head = {
        "rayStartParams": {},
        "template": {"spec": {"containers": [container], "volumes": [volume]}},
    }
    command = (
        "fleetslice rebalance /documents --state /documents/state.yaml --out /documents/plan.json"
    )
    return {
        **_head("RayCronJob", source),
        "spec": {
            "schedule": NIGHTLY,
            "jobTemplate": {
                "entrypoint": command,
                "shutdownAfterJobFinishes": True,
                "rayClusterSpec": {"rayVersion": RAY_VERSION, "headGroupSpec": head},
            },
        },
    }
