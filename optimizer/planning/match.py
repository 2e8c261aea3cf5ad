"""Which candidate a replica runs as: its weights, its use and its capacity come from there."""

from optimizer.domain.config import Candidate
from optimizer.domain.placement import Replica, node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.verify.facts import Ground

UNKNOWN_LOAD_MIB = 1024  # weights of a replica about which nothing is known


class Matcher:
    """Answers for the replicas of one problem, alike for all rooms after the solver."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.ground = Ground.of(problem)
        self.deployments = self.ground.deployments
        self.known: dict[int, tuple[Replica, Candidate | None]] = {}  # by identity, once asked

    def product(self, replica: Replica) -> str | None:
        """The GPU product that the replica is on; None when its node is not in the fleet."""
        node = self.ground.nodes.get(node_of(replica.gpus[0]))
        return None if node is None else node.gpu.name

    def candidate(self, replica: Replica) -> Candidate | None:
        """The candidate that the replica runs as, found as the judge finds it."""
        if id(replica) not in self.known:
            node = self.ground.nodes.get(node_of(replica.gpus[0]))
            found = None if node is None else self.ground.candidate(replica, node.gpu)
            self.known[id(replica)] = (replica, found)
        return self.known[id(replica)][1]

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
