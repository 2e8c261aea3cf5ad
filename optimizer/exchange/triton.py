"""Triton: a model repository for the TensorRT-LLM backend, a model for each group of replicas."""

from typing import Any

from optimizer.exchange.artifact import Artifact, Document, Export, Source
from optimizer.exchange.listings import NEMO
from optimizer.exchange.serving import Group, groups

FORMAT = "Triton model repository, TensorRT-LLM LLM API backend"
# The release's own files: triton_backend/all_models/llmapi of the TensorRT-LLM sources.
SETUP = """#!/usr/bin/env bash
# Completes the models with the files of your TensorRT-LLM release, which have the tensors' names.
# usage: ./complete.sh FOLDER/triton_backend/all_models/llmapi
set -euo pipefail
template="${1:?the folder llmapi of your TensorRT-LLM release}/tensorrt_llm"
cd "$(dirname "$0")"
for model in MODELS; do
    sed "s/^name: .*/name: \\"$model\\"/" "$template/config.pbtxt" > "$model/config.pbtxt"
    cp "$template"/1/*.py "$model/1/"
done
"""


def export(source: Source) -> Export:
    """``NAME/1/model.yaml`` of every group that TensorRT-LLM serves, and what completes them."""
    found, notes = groups(source)
    for group in found:
        if group.first.config.engine != "tensorrt-llm":
            notes.append(f"{group.ids} left out: {group.first.config.engine} has no repository")
    ours = [g for g in found if g.first.config.engine == "tensorrt-llm"]
    artifacts = [Artifact(f"{g.name}/1/model.yaml", (_model(g),)) for g in ours]
    if ours:
        setup = SETUP.replace("MODELS", " ".join(g.name for g in ours))
        artifacts.append(Artifact("complete.sh", text=setup, executable=True))
        notes += [f"{g.name}: a server for it on {g.node}, {_devices(g)}" for g in ours]
        notes.append(NEMO)
    return Export(FORMAT, tuple(artifacts), tuple(notes))


def _devices(group: Group) -> str:
    where = ["/".join((*r.gpus, *([r.mig.profile] if r.mig else []))) for r in group.replicas]
    return f"once for each of {', '.join(where)}"


def _model(group: Group) -> Document:
    """Arguments of ``tensorrt_llm.LLM``, as trtllm-serve would set them."""
    flags = dict(zip(group.command.argv, group.command.argv[1:], strict=False))
    config: dict[str, Any] = {"model": group.model_id, "backend": "pytorch"}
    config["tensor_parallel_size"] = int(flags.get("--tp_size", 1))
    config["pipeline_parallel_size"] = int(flags.get("--pp_size", 1))
    for name in ("max_seq_len", "max_batch_size", "max_num_tokens"):
        if f"--{name}" in flags:
            config[name] = int(flags[f"--{name}"])
    fraction = flags.get("--kv_cache_free_gpu_memory_fraction")
    if fraction is not None:
        config["kv_cache_config"] = {"free_gpu_memory_fraction": float(fraction)}
    # The backend batches requests itself, so Triton must not.
    config["triton_config"] = {"max_batch_size": 0, "decoupled": True}
    return config
