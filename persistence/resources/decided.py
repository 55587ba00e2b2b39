"""Who decided about a row, kept in it as the audit log keeps it, and what an organization is told of that.

The columns are `…by`, `…issuer`, `…identity` and `…person`, behind a word of the table's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, Table, Text, cast, literal, select

from gateway.core.accounts.administration import Actor, Row
from persistence.resources.audit import BY_PEOPLE, STAFF, person_of
from persistence.tables import admin_token

_token = admin_token.c


def decided(actor: Actor, word: str) -> dict[str, object]:
    """What is kept of who decides."""
    return {f"{word}_by": actor.scope} | {f"{word}_{name}": one for name, one in person_of(actor).items()}


def source(table: Table, word: str) -> Select[Any]:
    """The rows of a table, each with the organization of who decided; none where it was staff."""
    by = literal("token:", Text) + cast(_token.id, Text) == table.c[f"{word}_by"]
    return select(table, _token.organization_id.label("decider_organization_id")).outerjoin(admin_token, by)


def told(word: str) -> Callable[[Row, int], Row]:
    """What an organization's own callers see of such a row: who else decided is staff."""

    def told_of(row: Row, within: int) -> Row:
        if row[f"{word}_by"] is None or row["decider_organization_id"] == within:
            return row
        return {**row, f"{word}_by": STAFF, **{f"{word}_{name}": None for name in BY_PEOPLE}}

    return told_of
