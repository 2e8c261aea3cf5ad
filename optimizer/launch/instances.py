"""Cutting GPUs into MIG instances while a plan is carried out: one interface.

Every act may be asked for again, after a launcher was killed in the middle, and then does nothing.
"""

from typing import Protocol

from optimizer.domain.gpu import PlacedProfile
from optimizer.launch.journal import Journal


class LayoutRefused(Exception):
    """The layout of a GPU is left as it is, and why."""


class Instances(Protocol):
    """Who changes layouts. Nothing of it looks at what runs: see ``check_idle``."""

    def create(self, gpu: str, placed: PlacedProfile) -> None:
        """Make an instance. Raises LayoutRefused."""

    def destroy(self, gpu: str, placed: PlacedProfile) -> None:
        """Remove an instance. Raises LayoutRefused."""

    def set_mode(self, gpu: str, enable: bool) -> None:
        """Turn MIG on or off. Raises LayoutRefused."""


class Recorded:
    """For machines without GPUs: layouts are only written down, in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def create(self, gpu: str, placed: PlacedProfile) -> None:
        """Write it down. Another profile at the same start is in the way."""
        there = self._journal.layout(gpu).get(placed.start)
        if there not in (None, placed.profile):
            raise LayoutRefused(f"{gpu} has {there}@{placed.start} there")
        self._journal.record(gpu, placed, True)

    def destroy(self, gpu: str, placed: PlacedProfile) -> None:
        """Strike it out; one that was never written down was made by others, and goes too."""
        there = self._journal.layout(gpu).get(placed.start)
        if there not in (None, placed.profile):
            raise LayoutRefused(f"{gpu} has {there}@{placed.start} there, not {placed.profile}")
        self._journal.record(gpu, placed, False)

    def set_mode(self, gpu: str, enable: bool) -> None:
        """Write it down. Instances go with MIG."""
        if not enable and (there := self._journal.layout(gpu)):
            names = ", ".join(f"{profile}@{start}" for start, profile in sorted(there.items()))
            raise LayoutRefused(f"{gpu} still has {names}")
        self._journal.record_mode(gpu, enable)


def check_idle(journal: Journal, gpu: str, placed: PlacedProfile | None) -> None:
    """A busy instance is never destroyed, nor MIG switched under who runs. Raises LayoutRefused."""
    device = gpu if placed is None else f"{gpu}:{placed.profile}@{placed.start}"
    for copy in journal.live():
        held = copy.spec.devices
        if device in held or (placed is None and any(d.partition(":")[0] == gpu for d in held)):
            raise LayoutRefused(f"{device} is in use: {copy.spec.copy_name} runs there")
