"""The rules that may have to do with a clash: how to leave each out, and how to ease it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from optimizer.domain import words
from optimizer.domain.fleet import Limits as Ceilings
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Deployment
from optimizer.solver.foresee import demanding
from optimizer.solver.formulation import Expr, Formulation, rack_watts
from optimizer.solver.measure import hottest_rack_w, price_micros
from optimizer.solver.witness import Witness

MOST_STEPS = 64  # of a number that is eased one by one
CENT_MICROS = 10_000
DOMAINS = ("node", "rack", "zone")

Change = Callable[[PlacementProblem], PlacementProblem]


class _Step(Protocol):
    def __call__(self, problem: PlacementProblem, step: int) -> PlacementProblem: ...


class _Raise(Protocol):
    def __call__(self, problem: PlacementProblem, ceiling: int) -> PlacementProblem: ...


@dataclass(frozen=True, slots=True)
class Easing:
    """A rule's number made looser: what each of so many steps reads, and the problem with it."""

    steps: int
    words: Callable[[int], str]
    at: "_Step"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One of the fleet's ceilings: what is kept under it, and the problem with another."""

    goal: Callable[[Formulation], Expr]
    spent: Callable[[Witness], int]  # by what was given room
    placed: Callable[[PlacementProblem, Placement], int]  # by a placement
    at: "_Raise"
    words: Callable[[int], str]
    step: int = 1  # it is told in whole ones of these

    def rounded(self, spent: int) -> int:
        """The lowest told that is no lower than what is spent."""
        return self.step * ceil_div(spent, self.step)


@dataclass(frozen=True, slots=True)
class Part:
    """A rule about something, by name, the problem without it, and ways to ease it.

    ``owner``: the deployment that says it; None: the fleet.
    """

    name: str
    without: Change
    easings: tuple[Easing, ...] = ()
    ceiling: Ceiling | None = None
    owner: str | None = None


