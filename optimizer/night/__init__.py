"""The night: from what runs to a report, by itself, whatever fails in between."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.night.start import nightly
    from optimizer.night.values import Code, Ending, NightRefused, Order

__all__ = ["Code", "Ending", "NightRefused", "Order", "nightly"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "start" if name == "nightly" else "values"
    return getattr(import_module(f"{__name__}.{home}"), name)
