"""A price that comes into force before now: calls of that time at cost, that no invoice has, are rated again.

Each is a row with its reason and who set the price; the counters and the charges move by the difference. What
is billed stays as it is. Budgets go on counting what calls cost when they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from fractions import Fraction
from typing import Any

from sqlalchemy import Connection, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.billing.cost import cost_nano
from gateway.core.billing.price_book import choose, read_price
from gateway.core.billing.pricing import IN_MONEY
from gateway.core.billing.tiers import pack_tiers
from gateway.core.billing.vector import KINDS, Price
from gateway.core.calls.tariff import charged, factor_of
from gateway.core.model import INTEGER_MAX
from gateway.core.moments import ms_of, rfc3339
from gateway.errors import Unprocessable
from persistence import crud
from persistence.billing.amendments import correcting_write
from persistence.billing.events import service_of
from persistence.ledger import statements, usage_rollup, usage_spans
from persistence.resources import prices
from persistence.subject import Change, Subject
from persistence.tables.billing import price, rerating
from persistence.tables.ledgers import money

# Calls that one price rates again.
RERATED_MAX = 10_000
# Calls at cost since then, in that currency, of whose day no charge is billed.
_OPEN = text(f"""
SELECT c.request_id::text AS request_id, c.organization_id, c.tenant_id, c.service_id, s.key, c.created_at,
       c.model, c.response_model, c.cost, c.price_id, c.tools, coalesce(c.service_tier, '') AS service_tier,
       c.content_id, c.project_id, u.units, {", ".join("c." + kind for kind in KINDS)}
  FROM (SELECT request_id, sum(usage_amount)::bigint AS units,
               (min("timestamp") AT TIME ZONE 'UTC')::date AS day
          FROM feature_usage WHERE in_money AND "timestamp" >= :since GROUP BY 1) AS u
  JOIN call AS c ON c.request_id = u.request_id AND c.created_at >= :since
  JOIN service AS s ON s.id = c.service_id
 WHERE c.currency = :currency AND c.cost IS NOT NULL AND NOT c.refused
   AND NOT EXISTS (SELECT FROM amendment AS a WHERE a.request_id = c.request_id)
   AND (SELECT coalesce(sum(h.quantity), 0) FROM charge AS h
         WHERE h.organization_id = c.organization_id AND h.source = 'usage_tier' AND h.tenant_id = c.tenant_id
           AND h.service_id = c.service_id AND h.invoice_id IS NOT NULL
           AND h.period_start = u.day::timestamp AT TIME ZONE 'UTC') = 0
 ORDER BY c.id""")  # noqa: S608  # our own words

_SUMS = f"""
SELECT {statements.SUMS_OF_CALL} FROM call
 WHERE request_id = ANY(%(ids)s::uuid[]) FOR UPDATE"""  # noqa: S608  # our own words
_RERATE = f"""
UPDATE call SET cost = n.k, price_id = %(price)s, rerated = rerated + n.k - cost
  FROM unnest(%(ids)s::uuid[], %(costs)s::bigint[]) AS n (r, k)
 WHERE request_id = n.r RETURNING {statements.SUMS_OF_CALL}"""  # noqa: S608  # our own words


@dataclass(frozen=True, slots=True)
class _Rated:
    """A call, what it costs now, and by how many units of money that is more."""

    call: Any
    cost: int
    more: int


def create(change: Change) -> Row:
    """Set a price, and rate again what it is about; `Unprocessable` where that are too many calls."""
    row = crud.create(change)
    if _effective(row) < change.now:
        rated = []
        for one in _rated(change.connection, row):
            rated.append(one)
            if len(rated) > RERATED_MAX:
                why = f"{RERATED_MAX} calls and more would be rated again; name a later time"
                raise Unprocessable(errors=(("effective_from", why),))
        if rated:
            _write(change, row, rated)
    return row


def _effective(row: Row) -> datetime:
    effective = row["effective_from"]
    assert isinstance(effective, datetime)
    return effective


def _rated(connection: Connection, row: Row) -> Iterator[_Rated]:
    """The calls that this price is about, and what they cost by it."""
    currency, ours = str(row["currency"]), int(str(row["id"]))
    book: dict[str, list[Price]] = {}
    every = [
        read_price(dict(each))
        for each in connection.execute(select(price).where(price.c.currency == currency)).mappings()
    ]
    found = connection.execute(_OPEN, {"since": row["effective_from"], "currency": currency})
    for call in found:
        at_ms = ms_of(call.created_at)
        for name in dict.fromkeys(filter(None, (call.model, call.response_model))):
            if name not in book:
                book[name] = [each for each in every if choose([each], name, currency, INTEGER_MAX)]
            chosen = choose(book[name], name, currency, at_ms)
            before = choose((p for p in book[name] if p.vector.price_id != ours), name, currency, at_ms)
            was = before is not None and before.vector.price_id == call.price_id
            if chosen is not None and chosen.vector.price_id == ours and was:
                counts = [getattr(call, kind) for kind in KINDS]
                cost = cost_nano(chosen.vector, counts, call.tools or {}, call.service_tier)
                yield _Rated(call, cost, _units(connection, call, cost) - call.units)
                break


def _units(connection: Connection, call: Any, cost: int) -> int:
    """What a call is charged that costs so much: at the markup it was charged at."""
    service = service_of(connection, call.organization_id, call.key)
    factor = (1, 1) if service is None else factor_of(service)
    if call.cost and charged(call.cost, factor) != call.units:
        factor = Fraction(call.units, call.cost).as_integer_ratio()
    return min(charged(cost, factor), INTEGER_MAX)


def _write(change: Change, row: Row, rated: Sequence[_Rated]) -> None:
    connection = change.connection
    reason = f"price {row['id']} of {row['model']} from {rfc3339(_effective(row))}"
    connection.execute(
        insert(rerating),
        [
            {
                "price_id": row["id"], "request_id": one.call.request_id, "currency": row["currency"],
                "organization_id": one.call.organization_id, "tenant_id": one.call.tenant_id,
                "service_id": one.call.service_id, "cost_before": one.call.cost, "cost_after": one.cost,
                "charged": one.more, "reason": reason, "actor": change.command.actor.scope,
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
        "corrects": one.call.request_id, "reason": reason,
    }  # fmt: skip
    return correcting_write(change, one.call, moves)


def _tell(connection: Connection, price_id: int, rated: Sequence[_Rated]) -> None:
    """Say in the calls what they cost now, and in what they add up to."""
    values = {
        "ids": [one.call.request_id for one in rated], "costs": [one.cost for one in rated],
        "price": price_id,
    }  # fmt: skip
    before = connection.exec_driver_sql(_SUMS, values).fetchall()
    after = connection.exec_driver_sql(_RERATE, values).fetchall()
    columns = usage_rollup.moved_columns(zip(before, after, strict=True))
    connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, columns)


PRICES = replace(prices.SUBJECT, verbs={"create": create})
SUBJECT = Subject(
    rerating,
    source=select(
        *(each for each in rerating.c if each.name not in {"cost_before", "cost_after", "charged"}),
        *(money(rerating.c[name]).label(name) for name in ("cost_before", "cost_after", "charged")),
    ),
)
