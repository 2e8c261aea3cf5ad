"""mig-parted: a named config per node, and the GPU operator's ConfigMap and node labels."""

from collections import Counter
from itertools import groupby
from typing import Any

from optimizer.domain import words
from optimizer.domain.placement import node_of
from optimizer.domain.plan import GpuPlan
from optimizer.exchange.artifact import ONLY_LAYOUTS, Artifact, Document, Export, Source

FORMAT = "mig-parted v1"
PREFIX = "plan-"
OPERATOR_KEY = "config.yaml"  # the key that the operator's MIG manager reads


def export(source: Source) -> Export:
    """The layouts of all nodes that have MIG; a GPU left empty keeps the layout it has."""
    configs: dict[str, list[Document]] = {}
    for node, run in groupby(source.plan.gpus, lambda g: node_of(g.id)):
        entries = list(_entries([g for g in run if _concerned(g)]))
        if entries:
            configs[config_name(node)] = entries
    document = {"version": "v1", "mig-configs": configs}
    commands = "\n".join(
        f"kubectl label node {name.removeprefix(PREFIX)} nvidia.com/mig.config={name} --overwrite"
        for name in configs
    )
    return Export(
        FORMAT,
        (
            Artifact("mig-parted.yaml", (document,)),
            Artifact("config-map.yaml", (_config_map(document, source.namespace),)),
            Artifact("label-nodes.sh", text=f"{commands}\n", executable=True),
            Artifact("node-labels.yaml", tuple(_node_labels(name) for name in configs)),
        ),
        tuple(_notes(source, configs)),
    )


def config_name(node: str) -> str:
    """The name of a node's config."""
    return f"{PREFIX}{node}"


def _concerned(gpu: GpuPlan) -> bool:
    return gpu.memory_slices > 0 and (gpu.mode != "empty" or bool(gpu.instances))


def _entries(gpus: list[GpuPlan]) -> list[Document]:
    """GPUs of the same layout in one entry, in the order of their first GPU."""
    by_layout: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for gpu in gpus:
        counts = Counter(i.placed.profile for i in gpu.instances)
        by_layout.setdefault(tuple(sorted(counts.items())), []).append(_index(gpu))
    return [_entry(layout, indexes) for layout, indexes in by_layout.items()]


def _entry(layout: tuple[tuple[str, int], ...], indexes: list[int]) -> Document:
    entry: dict[str, Any] = {"devices": indexes, "mig-enabled": bool(layout)}
    if layout:
        entry["mig-devices"] = dict(layout)
    return entry


def _index(gpu: GpuPlan) -> int:
    return int(gpu.id.rpartition("/")[2])


def _config_map(document: Document, namespace: str) -> Document:
    # JSON is YAML: the value inside the ConfigMap is one text.
    import json

    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "fleetslice-mig-parted", "namespace": namespace},
        "data": {OPERATOR_KEY: json.dumps(document, indent=2) + "\n"},
    }


def _node_labels(name: str) -> Document:
    """The label as a manifest, for ``kubectl apply --server-side``."""
    labels = {"nvidia.com/mig.config": name}
    node = name.removeprefix(PREFIX)
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}


def _notes(source: Source, configs: dict[str, list[Document]]) -> list[str]:
    if not configs:
        return ["no GPU of the plan is divided, so there is nothing to configure"]
    notes = [
        "mig-parted rebuilds a GPU whole: drain the nodes first, or use `export nvidia-smi`, which "
        "changes instance by instance",
        ONLY_LAYOUTS,
    ]
    free = [g.id for g in source.plan.gpus if _concerned(g) and _starts_open(source, g)]
    if free:
        notes.append(
            "this format cannot say starts; the driver may choose others on "
            f"{words.plural(len(free), 'GPU')}: {words.gpus(free[:12])}"
            + (" and more" if len(free) > 12 else "")
        )
    return notes


def _starts_open(source: Source, gpu: GpuPlan) -> bool:
    """Whether the same profiles fit at other starts too."""
    product = source.product(gpu.gpu)
    if product is None or product.mig is None or not gpu.instances:
        return False
    wanted = sorted(i.placed.profile for i in gpu.instances)
    layouts = product.mig.layouts(tuple(sorted(set(wanted))))
    same = (x for x in layouts if sorted(p.profile for p in x) == wanted)
    return sum(1 for _ in zip(same, range(2), strict=False)) > 1
