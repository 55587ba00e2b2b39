"""Rows flushed per second by several keepers that share the partitions, with a slow way to PostgreSQL.

A real Valkey, the embedded PostgreSQL as `up` configures it, and keepers' flushers in processes of their own.
A round trip to PostgreSQL takes `--delay-ms` longer. A round fills the streams of all partitions, then has
the keepers begin. Prints a line of JSON for each number of keepers: medians over rounds, the ratio to the
first number in each round, and how many entries were read for each that was there.
Usage: python -m tests.bench.keepers [--keepers 1 2 4] [--entries 98304] [--delay-ms 40] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import redis

from gateway.background.flushing.flusher import FailedBatch, FlushedBatch, Flusher, KeeperShare
from gateway.core.model import PARTITIONS
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from persistence import engine as engines
from persistence.keeper.shares import KeeperShares
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from tests.bench.flush import METADATA, postgres, postgres_cpu_s, postmaster
from tests.bench.machine import BenchError, cpu_s
from tests.conftest import ValkeyServer
from tests.persistence.scenario import Account, rows_of, settle_in
from tests.waiting import wait_until

KEEPERS, ENTRIES, ROUNDS, DELAY_MS = (1, 2, 4), 98_304, 3, 40.0
GO, STOP = "bench:go", "bench:stop"
POLL_S = 0.01
CHUNK_BYTES = 65_536
ALL = range(PARTITIONS)


def main() -> int:
    """Each number of keepers in turn, as often as there are rounds; 1 if an entry is no row."""
    parser = argparse.ArgumentParser(prog="keepers")
    parser.add_argument("--keepers", type=int, nargs="+", default=list(KEEPERS))
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--delay-ms", type=float, default=DELAY_MS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--be-one", nargs=2, metavar=("VALKEY", "DATABASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_one:
        return asyncio.run(_keep(*options.be_one))
    with tempfile.TemporaryDirectory(prefix="tollkeeper-keepers-") as folder, postgres() as url:
        migrate.upgrade(url)
        sizes = Sizes(options.keepers, options.entries, options.rounds, options.delay_ms)
        rounds = in_turn(Path(folder), url, sizes)
    for many, figures in rounds.items():
        print(json.dumps(_told(many, figures, rounds[options.keepers[0]])), flush=True)
    return 0


class Sizes(NamedTuple):
    """How many keepers there are in turn, entries of each, rounds, and what a round trip takes longer."""

    keepers: Sequence[int]
    entries: int = ENTRIES
    rounds: int = ROUNDS
    delay_ms: float = DELAY_MS


def in_turn(
    folder: Path, url: str, sizes: Sizes, say: Callable[[str], None] = str
) -> dict[int, list[Mapping[str, float]]]:
    """What each number of keepers did in each round, at a database that is migrated and has nobody in it."""
    server = ValkeyServer(folder, "--appendonly", "yes", "--appendfsync", "everysec")
    server.start()
    try:
        accounts = settle_in(url, *[10**12] * PARTITIONS)
        for account in accounts:
            account.reset()
        found: dict[int, list[Mapping[str, float]]] = {many: [] for many in sizes.keepers}
        with delayed(url, sizes.delay_ms / 2000) as far:
            for number in range(sizes.rounds):
                for many in sizes.keepers:
                    say(f"{many} keepers, round {1 + number} of {sizes.rounds}")
                    places = Places(server.url, url, far)
                    found[many].append(measure(places, accounts, sizes.entries, many))
    finally:
        server.stop()
    return found


def ratios(figures: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]) -> list[float]:
    """How many times the rows a second of others there were, in each round."""
    return [one["rate"] / other["rate"] for one, other in zip(figures, first, strict=True)]


def _told(
    many: int, figures: list[Mapping[str, float]], first: list[Mapping[str, float]]
) -> dict[str, object]:
    times = ratios(figures, first)
    return {
        "keepers": many,
        "rows_per_second": round(statistics.median(one["rate"] for one in figures)),
        "ratio": round(statistics.median(times), 2),
        "ratios": [round(one, 2) for one in times],
        "read_an_entry": round(max(one["read"] for one in figures), 3),
        "keepers_us_a_row": round(statistics.median(one["keepers_us"] for one in figures), 1),
        "postgres_us_a_row": round(statistics.median(one["postgres_us"] for one in figures), 1),
    }


class Places(NamedTuple):
    """Where Redis and PostgreSQL are, and where PostgreSQL answers late."""

    valkey: str
    database: str
    far: str


def measure(places: Places, accounts: list[Account], entries: int, many: int) -> Mapping[str, float]:
    """Rows a second of so many keepers, entries they read for each that was there, and CPU a row."""
    valkey, url, far = places
    with redis.Redis.from_url(valkey) as client:
        client.delete(GO, STOP)
        command = [sys.executable, "-m", "tests.bench.keepers", "--be-one", valkey, far]
        keepers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(many)]
        try:
            sql = "SELECT count(*) FROM keeper_partition GROUP BY keeper_id"
            wait_until(lambda: sorted(rows_of(url, sql)) == sorted((len(ALL[n::many]),) for n in range(many)))
            _fill(client, accounts, entries)
            pids, server = [one.pid for one in keepers], postmaster(url)
            before = cpu_s(pids), postgres_cpu_s(server)
            started = time.perf_counter()
            client.set(GO, 1)
            while _waiting(client):
                if any(one.poll() is not None for one in keepers):
                    raise BenchError("a keeper has ended")
                time.sleep(POLL_S)
            seconds = time.perf_counter() - started
            used = cpu_s(pids) - before[0], postgres_cpu_s(server) - before[1]
            client.set(STOP, 1)
            read = sum(json.loads(one.communicate()[0])["read"] for one in keepers)
        finally:
            for one in keepers:
                one.kill()  # who has ended is left as it is
                one.wait()
    (stored,) = rows_of(url, "SELECT sum(last_seq) FROM tenant_quota")
    assert stored == (sum(account.seq for account in accounts),), "an entry is no row"
    return {
        "rate": entries / seconds,
        "read": read / entries,
        "keepers_us": 1e6 * used[0] / entries,
        "postgres_us": 1e6 * used[1] / entries,
    }


def _fill(client: redis.Redis, accounts: list[Account], entries: int) -> None:
    with client.pipeline(transaction=False) as pipe:
        for number in range(entries):
            account = accounts[number % len(accounts)]
            account.consume(1, user=f"user-{number % 50}", metadata=METADATA)
        for account in accounts:
            for _, packed in account.take():
                pipe.xadd(keys.outbox(account.partition), {"e": packed})
        pipe.execute()


def _waiting(client: redis.Redis) -> int:
    with client.pipeline(transaction=False) as pipe:
        for one in ALL:
            pipe.xlen(keys.outbox(one))
        return sum(pipe.execute())


class Counted(Outbox):
    """Counts what it reads."""

    entries = 0

    async def read(self, after: Mapping[int, bytes], count: int) -> dict[int, list[tuple[bytes, bytes]]]:
        found = await super().read(after, count)
        self.entries += sum(map(len, found.values()))
        return found


async def _keep(valkey: str, url: str) -> int:
    """Flush this keeper's share, from the moment that all may begin until they are to stop."""
    wire, writer = RedisConnection(parse_url(valkey), time.monotonic), LedgerWriter(url)
    await wire.open()
    outbox, engine = Counted(Client(wire)), engines.create(url, connections_max=1)
    share = KeeperShare(KeeperShares(engine, 0))
    flusher = Flusher(outbox, writer, _raise, partitions=share.partitions)

    def in_hand() -> Collection[int]:
        return flusher.in_hand

    sharing = asyncio.create_task(share.run(lambda: ALL, in_hand))
    with redis.Redis.from_url(valkey) as client:
        await _said(client, GO)
        running = asyncio.create_task(flusher.run())
        await _said(client, STOP)
    flusher.stop()
    await running
    sharing.cancel()
    await share.leave()
    print(json.dumps({"read": outbox.entries}))
    await wire.close()
    await engine.dispose()
    writer.close()
    return 0


