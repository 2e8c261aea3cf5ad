"""Deployments to the domain, with everything that is wrong in them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optimizer.documents import look
from optimizer.documents.catalogue import Catalogue, names_checkpoint
from optimizer.documents.contradictions import contradictions
from optimizer.documents.faults import Fault, Path, shown, unknown, way_out
from optimizer.documents.fleets import FleetReading, place_fault, unknown_product
from optimizer.documents.reading import RawDocument
from optimizer.documents.schema.workloads import DeploymentDoc, MeasuredDoc, NeedsDoc, WorkloadsDoc
from optimizer.documents.wording import complaints
from optimizer.domain.model import ServedModel
from optimizer.domain.units import MIB_PER_GIB, PPM, scaled, scaled_down, scaled_up
from optimizer.domain.workload import (
    Allow,
    Demand,
    Deployment,
    Extras,
    MeasuredOption,
    Needs,
    Slo,
    Workloads,
)

Say = Callable[..., Fault]

# Engines that cards exist for, or will.
ENGINES = ("vllm", "sglang", "tensorrt-llm", "tgi")
# Attention kernels beside those that engine cards name.
ATTENTION = ("flash-2", "flash-3", "flash-mla", "flashinfer", "paged")
_MODEL_ONLY = (
    *("allow.precisions", "allow.kv_precisions", "allow.attention", "allow.engines"),
    *("allow.tensor_parallel", "allow.pipeline_parallel"),
    *("extras.lora", "extras.draft_model", "extras.other_mib"),
    "extras.prefix_cache_tokens",
)


@dataclass(slots=True)
class Surroundings:
    """What a deployment may refer to. ``fleet`` None: no fleet was given."""

    catalogue: Catalogue
    fleet: FleetReading | None
    deployments: frozenset[str] = frozenset()
    deployments_sure: bool = True


@dataclass(slots=True)
class WorkloadsReading:
    """All Workloads documents merged, or as much of them as can be told."""

    faults: list[Fault] = field(default_factory=list)
    raw: dict[str, tuple[RawDocument, Path, dict[str, Any]]] = field(default_factory=dict)
    sure: bool = True
    workloads: Workloads | None = None

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants named anywhere, sorted."""
        found = {look.text(r, "tenant") or "default" for _, _, r in self.raw.values()}
        return tuple(sorted(found))


def read_workloads(
    documents: list[RawDocument],
    catalogue: Catalogue,
    fleet: FleetReading | None,
    apart: bool = False,
) -> WorkloadsReading:
    """The deployments of all documents, in order of documents, and their faults.

    ``apart``: they may speak of others that are not among these.
    """
    reading = WorkloadsReading()
    entries = [
        (document, path, entry)
        for document in documents
        for path, entry in look.each(document.value, "deployments[]")
    ]
    for document in documents:
        for path, message, key in complaints(WorkloadsDoc, document.value):
            reading.faults.append(document.fault(path, message, key=key))
    for document, path, entry in entries:
        _note_name(reading, document, path, entry)
    around = Surroundings(catalogue, fleet, frozenset(reading.raw), reading.sure and not apart)
    for document, path, entry in entries:
        if isinstance(entry, dict):
            reading.faults += deployment_faults(entry, around, _sayer(document, path))
    if not reading.faults:
        reading.workloads = _build(documents, catalogue)
    return reading


def _sayer(document: RawDocument, base: Path) -> Say:
    def say(path: Path, message: str, *, key: bool = False) -> Fault:
        return document.fault((*base, *path), message, key=key)

    return say


def _note_name(reading: WorkloadsReading, document: RawDocument, path: Path, entry: Any) -> None:
    name = look.text(entry, "name")
    if name is None:
        reading.sure = False
        return
    if name in reading.raw:
        first, where, _ = reading.raw[name]
        place = f"line {first.line((*where, 'name'))}"
        if first.file != document.file:
            place = f"{first.file}:{first.line((*where, 'name'))}"
        message = f'deployment "{shown(name)}" is named at {place} already; rename one'
        reading.faults.append(document.fault((*path, "name"), message))
        return
    reading.raw[name] = (document, path, entry)


