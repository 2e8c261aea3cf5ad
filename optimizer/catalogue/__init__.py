"""Finds the datasheets and cards that ship with the package."""

from pathlib import Path

_IN_CHECKOUT = {
    "gpus": "clusters/gpus",
    "models": "workloads/models",
    "engines": "workloads/engines",
}


def catalogue_folders() -> dict[str, Path]:
    """Folders of ``gpus``, ``models`` and ``engines``: the packaged ones, else the checkout's."""
    here = Path(__file__).resolve().parent
    checkout = here.parent.parent
    folders = {}
    for name, in_checkout in _IN_CHECKOUT.items():
        packaged = here / name
        folders[name] = packaged if any(packaged.glob("*.yaml")) else checkout / in_checkout
    return folders
