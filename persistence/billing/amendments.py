"""What a call was charged, taken back or added to: once, by rows with a reason and who did it.

The counters move tokens and units, and their ledgers get a row; credits come back as an addition, and are
charged as a use. Tokens of a cycle that is over move no quota: they are owed no more, or besides. What is
billed stays, the next invoice gives it back, or bills it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, case, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.holds import correction_id
from gateway.core.billing.early_use import CARRY
from gateway.core.billing.pricing import IN_MONEY, MICRO, NANO, Tier, spend_micro
from gateway.core.billing.tiers import pack_tiers
from gateway.core.billing.usage_feed import AMENDED
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import rfc3339
from gateway.errors import Unprocessable
from persistence.billing import beyond, charges
from persistence.billing.amended import Amended, amended_call
from persistence.billing.token_cycles import carried, in_cycle
from persistence.keeper.request_rows import times_of
from persistence.ledger import statements, usage_feed, usage_rollup, usage_spans
from persistence.resources.app_users import acting
from persistence.subject import Change, Subject, write_of
from persistence.tables import amendment, credit_addition, money

_PRICES = text("""
SELECT unit_price FROM usage_tier
 WHERE tenant_id = :tenant AND service_id = :service AND quantity > 0
   AND day = (cast(:at AS timestamptz) AT TIME ZONE 'UTC')::date ORDER BY unit_price DESC""")
_QUOTA = text("""
SELECT q.cycle, q.next_reset_at, p.overage_policy
  FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id) WHERE q.tenant_id = :tenant""")
KINDS = ("tokens", "credits", "units")


def create(change: Change) -> Row:
    """Amend; `Conflict` where that was done before, `Unprocessable` where the call cannot be moved so."""
    values, connection = change.command.values, change.connection
    amended = amended_call(change)
    call, moved = amended.call, _checked(values, amended)
    if amended.sign < 0:
        beyond.refuse_too_much(connection, call.tenant_id, moved["tokens"], moved["credits"])
    late, quota = _of_quota(change, amended, moved["tokens"])
    row = insert(amendment).values(
        request_id=UUID(str(values["request_id"])), organization_id=call.organization_id,
        tenant_id=call.tenant_id, service_id=call.service_id, used_at=amended.used_at, **moved,
        counted_at=amended.counted_at, in_money=amended.in_money, late_tokens=late, quota_tokens=quota,
        reason=values["reason"], direction="IN" if amended.sign > 0 else "OUT",
        actor=change.command.actor.scope,
    )  # fmt: skip
    row_id = int(connection.execute(row.returning(amendment.c.id)).scalar_one())
    charged = moved["credits"] if amended.sign < 0 else 0
    if quota or moved["units"] or charged:
        _settle(change, amended, {"tokens": quota, "units": moved["units"], "credits": charged})
    if moved["credits"] and not charged:
        _give(change, call.organization_id, moved["credits"])
    _tell(
        connection, str(values["request_id"]), {name: amended.sign * moved[name] for name in KINDS}, amended
    )
    # A plan that was in force before has it too, where it was used by that one.
    used_at = amended.used_at
    if late or (quota and used_at < call.tenant_changed_at):
        charges.hold(connection, call.organization_id)
        change.hold_flushes(change.partition_of(call.organization_id))
        charges.accrue_told(connection, {call.organization_id: {call.tenant_id: used_at}})
    return change.fetch(row_id)


def _checked(values: Row, amended: Amended) -> dict[str, int]:
    """What is moved: no more is taken back than there is, and nothing is added that the service has not."""
    nano = Decimal(str(values.get("amount") or 0)) * NANO
    asked = {name: int(str(values.get(name) or 0)) for name in KINDS}
    if nano != int(nano):
        raise Unprocessable(errors=(("amount", "must have 9 decimals at most"),))
    errors = (_too_much if amended.sign > 0 else _foreign)(asked, int(nano), amended)
    if errors:
        raise Unprocessable(errors=tuple(errors))
    return {**asked, "units": int(nano) or asked["units"]}


def _too_much(asked: dict[str, int], nano: int, amended: Amended) -> list[tuple[str, str]]:
    """What there is less of than is to be taken back."""
    call, tokens, units = amended.call, amended.tokens, amended.units
    has = {
        "tokens": call.tokens if tokens.moved > 0 or tokens.late > 0 else 0,
        "credits": call.credits,
        "units": 0 if units.in_money else units.units,
    }
    errors = [
        (name, f"is more than the {has[name]} that the call was charged")
        for name, amount in asked.items()
        if amount > max(0, has[name])
    ]
    charged = units.units if units.in_money else 0
    if nano > charged:
        errors.append(("amount", f"is more than the {Decimal(charged).scaleb(-9):f} the call was charged"))
    return errors


def _foreign(asked: dict[str, int], nano: int, amended: Amended) -> list[tuple[str, str]]:
    """What the service of the call does not charge, or not so much at once."""
    call, service, units = amended.call, amended.service, amended.units
    meter = "" if service is None else service.meter
    counts = amended.tokens.moved > 0 or amended.tokens.late > 0 or (service and service.counts_tokens)
    has_units = units.units > 0 or meter == PAY_PER_USE
    charges_it = {
        "tokens": (counts, "the service of the call counts no tokens"),
        "credits": (call.credits > 0 or meter == CONSUMPTION, "the service of the call takes no credits"),
        "units": (has_units and not amended.in_money, "the service of the call has no price a unit"),
    }
    errors = [(name, charges_it[name][1]) for name in KINDS if asked[name] and not charges_it[name][0]]
    if nano and not amended.in_money:
        errors.append(("amount", "the call is not charged at cost"))
    if nano > INTEGER_MAX:
        errors.append(("amount", f"must be at most {Decimal(INTEGER_MAX).scaleb(-9):f}"))
    return errors


def _of_quota(change: Change, amended: Amended, moved: int) -> tuple[int, int]:
    """Tokens that a cycle which is over owes no more, or besides; and those that the quota moves by."""
    call, tokens = amended.call, amended.tokens
    if not moved:
        return 0, 0
    counted = tokens.moved if tokens.moved > 0 else tokens.late
    part = moved  # as its plan weighs them, where it has weighed some
    if counted and call.tokens:
        part = counted * moved // call.tokens if amended.sign > 0 else -(-counted * moved // call.tokens)
    quota = change.connection.execute(_QUOTA, {"tenant": call.tenant_id}).first()
    if quota is None:
        return 0, part
    now = change.now
    if tokens.cycle is None:
        is_last = not tokens.late and in_cycle(change.connection, now, call.tenant_id, call.created_at)
    else:
        is_last = tokens.cycle == quota.cycle and (
            quota.next_reset_at is None or quota.next_reset_at > now  # else its reset is on its way
        )
    if (tokens.moved <= 0 and tokens.late > 0) or not is_last:
        goes_on = quota.overage_policy == CARRY and carried(
            change.connection, call.tenant_id, amended.used_at
        )
        return (0, part) if goes_on and not tokens.late else (part, 0)
    return 0, part


def _parts(connection: Connection, amended: Amended, units: int) -> list[tuple[int, tuple[Tier, ...]]]:
    """Units that are moved, and what they cost: the last ones of the call are taken back first."""
    if not units or amended.in_money:
        return [(units, IN_MONEY if units else ())]
    if not amended.units.units:  # the price of now
        return [(units, amended.service.pricing.ladder if amended.service is not None else ())]
    found: list[tuple[int, tuple[Tier, ...]]] = []
    for many, price in reversed(_used_at(connection, amended)):
        moved = min(many, units) if amended.sign > 0 else units
        found.append((moved, (Tier(None, price),)))
        units -= moved
        if not units:
            break
    return found


def _used_at(connection: Connection, amended: Amended) -> list[tuple[int, Decimal]]:
    """What the units of a call cost, in their order."""
    call, units = amended.call, amended.units
    if isinstance(units.prices, list):
        return [(int(many), Decimal(price)) for many, price in units.prices]
    if units.prices is not None:
        return [(units.units, Decimal(units.prices))]
    # A row of before prices were kept: the price of its day that is nearest.
    here = {"tenant": call.tenant_id, "service": call.service_id or 0, "at": units.at}
    each = Decimal(units.spend) / (MICRO * units.units)
    prices = connection.execute(_PRICES, here).scalars().all() or [each]
    return [(units.units, min(prices, key=lambda price: abs(price - each)))]


def _settle(change: Change, amended: Amended, moved: dict[str, int]) -> None:
    """Have the counters move what the call was charged: each write's id is a correction's."""
    values, writes = change.command.values, []
    for units, tiers in _parts(change.connection, amended, moved["units"]):
        if spend_micro(tiers, 0, units) > INTEGER_MAX:
            raise Unprocessable(errors=(("units", "cost more than one amendment may move"),))
        moves = {
            **{name: amended.sign * amount for name, amount in (moved | {"units": units}).items()},
            "tiers": pack_tiers(tiers).hex(), "corrects": str(values["request_id"]),
            "reason": values["reason"], "told_on": rfc3339(amended.units.at or amended.call.created_at)[:10],
        }  # fmt: skip
        writes.append(correcting_write(change, amended.call, moves))
        moved = dict.fromkeys(moved, 0)
    change.intend_all(writes)


def correcting_write(change: Change, call: Any, moves: Row) -> dict[str, object]:
    """A control write that has the counters move what a call was charged; its id is a correction's.

    What it moves was supplied on the day of the call, and told `told_on` where `moves` say so.
    """
    content, project = ("" if one is None else one for one in (call.content_id, call.project_id))
    payload = {
        "tenant_id": call.tenant_id, "service_id": call.service_id or 0,
        "attribution": f"{content}\t{project}\t",
        "supplied_on": rfc3339(call.created_at)[:10], **moves,
    }  # fmt: skip
    account, partition = f"organization:{call.organization_id}", change.partition_of(call.organization_id)
    return write_of(partition, account, "amend", payload, correction_id(str(uuid4())))


def _give(change: Change, organization_id: int, amount: int) -> None:
    account = f"organization:{organization_id}"
    [write_id] = change.intend([account], "credits", {"amount": amount}, organization_id=organization_id)
    values = change.command.values
    remark = f"{values['reason']}: request {values['request_id']}"
    change.connection.execute(
        insert(credit_addition).values(
            organization_id=organization_id, credits_added=amount, category="refund", remark=remark,
            added_by_id=acting(change.command.actor), timestamp=change.now, control_write_id=write_id,
        )
    )  # fmt: skip


def _tell(connection: Connection, request_id: str, back: dict[str, int], amended: Amended) -> None:
    """Take it off the call's row, and off what calls add up to; a call at cost is one unit."""
    values = {
        **back, "units": 0 if amended.in_money else back["units"], "request_id": request_id,
        **times_of([request_id]),
    }  # fmt: skip
    before = connection.exec_driver_sql(statements.CALL_SUMS, values).fetchone()
    after = connection.exec_driver_sql(statements.AMEND_CALL, values).fetchone()
    assert before is not None, "its row is held"
    assert after is not None, "its row is held"
    connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, usage_rollup.moved_columns([(before, after)]))
    usage_feed.tell_changes(connection, AMENDED, [(before, after)])


SUBJECT = Subject(
    amendment,
    source=select(
        *(column for column in amendment.c if column.name != "units"),
        case((amendment.c.in_money, 0), else_=amendment.c.units).label("units"),
        case((amendment.c.in_money, money(amendment.c.units))).label("amount"),
    ),
    verbs={"create": create},
)
