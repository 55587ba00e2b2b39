"""What the proxy does to bytes: nothing by itself, and each fault exactly as asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from tests.faults.proxy import Proxy, Trap, Way
from tests.waiting import eventually

WITHIN_S = 30.0


class Echo:
    """A server that sends back what it gets, and remembers it. `arrivals` are the pieces it read."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.got = b""
        self.arrivals: list[int] = []
        self.resets = self.ended = self.port = 0

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        try:
            while data := await reader.read(65_536):
                self.got += data
                self.arrivals.append(len(data))
                writer.write(data)
        except ConnectionResetError:
            self.resets += 1
        self.ended += 1
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    one = Echo()
    one.port = await one.start()
    yield one
    one.server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    one = Proxy(echo.port)
    await one.start()
    yield one
    await one.stop()


async def connected(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the end, however it comes."""
    got = b""
    with suppress(ConnectionResetError):
        async with asyncio.timeout(WITHIN_S):
            while data := await reader.read(65_536):
                got += data
    return got


async def test_bytes_pass_unchanged_and_the_end_too(proxy: Proxy) -> None:
    reader, writer = await connected(proxy)
    sent = bytes(range(256)) * 2000
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.write_eof()
    assert await ended(reader) == b""


async def test_slices_are_no_larger_than_asked(proxy: Proxy, echo: Echo) -> None:
    proxy.slice_bytes = 7
    reader, writer = await connected(proxy)
    writer.write(b"x" * 100)
    assert await reader.readexactly(100) == b"x" * 100
    assert echo.got == b"x" * 100
    assert len(echo.arrivals) > 1


async def test_latency_delays_and_loses_nothing(proxy: Proxy) -> None:
    proxy.latency_s = 0.05
    reader, writer = await connected(proxy)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    assert loop.time() - began >= 0.1  # once each way


async def test_black_hole_holds_everything_until_it_is_lifted(proxy: Proxy, echo: Echo) -> None:
    reader, writer = await connected(proxy)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    proxy.black_hole = True
    writer.write(b"two")
    late_reader, late_writer = await connected(proxy)
    late_writer.write(b"three")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(3), 0.05)
    assert echo.got == b"one"
    proxy.black_hole = False
    assert await late_reader.readexactly(5) == b"three"
    await eventually(lambda: echo.got in (b"onetwothree", b"onethreetwo"))


async def test_reset_reaches_both_sides(proxy: Proxy, echo: Echo) -> None:
    reader, writer = await connected(proxy)
    writer.write(b"hello")
    await reader.readexactly(5)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), WITHIN_S)
    await eventually(lambda: echo.resets == 1)


async def test_refusing_resets_new_connections_only(proxy: Proxy) -> None:
    reader, writer = await connected(proxy)
    writer.write(b"a")
    await reader.readexactly(1)
    proxy.refuses = True
    other, _ = await connected(proxy)
    assert await ended(other) == b""
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"


@pytest.mark.parametrize(("after", "before"), [(0, 0), (1, 0), (10, 0), (64, 0), (64, 40)])
async def test_cut_lets_exactly_so_many_bytes_pass(proxy: Proxy, echo: Echo, after: int, before: int) -> None:
    trap = proxy.set_trap(Trap(Way.TO_SERVER, after_bytes=after))
    another, to_another = await connected(proxy)
    to_another.write(b"y" * before)
    await another.readexactly(before)
    reader, writer = await connected(proxy)
    writer.write(b"y" * 100)
    await ended(reader)
    await eventually(lambda: echo.ended == 1)
    assert echo.got == b"y" * after
    assert trap.sprung.is_set()


@pytest.mark.parametrize(("passes", "arrives"), [(False, b"begin "), (True, b"begin COMMIT")])
async def test_pattern_cuts_before_or_after_itself(
    proxy: Proxy, echo: Echo, passes: bool, arrives: bytes
) -> None:
    trap = proxy.set_trap(Trap(Way.TO_SERVER, b"COMMIT", passes=passes))
    reader, writer = await connected(proxy)
    writer.write(b"begin ")
    await eventually(lambda: echo.got == b"begin ")
    writer.write(b"COMMIT")
    await asyncio.wait_for(trap.sprung.wait(), WITHIN_S)
    await ended(reader)
    await eventually(lambda: echo.ended == 1)
    assert echo.got == arrives


async def test_pattern_is_found_across_pieces_and_by_its_number(proxy: Proxy) -> None:
    called: list[str] = []
    trap = proxy.set_trap(
        Trap(Way.TO_SERVER, b"COMMIT", nth=2, passes=True, cuts=False, then=lambda: called.append("now"))
    )
    reader, writer = await connected(proxy)
    for piece in (b"COM", b"MIT;", b"C"):
        writer.write(piece)
        await reader.readexactly(len(piece))
    assert not trap.sprung.is_set()
    writer.write(b"OMMIT")
    assert await reader.readexactly(5) == b"OMMIT"
    assert called == ["now"]


async def test_reply_is_lost_while_the_request_arrives(proxy: Proxy, echo: Echo) -> None:
    proxy.set_trap(Trap(Way.TO_CLIENT, b"COMMIT"))
    reader, writer = await connected(proxy)
    writer.write(b"COMMIT")
    assert await ended(reader) == b""
    assert echo.got == b"COMMIT"


async def test_one_address_leads_elsewhere_after_a_failover(proxy: Proxy) -> None:
    other = Echo(greeting=b"the other")
    reader, writer = await connected(proxy)
    writer.write(b"x")
    await reader.readexactly(1)
    proxy.point_to(await other.start())
    assert await ended(reader) == b""
    reader, _ = await connected(proxy)
    assert await reader.readexactly(9) == b"the other"
    other.server.close()


async def test_who_comes_from_an_address_is_held_back_and_nobody_else(echo: Echo, proxy: Proxy) -> None:
    reader, writer = await connected(proxy)
    away = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=("127.0.0.9", 0))
    away[1].write(b"before")
    assert await away[0].readexactly(6) == b"before"
    proxy.hold_back("127.0.0.9")
    away[1].write(b" later")
    late = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=("127.0.0.9", 0))
    late[1].write(b"new")
    writer.write(b"free")
    assert await reader.readexactly(4) == b"free"
    assert echo.got == b"beforefree"
    proxy.let_go()
    assert await away[0].readexactly(6) == b" later"
    assert await late[0].readexactly(3) == b"new"
    for one in (writer, away[1], late[1]):
        one.close()
