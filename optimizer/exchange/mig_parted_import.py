"""mig-parted: named configs, or the GPU operator's ConfigMap, to layouts of a Fleet and a State."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.exchange.imported import (
    HOST,
    MOST_GPUS,
    PRICES,
    RACKS,
    CannotRead,
    File,
    Import,
    Imported,
    Input,
)
from optimizer.exchange.mig_parted import PREFIX
from optimizer.exchange.products import placements, product

FORMAT = "mig-parted v1"
# PCI ids that device filters name (mig-parted, deployments/systemd/config-default.yaml).
PCI = {
    "0x20B710DE": "a30",
    "0x20B010DE": "a100-40gb-sxm",
    "0x20F110DE": "a100-40gb-pcie",
    "0x20B210DE": "a100-80gb-sxm",
    "0x20B510DE": "a100-80gb-pcie",
    "0x233010DE": "h100-80gb-sxm",
    "0x233110DE": "h100-80gb-pcie",
    "0x232110DE": "h100-94gb-nvl",
    "0x234210DE": "gh200-96gb",
    "0x234810DE": "gh200-144gb",
    "0x233510DE": "h200-141gb-sxm",
    "0x233B10DE": "h200-141gb-nvl",
    "0x290110DE": "b200-180gb-sxm",
    "0x294110DE": "gb200-186gb",
    "0x318210DE": "b300-sxm",
    "0x31C210DE": "gb300",
    "0x2BB510DE": "rtx-pro-6000-blackwell-server",
}
_FIELDS = {"device-filter", "devices", "mig-enabled", "mig-devices"}


def import_mig_parted(given: Input) -> Import:
    """A node for each config that fits one product; with a Fleet beside, its nodes. CannotRead."""
    configs, fleets = _read(given)
    fleet = _Known(fleets)
    reasons: list[str] = []
    notes: list[str] = []
    left_out: list[str] = []
    nodes: list[dict[str, Any]] = []
    for name, entries in configs.items():
        node = name.removeprefix(PREFIX) if given.node is None else given.node
        try:
            found = _node(node, entries, fleet.get(node), given, notes)
        except _LeftOut as why:
            left_out.append(f"{name}: {why}")
            continue
        except CannotRead as refusal:
            reasons += (f"{name}: {reason}" for reason in refusal.reasons)
            continue
        nodes.append(found)
    if given.node is not None and len(nodes) > 1:
        reasons.append(f"--node: the files hold {len(nodes)} configs that fit; keep one of them")
    if reasons or not nodes:
        raise CannotRead(*(reasons or left_out or ["no config in the files"]))
    starts = (
        "where each instance starts: the format counts instances, so these starts are one legal "
        "way; nvidia-smi mig -lgi says it"
    )
    instances = [
        {"gpu": f"{node['name']}/{index}", **placed}
        for node in nodes
        for index, device in node.get("devices", {}).items()
        for placed in device.get("layout", ())
    ]
    state = {"kind": "State", "version": 1, "fleet": fleet.name or given.name, "replicas": []}
    data = {"kind": "Fleet", "version": 1, "name": given.name, "nodes": nodes}
    documents = [
        Imported(data, (PRICES, RACKS, HOST, starts), tuple(notes)),
        Imported({**state, "instances": instances}, ("what runs in the instances", starts)),
    ]
    if fleets:  # the fleet is known: only what stands on it is news
        documents = documents[1:]
    return Import(FORMAT, tuple(documents), tuple(left_out))


class _Known:
    """The nodes of Fleet documents beside; ranges of names are matched, not expanded."""

    def __init__(self, fleets: list[Mapping[str, Any]]) -> None:
        self.name = next((str(f["name"]) for f in fleets if f.get("name")), None)
        self.nodes = [n for f in fleets for n in f.get("nodes") or () if isinstance(n, Mapping)]

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The entry that stands for the node."""
        for node in self.nodes:
            parts = re.split(r"\{\d+\.\.\d+\}", str(node.get("name")))
            if re.fullmatch(r"\d+".join(map(re.escape, parts)), name):
                return node
        return None


class _LeftOut(Exception):
    """A config that is for other GPUs, or not for any known node."""


def _read(given: Input) -> tuple[dict[str, list[Any]], list[Mapping[str, Any]]]:
    """The configs by name, and Fleet documents."""
    configs: dict[str, list[Any]] = {}
    fleets: list[Mapping[str, Any]] = []
    for file in given.files:
        for value in given.parse(file):
            if isinstance(value, Mapping) and value.get("kind") == "Fleet":
                fleets.append(value)
                continue
            for name, entries in _configs(file, value, given):
                if not isinstance(entries, list) or not entries:
                    raise CannotRead(f"{file.name}: {name}: a config is a list of entries")
                configs[name] = entries
    return configs, fleets


def _configs(file: File, value: Any, given: Input) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value.get("kind") == "ConfigMap":
        for key, text in (value.get("data") or {}).items():
            for inner in given.parse(File(f"{file.name} ({key})", str(text))):
                yield from _configs(file, inner, given)
        return
    configs = value.get("mig-configs") if isinstance(value, Mapping) else None
    if not isinstance(configs, Mapping) or value.get("version") != "v1":
        raise CannotRead(f"{file.name}: no config of mig-parted: version: v1 and mig-configs")
    yield from configs.items()


