"""Amendments: a charged call gets a refund or a further charge, once, with a reason and an actor.

The counters move tokens and units, and their ledgers get a row. Credits are refunded as a credit addition,
and charged as a use. Tokens of an ended cycle move no quota: they change the debt for that cycle. Billed
charges are kept, and the next invoice refunds or bills the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, case, insert, select, text

from gateway.calls.journal import JournalUse, PricesThen, Rating
from gateway.core.accounts.administration import Row
from gateway.core.accounts.holds import correction_id
from gateway.core.accounts.outbox import OTHER_MODELS, read_other_models
from gateway.core.billing.money import IN_MONEY, MICRO, NANO, PriceTier, pack_tiers, spend_micro
from gateway.core.billing.price_book import KINDS as KINDS_OF_TOKENS
from gateway.core.billing.price_book import charged, read_price
from gateway.core.billing.proration import CARRY
from gateway.core.billing.vector import SAME, Factor
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, factor_of, is_in_money
from gateway.core.model import INTEGER_MAX, Service
from gateway.core.times import ms_of, rfc3339
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.billing import charges, credit_balances
from persistence.billing.events import service_of
from persistence.billing.plans import carried, in_cycle
from persistence.entity import Entity, EntityWrite, write_of
from persistence.keeper.retention import SINCE_BEGAN, times_of
from persistence.ledger import listeners, rollup, statements
from persistence.ledger.rows import stored_text
from persistence.resources import catalogue
from persistence.resources.app_users import acting
from persistence.tables import amendment, credit_addition, money, price, rerating, rerating_left

# A call that is amended: its charges, and the time of its use.

_CALL = f"""
SELECT organization_id, tenant_id, service_id, created_at, tokens, credits, content_id, project_id,
       (SELECT t.updated_at FROM tenant AS t WHERE t.id = call.tenant_id) AS tenant_changed_at
  FROM call WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND NOT refused
   FOR UPDATE"""  # noqa: S608  # our own words
# The quota's movement by the call, its time and cycle; an event of an ended cycle moved none.
_TOKENS = f"""
SELECT coalesce(sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), 0)::bigint AS moved,
       min(created_at) AS at, max(cycle) AS cycle,
       coalesce((SELECT late_tokens FROM use_event WHERE request_id = %(request)s), 0) AS late,
       (SELECT used_at FROM use_event WHERE request_id = %(request)s) AS told_of
  FROM token_ledger
 WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN}
   AND transaction_type IN ('consume', 'adjust')"""  # noqa: S608  # our own words
_UNITS = f"""
SELECT coalesce(sum(usage_amount), 0)::bigint AS units, coalesce(sum(spend), 0)::bigint AS spend,
       coalesce(bool_or(in_money), false) AS in_money, min("timestamp") AS at,
       jsonb_agg(unit_prices ORDER BY "timestamp") -> 0 AS prices
  FROM feature_usage
 WHERE request_id = %(request)s AND "timestamp" >= {SINCE_BEGAN}"""  # noqa: S608  # our own words
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
        credit_balances.refuse_too_much_overage(connection, call.tenant_id, moved["tokens"], moved["credits"])
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


def _of_quota(change: EntityWrite, amended: CallEffects, moved: int) -> tuple[int, int]:
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


def _parts(
    connection: Connection, amended: CallEffects, units: int
) -> list[tuple[int, tuple[PriceTier, ...]]]:
    """Return the amended units of a call with their prices; a refund begins with the units used last."""
    if not units or amended.in_money:
        return [(units, IN_MONEY if units else ())]
    if not amended.units.units:  # the price of now
        return [(units, amended.service.pricing.ladder if amended.service is not None else ())]
    found: list[tuple[int, tuple[PriceTier, ...]]] = []
    for many, unit_price in reversed(_used_at(connection, amended)):
        moved = min(many, units) if amended.sign > 0 else units
        found.append((moved, (PriceTier(None, unit_price),)))
        units -= moved
        if not units:
            break
    return found


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
    connection.exec_driver_sql(rollup.ROLL_UP_CALLS, rollup.moved_columns([(before, after)]))
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


# A price with a start in the past: calls since then at cost, which no invoice has, are rated again.
#
# Each re-rated call gets a row with the reason and the actor; the counters and the charges move by the
# difference. Billed charges are kept. Budgets keep the original cost. Calls beyond one transaction's maximum
# are rated by the keeper, piece by piece.

# Calls at cost that one transaction rates again.
PIECE_CALLS_MAX = 10_000
# Calls at cost since a time, in a currency, on days without billed charges; with the amount they are charged
# once all pending control writes are stored.
_OPEN = text(f"""
SELECT c.id, c.request_id::text AS request_id, c.organization_id, c.tenant_id, c.service_id, s.key,
       c.created_at, coalesce(c.model, '') AS model, coalesce(c.response_model, '') AS response_model,
       c.cost, c.currency, coalesce(c.exchange_rate, '') AS exchange_rate, c.price_id, c.tools,
       coalesce(c.service_tier, '') AS service_tier, c.content_id, c.project_id, u.units,
       u.day AS told_on, u.other_models,
       {", ".join("c." + kind for kind in KINDS_OF_TOKENS)}
  FROM (SELECT request_id, sum(units)::bigint AS units, (min(at) AT TIME ZONE 'UTC')::date AS day,
               (array_agg(others ORDER BY at DESC) FILTER (WHERE others IS NOT NULL))[1] AS other_models
          FROM (SELECT request_id, usage_amount AS units, "timestamp" AS at,
                       metadata->'{OTHER_MODELS}' AS others FROM feature_usage
                 WHERE in_money AND "timestamp" >= :since
                 UNION ALL
                SELECT (payload->>'corrects')::uuid, -(payload->>'units')::bigint, NULL, NULL
                  FROM control_write
                 WHERE verb = 'amend' AND state IN ('pending', 'applied')) AS moved
         GROUP BY 1 HAVING min(at) IS NOT NULL) AS u
  JOIN call AS c ON c.request_id = u.request_id AND c.created_at >= :since
  JOIN service AS s ON s.id = c.service_id
 WHERE c.currency = :currency AND c.cost IS NOT NULL AND NOT c.refused AND c.id > :after
   AND NOT EXISTS (SELECT FROM amendment AS a WHERE a.request_id = c.request_id)
   AND (SELECT coalesce(sum(h.quantity) FILTER (WHERE (h.reason = 'void') = (h.quantity < 0)), 0)
          FROM (SELECT least(u.day, (c.created_at AT TIME ZONE 'UTC')::date) AS supplied_on) AS of
          JOIN charge AS h ON h.period_start = of.supplied_on::timestamp AT TIME ZONE 'UTC'
         WHERE h.organization_id = c.organization_id AND h.kind = 'usage' AND h.tenant_id = c.tenant_id
           AND h.service_id = c.service_id AND h.invoice_id IS NOT NULL
           AND h.reason NOT IN ('credited', 'credit_void')
           AND CASE WHEN of.supplied_on = u.day THEN h.source = 'usage_tier'
                    ELSE h.source = 'usage_told' AND h.source_id IN (
                        SELECT t.id FROM usage_told AS t
                         WHERE t.tenant_id = c.tenant_id AND t.day = u.day AND t.service_id = c.service_id
                           AND t.supplied_on = of.supplied_on AND NOT t.is_back) END) = 0
 ORDER BY c.id LIMIT :piece""")  # noqa: S608  # our own words
_LEFT = text("SELECT price_id FROM rerating_left ORDER BY price_id LIMIT :count")
_HOLD = text("SELECT after_id, actor FROM rerating_left WHERE price_id = :price FOR UPDATE")
_MOVE = text("UPDATE rerating_left SET after_id = :after WHERE price_id = :price")
_RERATING_DONE = text("DELETE FROM rerating_left WHERE price_id = :price")

_SUMS = f"""
SELECT {statements.SUMS_OF_CALL} FROM call
 WHERE request_id = ANY(%(ids)s::uuid[]) AND created_at BETWEEN %(first)s AND %(last)s FOR UPDATE"""  # noqa: S608  # our own words
_RERATE = f"""
UPDATE call SET cost = n.k, unpriced = n.u, price_id = n.p, rerated = rerated + n.k - cost,
       exchange_rate = CASE WHEN price_id = n.p THEN exchange_rate END
  FROM unnest(%(ids)s::uuid[], %(costs)s::bigint[], %(unpriced)s::text[], %(prices)s::bigint[])
       AS n (r, k, u, p)
 WHERE request_id = n.r AND created_at BETWEEN %(first)s AND %(last)s RETURNING {statements.SUMS_OF_CALL}"""  # noqa: S608  # our own words


@dataclass(frozen=True, slots=True)
class _RepricedCall:
    """A call, its rating by today's prices, and the money units by which its charge grows."""

    call: Any
    rating: Rating
    more: int


