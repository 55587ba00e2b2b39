"""Usage events of calls for a billing service, written in the transaction that stores or changes the calls.

One event a call, and one for each later difference, so that the events sum up to the journal in a feed's
time. The time of use decides whether a call belongs to a feed. If too many events wait, those of an hour are
summed up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from gateway.core.accounts.call_facts import CallFacts
from gateway.core.accounts.outbox import OutboxEntry
from gateway.core.accounts.usage import DIMENSIONS, OTHER
from gateway.core.accounts.usage_sums import SUMS
from gateway.errors import Conflict
from gateway.features.usage_feed.events import AMOUNTS, FOLDED, LATE, USE, Kind
from persistence.error_mapping import QUERY_CANCELED, sqlstate
from persistence.ledger import statements, usage_rollup
from persistence.ledger.listeners import Change, Reason, used_in
from persistence.ledger.rows import facts_of, stored_text, used_at
from persistence.ledger.statements import SUM_MAX, added, columns_of

# Whether any feed may contain use between two times. A flush checks this under the locks of its partitions,
# so no feed begins or ends before the flush is stored.
_MAY_HAVE = """
SELECT EXISTS (SELECT FROM usage_feed WHERE dropped_at IS NULL AND begun_at <= to_timestamp(%s / 1000.0)
                  AND (ended_at IS NULL OR ended_at > to_timestamp(%s / 1000.0)))"""
# The time at which a feed begins or ends, without a flush under way: after every stored call, even by a clock
# that is a little ahead, and outside other feeds. So rows stored before count as used before.
BORDER = """greatest(clock_timestamp(), (SELECT max(ended_at) FROM usage_feed),
    (SELECT max(created_at) + interval '1 millisecond' FROM call
      WHERE created_at >= statement_timestamp()
        AND created_at < statement_timestamp() + interval '1 minute'))"""

# Maximum wait for all flushes, as flushes of locked partitions wait in that time.
HOLD_MS_MAX = 2_000

# An event with the columns `_COLUMNS`, as `TELL` reads it.
Told = tuple[object, ...]

_ARRAYS = {
    "name": "text", "kind": "text", "request_id": "uuid", "model": "text", "currency": "text",
    "tags": "jsonb", "model_asked": "text", "substituted_by": "text",
}  # fmt: skip
# Of a call that a step of a budget sent as another model: the one that its caller named, and the budget's name.
_STEP = ("model_asked", "substituted_by")
_OWN = tuple(dimension for dimension in DIMENSIONS if dimension != "start")
_COLUMNS = ("name", "kind", "request_id", "used_ms", *_OWN, *AMOUNTS, *_STEP)
# Positions in a row of `statements.CALL_SUMS`: the currency; the request, and after it the time.
_CURRENCY, _AS_TOLD = DIMENSIONS.index("currency"), len(DIMENSIONS) + len(SUMS)
_AMOUNTS_AT = tuple(SUMS.index(amount) for amount in AMOUNTS)
# The amounts that show use; the number of requests does not.
_USED_AT = tuple(at for amount, at in zip(AMOUNTS, _AMOUNTS_AT, strict=True) if amount != "requests")
_SHOWN = {"currency": "coalesce(nullif(n.currency, ''), o.currency)"}
_FOLD = ("feed_id", "organization_id", "at", "tenant_id", "service_id", "model", "currency")
# Hourly sums have no users, keys, projects and tags; with twice as many waiting, no models either.
_FOLDED = {
    "name": "gen_random_uuid()::text", "kind": f"'{FOLDED}'", "at": "date_trunc('hour', at, 'UTC')",
    "request_id": "NULL::uuid", "used_at": "NULL::timestamptz", "api_key_id": "0", "user_id": "0",
    "project_id": "-1", "tags": "'{}'::jsonb", **dict.fromkeys(_STEP, "NULL::text"),
    "model": f"CASE WHEN waiting >= 2 * waiting_max THEN '{OTHER}' ELSE model END",
}  # fmt: skip
_WRITTEN = ("feed_id", "name", "kind", "at", "request_id", "used_at", *_OWN, *AMOUNTS, *_STEP)
_GROUPS = ", ".join(str(1 + _WRITTEN.index(column)) for column in _FOLD)
# Positions follow the last waiting one, so that first and last show about how many wait: a sequence would
# advance even if rows are only added to. Use outside any feed's time is never reported, also not its later
# changes. Use in a feed's time is reported whenever it becomes known, until the feed is dropped. A use has
# its own time, a difference the time at which it becomes known, so that billed periods do not change.
TELL = f"""
WITH feed AS MATERIALIZED (
SELECT f.id AS feed_id, f.begun_at, coalesce(f.ended_at, 'infinity') AS ended_at, f.waiting_max,
       coalesce(p.last, 0) AS last, coalesce(p.last - p.first + 1, 0) AS waiting
  FROM usage_feed AS f
 CROSS JOIN LATERAL (SELECT max(place) AS last, min(place) AS first FROM usage_outbox
                      WHERE feed_id = f.id AND state = 'waiting') AS p
 WHERE f.dropped_at IS NULL
), given AS MATERIALIZED (
SELECT f.feed_id, n.name, n.kind, n.request_id, to_timestamp(n.used_ms / 1000.0) AS used_at,
       CASE n.kind WHEN '{USE}' THEN to_timestamp(n.used_ms / 1000.0) ELSE now() END AS at,
       {
    ", ".join(f"{_SHOWN.get(column, 'n.' + column)} AS {column}" for column in (*_OWN, *AMOUNTS, *_STEP))
},
       f.last, f.waiting, f.waiting_max
  FROM unnest({", ".join(f"%s::{_ARRAYS.get(column, 'bigint')}[]" for column in _COLUMNS)})
       AS n ({", ".join(_COLUMNS)}) JOIN organization AS o ON o.id = n.organization_id
  JOIN feed AS f ON to_timestamp(n.used_ms / 1000.0) >= f.begun_at
                AND to_timestamp(n.used_ms / 1000.0) < f.ended_at)
