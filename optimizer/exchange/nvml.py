"""NVML: the GPUs of this machine, asked through nvidia-ml-py, as the facts of a capture.

Names, numbers and errors are those of NVIDIA's NVML reference, chapter "Multi Instance GPU
Management". Listing GPU instances takes root; MIG devices anyone may list.
"""

import ctypes
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from optimizer.domain.units import MIB
from optimizer.exchange.imported import CannotRead, Import, Input, NotHere
from optimizer.exchange.smi_facts import Machine, SeenGpu, SeenInstance
from optimizer.exchange.smi_import import import_machines
from optimizer.exchange.smi_query import bus

EXTRA = "fleetslice[nvml]"


def import_nvml(given: Input) -> Import:
    """The node that this machine is, named ``given.node``. Raises NotHere and CannotRead."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        raise NotHere(f"nvidia-ml-py is not installed (pip install '{EXTRA}')") from None
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        raise NotHere(f"NVML: {error}") from None
    except nvml.NVMLError as error:
        raise CannotRead(f"NVML does not answer: {error}") from None
    try:
        machine, notes = _machine(nvml, given.node or "this machine")
    except nvml.NVMLError as error:
        raise CannotRead(f"NVML does not answer: {error}") from None
    finally:
        nvml.nvmlShutdown()
    return import_machines({given.node or "node-1": machine}, given, notes)


def _machine(nvml: Any, node: str) -> tuple[Machine, list[str]]:
    """What NVML says of each GPU, and the UUID of every MIG device."""
    machine = Machine(driver=_text(nvml.nvmlSystemGetDriverVersion()))
    notes: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            raise CannotRead(
                f"GPU {index} does not answer ({error}), so the rest cannot be told"
            ) from None
        gpu = machine.gpu(index)
        gpu.name = _text(nvml.nvmlDeviceGetName(handle))
        gpu.uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        gpu.bus = bus(_text(nvml.nvmlDeviceGetPciInfo(handle).busId))
        gpu.memory_mib = _memory_mib(nvml, handle)
        _mode(nvml, handle, gpu)
        if gpu.mig:
            _instances(nvml, handle, gpu, machine)
            notes += [f"{node}/{index}: {told}" for told in _devices(nvml, handle, gpu)]
    return machine, notes


def _memory_mib(nvml: Any, handle: Any) -> int | None:
    """All memory of the GPU; None where NVML does not say, as in a container with one slice."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total) // MIB
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
        return None


def _mode(nvml: Any, handle: Any, gpu: SeenGpu) -> None:
    try:
        now, pending = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return  # a GPU, or a driver, without MIG
    gpu.mig = now == nvml.NVML_DEVICE_MIG_ENABLE
    gpu.pending = pending != now


def _instances(nvml: Any, handle: Any, gpu: SeenGpu, machine: Machine) -> None:
    """GPU instances with their starts; who may not list them leaves a reason behind."""
    found = []
    try:
        for profile in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            info = _profile(nvml, handle, profile)
            if info is not None:
                found += list(_of_profile(nvml, handle, info))
    except nvml.NVMLError_NoPermission as error:
        told = f"GPU {gpu.index}: its GPU instances: {error}; run as root to have their starts"
        machine.troubles.append(told)
        return
    gpu.instances = sorted(found, key=lambda row: row.start)


def _profile(nvml: Any, handle: Any, profile: int) -> Any | None:
    """What the driver says of a profile by NVML's number; None where the GPU does not have it.

    Drivers before R530 do not know the second version of the answer, which adds the name.
    """
    unknown = (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument)
    try:
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile, version=2)
    except unknown:
        return None
    except nvml.NVMLError_FunctionNotFound:
        pass
    try:
        return nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile, version=1)
    except unknown:
        return None


def _of_profile(nvml: Any, handle: Any, info: Any) -> Iterator[SeenInstance]:
    room = (nvml.c_nvmlGpuInstance_t * info.instanceCount)()
    count = ctypes.c_uint(0)
    nvml.nvmlDeviceGetGpuInstances(handle, info.id, room, ctypes.byref(count))
    for instance in room[: count.value]:
        one = nvml.nvmlGpuInstanceGetInfo(instance)
        yield SeenInstance(
            line=0,
            name=_name(info),
            profile_id=one.profileId,
            instance=one.id,
            start=one.placement.start,
            size=one.placement.size,
        )


def _name(info: Any) -> str:
    """``3g.40gb``: as the driver says, else of its slices and memory in whole GB, rounded up."""
    said = _text(getattr(info, "name", "")).removeprefix("MIG ").strip()
    return said or f"{info.sliceCount}g.{-(-info.memorySizeMB // 1024)}gb"


def _devices(nvml: Any, handle: Any, gpu: SeenGpu) -> Iterator[str]:
    """MIG devices, one for each compute instance: what -L lists, and which instances hold them."""
    gpu.listed, gpu.held = [], set()
    starts = {row.instance: row.start for row in gpu.instances or ()}
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot)
        except nvml.NVMLError_NotFound:
            continue
        name = _text(nvml.nvmlDeviceGetName(device)).rpartition("MIG ")[2].strip()
        instance = nvml.nvmlDeviceGetGpuInstanceId(device)
        gpu.listed.append(name)
        gpu.held.add(instance)
        where = f"@{starts[instance]}" if instance in starts else f" (GPU instance {instance})"
        yield f"{name}{where} is {_text(nvml.nvmlDeviceGetUUID(device))}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
