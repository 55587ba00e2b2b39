"""The nouns of administration: what the Admin API asks of the store, and what it gets back.

Values are plain Python: integers, strings, booleans, `Decimal`, aware `datetime`, dicts and
lists of those. Nothing here knows HTTP or SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: `scope` is unique to the caller ("builtin:admin", "token:7")."""

    scope: str
    role: str
    user_id: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """An `Idempotency-Key` as its caller sent it; `fingerprint` is hex SHA-256 of what was asked."""

    scope: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Command:
    """One write: `verb` on a resource, or on the row `id` of it, with validated values."""

    resource: str
    verb: str
    actor: Actor
    id: int | None = None
    values: Mapping[str, object] = field(default_factory=dict)
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A committed write: the row as it stands and the accounts whose control writes now wait."""

    row: Row
    accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """The answer first given under this idempotency key; `body` is None where there was none."""

    status: int
    body: Row | None


@dataclass(frozen=True, slots=True)
class Query:
    """A page of a resource: `after` is the order key of the row before it."""

    filters: Mapping[str, object]
    since: datetime | None
    until: datetime | None
    after: tuple[int, ...] | None
    limit: int


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in order and, if there are more, the order key of the last one."""

    rows: tuple[Row, ...]
    next_after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class StaffToken:
    """A named admin token, found by its digest, valid at the time it was looked up."""

    id: int
    role: str
    user_id: int | None
