"""What a policy says of a night, rule by rule."""

from dataclasses import replace

import pytest
from nightly_documents import paths, put
from rebalances import rebalance_plan

from builders import a100, fleet, gpu, node, place, replica
from optimizer.documents import DocumentFaults, load
from optimizer.domain.plan import Unmet
from optimizer.domain.policy import Alone, Policy
from optimizer.night import rules

PLAN = rebalance_plan()  # moves of chat (acme), code (globex) and vision (initech), 100 MiB each
COUNT = len(PLAN.moves)


@pytest.mark.parametrize(
    ("alone", "waits"),
    [
        (Alone(), []),
        (Alone(max_moves=COUNT), []),
        (Alone(max_moves=COUNT - 1), [f"{COUNT} moves, {COUNT - 1} may be made alone"]),
        (Alone(max_load_mib=100 * COUNT), []),
        (Alone(max_load_mib=100 * COUNT - 1), ["0.5 GiB to load, 0.5 GiB may be loaded alone"]),
        (Alone(kinds=("move",)), []),
        (Alone(kinds=("start",)), ["moves of kind move may not be made alone"]),
        (Alone(tenants=("acme", "globex", "initech")), []),
        (
            Alone(tenants=("acme",)),
            ["moves of tenant globex, initech may not be made alone"],
        ),
    ],
)
def test_what_waits_for_approval(alone, waits):
    assert list(rules.waits_for_approval(PLAN, Policy(alone=alone))) == waits


@pytest.mark.parametrize(
    ("count", "spared"),
    [(0, ()), (1, ("n2/1",)), (2, ("n1/1", "n2/1")), (3, ("n1/1", "n2/1"))],
    ids=["none", "the last", "as many as are empty", "one too many"],
)
def test_spare_gpus_are_of_those_that_are_empty(count, spared):
    h200 = gpu("h200", memory_gib=140)
    found = fleet(node("n1", a100(), 2), node("n2", a100(), 2), node("n3", h200, 2))
    running = place(replica("chat/0", "n1/0"), replica("chat/1", "n2/0"))
    policy = Policy(spare_gpus=((a100().name, count),) if count else ())
    assert rules.spared(found, running, policy) == spared


def test_closed_gpus_take_nothing_new():
    found = rules.cordoned(
        fleet(node("n1", a100(), 2), node("n2", a100(), 2)), {"n1/1", "n2/0", "n2/1"}
    )
    assert [one.id for one in found.gpus() if one.cordoned] == ["n1/1", "n2/0", "n2/1"]
    assert [n.cordoned for n in found.nodes] == [False, True]


@pytest.mark.parametrize(
    ("plan", "meets", "missed"),
    [
        (PLAN, {"chat": True, "code": True}, ()),
        (PLAN, {"chat": False, "code": True}, ("chat",)),
        (replace(PLAN, moves=()), {"chat": False}, ()),
        (replace(PLAN, unmet=(Unmet("chat", 1, 0, "no room"),)), {"chat": False}, ()),
    ],
    ids=["kept", "missed", "not moved", "short anyway"],
)
def test_a_night_is_held_only_for_whom_it_moves(plan, meets, missed):
    assert rules.missed(plan, meets) == missed


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("protected_tenants: [acmee]", 'no tenant of the workloads "acmee"; did you mean "acme"?'),
        ("acts_alone: {tenants: [glbex]}", 'did you mean "globex"?'),
        ("acts_alone: {kinds: [stop, mve]}", 'did you mean "move"?'),
        ("cut_short: resme", 'did you mean "resume"?'),
        ("notify: echo done", "must be a list"),
    ],
)
def test_what_is_misspelt_in_a_policy_is_a_fault(tmp_path, line, said):
    put(tmp_path, policy=line)
    with pytest.raises(DocumentFaults) as refused:
        load(paths(tmp_path))
    [fault] = refused.value.faults
    assert said in fault.message
    assert (fault.file, fault.line) == (str(tmp_path / "policy.yaml"), 4)
