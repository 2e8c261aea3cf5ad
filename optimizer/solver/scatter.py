"""Replicas moved apart on large fleets: exchanges between nodes until a loss takes little enough.

The counts are given and so are the GPUs in use. What is left to choose is who lies beside whom: a
replica takes a free place of its size or changes with another, one GPU's replicas change with
another's, a group with as many GPUs of a node. Each exchange leaves fewer replicas too many
somewhere (rules ``spread`` and ``survive``) and breaks nothing else.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from optimizer.domain.fleet import FleetGpu, Node, Sharing
from optimizer.domain.gpu import MigTable, PlacedProfile, Use
from optimizer.domain.placement import node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import ceil_div
from optimizer.solver.columns import colours, cordon, domain_of, fixed_layout, pin
from optimizer.solver.where import Seat, layout

MOST_ROUNDS = 40
LATER = -1  # for the start of a MIG instance: found in the end
MOST_TRIED = 400  # GPUs that a replica looks at in a round
Exchange = dict[int, tuple[str, ...]]  # new GPUs by the number of a seat


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many replicas, or thousandths of requests per second, in one domain."""

    kind: str  # node, rack or zone
    most: int
    least_rate: int | None = None  # of one replica, where rates are limited

    def excess(self, held: int) -> int:
        """Replicas too many in a domain that holds so much."""
        over = max(0, held - self.most)
        return over if self.least_rate is None else ceil_div(over, self.least_rate)


def limits(problem: PlacementProblem, seats: Iterable[Seat]) -> dict[str, list[Limit]]:
    """What rules ``spread`` and ``survive`` let deployments have in one domain."""
    rates: dict[str, list[int]] = defaultdict(list)
    names = {d.name: d for d in problem.deployments}
    for seat in seats:
        rates[seat.deployment].append(capacity_mrps(names[seat.deployment], seat.candidate))
    found: dict[str, list[Limit]] = {}
    for d in problem.deployments:
        mine = []
        if d.spread_node is not None:
            mine.append(Limit("node", d.spread_node))
        if d.spread_rack is not None:
            mine.append(Limit("rack", d.spread_rack))
        if d.survive and d.asked_mrps and any(rates[d.name]):
            least = min(rate for rate in rates[d.name] if rate)
            mine.append(Limit(d.survive, sum(rates[d.name]) - d.asked_mrps, least))
        if mine:
            found[d.name] = mine
    return found


def scattered(problem: PlacementProblem, seats: list[Seat]) -> list[Seat]:
    """The seats with as few replicas too many in one domain as exchanges lead to.

    Those beyond ``spread`` are left out then.
    """
    found = limits(problem, seats)
    if not found:
        return seats
    scatter = _Scatter(problem, seats, found)
    scatter.run()
    return scatter.result()


