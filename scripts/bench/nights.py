"""Nights over changing demand: ``python -m scripts.bench.nights FLEET WORKLOADS [--effort N]``.

Each day the demand of every deployment is scaled as one of three production services was on that
day (data/servegen_days.md). Four ways to live with it: never rebalance (one plan for each
deployment's highest day), rebalance every night from what runs, a greedy operator (stops what is
too much, starts what is missing at the first free place, the cheapest way first), and a
clairvoyant who plans each day from scratch and moves whatever it takes. A week of seven nights lies
between eight days; the source has six, so the first two come again.
"""

import argparse
import csv
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from optimizer.documents import load
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Limits
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import Plan
from optimizer.domain.prices import RoomPrices
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import ceil_div
from optimizer.domain.workload import Workloads
from optimizer.optimize import Inputs, optimize, pose
from optimizer.planning import moves
from optimizer.planning.layout import layouts_of
from optimizer.planning.match import Matcher
from optimizer.planning.places import places
from optimizer.planning.rooms import Rooms
from optimizer.verify import check_plan, objectives

DAYS = Path(__file__).parent / "data" / "servegen_days.csv"


@dataclass(frozen=True, slots=True)
class Night:
    """What a day costs and what the night before it did."""

    policy: str
    day: int
    price_per_hour: float
    bound: float
    unmet_ppm: int
    moves: int
    load_gib: float
    faults: int  # of the judge, replay of the steps included


def days() -> dict[str, list[Fraction]]:
    """The factors of each series, by day."""
    with DAYS.open() as file:
        rows = list(csv.reader(file))[1:]
    return {name: [Fraction(x) for x in factors] for name, *factors in rows}


def scaled(inputs: Inputs, factors: dict[str, Fraction], load: Fraction) -> Inputs:
    """Demand times ``load`` times the day's factor of the series that the deployment follows."""
    names = sorted(factors)
    found = []
    for d in inputs.workloads.deployments:
        if d.demand is not None:
            series = names[zlib.crc32(d.name.encode()) % len(names)]
            rate = d.demand.rate_mrps * factors[series] * load
            d = replace(d, demand=replace(d.demand, rate_mrps=max(1, int(rate))))
        found.append(d)
    return replace(inputs, workloads=Workloads(inputs.workloads.name, tuple(found)))


def planned(policy: str, day: int, inputs: Inputs, limits: Limits) -> tuple[Night, Placement]:
    """A night of the solver, from ``inputs.current`` or from scratch."""
    made = optimize(inputs, limits)
    found = night(policy, day, made.problem, made.plan)
    return found, made.plan.placement


def night(policy: str, day: int, problem: PlacementProblem, plan: Plan) -> Night:
    """The figures of a plan."""
    price = next(o for o in plan.objectives if o.name == "price_per_hour")
    unmet = sum(o.value for o in plan.objectives if o.name == "unmet")
    loads = [m for m in plan.moves if m.load_mib]
    faults = len(check_plan(problem, plan))
    gib = sum(m.load_mib for m in loads) / 1024
    return Night(policy, day, price.value / 1e6, price.bound / 1e6, unmet, len(loads), gib, faults)


def greedy(day: int, inputs: Inputs, now: Placement) -> tuple[Night, Placement]:
    """Stops what is too much and starts what is missing at the first free place."""
    problem, _ = pose(replace(inputs, current=now))
    found = _topped_up(problem, now)
    changes = [m for m in moves(problem, found) if m.load_mib]
    score = objectives(problem, found)
    unmet = sum(ppm for _, ppm in score.unmet_ppm)
    gib = sum(m.load_mib for m in changes) / 1024
    price = score.price_micros / 1e6
    return Night("greedy", day, price, 0.0, unmet, len(changes), gib, 0), found


def _topped_up(problem: PlacementProblem, now: Placement) -> Placement:
    matcher = Matcher(problem)
    kept = [r for r in now.replicas if matcher.candidate(r) is not None]
    for d in problem.deployments:
        mine = sorted((r for r in kept if r.deployment == d.name), key=matcher.capacity_mrps)
        for replica in mine:
            rest = [r for r in kept if r.deployment == d.name and r is not replica]
            served = sum(map(matcher.capacity_mrps, rest))
            if len(rest) >= d.min_replicas and served >= (d.asked_mrps or 0):
                kept.remove(replica)
    rooms = Rooms(problem, Placement(tuple(kept)), layouts_of(Placement(tuple(kept))))
    order = sorted(problem.deployments, key=lambda d: (-d.priority, d.name))
    for d in order:
        mine = [r for r in kept if r.deployment == d.name]
        for replica in _missing(problem, matcher, rooms, d.name, mine):
            kept.append(replica)
    return Placement(tuple(kept))


