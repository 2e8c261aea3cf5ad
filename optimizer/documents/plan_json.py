"""A plan as data in people's units, key by key as the contract has it."""

from collections.abc import Mapping
from typing import Any

from optimizer.documents.schema.plan import FORMAT
from optimizer.domain.config import Prediction, ReplicaConfig
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.outcome import Objective
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import (
    ConfigUse,
    DeploymentPlan,
    GpuPlan,
    Move,
    Plan,
    Sighting,
    Step,
    Unmet,
)
from optimizer.domain.units import MIB_PER_GIB, PPM, money, rps
from optimizer.domain.workload import Slo

Json = dict[str, Any]


def plan_json(plan: Plan) -> Json:
    """The plan, ready for JSON or YAML. Numbers are rounded, never so far that an integer of the
    solver could not be told from them."""
    uses = _uses(plan)
    return {
        "kind": "Plan",
        "version": 1,
        "format_version": FORMAT,
        "fleetslice_version": plan.version,
        "fleet": plan.fleet,
        "unit": plan.unit,
        "price_per_hour": money(plan.price_micros),
        "inputs": [{"path": i.path, "sha256": i.sha256, "kind": i.kind} for i in plan.inputs],
        "options": _plain(plan.options),
        "outcome": _outcome(plan),
        "deployments": [_deployment(d) for d in plan.deployments],
        "replicas": [_placed(r, uses.get(r.id)) for r in plan.placement.replicas],
        "instances": empty_json(plan.placement),
        **_reserved(plan.placement),
        "gpus": [_gpu(g) for g in plan.gpus],
        "moves": [_move(m) for m in plan.moves],
        "repartitions": list(plan.repartitions),
        "steps": [_step(s) for s in plan.steps],
        "left": list(plan.left),
        "unmet": [_unmet(u) for u in plan.unmet],
        "tenants": [
            {
                "name": t.name,
                "price_per_hour": money(t.price_micros),
                "stranded_price_per_hour": money(t.stranded_micros),
            }
            for t in plan.tenants
        ],
        "certificate": _plain(plan.certificate),
    }


def _plain(value: Any) -> Any:
    """Mappings and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _uses(plan: Plan) -> dict[str, Use]:
    """What each replica takes of each of its GPUs, as far as the plan tells."""
    alone = {g.replicas[0]: g.use for g in plan.gpus if len(g.replicas) == 1}
    shares = {r.id: r.share for r in plan.placement.replicas if r.share is not None}
    return {**alone, **shares, **plan.uses}


def _outcome(plan: Plan) -> Json:
    return {
        "status": plan.status,
        "objectives": objectives_json(plan.objectives),
        "reproducible": plan.reproducible,
        "conflict": list(plan.conflict),
        "notes": list(plan.notes),
        "run": {
            "seconds": round(plan.run.seconds, 3),
            "workers": plan.run.workers,
            "started_at": plan.run.started_at,
            "stopped_by": plan.run.stopped_by,
            "trajectory": [_sighting(s) for s in plan.run.trajectory],
        },
    }


def _sighting(seen: Sighting) -> Json:
    return {
        "seconds": round(seen.seconds, 3),
        "price_per_hour": None if seen.incumbent is None else money(seen.incumbent),
        "bound": None if seen.bound is None else money(seen.bound),
    }


def objectives_json(objectives: tuple[Objective, ...]) -> list[Json]:
    """Each objective once: all priorities of unmet demand make one entry."""
    unmet = [o for o in objectives if o.name == "unmet"]
    found = [_unmet_objective(unmet)] if unmet else []
    return found + [_objective(o) for o in objectives if o.name != "unmet"]


def _unmet_objective(parts: list[Objective]) -> Json:
    total = Objective("unmet", sum(o.value for o in parts), sum(o.bound for o in parts))
    return {
        **_objective(total),
        "priorities": [
            {"priority": o.priority, "value": o.value / PPM, "bound": o.bound / PPM}
            for o in parts
            if o.priority is not None
        ],
    }


def _objective(objective: Objective) -> Json:
    scaled = people_units(objective.name)
    return {
        "name": objective.name,
        "value": scaled(objective.value),
        "bound": scaled(objective.bound),
        "gap": round(objective.gap, 9),
    }


def people_units(name: str) -> Any:
    """From the solver's integers to people's units, by objective."""
    return gib_exact if name in ("disruption", "stranded") else money


def gib_exact(mib: int) -> float:
    """MiB as GiB, to four decimals: the fewest that tell every MiB apart."""
    return round(mib / MIB_PER_GIB, 4)


def config_json(config: ReplicaConfig) -> Json:
    """Settings that are said."""
    fields = {
        "engine": config.engine,
        "engine_version": config.engine_version,
        "precision": config.precision,
        "kv_precision": config.kv_precision,
        "attention": config.attention,
        "tensor_parallel": config.tensor_parallel,
        "pipeline_parallel": config.pipeline_parallel,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "memory_fraction": config.memory_fraction,
    }
    return {key: value for key, value in fields.items() if value is not None}


def use_json(use: Use) -> Json:
    """What is taken of a GPU."""
    return {
        "memory_mib": use.memory_mib,
        "bandwidth_gbs": use.bandwidth_mbs / 1000,
        "compute_fraction": use.compute_ppm / PPM,
    }


def profile_json(placed: PlacedProfile) -> Json:
    """A MIG instance."""
    return {"profile": placed.profile, "start": placed.start}


def end_json(replica: Replica) -> Json:
    """A replica's GPUs, instance or share, and settings."""
    found: Json = {"gpus": list(replica.gpus)}
    if replica.mig is not None:
        found["mig"] = profile_json(replica.mig)
    if replica.share is not None:
        found["share"] = use_json(replica.share)
    found["config"] = config_json(replica.config)
    return found


