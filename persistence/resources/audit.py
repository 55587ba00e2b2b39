"""The audit log: who changed what, and when; stored in the transaction of the change."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, case, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Row
from gateway.core.failures import FailureReport
from persistence.entity import Entity, EntityWrite
from persistence.queries import insert_rows
from persistence.tables import admin_token, audit_log

PLAIN = (int, float, str, bool, type(None))
STAFF = "staff"
ROWS_WRITTEN_MAX = 1_000
# Columns that identify a person.
BY_PEOPLE = ("issuer", "identity", "person")
_audit_here = audit_log.c
MADE_OR_CHANGED = frozenset({"create", "change", "rotate", "amend"})


def record_audit(change: EntityWrite, row: Row) -> None:
    keep_audit(change.connection, [audit_entry_of(change, row)])


def audit_entry_of(change: EntityWrite, row: Row) -> dict[str, object]:
    """Return the audit row of one write, without secrets or their digests."""
    command = change.command
    after = _plain(command.render(row) if command.verb in MADE_OR_CHANGED else command.values)
    owner = row["id"] if command.resource == "organizations" else row.get("organization_id", change.within)
    return {
        **_by(command.actor),
        "organization_id": owner,
        "admin_token_id": command.actor.token_id,
        "action": command.verb,
        "resource": command.resource,
        "resource_id": str(row["id"]),
        "before": _plain(command.render(change.before)) if change.before is not None else None,
        "after": after or None,
        "request_id": command.request_id,
    }


def keep_audit(connection: Connection, entries: Sequence[dict[str, object]]) -> None:
    for at in range(0, len(entries), ROWS_WRITTEN_MAX):
        connection.execute(insert_rows(audit_log, entries[at : at + ROWS_WRITTEN_MAX]))


def record_all_audit(change: EntityWrite, done: Sequence[tuple[int, int, Row]]) -> None:
    """Store the audit rows of one command for many rows, each given as row id, owner and values."""
    command = change.command
    rows = [
        {
            **_by(command.actor),
            "organization_id": organization_id, "action": command.verb, "resource": command.resource,
            "resource_id": str(row_id),
            "after": _plain(asked), "request_id": command.request_id,
        }
        for row_id, organization_id, asked in done
    ]  # fmt: skip
    if rows:
        change.connection.execute(insert_rows(audit_log, rows))


def _by(actor: Actor) -> dict[str, object]:
    return {"actor": actor.scope, "role": actor.role, **person_of(actor)}


def person_of(actor: Actor) -> dict[str, object]:
    """Return the audit columns for an actor's person: issuer, identity and name; all None without one."""
    who = actor.person
    return {
        "issuer": who.issuer if who is not None else None,
        "identity": who.identity if who is not None else None,
        "person": who.name if who is not None else None,
    }


async def note_failures(engine: AsyncEngine, failed: Sequence[FailureReport]) -> None:
    """Store an audit row for each site that sent wrong credentials to the Admin API."""
    async with engine.begin() as connection:
        rows = [
            {
                "actor": "nobody",
                "action": "fail",
                "resource": "authentication",
                "resource_id": one.site or None,
                "after": {"attempts": one.attempts, "reasons": one.reasons},
            }
            for one in failed
        ]
        await connection.execute(insert_rows(audit_log, rows))


def _plain(values: Row) -> dict[str, object]:
    """Convert the values to JSON: days, times and money become text."""
    return {name: _json(value) for name, value in values.items()}


def _json(value: object) -> object:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if isinstance(value, PLAIN) else str(value)


def render_entry(row: Row, within: int) -> Row:
    """Return an audit entry as callers of the organization `within` may see it.

    Actors outside of the organization are shown as staff.
    """
    if row["token_organization_id"] == within:
        return row
    return {**row, "actor": STAFF, **dict.fromkeys((*BY_PEOPLE, "admin_token_id", "token"))}


_token = admin_token.c
# Older entries without an issuer: the person's token has it.
_issuer = func.coalesce(_audit_here.issuer, case((_audit_here.person.is_not(None), _token.issuer)))
# A webhook acts through its links; its organization is the actor's.
_by_whom = func.coalesce(
    _token.organization_id, case((_audit_here.actor.like("webhook:%"), _audit_here.organization_id))
)
AUDIT_SUBJECT = Entity(
    audit_log,
    source=select(
        *(column for column in _audit_here if column.name != "issuer"),
        _issuer.label("issuer"),
        _token.name.label("token"),
        _by_whom.label("token_organization_id"),
    ).outerjoin(admin_token, _token.id == _audit_here.admin_token_id),
    conditions={"issuer": lambda value: _issuer == value},
    told=render_entry,
    veiled=dict.fromkeys(("actor", "admin_token_id", *BY_PEOPLE), _by_whom),
)
