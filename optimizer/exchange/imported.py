"""What an import is made of: files as given, and documents with what their source left unsaid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimizer.domain.gpu import Gpu

Data = Mapping[str, Any]
MOST_GPUS = 1024  # of one node, as in a Fleet


class CannotRead(Exception):
    """Input that is refused: every reason with its file and, where there is one, its line."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


class NotHere(Exception):
    """What would answer here is not on this machine; the message says what and how to get it."""


@dataclass(frozen=True, slots=True)
class File:
    """One file as given; ``folder`` is the name of the folder that was given in its place."""

    name: str
    text: str
    folder: str | None = None

    @property
    def stem(self) -> str:
        """Its name without folders and without what follows the first dot."""
        return self.name.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]

    def at(self, line: int, message: str) -> str:
        """A reason with its place."""
        return f"{self.name}:{line}: {message}"


@dataclass(frozen=True, slots=True)
class Input:
    """What an importer is given.

    ``gpus`` are the products known; ``parse`` reads YAML or JSON text to plain values and raises
    CannotRead. ``node``, ``gpu`` and ``count`` say what a format cannot: the name of the node, its
    product and its number of GPUs.
    """

    files: tuple[File, ...]
    gpus: tuple[Gpu, ...]
    parse: Callable[[File], Sequence[Any]]
    name: str = "fleet"
    node: str | None = None
    gpu: str | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """One document; ``unsaid`` is what the source did not say, ``notes`` how it was read."""

    data: Data
    unsaid: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Fleet, State, Workloads and so on."""
        return str(self.data["kind"])


@dataclass(frozen=True, slots=True)
class Import:
    """The documents of an import, and ``left_out``: what was seen and could not become any."""

    format: str
    documents: tuple[Imported, ...]
    left_out: tuple[str, ...] = field(default=())


PRICES = "price_per_gpu_hour of every node: without prices, plans count GPUs"
RACKS = "rack and zone of every node: a node without a rack fails alone"
HOST = "cpu_cores and memory_gib of every node: without them they count as enough"
