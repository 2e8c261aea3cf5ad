"""Fleetslice: places model deployments on GPU fleets at the least cost that keeps every SLO."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Reading package metadata takes longer than importing the package, so only on request.
    if name == "__version__":
        from importlib.metadata import version

        return version("fleetslice")
    if name == "size":
        from optimizer.optimize import size_one

        return size_one
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
