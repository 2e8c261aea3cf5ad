"""GPU products and the law of their MIG layouts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from optimizer.domain.units import PPM, scaled_down

# CUDA's total lies 0.6 to 1.3 % under nvidia-smi's figure on every card where both were logged.
USABLE_PPM_OF_REPORTED = 985_000


@dataclass(frozen=True, slots=True)
class MigProfile:
    """A size of GPU instance, such as ``3g.40gb``."""

    name: str
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]  # memory slices at which an instance may begin
    max_instances: int
    profile_id: int | None = None
    memory_mib: int | None = None  # None: nobody has published it, so it is offered to nobody
    sms: int | None = None
    engines: tuple[tuple[str, int], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the name carries no suffix such as ``+me``."""
        return "+" not in self.name and "-" not in self.name


@dataclass(frozen=True, slots=True, order=True)
class PlacedProfile:
    """A GPU instance on some GPU: its profile and the memory slice where it starts."""

    start: int
    profile: str


@dataclass(frozen=True, slots=True)
class MigTable:
    """What a MIG-capable product can be cut into."""

    compute_slices: int
    memory_slices: int
    profiles: tuple[MigProfile, ...]
    full_gpu_sms: int | None = None
    name_aliases: tuple[tuple[str, str], ...] = ()

    def profile(self, name: str) -> MigProfile | None:
        """The profile of that name, driver-dependent spellings included; None if there is none."""
        known = dict(self.name_aliases).get(name, name)
        return next((p for p in self.profiles if p.name == known), None)

    def faults(self, layout: Sequence[PlacedProfile]) -> list[str]:
        """Everything that makes ``layout`` illegal on one GPU of this product, in words.

        Legal means: known profiles at allowed starts, no memory slice used twice, at most
        ``max_instances`` of each profile, and no media engine handed out more often than the
        whole GPU has it (which is why only one ``+me`` instance exists).
        """
        found: list[str] = []
        taken: dict[int, str] = {}
        counts: dict[str, int] = {}
        engines: dict[str, int] = {}
        for placed in layout:
            profile = self.profile(placed.profile)
            if profile is None:
                found.append(f"no profile {placed.profile}")
                continue
            if placed.start not in profile.starts:
                starts = ", ".join(map(str, profile.starts))
                found.append(f"{profile.name} cannot start at {placed.start}, only at {starts}")
                continue
            for cell in range(placed.start, placed.start + profile.memory_slices):
                if cell in taken:
                    found.append(f"memory slice {cell} is held by {taken[cell]} and {profile.name}")
                taken[cell] = profile.name
            counts[profile.name] = counts.get(profile.name, 0) + 1
            if counts[profile.name] == profile.max_instances + 1:
                found.append(f"more than {profile.max_instances} of {profile.name}")
            for engine, count in profile.engines:
                engines[engine] = engines.get(engine, 0) + count
        for engine, room in self._engine_budget().items():
            if engines.get(engine, 0) > room:
                found.append(f"{engines[engine]} {engine} engines handed out, the GPU has {room}")
        return found

    def _engine_budget(self) -> Mapping[str, int]:
        whole = [p for p in self.profiles if p.plain and p.memory_slices == self.memory_slices]
        return dict(whole[0].engines) if whole else {}

    def layouts(self, names: Sequence[str]) -> Iterator[tuple[PlacedProfile, ...]]:
        """Every legal placed layout of the named profiles, the empty one included."""
        profiles = [p for name in names if (p := self.profile(name)) is not None]

        def extend(
            layout: tuple[PlacedProfile, ...], cell: int
        ) -> Iterator[tuple[PlacedProfile, ...]]:
            yield layout
            for start in range(cell, self.memory_slices):
                for profile in profiles:
                    longer = (*layout, PlacedProfile(start, profile.name))
                    if start in profile.starts and not self.faults(longer):
                        yield from extend(longer, start + profile.memory_slices)

        return extend((), 0)

    def multisets(self, names: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Every multiset of the named profiles that some legal layout realises, sorted."""
        return _multisets(self, names)

    def maximal_multisets(self, names: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], ...]:
        """The multisets that lie in no other: enough to pack with, since room may stay empty."""
        every = [dict(m) for m in self.multisets(names)]

        def inside(small: dict[str, int], large: dict[str, int]) -> bool:
            return small != large and all(large.get(k, 0) >= v for k, v in small.items())

        return tuple(
            tuple(sorted(m.items())) for m in every if not any(inside(m, other) for other in every)
        )


@lru_cache(maxsize=256)
def _multisets(table: MigTable, names: tuple[str, ...]) -> tuple[tuple[tuple[str, int], ...], ...]:
    found = set()
    for layout in table.layouts(names):
        counts: dict[str, int] = {}
        for placed in layout:
            counts[placed.profile] = counts.get(placed.profile, 0) + 1
        found.add(tuple(sorted(counts.items())))
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Use:
    """What a replica takes of one GPU, or what a GPU has to give.

    ``memory_mib`` MiB, ``bandwidth_mbs`` MB/s of memory bandwidth, ``compute_ppm`` millionths of
    the GPU's SMs.
    """

    memory_mib: int = 0
    bandwidth_mbs: int = 0
    compute_ppm: int = 0

    def __add__(self, other: "Use") -> "Use":
        return Use(
            self.memory_mib + other.memory_mib,
            self.bandwidth_mbs + other.bandwidth_mbs,
            self.compute_ppm + other.compute_ppm,
        )

    def fits_in(self, room: "Use") -> bool:
        """Whether all three needs are within the room."""
        return (
            self.memory_mib <= room.memory_mib
            and self.bandwidth_mbs <= room.bandwidth_mbs
            and self.compute_ppm <= room.compute_ppm
        )

    def parts_of(self, room: "Use") -> tuple[float, float, float]:
        """The three uses as fractions of the room."""
        return (
            self.memory_mib / max(1, room.memory_mib),
            self.bandwidth_mbs / max(1, room.bandwidth_mbs),
            self.compute_ppm / max(1, room.compute_ppm),
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU product's datasheet. Peaks are dense; unknown is None."""

    name: str
    vendor: str
    architecture: str
    compute_capability: str
    memory_gb: float
    memory_bandwidth_gbs: float
    memory_mib_reported: int | None = None  # nvidia-smi's figure
    memory_mib_usable: int | None = None  # CUDA's total, which engines budget
    sms: int | None = None
    dense_tflops: Mapping[str, float | None] = field(default_factory=dict)
    native: tuple[str, ...] = ()
    nvlink_gbs: float | None = None  # both directions together
    nvlink_domain: str = "node"  # node | pair | none
    pcie_gen: int | None = None
    tdp_w: int | None = None
    mig: MigTable | None = None
    product_names: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def usable_mib(self) -> int:
        """CUDA's total where it is known, else an estimate that errs to the small side."""
        if self.memory_mib_usable is not None:
            return self.memory_mib_usable
        if self.memory_mib_reported is not None:
            return self.memory_mib_reported * USABLE_PPM_OF_REPORTED // PPM
        return int(self.memory_gb * 1e9) // (1 << 20) * USABLE_PPM_OF_REPORTED // PPM

    @property
    def usable_is_estimate(self) -> bool:
        """Whether nobody has logged CUDA's total for this product."""
        return self.memory_mib_usable is None

    @property
    def room(self) -> Use:
        """All that one whole GPU has to give."""
        return Use(self.usable_mib, scaled_down(self.memory_bandwidth_gbs, 1000), PPM)

    def fraction(self, ppm: int) -> Use:
        """That part (millionths) of memory, bandwidth and compute, each rounded down."""
        room = self.room
        return Use(room.memory_mib * ppm // PPM, room.bandwidth_mbs * ppm // PPM, ppm)

    def slice_room(self, profile: MigProfile) -> Use | None:
        """What an instance of the profile has to give; None when its memory is unknown.

        Bandwidth follows memory slices over this GPU's own count; compute follows SMs where the
        listing gives them, else compute slices.
        """
        if self.mig is None or profile.memory_mib is None:
            return None
        bandwidth = self.room.bandwidth_mbs * profile.memory_slices // self.mig.memory_slices
        total_sms = self.mig.full_gpu_sms or self.sms
        if profile.sms is not None and total_sms:
            compute = PPM * profile.sms // total_sms
        else:
            compute = PPM * profile.compute_slices // self.mig.compute_slices
        return Use(profile.memory_mib, bandwidth, min(PPM, compute))
