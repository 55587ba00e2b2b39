"""Queries of requests at the admin port, their cursors, and what the caller's role may do."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from hashlib import sha256
from uuid import UUID

from multidict import MultiMapping

from gateway.admin.resources.form_fields import IntegerParameter
from gateway.admin.resources.resource import CURSOR_CHARS_MAX, Endpoint, Filter
from gateway.admin.resources.values import read_moment
from gateway.core.accounts.administration import (
    READONLY,
    Actor,
    Place,
    Query,
    refused_read,
    refused_write,
)
from gateway.core.accounts.tags import GROUP, TAG, TAGS_MAX
from gateway.errors import (
    Forbidden,
    ReadOnly,
    Unprocessable,
)


def require_read(actor: Actor, answered: Endpoint) -> None:
    """Raise `Forbidden` if the actor's role or organization may not read an endpoint."""
    refused = refused_read(actor, answered.name, answered.access)
    if refused is not None:
        raise Forbidden(refused)


def require_write(actor: Actor, answered: Endpoint, verb: str, sent: Collection[str] = ()) -> None:
    """Raise `Forbidden` or `ReadOnly` if the actor may not use a verb of an endpoint with these fields."""
    refused = refused_write(actor, answered.name, answered.access, verb, sent)
    if refused is not None:
        raise ReadOnly(refused) if actor.role == READONLY else Forbidden(refused)


def may_write(actor: Actor, answered: Endpoint, verb: str) -> bool:
    """Return whether an actor may use a verb of an endpoint."""
    return refused_write(actor, answered.name, answered.access, verb) is None


# Parses the query string of a list: limit, cursor, order, filters and period.
#
# A cursor contains the last row seen, for one resource under one set of filters; it is opaque to the caller
# and refused for any other list.

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
FILTER_CHARS_MAX = 200
WHOLE_CHARS_MAX = 16

# A filter by the value of a tag; the empty one finds rows without it.
OF_TAG = Filter("text")

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def read_query(
    resource: str, filters: Mapping[str, Filter], sent: MultiMapping[str], *, tagged: bool = False
) -> Query:
    """Parse the query string of a list, of `tagged` rows maybe; raise `Unprocessable` with each error."""
    errors: list[tuple[str, str]] = []
    if tagged and (tags := dict.fromkeys(filter(GROUP.fullmatch, sent), OF_TAG)):
        if len(tags) > TAGS_MAX:
            errors.append((next(iter(tags)), f"is one of more than {TAGS_MAX} tags, which no call has"))
        filters = {**filters, **tags}
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


def read_numbers(numbers: Mapping[str, IntegerParameter], sent: MultiMapping[str]) -> dict[str, int]:
    """Return the number parameters of a report; raise `Unprocessable` if one is invalid."""
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
    """Return the parameters of a query string; raise `Unprocessable` if one is given twice."""
    twice = _twice(sent)
    if twice:
        raise Unprocessable("Some query parameters are wrong.", tuple(twice))
    return dict(sent)


def _twice(sent: MultiMapping[str]) -> list[tuple[str, str]]:
    return [(name, "given twice") for name in dict.fromkeys(sent) if len(sent.getall(name)) > 1]


def with_plus(text: str) -> str:
    """Return a time with its plus sign, which arrives as a space if it was not escaped."""
    return text.replace(" ", "+")


def number_or_text(text: str) -> object:
    """Return a text as a whole number if it is one; else unchanged, for the field's check to refuse."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= WHOLE_CHARS_MAX else text


def id_of(text: str) -> int | None:
    """Return the id that a text contains; None if it is no whole number."""
    number = number_or_text(text)
    return number if isinstance(number, int) else None


def fingerprint(resource: str, filters: Mapping[str, object], *, descending: bool) -> str:
    """Return a short hash of a list and its filters, so that cursors of other lists are refused."""
    return sha256(repr((resource, sorted(filters.items()), descending)).encode()).hexdigest()[:12]


def encode_cursor(after: Place, mark: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, *after]).encode()).decode().rstrip("=")


def decode_cursor(text: str, mark: str) -> Place:
    """Decode a cursor to the position after a page's last row.

    Raise `Unprocessable` if its fingerprint is not `mark`, that of this list with these filters.
    """
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
    """Return the value of a list's query parameter; raise ValueError with what would be right."""
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
        return read_moment(with_plus(text) if len(text) < 40 else text)
    if name not in filters:
        raise ValueError("unknown parameter")
    return _read_filter(filters[name], text)


def _read_filter(wanted: Filter, text: str) -> object:
    """Return the value of a filter from its text; raise ValueError with what would be right."""
    if wanted.kind in {"id", "count"}:
        return _whole(text, int(wanted.kind == "id"), wanted.most)
    if wanted.kind == "uuid":
        return UUID(text)
    if wanted.kind == "flag":
        if text not in {"true", "false"}:
            raise ValueError("must be true or false")
        return text == "true"
    if wanted.choices and text not in wanted.choices:
        if not wanted.or_tag or GROUP.fullmatch(text) is None:
            tag = f" or {TAG}NAME" if wanted.or_tag else ""
            raise ValueError(f"must be one of {', '.join(wanted.choices)}{tag}")
    elif wanted is OF_TAG and not text:
        return text
    if not 0 < len(text) <= FILTER_CHARS_MAX or _UNSTORABLE.search(text):
        raise ValueError(f"must be 1 to {FILTER_CHARS_MAX} characters")
    return text


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)
