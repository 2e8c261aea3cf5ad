"""GPU products by the names that drivers and cluster labels give them."""

from collections.abc import Iterable, Sequence

from optimizer.domain.gpu import Gpu, MigProfile, PlacedProfile

NEAR_PERCENT = 3  # memory that drivers report for one product differs by less


def product(name: str, gpus: Iterable[Gpu], memory_mib: int | None = None) -> Gpu | None:
    """The product of that exact name; None when nobody knows it.

    Early drivers leave ``NVIDIA`` out, labels write ``-`` for a space. A name cut off with ``...``
    names a product only when its memory (MiB, as reported) leaves no other.
    """
    known = list(gpus)
    if name.endswith("..."):
        start = _flat(name.removesuffix("..."))
        fits = [
            g
            for g in known
            if any(_flat(full).startswith(start) for n in g.product_names for full in _forms(n))
            and memory_mib is not None
            and near(g, memory_mib)
        ]
        return fits[0] if len(fits) == 1 else None
    flat = _flat(name)
    for gpu in known:
        if name == gpu.name or any(flat in map(_flat, _forms(n)) for n in gpu.product_names):
            return gpu
    return None


def near(gpu: Gpu, memory_mib: int) -> bool:
    """Whether a reported memory can be that of the product."""
    reported = gpu.memory_mib_reported
    return reported is not None and abs(reported - memory_mib) * 100 <= NEAR_PERCENT * reported


def _forms(name: str) -> tuple[str, str]:
    return name, name.removeprefix("NVIDIA ")


def _flat(name: str) -> str:
    return name.strip().replace("-", " ").replace("_", " ")


def by_id(gpu: Gpu, profile_id: int) -> MigProfile | None:
    """The profile with that id: ids are stable where names and sizes change with the driver."""
    profiles = gpu.mig.profiles if gpu.mig else ()
    return next((p for p in profiles if p.profile_id == profile_id), None)


def placements(gpu: Gpu, names: Sequence[str], most: int = 2) -> list[tuple[PlacedProfile, ...]]:
    """At most so many ways to lay those profiles (catalogue names) out on one GPU."""
    if gpu.mig is None:
        return []
    table = gpu.mig
    profiles = {n: p for n in names if (p := table.profile(n)) is not None}
    if len(profiles) != len(set(names)):
        return []
    order = sorted(names, key=lambda n: (-profiles[n].memory_slices, n))
    found: list[tuple[PlacedProfile, ...]] = []

    def extend(rest: list[str], layout: tuple[PlacedProfile, ...]) -> None:
        if len(found) == most:
            return
        if not rest:
            if not table.faults(layout):
                found.append(tuple(sorted(layout)))
            return
        taken = {c for p in layout for c in _cells(p, profiles[p.profile])}
        same = [p.start for p in layout if p.profile == rest[0]]
        for start in _preferred(profiles[rest[0]]):
            cells = range(start, start + profiles[rest[0]].memory_slices)
            if not taken.intersection(cells) and (not same or _later(start, same, profiles, rest)):
                extend(rest[1:], (*layout, PlacedProfile(start, rest[0])))

    extend(order, ())
    return found


def _cells(placed: PlacedProfile, profile: MigProfile) -> range:
    return range(placed.start, placed.start + profile.memory_slices)


def _preferred(profile: MigProfile) -> Sequence[int]:
    """Half of a GPU at its far end first: that leaves more small profiles beside it."""
    half = len(profile.starts) == 2 and profile.compute_slices > 1
    return tuple(reversed(profile.starts)) if half else profile.starts


def _later(start: int, same: list[int], profiles: dict[str, MigProfile], rest: list[str]) -> bool:
    """One order among instances of one profile, so that no layout is found twice."""
    starts = list(_preferred(profiles[rest[0]]))
    return starts.index(start) > starts.index(same[-1])
