"""Dunning of unpaid invoices: each step is a row, stored in the transaction that performs the step.

A block is the same as one by a person. It is lifted once no invoice blocks the organization any more, and
only from tenants that nobody else has blocked or unblocked since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.model import BlockCause
from gateway.errors import Conflict
from persistence.billing import charges, payments
from persistence.billing.invoice_heads import rest_of
from persistence.entity import Entity, EntityWrite, id_in
from persistence.keeper.occasions import data_of, message_query
from persistence.queries import query
from persistence.tables import dunning_step

REMINDER, BLOCK, UNBLOCK = "reminder", "block", "unblock"
TENANTS_A_STEP_MAX = 500

# Blocks that have no end yet.
_OPEN = """
SELECT b.* FROM dunning_step AS b WHERE b.action = 'block'
   AND NOT EXISTS (SELECT FROM dunning_step AS e WHERE e.corrects_id = b.id)"""
# An invoice blocks from its first block on, until it is paid, void, or a person excepts its organization.
_BLOCKING = """
SELECT i.id FROM invoice AS i JOIN organization AS g ON g.id = i.organization_id AND g.dunning
 WHERE i.organization_id = {organization} AND i.payment_status IN ('overdue', 'uncollectible')
   AND EXISTS (SELECT FROM dunning_step AS s WHERE s.invoice_id = i.id AND s.action = 'block')"""
_UNTOUCHED = f"""
SELECT t.id FROM tenant AS t WHERE t.organization_id = {{organization}} AND t.deleted_at IS NULL
   AND NOT EXISTS (SELECT FROM ({_OPEN} AND b.tenant_id = t.id) AS open)"""
_BLOCKING_OF_O, _UNTOUCHED_OF_O = (each.format(organization="o.id") for each in (_BLOCKING, _UNTOUCHED))
_DUE = query("dunning.due", "Select organizations with due steps of dunning", f"""
SELECT o.id FROM organization AS o
 WHERE o.id > :after AND o.deleted_at IS NULL AND (
    o.dunning AND EXISTS (
        SELECT FROM invoice AS i
         WHERE i.organization_id = o.id AND i.payment_status = 'overdue' AND (
            EXISTS (SELECT FROM unnest(cast(:reminders AS integer[])) AS d (days)
                     WHERE i.due_date + d.days <= :today
                       AND NOT EXISTS (SELECT FROM dunning_step AS s WHERE s.invoice_id = i.id
                                          AND s.action = 'reminder' AND s.days >= d.days))
            OR i.due_date + cast(:block AS integer) <= :today AND EXISTS ({_UNTOUCHED_OF_O})))
    OR EXISTS ({_BLOCKING_OF_O}) AND EXISTS ({_UNTOUCHED_OF_O})
    OR EXISTS (SELECT FROM ({_OPEN} AND b.organization_id = o.id) AS open)
       AND NOT EXISTS ({_BLOCKING_OF_O}))
 ORDER BY o.id LIMIT :count""")  # fmt: skip
_OVERDUE = query("dunning.overdue", "Select overdue invoices with their reminders", """
SELECT i.id, i.number, i.due_date,
       coalesce(array_agg(s.days) FILTER (WHERE s.action = 'reminder'), '{}') AS told,
       max(s.created_at) FILTER (WHERE s.action = 'reminder') AS last_told
  FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id AND o.dunning
  LEFT JOIN dunning_step AS s ON s.invoice_id = i.id
 WHERE i.organization_id = :organization AND i.payment_status = 'overdue' AND i.due_date IS NOT NULL
 GROUP BY i.id ORDER BY i.due_date, i.id""")  # fmt: skip
_BLOCKING_NOW = query("dunning.blocking_now", "Select the invoice that blocks an organization",
    f"{_BLOCKING.format(organization=':organization')} ORDER BY i.due_date, i.id LIMIT 1")  # fmt: skip
_UNTOUCHED_NOW = query("dunning.untouched_now", "Lock tenants to block",
    f"{_UNTOUCHED.format(organization=':organization')} ORDER BY t.id LIMIT :count FOR UPDATE OF t"
)  # fmt: skip
_OPEN_NOW = query("dunning.open_now", "Select blocks of an organization",
    f"{_OPEN} AND b.organization_id = :organization ORDER BY b.id LIMIT :count")  # fmt: skip
_BLOCKED = query("dunning.blocked", "Count blocked tenants",
    f"SELECT count(*) FROM ({_OPEN} AND b.control_write_id IS NOT NULL) AS open")  # fmt: skip
# The last block or unblock of a tenant; and whether the tenant still exists.
_LAST = query("dunning.last", "Select the last block of a tenant", """
SELECT w.id, w.verb FROM control_write AS w
 WHERE w.account = :account AND w.verb IN ('block', 'unblock') AND w.state <> 'refused'
 ORDER BY w.position DESC LIMIT 1""")  # fmt: skip
_THERE = query("dunning.there", "Lock a tenant",
    "SELECT id FROM tenant WHERE id = :tenant AND deleted_at IS NULL FOR UPDATE")  # fmt: skip
_DATA = data_of(
    "invoice.reminder", "invoice.blocked", "invoice.unblocked",
    invoice_id="i.id", organization_id="i.organization_id", organization="o.name", number="i.number",
    currency="i.currency", total_amount="trim_scale(i.total_amount)::text",
    amount_due="trim_scale(cast(:rest AS numeric))::text", due_date="i.due_date",
    days_overdue="cast(:days AS bigint)", block_date="i.due_date + cast(:block AS integer)",
)  # fmt: skip
_TELL = message_query(
    "dunning",
    "Create messages about a reminder, or about calls that are refused for an unpaid invoice",
    f"""
