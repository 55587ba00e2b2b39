"""Accounts whose events contradict what is stored: how they are stopped, and how a person lets them go on.

Releasing alone has the same entries checked again. Accepting a gap lists the missing movements as
lost, counted exactly, and stores the difference they made as a row; accepting a
contradiction sets the entries aside as dead letters. Nothing else ever skips one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Insert, and_, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.integrity.reconciliation import Rollback
from gateway.errors import Conflict
from persistence.ledger import statements
from persistence.resources.decided import decided, source, told
from persistence.subject import Change, Subject, lock
from persistence.tables import (
    credit_posting,
    feature_usage,
    lost_event,
    organization,
    partition_state,
    quarantine,
    tenant,
    tenant_quota,
    token_ledger,
    usage_daily,
)

ACCEPTABLE = frozenset({"gap", "conflict", "unknown_account"})

_c = quarantine.c
_OPEN = _c.released_at.is_(None)
# Where PostgreSQL has an account: its owner; last seq, balance and epoch; of a tenant its cycle.
_quota, _its = tenant_quota.c, organization.c
_HEADS = {
    "tenant": (_quota.tenant_id, _quota.last_seq, _quota.tokens_remaining, _quota.epoch, _quota.cycle),
    "credits": (_its.id, _its.credit_last_seq, _its.credit_balance, _its.credit_epoch),
    "spend": (_its.id, _its.spend_last_seq, _its.spent, _its.spend_epoch),
}
_BLOCKED = text("""
UPDATE tenant_quota AS q SET is_blocked = q.manual_block
       OR (p.id IS NOT NULL AND coalesce(q.tokens_remaining, 1) <= 0 AND p.overage_policy <> 'bill')
  FROM tenant_quota AS k LEFT JOIN token_plan AS p ON p.id = k.plan_id
 WHERE q.tenant_id = k.tenant_id AND q.tenant_id = :tenant""")

# What a person would do by `tenant block`; he undoes it by `unblock` once the account may go on.
_REFUSE = text("""
INSERT INTO control_write (id, partition, account, verb, payload)
SELECT gen_random_uuid(), :partition, 'tenant:' || t.id, 'block',
       '{"reason": "too many entries wait behind an account in quarantine"}'::jsonb
  FROM tenant AS t
 WHERE t.id = ANY(:ids) AND t.deleted_at IS NULL
   AND 'block' IS DISTINCT FROM (SELECT w.verb FROM control_write AS w
                                  WHERE w.account = 'tenant:' || t.id AND w.verb IN ('block', 'unblock')
                                    AND w.state <> 'refused'
                                  ORDER BY w.position DESC LIMIT 1)
RETURNING account""")


class Quarantines:
    """What flushes noted of partitions, and accounts stopped for movements that are gone."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def marks(self) -> dict[int, tuple[bytes, int, bool]]:
        """Of each partition the newest entry stored, the epoch, whether rows of it are known to be gone."""
        state = partition_state.c
        async with self._engine.connect() as connection:
            rows = await connection.execute(
                select(state.partition, state.last_entry_id, state.epoch, state.older)
            )
            return {row.partition: ((row.last_entry_id or "").encode(), row.epoch, row.older) for row in rows}

    async def fell_back(self, partitions: Sequence[int]) -> None:
        """Store that PostgreSQL is older than it was in these partitions."""
        rows = [{"partition": partition, "older": True} for partition in sorted(partitions)]
        noted = upsert(partition_state).values(rows)
        async with self._engine.begin() as connection:
            await connection.execute(
                noted.on_conflict_do_update(index_elements=["partition"], set_={"older": True})
            )

    async def catch_up(self, partition: int, entry_id: bytes) -> None:
        """Note that a partition was compared up to an entry, and is older no more."""
        state = partition_state.c
        async with self._engine.begin() as connection:
            if entry_id:
                await connection.exec_driver_sql(statements.MARK, ([partition], [entry_id.decode()]))
            await connection.execute(
                update(partition_state).where(state.partition == partition).values(older=False)
            )

    async def stop(self, rollbacks: Sequence[Rollback]) -> list[str]:
        """Quarantine accounts; answers those that were not stopped before."""
        rows = [_stop(one) for one in rollbacks]
        if not rows:
            return []
        made = upsert(quarantine).values(rows).on_conflict_do_nothing().returning(_c.account)
        async with self._engine.begin() as connection:
            return sorted(await connection.scalars(made))

    async def refuse(self, tenants: Mapping[int, Sequence[int]]) -> list[str]:
        """Block tenants, by partition, whose last word was not a block; answers the accounts blocked."""
        blocked: list[str] = []
        async with self._engine.begin() as connection:
            for partition, ids in sorted(tenants.items()):
                found = await connection.scalars(_REFUSE, {"partition": partition, "ids": sorted(ids)})
                blocked += found
        return sorted(blocked)

    async def stopped_accounts(self) -> set[str]:
        """Who is quarantined."""
        async with self._engine.connect() as connection:
            return set(await connection.scalars(select(_c.account).where(_OPEN)))

    async def stopped(self) -> int:
        """How many accounts are quarantined."""
        async with self._engine.connect() as connection:
            found = await connection.scalar(select(func.count()).select_from(quarantine).where(_OPEN))
            return int(found or 0)


