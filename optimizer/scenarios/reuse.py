"""Sizing again only what a scenario changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate, Dropped
from optimizer.domain.engine import EngineCard
from optimizer.domain.fleet import Fleet
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Placement, Replica, node_of
from optimizer.domain.workload import Deployment
from optimizer.sizing import Sizing, looked_at, size
from optimizer.sizing.rooms import products

Ways = tuple[tuple[Candidate, ...], tuple[Dropped, ...]]
Key = tuple[object, ...]


@dataclass(slots=True)
class SizedBefore:
    """Ways of running each deployment already found, by all that sizing looks at.

    Holds those of the baseline and of at most ``most`` scenarios' own deployments.
    """

    engines: Mapping[str, EngineCard]
    gpus: Mapping[str, Gpu]  # that needs were measured on
    found: dict[Key, Ways] = field(default_factory=dict)
    most: int = 10_000
    hits: int = 0

    def know(self, fleet: Fleet, deployments: Sequence[Deployment], sizing: Sizing) -> None:
        """Remember the ways of a fleet that was sized as a whole."""
        for deployment in deployments:
            offered = tuple(c for c in sizing.candidates[deployment.name] if not c.running_only)
            self.found[_key(fleet, deployment)] = (offered, sizing.dropped[deployment.name])

    def size(
        self, fleet: Fleet, deployments: Sequence[Deployment], running: Placement | None
    ) -> Sizing:
        """The same as ``sizing.size``, deployment by deployment from memory where it can be."""
        on = {node.name: node.gpu.name for node in fleet.nodes}
        replicas: dict[str, list[Replica]] = {}
        for replica in running.replicas if running is not None else ():
            replicas.setdefault(replica.deployment, []).append(replica)
        candidates: dict[str, tuple[Candidate, ...]] = {}
        dropped: dict[str, tuple[Dropped, ...]] = {}
        for deployment in deployments:
            offered, refused = self._ways(fleet, deployment)
            mine = replicas.get(deployment.name, [])
            if not all(_offered(replica, offered, on) for replica in mine):
                # Something runs in a way that nobody would be offered: sizing judges it.
                alone = size(fleet, [deployment], self.engines, Placement(tuple(mine)), self.gpus)
                offered = alone.candidates[deployment.name]
                refused = alone.dropped[deployment.name]
            candidates[deployment.name] = offered
            dropped[deployment.name] = refused
        return Sizing(candidates, dropped)

    def _ways(self, fleet: Fleet, deployment: Deployment) -> Ways:
        key = _key(fleet, deployment)
        if key in self.found:
            self.hits += 1
            return self.found[key]
        alone = size(fleet, [deployment], self.engines, gpus=self.gpus)
        ways = (alone.candidates[deployment.name], alone.dropped[deployment.name])
        if len(self.found) < self.most:
            self.found[key] = ways
        return ways


def _key(fleet: Fleet, deployment: Deployment) -> Key:
    """All that sizing looks at."""
    offered = tuple(
        (
            product.gpu,
            frozenset((n.gpus, n.sharing, n.nvlink_domain, n.network_gbs) for n in product.nodes),
        )
        for product in products(fleet, deployment.pin)
    )
    # A benchmark on a product outside the fleet can be read only while the fleet has the product.
    known = tuple(gpu.name for gpu in fleet.products()) if _measured_elsewhere(deployment) else ()
    return (deployment.name, looked_at(deployment), offered, known)


def _measured_elsewhere(deployment: Deployment) -> bool:
    return deployment.needs is not None and deployment.needs.measured_on is not None


def _offered(replica: Replica, ways: tuple[Candidate, ...], on: Mapping[str, str]) -> bool:
    product = on.get(node_of(replica.gpus[0])) if replica.gpus else None
    return product is None or any(replica.runs_as(way, product) for way in ways)
