"""The optimum of tiny problems by trying everything, judged by ``verify``; no solver code.

``brute_force`` walks the deployments from the highest priority down and adds one replica at a time,
at every place, in an order that reaches each set of replicas once. It leaves a branch only where
(a) a rule is broken that more replicas cannot mend,
(b) an interchangeable GPU or node that is still empty was to be passed over,
(c) a replica is not needed, be it for the demand, to outlive a loss or because it must stay,
(d) the same replicas were seen on the same GPUs with room that is cut alike, or
(e) what is already spent, and what the deployments left would miss even if each were alone, is no
    better than the best found.
``everything`` skips all but (a), to check the checker.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import MigTable, PlacedProfile
from optimizer.domain.placement import Instance, Placement, Replica, Reserved
from optimizer.domain.problem import PlacementProblem, reserve_name, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.verify import Score, objectives, verify
from optimizer.verify.facts import Facts, Ground
from optimizer.verify.fleet_rules import MONOTONE
from optimizer.verify.recount import REPARTITION_MIB, instances_by_gpu, missing, score
from optimizer.verify.rules import survive
from optimizer.verify.slots import layout_faults


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best placement, what it is worth, and how many placements were looked at."""

    score: Score
    placement: Placement
    looked_at: int


@dataclass(frozen=True, slots=True)
class Spot:
    """One way and place to run one replica. ``slices``: what it holds alone."""

    candidate: Candidate
    gpus: tuple[str, ...]
    mig: PlacedProfile | None
    slices: frozenset[tuple[str, int]]

    @property
    def group(self) -> tuple[object, ...]:
        """Candidate and GPUs: what spots share that differ in the MIG start only."""
        return (self.candidate.key, self.gpus)

    def replica(self, number: int) -> Replica:
        name = self.candidate.deployment
        share, config = self.candidate.shape.share, self.candidate.config
        return Replica(f"{name}/{number}", name, self.gpus, self.mig, share, config)


