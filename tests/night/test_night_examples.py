"""The ready examples: each holds to the format of whoever reads it, and to our command line."""

import configparser
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from jsonschema import Draft7Validator

from optimizer.cli.app import app
from optimizer.documents import load

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "nightly"
SCHEMAS = [
    json.loads((ROOT / "tests" / "data" / "schemas" / f"{name}.json").read_text())
    for name in ("kubernetes-1.37", "kubernetes-1.37-batch", "custom-resources")
]
KINDS = {kind: ref for schema in SCHEMAS for kind, ref in schema["kinds"].items()}
DEFINITIONS = {name: one for schema in SCHEMAS for name, one in schema["definitions"].items()}
MANIFESTS = ("cronjob.yaml", "raycronjob.yaml", "rayjob.yaml")
# KubeRay's RayJob takes what the job template of its RayCronJob takes, which is its spec.
RAY_JOB = DEFINITIONS["RayCronJob"]["properties"]["spec"]["properties"]["jobTemplate"]


def manifest(name: str) -> dict:
    return yaml.safe_load((EXAMPLES / name).read_text())


def lines(name: str) -> Iterator[str]:
    """What each is to run, a command a line."""
    if not name.endswith(".yaml"):
        yield from (EXAMPLES / name).read_text().splitlines()
        return
    spec = manifest(name)["spec"]
    job = spec.get("jobTemplate", spec)
    if "entrypoint" in job:
        yield job["entrypoint"]
    else:
        yield job["spec"]["template"]["spec"]["containers"][0]["args"][0]


def commands(name: str) -> Iterator[list[str]]:
    """The arguments of each ``fleetslice`` among them."""
    for line in lines(name):
        if (found := re.search(r"fleetslice ((?:--quiet )?nightly .*)", line)) is not None:
            yield shlex.split(found[1])


def faults(document: dict) -> list[str]:
    if document["kind"] == "RayJob":
        document, schema = document["spec"], RAY_JOB
    else:
        schema = {"$ref": KINDS[document["kind"]]}
    validator = Draft7Validator({**schema, "definitions": DEFINITIONS})
    return [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(document)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_hold_to_their_schemas(name):
    assert faults(manifest(name)) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_schemas_catch_a_typo(name):
    found = manifest(name)
    found["spec"]["shedule"] = "0 2 * * *"
    assert faults(found)


@pytest.mark.parametrize("name", ["crontab", "fleetslice-nightly.service", *MANIFESTS])
def test_each_command_is_one_of_ours(name):
    command = typer.main.get_command(app)
    found = list(commands(name))
    assert found
    for words in found:
        at = words.index("nightly")
        with command.make_context("fleetslice", words[: at + 1]) as context:
            sub = command.commands["nightly"]
            with sub.make_context("nightly", words[at + 1 :], parent=context) as given:
                [documents] = given.params["documents"]
                assert str(documents) in ("/etc/fleetslice", "/documents")
                assert given.params["gap"] == 0.001


def test_the_cron_table_has_five_fields_and_a_user():
    lines = [x for x in (EXAMPLES / "crontab").read_text().splitlines() if x and x[0] != "#"]
    settings = [x for x in lines if re.fullmatch(r"[A-Z_]+=\S+", x)]
    jobs = [x for x in lines if x not in settings]
    assert len(settings) == 4
    assert [re.match(r"(@reboot|\d+ \d+ \* \* \*) fleetslice \S", x) is not None for x in jobs] == [
        True,
        True,
    ]


def test_the_units_are_what_systemd_reads():
    known = {
        "Unit": {"Description", "Documentation", "Wants", "After"},
        "Service": {
            *("Type", "User", "StateDirectory", "Environment", "ExecStart", "SuccessExitStatus"),
            *("Restart", "RestartSec", "TimeoutStartSec"),
        },
        "Timer": {"OnCalendar", "Persistent"},
        "Install": {"WantedBy"},
    }
    for name, sections in (
        ("service", ["Unit", "Service"]),
        ("timer", ["Unit", "Timer", "Install"]),
    ):
        unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(EXAMPLES / f"fleetslice-nightly.{name}")
        assert unit.sections() == sections
        assert all(set(unit[section]) <= known[section] for section in sections)
        if name == "service":
            assert unit["Service"]["Type"] == "oneshot"
            assert unit["Service"]["Restart"] == "on-abnormal"  # all that oneshot and codes allow


def test_the_policy_is_valid():
    policy = load([EXAMPLES / "policy.yaml"], need=("Policy",)).policy
    assert policy is not None
    assert policy.alone.kinds == ("start", "stop", "move")


def test_the_wrapper_finds_its_way():
    text = (ROOT / "scripts" / "nightly").read_text()
    assert (ROOT / "scripts" / "nightly").stat().st_mode & 0o111
    assert 'exec "$root/.venv/bin/fleetslice" nightly "$@"' in text
