"""Compares what runs with what the plan says, and changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.domain.placement import Replica, replica_order
from optimizer.domain.plan import Plan
from optimizer.launch.devices import device
from optimizer.launch.run import folder_of
from optimizer.launch.specs import select
from optimizer.launch.values import SIMULATED, Row, State
from optimizer.launch.watch import status


@dataclass(frozen=True, slots=True)
class Difference:
    """One replica that is not as the plan says, and how.

    ``kind``: missing (it should run), extra (it should not), elsewhere (on other devices),
    engine (another one than planned), not_serving (there, but no traffic can go to it).
    """

    replica: str
    kind: str
    detail: str


def drift(
    plan: Plan,
    run_dir: Path | str | None = None,
    address: str | None = None,
    only: str | None = None,
) -> tuple[Difference, ...]:
    """How what was launched of this fleet differs from the plan; empty when it does not.

    Looks into the run folder (by default the fleet's), or at all replicas of ours on the cluster
    at ``address``; actors of others are not looked at. Raises LaunchRefused.
    """
    rows = status(run_dir if run_dir is not None else folder_of(plan.fleet), address)
    return differences(plan, rows, only)


def differences(plan: Plan, rows: Sequence[Row], only: str | None = None) -> tuple[Difference, ...]:
    """The same of rows of ``status``, by replica; with ``only`` of that tenant or deployment.

    A simulated engine stands for whichever engine is planned. Raises LaunchRefused.
    """
    wanted = {replica.id: replica for replica in select(plan, only)}
    there = {row["replica"]: row for row in rows if row["fleet"] == plan.fleet}
    found = [one for name, replica in wanted.items() for one in _of(replica, there.get(name))]
    for name, row in there.items():
        meant = only in (None, name, row["deployment"], row["tenant"])
        if name not in wanted and meant and row["state"] != State.MISSING:
            where = " and ".join(row["devices"]) or "nobody knows where"
            found.append(Difference(name, "extra", f"runs on {where}, the plan has it nowhere"))
    return tuple(sorted(found, key=lambda one: (replica_order(one.replica), one.kind)))


def _of(wanted: Replica, row: Row | None) -> list[Difference]:
    planned = [device(wanted, gpu) for gpu in wanted.gpus]
    if row is None or row["state"] == State.MISSING:
        why = f": {row['reason']}" if row and row["reason"] else ""
        where = " and ".join(planned)
        return [Difference(wanted.id, "missing", f"should run on {where} and does not{why}")]
    found = []
    if row["devices"] and row["devices"] != planned:
        where, there = " and ".join(planned), " and ".join(row["devices"])
        found.append(Difference(wanted.id, "elsewhere", f"runs on {there}, planned on {where}"))
    if row["engine"] not in (None, SIMULATED, wanted.config.engine):
        detail = f"runs {row['engine']}, planned with {wanted.config.engine or 'no engine'}"
        found.append(Difference(wanted.id, "engine", detail))
    if row["state"] != State.READY:
        why = row["reason"] or row["last_end"]
        found.append(
            Difference(wanted.id, "not_serving", f"is {row['state']}" + (f": {why}" if why else ""))
        )
    return found
