"""The only room that changes the world: carries out a plan on a Ray cluster.

Names are loaded on first use, so that a simulated engine, which lives in this room too, starts
without the rest of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.launch.apply import launch
    from optimizer.launch.devices import node_setup
    from optimizer.launch.differences import Difference, drift
    from optimizer.launch.live import LiveState, live_state
    from optimizer.launch.rebalance import rollback
    from optimizer.launch.specs import preview
    from optimizer.launch.values import (
        AUTO,
        SIMULATED,
        Event,
        Failure,
        LaunchRefused,
        LaunchResult,
        Patience,
        PlanStale,
        State,
        StopResult,
    )
    from optimizer.launch.watch import attend, status, stop

__all__ = [
    "AUTO",
    "SIMULATED",
    "Difference",
    "Event",
    "Failure",
    "LaunchRefused",
    "LaunchResult",
    "LiveState",
    "Patience",
    "PlanStale",
    "State",
    "StopResult",
    "attend",
    "drift",
    "launch",
    "live_state",
    "node_setup",
    "preview",
    "rollback",
    "status",
    "stop",
]

_HOMES = {
    "Difference": "differences",
    "drift": "differences",
    "LiveState": "live",
    "launch": "apply",
    "live_state": "live",
    "node_setup": "devices",
    "preview": "specs",
    "attend": "watch",
    "rollback": "rebalance",
    "status": "watch",
    "stop": "watch",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'values')}"), name)
