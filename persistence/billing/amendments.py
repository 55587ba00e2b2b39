"""Amendments: a charged call gets a refund or a further charge, once, with a reason and an actor.

The counters move tokens and units, and their ledgers get a row. Credits are refunded as a credit addition,
and charged as a use. Tokens of an ended cycle move no quota: they change the debt for that cycle. Billed
charges are kept, and the next invoice refunds or bills the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, case, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.holds import correction_id
from gateway.core.billing.money import IN_MONEY, MICRO, NANO, PriceTier, pack_tiers, spend_micro
from gateway.core.billing.proration import CARRY
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, is_in_money
from gateway.core.model import INTEGER_MAX, Service
from gateway.core.times import rfc3339
from gateway.errors import Conflict, Unprocessable
from persistence.billing import charges, overage_prices
from persistence.billing.events import service_of
from persistence.billing.plan_turns import carried, in_cycle
from persistence.entity import Entity, EntityWrite, write_of
from persistence.keeper.retention import SINCE_BEGAN, times_of
from persistence.ledger import listeners, statements, usage_rollup
from persistence.resources.app_users import acting
from persistence.tables import amendment, credit_addition, money

# A call that is amended: its charges, and the time of its use.

_CALL = f"""
SELECT organization_id, tenant_id, service_id, created_at, tokens, credits, content_id, project_id,
       (SELECT t.updated_at FROM tenant AS t WHERE t.id = call.tenant_id) AS tenant_changed_at
  FROM call WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND NOT refused
   FOR UPDATE"""
# The quota's movement by the call, its time and cycle; an event of an ended cycle moved none.
_TOKENS = f"""
SELECT coalesce(sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), 0)::bigint AS moved,
       min(created_at) AS at, max(cycle) AS cycle,
       coalesce((SELECT late_tokens FROM use_event WHERE request_id = %(request)s), 0) AS late,
       (SELECT used_at FROM use_event WHERE request_id = %(request)s) AS told_of
  FROM token_ledger
 WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN}
   AND transaction_type IN ('consume', 'adjust')"""
_UNITS = f"""
SELECT coalesce(sum(usage_amount), 0)::bigint AS units, coalesce(sum(spend), 0)::bigint AS spend,
       coalesce(bool_or(in_money), false) AS in_money, min("timestamp") AS at,
       jsonb_agg(unit_prices ORDER BY "timestamp") -> 0 AS prices
  FROM feature_usage
 WHERE request_id = %(request)s AND "timestamp" >= {SINCE_BEGAN}"""
# The time from which all ledgers have their rows: earlier ones may be in an archive.
_SINCE = text("""
SELECT max(since) FROM kept_since
 WHERE ledger IN ('token_ledger', 'credit_transaction', 'feature_usage')""")
_DONE = select(amendment.c.id)
_KEY = text("SELECT key FROM service WHERE id = :service")


@dataclass(frozen=True, slots=True)
class CallEffects:
    """A charged call, its movements in the ledgers, and its service; `sign` is 1 for a refund, else -1."""

    call: Any
    tokens: Any
    units: Any
    service: Service | None
    sign: int

    @property
    def used_at(self) -> datetime:
        """The time of the use: from the event that reported it, else from the ledger or the call."""
        at: datetime = self.tokens.told_of or self.tokens.at or self.call.created_at
        return at

    @property
    def counted_at(self) -> datetime | None:
        """The time at which the ledger counted the tokens of an event; None for a call."""
        at: datetime | None = self.tokens.at if self.tokens.told_of else None
        return at

    @property
    def in_money(self) -> bool:
        """Whether the call's units are billionths of the currency."""
        service = self.service
        return bool(self.units.in_money or (not self.units.units and service and is_in_money(service)))


