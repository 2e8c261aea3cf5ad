"""Replay: one fault of each kind in a list of steps is seen, and its honest twin passes."""

from collections.abc import Sequence

import pytest

from builders import (
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
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Step
from optimizer.domain.problem import PlacementProblem
from optimizer.verify import replay

A100, PLAIN = a100(), gpu("plain")
HALF = use(memory_gib=40, bandwidth_gbs=100, compute=0.1)


def step(text: str, *after: str, at: int = 0, takes: int = 1) -> Step:
    """``s1 start chat/0 a/1 1g.10gb@0``: id, action, replica or -, GPUs, instance or mode."""
    id, action, who, gpus, *rest = text.split()
    what = rest[0] if rest else None
    return Step(
        id=id,
        action=action,
        gpus=tuple(gpus.split(",")),
        replica=None if who == "-" else who,
        after=after,
        start_s=at,
        seconds=takes,
        because="",
        placed=placed(what) if what and "@" in what else None,
        enable=what == "on" if what in ("on", "off") else None,
    )


def asked(replicas: int = 1, **other: object) -> PlacementProblem:
    """chat on a MIG node a or a plain node b, in a slice, whole or in half."""
    return problem(
        fleet(node("a", A100, 2), node("b", PLAIN, 3, **other)),
        [deployment("chat", replicas=replicas)],
        [
            candidate("chat", A100, profile="1g.10gb"),
            candidate("chat", A100, profile="2g.20gb"),
            candidate("chat", PLAIN),
            candidate("chat", PLAIN, share=HALF),
        ],
    )


def rules(
    before: Placement,
    steps: Sequence[Step],
    after: Placement,
    left: Sequence[str] = (),
    where: PlacementProblem | None = None,
) -> set[str]:
    """The rules that the steps break."""
    return {v.rule for v in replay(where or asked(), before, steps, after, left=left)}


ON_B0, ON_B1 = place(replica("chat/0", "b/0")), place(replica("chat/0", "b/1"))
MOVE = [
    step("s1 start chat/0 b/1", at=0, takes=10),
    step("s2 shift_traffic chat/0 b/1", "s1", at=10),
    step("s3 drain chat/0 b/0", "s2", at=11),
    step("s4 stop chat/0 b/0", "s3", at=12),
]


def test_make_before_break() -> None:
    assert rules(ON_B0, MOVE, ON_B1) == set()


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        ([MOVE[0], *MOVE[2:]], {"step_order"}),
        (MOVE[:2], {"arrival"}),
        ([], {"arrival"}),
        (
            [step("s1 drain chat/0 b/0"), step("s2 stop chat/0 b/0", at=1)]
            + [step("s3 start chat/0 b/1", at=2)],
            {"floor"},
        ),
        ([*MOVE[:2], step("s3 drain chat/0 b/0", "s2", at=5), MOVE[3]], {"floor", "step_order"}),
        ([*MOVE, step("s5 dance chat/0 b/0", at=20)], {"step_order"}),
        ([*MOVE, step("s5 start chat/0 b/9", at=20)], {"identity"}),
        ([*MOVE, step("s5 start who/0 b/2", at=20)], {"identity"}),
        ([*MOVE, step("s5 stop chat/0 b/2", at=20)], {"step_order"}),
    ],
    ids=[
        "waits for a step that is not there",
        "the old copy stays",
        "nothing is done",
        "break before make",
        "drains before the new copy serves",
        "an unknown act",
        "an unknown GPU",
        "an unknown replica",
        "stops what does not run",
    ],
)
def test_wrong_order(steps: list[Step], broken: set[str]) -> None:
    assert rules(ON_B0, steps, ON_B1) == broken


def test_break_before_make_where_the_floor_allows() -> None:
    """Two run and one is asked: one may be down on the way."""
    steps = [
        step("s1 drain chat/0 b/0"),
        step("s2 stop chat/0 b/0", "s1", at=1),
        step("s3 start chat/0 b/2", "s2", at=2),
    ]
    before = place(replica("chat/0", "b/0"), replica("chat/1", "b/1"))
    after = place(replica("chat/0", "b/2"), replica("chat/1", "b/1"))
    assert rules(before, steps, after) == set()
    assert rules(before, steps, after, where=asked(replicas=2)) == {"floor"}


def test_a_cordoned_gpu_may_be_left_and_not_entered() -> None:
    where = asked(cordoned_gpus=[1])
    assert rules(ON_B0, MOVE, ON_B1, where=where) == {"cordon"}
    back = [
        step("s1 start chat/0 b/0", at=0, takes=10),
        step("s2 shift_traffic chat/0 b/0", "s1", at=10),
        step("s3 stop chat/0 b/1", "s2", at=11),
    ]
    assert rules(ON_B1, back, ON_B0, where=where) == set()


IN_1G, IN_2G = (
    place(replica("chat/0", "a/0", mig="1g.10gb@0")),
    place(replica("chat/0", "a/0", mig="2g.20gb@2")),
)
RESIZE = [
    step("s1 create_instance - a/0 2g.20gb@2", at=0, takes=2),
    step("s2 start chat/0 a/0 2g.20gb@2", "s1", at=2, takes=10),
    step("s3 shift_traffic chat/0 a/0 2g.20gb@2", "s2", at=12),
    step("s4 stop chat/0 a/0 1g.10gb@0", "s3", at=13),
    step("s5 destroy_instance - a/0 1g.10gb@0", "s4", at=14),
]


