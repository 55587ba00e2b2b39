"""Which names of models mean the same: callers ask for `gpt-4o`, providers bill `gpt-4o-2024-08-06`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

# What a name ends in where it names one version: 2024-08-06, 20250514, 0613.
_DATED: Final = re.compile(
    r"(?<=.)[-@](?:20\d\d-[01]\d-[0-3]\d|20\d\d[01]\d[0-3]\d|[01]\d[0-3]\d)\Z", re.ASCII
)
_NEWEST: Final = "-latest"


def bare(name: str) -> str:
    """The name of all versions of a model; one written for people, as `Claude Haiku 4.5`, is an id's too."""
    return _DATED.sub("", _id(name).removesuffix(_NEWEST))


def is_dated(name: str) -> bool:
    """Whether a name is of one version alone."""
    return _DATED.search(_id(name)) is not None


def _id(name: str) -> str:
    return (re.sub(r"[ .]+", "-", name) if " " in name else name).lower()


def groups(names: Collection[str], answered: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Names, together where they may mean the same model.

    Versions stay apart as long as each is named. Where a name without a version is among them, nobody can
    tell what of it was which: then all of them are one. So are a name and those which `answered` for it.
    """
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(some: Iterable[str]) -> None:
        first, *others = map(root, some)
        for other in others:
            parent[root(other)] = root(first)

    versions: dict[str, list[str]] = {}
    for name in names:
        versions.setdefault(bare(name), []).append(name)
    for some in versions.values():
        if not all(map(is_dated, some)):
            join(some)
    for name in names:
        join([name, *(other for other in answered.get(name, ()) if other in parent)])
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(root(name), set()).add(name)
    return list(found.values())
