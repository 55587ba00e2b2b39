"""YAML as people write it here, read without guessing.

Plain values as JSON has them, in the words of YAML 1.2: no is a text, and so is a date. Anchors, aliases,
tags and names that stand twice are refused, so what is read is never larger than what was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import yaml

DEPTH_MAX = 32
VALUES_MAX = 1_000_000
# So deep in a document lines are noted: a kind, its object, a field.
NOTED_DEPTH = 3
# More digits than any number here has.
DIGITS_MAX = 26

_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_PART = re.compile(r"[-+]?[0-9]+\.[0-9]+([eE][-+][0-9]+)?", re.ASCII)
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
Path = tuple[str | int, ...]


class UnreadableYaml(Exception):
    """What is wrong, in which line, and in which document; 0 is none where it is no YAML at all."""

    def __init__(self, said: str, line: int, document: int = 0) -> None:
        super().__init__(said)
        self.said, self.line, self.document = said, line, document


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file, counted from 1: its value, and in which lines its parts stand."""

    file: str
    number: int
    value: object
    lines: dict[Path, int]


def documents(text: str, file: str) -> Iterator[Document]:
    """The documents of a file; `UnreadableYaml` names the line of what is wrong."""
    reading = _Reading()
    try:
        # The first piece of a text is looked at when the parser is made.
        events = reading.events = yaml.parse(text, _LOADER)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                reading.begin()
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent | yaml.DocumentEndEvent):
                value = reading.value(event, ())
                yield Document(file, reading.number, value, reading.lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        # What ends too soon is told of the last line, not of one behind it.
        line = min(mark.line + 1, text.count("\n") + 1) if mark else 1
        problem = getattr(error, "problem", None) or "holds characters that YAML does not have"
        raise UnreadableYaml(problem, line) from error


class _Reading:
    """Values made of a parser's events."""

    def __init__(self) -> None:
        self.events: Iterator[Any] = iter(())
        self._count = 0
        self.number = 0
        self.lines: dict[Path, int] = {}

    def begin(self) -> None:
        """Begin with another document."""
        self.number += 1
        self.lines = {}

    def value(self, event: Any, path: Path) -> object:
        """The value that begins with an event."""
        self._count += 1
        if self._count > VALUES_MAX:
            raise self._wrong(event, f"more than {VALUES_MAX} values")
        self._refuse_decorated(event)
        if isinstance(event, yaml.ScalarEvent):
            return _plain(event.value) if not event.style else event.value
        if len(path) >= DEPTH_MAX:
            raise self._wrong(event, f"nested more than {DEPTH_MAX} deep")
        made: Callable[[Path], object] = self._list
        if isinstance(event, yaml.MappingStartEvent):
            made = self._mapping
        return made(path)

    def _list(self, path: Path) -> list[object]:
        found: list[object] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            here = (*path, len(found))
            self._note(here, event)
            found.append(self.value(event, here))
        return found

    def _mapping(self, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent) or event.value in {"", "<<"}:
                raise self._wrong(event, "a field must have a plain name")
            self._refuse_decorated(event)
            # A name such as 2024 or no is a text all the same.
            name = event.value
            if name in found:
                raise self._wrong(event, f"{name} stands here a second time")
            here = (*path, name)
            self._note(here, event)
            found[name] = self.value(next(self.events), here)
        return found

    def _refuse_decorated(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._wrong(event, "anchors and aliases (& and *) are not taken: write it out")
        if event.tag is not None:
            raise self._wrong(event, f"tags such as {event.tag} are not taken: write the plain value")

    def _note(self, path: Path, event: Any) -> None:
        if len(path) <= NOTED_DEPTH:
            self.lines[path] = event.start_mark.line + 1

    def _wrong(self, event: Any, message: str) -> UnreadableYaml:
        return UnreadableYaml(message, event.start_mark.line + 1, self.number)


def _plain(text: str) -> object:
    """What is written without quotes: nothing, a truth, a number, else a text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= DIGITS_MAX:
        if _WHOLE.fullmatch(text):
            return int(text)
        if _PART.fullmatch(text) and isfinite(part := float(text)):
            return part
    return text
