"""Files of TLS to an upstream are read again once they change; what is broken changes nothing."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.core.calls.routes import UpstreamTarget
from gateway.http.upstream.pool import LOOK_S, DialAddress, place_of
from tests.certificates import issued, write

AUTHORITIES = (trustme.CA(), trustme.CA())


class Told:
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
    told = Told()
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
    told = Told()
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
    place = DialAddress(UpstreamTarget("up", "http://localhost:8000"), Told())
    assert place.at(0.0) == place_of(UpstreamTarget("up", "http://localhost:8000"))
    assert not place.secured
