"""Upstreams whose names lead elsewhere, to several addresses, or nowhere: real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.http_limits import HttpLimits
from gateway.http.tally import TickClock
from gateway.http.upstream.dialing import ADDRESSES_MAX, RETRY_S, UpstreamAddresses, by_system, dial, in_turns
from gateway.http.upstream.pool import LOOK_S, DialAddress, place_of
from tests.certificates import issued, write
from tests.http.fakes import ANSWER, CHAT, CHAT_STREAM, EVENT, STREAM_HEAD, USAGE_EVENT, answer, chunks, post
from tests.http.stage import FakeUpstream, Stage, staged
from tests.waiting import eventually

SOON = {"upstream_resolve_s": 0.05, "upstream_address_s": 0.05}
OLD, NEW = "127.0.0.1", "127.0.0.2"


@dataclass
class Zone:
    """A resolver of the test's own. While `hangs` is unset a look-up does not come back."""

    addresses: Sequence[str] = (OLD,)
    broken: bool = False
    stuck: int = 0
    hangs: threading.Event = field(default_factory=threading.Event)

    def look_up(self, host: str) -> Sequence[str]:
        assert host == "up.test"
        self.stuck += not self.hangs.is_set()
        assert self.hangs.wait(60)
        if self.broken:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return self.addresses


@dataclass
class World:
    zone: Zone
    stage: Stage
    old: FakeUpstream
    new: FakeUpstream


@contextlib.asynccontextmanager
async def world(**limits: float) -> AsyncIterator[World]:
    """Two upstreams on one port of two addresses, under one name that leads to the first."""
    zone, old, new = Zone(), FakeUpstream(), FakeUpstream()
    zone.hangs.set()
    await old.start(host=OLD)
    await new.start(host=NEW, port=old.port)
    try:
        url = f"http://up.test:{old.port}"
        async with staged(base_url=url, look_up=zone.look_up, **SOON | limits) as stage:
            yield World(zone, stage, old, new)
            assert not old.errors
            assert not new.errors
    finally:
        zone.hangs.set()
        await old.stop()
        await new.stop()


async def test_a_new_address_is_used_and_connections_to_the_old_one_end() -> None:
    async with world() as here:
        client = await here.stage.client()
        assert (await client.ask(post(CHAT))).body == ANSWER
        assert (len(here.old.received), here.old.connections) == (1, 1)
        here.zone.addresses = (NEW,)

        async def moved() -> bool:
            assert (await client.ask(post(CHAT))).status == 200
            return len(here.new.received) > 0

        await eventually(moved)
        await eventually(lambda: here.old.open == 0)
        before = len(here.old.received)
        for _ in range(5):
            assert (await client.ask(post(CHAT))).status == 200
        assert len(here.old.received) == before
        (told,) = here.stage.events("upstream_addresses")
        assert (told["upstream"], told["addresses"], told["before"]) == ("up", [NEW], [OLD])


async def test_a_call_in_progress_at_the_old_address_ends_as_it_began() -> None:
    async with world() as here:
        go = asyncio.Event()
        here.old.scripts.append([STREAM_HEAD + chunks(EVENT, end=False), go, chunks(EVENT, USAGE_EVENT)])
        client = await here.stage.client()
        running = asyncio.create_task(client.ask(post(CHAT_STREAM)))
        await eventually(lambda: here.old.received)
        here.zone.addresses = (NEW,)
        await eventually(lambda: here.stage.events("upstream_addresses"))

        async def moved() -> bool:
            assert (await here.stage.ask(post(CHAT))).status == 200
            return len(here.new.received) > 0

        await eventually(moved)
        go.set()
        got = await running
        assert got.complete
        assert got.body.count(EVENT) == 2
        await eventually(lambda: here.old.open == 0)


async def test_an_address_that_is_missing_for_a_moment_keeps_its_connections() -> None:
    async with world(upstream_address_s=3600) as here:
        client = await here.stage.client()
        assert (await client.ask(post(CHAT))).status == 200
        here.zone.addresses = (NEW,)
        await eventually(lambda: here.stage.events("upstream_addresses"))
        assert (await client.ask(post(CHAT))).status == 200
        assert (here.old.connections, len(here.old.received), here.new.connections) == (1, 2, 0)


async def test_new_connections_go_to_all_addresses_in_turns() -> None:
    async with world(upstream_attempt_s=60) as here:
        here.zone.addresses = (OLD, NEW)
        go = asyncio.Event()
        for one in (here.old, here.new):
            one.scripts += [[go, answer()] for _ in range(4)]
        running = [asyncio.create_task(here.stage.ask(post(CHAT))) for _ in range(6)]
        await eventually(lambda: here.old.connections + here.new.connections == 6)
        assert here.old.connections == here.new.connections == 3
        go.set()
        assert {(await one).status for one in running} == {200}


