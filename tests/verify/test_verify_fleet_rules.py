"""Rules about the fleet as a whole: nothing to say, just what is allowed, one too many."""

from dataclasses import replace
from typing import Any

import pytest

from builders import a100, candidate, deployment, fleet, gpu, node, place, placed, problem, replica
from optimizer.domain.fleet import Device, Limits, Reserve
from optimizer.domain.gpu import PlacedProfile
from optimizer.domain.placement import Placement, Replica, Reserved
from optimizer.domain.problem import PlacementProblem
from optimizer.verify import RULES, fleet_rules, objectives, rules
from optimizer.verify.facts import Facts
from optimizer.verify.rules import Rule

A100 = a100()
LAYOUT = (PlacedProfile(0, "3g.40gb"), PlacedProfile(4, "3g.40gb"))


def says(rule: Rule, asked: PlacementProblem, found: Placement) -> list[str]:
    """The subjects of the violations; each of them names the rule as the function is named."""
    violations = list(rule(Facts.of(asked, found)))
    assert {v.rule for v in violations} <= {rule.__name__}
    return sorted(v.subject for v in violations)


@pytest.mark.parametrize(
    ("fixed", "found", "fits"),
    [
        (False, place(replica("chat/0", "n0/0", mig="1g.10gb@0")), True),
        (True, place(empty=["n0/0 3g.40gb@0", "n0/0 3g.40gb@4"]), True),
        (True, place(replica("chat/0", "n0/0", mig="3g.40gb@4"), empty=["n0/0 3g.40gb@0"]), True),
        (True, place(replica("chat/0", "n0/0", mig="3g.40gb@4")), False),
        (True, place(replica("chat/0", "n0/0")), False),
        (
            True,
            place(
                replica("chat/0", "n0/1", mig="1g.10gb@0"),
                empty=["n0/0 3g.40gb@0", "n0/0 3g.40gb@4"],
            ),
            False,
        ),
    ],
    ids=[
        "free",
        "as given, empty",
        "as given, used",
        "one gone",
        "used whole",
        "an instance where none is given",
    ],
)
def test_fixed_layout(fixed: bool, found: Placement, fits: bool) -> None:
    devices = (Device(0, layout=LAYOUT),)
    machine = node("n0", A100, 2, layouts_fixed=fixed, devices=devices)
    asked = problem(fleet(machine), [deployment()])
    broken = says(fleet_rules.fixed_layout, asked, found)
    assert bool(broken) is not fits


def test_a_layout_is_fixed_to_what_stands_now() -> None:
    """Where the fleet gives no layout, the state's is it."""
    now = place(replica("chat/0", "n0/0", mig="3g.40gb@4"))
    asked = problem(fleet(node("n0", A100, layouts_fixed=True)), [deployment()], (), now)
    assert says(fleet_rules.fixed_layout, asked, place(empty=["n0/0 3g.40gb@4"])) == []
    assert says(fleet_rules.fixed_layout, asked, place()) == ["n0/0"]


THREE_1G = [replica(f"chat/{i}", "n0/0", mig=f"1g.10gb@{i}") for i in range(3)]


SLICE = Reserve(1, "3g.40gb", labels=(("pool", "prod"),))
PAIR = Reserve(1, gpus=2, gpu="a100")


def kept(*gpus: str, mig: str | None = None) -> Reserved:
    return Reserved(0, gpus, placed(mig) if mig else None)


@pytest.mark.parametrize(
    ("entry", "replicas", "pieces", "fits"),
    [
        (None, [replica("chat/0", "n0/0")], [], True),
        (SLICE, THREE_1G, [kept("n0/0", mig="3g.40gb@4")], True),
        (SLICE, THREE_1G, [], False),
        (SLICE, THREE_1G, [kept("n0/0", mig="3g.40gb@0")], False),
        (SLICE, [replica("chat/0", "n0/0")], [kept("n0/0", mig="3g.40gb@0")], False),
        (SLICE, [], [kept("n0/0", mig="4g.40gb@0")], False),
        (SLICE, [], [kept("n1/0", mig="3g.40gb@0")], False),
        (SLICE, [], [kept("n9/0", mig="3g.40gb@0")], False),
        (replace(SLICE, count=2), [], [kept("n0/0", mig="3g.40gb@0")] * 2, False),
        (PAIR, [], [kept("n0/0", "n0/1")], True),
        (PAIR, THREE_1G, [kept("n0/0", "n0/1")], False),
        (PAIR, [], [kept("n0/0", "n1/0")], False),
        (PAIR, [], [kept("n0/0")], False),
        (None, [], [kept("n0/0")], False),
    ],
    ids=[
        "nothing asked",
        "beside what runs",
        "not named",
        "in the way of what runs",
        "on a GPU used whole",
        "another profile",
        "another pool",
        "no such GPU",
        "the same room twice",
        "a free pair",
        "half of it in use",
        "on two nodes",
        "half a pair",
        "for no entry",
    ],
)
def test_reserve(
    entry: Reserve | None, replicas: list[Replica], pieces: list[Reserved], fits: bool
) -> None:
    pool = (("pool", "prod"),)
    machines = fleet(
        node("n0", A100, 2, labels=pool), node("n1", A100), reserve=(entry,) if entry else ()
    )
    asked = problem(machines, [deployment(replicas=3)])
    found = Placement(tuple(replicas), (), tuple(pieces))
    assert bool(says(fleet_rules.reserve, asked, found)) is not fits


