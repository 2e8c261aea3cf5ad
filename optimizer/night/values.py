"""What a night speaks in: what it was asked for, its phases, how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.outcome import Limits


class Code(IntEnum):
    """Exit codes, as of every command."""

    DONE = 0
    ERROR = 1
    UNMET = 3
    NO_PLAN = 4
    DRIFTED = 5
    PARTLY = 6
    BROKEN = 7
    CHANGED = 10


class Phase(StrEnum):
    """The parts of a night, in their order. Before ``launch`` nothing is changed."""

    IMPORT = "import"
    CHECK = "check"
    REBALANCE = "rebalance"
    VERIFY = "verify"
    SIMULATE = "simulate"
    APPROVE = "approve"
    LAUNCH = "launch"
    REPORT = "report"


class Outcome(StrEnum):
    """What came of a night."""

    DONE = "done"
    NOTHING = "nothing"  # worth doing
    FROZEN = "frozen"  # a day on which nothing may change
    LOOKED = "looked"  # only asked to look
    WAITING = "waiting"  # for approval
    HELD = "held"  # an SLO would be missed
    NO_PLAN = "no_plan"
    UNDONE = "undone"  # rolled back
    PARTLY = "partly"
    STALE = "stale"  # an approval that no longer holds
    SUPERSEDED = "superseded"  # waited for an approval that never came
    FAILED = "failed"


class NightRefused(Exception):
    """The night ends here, for a reason to be told."""

    def __init__(self, code: Code, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.code, self.lines = code, lines


@dataclass(frozen=True, slots=True)
class Order:
    """What a night is asked for. ``hours``: of the traffic that is replayed, with a trace."""

    documents: "Documents"
    limits: "Limits"
    runs: Path
    run_dir: Path
    address: str | None = None
    engine: str = "auto"
    router: bool = False
    dry_run: bool = False
    hours: float = 1.0
    step_s: float = 600.0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a night ended; ``lines`` are for a person, ``facts`` for machines."""

    outcome: Outcome
    code: Code
    lines: tuple[str, ...]
    folder: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