def amended_call(change: EntityWrite) -> CallEffects:
    """Return the call that the command amends, locked until the end of the transaction.

    Raise `Unprocessable` if no call has this id, `Conflict` if the call was amended before.
    """
    values, connection = change.command.values, change.connection
    request_id = UUID(str(values["request_id"]))
    request = {"request": request_id, **times_of([str(request_id)])}
    call = connection.exec_driver_sql(_CALL, request).first()
    if call is None or values.get("organization_id") not in {None, call.organization_id}:
        whose = " of this organization" if values.get("organization_id") else ""
        raise Unprocessable(errors=(("request_id", f"is the id of no call{whose} that was charged"),))
    before = connection.execute(_DONE.where(amendment.c.request_id == request_id)).scalar()
    if before is not None:
        raise Conflict(f"This call was amended already, by amendment {before}: a call is amended once.")
    key = connection.execute(_KEY, {"service": call.service_id}).scalar()
    service = None if key is None else service_of(connection, call.organization_id, key)
    tokens = connection.exec_driver_sql(_TOKENS, request).one()
    units = connection.exec_driver_sql(_UNITS, request).one()
    # Read last, because a month may be archived meanwhile.
    since = connection.execute(_SINCE).scalar()
    if since is not None and (tokens.at or units.at or call.created_at) < since:
        raise Unprocessable(errors=(("request_id", "is of a month that is archived: it cannot be amended"),))
    return CallEffects(call, tokens, units, service, -1 if values.get("direction") == "OUT" else 1)


_PRICES = text("""
SELECT unit_price FROM usage_tier
 WHERE tenant_id = :tenant AND service_id = :service AND quantity > 0
   AND day = (cast(:at AS timestamptz) AT TIME ZONE 'UTC')::date ORDER BY unit_price DESC""")
_QUOTA = text("""
SELECT q.cycle, q.next_reset_at, p.overage_policy
  FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id) WHERE q.tenant_id = :tenant""")
KINDS = ("tokens", "credits", "units")


def create(change: EntityWrite) -> Row:
    """Store an amendment of a call's charge, and the control writes that change the counters in Redis.

    Raise `Conflict` if the call was amended before, `Unprocessable` if it cannot be amended by these amounts.
    """
    values, connection = change.command.values, change.connection
    amended = amended_call(change)
    call, moved = amended.call, _checked(values, amended)
    if amended.sign < 0:
        overage_prices.refuse_too_much_overage(connection, call.tenant_id, moved["tokens"], moved["credits"])
    late, quota = _quota_changes(change, amended, moved["tokens"])
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
    # An earlier plan counts the tokens as well if they were used while it was in force.
    used_at = amended.used_at
    if late or (quota and used_at < call.tenant_changed_at):
        charges.hold(connection, call.organization_id)
        change.hold_flushes(change.partition_of(call.organization_id))
        charges.accrue_early_use(connection, {call.organization_id: {call.tenant_id: used_at}})
    return change.fetch(row_id)


def _checked(values: Row, amended: CallEffects) -> dict[str, int]:
    """Return the tokens, credits and units by which a call is to be amended.

    Raise `Unprocessable` if a refund exceeds the call's charge, or if the call has no charge of this kind.
    """
    nano = Decimal(str(values.get("amount") or 0)) * NANO
    asked = {name: int(str(values.get(name) or 0)) for name in KINDS}
    if nano != int(nano):
        raise Unprocessable(errors=(("amount", "must have 9 decimals at most"),))
    errors = (_too_much if amended.sign > 0 else _foreign)(asked, int(nano), amended)
    if errors:
        raise Unprocessable(errors=tuple(errors))
    return {**asked, "units": int(nano) or asked["units"]}


def _too_much(asked: dict[str, int], nano: int, amended: CallEffects) -> list[tuple[str, str]]:
    """Return an error for each amount to be refunded that exceeds what the call was charged."""
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


def _foreign(asked: dict[str, int], nano: int, amended: CallEffects) -> list[tuple[str, str]]:
    """Return the errors of amounts to add to a call, as (field, message).

    An amount is wrong if it is too large, or if the call's service does not charge its kind.
    """
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


def _quota_changes(change: EntityWrite, amended: CallEffects, moved: int) -> tuple[int, int]:
    """Return by how many tokens an amendment changes the debt of an ended cycle, and today's quota.

    `moved` is the number of amended tokens.
    """
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
        use = (call.tenant_id, call.created_at)
        is_last = not tokens.late and bool(in_cycle(change.connection, now, [use]))
    else:
        is_last = tokens.cycle == quota.cycle and (
            quota.next_reset_at is None or quota.next_reset_at > now  # else its reset is on its way
        )
    if (tokens.moved <= 0 and tokens.late > 0) or not is_last:
        use = (call.tenant_id, amended.used_at)
        goes_on = quota.overage_policy == CARRY and bool(carried(change.connection, [use]))
        return (0, part) if goes_on and not tokens.late else (part, 0)
    return 0, part


