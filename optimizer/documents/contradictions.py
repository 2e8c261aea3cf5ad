"""What one deployment may not say together."""

from collections.abc import Callable, Iterator
from typing import Any

from optimizer.documents import look
from optimizer.documents.faults import Fault
from optimizer.documents.wording import quoted

Say = Callable[..., Fault]

_WITH_MEMORY = ("bandwidth_gbs", "compute_fraction", "measured_on")


def contradictions(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """Every pair of statements in a raw deployment that cannot both be meant."""
    for check in (
        _one_way,
        _needs,
        _measured,
        _latency,
        _context,
        _replicas,
        _survive,
        _neighbours,
    ):
        yield from check(raw, say)


def _one_way(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """Exactly one of model, needs and measured says how it runs."""
    ways = [w for w in ("model", "needs", "measured") if raw.get(w) is not None]
    if not ways:
        yield say((), "says not how it runs; give one of model, needs or measured")
    for way in ways[1:]:
        message = f"says how it runs, as {ways[0]} does already; keep one of the two"
        yield say((way,), message, key=True)


def _needs(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """Memory (with bandwidth and compute), or exactly one of profile, GPUs, fraction."""
    needs = raw.get("needs")
    if not isinstance(needs, dict):
        return
    rooms = ("memory_gib", "mig_profile", "gpus", "gpu_fraction")
    given = [r for r in rooms if needs.get(r) is not None]
    if not given and set(needs) <= {*rooms, *_WITH_MEMORY}:  # else a field is misspelt, and told
        yield say(("needs",), f"must say one of {', '.join(rooms)}")
    for room in given[1:]:
        message = f"goes not together with {given[0]}; keep one of the two"
        yield say(("needs", room), message, key=True)
    for part in _WITH_MEMORY:
        if needs.get(part) is not None and given and given[0] != "memory_gib":
            message = f"goes with memory_gib only; {given[0]} brings its own share"
            yield say(("needs", part), message, key=True)
    if raw.get("demand") is not None and raw.get("measured") is None and raw.get("model") is None:
        message = (
            "cannot be met by needs, which says nothing about requests per second; "
            "use measured, or leave demand out and set replicas.min"
        )
        yield say(("demand",), message, key=True)


def _measured(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """A measured replica ran on one slice or on whole GPUs."""
    for path, entry in look.each(raw, "measured[]"):
        if look.given(entry, "mig_profile") and look.given(entry, "gpus"):
            message = "goes not together with mig_profile; keep one of the two"
            yield say((*path, "gpus"), message, key=True)


def _latency(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """An SLO needs something that predicts latency."""
    slo = raw.get("slo")
    if not isinstance(slo, dict):
        return
    silent = slo.get("ttft_ms") is None and slo.get("tpot_ms") is None
    if silent and set(slo) <= {"ttft_ms", "tpot_ms", "percentile"}:
        yield say(("slo",), "promises nothing; give ttft_ms or tpot_ms, or leave slo out")
    if raw.get("model") is not None:
        return
    if raw.get("needs") is not None:
        message = "cannot be held: needs says nothing about latency; leave it out"
        yield say(("slo",), message, key=True)
    elif raw.get("measured") is not None and slo.get("tpot_ms") is not None:
        message = "speaks of tokens; of measured deployments, ttft_ms is held against latency_ms"
        yield say(("slo", "tpot_ms"), message, key=True)


def _context(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """The longest context holds at least a mean request."""
    longest = look.whole(raw, "demand.max_context_tokens")
    mean = sum(look.whole(raw, f"demand.{p}_tokens") or 0 for p in ("input", "output"))
    if longest is not None and longest < mean:
        message = f"must be at least input_tokens + output_tokens = {mean}, got {longest}"
        yield say(("demand", "max_context_tokens"), message)


def _replicas(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    least, most = look.whole(raw, "replicas.min"), look.whole(raw, "replicas.max")
    if most is not None and most > 0 and (1 if least is None else least) > most:
        said = "min" if least is not None else "min, which is 1 where nothing is said"
        value = 1 if least is None else least
        yield say(("replicas",), f"max {most} is below {said}{f' {value}' if least else ''}")


def _survive(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    """What outlives a loss is a demand."""
    if raw.get("survive") is not None and raw.get("demand") is None:
        message = "speaks of carrying the demand, and there is none; give demand, or leave it out"
        yield say(("survive",), message, key=True)


def _neighbours(raw: dict[str, Any], say: Say) -> Iterator[Fault]:
    avoided = [n for _, n in look.texts(raw, "avoid[]")]
    for path, name in look.texts(raw, "near[]"):
        if name in avoided:
            yield say(path, f"{quoted(name)} stands under avoid too; keep one of the two")
