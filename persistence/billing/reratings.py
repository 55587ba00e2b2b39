"""Calls that are rated again: by a price with a start in the past, or by one that amends another.

Each re-rated call gets one row with the price, the reason and the actor. Its cost, the roll-ups, the counters
and the charges move by the difference, and so do the windows of budgets that still run. Only a price that
amends another moves what invoices have billed, and credits. The keeper rates the calls, piece by piece: a
request that stores a price rates none. All writers hold the lock of prices, so no two rate a call at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, text

from gateway.calls.journal import AMENDED, JournalUse, PricesThen, Rating, UseHour
from gateway.core.accounts.administration import Row
from gateway.core.accounts.call_facts import OTHER_MODELS, read_other_models
from gateway.core.billing.money import IN_MONEY, NANO, pack_tiers
from gateway.core.billing.price_book import KINDS, OPERATOR, charged, read_price
from gateway.core.billing.price_changes import AMOUNTS, amounts_in
from gateway.core.billing.vector import SAME, Factor
from gateway.core.calls.tariff import CONSUMPTION, factor_of
from gateway.core.model import INTEGER_MAX, Service
from gateway.core.times import floor_ms, moment_of, rfc3339
from gateway.errors import Conflict
from persistence import entity
from persistence.billing.amendments import correcting_write
from persistence.billing.events import service_of
from persistence.billing.rerated_budgets import budget_writes
from persistence.entity import Entity, EntityWrite
from persistence.ledger import listeners, statements, usage_rollup
from persistence.ledger.rows import stored_text
from persistence.queries import insert_rows, query
from persistence.resources import prices
from persistence.resources.app_users import acting
from persistence.resources.audit import STAFF
from persistence.tables import (
    audit_log,
    credit_addition,
    money,
    price,
    rerating,
    rerating_bill,
    rerating_left,
)

# Calls that one transaction rates again.
PIECE_CALLS_MAX = 10_000
# For so long calls are rated again that were admitted before a price was amended, and come later.
LATE_CALLS = timedelta(days=7)
# Ids of calls may be stored in another order than they were given out, by as many.
_IDS_APART = 100_000

# Calls by a price that tokens of theirs were charged by; the first is that of the call's model.
_OF_MODEL = "price_id = ANY(:prices)"
_OF_PARTS = f"""
request_id IN (
    SELECT request_id
      FROM (SELECT request_id, metadata FROM feature_usage WHERE "timestamp" >= :since
             UNION ALL SELECT request_id, metadata FROM token_ledger WHERE created_at >= :since
             UNION ALL SELECT request_id, metadata FROM credit_transaction WHERE "timestamp" >= :since) AS m
     WHERE metadata ? '{OTHER_MODELS}'
       AND EXISTS (SELECT FROM jsonb_array_elements(metadata->'{OTHER_MODELS}') AS part
                    WHERE (part->>'price_id')::bigint = ANY(:prices)))"""
# Calls since a time that this price has not rated, with what they are charged once all pending control writes
# are stored. A call at cost on a day with billed charges is rated by a price that amends another alone.
_OPEN = f"""
WITH page AS (
    SELECT * FROM call
     WHERE created_at >= :since AND id > :after AND {{of}} AND cost IS NOT NULL AND NOT refused
       AND (:amends OR currency = :currency)
       AND NOT EXISTS (SELECT FROM rerating AS r WHERE r.price_id = :price AND r.request_id = call.request_id)
     ORDER BY id LIMIT :piece
), pending AS (
    SELECT (payload->>'corrects')::uuid AS request_id, -sum((payload->>'units')::bigint) AS units
      FROM control_write WHERE verb = 'amend' AND state IN ('pending', 'applied') GROUP BY 1
)
SELECT c.id, c.request_id::text AS request_id, c.organization_id, c.tenant_id,
       coalesce(c.service_id, 0) AS service_id, coalesce(s.key, '') AS key, c.created_at,
       coalesce(c.model, '') AS model, coalesce(c.response_model, '') AS response_model, c.cost, c.currency,
       coalesce(c.exchange_rate, '') AS exchange_rate, c.price_id, c.tools, c.duration_ms, c.priced_at, c.groups,
       coalesce(c.service_tier, '') AS service_tier, c.content_id, c.project_id, c.api_key_id,
       coalesce(p.external_id, '') AS "user", coalesce(c.session, '') AS session,
       coalesce(c.tags, jsonb_build_object()) AS tags,
       u.units + coalesce(w.units, 0)::bigint AS units, u.day AS told_on, c.credits,
       coalesce(u.others, l.others, k.others) AS other_models, a.id IS NOT NULL AS is_amended,
       NOT :amends AND u.day IS NOT NULL AND (
        SELECT coalesce(sum(h.quantity) FILTER (WHERE (h.reason = 'void') = (h.quantity < 0)), 0)
          FROM (SELECT least(u.day, (c.created_at AT TIME ZONE 'UTC')::date) AS supplied_on) AS of
          JOIN charge AS h ON h.period_start = of.supplied_on::timestamp AT TIME ZONE 'UTC'
         WHERE h.organization_id = c.organization_id AND h.kind = 'usage' AND h.tenant_id = c.tenant_id
           AND h.service_id = c.service_id AND h.invoice_id IS NOT NULL
           AND h.reason NOT IN ('credited', 'credit_void')
           AND CASE WHEN of.supplied_on = u.day THEN h.source = 'usage_tier'
                    ELSE h.source = 'usage_told' AND h.source_id IN (
                        SELECT t.id FROM usage_told AS t
                         WHERE t.tenant_id = c.tenant_id AND t.day = u.day AND t.service_id = c.service_id
                           AND t.supplied_on = of.supplied_on AND NOT t.is_back) END) <> 0 AS is_billed,
       {", ".join("c." + kind for kind in KINDS)}
  FROM page AS c
  LEFT JOIN service AS s ON s.id = c.service_id
  LEFT JOIN app_user AS p ON p.id = c.user_id
  LEFT JOIN pending AS w ON w.request_id = c.request_id
  LEFT JOIN amendment AS a ON a.request_id = c.request_id AND (a.in_money OR a.credits > 0)
  CROSS JOIN LATERAL (
    SELECT sum(usage_amount)::bigint AS units, (min("timestamp") AT TIME ZONE 'UTC')::date AS day,
           (array_agg(metadata->'{OTHER_MODELS}' ORDER BY "timestamp" DESC)
             FILTER (WHERE metadata ? '{OTHER_MODELS}'))[1] AS others
      FROM feature_usage WHERE request_id = c.request_id AND in_money AND "timestamp" >= :since) AS u
  CROSS JOIN LATERAL (
    SELECT (array_agg(metadata->'{OTHER_MODELS}') FILTER (WHERE metadata ? '{OTHER_MODELS}'))[1] AS others
      FROM token_ledger WHERE request_id = c.request_id AND created_at >= :since) AS l
  CROSS JOIN LATERAL (
    SELECT (array_agg(metadata->'{OTHER_MODELS}') FILTER (WHERE metadata ? '{OTHER_MODELS}'))[1] AS others
      FROM credit_transaction WHERE request_id = c.request_id AND "timestamp" >= :since) AS k
 ORDER BY c.id"""
_PAGES = {is_parts: text(_OPEN.format(of=_OF_PARTS if is_parts else _OF_MODEL)) for is_parts in (False, True)}
# Prices that are not done: first those whose stored calls are not all rated. The others are looked at again,
# ever more rarely.
_LEFT = query("reratings.left", "Select prices whose calls are not rated", """
SELECT price_id FROM rerating_left
 WHERE rated_at IS NULL OR looked_at < now() - least(interval '1 hour', (now() - rated_at) / 10)
 ORDER BY rated_at IS NOT NULL, price_id LIMIT :count""")  # fmt: skip
_UNRATED = query("reratings.unrated", "Select a price whose stored calls are not all rated",
    "SELECT FROM rerating_left WHERE price_id = :price AND rated_at IS NULL")  # fmt: skip
# Advisory lock class 7817: an amendment of a price.
_TAKE_TURN = query("reratings.take_turn", "Lock a price that is amended",
    "SELECT pg_try_advisory_xact_lock(7817, (:price % 2147483647)::integer)")  # fmt: skip
_HOLD = query("reratings.hold", "Lock a price whose calls are rated",
    "SELECT * FROM rerating_left WHERE price_id = :price FOR UPDATE")  # fmt: skip
_MOVE = query("reratings.move", "Store how far calls are rated", """
UPDATE rerating_left SET after_id = :after, of_parts = :of_parts, rated_at = :rated_at, looked_at = now()
 WHERE price_id = :price""")  # fmt: skip
# The prices in whose place a price stands, and those of names that a price may be for.
_AMENDED = query("reratings.amended", "Select amended prices", """
WITH RECURSIVE amended AS (
    SELECT amends_id AS id FROM price WHERE id = :price
     UNION ALL SELECT p.amends_id FROM price AS p JOIN amended AS a ON p.id = a.id)
