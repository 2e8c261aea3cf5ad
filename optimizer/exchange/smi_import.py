"""nvidia-smi: captures of one or several nodes to a Fleet, and a State of what stands on it."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.domain import words
from optimizer.domain.gpu import Gpu, MigProfile, PlacedProfile
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
from optimizer.exchange.products import by_id, near, placements, product
from optimizer.exchange.smi_capture import read_capture
from optimizer.exchange.smi_facts import Machine, SeenGpu, SeenInstance
from optimizer.exchange.smi_hosts import by_host

FORMAT = "nvidia-smi"
_ENDINGS = re.compile(
    r"(?:^|[-_.]+)(?:nvidia[-_]?smi|smi|mig|lgipp?|lgi|lcipp?|lci|L|qx|q|xml|query(?:[-_]gpu)?|csv|out"
    r"|capture|list)$",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Told:
    """What an import has to say besides its documents."""

    unsaid: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def import_nvidia_smi(given: Input) -> Import:
    """A node for each machine that was captured. Raises CannotRead."""
    return import_machines(dict(_machines(given)), given)


def import_machines(
    machines: Mapping[str, Machine], given: Input, notes: Sequence[str] = ()
) -> Import:
    """A node for each machine by its name, however its facts were told. Raises CannotRead."""
    told = _Told(notes=list(notes))
    nodes = [
        node
        for name, machine in machines.items()
        if (node := _node(name, machine, given, told)) is not None
    ]
    if told.refused:
        raise CannotRead(*told.refused)
    if not nodes:
        raise CannotRead(*(told.left_out or ["no GPU was found in the captures"]))
    fleet = Imported(
        {"kind": "Fleet", "version": 1, "name": given.name, "nodes": nodes},
        unsaid=(PRICES, RACKS, HOST, *told.unsaid),
        notes=tuple(told.notes),
    )
    documents = [fleet]
    state = _state(given.name, nodes)
    if state["instances"]:
        why = "what runs in the instances, if anything: every one is taken to stand empty"
        documents.append(Imported(state, unsaid=(why,)))
    return Import(FORMAT, tuple(documents), tuple(told.left_out))


def _state(fleet: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    instances = [
        {"gpu": f"{node['name']}/{index}", **placed}
        for node in nodes
        for index, device in node.get("devices", {}).items()
        for placed in device.get("layout", ())
    ]
    return {"kind": "State", "version": 1, "fleet": fleet, "replicas": [], "instances": instances}


def _machines(given: Input) -> Iterator[tuple[str, Machine]]:
    """The captures joined by node: by ``--node``, folder, prompt, or where they agree."""
    reasons: list[str] = []
    read: list[tuple[File, Machine]] = []
    for host, file in (part for whole in given.files for part in by_host(whole)):
        machine = Machine(host=host)
        try:
            read_capture(file, machine)
        except CannotRead as refusal:
            reasons += refusal.reasons
        read.append((file, machine))
    if reasons:
        raise CannotRead(*reasons)
    for name, files in _by_node(given, read).items():
        joined = Machine()
        for file in files:
            read_capture(file, joined)
        yield name, joined


def _by_node(given: Input, read: list[tuple[File, Machine]]) -> dict[str, list[File]]:
    if given.node:
        return {given.node: [file for file, _ in read]}
    named: dict[str, list[File]] = {}
    nameless: list[tuple[File, Machine]] = []
    for file, machine in read:
        name = file.folder or machine.host
        if name:
            named.setdefault(_plain(name), []).append(file)
        else:
            nameless.append((file, machine))
    if not nameless:
        return named
    if len(named) == 1 and _agree([m for _, m in read]):
        next(iter(named.values())).extend(file for file, _ in nameless)
        return named
    if not named and _agree([m for _, m in nameless]):
        return {_common(nameless): [file for file, _ in nameless]}
    return named | _by_stem(nameless)


def _by_stem(nameless: list[tuple[File, Machine]]) -> dict[str, list[File]]:
    """Files of several nodes: those whose names differ only in what was asked go together."""
    found: dict[str, list[tuple[File, Machine]]] = {}
    for file, machine in nameless:
        found.setdefault(_stem(file), []).append((file, machine))
    for stem, members in found.items():
        if not _agree([m for _, m in members]) or all(_nameless(m) for _, m in members):
            raise CannotRead(
                f"{members[0][0].name}: which node is it of? Put the files of each node into a "
                "folder named after the node, or import one node at a time with --node NAME"
            )
        found[stem] = members
    return {stem: [file for file, _ in members] for stem, members in found.items()}


def _nameless(machine: Machine) -> bool:
    return all(gpu.name is None for gpu in machine.gpus.values())


def _agree(machines: Iterable[Machine]) -> bool:
    """Whether no two captures say different things of one GPU, or one GPU of two places."""
    seen: dict[int, tuple[str | None, str | None]] = {}
    for machine in machines:
        for index, gpu in machine.gpus.items():
            uuid, where = seen.get(index, (None, None))
            if uuid and gpu.uuid and uuid != gpu.uuid:
                return False
            if where and gpu.bus and where != gpu.bus:
                return False
            seen[index] = (uuid or gpu.uuid, where or gpu.bus)
    return True


def _stem(file: File) -> str:
    stem = file.stem
    while (shorter := _ENDINGS.sub("", stem)) != stem:
        stem = shorter
    return _plain(stem)


def _common(nameless: list[tuple[File, Machine]]) -> str:
    stems = {_stem(file) for file, _ in nameless}
    return stems.pop() if len(stems) == 1 else "node-1"


def _plain(name: str) -> str:
    """A name that a document may carry."""
    return re.sub(r"[^\w.:@+\-]+", "-", name).strip("-.:@+") or "node-1"


def _node(name: str, machine: Machine, given: Input, told: _Told) -> dict[str, Any] | None:
    """The entry of one node; None where its product is not known."""
    if not machine.gpus:
        why = machine.fatal or machine.troubles or ["no GPU in its captures", *machine.strange]
        # A node without a name of its own is called as its file, which the reason begins with.
        told.left_out += [w if w.startswith(f"{name}:") else f"{name}: {w}" for w in why]
        return None
    told.notes += [f"{name}: {line}" for line in (*machine.fatal, *machine.troubles)]
    if machine.inside:
        told.notes.append(
            f"{name}: captured inside a container, which may see only some GPUs and instances"
        )
    told.notes += machine.strange[:5]
    if len(machine.strange) > 5:
        told.notes.append(f"{name}: {len(machine.strange) - 5} more lines were not understood")
    seen = machine.gpus.values()
    if any(g.instances for g in seen) and not any(g.listed or g.held or g.compute for g in seen):
        told.notes.append(
            f"{name}: nothing but mig -lgi shows its instances; were it cut off between two rows, "
            "nobody could tell: add nvidia-smi -L"
        )
    named = [g for g in machine.gpus.values() if g.name]
    told.refused += [
        f"{name}: GPU {g.index} stands in a table of mig, and no listing names its product; "
        "capture nvidia-smi -L whole"
        for g in machine.gpus.values()
        if named and not g.name
    ]
    uuids = Counter(g.uuid for g in machine.gpus.values() if g.uuid)
    twice = sorted(uuid for uuid, times in uuids.items() if times > 1)
    told.refused += [f"{name}: two GPUs have the UUID {uuid}" for uuid in twice]
    main = _main_product(name, machine, given, told)
    if main is None:
        return None
    count = max(machine.gpus) + 1
    if count > MOST_GPUS:
        told.refused.append(f"{name}: GPU {count - 1} is more than a node has")
        return None
    devices: dict[str, Any] = {}
    for index in range(count):
        gpu = machine.gpus.get(index)
        if gpu is None:
            told.unsaid.append(f"{name}/{index}: no capture shows it, so it is cordoned")
            devices[str(index)] = {"cordoned": True}
            continue
        found = _product(gpu, given)
        if gpu.name is not None and (found is None or found.name != main.name):
            told.left_out.append(
                f"{name}/{index} is {gpu.name}, in a node of {main.name}; cordoned"
            )
            devices[str(index)] = {"cordoned": True}
            continue
        device = _device(f"{name}/{index}", gpu, main, machine, told)
        if device:
            devices[str(index)] = device
    node = {"name": name, "gpu": main.name, "gpus": count}
    return {**node, "devices": devices} if devices else node


def _product(gpu: SeenGpu, given: Input) -> Gpu | None:
    return product(gpu.name, given.gpus, gpu.memory_mib) if gpu.name else None


def _main_product(name: str, machine: Machine, given: Input, told: _Told) -> Gpu | None:
    """The product of most GPUs of the node."""
    if given.gpu:
        chosen = product(given.gpu, given.gpus)
        if chosen is None:
            told.refused.append(f'--gpu: no product "{given.gpu}"')
            return None
        if all(g.name is None for g in machine.gpus.values()):
            return chosen
    names = Counter(g.name for g in machine.gpus.values() if g.name)
    found = Counter(p.name for g in machine.gpus.values() if (p := _product(g, given)) is not None)
    if found:
        best = found.most_common(1)[0][0]
        return next(g for g in given.gpus if g.name == best)
    if not names:
        fits = [g.name for g in given.gpus if _has_these(g, machine)]
        could = f" (its profiles are those of {' and '.join(fits)})" if fits else ""
        told.refused.append(
            f"{name}: no capture names its product; add one of nvidia-smi -L, or say --gpu PRODUCT"
            f"{could}"
        )
        return None
    seen = ", ".join(f"{count} x {n}" for n, count in sorted(names.items()))
    told.left_out.append(f"{name}: no datasheet of {seen}; write one as gpus/NAME.yaml")
    return None


def _has_these(gpu: Gpu, machine: Machine) -> bool:
    """Whether the product has every profile that -lgip shows, of that memory and those SMs."""
    rows = [(n, r) for g in machine.gpus.values() for n, r in g.profiles.items()]
    for number, row in rows:
        profile = by_id(gpu, number)
        if profile is None or profile.memory_mib is None or profile.sms != row.sms:
            return False
        if abs(profile.memory_mib / 1024 - row.memory_gib) > 0.01:
            return False
    return bool(rows)


def _device(id: str, gpu: SeenGpu, main: Gpu, machine: Machine, told: _Told) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if gpu.uuid:
        found["uuid"] = gpu.uuid
    told.notes += [f"a process runs on {id}: {p}" for p in gpu.processes]
    if gpu.memory_mib is not None and not near(main, gpu.memory_mib):
        told.notes.append(
            f"{id}: reports {gpu.memory_mib} MiB, and {main.name} has {main.memory_mib_reported}"
        )
    mig = gpu.mig
    if mig is None and any(row.free for row in gpu.profiles.values()):
        mig = True  # nothing is free where MIG is off
    if gpu.instances or gpu.listed or gpu.held:
        if mig is False:
            told.refused.append(f"{id}: MIG is off, and instances are listed; capture both at once")
            return found
        mig = True
    if main.mig is None:
        if mig:
            told.refused.append(f"{id}: {main.name} has no MIG, and its MIG is on")
        return found
    if gpu.pending:
        told.notes.append(f"{id}: another MIG mode waits for a reset of the GPU")
    if mig is not None:
        found["mig_enabled"] = mig
    _check_profiles(id, gpu, main, told)
    if mig:
        layout = _layout(id, gpu, main, machine, told)
        if layout is not None:
            found["layout"] = [{"profile": p.profile, "start": p.start} for p in sorted(layout)]
    elif mig is None:
        told.unsaid.append(f"{id}: whether MIG is on")
    return found


def _layout(
    id: str, gpu: SeenGpu, main: Gpu, machine: Machine, told: _Told
) -> list[PlacedProfile] | None:
    """The instances with their starts; None, and a reason told, where nobody said."""
    cut = [place for place, index in machine.cuts if index <= gpu.index]
    if gpu.instances is None and _none_there(gpu, machine):
        if not cut:
            return []
        told.refused += cut
        return None
    if gpu.instances is None:
        return _from_names(id, gpu, main, machine, told)
    found = [_placed(id, row, main, told) for row in gpu.instances]
    if any(p is None for p in found):
        return None
    layout = [p for p in found if p is not None]
    assert main.mig is not None
    wrong = main.mig.faults(layout)
    if wrong:
        told.refused.append(f"{id}: not possible on {main.name}: {wrong[0]}")
        return None
    confirmed = gpu.listed is not None and len(gpu.listed) == len(layout)
    if cut and not confirmed and any(index == gpu.index for _, index in machine.cuts):
        told.refused += cut
        return None
    _compare(id, gpu, layout, told)
    return layout


def _none_there(gpu: SeenGpu, machine: Machine) -> bool:
    """Whether every listing agrees that MIG is on and nothing stands there."""
    if gpu.listed or gpu.held:
        return False
    asked = [selection.covers(gpu.index) for selection in machine.asked]
    if True in asked:
        return True
    if gpu.profiles and all(row.free == row.total for row in gpu.profiles.values()):
        return True
    quiet = gpu.listed == [] or gpu.held == set()
    return quiet and (None in asked or gpu.held == set())


def _placed(id: str, row: SeenInstance, main: Gpu, told: _Told) -> PlacedProfile | None:
    """The row in the catalogue's words: the id decides, the name and the size must agree."""
    assert main.mig is not None
    profile = by_id(main, row.profile_id) or main.mig.profile(row.name)
    said = re.match(r"(\d+)g\.\d+gb", row.name)
    place = f"{id}: line {row.line}" if row.line else id
    if profile is None or said is None:
        told.refused.append(f"{place}: {main.name} has no profile {row.profile_id} ({row.name})")
        return None
    if int(said[1]) != profile.compute_slices:
        told.refused.append(
            f"{place}: profile {row.profile_id} of {main.name} is {profile.name}, "
            f"and the row says {row.name}"
        )
        return None
    if row.size != profile.memory_slices or row.start not in profile.starts:
        told.refused.append(
            f"{place}: {profile.name} takes {profile.memory_slices} memory slices "
            f"from one of {', '.join(map(str, profile.starts))}, and the row says "
            f"{row.start}:{row.size}"
        )
        return None
    if profile.name != row.name:
        note = f"{id}: this driver calls {profile.name} (profile {row.profile_id}) {row.name}"
        told.notes += [] if note in told.notes else [note]
    return PlacedProfile(row.start, profile.name)


