"""Relations between plans of changed documents, from the command line: 64 GPUs of two products."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RATES = {"1g.10gb": 9, "2g.20gb": 20, "3g.40gb": 33}  # requests/s of a slice, at a scale of 1


def fleet(nodes: int = 7, times: int = 1) -> dict[str, Any]:
    """56 GPUs with MIG in ``nodes`` nodes, 8 without."""
    rows = [
        {"name": f"a{i}", "gpu": "a100-80gb-sxm", "gpus": 8, "price_per_gpu_hour": 2 * times}
        for i in range(nodes)
    ]
    rows += [{"name": "l0", "gpu": "l40s", "gpus": 8, "price_per_gpu_hour": times}]
    return {"kind": "Fleet", "version": 1, "name": "relations", "nodes": rows}


def workloads() -> list[dict[str, Any]]:
    """Two documents of six deployments, in slices, whole and in groups."""
    dice = random.Random(4)
    deployments = []
    for number in range(12):
        scale = dice.uniform(0.5, 2)
        ways = [
            {"gpu": "a100-80gb-sxm", "mig_profile": name, "requests_per_second": rate * scale}
            for name, rate in RATES.items()
        ]
        ways += [
            {"gpu": "a100-80gb-sxm", "gpus": n, "requests_per_second": 88 * n**0.9 * scale}
            for n in (1, 2)
        ]
        ways.append({"gpu": "l40s", "requests_per_second": 40 * scale})
        measured = [
            {**way, "requests_per_second": round(way["requests_per_second"], 1), "latency_ms": 9}
            for way in ways
        ]
        asked = {"requests_per_second": round(dice.uniform(50, 350), 1)}
        deployments.append({"name": f"d{number}", "measured": measured, "demand": asked})
    return [
        {"kind": "Workloads", "version": 1, "name": f"half-{half}", "deployments": part}
        for half, part in enumerate((deployments[:6], deployments[6:]))
    ]


@pytest.fixture
def planned(tmp_path):
    """Plans documents in a process of its own; the plan, which must be proved, without its run."""

    def called(*documents: dict[str, Any], hash_seed: str = "1") -> dict[str, Any]:
        files = [tmp_path / f"{number}.yaml" for number in range(len(documents))]
        for file, document in zip(files, documents, strict=True):
            file.write_text(yaml.safe_dump(document), "utf-8")
        out = tmp_path / "plan.json"
        names = [str(file) for file in files]
        command = [sys.executable, "-m", "optimizer", "plan", *names, "--out", str(out)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
        plan: dict[str, Any] = json.loads(Path(out).read_text("utf-8"))
        assert plan["outcome"]["status"] == "optimal"
        del plan["outcome"]["run"]
        return plan

    return called


def price(plan: dict[str, Any]) -> float:
    levels = {level["name"]: level["value"] for level in plan["outcome"]["objectives"]}
    assert levels["unmet"] == 0
    return float(levels["price_per_hour"])


@pytest.mark.slow
def test_cost_follows_the_documents_and_not_their_order(planned) -> None:
    first, second = workloads()
    plain = planned(fleet(), first, second)
    assert planned(fleet(), first, second, hash_seed="2") == plain
    cost = price(plain)
    backwards = {**second, "deployments": second["deployments"][::-1]}
    assert price(planned(backwards, fleet(), first)) == cost
    assert price(planned(fleet(times=2), first, second)) == 2 * cost
    assert price(planned(fleet(nodes=8), first, second)) <= cost
