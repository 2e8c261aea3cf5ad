"""ResourceSlices become GPUs and instances with their starts, allocated claims what runs there."""

import json
from typing import Any

import pytest

from optimizer.documents import catalogue
from optimizer.exchange import CannotRead, File, Input
from optimizer.exchange.kube_import import import_kubernetes, running_pods
from optimizer.exchange.kube_pods import pod_spec

GPUS = catalogue().gpus.all()
DRIVER = "gpu.nvidia.com"


def uuid(minor: int) -> str:
    return f"GPU-0a0b0c0d-0000-0000-0000-00000000000{minor}"


def attributes(product: str, minor: int, **more: str) -> dict[str, Any]:
    said = {"productName": product, "architecture": "Hopper", **more}
    found: dict[str, Any] = {k: {"string": v} for k, v in said.items()}
    found["driverVersion"] = {"version": "580.95.5"}
    # Minor numbers count down the bus here, as they may: nvidia-smi goes by the bus.
    found["resource.kubernetes.io/pciBusID"] = {"string": f"0000:{9 - minor}8:00.0"}
    return found


def whole(minor: int, product: str = "NVIDIA H100 80GB HBM3", **more) -> dict[str, Any]:
    said = attributes(product, minor, type="gpu", uuid=uuid(minor))
    capacity = {"memory": {"value": "81559Mi"}}
    return {"name": f"gpu-{minor}", "attributes": said, "capacity": capacity, **more}


def part(minor: int, profile: str, start: int, size: int, made: bool = True) -> dict[str, Any]:
    """An instance that stands, or one that the driver would make."""
    said = attributes("NVIDIA H100 80GB HBM3", minor, type="mig", profile=profile)
    said["parentUUID"] = {"string": uuid(minor)}
    name = f"gpu-{minor}-mig-{profile.replace('.', '')}-{start}"
    cells = range(start, start + size)
    if made:
        said["uuid"] = {"string": f"MIG-{name}"}
        capacity = {f"memorySlice{i}": {"value": "1"} for i in cells}
        return {"name": name, "attributes": said, "capacity": capacity}
    counters = {f"memory-slice-{i}": {"value": "1"} for i in cells}
    consumed = [{"counterSet": f"gpu-{minor}-counter-set", "counters": counters}]
    return {"name": name, "attributes": said, "consumesCounters": consumed}


def slices(*devices, node="n1", generation=1, count=1, driver=DRIVER, name="s") -> dict[str, Any]:
    pool = {"name": node, "generation": generation, "resourceSliceCount": count}
    spec = {"driver": driver, "nodeName": node, "pool": pool, "devices": list(devices)}
    return {"kind": "ResourceSlice", "metadata": {"name": f"{node}-{name}"}, "spec": spec}


def claim(name: str, *devices: str, pods=("p-0",), driver=DRIVER, node="n1") -> dict[str, Any]:
    results = [{"driver": driver, "pool": node, "device": d, "request": "r"} for d in devices]
    status = {
        "allocation": {"devices": {"results": results}},
        "reservedFor": [{"resource": "pods", "name": p} for p in pods],
    }
    return {
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "a"},
        "status": status if devices else {},
    }


def pod(name: str, *claims: str, node: str | None = "n1", template: bool = False, **status):
    asked = [
        {"name": f"c{i}", "resourceClaimTemplateName" if template else "resourceClaimName": c}
        for i, c in enumerate(claims)
    ]
    if template:
        status["resourceClaimStatuses"] = [
            {"name": f"c{i}", "resourceClaimName": c} for i, c in enumerate(claims)
        ]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "a"},
        "spec": {
            **({"nodeName": node} if node else {}),
            "resourceClaims": asked,
            "containers": [{"name": "c", "image": "i"}],
        },
        "status": {"phase": "Running", **status},
    }


def read(*objects: dict[str, Any]):
    text = json.dumps({"kind": "List", "items": list(objects)})
    found = import_kubernetes(Input((File("all.json", text),), GPUS, parse=lambda file: []))
    said = [*found.left_out, *(n for d in found.documents for n in (*d.notes, *d.unsaid))]
    return {d.kind: d.data for d in found.documents}, "\n".join(said)


def layouts(fleet: dict[str, Any]) -> dict[str, list[str] | None]:
    (node,) = fleet["nodes"]
    return {
        i: [f"{p['profile']}@{p['start']}" for p in d["layout"]] if "layout" in d else None
        for i, d in sorted(node["devices"].items())
    }


def test_gpus_and_instances_that_stand():
    node = {
        "kind": "Node",
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
        "status": {"allocatable": {"cpu": "64", "memory": "512Gi"}},
    }
    offered = slices(whole(0), whole(1), part(1, "3g.40gb", 4, 4), part(1, "1g.10gb", 0, 1))
    kinds, said = read(node, offered)
    (entry,) = kinds["Fleet"]["nodes"]
    assert (entry["gpu"], entry["gpus"], entry["zone"], entry["cpu_cores"]) == (
        *("h100-80gb-sxm", 2, "z1", 64),
    )
    # gpu-1 comes first on the bus.
    assert layouts(kinds["Fleet"]) == {"0": ["1g.10gb@0", "3g.40gb@4"], "1": None}
    assert entry["devices"]["0"]["uuid"] == uuid(1)
    assert len(kinds["State"]["instances"]) == 2
    assert "labels only count them" not in said


