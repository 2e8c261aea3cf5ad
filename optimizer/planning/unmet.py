"""Demand left unserved: how much, what was short, and what would help."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.domain import words
from optimizer.domain.config import Candidate, Dropped
from optimizer.domain.fleet import Fleet, FleetGpu, Sharing
from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.domain.placement import Placement, Replica, node_of, replica_order
from optimizer.domain.plan import Unmet
from optimizer.domain.prices import RoomPrices
from optimizer.domain.problem import PlacementProblem, missing_ppm, reserve_name, with_reserve
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.planning.layout import layouts_after
from optimizer.planning.match import Matcher
from optimizer.planning.places import places
from optimizer.planning.rooms import Rooms

SHAPES = 3  # of the shapes that were short, so many are named
CORDONED_TRIED = 50  # replicas that are tried on cordoned GPUs, one beside the other


def unmet(
    problem: PlacementProblem, placement: Placement, dropped: Mapping[str, tuple[Dropped, ...]]
) -> tuple[Unmet, ...]:
    """Every deployment that gets less than it asks, in document order."""
    matcher = Matcher(problem)
    by_name: dict[str, list[Replica]] = {d.name: [] for d in problem.deployments}
    for replica in placement.replicas:
        by_name.setdefault(replica.deployment, []).append(replica)
    found = []
    rooms: Rooms | None = None
    reopened = _reopened(problem.fleet)
    for deployment in problem.deployments:
        mine = by_name[deployment.name]
        served = sum(matcher.capacity_mrps(r) for r in mine)
        if not missing_ppm(deployment, served, len(mine)):
            continue
        if rooms is None:
            rooms = _rooms(problem, placement)
        mrps = max(0, (deployment.asked_mrps or 0) - served)
        replicas = max(0, deployment.min_replicas - len(mine))
        case = _Case(problem, deployment, mine, mrps, replicas, rooms, reopened)
        reason, fix = case.explained(dropped.get(deployment.name, ()))
        found.append(Unmet(deployment.name, mrps, replicas, reason, fix))
    return tuple(found)


def _rooms(problem: PlacementProblem, placement: Placement) -> Rooms:
    """What the finished placement leaves; room kept free is held by the reserve's own."""
    held = tuple(
        Replica(
            f"{reserve_name(piece.entry)}/{n}", reserve_name(piece.entry), piece.gpus, piece.mig
        )
        for n, piece in enumerate(placement.reserved)
    )
    full = replace(placement, replicas=(*placement.replicas, *held))
    return Rooms(with_reserve(problem), full, layouts_after(problem, full))


def nearest(dropped: Sequence[Dropped]) -> Dropped | None:
    """The refusal that came closest: too slow by the least, else short of memory by the least."""

    def miss(one: Dropped) -> tuple[int, float]:
        slow = re.search(r"(?:TPOT|TTFT) ([\d.]+) ms.*?SLO ([\d.]+)", one.reason)
        if slow:
            return (0, float(slow[1]) / max(0.001, float(slow[2])))
        short = re.search(r"needs? ([\d.]+) GiB.*?(?:has|have) ([\d.]+)", one.reason)
        if short:
            return (1, float(short[1]) / max(0.001, float(short[2])))
        return (2, 0.0)

    return min(dropped, key=miss, default=None)


