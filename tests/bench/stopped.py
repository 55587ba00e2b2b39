"""What entries that wait behind a stopped account cost: others' rows, memory, and a keeper that starts.

A real Valkey and the embedded PostgreSQL; the keeper's flusher runs as ever. Each entry that waits came
`--among` others of the same partition. Prints a line of JSON for each number of waiting entries.
Usage: python -m tests.bench.stopped [--waiting 0 20000 100000] [--among 10]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import redis

from gateway.background.flushing.flusher import Flusher
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from tests.bench.flush import postgres
from tests.conftest import ValkeyServer
from tests.persistence.scenario import Account, settle_in

ROWS = 20
TOGETHER = 200
SETTLE_S = 2.0
POLL_S = 0.005


def main() -> int:
    """Measure each number of waiting entries on servers of its own."""
    parser = argparse.ArgumentParser(prog="stopped")
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 20_000, 100_000])
    parser.add_argument("--among", type=int, default=10)
    options = parser.parse_args()
    for waiting in options.waiting:
        with tempfile.TemporaryDirectory(prefix="tollkeeper-stopped-") as folder, postgres() as url:
            server = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "everysec")
            server.start()
            try:
                migrate.upgrade(url)
                print(json.dumps(asyncio.run(_measure(server.url, url, waiting, options.among))), flush=True)
            finally:
                server.stop()
    return 0


async def _measure(valkey: str, url: str, waiting: int, among: int) -> dict[str, object]:
    stopped, other = settle_in(url, 10**12, 10**12, together=True)
    (elsewhere,) = settle_in(url, 10**12)
    stopped.reset()
    stopped.take()  # its first movement never arrives: everything behind it waits
    for one in (other, elsewhere):
        one.reset()
    with redis.Redis.from_url(valkey) as client, client.pipeline(transaction=False) as pipe:
        for number in range(waiting):
            stopped.consume(1)
            for _ in range(among - 1):
                other.consume(1)
            for account in (stopped, other):
                for _, packed in account.take():
                    pipe.xadd(keys.outbox(account.partition), {"e": packed})
            if number % TOGETHER == 0:
                pipe.execute()
        pipe.execute()
    _append(valkey, other, elsewhere)
    with psycopg.connect(url, autocommit=True) as connection:
        async with _flushing(valkey, url):
            await _stored(connection, other)
            await asyncio.sleep(SETTLE_S)
            seconds = [await _row(connection, valkey, elsewhere) for _ in range(ROWS)]
            used = _bytes(valkey)
        async with _flushing(valkey, url):
            started = await _row(connection, valkey, elsewhere)
            beside = await _row(connection, valkey, other)
    return {
        "waiting": waiting,
        "row_after_ms": {
            "median": round(statistics.median(seconds) * 1000),
            "longest": round(max(seconds) * 1000),
        },
        "bytes_an_entry": round(used / waiting) if waiting else 0,
        "after_a_start_ms": {"elsewhere": round(started * 1000), "same_partition": round(beside * 1000)},
    }


@asynccontextmanager
async def _flushing(valkey: str, url: str) -> AsyncIterator[None]:
    wire, writer = RedisConnection(parse_url(valkey), time.monotonic), LedgerWriter(url)
    await wire.open()
    flusher = Flusher(Outbox(Client(wire)), writer, lambda _: None)
    running = asyncio.create_task(flusher.run())
    yield
    flusher.stop()
    await running
    await wire.close()
    writer.close()


async def _row(connection: psycopg.Connection[tuple[int]], valkey: str, account: Account) -> float:
    """Seconds from an entry to its row."""
    account.consume(1)
    _append(valkey, account)
    began = time.perf_counter()
    await _stored(connection, account)
    return time.perf_counter() - began


def _bytes(valkey: str) -> int:
    """What the streams of all partitions take."""
    with redis.Redis.from_url(valkey) as client:
        streams = list(client.scan_iter("tk:{p*", count=1000, _type="stream"))
        return sum(int(client.memory_usage(name, samples=0) or 0) for name in streams)


async def _stored(connection: psycopg.Connection[tuple[int]], account: Account) -> None:
    sql = "SELECT last_seq FROM tenant_quota WHERE tenant_id = %s"
    while (row := connection.execute(sql, (account.tenant_id,)).fetchone()) is None or row[0] < account.seq:
        await asyncio.sleep(POLL_S)


def _append(valkey: str, *accounts: Account) -> None:
    with redis.Redis.from_url(valkey) as client, client.pipeline(transaction=False) as pipe:
        for account in accounts:
            for _, packed in account.take():
                pipe.xadd(keys.outbox(account.partition), {"e": packed})
        pipe.execute()


if __name__ == "__main__":
    raise SystemExit(main())
