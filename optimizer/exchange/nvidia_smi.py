"""nvidia-smi: a script per node that makes the plan's MIG instances at their starts."""

from itertools import groupby

from optimizer.domain.gpu import Gpu, PlacedProfile
from optimizer.domain.placement import node_of
from optimizer.domain.plan import GpuPlan, Step
from optimizer.exchange.artifact import (
    ONLY_LAYOUTS,
    Artifact,
    CannotExport,
    Export,
    Source,
)

FORMAT = "nvidia-smi mig -cgi PROFILE:START"
MIG_STEPS = ("set_mig_mode", "create_instance", "destroy_instance")

# An instance is found by where it lies: its id is known only on the machine.
PREAMBLE = """#!/usr/bin/env bash
# Run as root on {node}, step by step with the plan: an instance can be destroyed only when idle.
set -euo pipefail

instance_at() {{ # GPU START -> id of the GPU instance that starts there
    nvidia-smi mig -i "$1" -lgi | awk -v start="$2" '
        / MIG / {{
            gsub(/[|]/, " ")
            split($NF, at, ":")
            if (at[1] == start) {{ print $(NF - 1); exit }}
        }}'
}}
destroy() {{ # GPU START
    local id
    id=$(instance_at "$1" "$2")
    [[ -n $id ]] || {{ echo "GPU $1: no instance starts at $2" >&2; return 1; }}
    nvidia-smi mig -i "$1" -dci -gi "$id"
    nvidia-smi mig -i "$1" -dgi -gi "$id"
}}
"""


def export(source: Source) -> Export:
    """The plan's MIG steps per node; without steps, the layouts from scratch."""
    scripts = []
    gpus = {g.id: g for g in source.plan.gpus}
    lines: dict[str, list[str]] = {}
    steps = [s for s in source.plan.steps if s.action in MIG_STEPS]
    for step in steps:
        for gpu in step.gpus:
            lines.setdefault(node_of(gpu), []).append(_line(source, gpus[gpu], step))
    if not steps:
        for node, run in groupby(source.plan.gpus, lambda g: node_of(g.id)):
            made = [line for g in run for line in _from_scratch(source, g)]
            if made:
                lines[node] = made
    for node, of_node in sorted(lines.items()):
        text = PREAMBLE.format(node=node) + "\n" + "\n".join(of_node) + "\n"
        scripts.append(Artifact(f"{node}.sh", text=text, executable=True))
    notes = ["turning MIG on or off needs an idle GPU, and on A100 and A30 a reset", ONLY_LAYOUTS]
    if not scripts:
        notes = ["no GPU of the plan changes its instances, so there is nothing to run"]
    return Export(FORMAT, tuple(scripts), tuple(notes))


def _line(source: Source, gpu: GpuPlan, step: Step) -> str:
    index = gpu.id.rpartition("/")[2]
    because = f"  # {step.id}: {' '.join(step.because.split())}"
    if step.action == "set_mig_mode":
        return f"nvidia-smi -i {index} -mig {1 if step.enable else 0}{because}"
    assert step.placed is not None
    if step.action == "destroy_instance":
        return f"destroy {index} {step.placed.start}{because}"
    return f"{_create(source, gpu, [step.placed])}{because}"


def _from_scratch(source: Source, gpu: GpuPlan) -> list[str]:
    if gpu.mode != "mig":
        return []
    index = gpu.id.rpartition("/")[2]
    placed = sorted(i.placed for i in gpu.instances)
    return [f"nvidia-smi -i {index} -mig 1", _create(source, gpu, placed)]


def _create(source: Source, gpu: GpuPlan, placed: list[PlacedProfile]) -> str:
    product = source.product(gpu.gpu)
    wanted = ",".join(f"{_profile_id(product, gpu, p)}:{p.start}" for p in placed)
    return f"nvidia-smi mig -i {gpu.id.rpartition('/')[2]} -cgi {wanted} -C"


def _profile_id(product: Gpu | None, gpu: GpuPlan, placed: PlacedProfile) -> int:
    """The id decides; names differ between drivers. Raises CannotExport."""
    profile = product.mig.profile(placed.profile) if product and product.mig else None
    if profile is None or profile.profile_id is None:
        raise CannotExport(
            f"{gpu.id}: nobody has published the profile id of {gpu.gpu} {placed.profile}; "
            "see nvidia-smi mig -lgip there"
        )
    return profile.profile_id
