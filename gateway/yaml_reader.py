"""YAML files of people, read without guessing.

PyYAML reads it, with the plain values of JSON in the words of YAML 1.2: `no` is a text, and so is a date.
Anchors, aliases, tags and duplicate names are refused, so the result is never larger than the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import yaml
from yaml.composer import Composer

DEPTH_MAX = 32
VALUES_MAX = 1_000_000
# The depth to which line numbers are recorded: a kind, its object, a field.
NOTED_DEPTH = 3

# Numbers have as many digits as numbers need here: longer ones are texts.
_WORDS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"(?=.{1,26}$)[-+]?(?:0|[1-9][0-9]*)$", re.ASCII), list("-+0123456789")),
    "float": (
        re.compile(r"(?=.{1,26}$)[-+]?[0-9]+\.[0-9]+(?:[eE][-+][0-9]+)?$", re.ASCII),
        list("-+0123456789"),
    ),
}
_BASE: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
Path = tuple[str | int, ...]


class UnreadableYaml(Exception):
    """Raised for a fault, with its line and the number of its document; 0 if it is no YAML at all."""

    def __init__(self, text: str, line: int, document: int = 0) -> None:
        super().__init__(text)
        self.said, self.line, self.document = text, line, document


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One document of a file, counted from 1: its value, and the line numbers of its parts."""

    file: str
    number: int
    value: object
    lines: dict[Path, int]


def documents(text: str, file: str, *, decimals_as_texts: bool = False) -> Iterator[YamlDocument]:
    """Yield the documents of a YAML file. Raise `UnreadableYaml` with the line of a fault.

    With `decimals_as_texts`, numbers with a point become texts, digit for digit.
    """
    try:
        # The constructor already reads the beginning of the text, and may raise.
        loader = _Loader(text)
        loader.decimals_as_texts = decimals_as_texts
        while loader.check_node():
            loader.number += 1
            node = loader.get_node()
            yield YamlDocument(file, loader.number, loader.construct_document(node), dict(_lines(node, ())))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # An unexpected end is reported in the last line, not in one after it.
        line = min(mark.line + 1, text.count("\n") + 1) if mark else 1
        problem = getattr(error, "problem", None) or "holds characters that YAML does not have"
        raise UnreadableYaml(problem, line) from error


class _Loader(Composer, _BASE):  # type: ignore[misc]  # whichever there is
    """PyYAML's safe loader with fewer features, and with plain words by YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def __init__(self, text: str) -> None:
        _BASE.__init__(self, text)
        Composer.__init__(self)
        self.number = self._count = self._depth = 0
        self.decimals_as_texts = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, tags, too many values and too deep nesting; else compose as YAML does."""
        event = self.peek_event()
        self._count += index is not None or parent is None  # names do not count
        if self._count > VALUES_MAX:
            raise self._wrong(event, f"more than {VALUES_MAX} values")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._wrong(event, "anchors and aliases (& and *) are not taken: write it out")
        if event.tag is not None:
            raise self._wrong(event, f"tags such as {event.tag} are not taken: write the plain value")
        if self._depth >= DEPTH_MAX and not isinstance(event, yaml.ScalarEvent):
            raise self._wrong(event, f"nested more than {DEPTH_MAX} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in node.value:
            # A name such as 2024 or no is a text too.
            if not isinstance(key, yaml.ScalarNode) or key.value in {"", "<<"}:
                raise self._wrong(key, "a field must have a plain name")
            if key.value in found:
                raise self._wrong(key, f"{key.value} stands here a second time")
            found[key.value] = self.construct_object(value, deep=True)
        return found

    def construct_yaml_float(self, node: Any) -> object:
        if self.decimals_as_texts:
            return node.value
        part = float(node.value)
        return part if isfinite(part) else node.value

    def _wrong(self, at: Any, message: str) -> UnreadableYaml:
        return UnreadableYaml(message, at.start_mark.line + 1, self.number)


for _kind, (_pattern, _firsts) in _WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, _firsts)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _lines(node: Any, path: Path) -> Iterator[tuple[Path, int]]:
    """Yield (path, line number) for each part of a document, up to `NOTED_DEPTH`."""
    if len(path) == NOTED_DEPTH or not isinstance(node, yaml.CollectionNode):
        return
    named = isinstance(node, yaml.MappingNode)
    parts = (
        ((key.value, key, value) for key, value in node.value)
        if named
        else ((at, value, value) for at, value in enumerate(node.value))
    )
    for name, begin, value in parts:
        yield (*path, name), begin.start_mark.line + 1
        yield from _lines(value, (*path, name))
