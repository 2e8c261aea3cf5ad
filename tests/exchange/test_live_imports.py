# ruff: noqa: N802, N803 (the names are those of NVML)
"""Drivers and clusters asked live: what they say becomes documents, and a refusal says why."""

import ctypes
import inspect
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pynvml as real_nvml
import pytest
from typer.testing import CliRunner

from optimizer.cli.app import app
from optimizer.documents import catalogue
from optimizer.exchange import LIVE, CannotRead, Input, NotHere

GPUS = catalogue().gpus.all()
CAPTURE = Path(__file__).parent.parent / "data" / "captures" / "kubernetes.json"


def ask(what: str, **said):
    return LIVE[what](Input((), GPUS, parse=lambda file: [], **said))


def refusal(what: str, kind: type[Exception] = CannotRead, **said) -> str:
    with pytest.raises(kind) as refused:
        ask(what, **said)
    return str(refused.value)


# NVML ---------------------------------------------------------------------------------------------

ASKED = (
    *("nvmlInit", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount"),
    *("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName", "nvmlDeviceGetUUID"),
    *("nvmlDeviceGetPciInfo", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMigMode"),
    *("nvmlDeviceGetGpuInstanceProfileInfo", "nvmlDeviceGetGpuInstances"),
    *("nvmlGpuInstanceGetInfo", "nvmlDeviceGetMaxMigDeviceCount"),
    *("nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetGpuInstanceId"),
)
# H100 80GB by NVML's number of the profile: id, slices, instances, MiB, name.
PROFILES = {
    0: (19, 1, 7, 9984, "1g.10gb"),
    1: (14, 2, 3, 20096, "2g.20gb"),
    2: (9, 3, 2, 40448, "3g.40gb"),
    4: (0, 7, 1, 81152, "7g.80gb"),
    7: (20, 1, 1, 9984, "1g.10gb+me"),
}


class FakeNvml(ModuleType):
    """nvidia-ml-py over GPUs that are given as plain values, with its own errors and constants."""

    def __init__(self, *gpus: SimpleNamespace, version: int = 2, root: bool = True, init=None):
        super().__init__("pynvml")
        self.gpus, self.version, self.root, self.init = gpus, version, root, init
        self.c_nvmlGpuInstance_t = ctypes.py_object
        self.down = 0

    def __getattr__(self, name):  # errors and constants are the real ones
        if name.startswith(("NVML", "nvmlError")):
            return getattr(real_nvml, name)
        raise AttributeError(name)

    def fail(self, name: str):
        raise getattr(real_nvml, f"NVMLError_{name}")()

    def nvmlInit(self):
        if self.init:
            self.fail(self.init)

    def nvmlShutdown(self):
        self.down += 1

    def nvmlSystemGetDriverVersion(self):
        return "580.95.05"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.gpus[index] is None:
            self.fail("GpuIsLost")
        return self.gpus[index]

    def nvmlDeviceGetName(self, handle):
        return handle.name

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid.encode()  # as packages before 11.515 did

    def nvmlDeviceGetPciInfo(self, handle):
        return SimpleNamespace(busId=b"00000000:18:00.0")

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        return SimpleNamespace(total=81559 << 20)

    def nvmlDeviceGetMigMode(self, device):
        if device.mig is None:
            self.fail("NotSupported")
        return [device.mig, device.mig]

    def nvmlDeviceGetGpuInstanceProfileInfo(self, device, profile, version=2):
        if version != self.version:
            self.fail("FunctionNotFound")
        if profile not in PROFILES:
            self.fail("NotSupported")
        number, slices, most, mib, name = PROFILES[profile]
        info = SimpleNamespace(id=number, sliceCount=slices, instanceCount=most)
        if version == 2:
            info.name = f"MIG {name}".encode()
        info.memorySizeMB = mib
        return info

    def nvmlDeviceGetGpuInstances(self, device, profileId, gpuInstancesRef, countRef):
        if not self.root:
            self.fail("NoPermission")
        found = [i for i in device.instances if i.profileId == profileId]
        for place, instance in enumerate(found):
            gpuInstancesRef[place] = instance
        countRef._obj.value = len(found)
        return real_nvml.NVML_SUCCESS

    def nvmlGpuInstanceGetInfo(self, gpuInstance):
        return gpuInstance

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        if index >= len(device.instances):
            self.fail("NotFound")
        one = device.instances[index]
        name = next(p[-1] for p in PROFILES.values() if p[0] == one.profileId)
        return SimpleNamespace(name=f"{device.name} MIG {name}", uuid=f"MIG-{one.id}", id=one.id)

    def nvmlDeviceGetGpuInstanceId(self, device):
        return device.id


def gpu(number: int = 0, mig: int | None = 0, *instances, name: str = "NVIDIA H100 80GB HBM3"):
    """``instances``: profile id, instance id, start, size."""
    made = [
        SimpleNamespace(profileId=p, id=i, placement=SimpleNamespace(start=at, size=size))
        for p, i, at, size in instances
    ]
    return SimpleNamespace(name=name, uuid=f"GPU-0000000{number}", mig=mig, instances=made)


@pytest.fixture
def driver(monkeypatch):
    def put(*gpus, **said) -> FakeNvml:
        fake = FakeNvml(*gpus, **said)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return put


def test_the_fake_has_the_signatures_of_the_package():
    for name in ASKED:
        real = inspect.signature(inspect.unwrap(getattr(real_nvml, name)))
        fake = inspect.signature(getattr(FakeNvml(), name))
        assert list(real.parameters) == list(fake.parameters), name


def test_a_driver_says_its_instances_and_their_starts(driver):
    split = gpu(0, 1, (9, 1, 4, 4), (19, 7, 0, 1), (20, 8, 2, 1))
    fake = driver(split, gpu(1, 0), gpu(2, 1), gpu(3, None))
    found = ask("nvidia-smi", node="h100-1")
    assert fake.down == 1
    (node,) = found.documents[0].data["nodes"]
    assert (node["name"], node["gpu"], node["gpus"]) == ("h100-1", "h100-80gb-sxm", 4)
    assert node["devices"]["0"] == {
        "uuid": "GPU-00000000",
        "mig_enabled": True,
        "layout": [
            {"profile": "1g.10gb", "start": 0},
            {"profile": "1g.10gb+me", "start": 2},
            {"profile": "3g.40gb", "start": 4},
        ],
    }
    assert node["devices"]["1"]["mig_enabled"] is False
    assert node["devices"]["2"]["layout"] == []
    assert "mig_enabled" not in node["devices"]["3"]
    assert "h100-1/0: 3g.40gb@4 is MIG-1" in found.documents[0].notes
    assert len(found.documents[1].data["instances"]) == 3


def test_drivers_before_profile_names_are_read_alike(driver):
    instances = ((9, 1, 4, 4), (19, 7, 0, 1))
    driver(gpu(0, 1, *instances))
    named = ask("nvidia-smi", node="n").documents[0].data
    driver(gpu(0, 1, *instances), version=1)
    assert ask("nvidia-smi", node="n").documents[0].data == named


def test_without_root_starts_are_not_made_up(driver):
    driver(gpu(0, 1, (9, 1, 4, 4)), root=False)
    fleet = ask("nvidia-smi", node="n").documents[0]
    assert "layout" not in fleet.data["nodes"][0]["devices"]["0"]
    assert any("Insufficient Permissions" in n and "root" in n for n in fleet.notes)
    assert any("where its instances start (1 x 3g.40gb" in u for u in fleet.unsaid)


@pytest.mark.parametrize(
    ("gpus", "said", "kind", "reason"),
    [
        ((), {"init": "LibraryNotFound"}, NotHere, "Shared Library Not Found"),
        ((), {"init": "DriverNotLoaded"}, NotHere, "Driver Not Loaded"),
        ((), {"init": "NoPermission"}, CannotRead, "Insufficient Permissions"),
        ((), {}, CannotRead, "no GPU"),
        ((gpu(), None), {}, CannotRead, "GPU 1 does not answer"),
        ((gpu(name="NVIDIA X999"),), {}, CannotRead, "no datasheet of 1 x NVIDIA X999"),
        ((gpu(0, 1, (9, 1, 2, 4)),), {}, CannotRead, "takes 4 memory slices"),
    ],
)
def test_drivers_that_do_not_answer(driver, gpus, said, kind, reason):
    driver(*gpus, **said)
    assert reason in refusal("nvidia-smi", kind, node="n")


def test_without_the_library_and_the_tool_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(app, ["import", "nvidia-smi"])
    assert done.exit_code == 1
    assert "fleetslice[nvml]" in done.output
    assert "nvidia-smi is not on this machine" in done.output


def test_without_the_library_the_tool_is_asked(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-48aeb943)"\n'
        '[ "$1" = mig ] && echo "No MIG-enabled devices found."\nexit 0\n'
    )
    tool.chmod(0o755)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = CliRunner().invoke(app, ["import", "nvidia-smi", "--node", "n7"])
    assert done.exit_code == 0, done.output
    assert "mig_enabled: false" in done.stdout
    assert "name: n7" in done.stdout


# Kubernetes ---------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """An API server with the objects of a capture, three to a page."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        items = json.loads(CAPTURE.read_text("utf-8"))["items"]
        self.lists = {
            "/api/v1/nodes": [i for i in items if i["kind"] == "Node"],
            "/api/v1/pods": [i for i in items if i["kind"] == "Pod"],
        }
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        self.gone = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        self.server.asked.append(self.path)
        start = int(query.get("continue", ["0"])[0])
        items = self.server.lists.get(url.path)
        status, body = 200, ""
        if url.path in self.server.answers:
            status, body = self.server.answers[url.path]
        elif self.headers["Authorization"] != "Bearer secret":
            status, body = 401, json.dumps({"kind": "Status", "message": "Unauthorized"})
        elif items is None:
            status, body = 404, json.dumps({"kind": "Status", "message": "no such resource"})
        elif start and self.server.gone:
            self.server.gone -= 1
            status, body = 410, json.dumps({"kind": "Status", "message": "too old"})
        else:
            end = start + 3
            meta = {"continue": str(end)} if end < len(items) else {}
            # Items of a list carry no kind of their own.
            page = [{k: v for k, v in i.items() if k != "kind"} for i in items[start:end]]
            body = json.dumps({"kind": "List", "metadata": meta, "items": page})
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *said):
        pass


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    _kubeconfig(monkeypatch, tmp_path, server.server_address[1])
    yield server
    server.shutdown()
    server.server_close()


