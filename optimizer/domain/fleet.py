"""The fleet: nodes, their GPUs, where they stand and what they cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.domain.units import scaled_down


class Sharing(StrEnum):
    """How a GPU is given out; also the mode a GPU is in."""

    MIG = "mig"
    WHOLE = "whole"
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class Device:
    """What is special about one GPU of a node. ``layout`` None: nothing is said about it."""

    index: int
    uuid: str | None = None
    cordoned: bool = False
    mig_enabled: bool | None = None
    layout: tuple[PlacedProfile, ...] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine with GPUs of one product. None means unknown, and unknown means unlimited."""

    name: str
    gpu: Gpu
    gpus: int
    rack: str | None = None
    zone: str | None = None
    price_micros_per_gpu_hour: int | None = None
    sharing: tuple[Sharing, ...] = (Sharing.WHOLE,)
    layouts_fixed: bool = False
    nvlink_domain: str = "node"  # node | pair | none | a name shared by nodes
    network_gbs: float | None = None  # per direction
    cpu_millicores: int | None = None
    host_memory_mib: int | None = None
    cordoned: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    devices: tuple[Device, ...] = ()

    @property
    def rack_domain(self) -> str:
        """The rack, or the node itself where it names none."""
        return self.rack if self.rack is not None else f"node:{self.name}"

    @property
    def zone_domain(self) -> str:
        """The zone, or the rack's domain where it names none."""
        return self.zone if self.zone is not None else f"rack:{self.rack_domain}"

    @property
    def network_mbs(self) -> int | None:
        """MB/s that its link carries in each direction, rounded down."""
        return None if self.network_gbs is None else scaled_down(self.network_gbs, 1000)

    def device(self, index: int) -> Device:
        """What is special about that GPU, or a plain device."""
        if not self.devices:
            return Device(index)
        return next((d for d in self.devices if d.index == index), Device(index))

    def open_gpus(self) -> tuple[int, ...]:
        """Indexes of the GPUs on which something new may run: those not cordoned."""
        if self.cordoned:
            return ()
        if not self.devices:
            return tuple(range(self.gpus))
        return tuple(i for i in range(self.gpus) if not self.device(i).cordoned)


@dataclass(frozen=True, slots=True)
class FleetGpu:
    """One GPU of the fleet."""

    node: Node
    device: Device

    @property
    def id(self) -> str:
        """``<node>/<index>``."""
        return f"{self.node.name}/{self.device.index}"

    @property
    def gpu(self) -> Gpu:
        """Its product."""
        return self.node.gpu

    @property
    def cordoned(self) -> bool:
        """Whether nothing new may run here."""
        return self.node.cordoned or self.device.cordoned


@dataclass(frozen=True, slots=True)
class Reserve:
    """Room kept free on purpose: ``count`` times a profile, or a number of whole GPUs."""

    count: int
    profile: str | None = None
    gpus: int | None = None
    gpu: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings over the whole plan."""

    price_micros_per_hour: int | None = None
    rack_power_w: int | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """All GPUs we may use, in document order."""

    name: str
    nodes: tuple[Node, ...]
    currency: str = "USD"
    reserve: tuple[Reserve, ...] = ()
    limits: Limits = Limits()

    @property
    def priced(self) -> bool:
        """Whether nodes have prices; without any, every GPU counts 1 and output says GPUs."""
        return any(n.price_micros_per_gpu_hour is not None for n in self.nodes)

    @property
    def unit(self) -> str:
        """What a price of this fleet is counted in: its currency, or GPUs."""
        return self.currency if self.priced else "GPUs"

    def price_micros(self, node: Node) -> int:
        """Price of one GPU-hour on that node, in millionths; a whole unit where nobody has one."""
        price = node.price_micros_per_gpu_hour
        return 1_000_000 if price is None else price

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def gpus(self) -> Iterator[FleetGpu]:
        """Every GPU, node by node in document order, then by index."""
        for node in self.nodes:
            for index in range(node.gpus):
                yield FleetGpu(node, node.device(index))

    def products(self) -> tuple[Gpu, ...]:
        """The products of the fleet, by name."""
        return tuple(sorted({n.gpu.name: n.gpu for n in self.nodes}.values(), key=lambda g: g.name))
