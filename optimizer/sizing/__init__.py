"""Sizing: does a replica fit, how fast is it, which configurations are worth offering."""

from optimizer.sizing.candidates import Sizing, looked_at, size
from optimizer.sizing.single import SizeOptions, SizeResult, size_json, size_model

__all__ = ["SizeOptions", "SizeResult", "Sizing", "looked_at", "size", "size_json", "size_model"]