@dataclass(slots=True)
class Search:
    """A walk over the placements of one problem."""

    asked: PlacementProblem
    everything: bool = False
    problem: PlacementProblem = field(init=False)  # with room kept free as more deployments
    ground: Ground = field(init=False)
    order: list[Deployment] = field(init=False)
    spots: dict[str, list[Spot]] = field(init=False)
    twins: dict[str, object] = field(init=False)
    named: set[str] = field(init=False)
    company: set[str] = field(init=False)
    fixed: dict[str, tuple[PlacedProfile, ...]] = field(init=False)
    alone: dict[str, int] = field(default_factory=dict)
    seen: set[object] = field(default_factory=set)
    best: Score | None = None
    placement: Placement | None = None
    looked_at: int = 0

    def __post_init__(self) -> None:
        self.problem = with_reserve(self.asked)
        self.ground = Ground.of(self.problem)
        self.fixed = _fixed(self.problem)
        self.order = sorted(self.problem.deployments, key=lambda d: (-d.priority, d.name))
        self.spots = {d.name: [s for s in self._spots(d) if self._fine([s])] for d in self.order}
        self.named = _mentioned(self.problem)
        self.company = {name for d in self.problem.deployments for name in d.near}
        self.twins = _twins(self.problem, self.named)
        if not self.everything and len(self.order) > 1:
            self.alone = {d.name: self._missing_alone(d) for d in self.order}

    def _missing_alone(self, deployment: Deployment) -> int:
        single = replace(deployment, near=(), survive=None, disturb="allowed")
        found = Search(replace(self.problem, deployments=(single,))).run()
        assert found is not None, "an empty placement breaks a rule"
        return found.score.unmet_ppm[0][1]

    def run(self) -> Optimum | None:
        self._walk(0, 0, [])
        if self.best is None or self.placement is None:
            return None
        return Optimum(self.best, self.placement, self.looked_at)

    def _walk(self, position: int, first: int, chosen: list[Spot]) -> None:
        """Go on with the deployment at ``position``, from its spot ``first``."""
        if position == len(self.order):
            self._judge(chosen)
            return
        deployment = self.order[position]
        facts = self._facts(chosen)
        if not self._hopeful(facts, position) or self._been_here(position, first, chosen):
            return
        wanted = self.everything or deployment.name in self.company
        short = wanted or missing(facts, deployment).ppm or self._frail(deployment, facts)
        if short or deployment.disturb == "never":
            spots = self.spots[deployment.name]
            for index in range(first, len(spots)):
                spot = spots[index]
                if not self._leads(spot, chosen) or not (short or self._runs_today(spot)):
                    continue
                longer = [*chosen, spot]
                if self._apart(spot, chosen) and self._fine(longer):
                    again = next(i for i, s in enumerate(spots) if s.group == spot.group)
                    self._walk(position, again, longer)
        if wanted or deployment.disturb == "never" or self._needed(deployment, facts):
            self._walk(position + 1, 0, chosen)

    def _judge(self, chosen: list[Spot]) -> None:
        self.looked_at += 1
        placement = self._placement(chosen)
        found = objectives(self.asked, placement)
        if self.best is not None and found.levels >= self.best.levels:
            return
        if not verify(self.asked, placement):
            self.best, self.placement = found, placement

    def _hopeful(self, facts: Facts, position: int) -> bool:
        """Whether what is already missed and spent leaves a chance to beat the best."""
        if self.best is None or self.everything:
            return True
        now = score(facts)
        unmet = {priority: 0 for priority, _ in now.unmet_ppm}
        for index, one in enumerate(self.order):
            least = missing(facts, one).ppm if index < position else self.alone.get(one.name, 0)
            unmet[one.priority] += least
        # Room kept free is not cut before somebody comes.
        kept = sum(len(facts.replicas(d)) for d in self.order if d.reserve)
        disruption = max(0, (now.disruption_mib or 0) - REPARTITION_MIB * kept)
        least_score = replace(now, unmet_ppm=tuple(unmet.items()), disruption_mib=disruption)
        return least_score.levels < self.best.levels

    def _been_here(self, position: int, first: int, chosen: list[Spot]) -> bool:
        """Whether the same replicas took the same GPUs before and left room that is cut alike.

        On GPUs that hold something now it matters who is where; on others not even the starts.
        """
        exact = self.everything
        who = sorted(
            (s.candidate.deployment, s.group, s.mig if exact or self._mentions(s) else None)
            for s in chosen
        )
        taken: dict[str, set[int]] = {}
        for gpu, cell in (cell for spot in chosen for cell in spot.slices):
            taken.setdefault(gpu, set()).add(cell)
        cut = {
            gpu: frozenset(cells)
            if exact or gpu in self.named
            else cut_alike(self.ground.gpus[gpu].gpu.mig, frozenset(cells))
            for gpu, cells in taken.items()
        }
        key = (position, first, tuple(who), frozenset(cut.items()))
        known = key in self.seen
        self.seen.add(key)
        return known

    def _mentions(self, spot: Spot) -> bool:
        return not self.named.isdisjoint(spot.gpus)

    @staticmethod
    def _frail(deployment: Deployment, facts: Facts) -> bool:
        """Whether it still wants replicas to outlive a loss; more of them never hurt."""
        return any(v.subject == deployment.name for v in survive(facts))

    def _runs_today(self, spot: Spot) -> bool:
        """Whether a replica like this runs there now."""
        now = self.problem.current.replicas if self.problem.current else ()
        return any(_same_place(old, spot.replica(0)) for old in now)

    def _needed(self, deployment: Deployment, facts: Facts) -> bool:
        """Whether no replica of the deployment could go without loss."""
        running = facts.replicas(deployment)
        served = sum(one.capacity_mrps for one in running)
        least = min((one.capacity_mrps for one in running), default=0)
        short = len(running) - 1 < deployment.min_replicas
        if deployment.survive is not None and served >= (deployment.asked_mrps or 0):
            return True
        return not running or short or served - least < (deployment.asked_mrps or 0)

    def _leads(self, spot: Spot, chosen: list[Spot]) -> bool:
        """Whether no empty twin of an empty GPU or node that it takes is passed over."""
        if self.everything:
            return True
        touched = {gpu for other in chosen for gpu in other.gpus}
        touched |= {gpu.rpartition("/")[0] for gpu in touched}
        takes = set(spot.gpus) | {gpu.rpartition("/")[0] for gpu in spot.gpus}
        for name in takes - touched:
            for twin in self.twins:
                if twin == name:
                    break
                if self.twins[twin] == self.twins[name] and twin not in touched | takes:
                    return False
        return True

    @staticmethod
    def _apart(spot: Spot, chosen: list[Spot]) -> bool:
        return not any(spot.slices & other.slices for other in chosen)

    def _fine(self, chosen: list[Spot]) -> bool:
        facts = self._facts(chosen)
        return not any(True for rule in MONOTONE for _ in rule(facts))

    def _facts(self, chosen: list[Spot]) -> Facts:
        return Facts.on(self.ground, Placement(tuple(self._with_ids(chosen))))

    def _placement(self, chosen: list[Spot]) -> Placement:
        entries = {reserve_name(n): n for n in range(len(self.asked.fleet.reserve))}
        every = sorted(self._with_ids(chosen), key=lambda r: r.id)
        kept = tuple(
            Reserved(entries[r.deployment], r.gpus, r.mig) for r in every if r.deployment in entries
        )
        replicas = tuple(r for r in every if r.deployment not in entries)
        return Placement(replicas, tuple(self._standing(replicas)), kept)

    def _with_ids(self, chosen: list[Spot]) -> Iterator[Replica]:
        """Replicas with ids: who can stay keeps its id, the others get new numbers."""
        free = list(self.problem.current.replicas) if self.problem.current else []
        fresh = 1 + max((replica.number for replica in free), default=-1)
        for count, spot in enumerate(chosen):
            replica = spot.replica(fresh + count)
            same = next((old for old in free if _same_place(old, replica)), None)
            if same is not None:
                free.remove(same)
                replica = replace(replica, id=same.id)
            yield replica

    def _standing(self, replicas: tuple[Replica, ...]) -> Iterator[Instance]:
        """Today's instances that are in nobody's way and stay standing empty, and fixed ones."""
        today = instances_by_gpu(self.problem.current or Placement())
        today |= {gpu: set(layout) for gpu, layout in self.fixed.items()}
        for gpu, instances in sorted(today.items()):
            here = [r for r in replicas if gpu in r.gpus]
            if gpu not in self.ground.gpus or any(r.mig is None for r in here):
                continue
            layout = [r.mig for r in here if r.mig]
            for instance in sorted(instances - set(layout)):
                if not layout_faults(self.ground.gpus[gpu].gpu, [*layout, instance]):
                    layout.append(instance)
                    yield Instance(gpu, instance)

    def _spots(self, deployment: Deployment) -> Iterator[Spot]:
        for candidate in self.problem.candidates.get(deployment.name, ()):
            gpus = [g for g in self.problem.fleet.gpus() if g.gpu.name == candidate.gpu]
            for spot in _spots_of(candidate, gpus):
                kept = [self.fixed[gpu] for gpu in spot.gpus if gpu in self.fixed]
                if all(spot.mig in layout if spot.mig else not layout for layout in kept):
                    yield spot


