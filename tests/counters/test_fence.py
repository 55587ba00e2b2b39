"""Data that is exchanged under one process is noticed from the data itself, and nothing else is."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import redis

from gateway.core.integrity.recovery import OrphanEntries
from gateway.core.layout import LAYOUT
from gateway.counters.history_guard import (
    NOBODY,
    PULSE_S_MAX,
    HistoryGuard,
    _watched,
    generation,
    history,
    keep_looking,
)
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import OrphanReader
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable
from tests.conftest import ValkeyServer, free_port
from tests.waiting import eventually, wait_until

DEBUGGED = ("--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0")
Exchange = Callable[["Data"], None]


class Data:
    """A server whose data is exchanged under its process, and another one for that."""

    def __init__(self, server: ValkeyServer, other: ValkeyServer) -> None:
        self.server, self.other = server, other
        self.client, self.stale = (redis.Redis.from_url(one.url) for one in (server, other))

    def verify(self, run_id: bytes) -> None:
        """Have a marker in place, as a keeper leaves it."""
        self.client.set(keys.marker(0), packing.marker(run_id, 3, 1))

    def branch(self) -> None:
        """The other server, and the disk, have the data as it is now; the other is a primary of its own."""
        follow(self.stale, self.server)
        self.stale.replicaof("NO", "ONE")
        self.client.save()
        self.client.incr("later")

    @property
    def marked(self) -> bytes:
        """The history the marker names."""
        raw = self.client.get(keys.marker(0)) or b""
        assert isinstance(raw, bytes)
        return packing.read_marker(raw)[0]


def command(data: Data, *words: str | float) -> None:
    """What the client has no name for."""
    data.client.execute_command(*words)  # type: ignore[no-untyped-call]  # untyped in redis-py


def follow(client: redis.Redis, server: ValkeyServer) -> None:
    client.replicaof("127.0.0.1", str(server.port))
    wait_until(lambda: client.info("replication").get("master_link_status") == "up")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Data]:
    servers = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        server = ValkeyServer(folder, *DEBUGGED)
        server.start()
        servers.append(server)
    made = Data(*servers)
    yield made
    made.client.close()
    made.stale.close()
    for server in servers:
        server.stop()


@asynccontextmanager
async def guarded(
    url: str,
    pulse: str = "1",
    clock: Callable[[], float] = time.monotonic,
    promoted: dict[bytes, bytes] | None = None,
) -> AsyncIterator[tuple[RedisConnection, HistoryGuard]]:
    wire = RedisConnection(parse_url(url), time.monotonic)
    fence = HistoryGuard(wire, pulse, clock, promoted=promoted)
    await wire.open()
    try:
        yield wire, fence
    finally:
        await wire.close()


async def looked(fence: HistoryGuard) -> None:
    """Look until an answer comes: a connection may have to be made anew for it."""

    async def answered() -> bool:
        with suppress(CountersUnavailable):
            await fence.check_history()
            return True
        return False

    await eventually(answered)


def stray_reader(wire: RedisConnection, fence: HistoryGuard) -> OrphanReader:
    return OrphanReader(Client(wire), fence.check_history)


@asynccontextmanager
async def cut_off(data: Data, wire: RedisConnection) -> AsyncIterator[None]:
    """While the block runs there is no connection, nor can one be made."""
    home, wire.address = wire.address, parse_url(f"redis://127.0.0.1:{free_port()}")
    data.client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: not wire.connected)
    yield
    wire.address = home


def resynced(data: Data) -> None:
    follow(data.client, data.other)
    data.client.replicaof("NO", "ONE")


def flushed(data: Data) -> None:
    data.client.flushall()


def reloaded(data: Data) -> None:
    command(data, "DEBUG", "RELOAD", "NOSAVE")


def swapped(data: Data) -> None:
    command(data, "COPY", keys.history(0), keys.history(0), "DB", 1)
    data.client.swapdb(0, 1)


EXCHANGES: list[Exchange] = [resynced, flushed, reloaded, swapped]


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_exchanged_data_is_noticed_however_alike_it_is(data: Data, exchange: Exchange) -> None:
    async with guarded(data.server.url) as (wire, fence):
        before = wire.run_id
        data.verify(before)
        await fence.check_history()
        data.branch()
        data.client.save()
        exchange(data)
        await looked(fence)
        assert wire.run_id != before
        assert len(wire.run_id) == len(before)
        assert fence.noticed == 1
        assert data.marked in (b"", NOBODY)
        after = wire.run_id
        await fence.check_history()
        assert wire.run_id == after


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_who_was_not_connected_meanwhile_notices_it_too(data: Data, exchange: Exchange) -> None:
    async with guarded(data.server.url) as (wire, fence):
        before = wire.run_id
        data.branch()
        await fence.check_history()
        async with cut_off(data, wire):
            exchange(data)
        await eventually(lambda: wire.connected)
        assert wire.run_id != before
        assert fence.noticed == 1


async def test_every_exchange_is_noticed_once_and_by_everybody(data: Data) -> None:
    async with (
        guarded(data.server.url, "1") as (wire, fence),
        guarded(data.server.url, "2") as (other, second),
    ):
        known = {wire.run_id}
        for number in range(1, 4):
            data.branch()
            resynced(data)
            await looked(fence)
            await looked(second)
            assert wire.run_id == other.run_id
            assert wire.run_id not in known
            known.add(wire.run_id)
            assert fence.noticed + second.noticed == number


async def test_a_marker_of_a_later_verification_is_left_alone(data: Data) -> None:
    async with guarded(data.server.url, "1") as (wire, fence), guarded(data.server.url, "2") as (_, second):
        await fence.check_history()
        await second.check_history()
        flushed(data)
        await fence.check_history()
        data.verify(wire.run_id)
        await second.check_history()
        assert data.marked == wire.run_id
        assert second.noticed == 0


async def test_markers_of_an_older_layout_are_closed_and_those_of_a_newer_one_left_alone(data: Data) -> None:
    async with guarded(data.server.url) as (wire, fence):
        data.verify(wire.run_id)
        marker = data.client.get(keys.marker(0)) or b""
        assert isinstance(marker, bytes)
        newer = bytes([LAYOUT + 1]) + marker[1:]
        data.client.set(keys.marker(0), marker[1:])  # before there were numbers
        data.client.set(keys.marker(1), newer)
        await fence.check_history()
        data.branch()
        resynced(data)
        await looked(fence)
        assert data.marked == NOBODY
        assert data.client.get(keys.marker(1)) == newer


async def test_whoever_comes_later_speaks_to_the_same_history(data: Data) -> None:
    async with guarded(data.server.url, "1") as (wire, fence):
        data.client.save()
        reloaded(data)
        await fence.check_history()
        async with guarded(data.server.url, "2") as (later, second):
            assert later.run_id == wire.run_id
            await second.check_history()
            assert (later.run_id, second.noticed) == (wire.run_id, 0)


async def test_what_is_known_from_elsewhere_can_be_said(data: Data) -> None:
    async with guarded(data.server.url) as (wire, fence):
        before = wire.run_id
        data.verify(before)
        await fence.announce("a log knows more")
        assert wire.run_id != before
        assert data.marked == NOBODY
        after = wire.run_id
        await fence.check_history()
        assert (wire.run_id, fence.noticed) == (after, 1)


async def test_older_data_put_key_by_key_over_newer_is_noticed_by_its_pulse(data: Data) -> None:
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        before, older = wire.run_id, data.client.dump(keys.pulses(0)) or b""
        await fence.check_history()
        data.client.restore(keys.pulses(0), 0, older, replace=True)
        await fence.check_history()
        assert wire.run_id != before


async def quiet_rewrite(data: Data) -> None:
    data.client.bgrewriteaof()
    await eventually(lambda: not data.client.info("persistence")["aof_rewrite_in_progress"])


async def quiet_replica(data: Data) -> None:
    await asyncio.to_thread(follow, data.stale, data.server)
    data.stale.replicaof("NO", "ONE")


async def quiet_reconnect(data: Data) -> None:
    data.client.client_kill_filter(_type="normal", skipme=True)


async def quiet_full(data: Data) -> None:
    data.client.config_set("maxmemory", 1)


async def quiet_frozen(data: Data) -> None:
    command(data, "DEBUG", "SLEEP", "1.5")


@pytest.mark.parametrize("event", [quiet_rewrite, quiet_replica, quiet_reconnect, quiet_full, quiet_frozen])
async def test_nothing_else_is_taken_for_an_exchange(data: Data, event: Callable[[Data], object]) -> None:
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        before = wire.run_id
        happening = event(data)
        assert asyncio.iscoroutine(happening)
        looking = asyncio.create_task(keep_looking(wire, fence))
        await happening
        for _ in range(6):
            await looked(fence)
        looking.cancel()
        assert (wire.run_id, fence.noticed) == (before, 0)


@pytest.mark.parametrize("days", [40, -40])
async def test_a_process_with_another_clock_has_no_pulse_forgotten(data: Data, days: int) -> None:
    """Its own is not forgotten either, by whoever comes next."""

    def theirs() -> float:
        return time.time() + days * 86_400

    async with guarded(data.server.url, "ours") as (wire, fence):
        await looked(fence)
        data.verify(wire.run_id)
        async with guarded(data.server.url, "theirs", theirs) as (_, other):
            await looked(other)
            async with guarded(data.server.url, "newcomer") as (_, third):
                for each in (fence, other, third):
                    await looked(each)
                    assert each.noticed == 0
        assert data.marked == wire.run_id
        seconds = [score / 1000 for _, score in data.client.zrange(keys.pulses(0), 0, -1, withscores=True)]
        assert all(abs(each - time.time()) < 3_600 for each in seconds)


async def test_whose_pulse_was_forgotten_while_he_was_away_for_long_takes_no_data_for_older(
    data: Data,
) -> None:
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        before = wire.run_id
        async with cut_off(data, wire):
            data.client.delete(keys.pulses(0))
            fence._known -= PULSE_S_MAX * 1_000
        await looked(fence)
        assert (wire.run_id, fence.noticed) == (before, 0)


async def test_a_new_process_begins_anew_whatever_is_in_its_data(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, "--appendonly", "yes")
    server.start()
    try:
        async with guarded(server.url) as (wire, fence):
            await fence.check_history()
            before = wire.run_id
            server.stop()
            await eventually(lambda: not wire.connected)
            server.start()
            await eventually(lambda: wire.connected)
            await looked(fence)
            assert wire.run_id != before
            assert fence.noticed == 0
    finally:
        server.stop()


async def test_a_server_that_was_left_and_comes_back_is_behind_the_other(data: Data) -> None:
    """Two servers with one name and one address, one at a time."""
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        first = wire.run_id
        home = wire.address
        wire.address = parse_url(data.other.url)
        await quiet_reconnect(data)
        await eventually(lambda: wire.connected and wire.run_id != first)
        await fence.check_history()
        assert fence.noticed == 0
        wire.address = home
        data.stale.client_kill_filter(_type="normal", skipme=True)
        await eventually(lambda: wire.connected and fence.noticed == 1)
        assert wire.run_id not in (b"", first)


@pytest.mark.parametrize("said", ["of it", "of another history", "unreadably", ""])
async def test_who_hears_of_a_promotion_late_has_nothing_to_say_of_what_was_verified_since(
    data: Data, said: str
) -> None:
    """Without that word it may be older data that names what was verified before."""
    memory: dict[bytes, bytes] = {}
    data.branch()
    async with guarded(data.server.url, "late", promoted=memory) as (wire, _):
        (seen,) = memory
        assert (wire.run_id, memory) == (seen, {seen: b""})
    resynced(data)
    async with guarded(data.server.url, "keeper") as (wire, keeper):
        data.verify(wire.run_id)
        if said == "unreadably":
            data.client.rpush(keys.promotion(0), "no text")
        elif said:
            await keeper.keep_promotion(wire.run_id if said == "of it" else b"a" * 40)
        stays = said == "of it"
        async with guarded(data.server.url, "late", promoted=memory) as (late, fence):
            assert (late.run_id == wire.run_id, fence.noticed) == (stays, not stays)
            assert (data.marked == NOBODY) is not stays


def test_the_first_history_is_named_by_its_process_alone() -> None:
    run_id = b"a" * 40
    assert history(run_id, b"") == history(run_id, b"0:00") == run_id
    assert len({run_id, history(run_id, b"1:00"), history(run_id, b"1:01"), history(b"b" * 40, b"1:00")}) == 4
    assert [generation(one) for one in (b"", b"0:ab", b"17:ab", b"x:ab", b"5")] == [0, 0, 17, 0, 0]


async def test_a_name_that_is_given_between_watch_and_look_breaks_no_watch(data: Data) -> None:
    """Two that find a server empty at once: one names it while the other begins to watch."""
    mine = redis.Redis.from_url(data.server.url, single_connection_client=True)
    asked: list[bytes] = []

    async def ask(*parts: bytes) -> object:
        if asked and asked[-1] == b"WATCH" and asked.count(b"WATCH") == 1:
            data.client.set(keys.history(0), "0:given meanwhile")
        asked.append(parts[0])
        return mine.execute_command(*parts)  # type: ignore[no-untyped-call]  # untyped in redis-py

    data.client.delete(keys.history(0))
    assert await _watched(ask, keys.history(0).encode()) == b"0:given meanwhile"
    await ask(b"MULTI")
    assert await ask(b"EXEC") == []
    mine.close()


async def test_an_exchange_behind_a_drop_of_strays_is_noticed(data: Data) -> None:
    """An EXEC ends every watch of its connection: whoever runs a transaction has the name watched again."""
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        data.client.save()
        begins = await stray_reader(wire, fence).drop(OrphanEntries(0, b"5-0"))
        assert begins == b"5-1"
        reloaded(data)
        await fence.check_history()
        assert fence.noticed == 1


async def test_strays_are_not_dropped_in_data_that_was_exchanged(data: Data) -> None:
    """What was read before says nothing of this data: the transaction does nothing, and says so."""
    async with guarded(data.server.url) as (wire, fence):
        await fence.check_history()
        data.client.save()
        reloaded(data)
        with pytest.raises(CountersUnavailable):
            await stray_reader(wire, fence).drop(OrphanEntries(0, b"5-0"))
        assert data.client.exists(keys.outbox(0)) == 0
        assert fence.noticed == 1


async def test_strays_are_not_said_to_be_dropped_where_the_stream_went_on(data: Data) -> None:
    """Entries came since it was looked at, behind where it was to begin."""
    async with guarded(data.server.url) as (wire, fence):
        reader = stray_reader(wire, fence)
        await fence.check_history()
        data.client.xadd(keys.outbox(0), {"e": ""}, id="9-0")
        with pytest.raises(CountersRefused):
            await fence.check_history(encode(b"XADD", keys.outbox(0).encode(), b"5-1", b"e", b""))
        assert await reader.drop(OrphanEntries(0, b"5-0")) == b"9-1"
        assert fence.noticed == 0


def test_nobody_but_the_fence_runs_transactions() -> None:
    """The other one asks for rights, on a connection that it closes then."""
    found = {
        one.name
        for one in Path("gateway").rglob("*.py")
        if re.search(r"b?\"(MULTI|EXEC|WATCH)\"", one.read_text())
    }
    assert found == {"history_guard.py", "client.py"}
