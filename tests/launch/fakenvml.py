# ruff: noqa: N802, N803 (the names are those of NVML)
"""nvidia-ml-py over a GPU that is given as plain values, with its own errors and constants."""

import ctypes
import inspect
from types import ModuleType, SimpleNamespace

import pynvml as real

# An A100 80GB by NVML's number of the profile: id, slices, instances, MiB, memory slices, starts.
PROFILES = {
    0: ("1g.10gb", 19, 1, 7, 9984, 1, (0, 1, 2, 3, 4, 5, 6)),
    1: ("2g.20gb", 14, 2, 3, 20096, 2, (0, 2, 4)),
    2: ("3g.40gb", 9, 3, 2, 40448, 4, (0, 4)),
    4: ("7g.80gb", 0, 7, 1, 81152, 8, (0,)),
}


class FakeNvml(ModuleType):
    """One GPU: ``cut`` its instances, ``busy`` the starts in use, ``pids`` the GPU's own users."""

    def __init__(self, *, mig=1, resets=False, root=True):
        super().__init__("pynvml")
        self.mig, self.pending, self.resets, self.root = mig, mig, resets, root
        self.cut: list[SimpleNamespace] = []
        self.busy: dict[int, list[int]] = {}
        self.pids: list[int] = []
        self.up = 0
        self.next = 1
        self.c_nvmlGpuInstance_t = ctypes.py_object
        self.c_nvmlComputeInstance_t = ctypes.py_object

    def __getattr__(self, name):  # errors, constants and plain structures are the real ones
        if name.startswith(("NVML", "c_nvml")):
            return getattr(real, name)
        raise AttributeError(name)

    def fail(self, name):
        raise getattr(real, f"NVMLError_{name}")()

    def layout(self):
        """What stands where, with its compute instance or without."""
        return {i.start: (i.name, bool(i.compute)) for i in self.cut}

    def nvmlInit(self):
        self.up += 1

    def nvmlShutdown(self):
        self.up -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        assert self.up
        return self if index == 0 else self.fail("InvalidArgument")

    def nvmlDeviceGetMigMode(self, device):
        return [self.mig, self.pending]

    def nvmlDeviceSetMigMode(self, device, mode):
        if not self.root:
            self.fail("NoPermission")
        self.pending = mode
        if self.resets and self.mig != mode:
            return real.NVML_ERROR_RESET_REQUIRED
        self.mig = mode
        return real.NVML_SUCCESS

    def nvmlDeviceGetGpuInstanceProfileInfo(self, device, profile, version=2):
        if profile not in PROFILES:
            self.fail("NotSupported")
        name, number, slices, most, mib, *_ = PROFILES[profile]
        said = SimpleNamespace(id=number, sliceCount=slices, instanceCount=most, memorySizeMB=mib)
        said.name = f"MIG {name}".encode()
        return said

    def profile(self, number):
        return next(p for p in PROFILES.values() if p[1] == number)

    def nvmlDeviceGetGpuInstances(self, device, profileId, gpuInstancesRef, countRef):
        found = [i for i in self.cut if i.profileId == profileId]
        self.give(found, gpuInstancesRef, countRef)

    def give(self, found, room, count):
        ctypes.cast(count, ctypes.POINTER(ctypes.c_uint)).contents.value = len(found)
        for place, one in enumerate(found):
            room[place] = one

    def nvmlDeviceGetGpuInstancePossiblePlacements(
        self, device, profileId, placementsRef, countRef
    ):
        _, _, _, _, _, size, starts = self.profile(profileId)
        ctypes.cast(countRef, ctypes.POINTER(ctypes.c_uint)).contents.value = len(starts)
        for place, start in enumerate(starts if placementsRef is not None else ()):
            placementsRef[place].start, placementsRef[place].size = start, size

    def nvmlDeviceCreateGpuInstanceWithPlacement(self, device, profileId, placement):
        if not self.root:
            self.fail("NoPermission")
        kind = ctypes.POINTER(real.c_nvmlGpuInstancePlacement_t)
        place = ctypes.cast(placement, kind).contents
        taken = {s for i in self.cut for s in range(i.start, i.start + i.size)}
        if taken & set(range(place.start, place.start + place.size)):
            self.fail("InsufficientResources")
        name, number, slices, *_ = self.profile(profileId)
        self.next += 1
        made = SimpleNamespace(
            id=self.next, profileId=number, name=name, slices=slices, compute=[],
            start=place.start, size=place.size,
        )  # fmt: skip
        made.placement = SimpleNamespace(start=place.start, size=place.size)
        self.cut.append(made)
        return made

    def nvmlGpuInstanceGetInfo(self, gpuInstance):
        return gpuInstance

    def nvmlGpuInstanceDestroy(self, gpuInstance):
        if gpuInstance.compute:
            self.fail("InUse")
        self.cut.remove(gpuInstance)

    def nvmlGpuInstanceGetComputeInstanceProfileInfo(self, device, profile, engProfile, version=2):
        slices = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7}.get(profile)
        if slices is None or slices > device.slices:
            self.fail("NotSupported")
        return SimpleNamespace(id=profile, sliceCount=slices, instanceCount=7)

    def nvmlGpuInstanceGetComputeInstances(
        self, gpuInstance, profileId, computeInstancesRef, countRef
    ):
        found = [c for c in gpuInstance.compute if c.profileId == profileId]
        self.give(found, computeInstancesRef, countRef)

    def nvmlGpuInstanceCreateComputeInstance(self, gpuInstance, profileId):
        made = SimpleNamespace(profileId=profileId, of=gpuInstance)
        gpuInstance.compute.append(made)
        return made

    def nvmlComputeInstanceDestroy(self, computeInstance):
        if self.busy.get(computeInstance.of.start):
            self.fail("InUse")
        computeInstance.of.compute.remove(computeInstance)

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        there = [i for i in self.cut if i.compute]
        return there[index] if index < len(there) else self.fail("NotFound")

    def nvmlDeviceGetGpuInstanceId(self, device):
        return device.id

    def nvmlDeviceGetGpuInstanceById(self, device, gpuInstanceId):
        return next(i for i in self.cut if i.id == gpuInstanceId)

    def nvmlDeviceGetName(self, handle):
        return f"NVIDIA A100-SXM4-80GB MIG {handle.name}"

    def nvmlDeviceGetUUID(self, handle):
        return f"MIG-{handle.id}"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        pids = self.pids if handle is self else self.busy.get(handle.start, [])
        return [SimpleNamespace(pid=pid) for pid in pids]


def signatures(module, names):
    """The parameters of functions, by name."""
    return {name: list(inspect.signature(getattr(module, name)).parameters) for name in names}
