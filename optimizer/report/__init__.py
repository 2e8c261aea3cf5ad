"""The same facts for people and for machines."""

from optimizer.report.text import render_plan

__all__ = ["render_plan"]