def deployment_faults(raw: dict[str, Any], around: Surroundings, say: Say) -> Iterator[Fault]:
    """What a schema cannot see in one deployment."""
    yield from contradictions(raw, say)
    yield from _model_faults(raw, around.catalogue, say)
    for pattern in ("allow.gpus[]", "measured[].gpu", "needs.measured_on"):
        for path, name in look.texts(raw, pattern):
            if around.catalogue.gpu(name) is None:
                yield say(path, unknown_product(name, around.catalogue))
    yield from _engine_faults(raw, around.catalogue, say)
    yield from _profile_faults(raw, around, say)
    yield from _neighbour_faults(raw, around, say)
    if around.fleet is not None and around.fleet.sure:
        for path, name in look.texts(raw, "pin[]"):
            problem = place_fault(name, around.fleet)
            if problem:
                yield say(path, problem)


def _model_faults(raw: dict[str, Any], catalogue: Catalogue, say: Say) -> Iterator[Fault]:
    for pattern in ("model", "extras.draft_model"):
        for path, name in look.texts(raw, pattern):
            problem = model_fault(name, catalogue)
            if problem:
                yield say(path, problem)
    found = catalogue.model(str(raw.get("model"))) if isinstance(raw.get("model"), str) else None
    if found is None:
        return
    served, precision = found
    allowed = [p for _, p in look.texts(raw, "allow.precisions[]")]
    if precision is not None and allowed and precision not in allowed:
        message = f"leaves out {precision}, which is what {raw['model']} is quantised to"
        yield say(("allow", "precisions"), f"{message}; add it, or name {served.name}")
    yield from _token_faults(raw, served, say)
    slo = raw.get("slo")
    if served.task == "embed" and isinstance(slo, dict) and slo.get("tpot_ms") is not None:
        message = f"{served.name} embeds and writes no output tokens; limit ttft_ms"
        yield say(("slo", "tpot_ms"), message, key=True)


def model_fault(name: str, catalogue: Catalogue) -> str | None:
    """Why a name is no model, or None."""
    if names_checkpoint(name):
        return catalogue.checkpoint_fault(name)
    if catalogue.model(name) is not None:
        return None
    names = catalogue.models.names()
    if name in names:
        return f'the card of "{name}" has faults; mend those first'
    message = unknown("model", name, names)
    return message if "did you mean" in message else unknown_among(name, catalogue)


def unknown_among(name: str, catalogue: Catalogue) -> str:
    """An unknown model, compared with every alias too."""
    hint = way_out(name, catalogue.models.spellings())
    if hint.startswith("did you mean"):
        return f'no model "{shown(name)}"; {hint}'
    return f'no model "{shown(name)}"; "fleetslice catalogue models" lists those known'


def _token_faults(raw: dict[str, Any], served: ServedModel, say: Say) -> Iterator[Fault]:
    """Without lengths, nothing can be said about memory or speed."""
    demand = raw.get("demand")
    if not isinstance(demand, dict):
        return
    if demand.get("input_tokens") is None:
        yield say(("demand", "input_tokens"), "is missing; give the mean tokens of a prompt")
    yield from _context_faults(demand, served, say)
    if served.task == "embed":
        return
    if demand.get("output_tokens") is None:
        yield say(("demand", "output_tokens"), "is missing; give the mean tokens of an answer")
    elif demand.get("output_tokens") == 0:
        yield say(("demand", "output_tokens"), "must be above 0, got 0")


def _context_faults(demand: dict[str, Any], served: ServedModel, say: Say) -> Iterator[Fault]:
    """No context is longer than the model was trained for."""
    most = served.max_position_embeddings
    longest = look.whole(demand, "max_context_tokens")
    if most is not None and longest is not None and longest > most:
        message = f"{served.name} takes contexts of at most {most} tokens, got {longest}"
        yield say(("demand", "max_context_tokens"), message)
        return
    given = look.whole(demand, "input_tokens") or 0
    mean = given + (look.whole(demand, "output_tokens") or 0)
    if most is not None and mean > most:
        message = (
            f"{served.name} takes contexts of at most {most} tokens, "
            f"but input_tokens + output_tokens = {mean}"
        )
        yield say(("demand", "input_tokens"), message)


