"""What a little more would change: slopes of the linear relaxation, which bounds every plan."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slope:
    """One-sided derivatives, micros per hour and unit; they differ where duals are degenerate.

    ``low`` towards less, ``high`` towards more for a demand; the other way round for GPUs, of
    which the next saves least. None: with less room, or more demand, somebody goes unserved.
    """

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RequestPrice:
    """The price of one more request per second of a deployment."""

    deployment: str
    price: Slope


@dataclass(frozen=True, slots=True)
class GpuWorth:
    """What one more GPU of a class of alike nodes is worth.

    ``saves`` in micros per hour; ``serves`` in shares of a deployment's demand (1: all of it) of
    the highest priority that goes short, None where nobody does.
    """

    gpu: str
    nodes: tuple[str, ...]
    gpus: int
    saves: Slope
    serves: Slope | None = None


@dataclass(frozen=True, slots=True)
class MarginalPrices:
    """Slopes at the demand asked, and whether the relaxation serves everybody there."""

    serves_all: bool
    requests: tuple[RequestPrice, ...]
    gpus: tuple[GpuWorth, ...]
