"""The verbs create, change and delete for rows that only have to be kept and defined again; and revoke."""

from __future__ import annotations

from sqlalchemy import delete as delete_from
from sqlalchemy import func

from gateway.core.accounts.administration import Row
from persistence.subject import Change, add, alter, lock, refuse_while_referenced, require


def create(change: Change) -> Row:
    """Make a row."""
    subject = change.subject
    subject.check_values(change)
    require(change)
    row = change.fetch(add(change))
    subject.define(change, row)
    subject.check_row(change, row)
    return row


def change_row(change: Change) -> Row:
    """Change a row."""
    subject = change.subject
    subject.check_values(change)
    lock(change)
    require(change)
    alter(change, change.command.values)
    row = change.fetch()
    if subject.defining & change.command.values.keys():
        subject.define(change, row)
    subject.check_row(change, row)
    return row


def forget(change: Change) -> Row:
    """Delete a row that nothing refers to, or mark it as deleted where ledgers may still speak of it."""
    row, table = lock(change), change.subject.table
    refuse_while_referenced(change)
    if "deleted_at" in table.c:
        alter(change, {"deleted_at": func.now()})
    else:
        change.connection.execute(delete_from(table).where(table.c.id == change.row_id))
    return row


def delete(change: Change) -> Row:
    """Delete a row, and have what it defined forgotten."""
    row = forget(change)
    change.subject.define(change, row)
    return row


def revoke(change: Change) -> Row:
    """Refuse a credential for ever; revoking again keeps the first time."""
    lock(change)
    alter(change, {"revoked_at": func.coalesce(change.subject.table.c.revoked_at, func.now())})
    row = change.fetch()
    change.subject.define(change, row)
    return row


VERBS = {"create": create, "change": change_row, "delete": delete}
