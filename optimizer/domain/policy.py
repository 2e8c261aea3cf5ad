"""What a nightly rebalancing may do, and what it is worth."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from optimizer.domain.units import MIB_PER_GIB


class CutShort(StrEnum):
    """What becomes of a launch that was cut short, at the next start."""

    RESUME = "resume"
    ROLLBACK = "rollback"
    ASK = "ask"


@dataclass(frozen=True, slots=True)
class Alone:
    """What may happen without approval; a night that would do more waits. None: no ceiling.

    ``kinds``: of moves; ``tenants``: whose replicas.
    """

    max_moves: int | None = None
    max_load_mib: int | None = None
    kinds: tuple[str, ...] | None = None
    tenants: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Ceilings and prices of moves, quiet days, and how a night tells of itself.

    ``min_saving_micros_per_move``: what one move must save over ``horizon_hours``, in millionths of
    the fleet's currency; None: cost always counts before moves. ``window_s`` None: no end.
    ``spare_gpus``: GPUs that a night leaves empty, as far as demand is met without them.
    ``approval_hours``: how old a plan may be when it is approved.
    """

    name: str = "policy"
    min_saving_micros_per_move: int | None = None
    horizon_hours: float = 720.0
    max_moves: int | None = None
    max_load_mib: int | None = None
    window_s: int | None = None
    protected_tenants: tuple[str, ...] = ()
    freeze: tuple[tuple[date, date], ...] = ()  # first and last day of each
    alone: Alone = Alone()
    spare_gpus: tuple[tuple[str, int], ...] = ()
    approval_hours: float = 24.0
    cut_short: CutShort = CutShort.RESUME
    notify: tuple[str, ...] = ()
    notify_within_s: float = 30.0
    keep_runs: int = 30

    def limits(self) -> Mapping[str, Any]:
        """What it limits, as a plan records it among its options, so that a judge may see it."""
        gib = None if self.max_load_mib is None else self.max_load_mib / MIB_PER_GIB
        said = {
            "max_moves": self.max_moves,
            "max_load_gib": gib,
            "protected_tenants": list(self.protected_tenants) or None,
        }
        return {name: value for name, value in said.items() if value is not None}
