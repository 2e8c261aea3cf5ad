"""Moves: what changes between what runs now and what should run."""

from collections.abc import Iterator

from optimizer.domain import words
from optimizer.domain.fleet import FleetGpu
from optimizer.domain.placement import Placement, Replica, node_of, replica_order
from optimizer.domain.plan import Move
from optimizer.domain.problem import PlacementProblem
from optimizer.planning.layout import changed, layouts_after, standing
from optimizer.planning.match import Matcher


def moves(problem: PlacementProblem, placement: Placement) -> tuple[Move, ...]:
    """Every replica that starts, stops, moves or is reconfigured, in order of replica id.

    A replica stays when its id, GPUs, instance, share and every setting that both sides name are
    the same. ``load_mib`` is what its new copy must load; a stop loads nothing. Without a current
    placement every replica is a start.
    """
    return tuple(_Moves(problem, placement).every())


def repartitions(problem: PlacementProblem, placement: Placement) -> tuple[str, ...]:
    """GPUs on which an instance must be created or destroyed, sorted.

    An empty instance that may stand beside what is new stays and costs nothing; a GPU used whole
    or shared must have none.
    """
    return changed(standing(problem), layouts_after(problem, placement))


class _Moves:
    """The two placements side by side."""

    def __init__(self, problem: PlacementProblem, placement: Placement) -> None:
        self.problem = problem
        self.matcher = Matcher(problem)
        current = problem.current or Placement()
        self.before = {r.id: r for r in current.replicas}
        self.after = {r.id: r for r in placement.replicas}
        self.gpus: dict[str, FleetGpu] = {g.id: g for g in problem.fleet.gpus()}
        self.used_after = {g for r in placement.replicas for g in r.gpus}
        self.new_on: dict[str, list[str]] = {}
        for replica in placement.replicas:
            old = self.before.get(replica.id)
            if old is None or not same_place(old, replica):
                for gpu in replica.gpus:
                    self.new_on.setdefault(gpu, []).append(replica.id)

    def every(self) -> Iterator[Move]:
        """The moves, in order of replica id."""
        for name in sorted({*self.before, *self.after}, key=replica_order):
            before, after = self.before.get(name), self.after.get(name)
            if after is None and before is not None:
                yield Move(name, "stop", before, None, 0, self._why_stop(before))
            elif after is not None and before is None:
                yield Move(name, "start", None, after, self._load(after), self._why_start(after))
            elif after is not None and before is not None:
                yield from self._changed(before, after)

    def _changed(self, before: Replica, after: Replica) -> Iterator[Move]:
        if not same_place(before, after):
            reason = self._why_move(before, after)
            yield Move(after.id, "move", before, after, self._load(after), reason)
        elif not before.config.agrees_with(after.config):
            reason = f"its settings change: {_settings_change(before, after)}"
            yield Move(after.id, "reconfigure", before, after, self._load(after), reason)

    def _load(self, replica: Replica) -> int:
        return self.matcher.load_mib(replica)

    def _why_start(self, after: Replica) -> str:
        capacity = self.matcher.capacity_mrps(after)
        deployment = self.matcher.deployments.get(after.deployment)
        if capacity and deployment is not None and deployment.asked_mrps:
            asked = words.rate(deployment.asked_mrps)
            return f"carries up to {words.rate(capacity)} of the {asked} asked"
        least = deployment.min_replicas if deployment is not None else 1
        return f"one of the {words.plural(least, 'replica')} asked"

    def _why_stop(self, before: Replica) -> str:
        if before.deployment not in self.matcher.deployments:
            return f"{before.deployment} is no longer asked for"
        return self._leaving(before) or "the other replicas carry the demand"

    def _why_move(self, before: Replica, after: Replica) -> str:
        leaving = self._leaving(before)
        if leaving:
            return leaving
        newcomers = sorted(
            {r for g in before.gpus for r in self.new_on.get(g, ()) if r != after.id},
            key=replica_order,
        )
        if newcomers:
            more = f" and {len(newcomers) - 1} more" if len(newcomers) > 1 else ""
            return f"makes room on {words.gpus(before.gpus)} for {newcomers[0]}{more}"
        if before.gpus == after.gpus:
            return f"needs another room on {words.gpus(before.gpus)}"
        return f"fits tighter on {words.gpus(after.gpus)}"

    def _leaving(self, before: Replica) -> str | None:
        """Why it cannot or need not stay where it is, if the place itself says so."""
        gone = [g for g in before.gpus if g not in self.gpus]
        if gone:
            return f"{node_of(gone[0])} is no longer in the fleet"
        cordoned = [g for g in before.gpus if self.gpus[g].cordoned]
        if cordoned:
            return f"{cordoned[0]} is cordoned"
        freed = tuple(g for g in before.gpus if g not in self.used_after)
        if not freed:
            return None
        saved = sum(self.problem.fleet.price_micros(self.gpus[g].node) for g in freed)
        return f"frees {words.gpus(freed)} ({words.price(saved, self.problem.fleet.unit)})"


def same_place(a: Replica, b: Replica) -> bool:
    """Whether both are on the same GPUs and in the same room."""
    return (sorted(a.gpus), a.mig, a.share) == (sorted(b.gpus), b.mig, b.share)


def _settings_change(before: Replica, after: Replica) -> str:
    parts = []
    for name in type(before.config).__dataclass_fields__:
        old, new = getattr(before.config, name), getattr(after.config, name)
        if old is not None and new is not None and old != new:
            parts.append(f"{name} {old} to {new}")
    return ", ".join(parts)
