"""The judge's own law of layouts, and the objectives counted again."""

import pytest

from builders import (
    a30_like,
    a100,
    candidate,
    deployment,
    fleet,
    gpu,
    node,
    place,
    placed,
    problem,
    replica,
    use,
)
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Placement
from optimizer.verify import objectives
from optimizer.verify.slots import layout_faults, stranded_slices

A100 = a100()


@pytest.mark.parametrize(
    ("product", "layout", "faults"),
    [
        (A100, [], 0),
        (A100, ["4g.40gb@0", "3g.40gb@4"], 0),
        (A100, [f"1g.10gb@{i}" for i in range(7)], 0),
        (A100, ["1g.10gb@7"], 1),
        (A100, ["3g.40gb@0", "2g.20gb@2"], 2),
        (a30_like(), ["2g.12gb@0", "2g.12gb@2"], 0),
        (a30_like(), ["2g.12gb@1"], 1),
        (gpu("media", mig="std8+me"), ["1g.10gb+me@0", "1g.10gb@1"], 0),
        (gpu("media", mig="std8+me"), ["1g.10gb+me@0", "1g.10gb+me@1"], 2),
        (gpu("plain"), ["1g.10gb@0"], 1),
    ],
    ids=[
        "empty",
        "full",
        "seven",
        "an eighth start",
        "two slices twice",
        "A30 full",
        "A30 odd start",
        "one with engines",
        "two with engines: their number, and the engine",
        "no MIG",
    ],
)
def test_layout_faults(product: Gpu, layout: list[str], faults: int) -> None:
    assert len(layout_faults(product, [placed(text) for text in layout])) == faults


@pytest.mark.parametrize("product", [A100, a30_like(), gpu("media", mig="std8+me")])
def test_the_two_laws_of_layouts_agree(product: Gpu) -> None:
    """On every layout the domain makes, and on each with one more instance in it."""
    assert product.mig is not None
    table, checked = product.mig, 0
    names = [p.name for p in table.profiles if p.memory_slices < table.memory_slices]
    for layout in list(table.layouts(names))[::5]:
        assert layout_faults(product, layout) == []
        for profile in table.profiles:
            for start in profile.starts:
                longer = [*layout, placed(f"{profile.name}@{start}")]
                assert bool(table.faults(longer)) == bool(layout_faults(product, longer))
                checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("layout", "stranded"),
    [
        ([], 0),
        (["4g.40gb@0"], 0),
        (["1g.10gb@0"], 0),
        (["1g.10gb@4"], 3),
        (["2g.20gb@2", "2g.20gb@4"], 4),
        (["7g.80gb@0"], 0),
    ],
    ids=[
        "empty",
        "half free",
        "the piece left still holds 3g",
        "high half cut",
        "middle taken",
        "full",
    ],
)
def test_stranded_slices(layout: list[str], stranded: int) -> None:
    """Of the eight memory slices of an A100, those in no piece that could hold 3g or 4g."""
    assert stranded_slices(A100, [placed(text) for text in layout]) == stranded


def score_of(found: Placement, current: Placement | None = None, **other: object) -> tuple:
    """Unmet, price, disruption and stranded room of chats on an A100 node at 2.00 an hour."""
    asked = problem(
        fleet(node("n0", A100, 2, price=2.0, **other)),
        [deployment("chat", rps=4, priority=1), deployment("batch", replicas=3)],
        [
            candidate("chat", A100, profile="1g.10gb", rps=1, load_gib=16),
            candidate("chat", A100, gpus=1, rps=9, load_gib=16),
            candidate("batch", A100, profile="1g.10gb", load_gib=2),
        ],
        current,
    )
    found_score = objectives(asked, found)
    return (
        found_score.unmet_ppm,
        found_score.price_micros,
        found_score.disruption_mib,
        found_score.stranded_mib,
    )


def one_g(name: str, count: int, first: int = 0, gpu: str = "n0/0") -> list:
    """``count`` replicas side by side in 1g.10gb instances."""
    starts = range(first, first + count)
    return [replica(f"{name}/{n}", gpu, mig=f"1g.10gb@{s}") for n, s in enumerate(starts)]


def test_unmet_is_missing_over_asked_rounded_up() -> None:
    assert score_of(place())[0] == ((1, 1_000_000), (0, 1_000_000))
    assert score_of(place(*one_g("chat", 4), *one_g("batch", 3, 4)))[0] == ((1, 0), (0, 0))
    assert score_of(place(*one_g("chat", 3), *one_g("batch", 2, 4)))[0] == (
        (1, 250_000),
        (0, 333_334),
    )


def test_price_counts_used_gpus_once() -> None:
    assert score_of(place(empty=["n0/0 1g.10gb@0"]))[1] == 0
    assert score_of(place(*one_g("chat", 4), *one_g("batch", 3, 4)))[1] == 2_000_000
    assert score_of(place(*one_g("chat", 4), *one_g("batch", 3, 0, "n0/1")))[1] == 4_000_000


GIB = 1024


@pytest.mark.parametrize(
    ("found", "disruption"),
    [
        (place(*one_g("chat", 2)), 0),
        (place(*one_g("chat", 2), *one_g("batch", 1, 2)), 2 * GIB),
        (place(*one_g("chat", 2), *one_g("batch", 1, 3)), 3 * GIB),
        (place(*one_g("chat", 1), replica("chat/1", "n0/1", mig="1g.10gb@0")), 17 * GIB),
        (place(*one_g("chat", 1)), 0),
        (place(replica("chat/0", "n0/0")), 17 * GIB),
    ],
    ids=[
        "nothing changes",
        "a start in an instance that stands",
        "a start in one to be cut",
        "a move",
        "a stop",
        "from a slice to the whole GPU",
    ],
)
def test_disruption(found: Placement, disruption: int) -> None:
    """GiB of weights to load, and one for each GPU that is repartitioned."""
    now = place(*one_g("chat", 2), empty=["n0/0 1g.10gb@2"])
    assert score_of(found, now)[2] == disruption


def test_without_a_state_there_is_no_disruption() -> None:
    assert score_of(place(*one_g("chat", 2)))[2] is None


def test_stranded_room_of_slices_and_shares() -> None:
    assert score_of(place(*one_g("chat", 1, 4)))[3] == 3 * 10 * GIB
    half = use(memory_gib=41)
    asked = problem(fleet(node()), [deployment()], [candidate(share=half)])
    assert objectives(asked, place(replica("chat/0", "n0/0", share=half))).stranded_mib == 39 * GIB
    half = use(memory_gib=40)
    asked = problem(fleet(node()), [deployment()], [candidate(share=half)])
    assert objectives(asked, place(replica("chat/0", "n0/0", share=half))).stranded_mib == 0


def test_loads_of_those_to_avoid_weigh_more() -> None:
    """Sixteen GiB of a deployment that asks to avoid it count as 128."""
    for disturb, gib in (("allowed", 16), ("avoid", 128), ("never", 16)):
        asked = problem(
            fleet(node("n0", gpu("plain"), 2)),
            [deployment("chat", disturb=disturb)],
            [candidate("chat", gpu("plain"), load_gib=16)],
            place(replica("chat/0", "n0/0")),
        )
        found = place(replica("chat/0", "n0/1"))
        assert objectives(asked, found).disruption_mib == gib * GIB