class _Scatter:
    """Seats under exchange, with what each domain holds of each deployment."""

    def __init__(
        self, problem: PlacementProblem, seats: list[Seat], limited: dict[str, list[Limit]]
    ) -> None:
        self.problem, self.seats, self.limits = problem, seats, limited
        self.names = {d.name: d for d in problem.deployments}
        self.nodes = {n.name: n for n in problem.fleet.nodes}
        self.gpus = {g.id: g for g in problem.fleet.gpus() if cordon(g)}
        self.fixed = fixed_layout(problem)
        self.colours = {name: frozenset(some) for name, some in colours(problem).items()}
        self.on: dict[str, list[int]] = {id: [] for id in self.gpus}
        self.lies = [seat.gpus for seat in seats]
        self.held: Counter[tuple[str, int, str]] = Counter()
        for number in range(len(seats)):
            self._count(number, 1)
        self.alike: dict[object, list[str]] = defaultdict(list)
        for id, gpu in self.gpus.items():
            self.alike[self._kind(gpu)].append(id)
        near = {d.name for d in problem.deployments if d.near}
        self.tied = near | {name for d in problem.deployments for name in d.near}
        self.dice = random.Random(0)
        self.touched: set[str] = set()

    def _kind(self, gpu: FleetGpu) -> object:
        """GPUs between which replicas may change places at no cost."""
        node = gpu.node
        price = self.problem.fleet.price_micros(node)
        return (gpu.gpu.name, price, node.sharing, node.nvlink_domain, self.fixed.get(gpu.id))

    def _nodes(self, number: int) -> list[Node]:
        return [self.nodes[n] for n in sorted({node_of(g) for g in self.lies[number]})]

    def _count(self, number: int, sign: int) -> None:
        """Count a seat in where it lies, or out."""
        seat = self.seats[number]
        for id in self.lies[number]:
            if sign > 0:
                self.on[id].append(number)
            else:
                self.on[id].remove(number)
        rate = capacity_mrps(self.names[seat.deployment], seat.candidate)
        for at, limit in enumerate(self.limits.get(seat.deployment, ())):
            for domain in {domain_of(node, limit.kind) for node in self._nodes(number)}:
                size = 1 if limit.least_rate is None else rate
                self.held[seat.deployment, at, domain] += sign * size

    def excess(self, names: Iterable[str], nodes: Iterable[Node]) -> int:
        """Replicas of these deployments too many in the domains of these nodes."""
        found, where = 0, list(nodes)
        for name in sorted(set(names)):
            for at, limit in enumerate(self.limits.get(name, ())):
                for domain in {domain_of(node, limit.kind) for node in where}:
                    found += limit.excess(self.held[name, at, domain])
        return found

    def crowded(self, number: int) -> bool:
        """Whether too many of its deployment lie in a domain that it lies in."""
        return self.excess([self.seats[number].deployment], self._nodes(number)) > 0

    def run(self) -> None:
        """Exchanges until nobody is crowded or none helps."""
        for _ in range(MOST_ROUNDS):
            crowded = [n for n in range(len(self.seats)) if self.crowded(n)]
            helped = [n for n in crowded if self.crowded(n) and self._improved(n)]
            if not helped:
                return

    def _improved(self, number: int) -> bool:
        """Make the first exchange found that leaves fewer too many."""
        return any(self._takes(exchange) for exchange in self._exchanges(number))

    def _exchanges(self, number: int) -> Iterator[Exchange]:
        here = self.lies[number]
        if len(self._nodes(number)) > 1:
            return  # a pipeline over nodes stays
        alike = self.alike[self._kind(self.gpus[here[0]])]
        if len(here) > 1:
            yield from self._of_groups(number, alike)
            return
        others = [id for id in alike if node_of(id) != node_of(here[0])]
        for other in self.dice.sample(others, min(MOST_TRIED, len(others))):
            yield from self._of_gpus(number, here[0], other)
        yield from self._for_groups(here[0], alike)

    def _of_gpus(self, number: int, here: str, other: str) -> Iterator[Exchange]:
        """With a GPU elsewhere: all of both, or one or two replicas for none, one or two."""
        mine, theirs = self.on[here], self.on[other]
        if any(len(self.lies[n]) > 1 for n in theirs):
            return
        yield {**dict.fromkeys(mine, (other,)), **dict.fromkeys(theirs, (here,))}
        if self.seats[number].candidate.shape.sharing is Sharing.WHOLE or not theirs:
            return
        for beside in ((), *((n,) for n in mine if n != number)):
            for back in ((), *combinations(theirs, 1), *combinations(theirs, 2)):
                yield {**dict.fromkeys((number, *beside), (other,)), **dict.fromkeys(back, (here,))}

    def _of_groups(self, number: int, alike: list[str]) -> Iterator[Exchange]:
        """With as many GPUs of another node, be they a group or single ones."""
        here = self.lies[number]
        if self.gpus[here[0]].node.nvlink_domain == "pair":
            return
        by_node: dict[str, list[str]] = defaultdict(list)
        for id in alike:
            if node_of(id) != node_of(here[0]):
                by_node[node_of(id)].append(id)
        for _, there in sorted(by_node.items(), key=lambda _: self.dice.random()):
            groups = {self.lies[n] for id in there for n in self.on[id] if len(self.lies[n]) > 1}
            loose = [id for id in there if not any(id in group for group in groups)]
            options = [tuple(g) for g in sorted(groups) if len(g) == len(here)]
            if len(loose) >= len(here):
                options += [tuple(loose[: len(here)]), tuple(loose[-len(here) :])]
            for option in options:
                yield self._crossed(here, option)

    def _for_groups(self, here: str, alike: list[str]) -> Iterator[Exchange]:
        """This GPU and others of its node for a group of another node."""
        node = self.gpus[here].node
        if node.nvlink_domain == "pair":
            return
        beside = [id for id in self._loose(self._of_node(node.name)) if id in alike and id != here]
        groups = {self.lies[n] for id in alike for n in self.on[id] if len(self.lies[n]) > 1}
        for group in sorted(groups):
            more = len(group) - 1
            if len({node_of(id) for id in group} | {node.name}) != 2 or more > len(beside):
                continue
            for others in dict.fromkeys((tuple(beside[:more]), tuple(beside[-more:]))):
                yield self._crossed((here, *others), group)

    def _loose(self, ids: list[str]) -> list[str]:
        """Those that no group holds."""
        return [id for id in ids if all(len(self.lies[n]) == 1 for n in self.on[id])]

    def _crossed(self, here: tuple[str, ...], there: tuple[str, ...]) -> Exchange:
        """All that lies on the one GPUs and on the others, changed about."""
        to = {**dict(zip(here, there, strict=True)), **dict(zip(there, here, strict=True))}
        moving = sorted({n for id in (*here, *there) for n in self.on[id]})
        return {
            n: tuple(to[id] for id in self.lies[n]) for n in moving if set(self.lies[n]) <= {*to}
        }

    def _takes(self, exchange: Exchange) -> bool:
        """Make an exchange if it helps and every rule lets it."""
        names = [self.seats[n].deployment for n in exchange]
        if not self.tied.isdisjoint(names) or not self._may(exchange):
            return False
        before = {n: self.lies[n] for n in exchange}
        ids = {id for some in (*before.values(), *exchange.values()) for id in some}
        nodes = [self.nodes[name] for name in sorted({node_of(id) for id in ids})]
        too_many = self.excess(names, nodes)
        self._move(exchange)
        if self.excess(names, nodes) < too_many and self._lawful(ids, nodes):
            self.touched |= ids
            return True
        self._move(before)
        return False

    def _move(self, exchange: Exchange) -> None:
        for number in exchange:
            self._count(number, -1)
        for number, gpus in exchange.items():
            self.lies[number] = gpus
            self._count(number, 1)

    def _may(self, exchange: Exchange) -> bool:
        """Rule ``pin``."""
        return all(
            pin(self.names[self.seats[n].deployment], self.gpus[id])
            for n, gpus in exchange.items()
            for id in gpus
        )

    def _lawful(self, ids: Iterable[str], nodes: list[Node]) -> bool:
        return all(map(self._holds, sorted(ids))) and all(map(self._carries, nodes))

    def _holds(self, id: str) -> bool:
        """Whether what lies on a GPU may lie there together."""
        seats = [self.seats[n] for n in self.on[id]]
        if not seats:
            return True
        modes = {seat.candidate.shape.sharing for seat in seats}
        if len(modes) > 1 or (modes == {Sharing.WHOLE} and len(seats) > 1):
            return False
        if len(seats) > 1 and not frozenset.intersection(
            *(self.colours[seat.deployment] for seat in seats)
        ):
            return False
        gpu, kept = self.gpus[id].gpu, self.fixed.get(id)
        profiles = tuple(sorted(seat.candidate.shape.profile or "" for seat in seats))
        if modes == {Sharing.SHARED}:
            used = sum((seat.candidate.shape.share or Use() for seat in seats), Use())
            return used.fits_in(gpu.room)
        if modes == {Sharing.WHOLE} or gpu.mig is None:
            return not kept
        if kept is not None:
            return not Counter(profiles) - Counter(p.profile for p in kept)
        return _laid_out(gpu.mig, profiles) is not None

    def _carries(self, node: Node) -> bool:
        """Rules of a node: ``host_cpu``, ``host_memory``, ``network_bandwidth``, ``isolation``."""
        here = sorted({n for id in self._of_node(node.name) for n in self.on[id]})
        some = [self.names[self.seats[n].deployment] for n in here]
        cpu = sum(d.host_cpu_millicores for d in some)
        if node.cpu_millicores is not None and cpu > node.cpu_millicores:
            return False
        memory = sum(d.host_memory_mib for d in some)
        if node.host_memory_mib is not None and memory > node.host_memory_mib:
            return False
        handed = sum(self.seats[n].candidate.network_mbs for n in here if len(self._nodes(n)) > 1)
        if node.network_mbs is not None and handed and handed > node.network_mbs:
            return False
        if any(d.isolate == "node" for d in some) and len({d.tenant for d in some}) > 1:
            return False
        return self._powered(node)

    def _powered(self, node: Node) -> bool:
        limit = self.problem.fleet.limits.rack_power_w
        if limit is None:
            return True
        rack = [n for n in self.nodes.values() if n.rack_domain == node.rack_domain]
        used = [id for n in rack for id in self._of_node(n.name) if self.on[id]]
        return sum(self.gpus[id].gpu.tdp_w or 0 for id in used) <= limit

    def _of_node(self, name: str) -> list[str]:
        node = self.nodes[name]
        ids = (f"{name}/{index}" for index in range(node.gpus))
        return [id for id in ids if id in self.on]

    def result(self) -> list[Seat]:
        """The seats where they lie now, without those beyond ``spread``."""
        found = []
        for number, seat in enumerate(self.seats):
            if self._beyond(number):
                self._count(number, -1)
                continue
            mig, at = seat.mig, self.lies[number][0]
            if mig is not None and at in self.touched:
                mig = PlacedProfile(LATER, mig.profile)
            found.append(replace(seat, gpus=self.lies[number], mig=mig))
        return cut(self.problem, found)

    def _beyond(self, number: int) -> bool:
        """Whether rule ``spread`` lets it not lie there."""
        name = self.seats[number].deployment
        return any(
            limit.excess(self.held[name, at, domain_of(node, limit.kind)])
            for at, limit in enumerate(self.limits.get(name, ()))
            for node in self._nodes(number)
            if limit.least_rate is None
        )


