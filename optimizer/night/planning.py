"""From what runs to a verified plan of this night; nothing is changed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optimizer.documents import (
    plan_json,
    read_plan,
    sha256,
    state_document,
    write_json,
    write_text,
    yaml_text,
)
from optimizer.domain.fleet import Fleet
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Plan, PlanInput
from optimizer.domain.policy import Policy
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.words import plural
from optimizer.launch import LiveState, live_state
from optimizer.launch.lost import Standing, standing
from optimizer.night import rules
from optimizer.night.record import PLAN
from optimizer.night.values import Code, NightRefused, Order
from optimizer.optimize import Inputs, Planned, optimize

STATE = "state.yaml"
# A replica that does not answer may be starting anew; so long it is asked again.
ANSWERS_WITHIN_S = 60.0
ASK_EVERY_S = 2.0
PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Running:
    """What runs, how its launch stands; once checked, GPUs that are closed tonight."""

    live: LiveState
    standing: Standing
    notes: tuple[str, ...] = ()
    closed: frozenset[str] = frozenset()

    @property
    def told(self) -> str:
        """In a few words."""
        replicas = self.live.placement.replicas
        gpus = {gpu for one in replicas for gpu in one.gpus}
        if not replicas:
            return "nothing runs"
        return f"{plural(len(replicas), 'replica')} on {plural(len(gpus), 'GPU')}"

    def checked(self, order: Order, policy: Policy) -> "Running":
        """The same with what stands in the way closed or told. Raises NightRefused."""
        found = _refusals(self, order)
        if found:
            raise NightRefused(Code.DRIFTED, *found, "nothing was changed")
        closed, notes = _closed(self, order)
        return replace(self, notes=notes, closed=closed)


def imported(order: Order, folder: Path) -> Running:
    """What runs now, also as a State document in the night's folder. Raises LaunchRefused."""
    fleet = _fleet_name(order)
    there = standing(order.run_dir, order.address)
    live = LiveState(fleet, Placement())
    if there.gpus is not None:
        live = live_state(order.run_dir, order.address, fleet)
        end_at = time.monotonic() + ANSWERS_WITHIN_S
        while _silent(live, there) and time.monotonic() < end_at:
            time.sleep(ASK_EVERY_S)
            there = standing(order.run_dir, order.address)
            live = live_state(order.run_dir, order.address, fleet)
    write_text(folder / STATE, yaml_text(state_document(live.placement, fleet)))
    return Running(live, there)


def _fleet_name(order: Order) -> str:
    assert order.documents.fleet is not None
    return order.documents.fleet.name


def _silent(live: LiveState, there: Standing) -> list[str]:
    """Doubts about replicas of ours that should answer, those on lost nodes apart."""
    lost = {name for name, _ in there.lost}
    asked = there.known - lost
    return [doubt for doubt in live.doubts if doubt.partition(": ")[0] in asked]


def _refusals(running: Running, order: Order) -> list[str]:
    """Why nobody can plan from what runs, and the way out of each."""
    fleet, workloads = order.documents.fleet, order.documents.workloads
    assert fleet is not None
    assert workloads is not None
    gpus = {one.id for one in fleet.gpus()}
    deployments = {d.name for d in workloads.deployments}
    where = f"--run-dir {order.run_dir}"
    found = []
    if running.standing.half is not None:
        found.append(
            f"a {running.standing.half} that no night began is half carried out; launch its plan "
            f"again to go on, or undo it: fleetslice launch --rollback {where}"
        )
    for name in running.standing.doubled:
        found.append(f"{name} runs twice and could not be mended: fleetslice status {where}")
    found += [f"what runs cannot be told: {d}" for d in _silent(running.live, running.standing)]
    held: set[str] = set()
    for one in running.live.placement.replicas:
        held |= set(one.gpus)
        if one.deployment not in deployments:
            found.append(
                f"{one.id} runs, and no deployment {one.deployment} is in the workloads; add it, "
                f"or stop it: fleetslice stop --only {one.deployment} {where}"
            )
        unknown = sorted(set(one.gpus) - gpus)
        if unknown:
            found.append(f"{one.id} runs on {', '.join(unknown)}, which the fleet does not have")
    for other in running.live.foreign:
        who = (running.live.by or {}).get(other.deployment, other.deployment)
        if who.startswith(f"{fleet.name}/"):
            copy = who.removeprefix(f"{fleet.name}/")
            found.append(
                f"{copy} on {', '.join(other.gpus)} is a copy that no journal knows; end all of "
                f"it: fleetslice stop --only {copy.partition('#')[0]} {where}"
            )
        elif held & set(other.gpus):
            found.append(f"{who} uses {', '.join(other.gpus)} beside replicas of ours; end it")
    return found


