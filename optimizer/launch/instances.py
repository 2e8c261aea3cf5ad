"""Cutting GPUs into MIG instances while a plan is carried out: one interface, of two kinds.

Every act may be asked for again, after a launcher was killed in the middle, and then does nothing.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Replica, node_of
from optimizer.launch import nvml
from optimizer.launch.actor import probe_resources
from optimizer.launch.journal import Journal
from optimizer.launch.values import SIMULATED, LayoutRefused

# What an act waits for, said whenever it has to wait.
Going = Generator[str, None, None]


class Instances(Protocol):
    """Who changes layouts. Nothing of it looks at what runs: see ``check_idle``."""

    def create(self, gpu: str, placed: PlacedProfile) -> Going:
        """Make an instance. Raises LayoutRefused."""

    def destroy(self, gpu: str, placed: PlacedProfile) -> Going:
        """Remove an instance. Raises LayoutRefused."""

    def set_mode(self, gpu: str, enable: bool) -> Going:
        """Turn MIG on or off. Raises LayoutRefused."""


class Recorded:
    """For machines without GPUs: layouts are only written down, in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def create(self, gpu: str, placed: PlacedProfile) -> Going:
        """Write it down. Another profile at the same start is in the way."""
        there = self._journal.layout(gpu).get(placed.start)
        if there not in (None, placed.profile):
            raise LayoutRefused(f"{gpu} has {there}@{placed.start} there")
        self._journal.record(gpu, placed, True)
        yield from ()

    def destroy(self, gpu: str, placed: PlacedProfile) -> Going:
        """Strike it out; one that was never written down was made by others, and goes too."""
        there = self._journal.layout(gpu).get(placed.start)
        if there not in (None, placed.profile):
            raise LayoutRefused(f"{gpu} has {there}@{placed.start} there, not {placed.profile}")
        self._journal.record(gpu, placed, False)
        yield from ()

    def set_mode(self, gpu: str, enable: bool) -> Going:
        """Write it down. Instances go with MIG."""
        if not enable and (there := self._journal.layout(gpu)):
            names = ", ".join(f"{profile}@{start}" for start, profile in sorted(there.items()))
            raise LayoutRefused(f"{gpu} still has {names}")
        self._journal.record_mode(gpu, enable)
        yield from ()


class OnNodes:
    """Through NVML, by a task on the node that has the GPU; written down in the journal too."""

    def __init__(self, ray: Any, journal: Journal) -> None:
        self._ray, self._journal = ray, journal

    def create(self, gpu: str, placed: PlacedProfile) -> Going:
        """Make it at its exact start, with a compute instance that fills it."""
        yield from self._ask(gpu, nvml.create_instance, placed.profile, placed.start)
        self._journal.record(gpu, placed, True)

    def destroy(self, gpu: str, placed: PlacedProfile) -> Going:
        """Remove it; one that a process uses stays."""
        yield from self._ask(gpu, nvml.destroy_instance, placed.profile, placed.start)
        self._journal.record(gpu, placed, False)

    def set_mode(self, gpu: str, enable: bool) -> Going:
        """On a GPU that nobody uses."""
        yield from self._ask(gpu, nvml.set_mig_mode, enable)
        self._journal.record_mode(gpu, enable)

    def _ask(self, gpu: str, act: Callable[..., object], *said: object) -> Going:
        node, index = node_of(gpu), int(gpu.rpartition("/")[2])
        task = self._ray.remote(_reason_against).options(
            num_cpus=0, resources=probe_resources(node), max_retries=0
        )
        reference = task.remote(act, index, *said)
        while not self._ray.wait([reference], timeout=0)[0]:
            yield f"node {node} changes the layout of {gpu}"
        try:
            reason = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
        if reason is not None:
            raise LayoutRefused(f"{gpu}: {reason}")


def _reason_against(act: Callable[..., object], *said: object) -> str | None:
    """Runs on the node: do it, or say why not."""
    try:
        act(*said)
    except LayoutRefused as refused:
        return str(refused)
    return None


def instances_of(ray: Any, journal: Journal) -> Instances:
    """Real ones where real engines run."""
    real = any(copy.spec.engine != SIMULATED for copy in journal.copies())
    return OnNodes(ray, journal) if real else Recorded(journal)


def prepare(instances: Instances, replicas: Iterable[Replica]) -> Going:
    """Make the instances that replicas are to run in, those that are there left as they are."""
    wanted = {(gpu, replica.mig) for replica in replicas for gpu in replica.gpus if replica.mig}
    for gpu in sorted({gpu for gpu, _ in wanted}):
        yield from instances.set_mode(gpu, True)
    for gpu, placed in sorted(wanted, key=lambda one: (one[0], one[1])):
        yield from instances.create(gpu, placed)


def check_idle(journal: Journal, gpu: str, placed: PlacedProfile | None) -> None:
    """A busy instance is never destroyed, nor MIG switched under who runs. Raises LayoutRefused."""
    device = gpu if placed is None else f"{gpu}:{placed.profile}@{placed.start}"
    for copy in journal.live():
        held = copy.spec.devices
        if device in held or (placed is None and any(d.partition(":")[0] == gpu for d in held)):
            raise LayoutRefused(f"{device} is in use: {copy.spec.copy_name} runs there")