def least(steps: int, helps: Callable[[int], bool | None]) -> int | None:
    """The least step that helps, where a further one helps as well; None: none does."""
    low, high = 0, 1
    while high < steps and not helps(high):
        low, high = high, min(steps, 2 * high)
    if steps < 1 or (high == steps and not helps(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if helps(middle) else (middle, high)
    return high


def without(problem: PlacementProblem, parts: Sequence[Part]) -> PlacementProblem:
    for part in parts:
        problem = part.without(problem)
    return problem


def parts(problem: PlacementProblem) -> Iterator[Part]:
    """Every rule that may have to do with a clash: first those that forbid, then those that ask."""
    only = demanding(problem)
    yield from _about_fleet(only)
    for d in only.deployments:
        changes: tuple[tuple[str, dict[str, Any], object], ...] = (
            ("spread", {"spread_node": None, "spread_rack": None}, d.spread_node or d.spread_rack),
            ("isolation", {"isolate": "none"}, d.isolate != "none"),
            ("anti_affinity", {"avoid": ()}, d.avoid),
            ("affinity", {"near": ()}, d.near),
            ("pin", {"pin": ()}, d.pin and not d.reserve),
            ("replica_bounds", {"max_replicas": None}, d.max_replicas),
        )
        for name, fields, said in changes:
            if said:
                part = _changed(f"{name}: {d.name}", d, fields)
                yield replace(part, easings=_eased(name, d))
    for d in only.deployments:
        if d.reserve:
            fewer = _numbered(
                f"{d.name}.count", d, "min_replicas", d.min_replicas, d.min_replicas - 1, -1
            )
            drop = partial(_dropped, name=d.name)
            yield Part(d.name, drop, (fewer,), owner=d.name)
        if d.survive and d.asked_mrps:
            part = _changed(f"survive: {d.name}", d, {"survive": None})
            yield replace(part, easings=_eased("survive", d))
        if d.disturb == "never":
            yield _changed(f"do_not_disturb: {d.name}", d, {"disturb": "allowed"})


def _eased(name: str, d: Deployment) -> tuple[Easing, ...]:
    """The numbers of a deployment's rule, each to be made larger."""
    if name == "spread":
        told = (("node", d.spread_node), ("rack", d.spread_rack))
        return tuple(
            _numbered(f"{d.name}.spread.{what}", d, f"spread_{what}", limit, MOST_STEPS, 1)
            for what, limit in told
            if limit is not None
        )
    if name == "replica_bounds" and d.max_replicas is not None and d.demand is not None:
        limit = d.max_replicas
        return (_numbered(f"{d.name}.replicas.max", d, "max_replicas", limit, MOST_STEPS, 1),)
    if name == "survive" and d.survive in DOMAINS:
        smaller = DOMAINS[: DOMAINS.index(d.survive)][::-1]
        return (
            Easing(
                len(smaller),
                lambda i: f"{d.name}.survive {d.survive} -> {smaller[i - 1]}",
                lambda problem, step: _changed("", d, {"survive": smaller[step - 1]}).without(
                    problem
                ),
            ),
        )
    return ()


def _numbered(
    words: str, d: Deployment, field: str, value: int, steps: int, direction: int
) -> Easing:
    """One field of a deployment, a step at a time."""
    return Easing(
        steps,
        lambda i: f"{words} {value} -> {value + direction * i}",
        lambda problem, step: _changed("", d, {field: value + direction * step}).without(problem),
    )


def _price_ceiling(problem: PlacementProblem, now: int) -> Ceiling:
    unit = problem.fleet.unit
    said = f"limits.price_per_hour {words.price(now, unit)}"
    return Ceiling(
        lambda f: f.price_micros(),
        lambda witness: witness.price,
        price_micros,
        lambda problem, ceiling: _limited(problem, price_micros_per_hour=ceiling),
        lambda v: f"{said} -> {words.price(v, unit)}",
        CENT_MICROS,
    )


def _power_ceiling(now: int) -> Ceiling:
    said = f"limits.rack_power_kw {words.number(now / 1000)} kW"
    return Ceiling(
        _hottest_rack,
        lambda witness: max(witness.watts.values(), default=0),
        hottest_rack_w,
        lambda problem, ceiling: _limited(problem, rack_power_w=ceiling),
        lambda v: f"{said} -> {words.number(v / 1000)} kW",
        100,
    )


def _hottest_rack(f: Formulation) -> Expr:
    """Watts that no rack's used GPUs exceed; of alike racks, on average."""
    ceiling = f.model.new_int_var(0, 1 << 40, "hottest rack")
    for used, number in rack_watts(f):
        f.model.add(used <= number * ceiling)
    return ceiling


def eased_rules(d: Deployment) -> tuple[Easing, ...]:
    """The numbers of all of a deployment's own rules."""
    return tuple(
        easing for name in ("spread", "replica_bounds", "survive") for easing in _eased(name, d)
    )


def ceilings(problem: PlacementProblem) -> Iterator[tuple[str, PlacementProblem, Ceiling]]:
    """Each of the fleet's ceilings by the name of its rule, and the problem without it."""
    limits = problem.fleet.limits
    if limits.price_micros_per_hour is not None:
        dear = _price_ceiling(problem, limits.price_micros_per_hour)
        yield "price_limit", _limited(problem, price_micros_per_hour=None), dear
    if limits.rack_power_w is not None:
        hot = _power_ceiling(limits.rack_power_w)
        yield "power_limit", _limited(problem, rack_power_w=None), hot


def _lifted(problem: PlacementProblem, name: str) -> PlacementProblem:
    """The problem without that ceiling."""
    return next((lifted for rule, lifted, _ in ceilings(problem) if rule == name), problem)


def _about_fleet(problem: PlacementProblem) -> Iterator[Part]:
    nodes = problem.fleet.nodes
    for name, _, ceiling in ceilings(problem):
        lift = partial(_lifted, name=name)
        yield Part(name, lift, ceiling=ceiling)
    needed = problem.deployments
    for name, fields, said in (
        ("fixed_layout", {"layouts_fixed": False}, any(n.layouts_fixed for n in nodes)),
        (
            "host_cpu",
            {"cpu_millicores": None},
            any(d.host_cpu_millicores for d in needed) and any(n.cpu_millicores for n in nodes),
        ),
        (
            "host_memory",
            {"host_memory_mib": None},
            any(d.host_memory_mib for d in needed) and any(n.host_memory_mib for n in nodes),
        ),
    ):
        if said:
            yield Part(name, lambda p, fields=fields: refitted(p, fields))  # type: ignore[misc]
    if any(gpu.cordoned for gpu in problem.fleet.gpus()):
        yield Part("cordon", opened)


def _changed(name: str, d: Deployment, fields: dict[str, Any]) -> Part:
    def without(problem: PlacementProblem) -> PlacementProblem:
        some = tuple(
            replace(one, **fields) if one.name == d.name else one for one in problem.deployments
        )
        return replace(problem, deployments=some)

    return Part(name, without, owner=d.name)


def _dropped(problem: PlacementProblem, name: str) -> PlacementProblem:
    some = tuple(one for one in problem.deployments if one.name != name)
    return replace(problem, deployments=some)


def _limited(problem: PlacementProblem, **fields: int | None) -> PlacementProblem:
    ceilings: Ceilings = replace(problem.fleet.limits, **fields)
    return replace(problem, fleet=replace(problem.fleet, limits=ceilings))


def refitted(problem: PlacementProblem, fields: dict[str, Any]) -> PlacementProblem:
    nodes = tuple(replace(n, **fields) for n in problem.fleet.nodes)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))


def opened(problem: PlacementProblem) -> PlacementProblem:
    nodes = tuple(
        replace(n, cordoned=False, devices=tuple(replace(d, cordoned=False) for d in n.devices))
        for n in problem.fleet.nodes
    )
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))
