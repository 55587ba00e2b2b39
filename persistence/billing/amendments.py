"""What a call was charged, taken back in part or whole: once, by rows with a reason and who did it.

The counters give back tokens and units, and their ledgers get a row; credits are an addition. Tokens of a
cycle that is over go back to no quota: they are owed no more. What is billed stays, the next invoice gives
it back.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, case, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.holds import correction_id
from gateway.core.billing.pricing import IN_MONEY, MICRO, NANO, Tier
from gateway.core.billing.tiers import pack_tiers
from gateway.errors import Conflict, Unprocessable
from persistence.billing import charges
from persistence.ledger import statements, usage_rollup, usage_spans
from persistence.resources.app_users import acting
from persistence.subject import Change, Subject, write_of
from persistence.tables.billing import amendment
from persistence.tables.ledgers import credit_addition, money

_CALL = text("""
SELECT organization_id, tenant_id, service_id, created_at, tokens, credits, content_id, project_id
  FROM call WHERE request_id = :request AND NOT refused FOR UPDATE""")
# Of the quota: what it moved, when, and in which cycle; an event of one that was over moved none.
_TOKENS = text("""
SELECT coalesce(sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), 0)::bigint AS moved,
       min(created_at) AS at, max(cycle) AS cycle,
       coalesce((SELECT late_tokens FROM use_event WHERE request_id = :request), 0) AS late
  FROM token_ledger WHERE request_id = :request AND transaction_type IN ('consume', 'adjust')""")
_UNITS = text("""
SELECT coalesce(sum(usage_amount), 0)::bigint AS units, coalesce(sum(spend), 0)::bigint AS spend,
       coalesce(bool_or(in_money), false) AS in_money, min("timestamp") AS at
  FROM feature_usage WHERE request_id = :request""")
_PRICES = text("""
SELECT unit_price FROM usage_tier
 WHERE tenant_id = :tenant AND service_id = :service AND quantity > 0
   AND day = (cast(:at AS timestamptz) AT TIME ZONE 'UTC')::date ORDER BY unit_price DESC""")
_QUOTA = text("""
SELECT q.cycle, q.next_reset_at, p.overage_policy
  FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id) WHERE q.tenant_id = :tenant""")
_DONE = select(amendment.c.id)


def create(change: Change) -> Row:
    """Take back; `Conflict` where the call was amended before, `Unprocessable` where it has not so much."""
    values, connection = change.command.values, change.connection
    request = {"request": UUID(str(values["request_id"]))}
    call = connection.execute(_CALL, request).first()
    if call is None or values.get("organization_id") not in {None, call.organization_id}:
        whose = " of this organization" if values.get("organization_id") else ""
        raise Unprocessable(errors=(("request_id", f"is the id of no call{whose} that was charged"),))
    before = connection.execute(_DONE.where(amendment.c.request_id == request["request"])).scalar()
    if before is not None:
        raise Conflict(f"This call was amended already, by amendment {before}: a call is amended once.")
    tokens, units = connection.execute(_TOKENS, request).one(), connection.execute(_UNITS, request).one()
    back = _checked(values, call, tokens, units)
    late, quota = _of_quota(change, call, tokens, back["tokens"])
    row = insert(amendment).values(
        request_id=request["request"], organization_id=call.organization_id, tenant_id=call.tenant_id,
        service_id=call.service_id, used_at=tokens.at or call.created_at, tokens=back["tokens"],
        credits=back["credits"], units=back["units"], in_money=units.in_money, late_tokens=late,
        reason=values["reason"], actor=change.command.actor.scope,
    )  # fmt: skip
    row_id = int(connection.execute(row.returning(amendment.c.id)).scalar_one())
    if quota or back["units"]:
        _take_back(change, call, quota, back["units"], _tiers(connection, call, units))
    if back["credits"]:
        _give(change, call.organization_id, back["credits"])
    _tell(connection, str(request["request"]), back, in_money=units.in_money)
    if late:
        charges.hold(connection, call.organization_id)
        change.hold_flushes(change.partition_of(call.organization_id))
        charges.accrue_tokens(connection, call.organization_id)
    return change.fetch(row_id)


def _checked(values: Row, call: Any, tokens: Any, units: Any) -> dict[str, int]:
    """What is taken back, no more than there is."""
    nano = Decimal(str(values.get("amount") or 0)) * NANO
    asked = {name: int(str(values.get(name) or 0)) for name in ("tokens", "credits", "units")}
    moves = tokens.moved > 0 or tokens.late > 0
    has = {
        "tokens": call.tokens if moves else 0,
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
    if errors:
        raise Unprocessable(errors=tuple(errors))
    return {**asked, "units": int(nano) or asked["units"]}


def _of_quota(change: Change, call: Any, tokens: Any, back: int) -> tuple[int, int]:
    """Tokens that a cycle which is over owes no more, and tokens that go back to the quota."""
    if not back:
        return 0, 0
    counted = tokens.moved or tokens.late
    part = counted if back == call.tokens else counted * back // call.tokens
    quota = change.connection.execute(_QUOTA, {"tenant": call.tenant_id}).one()
    is_last = tokens.cycle == quota.cycle and (
        quota.next_reset_at is None or quota.next_reset_at > change.now  # else its reset is on its way
    )
    over = tokens.moved == 0 or not (is_last or quota.overage_policy == "carry")
    return (part, 0) if over else (0, part)


def _tiers(connection: Connection, call: Any, units: Any) -> bytes:
    """What its units cost, so that they are taken back at the same: by the prices of their day."""
    if units.in_money or not units.units:
        return pack_tiers(IN_MONEY)
    here = {"tenant": call.tenant_id, "service": call.service_id or 0, "at": units.at}
    each = Decimal(units.spend) / (MICRO * units.units)
    prices = connection.execute(_PRICES, here).scalars().all() or [each]
    nearest = min(prices, key=lambda price: abs(price - each))
    return pack_tiers((Tier(None, nearest),))


def _take_back(change: Change, call: Any, quota: int, units: int, tiers: bytes) -> None:
    """Have the counters give back tokens and units: the write's id is a correction's."""
    values = change.command.values
    moves = {
        "tokens": quota, "units": units, "tiers": tiers.hex() if units else "",
        "corrects": str(values["request_id"]), "reason": values["reason"],
    }  # fmt: skip
    change.intend_all([correcting_write(change, call, moves)])


def correcting_write(change: Change, call: Any, moves: Row) -> dict[str, object]:
    """A control write that has the counters move what a call was charged; its id is a correction's."""
    content, project = ("" if one is None else one for one in (call.content_id, call.project_id))
    payload = {
        "tenant_id": call.tenant_id, "service_id": call.service_id or 0,
        "attribution": f"{content}\t{project}\t", **moves,
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


def _tell(connection: Connection, request_id: str, back: Row, *, in_money: bool) -> None:
    """Take it off the call's row, and off what calls add up to; a call at cost is one unit."""
    values = {**back, "units": 0 if in_money else back["units"], "request_id": request_id}
    before = connection.exec_driver_sql(statements.CALL_SUMS, values).fetchone()
    after = connection.exec_driver_sql(statements.AMEND_CALL, values).fetchone()
    assert before is not None, "its row is held"
    assert after is not None, "its row is held"
    connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, usage_rollup.moved_columns([(before, after)]))


SUBJECT = Subject(
    amendment,
    source=select(
        *(column for column in amendment.c if column.name != "units"),
        case((amendment.c.in_money, 0), else_=amendment.c.units).label("units"),
        case((amendment.c.in_money, money(amendment.c.units))).label("amount"),
    ),
    verbs={"create": create},
)
