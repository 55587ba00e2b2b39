"""Objects that Gemini's upstreams keep: cached contents, files, file search stores, batches.

Objects have names, which are their paths; ids number calls of functions. Names of fields are compared without
case and underscores, as the most lenient reader would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import normalize
from urllib.parse import unquote

from gateway.core.families.controlled import Document, id_in, ids_in
from gateway.core.families.family import Found, Objects, object_in

_NAMES = frozenset({"cachedcontent", "fileuri", "filename"})
_LIST = "filesearchstorenames"
_COLLECTIONS = (
    "cachedContents", "files", "batches", "fileSearchStores", "tunedModels", "corpora", "operations",
)  # fmt: skip
_MARK = re.compile(rb'"(?i:file_?uri|file_?name|cached_?content)":')
_RESOURCE = re.compile(rf"(?:^|/)((?:{'|'.join(_COLLECTIONS)})/[^/?#:]+)")
# What may stand before and behind it in a name that can be read in one way alone.
_BEFORE = re.compile(r"(?:https?://[\w.:-]+/+)?/?(?:[\w-][\w.-]*/)*")
_BEHIND = re.compile(r"(?::download(?:\?alt=media)?)?")
_WEB = re.compile(r"https?://[^\\]*\Z")
_GOOGLE = re.compile(r"googleapis", re.IGNORECASE)  # wherever it stands in a URL, escaped or not


def _told(document: Document) -> Iterator[str]:
    for one in (document, object_in(document, "file")):
        for name in ("name", "uri"):
            value = one.get(name)
            found = _RESOURCE.search(value) if isinstance(value, str) else None
            if found is not None:
                yield found[1]


def _add(name: str, inside: object, holder: Document, place: str, found: Found) -> None:
    folded = name.lower().replace("_", "")
    if folded in _NAMES:
        found.named.append(_normal(id_in(inside, name)))
    elif folded == _LIST:
        found.named += map(_normal, ids_in(inside, name))


def _normal(value: object) -> object:
    """An object's name as it is kept. A file may be named by its URL; other URLs name none."""
    if not isinstance(value, str):
        return value
    found = _RESOURCE.search(value)
    if found is not None:
        before, behind = value[: found.start(1)], value[found.end(1) :]
        return found[1] if _BEFORE.fullmatch(before) and _BEHIND.fullmatch(behind) else value
    if _WEB.match(value) and not _GOOGLE.search(normalize("NFKC", unquote(value))):
        return None
    return value


def _chosen(document: Document) -> str | None:
    """The field by which a body chooses the name of what it makes: it could be another's, once and again."""
    for path, one in (("", document), ("file.", object_in(document, "file"))):
        if one.get("name"):
            return f"{path}name"
    return None


OBJECTS = Objects(
    collections=_COLLECTIONS,
    may_name=lambda body, names: _MARK.search(body) is not None,
    add=_add,
    told=_told,
    is_free=lambda name, holder: name == "response",
    chosen=_chosen,
    by_path=True,
)
