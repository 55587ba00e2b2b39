"""YAML documents that people write: reading them, variables in them, and errors that name the place of a fault.

Values are not shown, since a header of an upstream may be a credential; only a word that is no valid choice is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from gateway.errors import SettingError
from gateway.files import read_regular
from gateway.settings.controls import refuse_controls, texts_of

T = TypeVar("T")
_FAULT = re.compile(r"(?P<said>.*?)(?: - at (?P<key>`key` in )?`\$(?P<place>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<otherwise>[^}]*))?\})")
_NOUNS = {
    "object": "a mapping", "array": "a list", "str": "text", "int": "a whole number", "bool": "true or false",
    "null": "nothing", "float": "a number",
}  # fmt: skip


def read_file(path: Path, bytes_max: int) -> bytes:
    """Return the content of a user's file. Raise `SettingError` if it is unreadable, or too long."""
    try:
        text = read_regular(path, bytes_max)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > bytes_max:
        raise SettingError(f"{path}: larger than {bytes_max} bytes")
    return text


def convert_document(document: Any, environ: Mapping[str, str], shape: type[T], place: str) -> T:
    """Return a document converted to its type, with each `${NAME}` replaced.

    Raise `SettingError` with the path of the wrong field.
    """
    document = substitute_variables(document, environ, place)
    if isinstance(document, dict):  # each of `settings` is checked by its type
        for where, text in texts_of({**document, "settings": None}, place):
            refuse_controls(where, text)
    try:
        return msgspec.convert(document, shape)
    except msgspec.ValidationError as error:
        raise SettingError(f"{place}: {explain_error(str(error), document, shape)}") from error


def parse_yaml(text: bytes, place: str) -> Any:
    """Return the parsed YAML. Raise SettingError with the name `place` and the line if it is not valid."""
    from gateway.yaml_reader import UnreadableYaml, documents  # noqa: PLC0415  # no worker reads files

    try:
        found = [*islice(documents(text.decode("utf-8-sig"), place), 2)]
    except UnreadableYaml as error:
        raise SettingError(f"{place} line {error.line}: not valid YAML ({error.said})") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{place}: not valid YAML (not text)") from error
    if len(found) > 1:
        raise SettingError(f"{place}: not valid YAML (more than one document)")
    return found[0].value if found else None


def substitute_variables(value: Any, environ: Mapping[str, str], place: str) -> Any:
    """Return the document with `${NAME}` replaced in every string; SettingError for an unset variable."""
    if isinstance(value, dict):
        return {key: substitute_variables(item, environ, f"{place}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [substitute_variables(item, environ, f"{place}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        found = environ.get(name) or match["otherwise"]
        if found is None:
            raise SettingError(f"{place}: the environment variable {name} is not set")
        return found

    return _VARIABLE.sub(replacement, value)


# `$NAME` or `$(NAME)` as a word of its own, which shells and Kubernetes replace.
_NAME_ALONE = re.compile(r"(?<![^\s:/@=])\$\(?[A-Z][A-Z0-9_]+(?![\w$])")


def unreplaced(document: Any, place: str) -> Iterator[str]:
    """Yield a line for each text of a document with a `$NAME` that `substitute_variables` takes as it stands."""
    for where, text in texts_of(document, place):
        if _NAME_ALONE.search(_VARIABLE.sub("", text)):
            message = "has a $ before a name, which is taken as it stands"
            yield f"{where} {message}: write ${{NAME}} for a variable, and $$ for a dollar sign"


def explain_error(fault: str, document: Any, shape: Any) -> str:
    """Return msgspec's error about a document in words: the path of the wrong field, and valid values."""
    match = _FAULT.fullmatch(fault)
    said, place = (match["said"], match["place"] or "") if match else (fault, "")
    field = re.search(r"unknown field `(.*)`|missing required field `(.*)`", said)
    where, kind = _resolve_place(place, document, shape, field[1] if field else None)
    if field and field[1]:
        return f"{_joined(where, field[1])} is not known; {_near(field[1], _fields(kind))}"
    if field:
        return f"{_joined(where, field[2])} is missing"
    if match and match["key"]:
        return f"{where}: a name of letters, digits, dots, - and _ is expected, at most 64"
    choices = _choices(kind)
    if choices and (word := re.search(r"value '(.*)'", said)):
        return f"{where}: '{word[1]}' is not one of {', '.join(choices)}"
    said = re.sub(r"`([a-z |]+)`", lambda kinds: _nouns(kinds[1]), said)
    return f"{where or 'the whole file'}: {said[:1].lower()}{said[1:]}"


def _resolve_place(place: str, document: Any, shape: Any, unknown_field: str | None) -> tuple[str, Any]:
    """Convert msgspec's path `place` to the names in the file; return it and the type expected there.

    msgspec does not name the item of a mapping, so several places may be meant: those whose items have the
    field `unknown_field`, if any has. The first three are returned, joined by "or".
    """
    candidates: list[tuple[str, Any]] = [("", document)]
    for step in _STEP.finditer(place):
        shape = _plain(shape)
        if step["name"]:
            shape = get_type_hints(shape, include_extras=True)[step["name"]]
            name = step["name"]
            candidates = [(_joined(path, name), _item(part, name)) for path, part in candidates]
        elif step["index"]:
            shape, index = get_args(shape)[0], int(step["index"])
            candidates = [(f"{path}[{index}]", _item(part, index)) for path, part in candidates]
        else:  # `[...]` is msgspec's text for an item of a mapping: each item is a candidate
            shape = get_args(shape)[1]
            candidates = [
                (_joined(path, str(key)), item) for path, part in candidates for key, item in _items(part)
            ]
    if unknown_field is not None:
        having = [
            (path, part) for path, part in candidates if isinstance(part, dict) and unknown_field in part
        ]
        candidates = having or candidates
    return " or ".join(path for path, _ in candidates[:3]), _plain(shape)


def _plain(shape: Any) -> Any:
    """Return a type without annotations, and without None."""
    if get_origin(shape) is Annotated:
        shape = get_args(shape)[0]
    if get_origin(shape) in (Union, UnionType):
        shape = next(arg for arg in get_args(shape) if arg is not NoneType)
    return shape


def _item(part: Any, step: str | int) -> Any:
    try:
        return part[step]
    except (KeyError, IndexError, TypeError):
        return None


def _items(part: Any) -> Iterator[tuple[Any, Any]]:
    yield from part.items() if isinstance(part, dict) else ()


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _fields(kind: Any) -> tuple[str, ...]:
    there = isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    return tuple(kind.__struct_fields__) if there else ()


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(each.value for each in kind) if isinstance(kind, type) and issubclass(kind, Enum) else ()


def _nouns(kinds: str) -> str:
    return " or ".join(_NOUNS.get(kind, kind) for kind in kinds.split(" | "))


def _near(name: str, known: tuple[str, ...]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # where something is misspelt

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