def release(change: Change) -> Row:
    """`/release`: let an account, and those that wait for it, go on; `accept` says how, with the reason."""
    row = lock(change)
    if row["released_at"] is not None:
        raise Conflict(f"It was released at {row['released_at']}.")
    connection, values = change.connection, change.command.values
    account, accept = str(row["account"]), bool(values.get("accept"))
    if accept and row["kind"] not in ACCEPTABLE:
        raise Conflict(f"It waits for {row['behind']}: release that.")
    whose = and_(_OPEN, or_(_c.account == account, _c.behind == account))
    for partition in sorted(connection.scalars(select(_c.partition).where(whose).distinct())):
        change.hold_flushes(partition)
    reason, by = str(values["reason"]), decided(change.command.actor, "released")
    if accept and row["kind"] == "gap":
        _accept_gap(connection, dict(row), reason, by)
    connection.execute(
        update(quarantine)
        .where(whose)
        .values(
            released_at=func.now(), released_reason=reason,
            resolution="accepted" if accept else "judged", **by,
        )
    )  # fmt: skip
    return change.fetch()


def _stop(rollback: Rollback) -> dict[str, Any]:
    place, owner = rollback.place, rollback.owner
    kind, _, number = place.account.partition(":")
    gone = f"{rollback.stored_seq + 1} to {place.seq}"
    return {
        "account": place.account, "partition": rollback.partition,
        "organization_id": owner.organization_id,
        "tenant_id": int(number) if kind == "tenant" else None,
        "kind": "gap", "entry_id": "", "epoch": place.epoch,
        "stored_seq": rollback.stored_seq, "found_seq": place.seq + 1,
        "reason": f"movements {gone} were stored once and are gone: PostgreSQL is older than it was",
        "stood": {"balance": place.balance, "cycle": place.cycle, "at_ms": place.at_ms},
    }  # fmt: skip


def _accept_gap(connection: Connection, row: dict[str, Any], reason: str, by: Row) -> None:
    """List the missing movements as lost, and store what they changed in the last one's place."""
    kind, _, number = str(row["account"]).partition(":")
    owner, last = int(number), row["found_seq"] - 1
    owner_id, *head = _HEADS[kind]
    stored, before, epoch, *cycles = connection.execute(select(*head).where(owner_id == owner)).one()
    if stored >= last:
        return  # what was missing is there by now
    # An entry that says nothing of where the account stood leaves the balance to reconciliation.
    stood = row["stood"] or {"balance": before, "cycle": 0, "at_ms": None}
    after, at = stood["balance"], datetime.now(UTC)
    if stood["at_ms"]:
        at = datetime.fromtimestamp(stood["at_ms"] / 1000, UTC)
    difference = (after or 0) - (before or 0)
    first, epoch = stored + 1, max(epoch, row["epoch"])
    detail = {
        "quarantine": row["id"], "difference": difference, "reason": reason,
        "by": by["released_by"], "person": by["released_person"],
    }  # fmt: skip
    connection.execute(
        insert(lost_event).values(
            account=row["account"], partition=row["partition"], epoch=epoch, first_seq=first,
            last_seq=last, detail=detail,
        )
    )  # fmt: skip
    metadata = {"reason": reason, "lost": {"from": first, "to": last}}
    here: dict[str, Any] = {"epoch": epoch, "seq": last, "metadata": metadata}
    cycles = [max(cycle, stood["cycle"] or 0) for cycle in cycles]
    moved: dict[Any, Any] = dict(zip(head, (last, after, epoch, *cycles), strict=True))
    if kind == "tenant":
        made = insert(token_ledger).values(
            tenant_id=owner, transaction_type="adjust", amount=abs(difference),
            direction="IN" if difference >= 0 else "OUT", total_remaining=after, created_at=at,
            cycle=cycles[0], **here,
        )  # fmt: skip
        moved["updated_at"] = func.now()
    elif kind == "credits":
        made = insert(credit_posting).values(
            organization_id=owner, kind="correction", amount=difference, balance_after=after, created_at=at,
            **here,
        )  # fmt: skip
    else:
        made = _spend_row(connection, owner, at, {**here, "spend": difference, "spent_after": after or 0})
        moved["spend_month"] = at.date().replace(day=1)
    connection.execute(made)
    connection.execute(update(owner_id.table).where(owner_id == owner).values(moved))
    if kind == "tenant":
        connection.execute(_BLOCKED, {"tenant": owner})


def _spend_row(connection: Connection, owner: int, at: datetime, here: dict[str, Any]) -> Insert:
    """A movement of the spend account without units: its day is there, and bills nothing."""
    of = select(func.min(tenant.c.id)).where(tenant.c.organization_id == owner)
    tenant_id = connection.execute(of).scalar_one()
    day = {"tenant_id": tenant_id, "day": at.date(), "service_id": 0, "organization_id": owner}
    connection.execute(upsert(usage_daily).values(day).on_conflict_do_nothing())
    return insert(feature_usage).values(
        organization_id=owner, tenant_id=tenant_id, timestamp=at, usage_amount=0, **here
    )


SUBJECT = Subject(
    quarantine,
    source=source(quarantine, "released"),
    told=told("released"),
    conditions={"released": lambda wanted: _c.released_at.is_not(None) if wanted else _OPEN},
    verbs={"release": release},
)
