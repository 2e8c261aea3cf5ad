"""openb, Alibaba's GPU cluster trace of 2023: node and pod tables to a Fleet and Workloads.

Formats: alibaba/clusterdata, cluster-trace-gpu-v2023. ``gpu_milli`` is a part of one GPU in
thousandths; G2 and G3 are products that the trace does not name. Pods without GPUs take their room
first: on nodes without GPUs, then where most cores a GPU are left. Nodes with GPUs keep the rest.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optimizer.exchange.imported import PRICES, RACKS, CannotRead, Import, Imported, Input
from optimizer.exchange.products import product
from optimizer.exchange.tables import Row, plain, rows

FORMAT = "openb"
NODE_COLUMNS = {"sn", "cpu_milli", "memory_mib", "gpu", "model"}
POD_COLUMNS = {"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"}
_VOLTA = "NVIDIA V100 data sheet (2020): HBM2, 900 GB/s; 125 TFLOPS tensor fp16"
_PASCAL = "NVIDIA P100 data sheet (2016): HBM2, 732 GB/s; 18.7 TFLOPS fp16"
# Products of the trace that the catalogue lacks: memory in GB and GB/s as their makers print them.
OLDER: dict[str, dict[str, Any]] = {
    "P100": {"name": "p100-16gb", "architecture": "pascal", "compute_capability": "6.0"}
    | {"memory_gb": 16, "memory_bandwidth_gbs": 732, "dense_tflops": {"fp16": 18.7}}
    | {"tdp_w": 250, "nvlink_domain": "none", "sources": {"all": _PASCAL}},
    "V100M16": {"name": "v100-16gb", "architecture": "volta", "compute_capability": "7.0"}
    | {"memory_gb": 16, "memory_bandwidth_gbs": 900, "dense_tflops": {"fp16": 125}}
    | {"tdp_w": 300, "sources": {"all": _VOLTA}},
    "V100M32": {"name": "v100-32gb", "architecture": "volta", "compute_capability": "7.0"}
    | {"memory_gb": 32, "memory_bandwidth_gbs": 900, "dense_tflops": {"fp16": 125}}
    | {"tdp_w": 300, "sources": {"all": _VOLTA}},
}
CATALOGUE = {"T4": "t4", "A10": "a10"}
Shape = tuple[int, int, int, int, str]  # CPU milli, MiB, GPUs, GPU milli, spec


@dataclass(slots=True)
class _Host:
    """A node and what is left of it."""

    name: str
    gpus: int
    product: str
    milli: int
    mib: int

    def fits(self, milli: int, mib: int) -> bool:
        return milli <= self.milli and mib <= self.mib

    def document(self) -> dict[str, Any]:
        """The node as a Fleet has it."""
        node: dict[str, Any] = {"name": self.name, "gpu": self.product, "gpus": self.gpus}
        return node | {"sharing": ["whole", "shared"]} | _host(self.milli, self.mib)


def import_openb(given: Input) -> Import:
    """Nodes with GPUs, and one deployment for pods alike. Raises CannotRead."""
    chosen = _chosen(given)
    hosts: list[_Host] = []
    shapes: Counter[Shape] = Counter()
    lacking: Counter[str] = Counter()
    plain_pods: list[tuple[int, int]] = []  # CPU milli and MiB of pods without GPUs
    for file in given.files:
        columns, table = rows(file)
        names = {plain(c) for c in columns}
        if names >= NODE_COLUMNS:
            for row in table:
                _take_node(row, chosen, hosts, lacking)
        elif names >= POD_COLUMNS:
            for row in table:
                _take_pod(row, shapes, plain_pods)
        else:
            raise CannotRead(
                f"{file.name}: neither a node table ({', '.join(sorted(NODE_COLUMNS))}) nor a pod "
                f"table ({', '.join(sorted(POD_COLUMNS))})"
            )
    left_out = [
        f"{count} nodes with {model}: the trace does not say what it is; --gpu {model}=PRODUCT"
        for model, count in sorted(lacking.items())
    ]
    said, homeless = _seat(hosts, plain_pods) if hosts else ((), len(plain_pods))
    if homeless:
        left_out.append(f"{homeless} pods without GPUs: no node has room for them")
    nodes = [host.document() for host in hosts if host.gpus]
    documents: list[Imported] = []
    if nodes:
        data = {"kind": "Fleet", "version": 1, "name": given.name, "nodes": nodes}
        documents.append(Imported(data, (PRICES, RACKS), said))
        used = {host.product for host in hosts}
        documents += [_card(OLDER[m]) for m in sorted(OLDER) if OLDER[m]["name"] in used]
    if shapes:
        documents.append(_workloads(shapes, chosen, given))
    if not documents:
        raise CannotRead(*(left_out or ["no node with GPUs and no pod that asks for one"]))
    return Import(FORMAT, tuple(documents), tuple(left_out))


def _seat(hosts: list[_Host], pods: Iterable[tuple[int, int]]) -> tuple[tuple[str, ...], int]:
    """Take the pods' room from hosts, largest first; what to say of it, and how many found none.

    Of nodes without GPUs the fullest that fits; of those with, what then has most cores a GPU.
    """
    bare = [host for host in hosts if not host.gpus]
    others = [host for host in hosts if host.gpus]
    cores, on_gpus, homeless = 0, Counter[str](), 0
    for milli, mib in sorted(pods, reverse=True):
        tight = min((h for h in bare if h.fits(milli, mib)), key=lambda h: h.milli, default=None)
        host = tight or max(
            (h for h in others if h.fits(milli, mib)),
            key=lambda h: ((h.milli - milli) / h.gpus, (h.mib - mib) / h.gpus),
            default=None,
        )
        if host is None:
            homeless += 1
            continue
        host.milli, host.mib = host.milli - milli, host.mib - mib
        if host.gpus:
            on_gpus[host.name] += milli
        else:
            cores += milli
    said = [f"{len(bare)} nodes without GPUs are left out"] if bare else []
    if cores or on_gpus:
        said.append(
            f"pods without GPUs took their room first: {cores / 1000:g} cores of nodes without "
            f"GPUs, {on_gpus.total() / 1000:g} cores of {len(on_gpus)} nodes with GPUs; "
            "the trace does not say where they ran"
        )
    return tuple(said), homeless


def _card(facts: dict[str, Any]) -> Imported:
    return Imported({"kind": "Gpu", "version": 1, **facts}, ("what its maker does not print",))


def _chosen(given: Input) -> dict[str, str]:
    """Products by the trace's names: known ones, and those of ``--gpu MODEL=PRODUCT,...``."""
    chosen = CATALOGUE | {model: str(facts["name"]) for model, facts in OLDER.items()}
    for pair in (given.gpu or "").split(","):
        model, _, name = pair.partition("=")
        if not pair:
            continue
        found = product(name, given.gpus)
        if found is None:
            raise CannotRead(f'--gpu {pair}: no product "{name}"; write MODEL=PRODUCT')
        chosen[model.strip()] = found.name
    return chosen


