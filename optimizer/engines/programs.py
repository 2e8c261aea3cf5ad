"""Which file writes the command line of which engine."""

from optimizer.domain.placement import Replica
from optimizer.engines import sglang, tensorrt_llm, tgi, vllm
from optimizer.engines.command import CannotRun, EngineCommand, Settings

COMMANDS = {
    "sglang": sglang.command,
    "tensorrt-llm": tensorrt_llm.command,
    "tgi": tgi.command,
    "vllm": vllm.command,
}


def command(
    replica: Replica,
    gpu_product: str,
    model_id: str,
    port: int | None,
    settings: Settings | None = None,
) -> EngineCommand:
    """The command line that serves ``replica`` as its plan says, on one visible device or more.

    ``port`` None leaves the mark ``PORT``, to be filled in by ``EngineCommand.on``. Raises
    CannotRun when the plan names no engine, one we have no command line for, or settings that it
    cannot be told.
    """
    engine = replica.config.engine
    if engine is None:
        raise CannotRun(f"{replica.id}: the plan names no engine")
    if engine not in COMMANDS:
        known = ", ".join(sorted(COMMANDS))
        raise CannotRun(f"{replica.id}: no command line for engine {engine}, only for {known}")
    if model_id.startswith("-"):
        raise CannotRun(f"{replica.id}: {model_id} is no model id")
    return COMMANDS[engine](replica, gpu_product, model_id, port, settings or Settings())
