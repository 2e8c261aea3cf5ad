"""Nights over a cluster in memory: what each comes to, and what is left when one is cut short."""

import json
import os
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from night_world import GPUS, Killed, World, order
from nightly_documents import put
from prometheus_client.parser import text_string_to_metric_families

from optimizer.launch import LaunchRefused, PlanStale
from optimizer.launch.lost import Standing
from optimizer.launch.values import Failure
from optimizer.night import Code, Ending, NightRefused, nightly, record
from optimizer.night.lock import only_one
from optimizer.night.values import Outcome, Phase

MORE = {"chat": 750, "batch": 2}  # than the documents ask at first
NOW = datetime(2026, 3, 2, 2, 0, tzinfo=timezone(timedelta(hours=1)))


@pytest.fixture
def world(monkeypatch, tmp_path) -> World:
    put(tmp_path)
    return World().put(monkeypatch)


def night(folder: Path, now: datetime = NOW, **said: object) -> Ending:
    return nightly(order(folder, **said), now=lambda: now)


def journal(ending: Ending) -> dict[str, object]:
    return json.loads((ending.folder / "night.json").read_text())


def half_written(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.is_file()]


def test_a_night_carries_out_and_the_next_finds_nothing(world, tmp_path):
    first = night(tmp_path)
    assert (first.outcome, first.code) == (Outcome.DONE, Code.DONE)
    assert first.lines == ("5 of 5 moves made: from 0.00 USD/h to 5.00 USD/h, proved best",)
    phases = [p["phase"] for p in journal(first)["phases"]]
    assert phases == ["import", "check", "rebalance", "verify", "approve", "launch"]
    assert {p.name for p in first.folder.iterdir()} == {
        *("inputs", "metrics.prom", "night.json", "plan.json", "report.html", "report.md"),
        "state.yaml",
    }
    again = night(tmp_path, NOW + timedelta(days=1))
    assert (again.outcome, again.code) == (Outcome.NOTHING, Code.DONE)
    assert again.lines == ("nothing worth doing: 5 replicas for 5.00 USD/h, proved best",)
    assert world.launches == 1


def test_metrics_say_what_the_night_came_to(world, tmp_path):
    night(tmp_path)
    put(tmp_path, **MORE)
    ending = night(tmp_path, NOW + timedelta(days=1))
    text = (tmp_path / "nights" / "metrics.prom").read_text()
    assert text == (ending.folder / "metrics.prom").read_text()
    found = {
        (
            s.name.removeprefix("fleetslice_night_"),
            *(v for k, v in s.labels.items() if k != "fleet"),
        ): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }
    assert found["price_per_hour", "before"] == 5.0
    assert found["price_per_hour", "after"] == ending.facts["price_per_hour"]["after"]
    moved = sum(v for k, v in found.items() if k[0] == "moves")
    assert moved == found["moves_done",] > 0
    assert found["exit_code", "done"] == 0
    assert found["gap",] == 0
    assert found["unmet_requests_per_second",] == 0
    assert found["starts",] == 1


def test_demand_that_cannot_be_met_is_told_and_the_rest_is_served(world, tmp_path):
    put(tmp_path, batch=7)
    ending = night(tmp_path)
    assert ending.code is Code.UNMET
    assert world.launches == 1
    assert any(line.startswith("unmet: batch: ") for line in ending.lines)
    assert ending.facts["unmet_replicas"] > 0


@pytest.mark.parametrize(
    ("policy", "day", "changed"),
    [
        ("freeze: [{from: 2026-03-03, to: 2026-03-05}]", NOW, True),
        ("freeze: [{from: 2026-03-01, to: 2026-03-02}]", NOW, False),
        ("freeze: [{from: 2026-03-02}]", NOW, False),
    ],
    ids=["the day before", "the last day", "one day"],
)
def test_on_frozen_days_nothing_changes(world, tmp_path, policy, day, changed):
    put(
        tmp_path,
        policy=policy.replace("2026", '"2026')
        .replace("-02}", '-02"}')
        .replace("-03,", '-03",')
        .replace("-05}", '-05"}')
        .replace("-01,", '-01",'),
    )
    ending = night(tmp_path, day)
    assert ending.outcome is (Outcome.DONE if changed else Outcome.FROZEN)
    assert ending.code is Code.DONE
    assert world.launches == int(changed)
    assert "report.html" in os.listdir(ending.folder)


def test_a_look_changes_nothing(world, tmp_path):
    ending = night(tmp_path, dry_run=True)
    assert (ending.outcome, ending.code) == (Outcome.LOOKED, Code.CHANGED)
    assert world.launches == 0


