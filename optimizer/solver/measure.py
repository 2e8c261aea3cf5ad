"""What a placement is worth, counted from its replicas: for answers that no formulation values."""

from collections import defaultdict
from itertools import chain

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement, Replica, node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps, missing_ppm
from optimizer.domain.units import MIB_PER_GIB
from optimizer.solver.columns import domain_of


def unmet_ppm(problem: PlacementProblem, found: Placement) -> dict[int, int]:
    """Sum of missing shares by priority, highest first."""
    sums = dict.fromkeys(sorted({d.priority for d in problem.deployments}, reverse=True), 0)
    priority = {d.name: d.priority for d in problem.deployments}
    for name, ppm in short(problem, found).items():
        sums[priority[name]] += ppm
    return sums


def short(problem: PlacementProblem, found: Placement) -> dict[str, int]:
    """The missing share of each deployment that lacks something, in millionths."""
    candidate_of = candidates_of(problem)
    served: dict[str, int] = defaultdict(int)
    count: dict[str, int] = defaultdict(int)
    names = {d.name: d for d in problem.deployments}
    for replica in found.replicas:
        candidate = candidate_of(replica)
        count[replica.deployment] += 1
        if candidate is not None:
            served[replica.deployment] += capacity_mrps(names[replica.deployment], candidate)
    missing = {d.name: missing_ppm(d, served[d.name], count[d.name]) for d in problem.deployments}
    return {name: ppm for name, ppm in missing.items() if ppm}


def price_micros(problem: PlacementProblem, found: Placement) -> int:
    """Price per hour of every GPU that holds a replica or room kept free."""
    used = {gpu for replica in found.replicas for gpu in replica.gpus}
    used |= {gpu for piece in found.reserved for gpu in piece.gpus}
    prices = {node.name: problem.fleet.price_micros(node) for node in problem.fleet.nodes}
    return sum(prices[gpu.rpartition("/")[0]] for gpu in used)


def hottest_rack_w(problem: PlacementProblem, found: Placement) -> int:
    """The TDP of the used GPUs of the rack where it is largest; an unknown TDP counts nothing."""
    used = {gpu for replica in found.replicas for gpu in replica.gpus}
    used |= {gpu for piece in found.reserved for gpu in piece.gpus}
    nodes = {node.name: node for node in problem.fleet.nodes}
    watts: dict[str, int] = defaultdict(int)
    for gpu in used:
        node = nodes[node_of(gpu)]
        watts[node.rack_domain] += node.gpu.tdp_w or 0
    return max(watts.values(), default=0)


def frail(problem: PlacementProblem, found: Placement) -> list[str]:
    """Deployments that some loss would leave short (rule ``survive``)."""
    nodes = {node.name: node for node in problem.fleet.nodes}
    candidate_of = candidates_of(problem)
    asking = {d.name: d for d in problem.deployments if d.survive and d.asked_mrps}
    served = dict.fromkeys(asking, 0)
    inside: dict[tuple[str, str], int] = {}
    for replica in found.replicas:
        d = asking.get(replica.deployment)
        candidate = candidate_of(replica) if d is not None else None
        if d is None or candidate is None:
            continue
        rate = capacity_mrps(d, candidate)
        served[d.name] += rate
        for place in {domain_of(nodes[node_of(g)], d.survive or "") for g in replica.gpus}:
            inside[d.name, place] = inside.get((d.name, place), 0) + rate
    short = (name for name, d in asking.items() if served[name] < (d.asked_mrps or 0))
    lost = (
        name
        for (name, _), gone in inside.items()
        if served[name] - gone < (asking[name].asked_mrps or 0)
    )
    return sorted(set(chain(short, lost)))


def disruption_mib(problem: PlacementProblem, found: Placement) -> int:
    """Weights that replicas which do not stay must load, and 1 GiB for each GPU cut anew."""
    current = problem.current or Placement()
    before = {r.id: r for r in current.replicas}
    candidate_of = candidates_of(problem)
    loads = 0
    for replica in found.replicas:
        candidate = candidate_of(replica)
        if candidate is not None and not _stays(replica, before.get(replica.id)):
            loads += candidate.load_mib * problem.deployment(replica.deployment).move_weight
    return loads + MIB_PER_GIB * len(_cut_anew(problem, current, found))


def starting(problem: PlacementProblem, found: Placement) -> list[Replica]:
    """Replicas for which a copy must start: where or as they run now they do not stay."""
    before = {r.id: r for r in problem.current.replicas} if problem.current is not None else {}
    return [r for r in found.replicas if not _stays(r, before.get(r.id))]


def _stays(replica: Replica, before: Replica | None) -> bool:
    return (
        before is not None
        and (before.deployment, before.mig, before.share, sorted(before.gpus))
        == (replica.deployment, replica.mig, replica.share, sorted(replica.gpus))
        and before.config.agrees_with(replica.config)
    )


def _cut_anew(problem: PlacementProblem, current: Placement, found: Placement) -> set[str]:
    today, wanted = _instances(current), _instances(found)
    said = {*today, *(gpu for replica in current.replicas for gpu in replica.gpus)}
    for gpu in problem.fleet.gpus():
        if gpu.device.layout and gpu.id not in said:
            today[gpu.id] = set(gpu.device.layout)
    cut = {gpu for gpu, placed in wanted.items() if placed - today.get(gpu, set())}
    for replica in found.replicas:
        if replica.shape.sharing is not Sharing.MIG:
            cut |= {gpu for gpu in replica.gpus if gpu in today}
    return cut


def _instances(placement: Placement) -> dict[str, set[PlacedProfile]]:
    found: dict[str, set[PlacedProfile]] = {}
    for replica in placement.replicas:
        if replica.mig is not None:
            found.setdefault(replica.gpus[0], set()).add(replica.mig)
    for instance in placement.instances:
        found.setdefault(instance.gpu, set()).add(instance.placed)
    return found


class candidates_of:  # noqa: N801
    """Answers for a replica which candidate it runs as."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.products = {node.name: node.gpu.name for node in problem.fleet.nodes}
        self.known: dict[object, Candidate | None] = {}

    def __call__(self, replica: Replica) -> Candidate | None:
        """The candidate that a replica runs as."""
        product = self.products[replica.gpus[0].rpartition("/")[0]]
        key = (replica.deployment, product, replica.shape.key, replica.config)
        if key not in self.known:
            offered = self.problem.candidates.get(replica.deployment, ())
            matching = [c for c in offered if replica.runs_as(c, product)]
            self.known[key] = min(matching, key=lambda c: c.key, default=None)
        return self.known[key]
