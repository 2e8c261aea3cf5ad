"""A State, or the placement of a Plan, to the domain, with everything that is wrong in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue
from optimizer.documents.deployments import ENGINES, WorkloadsReading, attention_fault
from optimizer.documents.faults import Fault, Path, shown, unknown
from optimizer.documents.fleets import FleetReading, gpu_fault, placed
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.state import ConfigDoc, InstanceDoc, ReplicaDoc, StateDoc
from optimizer.documents.wording import complaints
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.gpu import Gpu, PlacedProfile, Use
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.units import PPM, scaled

Say = Callable[..., Fault]


@dataclass(slots=True)
class StateReading:
    """What runs now, or as much of it as can be told."""

    faults: list[Fault] = field(default_factory=list)
    placement: Placement | None = None
    fleet_name: str | None = None


def read_state(
    document: RawDocument,
    catalogue: Catalogue,
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None,
) -> StateReading:
    """The placement of a State document, and its faults."""
    reading = StateReading(fleet_name=look.text(document.value, "fleet"))
    for path, message, key in complaints(StateDoc, document.value):
        reading.faults.append(document.fault(path, message, key=key))
    reading.faults += placement_faults(document, fleet, workloads, document.fault)
    reading.faults += _config_faults(document.value, catalogue, document.fault)
    reading.faults += _fleet_name_faults(document, fleet)
    if not reading.faults:
        doc = StateDoc.model_validate(document.value)
        reading.placement = build_placement(doc.replicas, doc.instances, fleet, workloads)
    return reading


def _fleet_name_faults(document: RawDocument, fleet: FleetReading | None) -> Iterator[Fault]:
    said = look.text(document.value, "fleet")
    known = look.text(fleet.document.value, "name") if fleet is not None else None
    if said is not None and known is not None and said != known:
        message = f'is the state of fleet "{shown(said)}", but the fleet given is '
        message += f'"{shown(known)}"; give the state of that one'
        yield document.fault(("fleet",), message)


def placement_faults(
    document: RawDocument,
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None,
    say: Say,
) -> Iterator[Fault]:
    """Ids, references, and GPUs held twice."""
    raw = document.value
    yield from _id_faults(raw, say)
    if workloads is not None and workloads.sure:
        for path, name in look.texts(raw, "replicas[].deployment"):
            if name not in workloads.raw:
                yield say(path, unknown("deployment", name, sorted(workloads.raw)))
    if fleet is not None and fleet.sure:
        for pattern in ("replicas[].gpus[]", "instances[].gpu"):
            for path, gpu_id in look.texts(raw, pattern):
                node, slash, index = gpu_id.rpartition("/")
                problem = gpu_fault(gpu_id, node, index, fleet) if slash else None
                if problem:
                    yield say(path, problem)
    for path, replica in look.each(raw, "replicas[]"):
        if isinstance(replica, dict):
            yield from _shape_faults(path, replica, say)
            if _is_llm(look.text(replica, "deployment"), workloads):
                yield from _group_faults(path, replica, say)
    yield from _held_faults(raw, fleet, say)


def _id_faults(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    seen: dict[str, Path] = {}
    for path, replica in look.each(raw, "replicas[]"):
        name, of = look.text(replica, "id"), look.text(replica, "deployment")
        if name is None:
            continue
        if name in seen:
            line = say(seen[name], "").line
            message = f'replica "{shown(name)}" stands at line {line} already; number it anew'
            yield say((*path, "id"), message)
        seen.setdefault(name, (*path, "id"))
        if of is not None and "/" in name and name.rpartition("/")[0] != of:
            message = f'must be "{shown(of)}/<n>", after its deployment, got "{shown(name)}"'
            yield say((*path, "id"), message)


def _shape_faults(path: Path, replica: dict[str, Any], say: Say) -> Iterator[Fault]:
    """A slice or a share is of one GPU, and no GPU counts twice."""
    gpus = replica.get("gpus")
    count = len(gpus) if isinstance(gpus, list) else None
    split = [part for part in ("mig", "share") if replica.get(part) is not None]
    if len(split) == 2:
        yield say((*path, "share"), "goes not together with mig; keep one of the two", key=True)
    if split and count is not None and count > 1:
        message = f"lies on one GPU, but gpus names {count}"
        yield say((*path, split[0]), message, key=True)
    if isinstance(gpus, list):
        for index, gpu_id in enumerate(gpus):
            if isinstance(gpu_id, str) and gpu_id in gpus[:index]:
                yield say((*path, "gpus", index), f'"{shown(gpu_id)}" is named twice')


def _group_faults(path: Path, replica: dict[str, Any], say: Say) -> Iterator[Fault]:
    """A group has as many GPUs as its parallel sizes ask."""
    gpus = replica.get("gpus")
    count = len(gpus) if isinstance(gpus, list) else None
    tensor = look.whole(replica, "config.tensor_parallel")
    stages = look.whole(replica, "config.pipeline_parallel") or 1
    if tensor is not None and count is not None and tensor * stages != count:
        product = f"tensor_parallel {tensor}" + (f" x {stages} stages" if stages > 1 else "")
        gpus_word = "GPU" if tensor * stages == 1 else "GPUs"
        message = f"{product} takes {tensor * stages} {gpus_word}, but gpus names {count}"
        yield say((*path, "config", "tensor_parallel"), message)


@dataclass(slots=True)
class _Held:
    """What is said of one GPU so far."""

    whole: tuple[str, Path] | None = None
    shared: tuple[str, Path] | None = None
    slices: list[tuple[str, PlacedProfile]] = field(default_factory=list)
    shared_mib: int = 0


def _held_faults(raw: dict[str, Any], fleet: FleetReading | None, say: Say) -> Iterator[Fault]:
    """A GPU is in one mode, held whole by one replica, and its instances make a legal layout."""
    held: dict[str, _Held] = {}
    for path, replica in look.each(raw, "replicas[]"):
        if not isinstance(replica, dict):
            continue
        who = look.text(replica, "id") or "a replica"
        for where, gpu_id in look.texts(replica, "gpus[]", path):
            gpu = _product(gpu_id, fleet)
            here = held.setdefault(gpu_id, _Held())
            if replica.get("mig") is not None:
                yield from _slice_faults(here, who, replica["mig"], gpu, (*path, "mig"), say)
            else:
                shared = replica.get("share") is not None
                yield from _whole_faults(here, who, where, shared, say)
                if shared:
                    share = (*path, "share", "memory_mib")
                    mib = look.whole(replica, "share.memory_mib") or 0
                    yield from _memory_faults(here, who, mib, gpu, share, say)
    for path, entry in look.each(raw, "instances[]"):
        stands_on = look.text(entry, "gpu")
        if stands_on is not None:
            here = held.setdefault(stands_on, _Held())
            gpu = _product(stands_on, fleet)
            yield from _slice_faults(here, "an empty instance", entry, gpu, path, say)


def _product(gpu_id: str, fleet: FleetReading | None) -> Gpu | None:
    node = fleet.nodes.get(gpu_id.rpartition("/")[0]) if fleet is not None else None
    return None if node is None else node.gpu


def _whole_faults(here: _Held, who: str, path: Path, shared: bool, say: Say) -> Iterator[Fault]:
    other = here.whole or (None if shared else here.shared)
    if other is None and here.slices:
        message = f"{who} needs this GPU {'shared' if shared else 'whole'}, but it is cut: "
        yield say(path, message + f"{here.slices[0][0]} is in {here.slices[0][1].profile}")
    elif other is not None and other[0] != who:
        mode = "whole" if here.whole else "shared"
        yield say(path, f"{who} and {other[0]} cannot both run here: {other[0]} holds it {mode}")
    elif shared:
        here.shared = here.shared or (who, path)
    else:
        here.whole = here.whole or (who, path)


def _memory_faults(
    here: _Held, who: str, mib: int, gpu: Gpu | None, path: Path, say: Say
) -> Iterator[Fault]:
    """Those who share a GPU fit into its memory together."""
    room = gpu.memory_mib_reported if gpu is not None else None
    if room is not None and gpu is not None and here.shared_mib + mib > room:
        held = f"; {here.shared_mib} MiB are held already" if here.shared_mib else ""
        yield say(path, f"{who} takes {mib} MiB, but {gpu.name} has {room} MiB{held}")
    else:
        here.shared_mib += mib


def _slice_faults(
    here: _Held, who: str, raw: Any, gpu: Gpu | None, path: Path, say: Say
) -> Iterator[Fault]:
    profile, start = look.text(raw, "profile"), look.whole(raw, "start")
    other = here.whole or here.shared
    if other is not None:
        mode = "whole" if here.whole else "shared"
        yield say(path, f"{who} cannot stand here: {other[0]} holds the GPU {mode}")
        return
    if profile is None or start is None or gpu is None:
        return
    if gpu.mig is None:
        yield say(path, f"{gpu.name} has no MIG; give the GPU whole, or a share")
        return
    found = gpu.mig.profile(profile)
    if found is None:
        message = unknown("MIG profile", profile, [p.name for p in gpu.mig.profiles])
        yield say((*path, "profile"), f"on {gpu.name}: {message}")
        return
    new = PlacedProfile(start, found.name)
    before = [p for _, p in here.slices]
    known = gpu.mig.faults(before)
    wrong = [f for f in gpu.mig.faults([*before, new]) if f not in known]
    if wrong:
        rivals = [w for w, p in here.slices if gpu.mig.faults([p, new]) and w != who]
        also = f" (with {', '.join(rivals)})" if rivals else ""
        yield say(path, f"not possible on {gpu.name}: {wrong[0]}{also}")
    else:
        here.slices.append((who, new))


def _config_faults(raw: dict[str, Any], catalogue: Catalogue, say: Say) -> Iterator[Fault]:
    for path, name in look.texts(raw, "replicas[].config.engine"):
        if name not in ENGINES and catalogue.engines.find(name) is None:
            yield say(path, unknown("engine", name, [*ENGINES, *catalogue.engines.names()]))
    for path, name in look.texts(raw, "replicas[].config.attention"):
        problem = attention_fault(name, catalogue)
        if problem:
            yield say(path, problem)


def build_placement(
    replicas: list[ReplicaDoc],
    instances: list[InstanceDoc],
    fleet: FleetReading | None,
    workloads: WorkloadsReading | None,
) -> Placement:
    """The domain value of entries without faults, sorted by id and by GPU."""
    known = workloads.raw if workloads is not None else {}
    found = [
        _replica(d, fleet, d.deployment not in known or _is_llm(d.deployment, workloads))
        for d in replicas
    ]
    empty = [Instance(i.gpu, placed(i, _product(i.gpu, fleet))) for i in instances]
    return Placement(
        tuple(sorted(found, key=lambda r: replica_order(r.id))),
        tuple(sorted(empty, key=lambda i: (i.gpu, i.placed))),
    )


def _is_llm(deployment: str | None, workloads: WorkloadsReading | None) -> bool:
    """Whether parallel sizes mean anything. Not asked where the deployment is not known."""
    if workloads is None or deployment not in workloads.raw:
        return False
    return workloads.raw[deployment][2].get("model") is not None


def _replica(doc: ReplicaDoc, fleet: FleetReading | None, llm: bool) -> Replica:
    gpu = _product(doc.gpus[0], fleet)
    return Replica(
        id=doc.id,
        deployment=doc.deployment,
        gpus=tuple(sorted(doc.gpus, key=replica_order)),
        mig=None if doc.mig is None else placed(doc.mig, gpu),
        share=None if doc.share is None else share_of(doc.share),
        config=config_of(doc.config, len(doc.gpus) if llm else 1),
    )


def share_of(doc: Any) -> Use:
    """A share in the solver's integers."""
    return Use(doc.memory_mib, scaled(doc.bandwidth_gbs, 1000), scaled(doc.compute_fraction, PPM))


