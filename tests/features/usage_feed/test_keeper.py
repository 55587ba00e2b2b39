"""The usage feed as a keeper composes it: where a service is named, and only there."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.background.loops import Isolation
from gateway.errors import SettingError, StartError
from gateway.features.usage_feed.feature import FEATURE
from gateway.run.keeper_parts import KeeperParts, Work
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import load
from persistence import engine
from persistence.ledger.writer import LedgerWriter
from persistence.usage_feed.queue import usage_feeds
from tests.features.usage_feed.usage_servers import TOKEN, billing_server
from tests.persistence.migrated import migrated, shared
from tests.persistence.scenario import batch_of, rows_of, settle_in
from tests.waiting import eventually

__all__ = ["migrated", "shared"]


def of(pool: Any = None, **said: str) -> Work:
    settings = load({f"TOLLKEEPER_USAGE_FEED{name}": value for name, value in said.items()})
    parts = KeeperParts(
        settings=settings, later=KeeperSettings(settings, None, print, lambda _: None), engine=pool,
        store=pool, counters=pool, isolation=Isolation(), log=lambda *_, **__: None,
    )  # fmt: skip
    work = FEATURE.work(parts)
    assert work is not None
    return work


async def test_keeper_sends_recorded_use_to_the_configured_billing_service(migrated: str) -> None:
    pool, writer = engine.create(migrated), LedgerWriter(migrated)
    [account] = settle_in(migrated, 1000)
    account.reset()
    async with billing_server(lago=False) as billing:
        feed = of(pool, **{"": "openmeter", "_URL": billing.url + "/", "_TOKEN": TOKEN})
        [run] = feed.tasks.values()
        running = asyncio.ensure_future(run())
        await eventually(lambda: rows_of(migrated, "SELECT id FROM usage_feed WHERE ended_at IS NULL"))
        account.at_ms = int(time.time() * 1000) + 1000
        account.consume(10)
        await writer.write(batch_of(account))
        await eventually(lambda: billing.events)
        await eventually(lambda: rows_of(migrated, "SELECT id FROM usage_feed WHERE sent = 1"))
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert rows_of(migrated, "SELECT leased_by IS NULL FROM usage_feed") == [(False,)]
        await feed.aclose()
        assert rows_of(migrated, "SELECT leased_by IS NULL FROM usage_feed") == [(True,)]
    assert await usage_feeds(pool) == {
        "usage_feed_events": [("waiting", 0), ("failed", 0)],
        "usage_feed_oldest_seconds": 0.0,
        "usage_feed_sent": 1,
    }
    writer.close()
    await pool.dispose()


async def test_keeper_writes_recorded_use_to_the_configured_usage_event_file(
    migrated: str, tmp_path: Path
) -> None:
    pool, writer = engine.create(migrated), LedgerWriter(migrated)
    [account] = settle_in(migrated, 1000)
    account.reset()
    path = tmp_path / "use of all.ndjson"
    feed = of(pool, **{"": "file", "_URL": path.as_uri()})
    [run] = feed.tasks.values()
    running = asyncio.ensure_future(run())
    await eventually(lambda: rows_of(migrated, "SELECT id FROM usage_feed WHERE service = 'file'"))
    account.at_ms = int(time.time() * 1000) + 1000
    account.consume(10)
    await writer.write(batch_of(account))
    await eventually(lambda: rows_of(migrated, "SELECT id FROM usage_feed WHERE sent = 1"))
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await feed.aclose()
    [line] = path.read_text().splitlines()
    assert json.loads(line)["data"]["tokens"] == "10"
    writer.close()
    await pool.dispose()


def test_keeper_without_a_configured_billing_service_runs_no_usage_feed_task() -> None:
    assert of().tasks == {}


def test_usage_feed_to_lago_requires_a_token_in_the_settings() -> None:
    with pytest.raises(StartError, match="TOLLKEEPER_USAGE_FEED_TOKEN is not set"):
        of(**{"": "lago", "_URL": "https://lago.example"})


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"": "lago"}, "TOLLKEEPER_USAGE_FEED_URL is not set: expected https://host:port, where lago is"),
        ({"": "stripe"}, "expected one of off, lago, openmeter, webhook, file"),
        ({"": "file"}, "TOLLKEEPER_USAGE_FEED_URL is not set: expected file:///path, where file is"),
        ({"": "file", "_URL": "https://x"}, "expected file:///path for file"),
        ({"": "webhook", "_URL": "file:///x"}, "https://host:port for every other feed"),
        ({"_URL": "ftp://x"}, "a URL beginning with https:// or http:// or file://"),
        ({"_CODE": ""}, "expected 1 to 128 characters"),
        ({"_CODE": "x" * 129}, "expected 1 to 128 characters"),
        ({"_WAITING_MAX": "999"}, "a whole number from 1000 to 100000000"),
        ({"_TOKEN": "short"}, "16 to 512 visible"),
    ],
)
def test_invalid_usage_feed_setting_is_refused_with_the_setting_named(
    said: dict[str, str], wrong: str
) -> None:
    with pytest.raises(SettingError) as refused:
        of(**said)
    assert wrong in refused.value.message
