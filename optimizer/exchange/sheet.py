"""CSV: a spreadsheet of models and their traffic to Workloads, a row for each deployment."""

import re
from typing import Any

from optimizer.exchange.imported import CannotRead, Import, Imported, Input
from optimizer.exchange.tables import Row, plain, rows

FORMAT = "CSV"
# Our field, and the spellings that people give its column.
COLUMNS = {
    "name": ("name", "deployment", "service", "app", "application", "use_case"),
    "model": ("model", "model_id", "model_name", "hf_model", "llm"),
    "tenant": ("tenant", "customer", "team", "owner", "department"),
    "requests_per_second": (
        *("requests_per_second", "rps", "qps", "req_s", "requests_s", "requests_sec", "rate"),
        *("req_per_s", "requests_per_s", "request_rate"),
    ),
    "requests_per_minute": ("requests_per_minute", "rpm", "req_min", "requests_min"),
    "requests_per_hour": ("requests_per_hour", "rph", "req_h", "requests_h", "requests_hour"),
    "requests_per_day": ("requests_per_day", "req_day", "requests_day", "daily_requests"),
    "input_tokens": (
        *("input_tokens", "prompt_tokens", "avg_input_tokens", "tokens_in", "isl", "input_length"),
        *("mean_input_tokens", "avg_prompt_tokens", "input"),
    ),
    "output_tokens": (
        *("output_tokens", "completion_tokens", "avg_output_tokens", "tokens_out", "osl"),
        *("output_length", "mean_output_tokens", "avg_completion_tokens", "output"),
    ),
    "max_context_tokens": ("max_context_tokens", "max_context", "context", "max_model_len"),
    "peak_factor": ("peak_factor", "peak", "burst"),
    "ttft_ms": ("ttft_ms", "ttft", "time_to_first_token_ms"),
    "tpot_ms": ("tpot_ms", "tpot", "itl_ms", "time_per_output_token_ms"),
    "percentile": ("percentile", "slo_percentile"),
    "precisions": ("precisions", "precision", "quantization", "dtype"),
    "gpus": ("gpus", "allowed_gpus", "gpu_types"),
    "min_replicas": ("min_replicas", "replicas", "replicas_min"),
    "max_replicas": ("max_replicas", "replicas_max"),
    "priority": ("priority",),
}
RATES = {
    "requests_per_second": 1.0,
    "requests_per_minute": 60.0,
    "requests_per_hour": 3600.0,
    "requests_per_day": 86400.0,
}


def import_csv(given: Input) -> Import:
    """A deployment for each row. Raises CannotRead with every row that cannot be one."""
    deployments: list[dict[str, Any]] = []
    reasons: list[str] = []
    notes: list[str] = []
    unsaid: list[str] = []
    for file in given.files:
        columns, table = rows(file)
        fields = _fields(columns)
        unknown = [c for c in columns if c.strip() and plain(c) not in fields]
        if unknown:
            notes.append(f"{file.name}: columns that are not read: {', '.join(unknown)}")
        if "model" not in fields.values():
            reasons.append(file.at(1, f"no column names the model; got {', '.join(columns)}"))
            continue
        _silent(fields, file.name, unsaid)
        for row in table:
            renamed = {fields[k]: v for k, v in row.values.items() if k in fields}
            try:
                deployments.append(_deployment(Row(file, row.line, renamed), deployments))
            except CannotRead as refusal:
                reasons += refusal.reasons
    if reasons or not deployments:
        raise CannotRead(*(reasons or ["no row holds a model"]))
    data = {"kind": "Workloads", "version": 1, "name": given.name, "deployments": deployments}
    return Import(FORMAT, (Imported(data, tuple(unsaid), tuple(notes)),))


def _fields(columns: list[str]) -> dict[str, str]:
    """Our field of each column; ``TTFT (ms)`` and ``ttft_ms`` are one."""
    known = {spelling: field for field, names in COLUMNS.items() for spelling in names}
    return {plain(c): known[plain(c)] for c in columns if plain(c) in known}


def _silent(fields: dict[str, str], name: str, unsaid: list[str]) -> None:
    said = set(fields.values())
    if not said & {"ttft_ms", "tpot_ms"}:
        unsaid.append(
            f"{name}: latency promised (ttft_ms, tpot_ms): rates count as throughput only"
        )
    if "max_context_tokens" not in said:
        unsaid.append(f"{name}: max_context_tokens: the longest prompt and answer together")
    if "peak_factor" not in said:
        unsaid.append(f"{name}: peak_factor: rates are taken as they are")


def _deployment(row: Row, before: list[dict[str, Any]]) -> dict[str, Any]:
    model = row.text("model")
    if model is None:
        raise CannotRead(row.at("no model"))
    demand = _demand(row)
    taken = {d["name"] for d in before}
    entry: dict[str, Any] = {"name": _name(row.text("name") or model.rsplit("/", 1)[-1], taken)}
    entry |= {"tenant": row.text("tenant")} if row.text("tenant") else {}
    entry |= {"model": model, "demand": demand}
    slo = {n: v for n in ("ttft_ms", "tpot_ms") if (v := row.number(n)) is not None}
    if slo:
        percentile = row.number("percentile")
        entry["slo"] = slo | ({} if percentile is None else {"percentile": percentile})
    allow = {n: words for n in ("precisions", "gpus") if (words := _words(row.text(n)))}
    entry |= {"allow": allow} if allow else {}
    replicas = {
        short: v for short in ("min", "max") if (v := row.whole(f"{short}_replicas")) is not None
    }
    entry |= {"replicas": replicas} if replicas else {}
    priority = row.whole("priority")
    return entry | ({} if priority is None else {"priority": priority})


def _demand(row: Row) -> dict[str, Any]:
    """The traffic of a row; a rate in any unit, tokens as whole means."""
    rates = [(n, v) for n in RATES if (v := row.number(n)) is not None]
    if len(rates) != 1:
        what = "no rate" if not rates else f"{len(rates)} rates"
        raise CannotRead(row.at(f"{what}; one column of {', '.join(RATES)}"))
    name, value = rates[0]
    if not value:
        raise CannotRead(row.at(f"{name} is 0; take the row out"))
    demand: dict[str, Any] = {"requests_per_second": round(value / RATES[name], 9)}
    missing = [n for n in ("input_tokens", "output_tokens") if row.text(n) is None]
    if missing:
        raise CannotRead(row.at(f"{' and '.join(missing)} missing: the mean per request"))
    for field in ("input_tokens", "output_tokens", "max_context_tokens"):
        number = row.number(field)
        demand |= {} if number is None else {field: round(number)}
    peak = row.number("peak_factor")
    return demand | ({} if peak is None else {"peak_factor": peak})


def _words(text: str | None) -> list[str]:
    return [w for w in re.split(r"[\s,;/|]+", text or "") if w]


def _name(text: str, taken: set[str]) -> str:
    base = re.sub(r"[^\w.:@+\-]+", "-", text.strip().lower()).strip("-.:@+") or "deployment"
    names = [base, *(f"{base}-{n}" for n in range(2, len(taken) + 3))]
    return next(n for n in names if n not in taken)
