"""What runs on a Ray cluster to a State; what others hold there to Workloads that may not move,
and whose room is nobody's to take."""

from collections.abc import Mapping
from typing import Any

from optimizer.exchange.imported import CannotRead, Import, Imported, Input

FORMAT = "ray"
SAID = {"fleet", "replicas", "foreign", "doubts"}


def import_ray(given: Input) -> Import:
    """The documents of one answer of a cluster. Raises CannotRead."""
    answers = [one for file in given.files for one in given.parse(file)]
    if len(answers) != 1 or not isinstance(answers[0], dict) or not set(answers[0]) >= SAID:
        raise CannotRead("this is no answer of a Ray cluster; ask one: import ray --address")
    said: dict[str, Any] = answers[0]
    foreign = said["foreign"]
    notes = [f"{one['deployment']}: {one['by']} holds it, and not fleetslice" for one in foreign]
    state: dict[str, Any] = {"kind": "State", "version": 1, "fleet": said["fleet"] or given.name}
    state["replicas"] = said["replicas"] + [_replica(one) for one in foreign]
    if said.get("instances"):
        state["instances"] = said["instances"]
    documents = [Imported(state, notes=tuple(notes))]
    if foreign:
        deployments = [_deployment(one) for one in foreign]
        name = f"{state['fleet']}-others"
        data = {"kind": "Workloads", "version": 1, "name": name, "deployments": deployments}
        documents.append(
            Imported(data, notes=("what others hold; give it beside your own workloads",))
        )
    return Import(FORMAT, tuple(documents), tuple(said["doubts"]))


def _replica(one: Mapping[str, Any]) -> dict[str, Any]:
    """Its place without the settings, which are not ours to tell."""
    return {key: one[key] for key in ("id", "deployment", "gpus", "mig", "share") if one.get(key)}


def _deployment(one: Mapping[str, Any]) -> dict[str, Any]:
    """One replica that needs what it holds, and nowhere else."""
    needs: dict[str, Any] = {"gpus": len(one["gpus"])}
    if one.get("mig"):
        needs = {"mig_profile": one["mig"]["profile"]}
    elif one.get("share"):
        share = one["share"]
        needs = {"memory_gib": share["memory_mib"] / 1024}
        wide = {k: share[k] for k in ("bandwidth_gbs", "compute_fraction") if share.get(k)}
        needs |= wide
    return {
        "name": one["deployment"],
        "tenant": "others",
        "needs": needs,
        "replicas": {"min": 1, "max": 1},
        "pin": list(one["gpus"]),
        "disturb": "never",
    }
