"""What runs, made to fit again: what may stay stays, what is short gets free room.

A greedy repair, the first answer to a changed problem. It moves nothing that may stay, so it
disturbs little; how far it is from the best price is for a bound to say. Rules that look beyond one
node are left to the judge.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import FleetGpu, Node, Sharing
from optimizer.domain.gpu import PlacedProfile, Use
from optimizer.domain.placement import Placement, Replica, node_of, replica_order
from optimizer.domain.problem import PlacementProblem, capacity_mrps, missing_ppm
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import colours, cordon, fixed_layout, may_stay, pairs, pin
from optimizer.solver.deal import Ground, Load, nodes_of
from optimizer.solver.formulation import Copies
from optimizer.solver.where import Seat, layout, settled

MOST_WAYS = 8  # ways of running a deployment that are tried, cheapest for what they serve first
MOST_AT_ONCE = 200  # replicas of one way
WHOLE_NODES = 0.1  # how often whole nodes are emptied


Staying = Sequence[tuple[Replica, Candidate]]


def stayers(problem: PlacementProblem, running: Placement | None) -> Staying:
    """Replicas that may stay where they are, each with the candidate that it runs as."""
    gpus = {gpu.id: gpu for gpu in problem.fleet.gpus()}
    ways = ((r, may_stay(problem, r, gpus)) for r in (running or Placement()).replicas)
    return [(replica, way) for replica, way in ways if way is not None]


def repaired(
    problem: PlacementProblem,
    running: Placement | None,
    *,
    rounds: int = 0,
    seed: int = 0,
    enough: float = 0.0,
    staying: Staying | None = None,
) -> Placement:
    """A placement near to ``running``: fewer replicas where fewer do, more in free room.

    ``rounds`` of emptying a few GPUs and filling them again better it, until everybody is served
    at ``enough`` micros per hour.
    """
    repair = Repair(problem, running, staying)
    repair.fill()
    dice = random.Random(seed)
    for _ in range(rounds):
        if repair.score()[:2] <= (0, enough) or not repair.better(dice):
            break
    return repair.placement()


class Repair:
    """A placement under repair: what stays, what is new, and the room they take."""

    def __init__(
        self,
        problem: PlacementProblem,
        running: Placement | None,
        staying: Staying | None = None,
    ) -> None:
        """``staying``: the ``stayers``, where they are known."""
        self.problem = problem
        self.room = room = Room(problem)
        self.kept: dict[str, Candidate] = {}
        # By the identity of its seat, which is kept too: identities of the dead are given again.
        self.stays: dict[int, tuple[Seat, Replica]] = {}
        self.seats: list[Seat] = []
        self.served = {d.name: _Served(d) for d in problem.deployments}
        for replica, way in stayers(problem, running) if staying is None else staying:
            seat = Seat(way.deployment, way, replica.gpus, replica.mig)
            if room.take(seat):
                self.kept[replica.id] = way
                self.stays[id(seat)] = (seat, replica)
                self.add(seat)
        if running is not None:
            room.stand(running)
        self._shed()
        while lonely := self._lonely():
            self.lift(lonely)

    def _lonely(self) -> list[Seat]:
        """Rule ``affinity``: replicas whose node lacks one that they want near."""
        by_node, names = self.room.ground.by_node, self.room.names
        return [
            seat
            for seat in self.seats
            if not all(
                any(by_node[node][wanted] for node in nodes_of(seat))
                for wanted in names[seat.deployment].near
            )
        ]

    def add(self, seat: Seat) -> None:
        """Count a replica in that has its room."""
        self.seats.append(seat)
        self.served[seat.deployment].add(seat.candidate)

    def lift(self, seats: list[Seat]) -> None:
        """Take replicas out again."""
        gone = {id(seat) for seat in seats}
        self.seats = [seat for seat in self.seats if id(seat) not in gone]
        for seat in reversed(seats):
            self.room.lift(seat)
            self.served[seat.deployment].add(seat.candidate, -1)

    def _shed(self) -> None:
        """Do without what the demand does not need: first what leaves a GPU empty."""
        wanted = {name for d in self.problem.deployments for name in d.near}
        held = self.room.held

        def alone(seat: Seat) -> tuple[int, int]:
            return (sum(held[g].replicas for g in seat.gpus), -seat.candidate.shape.gpus)

        for seat in sorted(self.seats, key=alone):
            mine, capacity = self.served[seat.deployment], seat.candidate.capacity_mrps or 0
            d = mine.d
            if d.disturb == "never" or d.survive or d.name in wanted:
                continue
            enough = d.asked_mrps is None or mine.mrps - capacity >= d.asked_mrps
            if enough and mine.replicas > d.min_replicas:
                self.lift([seat])

    def fill(self, dice: random.Random | None = None) -> list[Seat]:
        """Seats for whom is short, as far as there is room; ``dice`` vary what is preferred."""
        new: list[Seat] = []
        for d in _hardest_first(self.problem, self.served):
            found = _filled(self.problem, self.room, self.served[d.name], dice)
            self.seats += found
            new += found
        return new

    def score(self) -> tuple[int, int, tuple[int, ...], int]:
        """Whether anybody is short, the price; unmet by priority, how many do not stay."""
        unmet: dict[int, int] = {d.priority: 0 for d in self.problem.deployments}
        for served in self.served.values():
            unmet[served.d.priority] += served.missing
        levels = tuple(unmet[p] for p in sorted(unmet, reverse=True))
        moved = sum(id(seat) not in self.stays for seat in self.seats)
        return (int(any(levels)), self.room.price(), levels, moved)

    def better(self, dice: random.Random) -> bool:
        """Empty a few GPUs and fill them again; undone where it is worse. False: nothing to do."""
        used = [id for id, held in self.room.held.items() if held.replicas]
        if not used:
            return False
        before = self.score()
        new = sorted({g for s in self.seats if id(s) not in self.stays for g in s.gpus}) or used
        number = dice.choice((1, 1, 2, 2, 3, 4))
        chosen = {dice.choice(dice.choice((new, used))) for _ in range(number)}
        if dice.random() < WHOLE_NODES:
            nodes = {node_of(gpu) for gpu in chosen}
            chosen = {gpu for gpu in used if node_of(gpu) in nodes}
        bound = {d.name for d in self.problem.deployments if d.disturb == "never"}
        bound |= {name for d in self.problem.deployments for name in d.near}
        out = [
            seat
            for seat in self.seats
            if chosen.intersection(seat.gpus) and seat.deployment not in bound
        ]
        self.lift(out)
        filled = self.fill(dice)
        after = self.score()
        if (after[2], after[1], after[3]) > (before[2], before[1], before[3]):
            self.lift(filled)
            for seat in out:
                self.room.put(seat)
                self.add(seat)
        return True

    def placement(self) -> Placement:
        """The placement that it has come to."""
        stays = [self.stays[id(seat)][1] for seat in self.seats if id(seat) in self.stays]
        new = [seat for seat in self.seats if id(seat) not in self.stays]
        stays.sort(key=lambda replica: replica_order(replica.id))
        return settled(self.problem, tuple(stays), self.kept, new)


@dataclass(slots=True)
class _Served:
    """What a deployment has so far."""

    d: Deployment
    mrps: int = 0
    replicas: int = 0

    def add(self, way: Candidate, times: int = 1) -> None:
        self.mrps += times * capacity_mrps(self.d, way)
        self.replicas += times

    @property
    def missing(self) -> int:
        """In millionths of what it asks."""
        return missing_ppm(self.d, self.mrps, self.replicas)

    def wanted(self, way: Candidate) -> int:
        """How many replicas of that way would do."""
        short = max(0, (self.d.asked_mrps or 0) - self.mrps)
        capacity = capacity_mrps(self.d, way)
        if short and not capacity:
            return 0
        more = max(ceil_div(short, capacity) if short else 0, self.d.min_replicas - self.replicas)
        if self.d.replica_limit is not None:
            more = min(more, self.d.replica_limit - self.replicas)
        return min(MOST_AT_ONCE, max(0, more))


@dataclass(slots=True)
class Held:
    """What a GPU holds."""

    gpu: FleetGpu
    mode: Sharing | None = None
    replicas: int = 0
    used: Use = field(default_factory=Use)
    placed: list[PlacedProfile] = field(default_factory=list)
    standing: tuple[PlacedProfile, ...] = ()
    fixed: tuple[PlacedProfile, ...] | None = None  # instances that it keeps (``fixed_layout``)
    colours: list[frozenset[str]] = field(default_factory=list)


class Room:
    """The fleet's GPUs, filled seat by seat under the rules of a GPU and of a node."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.names = {d.name: d for d in problem.deployments}
        self.nodes = {n.name: n for n in problem.fleet.nodes}
        self.ground = Ground(problem, self.names, self.nodes)
        self.colours = {name: frozenset(some) for name, some in colours(problem).items()}
        fixed = fixed_layout(problem)
        self.held = {g.id: Held(g, fixed=fixed.get(g.id)) for g in problem.fleet.gpus()}
        self.usable: dict[str, list[Held]] = defaultdict(list)  # by product, cheapest first
        for held in self.held.values():
            if cordon(held.gpu):
                self.usable[held.gpu.gpu.name].append(held)
        for some in self.usable.values():
            some.sort(key=lambda h: problem.fleet.price_micros(h.gpu.node))

    def stand(self, running: Placement) -> None:
        """Remember the instances that stand empty now."""
        standing: dict[str, set[PlacedProfile]] = defaultdict(set)
        for replica in running.replicas:
            if replica.mig is not None:
                standing[replica.gpus[0]].add(replica.mig)
        for instance in running.instances:
            standing[instance.gpu].add(instance.placed)
        for id, some in standing.items():
            if id in self.held:
                self.held[id].standing = tuple(sorted(some))

    def take(self, seat: Seat) -> bool:
        """Put a replica there if it fits there."""
        if not all(self._fits(self.held[g], seat) for g in seat.gpus) or self._too_dear(seat):
            return False
        done: list[tuple[Load, Node]] = []
        for load, node in self._loads(seat, 0):
            if not self.ground.fits(load, node):
                _lifted(self.ground, done)
                return False
            self.ground.put(load, node)
            load.node = node.name
            done.append((load, node))
        self._hold(seat)
        return True

    def _too_dear(self, seat: Seat) -> bool:
        """Rule ``price_limit``: whether the fleet would cost more than it may."""
        limit = self.problem.fleet.limits.price_micros_per_hour
        if limit is None:
            return False
        new = [self.held[g].gpu.node for g in seat.gpus if not self.held[g].replicas]
        return self.price() + sum(map(self.problem.fleet.price_micros, new)) > limit

    def _loads(self, seat: Seat, others: int) -> list[tuple[Load, Node]]:
        """What it is to each of its nodes; GPUs with so many other replicas count as its own."""
        copies = Copies(seat.deployment, seat.candidate, 0, 0)
        parts: list[Load] = []
        loads: list[tuple[Load, Node]] = []
        for name in [node_of(seat.gpus[0])] if len(seat.gpus) == 1 else nodes_of(seat):
            here = [g for g in seat.gpus if node_of(g) == name]
            gpus = sum(self.held[g].replicas == others for g in here)
            parts.append(Load(None, gpus, [(copies, "")], parts=parts))
            loads.append((parts[-1], self.nodes[name]))
        return loads

    def price(self) -> int:
        """What the GPUs in use cost, in micros per hour."""
        return sum(
            self.problem.fleet.price_micros(held.gpu.node)
            for held in self.held.values()
            if held.replicas
        )

    def put(self, seat: Seat) -> None:
        """Put a replica where it is known to fit."""
        for load, node in self._loads(seat, 0):
            self.ground.put(load, node)
            load.node = node.name
        self._hold(seat)

    def _hold(self, seat: Seat) -> None:
        shape = seat.candidate.shape
        for id in seat.gpus:
            held = self.held[id]
            held.mode, held.replicas = shape.sharing, held.replicas + 1
            held.colours.append(self.colours[seat.deployment])
            if seat.mig is not None:
                held.placed.append(seat.mig)
            if shape.share is not None:
                held.used += shape.share

    def lift(self, seat: Seat) -> None:
        """Take a replica out again."""
        loads = self._loads(seat, 1)
        for load, node in loads:
            load.node = node.name
        _lifted(self.ground, loads)
        shape = seat.candidate.shape
        for id in seat.gpus:
            held = self.held[id]
            held.replicas -= 1
            held.mode = held.mode if held.replicas else None
            held.colours.remove(self.colours[seat.deployment])
            if seat.mig is not None:
                held.placed.remove(seat.mig)
            if shape.share is not None:
                held.used = _less(held.used, shape.share)

    def _fits(self, held: Held, seat: Seat) -> bool:
        shape = seat.candidate.shape
        kept = held.fixed
        if kept is not None and not (seat.mig in kept if seat.mig else not kept):
            return False
        if shape.sharing is Sharing.WHOLE:
            return not held.replicas
        if held.mode not in (None, shape.sharing):
            return False
        mine = self.colours[seat.deployment]
        if held.colours and not mine.intersection(*held.colours):
            return False
        if shape.share is not None:
            return (held.used + shape.share).fits_in(held.gpu.gpu.room)
        table = held.gpu.gpu.mig
        return (
            table is not None
            and seat.mig is not None
            and not table.faults(tuple(sorted((*held.placed, seat.mig))))
        )

    def next(
        self, way: Candidate, within: frozenset[str] | None = None, *, anew: bool = True
    ) -> Seat | None:
        """A free place for one more replica that way: on GPUs in use, else on empty ones.

        ``within``: on these nodes only; not ``anew``: on no empty GPU.
        """
        d, shape = self.names[way.deployment], way.shape
        some = self.usable.get(way.gpu, [])
        if within is not None:
            some = [held for held in some if held.gpu.node.name in within]
        if shape.sharing is Sharing.WHOLE:
            groups = self._groups(d, way, some) if anew else ()
            return next((s for s in groups if self.take(s)), None)
        for busy in (True, False) if anew else (True,):
            for held in some:
                if bool(held.replicas) is busy and held.mode in (None, shape.sharing):
                    seat = self._on(held, d, way)
                    if seat is not None and self.take(seat):
                        return seat
        return None

    def _may(self, held: Held, d: Deployment, way: Candidate) -> bool:
        if way.shape.sharing not in held.gpu.node.sharing or not pin(d, held.gpu):
            return False
        here = self.ground.by_node[held.gpu.node.name]
        return all(here[name] for name in d.near)

    def _on(self, held: Held, d: Deployment, way: Candidate) -> Seat | None:
        if not self._may(held, d, way):
            return None
        if way.shape.share is not None:
            return Seat(d.name, way, (held.gpu.id,))
        table, profile = held.gpu.gpu.mig, way.shape.profile
        if table is None or profile is None or len(held.placed) >= table.memory_slices:
            return None
        if held.fixed is not None:
            places = [p for p in held.fixed if p.profile == profile and p not in held.placed]
            return Seat(d.name, way, (held.gpu.id,), places[0]) if places else None
        free = tuple(p for p in held.standing if p not in held.placed)
        try:
            placed = layout(table, tuple(sorted(held.placed)), free, (profile,))
        except ValueError:
            return None
        return Seat(d.name, way, (held.gpu.id,), placed[0])

    def _groups(self, d: Deployment, way: Candidate, some: Iterable["Held"]) -> Iterator[Seat]:
        """Free groups of whole GPUs, on the fullest node first; a pipeline's on few nodes."""
        shape = way.shape
        free: dict[str, list[int]] = defaultdict(list)
        for held in some:
            if not held.replicas and not held.fixed and self._may(held, d, way):
                free[held.gpu.node.name].append(held.gpu.device.index)
        for of in (n for n in range(1, shape.stages + 1) if shape.stages % n == 0):
            size = shape.gpus // of
            parts = [
                tuple(f"{name}/{i}" for i in chosen)
                for name in sorted(free, key=lambda n: len(free[n]))
                if (chosen := self._together(name, sorted(free[name]), size, shape.block))
            ]
            for first in range(len(parts) - of + 1):
                gpus = (gpu for part in sorted(parts[first : first + of]) for gpu in part)
                yield Seat(d.name, way, tuple(gpus))

    def _together(self, node: str, free: list[int], size: int, block: int) -> list[int]:
        """So many of a node's free GPUs, on bridged pairs where blocks are pairs; or none."""
        if block == 2 and self.nodes[node].nvlink_domain == "pair":
            free = [i for pair in pairs(free) for i in pair]
        return free[:size] if len(free) >= size else []