@dataclass(frozen=True, slots=True)
class _Case:
    """One deployment that misses ``mrps`` or ``replicas``, in the finished placement."""

    problem: PlacementProblem
    deployment: Deployment
    mine: list[Replica]
    mrps: int
    replicas: int
    rooms: Rooms
    reopened: Mapping[str, Sequence[FleetGpu]]  # by product, nodes with cordons as if they had none
    any_network: bool = False  # whether links are asked for no room

    def explained(self, dropped: Sequence[Dropped]) -> tuple[str, str | None]:
        """What was short, and the smallest fix where one is certain to help."""
        ways = self._ways()
        if not ways:
            return self._no_way(dropped), None
        limit = self.deployment.replica_limit
        if limit is not None and len(self.mine) >= limit:
            return self._capped(ways, limit)
        shapes = _one_a_shape(ways)
        open_way = next((w for w in shapes if self._free(w)), None)
        if open_way is not None:
            return self._still_free(open_way), None
        slow = next((w for w in shapes if replace(self, any_network=True)._free(w)), None)
        if slow is not None:
            handed = f"{slow.network_mbs} MB/s that its stages hand over"
            return f"network_bandwidth: no free nodes have links with {handed} left", None
        shut = self._behind_cordons(shapes)
        if shut is not None and shut.serves:
            return "cordon: only GPUs that are cordoned have room for it", f"uncordon {shut.names}"
        rule = self._binding_rule(shapes)
        if rule is not None:
            return rule, None
        also = f"; {shut.names} {shut.verb} room for some of it, but cordoned" if shut else ""
        return f"no room: {self._short(ways)}{also}", self._more_gpus(ways)

    def _ways(self) -> list[Candidate]:
        """What may be started, cheapest per served request first."""
        offered = self.problem.candidates.get(self.deployment.name, ())
        ways = [w for w in offered if not w.running_only and (w.capacity_mrps or not self.mrps)]
        prices, pin = RoomPrices(self.problem.fleet), self.deployment.pin
        price = {w.key: prices.served_micros(w, pin) or 0 for w in ways}
        return sorted(ways, key=lambda w: (price[w.key], str(w.key)))

    def _no_way(self, dropped: Sequence[Dropped]) -> str:
        closest = nearest(dropped)
        if closest is None:
            return "no way to run it on this fleet"
        tried = f"{words.plural(len(dropped), 'way')} to run it tried, none works"
        return f"{tried}; nearest, {closest.what}: {closest.reason}"

    def _count(self, way: Candidate) -> int:
        """Replicas of that way that would serve what is missing."""
        capacity = way.capacity_mrps if self.mrps else None
        return max(self.replicas, ceil_div(self.mrps, capacity) if capacity else 0)

    def _capped(self, ways: list[Candidate], limit: int) -> tuple[str, str | None]:
        best = max(way.capacity_mrps or 0 for way in ways)
        each = f", and one carries {words.rate(best)} at most" if best else ""
        reason = f"replicas.max is {limit}{each}"
        for way in ways:
            count = self._count(way)
            if self._fit(way, count):
                return reason, f"replicas.max {limit + count}: there is room"
        return reason, None

    def _like(self, way: Candidate) -> Replica:
        shape = way.shape
        mig = None if shape.profile is None else PlacedProfile(0, shape.profile)
        name, number = self.deployment.name, 1 + max((r.number for r in self.mine), default=-1)
        gpus = ("",) * shape.gpus
        return Replica(f"{name}/{number}", name, gpus, mig, shape.share, way.config)

    def _free(self, way: Candidate, gpus: Iterable[FleetGpu] | None = None) -> Replica | None:
        """A place for one more, of these GPUs or the whole fleet."""
        gpus = self.problem.fleet.gpus() if gpus is None else gpus
        found = places(gpus, self.rooms, self._like(way), way.gpu)
        return next((one for one in found if self.any_network or self._linked(one, way)), None)

    def _linked(self, place: Replica, way: Candidate) -> bool:
        """Whether the links of its nodes have left what its stages hand over."""
        if len(place.nodes) == 1 or not way.network_mbs:
            return True
        matcher = Matcher(self.problem)
        for name in place.nodes:
            link = self.rooms.nodes[name].network_mbs
            across = [r for r in self.rooms.on_node[name].values() if len(r.nodes) > 1]
            ways = [matcher.candidate(r) for r in across]
            handed = way.network_mbs + sum(w.network_mbs for w in ways if w is not None)
            if link is not None and handed > link:
                return False
        return True

    def _fitting(
        self, way: Candidate, count: int, gpus: Sequence[FleetGpu] | None = None
    ) -> list[Replica]:
        """Places for up to so many more, one beside the other."""
        taken: list[Replica] = []
        while len(taken) < count:
            place = self._free(way, gpus)
            if place is None:
                break
            taken.append(replace(place, id=f"{place.id}+{len(taken)}"))
            self.rooms.take(taken[-1])
        for place in taken:
            self.rooms.release(place)
        return taken

    def _fit(self, way: Candidate, count: int) -> bool:
        return len(self._fitting(way, count)) == count

    def _behind_cordons(self, ways: list[Candidate]) -> "_Shut | None":
        """Cordoned GPUs that would hold what is missing, or else some of it; None: none do.

        Asked where nothing else is free, so only their own nodes need to be looked at.
        """
        best: _Shut | None = None
        for way in ways:
            if way.gpu not in self.reopened:
                continue
            count = self._count(way)
            found = self._fitting(way, min(count, CORDONED_TRIED), self.reopened[way.gpu])
            used = sorted({g for r in found for g in r.gpus}, key=replica_order)
            gpus = tuple(g for g in used if self.rooms.gpus[g].gpu.cordoned)
            if gpus and len(found) == count:
                return _Shut(gpus, serves=True)
            best = best or (_Shut(gpus, serves=False) if gpus else None)
        return best

    def _still_free(self, way: Candidate) -> str:
        limits = self.problem.fleet.limits
        if limits.price_micros_per_hour is not None:
            return "price_limit: the fleet's ceiling leaves no more GPUs to use"
        if limits.rack_power_w is not None:
            return "power_limit: the ceiling of its racks leaves no more GPUs to use"
        return f"room for {_shape(way)} is left, but the search ended before it was used"

    def _binding_rule(self, ways: list[Candidate]) -> str | None:
        """The one rule without which there would be room."""
        asked = self.deployment
        tries: list[tuple[str, Callable[[Deployment], Deployment], bool]] = [
            (_spread_words(asked), lambda d: replace(d, spread_node=None, spread_rack=None), False),
            (
                "isolation: what is free lies beside replicas it may not meet",
                lambda d: replace(d, isolate="none", avoid=()),
                True,
            ),
            (f"pin: {', '.join(asked.pin)} is full", lambda d: replace(d, pin=()), False),
            (
                "host CPU or memory: nodes with free GPU room have too little left",
                lambda d: replace(d, host_cpu_millicores=0, host_memory_mib=0),
                False,
            ),
        ]
        before = self.rooms.deployments
        for told, relaxed, everyone in tries:
            changed = before if everyone else {asked.name: asked}
            self.rooms.deployments = {**before, **{n: relaxed(d) for n, d in changed.items()}}
            try:
                free = any(self._free(way) for way in ways)
            finally:
                self.rooms.deployments = before
            if free:
                return told
        return None

    def _short(self, ways: Iterable[Candidate]) -> str:
        shapes = list(dict.fromkeys(_shape(way) for way in ways))
        more = f" or {len(shapes) - SHAPES} other shapes" if len(shapes) > SHAPES else ""
        if len(shapes) == SHAPES + 1:
            more = f" or {shapes[-1]}"
        return f"{', '.join(shapes[:SHAPES])}{more} is not free anywhere it may run"

    def _more_gpus(self, ways: list[Candidate]) -> str | None:
        """The cheapest number of empty GPUs that would hold what is missing.

        Not said where spread, pin or survive would ask for more than GPUs.
        """
        d = self.deployment
        if d.spread_node is not None or d.spread_rack is not None or d.pin or d.survive:
            return None
        fleet = self.problem.fleet
        prices = {n.gpu.name: (fleet.price_micros(n), n.gpu) for n in fleet.nodes}
        offers: list[tuple[int, int, str]] = []
        for way in ways:
            count = self._count(way)
            above = d.replica_limit is not None and len(self.mine) + count > d.replica_limit
            if above or way.gpu not in prices:
                continue
            price, gpu = prices[way.gpu]
            gpus = ceil_div(count, _per_gpu(gpu, way)) * way.shape.gpus
            offers.append((price * gpus, gpus, way.gpu))
        if not offers:
            return None
        price, gpus, name = min(offers)
        cost = f" ({words.price(price, fleet.unit)})" if fleet.priced else ""
        return f"{gpus} more {name}{cost}"


