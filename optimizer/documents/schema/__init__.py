"""The fields of every kind of document, as pydantic models. Imported kind by kind: it is faster."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Fleet": ("fleet", "FleetDoc"),
    "State": ("state", "StateDoc"),
    "Workloads": ("workloads", "WorkloadsDoc"),
    "Scenarios": ("scenarios", "ScenariosDoc"),
    "Policy": ("policy", "PolicyDoc"),
    "Prices": ("prices", "PricesDoc"),
    "Plan": ("plan", "PlanDoc"),
    "Gpu": ("cards", "GpuDoc"),
    "Model": ("cards", "ModelDoc"),
    "Engine": ("engine", "EngineDocument"),
    "Calibration": ("traffic", "CalibrationDoc"),
    "Trace": ("traffic", "TraceDoc"),
}
KINDS = tuple(_HOMES)


def schema_of(kind: str) -> Any:
    """The model class of a kind. Raises KeyError where there is none."""
    module, name = _HOMES[kind]
    if kind == "Engine":
        return import_module("optimizer.documents.engine_card").EngineDocument
    return getattr(import_module(f"optimizer.documents.schema.{module}"), name)
