"""The schema of Policy documents."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Choice,
    Count,
    Head,
    Positive,
    Several,
    Strict,
    Text,
)

MOVES = ("start", "stop", "move", "reconfigure")
CUT_SHORT = ("resume", "rollback", "ask")
Kind = Annotated[str, Choice("kind of move", MOVES)]
CutShortWord = Annotated[str, Choice("way to go on", CUT_SHORT)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class FreezeDoc(Strict):
    """Days on which nothing may change."""

    first: Day = Field(alias="from", description="the first day, such as '2026-12-24'")
    last: Day | None = Field(None, alias="to", description="the last day; without it, one day")


class AloneDoc(Strict):
    """What may happen without approval."""

    max_moves: Count | None = Field(None, description="at most so many moves")
    max_load_gib: Amount | None = Field(None, description="at most so many GiB of weights")
    kinds: list[Kind] | None = Field(None, description="only such moves; default all")
    tenants: list[Text] | None = Field(None, description="only of these tenants; default all")


class PolicyDoc(Head):
    """A Policy document."""

    kind: Literal["Policy"] = Field(description="Policy")
    name: Text | None = Field(None, description="the policy's name")
    min_saving_per_move: Amount | None = Field(
        None, description="what one move must save over the horizon, in the fleet's currency"
    )
    horizon_hours: Positive = Field(720.0, description="hours over which savings count")
    max_moves: Count | None = Field(None, description="at most so many moves a night")
    max_load_gib: Amount | None = Field(None, description="at most so many GiB to load a night")
    window_minutes: Positive | None = Field(None, description="steps must end within so long")
    protected_tenants: list[Text] = Field([], description="tenants whose replicas never move")
    freeze: list[FreezeDoc] = Field([], description="days on which nothing may change")
    acts_alone: AloneDoc = Field(
        AloneDoc.model_construct(), description="what needs no approval; more waits for it"
    )
    approval_hours: Positive = Field(24.0, description="how old a plan may be when approved")
    cut_short: CutShortWord = Field(
        "resume", description="what becomes of a launch cut short: resume, rollback or ask"
    )
    spare_gpus: dict[Text, Several] = Field(
        {}, description="empty GPUs left empty while demand is met without them, by product"
    )
    notify: list[Text] = Field(
        [], description="a program and its arguments, run after a night; no shell reads it"
    )
    notify_seconds: Positive = Field(30.0, description="how long that program may take")
    keep_runs: Several = Field(30, description="so many run folders are kept")