@dataclass(frozen=True, slots=True)
class _Shut:
    """Cordoned GPUs that a deployment could use, and whether they would serve all it misses."""

    gpus: tuple[str, ...]
    serves: bool

    @property
    def names(self) -> str:
        """``h100-03/0-7``; of GPUs on many nodes the first."""
        nodes = list(dict.fromkeys(node_of(g) for g in self.gpus))
        if len(nodes) <= SHAPES:
            return words.gpus(self.gpus)
        first = words.gpus(g for g in self.gpus if node_of(g) in nodes[:SHAPES])
        return f"{first} and {words.plural(len(nodes) - SHAPES, 'more node')}"

    @property
    def verb(self) -> str:
        """Whether they have or it has."""
        return "has" if len(self.gpus) == 1 else "have"


def _reopened(fleet: Fleet) -> dict[str, list[FleetGpu]]:
    """All GPUs of nodes with a cordon, by product, as if none of them were cordoned."""
    found: dict[str, list[FleetGpu]] = {}
    for node in fleet.nodes:
        if len(node.open_gpus()) < node.gpus:
            free = replace(node, cordoned=False)
            devices = [replace(node.device(i), cordoned=False) for i in range(node.gpus)]
            found.setdefault(node.gpu.name, []).extend(FleetGpu(free, d) for d in devices)
    return found


