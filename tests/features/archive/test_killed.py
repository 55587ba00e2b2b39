"""The process that archives is killed in the midst, and the next goes on: nothing is lost, nothing is twice.

Into a directory, and into a store that speaks S3.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from gateway.features.archive.reading import RowFilter, rows
from gateway.ops.storage import FileStore
from tests.connections import connected
from tests.features.archive.aging import Aging, clones, held, old
from tests.persistence.migrated import template
from tests.persistence.scenario import broken, rows_of
from tests.search import steps
from tests.waiting import wait_until

__all__ = ["clones", "old", "template"]

ARCHIVING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7810"
WAITS = """
SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
 WHERE NOT granted AND relname = %s"""
MONTHS = "SELECT count(DISTINCT month) FROM archived_month"
FIRST = "token_ledger_y2026m01"
# Two months are enough.
BEFORE = "2026-03-01"

Met = Callable[[], bool]


def archiving(old: Aging, to: str) -> subprocess.Popen[bytes]:
    """The command, as a process of its own."""
    words = ["archive", "--to", to, "--before", BEFORE, "--database-url", old.url]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "gateway", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def killed(old: Aging, to: str, met: Met) -> None:
    """Begin, and end it as a machine ends that loses power, once something is so."""
    process = archiving(old, to)
    try:
        wait_until(lambda: met() or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_until(lambda: rows_of(old.url, ARCHIVING) == [(0,)])


async def ended(old: Aging, to: str) -> None:
    process = archiving(old, to)
    _, said = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, said


@contextmanager
def locked(url: str, table: str, mode: str) -> Iterator[Met]:
    """Have a table; lends what says that somebody waits for it."""
    with connected(url) as connection:
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE".encode())
        yield lambda: rows_of(url, WAITS, [table]) != [(0,)]


def at_once(met: Met) -> Callable[[], AbstractContextManager[Met]]:
    @contextmanager
    def lend() -> Iterator[Met]:
        yield met

    return lend


async def test_archive_process_killed_at_any_step_neither_loses_nor_duplicates_rows(old: Aging) -> None:
    to, tokens = str(old.root), {"token_ledger"}
    three = {*tokens, "credit_transaction", "feature_usage"}
    moments: list[tuple[Callable[[], AbstractContextManager[Met]], set[str] | None]] = [
        # Its files are written and read back: it waits to look at the rows again, for somebody who writes.
        (lambda: locked(old.url, FIRST, "ROW EXCLUSIVE"), set()),
        # All rows that stay are copied: it waits to change the partitions, for somebody who reads.
        (lambda: locked(old.url, "token_ledger", "ACCESS SHARE"), set()),
        # One ledger is out, and the next is where that one was.
        (lambda: locked(old.url, "credit_transaction_y2026m01", "ROW EXCLUSIVE"), tokens),
        (lambda: locked(old.url, "call", "ACCESS SHARE"), three),
        (at_once(lambda: rows_of(old.url, MONTHS) == [(2,)]), None),
    ]
    for moment, gone in steps(moments):
        with moment() as met:
            killed(old, to, met)
        assert held(old.url, FileStore(to)) == old.all_of_it()
        assert await broken(old.url) == []
        out = {name for (name,) in rows_of(old.url, "SELECT DISTINCT ledger FROM archived_month")}
        assert gone is None or out == gone
    await ended(old, to)
    assert rows_of(old.url, MONTHS) == [(2,)]
    assert held(old.url, FileStore(to)) == old.all_of_it()
    assert await broken(old.url) == []
    await old.compare()


async def test_archive_process_killed_while_writing_to_s3_neither_loses_nor_duplicates_rows(
    old: Aging, store: str
) -> None:
    place = FileStore(store)
    with locked(old.url, FIRST, "ROW EXCLUSIVE") as met:
        killed(old, store, met)
    assert held(old.url, place) == old.all_of_it()
    done = await old.archive(place)
    assert {one.partition(" ")[0] for one in done.dropped} >= {"token_ledger", "call"}
    assert held(old.url, place) == old.all_of_it()
    found = rows(place, "token-ledger", RowFilter({"tenant_id": old.account.tenant_id}, limit=1_000))
    assert [row["seq"] for row in found] == list(range(1, len(found) + 1))
    assert len(found) > 24
    assert await broken(old.url) == []
    await old.compare()
