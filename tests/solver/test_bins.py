"""Packing shared GPUs: bounds and packings beside trying all; instances of others."""

import csv
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from optimizer.domain.gpu import Use
from optimizer.solver.bins import best_fit, pack
from optimizer.solver.packing import Packer
from optimizer.solver.squeeze import squeezed

ROOT = Path(__file__).resolve().parent.parent.parent
INSTANCES = ROOT / "scripts" / "bench" / "data" / "vbp"


def fewest(room: tuple[int, ...], items: list[tuple[int, ...]]) -> int:
    """GPUs that the items take, by trying every set of them for the next GPU."""
    number = len(items)
    fits = [
        all(sum(items[i][axis] for i in range(number) if some >> i & 1) <= r
            for axis, r in enumerate(room))
        for some in range(1 << number)
    ]  # fmt: skip

    @cache
    def least(left: int) -> int:
        if not left:
            return 0
        first, some, best = left & -left, left, number
        while some:
            if some & first and fits[some]:
                best = min(best, 1 + least(left & ~some))
            some = (some - 1) & left
        return best

    return least((1 << number) - 1)


@pytest.mark.parametrize("axes", [1, 2, 3, 5])
def test_bound_and_packing_enclose_the_fewest_gpus(axes: int) -> None:
    dice = np.random.default_rng(axes)
    room = (100,) * axes
    for _ in range(12):
        items = [tuple(map(int, one)) for one in dice.integers(10, 80, size=(9, axes))]
        packing = pack(Packer(room, items), dict.fromkeys(range(9), 1))
        assert packing.bound <= fewest(room, items) == packing.gpus


def test_alike_shares_are_packed_by_their_number() -> None:
    packer = Packer.of_shares(Use(10, 10, 10), [Use(6, 1, 1), Use(4, 1, 1), Use(0, 0, 9)])
    packing = pack(packer, {0: 1000, 1: 900, 2: 100})
    assert (packing.gpus, packing.bound) == (1000, 1000)


def test_an_effort_of_nothing_still_packs_and_bounds() -> None:
    dice = np.random.default_rng(1)
    items = [tuple(map(int, one)) for one in dice.integers(10, 60, size=(40, 3))]
    quick = pack(Packer((100,) * 3, items), dict.fromkeys(range(40), 1), effort=0)
    packing = pack(Packer((100,) * 3, items), dict.fromkeys(range(40), 1))
    assert quick.bound == packing.bound <= packing.gpus <= quick.gpus


def test_exchanges_lose_no_share_and_overfill_no_gpu() -> None:
    dice = np.random.default_rng(5)
    items = [tuple(map(int, one)) for one in dice.integers(25, 101, size=(400, 3))]
    packer = Packer((1000,) * 3, items)
    wanted = dict.fromkeys(range(400), 1)
    dealt = best_fit(packer, wanted)
    found, _ = squeezed(packer, dealt, np.ones(400, np.int64), 0, 100)
    assert found.total() < dealt.total()
    held = Counter[int]()
    for counts, times in found.items():
        assert (sum(packer.needs[size] * count for size, count in counts) <= 1000).all()
        held.update({size: count * times for size, count in counts})
    assert held == wanted


@pytest.mark.parametrize("axes", [1, 3])
def test_the_best_filling_takes_no_share_more_often_than_allowed(axes: int) -> None:
    dice = np.random.default_rng(axes)
    for _ in range(20):
        packer = Packer((20,) * axes, dice.integers(1, 12, size=(7, axes)).tolist())
        values, most = dice.random(7), dice.integers(0, 3, size=7)
        best = max(
            float(values @ some)
            for some in map(np.array, product(*(range(n + 1) for n in most)))
            if (some @ packer.needs <= 20).all()
        )
        found = packer.best(values, most=most)
        assert found.value == pytest.approx(best) == found.bound
        assert all(count <= most[size] for size, count in found.counts)


def test_a_share_larger_than_the_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the GPU"):
        pack(Packer((10,), [(11,)]), {0: 1})


def test_the_bench_packs_instances_of_others_to_their_optimum() -> None:
    script = ROOT / "scripts" / "bench" / "placement_vector.py"
    told = subprocess.run(
        [sys.executable, script, INSTANCES], capture_output=True, text=True, check=True
    )
    rows = list(csv.DictReader(told.stdout.splitlines()))
    assert [row["instance"] for row in rows] == sorted(f.name for f in INSTANCES.glob("*.vbp"))
    for row in rows:
        assert row["bins"] == row["bound"]
        assert row["OPT"] in ("-1", row["bins"])
