"""What a billing service is told of use: the feeds, and the events that wait."""

from __future__ import annotations

from persistence.tables.columns import flags, identity, integers, moments, table, texts, uuids

# The spans of time whose use is told, and how each does.
usage_feed = table(
    "usage_feed",
    identity(),
    texts("service"),
    moments("begun_at", "ended_at?"),
    # Events that may wait one for each use; how many were sent; attempts in a row that nothing came of.
    integers("waiting_max", "sent", "attempts"),
    moments("paused_until?"),
    texts("error?"),
    # Who sends now.
    uuids("leased_by?"),
    moments("leased_until?"),
    # When a person left what was not sent, and how many events that were.
    moments("dropped_at?"),
    integers("dropped?"),
)

# What was not told yet: a row each, deleted when the other side has it.
usage_outbox = table(
    "usage_outbox",
    identity(),
    integers("feed_id"),
    # Among those of its feed that wait.
    integers("place"),
    texts("name", "kind", "state"),
    moments("at"),
    uuids("request_id?"),
    moments("used_at?"),
    integers("organization_id", "tenant_id", "api_key_id", "user_id", "project_id", "service_id"),
    texts("model", "currency"),
    integers(
        "requests",
        "input",
        "cache_read",
        "cache_write",
        "output",
        "reasoning",
        "tokens",
        "credits",
        "units",
        "cost",
    ),
    # Whether more of its hour may still be added to it.
    flags("folding"),
    texts("error?"),
    moments("created_at"),
)
