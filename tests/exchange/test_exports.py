"""Every export holds to the schema of whoever reads it, and comes back as the same placement."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field, model_validator

from optimizer.cli.exchanging import Manifests, _parsed, _source, _text
from optimizer.documents import catalogue
from optimizer.exchange import (
    EXPORTERS,
    IMPORTERS,
    CannotExport,
    File,
    Input,
    running_pods,
)
from optimizer.exchange.kube_names import dns_label, label_value
from optimizer.exchange.kube_pods import pod_spec

DATA = Path(__file__).parent.parent / "data"
GPUS = catalogue().gpus.all()
KUBERNETES = json.loads((DATA / "schemas" / "kubernetes-1.37.json").read_text("utf-8"))
CUSTOM = json.loads((DATA / "schemas" / "custom-resources.json").read_text("utf-8"))
KINDS = KUBERNETES["kinds"] | CUSTOM["kinds"]
DEFINITIONS = KUBERNETES["definitions"] | CUSTOM["definitions"]
IMAGES = [f"{name}=registry.example/{name}:1" for name in ("fleetslice", "tensorrt-llm")]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A plan with slices, whole GPUs, shares, three engines and things no engine serves."""
    plan = tmp_path_factory.mktemp("plan") / "plan.json"
    command = [sys.executable, "-m", "optimizer", "plan", str(DATA / "exports" / "lab.yaml")]
    command += ["--out", str(plan)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return _source(plan, None, Manifests(IMAGES, "serving"))


def files(source, name: str) -> dict[str, str]:
    return {a.name: _text(a, ("head",)) for a in EXPORTERS[name](source).artifacts}


def manifests(source, name: str) -> list[dict]:
    texts = [t for n, t in files(source, name).items() if n.endswith(".yaml")]
    return [d for text in texts for d in yaml.safe_load_all(text)]


def faults(document: dict) -> list[str]:
    """What the API would refuse."""
    schema = {"$ref": KINDS[document["kind"]], "definitions": DEFINITIONS}
    found = [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"
        for e in Draft7Validator(schema).iter_errors(document)
    ]
    return found + list(names_that_are_refused(document))


def names_that_are_refused(document: dict):
    """Rules of the API that no schema states: names and label values."""
    label = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", document["metadata"]["name"]):
        yield f"{document['metadata']['name']}: no name"
    if document["kind"] == "Service" and not document["metadata"]["name"][0].isalpha():
        yield f"{document['metadata']['name']}: a Service starts with a letter"
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            labels = {**(value.get("labels") or {}), **(value.get("matchLabels") or {})}
            bad = [v for v in labels.values() if len(v) > 63 or not label.match(v)]
            yield from (f"{v}: no label value" for v in bad)
            stack += value.values()
        elif isinstance(value, list):
            stack += value


@pytest.mark.parametrize("name", ["kubernetes", "kserve", "kuberay", "dynamo"])
def test_manifests_hold_to_their_schemas(source, name):
    found = manifests(source, name)
    assert found
    assert {f"{d['kind']} {d['metadata']['name']}": faults(d) for d in found} == {
        f"{d['kind']} {d['metadata']['name']}": [] for d in found
    }


def test_the_schemas_catch_a_typo(source):
    first = manifests(source, "kubernetes")[0]
    assert faults({**first, "spec": {**first["spec"], "replica": 1}})
    broken = json.loads(json.dumps(first).replace("containerPort", "port"))
    assert faults(broken)
    service = next(d for d in manifests(source, "kuberay") if d["kind"] == "RayService")
    assert faults({**service, "spec": {**service["spec"], "rayClusterSpec": {}}})


def test_the_kinds_that_each_platform_gets(source):
    def kinds(name):
        return Counter(d["kind"] for d in manifests(source, name))

    served = [r for r in source.plan.placement.replicas if r.config.engine]
    kinds_of_device = {r.mig.profile if r.mig else len(r.gpus) for r in served}
    assert kinds("kubernetes") == {
        **{"Deployment": 4, "Service": 4, "PodDisruptionBudget": 4},
        "ResourceClaimTemplate": len(kinds_of_device),
    }
    assert kinds("kuberay") == {"RayService": 1, "RayCluster": 1, "RayCronJob": 1}
    assert kinds("kserve") == {"InferenceService": 4}
    assert kinds("dynamo") == {"DynamoGraphDeployment": 3}


def test_pods_ask_for_what_the_plan_gives_them(source):
    by_name = {d["metadata"]["name"]: d for d in manifests(source, "kubernetes")}
    big = by_name["big-0"]["spec"]["template"]["spec"]
    assert big["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert big["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    assert big["nodeSelector"] == {"kubernetes.io/hostname": "h100-1"}
    chat = next(d for n, d in by_name.items() if n.startswith("support-chat-0"))
    pod = chat["spec"]["template"]
    requests = pod["spec"]["containers"][0]["resources"]["requests"]
    placed = next(r for r in source.plan.placement.replicas if r.id == "Support_Chat/0")
    assert requests == {
        f"nvidia.com/mig-{placed.mig.profile}": "1",
        "cpu": "2000m",
        "memory": "16384Mi",
    }
    assert pod["metadata"]["labels"]["fleetslice.io/deployment"] == "Support_Chat"
    assert pod["metadata"]["annotations"] == {"fleetslice.io/tenant": "Acme Corp"}


# Ray fixes how it reaches clusters when it is imported, for the rest of its process.
NAMES_FOR_RAY = """
import json, sys
from ray.serve.schema import ServeDeploySchema
found = ServeDeploySchema.model_validate(json.load(sys.stdin))
print(json.dumps([one.name for one in found.applications]))
"""


def test_serve_config_is_one_for_ray(source):
    config = yaml.safe_load(files(source, "ray-serve")["serve.yaml"])
    done = subprocess.run(
        [sys.executable, "-c", NAMES_FOR_RAY],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Support_Chat", "big"]
    service = next(d for d in manifests(source, "kuberay") if d["kind"] == "RayService")
    assert json.loads(service["spec"]["serveConfigV2"]) == config


def test_every_ray_bundle_finds_a_worker_of_its_own(source):
    """What bundles ask of each device is what the worker groups have."""
    cluster = next(d for d in manifests(source, "kuberay") if d["kind"] == "RayCluster")["spec"]
    have: Counter[str] = Counter()
    for group in cluster["workerGroupSpecs"]:
        start = group["rayStartParams"]
        words = subprocess.run(
            ["bash", "-c", f"printf %s {start['resources']}"], capture_output=True, check=True
        )
        ((name, each),) = json.loads(words.stdout).items()
        assert str(each) == start["num-gpus"]
        have[name] += each * group["replicas"]
    asked: Counter[str] = Counter()
    for application in yaml.safe_load(files(source, "ray-serve")["serve.yaml"])["applications"]:
        for llm in application["args"]["llm_configs"]:
            for bundle in llm["placement_group_config"]["bundles"]:
                (name,) = bundle.keys() - {"GPU"}
                asked[name] += llm["deployment_config"]["num_replicas"]
    assert asked == have


class Entry(BaseModel):
    """An entry of a mig-parted config, as strict as api/spec/v1/spec.go."""

    model_config = ConfigDict(extra="forbid", strict=True)
    device_filter: str | list[str] | None = Field(None, alias="device-filter")
    devices: list[int] | str
    enabled: bool = Field(alias="mig-enabled")
    wanted: dict[str, int] | None = Field(None, alias="mig-devices")

    @model_validator(mode="after")
    def agrees(self):
        assert self.devices == "all" or isinstance(self.devices, list)
        assert self.enabled == bool(self.wanted)
        return self


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    version: str = Field(pattern="^v1$")
    configs: dict[str, list[Entry]] = Field(alias="mig-configs", min_length=1)


def test_mig_parted_reads_its_config(source):
    texts = files(source, "mig-parted")
    config = yaml.safe_load(texts["mig-parted.yaml"])
    spec = Spec.model_validate(config)
    assert list(spec.configs) == ["plan-h100-1"]
    config_map = yaml.safe_load(texts["config-map.yaml"])
    assert faults(config_map) == []
    assert yaml.safe_load(config_map["data"]["config.yaml"]) == config
    assert [faults(d) for d in yaml.safe_load_all(texts["node-labels.yaml"])] == [[]]
    bash(texts["label-nodes.sh"], "-n")


def test_prometheus_reads_the_metrics(source):
    found = list(text_string_to_metric_families(files(source, "prometheus")["fleetslice.prom"]))
    assert "fleetslice_gpus" in {f.name for f in found}
    samples = {(s.name, s.labels.get("deployment")): s.value for f in found for s in f.samples}
    assert samples["fleetslice_replicas", "big"] == 1


def test_tables_are_csv(source):
    for text in files(source, "csv").values():
        body = text.split("\n", 1)[1]
        rows = list(csv.reader(io.StringIO(body)))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 1


def test_triton_models(source):
    texts = files(source, "triton")
    model = yaml.safe_load(texts["trt-0/1/model.yaml"])
    assert model["backend"] == "pytorch"
    assert model["triton_config"]["max_batch_size"] == 0
    assert 0 < model["kv_cache_config"]["free_gpu_memory_fraction"] < 1
    bash(texts["complete.sh"], "-n")


def test_command_lines_are_a_script(source):
    text = files(source, "engines")["engines.sh"]
    bash(text, "-n")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(bool(r.config.engine) for r in source.plan.placement.replicas)
    assert all("CUDA_VISIBLE_DEVICES=" in line for line in lines)
    assert len({re.search(r"--port (\d+)", line)[1] for line in lines}) == len(lines)


def bash(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["bash", *arguments],
        input=script,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LGI = """+-------------------------------------------------------+
| GPU instances:                                        |
| GPU   Name             Profile  Instance   Placement  |
|                          ID       ID       Start:Size |
|=======================================================|
|   0  MIG 1g.10gb         19        9          2:1     |
+-------------------------------------------------------+
|   0  MIG 1g.10gb+me      20       13          0:1     |
+-------------------------------------------------------+
|   0  MIG 3g.40gb          9        2          4:4     |
+-------------------------------------------------------+
"""
FAKE = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
if [[ " $* " == *" -lgi "* ]]; then cat "$LISTING"; fi
"""


@pytest.mark.parametrize("listing", [LGI, LGI.replace("     |\n", "\n")], ids=["whole", "no bar"])
def test_the_script_finds_instances_where_they_lie(source, tmp_path, listing):
    """The plan's own scripts run; a destroyed instance is found by its start."""
    tool, calls, listed = tmp_path / "nvidia-smi", tmp_path / "calls", tmp_path / "listing"
    tool.write_text(FAKE, "utf-8")
    tool.chmod(0o755)
    listed.write_text(listing, "utf-8")
    path = f"{tmp_path}:{os.environ['PATH']}"
    (script,) = files(source, "nvidia-smi").values()
    bash(script + "destroy 0 0\ndestroy 0 4\n", PATH=path, CALLS=str(calls), LISTING=str(listed))
    made = calls.read_text("utf-8").splitlines()
    assert made[-6:] == [
        *("mig -i 0 -lgi", "mig -i 0 -dci -gi 13", "mig -i 0 -dgi -gi 13"),
        *("mig -i 0 -lgi", "mig -i 0 -dci -gi 2", "mig -i 0 -dgi -gi 2"),
    ]
    created = {line for line in made if "-cgi" in line}
    wanted = {(i.placed.profile, i.placed.start) for g in source.plan.gpus for i in g.instances}
    assert len(created) == sum(len(g.instances) for g in source.plan.gpus) >= len(wanted)


# Round trips: what a format can carry comes back.


def given(*texts: str, **said) -> Input:
    return Input(tuple(File(f"f{i}.yaml", t) for i, t in enumerate(texts)), GPUS, _parsed, **said)


def test_kubernetes_comes_back(source):
    """Deployments become pods, pods become replicas: the same counts of the same devices."""
    pods = [
        {
            "kind": "Pod",
            "metadata": {
                **d["spec"]["template"]["metadata"],
                "name": f"{d['metadata']['name']}-{n}",
                "namespace": d["metadata"]["namespace"],
            },
            "spec": {**d["spec"]["template"]["spec"], "nodeName": "h100-1"},
            "status": {"phase": "Running"},
        }
        for d in manifests(source, "kubernetes")
        if d["kind"] == "Deployment"
        for n in range(d["spec"]["replicas"])
    ]
    plan = source.plan
    slices = Counter(
        i.placed.profile for g in plan.gpus for i in g.instances if g.id.startswith("h100-1/")
    )
    divided = sum(bool(g.instances) for g in plan.gpus)
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.count": "6"}
    capacity = {f"nvidia.com/mig-{p}": str(n) for p, n in slices.items()}
    capacity["nvidia.com/gpu"] = str(6 - divided)
    node = {"kind": "Node", "metadata": {"name": "h100-1", "labels": labels}}
    node |= {"status": {"capacity": capacity}}
    cluster = json.dumps({"kind": "List", "items": [node, *pods]})
    found = IMPORTERS["kubernetes"](given(cluster))
    state = next(d.data for d in found.documents if d.kind == "State")

    def shapes(replicas):
        return Counter(
            (r["deployment"], len(r["gpus"]), (r.get("mig") or {}).get("profile")) for r in replicas
        )

    served = {"Support_Chat", "big", "sg", "trt"}
    assert shapes(state["replicas"]) == Counter(
        (r.deployment, len(r.gpus), r.mig.profile if r.mig else None)
        for r in plan.placement.replicas
        if r.deployment in served
    )


def test_nvidia_smi_comes_back_with_its_starts(source):
    """What the script creates, listed as nvidia-smi would, is the layout of the plan."""
    (script,) = files(source, "nvidia-smi").values()
    h100 = next(g for g in GPUS if g.name == "h100-80gb-sxm")
    names = {p.profile_id: p for p in h100.mig.profiles}
    uuid = "GPU-48aeb943-9458-4282-da24-e5f49e0db44"
    text = "".join(f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: {uuid}{i})\n" for i in range(6))
    on = {int(i) for i in re.findall(r"-i (\d+) -mig 1", script)}
    text += "index, mig.mode.current\n"
    text += "".join(f"{i}, {'Enabled' if i in on else 'Disabled'}\n" for i in range(6))
    text += "\nGPU instances:\n"
    for number, (gpu, made) in enumerate(re.findall(r"-i (\d+) -cgi (\S+) -C", script)):
        for one in made.split(","):
            id, start = map(int, one.split(":"))
            profile = names[id]
            text += f"| {gpu} MIG {profile.name} {id} {number} {start}:{profile.memory_slices} |\n"
    found = IMPORTERS["nvidia-smi"](given(text, node="h100-1"))
    state = next(d.data for d in found.documents if d.kind == "State")
    assert {(i["gpu"], i["profile"], i["start"]) for i in state["instances"]} == {
        (g.id, i.placed.profile, i.placed.start) for g in source.plan.gpus for i in g.instances
    }


def test_mig_parted_comes_back(source):
    text = files(source, "mig-parted")["mig-parted.yaml"]
    fleet = (DATA / "exports" / "lab.yaml").read_text("utf-8").split("---")[0]
    found = IMPORTERS["mig-parted"](given(text, fleet))
    (state,) = [d.data for d in found.documents]
    assert Counter((i["gpu"], i["profile"]) for i in state["instances"]) == Counter(
        (g.id, i.placed.profile) for g in source.plan.gpus for i in g.instances
    )


def test_a_running_pod_becomes_a_template():
    """What the cluster added goes, what was asked for stays, the device is the plan's."""
    text = (DATA / "captures" / "kubernetes.json").read_text("utf-8")
    pod = running_pods(given(text))["ranker"]
    labels, spec = pod_spec(pod, ("nvidia.com/mig-4g.40gb", 1), {"kubernetes.io/hostname": "n9"})
    schema = {"$ref": "#/definitions/core.v1.PodTemplateSpec", "definitions": DEFINITIONS}
    template = {"metadata": {"labels": labels}, "spec": spec}
    assert list(Draft7Validator(schema).iter_errors(template)) == []
    assert labels == {"app": "ranker"}
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": "n9"}
    (container,) = spec["containers"]
    assert container["image"] == pod["spec"]["containers"][0]["image"]
    assert container["resources"] == {
        "limits": {"memory": "16Gi", "nvidia.com/mig-4g.40gb": "1"},
        "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/mig-4g.40gb": "1"},
    }
    assert not {"nodeName", "volumes"} & spec.keys()
    assert [t["key"] for t in spec["tolerations"]] == ["nvidia.com/gpu"]


def test_what_no_manifest_can_carry_is_said(source):
    notes = "\n".join(EXPORTERS["kubernetes"](source).notes)
    assert "vision/0 is left out: it takes a share of a GPU" in notes
    assert "legacy/0 is left out: no engine serves it" in notes


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_replica_is_written_or_told_of(source, name):
    """A plan of slices, groups, whole GPUs and shares: nothing vanishes without a word."""
    replicas = source.plan.placement.replicas
    assert {bool(r.mig) for r in replicas} == {bool(r.share) for r in replicas} == {True, False}
    assert {len(r.gpus) for r in replicas} == {1, 2}
    found = EXPORTERS[name](source)
    if any("not what runs on them" in note for note in found.notes):
        return
    notes, text = "\n".join(found.notes), "\n".join(_text(a, ("",)) for a in found.artifacts)
    assert [
        r.id
        for r in replicas
        if r.id not in notes and r.deployment not in text and dns_label(r.deployment) not in text
    ] == []


def test_an_engine_without_an_image_is_asked_for(source):
    with pytest.raises(CannotExport, match="--image tensorrt-llm=IMAGE"):
        EXPORTERS["kubernetes"](replace(source, images={}))


@pytest.mark.parametrize(
    "name", ["chat", "Chat", "a_b", "a.b", "1st", "x" * 80, "ünicode", "a:b@c", "-"]
)
def test_names_for_kubernetes(name):
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", dns_label(name))
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", label_value(name))
    assert dns_label("a:b") != dns_label("a@b")
    assert label_value("a b") != label_value("a:b")
