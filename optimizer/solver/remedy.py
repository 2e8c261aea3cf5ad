"""What would serve a deployment that goes short, while everything else stays where it is.

Each rule left out, each number made looser, each GPU added and each promise of the SLO relaxed is
tried by solving: the deployment is placed anew, in full, beside all the others of the plan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from optimizer.domain import words
from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.placement import Placement, node_of, replica_order
from optimizer.domain.plan import Unmet
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Allow, Deployment
from optimizer.solver.admit import RULES, admit, after, fits
from optimizer.solver.beside import Planned
from optimizer.solver.easing import ceilings, eased_rules, least, opened, refitted
from optimizer.solver.promises import Resize, slo_fixes

MOST_FIXES = 3
MOST_NODES = 32  # of a product
NODES_TOLD = 3
SMALL = 1.2  # a promise relaxed by no more than this is the first fix told


@dataclass(frozen=True, slots=True)
class Remedy:
    """``rules`` without any one of which it would be served; ``fixes``, the smallest first."""

    rules: tuple[str, ...]
    fixes: tuple[str, ...]

    def applied(self, unmet: Unmet) -> Unmet:
        """The same, told with these rules and fixes."""
        reason = unmet.reason
        if self.rules and not any(reason.startswith(rule) for rule in self.rules):
            named = " or ".join(self.rules)
            reason = f"{named}: without it, it would be served; {reason}"
        return replace(unmet, reason=reason, smallest_fix=", or ".join(self.fixes) or None)


def remedy(problem: PlacementProblem, found: Placement, name: str, resize: Resize) -> Remedy | None:
    """What would serve that deployment in full; None: it fits as it is.

    ``resize`` gives the ways to run it under another SLO.
    """
    rest = tuple(d for d in problem.deployments if d.name != name)
    stays = tuple(r for r in found.replicas if r.deployment != name)
    planned = Planned.of(replace(problem, deployments=rest), replace(found, replicas=stays))
    ways = problem.candidates.get(name, ())
    case = _Case(planned, problem.deployment(name), ways, resize)
    return None if case.served() else _found(case)


def admitting(
    planned: Planned, new: Deployment, ways: Sequence[Candidate], resize: Resize
) -> Remedy:
    """What would admit a new deployment that does not fit."""
    return _found(_Case(planned, new, ways, resize))


def _found(case: "_Case") -> Remedy:
    dropped = list(case.without_rules())
    slo = list(slo_fixes(case.asked, lambda d: case.served(d, case.resize(d))))
    fixes = [told for factor, told in slo if factor <= SMALL]
    fixes += case.eased()
    fixes += case.more_gpus()
    fixes += [told for factor, told in slo if factor > SMALL]
    fixes += [told for _, told in dropped if told not in fixes]
    fixes = fixes or list(case.pairs())
    rules = tuple(dict.fromkeys(rule for rule, _ in dropped))
    return Remedy(rules, tuple(fixes[:MOST_FIXES]))


class _Case:
    """One deployment apart, and all that stays."""

    def __init__(
        self, planned: Planned, asked: Deployment, ways: Sequence[Candidate], resize: Resize
    ) -> None:
        self.asked, self.ways, self.planned, self.resize = asked, ways, planned, resize
        self.problem, self.found = planned.problem, planned.placement

    def served(
        self,
        asked: Deployment | None = None,
        ways: Sequence[Candidate] | None = None,
        planned: Planned | None = None,
    ) -> bool:
        """Whether it fits in full beside the rest."""
        return fits(
            self.planned if planned is None else planned,
            self.asked if asked is None else asked,
            self.ways if ways is None else ways,
        )

    def _under(self, problem: PlacementProblem, found: Placement | None = None) -> Planned:
        return Planned.of(problem, self.found if found is None else found)

    def without_rules(self) -> Iterator[tuple[str, str]]:
        """Rules that alone stand in the way, each with what to do."""
        for name, loose in RULES:
            changed = replace(self.asked, **loose)
            if changed != self.asked and self.served(changed, self._ways_of(name, changed)):
                yield name, f"drop {name} of {self.asked.name}"
        yield from self._allowed()
        for name, told, planned in self._fleets():
            if self.served(planned=planned):
                yield name, told
        yield from self._uncordoned()
        yield from self._raised()

    def _ways_of(self, rule: str, changed: Deployment) -> Sequence[Candidate]:
        """Who is pinned was sized for the products of its pin only."""
        return self.resize(changed) if rule == "pin" else self.ways

    def _allowed(self) -> Iterator[tuple[str, str]]:
        """What it allows itself too little of, and nodes that allow no MIG."""
        d, plain = self.asked, Allow()
        for field in (f.name for f in fields(Allow) if f.name != "forbidden"):
            if getattr(d.allow, field) != getattr(plain, field):
                wider = replace(d.allow, **{field: getattr(plain, field)})
                changed = replace(d, allow=wider)
                if self.served(changed, self.resize(changed)):
                    yield "allowed", f"drop allow.{field} of {d.name}"
        fleet = self.problem.fleet
        shut = [
            n.name
            for n in fleet.nodes
            if n.gpu.mig is not None and Sharing.MIG not in n.sharing
            if not d.pin or n.name in {p.partition("/")[0] for p in d.pin}
        ]
        if shut:
            nodes = tuple(
                replace(n, sharing=(Sharing.MIG, *n.sharing)) if n.name in shut else n
                for n in fleet.nodes
            )
            sliced = replace(fleet, nodes=nodes)
            planned = self._under(replace(self.problem, fleet=sliced))
            if self.served(ways=self.resize(d, sliced), planned=planned):
                yield "allowed", f"let {_few(shut)} be cut by MIG"

    def pairs(self) -> Iterator[str]:
        """Where no single change helps: a rule of its own left out, and one change beside that."""
        for name, loose in RULES:
            changed = replace(self.asked, **loose)
            if changed != self.asked:
                other = _Case(self.planned, changed, self._ways_of(name, changed), self.resize)
                beside = [told for _, told in other.without_rules()][:1] or other.more_gpus()
                yield from (f"drop {name} of {self.asked.name} and {told}" for told in beside)

    def _uncordoned(self) -> Iterator[tuple[str, str]]:
        """The cordoned GPUs that it would use."""
        shut = {gpu.id for gpu in self.problem.fleet.gpus() if gpu.cordoned}
        if not shut or not self.ways:
            return
        admitted = admit(self._under(opened(self.problem)), self.asked, self.ways)
        used = sorted(
            {g for r in admitted.replicas for g in r.gpus if g in shut}, key=replica_order
        )
        if used:
            nodes = list(dict.fromkeys(node_of(gpu) for gpu in used))
            few = [gpu for gpu in used if node_of(gpu) in nodes[:NODES_TOLD]]
            yield "cordon", f"uncordon {_few(nodes, words.gpus(few))}"

    def _raised(self) -> Iterator[tuple[str, str]]:
        """The fleet's ceilings, each raised to what the cheapest room for it takes."""
        for name, lifted, ceiling in ceilings(self.problem):
            planned = self._under(lifted)
            admitted = admit(planned, self.asked, self.ways) if self.ways else None
            if admitted is not None and admitted.reason is None:
                spent = ceiling.placed(lifted, after(planned, admitted))
                yield name, ceiling.words(ceiling.rounded(spent))

    def _fleets(self) -> Iterator[tuple[str, str, Planned]]:
        """The fleet without one of its own rules."""
        problem, fleet = self.problem, self.problem.fleet
        if any(node.layouts_fixed for node in fleet.nodes):
            free = refitted(problem, {"layouts_fixed": False})
            yield "fixed_layout", "let layouts change", self._under(free)
        if self.found.reserved:
            bare = replace(self.found, reserved=())
            yield "reserve", "drop reserve", self._under(problem, bare)
        strict = [d for d in problem.deployments if d.isolate != "none"]
        if strict:
            open_ = tuple(replace(d, isolate="none") for d in problem.deployments)
            told = f"drop isolation of {', '.join(d.name for d in strict[:3])}"
            more = f" and {len(strict) - 3} more" if len(strict) > 3 else ""
            yield "isolation", told + more, self._under(replace(problem, deployments=open_))

    def eased(self) -> Iterator[str]:
        """Its rules' numbers, each made looser by as little as serves it."""
        for easing in eased_rules(self.asked):
            alone = PlacementProblem(self.problem.fleet, (self.asked,))

            def helps(step: int, at=easing.at, alone=alone) -> bool:  # type: ignore[no-untyped-def]
                (changed,) = at(alone, step).deployments
                return self.served(changed)

            step = least(easing.steps, helps)
            if step is not None:
                yield easing.words(step).removeprefix(f"{self.asked.name}.")

    def more_gpus(self) -> Iterator[str]:
        """The fewest GPUs more, of the product that makes it cheapest."""
        if self.asked.pin or self.asked.near:
            return  # a new node is not among those that it may run on
        fleet = self.problem.fleet
        d = self.asked
        apart = d.spread_node is not None or d.spread_rack is not None or d.survive is not None
        offers: list[tuple[int, int, int, str]] = []
        wanted = {way.gpu for way in self.ways if not way.running_only}
        for node in {n.gpu.name: n for n in reversed(fleet.nodes)}.values():
            if node.gpu.name not in wanted:
                continue
            fewest = self._fewest(node)
            if fewest is not None:
                offers.append((fewest[0] * fleet.price_micros(node), *fewest, node.gpu.name))
        if offers:
            price, gpus, nodes, name = min(offers)
            where = f" on {words.plural(nodes, 'node')}, each a rack of its own" if apart else ""
            cost = f" ({words.price(price, fleet.unit)})" if fleet.priced else ""
            yield f"{gpus} more {name}{where}{cost}"

    def _fewest(self, node: Node) -> tuple[int, int] | None:
        """How many GPUs more, on how many nodes like that one: as few as serve it."""
        nodes = least(MOST_NODES, lambda n: self._grown(node, n, node.gpus))
        if nodes is None:
            return None
        each = least(node.gpus, lambda g: self._grown(node, nodes, g))
        fewest = nodes * (each or node.gpus)
        if self.asked.spread_node is None and not self.asked.survive and nodes > 1:
            last = least(node.gpus, lambda g: self._grown(node, nodes - 1, node.gpus, g))
            fewest = min(fewest, (nodes - 1) * node.gpus + (last or node.gpus))
        return fewest, nodes

    def _grown(self, node: Node, count: int, gpus: int, last: int = 0) -> bool:
        sizes = [gpus] * count + ([last] if last else [])
        new = tuple(
            replace(
                node, name=f"new {i}", gpus=size, rack=None, devices=(), cordoned=False,
                layouts_fixed=False,
            )
            for i, size in enumerate(sizes)
        )  # fmt: skip
        fleet = replace(self.problem.fleet, nodes=(*self.problem.fleet.nodes, *new))
        return self.served(planned=self._under(replace(self.problem, fleet=fleet)))


def _few(nodes: Sequence[str], told: str | None = None) -> str:
    """The first nodes, as ``told`` or by name, and how many more there are."""
    more = len(nodes) - NODES_TOLD
    also = f" and {words.plural(more, 'more node')}" if more > 0 else ""
    return (told or ", ".join(nodes[:NODES_TOLD])) + also
