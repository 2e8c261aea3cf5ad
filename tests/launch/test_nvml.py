"""MIG instances through NVML: made where the plan says, never taken from who uses them."""

import sys
from types import SimpleNamespace

import pynvml as real
import pytest

from builders import placed
from fakenvml import FakeNvml, signatures
from launchplans import MIG_SLICES, WHOLE
from optimizer.launch import LaunchRefused, nvml
from optimizer.launch.apply import cut
from optimizer.launch.instances import OnNodes
from optimizer.launch.journal import Journal
from optimizer.launch.values import LayoutRefused


@pytest.fixture
def gpu(monkeypatch):
    def install(**said):
        fake = FakeNvml(**said)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


def test_the_fake_has_the_signatures_of_the_real_one():
    names = [n for n in vars(FakeNvml) if n.startswith("nvml") and hasattr(real, n)]
    assert len(names) == sum(n.startswith("nvml") for n in vars(FakeNvml))
    said = signatures(FakeNvml(), names)
    told = signatures(real, names)
    del told["nvmlInit"], said["nvmlInit"]
    assert said == told


def test_an_instance_is_made_at_its_start_and_read_back(gpu):
    fake = gpu()
    first = nvml.create_instance(0, "3g.40gb", 4)
    assert nvml.create_instance(0, "1g.10gb", 0) != first
    assert fake.layout() == {4: ("3g.40gb", True), 0: ("1g.10gb", True)}
    assert nvml.create_instance(0, "3g.40gb", 4) == first  # once more changes nothing
    assert nvml.visible_devices(["n1/0:3g.40gb@4"]) == first
    assert fake.layout() == {4: ("3g.40gb", True), 0: ("1g.10gb", True)}
    assert fake.up == 0


def test_one_that_was_made_half_is_filled(gpu):
    fake = gpu()
    nvml.create_instance(0, "2g.20gb", 2)
    fake.cut[0].compute.clear()  # a launcher was killed in between
    nvml.create_instance(0, "2g.20gb", 2)
    assert fake.layout() == {2: ("2g.20gb", True)}


@pytest.mark.parametrize(
    ("said", "profile", "start", "told"),
    [
        ({"mig": 0}, "1g.10gb", 0, "MIG is off"),
        ({}, "4g.48gb", 0, "no profile 4g.48gb, only 1g.10gb, 2g.20gb, 3g.40gb, 7g.80gb"),
        ({}, "3g.40gb", 2, "3g.40gb does not start at 2, only at 0, 4"),
        ({}, "7g.80gb", 0, "no room for 7g.80gb@0 beside 1g.10gb@1"),
        ({"root": False}, "1g.10gb", 5, "changing MIG takes root"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_reason(gpu, said, profile, start, told):
    fake = gpu()
    nvml.create_instance(0, "1g.10gb", 1)
    vars(fake).update(said)
    with pytest.raises(LayoutRefused, match=told):
        nvml.create_instance(0, profile, start)
    assert fake.layout() == {1: ("1g.10gb", True)}


def test_an_idle_instance_goes_and_a_busy_one_stays(gpu):
    fake = gpu()
    for start in (0, 1):
        nvml.create_instance(0, "1g.10gb", start)
    fake.busy[0] = [4711]
    with pytest.raises(LayoutRefused, match=r"1g.10gb@0 is in use by 1 process: 4711"):
        nvml.destroy_instance(0, "1g.10gb", 0)
    nvml.destroy_instance(0, "1g.10gb", 1)
    nvml.destroy_instance(0, "1g.10gb", 1)  # gone already
    with pytest.raises(LayoutRefused, match=r"1g.10gb@0 stands there, not 2g.20gb"):
        nvml.destroy_instance(0, "2g.20gb", 0)
    assert fake.layout() == {0: ("1g.10gb", True)}


def test_nvml_itself_says_in_use_of_what_it_does_not_list(gpu, monkeypatch):
    fake = gpu()
    nvml.create_instance(0, "1g.10gb", 0)
    fake.busy[0] = [4711]
    monkeypatch.setattr(fake, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [])
    with pytest.raises(LayoutRefused, match="NVML: in use by another client"):
        nvml.destroy_instance(0, "1g.10gb", 0)
    assert fake.layout() == {0: ("1g.10gb", True)}


def test_mig_is_switched_only_on_an_empty_gpu(gpu):
    fake = gpu(mig=0)
    fake.pids = [4711]
    with pytest.raises(LayoutRefused, match="the GPU is in use by 1 process"):
        nvml.set_mig_mode(0, True)
    fake.pids = []
    nvml.set_mig_mode(0, True)
    nvml.create_instance(0, "1g.10gb", 3)
    with pytest.raises(LayoutRefused, match=r"it still has 1g.10gb@3"):
        nvml.set_mig_mode(0, False)
    nvml.destroy_instance(0, "1g.10gb", 3)
    nvml.set_mig_mode(0, False)
    assert (fake.mig, fake.pending) == (0, 0)


@pytest.mark.parametrize("goes_well", [True, False])
def test_where_a_reset_is_needed_nvidia_smi_does_it_or_all_stays(gpu, monkeypatch, goes_well):
    fake = gpu(mig=0, resets=True)

    def run(argv, **said):
        assert argv == ["nvidia-smi", "--gpu-reset", "-i", "0"]
        assert fake.up == 0  # NVML itself would be a client
        if goes_well:
            fake.mig = fake.pending
        told = "" if goes_well else "GPU 0 is in use by nvidia_drm"
        return SimpleNamespace(returncode=0 if goes_well else 1, stdout=told, stderr="")

    monkeypatch.setattr(nvml.subprocess, "run", run)
    if goes_well:
        nvml.set_mig_mode(0, True)
        assert fake.mig == 1
        return
    with pytest.raises(LayoutRefused, match="takes a reset of the GPU, which failed: GPU 0 is in"):
        nvml.set_mig_mode(0, True)
    assert (fake.mig, fake.pending) == (0, 0)


class InlineRay:
    """As much of Ray as a task on a node takes; it runs at once and answers at the second look."""

    def __init__(self):
        self.nodes, self.looks = [], 0
        self.exceptions = SimpleNamespace(RayError=RuntimeError)

    def remote(self, work):
        def options(**said):
            self.nodes += list(said["resources"])
            return SimpleNamespace(remote=lambda *given: work(*given))

        return SimpleNamespace(options=options)

    def wait(self, references, timeout):
        self.looks += 1
        return (references if self.looks % 2 == 0 else []), []

    def get(self, reference):
        return reference


def test_a_first_launch_cuts_what_its_replicas_need(gpu, tmp_path):
    fake, ray = gpu(mig=0), InlineRay()
    with Journal(tmp_path, "r") as journal:
        cut(OnNodes(ray, journal), [*MIG_SLICES, WHOLE], sys.float_info.max)
        assert fake.layout() == {4: ("3g.40gb", True), 0: ("2g.20gb", True)}
        assert journal.layout("n1/0") == {4: "3g.40gb", 0: "2g.20gb"}
        assert set(ray.nodes) == {"host:n1"}
        list(OnNodes(ray, journal).destroy("n1/0", placed("2g.20gb@0")))
        fake.root = False
        with pytest.raises(LaunchRefused, match=r"n1/0: NVML: .*takes root on the node"):
            cut(OnNodes(ray, journal), MIG_SLICES, sys.float_info.max)
        with pytest.raises(LaunchRefused, match="not done within the deadline: node n1"):
            cut(OnNodes(ray, journal), MIG_SLICES, 0.0)
