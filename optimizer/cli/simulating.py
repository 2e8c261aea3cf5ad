"""Commands that hold predictions against traffic and measurements."""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options
from optimizer.cli.codes import Code
from optimizer.cli.groups import Showing
from optimizer.cli.inputs import tell_notes
from optimizer.cli.terminal import (
    Stop,
    check_writable,
    finish,
    guarded,
    say,
    stderr,
)

if TYPE_CHECKING:
    from optimizer.documents import Catalogue, Documents
    from optimizer.domain.engine import EngineCard
    from optimizer.domain.plan import DeploymentPlan
    from optimizer.domain.trace import Trace
    from optimizer.simulation import Left, Replay, Replayed
    from optimizer.sizing.calibration import Calibrated, Point

PROCESSES = 2
_SHOWN = 20  # reasons for points left out
ROUTINGS = ("least-loaded", "round-robin")
LENGTHS = ("demand", "trace")


@guarded
def simulate(
    documents: options.DocumentFiles,
    *,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="A Trace document to replay, fitted to each demand; without it arrivals are drawn "
            "at each demand's peak rate.",
            show_default=False,
        ),
    ] = None,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="How long to replay.")] = 1.0,
    routing: Annotated[
        str, typer.Option("--routing", help="least-loaded or round-robin.")
    ] = ROUTINGS[0],
    lengths: Annotated[
        str,
        typer.Option("--lengths", help="Lengths vary as the demand says, or as in the trace."),
    ] = LENGTHS[0],
    shown: Showing,
    seed: options.Seed = 0,
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=256, help="Processes to work in.")
    ] = PROCESSES,
) -> None:
    """Replay traffic against a plan: are the SLOs really met.

    Every replica is simulated request by request: prompts, decoding, KV cache, preemption. Exits
    with 7 when a deployment's attainment falls below its percentile.

    \b
    Examples:
      fleetslice simulate clusters/lab-64.yaml workloads/prod.yaml lab-64.plan.json
      fleetslice simulate fleet.yaml workloads.yaml plan.json --trace conv.trace.yaml --hours 1
    """
    from optimizer.documents import load
    from optimizer.report import render_simulated
    from optimizer.simulation import Replay, Routing

    shown.check()
    for flag, value, known in (("routing", routing, ROUTINGS), ("lengths", lengths, LENGTHS)):
        if value not in known:
            raise Stop(Code.USAGE, f"--{flag} {value}: choose {' or '.join(known)}")
    found = load(documents, need=("Fleet", "Workloads", "Plan"))
    tell_notes(found)
    replay = Replay(hours * 3600, _trace(found, trace), Routing(routing), seed, lengths)
    data = _replayed(found, replay, processes)
    shown.show(data, lambda console: render_simulated(data, console, ascii=shown.ascii))
    kept = all(row["meets"] for row in data["deployments"])
    finish(Code.DONE if kept else Code.BROKEN)


def _trace(found: "Documents", file: Path | None) -> "Trace | None":
    """The trace of ``--trace``, else the only one among the documents, else none."""
    from optimizer.documents import load

    traces = found.traces
    if file is not None:
        traces = load([file], need=("Trace",)).traces
    if len(traces) > 1:
        names = ", ".join(t.name for t in traces)
        raise Stop(Code.USAGE, f"several traces: {names}; name one file with --trace")
    return traces[0] if traces else None


def _replayed(found: "Documents", replay: "Replay", processes: int) -> dict[str, Any]:
    from optimizer.simulation import replay_plan, tasks

    assert found.fleet is not None
    assert found.workloads is not None
    assert found.plan is not None
    engines = {card.name: card for card in found.catalogue.engine_cards()}
    work, left = tasks(
        found.fleet, found.workloads.deployments, engines, found.plan.placement, replay
    )
    predicted = {d.name: d for d in found.plan.deployments}
    rows = []
    show = stderr()
    status = show.status("replaying") if show.is_terminal else None
    if status:
        status.start()
    try:
        for done in replay_plan(work, processes):
            rows.append(_row(done, predicted.get(done.deployment)))
            if status:
                status.update(f"replayed {len(rows)} of {len(work)} deployments")
    finally:
        if status:
            status.stop()
    return _data(rows, left, replay)


def _data(rows: list[dict[str, Any]], left: "list[Left]", replay: "Replay") -> dict[str, Any]:
    return {
        "seconds": replay.seconds,
        "trace": replay.trace.name if replay.trace else None,
        "routing": str(replay.routing),
        "seed": replay.seed,
        "deployments": rows,
        "left": [{"name": one.deployment, "reason": one.reason} for one in left],
    }


