"""Rebalancing of fragmented MIG fleets against heuristics: ``python -m scripts.bench.rebalance``.

M2 is compaction, M3 compaction with a fifth of the replicas gone and as many arriving, M4 unequal
loads with spread, pinned and undisturbed deployments. A row a fleet: GPUs now, proved least, moves,
disruption with its bound, seconds; the heuristics beside it; and at their GPUs what the flow needs.
"""

import argparse
import random
import resource
import time
from collections.abc import Iterable
from dataclasses import replace

from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.outcome import Limits, Outcome
from optimizer.domain.placement import Placement
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import Pace, makespan, moves, order
from optimizer.scenarios.curve import frontier
from optimizer.solver.rebalance import Ask, consolidate, knee
from optimizer.verify import check_outcome, replay
from scripts.bench.rebalance_fleets import a100, fragmented, relayout
from scripts.bench.rebalance_peers import best_fit, greedy_drain

LIMITS = Limits(time_limit_s=120)
JUDGED_UP_TO = 10_000  # GPUs: beyond, the judge would take longer than the search


def family(name: str, gpus: int, seed: int) -> PlacementProblem:
    """A problem of M2, M3 or M4."""
    if name == "M4":
        return fragmented(gpus, seed=seed, deployments=max(20, gpus // 20), rules=True)
    problem = fragmented(gpus, seed=seed)
    return problem if name == "M2" else _turned_over(problem, seed)


def _turned_over(problem: PlacementProblem, seed: int) -> PlacementProblem:
    """A fifth of the replicas have gone, and as many of other deployments are to come."""
    dice = random.Random(seed)
    assert problem.current is not None
    staying = tuple(r for r in problem.current.replicas if dice.random() >= 0.2)
    gone = len(problem.current.replicas) - len(staying)
    counts = {d.name: sum(r.deployment == d.name for r in staying) for d in problem.deployments}
    for _ in range(gone):
        counts[dice.choice(sorted(counts))] += 1
    asked = tuple(replace(d, min_replicas=counts[d.name]) for d in problem.deployments)
    return replace(problem, deployments=asked, current=Placement(staying))


def figures(problem: PlacementProblem, outcome: Outcome) -> str:
    """GPUs, moves and disruption of an outcome, each with its bound."""
    found = outcome.incumbent
    if found is None:
        return f"nothing found: {'; '.join(outcome.notes)}"
    by_name = {o.name: o for o in outcome.objectives}
    price, disruption = by_name["price_per_hour"], by_name["disruption"]
    used = price.value // 1_000_000
    said = "proved" if price.proved else f"at least {price.bound // 1_000_000}"
    return (
        f"{used} GPUs ({said}), {len(moves(problem, found))} moves, "
        f"{disruption.value / 1024:.0f} GiB (at least {disruption.bound / 1024:.0f})"
    )


def compare(name: str, gpus: int, seed: int, *, peers: bool) -> None:
    """One fleet: the flow, the judge, and the heuristics."""
    problem = family(name, gpus, seed)
    assert problem.current is not None
    used = len({g for r in problem.current.replicas for g in r.gpus})
    started = time.perf_counter()
    outcome = consolidate(problem, LIMITS)
    seconds = time.perf_counter() - started
    print(f"{name} {gpus} GPUs, seed {seed}: {used} used, {len(problem.current.replicas)} replicas")
    print(f"  flow        {figures(problem, outcome)}, {seconds:.2f} s")
    if gpus <= JUDGED_UP_TO:
        broken = check_outcome(problem, outcome)
        print(f"  judge       {len(broken)} violations")
    if name == "M2" and peers:
        _heuristics(problem)


def _heuristics(problem: PlacementProblem) -> None:
    assert problem.current is not None
    table = a100().mig
    assert table is not None
    at: dict[str, list[PlacedProfile]] = {g.id: [] for g in problem.fleet.gpus()}
    for replica in problem.current.replicas:
        assert replica.mig is not None
        at[replica.gpus[0]].append(replica.mig)
    layouts = [tuple(sorted(layout)) for layout in at.values()]
    used = sum(bool(layout) for layout in layouts)
    for name, peer in (("greedy drain", greedy_drain), ("best fit", best_fit)):
        started = time.perf_counter()
        result = peer(table, layouts)
        seconds = time.perf_counter() - started
        same = consolidate(problem, LIMITS, Ask(free_gpus=used - result.gpus))
        ours = len(moves(problem, same.incumbent)) if same.incumbent else None
        print(f"  {name:<13}{result.gpus} GPUs, {result.moves} moves, {seconds:.2f} s;", end=" ")
        print(f"the flow needs {ours} moves for as many GPUs")


def curve(gpus: int, points: int, workers: int) -> None:
    """The whole frontier of one fleet."""
    problem = fragmented(gpus)
    started = time.perf_counter()
    found = frontier(problem, LIMITS, points, workers=workers)
    seconds = time.perf_counter() - started
    proved = sum(p.proved for p in found)
    print(f"frontier of {gpus} GPUs: {len(found)} points, {proved} proved, {seconds:.1f} s")
    bend = knee(found)
    for p in found:
        mark = "  <- knee" if p is bend else ""
        print(f"  {p.gpus} GPUs, {p.moves} moves, {p.disruption_mib / 1024:.0f} GiB{mark}")


def steps(gpus: int, spares: Iterable[int]) -> None:
    """Full layouts in circles: seconds to order, makespan against its bound, by spare GPUs."""
    for spare in spares:
        problem, later = relayout(gpus, spares=spare)
        changes = moves(problem, later)
        pace = Pace(loads_at_once=max(8, gpus // 16))
        started = time.process_time()
        ordered = order(problem, later, changes, pace)
        seconds = time.process_time() - started
        assert problem.current is not None
        broken = replay(problem, problem.current, ordered.steps, later, left=ordered.left)
        took = makespan(ordered.steps, pace)
        aside = sum(s.action == "start" for s in ordered.steps) - len(changes)
        print(
            f"steps of {gpus} GPUs, {spare} spare: {len(changes)} moves, {aside} taken aside, "
            f"{len(ordered.left)} left, ordered in {seconds:.2f} CPU s, makespan {took.seconds} s "
            f"({took.ratio:.3f} of the bound by {took.because}), {len(broken)} faults in replay"
        )


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--families", default="M2,M3,M4")
    parser.add_argument("--gpus", default="80,800", help="sizes of the fleets")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peers", action="store_true", help="run the heuristics too")
    parser.add_argument("--curve", type=int, default=0, help="GPUs of a frontier")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="Ray workers of the frontier")
    parser.add_argument("--steps", type=int, default=0, help="GPUs whose layouts change places")
    parser.add_argument("--spares", default="2,8,32")
    asked = parser.parse_args()
    for name in asked.families.split(",") if asked.families else ():
        for gpus in map(int, asked.gpus.split(",")):
            for seed in range(1, asked.seeds + 1):
                compare(name, gpus, seed, peers=asked.peers)
    if asked.curve:
        curve(asked.curve, asked.points, asked.workers)
    if asked.steps:
        steps(asked.steps, map(int, asked.spares.split(",")))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory {memory} MiB")


if __name__ == "__main__":
    main()
