"""Sudden use is found in real roll-ups: of organizations, tenants and keys, once an hour."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.keeper import news
from tests.connections import connected
from tests.persistence.scenario import Account, one, rows_of, settle_in

HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
NOW = HOUR + timedelta(minutes=20)
UNIT = 10**9


def hook(url: str) -> None:
    with connected(url) as connection:
        connection.execute("INSERT INTO webhook (url, secret) VALUES ('https://example.com/', 'whsec_AAAA')")


def settled(url: str, days: int = 100) -> tuple[Account, int]:
    """An organization, with its key, that has been there for some days."""
    [account] = settle_in(url, None)
    since = NOW - timedelta(days=days)
    with connected(url, autocommit=True) as connection:
        key = one(
            connection,
            "INSERT INTO api_key (tenant_id, name, digest, prefix, created_at)"
            " VALUES (%s, 'CI', %s, 'tk_', %s) RETURNING id",
            account.tenant_id, f"{account.tenant_id:064x}", since,
        )  # fmt: skip
        connection.execute("UPDATE organization SET created_at = %s", (since,))
        connection.execute("UPDATE tenant SET created_at = %s", (since,))
    return account, key


def spend(url: str, account: Account, key: int, cost: int, hour: datetime = HOUR) -> None:
    """What the flush adds to its roll-ups."""
    spans = {
        "hour": (hour, key), "team_hour": (hour, 0), "team_day": (hour.replace(hour=0), 0),
    }  # fmt: skip
    with connected(url) as connection:
        for span, (start, of) in spans.items():
            connection.execute(
                "INSERT INTO usage_rollup (span, start, organization_id, tenant_id, api_key_id, user_id,"
                " project_id, service_id, model, currency, requests, refused, input, cache_read, cache_write,"
                " output, reasoning, tokens, credits, units, cost, estimated, unpriced)"
                " VALUES (%s, %s, %s, %s, %s, 0, -1, 0, 'm', 'USD', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, %s, 0, 0)"
                " ON CONFLICT (span, organization_id, start, tenant_id, api_key_id, user_id, project_id,"
                " service_id, model, currency) DO UPDATE SET cost = usage_rollup.cost + excluded.cost",
                (span, start, account.organization_id, account.tenant_id, of, cost),
            )


def told(url: str) -> list[dict[str, Any]]:
    rows: list[Any] = rows_of(
        url, "SELECT payload FROM webhook_delivery WHERE event = 'usage.sudden' ORDER BY id"
    )
    return [payload for (payload,) in rows]


def scopes(url: str) -> list[str]:
    return sorted(data["scope"] for data in told(url))


async def test_sudden_use_is_told_once_an_hour_and_subject(migrated: str, pool: AsyncEngine) -> None:
    hook(migrated)
    account, key = settled(migrated)
    for day in range(1, 8):
        spend(migrated, account, key, 2 * UNIT, HOUR - timedelta(days=day))
    spend(migrated, account, key, 6 * UNIT - 1)
    await news.look_for_sudden_use(pool, NOW)
    assert told(migrated) == []
    spend(migrated, account, key, 1)
    for _ in range(2):
        await news.look_for_sudden_use(pool, NOW)
        assert scopes(migrated) == ["api_key", "organization", "tenant"]
    [of_key] = [data for data in told(migrated) if data["scope"] == "api_key"]
    assert of_key == {
        "scope": "api_key", "organization_id": account.organization_id,
        "organization": of_key["organization"],
        "tenant_id": account.tenant_id, "tenant": "t", "api_key_id": key, "api_key": "CI",
        "hour": HOUR.isoformat().replace("+00:00", "Z"), "cost": "6", "usual": "2", "currency": "USD",
    }  # fmt: skip
    spend(migrated, account, key, 99 * UNIT, HOUR + timedelta(hours=1))
    await news.look_for_sudden_use(pool, NOW + timedelta(hours=1))
    assert len(told(migrated)) == 6


async def test_one_key_among_others(migrated: str, pool: AsyncEngine) -> None:
    """The organization spends as much as ever, by another key."""
    hook(migrated)
    account, key = settled(migrated)
    for day in range(1, 8):
        spend(migrated, account, key + 1_000, 10 * UNIT, HOUR - timedelta(days=day))
    spend(migrated, account, key, 10 * UNIT)
    await news.look_for_sudden_use(pool, NOW)
    assert scopes(migrated) == ["api_key"]


async def test_what_was_there_an_hour_earlier_last_week_is_usual(migrated: str, pool: AsyncEngine) -> None:
    hook(migrated)
    account, key = settled(migrated)
    spend(migrated, account, key, 10 * UNIT, HOUR - timedelta(days=7, hours=1))
    spend(migrated, account, key, 20 * UNIT)
    await news.look_for_sudden_use(pool, NOW)
    assert told(migrated) == []


async def test_of_newcomers_and_small_numbers_nothing_is_told(migrated: str, pool: AsyncEngine) -> None:
    hook(migrated)
    account, key = settled(migrated, days=2)
    spend(migrated, account, key, 99 * UNIT)
    old, old_key = settled(migrated)
    with connected(migrated) as connection:
        connection.execute(
            "UPDATE organization SET created_at = now() WHERE id = %s", [account.organization_id]
        )
        connection.execute("UPDATE tenant SET created_at = now() WHERE id = %s", [account.tenant_id])
    spend(migrated, old, old_key, UNIT - 1)
    await news.look_for_sudden_use(pool, NOW)
    assert told(migrated) == []


async def test_nobody_is_looked_at_whom_nobody_wants_to_hear_of(migrated: str, pool: AsyncEngine) -> None:
    hook(migrated)
    with connected(migrated) as connection:
        connection.execute("""UPDATE webhook SET events = '["quota.50"]'""")
    account, key = settled(migrated)
    spend(migrated, account, key, 99 * UNIT)
    await news.look_for_sudden_use(pool, NOW)
    assert told(migrated) == []