def _closed(running: Running, order: Order) -> tuple[frozenset[str], tuple[str, ...]]:
    """GPUs that are not to be used tonight, and why."""
    fleet = order.documents.fleet
    assert fleet is not None
    closed: set[str] = set()
    notes = []
    offered = running.standing.gpus
    has_gpus = offered is not None and (offered or running.standing.began)
    if offered is not None and has_gpus:
        for node in fleet.nodes:
            gone = [
                f"{node.name}/{i}" for i in range(node.gpus) if f"{node.name}/{i}" not in offered
            ]
            closed |= set(gone)
            if len(gone) == node.gpus:
                notes.append(f"node {node.name} is not on the cluster: nothing is placed there")
            elif gone:
                notes.append(f"not on the cluster: {', '.join(gone)}")
    for name, node_name in running.standing.lost:
        notes.append(f"{name} was lost with node {node_name}")
    for other in running.live.foreign:
        who = (running.live.by or {}).get(other.deployment, other.deployment)
        closed |= set(other.gpus)
        notes.append(f"{who} uses {', '.join(other.gpus)}: nothing is placed there")
    lost = {name for name, _ in running.standing.lost}
    notes += [d for d in running.live.doubts if d.partition(": ")[0] not in lost]
    return frozenset(closed), tuple(notes)


@dataclass(frozen=True, slots=True)
class Made:
    """A plan as it lies in the night's folder, or why there is none."""

    planned: Planned | None
    told: str
    code: Code = Code.DONE
    sha256: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan | None:
        """The plan, if there is one."""
        return None if self.planned is None else self.planned.plan

    @property
    def moves(self) -> bool:
        """Whether anything would change."""
        return self.plan is not None and bool(self.plan.moves)

    @property
    def problem(self) -> PlacementProblem:
        """What it is a plan of."""
        assert self.planned is not None
        return self.planned.problem


def planned(order: Order, policy: Policy, running: Running, folder: Path) -> Made:
    """Rebalance from what runs, as the policy says, and write the plan. Raises BrokenPlan."""
    fleet = order.documents.fleet
    assert fleet is not None
    fleet = rules.cordoned(fleet, running.closed)
    spare = rules.spared(fleet, running.live.placement, policy)
    wanted = sum(count for _, count in policy.spare_gpus)
    notes = []
    if len(spare) < wanted:
        notes.append(f"{len(spare)} of {wanted} spare GPUs are empty and stay so")
    found = _optimized(order, policy, running, rules.cordoned(fleet, spare), folder)
    if spare and found.plan.unmet:
        notes = [f"without the spare GPUs demand would stay unmet: {', '.join(spare)} may be used"]
        found = _optimized(order, policy, running, fleet, folder)
    plan = found.plan
    if plan.run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    if plan.status == "nothing_found":
        lines = ("no plan was found in time; nothing was changed", "give it more: --time-limit")
        return Made(None, "no plan was found in time", Code.NO_PLAN, lines=lines)
    if plan.status == "infeasible":
        told = ("hard rules clash; nothing was changed:", *plan.conflict)
        return Made(None, "hard rules clash", Code.UNMET, lines=told)
    write_json(folder / PLAN, plan_json(plan))
    said = f"{plural(len(plan.moves), 'move')}, {plural(len(plan.steps), 'step')}"
    facts = _facts(order, running.live.placement, plan)
    digest = sha256(folder / PLAN)
    return Made(found, said, sha256=digest, facts=facts, notes=tuple(notes))


