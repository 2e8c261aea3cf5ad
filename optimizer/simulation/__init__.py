"""Replays traffic against a plan, request by request: what closed forms only estimate."""

from optimizer.simulation.plan import Left, Replay, Task, replay_plan, spec_of, tasks
from optimizer.simulation.replay import (
    Attained,
    Replayed,
    Routing,
    Served,
    replay_deployment,
)
from optimizer.simulation.server import Job, Server, ServerSpec
from optimizer.simulation.traffic import Arrivals, fitted, one_by_one, synthetic

__all__ = [
    "Arrivals",
    "Attained",
    "Job",
    "Left",
    "Replay",
    "Replayed",
    "Routing",
    "Served",
    "Server",
    "ServerSpec",
    "Task",
    "fitted",
    "one_by_one",
    "replay_deployment",
    "replay_plan",
    "spec_of",
    "synthetic",
    "tasks",
]