def test_spare_gpus_stay_empty_until_demand_needs_them(world, tmp_path):
    put(tmp_path, policy="spare_gpus: {a100-80gb-sxm: 3}")
    night(tmp_path)
    used = {gpu for r in world.placement.replicas for gpu in r.gpus}
    assert used.isdisjoint({"n2/1", "n3/0", "n3/1"})
    put(tmp_path, chat=400, batch=4, policy="spare_gpus: {a100-80gb-sxm: 3}")
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert ending.code is Code.DONE
    told = (ending.folder / "report.md").read_text()
    assert "without the spare GPUs demand would stay unmet" in told


def test_a_missing_node_is_told_and_not_used(world, tmp_path):
    night(tmp_path)
    lost = [r for r in world.placement.replicas if r.nodes == ("n2",)]
    assert lost
    left = tuple(r for r in world.placement.replicas if r not in lost)
    world.placement = replace(world.placement, replicas=left)
    gone = tuple((r.id, "n2") for r in lost)
    world.standing = Standing(GPUS - {"n2/0", "n2/1"}, gone, began=True)
    world.withdrawn = tuple(r.id for r in lost)
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert ending.code is Code.DONE
    assert all(r.nodes != ("n2",) for r in world.placement.replicas)
    told = (ending.folder / "report.md").read_text()
    assert "node n2 is not on the cluster: nothing is placed there" in told
    assert f"{lost[0].id} was lost with node n2" in told


@pytest.mark.parametrize(
    ("standing", "workloads", "said"),
    [
        (
            Standing(GPUS, half="rebalance"),
            {},
            "a rebalance that no night began is half carried out",
        ),
        (Standing(GPUS, doubled=("chat/0",)), {}, "chat/0 runs twice and could not be mended"),
        (
            Standing(GPUS),
            {"rename": True},
            "no deployment code is in the workloads; add it, or stop",
        ),
    ],
    ids=["half", "doubled", "unknown"],
)
def test_what_nobody_can_plan_from_is_refused_with_a_way_out(
    world, tmp_path, standing, workloads, said
):
    night(tmp_path)
    before = world.placement
    world.standing = standing
    if workloads:
        text = (tmp_path / "workloads.yaml").read_text()
        (tmp_path / "workloads.yaml").write_text(text.replace("name: code", "name: coding"))
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert (ending.outcome, ending.code) == (Outcome.FAILED, Code.DRIFTED)
    assert said in "\n".join(ending.lines)
    assert ending.lines[-1] == "nothing was changed"
    assert world.placement == before
    assert (ending.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (LaunchRefused("no Ray answers at a:1: Connection refused"), Code.ERROR),
        (
            LaunchRefused("the journal run/journal.sqlite cannot be read: not a database"),
            Code.ERROR,
        ),
    ],
    ids=["unreachable", "corrupt"],
)
def test_a_cluster_that_cannot_be_read_ends_the_night(world, tmp_path, refused, code):
    world.refused = refused
    ending = night(tmp_path)
    assert (ending.outcome, ending.code, ending.lines) == (Outcome.FAILED, code, (str(refused),))
    assert world.launches == 0
    world.refused = None
    assert night(tmp_path).outcome is Outcome.DONE


def test_two_copies_left_of_a_failed_step_are_mended_first(world, tmp_path):
    night(tmp_path)
    assert world.latest is not None
    world.latest = replace(world.latest, state="failed")
    world.standing = Standing(GPUS, doubled=("chat/0",), began=True)
    world.before_end = lambda: setattr(world, "standing", Standing(GPUS, began=True))
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert ending.outcome is Outcome.NOTHING
    assert world.launches == 2


def test_a_failed_step_is_told_and_the_next_night_plans_anew(world, tmp_path):
    world.failed = (Failure("chat/0", "never ready in 3 starts", ("out of memory",), "s0002"),)
    ending = night(tmp_path)
    assert (ending.outcome, ending.code) == (Outcome.PARTLY, Code.PARTLY)
    assert "step s0002: chat/0: never ready in 3 starts" in ending.lines
    assert ending.lines[-1].startswith("go back: fleetslice launch --rollback")
    assert "out of memory" in (ending.folder / "report.html").read_text()
    world.failed = ()
    assert night(tmp_path, NOW + timedelta(days=1)).outcome is Outcome.NOTHING


