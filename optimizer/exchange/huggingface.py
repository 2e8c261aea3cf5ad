"""Models from Hugging Face: a ``config.json``, a checkpoint folder, or a name on the hub.

``model_card(source)`` gives the document of a model card. Exact weights come from the index of
the safetensors files, or from their headers, where the folder has them.
"""

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.exchange.hf_config import CannotImport, Config, facts_of, text_part
from optimizer.exchange.hf_quantization import quantization_of
from optimizer.exchange.imported import CannotRead, File, Import, Imported, Input

__all__ = ["CannotImport", "import_huggingface", "model_card", "remote_card"]

INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100 << 20  # safetensors' own limit
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "bf16", "half": "fp16"}


def model_card(source: Path) -> dict[str, Any]:
    """The card of a ``config.json`` or of a folder that holds one. Raises CannotImport."""
    file = source / "config.json" if source.is_dir() else source
    if not file.is_file():
        raise CannotImport(f"{source}: no config.json there")
    config = _read_json(file)
    folder = file.parent
    name = folder.resolve().name if file.name == "config.json" else file.stem
    aliases = (str(folder.resolve()),) if file.name == "config.json" else ()
    return card_of(config, _plain(name), stored_bytes(folder), aliases)


def remote_card(name: str) -> dict[str, Any]:
    """The card of a model on the hub; fetches its config and index only. Raises CannotImport."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise CannotImport(
            "names on the hub need the package huggingface-hub: pip install 'fleetslice[hub]'"
        ) from None
    try:
        config = _read_json(Path(hf_hub_download(name, "config.json")))
    except (OSError, ValueError) as error:  # what the hub's client raises for all that goes wrong
        raise CannotImport(f"{name}: cannot fetch its config.json: {error}") from None
    try:
        total = _index_bytes(Path(hf_hub_download(name, INDEX)))
    except (EntryNotFoundError, OSError, ValueError):  # small models have no index
        total = None
    return card_of(config, _plain(name.rsplit("/", 1)[-1]), total, aliases=(name,))


def card_of(
    config: Config, name: str, total_bytes: int | None = None, aliases: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The document of a model card. Raises CannotImport where a config lacks what it needs."""
    facts = facts_of(config)
    card: dict[str, Any] = {"kind": "Model", "version": 1, "name": name, "aliases": list(aliases)}
    card |= {k: v for k, v in facts.items() if v is not None}
    packed = quantization_of(config, facts) or quantization_of(text_part(config), facts)
    said = str(text_part(config).get("torch_dtype") or text_part(config).get("dtype") or "")
    said = said or str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    stored = said.removeprefix("torch.")
    card["checkpoint_precision"] = packed.precision if packed else _DTYPES.get(stored, "bf16")
    if packed is not None:
        card["kept_16bit"] = packed.kept
        card["quantization_group_size"] = packed.group
        card["quantization_symmetric"] = packed.symmetric
        card["checkpoint_kv_precision"] = packed.kv_precision
    if total_bytes is not None and not (stored == "float32" and packed is None):
        card["checkpoint_bytes"] = total_bytes
    vision = vision_params(config)
    if vision:
        card["vision_params_b"] = vision / 1e9
        card["unverified"] = ["vision_params_b"]
    card["sources"] = {"architecture": "config.json"}
    return {k: v for k, v in card.items() if v is not None}


def import_huggingface(given: Input) -> Import:
    """Model cards out of configs; an index beside a config (by folder) gives its exact bytes."""
    configs: list[tuple[File, Config]] = []
    totals: dict[str | None, int | None] = {}
    for file in given.files:
        found = next(iter(given.parse(file)), None)
        if isinstance(found, Mapping) and "weight_map" in found:
            totals[_folder(file)] = _total(found)
        elif isinstance(found, Mapping) and ("model_type" in found or "architectures" in found):
            configs.append((file, found))
    if not configs:
        raise CannotRead("no config.json among the files given: none names a model_type")
    documents, reasons = [], []
    for file, config in configs:
        name = file.folder or (file.stem if file.stem != "config" else given.name)
        try:
            card = card_of(config, _plain(name), totals.get(_folder(file)))
        except CannotImport as error:
            reasons.append(file.at(1, str(error)))
            continue
        unsaid = tuple(f"{fact} is estimated, not said" for fact in card.get("unverified", ()))
        documents.append(Imported(card, unsaid))
    if reasons:
        raise CannotRead(*reasons)
    return Import("huggingface", tuple(documents))


def _folder(file: File) -> str:
    return file.name.replace("\\", "/").rpartition("/")[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CannotImport(f"{file}: {error}") from None
    if not isinstance(found, dict):
        raise CannotImport(f"{file}: is no JSON object")
    return found


def _plain(name: str) -> str:
    """A name that a document may carry."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"


def stored_bytes(folder: Path) -> int | None:
    """Bytes of all weights: what the index says, else what the headers of the files say."""
    index = folder / INDEX
    if index.is_file():
        return _index_bytes(index)
    files = sorted(folder.glob("model*.safetensors"))
    return sum(_header_bytes(file) for file in files) if files else None


def _index_bytes(index: Path) -> int | None:
    return _total(_read_json(index))


def _total(index: Config) -> int | None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, Mapping) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None


def _header_bytes(file: Path) -> int:
    """Bytes of the tensors in one file: its header gives the offsets of each."""
    with file.open("rb") as stream:
        size = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if size > _LONGEST_HEADER:
            raise CannotImport(f"{file}: is no safetensors file")
        try:
            header = json.loads(stream.read(size))
        except ValueError:
            raise CannotImport(f"{file}: is no safetensors file") from None
    ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    return max(ends, default=0)


def vision_params(config: Config) -> int:
    """Parameters of a vision tower and its merger, estimated from their sizes.

    A layer holds 4 d^2 of attention and 2 (or 3, gated) matrices d x f; a merger of m x m patches
    holds (m^2 d)^2 and m^2 d x out.
    """
    tower = config.get("vision_config")
    if not isinstance(tower, Mapping):
        return 0
    width = _one(tower, "hidden_size", "embed_dim", "width")
    layers = _one(tower, "depth", "num_hidden_layers", "layers")
    if not width or not layers:
        return 0
    if tower.get("model_type", "").startswith("qwen2") and tower.get("embed_dim"):
        width = int(tower["embed_dim"])
    ratio = tower.get("mlp_ratio")
    wide = tower.get("intermediate_size") or int(width * (ratio or 4))
    gated = str(tower.get("model_type", "")).startswith(("qwen2_5", "pixtral", "dots"))
    total = layers * (4 * width * width + (3 if gated else 2) * width * wide)
    merge = tower.get("spatial_merge_size") or 1
    out = tower.get("out_hidden_size") or text_part(config).get("hidden_size") or width
    joined = width * merge * merge
    return int(total + joined * joined + joined * out)


def _one(config: Config, *names: str) -> int:
    return next((int(config[n]) for n in names if isinstance(config.get(n), int)), 0)
