"""What a search found, what it proved, and why it stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from optimizer.domain.placement import Placement


class Termination(StrEnum):
    """Why a search stopped; no plan found in time is never called impossible."""

    OPTIMAL = "optimal"
    WITHIN_GAP = "within_gap"
    LIMIT = "limit"
    INFEASIBLE = "infeasible"
    NOTHING_FOUND = "nothing_found"


@dataclass(frozen=True, slots=True)
class Objective:
    """One level of the lexicographic objective: integer value, and a bound no plan goes below.

    Units: unmet in millionths of a deployment's demand, summed; price in millionths of the
    currency per hour; disruption in MiB to load (a repartition counts as 1 GiB); stranded in MiB.
    A bound holds given that all earlier levels keep their values.
    """

    name: str  # unmet | price_per_hour | disruption | stranded
    value: int
    bound: int
    priority: int | None = None  # unmet: the priority it speaks for

    @property
    def gap(self) -> float:
        """(value - bound) / max(1, |value|)."""
        return max(0.0, (self.value - self.bound) / max(1, abs(self.value)))

    @property
    def proved(self) -> bool:
        """Whether nothing can be better."""
        return self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known when a search ends. ``conflict`` names rules that cannot all hold."""

    termination: Termination
    incumbent: Placement | None = None
    objectives: tuple[Objective, ...] = ()
    conflict: tuple[str, ...] = ()
    stopped_by: str = "proof"  # proof | gap | effort | time_limit | interrupt
    reproducible: bool = True
    notes: tuple[str, ...] = ()
    certificate: Mapping[str, Any] = field(default_factory=dict)  # what proves the price, as data


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search may stop: deterministic seconds of ``effort``; the time limit is for safety."""

    gap: float = 0.0
    effort: float = 60.0
    time_limit_s: float = 120.0
    workers: int = 2
    seed: int = 0

    @property
    def any_price(self) -> bool:
        """Whether all that is asked is who can be served: neither price nor moves matter."""
        return self.gap >= 1


@dataclass(frozen=True, slots=True)
class Progress:
    """A word about a running search, for whoever watches. Units as in Objective."""

    phase: str
    incumbent: int | None = None
    bound: int | None = None