def _lifted(ground: Ground, loads: list[tuple[Load, Node]]) -> None:
    """Count the parts of a replica out again."""
    for load, node in reversed(loads):
        ground.put(load, node, -1)
        load.node = None


def _less(used: Use, share: Use) -> Use:
    return Use(
        used.memory_mib - share.memory_mib,
        used.bandwidth_mbs - share.bandwidth_mbs,
        used.compute_ppm - share.compute_ppm,
    )


def _hardest_first(problem: PlacementProblem, served: dict[str, _Served]) -> Iterable[Deployment]:
    """Deployments that are short: highest priority first, then those that take most room."""
    short = [d for d in problem.deployments if served[d.name].missing]
    size = {d.name: max((w.shape.gpus for w in _ways(problem, d)), default=0) for d in short}
    return sorted(short, key=lambda d: (-d.priority, bool(d.near), -size[d.name]))


def _ways(problem: PlacementProblem, d: Deployment) -> list[Candidate]:
    return [w for w in problem.candidates.get(d.name, ()) if not w.running_only]


def _filled(
    problem: PlacementProblem, room: Room, served: _Served, dice: random.Random | None
) -> list[Seat]:
    """Seats until the deployment is served or no way of running it finds any."""
    seats: list[Seat] = []
    while served.missing:
        best: tuple[tuple[int, float, float], Candidate, int] | None = None
        for way in _cheapest_first(problem, served):
            tried = _placed(room, way, served.wanted(way))
            price = sum(room_price for _, room_price in tried)
            for seat, _ in reversed(tried):
                room.lift(seat)
            if tried:
                after = _Served(served.d, served.mrps, served.replicas)
                after.add(way, len(tried))
                listed = _listed(problem, way) * len(tried)
                # An empty GPU's price is also for what comes after; how much of it, nobody knows.
                paid = price if dice is None else listed + dice.random() * max(0.0, price - listed)
                key = (after.missing, paid, listed)
                if best is None or key < best[0]:
                    best = (key, way, len(tried))
                if dice is None and not after.missing and not price:
                    break
        if best is None:
            break
        more = [seat for seat, _ in _placed(room, best[1], best[2])]
        served.add(best[1], len(more))
        seats += more
    return seats


