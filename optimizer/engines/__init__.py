"""Engine command lines and their flags, one file an engine."""

from optimizer.engines.checkpoint import Checkpoint, checkpoint
from optimizer.engines.command import PORT, CannotRun, EngineCommand, Settings
from optimizer.engines.programs import COMMANDS, command
from optimizer.engines.serving import Known, engine_command

__all__ = [
    "COMMANDS",
    "PORT",
    "CannotRun",
    "Checkpoint",
    "EngineCommand",
    "Known",
    "Settings",
    "checkpoint",
    "command",
    "engine_command",
]
