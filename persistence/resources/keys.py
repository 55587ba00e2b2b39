"""API keys: credentials of the data plane, stored as digests only."""

from __future__ import annotations

from sqlalchemy import select

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict
from persistence import crud
from persistence.claimed import check_claim
from persistence.resources.budgets import forget_key
from persistence.subject import THIS, Change, Subject, add, live, lock, require
from persistence.tables.budgets import budget
from persistence.tables.operations import control_write
from persistence.tables.people import api_key, tenant


def create(change: Change) -> Row:
    """Keep a new key and have it loaded."""
    require(change)
    check_claim(change, api_key, "key")
    row = change.fetch(add(change, name=change.command.values.get("name") or "API key"))
    define(change, row)
    return row


def delete(change: Change) -> Row:
    """Delete a key whose revocation has reached the counters: until then its digest is needed."""
    row = lock(change)
    waiting = select(control_write.c.id).where(
        control_write.c.account == f"key:{change.row_id}", control_write.c.state == "pending"
    )
    if row["revoked_at"] is None or change.connection.execute(waiting.limit(1)).first() is not None:
        raise Conflict("The key's revocation has not reached the counters yet.")
    forget_key(change, change.row_id)
    return crud.forget(change)


def define(change: Change, row: Row) -> None:
    """Have the key loaded again."""
    change.define(f"key:{row['id']}", row["organization_id"])


SUBJECT = Subject(
    api_key,
    source=select(api_key, tenant.c.organization_id).join(tenant, tenant.c.id == api_key.c.tenant_id),
    conditions={
        "organization_id": lambda wanted: tenant.c.organization_id == wanted,
        # How the key begins: as much of it as is known.
        "prefix": lambda wanted: api_key.c.prefix.startswith(wanted, autoescape=True),
    },
    verbs={"create": create, "change": crud.change_row, "revoke": crud.revoke, "delete": delete},
    refers={"tenant_id": tenant},
    referenced={
        "A budget is of this key; delete it first.": live(budget).where(budget.c.api_key_id == THIS),
    },
    define=define,
    defining=frozenset(api_key.c.keys()) - {"name"},
)
