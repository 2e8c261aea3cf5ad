"""Engine command lines and their flags, one file an engine."""

from optimizer.engines.checkpoint import Checkpoint, checkpoint
from optimizer.engines.command import (
    MASTER,
    PORT,
    RANK,
    CannotRun,
    EngineCommand,
    Rendezvous,
    Settings,
    nodes_of_group,
)
from optimizer.engines.programs import COMMANDS, command
from optimizer.engines.serving import Known, engine_command

__all__ = [
    "COMMANDS",
    "MASTER",
    "PORT",
    "RANK",
    "CannotRun",
    "Checkpoint",
    "EngineCommand",
    "Known",
    "Rendezvous",
    "Settings",
    "checkpoint",
    "command",
    "engine_command",
    "nodes_of_group",
]
