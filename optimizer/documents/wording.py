"""Pydantic's errors in words that say what to write instead."""

from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from optimizer.documents.faults import Path, listed, shown, unknown, way_out
from optimizer.documents.scalars import Trap

Complaint = tuple[Path, str, bool]  # path, sentence, whether the field's name is meant


def complaints(model: type[BaseModel], value: Any) -> Iterator[Complaint]:
    """Everything in ``value`` that the schema refuses."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        yield from told(model, error)


def told(model: type[BaseModel], error: ValidationError) -> Iterator[Complaint]:
    """The errors of one validation in our words, each once."""
    seen: set[tuple[Path, str]] = set()
    for item in error.errors(include_url=False):
        path = tuple(part for part in item["loc"] if part != "[key]")
        sentence = _sentence(model, item, path)
        if (path, sentence) not in seen:
            seen.add((path, sentence))
            yield path, sentence, item["type"] == "extra_forbidden"


def _sentence(model: type[BaseModel], item: Any, path: Path) -> str:
    kind, got, ctx = item["type"], item["input"], item.get("ctx") or {}
    if kind == "extra_forbidden":
        return _unknown_field(model, path)
    if kind == "missing":
        field = _field(model, path)
        wanted = getattr(field, "description", None)
        return "is missing" + (f"; give {wanted}" if wanted else "; add it")
    if got is None:
        return _empty(model, path)
    if isinstance(got, Trap):
        return _trap(kind, got, ctx)
    if kind in _WORDS:
        return _WORDS[kind](got, ctx)
    return f"{_lower(item['msg'])}, got {quoted(got)}"


def _empty(model: type[BaseModel], path: Path) -> str:
    """Null where a value is needed."""
    field = _field(model, path)
    if field is not None and field.is_required():
        return f"is empty; give {field.description or 'a value'}"
    return f"is empty; give a value, or leave the {'entry' if _in_list(path) else 'line'} out"


def _in_list(path: Path) -> bool:
    return bool(path) and isinstance(path[-1], int)


def _lower(message: str) -> str:
    """A validator's own message without pydantic's prefix."""
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:]


def _unknown_field(model: type[BaseModel], path: Path) -> str:
    holder = _class_at(model, path[:-1])
    known = _names(holder) if holder is not None else []
    hint = way_out(str(path[-1]), known)
    return "unknown field" + (f"; {hint}" if hint else "")


def _trap(kind: str, trap: Trap, ctx: Any) -> str:
    """What a word that readers disagree on must be replaced by, in a field of this type."""
    if kind.startswith("bool"):
        wanted = trap.boolean or "true or false"
        return f"must be true or false, got {shown(trap.text)}; write {wanted}"
    if kind.startswith(("int", "float", "finite")):
        if trap.number is None:
            return f"must be a number, got {shown(trap.text)}"
        if "number" in trap.number:
            return f"must be {trap.number}, got {shown(trap.text)}"
        also = f" ({_as_octal(trap.text)} if octal is meant)" if trap.reading == "octal" else ""
        return (
            f"some YAML readers take {shown(trap.text)} for {trap.reading}; "
            f"write {trap.number}{also}"
        )
    if kind == "string_type":
        return (
            f"some YAML readers take {shown(trap.text)} for {trap.reading}; "
            f'write "{shown(trap.text)}" in quotes if the text is meant'
        )
    return _WORDS[kind](trap.text, ctx) if kind in _WORDS else f"makes no sense: {shown(trap.text)}"


def _as_octal(text: str) -> str:
    try:
        return str(int(text, 8))
    except ValueError:
        return "its decimal value"


def _bound(words: str, key: str) -> Callable[[Any, Any], str]:
    return lambda got, ctx: f"must be {words} {_number(ctx.get(key))}, got {quoted(got)}"


def _wanted(words: str, hint: str = "") -> Callable[[Any, Any], str]:
    return lambda got, ctx: f"must be {words}, got {quoted(got)}{hint}"


def _whole(got: Any, ctx: Any) -> str:
    hint = ""
    if type(got) is int:
        return f"must be a smaller number, got {quoted(got)}"
    if isinstance(got, float) and got.is_integer():
        hint = f"; write {int(got)}"
    elif isinstance(got, str) and got.strip().lstrip("+-").isdigit():
        hint = "; leave the quotes out"
    return f"must be a whole number, got {quoted(got)}{hint}"


def _real(got: Any, ctx: Any) -> str:
    hint = ""
    if isinstance(got, str):
        try:
            float(got)
            hint = "; leave the quotes out"
        except ValueError:
            hint = ""
    return f"must be a number, got {quoted(got)}{hint}"


def _text(got: Any, ctx: Any) -> str:
    if isinstance(got, bool | int | float):
        return f"must be text, got {quoted(got)}; put it in quotes"
    return f"must be text, got {quoted(got)}"


def _boolean(got: Any, ctx: Any) -> str:
    hint = "; leave the quotes out" if got in ("true", "false") else ""
    return f"must be true or false, got {quoted(got)}{hint}"


def _list(got: Any, ctx: Any) -> str:
    hint = f"; write [{got}]" if isinstance(got, str | int | float) and len(str(got)) < 40 else ""
    if isinstance(got, dict):
        hint = '; start each entry with "- "'
    return f"must be a list, got {quoted(got)}{hint}"


def _choice(got: Any, ctx: Any) -> str:
    words = [str(w) for w in ctx.get("words", ())]
    if len(words) <= 4:
        return f"must be {either(words)}, got {quoted(got)}{_meant(got, words)}"
    return unknown(str(ctx.get("what", "such word")), str(got), words)


def _meant(got: Any, words: list[str]) -> str:
    hint = way_out(str(got), words)
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _literal(got: Any, ctx: Any) -> str:
    words = str(ctx.get("expected", "")).replace("'", "")
    hint = "; leave the quotes out" if got == words else ""
    return f"must be {'true' if words == 'True' else words}, got {quoted(got)}{hint}"


def _pattern(got: Any, ctx: Any) -> str:
    pattern = str(ctx.get("pattern", ""))
    if pattern.endswith("/[0-9]+$"):
        return f'must read NAME/NUMBER, such as "a-01/3", got {quoted(got)}'
    if pattern.startswith(r"^\w"):
        return (
            "must start with a letter or digit and hold only letters, digits and . _ - + : @, "
            f"got {quoted(got)}"
        )
    return f"must not start or end with a space, got {quoted(got)}"


def _too_short(got: Any, ctx: Any) -> str:
    return "is empty; it needs at least one entry"


_WORDS: dict[str, Callable[[Any, Any], str]] = {
    "greater_than": _bound("above", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("below", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "finite_number": _wanted("a finite number"),
    "int_type": _whole,
    "int_from_float": _whole,
    "int_parsing": _whole,
    "int_parsing_size": _whole,
    "float_type": _real,
    "float_parsing": _real,
    "bool_type": _boolean,
    "bool_parsing": _boolean,
    "string_type": _text,
    "string_sub_type": _text,
    "string_too_short": lambda got, ctx: "must not be empty",
    "string_too_long": lambda got, ctx: (
        f"must have at most {ctx.get('max_length')} characters, got {len(got)}"
    ),
    "string_pattern_mismatch": _pattern,
    "list_type": _list,
    "tuple_type": _list,
    "dict_type": _wanted("a mapping (name: value)"),
    "model_type": _wanted("a mapping (field: value)"),
    "model_attributes_type": _wanted("a mapping (field: value)"),
    "too_short": _too_short,
    "too_long": lambda got, ctx: f"must have at most {ctx.get('max_length')} entries",
    "literal_error": _literal,
    "enum": _literal,
    "choice": _choice,
}


def quoted(value: Any) -> str:
    """A value of a document as it may stand in a sentence."""
    if isinstance(value, str):
        return f'"{shown(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return shown(str(getattr(value, "text", value)))


def _number(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return shown(str(value))


def either(words: list[str]) -> str:
    """``a, b or c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) < 8 else listed(words)


def _names(model: type[BaseModel]) -> list[str]:
    return [f.alias or n for n, f in model.model_fields.items()]


def _field(model: type[BaseModel], path: Path) -> Any:
    holder = _class_at(model, path[:-1])
    if holder is None:
        return None
    for name, field in holder.model_fields.items():
        if path[-1] in (name, field.alias):
            return field
    return None


def _class_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model class that describes what stands at ``path``; None where there is none."""
    here: Any = model
    for part in path:
        here = _bare(here)
        if isinstance(here, type) and issubclass(here, BaseModel):
            fields = {f.alias or n: f for n, f in here.model_fields.items()}
            if part not in fields:
                return None
            here = fields[str(part)].annotation
        elif get_origin(here) in (list, dict, tuple):
            here = get_args(here)[-1]
        else:
            return None
    here = _bare(here)
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """The annotation without ``Annotated`` and ``| None``."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, UnionType):
            inner = [a for a in get_args(annotation) if a is not NoneType]
            if len(inner) != 1:
                return annotation
            annotation = inner[0]
        else:
            return annotation
