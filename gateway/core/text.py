"""Text: hidden characters, CSV, JSON, and lists in portions."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

# Characters that are invisible, or reverse the text around them: refused in names, escaped elsewhere.
#
# A name with one reads as another name. Names that callers gave to users may contain any: they are stored
# unchanged, and escaped for display. Sources: Unicode's Default_Ignorable_Code_Point and Bidi_Control;
# controls but tab and line breaks.

HIDDEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    f"{chr(0xD800)}-{chr(0xDFFF)}"  # half characters: mypyc takes none in a literal
)

_HIDDEN = re.compile(rf"[{HIDDEN}]|\r(?!\n)")


def hidden_in(text: str) -> str:
    """Return the first hidden character as `U+202E`; empty if there is none."""
    match = _HIDDEN.search(text)
    return f"U+{ord(match[0]):04X}" if match else ""


def visible(text: str) -> str:
    r"""Return the text with hidden characters escaped, such as `\u202e`."""
    return _HIDDEN.sub(_escaped, text)


def visible_json(text: str) -> str:
    """Return JSON text with hidden characters escaped, which does not change its meaning."""
    return _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _escaped(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


# Rows as CSV (RFC 4180) without formulas in cells, for any separator of a spreadsheet.
#
# Cells contain text of callers. Source: OWASP, CSV Injection.

# Spreadsheets skip blanks before a formula, and accept full-width characters.
_FORMULA = re.compile(rf"[\t\r\n]|[\s{HIDDEN}]*[-=+@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
# Characters that may separate cells, depending on the reader's locale.
_SEPARATES = re.compile(r"[\",;|\t\r\n]|^\s|\s$")


def csv(columns: tuple[str, ...], rows: Iterable[Mapping[str, object]], *, head: bool = False) -> bytes:
    """Return the columns of rows as CSV, with a line of names first if `head` is set."""
    lines = [",".join(columns)] if head else []
    lines += [",".join(_render_cell(row[name]) for name in columns) for row in rows]
    return "".join(f"{line}\r\n" for line in lines).encode()


def _render_cell(value: object) -> str:
    """Return a cell of CSV, quoted where needed; a text that a spreadsheet would execute begins with an apostrophe."""
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _SEPARATES.search(text) else text


# Untrusted JSON: parsed, or refused by `ValueError` in one line.
def read_json(text: str | bytes) -> Any:
    """Parse a JSON document. Raise `ValueError` if it is invalid, too deep, or has too long a number."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _whole(digits: str) -> int:
    most = sys.get_int_max_str_digits()
    if len(digits) > most > 0:
        raise ValueError(f"it has a number of more than {most} digits")
    return int(digits)


def nests_within(value: object, levels: int) -> bool:
    """Return whether a JSON value has at most `levels` objects and lists inside each other."""
    parts = [value]
    for _ in range(levels):
        holders = [part for part in parts if isinstance(part, dict | list)]
        parts = [
            part for holder in holders for part in (holder.values() if isinstance(holder, dict) else holder)
        ]
    return not any(isinstance(part, dict | list) for part in parts)


# Portions of items: like `itertools.batched` of later versions of Python, as lists.

T = TypeVar("T")


def batched(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """Yield lists of up to `count` items; no more than that are read ahead."""
    left = iter(items)
    while some := list(islice(left, count)):
        yield some