def _take_node(row: Row, chosen: dict[str, str], hosts: list[_Host], lacking: Counter[str]) -> None:
    gpus, model = row.whole("gpu") or 0, row.text("model")
    if gpus and (model is None or model not in chosen):
        lacking[model or "no model"] += 1
        return
    milli, mib = row.whole("cpu_milli") or 0, row.whole("memory_mib") or 0
    hosts.append(_Host(row.text("sn") or "", gpus, chosen.get(model or "", ""), milli, mib))


def _host(milli: int, mib: int) -> dict[str, float]:
    found = {"cpu_cores": milli / 1000, "memory_gib": round(mib / 1024, 6)}
    return {k: v for k, v in found.items() if v}


def _take_pod(row: Row, shapes: Counter[Shape], plain_pods: list[tuple[int, int]]) -> None:
    gpus, milli = row.whole("num_gpu") or 0, row.whole("gpu_milli") or 0
    cpu, mib = row.whole("cpu_milli") or 0, row.whole("memory_mib") or 0
    if not gpus:
        plain_pods.append((cpu, mib))
        return
    if not 0 < milli <= 1000 or (gpus > 1 and milli != 1000):
        raise CannotRead(row.at(f"num_gpu {gpus} and gpu_milli {milli}: no such part of a GPU"))
    shapes[cpu, mib, gpus, milli, row.text("gpu_spec") or ""] += 1


def _workloads(shapes: Counter[Shape], chosen: dict[str, str], given: Input) -> Imported:
    deployments = []
    for number, (shape, count) in enumerate(sorted(shapes.items(), key=lambda s: (-s[1], s[0]))):
        cpu, mib, gpus, milli, spec = shape
        needs = {"gpus": gpus} if milli == 1000 else {"gpu_fraction": milli / 1000}
        entry: dict[str, Any] = {"name": f"shape-{number:03}", "needs": needs}
        entry |= {"replicas": {"min": count}}
        host = _host(cpu, mib)
        entry |= {"host": host} if host else {}
        allowed = sorted({chosen[m] for m in spec.split("|") if m in chosen})
        entry |= {"allow": {"gpus": allowed}} if allowed else {}
        deployments.append(entry)
    data = {"kind": "Workloads", "version": 1, "name": given.name, "deployments": deployments}
    how = "pods that ask for the same are replicas of one deployment; all of them run at once"
    return Imported(data, ("times: when pods come and go",), (how,))
