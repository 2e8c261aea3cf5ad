"""Documents of any kinds, in any order, to domain values; every fault at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING

from optimizer.documents.catalogue import Catalogue
from optimizer.documents.deployments import WorkloadsReading, read_workloads
from optimizer.documents.faults import DocumentFaults, Fault
from optimizer.documents.fleets import FleetReading, read_fleet
from optimizer.documents.plan_read import contradictions, plan_of
from optimizer.documents.policies import read_policy
from optimizer.documents.reading import RawDocument, Reading, read
from optimizer.documents.states import StateReading, read_plan_as_state, read_state
from optimizer.documents.traffic import read_calibration, read_trace
from optimizer.domain.fleet import Fleet
from optimizer.domain.gpu import Gpu
from optimizer.domain.offer import PriceList
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Plan, PlanInput
from optimizer.domain.policy import Policy
from optimizer.domain.scenario import Scenario
from optimizer.domain.trace import Trace
from optimizer.domain.workload import Workloads

if TYPE_CHECKING:
    from optimizer.documents.scenarios import ScenariosReading

Paths = Sequence[str | os.PathLike[str]]

_WAYS_OUT = {
    "Fleet": "name the file that lists the nodes",
    "Workloads": "name the file that lists the deployments",
    "State": "name the file that says what runs now, or an earlier plan, with --state",
    "Scenarios": "name the file that lists the scenarios",
    "Plan": "name a plan written with --out",
    "Policy": "name the file that says what a night may do",
}


@dataclass(frozen=True, slots=True)
class Documents:
    """What the documents say. ``bad_scenarios`` name those that could not be understood."""

    fleet: Fleet | None = None
    workloads: Workloads | None = None
    state: Placement | None = None
    state_fleet: str | None = None
    scenarios: tuple[Scenario, ...] = ()
    bad_scenarios: tuple[tuple[str, tuple[Fault, ...]], ...] = ()
    scenario_names: tuple[str, ...] = ()  # of all, in document order
    policy: Policy | None = None
    traces: tuple[Trace, ...] = ()
    prices: PriceList | None = None
    plan: Plan | None = None
    contradictions: tuple[tuple[str, str], ...] = ()  # of the plan: where, and what it says
    inputs: tuple[PlanInput, ...] = ()
    catalogue: Catalogue = field(default_factory=Catalogue)
    gpus: dict[str, Gpu] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load(
    paths: Paths,
    *,
    need: Sequence[str] = ("Fleet", "Workloads"),
    state_path: str | os.PathLike[str] | None = None,
    strict_scenarios: bool = False,
    apart: bool = False,
) -> Documents:
    """Every document of the files and folders, cross-checked.

    ``need``: kinds that must be there. ``state_path``: a State, or a Plan whose placement is then
    the state. A faulty scenario is returned in ``bad_scenarios``, or is a fault among the others
    with ``strict_scenarios``. ``apart``: deployments may speak of others that are not among these.
    Raises DocumentFaults.
    """
    reading = read(paths)
    state_reading = read([state_path]) if state_path is not None else Reading()
    return _Loader(reading, state_reading, need, strict_scenarios, apart).load()


class _Loader:
    """One load: readings in, faults collected on the way, domain values out."""

    def __init__(
        self,
        reading: Reading,
        state: Reading,
        need: Sequence[str],
        strict_scenarios: bool,
        apart: bool,
    ) -> None:
        self.apart = apart
        self.reading = reading
        self.state_reading = state
        self.need = need
        self.strict_scenarios = strict_scenarios
        self.faults: list[Fault] = [*reading.faults, *state.faults]
        folders = [File(f).parent for f in [*reading.files, *state.files]]
        self.catalogue = Catalogue(folders)
        self.notes: list[str] = []
        self.contradictions: tuple[tuple[str, str], ...] = ()

    def load(self) -> Documents:
        """The documents. Raises DocumentFaults."""
        self._give_cards()
        priced = self._one("Prices", self.reading)
        fleet = self._fleet(priced)
        prices = self._prices(priced, fleet)
        workloads = self._workloads(fleet)
        state = self._state(fleet, workloads)
        traces = self._traces()
        scenarios = self._scenarios(fleet, workloads, traces)
        plan = self._plan()
        policy = self._policy(fleet, workloads)
        self._calibrate()
        self._missing()
        self.faults += self.catalogue.faults
        if self.faults:
            raise DocumentFaults(self.faults)
        return Documents(
            fleet=fleet.fleet if fleet else None,
            workloads=workloads.workloads if workloads else None,
            state=state.placement if state else None,
            state_fleet=state.fleet_name if state else None,
            scenarios=tuple(scenarios.scenarios) if scenarios else (),
            bad_scenarios=tuple(scenarios.bad) if scenarios else (),
            scenario_names=tuple(scenarios.order) if scenarios else (),
            plan=plan,
            contradictions=self.contradictions,
            policy=policy,
            traces=traces,
            prices=prices,
            inputs=self._inputs(),
            catalogue=self.catalogue,
            gpus=self._gpus(fleet, workloads),
            notes=tuple(self.notes),
        )

    def _give_cards(self) -> None:
        for shelf in self.catalogue.shelves:
            for document in self.reading.of(shelf.kind):
                shelf.give(document)

    def _one(self, kind: str, reading: Reading) -> RawDocument | None:
        """The only document of a kind; more are a fault."""
        found = reading.of(kind)
        for other in found[1:]:
            first = found[0]
            message = (
                f"a second {kind}; {first.file}:{first.line(('kind',))} is one already, "
                "and one is planned at a time; leave one out"
            )
            self.faults.append(other.fault(("kind",), message))
        return found[0] if found else None

    def _fleet(self, prices: RawDocument | None) -> FleetReading | None:
        document = self._one("Fleet", self.reading)
        if document is None:
            return None
        if prices is not None:
            from optimizer.documents.pricelists import repriced

            document = repriced(document, prices, self.catalogue)
        found = read_fleet(document, self.catalogue)
        self.faults += found.faults
        return found

    def _prices(self, document: RawDocument | None, fleet: FleetReading | None) -> PriceList | None:
        if document is None:
            return None
        from optimizer.documents.pricelists import read_prices, told  # here: few commands do

        prices, faults = read_prices(document, self.catalogue, fleet)
        self.faults += faults
        if prices is not None:
            self.notes += told(prices, document.file, fleet)
        return prices

    def _workloads(self, fleet: FleetReading | None) -> WorkloadsReading | None:
        documents = self.reading.of("Workloads")
        if not documents:
            return None
        found = read_workloads(documents, self.catalogue, fleet, self.apart)
        self.faults += found.faults
        return found

    def _state(
        self, fleet: FleetReading | None, workloads: WorkloadsReading | None
    ) -> StateReading | None:
        """What ``--state`` names, else the State among the documents, else a Plan if need be."""
        asked = self.state_reading
        if asked.files and not asked.broken and not asked.of("State") and not asked.of("Plan"):
            message = "holds neither a State nor a Plan; name a file that does with --state"
            self.faults.append(Fault(asked.files[0], 0, 0, "", message))
        document = self._one("State", asked)
        if document is None and asked.of("Plan"):
            return self._plan_as_state(asked, fleet)
        document = document or self._one("State", self.reading)
        if document is not None:
            found = read_state(document, self.catalogue, fleet, workloads)
            self.faults += found.faults
            return found
        if "State" in self.need and self.reading.of("Plan"):
            return self._plan_as_state(self.reading, fleet)
        return None

    def _plan_as_state(self, asked: Reading, fleet: FleetReading | None) -> StateReading | None:
        document = self._one("Plan", asked)
        assert document is not None
        plan, faults = plan_of(document)
        self.faults += faults
        if plan is None:
            return None
        found, note = read_plan_as_state(document, plan.placement, fleet)
        self.faults += found.faults
        self.notes += [note] if note else []
        return found

    def _scenarios(
        self,
        fleet: FleetReading | None,
        workloads: WorkloadsReading | None,
        traces: tuple[Trace, ...],
    ) -> "ScenariosReading | None":
        """Every scenario; one that is faulty is a fault of the load only where that is asked."""
        documents = self.reading.of("Scenarios")
        if not documents:
            return None
        from optimizer.documents.scenarios import read_scenarios  # here: few commands read them

        found = read_scenarios(documents, self.catalogue, fleet, workloads, traces)
        self.faults += found.told() if self.strict_scenarios else found.faults
        return found

    def _plan(self) -> Plan | None:
        document = self._one("Plan", self.reading)
        if document is None:
            return None
        plan, faults = plan_of(document)
        self.faults += faults
        if plan is not None:
            self.contradictions = contradictions(document, plan)
        return plan

    def _policy(
        self, fleet: FleetReading | None, workloads: WorkloadsReading | None
    ) -> Policy | None:
        document = self._one("Policy", self.reading)
        if document is None:
            return None
        policy, faults = read_policy(document, fleet, workloads)
        self.faults += faults
        return policy

    def _traces(self) -> tuple[Trace, ...]:
        found = []
        for document in self.reading.of("Trace"):
            trace, faults = read_trace(document)
            self.faults += faults
            found += [trace] if trace else []
        return tuple(found)

    def _calibrate(self) -> None:
        """Corrections of every Calibration; of two for the same thing the last document's holds."""
        for document in self.reading.of("Calibration"):
            corrections, faults = read_calibration(document, self.catalogue)
            self.faults += faults
            self.catalogue.calibrate(corrections)

    def _missing(self) -> None:
        """Kinds that are needed and absent; a file that broke may hold them."""
        if self.reading.broken:
            return
        given = {d.kind for d in [*self.reading.documents, *self.state_reading.documents]}
        if "Plan" in given:
            given.add("State")
        for kind in self.need:
            if kind not in given:
                files = ", ".join(self.reading.files) or "no document"
                message = f"no {kind} among the documents; {_WAYS_OUT.get(kind, 'name one')}"
                self.faults.append(Fault(files, 0, 0, "", message))

    def _gpus(
        self, fleet: FleetReading | None, workloads: WorkloadsReading | None
    ) -> dict[str, Gpu]:
        """Products of the fleet, and those that needs were measured on, by name."""
        found = dict(fleet.products) if fleet else {}
        for _, _, raw in workloads.raw.values() if workloads else ():
            needs = raw.get("needs")
            spelling = needs.get("measured_on") if isinstance(needs, dict) else None
            gpu = self.catalogue.gpu(spelling) if isinstance(spelling, str) else None
            if gpu is not None:
                found[gpu.name] = gpu
        return dict(sorted(found.items()))

    def _inputs(self) -> tuple[PlanInput, ...]:
        documents = [*self.reading.documents, *self.state_reading.documents]
        return tuple(dict.fromkeys(PlanInput(d.file, d.sha256, d.kind) for d in documents))
