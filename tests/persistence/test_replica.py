"""Reads go to a replica of PostgreSQL where it has what they must see; nobody notices where it has not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway.core.accounts.administration import Actor, Command, Committed, Query
from gateway.counters.redis.keys import partition_of
from gateway.local.embedded.unprivileged import borrow
from gateway.ops import doctor_replica
from persistence import engine as engines
from persistence.keeper import watch
from persistence.replica import AWAY_S, Replica, examine
from persistence.store import Store
from tests.conftest import free_port, postgres_bin
from tests.persistence.scenario import rows_of
from tests.waiting import eventually, wait_until

ACTOR = Actor("builtin:admin", "admin")


class Standby:
    """A streaming replica of the tests' PostgreSQL."""

    def __init__(self, primary: str) -> None:
        self.folder, self.port, tools = (
            Path(tempfile.mkdtemp(prefix="tollkeeper-standby-")),
            free_port(),
            postgres_bin(),
        )
        borrowed = borrow(None, [tools, self.folder])
        self._command = borrowed.command if borrowed else list
        if borrowed:
            os.chown(self.folder, borrowed.uid, borrowed.gid)
        copy = [
            "-d",
            primary,
            "-D",
            str(self.folder / "data"),
            "-R",
            "-X",
            "stream",
            "--checkpoint=fast",
            "--no-sync",
        ]
        subprocess.run(self._command([str(tools / "pg_basebackup"), *copy]), check=True, cwd=self.folder)
        options = ["-k", str(self.folder), "-c", "listen_addresses=127.0.0.1", "-c", "log_min_messages=fatal"]
        options += ["-c", "max_connections=200"]  # a replica must allow as many as its primary
        self._server = subprocess.Popen(
            self._command(
                [str(tools / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]
            ),
            cwd=self.folder, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: self.answers(primary))

    def url(self, primary: str) -> str:
        """A database of the primary as the replica has it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{primary.rpartition('/')[2]}"

    def answers(self, primary: str) -> bool:
        try:
            psycopg.connect(self.url(primary), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def standby(postgres: str) -> Iterator[Standby]:
    made = Standby(postgres)
    yield made
    made.stop()


class Reader:
    """A store whose reads go to the replica; and what is on either side."""

    def __init__(self, url: str, standby: Standby) -> None:
        self.url, self.standby, self.primary = url, standby, engines.create(url)
        self.there = standby.url(url)
        self.replica = Replica(engines.create(self.there), self.primary, lambda: self.now)
        self.now = 0.0
        self.store = Store(self.primary, partition_of, replica=self.replica)

    async def names(self) -> list[object]:
        page = await self.store.page("organizations", Query({}, None, None, None, 100))
        return [row["name"] for row in page.rows]

    async def make(self, name: str) -> None:
        values: dict[str, Any] = {"name": name}
        done = await self.store.write(
            Command("organizations", "create", ACTOR, "t", lambda _: {}, None, values)
        )
        assert isinstance(done, Committed)

    def make_elsewhere(self, name: str) -> None:
        rows_of(self.url, "INSERT INTO organization (name) VALUES (%s) RETURNING id", [name])

    def replay(self, how: str) -> None:
        rows_of(self.there, f"SELECT pg_wal_replay_{how}()")

    async def caught_up(self) -> None:
        """It has all rows, and all that was written to the log since."""
        await eventually(lambda: rows_of(self.there, "SELECT count(*) FROM organization") == self.counted())
        await eventually(self.serves)

    async def serves(self) -> bool:
        self.now += AWAY_S
        return await self.replica.serves()

    def counted(self) -> list[tuple[object, ...]]:
        return rows_of(self.url, "SELECT count(*) FROM organization")


@pytest.fixture
async def reader(cloned: str, standby: Standby) -> AsyncIterator[Reader]:
    await eventually(lambda: standby.answers(cloned))
    made = Reader(cloned, standby)
    yield made
    if standby.answers(cloned):
        made.replay("resume")
    await made.store.dispose()


async def test_lists_are_read_at_the_replica_but_for_what_was_written_here(reader: Reader) -> None:
    await reader.make("first")
    await reader.caught_up()
    reader.replay("pause")
    reader.make_elsewhere("of another process")
    # It has all that this process wrote, so it is what answers.
    assert await reader.names() == ["first"]
    await reader.make("ours")
    assert await reader.names() == ["first", "of another process", "ours"]
    lag_s = (await watch.gauges(reader.primary, reader.replica))["replica_lag_seconds"]
    assert isinstance(lag_s, float)
    assert lag_s > 0
    well, subject, says = await doctor_replica.of(reader.url, reader.there, "a replica", 60.0)
    assert (well, subject, says.endswith("s behind")) == (True, "read replica", True)
    reader.replay("resume")
    await reader.caught_up()
    assert await reader.names() == ["first", "of another process", "ours"]


async def test_one_that_is_too_far_behind_is_not_read(reader: Reader) -> None:
    await reader.make("first")
    await reader.caught_up()
    reader.replay("pause")
    reader.make_elsewhere("of another process")
    strict = Replica(reader.replica.engine, reader.primary, lag_s_max=0.0)
    assert await strict.serves()
    assert (await strict.lag() or 0) > 0
    assert not await strict.serves()
    store = Store(reader.primary, partition_of, replica=strict)
    page = await store.page("organizations", Query({}, None, None, None, 100))
    assert [row["name"] for row in page.rows] == ["first", "of another process"]
    assert (await examine(reader.url, reader.there, 0.0))[0] is False


async def test_another_database_is_never_read(reader: Reader, database: str) -> None:
    """One that is in no recovery, such as the primary itself, is read if it is of the same cluster."""
    same = Replica(engines.create(reader.url), reader.primary)
    assert await same.serves()
    assert (await examine(reader.url, reader.url))[0] is True
    same._cluster = "another cluster"
    assert not await same.serves()
    await same.engine.dispose()


async def test_without_the_replica_the_primary_answers(reader: Reader) -> None:
    """Last of its file: it stops the replica."""
    await reader.make("first")
    await reader.caught_up()
    assert await reader.replica.serves()
    reader.standby.stop()
    assert await reader.names() == ["first"]
    await reader.make("second")
    assert await reader.names() == ["first", "second"]
    assert "replica_lag_seconds" not in await watch.gauges(reader.primary, reader.replica)
    well, says = await examine(reader.url, reader.there)
    assert not well
    assert "refused" in says
