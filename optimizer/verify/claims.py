"""What an outcome and a plan say about themselves, held against the recount."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from optimizer.domain.fleet import FleetGpu, Sharing
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import GpuPlan, Plan
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.units import MIB_PER_GIB
from optimizer.domain.workload import Deployment
from optimizer.verify.certificate import check_certificate
from optimizer.verify.facts import Facts, Running, Violation, current_replicas, mode, stays
from optimizer.verify.figures import predictions, uses
from optimizer.verify.fleet_rules import do_not_disturb
from optimizer.verify.judge import judge
from optimizer.verify.recount import Score, missing, price_micros, repartitioned, score
from optimizer.verify.transition import replay

# A price split over tenants is rounded to whole micros on each GPU.
ROUNDING_MICROS = 2


def check_outcome(problem: PlacementProblem, outcome: Outcome) -> tuple[Violation, ...]:
    """Every broken rule of the incumbent, and every claim that a recount does not bear out."""
    if outcome.incumbent is None:
        return tuple(sorted(_without_incumbent(outcome)))
    facts = Facts.of(problem, outcome.incumbent)
    found = {*judge(facts), *_objectives(score(facts), outcome.objectives)}
    found |= set(check_certificate(problem, outcome.certificate))
    if outcome.termination is Termination.OPTIMAL:
        found |= set(_optimal(outcome.objectives))
    if outcome.termination in (Termination.INFEASIBLE, Termination.NOTHING_FOUND):
        found.add(Violation("status", outcome.termination, "yet there is a placement"))
    return tuple(sorted(found))


def _without_incumbent(outcome: Outcome) -> Iterator[Violation]:
    if outcome.termination not in (Termination.INFEASIBLE, Termination.NOTHING_FOUND):
        yield Violation("status", outcome.termination, "yet there is no placement")


def _optimal(objectives: tuple[Objective, ...]) -> Iterator[Violation]:
    for claim in objectives:
        if claim.name != "stranded" and claim.bound < claim.value:
            said = f"{_named(claim)} is {claim.value}, bounded by {claim.bound} only"
            yield Violation("status", Termination.OPTIMAL, said)


def _named(claim: Objective) -> str:
    return claim.name if claim.priority is None else f"{claim.name} at priority {claim.priority}"


def _objectives(counted: Score, claims: tuple[Objective, ...]) -> Iterator[Violation]:
    """Each claimed value is the one counted, no level is left out, no bound is above a value."""
    unmet = dict(counted.unmet_ppm)
    expected: dict[tuple[str, int | None], int] = {
        **{("unmet", priority): ppm for priority, ppm in unmet.items()},
        ("price_per_hour", None): counted.price_micros,
        ("stranded", None): counted.stranded_mib,
    }
    if counted.disruption_mib is not None:
        expected["disruption", None] = counted.disruption_mib
    claimed = {(claim.name, claim.priority): claim for claim in claims}
    if ("unmet", None) in claimed:  # one figure for all priorities
        for priority in unmet:
            del expected["unmet", priority]
        expected["unmet", None] = sum(unmet.values())
    for key, value in expected.items():
        if key not in claimed:
            if key[0] != "stranded":
                yield Violation("objectives", key[0], f"not stated, counted {value}")
        elif claimed[key].value != value:
            said = f"{_named(claimed[key])}: stated {claimed[key].value}, counted {value}"
            yield Violation("objectives", key[0], said)
    for key, claim in claimed.items():
        if key not in expected:
            yield Violation("objectives", claim.name, f"{_named(claim)} is nobody's objective")
        if claim.bound > claim.value:
            said = f"{_named(claim)}: bound {claim.bound} above value {claim.value}"
            yield Violation("bound", claim.name, said)


def check_plan(problem: PlacementProblem, plan: Plan) -> tuple[Violation, ...]:
    """Every broken rule of the plan's placement and steps, and every figure in it that is wrong."""
    if plan.status in (Termination.INFEASIBLE, Termination.NOTHING_FOUND):
        claim = Violation("status", plan.status, f"yet {len(plan.placement.replicas)} replicas run")
        return (claim,) if plan.placement.replicas else ()
    facts = Facts.of(problem, plan.placement)
    found = {*judge(facts), *_objectives(score(facts), plan.objectives)}
    found |= set(check_certificate(problem, plan.certificate))
    if plan.status == Termination.OPTIMAL:
        found |= set(_optimal(plan.objectives))
    for check in CHECKS:
        found |= set(check(facts, plan))
    if plan.steps:
        before = problem.current or Placement()
        found |= set(replay(problem, before, plan.steps, plan.placement, left=plan.left))
    return tuple(sorted(found))


