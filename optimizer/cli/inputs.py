"""Documents of a command as the flow's inputs; a plan's own inputs read again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.cli.codes import Code
from optimizer.cli.terminal import Stop, say

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.plan import Plan
    from optimizer.optimize import Inputs


def inputs_of(documents: "Documents", *, with_state: bool) -> "Inputs":
    """What a plan is made from; without ``with_state`` nothing is taken to run now."""
    from optimizer.optimize import Inputs

    assert documents.fleet is not None
    assert documents.workloads is not None
    used = [d for d in documents.inputs if with_state or d.kind not in ("State", "Plan")]
    return Inputs(
        documents.fleet,
        documents.workloads,
        {card.name: card for card in documents.catalogue.engine_cards()},
        documents.state if with_state else None,
        tuple(d for d in used if d.kind != "Scenarios"),
        documents.gpus,
    )


def read_again(plan_file: Path, others: Sequence[Path] | None) -> "tuple[Plan, Inputs]":
    """A plan and what it was made from: its inputs by path, or ``--with`` files in their place.

    Says which input is no longer the one that the plan was made from. Raises DocumentFaults, Stop.
    """
    from optimizer.documents import load, read_plan

    plan = read_plan(plan_file)
    running = [i.path for i in plan.inputs if i.kind == "Plan"]
    paths = list(dict.fromkeys(i.path for i in plan.inputs if i.kind != "Plan"))
    if others:
        documents = load(others)
    else:
        missing = [path for path in (*paths, *running) if not Path(path).is_file()]
        if missing:
            lines = [f"{plan_file}: made from {path}, which is not there" for path in missing]
            hint = "call from the folder where the plan was made, or name the files: --with FILE"
            raise Stop(Code.USAGE, *lines, hint)
        documents = load(paths, state_path=running[0] if running else None)
        for path in changed(plan):
            say(f"note: {path} has changed since the plan was made from it")
    return plan, inputs_of(documents, with_state=documents.state is not None)


def changed(plan: "Plan") -> list[str]:
    """The plan's inputs that are there and are no longer what it was made from."""
    from optimizer.documents import sha256

    found = [(one.path, sha256(one.path), one.sha256) for one in plan.inputs]
    return [path for path, now, then in found if now is not None and now != then]


def ran_before(plan: "Plan") -> Path | None:
    """The file that said what ran when the plan was made; None for a plan from scratch."""
    said = [i.path for i in plan.inputs if i.kind in ("State", "Plan")]
    return Path(said[0]) if said else None


def version() -> str:
    """The version of the package."""
    from importlib.metadata import version as installed

    return installed("fleetslice")


def settings(**given: Any) -> Mapping[str, Any]:
    """What a plan records of how it was asked for, in a stable order."""
    return {name: given[name] for name in sorted(given) if given[name] is not None}


def tell_notes(documents: "Documents") -> None:
    """What was read in a way that may surprise."""
    say(*(f"note: {note}" for note in documents.notes))
