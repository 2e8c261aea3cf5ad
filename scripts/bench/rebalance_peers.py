"""What others do with a fragmented MIG fleet: two usual heuristics, to compare with.

Both see GPUs of one product as tuples of placed instances and move instances whole.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from optimizer.domain.gpu import MigTable, PlacedProfile

Layout = tuple[PlacedProfile, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """GPUs still in use, and instances that moved."""

    gpus: int
    moves: int


@dataclass(slots=True)
class _Fleet:
    """Layouts by GPU, and GPUs by layout: alike ones are looked at once."""

    table: MigTable
    layouts: list[Layout]
    alike: dict[Layout, set[int]] = field(default_factory=lambda: defaultdict(set))
    fits: dict[tuple[Layout, str], PlacedProfile | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for gpu, layout in enumerate(self.layouts):
            self.alike[layout].add(gpu)

    def put(self, gpu: int, layout: Layout) -> None:
        """The GPU now has this layout."""
        self.alike[self.layouts[gpu]].discard(gpu)
        self.layouts[gpu] = layout
        self.alike[layout].add(gpu)

    def free(self, layout: Layout) -> int:
        """Memory slices of the GPU that no instance holds."""
        held = sum(p.memory_slices for p in map(self._profile, layout))
        return self.table.memory_slices - held

    def _profile(self, placed: PlacedProfile):  # type: ignore[no-untyped-def]
        found = self.table.profile(placed.profile)
        assert found is not None
        return found

    def slot(self, layout: Layout, profile: str) -> PlacedProfile | None:
        """Where an instance of the profile fits beside the layout; the highest start."""
        key = (layout, profile)
        if key not in self.fits:
            starts = self._profile(PlacedProfile(0, profile)).starts
            tries = [PlacedProfile(s, profile) for s in sorted(starts, reverse=True)]
            self.fits[key] = next((p for p in tries if not self.table.faults([*layout, p])), None)
        return self.fits[key]

    def best(self, profile: str, barred: set[int]) -> tuple[int, PlacedProfile] | None:
        """The fullest used GPU with room for the profile."""
        found = None
        for layout, gpus in self.alike.items():
            if not layout or not gpus or self.slot(layout, profile) is None:
                continue
            gpu = next((g for g in gpus if g not in barred), None)
            if gpu is not None and (found is None or self.free(layout) < found[0]):
                found = (self.free(layout), gpu, self.slot(layout, profile))
        return None if found is None or found[2] is None else (found[1], found[2])


def greedy_drain(table: MigTable, layouts: Sequence[Layout]) -> Result:
    """Empty one GPU after another, the lightest first, into the fullest others that fit.

    A GPU is emptied whole or not at all, and one that took something in is not emptied later.
    """
    fleet = _Fleet(table, list(layouts))
    used = [g for g, layout in enumerate(layouts) if layout]
    used.sort(key=lambda g: (-fleet.free(layouts[g]), len(layouts[g]), g))
    taken: set[int] = set()
    moves = freed = 0
    for gpu in used:
        if gpu in taken:
            continue
        before: dict[int, Layout] = {}
        for placed in sorted(fleet.layouts[gpu], key=lambda p: -fleet._profile(p).memory_slices):
            found = fleet.best(placed.profile, {gpu})
            if found is None:
                break
            target, slot = found
            before.setdefault(target, fleet.layouts[target])
            fleet.put(target, tuple(sorted((*fleet.layouts[target], slot))))
        else:
            moves += len(fleet.layouts[gpu])
            freed += 1
            taken |= set(before)
            fleet.put(gpu, ())
            continue
        for target, layout in before.items():
            fleet.put(target, layout)
    return Result(len(used) - freed, moves)


def best_fit(table: MigTable, layouts: Sequence[Layout]) -> Result:
    """Move each instance to a fuller GPU that fits, from the emptiest GPU on, until none does."""
    fleet = _Fleet(table, list(layouts))
    home = [(gpu, placed) for gpu, layout in enumerate(layouts) for placed in layout]
    moved: set[int] = set()
    now = list(home)
    for _ in range(10):
        changed = False
        order = sorted(range(len(now)), key=lambda i: (-fleet.free(fleet.layouts[now[i][0]]), i))
        for i in order:
            gpu, placed = now[i]
            found = fleet.best(placed.profile, {gpu})
            if found is None or fleet.free(fleet.layouts[found[0]]) >= fleet.free(
                fleet.layouts[gpu]
            ):
                continue
            target, slot = found
            fleet.put(gpu, tuple(p for p in fleet.layouts[gpu] if p != placed))
            fleet.put(target, tuple(sorted((*fleet.layouts[target], slot))))
            now[i] = (target, slot)
            moved.add(i)
            changed = True
        if not changed:
            break
    gone = sum(now[i] != home[i] for i in moved)
    return Result(sum(bool(layout) for layout in fleet.layouts), gone)
