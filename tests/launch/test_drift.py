"""How what runs differs from the plan."""

from dataclasses import replace
from types import ModuleType

import pytest

from launchplans import GROUP, MIG_SLICES, WHOLE, launch_plan
from optimizer import launch as launching
from optimizer.launch import LaunchRefused, State
from optimizer.launch.cluster import absent
from optimizer.launch.differences import differences
from optimizer.launch.specs import specify
from optimizer.launch.supervisor import Supervisor

REPLICAS = (GROUP, *MIG_SLICES, WHOLE)
PLAN = launch_plan(REPLICAS)


def rows(**changed):
    """Rows of a launch that went well, but for what is changed of chat/0."""
    specs = specify(PLAN, REPLICAS, simulated=True)
    found = {spec.id: {**Supervisor(spec).report(), "state": "ready"} for spec in specs}
    found["chat/0"] |= changed
    return list(found.values())


def told(rows, only=None):
    return [(one.replica, one.kind) for one in differences(PLAN, rows, only)]


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({}, []),
        ({"engine": "vllm"}, []),
        ({"engine": "tgi"}, ["engine"]),
        ({"devices": ["n1/0:3g.40gb@0"]}, ["elsewhere"]),
        ({"state": "backoff", "reason": "exit code 3"}, ["not_serving"]),
        ({"state": "backoff", "devices": ["n1/1"]}, ["elsewhere", "not_serving"]),
        ({"fleet": "other"}, ["missing"]),
    ],
)
def test_one_replica(changed, kinds):
    assert told(rows(**changed)) == [("chat/0", kind) for kind in kinds]


def test_nothing_runs():
    assert told([]) == [(r.id, "missing") for r in REPLICAS]
    [one, *_] = differences(PLAN, [absent("toy/big/0", State.MISSING, "its actor is gone")])
    assert one.detail == "should run on n2/0 and n2/1 and does not: its actor is gone"


def test_what_the_plan_does_not_have_is_extra_but_not_when_it_is_gone():
    extra = {**rows()[-1], "replica": "code/7"}
    assert told([*rows(), extra]) == [("code/7", "extra")]
    assert told([*rows(), extra], only="acme") == []
    assert told([*rows(), absent("toy/code/7", State.MISSING, "")]) == []


def test_only_a_tenant_is_compared():
    assert told([], only="globex") == [("code/0", "missing")]
    with pytest.raises(LaunchRefused):
        differences(replace(PLAN), [], only="nobody")


def test_public_names_are_no_modules_whatever_was_imported_before():
    names = [getattr(launching, name) for name in 2 * launching.__all__]
    assert not any(isinstance(one, ModuleType) for one in names)
