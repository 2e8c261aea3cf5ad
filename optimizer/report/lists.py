"""Faults, violations and the catalogue as lists."""

from collections.abc import Iterable
from typing import Protocol

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.domain.engine import EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel
from optimizer.report.ink import Ink


class Broken(Protocol):
    """A broken rule, as the judge reports it."""

    @property
    def rule(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def message(self) -> str: ...


def render_faults(faults: Iterable[object], console: Console, *, ascii: bool = False) -> None:
    """Every fault on a line of its own, unwrapped, so that editors and grep can follow it."""
    ink = Ink.of(console, ascii)
    listed = [ink.plain(str(fault)) for fault in faults]
    for line in listed:
        place, _, rest = line.partition(": ")
        console.print(Text(place, "bold").append(f": {rest}", "not bold"), soft_wrap=True)
    if listed:
        console.print(Text(f"{words.plural(len(listed), 'fault')}", "bold red"))


def render_violations(
    violations: Iterable[Broken], console: Console, *, ascii: bool = False
) -> None:
    """Every broken rule with its subject and numbers; one good line when there is none."""
    ink = Ink.of(console, ascii)
    found = list(violations)
    if not found:
        console.print(Text(f"{ink.glyphs.good} every rule holds", "green"))
        return
    for one in found:
        line = Text(f"{ink.glyphs.bad} {one.rule}", "bold red")
        console.print(line.append(f"  {one.subject}: {ink.plain(one.message)}", "not bold default"))
    rules = len({one.rule for one in found})
    told = f"{words.plural(len(found), 'violation')} of {words.plural(rules, 'rule')}"
    console.print(Text(told, "bold red"))


def render_gpus(gpus: Iterable[Gpu], console: Console, *, ascii: bool = False) -> None:
    """Datasheets in a line each; what nobody knows is a dash."""
    ink = Ink.of(console, ascii)
    table = ink.table()
    table.add_column("GPU", no_wrap=True)
    table.add_column("architecture", no_wrap=True)
    for title in ("usable\nGiB", "GB/s", "bf16\nTFLOPS", "fp8\nTFLOPS", "TDP\nW", "MIG\nprofiles"):
        table.add_column(title, justify="right", no_wrap=True)
    for gpu in sorted(gpus, key=lambda g: g.name):
        peaks = gpu.dense_tflops
        about = "~" if gpu.usable_is_estimate else ""
        table.add_row(
            gpu.name,
            gpu.architecture,
            about + words.number(gpu.usable_mib / 1024, 1),
            words.number(gpu.memory_bandwidth_gbs, 0),
            _number(peaks.get("bf16")),
            _number(peaks.get("fp8")),
            _number(gpu.tdp_w),
            "-" if gpu.mig is None else str(len(gpu.mig.profiles)),
        )
    console.print(table)
    console.print(Text("~ estimated; dense peaks; - not known or not there", "dim"))


def _number(value: float | None) -> str:
    return "-" if value is None else words.number(value, 0)


def render_profiles(gpus: Iterable[Gpu], console: Console, *, ascii: bool = False) -> None:
    """The MIG profiles of each product, with their sizes and starts."""
    ink = Ink.of(console, ascii)
    table = ink.table()
    table.add_column("GPU", no_wrap=True)
    table.add_column("profile", no_wrap=True)
    for title in ("memory\nGiB", "memory\nslices", "compute\nslices", "SMs", "at\nmost"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("starts", no_wrap=True)
    for gpu in sorted(gpus, key=lambda g: g.name):
        if gpu.mig is None:
            continue
        table.add_section()
        for index, profile in enumerate(gpu.mig.profiles):
            mib = profile.memory_mib
            table.add_row(
                gpu.name if index == 0 else "",
                profile.name,
                "-" if mib is None else words.number(mib / 1024, 2),
                f"{profile.memory_slices}/{gpu.mig.memory_slices}",
                f"{profile.compute_slices}/{gpu.mig.compute_slices}",
                _number(profile.sms),
                str(profile.max_instances),
                ",".join(map(str, profile.starts)),
            )
    console.print(table)
    console.print(Text("- memory nobody has published: such a profile is offered to nobody", "dim"))


def render_models(models: Iterable[ServedModel], console: Console, *, ascii: bool = False) -> None:
    """Model cards in a line each."""
    ink = Ink.of(console, ascii)
    table = ink.table()
    table.add_column("model", no_wrap=True)
    table.add_column("task", no_wrap=True)
    table.add_column("attention", no_wrap=True)
    table.add_column("checkpoint", no_wrap=True)
    for title in ("layers", "hidden", "context", "experts"):
        table.add_column(title, justify="right", no_wrap=True)
    for model in sorted(models, key=lambda m: m.name):
        mark = " *" if model.unverified else ""
        experts = "-"
        if model.moe is not None:
            experts = f"{model.moe.experts_per_token} of {model.moe.experts}"
        table.add_row(
            model.name + mark,
            model.task,
            model.attention_kind,
            model.checkpoint_precision,
            str(model.layers),
            str(model.hidden_size),
            _number(model.max_position_embeddings),
            experts,
        )
    console.print(table)
    console.print(Text("* some of its numbers could not be checked", "dim"))


def render_engines(engines: Iterable[EngineCard], console: Console, *, ascii: bool = False) -> None:
    """Engine cards: the version taken by default, the ranges known, batching, error bands."""
    ink = Ink.of(console, ascii)
    table = ink.table()
    table.add_column("engine", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("known since")
    table.add_column("batching", no_wrap=True)
    table.add_column("p90 error of TTFT, TPOT, throughput", no_wrap=False)
    for card in sorted(engines, key=lambda c: c.name):
        band = card.dense_band
        errors = f"{band.ttft:g} %, {band.tpot:g} %, {band.throughput:g} %"
        since = ", ".join(v.since for v in card.versions)
        table.add_row(card.name, card.default_version, since, card.batching, errors)
    console.print(table)
