"""What a vendor's report is: its path, the groups and filters it takes, and its shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec
from aiohttp import web

from gateway.admin.http.guard import SHAPE, Shape
from gateway.admin.http.requests import BEARER, identify_by
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import NO_PROJECT
from gateway.errors import Unauthorized

# Money is a number in OpenAI's shape, and loses no digit on its way.
_encode = msgspec.json.Encoder(decimal_format="number").encode
ADDED: Final = ("requests", "input", "cache_read", "cache_write", "cache_write_1h", "output", "cost")

# Rows of one bucket become what a vendor's report says of it.
Results = Callable[[Sequence[Row], "VendorQuery"], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class VendorQuery:
    """What a report is asked for. `groups` are named as the vendor names them."""

    since: datetime
    until: datetime
    interval: str
    width: timedelta
    buckets: int
    groups: tuple[str, ...] = ()
    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VendorReport:
    """One report: its path, the groups and filters it takes as columns of ours, and its shape.

    Its parameters of time are `since` and `until`, read by `moment`; a list is `group_by[]` where it is
    `bracketed`. `daily` ones have no other width.
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
    """Return the value that distinguishes a row, as vendors write it; None where it is nobody's."""
    if group in {"model", "user"}:
        value = row[group]
        return None if value is None else str(value)
    number = row[f"{group}_id"]
    return None if number is None or number in {0, NO_PROJECT} else str(number)


Sums = dict[str, Decimal]


def summed(rows: Sequence[Row], apart: Sequence[str]) -> dict[tuple[str | None, ...], Sums]:
    """Return the sums of rows by what tells them apart, by columns of ours, and last by their currency."""
    found: dict[tuple[str | None, ...], Sums] = {}
    for row in rows:
        sums = found.setdefault((*(shown_id(row, group) for group in apart), str(row["currency"])), {})
        for name in ADDED:
            sums[name] = sums.get(name, Decimal(0)) + Decimal(str(row[name]))
    return found


def _credentials(request: web.Request) -> list[str]:
    """Return the credentials of a request, each once: of `Authorization`, and of Anthropic's own field.

    `Unauthorized` names the fields of two that differ.
    """
    said = request.headers.getall("Authorization", [])
    keys = [f"Bearer {key}" for key in request.headers.getall("x-api-key", [])]
    tokens = {match[1] if (match := BEARER.fullmatch(one)) else one: one for one in (*said, *keys)}
    if len(tokens) > 1:
        fields = " and ".join(name for name, sent in (("Authorization", said), ("x-api-key", keys)) if sent)
        several = Unauthorized(f"{fields} have {len(tokens)} credentials that differ: send one.")
        several.failure = "malformed"
        raise several
    return list(tokens.values())


def handler(
    ports: AdminPorts,
    shape: Shape,
    answer: Callable[[AdminPorts, web.Request], Awaitable[dict[str, Any]]],
) -> Callable[[web.Request], Any]:
    """Answer a request by what its asker may see; each refusal has the vendor's `shape`."""

    async def show(request: web.Request) -> web.Response:
        request[SHAPE] = shape
        mine = ports.of(await identify_by(ports, request, _credentials(request)))
        return web.Response(body=_encode(await answer(mine, request)), content_type="application/json")

    return show
