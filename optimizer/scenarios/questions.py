"""Questions with short answers, each asked as scenarios of the same baseline.

``Ask`` answers scenarios, in process or on Ray; nothing here depends on which. A question that
needs an answer where a scenario failed raises Unanswered.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optimizer.domain.fleet import Node
from optimizer.domain.placement import Placement, Replica, node_of
from optimizer.domain.plan import Unmet
from optimizer.domain.problem import PlacementProblem, missing_ppm
from optimizer.domain.scenario import (
    AddDeployments,
    Assign,
    Change,
    Lose,
    Scale,
    Scenario,
)
from optimizer.domain.units import PPM
from optimizer.domain.workload import Deployment
from optimizer.planning.match import Matcher
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import Planner, Setting

Ask = Callable[[Sequence[Scenario]], Sequence[Answer]]


class Unanswered(RuntimeError):
    """A scenario that the question turns on failed, or no plan was found for it in time."""


def _known(answer: Answer) -> Answer:
    """An answer that says something. Raises Unanswered."""
    if answer.failed is not None:
        raise Unanswered(f"{answer.name}: {answer.failed}")
    if answer.status == "nothing_found":
        raise Unanswered(f"{answer.name}: no plan was found in time; give it more --effort")
    return answer


def served(answer: Answer, before: Answer) -> bool:
    """Whether nobody misses more than in the baseline."""
    if not answer.planned:
        return False
    was = {one.deployment: one for one in before.unmet}
    return all(
        (old := was.get(one.deployment)) is not None
        and one.missing_mrps <= old.missing_mrps
        and one.missing_replicas <= old.missing_replicas
        for one in answer.unmet
    )


# --- quote ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quote:
    """What new deployments cost, millionths per hour.

    ``marginal``: the plan with them less the plan without; the true difference of two best plans
    lies in ``at_least`` to ``at_most``, one number where both are proved. ``average``: what they
    pay of the GPUs they use. ``answer``: of the plan with them; it may have none, then nothing fits
    and all prices are 0.
    """

    marginal_micros: int
    at_least_micros: int
    at_most_micros: int
    average_micros: int
    replicas: tuple[Replica, ...]
    fits: bool
    answer: Answer

    @property
    def proved(self) -> bool:
        """Whether the marginal cost is exact."""
        return self.at_least_micros == self.at_most_micros


def quote(planner: Planner, deployments: Sequence[Deployment]) -> Quote:
    """The marginal cost of new deployments on this fleet. Raises ScenarioFault, Unanswered."""
    from optimizer.scenarios.answer import summary

    made = planner.plan(Scenario("quote", (AddDeployments(tuple(deployments)),)))
    after, before = _known(summary(made.plan, "quote").answer), planner.setting.before.answer
    names = {d.name for d in deployments}
    if not after.planned:
        return Quote(0, 0, 0, 0, (), False, after)
    price, bound = _prices(after)
    old_price, old_bound = _prices(_known(before))
    return Quote(
        marginal_micros=price - old_price,
        at_least_micros=bound - old_price,
        at_most_micros=price - old_bound,
        average_micros=sum(d.price_micros for d in made.plan.deployments if d.name in names),
        replicas=tuple(r for r in made.plan.placement.replicas if r.deployment in names),
        fits=served(after, before),
        answer=after,
    )


def _prices(answer: Answer) -> tuple[int, int]:
    """Price and bound. Raises Unanswered where there is no plan."""
    if answer.price_micros is None:
        raise Unanswered(f"{answer.name}: hard rules clash: {', '.join(answer.conflict)}")
    return answer.price_micros, answer.bound_micros or 0


# --- headroom -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Headroom:
    """Demand may grow to ``fits_ppm`` of today's; at ``breaks_ppm`` somebody goes unserved.

    ``breaks_ppm`` None: all up to the largest factor asked fits. ``proved``: at ``breaks_ppm`` no
    plan serves everybody; else none was found.
    """

    fits_ppm: int
    breaks_ppm: int | None
    first: tuple[Unmet, ...] = ()
    proved: bool = True


POINTS = 3  # asked at once: fixed, so that the bracket does not depend on the number of workers


def headroom(
    setting: Setting,
    ask: Ask,
    kind: str = "all",
    name: str | None = None,
    *,
    most_ppm: int = 8 * PPM,
    within_ppm: int = PPM // 50,
) -> Headroom:
    """How far a deployment, a tenant or all can grow before somebody goes unserved.

    Halves the bracket (in quarters, three factors at once) until it is ``within_ppm``. Takes for
    granted that what fits at a factor fits at a smaller one. Raises Unanswered.
    """
    before = setting.before.answer
    fitting, breaks = [PPM], most_ppm + 1
    first: Answer | None = None
    factors = [most_ppm]
    while factors:
        asked = [Scenario(f"x{f / PPM:g}", (Scale(kind, name, f),)) for f in factors]
        for factor, answer in zip(factors, map(_known, ask(asked)), strict=True):
            if served(answer, before):
                fitting.append(factor)
            elif factor < breaks:
                breaks, first = factor, answer
        if first is None:
            return Headroom(most_ppm, None)
        # A search cut short may break at one factor and fit at a larger: the lower bracket counts.
        fits = max(factor for factor in fitting if factor < breaks)
        factors = _between(fits, breaks, within_ppm)
    assert first is not None
    return Headroom(fits, breaks, first.unmet, first.unmet_proved or not first.planned)


def _between(low: int, high: int, within: int) -> list[int]:
    """Factors that quarter the bracket; none where it is narrow enough."""
    if high - low <= max(1, within):
        return []
    inner = {low + (high - low) * i // (POINTS + 1) for i in range(1, POINTS + 1)}
    return sorted(inner - {low, high})


# --- survive --------------------------------------------------------------------------------------


class Short(NamedTuple):
    """A deployment whose replicas left do not carry its demand."""

    deployment: str
    missing_mrps: int
    missing_replicas: int


@dataclass(frozen=True, slots=True)
class Loss:
    """One domain lost: whom it touches, who is short at once, and what replanning still leaves."""

    kind: str  # node | rack | zone
    name: str
    replicas: tuple[str, ...]
    short: tuple[Short, ...]  # before anything moves
    answer: Answer

    @property
    def deployments(self) -> tuple[str, ...]:
        """Whose replicas it takes."""
        return tuple(dict.fromkeys(r.rpartition("/")[0] for r in self.replicas))


KINDS = ("node", "rack", "zone")


def survive(
    problem: PlacementProblem, placement: Placement, ask: Ask, kinds: Sequence[str] = KINDS
) -> tuple[Loss, ...]:
    """Every node, rack and zone of the fleet lost in turn, in document order.

    Nodes that name no rack or zone are not lost as one once more. A loss that leaves no node is
    answered too: then nothing is served.
    """
    domains = [(k, name, nodes) for k in kinds for name, nodes in _domains(problem, k).items()]
    # After the loss nobody asks that yet another be outlived.
    spent = tuple(
        Assign("deployment", d.name, ("survive",), None) for d in problem.deployments if d.survive
    )
    asked = [Scenario(f"{kind} {name}", (Lose(kind, name), *spent)) for kind, name, _ in domains]
    losses = []
    for (kind, name, nodes), answer in zip(domains, ask(asked), strict=True):
        gone = [r for r in placement.replicas if nodes & {node_of(g) for g in r.gpus}]
        short = tuple(shorts(problem, placement, nodes))
        losses.append(Loss(kind, name, tuple(r.id for r in gone), short, answer))
    return tuple(losses)


def _domains(problem: PlacementProblem, kind: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in problem.fleet.nodes:
        name = {"node": node.name, "rack": node.rack, "zone": node.zone}[kind]
        if name is not None:
            found.setdefault(name, set()).add(node.name)
    return found


def shorts(problem: PlacementProblem, placement: Placement, lost: set[str]) -> Iterator[Short]:
    """Deployments that the replicas outside the ``lost`` nodes, unmoved, do not carry."""
    matcher = Matcher(problem)
    for deployment in problem.deployments:
        left = [
            r
            for r in placement.replicas
            if r.deployment == deployment.name and not lost & {node_of(g) for g in r.gpus}
        ]
        carried = sum(matcher.capacity_mrps(r) for r in left)
        if missing_ppm(deployment, carried, len(left)):
            mrps = max(0, (deployment.asked_mrps or 0) - carried)
            yield Short(deployment.name, mrps, max(0, deployment.min_replicas - len(left)))


# --- retire ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retired:
    """Nodes that can be switched off together, and why each other one must stay.

    ``worth_micros``: what all their GPUs would cost an hour, in use or not. ``needed``: each node
    that stays, with the answer where it goes beside them, or alone where that is bad enough.
    No further node can go, but another choice of nodes might save more: the set is found node by
    node, the emptiest and dearest first.
    """

    nodes: tuple[str, ...]
    answer: Answer | None  # of the fleet without them; None: all nodes stay
    needed: tuple[tuple[str, Answer], ...]
    worth_micros: int = 0


def retire(setting: Setting, placement: Placement, ask: Ask) -> Retired:
    """Which nodes can be switched off with nobody served less. Raises Unanswered."""
    before = setting.before.answer
    order = sorted(setting.inputs.fleet.nodes, key=lambda n: _worth(setting, placement, n))
    alone = ask([Scenario(f"without {n.name}", (Lose("node", n.name),)) for n in order])
    needed = {
        n.name: a for n, a in zip(order, map(_known, alone), strict=True) if not served(a, before)
    }
    gone: list[str] = []
    last: Answer | None = None
    for node in (n for n in order if n.name not in needed):
        changes = tuple(Lose("node", name) for name in (*gone, node.name))
        (answer,) = map(_known, ask([Scenario(f"without {node.name} too", changes)]))
        if served(answer, before):
            gone.append(node.name)
            last = answer
        else:
            needed[node.name] = answer
    fleet = setting.inputs.fleet
    stay = [n.name for n in fleet.nodes if n.name in needed]
    worth = sum(n.gpus * fleet.price_micros(n) for n in fleet.nodes if n.name in gone)
    return Retired(tuple(gone), last, tuple((name, needed[name]) for name in stay), worth)


def _worth(setting: Setting, placement: Placement, node: Node) -> tuple[int, int, str]:
    """Least used first, then what saves most."""
    used = {g for r in placement.replicas for g in r.gpus if node_of(g) == node.name}
    return (len(used), -node.gpus * setting.inputs.fleet.price_micros(node), node.name)


# --- sensitivity ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RulePrice:
    """What one rule of one deployment costs: the baseline's price less that without the rule.

    ``proved`` when both prices are. ``serves_more``: without it, somebody short is short no more.
    """

    deployment: str
    rule: str
    said: str
    saved_micros: int
    serves_more: tuple[str, ...]
    proved: bool
    answer: Answer


class _Rule(NamedTuple):
    name: str
    said: Callable[[Deployment], object]
    without: tuple[tuple[tuple[str, ...], object], ...]  # paths and the values that free them


RULES = (
    _Rule("slo.ttft_ms", lambda d: d.slo and d.slo.ttft_ms, ((("slo", "ttft_ms"), None),)),
    _Rule("slo.tpot_ms", lambda d: d.slo and d.slo.tpot_ms, ((("slo", "tpot_ms"), None),)),
    _Rule(
        "spread",
        lambda d: (d.spread_node, d.spread_rack) if d.spread_node or d.spread_rack else None,
        ((("spread_node",), None), (("spread_rack",), None)),
    ),
    _Rule("survive", lambda d: d.survive, ((("survive",), None),)),
    _Rule(
        "isolate", lambda d: d.isolate if d.isolate != "none" else None, ((("isolate",), "none"),)
    ),
    _Rule("avoid", lambda d: d.avoid, ((("avoid",), ()),)),
    _Rule("near", lambda d: d.near, ((("near",), ()),)),
    _Rule("pin", lambda d: d.pin, ((("pin",), ()),)),
    _Rule("allow.gpus", lambda d: d.allow.gpus, ((("allow", "gpus"), None),)),
    _Rule("allow.engines", lambda d: d.allow.engines, ((("allow", "engines"), None),)),
    _Rule("allow.sharing", lambda d: d.allow.sharing, ((("allow", "sharing"), None),)),
    _Rule("replicas.max", lambda d: d.demand and d.max_replicas, ((("max_replicas",), None),)),
)
LOWER_PRECISIONS = ("fp8", "int4")  # what a ban on them costs is asked


def sensitivity(setting: Setting, ask: Ask) -> tuple[RulePrice, ...]:
    """The price of each rule that a deployment states, dearest first; failed ones left out.

    Each rule is dropped alone. ``allow.precisions`` is asked as if fp8 and int4 were allowed too.
    """
    asked = [one for d in setting.inputs.workloads.deployments for one in _relaxations(d)]
    scenarios = [Scenario(f"{name} without {rule}", changes) for name, rule, _, changes in asked]
    before = setting.before.answer
    price, bound = _prices(_known(before))
    found = []
    for (name, rule, said, _), answer in zip(asked, ask(scenarios), strict=True):
        if answer.price_micros is None:
            continue
        still = {one.deployment for one in answer.unmet}
        found.append(
            RulePrice(
                deployment=name,
                rule=rule,
                said=said,
                saved_micros=price - answer.price_micros,
                serves_more=tuple(u.deployment for u in before.unmet if u.deployment not in still),
                proved=price == bound and answer.price_micros == answer.bound_micros,
                answer=answer,
            )
        )
    return tuple(sorted(found, key=lambda r: (-r.saved_micros, r.deployment, r.rule)))


def _relaxations(d: Deployment) -> Iterator[tuple[str, str, str, tuple[Change, ...]]]:
    """Each rule the deployment states: its name, what it says, and the changes that drop it."""
    for rule in RULES:
        said = rule.said(d)
        if said:
            changes = tuple(Assign("deployment", d.name, path, v) for path, v in rule.without)
            yield d.name, rule.name, _words(said), changes
    banned = [p for p in LOWER_PRECISIONS if p not in (d.allow.precisions or LOWER_PRECISIONS)]
    if banned:
        wider = (*(d.allow.precisions or ()), *banned)
        change = Assign("deployment", d.name, ("allow", "precisions"), wider)
        yield d.name, "allow.precisions", f"no {' or '.join(banned)}", (change,)


def _words(said: object) -> str:
    if isinstance(said, tuple):
        return ", ".join("any" if one is None else str(one) for one in said)
    return f"{said:g}" if isinstance(said, float) else str(said)
