"""A Fleet document to the domain, with everything that is wrong in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.faults import Fault, Path, shown, unknown
from optimizer.documents.names import BadNameError, expand
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.base import Profile
from optimizer.documents.schema.fleet import DeviceDoc, FleetDoc, NodeDoc
from optimizer.documents.wording import complaints
from optimizer.domain.fleet import Device, Fleet, Limits, Node, Reserve, Sharing
from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.domain.units import MIB_PER_GIB, MICROS, scaled, scaled_down

Say = Callable[..., Fault]


@dataclass(slots=True)
class NodeFacts:
    """What is known of a node even where its entry has faults."""

    name: str
    gpu: Gpu | None
    gpus: int | None
    raw: dict[str, Any]


@dataclass(slots=True)
class FleetReading:
    """A fleet, or as much of it as can be told. ``sure``: every node's name could be read."""

    document: RawDocument
    faults: list[Fault] = field(default_factory=list)
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    sure: bool = True
    fleet: Fleet | None = None

    @property
    def products(self) -> dict[str, Gpu]:
        """The products that could be told, by name."""
        found = {n.gpu.name: n.gpu for n in self.nodes.values() if n.gpu is not None}
        return dict(sorted(found.items()))

    @property
    def products_sure(self) -> bool:
        """Whether every node's product could be told."""
        return self.sure and all(n.gpu is not None for n in self.nodes.values())


def read_fleet(document: RawDocument, catalogue: Catalogue) -> FleetReading:
    """The fleet of a document, and its faults."""
    reading = FleetReading(document)
    raw = document.value
    for path, message, key in complaints(FleetDoc, raw):
        reading.faults.append(document.fault(path, message, key=key))
    for path, entry in look.each(raw, "nodes[]"):
        if isinstance(entry, dict):
            read_entry(reading, entry, catalogue, _sayer(document, path), _named_before(document))
        else:
            reading.sure = False
    reading.sure &= bool(reading.nodes)
    reading.faults += _price_faults(document)
    if not reading.faults:
        reading.fleet = _build(FleetDoc.model_validate(raw), reading)
    return reading


def _sayer(document: RawDocument, path: Path) -> Say:
    def say(inner: Path, message: str, *, key: bool = False) -> Fault:
        return document.fault((*path, *inner), message, key=key)

    return say


def read_entry(
    reading: FleetReading,
    entry: dict[str, Any],
    catalogue: Catalogue,
    say: Say,
    taken: Callable[[str], str],
) -> tuple[str, ...]:
    """Notes the nodes of an entry and its faults; returns their names.

    ``taken`` words the fault of a name that another node has already.
    """
    names = _names(reading, entry, say)
    gpu = None
    spelling = entry.get("gpu")
    if isinstance(spelling, str) and spelling:
        gpu = catalogue.gpu(spelling)
        if gpu is None:
            reading.faults.append(say(("gpu",), unknown_product(spelling, catalogue)))
    reading.faults += node_faults(entry, gpu, len(names), say)
    for name in names:
        if name in reading.nodes:
            reading.faults.append(say(("name",), taken(name)))
            break
        reading.nodes[name] = NodeFacts(name, gpu, look.whole(entry, "gpus"), entry)
    return names


def _names(reading: FleetReading, entry: dict[str, Any], say: Say) -> tuple[str, ...]:
    pattern = entry.get("name")
    if isinstance(pattern, str) and pattern.strip():
        try:
            return expand(pattern)
        except BadNameError as error:
            reading.faults.append(say(("name",), str(error)))
    reading.sure = False
    return ()


def _named_before(document: RawDocument) -> Callable[[str], str]:
    def taken(name: str) -> str:
        first = next(p for p, n in _named(document.value) if name in n)
        return f'node "{name}" is named at line {document.line(first)} already; rename one'

    return taken


