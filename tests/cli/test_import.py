"""``fleetslice import`` as a user meets it: files, folders, stdin, live tools, exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.cli.exchanging import ASKS
from optimizer.exchange import EXPORTERS, IMPORTERS

CAPTURES = Path(__file__).parent.parent / "data" / "captures"
H100 = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-48aeb943-9458-4282-da24-e5f49e0db44b)\n"


def fleetslice(*arguments: str, cwd: Path, stdin: str = "", **environment: str):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLEETSLICE_")}
    return subprocess.run(
        [sys.executable, "-m", "optimizer", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        env={**kept, "NO_COLOR": "1", **environment},
        timeout=60,
    )


@pytest.mark.parametrize(("command", "formats"), [("import", IMPORTERS), ("export", EXPORTERS)])
def test_help_names_every_format(tmp_path, command, formats):
    said = " ".join(fleetslice(command, "--help", cwd=tmp_path, COLUMNS="200").stdout.split())
    assert ", ".join(sorted(formats)[:-1]) in re.sub(r"[│|] +", "", said)


def test_a_folder_becomes_documents_that_hold(tmp_path):
    (tmp_path / "n1").mkdir()
    (tmp_path / "n1" / "L.txt").write_text(H100, "utf-8")
    done = fleetslice("import", "nvidia-smi", "n1", "--out-dir", "cluster", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    text = (tmp_path / "cluster" / "fleet.yaml").read_text("utf-8")
    assert "#   n1/0: whether MIG is on" in text
    assert "Fleet does not say: n1/0: whether MIG is on" in done.stderr
    assert fleetslice("validate", "cluster", cwd=tmp_path).returncode == 0


def test_stdin_and_what_is_left_out(tmp_path):
    display = "GPU 1: NVIDIA DGX Display (UUID: GPU-00000000-9458-4282-da24-e5f49e0db44b)\n"
    done = fleetslice(
        "import", "nvidia-smi", "-", "--node", "n1", cwd=tmp_path, stdin=H100 + display
    )
    assert done.returncode == 6
    assert "left out: n1/1 is NVIDIA DGX Display" in done.stderr
    assert "name: n1" in done.stdout


def test_refusals_are_usage_faults(tmp_path):
    done = fleetslice("import", "nvidia-smi", "-", cwd=tmp_path, stdin="No devices were found\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stdin:1: ")
    assert fleetslice("import", "nvidia-sm", "-", cwd=tmp_path).returncode == 2


def test_the_tools_of_this_machine_are_asked(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && printf '%s' '{H100}'\nexit 0\n", "utf-8")
    fake.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = fleetslice("import", "nvidia-smi", "--node", "here", cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    assert "name: here" in done.stdout
    done = fleetslice("import", "kubernetes", cwd=tmp_path, PATH=str(tmp_path))
    assert done.returncode == 1
    assert "kubectl is not on this machine" in done.stderr
    assert set(ASKS) <= set(IMPORTERS)
    assert "name a file" in fleetslice("import", "csv", cwd=tmp_path).stderr