def _row(done: "Replayed", plan: "DeploymentPlan | None") -> dict[str, Any]:
    """One deployment as replayed, beside what the plan said of it."""
    told = plan.predicted if plan else None
    kept = [a.attained for a in (done.ttft, done.tpot) if a.attained is not None]
    limited = done.ttft.limit_ms is not None or done.tpot.limit_ms is not None
    return {
        "name": done.deployment,
        "replicas": plan.replicas if plan else None,
        "requests": done.requests,
        "failed": done.failed,
        "percentile": done.percentile,
        "meets": done.meets,
        "attained_percent": round(100 * min(kept), 4) if kept and limited else None,
        "both_attained_percent": _percent(done.both_attained),
        "ttft": _latency(done.ttft, told.ttft_ms if told else None),
        "tpot": _latency(done.tpot, told.tpot_ms if told else None),
        "busy_percent": _percent(done.busy),
        "kv_peak_percent": _percent(done.kv_peak),
        "preemptions": done.preemptions,
    }


def _percent(part: float | None) -> float | None:
    return None if part is None else round(100 * part, 4)


def _latency(found: Any, predicted: float | None) -> Mapping[str, Any]:
    some = found.p99_ms > 0
    return {
        "mean_ms": round(found.mean_ms, 3) if some else None,
        "p50_ms": round(found.p50_ms, 3) if some else None,
        "percentile_ms": round(found.slo_ms, 3) if some else None,
        "p99_ms": round(found.p99_ms, 3) if some else None,
        "predicted_ms": predicted,
        "slo_ms": found.limit_ms,
        "attained_percent": _percent(found.attained),
    }


@guarded
def calibrate(
    measurements: Annotated[
        list[Path],
        typer.Argument(
            metavar="MEASUREMENTS...",
            help="CSV files of measured points: model, gpu, engine, engine_version, precision, tp, "
            "input_tokens, output_tokens, concurrency or request_rate (neither: offline), and "
            "tpot_ms, ttft_ms or output_tokens_per_second.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the Calibration there; without it to stdout.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The calibration's name.")] = "measured",
) -> None:
    """Correct predictions by measured points.

    Name the written document among the others of any command, and its corrections hold there.
    Exits with 6 when some points could not be used.

    \b
    Examples:
      fleetslice calibrate runs.csv --out calibration.yaml
      fleetslice plan fleet.yaml workloads.yaml calibration.yaml
    """
    from optimizer.documents import catalogue, write_text, yaml_text
    from optimizer.sizing.calibration import calibrate as corrected

    check_writable(out)
    known = catalogue([Path.cwd()])
    engines = {card.name: card for card in known.engine_cards()}
    points, left = _points(measurements, known, engines)
    found, useless = corrected(points, engines)
    if not found:
        reasons = [f"{place}: {why}" for place, why in (*left, *useless)][:_SHOWN]
        raise Stop(Code.USAGE, *reasons, "no point could be used")
    text = yaml_text(_calibration(found, name, measurements))
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
        say(f"wrote {out}")
    for one in found:
        c = one.correction
        say(
            f"{c.engine} on {c.gpu} with {c.model}: steps x{c.step:g}, prompts x{c.prompt:g} of "
            f"{c.points} points; p90 error {one.before_percent:g} % before, "
            f"{one.error_percent:g} % of points left out"
        )
    say(*(f"left out: {place}: {why}" for place, why in (*left, *useless)[:_SHOWN]))
    if left or useless:
        finish(Code.PARTLY)


def _points(
    files: list[Path], known: "Catalogue", engines: "Mapping[str, EngineCard]"
) -> "tuple[list[Point], list[tuple[str, str]]]":
    """Every row as a point, and the rows that name something nobody knows."""
    from optimizer.sizing.calibration import point_of

    points, left = [], []
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as rows:
            for number, row in enumerate(csv.DictReader(rows), 2):
                place = f"{file}:{number}"
                model = known.model(row.get("model") or "")
                gpu = known.gpu(row.get("gpu") or "")
                spelling = (row.get("engine") or "").lower()
                engine = next(
                    (e for e in engines.values() if spelling in (e.name, *e.aliases)), None
                )
                if model is None or gpu is None or engine is None:
                    what = "model" if model is None else "gpu" if gpu is None else "engine"
                    left.append((place, f'no {what} "{row.get(what)}" in the catalogue'))
                    continue
                try:
                    points.append(point_of(place, row, *model, gpu, engine.name))
                except ValueError as error:
                    left.append((place, str(error)))
    return points, left


def _calibration(found: "list[Calibrated]", name: str, measurements: list[Path]) -> dict[str, Any]:
    corrections = [
        {
            "engine": one.correction.engine,
            "gpu": one.correction.gpu,
            "model": one.correction.model,
            "step": one.correction.step,
            "prompt": one.correction.prompt,
            "points": one.correction.points,
            "error_percent": one.error_percent,
        }
        for one in found
    ]
    source = ", ".join(str(f) for f in measurements)
    return {
        "kind": "Calibration",
        "version": 1,
        "name": name,
        "source": source,
        "corrections": corrections,
    }
