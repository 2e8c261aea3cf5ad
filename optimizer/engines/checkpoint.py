"""Which published weights a replica loads."""

from dataclasses import dataclass

from optimizer.domain.model import ServedModel
from optimizer.engines.command import CannotRun


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face id or a folder, and the precision its weights are stored in."""

    id: str
    precision: str


def checkpoint(model: ServedModel, precision: str | None) -> Checkpoint:
    """The repack stored in that precision, else the model's own checkpoint.

    Raises CannotRun when the model has no published id.
    """
    for repack, stored in model.repacks:
        if stored == precision:
            return Checkpoint(repack, stored)
    for name in (*model.aliases, model.name):
        if "/" in name:
            return Checkpoint(name, model.checkpoint_precision)
    raise CannotRun(f"model {model.name} has no Hugging Face id; its weights cannot be found")
