"""From nothing but ``kubectl get nodes,pods -o json``: import, rebalance, export."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from optimizer.cli.app import run

CAPTURE = Path(__file__).parent.parent / "data" / "captures" / "kubernetes.json"


@pytest.fixture
def fleetslice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fleetslice", *arguments])
        return run()

    return said


@pytest.mark.slow
def test_three_commands_rebalance_a_cluster(fleetslice, capsys):
    kubectl = str(CAPTURE)
    assert fleetslice("import", "kubernetes", kubectl, "--out-dir", "cluster") == 0
    state = ("cluster", "--state", "cluster/state.yaml")
    assert fleetslice("rebalance", *state, "--out", "plan.json") == 0
    out = ("--pods", kubectl, "--out-dir", "manifests")
    assert fleetslice("export", "kubernetes", "plan.json", *out) == 0

    plan = json.loads(Path("plan.json").read_text("utf-8"))
    running = yaml.safe_load(Path("cluster/state.yaml").read_text("utf-8"))["replicas"]
    used = {gpu for replica in running for gpu in replica["gpus"]}
    now = {gpu for replica in plan["replicas"] for gpu in replica["gpus"]}
    assert len(now) < len(used)
    assert {step["action"] for step in plan["steps"]} >= {"create_instance", "start", "stop"}

    manifests = list(yaml.safe_load_all(Path("manifests/kubernetes.yaml").read_text("utf-8")))
    asked: Counter[tuple[str, str]] = Counter()
    for one in (m for m in manifests if m["kind"] == "Deployment"):
        pod = one["spec"]["template"]["spec"]
        (limits,) = [c["resources"]["limits"] for c in pod["containers"]]
        (resource,) = [r for r in limits if r.startswith("nvidia.com/")]
        node = pod["nodeSelector"]["kubernetes.io/hostname"]
        asked[node, resource] += one["spec"]["replicas"] * int(limits[resource])
    given = Counter(
        (
            replica["gpus"][0].split("/")[0],
            f"nvidia.com/mig-{replica['mig']['profile']}" if "mig" in replica else "nvidia.com/gpu",
        )
        for replica in plan["replicas"]
    )
    assert asked == given
    assert "once its new pods are ready, delete" in capsys.readouterr().err
