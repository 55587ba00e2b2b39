"""Messages about API keys that expire soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from persistence import engine
from persistence.keeper.news import Notices
from tests.connections import connected
from tests.persistence.scenario import Account, rows_of, settle_in

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


class Keys:
    """Keys of one tenant, and what a webhook of all events hears of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        [self.account] = settle_in(url, None)
        self.listen(None)

    def listen(self, organization_id: int | None) -> None:
        with connected(self.url) as connection:
            connection.execute(
                "INSERT INTO webhook (organization_id, url, events, secret)"
                """ VALUES (%s, 'https://example.com/', '["api_key.expiring"]', 'whsec_AAAA')""",
                [organization_id],
            )

    def add(
        self, name: str, expires_at: datetime | None, created_at: datetime, account: Account | None = None
    ) -> None:
        with connected(self.url) as connection:
            connection.execute(
                "INSERT INTO api_key (tenant_id, name, digest, prefix, expires_at, created_at)"
                " SELECT %s, %s, lpad(to_hex(count(*) + 1), 64, '0'), 'tk-' || %s, %s, %s FROM api_key",
                [(account or self.account).tenant_id, name, name, expires_at, created_at],
            )

    def change(self, name: str, column: str, value: datetime) -> None:
        with connected(self.url) as connection:
            connection.execute(f"UPDATE api_key SET {column} = %s WHERE name = %s", [value, name])

    async def look(self, now: datetime) -> None:
        pool = engine.create(self.url)
        await Notices(pool).notice(now - timedelta(seconds=1), now)
        await pool.dispose()

    def told(self) -> list[tuple[object, ...]]:
        return rows_of(
            self.url,
            "SELECT payload->>'name', (payload->>'days')::integer FROM webhook_delivery ORDER BY id",
        )


@pytest.fixture
def keys(migrated: str) -> Keys:
    return Keys(migrated)


async def test_expiring_key_is_reported_at_each_mark_once(keys: Keys) -> None:
    keys.add("ci", NOW, created_at=NOW - 30 * DAY)
    second = timedelta(seconds=1)
    for now, told in (
        (NOW - 7 * DAY - second, []),
        (NOW - 7 * DAY, [("ci", 7)]),
        (NOW - DAY - second, [("ci", 7)]),
        (NOW - DAY, [("ci", 7), ("ci", 1)]),
        (NOW - second, [("ci", 7), ("ci", 1)]),
        (NOW, [("ci", 7), ("ci", 1)]),
    ):
        await keys.look(now)
        assert keys.told() == told, now


async def test_message_about_an_expiring_key_has_its_fields(keys: Keys) -> None:
    keys.add("ci", NOW, created_at=NOW - 30 * DAY)
    await keys.look(NOW - 7 * DAY)
    [(key_id, organization_id, tenant)] = rows_of(
        keys.url,
        "SELECT k.id, t.organization_id, t.name FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id"
        " WHERE k.name = 'ci'",
    )
    assert rows_of(keys.url, "SELECT event, payload FROM webhook_delivery") == [
        (
            "api_key.expiring",
            {
                "organization_id": organization_id,
                "api_key_id": key_id,
                "name": "ci",
                "prefix": "tk-ci",
                "tenant": tenant,
                "expires_at": "2026-05-20T12:00:00Z",
                "days": 7,
            },
        )
    ]


async def test_revoked_key_and_key_without_an_end_are_not_reported(keys: Keys) -> None:
    keys.add("revoked", NOW, created_at=NOW - 30 * DAY)
    keys.change("revoked", "revoked_at", NOW - 20 * DAY)
    keys.add("endless", None, created_at=NOW - 30 * DAY)
    await keys.look(NOW - timedelta(hours=1))
    assert keys.told() == []


@pytest.mark.parametrize(
    ("age", "told"),
    [
        (7 * DAY + timedelta(seconds=1), [("ci", 7), ("ci", 1)]),
        (7 * DAY, [("ci", 1)]),
        (DAY + timedelta(seconds=1), [("ci", 1)]),
        (DAY, []),
    ],
)
async def test_mark_that_had_passed_when_the_key_was_made_is_not_reported(
    keys: Keys, age: timedelta, told: list[tuple[object, ...]]
) -> None:
    keys.add("ci", NOW, created_at=NOW - age)
    await keys.look(NOW - 2 * DAY)
    await keys.look(NOW - timedelta(hours=1))
    assert keys.told() == told


async def test_key_with_a_later_end_is_reported_again(keys: Keys) -> None:
    keys.add("ci", NOW, created_at=NOW - 30 * DAY)
    await keys.look(NOW - 2 * DAY)
    keys.change("ci", "expires_at", NOW + 30 * DAY)
    await keys.look(NOW + 25 * DAY)
    assert keys.told() == [("ci", 7), ("ci", 7)]


async def test_webhook_of_an_organization_hears_of_its_own_keys_alone(keys: Keys) -> None:
    [other] = settle_in(keys.url, None)
    keys.listen(other.organization_id)
    keys.add("ours", NOW, created_at=NOW - 30 * DAY)
    keys.add("theirs", NOW, created_at=NOW - 30 * DAY, account=other)
    await keys.look(NOW - 2 * DAY)
    heard = rows_of(
        keys.url,
        "SELECT w.organization_id, d.payload->>'name' FROM webhook_delivery AS d"
        " JOIN webhook AS w ON w.id = d.webhook_id WHERE w.organization_id IS NOT NULL",
    )
    assert heard == [(other.organization_id, "theirs")]
