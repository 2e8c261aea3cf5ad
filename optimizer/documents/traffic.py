"""Trace and Calibration documents to the domain."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from optimizer.documents.catalogue import Catalogue
from optimizer.documents.faults import Fault, unknown
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.traffic import CalibrationDoc, TraceDoc
from optimizer.documents.wording import complaints
from optimizer.domain.engine import Correction
from optimizer.domain.trace import Request, Trace, Window

_COLUMNS = ("at_s", "input_tokens", "output_tokens")


def read_trace(document: RawDocument) -> tuple[Trace | None, list[Fault]]:
    """The trace, or every fault of it."""
    faults = _complaints(TraceDoc, document)
    if faults:
        return None, faults
    said = TraceDoc.model_validate(document.value)
    if bool(said.requests) == bool(said.windows):
        return None, [document.fault(("requests",), "holds requests or windows, one of them")]
    try:
        requests = tuple(_requests(said.requests or ""))
    except ValueError as reason:
        return None, [document.fault(("requests",), str(reason))]
    windows = tuple(
        Window(w.at_s, w.requests_per_second, w.arrival_cv, w.input_tokens, w.output_tokens)
        for w in said.windows
    )
    name = said.name or document.file
    return Trace(name, requests, said.seconds, said.source or "", windows), []


def _complaints(kind: Any, document: RawDocument) -> list[Fault]:
    found = complaints(kind, document.value)
    return [document.fault(path, message, key=key) for path, message, key in found]


def _requests(text: str) -> Iterator[Request]:
    """The rows of the CSV. Raises ValueError with the row."""
    rows = csv.DictReader(io.StringIO(text.strip()))
    missing = [c for c in _COLUMNS if c not in (rows.fieldnames or ()) and text]
    if missing:
        raise ValueError(f"the first line names no {', '.join(missing)}")
    before = 0.0
    for number, row in enumerate(rows, 1):
        try:
            request = Request(
                float(row["at_s"]),
                int(row["input_tokens"]),
                int(row["output_tokens"]),
                int(row.get("cached_tokens") or 0),
                row.get("deployment") or None,
            )
        except (TypeError, ValueError):
            raise ValueError(f"row {number}: not numbers: {list(row.values())}") from None
        if request.at_s < before:
            raise ValueError(f"row {number}: at_s {request.at_s:g} is before the row above it")
        if request.input_tokens < 1 or request.output_tokens < 1:
            raise ValueError(f"row {number}: a request has at least one token in and out")
        before = request.at_s
        yield request


def read_calibration(
    document: RawDocument, catalogue: Catalogue
) -> tuple[tuple[Correction, ...], list[Fault]]:
    """The corrections, or every fault of them."""
    faults = _complaints(CalibrationDoc, document)
    if faults:
        return (), faults
    said = CalibrationDoc.model_validate(document.value)
    found = []
    for index, one in enumerate(said.corrections):
        for what, shelf in (
            ("engine", catalogue.engines),
            ("gpu", catalogue.gpus),
            ("model", catalogue.models),
        ):
            name = getattr(one, what)
            if shelf.find(name) is None:
                message = unknown(what, name, shelf.names())
                faults.append(document.fault(("corrections", index, what), message))
        found.append(Correction(one.engine, one.gpu, one.model, one.step, one.prompt, one.points))
    return tuple(found), faults
