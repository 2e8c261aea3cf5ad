"""Drafts: the steps as they are decided, and which of them each one must follow."""

from collections import defaultdict

from optimizer.domain import words
from optimizer.domain.placement import Replica
from optimizer.domain.plan import Step
from optimizer.planning.pace import SECONDS
from optimizer.planning.rooms import Act, Rooms
from optimizer.planning.tasks import Draft


class Drafts:
    """Every step so far, and by GPU and node what was done there."""

    def __init__(self, rooms: Rooms, whole_gpus: bool) -> None:
        self.rooms = rooms
        self.whole_gpus = whole_gpus
        self.all: list[Draft] = []
        self.busy_until: dict[str, int] = defaultdict(int)  # GPU being cut or cleared
        self.history: dict[str, list[tuple[Replica | None, Draft]]] = defaultdict(list)  # by GPU
        self.stopped_on: dict[str, list[tuple[Replica, Draft]]] = defaultdict(list)  # by node

    def add(
        self,
        action: str,
        replica: Replica,
        start_s: int,
        because: str,
        after: list[Draft],
        seconds: int | None = None,
    ) -> Draft:
        """One more step of a replica."""
        took = SECONDS[action] if seconds is None else seconds
        draft = Draft(action, replica.gpus, replica.id, start_s, took, because, after, replica.mig)
        self.all.append(draft)
        return draft

    def stopped(self, replica: Replica, draft: Draft) -> None:
        """That step has ended a replica."""
        for gpu in replica.gpus:
            self.history[gpu].append((replica, draft))
        for node in replica.nodes:
            self.stopped_on[node].append((replica, draft))

    def prepare(self, target: Replica, now: int) -> tuple[int, list[Draft]]:
        """Cut or clear the place; when it is ready, and the steps a start must wait for."""
        for act in self.rooms.prepare(target):
            begin = max(now, self.busy_until[act.gpu])
            draft = Draft(
                act.action,
                (act.gpu,),
                None,
                begin,
                SECONDS[act.action],
                _why(act, target),
                self._before(act, target),
                act.placed,
                act.enable,
            )
            self.all.append(draft)
            self.history[act.gpu].append((None, draft))
            self.busy_until[act.gpu] = begin + draft.seconds
        made = []
        for gpu in target.gpus:
            acts = [d for r, d in self.history[gpu] if r is None]
            if target.mig is not None:
                acts = [d for d in acts if d.placed == target.mig]
            made.extend(acts[-1:])
        return max([now, *(self.busy_until[g] for g in target.gpus)]), made

    def _before(self, act: Act, target: Replica) -> list[Draft]:
        """The act before it on that GPU, and the stops of those who were in its way."""
        past = self.history[act.gpu]
        acts = [d for r, d in past if r is None][-1:]
        if self.whole_gpus:
            return acts + [d for r, d in past if r is not None]
        if act.action == "destroy_instance":
            return acts + [d for r, d in past if r is not None and r.mig == act.placed]
        if act.action == "create_instance":
            return acts + [d for r, d in past if r is not None and self._met(r, target)]
        return acts + [d for r, d in past if r is not None]

    def stops_before(self, target: Replica) -> list[Draft]:
        """The stops that made room for the target, on its GPUs and on its nodes."""
        found: dict[int, Draft] = {}
        for gpu in target.gpus:
            for replica, draft in self.history[gpu]:
                if replica is not None and self._met(replica, target):
                    found[id(draft)] = draft
        for node in self.rooms.watched(target):
            if self._tight(node, target):
                found |= {id(d): d for _, d in self.stopped_on[node]}
        return list(found.values())

    def _met(self, gone: Replica, target: Replica) -> bool:
        """Whether the two could not have been on their GPU together."""
        if gone.mig is None or target.mig is None:
            return True
        if self.rooms.strangers(gone, target):
            return True
        return self.rooms.clash(target.gpus[0], gone.mig, target.mig)

    def _tight(self, node: str, target: Replica) -> bool:
        """Whether room on that node's host, or closeness, may have kept the target waiting."""
        asked = self.rooms.deployments.get(target.deployment)
        if asked is None or not self.stopped_on[node]:
            return False
        machine = self.rooms.nodes[node]
        host = machine.cpu_millicores is not None or machine.host_memory_mib is not None
        needs = asked.host_cpu_millicores or asked.host_memory_mib
        close = asked.spread_node is not None or asked.spread_rack is not None
        if bool(host and needs) or close:
            return True
        if not self.rooms.apart:
            return False
        return any(self.rooms.node_strangers(r, target) for r, _ in self.stopped_on[node])

    def steps(self) -> tuple[Step, ...]:
        """The drafts by start time, numbered."""
        self.all.sort(key=lambda d: d.start_s)
        for number, draft in enumerate(self.all, 1):
            draft.id = f"s{number:04d}"
        return tuple(d.step() for d in self.all)


def _why(act: Act, target: Replica) -> str:
    if act.action == "create_instance":
        return f"room for {target.id}" if target.id else "kept empty on purpose"
    if act.action == "destroy_instance":
        what = words.slot(target.mig) if target.mig is not None else f"{target.id} outside MIG"
        return f"stands empty in the way of {what}"
    return f"{target.id} needs MIG {'on' if act.enable else 'off'}"