def test_an_slo_that_the_replay_misses_holds_the_night(world, tmp_path, monkeypatch):
    rows = [
        {
            "deployment": "chat",
            "requests": 9,
            "percentile": 95,
            "attained_percent": 90.0,
            "meets": False,
        }
    ]
    monkeypatch.setattr("optimizer.night.flow.simulated", lambda *_: rows)
    given = order(tmp_path)
    given = replace(given, documents=replace(given.documents, traces=(object(),)))
    ending = nightly(given, now=lambda: NOW)
    assert (ending.outcome, ending.code) == (Outcome.HELD, Code.BROKEN)
    assert world.launches == 0
    assert "| chat | 9 | 95 | 90 (missed) |" in (ending.folder / "report.md").read_text()


# --- approval


@pytest.fixture
def waiting(world, tmp_path) -> Ending:
    put(tmp_path, policy="acts_alone: {max_moves: 2}\napproval_hours: 8")
    ending = night(tmp_path)
    assert (ending.outcome, ending.code) == (Outcome.WAITING, Code.CHANGED)
    assert "5 moves, 2 may be made alone" in ending.lines[1]
    return ending


def approve(ending: Ending, text: str | None = None) -> None:
    (ending.folder / "approval").write_text(
        text or f"{journal(ending)['plan_sha256']}  plan.json\n"
    )


def test_an_approved_plan_is_launched(world, waiting, tmp_path):
    approve(waiting)
    ending = night(tmp_path, NOW + timedelta(hours=7))
    assert (ending.outcome, ending.folder) == (Outcome.DONE, waiting.folder)
    assert world.launches == 1
    assert night(tmp_path, NOW + timedelta(days=1)).outcome is Outcome.NOTHING


def test_a_look_leaves_what_waits(world, waiting, tmp_path):
    approve(waiting)
    ending = night(tmp_path, NOW + timedelta(hours=1), dry_run=True)
    assert (ending.outcome, ending.lines) == (Outcome.WAITING, waiting.lines)
    assert world.launches == 0
    assert night(tmp_path, NOW + timedelta(hours=2)).outcome is Outcome.DONE


def test_without_approval_the_next_night_plans_anew(world, waiting, tmp_path):
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert ending.outcome is Outcome.WAITING
    assert ending.folder != waiting.folder
    assert journal(waiting)["outcome"] == "superseded"
    assert world.launches == 0


@pytest.mark.parametrize("how", ["another plan", "late", "documents", "plan", "moved"])
def test_a_stale_approval_changes_nothing(world, waiting, tmp_path, how):
    approve(waiting, "0" * 64 if how == "another plan" else None)
    policy = "acts_alone: {max_moves: 2}\napproval_hours: 8"
    if how == "documents":
        put(tmp_path, chat=410, policy=policy)
    if how == "plan":
        (waiting.folder / "plan.json").write_text("{}")
    if how == "moved":
        world.refused = PlanStale("chat/0 runs on n1/0, the plan was made without it")
    ending = night(tmp_path, NOW + timedelta(hours=9 if how == "late" else 1))
    assert (ending.outcome, ending.code) == (Outcome.STALE, Code.DRIFTED)
    assert ending.lines[-1] == "nothing was changed; start it again for a new plan"
    assert world.launches == 0
    world.refused = None
    assert night(tmp_path, NOW + timedelta(hours=10)).outcome is Outcome.WAITING


# --- cut short


def at_write(monkeypatch, number: int, act) -> None:
    """Let the n-th whole file of this process come to ``act`` in place of the disk."""
    left = [number]
    real = os.fsync

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] <= 0:
            act(left[0])
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_write(world, tmp_path, monkeypatch):
    night(tmp_path)
    base, changed = world.placement, 0
    put(tmp_path, **MORE)
    wanted = night(tmp_path, dry_run=True).facts["price_per_hour"]["after"]

    def full(left: int) -> None:
        raise OSError(28, os.strerror(28))

    for number in range(1, 200):
        world.placement, world.latest = base, None
        with monkeypatch.context() as patch:
            at_write(patch, number, full)
            try:
                night(tmp_path, NOW + timedelta(days=number))
                break  # no write was left to fail
            except NightRefused as refused:
                code, (first, *lines) = refused.code, refused.lines
        assert code is Code.ERROR
        assert "No space left on device" in first
        assert "make room, then start it again: it goes on where it was" in lines
        changed += world.placement != base
        assert half_written(tmp_path) == []
        ending = night(tmp_path, NOW + timedelta(days=number, hours=1))
        assert ending.outcome in (Outcome.DONE, Outcome.NOTHING)
        assert ending.facts["price_per_hour"]["after"] == wanted
        assert (ending.folder / "report.html").exists()
        assert journal(ending)["reported"]
    assert number > 20
    assert 0 < changed < number  # some before the launch, some after it