def _price(facts: Facts, plan: Plan) -> Iterator[Violation]:
    price = price_micros(facts)
    if plan.price_micros != price:
        said = f"stated {plan.price_micros} micros per hour, counted {price}"
        yield Violation("price", plan.fleet, said)
    if plan.unit != facts.problem.fleet.unit:
        said = f"counted in {plan.unit}, the fleet's unit is {facts.problem.fleet.unit}"
        yield Violation("price", plan.fleet, said)


def _tenants(facts: Facts, plan: Plan) -> Iterator[Violation]:
    total = sum(tenant.price_micros for tenant in plan.tenants)
    if total != price_micros(facts):
        said = f"add up to {total} micros per hour, the plan costs {price_micros(facts)}"
        yield Violation("tenants", plan.fleet, said)
    paid, stranded = _split(facts, lambda d: d.tenant)
    slack = ROUNDING_MICROS * (1 + len(facts.running))
    stated = {tenant.name: tenant for tenant in plan.tenants}
    for name in sorted({*paid, *stated}):
        entry = stated.get(name)
        if entry is None:
            yield Violation("tenants", name, f"not stated, pays {int(paid[name])} micros per hour")
            continue
        figures = (
            ("micros per hour", entry.price_micros, paid[name]),
            ("micros unused", entry.stranded_micros, stranded[name]),
        )
        for what, says, counted in figures:
            if abs(says - counted) > slack:
                said = f"stated {says} {what}, counted {int(counted)}"
                yield Violation("tenants", name, said)


def _split(
    facts: Facts, payer: Callable[[Deployment], str]
) -> tuple[defaultdict[str, Fraction], defaultdict[str, Fraction]]:
    """What each tenant or deployment pays, and what of it is unused room.

    A GPU's price is split by the parts held: memory slices, or the largest of a share's three.
    """
    paid: defaultdict[str, Fraction] = defaultdict(Fraction)
    unused: defaultdict[str, Fraction] = defaultdict(Fraction)
    for id, running in facts.on_gpu.items():
        gpu = facts.ground.gpus[id]
        price = facts.problem.fleet.price_micros(gpu.node)
        parts = [_part(one, gpu) for one in running]
        whole = sum(parts)
        for one, part in zip(running, parts, strict=True):
            who = payer(one.deployment) if one.deployment else "default"
            share = part / whole if whole else Fraction(0)
            paid[who] += price * share
            unused[who] += price * share * max(Fraction(0), 1 - whole)
    for id in facts.used:
        if id not in facts.on_gpu:
            paid["reserve"] += facts.problem.fleet.price_micros(facts.ground.gpus[id].node)
    return paid, unused


def _part(one: Running, gpu: FleetGpu) -> Fraction:
    """The part of that GPU that the replica holds."""
    share, room = one.replica.share, gpu.gpu.room
    if share is not None:
        pairs = (
            (share.memory_mib, room.memory_mib),
            (share.bandwidth_mbs, room.bandwidth_mbs),
            (share.compute_ppm, room.compute_ppm),
        )
        return max(Fraction(used, total) for used, total in pairs if total)
    table = gpu.gpu.mig
    profile = table.profile(one.replica.mig.profile) if table and one.replica.mig else None
    if table is None or profile is None:
        return Fraction(1)
    return Fraction(profile.memory_slices, table.memory_slices)


def _unmet(facts: Facts, plan: Plan) -> Iterator[Violation]:
    stated = {
        entry.deployment: (entry.missing_mrps, entry.missing_replicas) for entry in plan.unmet
    }
    counted = {}
    for deployment in facts.problem.deployments:
        gap = missing(facts, deployment)
        if gap.ppm:
            counted[deployment.name] = (gap.mrps, gap.replicas)
    for name in sorted({*stated, *counted}):
        says, is_ = stated.get(name, (0, 0)), counted.get(name, (0, 0))
        if says != is_:
            said = f"stated {says[0]} mrps, {says[1]} replicas; counted {is_[0]} and {is_[1]}"
            yield Violation("unmet", name, said)


def _deployments(facts: Facts, plan: Plan) -> Iterator[Violation]:
    stated = {entry.name: entry for entry in plan.deployments}
    paid, _ = _split(facts, lambda d: d.name)
    slack = ROUNDING_MICROS * (1 + len(facts.running))
    for deployment in facts.problem.deployments:
        entry = stated.pop(deployment.name, None)
        if entry is None:
            yield Violation("deployments", deployment.name, "is not in the plan")
            continue
        running = facts.replicas(deployment)
        served = sum(one.capacity_mrps for one in running)
        figures = (
            ("replicas", entry.replicas, len(running)),
            ("replicas by config", sum(c.count for c in entry.configs), len(running)),
            ("mrps by config", sum(c.capacity_mrps for c in entry.configs), served),
            ("mrps asked", entry.demand_mrps, deployment.asked_mrps),
            ("mrps", entry.capacity_mrps, None if deployment.asked_mrps is None else served),
        )
        for what, says, counted in figures:
            if says != counted:
                said = f"stated {says} {what}, counted {counted}"
                yield Violation("deployments", deployment.name, said)
        if abs(entry.price_micros - paid[deployment.name]) > slack:
            said = f"stated {entry.price_micros} micros, counted {int(paid[deployment.name])}"
            yield Violation("deployments", deployment.name, said)
    for name in sorted(stated):
        yield Violation("deployments", name, "is not asked for")


