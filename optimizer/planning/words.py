"""Numbers and places as short words, for reasons and steps."""

from optimizer.domain.config import Candidate
from optimizer.domain.fleet import Fleet
from optimizer.domain.placement import Replica
from optimizer.domain.units import MIB_PER_GIB, MICROS


def price(micros: int, fleet: Fleet) -> str:
    """``2.50 USD/h``; ``3 GPUs`` where no node has a price."""
    if fleet.priced:
        return f"{micros / MICROS:,.2f} {fleet.currency}/h"
    count = micros / MICROS
    return f"{count:,.2f} GPUs" if micros % MICROS else f"{int(count)} GPU{'s'[: count != 1]}"


def gib(mib: int) -> str:
    """``13.4 GiB``."""
    return f"{mib / MIB_PER_GIB:,.1f} GiB"


def rate(mrps: int) -> str:
    """``9.6 req/s``, with the digits that matter."""
    return f"{mrps / 1000:,.3f}".rstrip("0").rstrip(".") + " req/s"


def plural(count: int, noun: str) -> str:
    """``1 replica``, ``2 replicas``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def place(replica: Replica) -> str:
    """``h100-01/3 3g.40gb@4``, ``h200-01/0,1``, ``l40s-01/2 share``."""
    where = gpus(replica.gpus)
    if replica.mig is not None:
        return f"{where} {replica.mig.profile}@{replica.mig.start}"
    return f"{where} share" if replica.share is not None else where


def gpus(ids: tuple[str, ...]) -> str:
    """``n1/0``; GPUs of one node as ``n1/0,1``; of several as ``n1/0 n2/0``."""
    by_node: dict[str, list[str]] = {}
    for gpu in ids:
        node, _, index = gpu.rpartition("/")
        by_node.setdefault(node, []).append(index)
    return " ".join(f"{node}/{','.join(index)}" for node, index in by_node.items())


def shape(candidate: Candidate) -> str:
    """``2g.20gb of h100-80gb-sxm``, ``2 whole h200-141gb-sxm``, ``a share of l40s``."""
    kind = candidate.shape
    if kind.profile is not None:
        return f"{kind.profile} of {candidate.gpu}"
    if kind.share is not None:
        return f"a share of {candidate.gpu}"
    return f"{kind.gpus} whole {candidate.gpu}"


def config(candidate: Candidate) -> str:
    """``h100-80gb-sxm 2g.20gb fp8``: where and how it runs."""
    kind, said = candidate.shape, candidate.config
    room = kind.profile or ("share" if kind.share is not None else "")
    if not room and kind.gpus > 1:
        room = f"x{kind.gpus}"
    return " ".join(part for part in (candidate.gpu, room, said.precision or "") if part)
