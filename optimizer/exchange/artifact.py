"""What an export is made of: files with their contents, and what a format cannot say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.domain.fleet import Fleet
from optimizer.domain.gpu import Gpu
from optimizer.domain.plan import Plan
from optimizer.engines import Known

Document = Mapping[str, Any]
ONLY_LAYOUTS = (
    "this says how GPUs are divided and not what runs on them: export kubernetes, ray-serve or "
    "engines say that"
)


class CannotExport(Exception):
    """The format needs something that nobody has said; the message says what and how to say it."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file: YAML ``documents``, or a ``text`` whose comments start with ``comment``."""

    name: str
    documents: tuple[Document, ...] = ()
    text: str = ""
    comment: str = "#"
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """The files of an export, the version of their format, and notes for whoever uses them."""

    format: str
    artifacts: tuple[Artifact, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """What an exporter is given: the plan, and the documents that it was made from.

    ``images`` are container images by engine; ``namespace`` is Kubernetes'; ``pods`` are running
    pods by deployment, for what no engine of ours serves.
    """

    plan: Plan
    fleet: Fleet
    known: Known
    images: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "default"
    pods: Mapping[str, Document] = field(default_factory=dict)

    def product(self, name: str) -> Gpu | None:
        """The datasheet of that product, where the fleet has one."""
        return self.known.gpus.get(name)

    def strategy(self, node: str) -> str:
        """How the device plugin of a node offers MIG: its label, else mixed."""
        labels = next((n.labels for n in self.fleet.nodes if n.name == node), ())
        return dict(labels).get("nvidia.com/mig.strategy", "mixed")
