"""The pipelined connection: order, bounds, loss and return, who we are there."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import trustme

from gateway.core.model import PARTITIONS
from gateway.core.wait import LOOKS_MIN, Wait, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis.address import Ask, Server, parse_url
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.connection import PENDING_MAX, SWEEP_S, RedisConnection, encode, encode_script
from gateway.errors import CountersUnavailable, StartError
from tests.builders import World
from tests.conftest import ValkeyServer, free_port, valkey_binary
from tests.counters.conftest import Connect
from tests.counters.fake_redis import bulk, fake_redis
from tests.waiting import HUNG_S, eventually, wait_until

START = Callable[..., ValkeyServer]


async def ask(wire: RedisConnection, *parts: bytes) -> Reply:
    return await in_task(wire.send(encode(*parts)))


async def failed(wait: Wait[Reply]) -> bool:
    try:
        await in_task(wait)
    except CountersUnavailable:
        return True
    return False


# --- order ------------------------------------------------------------------------------


async def test_answers_come_in_the_order_of_the_calls(valkey: str, connect: Connect) -> None:
    wire = await connect(valkey)
    waits = [wire.send(encode(b"ECHO", b"%d" % n)) for n in range(500)]
    assert [await in_task(wait) for wait in waits] == [b"%d" % n for n in range(500)]


async def test_one_tick_is_one_write(connect: Connect) -> None:
    async with fake_redis(lambda command: bulk(command[-1])) as fake:
        wire = await connect(fake.url)
        waits = [wire.send(encode(b"ECHO", b"%d" % n)) for n in range(20)]
        assert [await in_task(wait) for wait in waits] == [b"%d" % n for n in range(20)]
        await ask(wire, b"ECHO", b"later")
        assert [len(chunk) for chunk in fake.chunks] == [20, 1]


async def test_each_write_has_a_number_that_no_other_wire_uses(connect: Connect) -> None:
    """Below 2^53: it travels as a double."""
    async with fake_redis(lambda command: bulk(command[-1])) as fake:
        wires = [await connect(fake.url) for _ in range(3)]
        numbers = []
        for wire in wires:
            for _ in range(4):
                first = wire.batch
                waits = [wire.send(encode(b"ECHO", b"1")) for _ in range(2)]
                assert wire.batch == first
                numbers.append(first)
                for wait in waits:
                    await in_task(wait)
        assert len(set(numbers)) == len(numbers)
        assert all(packing.NO_BATCH < number < 2**53 for number in numbers)


async def test_a_call_is_timed_from_its_write_and_until_its_read() -> None:
    now = [10.0]
    async with fake_redis(lambda command: bulk(command[-1])) as fake:
        wire = RedisConnection(parse_url(fake.url), lambda: now[0], call_s=1000, stall_s=1000)
        await wire.open()
        now[0] = 20.0
        wire.send(encode(b"ECHO", b"1"))
        now[0] = 21.0
        last = wire.send(encode(b"ECHO", b"2"))
        assert wire.asked_at == 20.0
        now[0] = 25.0
        await in_task(last)
        assert wire.answered_at == 25.0
        now[0] = 30.0
        wire.send(encode(b"ECHO", b"3"))
        assert wire.asked_at == 30.0
        await wire.close()


async def test_an_answer_cut_anywhere_is_put_together(connect: Connect) -> None:
    async with fake_redis(lambda command: bulk(command[-1])) as fake:
        wire = await connect(fake.url)
        wait = wire.send(encode(b"ECHO", b"x"))
        for byte in bulk(b"whole\r\n"):
            wire.data_received(bytes([byte]))
        assert await in_task(wait) == b"whole\r\n"


async def test_a_refused_call_fails_alone(valkey: str, connect: Connect) -> None:
    wire = await connect(valkey)
    before, wrong, after = (
        wire.send(encode(*parts)) for parts in ((b"ECHO", b"1"), (b"NONSENSE",), (b"ECHO", b"2"))
    )
    assert (await in_task(before), await failed(wrong), await in_task(after)) == (b"1", True, b"2")
    assert wire.connected


async def test_a_lost_library_is_loaded_again(world: World, connect: Connect) -> None:
    wire = await connect(world.url)
    world.plan(100)
    world.client.function_flush()
    calls = [
        packing.grant(world.run_id, "recharge", 1, f"{n + 1:036d}", tenant_id=7, organization_id=1)
        for n in range(5)
    ]
    waits = [wire.send(encode_script("grant", *call)) for call in calls]
    assert [packing.code_of(bytes(await in_task(wait))) for wait in waits] == [1] * 5  # type: ignore[arg-type]  # bytes
    assert world.tenant.remaining == 105
    assert packing.code_of(await in_task(wire.send(encode_script("grant", *calls[0])))) == 2  # type: ignore[arg-type]


# --- bounds -----------------------------------------------------------------------------


async def test_every_wait_ends_while_the_server_stands_still(own_valkey: START, connect: Connect) -> None:
    server = own_valkey()
    wire = await connect(server.url, call_s=0.5, stall_s=1.5)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(30):
        waits = [wire.send(encode(b"ECHO", b"x")) for _ in range(50)]
        assert all([await failed(wait) for wait in waits])
        await eventually(lambda: not wire.connected)
        assert await failed(wire.send(encode(b"ECHO", b"at once")))
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: wire.connected)
    assert await ask(wire, b"ECHO", b"back") == b"back"


async def test_who_sends_again_at_once_stops_nobody_from_being_told(connect: Connect) -> None:
    async with fake_redis(lambda _: None) as fake:
        wire = await connect(fake.url, call_s=0.1, stall_s=30)
        first, others = wire.send(encode(b"ECHO", b"x")), [wire.send(encode(b"ECHO", b"y")) for _ in range(3)]
        again: list[Wait[Reply]] = []
        first.then(lambda: again.append(wire.send(encode(b"ECHO", b"again"))))
        async with asyncio.timeout(30):
            assert all([await failed(wait) for wait in others])
            assert await failed(again[0])


async def test_an_answer_after_its_wait_failed_answers_nobody_else(
    own_valkey: START, connect: Connect
) -> None:
    server = own_valkey()
    wire = await connect(server.url, call_s=0.5, stall_s=30)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert await failed(wire.send(encode(b"ECHO", b"too late")))
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: wire.available)
    assert await ask(wire, b"ECHO", b"mine") == b"mine"


async def test_the_breaker_opens_with_the_oldest_wait_and_closes_with_its_answer(
    own_valkey: START, connect: Connect
) -> None:
    server = own_valkey()
    wire = await connect(server.url, call_s=0.5, stall_s=30)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    late = [wire.send(encode(b"RPUSH", b"late", b"%d" % n)) for n in range(20)]
    assert await failed(late[0])
    refused = [wire.send(encode(b"RPUSH", b"late", b"refused")) for _ in range(20)]
    assert all(wait.done for wait in refused)
    assert (wire.connected, wire.available) == (True, False)
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: wire.available)
    waits = [wire.send(encode(b"ECHO", b"%d" % n)) for n in range(50)]
    assert [await in_task(wait) for wait in waits] == [b"%d" % n for n in range(50)]
    # What was sent in vain may have been done, what was refused was never sent.
    assert await ask(wire, b"LRANGE", b"late", b"0", b"-1") == [b"%d" % n for n in range(20)]
    assert all([await failed(wait) for wait in late])


async def test_the_breaker_stays_open_until_all_that_waited_in_vain_is_answered(connect: Connect) -> None:
    async with fake_redis(lambda _: None) as fake:
        wire = await connect(fake.url, call_s=0.1, stall_s=30)
        waits = [wire.send(encode(b"ECHO", b"x")) for _ in range(2)]
        assert all([await failed(wait) for wait in waits])
        wire.data_received(bulk(b"first"))
        assert not wire.available
        wire.data_received(bulk(b"second"))
        assert wire.available


async def test_what_this_loop_slept_through_is_not_blamed_on_the_server(
    valkey: str, connect: Connect
) -> None:
    """Before the command left, and while its answer lay in the socket."""
    wire = await connect(valkey, call_s=0.2, stall_s=0.4)
    for number in range(5):
        wait = wire.send(encode(b"ECHO", b"%d" % number))
        time.sleep(0.5)  # noqa: ASYNC251  # the loop stands still: this is what is tested
        other = wire.send(encode(b"ECHO", b"other"))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251
        assert [await in_task(wait), await in_task(other)] == [b"%d" % number, b"other"]
    assert (wire.connected, wire.available) == (True, True)


async def test_an_answer_is_late_by_the_time_awake(connect: Connect) -> None:
    """However long the clock says it was, several looks come before anything is called late."""
    now, held = [10.0], asyncio.Event()
    async with fake_redis(lambda _: held.set()) as fake:
        wire = RedisConnection(parse_url(fake.url), lambda: now[0], call_s=1.0, stall_s=3.0)
        await wire.open()
        wait = wire.send(encode(b"ECHO", b"x"))
        await held.wait()
        jumps = 0
        while not wait.done:
            now[0] += 100.0
            jumps += 1
            assert wire.available
            await asyncio.sleep(SWEEP_S * 1.5)
        assert jumps > LOOKS_MIN
        assert await failed(wait)
        assert (wire.connected, wire.available) == (True, False)
        while fake.connections == 1:
            now[0] += 100.0
            await asyncio.sleep(SWEEP_S)
        await wire.close()


async def test_a_frozen_server_is_noticed_by_a_loop_that_stalls(own_valkey: START, connect: Connect) -> None:
    server = own_valkey()
    wire = await connect(server.url, call_s=0.4, stall_s=30)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    wait = wire.send(encode(b"ECHO", b"x"))
    stalls = 0
    while not wait.done:
        time.sleep(0.2)  # noqa: ASYNC251
        stalls += 1
        await asyncio.sleep(0)
    assert stalls < 30
    assert await failed(wait)
    server.process.send_signal(signal.SIGCONT)
    await eventually(lambda: wire.available)


async def test_too_many_waits_fail_at_once(connect: Connect) -> None:
    async with fake_redis(lambda _: None) as fake:
        wire = await connect(fake.url, call_s=30)
        waits = [wire.send(encode(b"PING")) for _ in range(PENDING_MAX + 1)]
        assert [wait.done for wait in waits] == [False] * PENDING_MAX + [True]
        assert await failed(waits[-1])
        with pytest.raises(CountersUnavailable):
            wire.send_together(encode(b"PING"))
        await wire.close()
        assert await failed(waits[0])
        with pytest.raises(CountersUnavailable):
            wire.send_together(encode(b"PING"))


async def test_a_server_that_does_not_answer_cannot_be_opened(own_valkey: START) -> None:
    server = own_valkey()
    server.stop()
    wire = RedisConnection(parse_url(server.url), asyncio.get_running_loop().time)
    with pytest.raises(CountersUnavailable, match="does not answer"):
        await wire.open()
    await wire.close()


# --- loss and return --------------------------------------------------------------------


async def test_a_restart_is_noticed_by_its_run_id(own_valkey: START, connect: Connect) -> None:
    server = own_valkey()
    wire = await connect(server.url)
    first = wire.run_id
    assert len(first) == 40
    server.stop(signal.SIGKILL)
    await eventually(lambda: not wire.connected)
    assert await failed(wire.send(encode(b"PING")))
    server.start()
    await eventually(lambda: wire.connected)
    assert wire.run_id != first
    assert await ask(wire, b"ECHO", b"again") == b"again"


async def test_start_connects_when_the_server_comes(own_valkey: START) -> None:
    server = own_valkey()
    server.stop()
    wire = RedisConnection(parse_url(server.url), asyncio.get_running_loop().time)
    wire.start()
    assert await wire.connected_within(0.05) is False
    assert await failed(wire.send(encode(b"PING")))
    server.start()
    assert await wire.connected_within(30) is True
    await wire.close()


async def test_waiting_calls_fail_when_the_connection_is_lost(own_valkey: START, connect: Connect) -> None:
    server = own_valkey()
    wire = await connect(server.url)
    wait = wire.send(encode(b"BLPOP", b"nothing", b"0"))
    with redis.Redis.from_url(server.url) as client:
        await eventually(lambda: client.info("clients")["blocked_clients"])
    server.stop(signal.SIGKILL)
    assert await failed(wait)


@pytest.mark.parametrize(
    "said",
    [b"?nonsense\r\n", b"$-7\r\n", b"*x\r\n", b"+one\r\n+unasked\r\n", b"-LOADING in a moment\r\n",
     b"-READONLY a replica\r\n", b"-MASTERDOWN gone\r\n"],
)  # fmt: skip
async def test_an_answer_that_makes_no_sense_drops_the_connection(said: bytes, connect: Connect) -> None:
    told = iter([said])
    async with fake_redis(lambda command: next(told, bulk(command[-1]))) as fake:
        wire = await connect(fake.url)
        wait, other = wire.send(encode(b"ECHO", b"1")), wire.send(encode(b"BLPOP", b"2"))
        if said.startswith(b"+one"):
            assert await in_task(wait) == b"one"
        else:
            assert await failed(wait)
        await asyncio.sleep(0)
        assert other.done
        await eventually(lambda: fake.connections == 2 and wire.connected)
        assert await ask(wire, b"ECHO", b"clean") == b"clean"


async def test_a_server_without_a_run_id_is_not_ours(connect: Connect) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(bulk(b"# nothing") * 5)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(CountersUnavailable, match="run_id"):
        await connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()


# --- who we are there -------------------------------------------------------------------


async def test_password_user_database_and_socket(own_valkey: START, connect: Connect, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    server = own_valkey("--unixsocket", str(socket))
    with redis.Redis(port=server.port) as admin:
        admin.config_set("requirepass", "s3cret/?")
        admin.acl_setuser("gate", enabled=True, passwords=["+p@ss"], keys=["*"], commands=["+@all"])
        for url, database in (
            (f"redis://:s3cret%2F%3F@127.0.0.1:{server.port}", 0),
            (f"redis://gate:p%40ss@127.0.0.1:{server.port}/3", 3),
            (f"unix://:s3cret%2F%3F@{socket}?db=2", 2),
        ):
            wire = await connect(url)
            assert wire.server == (str(socket) if url.startswith("unix") else f"127.0.0.1:{server.port}")
            await ask(wire, b"SET", b"who", url.encode())
            with redis.Redis(port=server.port, password="s3cret/?", db=database) as look:
                assert look.get("who") == url.encode()
        with pytest.raises(CountersUnavailable, match="WRONGPASS"):
            await connect(f"redis://gate:wrong@127.0.0.1:{server.port}")
        with pytest.raises(CountersUnavailable, match="NOAUTH"):
            await connect(f"redis://127.0.0.1:{server.port}")


async def test_tls_to_a_server_with_a_certificate_we_trust(
    valkey_server: ValkeyServer, connect: Connect
) -> None:
    """The embedded server speaks no TLS: a proxy in front does."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection("127.0.0.1", valkey_server.port)
        await asyncio.gather(copy(reader, back_writer), copy(back_reader, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    proxy = await asyncio.start_server(through, "localhost", 0, ssl=context)
    address = parse_url(f"rediss://localhost:{proxy.sockets[0].getsockname()[1]}")
    assert address.tls is not None
    with pytest.raises(CountersUnavailable, match="cannot be verified: unable to get local issuer"):
        await connect(address)
    authority.configure_trust(address.tls.context())
    with pytest.raises(CountersUnavailable, match="cannot be verified: IP address mismatch"):
        await connect(replace(address, host="127.0.0.1"))
    wire = await connect(address)
    assert await ask(wire, b"ECHO", b"x" * 100_000) == b"x" * 100_000
    await wire.close()
    proxy.close()


async def test_a_server_that_evicts_is_refused_and_says_what_to_do(
    valkey: str, own_valkey: Callable[..., ValkeyServer], connect: Connect
) -> None:
    (await connect(valkey)).refuse_eviction()
    wire = await connect(own_valkey("--maxmemory-policy", "allkeys-lru").url)
    with pytest.raises(StartError, match=r"allkeys-lru.*noeviction"):
        wire.refuse_eviction()


async def test_a_server_that_evicts_is_used_only_once_it_does_not(own_valkey: START) -> None:
    """Also one that comes late, when nobody refuses to start any more."""
    server = own_valkey("--maxmemory-policy", "volatile-ttl")
    wire = RedisConnection(parse_url(server.url), time.monotonic, refuses_eviction=True)
    try:
        wire.start()
        await eventually(lambda: "volatile-ttl" in wire.trouble)
        assert (wire.connected, wire.away) == (False, PARTITIONS)
        assert await failed(wire.send(encode(b"PING")))
        with pytest.raises(StartError, match=r"volatile-ttl.*noeviction"):
            wire.refuse_eviction()
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", "noeviction")
        await eventually(lambda: wire.connected)
        wire.refuse_eviction()
        assert (wire.trouble, wire.away) == ("", 0)
    finally:
        await wire.close()


# --- greeting ---------------------------------------------------------------------------
# What is said first on a connection: on a busy machine all of it may take long.


async def test_who_answers_is_not_given_up_however_long_all_of_it_takes() -> None:
    async def identify(_: Server, asked: Ask) -> bytes:
        for _ in range(4):
            await asyncio.sleep(0.2)
            await asked(b"ECHO", b"here")
        return bytes(await asked(b"ECHO", b"history" if fake.connections > 1 else b"silence"))

    async with fake_redis(lambda command: None if command[-1] == b"silence" else bulk(command[-1])) as fake:
        wire = RedisConnection(parse_url(fake.url), time.monotonic, connect_s=0.3)
        wire.identify = identify
        with pytest.raises(CountersUnavailable, match="no answer in time"):
            await wire.open()
        await eventually(lambda: wire.connected)
        assert (wire.run_id, fake.connections) == (b"history", 2)
        await wire.close()


async def test_who_answers_later_than_calls_may_wait_is_connected_to_again() -> None:
    async def identify(_: Server, asked: Ask) -> bytes:
        return bytes(await asked(b"ECHO", b"history")) if fake.connections > 1 else b"before"

    asked = asyncio.Event()
    async with fake_redis(lambda _: asked.set()) as fake:
        wire = RedisConnection(parse_url(fake.url), time.monotonic, call_s=0.1, stall_s=30, connect_s=30)
        wire.identify = identify
        await wire.open()
        assert wire._transport is not None
        wire._transport.abort()
        await eventually(lambda: not wire.connected)
        await asked.wait()
        await asyncio.sleep(SWEEP_S * 10)  # many looks, each later than a call may be
        wire.data_received(bulk(b"late"))
        await eventually(lambda: wire.connected)
        assert (wire.run_id, fake.connections) == (b"late", 2)
        await wire.close()


# --- sentinel ---------------------------------------------------------------------------
# Finding the primary through real sentinels, and the next one when it is gone.


NAME = "main"
# Each is waited for on its own for half a second, all of them for longer than a connect may take.
SILENT = 5
SECRET = "known to sentinels"


@pytest.fixture
def sentinel(tmp_path: Path, own_valkey: Callable[..., ValkeyServer]) -> Iterator[tuple[str, ValkeyServer]]:
    """A URL by way of one sentinel that watches a primary and its replica; and the primary."""
    first = own_valkey("--repl-diskless-sync-delay", "0")
    second = own_valkey("--replicaof", f"127.0.0.1 {first.port}")
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nloglevel warning\nrequirepass {SECRET!r}\n"
        f"sentinel monitor {NAME} 127.0.0.1 {first.port} 1\n"
        f"sentinel down-after-milliseconds {NAME} 1000\n"
        f"sentinel failover-timeout {NAME} 5000\n"
    )
    program = subprocess.Popen([str(valkey_binary()), str(config), "--sentinel"], stdout=subprocess.DEVNULL)

    def sees_the_replica() -> bool:
        try:
            with redis.Redis(port=port, password=SECRET) as client:
                found = client.sentinel_slaves(NAME)
        except redis.RedisError:
            return False
        return [(one["port"], one["master-link-status"]) for one in found] == [(second.port, "ok")]

    try:
        wait_until(sees_the_replica)
        nobody = free_port()  # the first of the list does not answer: the next is asked
        password = SECRET.replace(" ", "%20")
        yield f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{port}/{NAME}?password={password}", first
    finally:
        program.terminate()
        program.wait(HUNG_S)


async def test_the_sentinels_name_the_primary_and_the_next_one(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    url, primary = sentinel
    wire = await connect(url)
    run_id, server = wire.run_id, f"127.0.0.1:{primary.port}"
    assert await in_task(wire.send(encode(b"SET", b"written", b"1"))) == b"OK"
    assert await in_task(wire.send(encode(b"WAIT", b"1", b"5000"))) == 1
    assert wire.server == server
    primary.stop(signal.SIGKILL)
    await eventually(lambda: wire.connected and wire.run_id != run_id)
    assert wire.server != server
    assert await in_task(wire.send(encode(b"GET", b"written"))) == b"1"
    assert await in_task(wire.send(encode(b"SET", b"written", b"2"))) == b"OK"


async def test_who_hangs_is_left_as_soon_as_the_sentinels_name_another(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    """However long an answer may take: nothing closes the connection to a process that is stopped."""
    url, primary = sentinel
    wire = await connect(url, call_s=3_600.0, stall_s=3_600.0)
    run_id = wire.run_id
    assert await in_task(wire.send(encode(b"SET", b"written", b"1"))) == b"OK"
    assert await in_task(wire.send(encode(b"WAIT", b"1", b"5000"))) == 1
    assert primary.process
    primary.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(CountersUnavailable):
            await in_task(wire.send(encode(b"GET", b"written")))
        await eventually(lambda: wire.connected)
        assert wire.run_id != run_id
        assert await in_task(wire.send(encode(b"GET", b"written"))) == b"1"
    finally:
        primary.process.send_signal(signal.SIGCONT)


async def test_sentinels_that_say_nothing_keep_nobody_from_the_one_that_answers(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    url, _ = sentinel
    with ExitStack() as opened:
        silent = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(SILENT)]
        named = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)
        wire = await connect(url.replace("//", f"//{named},"))
        assert await in_task(wire.send(encode(b"PING"))) == b"PONG"


async def test_a_name_the_sentinels_do_not_know_is_no_connection(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    url, _ = sentinel
    backwards = re.sub("//(.*),(.*)/", r"//\2,\1/", url)  # who does not answer is asked last
    for one in (url, backwards):
        with pytest.raises(CountersUnavailable, match="no sentinel knows a primary named other") as unknown:
            await connect(one.replace(f"/{NAME}?", "/other?"))
        assert str(unknown.value).endswith("named other")
    with pytest.raises(CountersUnavailable, match=r"no sentinel knows .* refused"):
        await connect(url.replace("password=", "password=not-"))


async def test_what_the_sentinels_name_must_be_a_primary(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    """Just after a failover a sentinel may still name the one that was."""
    url, primary = sentinel
    with redis.Redis(port=primary.port) as client:
        client.replicaof("127.0.0.1", str(free_port()))
    with pytest.raises(CountersUnavailable, match="a primary that is not one"):
        await connect(url)