def cut(problem: PlacementProblem, seats: list[Seat]) -> list[Seat]:
    """The seats with a start for each MIG instance on GPUs where one has none yet."""
    on: dict[str, list[str]] = defaultdict(list)
    for seat in seats:
        if seat.mig is not None:
            on[seat.gpus[0]].append(seat.mig.profile)
    open_ = {s.gpus[0] for s in seats if s.mig is not None and s.mig.start == LATER}
    gpus, fixed = {g.id: g for g in problem.fleet.gpus()}, fixed_layout(problem)
    starts: dict[str, list[PlacedProfile]] = {}
    for id in sorted(open_):
        table = gpus[id].gpu.mig
        assert table is not None  # since instances are on it
        starts[id] = list(layout(table, (), fixed.get(id, ()), tuple(sorted(on[id]))))
    found = []
    for seat in seats:
        if seat.mig is not None and seat.gpus[0] in starts:
            left = starts[seat.gpus[0]]
            placed = next(p for p in left if p.profile == seat.mig.profile)
            left.remove(placed)
            seat = replace(seat, mig=placed)
        found.append(seat)
    return found


@lru_cache(maxsize=65536)
def _laid_out(table: MigTable, profiles: tuple[str, ...]) -> tuple[PlacedProfile, ...] | None:
    """A legal layout of these instances on a bare GPU, if there is one."""
    try:
        return layout(table, (), (), profiles)
    except ValueError:
        return None