def _gpus(facts: Facts, plan: Plan) -> Iterator[Violation]:
    listed = Counter(entry.id for entry in plan.gpus)
    for id in sorted({*listed, *facts.ground.gpus}):
        known = int(id in facts.ground.gpus)
        if listed[id] != known:
            yield Violation("gpus", id, f"listed {listed[id]} times, the fleet has {known}")
    for entry in plan.gpus:
        gpu = facts.ground.gpus.get(entry.id)
        if gpu is not None:
            for fault in _gpu_faults(facts, gpu, entry):
                yield Violation("gpus", entry.id, fault)


def _gpu_faults(facts: Facts, gpu: FleetGpu, entry: GpuPlan) -> Iterator[str]:
    running = facts.on_gpu.get(gpu.id, [])
    used = mode(running)
    ids = sorted(one.replica.id for one in running)
    price = facts.problem.fleet.price_micros(gpu.node)
    held = {(r.replica.mig, r.replica.id) for r in running if r.replica.mig}
    shown = {(i.placed, i.replica) for i in entry.instances if i.replica is not None}
    figures = (
        ("product", entry.gpu, gpu.gpu.name),
        ("mode", entry.mode, used.value if used else "empty"),
        ("replicas", sorted(entry.replicas), ids),
        ("price in micros", entry.price_micros, price),
        ("instances held", sorted(shown, key=str), sorted(held, key=str)),
        ("cordoned", entry.cordoned, gpu.cordoned),
    )
    for what, says, counted in figures:
        if says != counted:
            yield f"{what}: stated {says}, counted {counted}"
    empty = {i.placed for i in entry.instances if i.replica is None}
    gone = [p for p in facts.standing.get(gpu.id, []) if p not in empty]
    if gone:
        yield f"{len(gone)} empty instances of the placement are not shown"
    if used is not Sharing.SHARED and not entry.use.fits_in(gpu.gpu.room):
        yield f"use {entry.use} above room {gpu.gpu.room}"


def _moves(facts: Facts, plan: Plan) -> Iterator[Violation]:
    """Moves name each replica that changes, once, and repartitions the GPUs cut anew."""
    before = current_replicas(facts.problem)
    after = {r.id: r for r in facts.placement.replicas}
    changed = {id for id in before if id not in after}
    changed |= {id for id, replica in after.items() if not stays(replica, before)}
    stated = Counter(move.replica for move in plan.moves)
    for id in sorted({*stated, *changed}):
        if stated[id] != int(id in changed):
            verb = "changes" if id in changed else "stays"
            yield Violation("moves", id, f"{verb}, and {stated[id]} moves name it")
    for move in plan.moves:
        ends = (before.get(move.replica), after.get(move.replica))
        if (move.before, move.after) != ends:
            yield Violation("moves", move.replica, "goes elsewhere than the placement says")
    if facts.problem.current is not None and set(plan.repartitions) != set(repartitioned(facts)):
        said = f"stated {len(plan.repartitions)} GPUs, counted {len(repartitioned(facts))}"
        yield Violation("repartitions", plan.fleet, said)


def move_limit(facts: Facts, plan: Plan) -> Iterator[Violation]:
    """No more copies start, and no more GiB are loaded, than the options allow; stops are free."""
    starts = [move for move in plan.moves if move.after is not None]
    most = plan.options.get("max_moves")
    if isinstance(most, int) and len(starts) > most:
        yield Violation("move_limit", plan.fleet, f"{len(starts)} copies start, at most {most} may")
    gib = plan.options.get("max_load_gib")
    load_mib = sum(move.load_mib for move in starts)
    if isinstance(gib, int | float) and load_mib > gib * MIB_PER_GIB:
        said = f"{load_mib / MIB_PER_GIB:.1f} GiB are loaded, at most {gib} may be"
        yield Violation("move_limit", plan.fleet, said)


def protected(facts: Facts, plan: Plan) -> Iterator[Violation]:
    """Nobody disturbs the tenants that the options protect."""
    tenants = plan.options.get("protected_tenants") or ()
    spared = tuple(
        replace(d, disturb="never") if d.tenant in tenants else d for d in facts.problem.deployments
    )
    if tenants:
        problem = replace(facts.problem, deployments=spared)
        yield from do_not_disturb(Facts.of(problem, facts.placement))


CHECKS: tuple[Callable[[Facts, Plan], Iterator[Violation]], ...] = (
    _price,
    _tenants,
    _unmet,
    _deployments,
    _gpus,
    _moves,
    uses,
    predictions,
    move_limit,
    protected,
)
