"""Why a deployment runs the way it does: memory, and price per served request."""

from collections import Counter
from collections.abc import Iterator, Sequence

from optimizer.domain import words
from optimizer.domain.config import Candidate, Dropped
from optimizer.domain.placement import Replica
from optimizer.domain.prices import RoomPrices, held
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.planning.match import Matcher
from optimizer.planning.unmet import nearest

RUNNERS_UP = 2
HOST = (  # of a node's document, of a deployment, of a node
    ("cpu_cores", "host_cpu_millicores", "cpu_millicores"),
    ("memory_gib", "host_memory_mib", "host_memory_mib"),
)
NODES = 3  # that do not state their host room, so many are named


def reasons(
    problem: PlacementProblem,
    deployment: Deployment,
    replicas: Sequence[Replica],
    dropped: Sequence[Dropped],
    matcher: Matcher | None = None,
) -> tuple[str, ...]:
    """Sentences: how it runs and what that needs, what it costs against the next best ways.

    ``matcher``: of the problem, where there is one already.
    """
    matcher = matcher or Matcher(problem)
    used = [c for r in replicas if (c := matcher.candidate(r)) is not None]
    if not used:
        return _nothing_runs(matcher, deployment, dropped)
    counts = Counter(str(c.key) for c in used)
    ways = {str(c.key): c for c in used}
    ordered = sorted(ways, key=lambda k: (-counts[k], k))
    told: list[str] = []
    for key in ordered:
        told.append(_how(matcher, ways[key], counts[key]))
        told.extend(ways[key].reasons)
    told.extend(_against(matcher, deployment, ways[ordered[0]], set(ways)))
    return tuple(told)


def host_notes(problem: PlacementProblem) -> Iterator[str]:
    """Which nodes count as unlimited, because they do not state the host room that is asked for."""
    silent: dict[tuple[str, ...], list[str]] = {}
    for field, asked, has in HOST:
        nodes = tuple(n.name for n in problem.fleet.nodes if getattr(n, has) is None)
        if nodes and any(getattr(d, asked) for d in problem.deployments):
            silent.setdefault(nodes, []).append(field)
    for nodes, fields in silent.items():
        more = f" and {len(nodes) - NODES:,} more" if len(nodes) > NODES else ""
        yield (
            f"nobody states {' and '.join(fields)} of {', '.join(nodes[:NODES])}{more}; whatever "
            "deployments ask of it counts as there"
        )


def _nothing_runs(
    matcher: Matcher, deployment: Deployment, dropped: Sequence[Dropped]
) -> tuple[str, ...]:
    candidates = matcher.problem.candidates.get(deployment.name, ())
    offered = [c for c in candidates if not c.running_only]
    if not offered:
        closest = nearest(dropped)
        refused = f"; nearest, {closest.what}: {closest.reason}" if closest else ""
        return (f"no way to run it was found{refused}",)
    best = ", ".join(_name(matcher, c) for c in offered[:RUNNERS_UP])
    return (f"not placed; it could run as {best}",)


def _how(matcher: Matcher, way: Candidate, count: int) -> str:
    """``3 on h100-80gb-sxm 2g.20gb fp8: each uses 14.2 of 19.5 GiB, carries up to 3.2 req/s``."""
    told = f"{count} on {_name(matcher, way)}"
    room = room_mib(matcher, way)
    if way.use.memory_mib and room and not way.reasons:
        told += f": each uses {words.gib(way.use.memory_mib)} of {words.gib(room)}"
        told += " per GPU" if way.shape.gpus > 1 else ""
    if way.capacity_mrps:
        told += f", carries up to {words.rate(way.capacity_mrps)}"
    return told


def room_mib(matcher: Matcher, way: Candidate) -> int | None:
    """Memory of the slice or GPU that this way runs in."""
    gpu = matcher.products.get(way.gpu)
    if gpu is None:
        return None
    if way.shape.profile is None or gpu.mig is None:
        return gpu.usable_mib
    profile = gpu.mig.profile(way.shape.profile)
    return None if profile is None else profile.memory_mib


def _name(matcher: Matcher, way: Candidate) -> str:
    """``l40s 25 % share fp8 vllm``: as everywhere, and how large a share is."""
    gpu = matcher.products.get(way.gpu)
    name = words.config(way)
    if gpu is None or way.shape.share is None:
        return name
    part = words.percent(float(held(gpu, way.shape)), 0)
    return name.replace(" share", f" {part} share", 1)


def _cost(prices: RoomPrices, deployment: Deployment, way: Candidate) -> tuple[int, str] | None:
    """Its price per served request (or per replica) and the words; None: no node may hold it."""
    unit = prices.fleet.unit
    served = prices.served_micros(way, deployment.pin)
    if served is not None:
        return served, f"{words.price(served, unit)} per req/s"
    room = prices.room_micros(way, deployment.pin)
    return None if room is None else (room, f"{words.price(room, unit)} per replica")


def _against(
    matcher: Matcher, deployment: Deployment, chosen: Candidate, used: set[str]
) -> list[str]:
    """The chosen way's price beside the two next best that are not used."""
    problem, prices = matcher.problem, matcher.prices
    mine = _cost(prices, deployment, chosen)
    if mine is None:
        return []
    others: dict[str, tuple[int, str]] = {}
    for way in problem.candidates.get(deployment.name, ()):
        cost = _cost(prices, deployment, way)
        if cost is None or str(way.key) in used or way.running_only:
            continue
        name = _name(matcher, way)
        if name not in others or cost[0] < others[name][0]:
            others[name] = cost
    best = sorted(others.items(), key=lambda item: (item[1][0], item[0]))[:RUNNERS_UP]
    here = f"{_name(matcher, chosen)} costs {mine[1]}"
    if not best:
        return [f"{here}; nothing {'beside what is used' if len(used) > 1 else 'else'} fits"]
    listed = " and ".join(f"{name} {_beside(cost, mine)}" for name, cost in best)
    told = [f"{here}; not used: {listed}"]
    if best[0][1][0] < mine[0]:
        told.append("no cheaper whole plan was found with what is cheaper by itself")
    return told


def _beside(other: tuple[int, str], mine: tuple[int, str]) -> str:
    """``at 0.28 USD/h per req/s (+3 %)``, or ``at as much``."""
    if other[1] == mine[1]:
        return "at as much"
    change = (other[0] - mine[0]) / max(1, mine[0]) * 100
    return f"at {other[1]} ({change:+.0f} %)"
