"""Each flag that a command line says is one that this version of the engine has."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from builders import replica
from optimizer.domain.config import ReplicaConfig
from optimizer.engines import COMMANDS, CannotRun, Settings, command

RECORDED = json.loads(
    (Path(__file__).parent.parent / "data" / "engine_flags.json").read_text("utf-8")
)
VERSIONS = [(e, v) for e, versions in RECORDED.items() if e != "$comment" for v in versions]
BASE = ReplicaConfig(max_model_len=8192, max_num_seqs=64, memory_fraction=0.87)


@pytest.mark.parametrize(("engine", "version"), VERSIONS, ids=lambda v: v)
def test_flags_are_known(engine, version):
    """Over precisions, caches, parallel sizes, embeddings and adapters, as far as it runs them."""
    known = set(RECORDED[engine][version])
    said: set[str] = set()
    for precision, kv, sizes, task, loras in product(
        ("bf16", "fp8", "int4"), ("bf16", "fp8"), ((1, 1), (2, 2)), ("generate", "embed"), (0, 4)
    ):
        config = replace(BASE, engine=engine, engine_version=version, precision=precision)
        config = replace(config, kv_precision=kv, tensor_parallel=sizes[0])
        config = replace(config, pipeline_parallel=sizes[1])
        settings = Settings(
            checkpoint_precision="int4" if precision == "int4" else "bf16",
            task=task,
            device_mib=81000,
            max_num_batched_tokens=4096,
            lora_count=loras,
            lora_rank=16 if loras else 0,
        )
        try:
            argv = command(
                replica("chat/0", "n0/0", config=config), "h100-80gb-sxm", "org/m", 8000, settings
            ).argv
        except CannotRun:
            continue
        said |= {word for word in argv if word.startswith("--")}
    assert len(said) > 8
    assert said - known == set()


def test_every_engine_is_recorded():
    assert {engine for engine, _ in VERSIONS} == set(COMMANDS)
