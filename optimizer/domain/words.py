"""Numbers and places as short words, the same in reasons, reports and refusals."""

from collections.abc import Iterable

from optimizer.domain.config import Candidate, ReplicaConfig
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Replica
from optimizer.domain.units import MIB_PER_GIB, MICROS

GPUS = "GPUs"  # the unit where no node has a price
# How a plan says that it stops short of the best one found, since steps lead no farther.
NOT_ALL_TONIGHT = "not all of the best plan found can be done in one night"


def price(micros: int, unit: str) -> str:
    """``2.50 USD/h``; ``3 GPUs`` where no node has a price (``unit`` as in Fleet.unit)."""
    if unit != GPUS:
        digits = 4 if 0 < abs(micros) < MICROS // 10 else 2
        return f"{micros / MICROS:,.{digits}f} {unit}/h"
    if micros % MICROS:
        return f"{micros / MICROS:,.2f} GPUs"
    return plural(micros // MICROS, "GPU")


def gib(mib: int) -> str:
    """``13.4 GiB``."""
    return f"{mib / MIB_PER_GIB:,.1f} GiB"


def number(value: float, digits: int = 3) -> str:
    """At most so many digits after the point, none of them an idle zero."""
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def rate(mrps: int) -> str:
    """``9.6 req/s``, with the digits that matter."""
    return f"{number(mrps / 1000)} req/s"


def percent(part: float, digits: int = 1) -> str:
    """``3.1 %`` of a fraction; ``< 0.1 %`` for what would read as nothing."""
    least = 10.0**-digits
    if 0 < part * 100 < least:
        return f"< {least:.{digits}f} %"
    return f"{number(part * 100, digits)} %"


def plural(count: int, noun: str) -> str:
    """``1 replica``, ``2 replicas``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one(noun: str) -> str:
    """``an a30``, ``a t4``: names of products are spelled out, a letter at a time."""
    letters = noun[1:2].isdigit() or noun.startswith("rtx")
    vowels = "aefhilmnorsx8" if letters else "aeiou8"
    return f"{'an' if noun[:1] in vowels else 'a'} {noun}"


def duration(seconds: float) -> str:
    """``45 s``, ``6 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: int) -> str:
    """``6:20``: minutes and seconds since the start."""
    return f"{seconds // 60}:{seconds % 60:02d}"


def place(replica: Replica) -> str:
    """``h100-01/3 3g.40gb@4``, ``h200-01/0,1``, ``l40s-01/2 share``."""
    where = gpus(replica.gpus)
    if replica.mig is not None:
        return f"{where} {slot(replica.mig)}"
    return f"{where} share" if replica.share is not None else where


def slot(placed: PlacedProfile) -> str:
    """``3g.40gb@4``."""
    return f"{placed.profile}@{placed.start}"


def gpus(ids: Iterable[str]) -> str:
    """``n1/0``; GPUs of one node as ``n1/0,1``, runs as ``n1/0-3``; of several ``n1/0 n2/0``."""
    by_node: dict[str, list[int]] = {}
    for gpu in ids:
        node, _, index = gpu.rpartition("/")
        by_node.setdefault(node, []).append(int(index))
    return " ".join(f"{node}/{runs(index)}" for node, index in by_node.items())


def runs(values: Iterable[int]) -> str:
    """``0-3,6``: the numbers, sorted, runs of three or more joined."""
    spans: list[list[int]] = []
    for value in sorted(set(values)):
        if spans and spans[-1][-1] == value - 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    return ",".join(f"{s[0]}-{s[-1]}" if len(s) > 2 else ",".join(str(v) for v in s) for s in spans)


def room(gpu: str, profile: str | None, sharing: str, count: int) -> str:
    """``h100-80gb-sxm 2g.20gb``, ``h200-141gb-sxm x4``, ``l40s share``, ``l40s``."""
    what = profile or ("share" if sharing == "shared" else f"x{count}" if count > 1 else "")
    return f"{gpu} {what}".rstrip()


def config(candidate: Candidate) -> str:
    """``h100-80gb-sxm 2g.20gb fp8 vllm``: where and how it runs."""
    shape = candidate.shape
    where = room(candidate.gpu, shape.profile, shape.sharing.value, shape.gpus)
    return f"{where} {settings(candidate.config)}".rstrip()


def settings(config: ReplicaConfig) -> str:
    """``fp8 kv fp8 pp2 vllm``: weights, cache where it is not 16 bit, stages, engine."""
    parts = [config.precision or ""]
    if config.kv_precision not in (None, "bf16", "fp16", "auto"):
        parts.append(f"kv {config.kv_precision}")
    if config.pipeline_parallel > 1:
        parts.append(f"pp{config.pipeline_parallel}")
    parts.append(config.engine or "")
    return " ".join(part for part in parts if part)