WITH news AS (
    SELECT cast(:event AS text) AS event, 'dunning:' || cast(:step AS bigint) AS occasion, {_DATA} AS data
      FROM invoice AS i JOIN organization AS o ON o.id = i.organization_id WHERE i.id = :invoice
)""",
)


@dataclass(frozen=True, slots=True)
class DunningSchedule:
    """Days after the due date on which reminders are sent, and calls are refused (None: never)."""

    reminder_days: tuple[int, ...] = ()
    block_days: int | None = None

    @classmethod
    def read(cls, reminder_days: str, block_days: int) -> DunningSchedule:
        """Parse the schedule of the settings: reminder days such as "3,7,14"; 0 block days mean never."""
        days = {int(each) for each in reminder_days.split(",") if each}
        return cls(tuple(sorted(days)), block_days or None)

    def reminder(self, days_over: int, told: Sequence[int]) -> int | None:
        """Return the number of days of the reminder to send `days_over` days after the due date, or None.

        Of several due reminders it is the latest. Reminders up to the last sent one (`told`) are not
        repeated.
        """
        due = [days for days in self.reminder_days if days <= days_over and days > max(told, default=-1)]
        return due[-1] if due else None

    def blocks(self, days_over: int, told: Sequence[int], days_since_told: int) -> bool:
        """Return whether to refuse calls `days_over` days after an invoice's due date.

        It is true only if the last reminder before was sent (`told`), at least a day ago (`days_since_told`).
        """
        if self.block_days is None or days_over < self.block_days:
            return False
        before = [days for days in self.reminder_days if days <= self.block_days]
        return not before or (max(told, default=-1) >= before[-1] and days_since_told >= 1)


def due(
    connection: Connection, schedule: DunningSchedule, today: date, after: int, count: int
) -> Sequence[int]:
    """Return up to `count` ids of organizations with possible dunning steps, by id, beyond the id `after`."""
    here = {"after": after, "count": count, "today": today, "block": schedule.block_days}
    return list(connection.execute(_DUE, here | {"reminders": list(schedule.reminder_days)}).scalars())


async def blocked_tenants(engine: AsyncEngine) -> dict[str, object]:
    """Return the number of tenants that are blocked for unpaid invoices, as a metric."""
    async with engine.connect() as connection:
        return {"tenants_blocked_unpaid": (await connection.execute(_BLOCKED)).scalar_one()}


def advance(change: EntityWrite) -> Row:
    """Run an organization's due dunning steps (reminders, blocks, unblocks); `Conflict` if none is due."""
    values = change.command.values
    organization_id, schedule = id_in(values, "organization_id"), values["schedule"]
    assert isinstance(schedule, DunningSchedule)
    charges.hold(change.connection, organization_id)
    payments.apply_open(change, organization_id)
    here = {"organization": organization_id}
    made, cause = [], None
    for row in change.connection.execute(_OVERDUE, here).all():
        days, since = (change.today - row.due_date).days, 0
        if row.last_told is not None:
            since = (change.today - row.last_told.astimezone(UTC).date()).days
        if (wanted := schedule.reminder(days, row.told)) is not None:
            reason = f"{row.number} was to be paid by {row.due_date}."
            said = {"invoice_id": row.id, "action": REMINDER, "days": wanted, "reason": reason}
            made.append(step := _add(change, organization_id, said))
            _tell(change, "invoice.reminder", step, schedule)
        elif cause is None and schedule.blocks(days, row.told, since):
            cause = row.id
    blocking = change.connection.execute(_BLOCKING_NOW, here).scalar()
    if cause is not None and blocking is None:
        made += _pass_on(change, here, cause)
    cause = cause or blocking
    made += _let_go(change, here) if cause is None else _block(change, here, cause, schedule)
    if not made:
        raise Conflict("Nothing is due of it.")
    return change.fetch(made[-1])


