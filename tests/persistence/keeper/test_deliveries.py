"""What waits is handed out to one sender each, some of every webhook."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from persistence import engine
from persistence.keeper.news import Deliveries
from tests.connections import connected
from tests.persistence.scenario import rows_of


@pytest.fixture
async def deliveries(migrated: str) -> AsyncIterator[Deliveries]:
    pool = engine.create(migrated)
    yield Deliveries(pool)
    await pool.dispose()


def wait(url: str, *messages: int) -> list[int]:
    """Webhooks that so many messages wait for; their ids."""
    with connected(url) as connection:
        connection.execute(
            "WITH w AS (INSERT INTO webhook (url, secret) SELECT 'https://example.com/' || n, 's'"
            " FROM generate_series(1, %s) AS n RETURNING id, split_part(url, '/', 4)::integer AS n)"
            " INSERT INTO webhook_delivery (webhook_id, event, occasion) SELECT id, 'webhook.test', 'o' || m"
            " FROM w CROSS JOIN LATERAL generate_series(1, (%s::integer[])[n]) AS m",
            (len(messages), list(messages)),
        )
    return [row_id for (row_id,) in rows_of(url, "SELECT id FROM webhook ORDER BY id")]  # type: ignore[misc]  # ids


async def test_some_of_each_webhook(migrated: str, deliveries: Deliveries) -> None:
    many, few = wait(migrated, 100, 2)
    claimed = Counter(each.webhook_id for each in await deliveries.claim_due(32, 4))
    assert claimed == {many: 4, few: 2}
    assert {each.webhook_id for each in await deliveries.claim_due(32, 4, {many})} == set()
    assert len(await deliveries.claim_due(3, 4)) == 3


async def test_two_senders_never_take_the_same(migrated: str, deliveries: Deliveries) -> None:
    wait(migrated, *[10] * 10)
    rounds = [await asyncio.gather(*(deliveries.claim_due(8, 2) for _ in range(4))) for _ in range(4)]
    taken = [each.id for claims in rounds for claim in claims for each in claim]
    assert len(taken) == len(set(taken)) > 40


async def test_webhooks_that_are_gone_keep_nothing_waiting(migrated: str, deliveries: Deliveries) -> None:
    wait(migrated, 3)
    with connected(migrated) as connection:
        connection.execute("UPDATE webhook SET enabled = false")
    assert await deliveries.claim_due(32, 4) == []
    assert rows_of(migrated, "SELECT DISTINCT state, error FROM webhook_delivery") == [
        ("failed", "the webhook is gone")
    ]
