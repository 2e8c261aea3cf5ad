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
from optimizer.simulation.traffic import fitted, synthetic

__all__ = [
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
    "replay_deployment",
    "replay_plan",
    "spec_of",
    "synthetic",
    "tasks",
]
