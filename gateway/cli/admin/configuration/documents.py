"""YAML of configuration that is applied: read as all YAML is here, and written so that it reads the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from gateway import yaml_reader
from gateway.cli.admin.client import CommandFailed, Json
from gateway.yaml_reader import Document, UnreadableYaml

_DUMPER: Any = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper


def documents(text: str, file: str) -> Iterator[Document]:
    """The documents of a file; `CommandFailed` names the line of what is wrong."""
    try:
        yield from yaml_reader.documents(text, file)
    except UnreadableYaml as error:
        if not error.document:
            raise CommandFailed(f"{file}, line {error.line}: not valid YAML ({error.said}).") from error
        place = f"{file}, document {error.document}, line {error.line}"
        raise CommandFailed(f"{place}: {error.said}.") from error


def written(value: Json) -> str:
    """A document as text, in its own order."""
    made: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return made


class _Dumper(_DUMPER):  # type: ignore[misc]  # whichever there is
    """Writes what is there twice twice."""

    def ignore_aliases(self, _: object) -> bool:
        return True
