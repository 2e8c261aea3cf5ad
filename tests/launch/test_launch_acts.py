"""Steps as acts on copies, and the way back from every point of them."""

from dataclasses import replace

import pytest
from rebalances import AFTER, BEFORE, HALFWAY, plan_of, rebalance_plan

from optimizer.domain.gpu import PlacedProfile
from optimizer.launch.acts import rebalances, script, undoing
from optimizer.launch.journal import Entry, StepState
from optimizer.launch.specs import specify

PLAN = rebalance_plan()
SERVING = {r.id: 0 for r in BEFORE}
SCRIPT = script(PLAN, SERVING, SERVING)
OLD = {(s.id, 0): s for s in specify(PLAN, BEFORE, simulated=True)}
NEW = {
    key: replace(specify(PLAN, [replica], simulated=True)[0], generation=key[1])
    for key, replica in SCRIPT.new.items()
}
SPECS = {**OLD, **NEW}


def test_each_start_makes_the_next_copy_and_temporary_ones_run_as_before():
    assert rebalances(PLAN)
    assert not rebalances(plan_of(*BEFORE))
    starts = tuple(move for move in PLAN.moves if move.before is None)
    assert starts
    assert rebalances(replace(PLAN, moves=starts))  # the others run on
    everything = tuple(replace(move, before=None) for move in PLAN.moves)
    assert not rebalances(replace(PLAN, moves=everything))
    assert {key[0]: key[1] for key in SCRIPT.new} == SCRIPT.goal
    assert SCRIPT.goal == {"chat/0": 1, "chat/1": 2, "code/0": 1, "vision/1": 0}
    halfway = SCRIPT.new["chat/1", 1]
    assert (halfway.gpus, halfway.mig) == ((HALFWAY,), PlacedProfile(0, "3g.40gb"))
    assert [SCRIPT.new[r.id, SCRIPT.goal[r.id]] for r in AFTER] == list(AFTER)
    stops = [(a.replica, a.generation) for a in SCRIPT.acts if a.action == "stop"]
    assert sorted(stops) == [
        ("chat/0", 0),
        ("chat/1", 0),
        ("chat/1", 1),
        ("code/0", 0),
        ("vision/0", 0),
    ]


def play(acts, held):
    """Devices that are held after the acts, each in a valid order and on a free place."""
    done = set()
    for act in acts:
        assert set(act.after) <= done, act
        done.add(act.id)
        key = (act.replica, act.generation)
        if act.action == "start":
            held[key] = SPECS.get(key) or held[key]
        elif act.action == "stop":
            held.pop(key, None)
        devices = [d for spec in held.values() for d in spec.devices]
        assert len(devices) == len(set(devices)), act
    return held


@pytest.mark.parametrize("broken", [StepState.DONE, StepState.INTENT, StepState.FAILED])
def test_the_way_back_from_every_point_ends_where_it_began(broken):
    last = {key[0]: key[1] for key in sorted(SPECS)}
    for point in range(1, len(SCRIPT.acts) + 1):
        done = [Entry(act, StepState.DONE) for act in SCRIPT.acts[: point - 1]]
        rest = [Entry(act, StepState.WAITING) for act in SCRIPT.acts[point:]]
        entries = [*done, Entry(SCRIPT.acts[point - 1], broken), *rest]
        held = play(SCRIPT.acts[:point], dict(OLD))
        acts, new = undoing(entries, SPECS, last)
        for spec in new:
            assert (spec.id, spec.generation) not in SPECS
        again = {(spec.id, spec.generation): spec for spec in new}
        SPECS.update(again)
        try:
            end = play(acts, held)
        finally:
            for key in again:
                del SPECS[key]
        assert sorted((s.id, s.devices) for s in end.values()) == sorted(
            (s.id, s.devices) for s in OLD.values()
        )
