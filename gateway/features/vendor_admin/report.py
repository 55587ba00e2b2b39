"""The definition of a vendor's report: its path, its groups and filters, and its shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.admin.http.callers import BEARER, identify_by
from gateway.admin.http.guard import SHAPE, Shape
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import NO_PROJECT
from gateway.errors import Unauthorized

# Money is a number in OpenAI's shape, and must not lose digits.
_encode = msgspec.json.Encoder(decimal_format="number").encode
ADDED: Final = ("requests", "input", "cache_read", "cache_write", "cache_write_1h", "output", "cost")

# Converts the rows of one bucket into the results of a vendor's report.
Results = Callable[[Sequence[Row], "VendorQuery"], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class VendorQuery:
    """The parsed query of a report. `groups` are the vendor's names."""

    since: datetime
    until: datetime
    interval: str
    width: timedelta
    buckets: int
    groups: tuple[str, ...] = ()
    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VendorReport:
    """One report: its path, its groups and filters with our columns, and its shape.

    `since` and `until` are its time parameters, which `moment` parses. `bracketed`: list parameters are
    written `group_by[]`. `daily`: buckets are days only.
    """

    path: str
    groups: Mapping[str, str]
    filters: Mapping[str, str]
    results: Results
    bucket: Callable[[datetime, datetime, list[dict[str, Any]]], dict[str, Any]]
    refusal: Shape
    moment: Callable[[str], datetime]
    since: str
    until: str
    page: Callable[[list[dict[str, Any]], str | None], dict[str, Any]]
    bracketed: bool = False
    daily: bool = False
    grouped: tuple[str, ...] = ()


def shown_id(row: Row, group: str) -> str | None:
    """Return a row's value in the column of a report's `group`, as vendors write it, or None."""
    if group in {"model", "user"}:
        value = row[group]
        return None if value is None else str(value)
    number = row[f"{group}_id"]
    return None if number is None or number in {0, NO_PROJECT} else str(number)


Sums = dict[str, Decimal]


def summed(rows: Sequence[Row], apart: Sequence[str]) -> dict[tuple[str | None, ...], Sums]:
    """Return the sums of rows that have the same values in the columns `apart` and the same currency."""
    found: dict[tuple[str | None, ...], Sums] = {}
    for row in rows:
        sums = found.setdefault((*(shown_id(row, group) for group in apart), str(row["currency"])), {})
        for name in ADDED:
            sums[name] = sums.get(name, Decimal(0)) + Decimal(str(row[name]))
    return found


def _credentials(request: web.Request) -> list[str]:
    """Return the credentials of a request, each once, from `Authorization` and Anthropic's `x-api-key`.

    `Unauthorized` if two of them differ.
    """
    said = request.headers.getall("Authorization", [])
    keys = [f"Bearer {key}" for key in request.headers.getall("x-api-key", [])]
    tokens = {match[1] if (match := BEARER.fullmatch(key)) else key: key for key in (*said, *keys)}
    if len(tokens) > 1:
        fields = " and ".join(name for name, sent in (("Authorization", said), ("x-api-key", keys)) if sent)
        several = Unauthorized(f"{fields} have {len(tokens)} credentials that differ: send one.")
        several.failure = "malformed"
        raise several
    return list(tokens.values())


def message_of(problem: Mapping[str, Any]) -> str:
    """Return the message of a problem, with the wrong fields if it does not name them itself."""
    wrong = [(fault["field"], fault["message"]) for fault in problem.get("errors", ())]
    faults = [f"{field}: {message}" for field, message in wrong if message not in problem["detail"]]
    return " ".join([problem["detail"], "; ".join(faults)]).strip()


def handler(
    ports: AdminPorts,
    shape: Shape,
    answer: Callable[[AdminPorts, web.Request], Awaitable[dict[str, Any]]],
) -> Callable[[web.Request], Any]:
    """Return a handler that answers by what the caller may read; each refusal has the vendor's `shape`."""

    async def show(request: web.Request) -> web.Response:
        request[SHAPE] = shape
        mine = ports.of(await identify_by(ports, request, _credentials(request)))
        return web.Response(body=_encode(await answer(mine, request)), content_type="application/json")

    return show
