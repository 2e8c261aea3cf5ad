"""Traffic, request by request."""

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
