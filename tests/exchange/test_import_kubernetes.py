"""What kubectl prints becomes a fleet, what runs and what should; shares are not counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.documents import catalogue
from optimizer.documents.yaml_reader import read_yaml
from optimizer.exchange import CannotRead, File, Input
from optimizer.exchange.kube_import import import_kubernetes, running_pods
from optimizer.exchange.kube_nodes import pack
from optimizer.exchange.kube_objects import profile_of, quantity

CAPTURE = Path(__file__).parent.parent / "data" / "captures" / "kubernetes.json"
GPUS = catalogue().gpus.all()
H100 = next(g for g in GPUS if g.name == "h100-80gb-sxm")
PRODUCT = "NVIDIA-H100-80GB-HBM3"


def node(
    name: str = "n1",
    product: str | None = PRODUCT,
    count: int | None = 2,
    capacity: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    **labels: str,
) -> dict[str, Any]:
    told = {"nvidia.com/gpu.product": product, "nvidia.com/gpu.count": count}
    told |= {f"nvidia.com/{k.replace('__', '-').replace('_', '.')}": v for k, v in labels.items()}
    return {
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {k: str(v) for k, v in told.items() if v is not None},
        },
        "spec": spec or {},
        "status": {"capacity": {"nvidia.com/gpu": "2"} if capacity is None else capacity},
    }


def pod(
    name: str, resource: str = "nvidia.com/gpu", node: str | None = "n1", space: str = "a", **more
) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": space,
            "labels": {"pod-template-hash": "h"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{name.rsplit('-', 1)[0]}-h"}],
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {resource: "1"}}}],
            **more,
        },
        "status": {"phase": "Running" if node else "Pending"},
    }


def given(*objects: dict[str, Any] | File, **said) -> Input:
    files = [o for o in objects if isinstance(o, File)]
    items = [o for o in objects if not isinstance(o, File)]
    if items:
        files.append(File("all.json", json.dumps({"kind": "List", "items": items})))

    def parse(file: File) -> list[Any]:
        return [value for value, _ in read_yaml(file.text)[0]]

    return Input(tuple(files), GPUS, parse, **said)


def read(*objects, **said):
    found = import_kubernetes(given(*objects, **said))
    return {d.kind: d.data for d in found.documents}, found


def only_node(*objects, **said) -> dict[str, Any]:
    return read(*objects, **said)[0]["Fleet"]["nodes"][0]


def notes(found) -> str:
    return "\n".join(
        [*found.left_out, *(n for d in found.documents for n in (*d.notes, *d.unsaid))]
    )


def test_a_mixed_cluster_is_read():
    kinds, found = read(File("k.json", CAPTURE.read_text("utf-8")))
    nodes = {n["name"]: n for n in kinds["Fleet"]["nodes"]}
    assert {n: (e["gpu"], e["gpus"], len(e["devices"])) for n, e in nodes.items()} == {
        "gpu-a": ("h100-80gb-sxm", 4, 2),
        "gpu-b": ("h100-80gb-sxm", 4, 4),
        "gpu-c": ("h100-80gb-sxm", 4, 4),
    }
    assert nodes["gpu-a"]["cpu_cores"] == 63.9  # less what a pod without GPU asks for
    state, workloads = kinds["State"], kinds["Workloads"]
    assert [r["id"] for r in state["replicas"]][:3] == ["assistant/0", "embed/0", "embed/1"]
    assert len(state["replicas"]) == 8
    assert len(state["replicas"]) + len(state["instances"]) == 2 + 4 + 4 + 6 + 12 + 12 + 1
    assert [(d["name"], d["needs"], d["replicas"]) for d in workloads["deployments"]] == [
        ("assistant", {"gpus": 1}, {"min": 1}),
        ("embed", {"mig_profile": "1g.10gb"}, {"min": 4}),
        ("ranker", {"mig_profile": "3g.40gb"}, {"min": 3}),
    ]
    assert "labels only count them" in notes(found)
    assert found.left_out == ()


def test_strategy_single_counts_instances():
    single = node(product=f"{PRODUCT}-MIG-1g.10gb", count=14, capacity={"nvidia.com/gpu": "14"})
    kinds, _ = read(single, pod("x-1"))
    entry = kinds["Fleet"]["nodes"][0]
    assert (entry["gpus"], entry["mig_layouts"]) == (2, "fixed")
    assert [len(d["layout"]) for d in entry["devices"].values()] == [7, 7]
    assert kinds["State"]["replicas"][0]["mig"] == {"profile": "1g.10gb", "start": 0}


@pytest.mark.parametrize(
    "shared",
    [
        node(product=f"{PRODUCT}-SHARED", capacity={"nvidia.com/gpu": "8"}, gpu_replicas="4"),
        node(capacity={"nvidia.com/gpu.shared": "8", "nvidia.com/gpu": "0"}, gpu_replicas="4"),
        node(capacity={"nvidia.com/gpu": "20"}),
    ],
    ids=["suffix", "renamed", "more offered than there"],
)
def test_shares_are_no_room(shared):
    resource = next(iter(shared["status"]["capacity"]))
    kinds, found = read(shared, pod("x-1", resource))
    assert kinds["Fleet"]["nodes"][0]["gpus"] == 2
    assert kinds["Fleet"]["nodes"][0]["cordoned"] is True
    assert "State" not in kinds
    assert "Workloads" not in kinds
    assert "promises it no room" in notes(found)
    assert "cordoned" not in only_node(shared)  # with nobody on it, the GPUs are free


@pytest.mark.parametrize(
    ("spec", "cordoned"),
    [
        ({}, False),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, False),
        ({"taints": [{"key": "team", "value": "x", "effect": "PreferNoSchedule"}]}, False),
        ({"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]}, True),
        ({"unschedulable": True}, True),
    ],
)
def test_cordons_and_taints(spec, cordoned):
    assert only_node(node(spec=spec)).get("cordoned", False) is cordoned


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([], "no node with GPUs"),
        ([node(product=None)], "--gpu PRODUCT"),
        ([node(product="NVIDIA-X999")], "no datasheet of NVIDIA-X999"),
        ([pod("x-1")], "no node with GPUs"),
        ([File("x.json", "{\n oops")], "x.json:2: broken JSON"),
        ([File("x.json", '{"a": 1}')], "without kind"),
        ([node(), File("lgi.txt", "hello")], "not understood"),
    ],
)
def test_what_cannot_be_a_fleet_is_refused(objects, reason):
    with pytest.raises(CannotRead) as refused:
        read(*objects)
    assert reason in "\n".join(refused.value.reasons)


def test_a_node_of_unknown_product_leaves_the_others():
    _, found = read(node("n1"), node("n2", product="NVIDIA-X999"))
    assert "X999" in found.left_out[0]


def test_said_product_fills_in():
    bare = node(product=None, count=None, capacity={"nvidia.com/gpu": "4"})
    assert only_node(bare, gpu="h100-80gb-sxm")["gpus"] == 4


def test_one_name_in_two_namespaces_and_two_shapes():
    mixed = node(
        count=3,
        capacity={"nvidia.com/gpu": "2", "nvidia.com/mig-3g.40gb": "2"},
        mig_strategy="mixed",
    )
    kinds, _ = read(
        mixed, pod("x-1"), pod("x-2", space="b"), pod("y-1", "nvidia.com/mig-3g.40gb", space="b")
    )
    assert [d["name"] for d in kinds["Workloads"]["deployments"]] == ["a.x", "b.x", "y"]
    kinds, _ = read(mixed, pod("x-1"), pod("x-2", "nvidia.com/mig-3g.40gb"))
    assert [d["name"] for d in kinds["Workloads"]["deployments"]] == ["x-1gpu", "x-3g.40gb"]


def test_pending_pods_are_wanted_and_do_not_run():
    kinds, _ = read(node(), pod("x-1"), pod("x-2", node=None))
    assert kinds["Workloads"]["deployments"][0]["replicas"] == {"min": 2}
    assert len(kinds["State"]["replicas"]) == 1


def test_selectors_become_pins_and_anti_affinity_spread():
    selects = pod("x-1", nodeSelector={"nvidia.com/pool": "p"})
    kinds, _ = read(node("n1", pool="p"), node("n2"), selects)
    assert kinds["Workloads"]["deployments"][0]["pin"] == ["n1"]
    rule = {"topologyKey": "kubernetes.io/hostname"}
    rule["labelSelector"] = {"matchLabels": {"pod-template-hash": "h"}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [rule]}}
    kinds, _ = read(node(), pod("x-1", affinity=affinity))
    assert kinds["Workloads"]["deployments"][0]["spread"] == {"node": 1}


def test_a_capture_beside_says_where_instances_stand():
    mixed = node(capacity={"nvidia.com/gpu": "1", "nvidia.com/mig-3g.40gb": "1"})
    capture = File(
        "n1/smi.txt",
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44b)\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44c)\n"
        "GPU instances:\n|   1  MIG 3g.40gb          9        2          0:4     |\n",
        "n1",
    )
    kinds, found = read(mixed, capture, pod("x-1", "nvidia.com/mig-3g.40gb"))
    assert kinds["State"]["replicas"][0]["gpus"] == ["n1/1"]
    assert kinds["State"]["replicas"][0]["mig"] == {"profile": "3g.40gb", "start": 0}
    assert "labels only count them" not in notes(found)


def test_yaml_lists_are_read_too():
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n"
        f"    name: n1\n    labels: {{nvidia.com/gpu.product: {PRODUCT}, "
        'nvidia.com/gpu.count: "2"}\n'
        '  status: {capacity: {nvidia.com/gpu: "2", cpu: "8", memory: 16Gi}}\n'
    )
    entry = only_node(File("n.yaml", text))
    assert (entry["gpus"], entry["cpu_cores"], entry["memory_gib"]) == (2, 8, 16)


def test_running_pods_are_found_by_the_names_of_the_import():
    pods = running_pods(given(File("k.json", CAPTURE.read_text("utf-8"))))
    assert sorted(pods) == ["assistant", "embed", "ranker"]
    assert pods["ranker"]["metadata"]["name"] == "ranker-6c8f7d9b54-a1"


@pytest.mark.parametrize(
    ("resource", "profile"),
    [
        ("nvidia.com/mig-3g.40gb", "3g.40gb"),
        ("nvidia.com/mig-1g.10gb.me", "1g.10gb+me"),
        ("nvidia.com/mig-1g.24gb.me.all", "1g.24gb+me.all"),
        ("nvidia.com/mig-1g.24gb-me", "1g.24gb-me"),
    ],
)
def test_profile_of_a_resource(resource, profile):
    assert profile_of(resource) == profile


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("8", 8), ("191450m", 191.45), ("2Ki", 2048), ("1.5Gi", 1.5 * 2**30), ("2E", 2e18)],
        *[("1e3", 1000), ("x", None), ("", None), (".", None), ("9" * 400, None)],
    ],
)
def test_quantities(text, value):
    assert quantity(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("names", "gpus", "fits"),
    [
        ([], 2, True),
        (["7g.80gb"] * 2, 2, True),
        (["3g.40gb"] * 4 + ["1g.10gb"] * 0, 2, True),
        (["4g.40gb", "3g.40gb", "1g.10gb", "1g.10gb"], 2, True),
        (["4g.40gb"] * 3, 2, False),
    ],
)
def test_packing_instances_on_gpus(names, gpus, fits):
    layouts = pack(H100, tuple(names), gpus)
    assert (layouts is not None) is fits
    if layouts is not None:
        assert len(layouts) == gpus
        assert sorted(p.profile for layout in layouts for p in layout) == sorted(names)
        assert all(H100.mig.faults(layout) == [] for layout in layouts)


@pytest.mark.parametrize(
    "claimed",
    [
        pod("x-1", "nvidia.com/gpumem"),
        pod("x-1", "cpu", resourceClaims=[{"name": "gpu"}]),
        {**pod("x-1", "cpu"), "metadata": {"name": "x", "annotations": {"gpu-fraction": "0.5"}}},
    ],
    ids=["HAMi", "DRA", "KAI"],
)
def test_parts_of_gpus_in_others_words_are_told(claimed):
    kinds, found = read(node(), claimed)
    assert any(s in notes(found) for s in ("which is not read here", "add kubectl get resource"))
    assert kinds["Fleet"]["nodes"][0]["cordoned"] is True


def test_node_pools_of_google():
    bare = node(product=None, count=None, capacity={"nvidia.com/gpu": "7"})
    bare["metadata"]["labels"] = {
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
    }
    entry = only_node(bare)
    assert (entry["gpu"], entry["gpus"]) == ("a100-40gb-sxm", 1)
    assert len(entry["devices"]["0"]["layout"]) == 7
    bare["metadata"]["labels"]["cloud.google.com/gke-gpu-sharing-strategy"] = "time-sharing"
    assert "shares are no room" in notes(read(bare)[1])


def test_what_cannot_be_so_takes_nothing_new():
    stale = {"nvidia.com/gpu": "2", "nvidia.com/mig-1g.10gb": "6", "nvidia.com/mig-3g.40gb": "0"}
    kinds, found = read(node(capacity=stale, mig_strategy="mixed"))
    assert kinds["Fleet"]["nodes"][0]["cordoned"] is True
    assert "they do not fit 0 GPUs" in notes(found)
    in_turns = node(capacity={"nvidia.com/mig-1g.10gb.shared": "28"})
    assert only_node(in_turns)["cordoned"] is True


@pytest.mark.parametrize(
    ("capacity", "allocatable", "cordoned", "told"),
    [
        ({"nvidia.com/gpu": "4"}, {"nvidia.com/gpu": "4"}, set(), ""),
        ({"nvidia.com/gpu": "4"}, {"nvidia.com/gpu": "3"}, {"3"}, "1 of its nvidia.com/gpu are"),
        ({"nvidia.com/gpu": "2"}, {"nvidia.com/gpu": "2"}, {"2", "3"}, "offers 2"),
        ({"cpu": "1"}, {"cpu": "1"}, set(), ""),  # no device plugin; labels alone
    ],
)
def test_gpus_that_nobody_hands_out_are_cordoned(capacity, allocatable, cordoned, told):
    broken = node(count=4, capacity=capacity)
    broken["status"]["allocatable"] = allocatable
    kinds, found = read(broken)
    assert set(kinds["Fleet"]["nodes"][0].get("devices", {})) == cordoned
    assert told in notes(found)


def test_slices_that_nobody_hands_out_close_their_node():
    capacity = {"nvidia.com/mig-1g.10gb": "7"}
    broken = node(count=1, capacity=capacity, mig_strategy="mixed")
    broken["status"]["allocatable"] = {"nvidia.com/mig-1g.10gb": "6"}
    kinds, found = read(broken)
    assert kinds["Fleet"]["nodes"][0]["cordoned"] is True
    assert "1 of its nvidia.com/mig-1g.10gb are not allocatable" in notes(found)


LISTED = json.dumps({"kind": "List", "items": [node()]}, indent=1)


@pytest.mark.parametrize(
    "text",
    [
        LISTED + "\n" + json.dumps(pod("x-1")),
        json.dumps(node()) + "\n" + json.dumps(pod("x-1")) + "\n",
        "$ kubectl get nodes -o json\n" + LISTED + json.dumps(pod("x-1")),
        "Warning: v1 ComponentStatus is deprecated\r\n" + LISTED + json.dumps(pod("x-1")),
    ],
    ids=["two lists", "a line each", "after a prompt", "after a warning"],
)
def test_json_in_the_ways_it_is_captured(text):
    kinds, _ = read(File("k.json", text))
    assert kinds["State"]["replicas"][0]["gpus"] == ["n1/0"]


def test_captures_that_overlap_count_once():
    kinds, _ = read(node(), node(), pod("x-1"), pod("x-1"))
    assert kinds["Workloads"]["deployments"][0]["replicas"] == {"min": 1}


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([node(), node(count=4)], "two nodes are called n1 and differ"),
        ([node(name="n1\nx: y")], "without a name that Kubernetes would take"),
        ([node(product=f"{PRODUCT}-MIG-INVALID")], "instances that are not alike"),
        ([File("x.json", "[" * 100_000)], "nested deeper"),
        ([File("x.json", '{"kind": "List", "items": [null]}')], "no Kubernetes object"),
        ([File("x.txt", "NAME  STATUS\nn1    Ready\n")], "tables and describe are not read"),
    ],
)
def test_odd_objects_are_refused(objects, reason):
    with pytest.raises(CannotRead) as refused:
        read(*objects)
    assert reason in "\n".join(refused.value.reasons)
