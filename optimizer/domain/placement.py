"""Placements: which replica runs on which GPUs or GPU instances."""

from dataclasses import dataclass, replace

from optimizer.domain.config import Candidate, ReplicaConfig, Shape
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import PlacedProfile, Use


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG instance that stands empty."""

    gpu: str
    placed: PlacedProfile


@dataclass(frozen=True, slots=True)
class Replica:
    """One running copy of a deployment. Without ``mig`` and ``share`` it holds its GPUs whole."""

    id: str  # <deployment>/<n>
    deployment: str
    gpus: tuple[str, ...]
    mig: PlacedProfile | None = None
    share: Use | None = None
    config: ReplicaConfig = ReplicaConfig()

    @property
    def shape(self) -> Shape:
        """The room it takes."""
        if self.mig is not None:
            return Shape(Sharing.MIG, 1, self.mig.profile)
        if self.share is not None:
            return Shape(Sharing.SHARED, 1, None, self.share)
        gpus, stages = len(self.gpus), self.config.pipeline_parallel
        return Shape(Sharing.WHOLE, gpus, stages=stages if gpus % stages == 0 else 1)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes it touches, sorted."""
        if len(self.gpus) == 1:
            return (node_of(self.gpus[0]),)
        return tuple(sorted({node_of(gpu) for gpu in self.gpus}))

    @property
    def number(self) -> int:
        """The n of ``<deployment>/<n>``."""
        return int(self.id.rsplit("/", 1)[1])

    def runs_as(self, candidate: Candidate, product: str) -> bool:
        """Whether this is a replica of that candidate on that product; unsaid settings agree."""
        return (
            candidate.deployment == self.deployment
            and candidate.gpu == product
            and candidate.shape == self.shape
            and self.config.agrees_with(candidate.config)
        )


@dataclass(frozen=True, slots=True)
class Reserved:
    """Room kept free for an entry of the fleet's ``reserve``: whole GPUs, or a MIG position."""

    entry: int  # its place in the list
    gpus: tuple[str, ...]
    mig: PlacedProfile | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicas, and MIG instances that stand empty, sorted by id and by GPU; room kept free."""

    replicas: tuple[Replica, ...] = ()
    instances: tuple[Instance, ...] = ()
    reserved: tuple[Reserved, ...] = ()

    def in_order(self) -> "Placement":
        """The same, sorted."""
        return replace(
            self,
            replicas=tuple(sorted(self.replicas, key=lambda r: replica_order(r.id))),
            instances=tuple(sorted(self.instances, key=lambda i: (i.gpu, i.placed))),
        )


def node_of(gpu_id: str) -> str:
    """The node part of ``<node>/<index>``."""
    return gpu_id.rsplit("/", 1)[0]


def replica_order(replica_id: str) -> tuple[str, int]:
    """Sort key that puts chat/2 before chat/10."""
    deployment, _, number = replica_id.rpartition("/")
    return (deployment, int(number) if number.isdigit() else 0)
