"""API keys: credentials of the data plane, stored as digests only."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.roles import MEMBER
from gateway.errors import Conflict
from persistence import crud, together
from persistence.claimed import check_claim
from persistence.resources.budgets import forget_key
from persistence.subject import THIS, Change, Subject, add, live, lock, require
from persistence.tables.budgets import budget
from persistence.tables.operations import control_write
from persistence.tables.people import api_key, tenant
from persistence.together import OneByOne

# Keys of one tenant that are not revoked, where a member makes another; each is loaded into Redis.
MEMBERS_KEYS_MAX = 1_000


def create(change: Change) -> Row:
    """Keep a new key and have it loaded."""
    if change.command.actor.role == MEMBER:
        # One at a time, so that they count each other's; and before others hold the row to share it.
        mine = tenant.c.id == change.command.values["tenant_id"]
        change.connection.execute(select(tenant.c.id).where(mine).with_for_update(key_share=True))
    require(change)
    if change.command.actor.role == MEMBER:
        refuse_many(change)
    check_claim(change, api_key, "key")
    row = change.fetch(add(change, name=change.command.values.get("name") or "API key"))
    define(change, row)
    return row


def create_all(changes: Sequence[Change]) -> Sequence[Row]:
    """Keep many new keys, whose names are said."""
    if changes[0].command.actor.role == MEMBER or not all(
        each.command.values.get("name") for each in changes
    ):
        raise OneByOne
    together.require(changes)
    for change in changes:
        check_claim(change, api_key, "key")
    return together.defined(changes, together.fetch(changes, together.add(changes)))


def refuse_many(change: Change) -> None:
    """Raise `Conflict` where a tenant has as many keys as members may make."""
    here = (api_key.c.tenant_id == change.command.values["tenant_id"]) & api_key.c.revoked_at.is_(None)
    there = select(func.count()).select_from(api_key).where(here)
    if change.connection.execute(there).scalar_one() >= MEMBERS_KEYS_MAX:
        said = f"The tenant has {MEMBERS_KEYS_MAX} keys that are not revoked"
        raise Conflict(f"{said}, and a member makes no more: revoke some first.")


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
