"""Reads go to a replica of PostgreSQL where it has what they must see; nobody notices where it has not."""

from __future__ import annotations

import asyncio
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
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Query
from gateway.counters.redis.keys import partition_of
from gateway.local.embedded.unprivileged import borrow
from gateway.ops import doctor
from persistence import engine as engines
from persistence.engine import AWAY_S, Replica, ServerState, behind, examine
from persistence.store import Store
from tests.conftest import free_port, postgres_bin
from tests.faults.proxy import Proxy
from tests.persistence.scenario import rows_of
from tests.waiting import HUNG_S, eventually, wait_until

ACTOR = Actor("builtin:admin", "admin")
SAYS_S_MAX = 30.0


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
        # The slot keeps the log that the replica lacks, even if others write and a checkpoint is made.
        self._primary, self._slot = primary, f"standby_{os.getpid()}_{self.port}"
        copy = [
            "-C",
            "-S",
            self._slot,
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
        self._words = self._command(
            [str(tools / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options]
        )
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have it run, also where a test stopped it."""
        if self._server is None:
            self._server = subprocess.Popen(self._words, cwd=self.folder, stderr=subprocess.DEVNULL)

    def url(self, primary: str) -> str:
        """A database of the primary as the replica has it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{primary.rpartition('/')[2]}"

    def answers(self, primary: str) -> bool:
        try:
            psycopg.connect(self.url(primary), connect_timeout=1).close()  # whether a new session is let in
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(HUNG_S)
        self._server = None

    def remove(self) -> None:
        self.stop()
        mine = "FROM pg_replication_slots WHERE slot_name = %s"
        wait_until(lambda: not rows_of(self._primary, f"SELECT {mine} AND active", [self._slot]))
        rows_of(self._primary, f"SELECT pg_drop_replication_slot(slot_name) {mine}", [self._slot])
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def standby(postgres: str) -> Iterator[Standby]:
    made = Standby(postgres)
    yield made
    made.remove()


class Reader:
    """A store whose reads go to the replica; and what is on either side."""

    def __init__(self, url: str, standby: Standby) -> None:
        self.url, self.standby, self.primary = url, standby, engines.create(url)
        self.there = standby.url(url)
        self.now = 0.0
        self.replica = self.another(engines.create(self.there))
        self.store = Store(self.primary, partition_of, replica=self.replica)

    def another(self, engine: AsyncEngine, primary: AsyncEngine | None = None, **more: float) -> Replica:
        """A replica that has time to say where it is."""
        clock = lambda: self.now  # noqa: E731  # the tests' own
        return Replica(engine, primary or self.primary, clock, says_s_max=SAYS_S_MAX, **more)

    async def names(self) -> list[object]:
        page = await self.store.page("organizations", Query({}, None, None, None, 100))
        return [row["name"] for row in page.rows]

    async def make(self, name: str) -> None:
        values: dict[str, Any] = {"name": name}
        done = await self.store.write(
            Command("organizations", "create", ACTOR, "t", lambda _: {}, None, values)
        )
        assert isinstance(done, CommittedWrite)

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
        return await self.replica.lag() == 0 and await self.replica.serves()

    def counted(self) -> list[tuple[object, ...]]:
        return rows_of(self.url, "SELECT count(*) FROM organization")


@pytest.fixture
async def reader(cloned: str, standby: Standby) -> AsyncIterator[Reader]:
    standby.start()
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
    lag_s = (await reader.replica.figures()).get("replica_lag_seconds")
    assert isinstance(lag_s, float)
    assert lag_s > 0
    well, subject, says = await doctor.replica_findings(reader.url, reader.there, "a replica", 60.0)
    assert (well, subject, says.endswith("s behind")) == (True, "read replica", True)
    reader.replay("resume")
    await reader.caught_up()
    assert await reader.names() == ["first", "of another process", "ours"]


async def test_one_that_is_too_far_behind_is_not_read(reader: Reader) -> None:
    await reader.make("first")
    await reader.caught_up()
    reader.replay("pause")
    reader.make_elsewhere("of another process")
    strict = reader.another(reader.replica.engine, lag_s_max=0.0)
    assert not await strict.serves(), "nobody knows yet how far it is behind"
    assert (await strict.lag() or 0) > 0
    assert not await strict.serves()
    store = Store(reader.primary, partition_of, replica=strict)
    page = await store.page("organizations", Query({}, None, None, None, 100))
    assert [row["name"] for row in page.rows] == ["first", "of another process"]
    assert (await examine(reader.url, reader.there, 0.0))[0] is False


def test_one_that_is_behind_and_does_not_say_since_when_is_of_unknown_lag() -> None:
    primary = ServerState("c", follows=False, place=100, age_s=None, began="1")
    assert behind(primary, ServerState("c", follows=True, place=100, age_s=None, began="1")) == 0
    assert behind(primary, ServerState("c", follows=True, place=99, age_s=None, began="1")) is None
    assert behind(primary, ServerState("c", follows=True, place=99, age_s=7.5, began="1")) == 7.5


async def test_what_is_known_of_its_lag_stands_until_it_is_known_anew(reader: Reader) -> None:
    await reader.make("first")
    await reader.caught_up()
    asking = asyncio.ensure_future(reader.replica.lag())
    await asyncio.sleep(0)  # it asks now
    assert await reader.replica.serves()
    assert await asking is not None
    silent = reader.another(engines.create(f"postgresql://postgres@127.0.0.1:{free_port()}/none"))
    assert await silent.lag() is None
    reader.now += AWAY_S
    assert not await silent.serves()
    await silent.engine.dispose()


async def test_a_write_whose_place_cannot_be_noted_was_made_and_is_read_at_the_primary(
    reader: Reader,
) -> None:
    await reader.make("first")
    await reader.caught_up()
    reader.replay("pause")
    proxy = Proxy(int(str(reader.primary.url.port)))
    await proxy.start()
    lost = engines.create(f"postgresql://postgres@127.0.0.1:{proxy.port}/{reader.primary.url.database}")
    replica = reader.another(reader.replica.engine, lost)
    reader.store = Store(reader.primary, partition_of, replica=replica)
    assert await replica.lag() is not None
    assert await reader.names() == ["first"]
    proxy.refuses = True
    await lost.dispose()
    await reader.make("ours")
    assert await reader.names() == ["first", "ours"]
    reader.replay("resume")
    await reader.caught_up()
    # It has all, and nobody knows.
    reader.now += AWAY_S
    assert not await replica.serves()
    proxy.refuses = False
    reader.now += AWAY_S
    assert await replica.serves()
    await lost.dispose()
    await proxy.stop()


async def test_the_primary_is_read_as_its_own_replica(reader: Reader) -> None:
    """One that is in no recovery is read if it is of the same cluster."""
    same = reader.another(engines.create(reader.url))
    assert await same.lag() == 0
    assert await same.serves()
    assert (await examine(reader.url, reader.url))[0] is True
    same._cluster = "another cluster"
    assert not await same.serves()
    await same.engine.dispose()


@pytest.fixture
async def apart(cloned: str) -> AsyncIterator[Reader]:
    """Of a replica of its own."""
    standby = Standby(cloned)
    standby.start()
    await eventually(lambda: standby.answers(cloned))
    made = Reader(cloned, standby)
    yield made
    await made.store.dispose()
    standby.remove()


async def test_one_that_was_promoted_is_never_read(apart: Reader) -> None:
    reader = apart
    await reader.make("first")
    await reader.caught_up()
    rows_of(reader.there, "SELECT pg_promote()")
    assert rows_of(reader.there, "SELECT pg_is_in_recovery()") == [(False,)]
    assert not await reader.replica.serves(), "what it was a moment ago does not count"
    rows_of(reader.there, "INSERT INTO organization (name) VALUES ('of the fork') RETURNING id")
    reader.now += AWAY_S
    assert await reader.names() == ["first"]
    assert await reader.replica.lag() is None
    assert not await reader.replica.figures()
    well, _, says = await doctor.replica_findings(reader.url, reader.there, "a replica", 60.0)
    assert not well
    assert "is no replica of this one any more, and never read" in says


async def test_without_the_replica_the_primary_answers(reader: Reader) -> None:
    await reader.make("first")
    await reader.caught_up()
    assert await reader.replica.serves()
    reader.standby.stop()
    assert await reader.names() == ["first"]
    await reader.make("second")
    assert await reader.names() == ["first", "second"]
    assert not await reader.replica.figures()
    well, says = await examine(reader.url, reader.there)
    assert not well
    assert "refused" in says
