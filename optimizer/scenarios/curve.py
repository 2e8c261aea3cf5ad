"""The curve of price against disruption, its parts worked out on Ray."""

from typing import TYPE_CHECKING, Any

from optimizer.domain.outcome import Limits
from optimizer.domain.problem import PlacementProblem
from optimizer.scenarios.fanout import cluster, cpu_share

if TYPE_CHECKING:
    from optimizer.solver.rebalance import Point


def frontier(
    problem: PlacementProblem,
    limits: Limits,
    points: int,
    *,
    workers: int = 0,
    address: str | None = None,
) -> "tuple[Point, ...]":
    """The curve of ``rebalance``; the same points however many workers. Raises LaunchRefused.

    ``workers`` 0: in this process, without Ray.
    """
    from optimizer.solver.rebalance import curve_of

    curve = curve_of(problem, limits, points)
    if not workers or curve.parts < 2:
        return curve.whole()
    with cluster(address) as ray:
        share = cpu_share(ray, workers, own=address is None)
        task = ray.remote(_part).options(num_cpus=share, max_retries=2)
        box = [ray.put(curve)]
        # The cheap end takes the longest: begun first, the workers end together.
        pending = [task.remote(box, number) for number in reversed(range(curve.parts))]
        return curve.whole(reversed(ray.get(pending)))


def _part(box: list[Any], number: int) -> "tuple[Point, ...]":
    """On a worker: the points of one part."""
    import ray

    found: tuple[Point, ...] = ray.get(box[0]).part(number)
    return found
