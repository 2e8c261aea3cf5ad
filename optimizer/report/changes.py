"""Moves that read the same, told together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optimizer.domain import words
from optimizer.domain.placement import Replica
from optimizer.domain.plan import Move


@dataclass(frozen=True, slots=True)
class Alike:
    """Moves of one deployment between the same GPUs for the same reason."""

    replicas: str  # ``chat/0``, ``chat/0-3,6``
    count: int
    kind: str
    before: str
    after: str
    load_mib: int
    reason: str

    @property
    def load(self) -> str:
        """GiB of weights to load, over all of them; a dash for none."""
        return words.number(self.load_mib / 1024, 1) if self.load_mib else "-"


def alike(moves: Sequence[Move], left: Collection[str] = ()) -> list[Alike]:
    """The moves in their order, each beside the first that reads the same.

    The kind of those ``left`` as they are says so.
    """
    groups: dict[tuple[str, ...], list[Move]] = {}
    for move in moves:
        deployment = move.replica.rpartition("/")[0]
        ends = (_room(move.before), _room(move.after))
        kind = kind_of(move, left)
        groups.setdefault((deployment, kind, *ends, move.reason), []).append(move)
    return [_joined(members, key[1]) for key, members in groups.items()]


def kind_of(move: Move, left: Collection[str]) -> str:
    """``move``, or ``move, left`` of one that stays undone."""
    return f"{move.kind}, left" if move.replica in left else move.kind


def _joined(moves: Sequence[Move], kind: str) -> Alike:
    first, load = moves[0], sum(m.load_mib for m in moves)
    name, where = first.replica, _place
    if len(moves) > 1:
        deployment = name.rpartition("/")[0]
        name = f"{deployment}/{words.runs(int(m.replica.rpartition('/')[2]) for m in moves)}"
        where = _room
    ends = where(first.before), where(first.after)
    return Alike(name, len(moves), kind, *ends, load, first.reason)


def _place(replica: Replica | None) -> str:
    return "-" if replica is None else words.place(replica)


def _room(replica: Replica | None) -> str:
    """Where it is, but for the start on its GPU."""
    if replica is None or replica.mig is None:
        return _place(replica)
    return f"{words.gpus(replica.gpus)} {replica.mig.profile}"
