"""Rebalancing at fleet scale: replicas in MIG instances keep how they run, only places change.

Missing replicas of deployments that can run in one way only are started in the same run. What must
move is decided by the flow over alike GPUs (``migflow``), proved over all removals; who goes where
is then matched one by one under the rules that tell replicas apart. Replicas on whole or shared
GPUs stay. Costs against disruption form a curve; each of its points carries its bounds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import gcd

import numpy as np

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Limits, Objective, Outcome, Termination
from optimizer.domain.placement import Instance, Placement, Replica, replica_order
from optimizer.domain.problem import PlacementProblem, capacity_mrps, missing_ppm
from optimizer.domain.units import MIB_PER_GIB, ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.measure import disruption_mib
from optimizer.solver.migflow import Array, Block, Ends, Flow, ends_of, lower_bound, minimise

CUT_MIB = MIB_PER_GIB  # what cutting a GPU anew counts in the disruption
HELD = 1e12  # effort of moving what must not move
SEATS_TRIED = 400  # free instances looked at for one replica
ROUNDS = 4  # of holding deployments that found no seat

KEEPS = "the bounds hold for plans in which every replica keeps its configuration and product"


@dataclass(frozen=True, slots=True)
class Ask:
    """How far a rebalancing may go. ``free_gpus`` asks for so many, not for the least price.

    ``max_moves`` counts copies that start, be they new or moved; a stop is free.
    ``whole_gpus``: a GPU can be cut anew only when nobody is on it, so all who are must move.
    """

    max_moves: int | None = None
    max_load_mib: int | None = None
    free_gpus: int | None = None
    whole_gpus: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve: a price, the least disruption that reaches it, both bounded."""

    price_micros: int
    price_bound_micros: int  # what no plan undercuts; at the end of the curve the least price
    gpus: int
    moves: int
    disruption_mib: int
    disruption_bound_mib: int

    @property
    def proved(self) -> bool:
        """Whether no plan of this price disturbs less."""
        return self.disruption_mib <= self.disruption_bound_mib


def consolidate(problem: PlacementProblem, limits: Limits, ask: Ask | None = None) -> Outcome:
    """Least price, then least disruption, as far as ``ask`` allows; every replica keeps running."""
    ask = ask or Ask()
    return _Consolidation(problem, limits, ask.whole_gpus).asked(ask)


def frontier(problem: PlacementProblem, limits: Limits, points: int = 10) -> tuple[Point, ...]:
    """From what runs now to the least price, in even steps of price; dearest first."""
    return curve_of(problem, limits, points).whole()


def curve_of(problem: PlacementProblem, limits: Limits, points: int) -> "Curve":
    """The same, its points still to be worked out."""
    return _Consolidation(problem, limits).curve(points)


def at_point(problem: PlacementProblem, limits: Limits, point: Point) -> Outcome:
    """The placement of a point of the curve."""
    return _Consolidation(problem, limits).asked(Ask(), within_micros=point.price_micros)


def unserved(problem: PlacementProblem) -> tuple[str, ...]:
    """Deployments that get less than they ask while every replica keeps its configuration."""
    seen = _Seen(problem)
    running = Placement((*seen.replicas, *seen.starting))
    return tuple(name for name, ppm in seen.missing(running).items() if ppm)


def knee(points: Sequence[Point]) -> Point:
    """The point farthest below the line from the first to the last: beyond it moves get dear.

    Of two points, the last.
    """
    if len(points) < 3:
        return points[-1]
    first, last = points[0], points[-1]
    price = max(1, first.price_micros - last.price_micros)
    effort = max(1, last.disruption_mib - first.disruption_mib)

    def gain(point: Point) -> float:
        saved = (first.price_micros - point.price_micros) / price
        return saved - (point.disruption_mib - first.disruption_mib) / effort

    return max(points, key=lambda p: (gain(p), -p.disruption_mib))


