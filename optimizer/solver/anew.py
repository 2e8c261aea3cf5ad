"""Some replicas laid anew beside all that stays: an exact choice of ways and places, by CP-SAT.

On large fleets counts are chosen first and places after. Where that left a rule broken, or a GPU in
use that need not be, some seats are lifted and everything they did is asked for again: any way of
running it, in any room that the others leave. What stays is fixed, so the model is small, and in
it every node is told apart, so it knows all rules.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ortools.sat.python import cp_model

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.gpu import MigTable, PlacedProfile, Use
from optimizer.domain.placement import node_of
from optimizer.domain.problem import PlacementProblem, capacity_mrps
from optimizer.domain.units import PPM
from optimizer.domain.workload import Deployment
from optimizer.solver import ear
from optimizer.solver.columns import Multiset, colours, cordon, domain_of, fixed_layout, pin
from optimizer.solver.formulation import Expr, total
from optimizer.solver.scatter import LATER, cut
from optimizer.solver.where import Seat

MOST_EMPTY_SHARED = 2  # empty GPUs of one node that shares may take anew
REPAIR_EFFORT = 2.0  # of CP-SAT, deterministic seconds, to mend one deployment
MOST_LIFTED = 60  # replicas lifted together, besides those of the deployment itself


Rates = list[tuple["Spot", int, Expr]]  # where, what one replica serves, how many


@dataclass(frozen=True, slots=True)
class Spot:
    """Alike GPUs of one node, and what stays on each of them."""

    node: Node
    gpus: tuple[str, ...]
    mode: Sharing | None  # None: nothing stays
    profiles: tuple[str, ...]
    used: Use
    colours: frozenset[str] | None  # None: any
    kept: tuple[PlacedProfile, ...] | None
    barred: frozenset[str]


def tied(problem: PlacementProblem) -> frozenset[str]:
    """Deployments that are not laid anew: near others, sought by them, or alone on their nodes."""
    near = {d.name for d in problem.deployments if d.near}
    near |= {name for d in problem.deployments for name in d.near}
    return frozenset(near | {d.name for d in problem.deployments if d.isolate == "node"})


class Ground:
    """What is the same for every choice on one problem."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.names = {d.name: d for d in problem.deployments}
        self.nodes = {n.name: n for n in problem.fleet.nodes}
        self.gpus = {g.id: g for g in problem.fleet.gpus() if cordon(g)}
        self.fixed = fixed_layout(problem)
        self.colours = {name: frozenset(some) for name, some in colours(problem).items()}
        self.tied = tied(problem)
        self.ways: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
        for name, ways in problem.candidates.items():
            for way in ways:
                if not way.running_only and way.shape.stages == 1:
                    self.ways[name, way.gpu].append(way)
        self.price = {n.name: problem.fleet.price_micros(n) for n in problem.fleet.nodes}

    def movable(self, seat: Seat) -> bool:
        """Whether a replica may be lifted and laid elsewhere by itself."""
        node = self.nodes[node_of(seat.gpus[0])]
        paired = len(seat.gpus) > 1 and node.nvlink_domain == "pair"
        return seat.deployment not in self.tied and seat.candidate.shape.stages == 1 and not paired


@dataclass(slots=True)
class Held:
    """What a deployment has in what stays."""

    rate: int = 0
    replicas: int = 0
    by_node: Counter[str] = field(default_factory=Counter)
    by_rack: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)  # rate by the domain that may be lost


