"""A price that comes into force before now: calls of that time at cost, that no invoice has, are rated again.

Each is a row with its reason and who set the price; the counters and the charges move by the difference. What
is billed stays as it is. Budgets go on counting what calls cost when they were made. Those that are too many
for the price's own transaction are rated by the keeper, a piece each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.facts import named_unpriced
from gateway.core.billing.cost import cost_nano, unpriced
from gateway.core.billing.price_book import choose, read_price
from gateway.core.billing.pricing import IN_MONEY
from gateway.core.billing.tiers import pack_tiers
from gateway.core.billing.usage_feed import RERATED
from gateway.core.billing.vector import KINDS, SAME, Factor, Price
from gateway.core.calls.tariff import charged, factor_of
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import ms_of, rfc3339
from persistence import crud
from persistence.billing.amendments import correcting_write
from persistence.billing.events import service_of
from persistence.ledger import statements, usage_feed, usage_rollup, usage_spans
from persistence.ledger.call_rows import stored_text
from persistence.resources import prices
from persistence.subject import Change, Subject
from persistence.tables import money, price, rerating, rerating_left

# Calls at cost that are looked at in one transaction.
PIECE_CALLS_MAX = 10_000
# Calls at cost since then, in that currency, of whose day no charge is billed, as they were told; with what
# they are charged once everything is stored that is on its way.
_OPEN = text(f"""
SELECT c.id, c.request_id::text AS request_id, c.organization_id, c.tenant_id, c.service_id, s.key,
       c.created_at, c.model, c.response_model, c.cost, c.price_id, c.tools,
       coalesce(c.service_tier, '') AS service_tier, c.content_id, c.project_id, u.units,
       u.day AS told_on,
       {", ".join("c." + kind for kind in KINDS)}
  FROM (SELECT request_id, sum(units)::bigint AS units, (min(at) AT TIME ZONE 'UTC')::date AS day
          FROM (SELECT request_id, usage_amount AS units, "timestamp" AS at FROM feature_usage
                 WHERE in_money AND "timestamp" >= :since
                 UNION ALL
                SELECT (payload->>'corrects')::uuid, -(payload->>'units')::bigint, NULL FROM control_write
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
_DONE = text("DELETE FROM rerating_left WHERE price_id = :price")

_SUMS = f"""
SELECT {statements.SUMS_OF_CALL} FROM call
 WHERE request_id = ANY(%(ids)s::uuid[]) AND created_at BETWEEN %(first)s AND %(last)s FOR UPDATE"""  # noqa: S608  # our own words
_RERATE = f"""
UPDATE call SET cost = n.k, unpriced = n.u, price_id = %(price)s, rerated = rerated + n.k - cost
  FROM unnest(%(ids)s::uuid[], %(costs)s::bigint[], %(unpriced)s::text[]) AS n (r, k, u)
 WHERE request_id = n.r AND created_at BETWEEN %(first)s AND %(last)s RETURNING {statements.SUMS_OF_CALL}"""  # noqa: S608  # our own words


@dataclass(frozen=True, slots=True)
class _Rated:
    """A call, what it costs now, and by how many units of money that is more."""

    call: Any
    cost: int
    more: int
    unpriced: str | None


def create(change: Change) -> Row:
    """Set a price, and rate again what it is about; what is too much for one transaction is left."""
    row = crud.create(change)
    if (effective := _effective(row)) < change.now:
        span = effective, str(row["currency"])
        without_calls = ("calls", span)
        known = set() if change.batch is None else change.batch.held
        if without_calls not in known and not _open(change.connection, span, after=0, piece=1):
            known.add(without_calls)
        if without_calls not in known:
            _begin(change, row)
    return row


def _begin(change: Change, row: Row) -> None:
    """Rate the first piece of what a price is about."""
    actor = change.command.actor.scope
    after = _rate(change, row, 0, actor)
    if after is not None:
        left = {"price_id": row["id"], "after_id": after, "actor": actor}
        change.connection.execute(insert(rerating_left).values(left))


def rate(change: Change) -> Row:
    """Rate the next piece of what a price left."""
    connection, named = change.connection, {"price": change.row_id}
    row, left = change.fetch(), connection.execute(_HOLD, named).first()
    if left is not None:
        after = _rate(change, row, left.after_id, left.actor)
        connection.execute(_DONE if after is None else _MOVE, named | {"after": after})
    return row


def left(connection: Connection, count: int) -> Sequence[int]:
    """Prices that have calls left."""
    return connection.execute(_LEFT, {"count": count}).scalars().all()


def _rate(change: Change, row: Row, after: int, actor: str) -> int | None:
    """Rate a piece of the calls behind one; answers the last of them, None where there are no more."""
    span = (_effective(row), str(row["currency"]))
    calls = _open(change.connection, span, after=after, piece=PIECE_CALLS_MAX)
    rated = list(_rated(change.connection, row, calls)) if calls else []
    if rated:
        _write(change, row, rated, actor)
    return calls[-1].id if len(calls) == PIECE_CALLS_MAX else None


def _open(connection: Connection, span: tuple[datetime, str], *, after: int, piece: int) -> Sequence[Any]:
    """Calls since a moment, at cost in a currency, that may be rated again."""
    since, currency = span
    sought = {"since": since, "currency": currency, "after": after, "piece": piece}
    return connection.execute(_OPEN, sought).all()


def _effective(row: Row) -> datetime:
    effective = row["effective_from"]
    assert isinstance(effective, datetime)
    return effective


def _rated(connection: Connection, row: Row, calls: Iterable[Any]) -> Iterator[_Rated]:
    """Those of the calls that this price is about, and what they cost by it."""
    currency, ours = str(row["currency"]), int(str(row["id"]))
    book: dict[str, list[Price]] = {}
    factors: dict[tuple[int, str], Factor] = {}
    every = [
        read_price(dict(each))
        for each in connection.execute(select(price).where(price.c.currency == currency)).mappings()
    ]
    for call in calls:
        whose = (call.organization_id, call.key)
        if whose not in factors:
            service = service_of(connection, *whose)
            factors[whose] = SAME if service is None else factor_of(service)
        for name in dict.fromkeys(filter(None, (call.model, call.response_model))):
            if name not in book:
                book[name] = [each for each in every if choose([each], name, currency, INTEGER_MAX)]
            chosen = choose(book[name], name, currency, ms_of(call.created_at))
            # By one of this name it was rated before, whichever: another one may have calls left, too.
            was = any(each.vector.price_id == call.price_id for each in book[name])
            if chosen is not None and chosen.vector.price_id == ours != call.price_id and was:
                counts = [getattr(call, kind) for kind in KINDS]
                cost = cost_nano(chosen.vector, counts, call.tools or {}, call.service_tier)
                more = _units(call, cost, factors[whose]) - call.units
                lacking = named_unpriced(unpriced(chosen.vector, call.tools or {}))
                yield _Rated(call, cost, more, stored_text(lacking) or None)
                break


def _units(call: Any, cost: int, factor: Factor) -> int:
    """What a call is charged that costs so much: at the markup it was charged at."""
    if call.cost and charged(call.cost, factor) != call.units:
        factor = Fraction(call.units, call.cost).as_integer_ratio()
    return min(charged(cost, factor), INTEGER_MAX)


def _write(change: Change, row: Row, rated: Sequence[_Rated], actor: str) -> None:
    connection = change.connection
    reason = f"price {row['id']} of {row['model']} from {rfc3339(_effective(row))}"
    connection.execute(
        insert(rerating),
        [
            {
                "price_id": row["id"], "request_id": one.call.request_id, "currency": row["currency"],
                "organization_id": one.call.organization_id, "tenant_id": one.call.tenant_id,
                "service_id": one.call.service_id, "cost_before": one.call.cost, "cost_after": one.cost,
                "charged": one.more, "reason": reason, "actor": actor,
            }
            for one in rated
        ],
    )  # fmt: skip
    change.intend_all([_intended(change, one, reason) for one in rated if one.more])
    _tell(connection, int(str(row["id"])), rated)


def _intended(change: Change, one: _Rated, reason: str) -> dict[str, object]:
    """What has the counters move by the difference."""
    moves = {
        "tokens": 0, "units": -one.more, "tiers": pack_tiers(IN_MONEY).hex(),
        "corrects": one.call.request_id, "reason": reason, "told_on": one.call.told_on.isoformat(),
    }  # fmt: skip
    return correcting_write(change, one.call, moves)


def _tell(connection: Connection, price_id: int, rated: Sequence[_Rated]) -> None:
    """Say in the calls what they cost now, and in what they add up to."""
    times = [one.call.created_at for one in rated]
    values = {
        "ids": [one.call.request_id for one in rated], "costs": [one.cost for one in rated],
        "unpriced": [one.unpriced for one in rated],
        "price": price_id, "first": min(times), "last": max(times),
    }  # fmt: skip
    before = connection.exec_driver_sql(_SUMS, values).fetchall()
    after = connection.exec_driver_sql(_RERATE, values).fetchall()
    columns = usage_rollup.moved_columns(zip(before, after, strict=True))
    connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, columns)
    was = {usage_feed.request_in(row): row for row in before}
    moved = ((was[usage_feed.request_in(row)], row) for row in after)
    usage_feed.tell_changes(connection, RERATED, moved)


PRICES = replace(prices.SUBJECT, verbs={"create": create, "rate": rate})
SUBJECT = Subject(
    rerating,
    source=select(
        *(each for each in rerating.c if each.name not in {"cost_before", "cost_after", "charged"}),
        *(money(rerating.c[name]).label(name) for name in ("cost_before", "cost_after", "charged")),
    ),
)