@pytest.mark.slow
def test_killed_at_any_write_the_next_start_ends_it(world, tmp_path, monkeypatch):
    night(tmp_path)
    base, phases = world.placement, set()
    put(tmp_path, **MORE)
    wanted = night(tmp_path, dry_run=True).facts["price_per_hour"]["after"]

    def kill(left: int) -> None:
        raise Killed

    for number in range(1, 200):
        world.placement, world.latest = base, None
        now = NOW + timedelta(days=number)
        try:
            with monkeypatch.context() as patch:
                at_write(patch, number, kill)
                night(tmp_path, now)
                break
        except Killed:
            last = record.latest(tmp_path / "nights")
            phases.add(last.phase)
        ending = night(tmp_path, now + timedelta(minutes=5))
        assert ending.outcome in (Outcome.DONE, Outcome.NOTHING)
        assert ending.facts["price_per_hour"]["after"] == wanted
        assert (ending.folder / "metrics.prom").exists()
        assert world.placement.replicas
        if number % 5 == 0:
            assert night(tmp_path, now + timedelta(minutes=9)).outcome is Outcome.NOTHING
    assert {Phase.IMPORT, Phase.REBALANCE, Phase.VERIFY, Phase.LAUNCH} <= phases


def cut_short(world: World, folder: Path, policy: str, **said: object) -> Ending:
    """A second night, killed in the middle of its launch, and the start after it."""
    put(folder, policy=policy)
    night(folder)
    put(folder, policy=policy, **MORE)

    def kill() -> None:
        raise Killed

    world.before_end = kill
    with pytest.raises(Killed):
        night(folder, NOW + timedelta(days=1))
    world.before_end = lambda: None
    return night(folder, NOW + timedelta(days=1, minutes=5), **said)


def test_a_look_leaves_a_launch_cut_short(world, tmp_path):
    ending = cut_short(world, tmp_path, "", dry_run=True)
    assert (ending.outcome, ending.code) == (Outcome.LOOKED, Code.CHANGED)
    assert ending.lines[1] == "without --dry-run it is taken up"
    assert world.launches == 2
    assert night(tmp_path, NOW + timedelta(days=1, minutes=9)).outcome is Outcome.DONE


def test_on_a_frozen_day_a_launch_cut_short_is_left_to_a_person(world, tmp_path):
    put(tmp_path)
    night(tmp_path)
    put(tmp_path, **MORE, policy='freeze: [{from: "2026-03-04"}]')

    def kill() -> None:
        raise Killed

    world.before_end = kill
    with pytest.raises(Killed):
        night(tmp_path, NOW + timedelta(days=1))
    ending = night(tmp_path, NOW + timedelta(days=2))
    assert (ending.outcome, ending.code) == (Outcome.PARTLY, Code.PARTLY)
    assert "and nothing may change on 2026-03-04, so it is left to a person" in ending.lines[0]
    assert world.launches == 2


def test_a_launch_cut_short_goes_on(world, tmp_path):
    ending = cut_short(world, tmp_path, "cut_short: resume")
    assert (ending.outcome, ending.code) == (Outcome.DONE, Code.DONE)
    assert ending.facts["starts"] == 2
    assert world.placement.replicas
    assert night(tmp_path, NOW + timedelta(days=1, minutes=9)).outcome is Outcome.NOTHING


def test_a_launch_cut_short_goes_back(world, tmp_path):
    ending = cut_short(world, tmp_path, "cut_short: rollback")
    assert (ending.outcome, ending.code) == (Outcome.UNDONE, Code.PARTLY)
    assert world.rolled_back == 1
    assert world.placement.replicas


def test_a_launch_cut_short_is_left_to_a_person(world, tmp_path):
    ending = cut_short(world, tmp_path, "cut_short: ask")
    assert (ending.outcome, ending.code) == (Outcome.PARTLY, Code.PARTLY)
    plan = ending.folder / "plan.json"
    assert any(line.startswith(f"go on:   fleetslice launch {plan} ") for line in ending.lines)
    assert any("launch --rollback" in line for line in ending.lines)
    assert world.launches == 2
    world.rollback()  # the person's choice
    again = night(tmp_path, NOW + timedelta(days=1, hours=1))
    assert again.outcome is Outcome.DONE


