"""How long a list of steps takes, and how short it could be made."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.domain.placement import node_of
from optimizer.domain.plan import Step
from optimizer.domain.units import ceil_div
from optimizer.planning.pace import DEFAULT_PACE, HAND_OVER_S, SECONDS, Pace


@dataclass(frozen=True, slots=True)
class Makespan:
    """Seconds from the first step to the end of the last, and what no order of them undercuts."""

    seconds: int
    bound: int
    because: str  # what the bound comes from: chain | node | fleet

    @property
    def ratio(self) -> float:
        """Makespan over its bound; 1 is as short as can be."""
        return self.seconds / max(1, self.bound)


def makespan(steps: Sequence[Step], pace: Pace = DEFAULT_PACE) -> Makespan:
    """The longest of three bounds that hold for these moves with these stops on the way.

    The longest chain of steps that must follow each other; the loads of the busiest node, so many
    at once, and the hand-over of the last; likewise the loads of the fleet.
    """
    ends: dict[str, int] = {}
    by_node: dict[str, int] = defaultdict(int)
    for step in steps:
        ends[step.id] = step.seconds + max((ends.get(a, 0) for a in step.after), default=0)
        if step.action == "start":
            for node in {node_of(gpu) for gpu in step.gpus}:
                by_node[node] += step.seconds
    total = sum(s.seconds for s in steps if s.action == "start")
    tail = _least_tail(steps)
    bounds = [(max(ends.values(), default=0), "chain")]
    if by_node:
        busiest = ceil_div(max(by_node.values()), pace.loads_per_node)
        bounds.append((busiest + tail, "node"))
    if pace.loads_at_once:
        bounds.append((ceil_div(total, pace.loads_at_once) + tail, "fleet"))
    bound, because = max(bounds, key=lambda b: b[0])
    return Makespan(max((s.start_s + s.seconds for s in steps), default=0), bound, because)


def _least_tail(steps: Sequence[Step]) -> int:
    """The least that follows a load: the hand-over, or only its shift where nothing stops."""
    stopped = {s.replica for s in steps if s.action == "stop"}
    new = any(s.action == "start" and s.replica not in stopped for s in steps)
    return SECONDS["shift_traffic"] if new else HAND_OVER_S
