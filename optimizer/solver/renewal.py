"""Placements bettered: some deployments or nodes emptied, and laid anew as well as can be.

Counts that were chosen by class and dealt to nodes leave what rounding and rules cost beyond them.
Here everything that a few deployments run, or a few nodes hold, is lifted together and asked for
again beside all that stays (``anew``: every rule, exactly): first so that less is short, then for
less price. What is not better is dropped. (Large neighbourhood search: Shaw, CP 1998.)
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from time import monotonic

from optimizer.domain.config import Candidate
from optimizer.domain.placement import Placement, node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps, missing_ppm
from optimizer.solver import ear
from optimizer.solver.anew import Anew, Ground
from optimizer.solver.columns import domain_of
from optimizer.solver.formulation import total
from optimizer.solver.measure import candidates_of
from optimizer.solver.scatter import cut
from optimizer.solver.where import Seat, settle

EFFORT = 0.5  # of CP-SAT in one turn, deterministic seconds
LEAST_EFFORT = 0.05  # that a turn counts: to build its model takes time too
MOST_SEATS = 60  # lifted together
NODES_BESIDE = 6  # with free room, of each product
NODES_ALL = 32  # in fewer, all may be used
PRICE_WEIGHT = 50  # of a GPU in use beside the rooms that replicas take


def seats_of(problem: PlacementProblem, found: Placement) -> list[Seat]:
    """The seats of a placement."""
    way_of = candidates_of(problem)
    seats = []
    for replica in found.replicas:
        way = way_of(replica)
        assert way is not None  # since everything was placed as it is offered
        seats.append(Seat(replica.deployment, way, replica.gpus, replica.mig))
    return seats


class Renewal:
    """A placement that gets better turn by turn."""

    def __init__(self, problem: PlacementProblem, found: Placement) -> None:
        self.problem, self.seats = problem, seats_of(problem, found)
        self.g = Ground(problem)
        self.dice = random.Random(0)
        self.products: dict[str, list[str]] = defaultdict(list)  # by deployment
        for name, gpu in sorted(self.g.ways):
            self.products[name].append(gpu)
        self.usable = sorted({gpu.node.name for gpu in self.g.gpus.values()})
        self.lacks = self._lacks()

    def run(self, effort: float, enough: Callable[[int, int], bool], seconds: float) -> Placement:
        """Turns until the effort is spent or what is lacking and the price are ``enough``."""
        ends = monotonic() + seconds
        spent = 0.0
        while spent < effort and monotonic() < ends and not ear.heard():
            if enough(sum(self.lacks.values()), self.price()):
                break
            spent += max(LEAST_EFFORT, self._turn(ends))
        return settle(self.problem, cut(self.problem, self.seats))

    def price(self) -> int:
        """Of all GPUs in use."""
        used = {gpu for seat in self.seats for gpu in seat.gpus}
        return sum(self.g.price[node_of(gpu)] for gpu in used)

    def _lacks(self) -> dict[str, int]:
        """What each deployment lacks, also after a loss, in millionths."""
        rate: Counter[str] = Counter()
        number: Counter[str] = Counter()
        inside: dict[str, Counter[str]] = defaultdict(Counter)
        for seat in self.seats:
            d = self.g.names[seat.deployment]
            capacity = capacity_mrps(d, seat.candidate)
            rate[d.name] += capacity
            number[d.name] += 1
            if d.survive:
                nodes = {self.g.nodes[node_of(gpu)] for gpu in seat.gpus}
                inside[d.name].update(
                    dict.fromkeys({domain_of(node, d.survive) for node in nodes}, capacity)
                )
        found = {}
        for d in self.problem.deployments:
            left = rate[d.name] - max(inside[d.name].values(), default=0)
            lacks = missing_ppm(d, left, number[d.name])
            if lacks:
                found[d.name] = lacks
        return found

    def _rank(self, name: str) -> tuple[bool, int]:
        """What must be, before what may be unmet by priority."""
        d = self.g.names[name]
        return not (d.reserve or (d.survive and d.asked_mrps)), -d.priority

    # --- what is lifted ------------------------------------------------------------------------

    def _turn(self, ends: float) -> float:
        """One try; returns the effort that it took."""
        short = self._chosen_short()
        if self.dice.random() < 0.5:
            lifted = self._of_deployments(short)
        else:
            lifted = self._of_nodes(short)
        names = {self.seats[n].deployment for n in lifted} | set(short)
        if not names:
            return EFFORT
        model = Anew(
            self.g, self.seats, lifted, near=self._near(lifted, names), short=names & {*self.lacks}
        )
        return self._solve(model, lifted, ends)

    def _chosen_short(self) -> list[str]:
        if not self.lacks:
            return []
        first = min(map(self._rank, self.lacks))
        urgent = sorted(n for n in self.lacks if self._rank(n) == first and n not in self.g.tied)
        return [self.dice.choice(urgent)] if urgent else []

    def _movable(self) -> list[int]:
        return [n for n, seat in enumerate(self.seats) if self.g.movable(seat)]

    def _of_deployments(self, short: list[str]) -> set[int]:
        """All that a few deployments run, which lie on the same nodes."""
        mine: dict[str, list[int]] = defaultdict(list)
        for n in self._movable():
            mine[self.seats[n].deployment].append(n)
        if not mine:
            return set()
        names = list(short) or [self.dice.choice(sorted(mine))]
        lifted = {n for name in names for n in mine[name]}
        most = self.dice.choice((2, 3, 4, 6))
        others = sorted(set(mine) - set(names))
        self.dice.shuffle(others)
        nodes = {node_of(g) for n in lifted for g in self.seats[n].gpus}
        beside = [
            o for o in others if any(node_of(self.seats[n].gpus[0]) in nodes for n in mine[o])
        ]
        for other in [*beside, *others]:
            if len(names) >= most:
                break
            if other not in names and len(lifted) + len(mine[other]) <= MOST_SEATS:
                names.append(other)
                lifted |= set(mine[other])
        return lifted

    def _of_nodes(self, short: list[str]) -> set[int]:
        """All that a few nodes hold, and what runs there of whom is short."""
        products = {p for name in short for p in self.products[name]}
        some = [n for n in self.usable if not products or self.g.nodes[n].gpu.name in products]
        number = self.dice.choice((1, 2, 2, 3, 3, 4))
        chosen = self.dice.sample(some, min(number, len(some)))
        lifted = {
            n for n, s in enumerate(self.seats) if s.deployment in short and self.g.movable(s)
        }
        for node in chosen:
            more = {n for n in self._movable() if node_of(self.seats[n].gpus[0]) == node}
            if not lifted or len(lifted | more) <= MOST_SEATS:
                lifted |= more
        return lifted

    def _near(self, lifted: set[int], names: Iterable[str]) -> set[str] | None:
        """The nodes where they lay, and some with free room."""
        if len(self.usable) <= NODES_ALL:
            return None
        nodes = {node_of(g) for n in lifted for g in self.seats[n].gpus}
        used = Counter(node_of(g) for g in {g for s in self.seats for g in s.gpus})
        for product in sorted({p for name in names for p in self.products[name]}):
            free = [
                n
                for n in self.usable
                if self.g.nodes[n].gpu.name == product and used[n] < self.g.nodes[n].gpus
            ]
            nodes.update(self.dice.sample(free, min(NODES_BESIDE, len(free))))
        return nodes

    # --- what becomes of it --------------------------------------------------------------------

    def _solve(self, model: Anew, lifted: set[int], ends: float) -> float:
        spent = 0.0
        better = False
        ranks: dict[tuple[bool, int], list[str]] = defaultdict(list)
        for name in model.lacking:
            ranks[self._rank(name)].append(name)
        found: list[Seat] | None = None
        for _, some in sorted(ranks.items()):
            lacking = total(model.lacking[name] for name in some)
            now = sum(self.lacks[name] for name in some)
            if better is False:
                model.m.add(lacking <= now)
            laid = model.least(lacking, EFFORT, ends - monotonic())
            spent += model.spent
            if laid is None:
                if found is None:
                    return spent
                break
            found = laid
            reached = model.value(lacking)
            model.m.add(lacking <= reached)
            better |= reached < now
        goal = PRICE_WEIGHT * model.price() + total(
            round(self._room(way, spot.node.name)) * x for spot, _, way, _, x in model.lain
        )
        if not better:
            model.m.add(goal <= self._goal(lifted) - 1)
        laid = model.least(goal, EFFORT, ends - monotonic())
        spent += model.spent
        found = laid if laid is not None else (found if better else None)
        if found is not None:
            self.seats = found
            self.lacks = self._lacks()
        return spent

    def _goal(self, lifted: set[int]) -> int:
        stay = {gpu for n, s in enumerate(self.seats) if n not in lifted for gpu in s.gpus}
        freed = {gpu for n in lifted for gpu in self.seats[n].gpus} - stay
        price = sum(self.g.price[node_of(gpu)] for gpu in freed)
        seats = [self.seats[n] for n in lifted]
        return PRICE_WEIGHT * price + sum(
            round(self._room(s.candidate, node_of(s.gpus[0]))) for s in seats
        )

    def _room(self, way: Candidate, node: str) -> float:
        """The part of its GPUs' price that a replica's room is."""
        price, shape, gpu = self.g.price[node], way.shape, self.g.nodes[node].gpu
        if shape.share is not None:
            return price * max(shape.share.parts_of(gpu.room))
        profile = gpu.mig.profile(shape.profile) if gpu.mig and shape.profile else None
        if profile is not None and gpu.mig is not None:
            return price * profile.memory_slices / gpu.mig.memory_slices
        return float(price * shape.gpus)


def renewed(
    problem: PlacementProblem,
    found: Placement,
    effort: float,
    enough: Callable[[int, int], bool],
    seconds: float,
) -> Placement:
    """A placement at least as good as the one found: less short, also after a loss, or cheaper."""
    return Renewal(problem, found).run(effort, enough, seconds)


def worthwhile(problem: PlacementProblem) -> bool:
    """Whether rules look at single nodes or GPUs, of which counts by class know only sums."""
    return any(
        d.survive or d.spread_node or d.spread_rack or d.isolate != "none"
        for d in problem.deployments
    )