@pytest.mark.parametrize("kind", ["refuses", "says nothing"])
async def test_an_address_that_does_not_answer_costs_a_moment(kind: str) -> None:
    with contextlib.ExitStack() as sockets:
        async with world(upstream_attempt_s=0.02, upstream_connect_s=30) as here:
            bad = "127.0.0.3"  # nobody listens there: it refuses
            if kind == "says nothing":
                _fill(sockets, bad, here.old.port)
            here.zone.addresses = (bad, OLD)
            answers = [await here.stage.ask(post(CHAT)) for _ in range(3)]
            assert {one.status for one in answers} == {200}
            assert here.stage.events("upstream_failed") == []


async def test_an_address_of_the_other_family_is_tried_too() -> None:
    six = FakeUpstream()
    try:
        await six.start(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    zone = Zone(("127.0.0.3", "::1"))
    zone.hangs.set()
    try:
        async with staged(base_url=f"http://up.test:{six.port}", look_up=zone.look_up) as stage:
            assert (await stage.ask(post(CHAT))).body == ANSWER
            assert six.connections == 1
    finally:
        await six.stop()


async def test_while_look_ups_fail_the_last_addresses_are_used_for_a_while() -> None:
    async with world(upstream_idle_connections_max=1) as here:
        assert (await here.stage.ask(post(CHAT))).status == 200
        here.zone.broken = True
        await eventually(lambda: here.stage.events("upstream_lookup_failed"))
        go = asyncio.Event()
        here.old.scripts += [[go, answer()] for _ in range(2)]
        running = [asyncio.create_task(here.stage.ask(post(CHAT))) for _ in range(2)]
        await eventually(lambda: here.old.connections == 2)  # one of them is new
        go.set()
        assert {(await one).status for one in running} == {200}
        first = here.stage.events("upstream_lookup_failed")[0]
        assert (first["upstream"], first["host"], first["kept"]) == ("up", "up.test", [OLD])
        assert "Temporary failure" in str(first["why"])
        assert here.stage.tally.upstream_lookup_failures >= 1
        here.zone.broken, here.zone.addresses = False, (NEW,)
        await eventually(lambda: here.stage.events("upstream_addresses"))


async def test_addresses_that_are_too_old_are_used_no_more() -> None:
    async with world(upstream_resolve_stale_s=0.1, upstream_keep_alive_s=0.05) as here:
        assert (await here.stage.ask(post(CHAT))).status == 200
        here.zone.broken = True

        async def refused() -> bool:
            got = await here.stage.ask(post(CHAT))
            return got.status == 502 and b"cannot be looked up" in got.body

        await eventually(refused)
        here.zone.broken = False

        async def served() -> bool:
            return (await here.stage.ask(post(CHAT))).status == 200

        await eventually(served)


async def test_a_resolver_that_hangs_stops_nobody_but_who_knows_no_address() -> None:
    async with world(upstream_connect_s=0.2) as here:
        here.zone.hangs.clear()
        got = await here.stage.ask(post(CHAT))
        assert (got.status, got.reason) == (504, "upstream_timeout")
        here.zone.hangs.set()

        async def served() -> bool:
            return (await here.stage.ask(post(CHAT))).status == 200

        await eventually(served)
        stuck = here.zone.stuck
        here.zone.hangs.clear()
        await eventually(lambda: here.zone.stuck == stuck + 1)
        for _ in range(3):
            assert (await here.stage.ask(post(CHAT))).status == 200
        assert here.zone.stuck == stuck + 1


async def test_an_address_is_never_looked_up() -> None:
    def look_up(host: str) -> Sequence[str]:
        raise AssertionError(host)

    async with staged(look_up=look_up, **SOON) as stage:
        assert (await stage.ask(post(CHAT))).status == 200
        assert stage.tally.upstream_lookup_failures == 0


async def test_nobody_answers_and_why_is_told() -> None:
    with socket.socket() as unheard:  # bound, and nobody listens
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await dial(["127.0.0.1", "127.0.0.3"], unheard.getsockname()[1], 0.01)


def test_the_system_knows_this_machine() -> None:
    assert {"127.0.0.1", "::1"} & set(by_system("localhost"))


def test_families_come_in_turns_and_the_preferred_one_first() -> None:
    mixed = ["2001:db8::1", "2001:db8::2", "192.0.2.1"]
    assert in_turns(mixed, 0) == ["2001:db8::1", "192.0.2.1", "2001:db8::2"]
    assert in_turns(mixed, 1) == ["2001:db8::2", "192.0.2.1", "2001:db8::1"]
    assert in_turns(["192.0.2.1", "2001:db8::1"], 5) == ["192.0.2.1", "2001:db8::1"]


@given(st.lists(st.ip_addresses().map(str), max_size=ADDRESSES_MAX, unique=True), st.integers(0, 1000))
def test_in_turns_loses_no_address(addresses: list[str], turn: int) -> None:
    assert sorted(in_turns(addresses, turn)) == sorted(addresses)


def _fill(sockets: contextlib.ExitStack, host: str, port: int) -> None:
    """Have a port take no more callers: its queue is full, and nobody accepts."""
    full = sockets.enter_context(socket.socket())
    full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    full.bind((host, port))
    full.listen(0)
    for _ in range(4):
        caller = sockets.enter_context(socket.socket())
        caller.setblocking(False)
        caller.connect_ex((host, port))


async def test_a_name_that_leads_nowhere_is_asked_for_once_a_second() -> None:
    zone, failed = Zone(broken=True), 0
    zone.hangs.set()
    clock = TickClock(asyncio.get_running_loop(), lambda: 100.0, 1.0, lambda _now: None)

    def counted() -> None:
        nonlocal failed
        failed += 1

    names = UpstreamAddresses("up.test", clock, HttpLimits(), zone.look_up, lambda *_, **__: None, counted)
    for _ in range(20):
        with pytest.raises(socket.gaierror):
            await names.addresses()
    assert failed == 1
    clock.now += RETRY_S
    with pytest.raises(socket.gaierror):
        await names.addresses()
    assert failed == 2
    zone.broken = False
    clock.now += RETRY_S
    assert await names.addresses() == [OLD]


# --- place ------------------------------------------------------------------------------
# Files of TLS to an upstream are read again once they change; what is broken changes nothing.


AUTHORITIES = (trustme.CA(), trustme.CA())


class EventRecorder:
    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: str, **_: Any) -> None:
        self.events.append(event)


