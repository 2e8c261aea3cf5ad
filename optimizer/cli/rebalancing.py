"""What ``rebalance`` was asked for beside documents: limits, a policy, drained nodes, the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from optimizer.cli.codes import Code
from optimizer.cli.terminal import Stop

if TYPE_CHECKING:
    from optimizer.domain.outcome import Limits, Outcome
    from optimizer.domain.policy import Policy
    from optimizer.domain.problem import PlacementProblem
    from optimizer.optimize import Inputs, Progressing, Search
    from optimizer.planning import Pace
    from optimizer.solver.rebalance import Ask, Point

MIB_PER_GIB = 1024
BROKEN_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Wishes:
    """The flags of ``rebalance``. None: not given."""

    max_moves: int | None = None
    max_load_gib: float | None = None
    free_gpus: str | None = None
    knee: bool = False
    keep_configs: bool = False
    loads_at_once: int | None = None
    loads_per_node: int | None = None
    window_minutes: float | None = None
    whole_gpus: bool = False

    def said(self) -> Mapping[str, Any]:
        """The flags that were given, as a plan records them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if value not in (None, False)}

    def ask(self, policy: "Policy | None") -> "Ask":
        """Limits of flags and policy, the tighter of each. Raises Stop."""
        from optimizer.solver.rebalance import Ask

        gib = None if self.max_load_gib is None else int(self.max_load_gib * MIB_PER_GIB)
        return Ask(
            _least(self.max_moves, policy.max_moves if policy else None),
            _least(gib, policy.max_load_mib if policy else None),
            self._freed(),
            self.whole_gpus,
        )

    def _freed(self) -> int | None:
        if self.free_gpus is None or self.free_gpus == "all":
            return None  # the least price frees all that can be freed
        if not self.free_gpus.isdigit():
            raise Stop(Code.USAGE, f'--free-gpus: a number or "all", got "{self.free_gpus}"')
        return int(self.free_gpus)

    def pace(self, policy: "Policy | None") -> "Pace":
        """How much at once, and the window of flags or policy."""
        from optimizer.planning import Pace

        window = None if self.window_minutes is None else int(60 * self.window_minutes)
        return Pace(
            self.loads_per_node or Pace().loads_per_node,
            self.loads_at_once,
            _least(window, policy.window_s if policy else None),
            self.whole_gpus,
        )

    def search(self, policy: "Policy | None") -> "Search | None":
        """The search that keeps to them; None where nothing asks for more than the usual one."""
        ask = self.ask(policy)
        if self.knee:
            return _to_the_knee
        if self.keep_configs:
            return lambda problem, limits, progress: _kept(problem, limits, ask)
        tenants = policy.protected_tenants if policy else ()
        saving = policy.min_saving_micros_per_move if policy else None
        limited = any(limit is not None for limit in (ask.max_moves, ask.max_load_mib))
        if not limited and ask.free_gpus is None and saving is None and not tenants:
            return None
        from optimizer.solver.nightly import Worth, protected, rebalance_within

        worth = None if saving is None or policy is None else Worth(saving, policy.horizon_hours)
        return lambda problem, limits, progress: rebalance_within(
            protected(problem, tenants), limits, ask, worth, progress
        )


def _least(*values: int | None) -> int | None:
    return min((v for v in values if v is not None), default=None)


def _kept(problem: "PlacementProblem", limits: "Limits", ask: "Ask") -> "Outcome":
    from optimizer.solver.rebalance import consolidate

    _must_hold(problem)
    return consolidate(problem, limits, ask)


def _to_the_knee(
    problem: "PlacementProblem", limits: "Limits", progress: "Progressing"
) -> "Outcome":
    from optimizer.solver.rebalance import at_point, consolidate, frontier, knee

    _must_hold(problem)
    points = frontier(problem, limits)
    return at_point(problem, limits, knee(points)) if points else consolidate(problem, limits)


def _must_hold(problem: "PlacementProblem") -> None:
    """Refuse where moving alone cannot mend what runs now. Raises Stop."""
    from optimizer.verify import verify

    assert problem.current is not None
    broken = [v for v in verify(problem, problem.current) if v.rule != "cordon"]
    if broken:
        told = [f"{v.rule}: {v.subject}: {v.message}" for v in broken[:BROKEN_SHOWN]]
        hint = "leave --keep-configs and --knee out, so that configurations may change"
        first = "what runs now breaks rules that moving it as it runs cannot mend:"
        raise Stop(Code.USAGE, first, *told, hint)


def drained(inputs: "Inputs", names: Sequence[str]) -> "Inputs":
    """The same with these nodes cordoned, so that whatever runs there must leave. Raises Stop."""
    known = {node.name for node in inputs.fleet.nodes}
    unknown = sorted(set(names) - known)
    if unknown:
        raise Stop(Code.USAGE, f'--drain: no node "{unknown[0]}" in fleet {inputs.fleet.name}')
    nodes = tuple(replace(n, cordoned=True) if n.name in names else n for n in inputs.fleet.nodes)
    return replace(inputs, fleet=replace(inputs.fleet, nodes=nodes))


def frontier_data(points: "Sequence[Point]", unit: str) -> Mapping[str, Any]:
    """The curve as ``-o json`` shows it."""
    from optimizer.solver.rebalance import knee

    bend = knee(points) if len(points) > 1 else None
    return {
        "unit": unit,
        "points": [
            {
                "price_per_hour": p.price_micros / 1e6,
                "price_bound": p.price_bound_micros / 1e6,
                "gpus_used": p.gpus,
                "moves": p.moves,
                "disruption_gib": round(p.disruption_mib / MIB_PER_GIB, 3),
                "disruption_bound_gib": round(p.disruption_bound_mib / MIB_PER_GIB, 3),
                "proved": p.proved,
                "knee": p is bend,
            }
            for p in points
        ],
    }