def test_an_instance_is_created_used_and_destroyed() -> None:
    assert rules(IN_1G, RESIZE, IN_2G) == set()


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        ([step("s1 destroy_instance - a/0 1g.10gb@0")], {"slot_legality", "arrival"}),
        ([step("s1 create_instance - a/0 2g.20gb@0")], {"slot_legality", "arrival"}),
        ([step("s1 create_instance - a/0 1g.10gb@0")], {"slot_legality", "arrival"}),
        ([step("s1 create_instance - a/0")], {"slot_legality", "arrival"}),
        ([step("s1 destroy_instance - a/0 1g.10gb@4")], {"slot_legality", "arrival"}),
        ([step("s2 start chat/0 a/0 2g.20gb@2"), *RESIZE[3:4]], {"slot_legality", "step_order"}),
        ([step("s1 set_mig_mode - a/0 off")], {"slot_legality", "arrival"}),
        ([step("s1 create_instance - b/0 1g.10gb@0")], {"slot_legality", "arrival"}),
        (
            [RESIZE[0], step("s2 start chat/0 a/0 2g.20gb@2", at=1, takes=10), *RESIZE[2:]],
            {"slot_legality"},
        ),
    ],
    ids=[
        "destroys a busy instance",
        "creates over a busy one",
        "creates what stands",
        "creates nothing",
        "destroys what does not stand",
        "starts where nothing was cut",
        "switches the mode under a replica",
        "cuts a GPU without MIG",
        "starts before the cut is done",
    ],
)
def test_instances(steps: list[Step], broken: set[str]) -> None:
    assert rules(IN_1G, steps, IN_2G) == broken


def test_a_gpu_must_be_cleared_before_it_is_used_whole() -> None:
    where = problem(
        fleet(node("a", A100, 2)),
        [deployment("chat")],
        [candidate("chat", A100), candidate("chat", A100, profile="1g.10gb")],
    )
    before = place(replica("chat/0", "a/0", mig="1g.10gb@0"), empty=["a/1 3g.40gb@0"])
    after = place(replica("chat/0", "a/1"))
    clear = step("s1 destroy_instance - a/1 3g.40gb@0", at=0)
    rest = [
        step("s2 start chat/0 a/1", at=1, takes=9),
        step("s3 shift_traffic chat/0 a/1", "s2", at=10),
        step("s4 stop chat/0 a/0 1g.10gb@0", "s3", at=11),
    ]
    assert rules(before, [clear, *rest], after, where=where) == set()
    assert rules(before, rest, after, where=where) == {"slot_legality"}


def test_shares_must_fit_while_two_copies_run() -> None:
    """Two halves fill a GPU; a third copy may come only when one has gone."""
    before = place(replica("chat/0", "b/0", share=HALF), replica("chat/1", "b/1", share=HALF))
    after = place(replica("chat/0", "b/1", share=HALF), replica("chat/1", "b/1", share=HALF))
    assert rules(before, MOVE, after) == set()
    full = place(*before.replicas, replica("chat/2", "b/1", share=HALF))
    assert rules(full, MOVE, place(*after.replicas, full.replicas[2])) == {"device_memory"}


def test_what_is_left_stays_as_it_was() -> None:
    assert rules(ON_B0, [], ON_B1, left=["chat/0"]) == set()
    assert rules(ON_B0, MOVE, ON_B1, left=["chat/0"]) == {"arrival"}


def test_empty_instances_of_the_plan_stand_at_the_end() -> None:
    after = place(*IN_1G.replicas, empty=["a/1 3g.40gb@4"])
    create = step("s1 create_instance - a/1 3g.40gb@4")
    assert rules(IN_1G, [create], after) == set()
    assert rules(IN_1G, [], after) == {"arrival"}


@pytest.mark.parametrize(
    ("chat", "batch", "machine", "broken"),
    [
        ({}, {}, {}, set()),
        ({}, {"isolate": "gpu"}, {}, {"isolation"}),
        ({}, {"avoid": ("chat",)}, {}, {"anti_affinity"}),
        ({"cpu_cores": 8}, {}, {"cpu_cores": 16}, set()),
        ({"cpu_cores": 8}, {}, {"cpu_cores": 15}, {"host_cpu"}),
        ({"memory_gib": 8}, {}, {"memory_gib": 15}, {"host_memory"}),
    ],
    ids=["nobody minds", "isolated", "avoided", "cores for both", "a core too few", "memory"],
)
def test_both_copies_of_a_move_count_as_neighbours(
    chat: dict, batch: dict, machine: dict, broken: set[str]
) -> None:
    """chat/0 moves from b/0 to b/1, where batch/0 runs."""
    where = problem(
        fleet(node("b", PLAIN, 2, **machine)),
        [deployment("chat", **chat), deployment("batch", **batch)],
        [candidate("chat", PLAIN, share=HALF), candidate("batch", PLAIN, share=HALF)],
    )
    before = place(replica("chat/0", "b/0", share=HALF), replica("batch/0", "b/1", share=HALF))
    after = place(replica("chat/0", "b/1", share=HALF), before.replicas[1])
    assert rules(before, MOVE, after, where=where) == broken
