"""What an operator should be told of and only PostgreSQL knows: entries put aside, ends of credentials,
and until when its own certificate is valid.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.billing.due import LEFT_REASONS
from gateway.core.billing.usage_feed import COUNTED_MAX
from gateway.core.certificate import not_after
from gateway.core.integrity.reconciliation import Kind
from persistence.engine import plain_url

SSL_REQUEST = (8).to_bytes(4) + (80_877_103).to_bytes(4)
SSL_ANSWER_S_MAX = 5.0

_DEAD = text("SELECT count(*) FROM dead_letter WHERE resolved_at IS NULL")
# What waits for a webhook that is gone, or off, is not late: it is given up when its time comes.
_WAITING = text("""
SELECT count(*) AS waiting,
       coalesce(extract(epoch FROM now() - min(d.created_at)
                                           FILTER (WHERE w.enabled AND w.deleted_at IS NULL)), 0) AS oldest
  FROM webhook_delivery AS d JOIN webhook AS w ON w.id = d.webhook_id WHERE d.state = 'pending'""")
_UNPAID = text("""
SELECT (SELECT count(*) FROM invoice WHERE payment_status = 'overdue') AS overdue,
       (SELECT count(*) FROM dunning_step AS b WHERE b.action = 'block' AND b.control_write_id IS NOT NULL
           AND NOT EXISTS (SELECT FROM dunning_step AS e WHERE e.corrects_id = b.id)) AS blocked""")
_LEFT = text("""
SELECT invoicing_left_reason AS reason, count(*) AS count FROM organization
 WHERE invoicing_left IS NOT NULL AND deleted_at IS NULL GROUP BY 1""")
_HANDOVERS = text("""
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE state = 'waiting')), 0) AS oldest,
       (SELECT count(*) FROM handover_event
         WHERE remains IS NOT NULL AND created_at > now() - interval '1 day') AS remaining
  FROM handover WHERE state IN ('waiting', 'failed')""")
# Of each feed that is not dropped. Beyond so many they are counted by their places, and not one by one.
_USAGE_FEEDS = text("""
SELECT coalesce(sum(CASE WHEN w.count < :most THEN w.count
                         ELSE greatest(w.count, p.last - p.first + 1) END), 0) AS waiting,
       coalesce(sum(x.count), 0) AS failed,
       coalesce(max(extract(epoch FROM now() - p.since)), 0) AS oldest,
       (SELECT coalesce(sum(sent), 0) FROM usage_feed) AS sent
  FROM usage_feed AS f
 CROSS JOIN LATERAL (SELECT count(*) FROM (
           SELECT FROM usage_outbox WHERE feed_id = f.id AND state = 'waiting' LIMIT :most) AS counted) AS w
 CROSS JOIN LATERAL (SELECT count(*) FROM (
           SELECT FROM usage_outbox WHERE feed_id = f.id AND state = 'failed' LIMIT :most) AS counted) AS x
 CROSS JOIN LATERAL (
           SELECT (SELECT place FROM usage_outbox WHERE feed_id = f.id AND state = 'waiting'
                    ORDER BY place DESC LIMIT 1) AS last, min(o.place) AS first, min(o.created_at) AS since
             FROM (SELECT place, created_at FROM usage_outbox WHERE feed_id = f.id AND state = 'waiting'
                    ORDER BY place, id LIMIT 1) AS o) AS p
 WHERE f.dropped_at IS NULL""")
_BACKED_UP = text("""
SELECT extract(epoch FROM max(taken_at)) AS taken, extract(epoch FROM max(proved_at)) AS proved
  FROM backup_run""")
_CLOCK = text("SELECT extract(epoch FROM clock_timestamp())")
_LOST = text("SELECT extract(epoch FROM max(updated_at)) FROM redis_loss WHERE lost > 0")
# Of the last comparison of everybody that is kept; what rows say, of the last one that had asked them.
_DIFFERS = text("""
WITH last AS (SELECT items FROM reconciliation ORDER BY id DESC LIMIT 1),
     asked AS (SELECT items FROM reconciliation WHERE NOT items @> '[{"kind": "unasked"}]'
                ORDER BY id DESC LIMIT 1)
SELECT item->>'kind' AS kind, count(*) AS n
  FROM (SELECT i.item FROM last CROSS JOIN LATERAL jsonb_array_elements(last.items) AS i (item)
         WHERE i.item->>'kind' <> 'contradiction'
        UNION ALL
        SELECT i.item FROM asked CROSS JOIN LATERAL jsonb_array_elements(asked.items) AS i (item)
         WHERE i.item->>'kind' = 'contradiction') AS found
 GROUP BY 1""")
_ENDS = text("""
SELECT 'api_key', extract(epoch FROM min(expires_at)) FROM api_key
 WHERE revoked_at IS NULL AND expires_at > now()
UNION ALL
SELECT 'admin_token', extract(epoch FROM min(expires_at)) FROM admin_token
 WHERE revoked_at IS NULL AND expires_at > now()""")


async def gauges(engine: AsyncEngine, schedule: str = "off") -> dict[str, object]:
    """All that is counted in tables for metrics, by the metric's name."""
    return {
        **await invoices(engine, scheduled=schedule != "off"),
        **await handed_over(engine),
        **await usage_feeds(engine),
        "dead_letters": await dead_letters(engine),
        "reconciliation_items": await differing(engine),
        **await waiting_messages(engine),
        "credential_expiry_timestamp_seconds": await next_ends(engine),
        **await backed_up(engine),
        "last_timestamp_seconds": await last_lost(engine),
        "clock_offset_seconds": await clock_off(engine),
    }


