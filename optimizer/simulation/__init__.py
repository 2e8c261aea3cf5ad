"""Replays traffic against a plan, request by request: what closed forms only estimate."""

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
    "Replayed",
    "Routing",
    "Served",
    "Server",
    "ServerSpec",
    "fitted",
    "replay_deployment",
    "synthetic",
]
