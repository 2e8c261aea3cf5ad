"""Which candidate a replica runs as: its weights, its use and its capacity come from there."""

from optimizer.domain.config import Candidate
from optimizer.domain.placement import Replica, node_of
from optimizer.domain.prices import RoomPrices
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.verify.facts import Ground

UNKNOWN_LOAD_MIB = 1024  # weights of a replica about which nothing is known


class Matcher:
    """Answers for the replicas of one problem, alike for all rooms after the solver."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.ground = Ground.of(problem)
        self.deployments = self.ground.deployments
        self.prices = RoomPrices(problem.fleet)
        self.products = {gpu.name: gpu for gpu in problem.fleet.products()}
        # By identity, once asked: the replica, so that it lives on, how it runs, and its rate.
        self.known: dict[int, tuple[Replica, Candidate | None, int]] = {}

    def product(self, replica: Replica) -> str | None:
        """The GPU product that the replica is on; None when its node is not in the fleet."""
        node = self.ground.nodes.get(node_of(replica.gpus[0]))
        return None if node is None else node.gpu.name

    def candidate(self, replica: Replica) -> Candidate | None:
        """The candidate that the replica runs as, found as the judge finds it."""
        return self._known(replica)[1]

    def _known(self, replica: Replica) -> tuple[Replica, Candidate | None, int]:
        known = self.known.get(id(replica))
        if known is None:
            node = self.ground.nodes.get(node_of(replica.gpus[0]))
            found = None if node is None else self.ground.candidate(replica, node.gpu)
            deployment = self.deployments.get(replica.deployment)
            rate = 0
            if found is not None and deployment is not None:
                rate = capacity_mrps(deployment, found)
            known = self.known[id(replica)] = (replica, found, rate)
        return known

    def load_mib(self, replica: Replica) -> int:
        """Weights that a start of the replica must load."""
        candidate = self.candidate(replica)
        if candidate is not None:
            return candidate.load_mib
        return replica.share.memory_mib if replica.share is not None else UNKNOWN_LOAD_MIB

    def capacity_mrps(self, replica: Replica) -> int:
        """The rate it adds; zero where demand is counted in replicas or nothing is known."""
        return self._known(replica)[2]
