"""TLS to Redis goes by its files as they are when a connection is made."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from gateway.core.credentials import TlsFiles
from gateway.counters.redis.address import ask_apart, parse_url
from gateway.errors import CountersUnavailable, SettingError


class Pair:
    """Files of an authority, and of our certificate and its key, that are put in others' place."""

    def __init__(self, folder: Path) -> None:
        self.files = TlsFiles(*(str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")))

    def put(self, authority: bytes, certificate: trustme.LeafCert) -> None:
        chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
        for path, content in zip(
            (self.files.authority, self.files.certificate, self.files.key),
            (authority, chain, certificate.private_key_pem.bytes()),
            strict=True,
        ):
            Path(path + ".new").write_bytes(content)
            Path(path + ".new").replace(path)


@asynccontextmanager
async def answering(authority: trustme.CA, clients: trustme.CA) -> AsyncIterator[int]:
    """Who answers PING as Redis does, to clients with a certificate of their authority alone; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"PING\r\n")
            writer.write(b"+PONG\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    clients.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Heard(logging.Handler):
    """What a logger says, whatever else listens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    one, logger = Heard(), logging.getLogger("tollkeeper.redis")
    monkeypatch.setattr(logger, "handlers", [one])
    monkeypatch.setattr(logger, "disabled", False)
    return one


async def test_a_new_connection_is_made_with_what_the_files_hold_now(tmp_path: Path, heard: Heard) -> None:
    before, after, pair = trustme.CA(), trustme.CA(), Pair(tmp_path)
    pair.put(before.cert_pem.bytes(), before.issue_cert("gateway"))
    address = parse_url("rediss://localhost:1/0", pair.files)

    async def asked(port: int) -> object:
        return await ask_apart(address, ("localhost", port), ("", ""), ("PING",))

    async with answering(before, before) as old, answering(after, after) as new:
        assert await asked(old)
        with pytest.raises(CountersUnavailable):
            await asked(new)
        pair.put(after.cert_pem.bytes(), after.issue_cert("gateway"))
        assert await asked(new)
        with pytest.raises(CountersUnavailable):
            await asked(old)

        Path(pair.files.key).write_bytes(b"no key")
        heard.said.clear()
        assert await asked(new)
        assert await asked(new)
        assert heard.said == ["TLS to Redis is kept as it was"], "told once"
        pair.put(before.cert_pem.bytes(), before.issue_cert("gateway"))
        assert await asked(old)


def test_what_cannot_be_used_at_the_start_stops_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.put(b"nothing", trustme.CA().issue_cert("gateway"))
    with pytest.raises(SettingError, match=r"TOLLKEEPER_REDIS_CA_FILE=.*cannot be used: not PEM"):
        parse_url("rediss://localhost:1/0", pair.files)
