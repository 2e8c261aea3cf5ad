"""What is known of the price while a search runs: the best value and bound, and when."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from optimizer.domain.outcome import Outcome, Progress
from optimizer.domain.plan import Sighting

PRICE = "price_per_hour"


@dataclass(slots=True)
class Trajectory:
    """Watches a search, and passes on each word of it with the best known so far filled in.

    ``clock`` gives seconds; the first sighting counts from the making of this object.
    """

    clock: Callable[[], float]
    watcher: Callable[[Progress], None] = lambda _: None
    started: float = field(init=False)
    known: dict[str, Progress] = field(default_factory=dict)
    sightings: list[Sighting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def __call__(self, progress: Progress) -> None:
        """Take a word of the search."""
        best = _better(self.known.get(progress.phase), progress)
        self.known[progress.phase] = best
        if best.phase == PRICE:
            self._see(best.incumbent, best.bound)
        self.watcher(best)

    def end(self, outcome: Outcome) -> tuple[Sighting, ...]:
        """All sightings; the last is what the outcome itself says.

        A price below it was that of counts which then could not be placed, so it was never known.
        """
        for level in outcome.objectives:
            if level.name == PRICE:
                seen, self.sightings = self.sightings, []
                for one in seen:
                    placed = one.incumbent is not None and one.incumbent >= level.value
                    self._add(one if placed else replace(one, incumbent=None))
                self._see(level.value, level.bound)
        return tuple(self.sightings)

    def _see(self, incumbent: int | None, bound: int | None) -> None:
        self._add(Sighting(round(self.clock() - self.started, 3), incumbent, bound))

    def _add(self, now: Sighting) -> None:
        last = self.sightings[-1] if self.sightings else None
        if last is None or replace(last, seconds=now.seconds) != now:
            self.sightings.append(now)


def _better(known: Progress | None, new: Progress) -> Progress:
    """The least value and the greatest bound of two; a bound never passes a value."""
    if known is None:
        known = Progress(new.phase)
    values = [p.incumbent for p in (known, new) if p.incumbent is not None]
    bounds = [p.bound for p in (known, new) if p.bound is not None]
    value = min(values, default=None)
    bound = max(bounds, default=None)
    if value is not None and bound is not None:
        bound = min(bound, value)
    return Progress(new.phase, value, bound)
