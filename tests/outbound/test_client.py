"""Calls on somebody's behalf: public addresses only, no redirects, whatever happens is told."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from aiohttp.test_utils import TestServer

from gateway.core.network import Proxies, Proxy
from gateway.outbound.client import ANSWER_BYTES_MAX
from gateway.outbound.posting import READ_BYTES_MAX, Outgoing
from tests.proxy_server import HERE, ProxyServer

# What the system's own resolver, or a client before it, takes for this machine.
OTHER_SPELLINGS = (
    "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.0.0.1.", "localhost.", "[::127.0.0.1]",
    "[::1%25lo]", "0",
)  # fmt: skip

PUBLIC = "93.184.215.14"
KNOWN = "Basic dXM6ZXI="

SEEN: web.AppKey[list[tuple[str, dict[str, str], bytes]]] = web.AppKey("seen", list)


@pytest.fixture
async def server() -> web.Application:
    app = web.Application()
    app[SEEN] = []

    async def take(request: web.Request) -> web.Response:
        request.app[SEEN].append((request.path, dict(request.headers), await request.read()))
        return web.Response(status=204)

    async def elsewhere(request: web.Request) -> web.Response:
        request.app[SEEN].append((request.path, {}, b""))
        raise web.HTTPFound("/take")

    async def break_off(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    app.router.add_post("/take", take)
    app.router.add_post("/elsewhere", elsewhere)
    app.router.add_post("/break", break_off)
    return app


async def test_a_message_arrives_as_it_was_signed(server: web.Application) -> None:
    async with TestServer(server) as there, aclosing(Outgoing(private=True)) as outgoing:
        outcome = await outgoing.send(str(there.make_url("/take")), {"webhook-id": "msg_1"}, b'{"a":1}')
        assert (outcome.status, outcome.delivered) == (204, True)
        [(path, fields, body)] = server[SEEN]
        assert (path, fields["webhook-id"], body) == ("/take", "msg_1", b'{"a":1}')


def test_a_post_reads_as_much_of_an_answer_as_the_client() -> None:
    assert READ_BYTES_MAX == ANSWER_BYTES_MAX


async def test_redirects_are_not_followed(server: web.Application) -> None:
    async with TestServer(server) as there, aclosing(Outgoing(private=True)) as outgoing:
        outcome = await outgoing.send(str(there.make_url("/elsewhere")), {}, b"{}")
        assert (outcome.status, outcome.delivered) == (302, False)
        assert [path for path, _, _ in server[SEEN]] == ["/elsewhere"]


async def test_what_goes_wrong_is_told(server: web.Application) -> None:
    async with TestServer(server) as there, aclosing(Outgoing(private=True)) as outgoing:
        broken = await outgoing.send(str(there.make_url("/break")), {}, b"{}")
        assert (broken.status, broken.delivered) == (None, False)
        assert broken.error
        gone = str(there.make_url("/take"))
    async with aclosing(Outgoing(private=True)) as outgoing:
        assert (await outgoing.send(gone, {}, b"{}")).error


async def test_private_addresses_are_never_reached(
    server: web.Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither written out nor behind a name, and not even a connection is made."""

    async def rebound(
        self: ThreadedResolver, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in ("93.184.215.14", "127.0.0.1")
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", rebound)
    async with TestServer(server) as there, aclosing(Outgoing(private=False)) as outgoing:
        for url in (
            str(there.make_url("/take")),
            f"https://127.0.0.1:{there.port}/take",
            f"https://[::ffff:127.0.0.1]:{there.port}/take",
            f"https://rebound.example:{there.port}/take",
            *(f"https://{host}:{there.port}/take" for host in OTHER_SPELLINGS),
        ):
            outcome = await outgoing.send(url, {}, b"{}")
            assert outcome.status is None, url
            said = outcome.error or ""
            assert said.startswith("the URL must ") or "stands for a private address" in said, outcome
        await asyncio.sleep(0)
        assert server[SEEN] == []


async def test_a_message_goes_through_a_proxy_which_knows_the_name(server: web.Application) -> None:
    async with TestServer(server) as there, ProxyServer({"hooks.test": HERE}, wants=KNOWN) as proxy:
        proxies = Proxies(http=Proxy(HERE, proxy.port, authorization=KNOWN), exempt=(HERE,))
        async with aclosing(Outgoing(private=True, proxies=lambda: proxies)) as outgoing:
            url = f"http://hooks.test:{there.port}/take"
            assert (await outgoing.send(url, {"webhook-id": "msg_1"}, b"{}")).delivered
            [(_, fields, _)] = server[SEEN]
            assert (fields["Host"], "Proxy-Authorization" in fields) == (f"hooks.test:{there.port}", False)
            assert proxy.targets == [f"hooks.test:{there.port}"]
            assert (await outgoing.send(str(there.make_url("/take")), {}, b"{}")).delivered
            assert len(proxy.asked) == 1
            proxy.wants = "Basic b3RoZXI="
            refused = await outgoing.send(url, {}, b"{}")
        assert (refused.status, refused.delivered) == (None, False)
        assert "407 to CONNECT: it wants other credentials" in (refused.error or "")
        assert KNOWN.split()[1] not in (refused.error or "")


async def test_another_proxy_is_gone_by_from_the_next_message_on(server: web.Application) -> None:
    async with (
        TestServer(server) as there,
        ProxyServer({"hooks.test": HERE}) as first,
        ProxyServer({"hooks.test": HERE}, wants=KNOWN) as second,
    ):
        now = Proxies(http=Proxy(HERE, first.port))
        async with aclosing(Outgoing(private=True, proxies=lambda: now)) as outgoing:
            url = f"http://hooks.test:{there.port}/take"
            assert (await outgoing.send(url, {}, b"{}")).delivered
            now = Proxies(http=Proxy(HERE, second.port))
            assert "407 to CONNECT" in ((await outgoing.send(url, {}, b"{}")).error or "")
            now = Proxies(http=Proxy(HERE, second.port, authorization=KNOWN))
            assert (await outgoing.send(url, {}, b"{}")).delivered
            now = Proxies()
            assert (await outgoing.send(str(there.make_url("/take")), {}, b"{}")).delivered
        assert (len(first.targets), len(server[SEEN])) == (1, 3)


@asynccontextmanager
async def over_tls(server: web.Application, context: ssl.SSLContext) -> AsyncIterator[TestServer]:
    there = TestServer(server, scheme="https")
    await there.start_server(ssl=context)
    try:
        yield there
    finally:
        await there.close()


async def test_a_proxy_is_asked_for_the_address_that_was_checked(
    server: web.Application, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it would take the name for is no matter; of what stands for a private address it never hears."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    found = {"hooks.example": ["2606:2800::1", PUBLIC], "rebound.example": [PUBLIC, "10.0.0.1"]}

    async def resolve(
        self: ThreadedResolver, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in found[host]
        ]

    monkeypatch.setattr(ThreadedResolver, "resolve", resolve)
    # To the proxy the names stand for this machine, and so does the address.
    names = {PUBLIC: HERE} | dict.fromkeys(found, HERE)
    async with ProxyServer(names) as proxy, over_tls(server, context) as there:
        proxies = Proxies(https=Proxy(HERE, proxy.port))
        async with aclosing(Outgoing(private=False, proxies=lambda: proxies)) as outgoing:
            answer = await outgoing.send(f"https://hooks.example:{there.port}/take", {}, b"{}")
            assert (answer.status, answer.error) == (204, None)
            assert proxy.targets == [f"{PUBLIC}:{there.port}"]
            assert server[SEEN][0][1]["Host"] == f"hooks.example:{there.port}"
            for url in (
                f"https://rebound.example:{there.port}/take",
                f"https://{HERE}:{there.port}/take",
                f"https://[::ffff:10.0.0.1]:{there.port}/take",
                *(f"https://{host}:{there.port}/take" for host in OTHER_SPELLINGS),
            ):
                assert (await outgoing.send(url, {}, b"{}")).status is None, url
            assert (len(proxy.asked), len(server[SEEN])) == (1, 1)
