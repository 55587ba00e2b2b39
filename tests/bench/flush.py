"""Rows flushed per second, end to end: stream read, decoded, copied, rolled up, committed, deleted.

A real Valkey (append-only file on) and the embedded PostgreSQL as `up` configures it (fsync on).
Prints one line of JSON. With `--new-users` half of all calls are one tenant's, and each names a user nobody
knew. With `--budgets` each takes from four: its organization's, tenant's and key's, and its user's own.
Usage: python -m tests.bench.flush [--entries N] [--new-users] [--budgets]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis

from gateway.background.flushing.flusher import FailedBatch, FlushedBatch, Flusher
from gateway.core.accounts.flush_batch import FlushReport
from gateway.core.accounts.outbox import WindowKey
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.local.embedded.postgres import OPTIONS
from gateway.local.embedded.unprivileged import borrow
from persistence import engine
from persistence.ledger import checkpoints
from persistence.ledger.writer import LedgerWriter
from persistence.schema import migrate
from tests.conftest import ValkeyServer, free_port, postgres_bin
from tests.persistence.scenario import Account, insert_budget, settle_in
from tests.waiting import wait_until

ORGANIZATIONS = 20
USERS = 50
POLL_S = 0.005
METADATA = (
    b'{"model":"gpt-4o-mini","streamed":true,"status":200,"duration_ms":812,"input":913,"output":221,'
    b'"cached":0,"reasoning":0,"estimated":false}'
)


def main() -> int:
    """Fill, flush, print; 1 if a row is missing or an invariant broken."""
    parser = argparse.ArgumentParser(prog="flush")
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--new-users", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-flush-") as folder, postgres() as url:
        server = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "everysec")
        server.start()
        try:
            migrate.upgrade(url)
            _fill(server.url, url, options.entries, new_users=options.new_users, budgets=options.budgets)
            figures = asyncio.run(_measure(server, url, options.entries))
        finally:
            server.stop()
    print(json.dumps(figures))
    return 0 if figures["rows"] == options.entries and not figures["violations"] else 1


@contextmanager
def postgres() -> Iterator[str]:
    """The embedded PostgreSQL with the options `up` gives it."""
    folder = Path(tempfile.mkdtemp(prefix="tollkeeper-flush-pg-"))
    port, data, tools = free_port(), folder / "data", postgres_bin()
    borrowed = borrow(None, [tools, folder])
    command = borrowed.command if borrowed else list
    if borrowed:
        os.chown(folder, borrowed.uid, borrowed.gid)
    settings = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
    subprocess.run(
        command([str(tools / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]),
        check=True, stdout=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    server = subprocess.Popen(
        command([str(tools / "postgres"), "-D", str(data), "-p", str(port), *settings]),
        cwd=folder, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(url, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        wait_until(answers)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _fill(valkey: str, url: str, entries: int, *, new_users: bool, budgets: bool) -> None:
    """Put `entries` settled calls into the streams, as `settle` would."""
    accounts = settle_in(url, *[10**12] * ORGANIZATIONS)
    ids = _budgets(url, accounts) if budgets else {}
    for account in accounts:
        account.at_ms = int(time.time() * 1000) - 1_000_000
        account.reset()
    with redis.Redis.from_url(valkey) as client:
        for number in range(entries - len(accounts)):
            made_up = new_users and number % 2
            account = accounts[0] if made_up else accounts[number % len(accounts)]
            user = f"made-up-{uuid.uuid4()}" if made_up else f"user-{number % USERS}"
            of_user = f"{number % USERS:024x}"
            windows = [WindowKey(one, 0, of_user if each else "") for one, each in ids.get(id(account), ())]
            moves = {"budgets": tuple(windows), "money": 1 + number % 2000, "raw_tokens": 1, "requests": 1}
            account.consume(
                1 + number % 2000, user=user, request_id=str(uuid.uuid4()), metadata=METADATA, **moves
            )
            if number % 20_000 == 0:
                _append(client, accounts)
        _append(client, accounts)


def _budgets(url: str, accounts: list[Account]) -> dict[int, list[tuple[int, bool]]]:
    """Four budgets of each organization, the last with an account for every user."""
    made: dict[int, list[tuple[int, bool]]] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        for account in accounts:
            for name, each in (("organization", None), ("tenant", None), ("key", None), ("user", "user")):
                made.setdefault(id(account), []).append((
                    insert_budget(
                        connection, account.organization_id,
                        name=name, amount=1000, interval="total", each=each,
                    ),
                    each is not None,
                ))  # fmt: skip
    return made


def _append(client: redis.Redis, accounts: list[Account]) -> None:
    with client.pipeline(transaction=False) as pipe:
        for account in accounts:
            for _, packed in account.take():
                pipe.xadd(keys.outbox(account.partition), {"e": packed})
        pipe.execute()


async def _measure(server: ValkeyServer, url: str, entries: int) -> dict[str, object]:
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    await wire.open()
    writer = LedgerWriter(url)
    reports: list[FlushReport] = []

    def observe(fact: FlushedBatch | FailedBatch) -> None:
        if isinstance(fact, FailedBatch):
            raise fact.error
        reports.append(fact.report)

    flusher = Flusher(Outbox(Client(wire)), writer, observe)
    postgres_pid = postmaster(url)
    own, theirs, stores = _cpu_s(), _cpu_of(server), postgres_cpu_s(postgres_pid)
    started = time.perf_counter()
    running = asyncio.create_task(flusher.run())
    while (stored := sum(report.entries() for report in reports)) < entries:
        await asyncio.sleep(POLL_S)
    seconds = time.perf_counter() - started
    flusher.stop()
    await running
    figures: dict[str, object] = {
        "rows": sum(report.rows.get("token_ledger", 0) for report in reports),
        "rows_per_second": round(stored / seconds),
        "seconds": round(seconds, 2),
        "batches": len(reports),
        "flusher_cpu_us_per_row": round((_cpu_s() - own) / stored * 1e6, 1),
        "postgres_cpu_us_per_row": round((postgres_cpu_s(postgres_pid) - stores) / stored * 1e6, 1),
        "valkey_cpu_us_per_row": round((_cpu_of(server) - theirs) / stored * 1e6, 1),
    }
    await wire.close()
    writer.close()
    pool = engine.create(url)
    async with pool.connect() as connection:
        figures["violations"] = len(await checkpoints.violations(connection))
    await pool.dispose()
    return figures


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _cpu_of(server: ValkeyServer) -> float:
    assert server.process is not None
    return _cpu_and_parent(server.process.pid)[0]


def postgres_cpu_s(parent: int) -> float:
    """CPU of the sessions and helpers of the PostgreSQL server with this process id."""
    found = (_cpu_and_parent(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return sum(cpu for cpu, of in found if of == parent)


def postmaster(url: str) -> int:
    with psycopg.connect(url) as connection:
        return _cpu_and_parent(connection.info.backend_pid)[1]


def _cpu_and_parent(pid: int) -> tuple[float, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[1])


if __name__ == "__main__":
    sys.exit(main())
