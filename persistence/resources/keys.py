"""API keys: credentials of the data plane, stored as digests only."""

from __future__ import annotations

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select, update

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict
from persistence.subject import Change, Subject, add, alter, equals, fetch, lock, require
from persistence.tables.operations import control_write
from persistence.tables.people import api_key, tenant


def create(change: Change) -> Row:
    """Keep a new key and have it loaded."""
    require(change, {"tenant_id": tenant})
    name = change.command.values.get("name") or "API key"
    row = fetch(change.connection, SUBJECT, add(change, api_key, name=name))
    _define(change, row)
    return row


def change_key(change: Change) -> Row:
    """Change what a key may do."""
    lock(change, SUBJECT, api_key)
    values = change.command.values
    alter(change, api_key, values)
    row = fetch(change.connection, SUBJECT, change.row_id)
    if values.keys() - {"name"}:
        _define(change, row)
    return row


def revoke(change: Change) -> Row:
    """Refuse the key for ever; revoking again keeps the first time."""
    lock(change, SUBJECT, api_key)
    change.connection.execute(
        update(api_key)
        .where(api_key.c.id == change.row_id)
        .values(revoked_at=func.coalesce(api_key.c.revoked_at, func.now()), updated_at=func.now())
    )
    row = fetch(change.connection, SUBJECT, change.row_id)
    _define(change, row)
    return row


def delete(change: Change) -> Row:
    """Delete a key whose revocation has reached the counters: until then its digest is needed."""
    row = lock(change, SUBJECT, api_key)
    waiting = select(control_write.c.id).where(
        control_write.c.account == f"key:{change.row_id}", control_write.c.state == "pending"
    )
    if row["revoked_at"] is None or change.connection.execute(waiting.limit(1)).first() is not None:
        raise Conflict("The key's revocation has not reached the counters yet.")
    change.connection.execute(delete_from(api_key).where(api_key.c.id == change.row_id))
    return row


def _define(change: Change, row: Row) -> None:
    change.intend([f"key:{row['id']}"], "define", {}, organization_id=int(str(row["organization_id"])))


SUBJECT: Subject = Subject(
    source=select(api_key, tenant.c.organization_id).join(tenant, tenant.c.id == api_key.c.tenant_id),
    id=api_key.c.id,
    time=api_key.c.created_at,
    order=(("id", api_key.c.id),),
    filters={
        "tenant_id": equals(api_key.c.tenant_id),
        "organization_id": equals(tenant.c.organization_id),
        "user": equals(api_key.c.user),
    },
    verbs={"create": create, "change": change_key, "revoke": revoke, "delete": delete},
)
