"""What an operator is told of from PostgreSQL."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.billing.invoice_schedule import LEFT_REASONS
from gateway.core.integrity.reconciliation import UNASKED, DifferenceKind, Item, ReconciliationSummary
from gateway.counters.redis.keys import partition_of
from persistence.keeper.gauges import watch_gauges
from persistence.resources.integrity import ReconciliationResults
from persistence.server_certificate import certificate_end
from tests.connections import connected

KEYS = """
INSERT INTO organization (name) VALUES ('o');
INSERT INTO tenant (name, organization_id) SELECT 't', id FROM organization;
INSERT INTO api_key (tenant_id, name, digest, prefix, expires_at, revoked_at)
SELECT t.id, k.name, repeat(k.digit, 64), 'tk', now() + k.ends, k.revoked FROM tenant t,
 (VALUES ('later', 'a', interval '9 days', null), ('next', 'b', interval '2 days', null),
         ('past', 'c', interval '-1 day', null), ('never', 'd', null, null),
         ('revoked', 'e', interval '1 day', now())) AS k (name, digit, ends, revoked);
"""
# All that is older is delivered, or waits for a webhook that is off or gone.
MESSAGES = """
INSERT INTO webhook (url, secret, events, enabled, deleted_at) VALUES
 ('https://on', 'whsec_AAAA', '["quota.80"]', true, null),
 ('https://off', 'whsec_AAAA', '["quota.80"]', false, null),
 ('https://gone', 'whsec_AAAA', '["quota.80"]', true, now());
INSERT INTO webhook_delivery (webhook_id, event, payload, occasion, state, created_at)
SELECT w.id, 'quota.80', '{}', m.state || m.age, m.state, now() - m.age
  FROM webhook AS w JOIN (VALUES ('on', 'pending', interval '1 hour'), ('on', 'pending', interval '1 minute'),
       ('on', 'delivered', interval '9 hours'), ('off', 'pending', interval '5 hours'),
       ('gone', 'pending', interval '5 hours')) AS m (name, state, age)
    ON w.url = 'https://' || m.name;
"""


async def test_the_next_end_is_that_of_a_valid_credential(migrated: str, pool: AsyncEngine) -> None:
    assert (await watch_gauges(pool))["credential_expiry_timestamp_seconds"] == []
    with connected(migrated) as connection:
        connection.execute(KEYS)
    [(kind, end)] = (await watch_gauges(pool))["credential_expiry_timestamp_seconds"]
    assert kind == "api_key"
    assert abs(end - time.time() - 2 * 86400) < 3600


async def test_what_the_last_comparison_found_is_counted_by_kind(pool: AsyncEngine) -> None:
    results, now = ReconciliationResults(pool, partition_of), datetime.now(UTC)
    of_rows = Item("tenant:1", DifferenceKind.CONTRADICTION, 0, 3, "balance: 3")
    drift = Item("tenant:1", DifferenceKind.DRIFT, 5, 3, "5 more")
    runs = [
        ([], {}),
        ([of_rows, drift, of_rows], {"contradiction": 2, "drift": 1}),
        ([of_rows] * 1_002, {"contradiction": 1_000, "more": 1}),
        (UNASKED.items, {"contradiction": 1_000, "unasked": 1}),
        ([drift], {"drift": 1}),
        (UNASKED.items, {"unasked": 1}),
    ]
    assert (await watch_gauges(pool))["reconciliation_items"] == [(kind.value, 0) for kind in DifferenceKind]
    for items, expected in runs:
        await results.keep(now, now, ReconciliationSummary(1, 0, tuple(items)))
        found = dict((await watch_gauges(pool))["reconciliation_items"])
        assert found == dict.fromkeys(DifferenceKind, 0) | expected


async def test_entries_put_aside_are_counted(migrated: str, pool: AsyncEngine) -> None:
    assert (await watch_gauges(pool))["dead_letters"] == 0
    with connected(migrated) as connection:
        connection.execute(
            "INSERT INTO dead_letter (partition, entry_id, raw, reason) VALUES (1, '1-1', 'x', 'torn')"
        )
    assert (await watch_gauges(pool))["dead_letters"] == 1


async def test_movements_that_were_found_lost_are_dated_by_their_rows(
    migrated: str, pool: AsyncEngine
) -> None:
    lost = "INSERT INTO redis_loss VALUES ('tenant:1', %s, 7, 3, 9, 0, %s)"
    with connected(migrated) as connection:
        connection.execute(lost, (1, 0))  # all were brought back
        connection.commit()
        assert (await watch_gauges(pool))["last_timestamp_seconds"] == [("lost_events", 0.0)]
        connection.execute(lost, (2, 4))
    [(event, at)] = (await watch_gauges(pool))["last_timestamp_seconds"]
    assert event == "lost_events"
    assert abs(at - time.time()) < 3600


async def test_the_oldest_message_is_of_a_webhook_that_somebody_wants(
    migrated: str, pool: AsyncEngine
) -> None:
    assert (await watch_gauges(pool))["webhook_messages_oldest_seconds"] == 0
    with connected(migrated) as connection:
        connection.execute(MESSAGES)
    found = await watch_gauges(pool)
    assert found["webhook_messages_waiting"] == 4
    assert 3600 <= float(str(found["webhook_messages_oldest_seconds"])) < 2 * 3600


async def test_what_the_schedule_left_is_counted_by_reason(migrated: str, pool: AsyncEngine) -> None:
    with connected(migrated) as connection:
        connection.execute(
            "INSERT INTO organization (name, invoicing_left, invoicing_left_reason, deleted_at) VALUES"
            " ('a', 'Invoice 7 has days of this period.', 'conflict', null),"
            " ('b', 'Invoice 8 has days of this period.', 'conflict', null),"
            " ('c', 'This cannot become final.', 'incomplete', null),"
            " ('gone', 'They differ.', 'not_agreed', now()), ('made', null, null, null)"
        )
    found = await watch_gauges(pool, "on")
    assert found["invoices_left"] == [
        (reason, {"conflict": 2, "incomplete": 1}.get(reason, 0)) for reason in LEFT_REASONS
    ]
    assert (await watch_gauges(pool))["invoices_left"] == []


def test_a_server_without_tls_has_no_certificate(migrated: str) -> None:
    assert certificate_end(migrated) is None
    assert certificate_end(f"{migrated}?sslmode=disable") is None
