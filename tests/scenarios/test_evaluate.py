import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import worlds
from builders import deployment
from optimizer.domain.outcome import Objective
from optimizer.domain.scenario import (
    AddDeployments,
    Assign,
    Forbid,
    Lose,
    PriceChange,
    RemoveDeployment,
    Scale,
    Scenario,
)
from optimizer.domain.workload import Needs
from optimizer.launch import head, processes
from optimizer.scenarios import evaluate as evaluating
from optimizer.scenarios.answer import entry, read_entry, summary
from optimizer.scenarios.compare import comparison
from optimizer.scenarios.evaluate import Planner, Tally, evaluate
from optimizer.sizing import size


def scenario(name: str, *changes: object) -> Scenario:
    return Scenario(name, changes)


DOUBLED = scenario("doubled", Scale("all", None, 2_000_000))
NOTHING = scenario("nothing")
LOST = scenario("lost", Lose("rack", "r0"))
CHEAPER = scenario("cheaper", PriceChange("a100", 500_000))
ENDED = scenario("ended", RemoveDeployment("batch"))
NEW = scenario(
    "new", AddDeployments((deployment("legacy", needs=Needs(mig_profile="7g.80gb"), replicas=1),))
)
MISSPELT = scenario("misspelt", Lose("node", "big-9"))
BROKEN = scenario("broken", AddDeployments((None,)))  # type: ignore[arg-type]
EVERY = (DOUBLED, NOTHING, LOST, MISSPELT, CHEAPER, BROKEN, ENDED, NEW)


@pytest.fixture(scope="module")
def setting() -> evaluating.Setting:
    return worlds.baseline()


@pytest.fixture(scope="module")
def answers(setting):
    return {a.name: a for a in evaluate(setting, EVERY)}


def test_answers_come_in_the_order_given(answers):
    assert list(answers) == [s.name for s in EVERY]


def test_the_baseline_is_proved(setting):
    assert setting.before.answer.status == "optimal"
    # two 3g.40gb fill what one GPU has room for beside one 1g.10gb; chat takes two small GPUs
    # and two slices more, or three slices on one more GPU.
    assert setting.before.answer.price_micros is not None


def test_nothing_changed_is_nothing_different(setting, answers):
    same, before = answers["nothing"], setting.before.answer
    assert (same.price_micros, same.gpus_used) == (before.price_micros, before.gpus_used)
    assert same.moves == 0
    assert same.differences == ()


def test_a_cheaper_gpu_lowers_the_price(answers, setting):
    cheaper = answers["cheaper"]
    assert cheaper.price_micros < setting.before.answer.price_micros
    assert cheaper.differences[0].startswith("price down ")


def test_more_demand_costs_more_and_says_so(answers, setting):
    doubled = answers["doubled"]
    up = doubled.price_micros - setting.before.answer.price_micros
    assert up > 0
    assert f"price up {up / 1e6:.2f} USD/h" in doubled.differences


def test_what_ends_and_what_is_new_is_told(answers):
    assert "batch ends" in answers["ended"].differences
    assert "legacy is new, on 1 x a100 7g.80gb" in answers["new"].differences


def test_unmet_demand_is_told_with_its_reason(setting):
    (lost,) = evaluate(setting, [scenario("lost", Lose("rack", "r0"), Lose("rack", "r1"))])
    assert [one.deployment for one in lost.unmet] == ["chat", "batch"]
    assert lost.differences[0].startswith("chat unmet 4 req/s because ")
    assert lost.differences[1].startswith("batch unmet 2 replicas because ")


def test_a_faulty_scenario_and_a_crash_fail_alone(answers):
    assert "big-9" in answers["misspelt"].failed
    assert answers["broken"].failed.startswith("AttributeError: ")
    assert [a.name for a in answers.values() if a.failed] == ["misspelt", "broken"]


def test_a_scenario_starts_from_the_plan_unless_fresh():
    planned, fresh = worlds.baseline(), worlds.baseline(fresh=True)
    (kept,), (anew,) = evaluate(planned, [NOTHING]), evaluate(fresh, [NOTHING])
    assert kept.moves == 0
    assert anew.moves == 5  # every replica starts
    assert kept.price_micros == anew.price_micros


def test_entries_read_back_as_written(answers):
    for answer in answers.values():
        assert read_entry(json.loads(json.dumps(entry(answer)))) == answer


def test_comparison_has_the_shape_of_the_contract(setting, answers):
    data = comparison(setting.before, list(answers.values()))
    names = ("name", "status", "price_per_hour", "bound", "gpus_used", "unmet", "moves", "failed")
    for row in [data["baseline"], *data["scenarios"]]:
        assert {*names, "differences"} <= set(row)
    assert data["baseline"]["name"] == "baseline"
    assert data["unit"] == "USD"


def test_progress_counts_finished_and_failed(setting):
    seen: list[Tally] = []
    evaluate(setting, [NOTHING, MISSPELT], report=seen.append)
    counts = [(t.finished, t.failed, t.answer.name if t.answer else None) for t in seen]
    assert counts == [(0, 0, None), (1, 0, "nothing"), (2, 1, "misspelt")]
    assert seen[-1].total == 2


# --- sizing again only what changed ---------------------------------------------------------------

