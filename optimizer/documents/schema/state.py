"""The kind State: what runs now."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Fraction,
    GpuId,
    Head,
    KvPrecision,
    Name,
    Part,
    Precision,
    Profile,
    ReplicaId,
    Several,
    Strict,
    Text,
)


class ShareDoc(Strict):
    """What a replica takes of a GPU that it shares."""

    memory_mib: Several = Field(description="MiB of GPU memory")
    bandwidth_gbs: Amount = Field(0.0, description="GB/s of GPU memory bandwidth")
    compute_fraction: Fraction = Field(0.0, description="part of the GPU's compute")


class ConfigDoc(Strict):
    """Engine settings of a replica."""

    engine: Text | None = None
    engine_version: Text | None = None
    precision: Precision | None = None
    kv_precision: KvPrecision | None = None
    attention: Text | None = None
    tensor_parallel: Annotated[Several, Field(le=1024)] | None = None
    pipeline_parallel: Annotated[Several, Field(le=1024)] | None = None
    max_model_len: Several | None = None
    max_num_seqs: Several | None = None
    memory_fraction: Part | None = None


class ReplicaDoc(Strict):
    """One running copy of a deployment."""

    id: ReplicaId = Field(description="its id, <deployment>/<n>")
    deployment: Name = Field(description="the deployment it belongs to")
    gpus: list[GpuId] = Field(min_length=1, description="its GPUs, <node>/<index>")
    mig: Profile | None = Field(None, description="its MIG instance")
    share: ShareDoc | None = Field(None, description="its part of a shared GPU")
    config: ConfigDoc = Field(ConfigDoc.model_construct(), description="its engine's settings")


class InstanceDoc(Profile):
    """A MIG instance that stands empty."""

    gpu: GpuId = Field(description="a GPU, <node>/<index>")


class StateDoc(Head):
    """A State document."""

    kind: Literal["State"] = Field(description="State")
    fleet: Text | None = Field(None, description="the fleet's name")
    replicas: list[ReplicaDoc] = Field([], description="what runs")
    instances: list[InstanceDoc] = Field([], description="MIG instances that stand empty")