def _bare(name: str) -> str:
    """A name as -L prints it: without compute slices in front and without suffix."""
    return re.sub(r"[+-].*$", "", re.sub(r"^\d+c\.", "", name))


def _compare(id: str, gpu: SeenGpu, layout: list[PlacedProfile], told: _Told) -> None:
    """-L and -lgi must be of one moment; an instance without MIG device cannot be used yet."""
    assert gpu.instances is not None
    strangers = {*gpu.compute, *(gpu.held or ())} - {row.instance for row in gpu.instances}
    if strangers:
        which = ", ".join(map(str, sorted(strangers)))
        told.refused.append(
            f"{id}: GPU instances {which} hold MIG devices, and mig -lgi does not list them; "
            "capture both at once, whole"
        )
        return
    split = sorted({n for names in gpu.compute.values() for n in names if "c." in n})
    split = split or sorted({n for n in gpu.listed or () if "c." in n})
    if split:
        told.notes.append(
            f"{id}: instances are divided further ({', '.join(split)}); plans use instances whole"
        )
    if gpu.listed is None:
        return
    have = Counter(_bare(row.name) for row in gpu.instances)
    plain = Counter(_bare(n) for n in gpu.listed if "c." not in n)
    parts = {_bare(n) for n in gpu.listed if "c." in n}
    more = [n for n in {*plain, *parts} if plain[n] > have[n] or (n in parts and not have[n])]
    if more:
        told.refused.append(
            f"{id}: nvidia-smi -L shows {', '.join(sorted(more))} more often than mig -lgi does; "
            "capture both at once"
        )
    elif not parts and sum(plain.values()) < len(layout):
        less = len(layout) - sum(plain.values())
        told.notes.append(
            f"{id}: {words.plural(less, 'instance')} without a compute instance; nothing can run "
            "there before nvidia-smi mig -cci"
        )