class Anew:
    """One choice: ``lifted`` seats are free, the others stay."""

    def __init__(
        self,
        ground: Ground,
        seats: Sequence[Seat],
        lifted: Set[int],
        whole: Set[str] = frozenset(),
        *,
        near: Set[str] | None = None,
        short: Set[str] = frozenset(),
    ) -> None:
        """``whole``: deployments that must be served in full, whatever they have now.

        ``near``: the nodes that may be used; ``short``: deployments that lack something now, which
        is to be as little as can be.
        """
        self.g, self.seats, self.lifted, self.whole = ground, seats, lifted, whole
        self.near, self.short = near, short
        self.lacking: dict[str, Expr] = {}  # in millionths, of those that are short
        self.free = sorted({*whole, *short, *(seats[n].deployment for n in lifted)})
        self.stays = [seat for n, seat in enumerate(seats) if n not in lifted]
        self.on: dict[str, list[Seat]] = defaultdict(list)
        for seat in self.stays:
            for gpu in seat.gpus:
                self.on[gpu].append(seat)
        self.held = {name: Held() for name in self.free}
        self.ran = {name: Held() for name in self.free}
        for n, seat in enumerate(seats):
            if seat.deployment in self.held:
                self._count(self.ran[seat.deployment], seat)
                if n not in lifted:
                    self._count(self.held[seat.deployment], seat)
        self._shared_before = {
            gpu
            for n in lifted
            if seats[n].candidate.shape.sharing is Sharing.SHARED
            for gpu in seats[n].gpus
        }
        self.m = cp_model.CpModel()
        self.lain: list[tuple[Spot, str, Candidate, str, Expr]] = []  # with the colour
        self.columns: list[tuple[Spot, str, Multiset, Expr]] = []
        self.newly: dict[str, list[Expr]] = defaultdict(list)  # GPUs put to use, by node
        self._by_node: dict[str, list[int]] = defaultdict(list)
        for spot in self._spots():
            self._room(spot)
        self._rules()

    def _count(self, held: Held, seat: Seat) -> None:
        d, nodes = self.g.names[seat.deployment], {node_of(g) for g in seat.gpus}
        rate = capacity_mrps(d, seat.candidate)
        held.rate += rate
        held.replicas += 1
        held.by_node.update(nodes)
        held.by_rack.update({self.g.nodes[n].rack_domain for n in nodes})
        for domain in {domain_of(self.g.nodes[n], d.survive or "node") for n in nodes}:
            held.inside[domain] += rate

    # --- room ----------------------------------------------------------------------------------

    def _spots(self) -> Iterator[Spot]:
        products = {gpu for name in self.free for (n, gpu) in self.g.ways if n == name}
        alike: dict[Spot, list[str]] = {}
        shut: dict[str, frozenset[str]] = {}
        for id, gpu in self.g.gpus.items():
            node = gpu.node
            if gpu.gpu.name not in products or (
                self.near is not None and node.name not in self.near
            ):
                continue
            here = self.on.get(id, [])
            modes = {seat.candidate.shape.sharing for seat in here}
            if Sharing.WHOLE in modes:
                continue
            if node.name not in shut:
                shut[node.name] = self._strangers(node)
            apart = {n for n in self.free if not pin(self.g.names[n], gpu)}
            barred = shut[node.name] | apart
            profiles = tuple(sorted(s.candidate.shape.profile or "" for s in here))
            used = sum((s.candidate.shape.share or Use() for s in here), Use())
            common = (
                frozenset.intersection(*(self.g.colours[s.deployment] for s in here))
                if here
                else None
            )
            mode = next(iter(modes), None)
            kept = self.g.fixed.get(id)
            spot = Spot(node, (), mode, profiles, used, common, kept, barred)
            alike.setdefault(spot, []).append(id)
        for spot, ids in alike.items():
            yield replace(spot, gpus=tuple(ids))

    def _strangers(self, node: Node) -> frozenset[str]:
        """Who may not come to a node where a tenant that stays is alone (rule ``isolation``)."""
        ids = (f"{node.name}/{index}" for index in range(node.gpus))
        names = {seat.deployment for id in ids for seat in self.on.get(id, ())}
        alone = {self.g.names[n].tenant for n in names if self.g.names[n].isolate == "node"}
        return frozenset(n for n in self.free if alone - {self.g.names[n].tenant})

    def _room(self, spot: Spot) -> None:
        """Variables of what may come to these GPUs."""
        uses: list[Expr] = []
        names = [n for n in self.free if n not in spot.barred]
        if spot.mode is None and not spot.kept:
            uses += self._whole(spot, names)
        if spot.mode in (None, Sharing.MIG) and Sharing.MIG in spot.node.sharing:
            uses += self._sliced(spot, names)
        shared = Sharing.SHARED in spot.node.sharing and not spot.kept
        if spot.mode in (None, Sharing.SHARED) and shared:
            uses += self._shared(spot, names)
        if uses and spot.mode is None:
            self.m.add(total(uses) <= len(spot.gpus))
            self.newly[spot.node.name] += uses

    def _ways(self, spot: Spot, names: Iterable[str], mode: Sharing) -> Iterator[Candidate]:
        if mode not in spot.node.sharing:
            return
        for name in names:
            for way in self.g.ways.get((name, spot.node.gpu.name), ()):
                if way.shape.sharing is mode and self._useful(name, way):
                    yield way

    def _useful(self, name: str, way: Candidate) -> bool:
        return bool(capacity_mrps(self.g.names[name], way)) or not self.g.names[name].asked_mrps

    def _lay(self, spot: Spot, way: Candidate, colour: str, most: int) -> Expr:
        count = self.m.new_int_var(0, most, "")
        self._by_node[spot.node.name].append(len(self.lain))
        self.lain.append((spot, way.deployment, way, colour, count))
        return count

    def _whole(self, spot: Spot, names: list[str]) -> list[Expr]:
        uses = []
        for way in self._ways(spot, names, Sharing.WHOLE):
            size = way.shape.gpus
            if size <= len(spot.gpus) and (size == 1 or spot.node.nvlink_domain != "pair"):
                uses.append(size * self._lay(spot, way, "", len(spot.gpus) // size))
        return uses

    def _shades(self, spot: Spot, names: Iterable[str]) -> dict[str, list[str]]:
        """Who may lie there by colour of the GPU; colours for the same deployments once."""
        found: dict[str, list[str]] = {}
        some = sorted({c for n in names for c in self.g.colours[n]})
        for colour in some if spot.colours is None else sorted(spot.colours & set(some)):
            here = [n for n in names if colour in self.g.colours[n]]
            if here not in found.values():
                found[colour] = here
        return {c: h for c, h in found.items() if not any(set(h) < set(o) for o in found.values())}

    def _sliced(self, spot: Spot, names: list[str]) -> list[Expr]:
        table = spot.node.gpu.mig
        if table is None:
            return []
        uses = []
        ways = list(self._ways(spot, names, Sharing.MIG))
        for colour, here in self._shades(spot, {w.deployment: None for w in ways}).items():
            mine = [w for w in ways if w.deployment in here]
            wanted = tuple(sorted({w.shape.profile or "" for w in mine}))
            columns = _added(table, spot.profiles, wanted, spot.kept)
            supply: dict[str, list[Expr]] = defaultdict(list)
            most: Counter[str] = Counter()
            for added in columns:
                y = self.m.new_int_var(0, len(spot.gpus), "")
                self.columns.append((spot, colour, added, y))
                uses.append(y)
                for profile, number in added:
                    supply[profile].append(number * y)
                    most[profile] = max(most[profile], number * len(spot.gpus))
            taken: dict[str, list[Expr]] = defaultdict(list)
            for way in mine:
                profile = way.shape.profile or ""
                if most[profile]:
                    taken[profile].append(self._lay(spot, way, colour, most[profile]))
            for profile, counts in taken.items():
                self.m.add(total(counts) <= total(supply[profile]))
        if spot.mode is not None and uses:
            self.m.add(total(uses) <= len(spot.gpus))
        return uses

    def _shared(self, spot: Spot, names: list[str]) -> list[Expr]:
        """GPU by GPU, so that three dimensions add up on each."""
        uses = []
        ways = list(self._ways(spot, names, Sharing.SHARED))
        left = _less(spot.node.gpu.room, spot.used)
        ways = [w for w in ways if w.shape.share is not None and w.shape.share.fits_in(left)]
        shades = self._shades(spot, {w.deployment: None for w in ways})
        before: Expr = len(spot.gpus)
        for gpu in spot.gpus[: self._emptied(spot) if spot.mode is None else len(spot.gpus)]:
            one = Spot(spot.node, (gpu,), spot.mode, (), spot.used, spot.colours, None, spot.barred)
            modes = []
            for colour, here in shades.items():
                mode = self.m.new_bool_var("")
                modes.append(mode)
                mine = [w for w in ways if w.deployment in here]
                counts = [
                    self._lay(one, w, colour, _times(w.shape.share or Use(), left)) for w in mine
                ]
                for part in ("memory_mib", "bandwidth_mbs", "compute_ppm"):
                    taken = total(
                        getattr(w.shape.share, part) * x for w, x in zip(mine, counts, strict=True)
                    )
                    self.m.add(taken <= getattr(left, part) * mode)
            if len(modes) > 1 and spot.mode is not None:
                self.m.add(total(modes) <= 1)
            if modes and spot.mode is None:
                self.m.add(total(modes) <= 1)
                self.m.add(total(modes) <= before)
                before = total(modes)
            uses += modes
        return uses

    def _emptied(self, spot: Spot) -> int:
        """How many empty GPUs may be shared: as many as were, or a few."""
        shared = [g for g in spot.gpus if g in self._shared_before]
        return max(MOST_EMPTY_SHARED, len(shared))

    # --- rules ---------------------------------------------------------------------------------

    def _rules(self) -> None:
        mine: dict[str, list[tuple[Spot, Candidate, Expr]]] = defaultdict(list)
        for spot, name, way, _, count in self.lain:
            mine[name].append((spot, way, count))
        for name in self.free:
            self._served(self.g.names[name], mine[name])
            self._apart(self.g.names[name], mine[name])
        self._hosts()
        self._powered()
        self._limited()

    def _served(self, d: Deployment, mine: list[tuple[Spot, Candidate, Expr]]) -> None:
        """Rules ``demand_met``, ``replica_bounds``, ``survive``."""
        held, ran, asked = self.held[d.name], self.ran[d.name], d.asked_mrps or 0
        rates = [(spot, capacity_mrps(d, way), x) for spot, way, x in mine]
        rate = total(r * x for _, r, x in rates) + held.rate
        replicas = total(x for *_, x in mine) + held.replicas
        full = d.name in self.whole
        if d.name in self.short and not full:
            self._lacks(d, rates, rate, replicas)
            return
        if asked:
            self.m.add(rate >= (asked if full or d.survive else min(asked, ran.rate)))
        self.m.add(replicas >= (d.min_replicas if full else min(d.min_replicas, ran.replicas)))
        if d.replica_limit is not None:
            self.m.add(replicas <= max(d.replica_limit, held.replicas))
        if d.survive and asked:
            for left in self._left(d, rates, rate):
                self.m.add(left >= asked)

    def _left(self, d: Deployment, rates: Rates, rate: Expr) -> Iterator[Expr]:
        """What is served after each loss."""
        held = self.held[d.name]
        lost: dict[str, list[Expr]] = {domain: [] for domain in held.inside}
        for spot, r, x in rates:
            lost.setdefault(domain_of(spot.node, d.survive or ""), []).append(r * x)
        for domain, gone in lost.items():
            yield rate - total(gone) - held.inside[domain]

    def _lacks(self, d: Deployment, rates: Rates, rate: Expr, replicas: Expr) -> None:
        """What a deployment that is short may still lack, also after a loss."""
        lacking = self.lacking[d.name] = self.m.new_int_var(0, PPM, "")
        asked = d.asked_mrps or 0
        if asked:
            least = [rate, *(self._left(d, rates, rate) if d.survive else ())]
            for served in least:
                self.m.add(PPM * served + asked * lacking >= PPM * asked)
        if d.min_replicas:
            self.m.add(PPM * replicas + d.min_replicas * lacking >= PPM * d.min_replicas)
        if d.replica_limit is not None:
            self.m.add(replicas <= max(d.replica_limit, self.held[d.name].replicas))

    def _apart(self, d: Deployment, mine: list[tuple[Spot, Candidate, Expr]]) -> None:
        """Rule ``spread``."""
        for kind, most, stays in (
            ("node", d.spread_node, self.held[d.name].by_node),
            ("rack", d.spread_rack, self.held[d.name].by_rack),
        ):
            if most is None:
                continue
            inside: dict[str, list[Expr]] = defaultdict(list)
            for spot, _, x in mine:
                inside[domain_of(spot.node, kind)].append(x)
            for domain, counts in inside.items():
                self.m.add(total(counts) <= max(0, most - stays[domain]))

    def _hosts(self) -> None:
        """Rules ``host_cpu`` and ``host_memory``."""
        cpu: Counter[str] = Counter()
        memory: Counter[str] = Counter()
        for seat in self.stays:
            d = self.g.names[seat.deployment]
            for name in {node_of(g) for g in seat.gpus}:
                cpu[name] += d.host_cpu_millicores
                memory[name] += d.host_memory_mib
        for name, numbers in self._by_node.items():
            node = self.g.nodes[name]
            held = [(self.g.names[self.lain[n][1]], self.lain[n][4]) for n in numbers]
            if node.cpu_millicores is not None:
                more = [d.host_cpu_millicores * x for d, x in held if d.host_cpu_millicores]
                if more:
                    self.m.add(total(more) <= max(0, node.cpu_millicores - cpu[name]))
            if node.host_memory_mib is not None:
                more = [d.host_memory_mib * x for d, x in held if d.host_memory_mib]
                if more:
                    self.m.add(total(more) <= max(0, node.host_memory_mib - memory[name]))

    def _powered(self) -> None:
        """Rule ``power_limit``: an unknown TDP counts nothing."""
        limit = self.g.problem.fleet.limits.rack_power_w
        if limit is None:
            return
        used: Counter[str] = Counter()
        for id, seats in self.on.items():
            if seats:
                node = self.g.nodes[node_of(id)]
                used[node.rack_domain] += node.gpu.tdp_w or 0
        more: dict[str, list[Expr]] = defaultdict(list)
        for name, uses in self.newly.items():
            node = self.g.nodes[name]
            more[node.rack_domain] += [(node.gpu.tdp_w or 0) * use for use in uses]
        for rack, watts in more.items():
            self.m.add(total(watts) <= max(0, limit - used[rack]))

    def _limited(self) -> None:
        """Rule ``price_limit``."""
        limit = self.g.problem.fleet.limits.price_micros_per_hour
        if limit is not None:
            used = {gpu for seat in self.stays for gpu in seat.gpus}
            paid = sum(self.g.price[node_of(gpu)] for gpu in used)
            self.m.add(self.price() <= max(0, limit - paid))

    # --- choice --------------------------------------------------------------------------------

    def chosen(self, effort: float, seconds: float) -> list[Seat] | None:
        """All seats with the lifted ones laid anew for the least price; None if none was found."""
        return self.least(self.price(), effort, seconds)

    def value(self, expr: Expr) -> int:
        """In what was found last."""
        return int(self.solver.value(expr))

    def price(self) -> Expr:
        """Of the GPUs that are put to use."""
        return total(self.g.price[name] * x for name, uses in self.newly.items() for x in uses)

    def least(self, goal: Expr, effort: float, seconds: float) -> list[Seat] | None:
        """All seats with the lifted ones laid anew so that the goal is least, if any are found."""
        self.m.minimize(goal)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.linearization_level = 2  # a program sees how rules add up along rows
        solver.parameters.max_deterministic_time = effort
        solver.parameters.max_time_in_seconds = max(0.1, seconds)
        solver.parameters.catch_sigint_signal = False
        status: Any = ear.beside(lambda: solver.solve(self.m), solver.stop_search)
        self.spent, self.solver = solver.response_proto.deterministic_time, solver
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        return [*self.stays, *self._laid(solver)]

    def _laid(self, solver: cp_model.CpSolver) -> Iterator[Seat]:
        """Seats of what was chosen; MIG instances get their starts in the end."""
        shared = {
            spot.gpus
            for spot, _, way, _, x in self.lain
            if way.shape.sharing is Sharing.SHARED and solver.value(x)
        }
        free = {
            spot.gpus: [g for g in spot.gpus if (g,) not in shared]
            for spot in (*(c[0] for c in self.columns), *(one[0] for one in self.lain))
        }
        slots: dict[tuple[tuple[str, ...], str, str], list[str]] = defaultdict(list)
        for spot, colour, added, y in self.columns:
            gpus = free[spot.gpus]
            for _ in range(solver.value(y)):
                gpu = gpus.pop()
                for profile, number in added:
                    slots[spot.gpus, colour, profile] += [gpu] * number
        for spot, name, way, colour, x in self.lain:
            for _ in range(solver.value(x)):
                profile = way.shape.profile or ""
                if profile:
                    gpu = slots[spot.gpus, colour, profile].pop(0)
                    yield Seat(name, way, (gpu,), PlacedProfile(LATER, profile))
                elif way.shape.sharing is Sharing.SHARED:
                    yield Seat(name, way, spot.gpus)
                else:
                    gpus = free[spot.gpus]
                    yield Seat(name, way, tuple(gpus[: way.shape.gpus]))
                    del gpus[: way.shape.gpus]


@lru_cache(maxsize=65536)
def _added(
    table: MigTable,
    stays: tuple[str, ...],
    wanted: tuple[str, ...],
    kept: tuple[PlacedProfile, ...] | None,
) -> tuple[Multiset, ...]:
    """The largest multisets of wanted profiles that a GPU holds beside those that stay."""
    if kept is not None:
        left = Counter(p.profile for p in kept) - Counter(stays)
        only = tuple(sorted((p, n) for p, n in left.items() if p in wanted))
        return (only,) if only else ()
    here = Counter(stays)
    found: set[Multiset] = set()
    for option in table.multisets(tuple(sorted({*stays, *wanted}))):
        counts = Counter(dict(option))
        if here <= counts:
            more = counts - here
            if more and set(more) <= set(wanted):
                found.add(tuple(sorted(more.items())))
    as_counts = [(m, Counter(dict(m))) for m in sorted(found)]
    return tuple(m for m, c in as_counts if not any(c < other for _, other in as_counts))


def _less(room: Use, used: Use) -> Use:
    return Use(
        room.memory_mib - used.memory_mib,
        room.bandwidth_mbs - used.bandwidth_mbs,
        room.compute_ppm - used.compute_ppm,
    )


def _times(share: Use, room: Use) -> int:
    parts = [
        getattr(room, part) // getattr(share, part)
        for part in ("memory_mib", "bandwidth_mbs", "compute_ppm")
        if getattr(share, part)
    ]
    return min(parts, default=1)


def mended(
    problem: PlacementProblem, seats: list[Seat], names: Iterable[str], seconds: float
) -> list[Seat]:
    """The seats with these deployments served in full, for little more, where that can be."""
    ground = Ground(problem)
    for name in names:
        for lifted in _lifts(ground, seats, name):
            found = Anew(ground, seats, lifted, frozenset({name})).chosen(REPAIR_EFFORT, seconds)
            if found is not None:
                seats = found
                break
    return cut(problem, seats)


def _lifts(ground: Ground, seats: list[Seat], name: str) -> Iterator[set[int]]:
    """Replicas to lift for a deployment: its own, then more and more of those it could lie with."""
    if name in ground.tied:
        return
    own = {n for n, s in enumerate(seats) if s.deployment == name and ground.movable(s)}
    yield own
    d = ground.names[name]
    gpus = {gpu for n in own for gpu in seats[n].gpus}
    if d.pin:
        gpus |= {id for id, gpu in ground.gpus.items() if pin(d, gpu)}
    nodes = {node_of(gpu) for gpu in gpus}
    for beside in (
        [n for n, s in enumerate(seats) if gpus.intersection(s.gpus)],
        [n for n, s in enumerate(seats) if node_of(s.gpus[0]) in nodes],
    ):
        yield own | set([n for n in beside if ground.movable(seats[n])][:MOST_LIFTED])
