"""The schemas of Trace and Calibration documents."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Fraction,
    Head,
    Name,
    Positive,
    Several,
    Strict,
    Text,
)


class StatisticsDoc(Strict):
    """What a trace asks of a deployment, in the words of ``demand``."""

    requests_per_second: Positive = Field(description="mean rate")
    input_tokens: Positive = Field(description="mean prompt")
    output_tokens: Positive = Field(description="mean answer")
    arrival_cv: Amount = Field(1.0, description="standard deviation over mean of the gaps")
    length_cv: Amount = Field(0.0, description="the same of prompts")
    peak_factor: Annotated[float, Field(ge=1)] = Field(1.0, description="busiest minutes over mean")
    prefix_hit_rate: Fraction = Field(0.0, description="part of prompts seen before")


class WindowDoc(Strict):
    """Traffic of which only rates were recorded."""

    at_s: Amount = Field(description="when it begins")
    requests_per_second: Amount = Field(description="its rate")
    arrival_cv: Amount = Field(1.0, description="standard deviation over mean of the gaps")
    input_tokens: Positive = Field(description="mean prompt")
    output_tokens: Positive = Field(description="mean answer")


class TraceDoc(Head):
    """A Trace document: requests as CSV text, or windows with rates."""

    kind: Literal["Trace"] = Field(description="Trace")
    name: Text | None = Field(None, description="the trace's name")
    source: str | None = Field(None, description="where it comes from")
    seconds: Positive = Field(description="how long was recorded")
    demand: StatisticsDoc | None = Field(None, description="its statistics")
    requests: str | None = Field(
        None,
        description="CSV with a head: at_s,input_tokens,output_tokens and, where known, "
        "cached_tokens and deployment",
    )
    windows: list[WindowDoc] = Field([], description="rates, where no requests were recorded")


class CorrectionDoc(Strict):
    """How far predictions are corrected for one engine on one product with one model."""

    engine: Name = Field(description="of the catalogue")
    gpu: Name = Field(description="of the catalogue")
    model: Name = Field(description="of the catalogue")
    step: Positive = Field(description="measured over predicted time of a decoding step")
    prompt: Positive = Field(description="measured over predicted time of a prompt")
    points: Several = Field(description="measured points behind it")
    error_percent: Amount = Field(description="p90 error of points left out in turn")


class CalibrationDoc(Head):
    """A Calibration document."""

    kind: Literal["Calibration"] = Field(description="Calibration")
    name: Text | None = Field(None, description="its name")
    source: str | None = Field(None, description="what was measured, how and when")
    corrections: list[CorrectionDoc] = Field(description="one for each engine, GPU and model")
