"""The rooms a fleet offers a replica: MIG instances, whole GPUs, shares of a GPU, by product."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from optimizer.domain.config import Shape
from optimizer.domain.fleet import Fleet, Node, Sharing
from optimizer.domain.gpu import Gpu, Use
from optimizer.domain.units import PPM
from optimizer.sizing.performance import PCIE_GBS, Device

SHARES_PPM = (125_000, 250_000, 375_000, 500_000, 750_000)


@dataclass(frozen=True, slots=True)
class Room:
    """One way to be given part of the fleet. ``use`` is all there is to take, per GPU."""

    gpu: Gpu
    shape: Shape
    use: Use
    device: Device
    slow_link: bool = False  # the group talks over PCIe on some node

    @property
    def name(self) -> str:
        """As people write it: ``h100-80gb-sxm 1g.10gb``, ``l40s 2 GPUs``, ``l40s 25 % share``.

        Stages of a pipeline: ``h100-80gb-sxm 2 x 8 GPUs``.
        """
        if self.shape.sharing is Sharing.MIG:
            return f"{self.gpu.name} {self.shape.profile}"
        if self.shape.sharing is Sharing.SHARED:
            return f"{self.gpu.name} {self.use.compute_ppm / 10_000:g} % share"
        gpus = f"{self.shape.block} GPU{'s' if self.shape.block > 1 else ''}"
        stages = f"{self.shape.stages} x " if self.shape.stages > 1 else ""
        return f"{self.gpu.name} {stages}{gpus}"

    @property
    def total_mib(self) -> int:
        """Memory of one GPU, slice or share."""
        return self.use.memory_mib


@dataclass(frozen=True, slots=True)
class Product:
    """What the nodes of one product allow together: a node of each kind, and how many there are."""

    gpu: Gpu
    nodes: tuple[Node, ...]
    numbers: tuple[int, ...] = ()  # of one each where nothing is said

    @property
    def sharing(self) -> tuple[Sharing, ...]:
        """Modes that some node allows."""
        return tuple(mode for mode in Sharing if any(mode in n.sharing for n in self.nodes))

    def largest_group(self, mode: Sharing = Sharing.WHOLE) -> int:
        """GPUs of the largest node that gives them out so."""
        return max((n.gpus for n in self.nodes if mode in n.sharing), default=0)

    def blocks(self, size: int) -> int:
        """How many blocks of so many whole GPUs its nodes hold, each in one node."""
        numbers = self.numbers or (1,) * len(self.nodes)
        return sum(
            number * (node.gpus // size)
            for node, number in zip(self.nodes, numbers, strict=True)
            if Sharing.WHOLE in node.sharing
        )


def products(fleet: Fleet, pin: Iterable[str] = ()) -> tuple[Product, ...]:
    """The products a deployment may use, by name; a pin leaves only its nodes."""
    pinned = {name.rsplit("/", 1)[0] if "/" in name else name for name in pin}
    kinds: dict[str, dict[object, list[Node]]] = {}
    for node in fleet.nodes:
        if not pinned or node.name in pinned:
            known = kinds.setdefault(node.gpu.name, {})
            known.setdefault(_kind(node), []).append(node)
    return tuple(
        Product(gpus[0][0].gpu, tuple(g[0] for g in gpus), tuple(len(g) for g in gpus))
        for gpus in (list(found.values()) for _, found in sorted(kinds.items()))
    )


def _kind(node: Node) -> object:
    """All that a room looks at; nodes of one product that agree in it are alike."""
    link = node.nvlink_domain if node.nvlink_domain in ("none", "pair") else "node"
    return node.gpus, node.sharing, link, node.network_gbs


def mig_rooms(gpu: Gpu) -> Iterator[Room]:
    """An instance of each plain profile whose memory is known."""
    for profile in gpu.mig.profiles if gpu.mig else ():
        if profile.plain and (room := mig_room(gpu, profile.name)) is not None:
            yield room


def mig_room(gpu: Gpu, name: str) -> Room | None:
    """An instance of that profile; None where the product or its memory is unknown."""
    profile = gpu.mig.profile(name) if gpu.mig else None
    use = gpu.slice_room(profile) if profile else None
    if profile is None or use is None:
        return None
    device = Device(gpu, use.bandwidth_mbs / 1000, use.compute_ppm / PPM)
    return Room(gpu, Shape(Sharing.MIG, 1, profile.name), use, device)


def share_room(gpu: Gpu, share: Use) -> Room:
    """A share of one GPU."""
    device = Device(gpu, share.bandwidth_mbs / 1000, share.compute_ppm / PPM)
    return Room(gpu, Shape(Sharing.SHARED, 1, None, share), share, device)


def whole_room(product: Product, block: int, stages: int = 1) -> Room:
    """``stages`` blocks of so many whole GPUs, each in one node, joined by the slowest links.

    A candidate names a product, not a node, so it may promise only what every fitting node keeps.
    Stages may lie in any nodes, so they talk over the slowest network; where it is unknown, over
    the PCIe slot that its card would sit in.
    """
    gpu = product.gpu
    fitting = [n for n in product.nodes if Sharing.WHOLE in n.sharing and n.gpus >= block]
    slow = block > 1 and any(not _nvlink(n, block) for n in fitting)
    pcie = PCIE_GBS.get(gpu.pcie_gen or 4, PCIE_GBS[4])
    link = pcie if slow else (gpu.nvlink_gbs or 2 * pcie) / 2
    between = min([pcie, *(n.network_gbs for n in fitting if n.network_gbs is not None)])
    device = Device(gpu, gpu.memory_bandwidth_gbs, 1.0, link, nvlink=not slow, between_gbs=between)
    shape = Shape(Sharing.WHOLE, block * stages, stages=stages)
    return Room(gpu, shape, gpu.room, device, slow)


def _nvlink(node: Node, gpus: int) -> bool:
    if not node.gpu.nvlink_gbs or node.nvlink_domain == "none":
        return False
    return node.nvlink_domain != "pair" or gpus <= 2


def rooms(
    product: Product, modes: Iterable[str] | None, groups: Iterable[tuple[int, int]]
) -> Iterator[Room]:
    """Every room of a product that the modes allow; groups of more than one GPU are whole.

    ``groups``: GPUs of a stage, and how many stages.
    """
    allowed = [m for m in product.sharing if modes is None or m.value in set(modes)]
    if Sharing.MIG in allowed:
        yield from mig_rooms(product.gpu)
    if Sharing.SHARED in allowed:
        for ppm in SHARES_PPM:
            yield share_room(product.gpu, product.gpu.fraction(ppm))
    if Sharing.WHOLE in allowed:
        for block, stages in sorted(set(groups)):
            if block <= product.largest_group() and stages <= product.blocks(block):
                yield whole_room(product, block, stages)
