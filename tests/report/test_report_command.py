"""What ``report`` puts on the page beside the plan, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest

import plans
from optimizer.cli.app import run
from optimizer.documents import plan_json
from optimizer.scenarios.answer import entry, summary


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Runs ``report plan.json`` in a folder with the plan, answers and a curve."""
    plan = plans.small_plan()
    before = summary(plan)
    answer = {**entry(before.answer), "name": "each-node/h100-01"}
    answers = [answer, {**answer, "name": "each-node/l40s-01"}, answer]
    known = {"key": "x", "baseline": before.fingerprint}
    lines = [{**one, **known} for one in answers]
    others = [{**one, "baseline": "another"} for one in lines]
    asked_of = {**answer, "fingerprint": before.fingerprint}
    files = {
        "plan.json": json.dumps(plan_json(plan)),
        "answers.json": json.dumps({"baseline": asked_of, "scenarios": answers[:2]}, indent=2),
        "answers.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "others.jsonl": "".join(json.dumps(line) + "\n" for line in others),
        "mixed.jsonl": "".join(json.dumps(line) + "\n" for line in [*others, *lines[:1]]),
        "curve.json": json.dumps(plans.CURVE),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def said(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fleetslice", "report", "plan.json", *arguments])
        code = run()
        out, err = capsys.readouterr()
        return code, out, err

    return said


@pytest.mark.parametrize("name", ["answers.json", "answers.jsonl"])
def test_answers_come_onto_the_page(report, name):
    code, page, _ = report("-o", "html", "--whatif", name, "--frontier", "curve.json")
    assert code == 0
    assert "2 scenarios against the baseline" in page
    assert 'class="heat"' in page
    assert "The knee saves 6.10 USD/h with 2 moves" in page


def test_of_mixed_answers_those_of_the_plan_are_shown(report):
    code, page, told = report("-o", "html", "--whatif", "mixed.jsonl")
    assert code == 0
    assert "1 scenario against the baseline" in page
    assert "3 answers of another baseline are left out" in told


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--whatif", "answers.json"], "add -o html"),
        (["-o", "html", "--whatif", "curve.json"], "holds no answers"),
        (["-o", "html", "--whatif", "others.jsonl"], "are of another baseline"),
        (["-o", "html", "--frontier", "answers.json"], "holds no curve"),
        (["-o", "html", "--whatif", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_shown_is_refused(report, flags, why):
    code, page, err = report(*flags)
    assert code == 2
    assert page == ""
    assert why in err
    assert "Traceback" not in err


def test_a_plan_without_answers_needs_none(report):
    code, page, _ = report("-o", "html")
    assert code == 0
    assert "What if" not in page
    assert Path("plan.json").exists()
