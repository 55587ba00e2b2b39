"""News: written down for every webhook that wants to know, once an occasion.

An occasion is a name that never repeats (a tenant's cycle and threshold, an invoice): looking twice tells
once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

# A webhook that so many messages wait for hears nothing new until some are gone, or given up.
WAITING_MAX = 10_000

# Everybody who wants to know of `news` (event, occasion, data).
_TELL = f""", listening AS MATERIALIZED (
    SELECT id, events, organization_id FROM webhook AS w WHERE enabled AND deleted_at IS NULL
       AND (SELECT count(*) FROM (SELECT FROM webhook_delivery WHERE webhook_id = w.id AND state = 'pending'
                                   LIMIT {WAITING_MAX}) AS waiting) < {WAITING_MAX}
)
INSERT INTO webhook_delivery (webhook_id, event, payload, occasion)
SELECT w.id, n.event, n.data, n.occasion FROM news AS n
  JOIN listening AS w ON (w.events = '[]'::jsonb OR w.events ? n.event)
   AND (w.organization_id IS NULL OR w.organization_id = (n.data->>'organization_id')::bigint)
ON CONFLICT (webhook_id, occasion) DO NOTHING"""  # noqa: S608  # a number of ours


class News(NamedTuple):
    """Something that happened; `data` says of which organization it is."""

    event: str
    occasion: str
    data: dict[str, object]


def told(news: str) -> TextClause:
    """A statement that tells what `news`, the WITH clause of it, finds."""
    return text(f"{news}{_TELL}")


_SAID = told("""
WITH news AS (
    SELECT * FROM jsonb_to_recordset(cast(:news AS jsonb)) AS n (event text, occasion text, data jsonb)
)""")


async def tell(connection: AsyncConnection, news: Sequence[News]) -> None:
    """Write down what was found."""
    if news:
        await connection.execute(_SAID, {"news": json.dumps([each._asdict() for each in news])})


def wanted(events: Sequence[str], organization: str) -> str:
    """A condition: somebody wants to know one of these events of the organization whose id is said."""
    names = ", ".join(f"'{event}'" for event in events)
    return f"""EXISTS (SELECT FROM webhook AS h WHERE h.enabled AND h.deleted_at IS NULL
       AND (h.organization_id IS NULL OR h.organization_id = {organization})
       AND (h.events = '[]'::jsonb OR h.events ?| array[{names}]))"""  # our own words
