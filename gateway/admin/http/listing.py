"""Reading a list's query string: limit, cursor, order, filters and a span of time.

A cursor names the last row seen, for one resource under one set of filters; it is opaque to
the caller and refused anywhere else.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from uuid import UUID

from multidict import MultiMapping

from gateway.admin.resources.paging import CURSOR_CHARS_MAX
from gateway.admin.resources.resource import Filter, Whole
from gateway.admin.resources.values import read_instant
from gateway.core.accounts.administration import Place, Query
from gateway.errors import Unprocessable

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
FILTER_CHARS_MAX = 200
WHOLE_CHARS_MAX = 16

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def read_query(resource: str, filters: Mapping[str, Filter], sent: MultiMapping[str]) -> Query:
    """Turn a query string into a query; `Unprocessable` names what is wrong with it."""
    errors: list[tuple[str, str]] = []
    values: dict[str, object] = {}
    for name in dict.fromkeys(sent):
        given = sent.getall(name)
        try:
            if len(given) > 1:
                raise ValueError("given twice")  # noqa: TRY301  # collected with the others
            values[name] = _read(name, given[0], filters)
        except ValueError as error:
            errors.append((name, str(error)))
    if errors:
        raise Unprocessable("Some query parameters are wrong.", tuple(errors))
    wanted = {name: values[name] for name in filters if name in values}
    after = values.get("cursor")
    limit = values.get("limit", LIMIT_DEFAULT)
    descending = values.get("order") == "desc"
    mark = fingerprint(resource, wanted, descending=descending)
    return Query(
        filters=wanted,
        since=values.get("from"),  # type: ignore[arg-type]  # read by _read
        until=values.get("to"),  # type: ignore[arg-type]  # read by _read
        after=decode_cursor(str(after), mark) if after is not None else None,
        limit=limit if isinstance(limit, int) else LIMIT_DEFAULT,
        descending=descending,
    )


def read_numbers(numbers: Mapping[str, Whole], sent: MultiMapping[str]) -> dict[str, int]:
    """The numbers a report is asked with; `Unprocessable` names one that is wrong."""
    errors = _twice(sent) + [(name, "unknown parameter") for name in sent.keys() - numbers.keys()]
    found = {}
    for name, wanted in numbers.items():
        try:
            found[name] = _whole(sent.get(name, str(wanted.default)), wanted.least, wanted.most)
        except ValueError as error:
            errors.append((name, str(error)))
    if errors:
        raise Unprocessable("Some query parameters are wrong.", tuple(errors))
    return found


def read_once(sent: MultiMapping[str]) -> dict[str, str]:
    """A query string whose values a model checks; `Unprocessable` where a name is given twice."""
    twice = _twice(sent)
    if twice:
        raise Unprocessable("Some query parameters are wrong.", tuple(twice))
    return dict(sent)


def _twice(sent: MultiMapping[str]) -> list[tuple[str, str]]:
    return [(name, "given twice") for name in dict.fromkeys(sent) if len(sent.getall(name)) > 1]


def with_plus(text: str) -> str:
    """A time as it was meant: a plus sign that was not escaped arrives as a space."""
    return text.replace(" ", "+")


def number_or_text(text: str) -> object:
    """A whole number; what is none stays as it is, for its field to refuse."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= WHOLE_CHARS_MAX else text


def fingerprint(resource: str, filters: Mapping[str, object], *, descending: bool) -> str:
    """Name a list, so that a cursor of another one is not taken for its own."""
    return sha256(repr((resource, sorted(filters.items()), descending)).encode()).hexdigest()[:12]


def encode_cursor(after: Place, mark: str) -> str:
    """Write a cursor."""
    return base64.urlsafe_b64encode(json.dumps([mark, *after]).encode()).decode().rstrip("=")


def decode_cursor(text: str, mark: str) -> Place:
    """Read a cursor of this list back; `Unprocessable` if it is not one."""
    with suppress(binascii.Error, ValueError, RecursionError):
        padded = text + "=" * (-len(text) % 4)
        read = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if isinstance(read, list) and len(read) > 1 and read[0] == mark and all(map(_is_key, read[1:])):
            return tuple(read[1:])
    raise Unprocessable(
        "Some query parameters are wrong.",
        (("cursor", "is not a next_cursor of this list with these filters"),),
    )


def _is_key(part: object) -> bool:
    if isinstance(part, str):
        return _UNSTORABLE.search(part) is None
    return type(part) is int and abs(part) <= 2**63 - 1


def _read(name: str, text: str, filters: Mapping[str, Filter]) -> object:
    if name == "limit":
        return _whole(text, 1, LIMIT_MAX)
    if name == "cursor":
        if not 0 < len(text) <= CURSOR_CHARS_MAX:
            raise ValueError("is not a cursor")
        return text
    if name == "order":
        if text not in {"asc", "desc"}:
            raise ValueError("must be asc or desc")
        return text
    if name in {"from", "to"}:
        return read_instant(with_plus(text) if len(text) < 40 else text)
    if name not in filters:
        raise ValueError("unknown parameter")
    return _read_filter(filters[name], text)


def _read_filter(wanted: Filter, text: str) -> object:
    if wanted.kind in {"id", "count"}:
        return _whole(text, int(wanted.kind == "id"), wanted.most)
    if wanted.kind == "uuid":
        return UUID(text)
    if wanted.kind == "flag":
        if text not in {"true", "false"}:
            raise ValueError("must be true or false")
        return text == "true"
    if wanted.choices and text not in wanted.choices:
        raise ValueError(f"must be one of {', '.join(wanted.choices)}")
    if not 0 < len(text) <= FILTER_CHARS_MAX or _UNSTORABLE.search(text):
        raise ValueError(f"must be 1 to {FILTER_CHARS_MAX} characters")
    return text


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)
