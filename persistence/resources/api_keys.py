"""API keys: stored as digests only; their rotation, and the last day of each."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, insert, or_, select

from gateway.core.accounts.administration import KEY_HOLDER, MEMBER, OVERLAP_S, Actor, Row
from gateway.core.accounts.budgets import KEY
from gateway.core.times import in_utc
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import THIS, Entity, EntityWrite, add, alter, live, lock, require
from persistence.resources.budgets import forget_key
from persistence.resources.claimed_subjects import GIVEN_UP, claim_subject
from persistence.resources.tags import check_key_tags, lock_budgets
from persistence.tables import api_key, budget, control_write, organization, tenant, usage_rollup

# Maximum of a tenant's active keys when a member creates one; each is loaded into Redis.
MEMBERS_KEYS_MAX = 1_000
# The columns that a rotated key takes over.
TAKEN_OVER = (
    "tenant_id", "name", "user", "user_header", "unsettled", "priority", "limits", "models", "runs",
    "spent_status", "retry_after_max_s", "tags",
)  # fmt: skip


def create(change: EntityWrite) -> Row:
    tenant_id = int(str(change.command.values["tenant_id"]))
    hold_of_members(change, tenant_id)
    require(change)
    refuse_many(change, tenant_id)
    claim_subject(change, api_key, "key")
    check_key_tags(change, {"user": None, "tags": None, **change.command.values})
    row = change.fetch(add(change, name=change.command.values.get("name") or "API key"))
    define(change, row)
    return row


def hold_of_members(change: EntityWrite, tenant_id: int) -> None:
    """Lock a tenant while members create its keys, so that concurrent members count each other's keys.

    Call it before other locks on the tenant's row.
    """
    if change.command.actor.role == MEMBER:
        mine = select(tenant.c.id).where(tenant.c.id == tenant_id)
        change.connection.execute(mine.with_for_update(key_share=True))


def refuse_many(change: EntityWrite, tenant_id: int) -> None:
    """Raise `Conflict` if a member would exceed the tenant's maximum of active keys."""
    if change.command.actor.role != MEMBER:
        return
    here = (api_key.c.tenant_id == tenant_id) & api_key.c.revoked_at.is_(None)
    there = select(func.count()).select_from(api_key).where(here)
    if change.connection.execute(there).scalar_one() >= MEMBERS_KEYS_MAX:
        message = f"The tenant has {MEMBERS_KEYS_MAX} keys that are not revoked"
        raise Conflict(f"{message}, and a member makes no more: revoke some first.")


def rotate(change: EntityWrite) -> Row:
    """Store a new key that replaces the command's key, which ends after an overlap; return the new key."""
    tenant_id = int(str(change.fetch()["tenant_id"]))
    hold_of_members(change, tenant_id)
    refuse_many(change, tenant_id)
    old, values = lock(change), change.command.values
    _refuse_rotation(change, old)
    value = values.get("expires_at")
    if isinstance(value, datetime) and value <= change.now:
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


def _refuse_rotation(change: EntityWrite, old: Row) -> None:
    """Raise `Conflict` if a key cannot be replaced, or is replaced already."""
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
    if change.command.actor.api_key_id is not None:
        _refuse_multiplying(change, old)


def _refuse_multiplying(change: EntityWrite, old: Row) -> None:
    """Raise `Conflict` if rotating a key would give its holder more than the key's limits.

    This is so while an earlier rotated key still works, or if a budget counts each key by itself.
    """
    before = live(api_key).where(api_key.c.replaced_by_id == old["id"], api_key.c.revoked_at.is_(None))
    ends = change.connection.execute(before.with_only_columns(func.max(api_key.c.expires_at))).scalar()
    if ends is not None and ends > change.now:
        raise Conflict(
            f"This key stands in the place of one that works until {in_utc(ends)}."
            " Rotate it then, or ask who manages keys."
        )
    each = live(budget).where(budget.c.each == KEY, budget.c.organization_id == change.within).limit(1)
    if change.connection.execute(each).first() is not None:
        raise Conflict("A budget counts each key by itself: ask who manages keys for another one.")