def _from_names(
    id: str, gpu: SeenGpu, main: Gpu, machine: Machine, told: _Told
) -> list[PlacedProfile] | None:
    """Starts by the names of -L alone, where these profiles fit in one way and fill the GPU."""
    if gpu.listed is None:
        told.unsaid.append(f"{id}: MIG is on, its instances are not told; add nvidia-smi mig -lgi")
        return None
    assert main.mig is not None
    names, unknown = [], []
    for name in gpu.listed:
        profile = main.mig.profile(_bare(name))
        twins = [p for p in main.mig.profiles if _bare(p.name) == _bare(name)]
        if profile is None or "c." in name or len(twins) > 1:  # -L leaves suffixes out
            unknown.append(name)
        else:
            names.append(profile.name)
    seen = ", ".join(f"{n} x {p}" for p, n in sorted(Counter(gpu.listed).items())) or "nothing"
    if gpu.listed and not unknown and not machine.inside:
        possible = placements(main, names)
        if not possible:
            told.refused.append(f"{id}: {seen} do not fit on one {main.name}")
            return None
        if len(possible) == 1 and not _room_left(main, possible[0]):
            told.notes.append(f"{id}: {seen} can stand in one way only, which is written")
            return list(possible[0])
    told.unsaid.append(
        f"{id}: where its instances start ({seen} by nvidia-smi -L); add nvidia-smi mig -lgi"
    )
    return None