CHANGES = {
    "scaled": (Scale("all", None, 1_700_000),),
    "lost": (Lose("node", "big-0"),),
    "lost product": (Lose("node", "small"),),
    "banned": (Forbid("gpu", "a100"),),
    "priced": (PriceChange("small", 3_000_000),),
    "set": (Assign("deployment", "chat", ("priority",), 5),),
    "shared": (Assign("node", "big-0", ("gpus",), 1),),
    "new": NEW.changes,
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_sizing_from_memory_is_sizing(setting, changes):
    planner = Planner(setting)
    world = planner.world(Scenario("x", changes))
    mine = planner.sized.size(world.fleet, world.workloads.deployments, world.current)
    anew = size(world.fleet, world.workloads.deployments, {}, running=world.current)
    assert mine == anew


def test_scaling_sizes_nothing_again(setting):
    planner = Planner(setting)
    planner.answer(DOUBLED)
    assert planner.sized.hits == len(setting.inputs.workloads.deployments)


# --- interrupted and resumed ----------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_after(count: int):
    def report(tally: Tally) -> None:
        if tally.finished == count:
            raise Stopped

    return report


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, setting, answers):
    out = tmp_path / "results.jsonl"
    with pytest.raises(Stopped):
        evaluate(setting, EVERY, out=out, report=stop_after(5))
    out.write_text(out.read_text() + '{"key": "torn', encoding="utf-8")
    seen: list[Tally] = []
    again = evaluate(setting, EVERY, out=out, report=seen.append)
    assert again == tuple(answers.values())
    assert seen[0].reused == 4  # of five answers one was a failure, which is tried again
    assert [t.answer.name for t in seen[1:]] == ["misspelt", "broken", "ended", "new"]


def test_another_baseline_or_limit_is_answered_anew(tmp_path, setting):
    out = tmp_path / "results.jsonl"
    evaluate(setting, [NOTHING], out=out)
    for other in (
        replace(setting, limits=replace(setting.limits, seed=1)),
        replace(setting, inputs=replace(setting.inputs, current=None)),
    ):
        seen: list[Tally] = []
        evaluate(other, [NOTHING], out=out, report=seen.append)
        assert seen[0].reused == 0
    renamed = scenario("nothing", Scale("all", None, 1_500_000))
    seen = []
    evaluate(setting, [renamed, NOTHING], out=out, report=seen.append)
    assert seen[0].reused == 1


# --- on Ray ---------------------------------------------------------------------------------------


class Deadly:
    """Kills the process that unpickles it."""

    def __reduce__(self) -> object:
        return os._exit, (1,)


@pytest.mark.slow
@pytest.mark.ray
def test_a_local_ray_answers_as_serial_and_leaves_nothing(setting, answers, capfd, monkeypatch):
    runs = []
    start = head.start
    monkeypatch.setattr(head, "start", lambda *a, **k: runs.append(start(*a, **k)) or runs[-1])
    deadly = scenario("deadly", AddDeployments((Deadly(),)))  # type: ignore[arg-type]
    seen: list[Tally] = []
    found = evaluate(setting, (*EVERY[:3], deadly, *EVERY[3:]), workers=2, report=seen.append)
    lost = found[3]
    assert lost.failed.startswith("its worker was lost 3 times")
    assert (*found[:3], *found[4:]) == tuple(answers.values())
    assert seen[-1].retried == 2
    assert seen[-1].finished == len(EVERY) + 1
    assert capfd.readouterr().out == ""
    (run,) = runs
    assert processes.of_run(run.id, run.head) == ()
    assert not run.folder.exists()
    assert not Path(run.temp).exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_loses_a_node_and_every_answer_comes_once(setting, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 2,
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    try:
        second = cluster.add_node(num_cpus=1)
        many = [
            scenario(f"growth/{i}", Scale("all", None, 1_000_000 + 20_000 * i)) for i in range(40)
        ]

        answered: list[str] = []

        def report(tally: Tally) -> None:
            answered.extend([tally.answer.name] if tally.answer else [])
            if tally.finished == 10 and cluster.worker_nodes:
                cluster.remove_node(second, allow_graceful=False)

        found = evaluate(setting, many, workers=2, address=cluster.address, report=report)
        assert not cluster.worker_nodes
    finally:
        cluster.shutdown()
    assert sorted(answered) == sorted(s.name for s in many)
    assert found == evaluate(setting, many)


@pytest.mark.parametrize(
    ("unmet", "price", "gap", "status"),
    [
        ((0, 0), (10, 10), 0.0, "optimal"),
        ((0, 0), (100, 98), 0.0, "limit"),
        ((0, 0), (100, 98), 0.02, "within_gap"),
        ((500_000, 0), (10, 10), 0.02, "limit"),
    ],
)
def test_a_scenario_whose_moves_are_not_proved_is_known_by_its_price(unmet, price, gap, status):
    levels = (("unmet", unmet), ("price_per_hour", price), ("disruption", (9, 0)))
    told = tuple(Objective(name, *ends) for name, ends in levels)
    plan = Planner(worlds.baseline()).plan(NOTHING, brief=True).plan
    plan = replace(plan, status="limit", objectives=told)
    assert summary(plan, gap=gap).answer.status == status
