"""Who may import whom: the rooms of ``optimizer`` and the libraries each may use."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# These join rooms; only they may import whatever room they like.
JOINERS = {"__main__", "cli", "night", "optimize", "scenarios"}
# Every other room imports itself, ``domain`` and what stands here.
MAY_ALSO_IMPORT = {
    "documents": {"catalogue", "exchange"},  # a model may be named by its checkpoint
    "exchange": {"engines"},
    "launch": {"engines"},
    "planning": {"verify"},
    "simulation": {"sizing"},
}
# A room, or a module in one, that may use the library.
LIBRARY_LIVES_IN = {
    "click": {"cli"},
    "huggingface_hub": {"exchange.huggingface"},
    "jinja2": {"report"},
    "kubernetes": {"exchange.kube_live"},
    "numba": {"solver"},
    "ortools": {"solver"},
    "prometheus_client": {"night.metrics"},
    "pydantic": {"documents"},
    "pynvml": {"exchange.nvml", "launch.nvml"},
    "ray": {"exchange.live", "launch", "scenarios"},
    "rich": {"cli", "report"},
    "typer": {"cli"},
    "yaml": {"documents"},
}
PACKAGE_ITSELF = "__init__"


def imports(source: str, package: str) -> Iterator[tuple[int, str, bool]]:
    """Each import in ``source``: line, full dotted name, and whether it runs with the module.

    ``package`` is what relative imports start from. ``from a import b`` counts as ``a.b``.
    """
    tree = ast.parse(source)
    inside_functions = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        at_once = id(node) not in inside_functions
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=module, level=level):
                parts = package.split(".")
                start = parts[: len(parts) - level + 1] if level else []
                base = ".".join([*start, *([module] if module else [])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names = [name if not name.startswith(".") else package + name]
            case _:
                continue
        for name in names:
            yield node.lineno, name, at_once


def faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What ``source`` imports and, as the module ``optimizer.<module>``, may not."""
    room = module.partition(".")[0]
    inside = "" if module == PACKAGE_ITSELF else f".{module}"
    package = f"optimizer{inside}" if is_package else f"optimizer{inside}".rpartition(".")[0]
    found = []
    for line, name, at_once in imports(source, package):
        top, _, rest = name.partition(".")
        if top == "optimizer":
            if why := _room_fault(room, rest.partition(".")[0], at_once):
                found.append(f"{module}:{line}: {why}")
        elif top in LIBRARY_LIVES_IN:
            homes = LIBRARY_LIVES_IN[top]
            if not any(f"{module}.".startswith(f"{home}.") for home in homes):
                found.append(f"{module}:{line}: {top} lives in {' and '.join(sorted(homes))}")
    return found


def _room_fault(room: str, other: str, at_once: bool) -> str | None:
    """Why ``room`` may not import ``other``; ``None`` when it may."""
    if other in ("", "*"):
        return "imports the whole package; import from the room that is meant"
    if other == room or other == "__version__":
        return None
    if room == PACKAGE_ITSELF:
        return f"imports {other} at once; import optimizer must stay instant" if at_once else None
    if other == "cli" and room != "__main__":
        return "nothing but __main__ imports cli"
    if room in JOINERS or other in MAY_ALSO_IMPORT.get(room, set()):
        return None
    if other == "domain" and room != "catalogue":
        return None
    return f"{room} may not import {other}"


def modules() -> list[tuple[str, Path]]:
    """Every module of the package: its dotted name after ``optimizer.``, and its file."""
    package = ROOT / "optimizer"
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1] or (PACKAGE_ITSELF,)
        found.append((".".join(parts), file))
    return found


def test_there_are_modules_to_check():
    rooms = {name.partition(".")[0] for name, _ in modules()}
    assert {"domain", "documents", "solver", "scenarios", PACKAGE_ITSELF} <= rooms