@dataclass(frozen=True, slots=True)
class _Class:
    """Alike GPUs: who is where by what a move takes, what stands, price, and whether it must go."""

    product: str
    inside: tuple[tuple[PlacedProfile, int, int, bool], ...]  # instance, MiB, weighted MiB, held
    standing: tuple[PlacedProfile, ...]
    price_micros: int
    emptied: bool


@dataclass(slots=True, eq=False)
class _Product:
    """One product's classes with their GPUs, and arrays of what each end takes."""

    ends: Ends
    gpus: Sequence[Sequence[FleetGpu] | range]  # by class; a range only counts them
    need: Array
    moves: Array
    load: Array  # MiB
    disruption: Array  # MiB, infinite where an end is barred
    layouts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    used: Array
    price: Array  # micros

    @property
    def counts(self) -> Array:
        """How many GPUs are in each class."""
        return np.array([float(len(gpus)) for gpus in self.gpus])

    def counted(self) -> "_Product":
        """The same with GPUs counted and not named."""
        return replace(self, gpus=[range(len(gpus)) for gpus in self.gpus])

    def block(self, cost: str, sides: Iterable[str], scale: int) -> Block:
        """These classes with a cost and sides, named as the arrays are."""
        barred = ~np.isfinite(self.disruption)
        costs = np.where(barred, np.inf, getattr(self, cost) / scale)
        held = tuple(np.where(barred, 0.0, getattr(self, side)) for side in sides)
        return Block(self.ends, self.counts, self.need, costs, held)


Sides = list[tuple[str, int]]  # name of an array, and its limit
PART = 5  # points of a curve that are worked out one after another