SELECT id FROM amended WHERE id IS NOT NULL""")  # fmt: skip
_REPLACEABLE = query("reratings.replaceable", "Select prices that a price may replace", """
SELECT p.id FROM price AS p JOIN price AS n ON n.id = :price AND p.id <> n.id,
       lower(p.model COLLATE "C") AS theirs, lower(n.model COLLATE "C") AS ours
 WHERE theirs = ours OR (n.match = 'prefix' AND starts_with(theirs, ours))
    OR (p.match = 'prefix' AND starts_with(ours, theirs))""")  # fmt: skip
_ANY_CALL = query("reratings.any_call", "Select whether a call has a cost",
    "SELECT FROM call WHERE created_at >= :since AND cost IS NOT NULL LIMIT 1")  # fmt: skip
# Organizations whose charges have moved, once all of that is stored.
_BILLS = query("reratings.bills", "Select organizations whose charges moved", """
SELECT b.price_id, b.organization_id FROM rerating_bill AS b
 WHERE NOT EXISTS (SELECT FROM rerating_left AS l WHERE l.price_id = b.price_id AND l.rated_at IS NULL)
   AND NOT EXISTS (SELECT FROM control_write AS w WHERE w.state IN ('pending', 'applied')
                      AND w.verb = 'amend' AND w.account = 'organization:' || b.organization_id)
 ORDER BY b.price_id, b.organization_id LIMIT :count""")  # fmt: skip
_BILLED = query("reratings.billed", "Delete an organization whose charges moved",
    "DELETE FROM rerating_bill WHERE price_id = :price AND organization_id = :organization")  # fmt: skip
_DONE = query("reratings.done", "Delete a price whose calls are rated",
    "DELETE FROM rerating_left WHERE price_id = :price")  # fmt: skip
_NEWEST = query("reratings.newest", "Select the last call",
    "SELECT max(id) FROM call WHERE created_at >= :since")  # fmt: skip
_ARCHIVED = query("reratings.archived", "Select from when on the ledgers are stored", """
SELECT max(since) FROM kept_since
 WHERE ledger IN ('call', 'token_ledger', 'credit_transaction', 'feature_usage')""")  # fmt: skip
_TOTALS = query("reratings.totals", "Add up ratings of a price", """
SELECT count(*) AS calls, count(*) FILTER (WHERE reason LIKE '%: left out, %') AS left_out, currency,
       sum(cost_before) AS cost_before, sum(cost_after) AS cost_after, sum(charged) AS charged,
       sum(credits) AS credits
  FROM rerating WHERE price_id = :price GROUP BY currency ORDER BY currency""")  # fmt: skip
_SUMS = f"""
SELECT {statements.SUMS_OF_CALL} FROM call
 WHERE request_id = ANY(%(ids)s::uuid[]) AND created_at BETWEEN %(first)s AND %(last)s FOR UPDATE"""
_RERATE = f"""
UPDATE call SET cost = n.k, unpriced = n.u, price_id = n.p, rerated = rerated + n.k - cost, saved = saved - (n.k - cost),
       credits = greatest(0, credits + n.c),
       exchange_rate = CASE WHEN price_id = n.p OR %(amends)s THEN exchange_rate END,
       priced_at = n.t, hour_factor = n.f
  FROM unnest(%(ids)s::uuid[], %(costs)s::bigint[], %(unpriced)s::text[], %(prices)s::bigint[],
              %(credits)s::bigint[], %(hours)s::timestamptz[], %(factors)s::text[]) AS n (r, k, u, p, c, t, f)
 WHERE request_id = n.r AND created_at BETWEEN %(first)s AND %(last)s RETURNING {statements.SUMS_OF_CALL}"""


@dataclass(slots=True)
class _RepricedCall:
    """A call and its rating by today's prices.

    Its charge grows by `more` money units, and by `credits`, which are nano-credits until all calls of a piece
    are known, and whole credits then.
    """

    call: Any
    rating: Rating
    more: int
    credits: int = 0


class _CallPosition(NamedTuple):
    """How far the calls of a price are rated: up to an id, of the model's price or of parts' prices."""

    after_id: int
    of_parts: bool = False


def create_rerating(change: EntityWrite) -> Row:
    """Create a price; the calls that it applies to are left for `rate`."""
    row = entity.create(change)
    _begin(change, row)
    return row


def amend(change: EntityWrite) -> Row:
    """Create a price in the place of another one, as if that had never been; its calls are left for `rate`.

    The new price says what the command names, and else what the other one says. Raise `Conflict` if the other
    one was amended before, or is of archived months.
    """
    connection, values = change.connection, dict(change.command.values)
    # A refusal waits for no lock.
    _refuse_amendment(connection, change.fetch())
    if not connection.execute(_TAKE_TURN, {"price": change.row_id}).scalar():
        raise Conflict("This price is amended by another request right now: look at it in a while.")
    prices.lock_prices(change)
    before = change.fetch()
    _refuse_amendment(connection, before)
    given = {name: value for name, value in values.items() if name in AMOUNTS}
    amounts = {name: given.get(name, before[name]) for name in AMOUNTS}
    left = amounts_in(amounts)
    if left.keys() <= {"hours", "hours_at"}:
        raise Conflict(f"This amendment leaves price {before['id']} without any amount: leave at least one.")
    if left == amounts_in(before):
        raise Conflict(
            f"This amendment changes no amount of price {before['id']}: name at least one that differs."
        )
    kept = {
        name: before[name] for name in ("provider", "model", "match", "currency", "effective_from", "source")
    }
    made = insert(price).values(
        **kept, **amounts, amends_id=before["id"], amend_reason=values["reason"]
    )  # fmt: skip
    row = change.fetch(int(connection.execute(made.returning(price.c.id)).scalar_one()))
    change.before = before
    prices.define_price(change, row)
    connection.execute(_DONE, {"price": before["id"]})
    _begin(change, row)
    return row


def _refuse_amendment(connection: Connection, before: Row) -> None:
    """Raise Conflict if the price `before` must not be amended, with what to do instead."""
    if before["amended_by_id"] is not None:
        raise Conflict(f"This price was amended already, by price {before['amended_by_id']}: amend that one.")
    if before["source"] != OPERATOR:
        raise Conflict("Prices of the bundled list are not amended: set a price of your own from then on.")
    if connection.execute(_UNRATED, {"price": before["id"]}).first() is not None:
        raise Conflict(
            f"Calls are still rated again by price {before['id']}: amend it once that is done, in a while."
        )
    since = connection.execute(_ARCHIVED).scalar()
    if since is not None and _effective(before) < since:
        raise Conflict(
            f"This price is of months that are archived, those before {since:%Y-%m}: their calls stay as they"
            f" are. Set a price from {since:%Y-%m-%d} on instead."
        )


def _begin(change: EntityWrite, row: Row) -> None:
    """Store that the keeper has calls of a price to rate, also such as come later."""
    if _effective(row) >= change.now and row["amends_id"] is None:
        return
    rates, actor = _Rates(change.connection, row), change.command.actor.scope
    has_calls = bool(rates.prices) and _has_calls(change, rates)
    if not has_calls and not rates.amends:
        return
    after = _CallPosition(0 if has_calls else _newest(change))
    left = {"price_id": row["id"], "actor": actor, "rated_at": None if has_calls else change.now}
    change.connection.execute(insert(rerating_left).values(**left, **after._asdict()))
    if not has_calls:
        _tell(change, row, actor)


def _has_calls(change: EntityWrite, rates: _Rates) -> bool:
    """Return whether the journal has calls since a price's start; of many prices of one batch it is asked once."""
    without_calls = ("calls", (rates.since, rates.row["currency"]))
    known = set() if change.batch is None else change.batch.held
    if without_calls not in known and not rates.any_calls():
        known.add(without_calls)
    return without_calls not in known