def _engine_faults(raw: dict[str, Any], catalogue: Catalogue, say: Say) -> Iterator[Fault]:
    if raw.get("model") is None:
        for pattern in _MODEL_ONLY:
            if look.given(raw, pattern):
                where = tuple(pattern.split("."))
                yield say(where, 'speaks of an LLM; it goes with "model" only', key=True)
        return
    for path, name in look.texts(raw, "allow.engines[]"):
        if name not in ENGINES and catalogue.engines.find(name) is None:
            yield say(path, unknown("engine", name, [*ENGINES, *catalogue.engines.names()]))
    for path, name in look.texts(raw, "allow.attention[]"):
        problem = attention_fault(name, catalogue)
        if problem:
            yield say(path, problem)


def attention_fault(name: str, catalogue: Catalogue) -> str | None:
    """Why a name is no attention kernel, or None."""
    if name in ATTENTION:
        return None
    known = set(ATTENTION)
    cards = map(catalogue.engines.get, catalogue.engines.names())  # a faulty one is told elsewhere
    for engine in filter(None, cards):
        known.update(k for row in engine.attention for k in row.attention)
    return None if name in known else unknown("attention kernel", name, sorted(known))


def _profile_faults(raw: dict[str, Any], around: Surroundings, say: Say) -> Iterator[Fault]:
    for path, entry in look.each(raw, "measured[]"):
        gpu = around.catalogue.gpu(look.text(entry, "gpu") or "")
        profile = look.text(entry, "mig_profile")
        if gpu is None or profile is None:
            continue
        if gpu.mig is None:
            yield say((*path, "mig_profile"), f"{gpu.name} has no MIG; leave it out")
        elif gpu.mig.profile(profile) is None:
            names = [p.name for p in gpu.mig.profiles]
            message = f"on {gpu.name}: {unknown('MIG profile', profile, names)}"
            yield say((*path, "mig_profile"), message)
    profile = look.text(raw, "needs.mig_profile")
    fleet = around.fleet
    if profile is None or fleet is None or not fleet.products_sure:
        return
    tables = [g.mig for g in fleet.products.values() if g.mig is not None]
    if not tables:
        yield say(("needs", "mig_profile"), "no product of the fleet has MIG; add a node that has")
    elif not any(t.profile(profile) for t in tables):
        names = [p.name for t in tables for p in t.profiles]
        message = unknown("MIG profile", profile, names)
        yield say(("needs", "mig_profile"), f"no product of the fleet has it: {message}")


def _neighbour_faults(raw: dict[str, Any], around: Surroundings, say: Say) -> Iterator[Fault]:
    mine = look.text(raw, "name")
    for pattern in ("avoid[]", "near[]"):
        for path, name in look.texts(raw, pattern):
            if name == mine:
                yield say(path, "is the deployment itself; leave it out")
            elif name not in around.deployments and around.deployments_sure:
                yield say(path, unknown("deployment", name, sorted(around.deployments)))


def _build(documents: list[RawDocument], catalogue: Catalogue) -> Workloads | None:
    if not documents:
        return None
    docs = [WorkloadsDoc.model_validate(d.value) for d in documents]
    name = "+".join(dict.fromkeys(d.name for d in docs if d.name)) or "workloads"
    found = tuple(build_deployment(d, catalogue) for doc in docs for d in doc.deployments)
    return Workloads(name, found)


def build_deployment(doc: DeploymentDoc, catalogue: Catalogue) -> Deployment:
    """The domain value of an entry without faults."""
    found = catalogue.model(doc.model) if doc.model is not None else None
    model, precision = found if found is not None else (None, None)
    return Deployment(
        name=doc.name,
        tenant=doc.tenant,
        model=model,
        precision=precision,
        needs=None if doc.needs is None else _needs(doc.needs, catalogue),
        measured=tuple(_measured(m, catalogue) for m in doc.measured or ()),
        demand=_demand(doc),
        slo=_slo(doc),
        allow=_allow(doc, catalogue),
        extras=_extras(doc, catalogue),
        host_cpu_millicores=scaled_up(doc.host.cpu_cores, 1000),
        host_memory_mib=scaled_up(doc.host.memory_gib, MIB_PER_GIB),
        min_replicas=doc.replicas.min,
        max_replicas=doc.replicas.max,
        spread_node=doc.spread.node,
        spread_rack=doc.spread.rack,
        survive=doc.survive,
        isolate=doc.isolate,
        avoid=tuple(dict.fromkeys(doc.avoid)),
        near=tuple(dict.fromkeys(doc.near)),
        pin=tuple(dict.fromkeys(doc.pin)),
        priority=doc.priority,
        disturb=doc.disturb,
    )


