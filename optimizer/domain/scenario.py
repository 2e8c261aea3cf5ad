"""Scenarios: named edits of fleet and workloads."""

from dataclasses import dataclass
from typing import Any

from optimizer.domain.fleet import Node
from optimizer.domain.workload import Deployment


@dataclass(frozen=True, slots=True)
class Lose:
    """A node, rack, zone or GPU is gone."""

    kind: str  # node | rack | zone | gpu
    name: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Demand of a deployment, a tenant or all is multiplied; replica counts asked by number too."""

    kind: str  # deployment | tenant | all
    name: str | None
    by_ppm: int


@dataclass(frozen=True, slots=True)
class AddDeployments:
    """New customers."""

    deployments: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True)
class RemoveDeployment:
    """A deployment that ends."""

    name: str


@dataclass(frozen=True, slots=True)
class AddNodes:
    """New machines."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Assign:
    """A field of one deployment or node gets another value.

    ``path`` names domain attributes, ``("slo", "tpot_ms")``; ``value`` is a domain value. A
    document's ``set`` becomes one Assign per domain attribute that it changes.
    """

    kind: str  # deployment | node
    name: str
    path: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class Forbid:
    """A GPU product, precision or engine that nobody may use."""

    kind: str  # gpu | precision | engine
    name: str


@dataclass(frozen=True, slots=True)
class PriceChange:
    """The price of a GPU product is multiplied."""

    gpu: str
    by_ppm: int


Change = Lose | Scale | AddDeployments | RemoveDeployment | AddNodes | Assign | Forbid | PriceChange


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named list of changes, made in order."""

    name: str
    changes: tuple[Change, ...]
