"""Shares of GPUs as a fluid: where a bound on many deployments begins.

Poured together, shares need no fillings: in each dimension they take their parts of the GPUs in
use. That relaxation is solved in a tenth of the time, its mixes are nearly the right ones, and its
prices are valid as they are: worth by parts, no filling exceeds the GPU. With thousands of sizes
fillings come close to it, and generated ones take over from there.
"""

from collections.abc import Callable

import numpy as np

from optimizer.solver.master import Bound, Floats, Master, OpenPool, Row
from optimizer.solver.pricing import Mix

SCALE = 1_000_000  # parts of a GPU are told in millionths, rounded down


class Fluid(Master):
    """The program with three rows for each pool: memory, bandwidth and compute."""

    def _opened(self) -> list[OpenPool]:
        self.poured: list[tuple[int, Floats]] = []  # first row of each pool, parts by size
        for pool in self.f.pools:
            room = self.f.sites[pool.site].gpu.room
            parts = np.array([size.parts_of(room) for size, _ in pool.wanted]).reshape(-1, 3)
            self.poured.append((len(self.rows), parts))
            for axis in range(3):
                units = (parts[:, axis] * SCALE).astype(int).tolist()
                taken = [
                    (c.index, -part)
                    for (_, counts), part in zip(pool.wanted, units, strict=True)
                    for c in counts
                    if part
                ]
                given = [(g.index, SCALE) for g in pool.gpus]
                self.rows.append(Row((*taken, *given), 0.0, np.inf))
        return []

    def duals_of(self, master: Master, duals: Floats) -> Floats:
        """The same prices in the program with fillings: each share by its parts."""
        found = np.zeros(len(master.rows))
        first = self.poured[0][0] if self.poured else len(duals)
        found[:first] = duals[:first]
        for pool, (row, parts) in zip(master.pools, self.poured, strict=True):
            worth = np.maximum(0.0, duals[row : row + 3]) * SCALE
            found[list(pool.size_rows)] = parts @ worth
            found[pool.gpu_row] = worth.sum()
        return found


def begin(
    master: Master, on_round: Callable[[Bound], bool]
) -> tuple[list[tuple[str, Mix]], Floats | None]:
    """Mixes and prices to begin with, from the fluid relaxation of the same program."""
    fluid = Fluid(master.f, master.objective, master.complete)
    bound = fluid.solve(on_round)
    if not len(bound.duals):
        return [], None
    seeds = [(name, mix) for name, mixes in bound.mixes.items() for mix in mixes]
    return seeds, fluid.duals_of(master, bound.duals)