def _demand(doc: DeploymentDoc) -> Demand | None:
    demand = doc.demand
    if demand is None:
        return None
    return Demand(
        rate_mrps=scaled_up(demand.requests_per_second, 1000),
        input_tokens=demand.input_tokens,
        output_tokens=demand.output_tokens,
        max_context_tokens=demand.max_context_tokens,
        arrival_cv=demand.arrival_cv,
        peak_factor_ppm=scaled_up(demand.peak_factor, PPM),
        prefix_hit_rate=demand.prefix_hit_rate,
        length_cv=demand.length_cv,
    )


def _slo(doc: DeploymentDoc) -> Slo | None:
    if doc.slo is None:
        return None
    return Slo(doc.slo.ttft_ms, doc.slo.tpot_ms, doc.slo.percentile)


def _allow(doc: DeploymentDoc, catalogue: Catalogue) -> Allow:
    allow = doc.allow
    return Allow(
        precisions=_once(allow.precisions),
        kv_precisions=_once(allow.kv_precisions),
        attention=_once(allow.attention),
        engines=_once([engine_name(e, catalogue) for e in allow.engines or ()] or None),
        gpus=_once([product_name(g, catalogue) for g in allow.gpus or ()] or None),
        sharing=_once(allow.sharing),
        tensor_parallel=tuple(sorted(set(allow.tensor_parallel))),
        pipeline_parallel=tuple(sorted(set(allow.pipeline_parallel))),
    )


def _once(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(dict.fromkeys(names))


def product_name(spelling: str, catalogue: Catalogue) -> str:
    """The key of a product however it was spelled."""
    gpu = catalogue.gpu(spelling)
    return spelling if gpu is None else gpu.name


def engine_name(spelling: str, catalogue: Catalogue) -> str:
    """An engine's own name however it was spelled."""
    if spelling in ENGINES:
        return spelling
    card = catalogue.engines.find(spelling)
    return spelling if card is None else card.name


def _extras(doc: DeploymentDoc, catalogue: Catalogue) -> Extras:
    extras = doc.extras
    draft = catalogue.model(extras.draft_model) if extras.draft_model is not None else None
    return Extras(
        lora_count=extras.lora.count if extras.lora else 0,
        lora_rank=extras.lora.rank if extras.lora else 0,
        draft_model=draft[0] if draft else None,
        other_mib=extras.other_mib,
        prefix_cache_tokens=extras.prefix_cache_tokens,
    )


def _needs(doc: NeedsDoc, catalogue: Catalogue) -> Needs:
    memory = doc.memory_gib
    return Needs(
        memory_mib=None if memory is None else scaled_up(memory, MIB_PER_GIB),
        bandwidth_mbs=scaled_up(doc.bandwidth_gbs or 0, 1000),
        compute_ppm=scaled_up(doc.compute_fraction or 0, PPM),
        measured_on=product_name(doc.measured_on, catalogue) if doc.measured_on else None,
        mig_profile=doc.mig_profile,
        gpus=doc.gpus,
        gpu_ppm=None if doc.gpu_fraction is None else scaled(doc.gpu_fraction, PPM),
    )


def _measured(doc: MeasuredDoc, catalogue: Catalogue) -> MeasuredOption:
    gpu = catalogue.gpu(doc.gpu)
    profile = gpu.mig.profile(doc.mig_profile) if gpu and gpu.mig and doc.mig_profile else None
    return MeasuredOption(
        gpu=gpu.name if gpu else doc.gpu,
        rate_mrps=scaled_down(doc.requests_per_second, 1000),
        mig_profile=profile.name if profile else doc.mig_profile,
        gpus=doc.gpus or 1,
        latency_ms=doc.latency_ms,
    )