def test_what_the_driver_could_make_does_not_stand():
    possible = [part(0, "3g.40gb", s, 4, made=False) for s in (0, 4)]
    kinds, said = read(slices(whole(0), *possible))
    assert layouts(kinds["Fleet"]) == {"0": None}
    assert "leave MIG to it" in said
    held = claim("c", possible[1]["name"])
    kinds, _ = read(slices(whole(0), *possible), held, pod("p-0", "c"))
    assert layouts(kinds["Fleet"]) == {"0": ["3g.40gb@4"]}
    assert kinds["State"]["replicas"][0]["mig"] == {"profile": "3g.40gb", "start": 4}


def test_claims_say_which_device_each_pod_holds():
    one, two = part(0, "3g.40gb", 0, 4), part(0, "3g.40gb", 4, 4)
    kinds, said = read(
        slices(one, two, whole(1), whole(2)),
        claim("c1", two["name"]),
        claim("c2", "gpu-2", "gpu-1", pods=("q-0",)),
        pod("p-0", "c1"),
        pod("q-0", "c2", template=True),
        pod("r-0", "c3"),
    )
    runs = {r["deployment"]: (r["gpus"], r.get("mig")) for r in kinds["State"]["replicas"]}
    assert runs == {
        "p-0": (["n1/2"], {"profile": "3g.40gb", "start": 4}),
        "q-0": (["n1/0", "n1/1"], None),
    }
    assert kinds["State"]["instances"] == [{"gpu": "n1/2", "profile": "3g.40gb", "start": 0}]
    needs = {d["name"]: d["needs"] for d in kinds["Workloads"]["deployments"]}
    assert needs == {"p-0": {"mig_profile": "3g.40gb"}, "q-0": {"gpus": 2}}
    assert "pod a/r-0: its resource claim (DRA) is not among the allocated ones" in said


def test_an_extended_resource_served_by_a_claim():
    asks = pod("p-0", extendedResourceClaimStatus={"resourceClaimName": "c1"})
    asks["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    kinds, _ = read(slices(whole(0), whole(1)), claim("c1", "gpu-0"), asks)
    assert kinds["State"]["replicas"][0]["gpus"] == ["n1/1"]


def test_devices_whose_holder_is_unknown_take_nothing_new():
    shared = claim("c1", "gpu-0", pods=("p-0", "p-1"))
    kinds, said = read(
        slices(whole(0), whole(1)), shared, claim("c2", "gpu-1"), pod("p-0", "c1"), pod("p-1", "c1")
    )
    (entry,) = kinds["Fleet"]["nodes"]
    assert all(d["cordoned"] for d in entry["devices"].values())
    assert "shares its resource claim a/c1 with other pods" in said
    assert "claim a/c2 holds it" in said


def test_tainted_devices_are_cordoned():
    bad = whole(0, taints=[{"key": "gpu.nvidia.com/xid", "effect": "NoExecute"}])
    kinds, said = read(slices(bad, whole(1)))
    cordoned = {i: d.get("cordoned") for i, d in kinds["Fleet"]["nodes"][0]["devices"].items()}
    assert cordoned == {"0": None, "1": True}
    assert "taint gpu.nvidia.com/xid" in said


def test_older_objects_and_other_drivers():
    basic = {"name": "gpu-0", "basic": {k: v for k, v in whole(0).items() if k != "name"}}
    stale = slices(whole(0), whole(1), generation=1, name="old")
    channel = slices({"name": "channel-0"}, driver="compute-domain.nvidia.com", name="imex")
    kinds, _ = read(slices(basic, generation=2), stale, channel)
    assert kinds["Fleet"]["nodes"][0]["gpus"] == 1


def test_a_template_claims_what_the_plan_gives():
    """Claims on other drivers' devices stay, the one on the old device goes."""
    asks = pod("p-0", "c1", "channel")
    asks["spec"]["containers"][0]["resources"] = {"claims": [{"name": "c0"}, {"name": "c1"}]}
    objects = [
        slices(whole(0)),
        claim("c1", "gpu-0"),
        claim("channel", "channel-0", driver="compute-domain.nvidia.com"),
        asks,
    ]
    text = json.dumps({"kind": "List", "items": objects})
    given = Input((File("all.json", text),), GPUS, parse=lambda file: [])
    running = running_pods(given)["p-0"]
    _, spec = pod_spec(running, ("nvidia.com/mig-3g.40gb", 1), {}, "mig-3g-40gb")
    assert spec["resourceClaims"] == [
        {"name": "c1", "resourceClaimName": "channel"},
        {"name": "gpu", "resourceClaimTemplateName": "mig-3g-40gb"},
    ]
    (container,) = spec["containers"]
    assert container["resources"] == {"claims": [{"name": "c1"}, {"name": "gpu"}]}


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([slices(whole(0), count=2)], "1 of its 2 ResourceSlices"),
        ([slices(whole(0, "NVIDIA X999"))], "no datasheet of NVIDIA X999"),
        ([slices(whole(0), whole(1, "NVIDIA H200"))], "name NVIDIA H100 80GB HBM3, NVIDIA H200"),
        ([slices(part(0, "9g.90gb", 0, 8))], "no profile '9g.90gb'"),
        ([slices(part(0, "3g.40gb", 2, 4))], "from one of 0, 4, not [2, 3, 4, 5]"),
        ([slices(part(0, "3g.40gb", 0, 0))], "does not say which memory slices"),
        ([slices(part(0, "4g.40gb", 0, 4), part(0, "2g.20gb", 2, 2))], "not possible"),
        ([slices(driver="compute-domain.nvidia.com")], "no node with GPUs"),
    ],
)
def test_slices_that_cannot_be_so(objects, reason):
    with pytest.raises(CannotRead) as refused:
        read(*objects)
    assert reason in str(refused.value)
