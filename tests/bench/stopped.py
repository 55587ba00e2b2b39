"""How late another tenant's row is while entries of a stopped account wait in the outbox.

A real Valkey and the embedded PostgreSQL; the keeper's flusher runs as ever. Prints a line of JSON for each
number of waiting entries. Usage: python -m tests.bench.stopped [--waiting 0 20000 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
import redis

from gateway.background.flusher import Flusher
from gateway.counters import keys
from gateway.counters.address import parse_url
from gateway.counters.outbox import Outbox
from gateway.counters.wire import Wire
from persistence import migrate
from persistence.writer import Writer
from tests.bench.flush import postgres
from tests.conftest import ValkeyServer
from tests.persistence.scenario import Account, settle_in

ROWS = 20
SETTLE_S = 2.0
POLL_S = 0.005


def main() -> int:
    """Measure each number of waiting entries on servers of its own."""
    parser = argparse.ArgumentParser(prog="stopped")
    parser.add_argument("--waiting", type=int, nargs="+", default=[0, 20_000, 100_000])
    for waiting in parser.parse_args().waiting:
        with tempfile.TemporaryDirectory(prefix="tollkeeper-stopped-") as folder, postgres() as url:
            server = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "everysec")
            server.start()
            try:
                migrate.upgrade(url)
                print(json.dumps(asyncio.run(_measure(server.url, url, waiting))), flush=True)
            finally:
                server.stop()
    return 0


async def _measure(valkey: str, url: str, waiting: int) -> dict[str, object]:
    stopped, other = settle_in(url, 10**12, 10**12)
    stopped.reset()
    stopped.take()  # its first movement never arrives: everything behind it waits
    for _ in range(waiting):
        stopped.consume(1)
    other.reset()
    _append(valkey, stopped, other)
    wire, writer = Wire(parse_url(valkey), time.monotonic), Writer(url)
    await wire.open()
    flusher = Flusher(Outbox(wire), writer, lambda _: None)
    running = asyncio.create_task(flusher.run())
    with psycopg.connect(url, autocommit=True) as connection:
        seconds = []
        await _stored(connection, other)
        await asyncio.sleep(SETTLE_S)
        for _ in range(ROWS):
            other.consume(1)
            _append(valkey, other)
            began = time.perf_counter()
            await _stored(connection, other)
            seconds.append(time.perf_counter() - began)
    flusher.stop()
    await running
    await wire.close()
    writer.close()
    return {
        "waiting": waiting,
        "row_after_ms": {
            "median": round(statistics.median(seconds) * 1000),
            "longest": round(max(seconds) * 1000),
        },
    }


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
