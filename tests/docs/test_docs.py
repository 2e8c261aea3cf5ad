"""Every command in the docs runs and ends as it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "docs" / "reference"  # written by scripts/docs, from the code
WRITTEN = [p for p in sorted((ROOT / "docs").rglob("*.md")) if REFERENCE not in p.parents]
PAGES = [ROOT / "README.md", *WRITTEN]
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
MENTIONED = re.compile(r"fleetslice((?: --?[a-z][\w-]*)* [a-z][\w-]*\b[^\n#|;`]*)")


def commands(page: Path) -> list[str]:
    """The lines of the page that a reader would type, continuation lines joined."""
    blocks = CONSOLE.findall(page.read_text("utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def test_docs_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_commands_of_the_page_run(page, tmp_path):
    for folder in ("clusters", "workloads"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    captures = ROOT / "tests" / "data" / "captures"
    (tmp_path / "captures").symlink_to(captures)
    (tmp_path / "tests" / "data").mkdir(parents=True)
    (tmp_path / "tests" / "data" / "captures").symlink_to(captures)
    bin_folder = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLEETSLICE_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{bin_folder}:{environment['PATH']}"}
    try:
        for command in commands(page):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=300,
            )
            fine = (0, 10) if command.startswith("fleetslice diff ") else (0,)  # 10: changes found
            assert done.returncode in fine, f"{command}\n{done.stdout}\n{done.stderr}"
    finally:
        stop = [str(bin_folder / "fleetslice"), "stop"]
        subprocess.run(stop, cwd=tmp_path, env=environment, capture_output=True, timeout=120)


def mentioned(page: Path) -> list[list[str]]:
    """The words after ``fleetslice`` wherever a block or `code` of the page names a command."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    blocks = FENCED.findall(text) + re.findall(r"`([^`]+)`", FENCED.sub("", text))
    return [found.split() for block in blocks for found in MENTIONED.findall(block)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_and_flags_that_the_page_names_exist(page):
    import typer

    from optimizer.cli.app import app

    root = typer.main.get_command(app)
    for words in mentioned(page):
        command, flags = root, {o for p in root.params for o in p.opts}
        for word in (w for w in words if not w.startswith("-")):
            if word not in getattr(command, "commands", {}):
                break
            command = command.commands[word]
            flags |= {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        said = f"fleetslice {' '.join(words)}"
        assert command is not root, said
        named = {w.split("=")[0] for w in words if w.startswith("-")} - {"--help", "-h"}
        assert named <= flags, f"{said}: no {sorted(named - flags)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    lost = [t for t in targets if not (page.parent / t).exists()]
    assert [t for t in lost if (page.parent / t).resolve().parent != REFERENCE] == []


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    reference = [sys.executable, "scripts/reference.py", str(ROOT / "docs" / "reference")]
    subprocess.run(reference, cwd=ROOT, check=True, timeout=120)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "commands.html").read_text("utf-8")
    assert "fleetslice rebalance" in page
    formulas = (tmp_path / "reference" / "formulas.html").read_text("utf-8")
    assert "kv_lora_rank" in formulas
