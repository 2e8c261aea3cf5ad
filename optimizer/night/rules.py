"""What a policy says of one night, decided purely: how to search, what needs a person."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date

from optimizer.domain.fleet import Fleet, Node
from optimizer.domain.outcome import Limits, Outcome, Progress
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Plan
from optimizer.domain.policy import Policy
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.words import gib, plural

Progressing = Callable[[Progress], None] | None
Search = Callable[[PlacementProblem, Limits, Progressing], Outcome]


def search(policy: Policy) -> Search | None:
    """The search within the policy's limits; None where it asks for nothing special."""
    from optimizer.solver.nightly import Worth, protected, rebalance_within
    from optimizer.solver.rebalance import Ask

    ask = Ask(policy.max_moves, policy.max_load_mib)
    saving = policy.min_saving_micros_per_move
    if ask == Ask() and saving is None and not policy.protected_tenants:
        return None
    worth = None if saving is None else Worth(saving, policy.horizon_hours)
    return lambda problem, limits, progress: rebalance_within(
        protected(problem, policy.protected_tenants), limits, ask, worth, progress
    )


def waits_for_approval(plan: Plan, policy: Policy) -> tuple[str, ...]:
    """Why the plan may not be carried out without a person's word; empty when it may."""
    alone = policy.alone
    tenants = {d.name: d.tenant for d in plan.deployments}
    found = []
    if alone.max_moves is not None and len(plan.moves) > alone.max_moves:
        found.append(f"{plural(len(plan.moves), 'move')}, {alone.max_moves} may be made alone")
    load = sum(move.load_mib for move in plan.moves)
    if alone.max_load_mib is not None and load > alone.max_load_mib:
        found.append(f"{gib(load)} to load, {gib(alone.max_load_mib)} may be loaded alone")
    for what, said, allowed in (
        ("kind", {m.kind for m in plan.moves}, alone.kinds),
        ("tenant", {tenants.get(_deployment(m.replica), "") for m in plan.moves}, alone.tenants),
    ):
        others = sorted(said.difference(allowed)) if allowed is not None else []
        if others:
            found.append(f"moves of {what} {', '.join(others)} may not be made alone")
    return tuple(found)


def _deployment(replica: str) -> str:
    return replica.rpartition("/")[0]


def frozen(policy: Policy, day: date) -> str | None:
    """The freeze that the day lies in, in words."""
    for first, last in policy.freeze:
        if first <= day <= last:
            return (
                f"nothing may change from {first} to {last}"
                if first != last
                else (f"nothing may change on {first}")
            )
    return None


def spared(fleet: Fleet, running: Placement, policy: Policy) -> tuple[str, ...]:
    """GPUs to leave empty: of each product so many of those that are empty now, the last first."""
    held = {gpu for r in running.replicas for gpu in r.gpus}
    found: list[str] = []
    for product, count in policy.spare_gpus:
        empty = [
            one.id
            for one in fleet.gpus()
            if one.gpu.name == product and one.id not in held and not one.cordoned
        ]
        found += empty[-count:]
    return tuple(found)


def cordoned(fleet: Fleet, gpus: Collection[str]) -> Fleet:
    """The same fleet, where nothing new may run on these GPUs."""
    chosen = set(gpus)
    return replace(fleet, nodes=tuple(_cordoned(node, chosen) for node in fleet.nodes))


def _cordoned(node: Node, gpus: Collection[str]) -> Node:
    indexes = [i for i in range(node.gpus) if f"{node.name}/{i}" in gpus]
    if not indexes:
        return node
    if len(indexes) == node.gpus:
        return replace(node, cordoned=True)
    others = tuple(d for d in node.devices if d.index not in indexes)
    closed = tuple(replace(node.device(i), cordoned=True) for i in indexes)
    devices = sorted((*others, *closed), key=lambda d: d.index)
    return replace(node, devices=tuple(devices))


def missed(plan: Plan, meets: Mapping[str, bool]) -> tuple[str, ...]:
    """Deployments that the plan changes and that would miss their SLO.

    One that the plan leaves as it is would fare no worse for it, and one whose demand is unmet is
    told as that already.
    """
    changed = {_deployment(move.replica) for move in plan.moves}
    short = {one.deployment for one in plan.unmet}
    return tuple(sorted(n for n, met in meets.items() if not met and n in changed - short))


def freed(plan: Plan, running: Placement) -> int:
    """How many fewer GPUs hold a replica once the plan is carried out."""
    before = {gpu for r in running.replicas for gpu in r.gpus}
    after = {gpu for r in plan.placement.replicas for gpu in r.gpus}
    return len(before) - len(after)


def doubled(copies: Sequence[str]) -> tuple[str, ...]:
    """Replicas of which two copies may run."""
    return tuple(sorted({one for one in copies if copies.count(one) > 1}))
