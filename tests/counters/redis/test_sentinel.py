"""Finding the primary through real sentinels, and the next one when it is gone."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from gateway.core.wait import in_task
from gateway.counters.redis.connection import encode
from gateway.errors import CountersUnavailable
from tests.conftest import STOP_S_MAX, ValkeyServer, free_port, valkey_binary
from tests.counters.conftest import Connect
from tests.waiting import eventually, wait_until

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
        program.wait(STOP_S_MAX)


async def test_the_sentinels_name_the_primary_and_the_next_one(
    sentinel: tuple[str, ValkeyServer], connect: Connect
) -> None:
    url, primary = sentinel
    wire = await connect(url)
    run_id = wire.run_id
    assert await in_task(wire.send(encode(b"SET", b"written", b"1"))) == b"OK"
    assert await in_task(wire.send(encode(b"WAIT", b"1", b"5000"))) == 1
    primary.stop(signal.SIGKILL)
    await eventually(lambda: wire.connected and wire.run_id != run_id)
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
