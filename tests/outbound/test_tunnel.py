"""Upstreams behind a proxy: real sockets, a proxy that knows names nobody else does, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
import uvloop

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.circuit_breaker import CAUSES
from gateway.core.network import HEAD_BYTES_MAX, Proxy
from gateway.http.upstream.pool import reach
from gateway.tls.certificates import load
from tests.certificates import issued, write
from tests.http.fakes import ANSWER, CHAT, ROUTES, post
from tests.http.stage import Stage, staged
from tests.proxy_server import HERE, LET_THROUGH, ProxyServer
from tests.waiting import eventually

# Only the proxy knows it.
NAME = "up.test"
AUTHORITY, OTHER, CLIENTS = trustme.CA(), trustme.CA(), trustme.CA()
KNOWN = "Basic " + b64encode(b"us:er").decode()


def nobody(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} is looked up here")


def tls_for(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def behind(
    proxy: ProxyServer,
    folder: Path,
    *,
    tls: ssl.SSLContext | None = None,
    secured: bool = False,
    authorization: str = "",
    believed: trustme.CA = AUTHORITY,
    **limits: float,
) -> AsyncIterator[Stage]:
    """An upstream of `NAME`, over TLS where it has any, that is reached through the proxy alone."""
    proxy.names.setdefault(NAME, HERE)
    ca_file = str(folder / "ca.pem")
    believed.cert_pem.write_to_path(ca_file)
    await proxy.start(tls_for(HERE) if secured else None)
    async with proxy, staged(upstream_tls=tls, ca_file=ca_file, look_up=nobody, **limits) as stage:
        target = replace(
            stage.plane._upstreams["up"].target,
            base_url=f"http{'s' if tls else ''}://{NAME}:{stage.upstream.port}",
            via=Proxy(HERE, proxy.port, secured, authorization, ca_file),
        )
        stage.plane.renew(ROUTES, [target], stage.plane.limits)
        yield stage


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(("secured", "tls"), [(False, True), (True, True), (False, False), (True, False)])
def test_calls_go_through_and_keep_their_connection(
    loop: Callable[[], asyncio.AbstractEventLoop], secured: bool, tls: bool, tmp_path: Path
) -> None:
    async def called() -> None:
        proxy = ProxyServer(wants=KNOWN)
        context = tls_for(NAME) if tls else None
        async with behind(proxy, tmp_path, tls=context, secured=secured, authorization=KNOWN) as stage:
            for _ in range(3):
                assert (await stage.ask(post(CHAT))).body == ANSWER
            assert proxy.targets == [f"{NAME}:{stage.upstream.port}"]
            assert (proxy.open, stage.upstream.connections) == (1, 1)
            for got in stage.upstream.received:
                assert not got.all(b"proxy-authorization")
            assert bool(stage.plane.certificate_ends) is tls
        await eventually(lambda: proxy.open == 0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(called())


async def test_the_name_and_the_certificate_of_the_upstream_are_verified_inside(tmp_path: Path) -> None:
    """A proxy that leads elsewhere, or looks inside, is found out, and nothing is sent to it."""
    for names, believed in (((NAME,), OTHER), (("elsewhere.test",), AUTHORITY)):
        async with behind(ProxyServer(), tmp_path, tls=tls_for(*names), believed=believed) as stage:
            got = await stage.ask(post(CHAT))
            assert (got.status, got.reason) == (502, "upstream_unreachable")
            assert b"certificate" in got.body
            assert not stage.upstream.received
            [told] = stage.events("upstream_failed")
            assert (told["cause"], told["upstream"]) == ("tls", "up")


async def test_our_certificate_is_shown_inside(tmp_path: Path) -> None:
    theirs = issued(tmp_path / "theirs", AUTHORITY, NAME, clients=CLIENTS)
    ours = issued(tmp_path / "ours", CLIENTS, "gateway@example.com")
    async with behind(ProxyServer(), tmp_path, tls=load(theirs, "").context) as stage:
        assert (await stage.ask(post(CHAT))).status == 502
        target = stage.plane._upstreams["up"].target
        target = replace(target, cert_file=ours.certificate, key_file=ours.key)
        stage.plane.renew(ROUTES, [target], stage.plane.limits)
        assert (await stage.ask(post(CHAT))).status == 200


HOSTILE = {
    "other credentials": (
        b"HTTP/1.1 407 No\r\nproxy-authenticate: Basic\r\n\r\n",
        "407 to CONNECT: it wants",
    ),
    "forbidden": (b"HTTP/1.1 403 No\r\n\r\nno", "403 to CONNECT: it does not allow"),
    "bad gateway": (b"HTTP/1.1 502 Bad\r\ncontent-length: 3\r\n\r\nbad", "502 to CONNECT: it cannot reach"),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: http://elsewhere.test/\r\n\r\n", "302 to CONNECT"),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\n" + LET_THROUGH, "100 to CONNECT"),
    "closes": (b"", "closed the connection without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nx: ", "closed the connection without an answer"),
    "garbage": (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    "bare newlines": (b"HTTP/1.1 200 OK\n\n", "no head of an answer within"),
    "more than asked": (LET_THROUGH + b"HTTP/1.1 200 OK\r\n\r\n", "more than the head of an answer"),
    "a head that is too long": (
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
        "no head of an answer within",
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_what_a_proxy_answers_is_its_failure_and_is_told_as_one(how: str, tmp_path: Path) -> None:
    proxy = ProxyServer()
    proxy.says, said = HOSTILE[how]
    proxy.closes = "closed" in said
    async with behind(proxy, tmp_path, tls=tls_for(NAME), authorization=KNOWN) as stage:
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (502, "upstream_unreachable")
        assert b"The proxy before the upstream up lets nobody through." in got.body
        [told] = stage.events("upstream_failed")
        assert (told["cause"], told["upstream"], told["cause"] in CAUSES) == ("proxy", "up", True)
        assert f"the proxy {HERE}:{proxy.port}" in str(told["why"])
        assert said in str(told["why"])
        assert KNOWN.split()[1] not in str(stage.logged) + got.body.decode()
        assert stage.tally.upstream_failures["up", "proxy"] == 1
        assert (len(stage.counters.releases), stage.upstream.received) == (1, [])
        await eventually(lambda: proxy.open == 0)
        proxy.says, proxy.closes = None, False
        assert (await stage.ask(post(CHAT))).body == ANSWER


async def test_a_head_without_end_is_read_to_its_maximum(tmp_path: Path) -> None:
    proxy = ProxyServer()
    proxy.says, proxy.endless = b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 1000
    async with behind(proxy, tmp_path) as stage:
        assert (await stage.ask(post(CHAT))).status == 502
        await eventually(lambda: proxy.open == 0)


@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 200 OK\r\n"])
async def test_a_silent_proxy_is_given_up_in_the_time_of_a_connection(half: bytes, tmp_path: Path) -> None:
    proxy = ProxyServer()
    proxy.silent, proxy.says = not half, half or None
    async with behind(proxy, tmp_path, upstream_connect_s=0.1) as stage:
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (504, "upstream_timeout")
        [told] = stage.events("upstream_failed")
        assert told["cause"] == "proxy"
        assert "did not let us through in time" in str(told["why"])
        await eventually(lambda: proxy.open == 0)


async def test_an_upstream_that_is_silent_inside_is_no_failure_of_the_proxy(tmp_path: Path) -> None:
    """The proxy lets us through, and then nobody speaks TLS; one that was slow is asked again."""
    for seconds in (0.5, 2.0, 8.0, 32.0):
        cause = await cause_of_silence_inside(tmp_path, seconds)
        if cause != "proxy":
            break
    assert cause == "connect_timeout"


async def cause_of_silence_inside(folder: Path, connect_s: float) -> object:
    proxy = ProxyServer()
    proxy.says = LET_THROUGH
    async with behind(proxy, folder, tls=tls_for(NAME), upstream_connect_s=connect_s) as stage:
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (504, "upstream_timeout")
        [told] = stage.events("upstream_failed")
        await eventually(lambda: proxy.open == 0)
        return told["cause"]


async def test_a_name_in_another_alphabet_is_asked_for_as_it_is_looked_up(tmp_path: Path) -> None:
    proxy = ProxyServer({"xn--bcher-kva.test": HERE})
    async with behind(proxy, tmp_path) as stage:
        port, target = stage.upstream.port, stage.plane._upstreams["up"].target
        for host, status in (("bücher.test", 200), (f"{'ü' * 70}.test", 502)):
            named = replace(target, base_url=f"http://{host}:{port}")
            stage.plane.renew(ROUTES, [named], stage.plane.limits)
            assert (await stage.ask(post(CHAT))).status == status
        assert proxy.targets == [f"xn--bcher-kva.test:{port}"]
        assert stage.events("upstream_failed")[0]["cause"] == "unresolved"


async def test_a_proxy_that_is_not_there_is_named(tmp_path: Path) -> None:
    proxy = ProxyServer()
    async with behind(proxy, tmp_path) as stage:
        await proxy.stop()
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (502, "upstream_unreachable")
        [told] = stage.events("upstream_failed")
        assert (told["cause"], "ECONNREFUSED" in str(told["why"])) == ("proxy", True)


async def test_a_proxy_whose_certificate_is_not_trusted_learns_nothing(tmp_path: Path) -> None:
    proxy = ProxyServer(wants=KNOWN)
    async with behind(
        proxy, tmp_path, tls=tls_for(NAME), secured=True, authorization=KNOWN, believed=OTHER
    ) as stage:
        assert (await stage.ask(post(CHAT))).status == 502
        assert stage.events("upstream_failed")[0]["cause"] == "proxy"
        assert not proxy.asked


async def test_the_first_connection_after_another_authority_believes_it(tmp_path: Path) -> None:
    proxy = ProxyServer()
    async with behind(proxy, tmp_path, tls=tls_for(NAME), secured=True, believed=OTHER) as stage:
        write(tmp_path / "ca.pem", AUTHORITY.cert_pem.bytes())
        assert (await stage.ask(post(CHAT))).body == ANSWER


@pytest.mark.parametrize("via", [None, Proxy(HERE, 9)])
async def test_a_look_at_a_name_that_cannot_be_written_says_so(via: Proxy | None) -> None:
    with pytest.raises(OSError, match="the name cannot be resolved"):
        await reach(UpstreamTarget("up", f"http://{'ü' * 70}.test", via=via), 30)


async def test_a_look_at_an_upstream_goes_through_its_proxy_too(tmp_path: Path) -> None:
    """As `tollkeeper doctor` has it."""
    proxy = ProxyServer()
    async with behind(proxy, tmp_path, tls=tls_for(NAME)) as stage:
        target: UpstreamTarget = stage.plane._upstreams["up"].target
        assert await reach(target, 30) is not None
        assert proxy.targets == [f"{NAME}:{stage.upstream.port}"]
        proxy.says = HOSTILE["forbidden"][0]
        with pytest.raises(OSError, match="403 to CONNECT"):
            await reach(target, 30)
        proxy.silent = True
        with pytest.raises(TimeoutError, match="did not let us through in time"):
            await reach(target, 0.1)