def create_rerating(change: EntityWrite) -> Row:
    """Create a price and rate the calls that it applies to again.

    Calls beyond one transaction's maximum are left for `rate`.
    """
    row = entity.create(change)
    if (effective := _effective(row)) < change.now:
        span = effective, str(row["currency"])
        without_calls = ("calls", span)
        known = set() if change.batch is None else change.batch.held
        if without_calls not in known and not _open(change.connection, span, after=0, piece=1):
            known.add(without_calls)
        if without_calls not in known:
            # Rate the first piece of a price's calls.
            actor = change.command.actor.scope
            after = _rate(change, row, 0, actor)
            if after is not None:
                left = {"price_id": row["id"], "after_id": after, "actor": actor}
                change.connection.execute(insert(rerating_left).values(left))
    return row


def rate(change: EntityWrite) -> Row:
    """Rate the next batch of calls that an earlier re-rating of a price left over."""
    connection, named = change.connection, {"price": change.row_id}
    row, left = change.fetch(), connection.execute(_HOLD, named).first()
    if left is not None:
        after = _rate(change, row, left.after_id, left.actor)
        connection.execute(_RERATING_DONE if after is None else _MOVE, named | {"after": after})
    return row


def open_reratings(connection: Connection, count: int) -> Sequence[int]:
    return connection.execute(_LEFT, {"count": count}).scalars().all()