def brute_force(problem: PlacementProblem, *, everything: bool = False) -> Optimum | None:
    """The lexicographic optimum (unmet by priority, price, disruption), or None if infeasible.

    With the rules in ``MONOTONE`` alone nothing is ever infeasible: an empty placement keeps them
    all, since demand and the least number of replicas may give way.
    """
    return Search(problem, everything).run()


def _spots_of(candidate: Candidate, gpus: list[FleetGpu]) -> Iterator[Spot]:
    sharing = candidate.shape.sharing
    if sharing is Sharing.WHOLE:
        for group in combinations(gpus, candidate.shape.gpus):
            if candidate.config.pipeline_parallel > 1 or len({g.node.name for g in group}) == 1:
                ids = tuple(g.id for g in group)
                yield Spot(candidate, ids, None, frozenset((id, c) for id in ids for c in range(8)))
        return
    for gpu in gpus:
        if sharing is Sharing.SHARED:
            yield Spot(candidate, (gpu.id,), None, frozenset())
            continue
        profile = gpu.gpu.mig.profile(candidate.shape.profile or "") if gpu.gpu.mig else None
        if profile is None:
            continue
        for start in profile.starts:
            cells = range(start, start + profile.memory_slices)
            place = PlacedProfile(start, profile.name)
            yield Spot(candidate, (gpu.id,), place, frozenset((gpu.id, c) for c in cells))


