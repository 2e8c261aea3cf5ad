"""A Plan document back to the domain's plan."""

import os
from collections.abc import Mapping
from typing import Any

from optimizer.documents.faults import DocumentFaults, Fault
from optimizer.documents.plan_json import objectives_json
from optimizer.documents.reading import RawDocument, read
from optimizer.documents.schema import plan as schema
from optimizer.documents.states import config_of, share_of
from optimizer.documents.wording import complaints
from optimizer.domain.config import Prediction
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.outcome import Objective
from optimizer.domain.placement import Instance, Placement, Replica, Reserved
from optimizer.domain.plan import (
    ConfigUse,
    DeploymentPlan,
    GpuPlan,
    Move,
    PlacedInstance,
    Plan,
    PlanInput,
    PlanRun,
    Sighting,
    Step,
    TenantPrice,
    Unmet,
)
from optimizer.domain.units import MIB_PER_GIB, MICROS, PPM, money, scaled
from optimizer.domain.workload import Slo

ROUNDING = 2e-6  # of figures in people's units


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """The plan of a file. Raises DocumentFaults."""
    reading = read([path])
    faults = list(reading.faults)
    plans = reading.of("Plan")
    if not plans and not faults:
        kinds = sorted({d.kind for d in reading.documents})
        message = f"holds no Plan but {', '.join(kinds)}; name a plan written with --out"
        faults.append(Fault(os.fspath(path), 0, 0, "", message))
    for other in plans[1:]:
        faults.append(other.fault(("kind",), "a second Plan in one file; keep one"))
    plan = None
    if plans:
        plan, found = plan_of(plans[0])
        faults += found
    if faults or plan is None:
        raise DocumentFaults(faults)
    return plan


def plan_of(document: RawDocument) -> tuple[Plan | None, list[Fault]]:
    """The plan of a document, or its faults. Whether it keeps the rules is for the judge to say."""
    faults = [
        document.fault(path, message, key=key)
        for path, message, key in complaints(schema.PlanDoc, document.value)
    ]
    if faults:
        return None, faults
    return _plan(schema.PlanDoc.model_validate(document.value)), []


def contradictions(document: RawDocument, plan: Plan) -> tuple[tuple[str, str], ...]:
    """Figures that follow from others of the plan and yet say something else: where, and what."""
    found = []
    says = float(document.value["price_per_hour"])
    if _micros(says) != plan.price_micros:
        told = f"says {says}, its GPUs cost {money(plan.price_micros)}"
        found.append(("price_per_hour", told))
    follow = {one["name"]: one for one in objectives_json(plan.objectives)}
    for one in document.value["outcome"]["objectives"]:
        for key in ("value", "bound", "gap"):
            other = follow[one["name"]][key]
            if abs(one[key] - other) > ROUNDING:
                found.append((f"{one['name']}.{key}", f"says {one[key]}, it is {other}"))
    return tuple(found)


def _plan(doc: schema.PlanDoc) -> Plan:
    run = doc.outcome.run
    return Plan(
        inputs=tuple(PlanInput(i.path, i.sha256, i.kind) for i in doc.inputs),
        options=_frozen(doc.options),
        fleet=doc.fleet,
        unit=doc.unit,
        status=doc.outcome.status,
        objectives=_objectives(doc.outcome.objectives),
        run=PlanRun(
            run.seconds,
            run.workers,
            run.started_at,
            run.stopped_by,
            tuple(_sighting(s) for s in run.trajectory),
        ),
        placement=_placement(doc),
        deployments=tuple(_deployment(d) for d in doc.deployments),
        gpus=tuple(_gpu(g) for g in doc.gpus),
        moves=tuple(_move(m) for m in doc.moves),
        repartitions=tuple(doc.repartitions),
        steps=tuple(_step(s) for s in doc.steps),
        left=tuple(doc.left),
        unmet=tuple(_unmet(u) for u in doc.unmet),
        tenants=tuple(
            TenantPrice(t.name, _micros(t.price_per_hour), _micros(t.stranded_price_per_hour))
            for t in doc.tenants
        ),
        conflict=tuple(doc.outcome.conflict),
        notes=tuple(doc.outcome.notes),
        reproducible=doc.outcome.reproducible,
        certificate=_frozen(doc.certificate),
        uses={r.id: _use(r.use) for r in doc.replicas if r.use is not None},
        version=doc.fleetslice_version,
    )


def _sighting(doc: schema.SightingDoc) -> Sighting:
    return Sighting(
        doc.seconds,
        None if doc.price_per_hour is None else _micros(doc.price_per_hour),
        None if doc.bound is None else _micros(doc.bound),
    )