def config_of(doc: ConfigDoc, gpus: int) -> ReplicaConfig:
    """Settings of a replica on that many GPUs; unsaid, they form one tensor-parallel group."""
    stages = doc.pipeline_parallel or 1
    return ReplicaConfig(
        engine=doc.engine,
        engine_version=doc.engine_version,
        precision=doc.precision,
        kv_precision=doc.kv_precision,
        attention=doc.attention,
        tensor_parallel=doc.tensor_parallel or max(1, gpus // stages),
        pipeline_parallel=stages,
        max_model_len=doc.max_model_len,
        max_num_seqs=doc.max_num_seqs,
        memory_fraction=doc.memory_fraction,
    )


def read_plan_as_state(
    document: RawDocument, plan: Placement, fleet: FleetReading | None
) -> tuple[StateReading, str | None]:
    """A plan's placement as what runs now; a note where the fleet lacks GPUs of it by now.

    Deployments that the workloads no longer hold are left in: they run, and are to be stopped.
    """
    reading = StateReading(fleet_name=look.text(document.value, "fleet"))
    reading.faults += _id_faults(document.value, document.fault)
    reading.faults += _held_faults(document.value, fleet, document.fault)
    if fleet is None or not fleet.sure:
        reading.placement = plan
        return reading, None

    def stands(gpu_id: str) -> bool:
        node, _, index = gpu_id.rpartition("/")
        return gpu_fault(gpu_id, node, index, fleet) is None

    replicas = tuple(r for r in plan.replicas if all(map(stands, r.gpus)))
    reading.placement = Placement(replicas, tuple(i for i in plan.instances if stands(i.gpu)))
    lost = len(plan.replicas) - len(replicas)
    if not lost:
        return reading, None
    word = "replica" if lost == 1 else "replicas"
    return reading, f"{document.file}: {lost} {word} ran on GPUs that the fleet no longer has"
