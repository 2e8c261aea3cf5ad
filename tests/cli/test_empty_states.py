"""Documents that ask for nothing, or for what cannot be had, get an answer that says so."""

import sys
from pathlib import Path

import pytest

from optimizer.cli.app import run

FLEET = """\
kind: Fleet
version: 1
name: one
nodes: [{name: n1, gpu: l40s, gpus: 1, price_per_gpu_hour: 1.0}]
"""
WORKLOADS = "kind: Workloads\nversion: 1\nname: w\ndeployments: {}\n"
DEMAND = "{requests_per_second: 1, input_tokens: 500, output_tokens: 100}"
TOO_BIG = f"[{{name: big, model: llama-3.1-405b, demand: {DEMAND}}}]"


@pytest.fixture
def fleetslice(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with a fleet of one GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("fleet.yaml").write_text(FLEET, "utf-8")

    def said(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fleetslice", *arguments])
        code = run()
        return code, capsys.readouterr().out

    return said


def test_nothing_asked_for_is_a_plan_that_costs_nothing(fleetslice):
    Path("w.yaml").write_text(WORKLOADS.format("[]"), "utf-8")
    code, out = fleetslice("plan", "fleet.yaml", "w.yaml", "--out", "p.json")
    assert code == 0
    assert "Nothing was asked for" in out
    assert "0.00 USD/h on 0 of 1 GPU" in out
    assert fleetslice("verify", "fleet.yaml", "w.yaml", "p.json")[0] == 0
    code, out = fleetslice("rebalance", "fleet.yaml", "w.yaml", "--state", "p.json", "--summary")
    assert code == 0
    assert "Nothing to move" in out


def test_what_fits_nowhere_is_unmet_with_its_reason(fleetslice):
    Path("w.yaml").write_text(WORKLOADS.format(TOO_BIG), "utf-8")
    code, out = fleetslice("plan", "fleet.yaml", "w.yaml")
    assert code == 3
    assert "big misses 1 of 1 req/s" in out
    assert "GiB too little" in out
    assert "nothing runs" in out
