"""Moves: what changes between two placements, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from builders import (
    a100,
    candidate,
    deployment,
    fleet,
    gpu,
    node,
    place,
    problem,
    replica,
    use,
)
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.fleet import Device
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.planning import moves, repartitions

A100, PLAIN = a100(), gpu("plain")
BF16, FP8 = ReplicaConfig(precision="bf16"), ReplicaConfig(precision="fp8")
HALF = use(memory_gib=40)


def asked(now: Placement | None, **other: object) -> PlacementProblem:
    """chat in slices of node a, or whole or in half on node b."""
    return problem(
        fleet(node("a", A100, 2, price=2.0, **other), node("b", PLAIN, 3, price=1.0)),
        [deployment("chat", rps=2, replicas=2)],
        [
            candidate("chat", A100, profile="1g.10gb", rps=1, load_gib=7, config=BF16),
            candidate("chat", A100, profile="2g.20gb", rps=1, load_gib=9, config=FP8),
            candidate("chat", A100, profile="2g.20gb", rps=1, load_gib=8, config=BF16),
            candidate("chat", PLAIN, rps=1, load_gib=7),
            candidate("chat", PLAIN, gpus=2, rps=1, load_gib=7),
            candidate("chat", PLAIN, share=HALF, rps=1, load_gib=7),
        ],
        now,
    )


def said(before: Sequence[Replica], after: Sequence[Replica]) -> list[tuple[str, str, int]]:
    """Replica, kind and GiB to load of each move."""
    found = moves(asked(place(*before)), place(*after))
    return [(m.replica, m.kind, m.load_mib // 1024) for m in found]


SLICE = replica("chat/0", "a/0", mig="2g.20gb@0", config=BF16)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([SLICE], [SLICE], []),
        ([], [SLICE], [("chat/0", "start", 8)]),
        ([SLICE], [], [("chat/0", "stop", 0)]),
        ([SLICE], [replace(SLICE, gpus=("a/1",))], [("chat/0", "move", 8)]),
        (
            [SLICE],
            [replica("chat/0", "a/0", mig="2g.20gb@2", config=BF16)],
            [("chat/0", "move", 8)],
        ),
        (
            [SLICE],
            [replica("chat/0", "a/0", mig="1g.10gb@0", config=BF16)],
            [("chat/0", "move", 7)],
        ),
        ([SLICE], [replace(SLICE, config=FP8)], [("chat/0", "reconfigure", 9)]),
        ([replace(SLICE, config=ReplicaConfig())], [SLICE], []),
        ([replica("chat/0", "b/0", "b/1")], [replica("chat/0", "b/1", "b/0")], []),
        (
            [replica("chat/0", "b/0", share=HALF)],
            [replica("chat/0", "b/0")],
            [("chat/0", "move", 7)],
        ),
    ],
    ids=[
        "nothing",
        "start",
        "stop",
        "to another GPU",
        "to another start",
        "to another profile",
        "other settings",
        "settings not said",
        "the GPUs of a group in another order",
        "from a share to the whole",
    ],
)
def test_kinds(
    before: list[Replica], after: list[Replica], expected: list[tuple[str, str, int]]
) -> None:
    assert said(before, after) == expected


def test_without_a_state_everything_starts() -> None:
    found = moves(asked(None), place(SLICE, replica("chat/1", "b/0")))
    assert [m.kind for m in found] == ["start", "start"]


def test_ids_are_in_their_natural_order() -> None:
    ten = [replica(f"chat/{n}", "b/0", share=HALF) for n in (10, 2, 1)]
    assert [name for name, _, _ in said([], ten)] == ["chat/1", "chat/2", "chat/10"]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ([], [SLICE], "carries up to 1"),
        ([SLICE], [replica("chat/0", "b/0")], "frees a/0"),
        ([replica("chat/0", "a/1", mig="2g.20gb@0")], [replica("chat/0", "b/0")], "cordoned"),
        ([replica("chat/0", "c/0")], [replica("chat/0", "b/0")], "c is no longer in the fleet"),
        ([SLICE], [replace(SLICE, config=FP8)], "precision bf16 to fp8"),
        (
            [SLICE, replica("chat/1", "a/0", mig="2g.20gb@4")],
            [SLICE, replica("chat/1", "a/0", mig="1g.10gb@6")],
            "needs another room on a/0",
        ),
        (
            [SLICE, replica("chat/1", "b/0")],
            [replica("chat/0", "b/0"), replica("chat/1", "b/1")],
            "makes room on b/0 for chat/0",
        ),
    ],
    ids=["start", "frees", "cordon", "node gone", "settings", "same GPU", "makes room"],
)
def test_each_move_has_its_reason(before: list[Replica], after: list[Replica], reason: str) -> None:
    found = moves(asked(place(*before), cordoned_gpus=[1]), place(*after))
    assert reason in found[-1].reason


@pytest.mark.parametrize(
    ("before", "after", "gpus"),
    [
        (place(SLICE), place(SLICE), ()),
        (place(SLICE), place(), ()),
        (place(SLICE), place(SLICE, empty=["a/0 1g.10gb@6"]), ("a/0",)),
        (place(SLICE), place(replica("chat/0", "a/0", mig="1g.10gb@4")), ("a/0",)),
        (place(SLICE), place(replica("chat/0", "a/1", mig="2g.20gb@0")), ("a/1",)),
        (place(empty=["a/0 2g.20gb@0"]), place(SLICE), ()),
        (place(empty=["a/0 2g.20gb@2"]), place(SLICE), ("a/0",)),
        (place(empty=["a/1 1g.10gb@0"]), place(replica("chat/0", "a/1")), ("a/1",)),
    ],
    ids=[
        "nothing",
        "an instance left standing costs nothing",
        "one to be kept empty",
        "another cut",
        "a cut elsewhere",
        "into one that stands",
        "beside one that stands",
        "a GPU to be used whole",
    ],
)
def test_repartitions(before: Placement, after: Placement, gpus: tuple[str, ...]) -> None:
    assert repartitions(asked(before), after) == gpus


def test_the_fleets_layout_stands_where_the_state_says_nothing() -> None:
    devices = (Device(0, layout=(SLICE.mig,)),)  # type: ignore[arg-type]
    machines = fleet(node("a", A100, 2, devices=devices))
    empty = problem(machines, [deployment()], [candidate(product=A100, profile="2g.20gb")], place())
    assert repartitions(empty, place(SLICE)) == ()
    assert repartitions(empty, place(replace(SLICE, gpus=("a/1",)))) == ("a/1",)
