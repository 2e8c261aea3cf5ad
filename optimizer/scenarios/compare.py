"""A scenario's plan beside the baseline's: what is different, in short sentences."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from optimizer.domain import words
from optimizer.domain.plan import Unmet
from optimizer.scenarios.answer import Answer, Json, Summary, entry


def comparison(baseline: Summary, answers: Sequence[Answer]) -> Json:
    """What ``whatif -o json`` shows: the baseline, and every scenario in document order."""
    return {
        "unit": baseline.unit,
        "baseline": {**entry(baseline.answer), "fingerprint": baseline.fingerprint},
        "scenarios": [entry(answer) for answer in answers],
    }


def in_order(answers: Iterable[Answer], names: Sequence[str]) -> list[Answer]:
    """The answers in the order of ``names``; of one name, as they are given."""
    place = {name: i for i, name in reversed(list(enumerate(names)))}
    return sorted(answers, key=lambda a: place.get(a.name, len(names)))


def compared(before: Summary, after: Summary) -> Answer:
    """The scenario's answer, with its differences from the baseline."""
    return replace(after.answer, differences=tuple(differences(before, after)))


def differences(before: Summary, after: Summary) -> Iterator[str]:
    """What a reader wants to know first: what is unserved, the price, then what runs otherwise."""
    now = after.answer
    if not now.planned:
        yield _no_plan(now)
        return
    yield from _unmet(before.answer, now)
    if before.answer.planned and before.unit == after.unit:
        yield from _price(before.answer, now, after.unit)
        yield from _products(before.answer, now)
    yield from _deployments(before, after)
    if not now.reproducible:
        yield "cut short by the time limit, so another run may differ"


def _no_plan(now: Answer) -> str:
    if now.status == "infeasible":
        return clash_told(now)
    return "no plan was found in time, which does not mean that there is none"


def clash_told(now: Answer) -> str:
    """``hard rules clash: pin: chat, survive: chat; a plan is possible without pin: chat``."""
    told = f"hard rules clash: {', '.join(now.conflict)}" if now.conflict else "hard rules clash"
    return f"{told}; a plan is possible {' or '.join(now.fixes)}" if now.fixes else told


def _unmet(before: Answer, now: Answer) -> Iterator[str]:
    was = {one.deployment: one for one in before.unmet}
    for one in now.unmet:
        old = was.pop(one.deployment, None)
        if old is not None and missing(old) == missing(one):
            continue
        since = "" if old is None else f" ({missing(old)} in the baseline)"
        fix = "" if one.smallest_fix is None else f"; {one.smallest_fix} would do"
        # Which shapes there is no room for is said beside; whoever compares asks what would help.
        why = "no room" if one.reason.startswith("no room:") else one.reason
        yield f"{one.deployment} unmet {missing(one)}{since} because {why}{fix}"
    for name in was:
        yield f"{name} is no longer short"


def missing(one: Unmet) -> str:
    """``3 req/s and 1 replica``."""
    rate = [words.rate(one.missing_mrps)] if one.missing_mrps else []
    replicas = [words.plural(one.missing_replicas, "replica")] if one.missing_replicas else []
    return " and ".join([*rate, *replicas])


def _price(before: Answer, now: Answer, unit: str) -> Iterator[str]:
    assert before.price_micros is not None
    assert now.price_micros is not None
    change = now.price_micros - before.price_micros
    if change:
        way = "up" if change > 0 else "down"
        what = "price" if unit != words.GPUS else "use"
        yield f"{what} {way} {words.price(abs(change), unit)}"


def _products(before: Answer, now: Answer) -> Iterator[str]:
    """GPUs more and fewer; not told where only one product's number follows the price."""
    was, is_now = dict(before.gpus_by_product), dict(now.gpus_by_product)
    changes = {p: is_now.get(p, 0) - was.get(p, 0) for p in sorted({*was, *is_now})}
    told = [f"{count:+d} {product}" for product, count in changes.items() if count]
    if told:
        yield f"GPUs in use: {', '.join(told)}"


def _deployments(before: Summary, after: Summary) -> Iterator[str]:
    for name, now in after.ways.items():
        if name not in before.ways:
            yield f"{name} is new, on {now}" if now else f"{name} is new and runs nowhere"
    for name, was in before.ways.items():
        if name not in after.ways:
            yield f"{name} ends"
        elif was and not after.ways[name]:
            yield f"{name} runs nowhere any more"
        elif changed := _changed(was, after.ways[name]):
            yield f"{name}: {changed}"


def _changed(was: str, now: str) -> str:
    """``-1 x l40s fp8 vllm, +2 x h100-80gb-sxm fp8 vllm``: of ways, what is gone and what comes."""
    before, after = _counted(was), _counted(now)
    counts = {way: after[way] - before[way] for way in (*before, *after)}
    told = sorted((count, way) for way, count in counts.items() if count)
    return ", ".join(f"{count:+d} x {way}" for count, way in told)


def _counted(ways: str) -> "Counter[str]":
    """How many replicas run in each of the ways that a summary tells."""
    parts = (part.partition(" x ") for part in ways.split(" + ") if part)
    return Counter({way: int(count) for count, _, way in parts})