def rate(change: EntityWrite) -> None:
    """Rate the next piece of the calls that a price has left, or those that came since."""
    connection, named = change.connection, {"price": change.row_id}
    connection.execute(prices.LOCK_PRICES)
    row, left = change.fetch(), connection.execute(_HOLD, named).first()
    if left is None:
        return
    rates = _Rates(connection, row)
    if left.rated_at is not None:
        _rate_late(change, rates, left)
        return
    place = _rate(change, rates, _CallPosition(left.after_id, left.of_parts), left.actor)
    if place is not None:
        connection.execute(_MOVE, named | {"rated_at": None, **_columns(place)})
        return
    if rates.amends:
        connection.execute(
            _MOVE, named | {"rated_at": change.now, **_columns(_CallPosition(_newest(change)))}
        )
    else:
        connection.execute(_DONE, named)
    _tell(change, row, left.actor)


def open_reratings(connection: Connection, count: int) -> Sequence[int]:
    return connection.execute(_LEFT, {"count": count}).scalars().all()


def open_bills(connection: Connection, count: int) -> Sequence[tuple[int, int]]:
    """Return the price and the organization of documents that are to follow, up to `count`."""
    return [(row.price_id, row.organization_id) for row in connection.execute(_BILLS, {"count": count})]


def forget_bill(connection: Connection, price_id: int, organization_id: int) -> None:
    connection.execute(_BILLED, {"price": price_id, "organization": organization_id})


