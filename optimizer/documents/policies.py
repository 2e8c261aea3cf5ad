"""Policy documents to the domain."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from optimizer.documents import look
from optimizer.documents.deployments import WorkloadsReading
from optimizer.documents.faults import Fault, unknown
from optimizer.documents.fleets import FleetReading
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.policy import PolicyDoc
from optimizer.documents.wording import complaints
from optimizer.domain.policy import Alone, CutShort, Policy
from optimizer.domain.units import MIB_PER_GIB, MICROS, scaled, scaled_down


def read_policy(
    document: RawDocument,
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None = None,
) -> tuple[Policy | None, list[Fault]]:
    """The policy, or every fault of it."""
    found = complaints(PolicyDoc, document.value)
    faults = [document.fault(path, message, key=key) for path, message, key in found]
    if faults:
        return None, faults
    said = PolicyDoc.model_validate(document.value)
    faults += _contradictions(document, said, fleet)
    faults += _tenant_faults(document, workloads)
    return (None, faults) if faults else (_policy(said), [])


def _contradictions(
    document: RawDocument, said: PolicyDoc, fleet: FleetReading | None
) -> Iterator[Fault]:
    for index, days in enumerate(said.freeze):
        for field, text in (("from", days.first), ("to", days.last)):
            if text is not None and _day(text) is None:
                path = ("freeze", index, field)
                yield document.fault(path, f'no such day: "{text}"; write YYYY-MM-DD')
        first, last = _day(days.first), _day(days.last or days.first)
        if first and last and last < first:
            path = ("freeze", index, "to")
            yield document.fault(path, f'"{days.last}" lies before "{days.first}"')
    if fleet is None or not fleet.sure or fleet.fleet is None:
        return
    products = [gpu.name for gpu in fleet.fleet.products()]
    for name in said.spare_gpus:
        if name not in products:
            message = unknown("GPU product of the fleet", name, products)
            yield document.fault(("spare_gpus", name), message)


def _tenant_faults(document: RawDocument, workloads: WorkloadsReading | None) -> Iterator[Fault]:
    """A tenant that nobody knows: misspelt, it would be neither spared nor asked for."""
    if workloads is None or not workloads.sure:
        return
    known = list(workloads.tenants)
    for pattern in ("protected_tenants[]", "acts_alone.tenants[]"):
        for path, name in look.texts(document.value, pattern):
            if name not in known:
                yield document.fault(path, unknown("tenant of the workloads", name, known))


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _policy(said: PolicyDoc) -> Policy:
    saving = said.min_saving_per_move
    return Policy(
        name=said.name or "policy",
        min_saving_micros_per_move=None if saving is None else scaled(saving, MICROS),
        horizon_hours=said.horizon_hours,
        max_moves=said.max_moves,
        max_load_mib=_mib(said.max_load_gib),
        window_s=None if said.window_minutes is None else int(said.window_minutes * 60),
        protected_tenants=tuple(said.protected_tenants),
        freeze=tuple(
            (date.fromisoformat(d.first), date.fromisoformat(d.last or d.first))
            for d in said.freeze
        ),
        alone=Alone(
            said.acts_alone.max_moves,
            _mib(said.acts_alone.max_load_gib),
            _names(said.acts_alone.kinds),
            _names(said.acts_alone.tenants),
        ),
        spare_gpus=tuple(sorted(said.spare_gpus.items())),
        approval_hours=said.approval_hours,
        cut_short=CutShort(said.cut_short),
        notify=tuple(said.notify),
        notify_within_s=said.notify_seconds,
        keep_runs=said.keep_runs,
    )


def _mib(gib: Any) -> int | None:
    return None if gib is None else scaled_down(gib, MIB_PER_GIB)


def _names(said: list[str] | None) -> tuple[str, ...] | None:
    return None if said is None else tuple(said)