def _placed(room: Room, way: Candidate, times: int) -> list[tuple[Seat, int]]:
    """As many seats as there are, each with what its GPUs add to the price."""
    found: list[tuple[Seat, int]] = []
    for _ in range(times):
        seat = room.next(way)
        if seat is None:
            break
        new = [g for g in seat.gpus if room.held[g].replicas == 1]
        price = sum(room.problem.fleet.price_micros(room.held[g].gpu.node) for g in new)
        found.append((seat, price))
    return found


def _cheapest_first(problem: PlacementProblem, served: _Served) -> list[Candidate]:
    """Ways of running it, by what the room for all of it would cost."""
    ways = [(w, served.wanted(w)) for w in _ways(problem, served.d)]
    usable = [(w, times) for w, times in ways if times]
    usable.sort(key=lambda pair: (_listed(problem, pair[0]) * pair[1], pair[0].key))
    return [w for w, _ in usable[:MOST_WAYS]]


def _listed(problem: PlacementProblem, way: Candidate) -> float:
    """The part of the GPUs' price that one replica's room is."""
    nodes = [n for n in problem.fleet.nodes if n.gpu.name == way.gpu]
    if not nodes:
        return 0.0
    price, shape, gpu = min(map(problem.fleet.price_micros, nodes)), way.shape, nodes[0].gpu
    if shape.share is not None:
        return price * max(shape.share.parts_of(gpu.room))
    if shape.profile is not None and gpu.mig is not None:
        profile = gpu.mig.profile(shape.profile)
        return price * profile.memory_slices / gpu.mig.memory_slices if profile else price
    return float(price * shape.gpus)
