"""Fleetslice: places model deployments on GPU fleets at the least cost that keeps every SLO."""


def __getattr__(name: str) -> str:
    # Reading package metadata takes longer than importing the package, so only on request.
    if name == "__version__":
        from importlib.metadata import version

        return version("fleetslice")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
