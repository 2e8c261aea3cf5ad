"""Sizing: does a replica fit, how fast is it, which configurations are worth offering."""

from optimizer.sizing.candidates import Sizing, size

__all__ = ["Sizing", "size"]