@dataclass(frozen=True, slots=True, eq=False)
class _Flows:
    """The products in both readings, and the flows over them.

    ``same``: both readings ask for the same flow.
    """

    products: list[_Product]
    loose: list[_Product]
    same: bool
    seconds: float

    def light(self) -> "_Flows":
        """The same with GPUs counted and not named, to be sent elsewhere."""
        return replace(
            self,
            products=[product.counted() for product in self.products],
            loose=[product.counted() for product in self.loose],
        )

    def sum(self, flow: Flow, name: str) -> int:
        """What a flow takes of an array."""
        found = 0.0
        for product, takes in zip(self.products, flow.takes, strict=True):
            array = getattr(product, name)
            found += sum(count * array[c, e] for c, e, count in takes)
        return round(found)

    def minimise(self, what: str, sides: Sides, near: Flow | None = None) -> Flow | None:
        """The least of that array within the sides, with a bound that holds for all plans.

        ``near`` is the flow of another limit on the same array, to start from.
        """
        blocks, scale = _blocks(self.products, what, sides)
        limits = [limit for _, limit in sides]
        start = near.columns if near is not None else ()
        flow = minimise(blocks, limits, seconds=self.seconds, start=start)
        if flow is None:
            return None
        bound = flow.bound * scale
        if not self._alike(sides):
            loose, finer = _blocks(self.loose, what, sides)
            bound = lower_bound(loose, limits) * finer
        return replace(flow, value=flow.value * scale, bound=bound)

    def _alike(self, sides: Sides) -> bool:
        """Whether both readings ask for the same flow, so that its own bound holds."""
        return self.same and all(
            np.array_equal(getattr(mine, name), getattr(loose, name))
            for mine, loose in zip(self.products, self.loose, strict=True)
            for name, _ in sides
        )


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A curve whose parts can be worked out apart from each other, and elsewhere.

    ``levels`` are prices beside the fixed one, ``price_bound`` the least. ``placed`` says whether
    a flow finds its seats, where rules tell replicas apart.
    """

    flows: _Flows
    levels: tuple[int, ...]
    price_bound: int
    fixed_price: int
    fixed_gpus: int
    starting: int
    starting_mib: int
    placed: Callable[[Flow], Placement | set[str]] | None

    @property
    def parts(self) -> int:
        """In how many parts it falls; the same however many work on them."""
        return ceil_div(len(self.levels), PART)

    def part(self, number: int) -> tuple[Point, ...]:
        """The points of one part; each starts from what the one before it used."""
        found: list[Point] = []
        flow: Flow | None = None
        for level in self.levels[number * PART : (number + 1) * PART]:
            flow = self.flows.minimise("disruption", [("price", level)], flow)
            point = self._point(flow) if flow is not None else None
            found += [point] if point is not None else []
        return tuple(found)

    def whole(self, parts: Iterable[Sequence[Point]] | None = None) -> tuple[Point, ...]:
        """All points, or those of parts worked out elsewhere; what costs the same is told once."""
        told: dict[int, Point] = {}
        for part in map(self.part, range(self.parts)) if parts is None else parts:
            for point in part:
                told.setdefault(point.price_micros, point)
        return tuple(told.values())

    def _point(self, flow: Flow) -> Point | None:
        """Its figures; where rules tell replicas apart only if all of them find seats."""
        if self.placed is not None and not isinstance(self.placed(flow), Placement):
            return None
        return Point(
            self.fixed_price + self.flows.sum(flow, "price"),
            self.fixed_price + self.price_bound,
            self.fixed_gpus + self.flows.sum(flow, "used"),
            self.flows.sum(flow, "moves") + self.starting,
            self.flows.sum(flow, "disruption") + self.starting_mib,
            flow.bound + self.starting_mib,
        )


class _Consolidation:
    """One problem, read once; every point of the curve is a flow over the same classes.

    Two readings: as the rules are (``loose``, for bounds), and with everything held that the
    matching of replicas to seats cannot judge or found no seat for.
    """

    def __init__(self, problem: PlacementProblem, limits: Limits, whole_gpus: bool = False) -> None:
        self.problem = problem
        self.limits = limits
        self.whole_gpus = whole_gpus
        self.seen = _Seen(problem)
        never = {d.name for d in problem.deployments if d.disturb == "never"}
        self.loose = self._read(never, to_place=False)
        stiff = {d.name for d in problem.deployments if d.near or d.survive or d.pin}
        self.held = never | stiff
        running = {r.deployment for r in self.seen.replicas if r.mig is not None}
        self.same = not running & (self.held - never)
        self.products = self._read(self.held, to_place=True)
        weight = {d.name: d.move_weight for d in problem.deployments}
        self.starting_mib = sum(
            weight[r.deployment] * self.seen.load_mib(r) for r in self.seen.starting
        )
        self.picky = any(
            d.pin or d.avoid or d.isolate != "none" or d.spread_node or d.spread_rack
            for d in problem.deployments
        ) or any(n.cpu_millicores or n.host_memory_mib for n in problem.fleet.nodes)
        every: Iterator[object] = (g for p in self.products for gpus in p.gpus for g in gpus)
        changing = {g.id for g in every if isinstance(g, FleetGpu)}
        self.fixed_price, self.fixed_gpus = self.seen.fixed_use(changing)

    def _read(self, held: set[str], *, to_place: bool) -> list[_Product]:
        names = sorted({g.gpu.name for g in self.seen.gpus.values()})
        whole = self.whole_gpus
        read = (_product(self.seen, name, held, to_place, whole) for name in names)
        return [product for product in read if product is not None]

    # --- points

    def asked(self, ask: Ask, within_micros: int | None = None) -> Outcome:
        """The outcome of one wish; ``within_micros`` asks for that price, not for the least."""
        new = self.seen.starting
        spare_moves = None if ask.max_moves is None else ask.max_moves - len(new)
        spare_mib = None
        if ask.max_load_mib is not None:
            spare_mib = ask.max_load_mib - sum(map(self.seen.load_mib, new))
        if min(spare_moves or 0, spare_mib or 0) < 0:
            return _nothing(f"what is missing takes {len(new)} starts: more than the limits allow")
        for _ in range(ROUNDS):
            sides: Sides = []
            if spare_moves is not None:
                sides.append(("moves", spare_moves))
            if spare_mib is not None:
                sides.append(("load", spare_mib))
            price_bound = None
            if ask.free_gpus is not None:
                now = self.seen.used_gpus - self.fixed_gpus
                sides.append(("used", max(0, now - ask.free_gpus)))
            elif within_micros is not None:
                sides.append(("price", within_micros - self.fixed_price))
            else:
                price = self._flows.minimise("price", sides)
                if price is None:
                    return _nothing()
                price_bound = price.bound
                sides.append(("price", price.value))
            flow = self._flows.minimise("disruption", sides)
            if flow is None:
                return _nothing()
            found = self._placed(flow)
            if isinstance(found, Placement):
                return self._outcome(found, price_bound, flow.bound)
            self.held |= found
            self.same = False
            self.products = self._read(self.held, to_place=True)
        return _nothing(f"no seats found under the rules of {', '.join(sorted(self.held))}")

    def curve(self, points: int) -> Curve:
        """Prices in even steps to the least, dearest first: from today's, or that of few moves."""
        least = self._flows.minimise("price", [])
        levels: tuple[int, ...] = ()
        if least is not None:
            now = self.seen.price_micros - self.fixed_price
            if now < least.value:  # what must start takes more: from where it disturbs least
                every = sum(int(p.price.max(axis=1) @ p.counts) for p in self.products)
                easy = self._flows.minimise("disruption", [("price", every)])
                now = least.value if easy is None else self._flows.sum(easy, "price")
            steps = max(1, points - 1)
            even = (now - (now - least.value) * k // steps for k in range(steps))
            levels = (*even, least.value)
        return Curve(
            self._flows.light(),
            levels,
            0 if least is None else least.bound,
            self.fixed_price,
            self.fixed_gpus,
            len(self.seen.starting),
            self.starting_mib,
            self._placed if self.picky else None,
        )

    @property
    def _flows(self) -> _Flows:
        return _Flows(self.products, self.loose, self.same, self.limits.time_limit_s)

    # --- from the flow to places

    def _placed(self, flow: Flow) -> Placement | set[str]:
        """Who is where at the end; or the deployments that found no seat."""
        staying: list[Replica] = []
        leaving: list[Replica] = []
        seats: dict[tuple[str, str], list[tuple[FleetGpu, PlacedProfile]]] = defaultdict(list)
        for product, takes in zip(self.products, flow.takes, strict=True):
            left = [list(gpus) for gpus in product.gpus]
            for c, end, count in takes:
                layout = product.ends.layouts[product.layouts[c, end]]
                for _ in range(count):
                    gpu = left[c].pop(0)
                    assert isinstance(gpu, FleetGpu)
                    inside = self.seen.inside[gpu.id]
                    created = set(layout) - self.seen.standing[gpu.id]
                    kept = set() if self.whole_gpus and created else set(layout) & set(inside)
                    staying += [r for p, r in inside.items() if p in kept]
                    leaving += [r for p, r in inside.items() if p not in kept]
                    for placed in layout:
                        if placed not in kept:
                            seats[gpu.gpu.name, placed.profile].append((gpu, placed))
        chosen = {r.id for r in staying} | {r.id for r in leaving}
        staying += [r for r in self.seen.replicas if r.id not in chosen]
        seating = _Seating(self.seen, staying)
        leaving += self.seen.starting
        lost = seating.seat(leaving, seats)
        if lost:
            return {r.deployment for r in lost}
        replicas = sorted(seating.placed, key=lambda r: replica_order(r.id))
        return Placement(tuple(replicas), self.seen.empties(replicas))

    def _outcome(self, found: Placement, price_bound: int | None, disruption_bound: int) -> Outcome:
        price = self.seen.price_of(found)
        bound = price if price_bound is None else self.fixed_price + price_bound
        disruption = disruption_mib(self.problem, found)
        least = disruption_bound + self.starting_mib
        objectives = [
            *self.seen.unmet(found),
            Objective("price_per_hour", price, min(bound, price)),
            Objective("disruption", disruption, min(least, disruption)),
        ]
        proved = all(o.proved for o in objectives)
        return Outcome(
            Termination.OPTIMAL if proved else Termination.LIMIT,
            found,
            (*objectives, Objective("stranded", self.seen.stranded(found), 0)),
            stopped_by="proof" if proved else "effort",
            notes=(KEEPS,),
        )


def _nothing(*notes: str) -> Outcome:
    return Outcome(Termination.NOTHING_FOUND, stopped_by="effort", notes=(*notes, KEEPS))


def _blocks(products: Sequence[_Product], what: str, sides: Sides) -> tuple[list[Block], int]:
    """The products as blocks, costs divided by their common divisor, and that divisor."""
    costs = [getattr(p, what) for p in products]
    scale = gcd(*(int(v) for c in costs for v in np.unique(c[np.isfinite(c)])), 0) or 1
    return [p.block(what, (name for name, _ in sides), scale) for p in products], scale


def _product(
    seen: "_Seen", name: str, held: set[str], to_place: bool, whole: bool
) -> _Product | None:
    """The classes of one product; None where nothing of it runs in instances that may change."""
    members: dict[_Class, list[FleetGpu]] = defaultdict(list)
    for gpu in seen.gpus.values():
        if gpu.gpu.name == name and seen.may_change(gpu):
            members[seen.class_of(gpu, held)].append(gpu)
    classes = sorted(members, key=lambda c: (c.inside, c.standing, c.price_micros, c.emptied))
    new = [r.mig.profile for r in seen.starting if r.mig is not None and seen.product(r) == name]
    running = {one[0].profile for c in classes for one in c.inside}
    profiles = tuple(sorted({*running, *new}))
    table = next(g.gpu.mig for g in seen.gpus.values() if g.gpu.name == name)
    if not profiles or table is None:
        return None
    ends = ends_of(table, profiles)
    at = {slot: i for i, slot in enumerate(ends.slots)}
    one, load, effort, stand = (np.zeros((len(classes), len(ends.slots))) for _ in range(4))
    need = np.array([float(new.count(profile)) for profile in profiles])
    for row, c in enumerate(classes):
        stand[row, [at[p] for p in c.standing if p in at]] = 1
        for placed, mib, weighed, fixed in c.inside:
            one[row, at[placed]], load[row, at[placed]] = 1, mib
            effort[row, at[placed]] = HELD if fixed else weighed
            need[profiles.index(placed.profile)] += len(members[c])
    disruption, layouts = ends.effort(effort, stand, CUT_MIB, whole)
    used = np.ones_like(disruption)
    used[:, ends.empty] = 0
    disruption[disruption >= HELD / 2] = np.inf
    emptied = np.array([c.emptied for c in classes])
    disruption[np.ix_(emptied, np.arange(len(ends.counts)) != ends.empty)] = np.inf

    created = np.take_along_axis((1 - stand) @ ends.held.T > 0, layouts, axis=1).astype(float)

    def gone(weights: Array) -> Array:
        """What leaves: in the layout chosen, or for a bound the least in any."""
        if not to_place:
            return ends.effort(weights, stand, 0, whole)[0]
        kept = np.take_along_axis(weights @ ends.held.T, layouts, axis=1)
        kept = kept * (1 - created) if whole else kept
        return weights.sum(axis=1, keepdims=True) - kept

    prices = np.array([float(c.price_micros) for c in classes])
    gpus = [members[c] for c in classes]
    price = used * prices[:, None]
    return _Product(ends, gpus, need, gone(one), gone(load), disruption, layouts, used, price)


class _Seen:
    """What runs now, indexed."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.deployments = {d.name: d for d in problem.deployments}
        self.gpus = {g.id: g for g in problem.fleet.gpus()}
        current = problem.current or Placement()
        self.replicas = [r for r in current.replicas if all(g in self.gpus for g in r.gpus)]
        self.inside: dict[str, dict[PlacedProfile, Replica]] = defaultdict(dict)
        self.plain: set[str] = set()
        for replica in self.replicas:
            for gpu in replica.gpus:
                if replica.mig is not None:
                    self.inside[gpu][replica.mig] = replica
                else:
                    self.plain.add(gpu)
        self.standing: dict[str, set[PlacedProfile]] = defaultdict(set)
        for gpu, inside in self.inside.items():
            self.standing[gpu] |= set(inside)
        for instance in current.instances:
            self.standing[instance.gpu].add(instance.placed)
        for name, one in self.gpus.items():
            if one.device.layout and name not in self.standing and name not in self.plain:
                self.standing[name] = set(one.device.layout)
        self.ways = {r.id: self._way(r) for r in self.replicas}
        self.starting = [r for d in problem.deployments for r in self._missing(d)]
        self.ways |= {r.id: self._way(r) for r in self.starting}
        used = {g for r in self.replicas for g in r.gpus}
        self.used_gpus = len(used)
        self.price_micros = sum(problem.fleet.price_micros(self.gpus[g].node) for g in used)

    def product(self, replica: Replica) -> str:
        """The product it runs on, or is to start on."""
        if replica.gpus:
            return self.gpus[replica.gpus[0]].gpu.name
        return self.problem.candidates[replica.deployment][0].gpu

    def _missing(self, deployment: Deployment) -> Iterator[Replica]:
        """What must start of a deployment whose one way to run is a MIG instance; no place yet."""
        ways = self.problem.candidates.get(deployment.name, ())
        way = ways[0] if len(ways) == 1 else None
        if way is None or way.running_only or way.shape.profile is None:
            return
        mine = [r for r in self.replicas if r.deployment == deployment.name]
        wanted = deployment.min_replicas
        if deployment.asked_mrps and way.capacity_mrps:
            wanted = max(wanted, ceil_div(deployment.asked_mrps, way.capacity_mrps))
        if deployment.replica_limit is not None:
            wanted = min(wanted, deployment.replica_limit)
        taken = {r.number for r in mine}
        free = (n for n in range(wanted + len(mine)) if n not in taken)
        for number in islice(free, max(0, wanted - len(mine))):
            id = f"{deployment.name}/{number}"
            placed = PlacedProfile(-1, way.shape.profile)
            yield Replica(id, deployment.name, (), placed, None, way.config)

    def _way(self, replica: Replica) -> Candidate | None:
        product = self.product(replica)
        offered = self.problem.candidates.get(replica.deployment, ())
        agreeing = [c for c in offered if replica.runs_as(c, product)]
        return min(
            agreeing, key=lambda c: (c.running_only, c.config != replica.config), default=None
        )

    def load_mib(self, replica: Replica) -> int:
        """Weights that its move must load."""
        way = self.ways.get(replica.id) or self._way(replica)
        return 0 if way is None else way.load_mib

    def may_move(self, replica: Replica) -> bool:
        """Rule ``allowed``: whether a new copy of it may be started as it runs."""
        way = self.ways[replica.id]
        return way is not None and not way.running_only

    def may_change(self, gpu: FleetGpu) -> bool:
        """Whether instances may be created and destroyed there."""
        free = Sharing.MIG in gpu.node.sharing and not gpu.node.layouts_fixed
        return gpu.gpu.mig is not None and free and gpu.id not in self.plain

    def class_of(self, gpu: FleetGpu, held: set[str]) -> _Class:
        """What that GPU is, as far as the flow can tell."""
        inside = []
        for placed, replica in sorted(self.inside.get(gpu.id, {}).items()):
            asked = self.deployments.get(replica.deployment)
            factor = asked.move_weight if asked is not None else 1
            fixed = replica.deployment in held or not self.may_move(replica)
            fixed &= not gpu.cordoned
            load = self.load_mib(replica)
            inside.append((placed, load, factor * load, fixed))
        return _Class(
            gpu.gpu.name,
            tuple(inside),
            tuple(sorted(self.standing.get(gpu.id, ()))),
            self.problem.fleet.price_micros(gpu.node),
            gpu.cordoned,
        )

    def fixed_use(self, changing: set[str]) -> tuple[int, int]:
        """Price and number of used GPUs that the flow does not touch."""
        used = {g for r in self.replicas for g in r.gpus} - changing
        return sum(self.problem.fleet.price_micros(self.gpus[g].node) for g in used), len(used)

    # --- figures of a placement

    def price_of(self, found: Placement) -> int:
        """Price per hour of the GPUs in use."""
        used = {g for r in found.replicas for g in r.gpus}
        return sum(self.problem.fleet.price_micros(self.gpus[g].node) for g in used)

    def unmet(self, found: Placement) -> Iterator[Objective]:
        """Missing shares by priority; what is missing other configurations might serve."""
        missing = self.missing(found)
        sums: Counter[int] = Counter()
        for d in self.problem.deployments:
            sums[d.priority] += missing[d.name]
        for priority, ppm in sorted(sums.items(), reverse=True):
            yield Objective("unmet", ppm, 0, priority)

    def missing(self, found: Placement) -> dict[str, int]:
        """The missing share of each deployment, in millionths."""
        served: Counter[str] = Counter()
        count: Counter[str] = Counter(r.deployment for r in found.replicas)
        for replica in found.replicas:
            deployment, way = self.deployments.get(replica.deployment), self.ways[replica.id]
            if deployment is not None and way is not None:
                served[replica.deployment] += capacity_mrps(deployment, way)
        asked = self.problem.deployments
        return {d.name: missing_ppm(d, served[d.name], count[d.name]) for d in asked}

    def stranded(self, found: Placement) -> int:
        """The tie-break, as the search counts it."""
        from optimizer.solver.search import stranded_mib

        return stranded_mib(self.problem, found)

    def empties(self, replicas: Sequence[Replica]) -> tuple[Instance, ...]:
        """Instances of today that stand empty and in nobody's way at the end."""
        held: dict[str, list[PlacedProfile]] = defaultdict(list)
        for replica in replicas:
            if replica.mig is not None:
                held[replica.gpus[0]].append(replica.mig)
        found = []
        for gpu in sorted(self.standing):
            table = self.gpus[gpu].gpu.mig if gpu in self.gpus else None
            if table is None or gpu in self.plain:
                continue
            taken = held[gpu]
            for placed in sorted(self.standing[gpu] - set(taken)):
                if not table.faults([*taken, placed]):
                    taken.append(placed)
                    found.append(Instance(gpu, placed))
        return tuple(found)


@dataclass(slots=True, eq=False)
class _Seating:
    """Who sits where while leavers are given seats, and the rules that tell replicas apart."""

    seen: _Seen
    placed: list[Replica]
    on_gpu: dict[str, Counter[str]] = field(default_factory=dict)
    on_node: dict[str, Counter[str]] = field(default_factory=dict)
    on_rack: dict[str, Counter[str]] = field(default_factory=dict)
    seated: dict[str, tuple[Replica, Replica]] = field(default_factory=dict)  # from where, to where

    def __post_init__(self) -> None:
        for replica in self.placed:
            self._count(replica)

    def _count(self, replica: Replica, times: int = 1) -> None:
        name = replica.deployment
        nodes = {self.seen.gpus[g].node.name: self.seen.gpus[g].node for g in replica.gpus}
        racks = sorted({node.rack_domain for node in nodes.values()})
        places = ((self.on_gpu, replica.gpus), (self.on_node, nodes), (self.on_rack, racks))
        for counts, here in places:
            for place in here:
                counter = counts.setdefault(place, Counter())
                counter[name] += times
                if not counter[name]:
                    del counter[name]

    def seat(
        self,
        leaving: Sequence[Replica],
        seats: Mapping[tuple[str, str], list[tuple[FleetGpu, PlacedProfile]]],
    ) -> list[Replica]:
        """Give each leaver a free instance of its profile; returns those that found none."""
        lost = []
        for replica in sorted(leaving, key=lambda r: (-self._strict(r), replica_order(r.id))):
            assert replica.mig is not None
            free = seats[self.seen.product(replica), replica.mig.profile]
            found = self._best(replica, free)
            if found is not None:
                self._sit(replica, free.pop(found))
            elif not self._swapped(replica, free):
                lost.append(replica)
        return lost

    def _sit(self, replica: Replica, seat: tuple[FleetGpu, PlacedProfile]) -> None:
        gpu, placed = seat
        moved = replace(replica, gpus=(gpu.id,), mig=placed)
        self.placed.append(moved)
        self.seated[replica.id] = (replica, moved)
        self._count(moved)

    def _swapped(self, replica: Replica, free: list[tuple[FleetGpu, PlacedProfile]]) -> bool:
        """Have one who was seated before take a free instance, and take its seat."""
        assert replica.mig is not None
        product = self.seen.product(replica)
        for origin, other in list(self.seated.values()):
            assert other.mig is not None
            gpu = self.seen.gpus[other.gpus[0]]
            if gpu.gpu.name != product or other.mig.profile != replica.mig.profile:
                continue
            self._count(other, -1)
            if self.fits(replica, gpu):
                self._count(replace(replica, gpus=other.gpus, mig=other.mig))
                found = self._best(origin, free)
                self._count(replace(replica, gpus=other.gpus, mig=other.mig), -1)
                if found is not None:
                    self.placed.remove(other)
                    self._sit(replica, (gpu, other.mig))
                    self._sit(origin, free.pop(found))
                    return True
            self._count(other)
        return False

    def _strict(self, replica: Replica) -> int:
        d = self.seen.deployments.get(replica.deployment)
        if d is None:
            return 0
        limits = (d.pin, d.isolate != "none", d.spread_node, d.spread_rack, d.avoid)
        return sum(bool(limit) for limit in limits)

    def _best(self, replica: Replica, free: Sequence[tuple[FleetGpu, PlacedProfile]]) -> int | None:
        """The first free instance on another GPU that breaks no rule, else one on its own."""
        second = None
        for i, (gpu, _) in enumerate(free[:SEATS_TRIED]):
            if self.fits(replica, gpu):
                if gpu.id not in replica.gpus:
                    return i
                second = i if second is None else second
        return second

    def fits(self, replica: Replica, gpu: FleetGpu) -> bool:
        """Whether the replica may join who is there."""
        asked = self.seen.deployments.get(replica.deployment)
        if asked is None:
            return False
        node = gpu.node
        if asked.pin and not {gpu.id, node.name} & set(asked.pin):
            return False
        on_node = self.on_node.get(node.name, Counter())
        if asked.spread_node is not None and on_node[asked.name] >= asked.spread_node:
            return False
        on_rack = self.on_rack.get(node.rack_domain, Counter())
        if asked.spread_rack is not None and on_rack[asked.name] >= asked.spread_rack:
            return False
        if any(self._apart(asked, n, "gpu") for n in self.on_gpu.get(gpu.id, ())):
            return False
        if any(self._apart(asked, n, "node") for n in on_node):
            return False
        return self._host_holds(asked, gpu, on_node)

    def _apart(self, asked: Deployment, name: str, place: str) -> bool:
        """Whether isolation or avoidance keeps two deployments off one GPU, or off one node."""
        other = self.seen.deployments.get(name)
        if other is None or other.name == asked.name:
            return False
        strangers = asked.tenant != other.tenant
        isolated = {asked.isolate, other.isolate}
        if place == "node":
            return "node" in isolated and strangers
        avoid = other.name in asked.avoid or asked.name in other.avoid
        return avoid or "gpu" in isolated or ("tenant" in isolated and strangers)

    def _host_holds(self, asked: Deployment, gpu: FleetGpu, on_node: Counter[str]) -> bool:
        node, known = gpu.node, self.seen.deployments
        for room, need in (
            (node.cpu_millicores, "host_cpu_millicores"),
            (node.host_memory_mib, "host_memory_mib"),
        ):
            if room is None:
                continue
            taken = sum(n * getattr(known[d], need) for d, n in on_node.items() if d in known)
            if taken + getattr(asked, need) > room:
                return False
        return True
