"""The primary of PostgreSQL dies under load, and its standby takes over: each entry is a row, once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from gateway.core.model import PARTITIONS
from persistence import engine as engines
from persistence.schema import migrate
from tests.background.test_flusher_for_real import append, sharing, waiting
from tests.bench.flush import postmaster
from tests.conftest import postgres_bin, postgres_of
from tests.persistence.scenario import broken, rows_of, settle_in
from tests.persistence.test_replica import Standby
from tests.waiting import eventually, wait_until

CALLS = 20


@pytest.fixture
def pair() -> Iterator[tuple[str, Standby]]:
    """A primary that acknowledges what its standby has, and that one."""
    with postgres_of(postgres_bin()) as primary:
        migrate.upgrade(primary)
        standby = Standby(primary)
        try:
            with psycopg.connect(primary, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                connection.execute("SELECT pg_reload_conf()")
            there = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_until(lambda: rows_of(primary, there) == [(1,)])
            yield primary, standby
        finally:
            standby.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "stopped"])
async def test_each_entry_is_a_row_once_whatever_dies(
    valkey: str, pair: tuple[str, Standby], how: signal.Signals
) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{urlsplit(primary).port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
    accounts = settle_in(url, *[10**6] * 6)
    for account in accounts:
        account.reset()
    engine = engines.create(url)
    assert await engines.answers(engine)
    appended = 0

    def more() -> None:
        nonlocal appended
        for account in accounts:
            for _ in range(CALLS):
                account.consume(1, credits_=1)
        appended += append(valkey, *accounts)

    async with sharing(valkey, url) as first, sharing(valkey, url) as second:
        keepers = (first, second)
        beats = [
            asyncio.create_task(share.run(lambda: range(PARTITIONS), lambda f=flusher: f.in_hand))
            for flusher, _, share in keepers
        ]
        runs = [asyncio.create_task(flusher.run()) for flusher, _, _ in keepers]
        more()
        await eventually(lambda: waiting(valkey, *accounts) == 0)
        more()
        os.kill(postmaster(primary), how)
        more()
        rows_of(standby.url(primary), "SELECT pg_promote()")
        more()
        await eventually(lambda: waiting(valkey, *accounts) == 0)
        await eventually(lambda: engines.answers(engine))
        assert await engines.alive(engine)
        for flusher, _, _ in keepers:
            flusher.stop()
        await asyncio.gather(*runs)
        for beat in beats:
            beat.cancel()
    after = standby.url(primary)
    assert rows_of(after, "SELECT count(*) FROM token_ledger") == [(appended,)]
    assert rows_of(after, "SELECT count(*) FROM quarantine") == [(0,)]
    assert await broken(after) == []
    await engine.dispose()


def test_an_address_may_have_several_hosts() -> None:
    several = "postgresql://u:p@a:1,[::1]:2,c/d?target_session_attrs=read-write"
    spelt = "u:p@/d?host=a,::1,c&port=1,2,5432&target_session_attrs=read-write"
    assert engines.plain_url(several) == f"postgresql://{spelt}"
    assert engines.dialect_url(several) == f"postgresql+psycopg://{spelt}"
    assert engines.plain_url("postgres://u@a,b") == "postgresql://u@/?host=a,b&port=5432,5432"
    assert engines.plain_url("postgresql://u@h:1/d") == "postgresql://u@h:1/d"
    found = psycopg.conninfo.conninfo_to_dict(engines.plain_url(several))
    assert (found["host"], found["port"], found["dbname"]) == ("a,::1,c", "1,2,5432", "d")
    assert engines.plain_url("postgresql://u@a,b?x=y") == "postgresql://u@/?host=a,b&port=5432,5432&x=y"


@pytest.mark.parametrize("host", ["", ":5432", "a:five", "[::1", "::1"])
def test_a_host_of_several_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="not a host of PostgreSQL"):
        engines.plain_url(f"postgresql://u:p@one,{host}/d")
