"""The catalogue: datasheets and cards, found by name or alias and read when asked for.

A card's file is named after it, so a name costs one file. An alias costs a search through the
texts of the folder; only files that contain it are parsed.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from optimizer.catalogue import catalogue_folders
from optimizer.documents import cards, wording
from optimizer.documents.faults import DocumentFaults, Fault
from optimizer.documents.reading import RawDocument, read_bytes
from optimizer.documents.schema import schema_of
from optimizer.domain.engine import Correction, EngineCard
from optimizer.domain.gpu import Gpu
from optimizer.domain.model import ServedModel

T = TypeVar("T")


HUB = "hf:"


def names_checkpoint(spelling: str) -> bool:
    """Whether a model is named as a file, a folder or ``hf:NAME`` and not by the catalogue."""
    return spelling.startswith((HUB, "./", "../", "/", "~")) or spelling.endswith(".json")


class Shelf(Generic[T]):
    """The cards of one kind: given documents first, then folders in order, then what ships."""

    def __init__(
        self,
        kind: str,
        build: Callable[[dict[str, Any]], T],
        spellings: Callable[[T], Iterable[str]],
        folders: Sequence[Path],
    ) -> None:
        self.kind = kind
        self._build = build
        self._spellings = spellings
        self._folders = folders
        self._given: dict[str, RawDocument] = {}
        self._loaded: dict[str, T] = {}
        self._files: dict[str, Path] | None = None
        self._texts: dict[str, str] = {}
        self._aliases: dict[str, str | None] = {}
        self.faults: list[Fault] = []

    def give(self, document: RawDocument) -> None:
        """Puts a card of the user's own before all others."""
        name = document.value.get("name")
        if not isinstance(name, str):
            self.faults += _schema_faults(document)
            return
        if name in self._given:
            first = self._given[name]
            where = f"{first.file}:{first.line(('name',))}"
            self.faults.append(document.fault(("name",), f'"{name}" is described at {where} too'))
            return
        self._given[name] = document

    def names(self) -> tuple[str, ...]:
        """The names of all cards, sorted."""
        return tuple(sorted({*self._given, *self._by_file()}))

    def all(self) -> tuple[T, ...]:
        """Every card, by name. Raises DocumentFaults on a faulty one."""
        found = [self.get(name) for name in self.names()]
        if self.faults:
            raise DocumentFaults(self.faults)
        return tuple(card for card in found if card is not None)

    def get(self, name: str) -> T | None:
        """The card of that very name. A faulty card is None, and its faults are noted."""
        if name in self._loaded:
            return self._loaded[name]
        document = self._given.get(name) or self._read(name)
        if document is None:
            return None
        faults = _schema_faults(document)
        if not faults:
            try:
                self._loaded[name] = self._build(document.value)
            except ValueError as error:  # what a schema cannot say: sums that do not add up
                faults = [document.fault((), _reason(error))]
        self.faults += [f for f in faults if f not in self.faults]
        return self._loaded.get(name)

    def find(self, spelling: str) -> T | None:
        """The card with that name or alias, ignoring case."""
        wanted = spelling.lower()
        if wanted not in self._aliases:
            self._aliases[wanted] = self._search(wanted)
        name = self._aliases[wanted]
        return None if name is None else self.get(name)

    def spellings(self) -> tuple[str, ...]:
        """Every name and alias; reads the whole shelf."""
        found: list[str] = []
        for name in self.names():
            card = self.get(name)
            if card is not None:
                found += [name, *self._spellings(card)]
        return tuple(found)

    def _search(self, wanted: str) -> str | None:
        names = self.names()
        for name in names:
            if name.lower() == wanted:
                return name
        for name in names:
            if _flat(wanted) in self._text(name):
                card = self.get(name)
                if card and wanted in (s.lower() for s in self._spellings(card)):
                    return name
        return None

    def _by_file(self) -> dict[str, Path]:
        if self._files is None:
            self._files = {}
            for folder in reversed(self._folders):
                for file in sorted(folder.glob("*.y*ml")):
                    if not file.name.startswith("."):
                        self._files[file.stem] = file
        return self._files

    def _text(self, name: str) -> str:
        if name not in self._texts:
            given = self._given.get(name)
            file = self._by_file().get(name)
            text = given.text if given else file.read_text("utf-8", "replace") if file else ""
            self._texts[name] = _flat(text)
        return self._texts[name]

    def _read(self, name: str) -> RawDocument | None:
        file = self._by_file().get(name)
        if file is None:
            return None
        shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
        documents, faults = read_bytes(shown, file.read_bytes())
        self.faults += [f for f in faults if f not in self.faults]
        for document in documents:
            if document.value.get("name") == name:
                document.kind = self.kind
                return document
        if not faults:
            message = f'a file named {file.name} must hold "name: {name}"'
            self.faults.append(Fault(shown, 1, 1, "name", message))
        return None


def _schema_faults(document: RawDocument) -> list[Fault]:
    found = wording.complaints(schema_of(document.kind), document.value)
    return [document.fault(path, message, key=key) for path, message, key in found]


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors(include_url=False))
    return str(error)