def _rate(change: EntityWrite, row: Row, after: int, actor: str) -> int | None:
    """Rate, by the price in `row`, the next batch of calls with ids above `after`.

    Return the last id of the batch, or None if no calls are left.
    """
    span = (_effective(row), str(row["currency"]))
    calls = _open(change.connection, span, after=after, piece=PIECE_CALLS_MAX)
    rated = list(_rated(change.connection, row, calls)) if calls else []
    if rated:
        _write(change, row, rated, actor)
    return calls[-1].id if len(calls) == PIECE_CALLS_MAX else None


def _open(connection: Connection, span: tuple[datetime, str], *, after: int, piece: int) -> Sequence[Any]:
    """Return up to `piece` calls with ids above `after` that may be rated again.

    `span` is the time from which calls are wanted, and their currency.
    """
    since, currency = span
    sought = {"since": since, "currency": currency, "after": after, "piece": piece}
    return connection.execute(_OPEN, sought).all()


def _effective(row: Row) -> datetime:
    effective = row["effective_from"]
    assert isinstance(effective, datetime)
    return effective


def _rated(connection: Connection, row: Row, calls: Iterable[Any]) -> Iterator[_RepricedCall]:
    """Yield those of the calls that the price in `row` applies to, each with its new cost."""
    every = [read_price(dict(each)) for each in connection.execute(select(price)).mappings()]
    prices = PricesThen(every, str(row["currency"]))
    factors: dict[tuple[int, str], Factor] = {}
    for call in calls:
        rating = prices.rate_again(_use_of(call), int(str(row["id"])))
        if rating is None:
            continue
        whose = (call.organization_id, call.key)
        if whose not in factors:
            service = service_of(connection, *whose)
            factors[whose] = SAME if service is None else factor_of(service)
        more = 0 if rating.left_out else _units(call, rating.cost, factors[whose]) - call.units
        yield _RepricedCall(call, rating, more)