def _optimized(
    order: Order, policy: Policy, running: Running, fleet: Fleet, folder: Path
) -> Planned:
    from optimizer.planning import Pace

    documents = order.documents
    assert documents.workloads is not None
    used = [
        replace(one, path=str(Path(one.path).resolve()))
        for one in documents.inputs
        if one.kind not in ("State", "Plan", "Scenarios")
    ]
    state = folder / STATE
    inputs = Inputs(
        fleet,
        documents.workloads,
        {card.name: card for card in documents.catalogue.engine_cards()},
        running.live.placement,
        (*used, PlanInput(str(state.resolve()), sha256(state) or "", "State")),
        documents.gpus,
    )
    asked = {
        "command": "nightly",
        "effort": order.limits.effort,
        "gap": order.limits.gap,
        "seed": order.limits.seed,
        **policy.limits(),
    }
    pace = replace(Pace(), window_s=policy.window_s)
    search = rules.search(policy)
    return optimize(
        inputs, order.limits, options=asked, version=order.version, search=search, pace=pace
    )


def _facts(order: Order, running: Placement, plan: Plan) -> dict[str, Any]:
    fleet = order.documents.fleet
    assert fleet is not None
    held = {gpu for one in running.replicas for gpu in one.gpus}
    before = sum(fleet.price_micros(one.node) for one in fleet.gpus() if one.id in held)
    prices = [o for o in plan.objectives if o.name == "price_per_hour"]
    kinds = ("start", "stop", "move", "reconfigure")
    return {
        "price_per_hour": {"before": before / 1e6, "after": plan.price_micros / 1e6},
        "unit": plan.unit,
        "moves": {kind: sum(m.kind == kind for m in plan.moves) for kind in kinds},
        "moves_done": 0,
        "freed_gpus": rules.freed(plan, running),
        "gap": round(prices[0].gap, 6) if prices else None,
        "unmet_requests_per_second": sum(u.missing_mrps for u in plan.unmet) / 1000,
        "unmet_replicas": sum(u.missing_replicas for u in plan.unmet),
        "replicas": len(plan.placement.replicas),
        "left": list(plan.left),
    }


def judged_again(made: Made, folder: Path) -> int:
    """Read the plan back from disk and judge it; how many rules it keeps. Raises NightRefused."""
    from optimizer.verify import RULES, check_plan

    broken = check_plan(made.problem, read_plan(folder / PLAN))
    if broken:
        lines = [f"{v.rule}: {v.subject}: {v.message}" for v in broken[:10]]
        first = "the judge refuses the plan, so nothing was changed; what is broken:"
        raise NightRefused(Code.BROKEN, first, *lines)
    return len(RULES)


def simulated(order: Order, made: Made) -> list[dict[str, Any]]:
    """Each deployment's traffic replayed against the plan, over the trace."""
    from optimizer.simulation import Replay, replay_plan, tasks

    plan = made.plan
    assert plan is not None
    trace = order.documents.traces[0]
    replay = Replay(order.hours * 3600, trace, seed=order.limits.seed)
    engines = {card.name: card for card in order.documents.catalogue.engine_cards()}
    problem = made.problem
    work, _ = tasks(problem.fleet, problem.deployments, engines, plan.placement, replay)
    rows = []
    for done in replay_plan(work, PROCESSES):
        parts = [a.attained for a in (done.ttft, done.tpot) if a.attained is not None]
        attained = round(100 * min(parts), 2) if parts else None
        rows.append(
            {
                "deployment": done.deployment,
                "requests": done.requests,
                "percentile": done.percentile,
                "attained_percent": attained,
                "meets": done.meets,
            }
        )
    return rows