async def served(folder: Path, clients: trustme.CA) -> tuple[asyncio.Server, int]:
    """A server of the first authority that lets in who has a certificate of `clients`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITIES[0].issue_cert("localhost").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    clients.configure_trust(context)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"in")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    return server, server.sockets[0].getsockname()[1]


async def is_let_in(how: dict[str, Any]) -> bool:
    try:
        reader, writer = await asyncio.open_connection(**{**how, "host": "127.0.0.1"})
        said = await asyncio.wait_for(reader.read(), 60)
    except (OSError, ssl.SSLError):
        return False
    writer.close()
    return said == b"in"


async def test_a_new_certificate_is_shown_and_a_new_authority_believed(tmp_path: Path) -> None:
    ours = issued(tmp_path, AUTHORITIES[0])
    write(tmp_path / "ca.pem", AUTHORITIES[1].cert_pem.bytes())  # not the server's
    server, port = await served(tmp_path, AUTHORITIES[1])
    told = EventRecorder()
    target = UpstreamTarget(
        "up", f"https://localhost:{port}", (), str(tmp_path / "ca.pem"), "account", ours.certificate, ours.key
    )
    async with server:
        place = DialAddress(target, told)
        assert not await is_let_in(place.at(0.0))
        issued(tmp_path, AUTHORITIES[1])
        write(tmp_path / "ca.pem", AUTHORITIES[0].cert_pem.bytes())
        assert not await is_let_in(place.at(LOOK_S / 2))  # it is not looked at with each connection
        assert await is_let_in(place.at(LOOK_S))
        assert told.events == ["upstream_certificate_renewed"]


@pytest.mark.parametrize("content", [b"no PEM", None])
async def test_what_cannot_be_used_changes_nothing_and_is_told_once(
    tmp_path: Path, content: bytes | None
) -> None:
    ours = issued(tmp_path, AUTHORITIES[1])
    write(tmp_path / "ca.pem", AUTHORITIES[0].cert_pem.bytes())
    server, port = await served(tmp_path, AUTHORITIES[1])
    told = EventRecorder()
    target = UpstreamTarget(
        "up", f"https://localhost:{port}", (), str(tmp_path / "ca.pem"), "account", ours.certificate, ours.key
    )
    async with server:
        place = DialAddress(target, told)
        assert await is_let_in(place.at(0.0))
        if content is None:
            (tmp_path / "cert.pem").unlink()
        else:
            write(tmp_path / "cert.pem", content)
        for look in (1, 2, 3):
            assert await is_let_in(place.at(look * LOOK_S))
        assert told.events == ["upstream_certificate_kept"]
        issued(tmp_path, AUTHORITIES[1])
        assert await is_let_in(place.at(4 * LOOK_S))
        assert told.events[1:] == ["upstream_certificate_renewed"]


def test_an_upstream_without_tls_has_no_files() -> None:
    place = DialAddress(UpstreamTarget("up", "http://localhost:8000"), EventRecorder())
    assert place.at(0.0) == place_of(UpstreamTarget("up", "http://localhost:8000"))
    assert not place.secured
