"""The kind Workloads: what customers ask for."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Choice,
    Count,
    Fraction,
    Head,
    KvPrecision,
    Name,
    Part,
    Positive,
    Precision,
    Several,
    Sharing,
    Strict,
    Text,
)

Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
ParallelSize = Annotated[int, Field(gt=0, le=1024)]
Domain = Annotated[str, Choice("failure domain", ("node", "rack", "zone"))]
Isolation = Annotated[str, Choice("isolation", ("none", "tenant", "gpu", "node"))]
Disturbance = Annotated[str, Choice("rule for moves", ("allowed", "avoid", "never"))]


class DemandDoc(Strict):
    """Traffic; token counts are means."""

    requests_per_second: Positive = Field(description="mean requests per second")
    input_tokens: Annotated[Tokens, Field(gt=0)] | None = Field(
        None, description="mean tokens of a prompt"
    )
    output_tokens: Tokens | None = Field(None, description="mean tokens of an answer")
    max_context_tokens: Annotated[Tokens, Field(gt=0)] | None = Field(
        None, description="longest prompt and answer together"
    )
    arrival_cv: Annotated[Amount, Field(le=100)] = Field(
        1.0, description="coefficient of variation between arrivals; 1 is Poisson"
    )
    peak_factor: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.0, description="peak over mean rate"
    )
    prefix_hit_rate: Fraction = Field(0.0, description="part of prompt tokens found in cache")
    length_cv: Annotated[Amount, Field(le=100)] = Field(
        0.0, description="coefficient of variation of lengths"
    )


class SloDoc(Strict):
    """Latency promised at a percentile."""

    ttft_ms: Positive | None = Field(None, description="time to first token, ms")
    tpot_ms: Positive | None = Field(None, description="time per output token, ms")
    percentile: Annotated[float, Field(gt=0, lt=100)] = Field(95, description="such as 95")


class AllowDoc(Strict):
    """What a deployment may use."""

    precisions: list[Precision] | None = Field(None, min_length=1)
    kv_precisions: list[KvPrecision] | None = Field(None, min_length=1)
    attention: list[Text] | None = Field(None, min_length=1)
    engines: list[Text] | None = Field(None, min_length=1)
    gpus: list[Text] | None = Field(None, min_length=1)
    sharing: list[Sharing] | None = Field(None, min_length=1)
    tensor_parallel: list[ParallelSize] = Field([1, 2, 4, 8], min_length=1)
    pipeline_parallel: list[ParallelSize] = Field(
        [1], min_length=1, description="stages; each of tensor_parallel GPUs, in any nodes"
    )


class LoraDoc(Strict):
    """Adapters that stay loaded."""

    count: Several = Field(description="adapters loaded at once")
    rank: Several = Field(description="the rank of each")


class ExtrasDoc(Strict):
    """Residents beside weights and KV cache."""

    lora: LoraDoc | None = Field(None, description="adapters that stay loaded")
    draft_model: Text | None = Field(None, description="a model that drafts for this one")
    other_mib: Count = Field(0, description="anything else, MiB")
    prefix_cache_tokens: Count = Field(0, description="KV cache kept for shared prefixes, tokens")


class HostDoc(Strict):
    """What one replica takes of its node."""

    cpu_cores: Amount = Field(0.0, description="CPU cores per replica")
    memory_gib: Amount = Field(0.0, description="host memory per replica, GiB")


class ReplicasDoc(Strict):
    """How many replicas may run."""

    min: Count = Field(1, description="replicas at least")
    max: Several | None = Field(None, description="replicas at most")


class SpreadDoc(Strict):
    """At most so many replicas in one failure domain."""

    node: Several | None = Field(None, description="replicas on one node at most")
    rack: Several | None = Field(None, description="replicas in one rack at most")


class NeedsDoc(Strict):
    """What one replica takes on the GPU, for what is not an LLM."""

    memory_gib: Positive | None = Field(None, description="GiB on the GPU")
    bandwidth_gbs: Amount | None = Field(None, description="GB/s of GPU memory bandwidth")
    compute_fraction: Fraction | None = Field(None, description="part of the GPU's compute")
    measured_on: Text | None = Field(None, description="the product it was measured on")
    mig_profile: Text | None = Field(None, description="a MIG profile such as 2g.20gb")
    gpus: Annotated[Several, Field(le=1024)] | None = Field(None, description="whole GPUs")
    gpu_fraction: Part | None = Field(None, description="part of one GPU")


class MeasuredDoc(Strict):
    """A way to run a replica whose capacity was measured."""

    gpu: Text = Field(description="a GPU product such as a100-80gb-sxm")
    requests_per_second: Positive = Field(description="what one replica served")
    mig_profile: Text | None = Field(None, description="a MIG profile such as 1g.10gb")
    gpus: Annotated[Several, Field(le=1024)] | None = Field(None, description="whole GPUs")
    latency_ms: Positive | None = Field(None, description="latency at that rate")


class DeploymentDoc(Strict):
    """One served model with one SLO and one demand."""

    name: Name = Field(description="a name of its own")
    tenant: Text = Field("default", description="who pays")
    model: Text | None = Field(None, description="a model such as llama-3.1-8b")
    needs: NeedsDoc | None = Field(None, description="what a replica takes that is not an LLM")
    measured: list[MeasuredDoc] | None = Field(
        None, min_length=1, description="ways to run it with known capacity"
    )
    demand: DemandDoc | None = Field(None, description="its traffic")
    slo: SloDoc | None = Field(None, description="the latency promised")
    allow: AllowDoc = Field(AllowDoc.model_construct(), description="what it may use")
    extras: ExtrasDoc = Field(ExtrasDoc.model_construct(), description="other residents")
    host: HostDoc = Field(HostDoc.model_construct(), description="CPU and memory per replica")
    replicas: ReplicasDoc = Field(ReplicasDoc.model_construct(), description="how many may run")
    spread: SpreadDoc = Field(SpreadDoc.model_construct(), description="replicas per domain")
    survive: Domain | None = Field(None, description="node, rack or zone whose loss it outlives")
    isolate: Isolation = Field("none", description="none, tenant, gpu or node")
    avoid: list[Text] = Field([], description="deployments never on one GPU with it")
    near: list[Text] = Field([], description="deployments on each of its nodes")
    pin: list[Text] = Field([], description="nodes or GPUs where alone it may run")
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = Field(
        0, description="higher is served first"
    )
    disturb: Disturbance = Field("allowed", description="allowed, avoid or never")


class WorkloadsDoc(Head):
    """A Workloads document."""

    kind: Literal["Workloads"] = Field(description="Workloads")
    name: Text | None = Field(None, description="the set's name")
    deployments: list[DeploymentDoc] = Field(description="the deployments")
