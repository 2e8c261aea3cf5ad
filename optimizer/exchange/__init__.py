"""Other people's formats: importers to our documents, exporters from a plan."""

from collections.abc import Callable

from optimizer.exchange import (
    huggingface,
    kube_import,
    kube_live,
    kubernetes,
    listings,
    mig_parted,
    mig_parted_import,
    nvidia_smi,
    nvml,
    openb,
    platforms,
    ray_import,
    ray_serve,
    sheet,
    smi_import,
    traces,
    triton,
)
from optimizer.exchange.artifact import Artifact, CannotExport, Export, Source
from optimizer.exchange.imported import CannotRead, File, Import, Imported, Input, NotHere
from optimizer.exchange.kube_import import running_pods

EXPORTERS: dict[str, Callable[[Source], Export]] = {
    "csv": listings.export_csv,
    "dynamo": platforms.export_dynamo,
    "engines": listings.export_engines,
    "kserve": platforms.export_kserve,
    "kuberay": ray_serve.export_kuberay,
    "kubernetes": kubernetes.export,
    "mig-parted": mig_parted.export,
    "nvidia-smi": nvidia_smi.export,
    "prometheus": listings.export_prometheus,
    "ray-serve": ray_serve.export,
    "triton": triton.export,
}
IMPORTERS: dict[str, Callable[[Input], Import]] = {
    "huggingface": huggingface.import_huggingface,
    "csv": sheet.import_csv,
    "kubernetes": kube_import.import_kubernetes,
    "mig-parted": mig_parted_import.import_mig_parted,
    "nvidia-smi": smi_import.import_nvidia_smi,
    "openb": openb.import_openb,
    "ray": ray_import.import_ray,
    "trace": traces.import_trace,
}
# Importers that ask instead of reading files; they raise NotHere where nobody can be asked.
LIVE: dict[str, Callable[[Input], Import]] = {
    "kubernetes": kube_live.import_cluster,
    "nvidia-smi": nvml.import_nvml,
}

__all__ = [
    "EXPORTERS",
    "IMPORTERS",
    "LIVE",
    "Artifact",
    "CannotExport",
    "CannotRead",
    "Export",
    "File",
    "Import",
    "Imported",
    "Input",
    "NotHere",
    "Source",
    "running_pods",
]
