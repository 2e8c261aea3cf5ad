"""Which candidate a replica runs as: its weights, its use and its capacity come from there."""

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node
from optimizer.domain.placement import Replica, node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps

UNKNOWN_LOAD_MIB = 1024  # weights of a replica about which nothing is known


class Matcher:
    """Answers for replicas of one problem; remembers, since many replicas are alike."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.nodes: dict[str, Node] = {n.name: n for n in problem.fleet.nodes}
        self.deployments = {d.name: d for d in problem.deployments}
        self._seen: dict[object, Candidate | None] = {}

    def product(self, replica: Replica) -> str | None:
        """The GPU product that the replica is on; None when its node is not in the fleet."""
        node = self.nodes.get(node_of(replica.gpus[0]))
        return None if node is None else node.gpu.name

    def candidate(self, replica: Replica) -> Candidate | None:
        """The candidate that the replica runs as: the same settings, else the first that agrees."""
        product = self.product(replica)
        key = (replica.deployment, product, replica.shape, replica.config)
        if key not in self._seen:
            self._seen[key] = None if product is None else self._find(replica, product)
        return self._seen[key]

    def _find(self, replica: Replica, product: str) -> Candidate | None:
        offered = self.problem.candidates.get(replica.deployment, ())
        fitting = [c for c in offered if replica.runs_as(c, product)]
        exact = [c for c in fitting if c.config == replica.config]
        return next(iter(exact or fitting), None)

    def load_mib(self, replica: Replica) -> int:
        """Weights that a start of the replica must load."""
        candidate = self.candidate(replica)
        if candidate is not None:
            return candidate.load_mib
        return replica.share.memory_mib if replica.share is not None else UNKNOWN_LOAD_MIB

    def capacity_mrps(self, replica: Replica) -> int:
        """The rate it adds; zero where demand is counted in replicas or nothing is known."""
        candidate = self.candidate(replica)
        deployment = self.deployments.get(replica.deployment)
        if candidate is None or deployment is None:
            return 0
        return capacity_mrps(deployment, candidate)