def _node(
    name: str, entries: list[Any], known: Mapping[str, Any] | None, given: Input, notes: list[str]
) -> dict[str, Any]:
    faults = [f for entry in entries for f in _faults(entry)]
    if faults:
        raise CannotRead(*faults)
    gpu = _product(entries, known, given)
    count = _count(entries, known, given)
    if count > MOST_GPUS:
        raise CannotRead(f"{count} GPUs are more than a node has")
    devices: dict[str, Any] = {}
    for entry in entries:
        if not _for(gpu, entry):
            continue
        indexes = range(count) if entry["devices"] == "all" else entry["devices"]
        layout = _layout(gpu, entry.get("mig-devices") or {})
        for index in indexes:
            if index >= count:
                raise CannotRead(f"GPU {index} of {name}, which has {count}")
            device: dict[str, Any] = {"mig_enabled": entry["mig-enabled"]}
            if entry["mig-enabled"]:
                device["layout"] = [{"profile": p.profile, "start": p.start} for p in layout]
            devices[str(index)] = device
    if not devices:
        raise _LeftOut(f"no entry is for {gpu.name}")
    if known is None and given.count is None:
        notes.append(f"{name}: as many GPUs as the config names ({count}); --gpus N says more")
    ordered = dict(sorted(devices.items(), key=lambda item: int(item[0])))
    return {"name": name, "gpu": gpu.name, "gpus": count, "devices": ordered}


def _faults(entry: Any) -> Iterator[str]:
    """What mig-parted itself would refuse in one entry."""
    if not isinstance(entry, Mapping):
        yield "an entry must be a mapping"
        return
    for field in sorted(set(entry) - _FIELDS):
        yield f"unexpected field {field}"
    for field in ("devices", "mig-enabled"):
        if field not in entry:
            yield f"missing required field {field}"
    which = entry.get("devices")
    if which != "all" and not (
        isinstance(which, list) and all(type(i) is int and i >= 0 for i in which)
    ):
        yield f"devices must be all or a list of indexes, got {which}"
    enabled, wanted = entry.get("mig-enabled"), entry.get("mig-devices")
    if not isinstance(enabled, bool):
        yield "mig-enabled must be true or false"
    if enabled is True and wanted is None:
        yield "missing mig-devices where mig-enabled is true"
    if enabled is False and wanted:
        yield "mig-devices where mig-enabled is false"
    counts = wanted.values() if isinstance(wanted, Mapping) else []
    if wanted is not None and not isinstance(wanted, Mapping):
        yield "mig-devices must be counts by profile"
    if any(type(n) is not int or n < 0 for n in counts):
        yield "counts in mig-devices must be whole numbers"


def _filters(entry: Mapping[str, Any]) -> list[str]:
    said = entry.get("device-filter") or []
    return [str(f) for f in (said if isinstance(said, list) else [said])]


def _for(gpu: Gpu, entry: Mapping[str, Any]) -> bool:
    filters = _filters(entry)
    return not filters or gpu.name in {PCI.get("0x" + f[2:].upper()) for f in filters}


def _product(entries: list[Any], known: Mapping[str, Any] | None, given: Input) -> Gpu:
    said = str(known["gpu"]) if known is not None else given.gpu
    if said is not None:
        found = product(said, given.gpus)
        if found is None:
            raise CannotRead(f'no product "{said}"')
        return found
    named = {PCI.get("0x" + f[2:].upper()) for entry in entries for f in _filters(entry)}
    names = {p for e in entries for p in (e.get("mig-devices") or {})}
    fits = [
        g
        for g in given.gpus
        if g.mig is not None
        and (not named or g.name in named)
        and all(g.mig.profile(str(n)) is not None for n in names)
    ]
    if len(fits) != 1 or not (names or named):
        could = f": it could be {', '.join(g.name for g in fits)}" if fits and names else ""
        raise _LeftOut(f"its product is not said{could}; say --gpu PRODUCT")
    return fits[0]


def _count(entries: list[Any], known: Mapping[str, Any] | None, given: Input) -> int:
    if known is not None:
        return int(known["gpus"])
    if given.count is not None:
        return given.count
    listed = [i for e in entries if isinstance(e["devices"], list) for i in e["devices"]]
    if not listed or any(e["devices"] == "all" for e in entries):
        raise _LeftOut("devices: all does not say how many GPUs there are; say --gpus N")
    return max(listed) + 1


def _layout(gpu: Gpu, wanted: Mapping[str, Any]) -> tuple[PlacedProfile, ...]:
    if gpu.mig is None:
        raise CannotRead(f"{gpu.name} has no MIG")
    names: list[str] = []
    for name, count in wanted.items():
        profile = gpu.mig.profile(str(name))
        if profile is None:
            raise _LeftOut(f"{gpu.name} has no profile {name}")
        names += [profile.name] * min(int(count), profile.max_instances + 1)
    found = placements(gpu, names, most=1)
    if not found:
        told = ", ".join(f"{n} x {p}" for p, n in wanted.items())
        raise CannotRead(f"{told} do not fit on one {gpu.name}")
    return found[0]