def test_a_launch_that_cannot_go_on_stays_cut_short(world, tmp_path):
    put(tmp_path)
    night(tmp_path)
    put(tmp_path, **MORE)

    def lose() -> None:
        raise LaunchRefused("no Ray answers at a:1: Connection refused")

    world.before_end = lose
    ending = night(tmp_path, NOW + timedelta(days=1))
    assert ending.code is Code.ERROR
    assert ending.lines[0].startswith("no Ray answers")
    assert any(line.startswith("go on:") for line in ending.lines)
    assert record.latest(tmp_path / "nights").launching
    world.before_end = lambda: None
    ending = night(tmp_path, NOW + timedelta(days=1, minutes=5))
    assert (ending.outcome, ending.facts["starts"]) == (Outcome.DONE, 2)


# --- the folder


def test_a_corrupt_journal_is_told_and_nothing_is_changed(world, tmp_path):
    ending = night(tmp_path)
    for text in ("", "{", '{"version": 2}', '{"version": 1, "phases": []}'):
        (ending.folder / "night.json").write_text(text)
        with pytest.raises(NightRefused) as refused:
            night(tmp_path, NOW + timedelta(days=1))
        assert refused.value.code is Code.ERROR
        assert "the journal of the last night cannot be read" in refused.value.lines[0]
        assert f"mv {ending.folder} {ending.folder}.corrupt" in refused.value.lines[-1]
    assert world.launches == 1
    ending.folder.rename(f"{ending.folder}.corrupt")
    assert night(tmp_path, NOW + timedelta(days=1)).outcome is Outcome.NOTHING


def test_two_nights_at_once_are_one_too_many(world, tmp_path):
    first = night(tmp_path)
    with only_one(tmp_path / "nights"), pytest.raises(NightRefused) as refused:
        night(tmp_path, NOW + timedelta(days=1))
    assert refused.value.code is Code.ERROR
    assert refused.value.lines == (
        f"another night is at work in {tmp_path / 'nights'}",
        "wait for it to end; nothing was changed",
    )
    assert record.nights(tmp_path / "nights") == (first.folder,)


def test_drafts_that_a_kill_left_are_swept_up(world, tmp_path, monkeypatch):
    def kill(left: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        at_write(patch, 9, kill)
        patch.setattr(os, "unlink", lambda _: None)  # a dead process takes nothing away
        with pytest.raises(Killed):
            night(tmp_path)
    [folder] = record.nights(tmp_path / "nights")
    assert half_written(folder)
    (tmp_path / "nights" / ".20260302T010001Z").mkdir()  # a night that never began
    (tmp_path / "nights" / ".metrics.prom.x").touch()
    assert night(tmp_path).outcome is Outcome.DONE
    assert list((tmp_path / "nights").rglob(".*")) == []


def test_the_last_night_is_the_last_also_when_clocks_are_set_back(world, tmp_path):
    moments = [NOW, NOW, NOW - timedelta(hours=1), NOW + timedelta(days=1)]
    ends = [night(tmp_path, moment) for moment in moments]
    names = [e.folder.name for e in ends]
    stem = "20260302T010000Z"
    assert names == [stem, f"{stem}-2", f"{stem}-3", "20260303T010000Z"]
    assert list(record.nights(tmp_path / "nights")) == [e.folder for e in ends]


def test_old_nights_go_by_count(world, tmp_path):
    put(tmp_path, policy="keep_runs: 3")
    ends = [night(tmp_path, NOW + timedelta(days=day)) for day in range(5)]
    assert list(record.nights(tmp_path / "nights")) == [e.folder for e in ends[-3:]]


def test_whom_the_policy_names_is_told(world, tmp_path):
    said = tmp_path / "said.txt"
    script = f"cat > {said}; echo $FLEETSLICE_OUTCOME $FLEETSLICE_EXIT_CODE >> {said}"
    put(tmp_path, policy=f"notify: [sh, -c, {json.dumps(script)}]")
    ending = night(tmp_path)
    assert said.read_text() == f"{ending.lines[0]}\ndone 0\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("[sleep, '60']", "sleep did not end within 0.2 s"),
        ("[no-such-program]", "no-such-program: No such file or directory"),
        ("[sh, -c, 'echo gone >&2; exit 3']", "sh ended with exit code 3: gone"),
    ],
    ids=["slow", "absent", "fails"],
)
def test_who_cannot_be_told_changes_nothing(world, tmp_path, program, why):
    put(tmp_path, policy=f"notify: {program}\nnotify_seconds: 0.2")
    told: list[str] = []
    ending = nightly(order(tmp_path), tell=told.append, now=lambda: NOW)
    assert ending.code is Code.DONE
    assert told[-1] == f"nobody was told: {why}"
