"""Waiting usage events for a billing service: claimed by one keeper at a time, the oldest first.

A keeper sends the events of all feeds with its service, also of ended ones. Its lease is longer than sending
a batch may take. Another keeper may send a claimed event again, unchanged: nothing is added to a claimed
event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.tags import TAG
from gateway.core.accounts.usage import NO_PROJECT
from gateway.core.times import rfc3339
from gateway.features.usage_feed.events import (
    AMOUNTS,
    COUNTED_MAX,
    FAILED_MAX,
    LEASE_S,
    FeedEvent,
    Pause,
    Service,
    Terms,
    amount_of,
    pause_s,
)
from persistence.keeper.forgetting import delete
from persistence.keeper.retention import DELETED_ROWS_AT_ONCE
from persistence.queries import query
from persistence.usage_feed.outbox import BORDER, hold_flushes

_GO_ON = query("usage_feed.go_on", "Store the settings of a feed", """
UPDATE usage_feed SET service = :service, waiting_max = :waiting_max WHERE ended_at IS NULL RETURNING id""")  # fmt: skip
# A person ended the feed: a keeper's restart must not undo that.
_ENDED = query("usage_feed.ended", "Select whether a person ended a feed",
    "SELECT EXISTS (SELECT FROM usage_feed WHERE service = :service)")  # fmt: skip
_BEGIN = query("usage_feed.begin", "Begin a feed", f"""
INSERT INTO usage_feed (service, waiting_max, begun_at) VALUES (:service, :waiting_max, {BORDER})
ON CONFLICT ((true)) WHERE ended_at IS NULL DO NOTHING""")  # fmt: skip
_LEASE = query("usage_feed.lease", "Lease a feed", """
UPDATE usage_feed SET leased_by = :me, leased_until = now() + make_interval(secs => :lease)
 WHERE id = (
       SELECT f.id FROM usage_feed AS f
        WHERE f.service = :service AND f.dropped_at IS NULL
          AND (f.paused_until IS NULL OR f.paused_until <= now())
          AND (f.leased_by = :me OR f.leased_until IS NULL OR f.leased_until <= now())
          AND EXISTS (SELECT FROM usage_outbox WHERE feed_id = f.id AND state = 'waiting')
          AND (SELECT count(*) FROM (SELECT FROM usage_outbox WHERE feed_id = f.id AND state = 'failed'
                                      LIMIT :failed_max) AS failed) < :failed_max
        ORDER BY f.id LIMIT 1 FOR UPDATE OF f SKIP LOCKED)
