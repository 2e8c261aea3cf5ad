"""What captures of nvidia-smi say of one node, fact by fact."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SeenInstance:
    """A row of ``mig -lgi``; line 0: asked of the driver itself."""

    line: int
    name: str
    profile_id: int
    instance: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class SeenProfile:
    """A row of ``mig -lgip``: memory as printed, in GiB with two decimals."""

    line: int
    name: str
    free: int
    total: int
    memory_gib: float
    sms: int


@dataclass(slots=True)
class SeenGpu:
    """One GPU. None: nothing was said about it."""

    index: int
    name: str | None = None
    uuid: str | None = None
    bus: str | None = None
    memory_mib: int | None = None
    mig: bool | None = None
    pending: bool = False  # another MIG mode waits for a reset
    listed: list[str] | None = None  # profile names of -L, without +me
    instances: list[SeenInstance] | None = None
    held: set[int] | None = None  # GPU instances that hold a MIG device
    compute: dict[int, list[str]] = field(default_factory=dict)  # -lci, by GPU instance
    profiles: dict[int, SeenProfile] = field(default_factory=dict)
    placements: dict[int, tuple[int, tuple[int, ...], int]] = field(default_factory=dict)
    processes: list[str] = field(default_factory=list)

    def forget_instances(self) -> None:
        """Instances were made or destroyed since."""
        self.listed, self.instances, self.held = None, None, None
        self.compute, self.profiles = {}, {}


@dataclass(slots=True)
class Selection:
    """What a ``mig`` command was asked: all GPUs, some, or nobody knows."""

    known: bool = False  # the command itself was captured
    only: frozenset[int] | None = None

    def covers(self, index: int) -> bool | None:
        """Whether that GPU was asked for; None: nobody knows."""
        if self.only is not None:
            return index in self.only
        return True if self.known else None


@dataclass(slots=True)
class Machine:
    """All that was captured of one node."""

    host: str | None = None
    gpus: dict[int, SeenGpu] = field(default_factory=dict)
    asked: list[Selection] = field(default_factory=list)  # of each -lgi that was answered
    inside: bool = False  # asked inside a container, which may see only some of it
    driver: str | None = None
    fatal: list[str] = field(default_factory=list)  # nvidia-smi itself did not work
    troubles: list[str] = field(default_factory=list)  # error texts, with their place
    strange: list[str] = field(default_factory=list)  # lines that nobody understood
    cuts: list[tuple[str, int]] = field(default_factory=list)  # tables that break off: place, GPU

    def gpu(self, index: int) -> SeenGpu:
        """The GPU of that index."""
        return self.gpus.setdefault(index, SeenGpu(index))

    def find(self, index: int | None, uuid: str | None, bus: str | None, order: int) -> SeenGpu:
        """The GPU by index, else by UUID or bus id, else by its place in the listing."""
        if index is not None:
            return self.gpu(index)
        for gpu in self.gpus.values():
            if (uuid and gpu.uuid == uuid) or (bus and gpu.bus == bus):
                return gpu
        return self.gpu(order)
