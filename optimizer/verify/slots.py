"""The law of MIG layouts, written a second time, and what free room can still hold."""

from collections import Counter
from collections.abc import Sequence

from optimizer.domain.gpu import Gpu, MigProfile, MigTable, PlacedProfile


def layout_faults(gpu: Gpu, layout: Sequence[PlacedProfile]) -> list[str]:
    """Everything that makes a layout illegal on that product, in words.

    Instances start where their profile may, share no memory slice, are at most ``max_instances``
    of a profile, and hand out no engine more often than the profile of the whole GPU has it.
    """
    table = gpu.mig
    if table is None:
        return [f"holds {len(layout)} MIG instances, {gpu.name} has no MIG"]
    faults = []
    known: list[tuple[int, MigProfile]] = []
    for placed in layout:
        profile = table.profile(placed.profile)
        if profile is None:
            faults.append(f"{gpu.name} has no profile {placed.profile}")
        elif placed.start not in profile.starts:
            faults.append(f"{profile.name} may not start at {placed.start}")
        else:
            known.append((placed.start, profile))
    users = Counter(cell for start, p in known for cell in range(start, start + p.memory_slices))
    faults += [f"memory slice {c} is in {n} instances" for c, n in sorted(users.items()) if n > 1]
    for name, count in sorted(Counter(p.name for _, p in known).items()):
        most = next(p.max_instances for _, p in known if p.name == name)
        if count > most:
            faults.append(f"{count} instances of {name}, at most {most}")
    return faults + _engine_faults(table, [p for _, p in known])


def _engine_faults(table: MigTable, profiles: Sequence[MigProfile]) -> list[str]:
    full = [p for p in table.profiles if p.plain and p.memory_slices == table.memory_slices]
    room = dict(full[0].engines) if full else {}
    given: Counter[str] = Counter()
    for profile in profiles:
        given.update(dict(profile.engines))
    return [
        f"{given[name]} {name} engines are handed out, the GPU has {room[name]}"
        for name in sorted(room)
        if given[name] > room[name]
    ]


def taken_slices(gpu: Gpu, layout: Sequence[PlacedProfile]) -> set[int]:
    """The memory slices that these instances hold."""
    table = gpu.mig
    taken: set[int] = set()
    for placed in layout:
        profile = table.profile(placed.profile) if table else None
        if profile is not None:
            taken.update(range(placed.start, placed.start + profile.memory_slices))
    return taken


def stranded_slices(gpu: Gpu, layout: Sequence[PlacedProfile]) -> int:
    """Free memory slices in pieces too small for any plain profile of half the GPU or more."""
    table = gpu.mig
    if table is None:
        return 0
    taken = taken_slices(gpu, layout)
    free = [cell for cell in range(table.memory_slices) if cell not in taken]
    large = [p for p in table.profiles if p.plain and 2 * p.memory_slices >= table.memory_slices]
    saved: set[int] = set()
    for profile in large:
        for start in profile.starts:
            cells = range(start, start + profile.memory_slices)
            if all(cell in free for cell in cells):
                saved.update(_piece(free, start))
    return len(free) - len(saved)


def _piece(free: Sequence[int], cell: int) -> list[int]:
    """The run of free slices around a free slice."""
    low = high = cell
    while low - 1 in free:
        low -= 1
    while high + 1 in free:
        high += 1
    return list(range(low, high + 1))