def _rate_late(change: EntityWrite, rates: _Rates, left: Any) -> None:
    """Rate calls that were stored since; forget the price once none can come any more."""
    newest, count = _newest(change), 0
    whole = _CallPosition(max(0, left.after_id - _IDS_APART))
    parts, parts_since = whole._replace(of_parts=True), max(rates.since, left.looked_at - timedelta(hours=1))
    for place, since in ((whole, rates.since), (parts, parts_since)):
        calls = rates.open(place, since=since)
        count += len(calls)
        _write(change, rates, calls, left.actor)
    if count:
        _tell(change, rates.row, left.actor)
    if change.now - left.rated_at >= LATE_CALLS:
        change.connection.execute(_DONE, {"price": left.price_id})
        return
    position = _columns(_CallPosition(left.after_id if count else max(newest, left.after_id)))
    change.connection.execute(_MOVE, {"price": left.price_id, "rated_at": left.rated_at, **position})


def _columns(place: _CallPosition) -> dict[str, object]:
    return {"after": place.after_id, "of_parts": place.of_parts}


def _newest(change: EntityWrite) -> int:
    newest = change.connection.execute(_NEWEST, {"since": change.now - timedelta(hours=1)}).scalar()
    return int(newest or 0)


def _rate(change: EntityWrite, rates: _Rates, place: _CallPosition, actor: str) -> _CallPosition | None:
    """Rate the next piece of calls; return the place behind it, or None if no calls are left."""
    calls = rates.open(place)
    _write(change, rates, calls, actor)
    if len(calls) == PIECE_CALLS_MAX:
        return place._replace(after_id=calls[-1].id)
    if place.of_parts:
        return None
    return _rate(change, rates, _CallPosition(0, of_parts=True), actor)