class Catalogue:
    """GPU products, models and engines as domain values. ``beside``: folders of user documents."""

    def __init__(self, beside: Iterable[Path] = ()) -> None:
        shipped = catalogue_folders()
        near = list(dict.fromkeys(beside))
        self._near = near
        self._checkpoints: dict[str, tuple[ServedModel, str | None] | None] = {}
        self._checkpoint_faults: dict[str, str] = {}
        self._corrections: tuple[Correction, ...] = ()

        def folders(name: str) -> list[Path]:
            own = [folder / name for folder in near if (folder / name).is_dir()]
            return [*own, shipped[name]]

        self.gpus: Shelf[Gpu] = Shelf("Gpu", cards.gpu, cards.gpu_spellings, folders("gpus"))
        self.models: Shelf[ServedModel] = Shelf(
            "Model", cards.model, cards.model_spellings, folders("models")
        )
        self.engines: Shelf[EngineCard] = Shelf(
            "Engine", cards.engine, lambda card: card.aliases, folders("engines")
        )

    @property
    def shelves(self) -> tuple[Shelf[Any], ...]:
        """All of them."""
        return (self.gpus, self.models, self.engines)

    @property
    def faults(self) -> Iterator[Fault]:
        """The faults of every card read so far."""
        for shelf in self.shelves:
            yield from shelf.faults

    def gpu(self, spelling: str) -> Gpu | None:
        """A product by its key, or by its exact nvidia-smi or Kubernetes label name."""
        found = self.gpus.get(spelling) if spelling in self.gpus.names() else None
        if found is not None:
            return found
        found = self.gpus.find(spelling)
        exact = found is not None and spelling in cards.gpu_spellings(found)
        return found if exact else None

    def model(self, spelling: str) -> tuple[ServedModel, str | None] | None:
        """A model by name or alias, ignoring case; and the precision of a quantised repack.

        A path to a ``config.json`` or its folder, or ``hf:NAME``, is read from there.
        """
        if names_checkpoint(spelling):
            return self._checkpoint(spelling)
        found = self.models.find(spelling)
        if found is None:
            return None
        repacks = {name.lower(): precision for name, precision in found.repacks}
        keeps = {name.lower(): classes for name, classes in found.repack_keeps}
        longer = {name.lower(): length for name, length in found.positions}
        if spelling.lower() in keeps:
            found = replace(found, kept_16bit=keeps[spelling.lower()])
        if spelling.lower() in (name.lower() for name in found.symmetric_repacks):
            found = replace(found, quant_symmetric=True)
        if spelling.lower() in longer:
            found = replace(found, max_position_embeddings=longer[spelling.lower()])
        return found, repacks.get(spelling.lower())

    def checkpoint_fault(self, spelling: str) -> str | None:
        """Why a file, folder or hub name is no model that can be sized, or None."""
        if names_checkpoint(spelling):
            self._checkpoint(spelling)
        return self._checkpoint_faults.get(spelling)

    def _checkpoint(self, spelling: str) -> tuple[ServedModel, str | None] | None:
        if spelling not in self._checkpoints:
            self._checkpoints[spelling] = None
            try:
                self._checkpoints[spelling] = _built(self._card(spelling))
            except ValueError as error:  # a config that lacks facts, or facts that contradict
                self._checkpoint_faults[spelling] = _reason(error)
        return self._checkpoints[spelling]

    def _card(self, spelling: str) -> dict[str, Any]:
        from optimizer.exchange import huggingface  # here: few documents name a checkpoint

        if spelling.startswith(HUB):
            return huggingface.remote_card(spelling.removeprefix(HUB))
        path = Path(spelling).expanduser()
        near = [folder / path for folder in self._near if (folder / path).exists()]
        return huggingface.model_card(near[0] if near else path)

    def engine_cards(self) -> tuple[EngineCard, ...]:
        """Every engine, by name, corrected by what was measured."""
        return tuple(
            replace(card, corrections=own)
            if (own := tuple(c for c in self._corrections if c.engine == card.name))
            else card
            for card in self.engines.all()
        )

    def calibrate(self, corrections: tuple[Correction, ...]) -> None:
        """Have every engine card carry what was measured; later documents come first."""
        self._corrections = corrections + self._corrections


def _built(raw: dict[str, Any]) -> tuple[ServedModel, str | None]:
    """The network of an imported card, and the precision it is packed to."""
    found = list(wording.complaints(schema_of("Model"), raw))
    if found:
        raise ValueError("; ".join(f"{'.'.join(map(str, path))}: {why}" for path, why, _ in found))
    model = cards.model(raw)
    packed = model.checkpoint_precision not in ("bf16", "fp16", "fp32")
    return model, model.checkpoint_precision if packed else None


def catalogue(beside: Iterable[str | os.PathLike[str]] = ()) -> Catalogue:
    """What ships with the package, after the folders ``gpus``, ``models``, ``engines`` beside."""
    return Catalogue(Path(p) for p in beside)


def _flat(text: str) -> str:
    """Text to search in: labels write ``-`` for a space."""
    return text.lower().replace("-", " ")