def _use_of(call: Any) -> JournalUse:
    counts = tuple([getattr(call, kind) for kind in KINDS_OF_TOKENS])
    return JournalUse(
        call.model, call.response_model, call.currency, call.exchange_rate, call.price_id, call.cost,
        ms_of(call.created_at), counts, call.tools or {}, call.service_tier,
        read_other_models(call.other_models),
    )  # fmt: skip


def _units(call: Any, cost: int, factor: Factor) -> int:
    """Return the billionths of the currency to charge for a call that costs `cost`.

    The markup is the one by which the call was charged first.
    """
    if call.cost and charged(call.cost, factor) != call.units:
        factor = Fraction(call.units, call.cost).as_integer_ratio()
    return min(charged(cost, factor), INTEGER_MAX)


def _write(change: EntityWrite, row: Row, rated: Sequence[_RepricedCall], actor: str) -> None:
    """Store a row of the re-rating for each call in `rated`.

    A call excluded from the new price keeps its cost, and the row gives the reason.
    """
    connection = change.connection
    reason = f"price {row['id']} of {row['model']} from {rfc3339(_effective(row))}"
    connection.execute(
        insert(rerating),
        [
            {
                "price_id": row["id"], "request_id": one.call.request_id, "currency": row["currency"],
                "organization_id": one.call.organization_id, "tenant_id": one.call.tenant_id,
                "service_id": one.call.service_id, "cost_before": one.call.cost,
                "cost_after": one.rating.cost, "charged": one.more, "actor": actor,
                "reason": f"{reason}: left out, {why}" if (why := one.rating.left_out) else reason,
            }
            for one in rated
        ],
    )  # fmt: skip
    tiers = pack_tiers(IN_MONEY).hex()
    change.intend_all([
        correcting_write(change, one.call, {
            "tokens": 0, "units": -one.more, "tiers": tiers, "corrects": one.call.request_id,
            "reason": reason, "told_on": one.call.told_on.isoformat(),
        }) for one in rated if one.more
    ])  # fmt: skip
    moved = [one for one in rated if not one.rating.left_out]
    if moved:
        _tell_rerating(connection, moved)


def _tell_rerating(connection: Connection, rated: Sequence[_RepricedCall]) -> None:
    times = [one.call.created_at for one in rated]
    values = {
        "ids": [one.call.request_id for one in rated], "costs": [one.rating.cost for one in rated],
        "unpriced": [stored_text(one.rating.unpriced) or None for one in rated],
        "prices": [one.rating.price_id for one in rated], "first": min(times), "last": max(times),
    }  # fmt: skip
    before = connection.exec_driver_sql(_SUMS, values).fetchall()
    after = connection.exec_driver_sql(_RERATE, values).fetchall()
    columns = rollup.moved_columns(zip(before, after, strict=True))
    connection.exec_driver_sql(rollup.ROLL_UP_CALLS, columns)
    was = {listeners.request_in(row): row for row in before}
    moved = ((was[listeners.request_in(row)], row) for row in after)
    listeners.tell_changes(connection, "rerated", moved)


PRICES = replace(catalogue.PRICE_SUBJECT, verbs={"create": create_rerating, "rate": rate})
RERATING_SUBJECT = Entity(
    rerating,
    source=select(
        *(each for each in rerating.c if each.name not in {"cost_before", "cost_after", "charged"}),
        *(money(rerating.c[name]).label(name) for name in ("cost_before", "cost_after", "charged")),
    ),
)