class _Rates:
    """A price, the prices that it replaces, and how their calls are rated again."""

    def __init__(self, connection: Connection, row: Row) -> None:
        self.connection, self.row, self.since = connection, row, _effective(row)
        self.id, self.amends = int(str(row["id"])), row["amends_id"] is not None
        replaced = _AMENDED if self.amends else _REPLACEABLE
        self.prices = list(connection.execute(replaced, {"price": self.id}).scalars())
        self._services: dict[tuple[int, str], Service | None] = {}

    def any_calls(self) -> bool:
        return self.connection.execute(_ANY_CALL, {"since": self.since}).first() is not None

    @cached_property
    def _then(self) -> PricesThen:
        rows = [dict(stored) for stored in self.connection.execute(select(price)).mappings()]
        amends = {stored["id"]: stored["amends_id"] for stored in rows if stored["amends_id"] is not None}
        return PricesThen(map(read_price, rows), str(self.row["currency"]), amends)

    def open(
        self, place: _CallPosition, *, piece: int = PIECE_CALLS_MAX, since: datetime | None = None
    ) -> list[Any]:
        """Return the next calls that this price has not rated, up to `piece`."""
        sought = {
            "since": since or self.since, "currency": self.row["currency"], "after": place.after_id,
            "piece": piece, "prices": self.prices, "price": self.id, "amends": self.amends,
        }  # fmt: skip
        return list(self.connection.execute(_PAGES[place.of_parts], sought).all())

    def rate_calls(self, calls: Iterable[Any]) -> Iterator[_RepricedCall]:
        """Yield those of the calls that the price applies to, each with its new cost and charge."""
        for call in calls:
            if call.is_billed:
                continue
            rating = self._then.rate_again(_use_of(call), self.id)
            if rating is None:
                continue
            if call.is_amended:
                rating = Rating(call.cost, call.price_id, "", AMENDED)
            more = credits_ = 0
            if not rating.left_out:
                service = self._service(call)
                factor = SAME if service is None else factor_of(service)
                if call.units is not None:
                    more = min(_times(call.units, call.cost, rating.cost, factor), INTEGER_MAX) - call.units
                elif self.amends and _is_at_cost_in_credits(service) and (call.credits or not call.cost):
                    was = charged(call.cost, factor)
                    if abs(call.credits * NANO - was) > NANO:  # another markup was in force
                        was = call.credits * NANO
                    credits_ = _times(was, call.cost, rating.cost, factor) - was
            yield _RepricedCall(call, rating, more, credits_)

    def _service(self, call: Any) -> Service | None:
        whose = (call.organization_id, call.key)
        if whose not in self._services:
            self._services[whose] = service_of(self.connection, *whose) if call.key else None
        return self._services[whose]


