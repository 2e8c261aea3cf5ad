"""Where the replicas of a GPU lie on it, and what is free: the same for text and for pages."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from optimizer.domain.placement import Replica
from optimizer.domain.plan import GpuPlan, PlacedInstance, Plan

SLIVER = 0.01  # room on a shared GPU that is not worth drawing


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a GPU from ``start`` to ``end`` (fractions): held, free, or free and stranded."""

    start: float
    end: float
    kind: str  # held | free | stranded
    label: str = ""
    tenant: str = ""
    replica: str = ""


class Layout:
    """The GPUs of a plan cut into pieces."""

    def __init__(self, plan: Plan) -> None:
        self.replicas: dict[str, Replica] = {r.id: r for r in plan.placement.replicas}
        self.tenants = {d.name: d.tenant for d in plan.deployments}

    def pieces(self, gpu: GpuPlan, generic: bool = False) -> list[Piece]:
        """The GPU from left to right; ``generic`` names deployments instead of replicas."""
        if gpu.mode == "shared":
            return self._shares(gpu, generic)
        if gpu.mode == "whole":
            return [self._whole(gpu, generic)]
        return self._slices(gpu, generic)

    def _label(self, replica_id: str, generic: bool) -> tuple[str, str]:
        deployment = replica_id.rpartition("/")[0]
        tenant = self.tenants.get(deployment, "default")
        return (deployment if generic else replica_id), tenant

    def _whole(self, gpu: GpuPlan, generic: bool) -> Piece:
        label, tenant = self._label(gpu.replicas[0], generic)
        replica = self.replicas.get(gpu.replicas[0])
        if replica is not None and len(replica.gpus) > 1:
            part = replica.gpus.index(gpu.id) + 1
            of = len(replica.gpus)
            label += f"  group of {of}" if generic else f"  GPU {part} of {of}"
        return Piece(0, 1, "held", label, tenant, "" if generic else gpu.replicas[0])

    def _shares(self, gpu: GpuPlan, generic: bool) -> list[Piece]:
        pieces, at = [], 0.0
        for name in gpu.replicas:
            replica = self.replicas.get(name)
            mib = replica.share.memory_mib if replica is not None and replica.share else 0
            end = at + mib / max(1, gpu.room.memory_mib)
            label, tenant = self._label(name, generic)
            pieces.append(Piece(at, end, "held", label, tenant, "" if generic else name))
            at = end
        if at < 1 - SLIVER:
            pieces.append(Piece(at, 1, "stranded" if 1 - at < 0.5 else "free"))
        return pieces

    def _slices(self, gpu: GpuPlan, generic: bool) -> list[Piece]:
        """Held instances, and the room between them; an empty instance is room with a name."""
        total = gpu.memory_slices or 8
        pieces: list[Piece] = []
        taken: set[int] = set()
        empties: dict[int, PlacedInstance] = {}
        for instance in gpu.instances:
            start, end = _span(instance)
            if instance.replica is None:
                empties[start] = instance
                continue
            taken.update(range(start, end))
            label, tenant = self._label(instance.replica, generic)
            name = "" if generic else instance.replica
            pieces.append(Piece(start / total, end / total, "held", label, tenant, name))
        for start, end in _runs(c for c in range(total) if c not in taken):
            kind = "free" if _holds_half(start, end, total) else "stranded"
            pieces.extend(_room(start, end, total, kind, empties))
        return sorted(pieces, key=lambda p: p.start)


def _runs(cells: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbouring cells joined, as (first, one past the last)."""
    found: list[tuple[int, int]] = []
    for cell in cells:
        if found and found[-1][1] == cell:
            found[-1] = (found[-1][0], cell + 1)
        else:
            found.append((cell, cell + 1))
    return found


def _span(instance: PlacedInstance) -> tuple[int, int]:
    """The memory slices of an instance, as (first, one past the last)."""
    start = instance.placed.start
    return start, start + max(1, instance.memory_slices)


def _room(
    start: int, end: int, total: int, kind: str, empties: Mapping[int, PlacedInstance]
) -> Iterator[Piece]:
    """A free run, cut where empty instances stand in it."""
    at = start
    for first in sorted(s for s in empties if start <= s < end):
        if first > at:
            yield Piece(at / total, first / total, kind)
        last = _span(empties[first])[1]
        yield Piece(first / total, last / total, kind, f"({empties[first].placed.profile})")
        at = last
    if at < end:
        yield Piece(at / total, end / total, kind)


def _holds_half(start: int, end: int, total: int) -> bool:
    """Whether a free piece holds a half: every product's half starts at 0 or in the middle."""
    half = total // 2
    return any(start <= at and at + half <= end for at in (0, half))