def change_key(change: EntityWrite) -> Row:
    """Change a key; a replaced key's end can only be moved earlier."""
    values = change.command.values
    if {"tags", "user"} & values.keys():
        lock_budgets(change.connection, int(str(change.fetch()["organization_id"])))
    old = lock(change)
    if old["replaced_by_id"] is not None and "expires_at" in values:
        ends, wanted = old["expires_at"], values["expires_at"]
        if isinstance(ends, datetime) and not (isinstance(wanted, datetime) and wanted <= ends):
            message = f"Key {old['replaced_by_id']} stands in its place, and this one ends"
            raise Conflict(f"{message} at {in_utc(ends)}: no later end can be set.")
    if {"tags", "user"} & values.keys():
        check_key_tags(change, {**old, **values})
    return entity.change_row(change)


def delete(change: EntityWrite) -> Row:
    """Delete a revoked key; raise `Conflict` while the counters still need its digest for the revocation."""
    row = lock(change)
    waiting = select(control_write.c.id).where(
        control_write.c.account == f"key:{change.row_id}", control_write.c.state == "pending"
    )
    if row["revoked_at"] is None or change.connection.execute(waiting.limit(1)).first() is not None:
        raise Conflict("The key's revocation has not reached the counters yet.")
    forget_key(change, change.row_id)
    if row["issuer"] is not None and not str(row["digest"]).startswith(GIVEN_UP):
        # The counters store the key's end, and must learn that it is no longer needed.
        owner = int(str(row["organization_id"]))
        known = {"digest": row["digest"], "organization_id": owner}
        change.intend([f"key:{change.row_id}"], "define", known, organization_id=owner)
    return entity.forget(change)


def define(change: EntityWrite, row: Row) -> None:
    change.define(f"key:{row['id']}", row["organization_id"])


def find_key_holder(connection: Connection, digest: str) -> Actor | None:
    """Return the actor for the digest of a valid API key, else None.

    Keys used by signed tokens have no secret, so they give None too.
    """
    here = api_key.c
    row = connection.execute(
        select(here.id, here.tenant_id, tenant.c.organization_id)
        .join(tenant, tenant.c.id == here.tenant_id)
        .join(organization, organization.c.id == tenant.c.organization_id)
        .where(
            here.digest == digest,
            here.issuer.is_(None),
            here.revoked_at.is_(None),
            or_(here.expires_at.is_(None), here.expires_at > func.now()),
            organization.c.deleted_at.is_(None),
            tenant.c.deleted_at.is_(None),
        )
    ).first()
    if row is None:
        return None
    return Actor(
        f"key:{row.id}", KEY_HOLDER, organization_id=row.organization_id, tenant_id=row.tenant_id,
        api_key_id=row.id,
    )  # fmt: skip


# The day of a key's last stored call.
_last_day = select(func.max(usage_rollup.c.start)).where(
    usage_rollup.c.span == "key_day", usage_rollup.c.api_key_id == api_key.c.id
)

KEY_SUBJECT = Entity(
    api_key,
    source=select(api_key, tenant.c.organization_id, _last_day.scalar_subquery().label("last_used_at")).join(
        tenant, tenant.c.id == api_key.c.tenant_id
    ),
    conditions={
        "organization_id": lambda wanted: tenant.c.organization_id == wanted,
        # How the key begins: as much of it as is known.
        "prefix": lambda wanted: api_key.c.prefix.startswith(wanted, autoescape=True),
    },
    verbs={
        "create": create,
        "change": change_key,
        "rotate": rotate,
        "revoke": entity.revoke,
        "delete": delete,
    },
    refers={"tenant_id": tenant},
    referenced={
        "A budget is of this key; delete it first.": live(budget).where(budget.c.api_key_id == THIS),
    },
    define=define,
    defining=frozenset(api_key.c.keys()) - {"name"},
)
