"""What runs on a Ray cluster as documents, and what a rebalance makes of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builders import use
from launchplans import SHARES, WHOLE, at
from optimizer.cli import live as asking
from optimizer.cli import main
from optimizer.domain.placement import Placement
from optimizer.launch import LiveState

pytestmark = pytest.mark.timeout(60)

FLEET = """
kind: Fleet
version: 1
name: toy
nodes:
  - {name: n1, gpu: a100-80gb-sxm, gpus: 3}
  - {name: n2, gpu: l40s, gpus: 2, sharing: [whole, shared]}
"""
# All of it would be cheaper on fewer GPUs, were it not for what others hold.
WORKLOADS = """
kind: Workloads
version: 1
name: toy
deployments:
  - {name: chat, needs: {mig_profile: 3g.40gb}, replicas: {min: 2, max: 2}}
"""
OURS = (at("chat/0", "n1/0", mig="3g.40gb@4"), at("chat/1", "n1/1", mig="3g.40gb@0"))
FOREIGN = {
    "others.n1-1.0": replace(OURS[0], gpus=("n1/1",)),
    "others.n1-2.1": replace(WHOLE, gpus=("n1/2",)),
    "others.n2-1.2": replace(SHARES[0], gpus=("n2/1",), share=use(memory_gib=10, compute=0.5)),
}


def fleetslice(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["fleetslice", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_others_keep_their_places_and_ours_move_around_them(tmp_path: Path, monkeypatch, capsys):
    foreign = tuple(replace(r, id=f"{n}/0", deployment=n) for n, r in FOREIGN.items())
    live = LiveState(
        "toy", Placement(OURS), foreign, dict.fromkeys(FOREIGN, "their/actor"), ("a doubt",)
    )
    monkeypatch.setattr("optimizer.launch.live_state", lambda **asked: live)
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "ours.yaml").write_text(WORKLOADS)
    now = tmp_path / "now"
    assert fleetslice(monkeypatch, "import", asking.RAY, "--out-dir", now) == 6
    said = capsys.readouterr().err
    assert "others.n1-2.1: their/actor holds it" in said
    assert "left out: a doubt" in said

    out = tmp_path / "next.json"
    documents = [tmp_path / "fleet.yaml", tmp_path / "ours.yaml", now / "workloads.yaml"]
    state = ["--state", now / "state.yaml"]
    assert (
        fleetslice(monkeypatch, "rebalance", *documents, *state, "--out", out, "--time-limit", 20)
        == 0
    )
    plan = json.loads(out.read_text())
    places = {r["id"]: (r["gpus"], r.get("mig")) for r in plan["replicas"]}
    assert places["others.n1-1.0/0"] == (["n1/1"], {"profile": "3g.40gb", "start": 4})
    assert places["others.n1-2.1/0"] == (["n1/2"], None)
    assert places["others.n2-1.2/0"] == (["n2/1"], None)
    assert {move["replica"].partition("/")[0] for move in plan["moves"]} <= {"chat"}
    # Nothing but a place beside the stranger's slice is free, and ours makes one GPU cheaper.
    assert places["chat/1"][0] == ["n1/1"]
