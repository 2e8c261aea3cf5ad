"""Traffic, request by request."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``cached_tokens``: the first part of its prompt that a prefix cache may hold."""

    at_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    deployment: str | None = None  # None: any


@dataclass(frozen=True, slots=True)
class Window:
    """Traffic of which only a rate and mean lengths were recorded, up to the next window."""

    at_s: float
    requests_per_second: float
    arrival_cv: float
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time, the first at or after 0, or windows with rates.

    ``seconds``: how long it was recorded.
    """

    name: str
    requests: tuple[Request, ...]
    seconds: float
    source: str = ""
    windows: tuple[Window, ...] = ()

    def busyness(self, window_s: float) -> dict[str | None, tuple[float, ...]]:
        """The rate of each whole window of that length over the mean of them all.

        Under None that of all traffic; under a deployment's name that of its own requests, where
        the trace names it. What has no traffic in whole windows is left out.
        """
        count = int(self.seconds / window_s)
        loads: dict[str | None, list[float]] = {None: [0.0] * count}
        for one in self.requests:
            number = int(one.at_s / window_s)
            for name in {None, one.deployment} if number < count else ():
                loads.setdefault(name, [0.0] * count)[number] += 1
        for start, end, rate in self._spans():
            for number in range(int(start / window_s), min(count, int(end / window_s) + 1)):
                first, last = number * window_s, (number + 1) * window_s
                loads[None][number] += rate * max(0.0, min(end, last) - max(start, first))
        return {
            name: tuple(load * count / sum(found) for load in found)
            for name, found in loads.items()
            if sum(found)
        }

    def _spans(self) -> Iterator[tuple[float, float, float]]:
        """Begin, end and rate of what was recorded as rates."""
        for i, window in enumerate(self.windows):
            after = self.windows[i + 1].at_s if i + 1 < len(self.windows) else self.seconds
            yield window.at_s, after, window.requests_per_second
