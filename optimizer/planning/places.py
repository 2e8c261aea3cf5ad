"""Free places: where one more replica of a shape could start, now and without being in the way."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.placement import Replica
from optimizer.planning.rooms import Rooms


def places(
    gpus: Iterable[FleetGpu], rooms: Rooms, like: Replica, product: str
) -> Iterator[Replica]:
    """Copies of a replica, each in a place of its shape that is free, in the order of the GPUs.

    Places in instances that stand come before those that must be cut first.
    """
    later = []
    for copy, cut in free_places(gpus, rooms, like, product):
        if cut:
            later.append(copy)
        else:
            yield copy
    yield from later


def free_places(
    gpus: Iterable[FleetGpu], rooms: Rooms, like: Replica, product: str
) -> Iterator[tuple[Replica, bool]]:
    """Each free place in the order of the GPUs, and whether it must be cut first."""
    deployment = rooms.deployments.get(like.deployment)
    if deployment is None:
        return
    sharing = like.shape.sharing
    usable = (g for g in gpus if g.gpu.name == product and rooms.allows(deployment, g, sharing))
    for copy in _every(usable, rooms, like):
        if rooms.blocked(copy):
            continue
        cut = rooms.changes_layout(copy)
        if not cut or not any(rooms.gpus[g].gpu.node.layouts_fixed for g in copy.gpus):
            yield copy, cut


def _every(usable: Iterable[FleetGpu], rooms: Rooms, like: Replica) -> Iterator[Replica]:
    shape = like.shape
    if shape.sharing is Sharing.MIG:
        yield from _slots(usable, rooms, like)
    elif shape.sharing is Sharing.SHARED:
        yield from (replace(like, gpus=(g.id,)) for g in usable)
    elif shape.stages > 1:
        yield from _pipelines(list(usable), rooms, like)
    else:
        yield from _groups(usable, like, shape.gpus)


def _slots(usable: Iterable[FleetGpu], rooms: Rooms, like: Replica) -> Iterator[Replica]:
    """Instances of the profile at every start whose slices nobody holds."""
    if like.mig is None:
        return
    for gpu in usable:
        held = rooms.gpus[gpu.id]
        for placed in held.cells.of(like.mig.profile):
            if not held.taken & held.cells[placed]:
                yield replace(like, gpus=(gpu.id,), mig=placed)


def _pipelines(usable: list[FleetGpu], rooms: Rooms, like: Replica) -> Iterator[Replica]:
    """Stages in one node or evenly in several, the fewest first; a part on neighbouring GPUs."""
    shape = like.shape
    for of in (n for n in range(1, shape.stages + 1) if shape.stages % n == 0):
        parts: list[tuple[str, ...]] = []
        for _, members in groupby(usable, lambda g: g.node.name):
            groups = _groups(members, like, shape.gpus // of)
            free = (group.gpus for group in groups if not rooms.blocked(group))
            parts += [part for part in [next(free, None)] if part is not None]
        for first in range(len(parts) - of + 1):
            gpus = (gpu for part in sorted(parts[first : first + of]) for gpu in part)
            yield replace(like, gpus=tuple(gpus))


def _groups(usable: Iterable[FleetGpu], like: Replica, count: int) -> Iterator[Replica]:
    """Neighbouring GPUs of one node; where NVLink joins pairs, a group of two is such a pair."""
    for _, members in groupby(usable, lambda g: g.node.name):
        here = list(members)
        paired = like.shape.block == 2 and here[0].node.nvlink_domain == "pair"
        for at in range(len(here) - count + 1):
            group = here[at : at + count]
            if paired and (group[0].device.index % 2 or not _neighbours(group)):
                continue
            yield replace(like, gpus=tuple(g.id for g in group))


def _neighbours(group: list[FleetGpu]) -> bool:
    return group[-1].device.index - group[0].device.index == len(group) - 1
