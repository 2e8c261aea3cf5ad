"""NVML on the node itself: what CUDA_VISIBLE_DEVICES has to say for the devices of a plan, and
instances made and removed at their exact starts.

Names, numbers and errors are those of NVIDIA's NVML reference, chapter "Multi Instance GPU
Management". Looking is for everybody; changing takes root.
"""

import ctypes
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from optimizer.domain.words import plural
from optimizer.launch.values import LayoutRefused

EXTRA = "fleetslice[nvml]"
RESET_S = 120.0
UUID_S = 5.0  # a new instance's device appears a moment after it
PIDS_SHOWN = 5


class DeviceUnknown(Exception):
    """This node has no such device; the message says which and what there is."""


def visible_devices(devices: Sequence[str]) -> str:
    """Indexes of whole and shared GPUs (``n1/0``), UUIDs of MIG instances (``n1/3:3g.40gb@4``).

    Indexes count in bus order, as nvidia-smi does: set CUDA_DEVICE_ORDER=PCI_BUS_ID beside them.
    GPUs go by index because engines are known to fail on their UUIDs. Raises DeviceUnknown.
    """
    return ",".join(_visible(device) for device in devices)


def _visible(device: str) -> str:
    gpu, _, slot = device.partition(":")
    index = int(gpu.rpartition("/")[2])
    if not slot:
        return str(index)
    profile, _, start = slot.partition("@")
    return instance_uuid(index, profile, int(start))


