"""The kind Scenarios: named edits of fleet and workloads, and families of them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from optimizer.documents.schema.base import Choice, Head, Name, Positive, Precision, Strict, Text
from optimizer.documents.schema.fleet import NodeDoc
from optimizer.documents.schema.workloads import DeploymentDoc

MOST_SCENARIOS = 100_000  # of one load, families expanded
WINDOW_S = 300.0  # of a trace, where none is said
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
PriceFactor = Annotated[float, Field(ge=0, le=1e6)]
Steps = Annotated[int, Field(gt=0, le=MOST_SCENARIOS)]
Items = Annotated[str, Choice("kind of item", ("node", "rack", "zone", "deployment", "tenant"))]


class LoseDoc(Strict):
    """What is gone: one of node, rack, zone and gpu."""

    node: Text | None = Field(None, description="a node's name")
    rack: Text | None = Field(None, description="a rack's name")
    zone: Text | None = Field(None, description="a zone's name")
    gpu: Text | None = Field(None, description="a GPU, <node>/<index>")


class WhoseDoc(Strict):
    """Whose demand: one of deployment, tenant and all."""

    deployment: Text | None = Field(None, description="a deployment's name")
    tenant: Text | None = Field(None, description="a tenant's name")
    all: Literal[True] | None = Field(None, description="true: everybody's")


class ScaleDoc(WhoseDoc):
    """Demand times a factor."""

    by: Factor = Field(description="a factor such as 2.0")


class ForbidDoc(Strict):
    """What nobody may use: one of gpu, precision and engine."""

    gpu: Text | None = Field(None, description="a GPU product")
    precision: Precision | None = Field(None, description="a precision of weights")
    engine: Text | None = Field(None, description="an engine")


class PriceDoc(Strict):
    """The price of a product times a factor."""

    gpu: Text = Field(description="a GPU product")
    by: PriceFactor = Field(description="a factor such as 0.8")


class ChangeDoc(Strict):
    """One change; exactly one field."""

    lose: LoseDoc | None = Field(None, description="a node, rack, zone or GPU that is gone")
    scale: ScaleDoc | None = Field(None, description="more or less demand")
    add_deployments: list[DeploymentDoc] | None = Field(
        None, min_length=1, description="entries as in Workloads"
    )
    remove_deployment: Name | None = Field(None, description="a deployment's name")
    add_nodes: list[NodeDoc] | None = Field(None, min_length=1, description="entries as in Fleet")
    set: dict[str, Any] | None = Field(
        None, min_length=1, description="deployments.NAME.FIELD or nodes.NAME.FIELD: value"
    )
    forbid: ForbidDoc | None = Field(None, description="a GPU product, precision or engine")
    price: PriceDoc | None = Field(None, description="a change of price")


class ScenarioDoc(Strict):
    """A named list of changes, made in order."""

    name: Text = Field(description="a name of its own")
    changes: list[ChangeDoc] = Field(min_length=1, description="the changes, in order")


class ScaleFamilyDoc(WhoseDoc):
    """Factors from one to another, evenly."""

    from_: Factor = Field(alias="from", description="the first factor")
    to: Factor = Field(description="the last factor")
    steps: Steps = Field(description="how many scenarios")


class AxisDoc(WhoseDoc):
    """One parameter of a grid, from one value to another or through a list of values.

    Of deployment, tenant, all (their demand), price and set, one.
    """

    price: Text | None = Field(None, description="a GPU product, whose price is multiplied")
    set: Text | None = Field(
        None, description="a field such as deployments.chat.slo.tpot_ms, which gets the values"
    )
    from_: float | None = Field(None, alias="from", description="the first factor or value")
    to: float | None = Field(None, description="the last one")
    steps: Steps | None = Field(None, description="how many, evenly")
    values: list[Any] | None = Field(
        None, min_length=1, max_length=MOST_SCENARIOS, description="factors or values, one by one"
    )


class RandomDemandDoc(Strict):
    """Each deployment's demand times a random factor: lognormal, or a trace's rate over its mean.

    Of sigma and trace, one.
    """

    seed: Annotated[int, Field(ge=0, le=2**63)] = Field(description="a whole number")
    count: Steps = Field(description="how many scenarios")
    sigma: Annotated[float, Field(gt=0, le=3)] | None = Field(
        None, description="the standard deviation of the factor's logarithm, such as 0.3"
    )
    trace: Text | None = Field(
        None, description="a Trace document: its name among the documents, or its file"
    )
    window_seconds: Positive = Field(WINDOW_S, description="length of the trace's windows")
    together: bool = Field(
        False, description="true: one draw for all deployments; false: one for each"
    )


class FamilyDoc(Strict):
    """Many scenarios in one entry: for_each, scale, grid, random_demand, or several of them.

    Of several, each step of one goes with each of the others; changes are made to all.
    """

    name: Text = Field(description="a name of its own")
    for_each: Items | None = Field(None, description="node, rack, zone, deployment or tenant")
    changes: list[ChangeDoc] | None = Field(
        None, min_length=1, description='made first to all; "{item}" is replaced'
    )
    scale: ScaleFamilyDoc | None = Field(None, description="demand, scaled step by step")
    grid: list[AxisDoc] | None = Field(
        None, min_length=1, max_length=3, description="parameters, each step with each"
    )
    random_demand: RandomDemandDoc | None = Field(None, description="seeded random demand")


class OutlineDoc(Head):
    """A Scenarios document whose entries are judged one by one."""

    name: Text | None = Field(None, description="the set's name")
    scenarios: list[Any] = Field([], description="the scenarios")
    families: list[Any] = Field([], description="families of scenarios")


class ScenariosDoc(Head):
    """A Scenarios document."""

    kind: Literal["Scenarios"] = Field(description="Scenarios")
    name: Text | None = Field(None, description="the set's name")
    scenarios: list[ScenarioDoc] = Field([], description="the scenarios")
    families: list[FamilyDoc] = Field([], description="families of scenarios")
