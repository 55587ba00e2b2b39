"""What the names in a body end like: each is looked at once, for all who ask.

By them it is known whether an id may stand in a body, how many images and files it names and does not hold,
and whether it asks for a cache.
"""

from __future__ import annotations

from typing import Final

from gateway.core.families.controlled import Document
from gateway.errors import InvalidRequest

NAMES_REMEMBERED_MAX: Final = 4_096
NAME_CHARACTERS_MAX: Final = 64  # of one that is remembered
_ID, _FILE, _CACHE = 1, 2, 4
# An image or a file is named by its address, or by the id it was stored under.
_FILES: Final = ("url", "ri", "file_id")
_CACHES: Final = "cach"  # `cache_control`, `caching`


class Names:
    """`ids` says that a name ends like an id's, in any case: `…_id`, `…_ids` or `id`; `files` counts texts
    that name an image or a file; `caches` says that a name begins with `cach`, in any case.
    """

    __slots__ = ("caches", "files", "ids")

    def __init__(self, ids: bool = False, files: int = 0, caches: bool = False) -> None:
        self.ids, self.files, self.caches = ids, files, caches


NO_NAMES: Final = Names()


def names_in(document: Document) -> Names:
    """What the names in a document end like; `InvalidRequest` where it is nested too deeply to see."""
    names = Names()
    try:
        _look(document, names)
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply.") from error
    return names


def _look(value: Document, names: Names) -> None:
    for name, inside in value.items():
        kind = _known.get(name)
        if kind is None:
            kind = _kind(name)
        if kind:
            names.ids = names.ids or kind & _ID > 0
            names.caches = names.caches or kind & _CACHE > 0
            if kind & _FILE and isinstance(inside, str):
                names.files += 1
        if isinstance(inside, dict):
            _look(inside, names)
        elif isinstance(inside, list):
            _look_at_each(inside, names)


def _look_at_each(values: list[object], names: Names) -> None:
    for each in values:
        if isinstance(each, dict):
            _look(each, names)
        elif isinstance(each, list):
            _look_at_each(each, names)


def _kind(name: str) -> int:
    """What a name ends like; those that came last are remembered, within bounds.

    With NUL in it, it is another name to a parser that ends there.
    """
    if "\0" in name:
        param = name.partition("\0")[0]
        raise InvalidRequest(f"The field {param} has NUL in its name.", param=param)
    folded = name.lower()
    kind = _ID if folded == "id" or folded.endswith(("_id", "_ids")) else 0
    kind |= _FILE if name.endswith(_FILES) else 0
    kind |= _CACHE if folded.startswith(_CACHES) else 0
    if len(name) <= NAME_CHARACTERS_MAX:
        if len(_known) >= NAMES_REMEMBERED_MAX:
            _known.clear()
        _known[name] = kind
    return kind


_known: Final[dict[str, int]] = {}
