"""Why nothing is possible: a minimal set of rules that clash, and what would make it possible.

Most rules only forbid, and no replica at all keeps them. So a clash takes a rule that demands
something (``reserve``, ``survive``, ``do_not_disturb``), and only what those speak of is looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.domain.fleet import Limits as Ceilings
from optimizer.domain.fleet import Node
from optimizer.domain.outcome import Limits, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem, with_reserve
from optimizer.domain.workload import Deployment
from optimizer.solver.columns import coarse_sites, fine_sites, fixed_layout, keeps_layout, may_stay
from optimizer.solver.formulation import build
from optimizer.solver.integer import Clock, run
from optimizer.solver.large import is_large
from optimizer.solver.measure import frail

EFFORT = 2.0  # deterministic, of one question
SECONDS = 20.0  # of all questions; a set that time left unfinished clashes, but may be too large
MOST_NODES = 4  # tried of each product


@dataclass(frozen=True, slots=True)
class Part:
    """A rule about something, by name, and the problem without it."""

    name: str
    without: Callable[[PlacementProblem], PlacementProblem]


def clash(problem: PlacementProblem, limits: Limits, outcome: Outcome) -> Outcome:
    """The outcome, or where rules clash the proof of that: their names, and fixes as notes."""
    wide = with_reserve(problem)
    if not any(_demands(wide, d) for d in wide.deployments):
        return outcome
    found = outcome.incumbent
    if found is not None and _demands_hold(problem, found):
        return outcome
    within = replace(limits, time_limit_s=min(SECONDS, limits.time_limit_s))
    asking = _Asking(Clock(within, lambda _: None))
    if asking.possible(wide) is not False:
        return Outcome(
            Termination.NOTHING_FOUND,
            stopped_by=outcome.stopped_by if found is None else "effort",
            reproducible=outcome.reproducible,
        )
    core = asking.minimal(wide, list(_parts(wide)))
    fixes = tuple(asking.fixes(wide, core))
    return Outcome(
        Termination.INFEASIBLE,
        conflict=tuple(part.name for part in core),
        notes=tuple(f"a plan is possible {fix}" for fix in fixes),
        stopped_by="proof",
        reproducible=asking.finished,
    )


@dataclass(slots=True)
class _Asking:
    """Questions of what is possible, on one clock."""

    clock: Clock
    finished: bool = True

    def possible(self, problem: PlacementProblem) -> bool | None:
        """Whether all hard rules can hold at once; None: not settled."""
        if self.clock.seconds_left <= 0:
            self.finished = False
            return None
        only = _demanding(problem)
        sites = coarse_sites(only) if is_large(only) else fine_sites(only)
        answer = run(build(only, sites).model, self.clock, "conflict", effort=EFFORT)
        if answer.impossible:
            return False
        return True if answer.found else None

    def minimal(self, problem: PlacementProblem, parts: list[Part]) -> list[Part]:
        """Parts that clash together, none of which can be left out; chunks are left out first."""
        kept, size = parts, max(1, len(parts) // 2)
        gone: list[Part] = []
        while True:
            first = 0
            while first < len(kept):
                fewer = [*kept[:first], *kept[first + size :]]
                tried = kept[first : first + size]
                if self.possible(_without(problem, [*gone, *tried])) is False:
                    kept, gone = fewer, [*gone, *tried]
                else:
                    first += size
            if size == 1:
                return kept
            size //= 2

    def fixes(self, problem: PlacementProblem, core: Sequence[Part]) -> Iterator[str]:
        """Single changes each of which was found to make a plan possible."""
        for part in core:
            if self.possible(part.without(problem)):
                yield f"without {part.name}"
        for node in {n.gpu.name: n for n in reversed(problem.fleet.nodes)}.values():
            for count in range(1, MOST_NODES + 1):
                if self.possible(_grown(problem, node, count)):
                    gpus = f"{count * node.gpus} more {node.gpu.name}"
                    yield f"with {gpus} ({count} nodes like {node.name}, each a rack of its own)"
                    break


def _grown(problem: PlacementProblem, node: Node, count: int) -> PlacementProblem:
    new = tuple(
        replace(node, name=f"new {i}", rack=None, devices=(), cordoned=False, layouts_fixed=False)
        for i in range(count)
    )
    names = tuple(one.name for one in new)
    deployments = tuple(
        replace(d, pin=(*d.pin, *names)) if d.reserve and node.name in d.pin else d
        for d in problem.deployments
    )
    fleet = replace(problem.fleet, nodes=(*problem.fleet.nodes, *new))
    return replace(problem, fleet=fleet, deployments=deployments)


def _demands(problem: PlacementProblem, d: Deployment) -> bool:
    """Whether a rule demands replicas of it."""
    running = problem.current.replicas if problem.current else ()
    never = d.disturb == "never" and any(r.deployment == d.name for r in running)
    return d.reserve or bool(d.survive and d.asked_mrps) or never


def _demanding(problem: PlacementProblem) -> PlacementProblem:
    """The problem of those deployments only that a rule demands replicas of, and whom they want."""
    names = {d.name: d for d in problem.deployments}
    kept, queue = set[str](), [d.name for d in problem.deployments if _demands(problem, d)]
    while queue:
        name = queue.pop()
        if name in names and name not in kept:
            kept.add(name)
            queue.extend(names[name].near)
    some = tuple(d for d in problem.deployments if d.name in kept)
    return replace(
        problem,
        deployments=some,
        candidates={d.name: problem.candidates.get(d.name, ()) for d in some},
    )


def _without(problem: PlacementProblem, parts: Sequence[Part]) -> PlacementProblem:
    for part in parts:
        problem = part.without(problem)
    return problem


def _parts(problem: PlacementProblem) -> Iterator[Part]:
    """Every rule that may have to do with a clash: first those that forbid, then those that ask."""
    only = _demanding(problem)
    yield from _about_fleet(problem)
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
                yield _changed(f"{name}: {d.name}", d, fields)
    for d in only.deployments:
        if d.reserve:
            yield Part(d.name, lambda p, d=d: _dropped(p, d))  # type: ignore[misc]
        if d.survive and d.asked_mrps:
            yield _changed(f"survive: {d.name}", d, {"survive": None})
        if d.disturb == "never":
            yield _changed(f"do_not_disturb: {d.name}", d, {"disturb": "allowed"})


def _about_fleet(problem: PlacementProblem) -> Iterator[Part]:
    limits, nodes = problem.fleet.limits, problem.fleet.nodes
    if limits.price_micros_per_hour is not None:
        yield Part("price_limit", lambda p: _limited(p, price_micros_per_hour=None))
    if limits.rack_power_w is not None:
        yield Part("power_limit", lambda p: _limited(p, rack_power_w=None))
    for name, fields, said in (
        ("fixed_layout", {"layouts_fixed": False}, any(n.layouts_fixed for n in nodes)),
        ("host_cpu", {"cpu_millicores": None}, any(n.cpu_millicores for n in nodes)),
        ("host_memory", {"host_memory_mib": None}, any(n.host_memory_mib for n in nodes)),
    ):
        if said:
            yield Part(name, lambda p, fields=fields: _refitted(p, fields))  # type: ignore[misc]
    if any(gpu.cordoned for gpu in problem.fleet.gpus()):
        yield Part("cordon", _opened)


def _changed(name: str, d: Deployment, fields: dict[str, Any]) -> Part:
    def without(problem: PlacementProblem) -> PlacementProblem:
        some = tuple(
            replace(one, **fields) if one.name == d.name else one for one in problem.deployments
        )
        return replace(problem, deployments=some)

    return Part(name, without)


def _dropped(problem: PlacementProblem, d: Deployment) -> PlacementProblem:
    return replace(
        problem, deployments=tuple(one for one in problem.deployments if one.name != d.name)
    )


def _limited(problem: PlacementProblem, **fields: None) -> PlacementProblem:
    ceilings: Ceilings = replace(problem.fleet.limits, **fields)
    return replace(problem, fleet=replace(problem.fleet, limits=ceilings))


def _refitted(problem: PlacementProblem, fields: dict[str, Any]) -> PlacementProblem:
    nodes = tuple(replace(n, **fields) for n in problem.fleet.nodes)
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))


def _opened(problem: PlacementProblem) -> PlacementProblem:
    nodes = tuple(
        replace(n, cordoned=False, devices=tuple(replace(d, cordoned=False) for d in n.devices))
        for n in problem.fleet.nodes
    )
    return replace(problem, fleet=replace(problem.fleet, nodes=nodes))


def _demands_hold(problem: PlacementProblem, found: Placement) -> bool:
    """Whether the placement outlives the losses it must, and left alone whom it must."""
    never = {d.name for d in problem.deployments if d.disturb == "never"}
    there = {(r.id, r.mig, tuple(sorted(r.gpus))) for r in found.replicas}
    gpus, fixed = {gpu.id: gpu for gpu in problem.fleet.gpus()}, fixed_layout(problem)
    return not frail(problem, found) and all(
        (r.id, r.mig, tuple(sorted(r.gpus))) in there
        for r in (problem.current.replicas if problem.current else ())
        if r.deployment in never
        and may_stay(problem, r, gpus) is not None
        and keeps_layout(r, fixed)
    )
