"""The kind Fleet: all GPUs we may use."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Choice,
    Head,
    Positive,
    Profile,
    Several,
    Sharing,
    Strict,
    Text,
)

Layouts = Annotated[str, Choice("rule for MIG layouts", ("free", "fixed"))]


class DeviceDoc(Strict):
    """What is special about one GPU of a node."""

    uuid: Text | None = Field(None, description="as nvidia-smi -L prints it")
    cordoned: bool = Field(False, description="true: nothing new may run on it")
    mig_enabled: bool | None = Field(None, description="whether MIG mode is on")
    layout: list[Profile] | None = Field(None, description="the MIG instances that stand on it")


class NodeDoc(Strict):
    """A machine, or several alike when the name holds a brace range."""

    name: Text = Field(description="a name such as h100-01, or a range such as h100-{01..04}")
    gpu: Text = Field(description="a GPU product such as h100-80gb-sxm")
    gpus: int = Field(gt=0, le=1024, description="how many GPUs the node has")
    rack: Text | None = Field(None, description="the rack it stands in")
    zone: Text | None = Field(None, description="the zone it stands in")
    price_per_gpu_hour: Amount | None = Field(None, description="price of one GPU for one hour")
    sharing: list[Sharing] | None = Field(None, min_length=1, description="mig, whole, shared")
    mig_layouts: Layouts = Field("free", description="free, or fixed: layouts may not change")
    nvlink_domain: Text | None = Field(None, description="node, pair, none, or a shared name")
    network_gbs: Positive | None = Field(
        None, description="GB/s per direction, for pipelines over nodes; unknown: no limit"
    )
    cpu_cores: Positive | None = Field(None, description="CPU cores for replicas")
    memory_gib: Positive | None = Field(None, description="host memory for replicas, GiB")
    cordoned: bool = Field(False, description="true: nothing new may run on it")
    labels: dict[str, Text] = Field({}, description="free labels, name: value")
    devices: dict[str, DeviceDoc] = Field({}, description="by nvidia-smi's index")


class ReserveDoc(Strict):
    """Room kept free on purpose."""

    count: Several = Field(1, description="how many of them")
    profile: Text | None = Field(None, description="a MIG profile such as 3g.40gb")
    gpus: Several | None = Field(None, description="whole GPUs of one node")
    gpu: Text | None = Field(None, description="a GPU product")
    labels: dict[str, Text] = Field({}, description="labels that the nodes must carry")


class LimitsDoc(Strict):
    """Ceilings over the whole plan."""

    price_per_hour: Amount | None = Field(None, description="price per hour at most")
    rack_power_kw: Positive | None = Field(None, description="kW per rack at most")


class FleetDoc(Head):
    """A Fleet document."""

    kind: Literal["Fleet"] = Field(description="Fleet")
    name: Text | None = Field(None, description="the fleet's name")
    currency: Text = Field("USD", max_length=20, description="the currency of prices")
    nodes: list[NodeDoc] = Field(min_length=1, description="the fleet's nodes")
    reserve: list[ReserveDoc] = Field([], description="room kept free on purpose")
    limits: LimitsDoc = Field(LimitsDoc.model_construct(), description="ceilings of the plan")
