"""What an engine's command line is made of, whichever engine it is."""

from dataclasses import dataclass, replace

from optimizer.domain.placement import Replica

PORT = "{port}"  # stands in a command line whose port is chosen where it runs
LOOPBACK = "127.0.0.1"
HEALTH = "/health"


class CannotRun(Exception):
    """An engine has no command line for what the plan asks; the message says what and why."""


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A program and its arguments, never passed to a shell, and variables it needs.

    ``health`` is the path that answers 200 once the engine serves.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    health: str = HEALTH

    def on(self, port: int) -> "EngineCommand":
        """The same command on that port."""
        return replace(self, argv=tuple(str(port) if a == PORT else a for a in self.argv))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a command line needs beside the replica. None: not known.

    ``device_mib`` is what CUDA reports for one visible device (a MIG slice: the slice), which is
    what memory fractions are taken of; ``max_num_batched_tokens`` what sizing counted with.
    """

    checkpoint_precision: str | None = None
    task: str = "generate"  # generate | embed
    device_mib: int | None = None
    max_num_batched_tokens: int | None = None
    lora_count: int = 0
    lora_rank: int = 0
    host: str = LOOPBACK


class Flags:
    """Grows an argument list; a value of None leaves its flag out."""

    def __init__(self, *program: str) -> None:
        self._argv = list(program)

    def add(self, flag: str, value: object = True) -> "Flags":
        """``--flag value``; ``True`` adds the flag alone."""
        if value is None:
            return self
        self._argv.append(flag)
        if value is not True:
            self._argv.append(str(value))
        return self

    @property
    def argv(self) -> tuple[str, ...]:
        """All arguments so far."""
        return tuple(self._argv)


def port_text(port: int | None) -> str:
    """The port's number, or the mark that ``EngineCommand.on`` replaces."""
    return PORT if port is None else str(port)


def memory_fraction(replica: Replica, settings: Settings) -> float | None:
    """The part of one visible device the engine may budget, in thousandths rounded down.

    The plan's own figure where it has one; for a share of a GPU, the share over the device.
    """
    if replica.config.memory_fraction is not None:
        return replica.config.memory_fraction
    if replica.share is not None and settings.device_mib:
        return replica.share.memory_mib * 1000 // settings.device_mib / 1000
    return None


def needs_fraction(replica: Replica, settings: Settings, default: float) -> float:
    """The memory fraction, or the engine's default for a device it has alone.

    Raises CannotRun on a shared GPU whose share of memory nobody can tell: the default would take
    the neighbours' memory.
    """
    fraction = memory_fraction(replica, settings)
    if fraction is not None:
        return fraction
    if replica.share is not None:
        raise CannotRun(f"{replica.id} shares a GPU and the plan gives no memory fraction for it")
    return default


def at_load(replica: Replica, settings: Settings, natively: tuple[str, ...]) -> str | None:
    """The precision to quantise to while loading; None: the checkpoint is already so.

    ``natively``: what this engine can make of a 16-bit checkpoint. Raises CannotRun otherwise.
    """
    wanted, stored = replica.config.precision, settings.checkpoint_precision
    if wanted is None or stored is None or wanted == stored:
        return None
    sixteen = ("bf16", "fp16", "fp32")
    if wanted in sixteen and stored in sixteen:
        return None
    if stored in sixteen and wanted in natively:
        return wanted
    raise CannotRun(
        f"{replica.id} runs in {wanted} and its checkpoint is {stored}, which "
        f"{replica.config.engine} does not convert while loading; name a checkpoint in {wanted}"
    )


DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def dtype(replica: Replica) -> str:
    """The type of unquantised tensors: the plan's 16- or 32-bit precision, else the model's."""
    return DTYPES.get(replica.config.precision or "", "auto")
