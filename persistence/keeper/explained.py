"""What explains calls ends some time after they did: events of use, and calls that were rated again.

A call is gone once every ledger and the journal have its month in an archive, or dropped. PostgreSQL refuses
to delete sooner. That an event was taken is still known then: by its control write.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.keeper.pieces import delete

ROWS_AT_ONCE = 1_000

_EVENTS = text("""
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
     ORDER BY e.created_at LIMIT :n))""")
_RERATINGS = text("""
DELETE FROM rerating WHERE id = ANY(ARRAY(
    SELECT id FROM rerating
     WHERE created_at < now() - make_interval(days => :days) AND created_at < (SELECT all_kept_since())
     ORDER BY created_at LIMIT :n))""")


async def forget_events(engine: AsyncEngine, days: int, at_once: int = ROWS_AT_ONCE) -> int:
    """Delete events that were taken so many days ago, of calls that are gone; answers how many."""
    return await delete(engine, _EVENTS, {"days": days}, at_once)


async def forget_reratings(engine: AsyncEngine, days: int, at_once: int = ROWS_AT_ONCE) -> int:
    """The same of calls that were rated again so many days ago."""
    return await delete(engine, _RERATINGS, {"days": days}, at_once)
