"""The same facts for people and for machines."""

from optimizer.report.catalogue_rows import engine_rows, gpu_rows, model_rows, profile_rows
from optimizer.report.data import diff_data, diff_markdown, markdown
from optimizer.report.diff import Diff, diff, render_diff
from optimizer.report.explain import UnknownSubject, explain
from optimizer.report.html import render_diff_html, render_frontier_html, render_html
from optimizer.report.lists import (
    render_engines,
    render_faults,
    render_gpus,
    render_models,
    render_profiles,
    render_violations,
)
from optimizer.report.marginal import marginal_data, marginal_sentences
from optimizer.report.running import render_status
from optimizer.report.simulated import render_simulated
from optimizer.report.sizes import render_size
from optimizer.report.text import render_plan, render_rebalance
from optimizer.report.whatif import render_whatif

__all__ = [
    "Diff",
    "UnknownSubject",
    "diff",
    "diff_data",
    "diff_markdown",
    "engine_rows",
    "explain",
    "gpu_rows",
    "marginal_data",
    "marginal_sentences",
    "markdown",
    "model_rows",
    "profile_rows",
    "render_diff",
    "render_diff_html",
    "render_engines",
    "render_faults",
    "render_frontier_html",
    "render_gpus",
    "render_html",
    "render_models",
    "render_plan",
    "render_profiles",
    "render_rebalance",
    "render_simulated",
    "render_size",
    "render_status",
    "render_violations",
    "render_whatif",
]
