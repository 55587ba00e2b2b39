"""Messages for every webhook that wants an event, once for each occasion.

An occasion is a name that never repeats (a tenant's cycle and threshold, an invoice), so that repeated checks
create one message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.alerts.events.registry import all_events
from persistence.queries import query

# A webhook with this many pending messages gets no new ones until some are delivered or given up.
WAITING_MAX = 10_000

# Messages for all webhooks that want the events of `news` (event, occasion, data).
_MESSAGES = f""", listening AS MATERIALIZED (
    SELECT id, events, organization_id FROM webhook AS w WHERE enabled AND deleted_at IS NULL
       AND (SELECT count(*) FROM (SELECT FROM webhook_delivery WHERE webhook_id = w.id AND state = 'pending'
                                   LIMIT {WAITING_MAX}) AS waiting) < {WAITING_MAX}
)
INSERT INTO webhook_delivery (webhook_id, event, payload, occasion)
SELECT w.id, n.event, n.data, n.occasion FROM news AS n
  JOIN listening AS w ON (w.events = '[]'::jsonb OR w.events ? n.event)
   AND (w.organization_id IS NULL OR w.organization_id = (n.data->>'organization_id')::bigint)
ON CONFLICT (webhook_id, occasion) DO NOTHING"""


class News(NamedTuple):
    """An event; `data` contains its organization's id, `occasion` identifies it."""

    event: str
    occasion: str
    data: dict[str, object]


class Notice(NamedTuple):
    """A statement that creates the messages about a state, and its parameters.

    The parameters are made of two moments: when the state was last read, and now.
    """

    statement: TextClause
    parameters: Callable[[datetime, datetime], Mapping[str, object]] = lambda since, now: {}


def message_query(name: str, sentence: str, news: str) -> TextClause:
    """Return a named statement that creates webhook messages for the events found by the WITH clause `news`."""
    return query(f"news.{name}", sentence, f"{news}{_MESSAGES}")


def data_of(*events: str, **values: str) -> str:
    """Return SQL of the data of these events: `values` are SQL by the name of a field."""
    _assert_fields(values.keys(), *events)
    members = ", ".join(f"'{name}', {sql}" for name, sql in values.items())
    return f"jsonb_build_object({members})"


def _assert_fields(names: object, *events: str) -> None:
    for event in events:
        assert all_events()[event].names == names, f"other fields than the row of {event} has: {names}"


_GIVEN = message_query(
    "given",
    "Create messages about events that the keeper has found",
    """
WITH news AS (
    SELECT * FROM jsonb_to_recordset(cast(:news AS jsonb)) AS n (event text, occasion text, data jsonb)
)""",
)


async def create_messages(connection: AsyncConnection, news: Sequence[News]) -> None:
    for item in news:
        _assert_fields(item.data.keys(), item.event)
    if news:
        await connection.execute(_GIVEN, {"news": json.dumps([item._asdict() for item in news])})


def wanted(events: Sequence[str], organization: str) -> str:
    """Return an SQL condition: a webhook of an `organization` (SQL of its id) wants one of these events."""
    names = ", ".join(f"'{event}'" for event in events)
    return f"""EXISTS (SELECT FROM webhook AS h WHERE h.enabled AND h.deleted_at IS NULL
       AND (h.organization_id IS NULL OR h.organization_id = {organization})
       AND (h.events = '[]'::jsonb OR h.events ?| array[{names}]))"""