@pytest.mark.parametrize(("module", "file"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_module_imports_what_it_may(module, file):
    source = file.read_text(encoding="utf-8")
    assert faults(source, module, is_package=file.name == "__init__.py") == []


ALLOWED = [
    ("sizing.memory", "from optimizer.domain.units import ceil_div"),
    ("sizing.memory", "from ..domain import units"),
    ("sizing.memory", "from . import performance\nfrom .performance import ttft_ms"),
    ("sizing.memory", "import math, numpy"),
    ("planning.moves", "from optimizer.verify import verify"),
    ("planning.moves", "from ..verify import verify"),
    ("simulation.replay", "from optimizer.sizing import performance"),
    ("launch.apply", "import ray\nfrom optimizer.engines import vllm"),
    ("exchange.kubernetes", "from optimizer.engines.vllm import command"),
    ("exchange.live", "import ray"),
    ("documents.load", "import yaml\nfrom pydantic import BaseModel"),
    ("documents.load", "from optimizer.catalogue import catalogue_folders"),
    ("solver.master", "from ortools.sat.python import cp_model"),
    ("scenarios.evaluate", "def f():\n    import ray\n    from optimizer.solver import master"),
    ("optimize", "from optimizer import documents, sizing, solver, verify"),
    ("cli", "import rich.table\nimport typer\nfrom optimizer.optimize import optimize"),
    ("cli.plan", "import typer\nfrom optimizer.report import text"),
    ("__main__", "from optimizer.cli import main"),
    ("report.text", "from rich.table import Table"),
    ("launch.apply", "from optimizer import __version__"),
    ("__init__", "def __getattr__(name):\n    from optimizer import solver\n    from . import cli"),
]
REFUSED = [
    ("sizing.memory", "from optimizer.solver import master"),
    ("sizing.memory", "import optimizer.solver.master as master"),
    ("sizing.memory", "from optimizer import solver"),
    ("sizing.memory", "from .. import solver"),
    ("sizing.memory", "from ..solver.master import solve"),
    ("sizing.memory", "import optimizer"),
    ("sizing.memory", "from optimizer import *"),
    ("sizing.memory", "def f():\n    from optimizer.report import text"),
    ("sizing.memory", "if TYPE_CHECKING:\n    from optimizer.report import text"),
    ("sizing.memory", "import importlib\nm = importlib.import_module('optimizer.solver')"),
    ("sizing.memory", "from optimizer.optimize import optimize"),
    ("sizing.memory", "from optimizer.catalogue import catalogue_folders"),
    ("domain.fleet", "from optimizer.documents import load"),
    ("catalogue", "from optimizer.domain import gpu"),
    ("verify", "from optimizer.solver import where"),
    ("verify", "from .solver import where"),
    ("solver.where", "from optimizer.verify import verify"),
    ("planning.order", "from optimizer.solver import where"),
    ("report.text", "from optimizer.engines import vllm"),
    ("optimize", "from optimizer.cli import main"),
    ("sizing.memory", "import yaml"),
    ("verify", "from pydantic import BaseModel"),
    ("verify", "from ortools.sat.python import cp_model"),
    ("optimize", "def f():\n    import ray"),
    ("exchange.liveness", "import ray"),
    ("exchange.slurm", "import yaml"),
    ("report.text", "import typer"),
    ("planning.order", "import rich.progress"),
    ("__init__", "from optimizer.solver import master"),
    ("__init__", "from . import solver"),
]


@pytest.mark.parametrize(("module", "source"), ALLOWED)
def test_checker_allows(module, source):
    assert faults(source, module, is_package=module == PACKAGE_ITSELF) == []


@pytest.mark.parametrize(("module", "source"), REFUSED)
def test_checker_refuses(module, source):
    assert len(faults(source, module, is_package=module == PACKAGE_ITSELF)) == 1


def test_relative_imports_in_a_package_start_at_the_package():
    assert faults("from .memory import room_mib", "sizing", is_package=True) == []
    assert faults("from ..solver import master", "sizing", is_package=True) == [
        "sizing:1: sizing may not import solver"
    ]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``statement``."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"ray", "ortools", "numpy", "pydantic", "yaml", "typer", "rich", "importlib_metadata"}
    assert not heavy & loaded_by("import optimizer")


def test_importing_the_command_line_loads_no_solver_and_no_ray():
    if not any(name in ("cli", "cli.__init__") for name, _ in modules()):
        pytest.skip("there is no command line yet")
    assert not {"ray", "ortools", "numpy"} & loaded_by("import optimizer.cli")