def replica_json(replica: Replica) -> Json:
    """A replica as a State has it."""
    return {"id": replica.id, "deployment": replica.deployment, **end_json(replica)}


def empty_json(placement: Placement) -> list[Json]:
    """Instances that stand empty, as a State has them."""
    return [{"gpu": i.gpu, **profile_json(i.placed)} for i in placement.instances]


def _reserved(placement: Placement) -> Json:
    """Room kept free, where some is."""
    kept = [
        {
            "entry": piece.entry,
            "gpus": list(piece.gpus),
            "mig": None if piece.mig is None else profile_json(piece.mig),
        }
        for piece in placement.reserved
    ]
    return {"reserved": kept} if kept else {}


def _placed(replica: Replica, use: Use | None) -> Json:
    return {**replica_json(replica), "use": None if use is None else use_json(use)}


def _deployment(d: DeploymentPlan) -> Json:
    return {
        "name": d.name,
        "tenant": d.tenant,
        "replicas": d.replicas,
        "configs": [_config_use(c) for c in d.configs],
        "demand_rps": None if d.demand_mrps is None else rps(d.demand_mrps),
        "capacity_rps": None if d.capacity_mrps is None else rps(d.capacity_mrps),
        "slo": None if d.slo is None else _slo(d.slo),
        "predicted": None if d.predicted is None else _predicted(d.predicted),
        "price_per_hour": money(d.price_micros),
        "reasons": list(d.reasons),
    }


def _slo(slo: Slo) -> Json:
    return {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms, "percentile": slo.percentile}


def _config_use(use: ConfigUse) -> Json:
    return {
        "gpu": use.gpu,
        "sharing": use.sharing,
        "mig_profile": use.profile,
        "gpus": use.gpus_per_replica,
        **config_json(use.config),
        "count": use.count,
        "requests_per_second": rps(use.capacity_mrps),
    }


def _predicted(p: Prediction) -> Json:
    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 3)

    return {
        "ttft_ms": short(p.ttft_ms),
        "tpot_ms": short(p.tpot_ms),
        "ttft_mean_ms": short(p.ttft_mean_ms),
        "tpot_mean_ms": short(p.tpot_mean_ms),
        "concurrency": short(p.concurrency),
        "output_tokens_per_second": short(p.output_tokens_per_second),
        "error_band_percent": {name: round(v, 3) for name, v in p.error_band_percent},
    }


def _gpu(gpu: GpuPlan) -> Json:
    return {
        "id": gpu.id,
        "gpu": gpu.gpu,
        "rack": gpu.rack,
        "mode": gpu.mode,
        "cordoned": gpu.cordoned,
        "price_per_hour": money(gpu.price_micros),
        "memory_slices": gpu.memory_slices,
        "instances": [
            {**profile_json(i.placed), "replica": i.replica, "memory_slices": i.memory_slices}
            for i in gpu.instances
        ],
        "replicas": list(gpu.replicas),
        "use": use_json(gpu.use),
        "room": use_json(gpu.room),
    }


def _move(move: Move) -> Json:
    return {
        "replica": move.replica,
        "kind": move.kind,
        "from": None if move.before is None else end_json(move.before),
        "to": None if move.after is None else end_json(move.after),
        "load_gib": gib_exact(move.load_mib),
        "reason": move.reason,
    }


def _step(step: Step) -> Json:
    found: Json = {
        "id": step.id,
        "action": step.action,
        "gpus": list(step.gpus),
        "replica": step.replica,
        "after": list(step.after),
        "start_s": step.start_s,
        "seconds": step.seconds,
        "because": step.because,
    }
    if step.placed is not None:
        found["instance"] = profile_json(step.placed)
    if step.enable is not None:
        found["mig_enabled"] = step.enable
    return found


def _unmet(unmet: Unmet) -> Json:
    return {
        "deployment": unmet.deployment,
        "missing_rps": rps(unmet.missing_mrps),
        "missing_replicas": unmet.missing_replicas,
        "reason": unmet.reason,
        "smallest_fix": unmet.smallest_fix,
    }
