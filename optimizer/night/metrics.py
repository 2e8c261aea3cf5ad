"""What a night came to, as a text file for Prometheus."""

from collections.abc import Mapping
from typing import Any

PREFIX = "fleetslice_night_"
HELP = {
    "price_per_hour": "Price of what runs, before and after the night, in the fleet's unit.",
    "moves": "Moves of the plan, by kind.",
    "moves_done": "Moves that were carried out.",
    "freed_gpus": "How many fewer GPUs hold a replica.",
    "gap": "Part by which the price may lie above the least possible.",
    "unmet_requests_per_second": "Demand that the plan leaves unserved.",
    "unmet_replicas": "Replicas that the plan leaves missing.",
    "duration_seconds": "From the night's start to its end.",
    "exit_code": "How the command ended.",
    "end_timestamp_seconds": "When the night ended.",
    "starts": "How often it was started until it ended.",
}


def text(fleet: str, outcome: str, facts: Mapping[str, Any]) -> str:
    """The exposition. What is not known is left out; ``outcome`` is a label of the exit code."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    for name, what in HELP.items():
        value = facts.get(name)
        if value is None:
            continue
        label = {"price_per_hour": "when", "moves": "kind", "exit_code": "outcome"}.get(name)
        labels = ("fleet", *([label] if label else []))
        gauge = Gauge(PREFIX + name, what, labels, registry=registry)
        rows = value if isinstance(value, Mapping) else {outcome if label else None: value}
        for key, amount in rows.items():
            gauge.labels(fleet, *([key] if label else [])).set(amount)
    return generate_latest(registry).decode("utf-8")