async def _said(client: redis.Redis, name: str) -> None:
    while not client.exists(name):
        await asyncio.sleep(POLL_S)


def _raise(fact: FlushedBatch | FailedBatch) -> None:
    if isinstance(fact, FailedBatch):
        raise fact.error


@contextmanager
def delayed(url: str, delay_s: float) -> Iterator[str]:
    """An address at which PostgreSQL answers later: every byte takes so long, each way."""
    if not delay_s:
        yield url
        return
    loop = asyncio.new_event_loop()
    target = urlsplit(url)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def passing() -> None:
            while True:
                due, data = await late.get()
                await asyncio.sleep(due - loop.time())
                writer.write(data)
                if not data:
                    break
                await writer.drain()
            writer.close()

        task = asyncio.create_task(passing())
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                late.put_nowait((loop.time() + delay_s, data))
        late.put_nowait((loop.time() + delay_s, b""))
        with suppress(ConnectionError):
            await task

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, beyond = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pump(reader, beyond), pump(there, writer))

    async def listen() -> int:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        return port

    threading.Thread(target=loop.run_forever, daemon=True).start()
    port = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    yield url.replace(f":{target.port}/", f":{port}/")
    loop.call_soon_threadsafe(loop.stop)


if __name__ == "__main__":
    raise SystemExit(main())
