"""What an engine's command line is made of, whichever engine it is."""

from dataclasses import dataclass, replace

from optimizer.domain.placement import Replica, node_of

# Stand in a command line for what is chosen where it runs: its port and, of a group over nodes,
# the first rank's host and port for the rendezvous, both in one, and the rank.
PORT = "{port}"
MASTER_HOST, MASTER_PORT = "{master host}", "{master port}"
MASTER, RANK = "{master}", "{rank}"
LOOPBACK = "127.0.0.1"
HEALTH = "/health"


class CannotRun(Exception):
    """An engine has no command line for what the plan asks; the message says what and why."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the ranks of a group over several nodes meet, and which one of them this is."""

    host: str
    port: int
    rank: int = 0


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """A program and its arguments, never passed to a shell, and variables it needs.

    ``health`` is the path that answers 200 once the engine serves. ``others`` is the command of
    every further node of a group over several.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    health: str = HEALTH
    others: tuple[str, ...] = ()

    def on(self, port: int, meeting: Rendezvous | None = None) -> "EngineCommand":
        """The same command on that port, and as that rank of its group."""
        said = {PORT: str(port)}
        if meeting is not None:
            said |= {MASTER_HOST: meeting.host, MASTER_PORT: str(meeting.port)}
            said |= {MASTER: f"{meeting.host}:{meeting.port}", RANK: str(meeting.rank)}
        argv = self.argv if meeting is None or meeting.rank == 0 else self.others
        return replace(self, argv=tuple(said.get(word, word) for word in argv))


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


def nodes_of_group(replica: Replica) -> int:
    """Over how many nodes its pipeline lies, whole stages on each; 1: in one node.

    Raises CannotRun where the stages do not divide so.
    """
    nodes = len(replica.nodes)
    if nodes == 1:
        return 1
    config = replica.config
    each = {sum(node_of(gpu) == node for gpu in replica.gpus) for node in replica.nodes}
    if config.pipeline_parallel % nodes or each != {len(replica.gpus) // nodes}:
        where = " and ".join(replica.nodes)
        raise CannotRun(
            f"{replica.id} spans {where}, and its {config.pipeline_parallel} pipeline stages do "
            "not divide over them evenly; tensor-parallel groups lie in one node"
        )
    return nodes


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