class PricedUnits(NamedTuple):
    units: int
    tiers: tuple[PriceTier, ...]


def _price_units(connection: Connection, amended: CallEffects, units: int) -> list[PricedUnits]:
    """Return the amended units of a call with their prices; a refund begins with the units used last."""
    if not units or amended.in_money:
        return [PricedUnits(units, IN_MONEY if units else ())]
    if not amended.units.units:
        present = amended.service.pricing.ladder if amended.service is not None else ()
        return [PricedUnits(units, present)]
    parts: list[PricedUnits] = []
    for many, unit_price in reversed(_used_at(connection, amended)):
        moved = min(many, units) if amended.sign > 0 else units
        parts.append(PricedUnits(moved, (PriceTier(None, unit_price),)))
        units -= moved
        if not units:
            break
    return parts


def _used_at(connection: Connection, amended: CallEffects) -> list[tuple[int, Decimal]]:
    """Return the units of a call with their unit prices, in the order of use."""
    call, units = amended.call, amended.units
    if isinstance(units.prices, list):
        return [(int(many), Decimal(price)) for many, price in units.prices]
    if units.prices is not None:
        return [(units.units, Decimal(units.prices))]
    # An old row without prices: the nearest price of its day.
    here = {"tenant": call.tenant_id, "service": call.service_id or 0, "at": units.at}
    each = Decimal(units.spend) / (MICRO * units.units)
    prices = connection.execute(_PRICES, here).scalars().all() or [each]
    return [(units.units, min(prices, key=lambda price: abs(price - each)))]


def _settle(change: EntityWrite, amended: CallEffects, moved: dict[str, int]) -> None:
    """Store the control writes that move the counters by the amendment."""
    values, writes = change.command.values, []
    for units, tiers in _price_units(change.connection, amended, moved["units"]):
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


def correcting_write(change: EntityWrite, call: Any, moves: Row) -> dict[str, object]:
    """Return a control write that changes the counters in Redis by `moves`, a correction of a call's charge.

    The correction belongs to the day of the call. `moves` may contain `told_on`, the day on which the ledger
    counted the call.
    """
    content, project = ("" if one is None else one for one in (call.content_id, call.project_id))
    payload = {
        "tenant_id": call.tenant_id, "service_id": call.service_id or 0,
        "attribution": f"{content}\t{project}\t",
        "supplied_on": rfc3339(call.created_at)[:10], **moves,
    }  # fmt: skip
    account, partition = f"organization:{call.organization_id}", change.partition_of(call.organization_id)
    return write_of(partition, account, "amend", payload, correction_id(str(uuid4())))


def _give(change: EntityWrite, organization_id: int, amount: int) -> None:
    """Add credits to an organization as a refund of the amended call."""
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


def _tell(connection: Connection, request_id: str, back: dict[str, int], amended: CallEffects) -> None:
    """Subtract a refund, `back`, from a call's row and its roll-ups, and notify other features."""
    values = {
        **back, "units": 0 if amended.in_money else back["units"], "request_id": request_id,
        **times_of([request_id]),
    }  # fmt: skip
    before = connection.exec_driver_sql(statements.CALL_SUMS, values).fetchone()
    after = connection.exec_driver_sql(statements.AMEND_CALL, values).fetchone()
    assert before is not None, "its row is held"
    assert after is not None, "its row is held"
    connection.exec_driver_sql(usage_rollup.ROLL_UP_CALLS, usage_rollup.moved_columns([(before, after)]))
    listeners.tell_changes(connection, "amended", [(before, after)])


SUBJECT = Entity(
    amendment,
    source=select(
        *(column for column in amendment.c if column.name != "units"),
        case((amendment.c.in_money, 0), else_=amendment.c.units).label("units"),
        case((amendment.c.in_money, money(amendment.c.units))).label("amount"),
    ),
    verbs={"create": create},
)
