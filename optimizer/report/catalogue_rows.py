"""The catalogue as plain rows, for machines."""

from collections.abc import Iterable
from typing import Any

from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel

Row = dict[str, Any]


def gpu_rows(gpus: Iterable[Gpu]) -> list[Row]:
    """A row per product; unknown is None."""
    return [
        {
            "name": gpu.name,
            "vendor": gpu.vendor,
            "architecture": gpu.architecture,
            "compute_capability": gpu.compute_capability,
            "memory_mib_usable": gpu.usable_mib,
            "memory_is_estimate": gpu.usable_is_estimate,
            "memory_bandwidth_gbs": gpu.memory_bandwidth_gbs,
            "dense_tflops": dict(gpu.dense_tflops),
            "native_precisions": list(gpu.native),
            "nvlink_gbs": gpu.nvlink_gbs,
            "tdp_w": gpu.tdp_w,
            "mig_profiles": [] if gpu.mig is None else [p.name for p in gpu.mig.profiles],
        }
        for gpu in sorted(gpus, key=lambda g: g.name)
    ]


def profile_rows(gpus: Iterable[Gpu]) -> list[Row]:
    """A row per MIG profile of each product that has MIG."""
    return [
        {
            "gpu": gpu.name,
            "profile": profile.name,
            "profile_id": profile.profile_id,
            "memory_mib": profile.memory_mib,
            "memory_slices": profile.memory_slices,
            "compute_slices": profile.compute_slices,
            "sms": profile.sms,
            "max_instances": profile.max_instances,
            "starts": list(profile.starts),
        }
        for gpu in sorted(gpus, key=lambda g: g.name)
        if gpu.mig is not None
        for profile in gpu.mig.profiles
    ]


def model_rows(models: Iterable[ServedModel]) -> list[Row]:
    """A row per model card."""
    return [
        {
            "name": model.name,
            "aliases": list(model.aliases),
            "task": model.task,
            "attention": model.attention_kind,
            "checkpoint_precision": model.checkpoint_precision,
            "layers": model.layers,
            "hidden_size": model.hidden_size,
            "max_position_embeddings": model.max_position_embeddings,
            "experts": None if model.moe is None else model.moe.experts,
            "unverified": list(model.unverified),
        }
        for model in sorted(models, key=lambda m: m.name)
    ]


def engine_rows(engines: Iterable[EngineCard]) -> list[Row]:
    """A row per engine card."""
    return [
        {
            "name": card.name,
            "aliases": list(card.aliases),
            "default_version": card.default_version,
            "known_since": [v.since for v in card.versions],
            "batching": card.batching,
            "guard": card.guard,
        }
        for card in sorted(engines, key=lambda c: c.name)
    ]