def instance_uuid(index: int, profile: str, start: int) -> str:
    """UUID of the MIG instance that begins at that memory slice. Raises DeviceUnknown.

    Instances are told apart by GPU and start: an UUID may come back with another profile.
    """
    try:
        with _nvml() as nvml:
            found = dict(_devices(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
    except LayoutRefused as error:
        raise DeviceUnknown(f"GPU {index}: {error}") from error
    if start in found and found[start][0] == profile:
        return found[start][1]
    there = ", ".join(f"{name}@{at}" for at, (name, _) in sorted(found.items())) or "none"
    raise DeviceUnknown(
        f"GPU {index} has no MIG instance {profile}@{start} (it has: {there}); make it first, for "
        f"example with: nvidia-smi mig -i {index} -cgi {profile}:{start} -C"
    )


def create_instance(index: int, profile: str, start: int) -> str:
    """Make a GPU instance at exactly that memory slice with one compute instance that fills it;
    its UUID. One that is there already is taken as it is. Raises LayoutRefused."""
    with _nvml() as nvml:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetMigMode(gpu)[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            raise LayoutRefused("MIG is off")
        seen = dict(_devices(nvml, gpu)).get(start)
        if seen is not None and seen[0] == profile:
            return seen[1]
        infos = _profiles(nvml, gpu)
        cut = list(_cut(nvml, gpu, infos))
        there = next((i for i in cut if i.start == start), None)
        if there is not None and there.profile != profile:
            raise LayoutRefused(f"{there.profile}@{start} stands there")
        info = next((i for i in infos if _name(i) == profile), None)
        if info is None:
            known = ", ".join(_name(i) for i in infos)
            raise LayoutRefused(f"it has no profile {profile}, only {known}")
        try:
            instance = _new(nvml, gpu, info, start) if there is None else there.handle
        except nvml.NVMLError_InsufficientResources:
            stands = ", ".join(f"{i.profile}@{i.start}" for i in sorted(cut, key=lambda i: i.start))
            raise LayoutRefused(f"no room for {profile}@{start} beside {stands}") from None
        if not list(_compute_instances(nvml, instance)):
            try:
                _fill(nvml, instance, info.sliceCount)
            except (nvml.NVMLError, LayoutRefused):
                if there is None:
                    nvml.nvmlGpuInstanceDestroy(instance)
                raise
        return _uuid(nvml, gpu, start)


def destroy_instance(index: int, profile: str, start: int) -> None:
    """Remove an idle instance; nothing where none is. Raises LayoutRefused when a process uses it,
    or when another profile stands there."""
    with _nvml() as nvml:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        there = next((i for i in _cut(nvml, gpu, _profiles(nvml, gpu)) if i.start == start), None)
        if there is None:
            return
        if there.profile != profile:
            raise LayoutRefused(f"{there.profile}@{start} stands there, not {profile}")
        number = nvml.nvmlGpuInstanceGetInfo(there.handle).id
        for device in _mig_devices(nvml, gpu):
            if nvml.nvmlDeviceGetGpuInstanceId(device) == number:
                _check_unused(nvml, device, f"{profile}@{start}")
        for compute in _compute_instances(nvml, there.handle):
            nvml.nvmlComputeInstanceDestroy(compute)  # NVML itself refuses one in use
        try:
            nvml.nvmlGpuInstanceDestroy(there.handle)
        except nvml.NVMLError_InUse:
            _fill(nvml, there.handle, there.slices)  # as it was
            raise


def set_mig_mode(index: int, enable: bool) -> None:
    """Turn MIG on or off on a GPU that nobody uses and that has no instance. Raises LayoutRefused.

    Ampere needs a reset for it, which nvidia-smi does; where that fails, the mode is left as it
    was, so that no reboot brings a surprise.
    """
    with _nvml() as nvml:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        wanted = nvml.NVML_DEVICE_MIG_ENABLE if enable else nvml.NVML_DEVICE_MIG_DISABLE
        before, pending = nvml.nvmlDeviceGetMigMode(gpu)
        if before == pending == wanted:
            return
        if before == nvml.NVML_DEVICE_MIG_ENABLE:
            cut = [f"{i.profile}@{i.start}" for i in _cut(nvml, gpu, _profiles(nvml, gpu))]
            if cut:
                raise LayoutRefused(f"it still has {', '.join(cut)}")
        _check_unused(nvml, gpu, "the GPU")
        if nvml.nvmlDeviceSetMigMode(gpu, wanted) == nvml.NVML_SUCCESS:
            return
    refused = _reset(index)
    with _nvml() as nvml:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetMigMode(gpu)[0] == wanted:
            return
        nvml.nvmlDeviceSetMigMode(gpu, before)
    raise LayoutRefused(f"switching MIG takes a reset of the GPU, which failed: {refused}")


@contextmanager
def _nvml() -> Iterator[Any]:
    """The library, up. Raises LayoutRefused for whatever it says no to."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError as error:
        raise LayoutRefused(f"nvidia-ml-py is missing; install {EXTRA}") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise LayoutRefused(f"NVML: {error}") from error
    try:
        yield nvml
    except nvml.NVMLError_NoPermission as error:
        raise LayoutRefused(f"NVML: {error}; changing MIG takes root on the node") from error
    except nvml.NVMLError_InUse as error:
        raise LayoutRefused("NVML: in use by another client") from error
    except nvml.NVMLError as error:
        raise LayoutRefused(f"NVML: {error}") from error
    finally:
        nvml.nvmlShutdown()


@dataclass(frozen=True, slots=True)
class _Cut:
    """A GPU instance that there is."""

    start: int
    profile: str
    slices: int  # of compute
    handle: Any


def _profiles(nvml: Any, gpu: Any) -> list[Any]:
    """What NVML says of each profile that the GPU has."""
    found = []
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        for version in (2, 1):  # drivers before R530 do not know the second, which has the name
            try:
                found.append(nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, number, version=version))
            except nvml.NVMLError_FunctionNotFound:
                continue
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
                pass
            break
    return found


def _name(info: Any) -> str:
    """``3g.40gb``: as the driver says, else of its slices and memory in whole GB, rounded up."""
    said = _text(getattr(info, "name", "")).removeprefix("MIG ").strip()
    return said or f"{info.sliceCount}g.{-(-info.memorySizeMB // 1024)}gb"


def _cut(nvml: Any, gpu: Any, infos: Sequence[Any]) -> Iterator[_Cut]:
    """The GPU instances that there are, also those without a compute instance."""
    for info in infos:
        room = (nvml.c_nvmlGpuInstance_t * info.instanceCount)()
        count = ctypes.c_uint(0)
        nvml.nvmlDeviceGetGpuInstances(gpu, info.id, room, ctypes.byref(count))
        for handle in room[: count.value]:
            start = nvml.nvmlGpuInstanceGetInfo(handle).placement.start
            yield _Cut(start, _name(info), info.sliceCount, handle)


def _new(nvml: Any, gpu: Any, info: Any, start: int) -> Any:
    """A GPU instance of that profile at that start."""
    count = ctypes.c_uint(0)
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, info.id, None, ctypes.byref(count))
    places = (nvml.c_nvmlGpuInstancePlacement_t * count.value)()
    nvml.nvmlDeviceGetGpuInstancePossiblePlacements(gpu, info.id, places, ctypes.byref(count))
    place = next((p for p in places[: count.value] if p.start == start), None)
    if place is None:
        starts = ", ".join(str(p.start) for p in places[: count.value])
        raise LayoutRefused(f"{_name(info)} does not start at {start}, only at {starts}")
    return nvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, info.id, ctypes.byref(place))


def _compute_profiles(nvml: Any, instance: Any) -> Iterator[Any]:
    shared = nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
    for number in range(nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
        for version in (2, 1):
            try:
                yield nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, number, shared, version=version
                )
            except nvml.NVMLError_FunctionNotFound:
                continue
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
                pass
            break


def _compute_instances(nvml: Any, instance: Any) -> Iterator[Any]:
    for info in _compute_profiles(nvml, instance):
        room = (nvml.c_nvmlComputeInstance_t * info.instanceCount)()
        count = ctypes.c_uint(0)
        nvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, room, ctypes.byref(count))
        yield from room[: count.value]


def _fill(nvml: Any, instance: Any, slices: int) -> None:
    """One compute instance with all slices of the GPU instance."""
    for info in _compute_profiles(nvml, instance):
        if info.sliceCount == slices:
            nvml.nvmlGpuInstanceCreateComputeInstance(instance, info.id)
            return
    raise LayoutRefused(f"NVML offers no compute instance of {slices} slices in it")


def _mig_devices(nvml: Any, gpu: Any) -> Iterator[Any]:
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot)
        except nvml.NVMLError_NotFound:
            continue


def _devices(nvml: Any, gpu: Any) -> Iterator[tuple[int, tuple[str, str]]]:
    """(start, (profile, UUID)) of each MIG device of one GPU."""
    for mig in _mig_devices(nvml, gpu):
        number = nvml.nvmlDeviceGetGpuInstanceId(mig)
        info = nvml.nvmlGpuInstanceGetInfo(nvml.nvmlDeviceGetGpuInstanceById(gpu, number))
        # ``3g.40gb`` of ``NVIDIA A100-SXM4-80GB MIG 3g.40gb``.
        profile = _text(nvml.nvmlDeviceGetName(mig)).rpartition("MIG ")[2].strip()
        yield info.placement.start, (profile, _text(nvml.nvmlDeviceGetUUID(mig)))


def _uuid(nvml: Any, gpu: Any, start: int) -> str:
    end_at = time.monotonic() + UUID_S
    while True:
        found = dict(_devices(nvml, gpu)).get(start)
        if found is not None:
            return found[1]
        if time.monotonic() > end_at:
            raise LayoutRefused(f"the instance at {start} was made, and its device does not appear")
        time.sleep(0.1)


def _check_unused(nvml: Any, device: Any, what: str) -> None:
    """Raises LayoutRefused when processes use it."""
    pids = [str(p.pid) for p in nvml.nvmlDeviceGetComputeRunningProcesses(device)]
    if pids:
        shown = ", ".join(pids[:PIDS_SHOWN]) + (", ..." if len(pids) > PIDS_SHOWN else "")
        raise LayoutRefused(f"{what} is in use by {plural(len(pids), 'process')}: {shown}")


def _reset(index: int) -> str:
    """What nvidia-smi said to a reset; empty when it went well."""
    argv = ["nvidia-smi", "--gpu-reset", "-i", str(index)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RESET_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stdout + done.stderr).strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"exit code {done.returncode}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
