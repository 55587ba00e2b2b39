"""Files of configuration: which there are, the objects in them, and where each of them stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.configuration.documents import documents
from gateway.yaml_reader import Document

FILES_MAX = 1_000
BYTES_MAX = 12 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
STANDARD_INPUT = "-"

# An object as the Admin API names it, and a field of it.
_AT = re.compile(r"\b(?P<kind>[a-z][a-z-]*)\.(?P<index>\d+)(?:\.(?P<field>[a-z_]+)(?P<rest>[\w.]*))?")
_KIND = re.compile(r"^  (?P<kind>[\w-]+): ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object stands: its document, and where in that."""

    document: Document
    index: int


@dataclass(slots=True)
class Sources:
    """All objects by kind, in the order of the files, the place of each, and the first of each kind."""

    objects: dict[str, list[object]] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    kinds: dict[str, Document] = field(default_factory=dict)

    def take(self, document: Document) -> None:
        """Add a document's objects."""
        value, place = document.value, f"{document.file}, document {document.number}"
        if value is None:
            return
        if not isinstance(value, dict):
            raise CommandFailed(f"{place}: must be kinds with a list of objects each, such as tenants: […].")
        for kind, some in value.items():
            if not isinstance(some, list | None):
                line = document.lines[(kind,)]
                raise CommandFailed(f"{place}, line {line}: {kind} must be a list of objects.")
            objects = some or []
            self.objects.setdefault(kind, []).extend(objects)
            self.places.setdefault(kind, []).extend(Place(document, index) for index in range(len(objects)))
            self.kinds.setdefault(kind, document)

    def located(self, message: str) -> str:
        """A message of the Admin API that says where in the files things stand."""
        return _KIND.sub(self._of_kind, _AT.sub(self._of_object, message))

    def _of_object(self, found: re.Match[str]) -> str:
        kind, index = found["kind"], int(found["index"])
        if kind not in self.places or index >= len(self.places[kind]):
            return found[0]
        place = self.places[kind][index]
        lines, path = place.document.lines, (kind, place.index)
        name = found["field"]
        line = lines.get((*path, name), lines[path]) if name else lines[path]
        said = f", {name}{found['rest']}" if name else ""
        return f"{place.document.file}, document {place.document.number}, line {line}, {kind}{said}"

    def _of_kind(self, found: re.Match[str]) -> str:
        document = self.kinds.get(found["kind"])
        if document is None:
            return found[0]
        line = document.lines[(found["kind"],)]
        return f"  {document.file}, document {document.number}, line {line}, {found['kind']}: "


def read(names: Sequence[str]) -> Sources:
    """Read files and directories; `CommandFailed` names what of them is wrong."""
    sources, count, size = Sources(), 0, 0
    for name in names:
        for file, text in _texts(name):
            count, size = count + 1, size + len(text)
            if count > FILES_MAX or size > BYTES_MAX:
                raise CommandFailed(
                    f"There is too much: at most {FILES_MAX} files of {BYTES_MAX} bytes in all."
                )
            for document in documents(_decoded(file, text), file):
                sources.take(document)
    if not count:
        raise CommandFailed(f"There is no {', '.join(SUFFIXES)} file in {', '.join(names)}.")
    return sources


def body(sources: Sources) -> Json:
    """What is sent of them."""
    return {"objects": sources.objects}


def _texts(name: str) -> Iterator[tuple[str, bytes]]:
    """The files that a name stands for; hidden ones, such as those of git, are none of them."""
    path = Path(name)
    try:
        if name == STANDARD_INPUT:
            yield "standard input", sys.stdin.buffer.read(BYTES_MAX + 1)
        elif path.is_dir():
            for each in sorted(path.rglob("*")):
                shown = each.relative_to(path)
                hidden = any(part.startswith(".") for part in shown.parts)
                if each.suffix in SUFFIXES and not hidden and each.is_file():
                    yield str(each), _start(each)
        else:
            yield name, _start(path)
    except OSError as error:
        raise CommandFailed(f"{name} cannot be read: {error.strerror}.") from error


def _start(path: Path) -> bytes:
    """A file, as far as may be read of all."""
    with path.open("rb") as file:
        return file.read(BYTES_MAX + 1)


def _decoded(file: str, text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file}: is not UTF-8 text (at byte {error.start}).") from error
