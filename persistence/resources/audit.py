"""Who changed what, and when: written in the transaction of the change."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, case, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Row
from gateway.core.failures import Told
from persistence.subject import Change, Subject
from persistence.tables import admin_token, audit_log

PLAIN = (int, float, str, bool, type(None))
STAFF = "staff"
ROWS_WRITTEN_MAX = 1_000
# What says which person it was.
BY_PEOPLE = ("issuer", "identity", "person")
_here = audit_log.c
MADE_OR_CHANGED = frozenset({"create", "change", "rotate"})


def record(change: Change, row: Row) -> None:
    """Write the audit row of one change."""
    keep(change.connection, [entry_of(change, row)])


def entry_of(change: Change, row: Row) -> dict[str, object]:
    """The audit row of one change; secrets and their digests are never part of it."""
    command = change.command
    after = _plain(command.render(row) if command.verb in MADE_OR_CHANGED else command.values)
    return {
        **_by(command.actor),
        "organization_id": _whose(change, row),
        "admin_token_id": command.actor.token_id,
        "action": command.verb,
        "resource": command.resource,
        "resource_id": str(row["id"]),
        "before": _plain(command.render(change.before)) if change.before is not None else None,
        "after": after or None,
        "request_id": command.request_id,
    }


def keep(connection: Connection, entries: Sequence[dict[str, object]]) -> None:
    """Write audit rows, in their order."""
    for at in range(0, len(entries), ROWS_WRITTEN_MAX):
        connection.execute(insert(audit_log), entries[at : at + ROWS_WRITTEN_MAX])


def record_all(change: Change, done: Sequence[tuple[int, int, Row]]) -> None:
    """Write the audit rows of one change of many rows: which row, whose it is, and what was asked."""
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
        change.connection.execute(insert(audit_log), rows)


def _by(actor: Actor) -> dict[str, object]:
    return {"actor": actor.scope, "role": actor.role, **person_of(actor)}


def person_of(actor: Actor) -> dict[str, object]:
    """Which person it was: never a name without whose word that is."""
    who = actor.person
    return {
        "issuer": who.issuer if who is not None else None,
        "identity": who.identity if who is not None else None,
        "person": who.name if who is not None else None,
    }


def _whose(change: Change, row: Row) -> object:
    if change.command.resource == "organizations":
        return row["id"]
    return row.get("organization_id", change.within)


async def note_failures(engine: AsyncEngine, failed: Sequence[Told]) -> None:
    """Write a row for each site that sent wrong credentials to the Admin API."""
    async with engine.begin() as connection:
        await connection.execute(
            insert(audit_log),
            [
                {
                    "actor": "nobody",
                    "action": "fail",
                    "resource": "authentication",
                    "resource_id": one.site or None,
                    "after": {"attempts": one.attempts, "reasons": one.reasons},
                }
                for one in failed
            ],
        )


def _plain(values: Row) -> dict[str, object]:
    """The values as JSON has them: days, instants and money as text."""
    return {name: _json(value) for name, value in values.items()}


def _json(value: object) -> object:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if isinstance(value, PLAIN) else str(value)


def told(row: Row, within: int) -> Row:
    """An entry as an organization's own callers see it: who else changed something of theirs is staff."""
    if row["token_organization_id"] == within:
        return row
    return {**row, "actor": STAFF, **dict.fromkeys((*BY_PEOPLE, "admin_token_id", "token"))}


_token = admin_token.c
# Entries of before people were kept with their issuer: the token that stood for a person names it.
_issuer = func.coalesce(_here.issuer, case((_here.person.is_not(None), _token.issuer)))
SUBJECT = Subject(
    audit_log,
    source=select(
        *(column for column in _here if column.name != "issuer"),
        _issuer.label("issuer"),
        _token.name.label("token"),
        _token.organization_id.label("token_organization_id"),
    ).outerjoin(admin_token, _token.id == _here.admin_token_id),
    conditions={"issuer": lambda value: _issuer == value},
    told=told,
    veiled=dict.fromkeys(("actor", "admin_token_id", *BY_PEOPLE), _token.organization_id),
)
