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
    """The repack stored in that precision, else the model's own checkpoint, that of its name first.

    Raises CannotRun when the model has no published id.
    """
    for repack, stored in model.repacks:
        if stored == precision:
            return Checkpoint(repack, stored)
    ids = [name for name in (*model.aliases, model.name) if "/" in name]
    if ids:
        return Checkpoint(min(ids, key=lambda i: _foreign(model, i)), model.checkpoint_precision)
    raise CannotRun(f"model {model.name} has no Hugging Face id; its weights cannot be found")


def _foreign(model: ServedModel, published: str) -> bool:
    """Whether an id names another model of the same shape, as a distilled twin does."""
    repository = published.rpartition("/")[2]
    return not _plain(repository).startswith(_plain(model.name))


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