def _is_at_cost_in_credits(service: Service | None) -> bool:
    return service is not None and service.meter == CONSUMPTION and service.pricing.at_cost is not None


def _effective(row: Row) -> datetime:
    effective = row["effective_from"]
    assert isinstance(effective, datetime)
    return effective


def _use_of(call: Any) -> JournalUse:
    counts = tuple([getattr(call, kind) for kind in KINDS])
    return JournalUse(
        call.model, call.response_model, call.currency, call.exchange_rate, call.price_id, call.cost,
        floor_ms(call.created_at), counts, call.tools or {}, call.service_tier,
        read_other_models(call.other_models),
        UseHour.of(call.request_id, floor_ms(call.created_at), call.duration_ms, floor_ms(call.priced_at)),
    )  # fmt: skip


def _times(was_charged: int, cost_before: int, cost_after: int, factor: Factor) -> int:
    """Return the charge of a call that now costs `cost_after`, by the markup by which it was charged first."""
    if cost_before and charged(cost_before, factor) != was_charged:
        factor = Fraction(was_charged, cost_before).as_integer_ratio()
    return charged(cost_after, factor)


def _write(change: EntityWrite, rates: _Rates, calls: Sequence[Any], actor: str) -> None:
    """Store a row for each of the calls that the price applies to, and what moves by it.

    A call that the price leaves out keeps its cost, and its row gives the reason.
    """
    rated, connection, row = list(rates.rate_calls(calls)), change.connection, rates.row
    if not rated:
        return
    origin = f"amends price {row['amends_id']}" if rates.amends else f"from {rfc3339(rates.since)}"
    reason = f"price {row['id']} of {row['model']} {origin}"
    _round_credits(rated)
    rows = [
            {
                "price_id": row["id"], "request_id": repriced.call.request_id, "currency": repriced.call.currency,
                "organization_id": repriced.call.organization_id, "tenant_id": repriced.call.tenant_id,
                "service_id": repriced.call.service_id, "cost_before": repriced.call.cost,
                "cost_after": repriced.rating.cost, "charged": repriced.more, "credits": repriced.credits, "actor": actor,
                "reason": f"{reason}: left out, {why}" if (why := repriced.rating.left_out) else reason,
            }
            for repriced in rated
        ]  # fmt: skip
    connection.execute(insert_rows(rerating, rows))
    change.intend_all(
        [
            correcting_write(change, repriced.call, _make_payload(repriced, reason))
            for repriced in rated
            if repriced.more or repriced.credits > 0
        ]
    )
    _give_credits_back(change, rated, reason)
    moved = [repriced for repriced in rated if not repriced.rating.left_out]
    if moved:
        _tell_rerating(connection, moved, is_amended=rates.amends)
        costs = ((repriced.call, repriced.rating.cost) for repriced in moved)
        change.intend_all(list(budget_writes(change, costs, reason)))
    bills = sorted({repriced.call.organization_id for repriced in rated if repriced.more})
    if rates.amends and bills:
        due = [{"price_id": row["id"], "organization_id": owner} for owner in bills]
        connection.execute(insert_rows(rerating_bill, due).on_conflict_do_nothing())