def _kubeconfig(monkeypatch, folder: Path, port: int) -> None:
    config = {
        "kind": "Config",
        "apiVersion": "v1",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    (folder / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client takes the default place of the file when it is imported first.
    config_module = pytest.importorskip("kubernetes.config.kube_config")
    monkeypatch.setattr(config_module, "KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "config"))


def test_a_cluster_is_read_page_by_page_as_from_its_file(cluster):
    from optimizer.exchange import IMPORTERS, File

    given = Input((File("k.json", CAPTURE.read_text("utf-8")),), GPUS, parse=lambda file: [])
    of_file = IMPORTERS["kubernetes"](given)
    live = ask("kubernetes")
    assert [d.data for d in live.documents] == [d.data for d in of_file.documents]
    assert sum(a.startswith("/api/v1/pods") for a in cluster.asked) > 2


def test_a_list_that_outlives_its_token_is_read_anew(cluster):
    cluster.gone = 1
    assert ask("kubernetes").documents
    cluster.gone = 9
    assert "too old" in refusal("kubernetes")


FORBIDDEN = json.dumps({"kind": "Status", "message": 'pods is forbidden: User "u"'})


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/api/v1/pods", (403, FORBIDDEN), "not allowed to list pods (403: pods is forbidden"),
        ("/api/v1/nodes", (401, json.dumps({"message": "Unauthorized"})), "log in again"),
        ("/api/v1/nodes", (500, json.dumps({"message": "etcd"})), "does not list nodes (500"),
        ("/api/v1/nodes", (502, "<html>bad gateway</html>"), "no JSON (status 502)"),
        ("/api/v1/nodes", (200, "[]"), "no list"),
        ("/api/v1/nodes", (200, '{"items": null}'), "no node with GPUs"),
    ],
)
def test_clusters_that_refuse(cluster, path, answer, reason):
    cluster.answers[path] = answer
    assert reason in refusal("kubernetes")


def test_what_dra_offers_may_be_forbidden(cluster):
    cluster.answers["/apis/resource.k8s.io/v1/resourceclaims"] = (403, FORBIDDEN)
    notes = ask("kubernetes").documents[0].notes
    assert any("not allowed to list resourceclaims" in note for note in notes)


def test_a_cluster_that_cannot_be_reached(monkeypatch, tmp_path):
    _kubeconfig(monkeypatch, tmp_path, 1)
    assert "http://127.0.0.1:1 cannot be reached" in refusal("kubernetes")


def test_without_client_and_kubectl_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    monkeypatch.setenv("PATH", "")
    done = CliRunner().invoke(app, ["import", "kubernetes"])
    assert done.exit_code == 1
    assert "fleetslice[kubernetes]" in done.output
    assert "kubectl is not on this machine" in done.output