def test_room_kept_free_belongs_to_nobody() -> None:
    machines = fleet(node("n0", A100, labels=(("pool", "prod"),)), reserve=(SLICE,))
    for isolate, fits in (("none", True), ("tenant", False), ("gpu", False), ("node", False)):
        asked = problem(machines, [deployment(replicas=3, isolate=isolate)])
        found = Placement(tuple(THREE_1G), (), (kept("n0/0", mig="3g.40gb@4"),))
        assert bool(says(fleet_rules.reserve, asked, found)) is not fits


def test_room_kept_free_costs_its_gpu() -> None:
    machines = fleet(node("n0", A100, 2, price=2.0), reserve=(Reserve(1, "3g.40gb"),))
    asked = problem(machines, [deployment(replicas=3)])
    beside = Placement(tuple(THREE_1G), (), (kept("n0/0", mig="3g.40gb@4"),))
    apart = Placement(tuple(THREE_1G), (), (kept("n0/1", mig="3g.40gb@4"),))
    assert objectives(asked, beside).price_micros == 2_000_000
    assert objectives(asked, apart).price_micros == 4_000_000


@pytest.mark.parametrize(
    ("limit", "count", "fits"),
    [(None, 3, True), (4.0, 2, True), (4.0, 3, False)],
    ids=["no ceiling", "at it", "one too many"],
)
def test_price_limit(limit: float | None, count: int, fits: bool) -> None:
    micros = None if limit is None else int(limit * 1_000_000)
    machines = fleet(node("n0", gpus=4, price=2.0), limits=Limits(price_micros_per_hour=micros))
    asked = problem(machines, [deployment(replicas=4)])
    found = place(*(replica(f"chat/{i}", f"n0/{i}") for i in range(count)))
    assert says(fleet_rules.price_limit, asked, found) == ([] if fits else ["toy"])


@pytest.mark.parametrize(
    ("limit", "gpus", "fits"),
    [
        (None, ("n0/0", "n0/1", "n1/0"), True),
        (800, ("n0/0", "n1/0", "n2/0"), True),
        (800, ("n0/0", "n0/1", "n1/0"), False),
    ],
    ids=["no ceiling", "at it", "one too many"],
)
def test_power_limit(limit: int | None, gpus: tuple[str, ...], fits: bool) -> None:
    """n0 and n1 share a rack; a used GPU counts its 400 W."""
    warm = gpu("warm", tdp_w=400)
    machines = fleet(
        node("n0", warm, 2, rack="r1"),
        node("n1", warm, 2, rack="r1"),
        node("n2", warm, 2, rack="r2"),
        limits=Limits(rack_power_w=limit),
    )
    asked = problem(machines, [deployment(replicas=3)])
    found = place(*(replica(f"chat/{i}", id) for i, id in enumerate(gpus)))
    assert says(fleet_rules.power_limit, asked, found) == ([] if fits else ["r1"])


STAYED = place(replica("chat/0", "n0/0"))
MOVED = place(replica("chat/0", "n0/1"))


@pytest.mark.parametrize(
    ("disturb", "cordoned", "found", "fits"),
    [
        ("allowed", [], MOVED, True),
        ("never", [], STAYED, True),
        ("never", [], MOVED, False),
        ("never", [], place(), False),
        ("never", [0], MOVED, True),
    ],
    ids=["may move", "stays", "moved", "stopped", "had to leave"],
)
def test_do_not_disturb(disturb: str, cordoned: list[int], found: Placement, fits: bool) -> None:
    machines = fleet(node("n0", gpus=2, cordoned_gpus=cordoned))
    asked = problem(machines, [deployment(disturb=disturb)], [candidate()], STAYED)
    assert says(fleet_rules.do_not_disturb, asked, found) == ([] if fits else ["chat/0"])


def test_the_judge_asks_every_rule() -> None:
    """A rule of the two modules that the judge does not ask would never be missed."""

    def stated(module: Any) -> set[str]:
        of_own = (
            v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__
        )
        return {f.__name__ for f in of_own if callable(f) and not f.__name__.startswith("_")}

    assert {rule.__name__ for rule in RULES} == stated(rules) | stated(fleet_rules)