def _same_place(old: Replica, new: Replica) -> bool:
    return (
        (old.deployment, sorted(old.gpus), old.mig, old.share)
        == (new.deployment, sorted(new.gpus), new.mig, new.share)
    ) and old.config.agrees_with(new.config)


def cut_alike(table: MigTable | None, taken: frozenset[int]) -> frozenset[int]:
    """The same for all sets of memory slices that leave a GPU equally cut: the least image."""
    if table is None or not taken <= set(range(table.memory_slices)):
        return taken  # held whole
    images = (frozenset(order[cell] for cell in taken) for order in _symmetries(table))
    return min(images, key=sorted)


@cache
def _symmetries(table: MigTable) -> tuple[tuple[int, ...], ...]:
    """Orders of the memory slices under which every profile keeps its set of places.

    Made from swaps of equal blocks that do so each, over and over until nothing new comes.
    """
    places = {
        (p.name, frozenset(range(start, start + p.memory_slices)))
        for p in table.profiles
        for start in p.starts
    }
    size = table.memory_slices
    swaps = []
    for width in (1, 2, 4):
        for low, high in combinations(range(0, size - width + 1, width), 2):
            order = list(range(size))
            order[low : low + width] = range(high, high + width)
            order[high : high + width] = range(low, low + width)
            if {(name, frozenset(order[c] for c in cells)) for name, cells in places} == places:
                swaps.append(tuple(order))
    found = {tuple(range(size))}
    while True:
        longer = {tuple(swap[c] for c in order) for order in found for swap in swaps} | found
        if longer == found:
            return tuple(sorted(found))
        found = longer


def _fixed(problem: PlacementProblem) -> dict[str, tuple[PlacedProfile, ...]]:
    """What GPUs with a fixed layout hold: the fleet's word for it, or else today's."""
    today = instances_by_gpu(problem.current or Placement())
    return {
        gpu.id: tuple(today.get(gpu.id, ())) if gpu.device.layout is None else gpu.device.layout
        for gpu in problem.fleet.gpus()
        if gpu.node.layouts_fixed
    }


def _mentioned(problem: PlacementProblem) -> set[str]:
    """GPUs and nodes that a pin names or that hold something now."""
    named = {name for d in problem.deployments for name in d.pin}
    named |= {g.id for g in problem.fleet.gpus() if g.node.layouts_fixed}
    current = problem.current
    for replica in current.replicas if current else ():
        named |= {*replica.gpus, *replica.nodes}
    for instance in current.instances if current else ():
        named |= {instance.gpu, instance.gpu.rpartition("/")[0]}
    return named


def _twins(problem: PlacementProblem, named: set[str]) -> dict[str, object]:
    """What nodes and GPUs (by name and id, in fleet order) look like; equal ones are twins."""
    looks: dict[str, object] = {}
    for node in problem.fleet.nodes:
        ids = [f"{node.name}/{index}" for index in range(node.gpus)]
        plain = node.name not in named and not named & set(ids)
        looks[node.name] = replace(node, name="") if plain else node.name
        for gpu in (g for g in problem.fleet.gpus() if g.node is node):
            own = gpu.id in named or node.nvlink_domain == "pair"
            looks[gpu.id] = gpu.id if own else (node.name, replace(gpu.device, index=0))
    return looks
