"""Rows as CSV (RFC 4180) in which no cell is a formula, whatever separators a spreadsheet goes by.

Cells hold what callers wrote. Source: OWASP, CSV Injection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gateway.core.visible import HIDDEN

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