def _one_a_shape(ways: Iterable[Candidate]) -> list[Candidate]:
    """Of the ways that need the same room the one that carries most, in the order of the first."""
    found: dict[tuple[object, ...], Candidate] = {}
    for way in ways:
        kept = found.setdefault((way.gpu, way.shape.key), way)
        if (way.capacity_mrps or 0) > (kept.capacity_mrps or 0):
            found[way.gpu, way.shape.key] = way
    return list(found.values())


def _shape(way: Candidate) -> str:
    """``a 3g.40gb of h100-80gb-sxm``."""
    shape = way.shape
    if shape.profile is not None:
        return f"{words.one(shape.profile)} of {way.gpu}"
    if shape.share is not None:
        return f"a share of {words.gib(shape.share.memory_mib)} on {way.gpu}"
    if shape.gpus == 1:
        return f"a whole {way.gpu}"
    if shape.stages > 1:
        return f"{shape.stages} times {shape.block} whole {way.gpu}, each in one node"
    return f"{shape.gpus} whole {way.gpu} in one node"


def _spread_words(deployment: Deployment) -> str:
    node, rack = deployment.spread_node, deployment.spread_rack
    parts = [f"{node} a node"] if node is not None else []
    parts += [f"{rack} a rack"] if rack is not None else []
    return f"spread: at most {' and '.join(parts)}, and the rest of the room lies there"


def _per_gpu(gpu: Gpu, way: Candidate) -> int:
    """How many replicas of that way one empty GPU (or group) holds."""
    if way.shape.sharing is Sharing.WHOLE:
        return 1
    if way.shape.share is not None:
        share, room = way.shape.share, gpu.room
        parts = (
            (room.memory_mib, share.memory_mib),
            (room.bandwidth_mbs, share.bandwidth_mbs),
            (room.compute_ppm, share.compute_ppm),
        )
        return max(1, min(whole // part for whole, part in parts if part))
    profile = None if gpu.mig is None else gpu.mig.profile(way.shape.profile or "")
    return 1 if profile is None else profile.max_instances