def _block(
    change: EntityWrite, here: dict[str, int], invoice_id: int, schedule: DunningSchedule
) -> list[int]:
    """Block the organization's tenants because `invoice_id` is not paid.

    Return the ids of the new dunning steps. A tenant that a person has blocked stays blocked by that person.
    """
    steps = []
    result = change.connection.execute(_UNTOUCHED_NOW, here | {"count": TENANTS_A_STEP_MAX}).scalars().all()
    for tenant_id in result:
        last, write, reason = _last(change, tenant_id), None, "It was blocked before."
        if last is None or last.verb != BLOCK:
            reason = f"Invoice {invoice_id} is not paid."
            write = _intend(change, here["organization"], tenant_id, BLOCK, reason)
        said = {"invoice_id": invoice_id, "action": BLOCK, "days": schedule.block_days or 0}
        done = {"tenant_id": tenant_id, "control_write_id": write, "reason": reason}
        steps.append(_add(change, here["organization"], said | done))
    if steps:
        _tell(change, "invoice.blocked", steps[0], schedule)
    return steps


def _pass_on(change: EntityWrite, here: dict[str, int], invoice_id: int) -> list[int]:
    """Move the blocks of tenants to the unpaid invoice `invoice_id`, if their own invoice blocks no more.

    Return the ids of the new dunning steps.
    """
    steps = []
    for block in change.connection.execute(_OPEN_NOW, here | {"count": TENANTS_A_STEP_MAX}).all():
        end = {"invoice_id": block.invoice_id, "action": UNBLOCK, "corrects_id": block.id}
        begin = {"invoice_id": invoice_id, "action": BLOCK, "control_write_id": block.control_write_id}
        subject = {"tenant_id": block.tenant_id, "days": block.days}
        unpaid = f"Invoice {invoice_id} is not paid." if block.control_write_id else block.reason
        for said, reason in ((end, f"Invoice {invoice_id} blocks instead."), (begin, unpaid)):
            steps.append(_add(change, here["organization"], {**said, **subject, "reason": reason}))
    return steps


def _let_go(change: EntityWrite, here: dict[str, int]) -> list[int]:
    """End dunning's blocks of tenants; return the ids of the new dunning steps.

    A tenant that somebody else has blocked or unblocked since stays as it is.
    """
    steps = []
    for block in change.connection.execute(_OPEN_NOW, here | {"count": TENANTS_A_STEP_MAX}).all():
        there = change.connection.execute(_THERE, {"tenant": block.tenant_id}).first()
        last, write, reason = _last(change, block.tenant_id), None, "Somebody else has decided since."
        if there and block.control_write_id and last and last.id == block.control_write_id:
            reason = f"Invoice {block.invoice_id} blocks no more."
            write = _intend(change, here["organization"], block.tenant_id, UNBLOCK, reason)
        said = {"invoice_id": block.invoice_id, "action": UNBLOCK, "days": block.days, "reason": reason}
        done = {"tenant_id": block.tenant_id, "control_write_id": write, "corrects_id": block.id}
        steps.append(_add(change, here["organization"], said | done))
    if steps:
        _tell(change, "invoice.unblocked", steps[0], DunningSchedule())
    return steps


def _last(change: EntityWrite, tenant_id: int) -> Any:
    """Return the last block or unblock of a tenant; None if there was none."""
    return change.connection.execute(_LAST, {"account": f"tenant:{tenant_id}"}).first()


def _intend(change: EntityWrite, organization_id: int, tenant_id: int, verb: str, reason: str) -> UUID:
    account = [f"tenant:{tenant_id}"]
    cause = {"cause": BlockCause.DUNNING.word} if verb == BLOCK else {}
    [write] = change.intend(account, verb, {"reason": reason, **cause}, organization_id=organization_id)
    return write


def _add(change: EntityWrite, organization_id: int, row: Row) -> int:
    made = insert(dunning_step).values(
        organization_id=organization_id, actor=change.command.actor.scope, created_at=change.now, **row
    )
    return int(change.connection.execute(made.returning(dunning_step.c.id)).scalar_one())


def _tell(change: EntityWrite, event: str, step: int, schedule: DunningSchedule) -> None:
    row = change.fetch(step)
    rest = rest_of(change.connection, id_in(row, "invoice_id"))
    here = {"event": event, "step": step, "invoice": row["invoice_id"], "days": row["days"], "rest": rest}
    change.connection.execute(_TELL, here | {"block": schedule.block_days})


SUBJECT = Entity(dunning_step, verbs={"advance": advance})