def _named(raw: dict[str, Any]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for path, pattern in look.texts(raw, "nodes[].name"):
        try:
            yield path, expand(pattern)
        except BadNameError:
            continue


def unknown_product(spelling: str, catalogue: Catalogue) -> str:
    """The fault of a product that nobody knows; shortened spellings are not guessed."""
    names = catalogue.gpus.names()
    if spelling in names:
        return f'the datasheet of "{spelling}" has faults; mend those first'
    if " " in spelling or spelling.lower().startswith("nvidia"):  # as nvidia-smi or a label has it
        return unknown("product", spelling, catalogue.gpus.spellings())
    message = unknown("product", spelling, names)
    if "did you mean" in message:
        return message
    found = catalogue.gpus.find(spelling)
    if found is not None:
        return f'no product "{shown(spelling)}"; did you mean "{found.name}"?'
    return unknown("product", spelling, [*names, *catalogue.gpus.spellings()])


def place_fault(name: str, fleet: FleetReading) -> str | None:
    """Why a node or a GPU id names nothing in the fleet, or None."""
    if name in fleet.nodes:
        return None
    node, slash, index = name.rpartition("/")
    if not slash:
        return unknown("node", name, fleet.nodes)
    return gpu_fault(name, node, index, fleet)


def gpu_fault(gpu_id: str, node: str, index: str, fleet: FleetReading) -> str | None:
    """Why ``<node>/<index>`` is no GPU of the fleet, or None."""
    if node not in fleet.nodes:
        return f'no GPU "{shown(gpu_id)}": {unknown("node", node, fleet.nodes)}'
    count = fleet.nodes[node].gpus
    plain = index.isascii() and index.isdigit() and (index == "0" or index[0] != "0")
    if not plain or (count is not None and (len(index) > 9 or int(index) >= count)):
        last = "" if count is None else f'; node "{node}" has {node}/0 to {node}/{count - 1}'
        if count == 1:
            last = f'; node "{node}" has only {node}/0'
        return f'no GPU "{shown(gpu_id)}"{last}'
    return None


def node_faults(entry: dict[str, Any], gpu: Gpu | None, count: int, say: Say) -> Iterator[Fault]:
    """What a schema cannot see in one entry that stands for ``count`` nodes."""
    if gpu is not None and gpu.mig is None:
        for path, way in look.texts(entry, "sharing[]"):
            if way == Sharing.MIG:
                yield say(path, f"{gpu.name} has no MIG; leave mig out")
    devices = entry.get("devices")
    if not isinstance(devices, dict):
        return
    if devices and count > 1:
        message = f"names GPUs of one node, but this entry stands for {count}; split it"
        yield say(("devices",), message, key=True)
    gpus = look.whole(entry, "gpus")
    seen: dict[str, str] = {}
    for index, device in devices.items():
        yield from _device_faults(index, device, gpus, gpu, say)
        uuid = look.text(device, "uuid")
        if uuid is not None and uuid in seen:
            message = f"is the UUID of GPU {seen[uuid]} too"
            yield say(("devices", index, "uuid"), message)
        elif uuid is not None:
            seen[uuid] = index


def _device_faults(
    index: str, device: Any, gpus: int | None, gpu: Gpu | None, say: Say
) -> Iterator[Fault]:
    path: Path = ("devices", index)
    if not (index.isascii() and index.isdigit() and (index == "0" or index[0] != "0")):
        yield say(path, "a GPU is named by its index, a number from 0", key=True)
    elif gpus is not None and gpus > 0 and (len(index) > 9 or int(index) >= gpus):
        which = "only GPU 0" if gpus == 1 else f"GPUs 0 to {gpus - 1}"
        yield say(path, f"no GPU {shown(index)}; the node has {which}", key=True)
    layout = look.at(device, "layout")
    if look.at(device, "mig_enabled") is True and gpu is not None and gpu.mig is None:
        yield say((*path, "mig_enabled"), f"{gpu.name} has no MIG; leave it out")
    if not isinstance(layout, list) or not layout:
        return
    if look.at(device, "mig_enabled") is False:
        message = "a GPU with instances has MIG on; set it to true or take the layout out"
        yield say((*path, "mig_enabled"), message)
    if gpu is not None:
        yield from layout_faults(layout, gpu, lambda inner, m: say((*path, "layout", *inner), m))


def layout_faults(layout: list[Any], gpu: Gpu, say: Say) -> Iterator[Fault]:
    """Every entry of a raw layout that makes it illegal on one GPU of that product."""
    if gpu.mig is None:
        yield say((), f"{gpu.name} has no MIG; take the layout out")
        return
    names = [p.name for p in gpu.mig.profiles]
    legal: list[PlacedProfile] = []
    for index, entry in enumerate(layout):
        profile, start = look.text(entry, "profile"), look.whole(entry, "start")
        if profile is not None and gpu.mig.profile(profile) is None:
            message = f"on {gpu.name}: {unknown('MIG profile', profile, names)}"
            yield say((index, "profile"), message)
        elif profile is not None and start is not None:
            placed = PlacedProfile(start, profile)
            wrong = [f for f in gpu.mig.faults([*legal, placed]) if f not in gpu.mig.faults(legal)]
            if wrong:
                yield say((index,), f"not possible on {gpu.name}: {wrong[0]}")
            else:
                legal.append(placed)


def _price_faults(document: RawDocument) -> Iterator[Fault]:
    """Some nodes with a price and some without would make the sum meaningless."""
    entries = [(p, e) for p, e in look.each(document.value, "nodes[]") if isinstance(e, dict)]
    without = [p for p, e in entries if e.get("price_per_gpu_hour") is None]
    if not without or len(without) == len(entries):
        return
    priced = next(e for _, e in entries if e.get("price_per_gpu_hour") is not None)
    example = look.text(priced, "name") or "another node"
    for path in without:
        message = f"is missing, but {shown(example)} has a price; give every node one, or none"
        yield document.fault((*path, "price_per_gpu_hour"), message)


def _build(doc: FleetDoc, reading: FleetReading) -> Fleet:
    nodes: list[Node] = []
    for entry in doc.nodes:
        for name in expand(entry.name):
            gpu = reading.nodes[name].gpu
            assert gpu is not None
            nodes.append(build_node(entry, name, gpu))
    return Fleet(
        name=doc.name or "fleet",
        nodes=tuple(nodes),
        currency=doc.currency,
        reserve=tuple(
            Reserve(r.count, r.profile, r.gpus, r.gpu, tuple(sorted(r.labels.items())))
            for r in doc.reserve
        ),
        limits=_limits(doc),
    )


def _limits(doc: FleetDoc) -> Limits:
    price, power = doc.limits.price_per_hour, doc.limits.rack_power_kw
    return Limits(
        None if price is None else scaled_down(price, MICROS),
        None if power is None else scaled_down(power, 1000),
    )


def build_node(doc: NodeDoc, name: str, gpu: Gpu) -> Node:
    """One node of a valid entry."""
    cores, memory, price = doc.cpu_cores, doc.memory_gib, doc.price_per_gpu_hour
    return Node(
        name=name,
        gpu=gpu,
        gpus=doc.gpus,
        rack=doc.rack,
        zone=doc.zone,
        price_micros_per_gpu_hour=None if price is None else scaled(price, MICROS),
        sharing=_sharing(doc, gpu),
        layouts_fixed=doc.mig_layouts == "fixed",
        nvlink_domain=doc.nvlink_domain or gpu.nvlink_domain,
        network_gbs=doc.network_gbs,
        cpu_millicores=None if cores is None else scaled_down(cores, 1000),
        host_memory_mib=None if memory is None else scaled_down(memory, MIB_PER_GIB),
        cordoned=doc.cordoned,
        labels=tuple(sorted(doc.labels.items())),
        devices=tuple(_device(int(i), d, gpu) for i, d in _by_index(doc.devices)),
    )


def _sharing(doc: NodeDoc, gpu: Gpu) -> tuple[Sharing, ...]:
    """As said; by default MIG and whole where the product has MIG, else whole and shared."""
    if doc.sharing is not None:
        return tuple(dict.fromkeys(Sharing(s) for s in doc.sharing))
    return (Sharing.MIG, Sharing.WHOLE) if gpu.mig else (Sharing.WHOLE, Sharing.SHARED)


def _by_index(devices: dict[str, DeviceDoc]) -> list[tuple[str, DeviceDoc]]:
    return sorted(devices.items(), key=lambda item: int(item[0]))


def _device(index: int, doc: DeviceDoc, gpu: Gpu) -> Device:
    layout = None if doc.layout is None else tuple(sorted(placed(p, gpu) for p in doc.layout))
    return Device(index, doc.uuid, doc.cordoned, doc.mig_enabled, layout)


def placed(doc: Profile, gpu: Gpu | None) -> PlacedProfile:
    """An instance by the catalogue's name of its profile; drivers spell some differently."""
    profile = gpu.mig.profile(doc.profile) if gpu is not None and gpu.mig is not None else None
    return PlacedProfile(doc.start, profile.name if profile else doc.profile)
