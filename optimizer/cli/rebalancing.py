"""What ``rebalance`` was asked for beside documents: limits, a policy, drained nodes, the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

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


NIGHT = "What a night may do"
CURVE = "A curve in place of a plan"


def _flag(name: str, text: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=NIGHT, show_default=False, **more)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the rebalancing may and shall do. None: not given."""

    knee: Annotated[bool, _flag("--knee", "Go where the curve bends.")] = False
    keep_configs: Annotated[
        bool,
        _flag(
            "--keep-configs", "Only move what runs in MIG slices, as it runs; proved at any size."
        ),
    ] = False
    max_moves: Annotated[
        int | None,
        _flag("--max-moves", "Start at most so many copies; stops are free.", min=0),
    ] = None
    max_load_gib: Annotated[
        float | None, _flag("--max-load-gib", "Load at most so much of weights.", min=0)
    ] = None
    free_gpus: Annotated[
        str | None,
        _flag("--free-gpus", "Free so many GPUs with the least disruption.", metavar="N|all"),
    ] = None
    drain: Annotated[
        list[str] | None, _flag("--drain", "Empty this node; may be repeated.", metavar="NODE")
    ] = None
    loads_at_once: Annotated[
        int | None, _flag("--loads-at-once", "Start at most so many copies at once.", min=1)
    ] = None
    loads_per_node: Annotated[
        int | None, _flag("--loads-per-node", "Of those, on one node.", min=1)
    ] = None
    window_minutes: Annotated[
        float | None,
        _flag("--window-minutes", "Leave what would end later, least valuable first.", min=1),
    ] = None
    whole_gpus: Annotated[
        bool,
        _flag("--whole-gpus", "Cut a GPU anew only when nobody is on it, as mig-parted does."),
    ] = False

    def said(self, policy: "Policy | None" = None) -> Mapping[str, Any]:
        """The flags given and the policy's limits, of both the tighter, as a plan records them."""
        flags = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in flags.items() if value not in (None, False)}
        for name, limit in (policy.limits() if policy else {}).items():
            given[name] = min(given[name], limit) if name in given else limit
        return given

    def drained(self, inputs: "Inputs") -> "Inputs":
        """The same with cordons on the nodes to drain, so that all there leave. Raises Stop."""
        from optimizer.documents.faults import unknown

        names, fleet = self.drain or (), inputs.fleet
        known = [node.name for node in fleet.nodes]
        for name in names:
            if name not in known:
                raise Stop(Code.USAGE, f"--drain: {unknown('node', name, known)}")
        nodes = tuple(replace(n, cordoned=True) if n.name in names else n for n in fleet.nodes)
        return replace(inputs, fleet=replace(fleet, nodes=nodes))

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


def frontier_data(
    points: "Sequence[Point]", unit: str, unserved: "Sequence[str]" = ()
) -> Mapping[str, Any]:
    """The curve as ``-o json`` shows it; ``unserved``: deployments that moving leaves short."""
    from optimizer.solver.rebalance import knee

    bend = knee(points) if len(points) > 1 else None
    return {
        "unit": unit,
        "unserved": list(unserved),
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
