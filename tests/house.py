"""Rules that each file keeps by itself: a file that has not changed is not read a second time.

What a rule says of a file is kept in `build/rules` by the contents of the file and of the module of the rule.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Final

from tests.tree import ROOT, texts, without_collector

KEPT: Final = ROOT / "build" / "rules"


class SourceFile:
    """A file as rules read it: its name from the root of the tree, its text, and the nodes of its syntax tree."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    @cached_property
    def tree(self) -> ast.Module:
        with without_collector():
            return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def hash(self) -> str:
        return _hash(self.text)


Rule = Callable[[SourceFile], Iterator[str]]


def by_file(*suffixes: str, below: tuple[str, ...] = ("",)) -> Callable[[Rule], Callable[[], list[str]]]:
    """Return a decorator for a rule; what it makes returns all that the rule yields, of each file in turn.

    The rule reads files whose names end in one of `suffixes` and begin with one of `below`.
    """
    return lambda rule: partial(_of_all, rule, suffixes, below)


def _of_all(rule: Rule, suffixes: tuple[str, ...], below: tuple[str, ...]) -> list[str]:
    module = Path(inspect.getfile(rule))
    of = _hash(f"{sys.version} {suffixes} {below} {module.read_text()} {Path(__file__).read_text()}")
    files = [
        file for name, file in source_files().items() if name.endswith(suffixes) and name.startswith(below)
    ]
    return of_files(rule, of, files, KEPT / f"{module.stem}.{rule.__name__}.json")


def of_files(rule: Rule, of: str, files: Iterable[SourceFile], store: Path) -> list[str]:
    """Return all that `rule` yields of `files`; what it said of a file is in `store` for the same version `of`."""
    kept: dict[str, list[str]] = {}
    with suppress(OSError, ValueError):
        document = json.loads(store.read_text())
        kept = document["files"] if document["of"] == of else {}
    today = {f"{file.name} {file.hash}": file for file in files}
    result = {key: kept[key] if key in kept else list(rule(file)) for key, file in today.items()}
    if result != kept:
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({"of": of, "files": result}))
    return [line for lines in result.values() for line in lines]


@cache
def source_files() -> dict[str, SourceFile]:
    """Return each text file of the tree by its name."""
    return {name: SourceFile(name, text) for name, text in texts().items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