def _missing(
    problem: PlacementProblem, matcher: Matcher, rooms: Rooms, name: str, mine: list[Replica]
) -> Iterator[Replica]:
    """New replicas, each in the cheapest way per request that still finds a place."""
    d = problem.deployment(name)
    ways = [c for c in problem.candidates[name] if not c.running_only]
    prices = RoomPrices(problem.fleet)
    ways.sort(key=lambda c: (prices.served_micros(c) or 0, str(c.key)))
    served, number = sum(map(matcher.capacity_mrps, mine)), 0
    count, taken = len(mine), {r.number for r in mine}
    while count < d.min_replicas or served < (d.asked_mrps or 0):
        if d.replica_limit is not None and count >= d.replica_limit:
            return
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        place = None
        for way in ways:
            shape = way.shape
            mig = None if shape.profile is None else PlacedProfile(0, shape.profile)
            like = Replica(
                f"{name}/{number}", name, ("?",) * shape.gpus, mig, shape.share, way.config
            )
            place = next(places(problem.fleet.gpus(), rooms, like, way.gpu), None)
            if place is not None:
                served += way.capacity_mrps or 0
                break
        if place is None:
            return
        rooms.prepare(place)
        rooms.take(place)
        taken.add(number)
        count += 1
        yield place


def week(
    inputs: Inputs, limits: Limits, load: Fraction, count: int, policies: Sequence[str]
) -> Iterator[Night]:
    """Each policy, day by day; all but never begin with the plan of the first day."""
    factors = days()
    known = len(next(iter(factors.values())))
    by_day = [
        scaled(inputs, {s: f[day % known] for s, f in factors.items()}, load)
        for day in range(count)
    ]
    if "never" in policies:
        highest = scaled(inputs, {s: max(f) for s, f in factors.items()}, load)
        never, _ = planned("never", 0, highest, limits)
        yield from (replace(never, day=day, moves=0, load_gib=0.0) for day in range(count))
    if not {"clairvoyant", "nightly", "greedy"}.intersection(policies):
        return
    first, now = planned("clairvoyant", 0, by_day[0], limits)
    if "clairvoyant" in policies:
        yield replace(first, moves=0, load_gib=0.0)
        yield from _clairvoyant(by_day, limits, now)
    for policy in ("nightly", "greedy"):
        if policy in policies:
            yield replace(first, policy=policy, moves=0, load_gib=0.0)
            yield from _from_what_runs(policy, by_day, limits, now)


def _clairvoyant(by_day: Sequence[Inputs], limits: Limits, now: Placement) -> Iterator[Night]:
    """Each day from scratch; what that moves is counted against the day before."""
    for day, asked in enumerate(by_day[1:], 1):
        alone, scratch = planned("clairvoyant", day, asked, limits)
        problem, _ = pose(replace(asked, current=now))
        loads = [m for m in moves(problem, scratch) if m.load_mib]
        yield replace(alone, moves=len(loads), load_gib=sum(m.load_mib for m in loads) / 1024)
        now = scratch


def _from_what_runs(
    policy: str, by_day: Sequence[Inputs], limits: Limits, now: Placement
) -> Iterator[Night]:
    for day, asked in enumerate(by_day[1:], 1):
        if policy == "nightly":
            step, now = planned(policy, day, replace(asked, current=now), limits)
        else:
            step, now = greedy(day, asked, now)
        yield step


def table(nights: Sequence[Night]) -> str:
    """A line a policy: mean price, against never, unmet, moves a night."""
    lines = [
        "| policy | price per hour, mean | against never | unmet, mean ppm | moves a night "
        "| GiB a night | faults in replay |",
        "|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(n.policy for n in nights))
    mean = {
        name: sum(n.price_per_hour for n in nights if n.policy == name)
        / sum(n.policy == name for n in nights)
        for name in names
    }
    most = mean.get("never", max(mean.values()))
    for name in names:
        mine = [n for n in nights if n.policy == name]
        nightly = max(1, len(mine) - 1)
        lines.append(
            f"| {name} | {mean[name]:.2f} | {100 * (mean[name] / most - 1):+.1f} % "
            f"| {ceil_div(sum(n.unmet_ppm for n in mine), len(mine))} "
            f"| {sum(n.moves for n in mine) / nightly:.1f} "
            f"| {sum(n.load_gib for n in mine) / nightly:.0f} "
            f"| {sum(n.faults for n in mine)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the week and print a line a night, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("documents", nargs="+")
    parser.add_argument("--effort", type=float, default=60)
    parser.add_argument("--time-limit", type=float, default=300)
    parser.add_argument("--csv", type=Path, help="write the nights here, for nights_chart")
    parser.add_argument("--load", default="0.5", help="times the demand of the documents")
    parser.add_argument("--days", type=int, default=8, help="beyond the last the first come again")
    parser.add_argument("--policies", default="never,greedy,nightly,clairvoyant")
    asked = parser.parse_args()
    found = load(asked.documents)
    assert found.fleet is not None
    assert found.workloads is not None
    engines = {card.name: card for card in found.catalogue.engine_cards()}
    inputs = Inputs(found.fleet, found.workloads, engines, gpus=found.gpus)
    limits = Limits(gap=0.005, effort=asked.effort, time_limit_s=asked.time_limit)
    nights = []
    policies = asked.policies.split(",")
    for one in week(inputs, limits, Fraction(asked.load), asked.days, policies):
        nights.append(one)
        print(json.dumps({n: getattr(one, n) for n in Night.__dataclass_fields__}), flush=True)
    print(table(nights))
    if asked.csv is not None:
        with asked.csv.open("w") as file:
            names = list(Night.__dataclass_fields__)
            rows = csv.DictWriter(file, names, lineterminator="\n")
            rows.writeheader()
            rows.writerows({name: getattr(one, name) for name in names} for one in nights)


if __name__ == "__main__":
    main()