def _frozen(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(value)


def _micros(value: float) -> int:
    return scaled(value, MICROS)


def _mib(gib: float) -> int:
    return scaled(gib, MIB_PER_GIB)


def _mrps(rate: float) -> int:
    return scaled(rate, 1000)


def _use(doc: schema.UseDoc) -> Use:
    return Use(doc.memory_mib, scaled(doc.bandwidth_gbs, 1000), scaled(doc.compute_fraction, PPM))


def _profile(doc: Any) -> PlacedProfile | None:
    return None if doc is None else PlacedProfile(doc.start, doc.profile)


def _objectives(docs: list[schema.ObjectiveDoc]) -> tuple[Objective, ...]:
    found: list[Objective] = []
    for doc in docs:
        integer = _mib if doc.name in ("disruption", "stranded") else _micros
        if doc.priorities:
            found += [
                Objective(doc.name, integer(p.value), integer(p.bound), p.priority)
                for p in doc.priorities
            ]
        else:
            found.append(Objective(doc.name, integer(doc.value), integer(doc.bound)))
    return tuple(found)


def _placement(doc: schema.PlanDoc) -> Placement:
    replicas = tuple(_replica(r.id, r.deployment, r) for r in doc.replicas)
    empty = tuple(Instance(i.gpu, PlacedProfile(i.start, i.profile)) for i in doc.instances)
    kept = tuple(Reserved(r.entry, tuple(r.gpus), _profile(r.mig)) for r in doc.reserved)
    return Placement(replicas, empty, kept)


def _replica(name: str, deployment: str, doc: schema.PlacedReplicaDoc | schema.EndDoc) -> Replica:
    return Replica(
        id=name,
        deployment=deployment,
        gpus=tuple(doc.gpus),
        mig=_profile(doc.mig),
        share=None if doc.share is None else share_of(doc.share),
        config=config_of(doc.config, len(doc.gpus)),
    )


def _deployment(doc: schema.DeploymentPlanDoc) -> DeploymentPlan:
    slo = doc.slo
    return DeploymentPlan(
        name=doc.name,
        tenant=doc.tenant,
        replicas=doc.replicas,
        configs=tuple(_config_use(c) for c in doc.configs),
        demand_mrps=None if doc.demand_rps is None else _mrps(doc.demand_rps),
        capacity_mrps=None if doc.capacity_rps is None else _mrps(doc.capacity_rps),
        predicted=None if doc.predicted is None else _predicted(doc.predicted),
        price_micros=_micros(doc.price_per_hour),
        reasons=tuple(doc.reasons),
        slo=None if slo is None else Slo(slo.ttft_ms, slo.tpot_ms, slo.percentile),
    )


def _config_use(doc: schema.ConfigUseDoc) -> ConfigUse:
    return ConfigUse(
        gpu=doc.gpu,
        sharing=doc.sharing,
        profile=doc.mig_profile,
        gpus_per_replica=doc.gpus,
        config=config_of(doc, doc.gpus),
        count=doc.count,
        capacity_mrps=_mrps(doc.requests_per_second),
    )


def _predicted(doc: schema.PredictedDoc) -> Prediction:
    return Prediction(
        ttft_ms=doc.ttft_ms,
        tpot_ms=doc.tpot_ms,
        ttft_mean_ms=doc.ttft_mean_ms,
        tpot_mean_ms=doc.tpot_mean_ms,
        concurrency=doc.concurrency,
        output_tokens_per_second=doc.output_tokens_per_second,
        error_band_percent=tuple(doc.error_band_percent.items()),
    )


def _gpu(doc: schema.GpuPlanDoc) -> GpuPlan:
    return GpuPlan(
        id=doc.id,
        gpu=doc.gpu,
        mode=doc.mode,
        instances=tuple(
            PlacedInstance(PlacedProfile(i.start, i.profile), i.replica, i.memory_slices)
            for i in doc.instances
        ),
        replicas=tuple(doc.replicas),
        use=_use(doc.use),
        room=_use(doc.room),
        price_micros=_micros(doc.price_per_hour),
        cordoned=doc.cordoned,
        memory_slices=doc.memory_slices,
        rack=doc.rack,
    )


def _move(doc: schema.MoveDoc) -> Move:
    deployment = doc.replica.rpartition("/")[0]
    return Move(
        replica=doc.replica,
        kind=doc.kind,
        before=None if doc.from_ is None else _replica(doc.replica, deployment, doc.from_),
        after=None if doc.to is None else _replica(doc.replica, deployment, doc.to),
        load_mib=_mib(doc.load_gib),
        reason=doc.reason,
    )


def _step(doc: schema.StepDoc) -> Step:
    return Step(
        id=doc.id,
        action=doc.action,
        gpus=tuple(doc.gpus),
        replica=doc.replica,
        after=tuple(doc.after),
        start_s=doc.start_s,
        seconds=doc.seconds,
        because=doc.because,
        placed=_profile(doc.instance),
        enable=doc.mig_enabled,
    )


def _unmet(doc: schema.UnmetDoc) -> Unmet:
    return Unmet(
        deployment=doc.deployment,
        missing_mrps=_mrps(doc.missing_rps),
        missing_replicas=doc.missing_replicas,
        reason=doc.reason,
        smallest_fix=doc.smallest_fix,
    )
