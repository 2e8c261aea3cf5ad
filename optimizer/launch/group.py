"""A replica over several nodes: the actor on its first node leads and runs rank 0; on every other
node a member of its own runs that rank's engine. They meet at the leader's address. Members belong
to the leader: when it ends, however that happens, Ray ends them too.
"""

import os
import socket
from typing import Any

from optimizer.engines import EngineCommand, Rendezvous
from optimizer.launch import ranks
from optimizer.launch.child import Child, Log
from optimizer.launch.nvml import DeviceUnknown
from optimizer.launch.values import ReplicaSpec

ASK_EVERY_S = 0.5
END_EXTRA_S = 10.0


class MemberActor:
    """Runs the engine of one rank; everything else is the leader's."""

    def __init__(self, spec: ReplicaSpec, meeting: Rendezvous) -> None:
        self._spec, self._where = spec, spec.nodes[meeting.rank]
        self._log = Log(spec.log_folder, f"{spec.copy_name}.rank{meeting.rank}")
        self._child: Child | None = None
        self._refused: str | None = None
        try:
            env = ranks.environment(spec, os.environ, self._where)
            command = EngineCommand(spec.argv, others=spec.others).on(0, meeting)
            self._child = Child(command.argv, env, self._log, spec.patience.grace_s)
        except (DeviceUnknown, OSError) as refused:
            self._refused = str(refused)

    def ended(self) -> str | None:
        """Why its engine runs no more; None while it does."""
        if self._child is None:
            return self._refused or "it was stopped"
        code = self._child.exit_code
        last = "".join(f": {line}" for line in self._log.last(1))
        return None if code is None else f"its engine ended with exit code {code}{last}"

    def environment(self) -> dict[str, str]:
        """What this rank's actor sees of its devices, and Ray's id of its node."""
        return ranks.seen_on_node()

    def stop(self) -> None:
        """End the engine, within its grace."""
        if self._child is not None:
            self._child.end()
            self._child = None


class Members:
    """The other ranks of a group, as its leader has them. Of one thread."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._handles: dict[int, Any] = {}
        self._asked: dict[int, Any] = {}

    def begin(self) -> Rendezvous:
        """Start every other rank; where they meet."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as one:
            one.bind((host, 0))
            meeting = Rendezvous(host, int(one.getsockname()[1]))
        group = ray.util.get_current_placement_group()
        for rank in range(1, len(self._spec.nodes)):
            said = ranks.options(self._spec, rank, group)
            member = ray.remote(MemberActor).options(**said)
            met = Rendezvous(meeting.host, meeting.port, rank)
            self._handles[rank] = member.remote(self._spec, met)
        return meeting

    def ended(self) -> str | None:
        """Why the group is whole no more; None while it is, or is not known not to be."""
        import ray

        for rank, handle in self._handles.items():
            if rank not in self._asked:
                self._asked[rank] = handle.ended.remote()
            if not ray.wait([self._asked[rank]], timeout=0)[0]:
                continue
            named = f"rank {rank} on {self._spec.nodes[rank]}"
            try:
                reason = ray.get(self._asked.pop(rank))
            except ray.exceptions.RayError:
                return f"{named} is gone"
            if reason is not None:
                return f"{named}: {reason}"
        return None

    def environments(self) -> list[dict[str, str]]:
        """What the other ranks see of their devices."""
        import ray

        return list(ray.get([h.environment.remote() for h in self._handles.values()], timeout=30.0))

    def end(self) -> None:
        """End the other ranks, within their grace."""
        import ray

        stopped = [handle.stop.remote() for handle in self._handles.values()]
        if stopped:
            within_s = self._spec.patience.grace_s + END_EXTRA_S
            ray.wait(stopped, num_returns=len(stopped), timeout=within_s)
        for handle in self._handles.values():
            ray.kill(handle, no_restart=True)
        self._handles, self._asked = {}, {}
