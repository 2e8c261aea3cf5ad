"""Plain listings: engine command lines, Prometheus metrics, CSV tables."""

import csv
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence

from optimizer.domain.placement import replica_order
from optimizer.domain.plan import Plan
from optimizer.domain.units import money, rps
from optimizer.engines import PORT, CannotRun, engine_command
from optimizer.exchange.artifact import Artifact, Export, Source

FIRST_PORT = 8000
NEMO = (
    "NeMo checkpoints: convert to a Hugging Face folder first (NeMo's export tools no longer write "
    "TensorRT-LLM engines), then serve the folder with trtllm-serve"
)


def export_engines(source: Source) -> Export:
    """A line per replica, with the devices it may see; ports count up on each node."""
    lines, notes = [], []
    ports: dict[str, int] = {}
    gpus = {g.id: g for g in source.plan.gpus}
    for replica in sorted(source.plan.placement.replicas, key=lambda r: replica_order(r.id)):
        try:
            command = engine_command(replica, gpus[replica.gpus[0]], source.known)
        except CannotRun as refusal:
            notes.append(str(refusal))
            continue
        node = replica.nodes[0]
        port = ports[node] = ports.get(node, FIRST_PORT - 1) + 1
        indexes = ",".join(g.rpartition("/")[2] for g in replica.gpus)
        seen = f"MIG-UUID-of-{replica.mig.profile}@{replica.mig.start}" if replica.mig else indexes
        env = {"CUDA_VISIBLE_DEVICES": seen, **dict(command.env)}
        said = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
        argv = [str(port) if a == PORT else a for a in command.argv]
        lines += [f"# {replica.id} on {' '.join(replica.gpus)}", f"{said} {shlex.join(argv)}"]
    if any("MIG-UUID-of" in line for line in lines):
        notes.append("put each slice's UUID in place of MIG-UUID-of-...: nvidia-smi -L lists them")
    if any(r.config.engine == "tensorrt-llm" for r in source.plan.placement.replicas):
        notes.append(NEMO)
    text = "\n".join(lines) + "\n"
    return Export("command lines", (Artifact("engines.sh", text=text),), tuple(notes))


def export_prometheus(source: Source) -> Export:
    """Gauges for the textfile collector."""
    plan = source.plan
    metrics: list[tuple[str, str, list[tuple[Mapping[str, str], float]]]] = [
        ("price_per_hour", f"Price in {plan.unit}.", [({}, money(plan.price_micros))]),
        (
            "gpus_used",
            "GPUs that hold something.",
            [({}, sum(g.mode != "empty" for g in plan.gpus))],
        ),
        ("gpus", "GPUs of the fleet.", [({}, len(plan.gpus))]),
        (
            "replicas",
            "Replicas placed.",
            [({"deployment": d.name, "tenant": d.tenant}, d.replicas) for d in plan.deployments],
        ),
        (
            "capacity_rps",
            "Requests per second that the replicas carry.",
            [
                ({"deployment": d.name, "tenant": d.tenant}, rps(d.capacity_mrps))
                for d in plan.deployments
                if d.capacity_mrps is not None
            ],
        ),
        (
            "demand_rps",
            "Requests per second asked.",
            [
                ({"deployment": d.name, "tenant": d.tenant}, rps(d.demand_mrps))
                for d in plan.deployments
                if d.demand_mrps is not None
            ],
        ),
        (
            "unmet_rps",
            "Requests per second not served.",
            [({"deployment": u.deployment}, rps(u.missing_mrps)) for u in plan.unmet],
        ),
        ("moves", "Changes from what runs now.", [({}, len(plan.moves))]),
        (
            "gap",
            "Gap between value and bound.",
            [
                (
                    {"objective": o.name}
                    if o.priority is None
                    else {"objective": o.name, "priority": str(o.priority)},
                    round(o.gap, 9),
                )
                for o in plan.objectives
            ],
        ),
    ]
    lines = []
    for name, told, values in metrics:
        lines += [f"# HELP fleetslice_{name} {told}", f"# TYPE fleetslice_{name} gauge"]
        for labels, value in values:
            said = ",".join(
                f'{k}="{_escaped(v)}"' for k, v in {"fleet": plan.fleet, **labels}.items()
            )
            lines.append(f"fleetslice_{name}{{{said}}} {value:g}")
    text = "\n".join(lines) + "\n"
    return Export("Prometheus text", (Artifact("fleetslice.prom", text=text),))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def export_csv(source: Source) -> Export:
    """Deployments, replicas and GPUs as tables."""
    plan = source.plan
    return Export(
        "CSV",
        (
            Artifact("deployments.csv", text=_table(_deployments(plan))),
            Artifact("replicas.csv", text=_table(_replicas(plan))),
            Artifact("gpus.csv", text=_table(_gpus(plan))),
        ),
    )


def _table(rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _deployments(plan: Plan) -> Iterable[Sequence[object]]:
    yield ["deployment", "tenant", "replicas", "demand_rps", "capacity_rps", "price_per_hour"]
    for d in plan.deployments:
        asked = "" if d.demand_mrps is None else rps(d.demand_mrps)
        room = "" if d.capacity_mrps is None else rps(d.capacity_mrps)
        yield [d.name, d.tenant, d.replicas, asked, room, money(d.price_micros)]


def _replicas(plan: Plan) -> Iterable[Sequence[object]]:
    head = ["replica", "deployment", "gpus", "mig_profile", "mig_start", "engine", "precision"]
    yield [*head, "share_memory_mib", "share_bandwidth_gbs", "share_compute_fraction"]
    for r in sorted(plan.placement.replicas, key=lambda r: replica_order(r.id)):
        profile, start = (r.mig.profile, r.mig.start) if r.mig else ("", "")
        engine, precision = r.config.engine or "", r.config.precision or ""
        share: list[object] = ["", "", ""]
        if r.share is not None:
            room = r.share
            share = [room.memory_mib, room.bandwidth_mbs / 1000, room.compute_ppm / 1_000_000]
        yield [r.id, r.deployment, " ".join(r.gpus), profile, start, engine, precision, *share]


def _gpus(plan: Plan) -> Iterable[Sequence[object]]:
    yield ["gpu", "product", "mode", "replicas", "price_per_hour"]
    for g in plan.gpus:
        price = money(g.price_micros) if g.mode != "empty" else 0
        yield [g.id, g.gpu, g.mode, " ".join(g.replicas), price]
