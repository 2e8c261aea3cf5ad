"""The kind Prices: nodes that can be had, and what GPUs cost."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.documents.schema.base import (
    Amount,
    Head,
    Name,
    Positive,
    Several,
    Sharing,
    Strict,
    Text,
)

MOST_NODES = 4  # of an offer that says nothing
Percent = Annotated[float, Field(gt=0, lt=100)]


class DiscountDoc(Strict):
    """A lower price for many: for all of them, from so many on."""

    from_nodes: Several = Field(description="how many nodes it takes")
    percent: Percent = Field(description="how much less each of them costs, in percent")


class CommitmentDoc(Strict):
    """A lower price for a promise to keep the nodes; see buy --months."""

    months: Several = Field(description="for how many months")
    percent: Percent = Field(description="how much less a node costs, in percent")


class HowManyDoc(Strict):
    """How many nodes of an offer can be had."""

    min: Several = Field(1, description="none, or at least so many")
    max: Annotated[int, Field(gt=0, le=10_000)] = Field(MOST_NODES, description="so many at most")


class OfferDoc(Strict):
    """A kind of node that can be had; its price is given by GPU or by node."""

    name: Name = Field(description="a name of its own, such as h200-8")
    gpu: Text = Field(description="a GPU product such as h200-141gb-sxm")
    gpus: int = Field(gt=0, le=1024, description="how many GPUs a node has")
    price_per_gpu_hour: Amount | None = Field(None, description="price of one GPU for one hour")
    price_per_node_hour: Amount | None = Field(None, description="price of a node for one hour")
    nodes: HowManyDoc = Field(HowManyDoc.model_construct(), description="how many can be had")
    discounts: list[DiscountDoc] = Field([], description="lower prices for many")
    commitments: list[CommitmentDoc] = Field([], description="lower prices for a long time")
    rack: Text | None = Field(None, description="the rack it would stand in; default: one each")
    zone: Text | None = Field(None, description="the zone it would stand in")
    sharing: list[Sharing] | None = Field(None, min_length=1, description="mig, whole, shared")
    nvlink_domain: Text | None = Field(None, description="node, pair or none")
    network_gbs: Positive | None = Field(None, description="GB/s per direction")
    cpu_cores: Positive | None = Field(None, description="CPU cores for replicas")
    memory_gib: Positive | None = Field(None, description="host memory for replicas, GiB")
    labels: dict[str, Text] = Field({}, description="free labels, name: value")


class PricesDoc(Head):
    """A Prices document: offers for ``buy``, and prices in place of the fleet's own."""

    kind: Literal["Prices"] = Field(description="Prices")
    name: Text | None = Field(None, description="the list's name")
    source: str | None = Field(None, description="where the prices come from, and of when")
    currency: Text = Field("USD", max_length=20, description="the currency, that of the fleet")
    offers: list[OfferDoc] = Field([], description="nodes that can be had")
    gpus: dict[Text, Amount] = Field(
        {}, description="product: price of one GPU for one hour, in place of the fleet's"
    )