RETURNING id""")  # fmt: skip
# Rows that are being added to are skipped until the next time.
_TAKE = query("usage_feed.take", "Lock events of a feed", """
SELECT id FROM usage_outbox WHERE feed_id = :feed AND state = 'waiting'
 ORDER BY place, id LIMIT :n FOR UPDATE SKIP LOCKED""")  # fmt: skip
_CLOSE = query("usage_feed.close", "Close events that are added to",
    "UPDATE usage_outbox SET folding = false WHERE id = ANY(:ids) AND folding")  # fmt: skip
_READ = query("usage_feed.read", "Select events of a feed", """
SELECT u.*, o.name AS organization, t.name AS tenant, s.key AS service, a.external_id AS "user"
  FROM usage_outbox AS u JOIN organization AS o ON o.id = u.organization_id
  LEFT JOIN tenant AS t ON t.id = u.tenant_id LEFT JOIN service AS s ON s.id = u.service_id
  LEFT JOIN app_user AS a ON a.id = u.user_id
 WHERE u.id = ANY(:ids) ORDER BY u.place, u.id""")  # fmt: skip
_TAKEN = query("usage_feed.taken", "Delete sent events", """
WITH gone AS (DELETE FROM usage_outbox WHERE id = ANY(:ids) RETURNING feed_id)
UPDATE usage_feed AS f SET sent = f.sent + g.count, attempts = 0, paused_until = NULL, error = NULL
  FROM (SELECT feed_id, count(*) AS count FROM gone GROUP BY 1) AS g WHERE f.id = g.feed_id""")  # fmt: skip
_REFUSED = query("usage_feed.refused", "Store refused events", """
UPDATE usage_outbox AS u SET state = 'failed', error = n.error
  FROM unnest(cast(:ids AS bigint[]), cast(:errors AS text[])) AS n (id, error)
 WHERE u.id = n.id AND u.state = 'waiting'""")  # fmt: skip
# The feed, if no other keeper has its lease.
_ATTEMPTS = query("usage_feed.attempts", "Lock the leased feed",
    "SELECT attempts FROM usage_feed WHERE leased_by = :me ORDER BY id FOR UPDATE")  # fmt: skip
_PAUSE = query("usage_feed.pause", "Pause the leased feed", """
UPDATE usage_feed SET attempts = attempts + 1, error = :error,
       paused_until = now() + make_interval(secs => :seconds)
 WHERE leased_by = :me""")  # fmt: skip
_RELEASE = query("usage_feed.release", "Release the leased feed",
    "UPDATE usage_feed SET leased_by = NULL, leased_until = NULL WHERE leased_by = :me")  # fmt: skip
_FORGET = query("usage_feed.forget", "Delete events of dropped feeds", """
DELETE FROM usage_outbox WHERE id IN (
       SELECT u.id FROM usage_feed AS f JOIN usage_outbox AS u ON u.feed_id = f.id
        WHERE f.dropped_at IS NOT NULL LIMIT :n)""")  # fmt: skip

# Metrics of feeds that are not dropped. Above `most`, events are counted by their positions.
_USAGE_FEEDS = query("usage_feed.usage_feeds", "Count the events of feeds", """
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
 WHERE f.dropped_at IS NULL""")  # fmt: skip


@dataclass(slots=True, eq=False)
class FeedQueue:
    """The queue of usage events in PostgreSQL."""

    engine: AsyncEngine
    _: KW_ONLY
    failed_max: int = FAILED_MAX
    lease_s: float = LEASE_S
    _me: UUID = field(default_factory=uuid4, init=False)

    async def begin(self, terms: Terms) -> bool:
        """Open a service's feed, or update the open one; return False if a person ended the service's feed.

        Raise `Conflict` if flushes are under way for too long.
        """
        here = {"service": terms.service, "waiting_max": terms.waiting_max}
        async with self.engine.begin() as connection:
            if (await connection.execute(_GO_ON, here)).first() is not None:
                return True
            if await connection.scalar(_ENDED, here):
                return False
            await connection.run_sync(hold_flushes)
            await connection.execute(_BEGIN, here)
            return True

    async def claim(self, service: Service, count: int) -> Sequence[FeedEvent]:
        """Return up to `count` of the oldest waiting events for a service, all of one feed.

        Empty while all its feeds are paused, or claimed by other keepers.
        """
        lease = {
            "me": self._me, "lease": self.lease_s, "failed_max": self.failed_max, "service": service,
        }  # fmt: skip
        async with self.engine.begin() as connection:
            feed = (await connection.execute(_LEASE, lease)).scalar()
            if feed is None:
                return ()
            ids = (await connection.execute(_TAKE, {"feed": feed, "n": count})).scalars().all()
            await connection.execute(_CLOSE, {"ids": ids})
            rows = (await connection.execute(_READ, {"ids": ids})).all()
        return [_event(row) for row in rows]

    async def keep(self, taken: Collection[int], refused: Mapping[int, str]) -> None:
        """Delete the events in `taken`, which the service accepted, and mark those in `refused` as failed."""
        async with self.engine.begin() as connection:
            if taken:
                await connection.execute(_TAKEN, {"ids": list(taken)})
            if refused:
                here = {"ids": list(refused), "errors": list(refused.values())}
                await connection.execute(_REFUSED, here)

    async def pause(self, pause: Pause) -> None:
        """Pause the claimed feed after a failure; the pause grows with the number of failures."""
        async with self.engine.begin() as connection:
            made = (await connection.execute(_ATTEMPTS, {"me": self._me})).scalars().all()
            seconds = pause_s(max(made, default=0) + 1, pause.seconds)
            here = {"me": self._me, "error": pause.reason, "seconds": seconds}
            await connection.execute(_PAUSE, here)

    async def release(self) -> None:
        """Release the lease, so that another keeper may send."""
        # A courtesy: the lease ends by itself.
        with suppress(SQLAlchemyError):
            async with self.engine.begin() as connection:
                await connection.execute(_RELEASE, {"me": self._me})


async def forget(engine: AsyncEngine, at_once: int = DELETED_ROWS_AT_ONCE) -> int:
    """Delete the events of dropped feeds; return the number."""
    return await delete(engine, _FORGET, {}, at_once)


async def usage_feeds(engine: AsyncEngine, *, counted_max: int = COUNTED_MAX) -> dict[str, object]:
    """Return metrics of usage events: waiting, refused, age of the oldest, and number sent."""
    async with engine.connect() as connection:
        row = (await connection.execute(_USAGE_FEEDS, {"most": counted_max})).one()
    return {
        "usage_feed_events": [("waiting", int(row.waiting)), ("failed", int(row.failed))],
        "usage_feed_oldest_seconds": float(row.oldest),
        "usage_feed_sent": int(row.sent),
    }


def _event(row: Any) -> FeedEvent:
    said = {
        "kind": row.kind, "request_id": row.request_id, "used_at": row.used_at and rfc3339(row.used_at),
        "organization": row.organization, "tenant_id": row.tenant_id, "tenant": row.tenant, "user": row.user,
        "project_id": None if row.project_id == NO_PROJECT else row.project_id,
        "api_key_id": row.api_key_id or None, "service": row.service, "model": row.model,
        "currency": row.currency, "model_asked": row.model_asked, "substituted_by": row.substituted_by,
    }  # fmt: skip
    properties = {name: str(value) for name, value in said.items() if value is not None}
    properties |= {TAG + name: value for name, value in row.tags.items()}
    properties |= {name: amount_of(name, getattr(row, name)) for name in AMOUNTS}
    return FeedEvent(row.id, row.name, str(row.organization_id), row.at, properties)