def _make_payload(repriced: _RepricedCall, reason: str) -> dict[str, object]:
    """Return the payload of the control write that corrects a call's price."""
    moves: dict[str, object] = {
        "tokens": 0, "units": -repriced.more, "tiers": pack_tiers(IN_MONEY if repriced.more else ()).hex(),
        "corrects": repriced.call.request_id, "reason": reason,
    }  # fmt: skip
    if repriced.more:
        moves["told_on"] = repriced.call.told_on.isoformat()
    return moves | ({"credits": -repriced.credits} if repriced.credits > 0 else {})


def _round_credits(rated: Sequence[_RepricedCall]) -> None:
    """Turn differences in nano-credits into whole credits; those of an organization add up, rounded down."""
    exact, whole = defaultdict[int, int](int), defaultdict[int, int](int)
    for repriced in rated:
        owner = repriced.call.organization_id
        exact[owner] += repriced.credits
        repriced.credits = exact[owner] // NANO - whole[owner]
        whole[owner] += repriced.credits


def _give_credits_back(change: EntityWrite, rated: Sequence[_RepricedCall], reason: str) -> None:
    """Refund each organization the credits that its calls were charged too much, by one addition."""
    back, calls = defaultdict[int, int](int), defaultdict[int, int](int)
    for repriced in rated:
        if repriced.credits < 0:
            back[repriced.call.organization_id] -= repriced.credits
            calls[repriced.call.organization_id] += 1
    for organization_id, credits_ in sorted(back.items()):
        account = f"organization:{organization_id}"
        [write_id] = change.intend(
            [account], "credits", {"amount": credits_}, organization_id=organization_id
        )
        change.connection.execute(
            insert(credit_addition).values(
                organization_id=organization_id, credits_added=credits_, category="refund",
                remark=f"{reason}: {calls[organization_id]} calls", timestamp=change.now,
                added_by_id=acting(change.command.actor), control_write_id=write_id,
            )
        )  # fmt: skip


def _tell_rerating(connection: Connection, rated: Sequence[_RepricedCall], *, is_amended: bool) -> None:
    """Store the new costs of calls, and report the changes to roll-ups and listeners."""
    times = [repriced.call.created_at for repriced in rated]
    values = {
        "ids": [repriced.call.request_id for repriced in rated], "costs": [repriced.rating.cost for repriced in rated],
        "unpriced": [stored_text(repriced.rating.unpriced) or None for repriced in rated],
        "prices": [repriced.rating.price_id for repriced in rated], "credits": [repriced.credits for repriced in rated],
        "hours": [moment_of(at) if (at := repriced.rating.priced_ms) else None for repriced in rated],
        "factors": [repriced.rating.hour_factor or None for repriced in rated],
        "first": min(times), "last": max(times), "amends": is_amended,
    }  # fmt: skip
    before = connection.exec_driver_sql(_SUMS, values).fetchall()
    after = connection.exec_driver_sql(_RERATE, values).fetchall()
    columns = usage_rollup.moved_columns(zip(before, after, strict=True))
    connection.exec_driver_sql(usage_rollup.ROLL_UP_CALLS, columns)
    was = {listeners.request_in(row): row for row in before}
    moved = ((was[listeners.request_in(row)], row) for row in after)
    listeners.tell_changes(connection, "rerated", moved)


def _tell(change: EntityWrite, row: Row, actor: str) -> None:
    """Store in the audit log how many calls a price has rated again, and what they cost before and after."""
    totals = change.connection.execute(_TOTALS, {"price": row["id"]}).mappings().all()
    after = [
        {
            "calls": stored["calls"], "left_out": stored["left_out"], "currency": stored["currency"],
            **{
                name: f"{stored[name] / NANO:f}" if name != "credits" else str(stored[name])
                for name in ("cost_before", "cost_after", "charged", "credits")
            },
        }
        for stored in totals
    ]  # fmt: skip
    change.connection.execute(
        insert(audit_log).values(
            actor=actor, action="rated", resource="prices", resource_id=str(row["id"]),
            after={"amends_id": row["amends_id"], "rated": after}, request_id=change.command.request_id,
        )
    )  # fmt: skip


PRICES = replace(prices.PRICE_SUBJECT, verbs={"create": create_rerating, "amend": amend})
SUBJECT = Entity(
    rerating,
    source=select(
        *(stored for stored in rerating.c if stored.name not in {"cost_before", "cost_after", "charged"}),
        *(money(rerating.c[name]).label(name) for name in ("cost_before", "cost_after", "charged")),
    ),
    told=lambda row, _: {**row, "actor": STAFF},
)
