"""What the names in a body end like: each is looked at once, for all who ask.

By them it is known whether an id may stand in a body, how many images and files it names and does not hold,
and whether it asks for a cache.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

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


# Characters that nobody sees, or that turn the text around them: refused in names, shown escaped elsewhere.
#
# A name with one reads as another name. What callers once called their users may hold any: it is kept as it
# is, and escaped where people read it. Sources: Unicode's Default_Ignorable_Code_Point and Bidi_Control;
# controls but tab and line breaks.


HIDDEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    f"{chr(0xD800)}-{chr(0xDFFF)}"  # half characters: mypyc takes none in a literal
)

_HIDDEN = re.compile(rf"[{HIDDEN}]|\r(?!\n)")


def hidden_in(text: str) -> str:
    """Name the first hidden character, such as `U+202E`; empty where there is none."""
    found = _HIDDEN.search(text)
    return f"U+{ord(found[0]):04X}" if found else ""


def visible(text: str) -> str:
    r"""The text with each hidden character escaped, such as `\u202e`."""
    return _HIDDEN.sub(_escaped, text)


def visible_json(text: str) -> str:
    """JSON text with each hidden character escaped, which means the same."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


# Rows as CSV (RFC 4180) in which no cell is a formula, whatever separators a spreadsheet goes by.
#
# Cells hold what callers wrote. Source: OWASP, CSV Injection.


# A spreadsheet looks behind blanks, and takes full width for half.
_FORMULA = re.compile(rf"[\t\r\n]|[\s{HIDDEN}]*[-=+@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# Any of these may separate cells, by the reader's country.
_SEPARATES = re.compile(r"[\",;|\t\r\n]|^\s|\s$")


def csv(columns: tuple[str, ...], rows: Iterable[Mapping[str, object]], *, head: bool = False) -> bytes:
    """Write these columns of rows, below their names where there is to be a head."""
    lines = [",".join(columns)] if head else []
    lines += [",".join(_cell(row[name]) for name in columns) for row in rows]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _SEPARATES.search(text) else text


# JSON that somebody else has written: read whole, or refused by `ValueError` in one line.


def read_json(text: str | bytes) -> Any:
    """What a document says; `ValueError` where it is none, or nests or counts further than is read."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _whole(digits: str) -> int:
    most = sys.get_int_max_str_digits()
    if len(digits) > most > 0:
        raise ValueError(f"it has a number of more than {most} digits")
    return int(digits)


# Things in portions: what `itertools.batched` of later versions of Python is, as lists.


T = TypeVar("T")


def batched(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """So many of them at a time; what makes them is asked for no more than that ahead."""
    left = iter(items)
    while some := list(islice(left, count)):
        yield some
