"""Rows that are deleted once they are old: events and re-ratings."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    TextClause,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.queries import query


async def delete(
    engine: AsyncEngine, statement: TextClause, values: Mapping[str, object], at_once: int
) -> int:
    """Delete rows by `statement`, at most `at_once` in each transaction, until none is left.

    `values` are the statement's parameters besides the number `n`; return the number of deleted rows.
    """
    deleted = 0
    while True:
        async with engine.begin() as connection:
            gone = int((await connection.execute(statement, {**values, "n": at_once})).rowcount)
        deleted += gone
        if gone < at_once:
            return deleted


ROWS_AT_ONCE = 1_000

_EVENTS = query("forgetting.events", "Delete old events of use", """
DELETE FROM use_event WHERE id = ANY(ARRAY(
    SELECT e.id FROM use_event AS e
     WHERE e.created_at < now() - make_interval(days => :days)
       AND e.created_at < (SELECT all_kept_since()) AND e.used_at < (SELECT all_kept_since())
       AND e.late_tokens = 0 AND e.quota_tokens = 0
       -- Some rows of a month that is archived stay, with the event they are of.
       AND NOT EXISTS (SELECT FROM call AS c
                        WHERE c.request_id = e.request_id AND c.created_at >= e.used_at - interval '1 day')
       AND NOT EXISTS (SELECT FROM token_ledger AS t
                        WHERE t.request_id = e.request_id AND t.created_at >= e.used_at - interval '1 day')
       AND NOT EXISTS (SELECT FROM credit_transaction AS t
                        WHERE t.request_id = e.request_id AND t."timestamp" >= e.used_at - interval '1 day')
       AND NOT EXISTS (SELECT FROM feature_usage AS t
                        WHERE t.request_id = e.request_id AND t."timestamp" >= e.used_at - interval '1 day')
     ORDER BY e.created_at LIMIT :n))""")  # fmt: skip
_RERATINGS = query("forgetting.reratings", "Delete old ratings of calls", """
DELETE FROM rerating WHERE id = ANY(ARRAY(
    SELECT id FROM rerating
     WHERE created_at < now() - make_interval(days => :days) AND created_at < (SELECT all_kept_since())
     ORDER BY created_at LIMIT :n))""")  # fmt: skip


async def forget_events(engine: AsyncEngine, days: int, at_once: int = ROWS_AT_ONCE) -> int:
    """Delete events stored at least `days` days ago whose call's row is deleted; return their number."""
    return await delete(engine, _EVENTS, {"days": days}, at_once)


async def forget_reratings(engine: AsyncEngine, days: int, at_once: int = ROWS_AT_ONCE) -> int:
    return await delete(engine, _RERATINGS, {"days": days}, at_once)