def _room_left(main: Gpu, layout: Sequence[PlacedProfile]) -> bool:
    """Whether another instance fits: one may stand there, for -L leaves out those not in use."""
    assert main.mig is not None
    return any(
        not main.mig.faults([*layout, PlacedProfile(start, profile.name)])
        for profile in main.mig.profiles
        for start in profile.starts
    )


def _check_profiles(id: str, gpu: SeenGpu, main: Gpu, told: _Told) -> None:
    """-lgip and -lgipp against the catalogue: differences are told, the product must agree."""
    assert main.mig is not None
    for number, row in sorted(gpu.profiles.items()):
        profile = by_id(main, number) or main.mig.profile(row.name)
        if profile is None:
            told.notes.append(f"{id}: the catalogue has no profile {number} ({row.name})")
            continue
        said = re.match(r"(\d+)g\.", row.name)
        if said is None or int(said[1]) != profile.compute_slices:
            told.refused.append(
                f"{id}: line {row.line}: profile {number} of {main.name} is {profile.name}, and "
                f"the row says {row.name}"
            )
        elif (note := _memory_note(row.memory_gib, profile)) is not None:
            note = f"{main.name}: {note}"
            told.notes += [] if note in told.notes else [note]
    for number, (line, starts, size) in sorted(gpu.placements.items()):
        profile = by_id(main, number)
        if profile is not None and (profile.starts != starts or profile.memory_slices != size):
            told.refused.append(
                f"{id}: line {line}: profile {number} ({profile.name}) of {main.name} starts at "
                f"{profile.starts} in the catalogue and at {starts} here; describe this product "
                "in gpus/ beside your documents"
            )


def _memory_note(gib: float, profile: MigProfile) -> str | None:
    """Sizes move with the driver; what differs by more than rounding is told."""
    if profile.memory_mib is None:
        return f"this driver gives {profile.name} {gib} GiB; the catalogue has no size"
    known = profile.memory_mib / 1024
    if abs(known - gib) <= 0.01:
        return None
    return f"this driver gives {profile.name} {gib} GiB, the catalogue {known:.2f} GiB"
