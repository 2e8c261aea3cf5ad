"""Tasks: replicas on their way, the steps drafted for them, and what deployments serve."""

from dataclasses import dataclass, field

from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Replica
from optimizer.domain.plan import Move, Step


@dataclass(slots=True, eq=False)
class Draft:
    """A step before it has its number."""

    action: str
    gpus: tuple[str, ...]
    replica: str | None
    start_s: int
    seconds: int
    because: str
    after: list["Draft"] = field(default_factory=list)
    placed: PlacedProfile | None = None
    enable: bool | None = None
    id: str = ""

    def step(self) -> Step:
        """The step, once all have their number."""
        after = [self.after[0].id] if len(self.after) == 1 else sorted({d.id for d in self.after})
        return Step(
            self.id,
            self.action,
            self.gpus,
            self.replica,
            tuple(after),
            self.start_s,
            self.seconds,
            self.because,
            self.placed,
            self.enable,
        )


@dataclass(slots=True, eq=False)
class Task:
    """A replica on its way: from ``source`` (None: it does not run) to ``target`` (None: stop)."""

    move: Move
    source: Replica | None
    target: Replica | None
    final: Replica | None  # where it ends; differs from target while it makes a stop elsewhere
    rank: int = 0
    state: str = "waiting"  # waiting | draining (for the floor) | running | done
    needs: list[Draft] = field(default_factory=list)  # what its start must follow
    begun: bool = False
    broke: bool = False  # drained before its new copy runs
    last: Draft | None = None  # what its next step must follow

    @property
    def name(self) -> str:
        return self.move.replica

    @property
    def deployment(self) -> str:
        return self.move.replica.rpartition("/")[0]

    @property
    def move_gpus(self) -> int:
        return len(self.source.gpus) if self.source is not None else 0


@dataclass(slots=True)
class Level:
    """What a deployment serves: a rate in mrps and a number of replicas."""

    mrps: int = 0
    replicas: int = 0

    def shifted(self, mrps: int, replicas: int) -> "Level":
        return Level(self.mrps + mrps, self.replicas + replicas)

    def carries(self, floor: "Level") -> bool:
        return self.mrps >= floor.mrps and self.replicas >= floor.replicas