INSERT INTO usage_outbox AS u ({", ".join(_WRITTEN)}, place, folding)
SELECT {", ".join(_WRITTEN)}, last + row_number() OVER (PARTITION BY feed_id), false
  FROM given WHERE waiting < waiting_max
UNION ALL (
SELECT {
    ", ".join(
        f"least(greatest(sum({column}), -{SUM_MAX}), {SUM_MAX})::bigint AS {column}"
        if column in AMOUNTS
        else f"{_FOLDED.get(column, column)} AS {column}"
        for column in _WRITTEN
    )
}, max(last) + row_number() OVER (PARTITION BY feed_id), true
  FROM given WHERE waiting >= waiting_max GROUP BY {_GROUPS} ORDER BY {_GROUPS})
ON CONFLICT ({", ".join(_FOLD)}) WHERE folding DO UPDATE SET
       {", ".join(f"{column} = {added(column)}" for column in AMOUNTS)}"""


def hold_flushes(connection: Connection) -> None:
    """Wait until no flush into the ledger is in progress, and block flushes until the transaction ends.

    Later flushes then see the changed feeds. Raise `Conflict` if a partition stays locked for too long, such
    as by invoicing.
    """
    # All locks are acquired in one statement, whose timeout limits the whole wait.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {HOLD_MS_MAX}")
    try:
        connection.exec_driver_sql(statements.HOLD_FLUSHES)
    except DBAPIError as error:
        if sqlstate(error) != QUERY_CANCELED:
            raise
        raise Conflict("Use is being stored or billed for too long: try again.") from error
    connection.exec_driver_sql("SET LOCAL statement_timeout = DEFAULT")


def may_have(times: Sequence[int]) -> tuple[str, tuple[int, int]]:
    """Return a query, and its values, that tells whether a feed may contain uses at these times in ms."""
    return _MAY_HAVE, (max(times), min(times))


def of_call(event: OutboxEntry, facts: CallFacts, user_id: int | None) -> list[Told]:
    """Return the usage events of a call; empty if it used nothing."""
    hours: usage_rollup.Rollup = {}
    usage_rollup.add_call(hours, event, facts, user_id)
    request_id = event.source.lower()
    return [
        _make_event(
            f"{request_id}:{USE}", USE, (request_id, used_at(event, facts)), bucket, sums, step=facts.step
        )
        for bucket, sums in hours.items()
        if _is_something(sums)
    ]


def of_change(kind: Kind, before: Sequence[Any], after: Sequence[Any]) -> list[Told]:
    """Return usage events with the difference between the rows `before` and `after` of a call.

    Both rows have the columns of `statements.CALL_SUMS`.
    """
    hours: usage_rollup.Rollup = {}
    # Use without a price so far has the cost 0 in any currency.
    usage_rollup.moved_usage(
        [*before[:_CURRENCY], before[_CURRENCY] or after[_CURRENCY], *before[_CURRENCY + 1 :]], after, hours
    )
    request_id, used_ms = after[_AS_TOLD:]
    return [
        _make_event(f"{request_id}:{uuid4()}", kind, (request_id, used_ms), bucket, sums)
        for bucket, sums in hours.items()
        if _is_something(sums)
    ]


class FeedListener:
    def stored(
        self,
        connection: psycopg.Connection[Any],
        calls: Sequence[OutboxEntry],
        user: Callable[[OutboxEntry], int | None],
        changes: Sequence[Change],
    ) -> None:
        """Queue events of stored and corrected calls for the feeds that contain their times of use."""
        times = [used_at(event, facts_of(event)) for event in calls]
        times += [used_in(after) for _, after in changes]
        if not times or connection.execute(*may_have(times)).fetchone() != (True,):
            return
        rows = [event_row for event in calls for event_row in of_call(event, facts_of(event), user(event))]
        rows += [event_row for before, after in changes for event_row in of_change(LATE, before, after)]
        if rows:
            connection.execute(TELL, columns_of(rows))

    def changed(self, connection: Connection, reason: Reason, changes: Iterable[Change]) -> None:
        """Queue the differences of changed calls for the feeds that contain their times of use."""
        moved = list(changes)
        if connection.exec_driver_sql(*may_have([used_in(after) for _, after in moved])).scalar():
            rows = [event_row for before, after in moved for event_row in of_change(reason, before, after)]
            if rows:
                connection.exec_driver_sql(TELL, tuple(columns_of(rows)))


def _make_event(
    name: str, kind: Kind, of: tuple[object, object], bucket: usage_rollup.UsageBucket, sums: Sequence[int],
    *, step: tuple[str, int, str, int | None] | None = None,
) -> Told:  # fmt: skip
    organization_id, _, *own = bucket
    names = (None, None) if step is None else (stored_text(step[0]), stored_text(step[2]))
    return (name, kind, *of, organization_id, *own, *(sums[at] for at in _AMOUNTS_AT), *names)


def _is_something(sums: Sequence[int]) -> bool:
    return any(sums[at] for at in _USED_AT)