async def clock_off(engine: AsyncEngine, wall: Callable[[], float] = time.time) -> list[tuple[str, float]]:
    """By how many seconds our clock is ahead of PostgreSQL's, as far as that can be told."""
    async with engine.connect() as connection:
        began = wall()
        theirs, now = float(await connection.scalar(_CLOCK) or 0), wall()
    return [("postgresql", began - theirs if theirs < began else min(0.0, now - theirs))]


async def dead_letters(engine: AsyncEngine) -> int:
    """Entries of the outbox that could not be read or stored, and are not dealt with."""
    async with engine.connect() as connection:
        return int(await connection.scalar(_DEAD) or 0)


async def differing(engine: AsyncEngine) -> list[tuple[str, int]]:
    """What the last comparison of everybody found, by kind: nothing before the first.

    Contradictions stay until rows are asked again: while a run is under way they were not yet.
    """
    async with engine.connect() as connection:
        found = {row.kind: int(row.n) for row in await connection.execute(_DIFFERS)}
    return [(kind.value, found.get(kind.value, 0)) for kind in Kind]


async def waiting_messages(engine: AsyncEngine) -> dict[str, object]:
    """Messages to webhooks that are not delivered yet, nor given up, and since when the oldest waits."""
    async with engine.connect() as connection:
        row = (await connection.execute(_WAITING)).one()
    return {"webhook_messages_waiting": row.waiting, "webhook_messages_oldest_seconds": float(row.oldest)}


async def invoices(engine: AsyncEngine, *, scheduled: bool) -> dict[str, object]:
    """How many invoices are overdue, how many tenants blocked for ones that are not paid; and of how many
    organizations the schedule left the invoice, by reason, where there is a schedule.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_UNPAID)).one()
        left = {each.reason: each.count for each in await connection.execute(_LEFT)} if scheduled else {}
    found = {"invoices_overdue": row.overdue, "tenants_blocked_unpaid": row.blocked}
    return found | {"invoices_left": [(each, left.get(each, 0)) for each in LEFT_REASONS if scheduled]}


async def handed_over(engine: AsyncEngine) -> dict[str, object]:
    """How many documents a billing service is to have and has not, since when the oldest waits, and of how
    many messages of the last day something is left for a person.
    """
    async with engine.connect() as connection:
        row = (await connection.execute(_HANDOVERS)).one()
    return {
        "handovers": [("waiting", row.waiting), ("failed", row.failed)],
        "handovers_oldest_seconds": float(row.oldest),
        "handover_events_remaining": row.remaining,
    }


async def usage_feeds(engine: AsyncEngine, *, counted_max: int = COUNTED_MAX) -> dict[str, object]:
    """How many usage events a billing service was not told yet, or refused, and how many it took."""
    async with engine.connect() as connection:
        row = (await connection.execute(_USAGE_FEEDS, {"most": counted_max})).one()
    return {
        "usage_feed_events": [("waiting", int(row.waiting)), ("failed", int(row.failed))],
        "usage_feed_oldest_seconds": float(row.oldest),
        "usage_feed_sent": int(row.sent),
    }


async def backed_up(engine: AsyncEngine) -> dict[str, object]:
    """When the last backup was taken, and when one was last proven, Unix time; nothing where none was."""
    async with engine.connect() as connection:
        row = (await connection.execute(_BACKED_UP)).one()
    found = {"backup_timestamp_seconds": row.taken, "backup_proof_timestamp_seconds": row.proved}
    return {name: float(value) for name, value in found.items() if value is not None}


async def last_lost(engine: AsyncEngine) -> list[tuple[str, float]]:
    """When movements were last found lost, Unix time; zero where none ever were."""
    async with engine.connect() as connection:
        at = await connection.scalar(_LOST)
    return [("lost_events", float(at or 0))]


async def next_ends(engine: AsyncEngine) -> list[tuple[str, float]]:
    """When the next valid API key and admin token end, Unix time; a kind of which none ends is left out."""
    async with engine.connect() as connection:
        rows = (await connection.execute(_ENDS)).all()
    return [(kind, float(end)) for kind, end in rows if end is not None]


def certificate_end(url: str) -> float | None:
    """Until when, Unix time, the server's certificate is valid; None where it speaks no TLS.

    Asked over a connection of its own, since libpq does not show the certificate it has verified.
    Blocks; raises OSError where nobody answers.
    """
    address = conninfo_to_dict(plain_url(url))
    host = str(address.get("host") or "localhost").partition(",")[0]
    if host.startswith("/") or address.get("sslmode") == "disable":
        return None
    port = int(str(address.get("port") or 5432).partition(",")[0])
    with socket.create_connection((host, port), SSL_ANSWER_S_MAX) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            return None
        with _looking_only().wrap_socket(plain, server_hostname=host) as session:
            certificate = session.getpeercert(binary_form=True)
    return not_after(certificate) if certificate else None


def _looking_only() -> ssl.SSLContext:
    """No verification: nothing is said on this connection, and an expired certificate must be seen too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
