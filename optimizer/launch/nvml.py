"""What CUDA_VISIBLE_DEVICES has to say for the devices of a plan, asked on the node itself."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any


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
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # no library, no driver, no permission: all mean the same here
        raise DeviceUnknown(
            f"MIG instances cannot be listed on this node ({error}); install nvidia-ml-py there"
        ) from error
    try:
        found = dict(_instances(nvml, index))
    except nvml.NVMLError as error:
        raise DeviceUnknown(f"GPU {index}: {error}") from error
    finally:
        nvml.nvmlShutdown()
    if start in found and found[start][0] == profile:
        return found[start][1]
    there = ", ".join(f"{name}@{at}" for at, (name, _) in sorted(found.items())) or "none"
    raise DeviceUnknown(
        f"GPU {index} has no MIG instance {profile}@{start} (it has: {there}); make it first, for "
        f"example with: nvidia-smi mig -i {index} -cgi {profile}:{start} -C"
    )


def _instances(nvml: Any, index: int) -> Iterator[tuple[int, tuple[str, str]]]:
    """(start, (profile, UUID)) of each MIG instance of one GPU."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, slot)
        except nvml.NVMLError_NotFound:
            continue
        number = nvml.nvmlDeviceGetGpuInstanceId(mig)
        info = nvml.nvmlGpuInstanceGetInfo(nvml.nvmlDeviceGetGpuInstanceById(gpu, number))
        yield (
            info.placement.start,
            (_profile(_text(nvml.nvmlDeviceGetName(mig))), _text(nvml.nvmlDeviceGetUUID(mig))),
        )


def _profile(device_name: str) -> str:
    """``3g.40gb`` of ``NVIDIA A100-SXM4-80GB MIG 3g.40gb``."""
    return device_name.rpartition("MIG ")[2].strip()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
