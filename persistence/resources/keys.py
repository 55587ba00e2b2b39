"""API keys: credentials of the data plane, stored as digests only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import func, insert, select

from gateway.core.accounts.administration import OVERLAP_S, Row
from gateway.core.accounts.roles import MEMBER
from gateway.errors import Conflict, Unprocessable
from persistence import crud
from persistence.claimed import GIVEN_UP, claim
from persistence.resources.budgets import forget_key
from persistence.subject import THIS, Change, Subject, add, alter, live, lock, require
from persistence.tables import api_key, budget, control_write, tenant

# Keys of one tenant that are not revoked, where a member makes another; each is loaded into Redis.
MEMBERS_KEYS_MAX = 1_000
# What a key has that stands in the place of another.
TAKEN_OVER = ("tenant_id", "name", "user", "user_header", "limits", "models")


def create(change: Change) -> Row:
    """Keep a new key and have it loaded."""
    tenant_id = int(str(change.command.values["tenant_id"]))
    hold_of_members(change, tenant_id)
    require(change)
    refuse_many(change, tenant_id)
    claim(change, api_key, "key")
    row = change.fetch(add(change, name=change.command.values.get("name") or "API key"))
    define(change, row)
    return row


def hold_of_members(change: Change, tenant_id: int) -> None:
    """Let members make keys of a tenant one at a time, so that they count each other's.

    Before others hold the row to share it.
    """
    if change.command.actor.role == MEMBER:
        mine = select(tenant.c.id).where(tenant.c.id == tenant_id)
        change.connection.execute(mine.with_for_update(key_share=True))


def refuse_many(change: Change, tenant_id: int) -> None:
    """Raise `Conflict` for a member where a tenant has as many keys as members may make."""
    if change.command.actor.role != MEMBER:
        return
    here = (api_key.c.tenant_id == tenant_id) & api_key.c.revoked_at.is_(None)
    there = select(func.count()).select_from(api_key).where(here)
    if change.connection.execute(there).scalar_one() >= MEMBERS_KEYS_MAX:
        said = f"The tenant has {MEMBERS_KEYS_MAX} keys that are not revoked"
        raise Conflict(f"{said}, and a member makes no more: revoke some first.")


def rotate(change: Change) -> Row:
    """Keep a new key in the place of another, which ends after an overlap; answers with the new one."""
    tenant_id = int(str(change.fetch()["tenant_id"]))
    hold_of_members(change, tenant_id)
    refuse_many(change, tenant_id)
    old, values = lock(change), change.command.values
    _refuse_rotation(change, old)
    said = values.get("expires_at")
    if isinstance(said, datetime) and said <= change.now:
        raise Unprocessable(errors=(("expires_at", "must be later than now: the new key would have ended"),))
    taken_over = {name: old[name] for name in TAKEN_OVER}
    made = {name: values[name] for name in ("digest", "prefix", "pepper")}
    ends = values.get("expires_at", old["expires_at"])
    kept = insert(api_key).values({**taken_over, **made, "expires_at": ends}).returning(api_key.c.id)
    new_id = int(change.connection.execute(kept).scalar_one())
    overlap_s = int(str(values.get("overlap_s", OVERLAP_S)))
    until = change.now + timedelta(seconds=overlap_s)
    last = func.least(func.coalesce(api_key.c.expires_at, until), until)
    ends_now = {"expires_at": last} if overlap_s else {"revoked_at": func.now()}
    alter(change, {"replaced_by_id": new_id, **ends_now})
    row = change.fetch(new_id)
    define(change, old)
    define(change, row)
    return row


def _refuse_rotation(change: Change, old: Row) -> None:
    """Raise `Conflict` where nothing can stand in a key's place, or another does."""
    if old["issuer"] is not None:
        raise Conflict("Signed tokens stand for it: there is no key to change.")
    if old["replaced_by_id"] is not None:
        raise Conflict(f"Key {old['replaced_by_id']} stands in its place already.")
    if old["revoked_at"] is not None:
        raise Conflict("The key is revoked: make another.")
    ends = old["expires_at"]
    if isinstance(ends, datetime) and ends <= change.now:
        raise Conflict("The key has expired: make another.")
    of_it = live(budget).where(budget.c.api_key_id == old["id"]).limit(1)
    if change.connection.execute(of_it).first() is not None:
        raise Conflict(
            "A budget is of this key, and would not be of the new one. Make another key and a budget of it."
        )


def change_key(change: Change) -> Row:
    """Change a key; one that another stands in the place of ends when it does, or earlier."""
    old, values = lock(change), change.command.values
    if old["replaced_by_id"] is not None and "expires_at" in values:
        ends, wanted = old["expires_at"], values["expires_at"]
        if isinstance(ends, datetime) and not (isinstance(wanted, datetime) and wanted <= ends):
            said = f"Key {old['replaced_by_id']} stands in its place, and this one ends"
            raise Conflict(f"{said} at {ends.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}: no later end can be set.")
    return crud.change_row(change)


def delete(change: Change) -> Row:
    """Delete a key whose revocation has reached the counters: until then its digest is needed."""
    row = lock(change)
    waiting = select(control_write.c.id).where(
        control_write.c.account == f"key:{change.row_id}", control_write.c.state == "pending"
    )
    if row["revoked_at"] is None or change.connection.execute(waiting.limit(1)).first() is not None:
        raise Conflict("The key's revocation has not reached the counters yet.")
    forget_key(change, change.row_id)
    if row["issuer"] is not None and not str(row["digest"]).startswith(GIVEN_UP):
        # Its end is kept in the counters, and nothing else would say that it need not be any more.
        owner = int(str(row["organization_id"]))
        known = {"digest": row["digest"], "organization_id": owner}
        change.intend([f"key:{change.row_id}"], "define", known, organization_id=owner)
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
    verbs={
        "create": create,
        "change": change_key,
        "rotate": rotate,
        "revoke": crud.revoke,
        "delete": delete,
    },
    refers={"tenant_id": tenant},
    referenced={
        "A budget is of this key; delete it first.": live(budget).where(budget.c.api_key_id == THIS),
    },
    define=define,
    defining=frozenset(api_key.c.keys()) - {"name"},
)
