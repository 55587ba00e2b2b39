"""Hands mails to the operator's mail server: as much of SMTP as a message goes out by.

Anything but a server on this machine is spoken to under TLS alone, verified, and credentials are shown to no
other. Whatever the server does is told, never raised. Sources: RFC 5321, 3207 (STARTTLS), 4954 (AUTH), 8314
(`smtps`).
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import LimitOverrunError, StreamReader, StreamReaderProtocol, StreamWriter
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from gateway.core.addresses import literal
from gateway.core.alerts.mail import Mail
from gateway.core.alerts.webhook import Outcome
from gateway.core.alerts.wording import plain
from gateway.errors import SettingError
from gateway.files import require_regular

# Waiting for a connection included; shorter than a delivery is anybody's.
TIMEOUT_S: Final = 30.0
CONNECTIONS_MAX: Final = 4
LINE_BYTES_MAX: Final = 2048
REPLY_LINES_MAX: Final = 100
PORTS: Final = {"smtp": 587, "smtps": 465}


class Reply(NamedTuple):
    """What the server said: a status, and the lines behind it."""

    status: int
    lines: tuple[str, ...]


class _Refused(Exception):
    """The server does not take it."""

    def __init__(self, said: Reply) -> None:
        super().__init__(f"{said.status} {said.lines[-1]}")
        self.status = said.status


class Where(NamedTuple):
    """A mail server; `tls` begins with the first byte (`first`), by `starttls`, or not at all (`none`)."""

    host: str
    port: int
    tls: str
    user: str = ""
    password: str = ""


def read_url(url: str) -> Where:
    """The server of `smtp://user:password@host:port` or `smtps://`; only one on this machine needs no TLS."""
    parts = urlsplit(url)
    host, credentials = parts.hostname or "", (unquote(parts.username or ""), unquote(parts.password or ""))
    tls = "first" if parts.scheme == "smtps" else "none" if _is_loopback(host) else "starttls"
    return Where(host, parts.port or PORTS[parts.scheme], tls, *credentials)


class Mailer:
    """Hands mails to the server of now, all from `sender`; `context` is what TLS with it is spoken by."""

    def __init__(
        self, where: Callable[[], Where], sender: str, context: Callable[[], ssl.SSLContext],
        *, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.sender = sender
        self._where = where
        self._context = context
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    @classmethod
    def of(cls, url: Callable[[], str], sender: str, ca_file: str) -> Mailer | None:
        """The one that settings name, if any; `SettingError` where the authorities cannot be read.

        The file of them is read for each mail: another one is gone by at once.
        """
        if not url():
            return None
        try:
            _verified_by(ca_file)
        except OSError as error:
            raise SettingError(
                f"TOLLKEEPER_SMTP_CA_FILE={ca_file!r} is not valid: expected a PEM file of authorities"
            ) from error
        return cls(lambda: read_url(url()), sender, partial(_verified_by, ca_file))

    async def send(self, mail: Mail) -> Outcome:
        """Hand over once; a mail that some of its recipients get is delivered."""
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                return await self._hand_over(mail)
        except _Refused as refused:
            return Outcome(refused.status, plain(refused))
        except (OSError, EOFError, TimeoutError, ValueError, LimitOverrunError) as error:
            return Outcome(None, plain(error) or type(error).__name__)

    async def _hand_over(self, mail: Mail) -> Outcome:
        where = self._where()
        context = None if where.tls == "none" else await asyncio.to_thread(self._context)
        session = await _Session.open(where.host, where.port, context if where.tls == "first" else None)
        try:
            offered = await session.greeted()
            if context is not None and where.tls == "starttls":
                offered = await self._upgraded(session, offered, context, where.host)
            if where.user:
                await session.authenticate(where.user, where.password, offered.get("AUTH", ""))
            return await session.deliver(mail)
        finally:
            session.close()

    async def _upgraded(
        self, session: _Session, offered: dict[str, str], context: ssl.SSLContext, host: str
    ) -> dict[str, str]:
        if "STARTTLS" not in offered:
            raise ConnectionError("the mail server offers no STARTTLS, and no mail goes there without")
        await session.start_tls(context, host)
        return await session.hello()


def _verified_by(ca_file: str) -> ssl.SSLContext:
    """TLS, verified by these authorities or the system's; `OSError` where they cannot be read."""
    require_regular(ca_file)
    return ssl.create_default_context(cafile=ca_file or None)


class _Session:
    """A connection: commands and their replies."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int, context: ssl.SSLContext | None) -> _Session:
        """Connect; under TLS from the first byte where there is a context."""
        return cls(*await asyncio.open_connection(host, port, ssl=context, limit=LINE_BYTES_MAX))

    async def greeted(self) -> dict[str, str]:
        """Wait for the greeting and answer it; what the server offers."""
        _expect(await self._reply(), 220)
        return await self.hello()

    async def hello(self) -> dict[str, str]:
        """Say who we are: an address, as this machine's name is nobody's business."""
        address = ip_address(self._writer.get_extra_info("sockname")[0].partition("%")[0])
        said = await self._ask(f"EHLO [{'IPv6:' if address.version == 6 else ''}{address}]", 250)
        return {word.upper(): rest for word, _, rest in (line.partition(" ") for line in said.lines[1:])}

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Go on under TLS. What came before it counts for nothing: the new reader begins empty."""
        await self._ask("STARTTLS", 220)
        loop = asyncio.get_running_loop()
        reader = StreamReader(limit=LINE_BYTES_MAX)
        protocol = StreamReaderProtocol(reader)
        transport = await loop.start_tls(self._writer.transport, protocol, context, server_hostname=host)
        assert transport is not None
        protocol.connection_made(transport)
        # A writer that nobody has any more would close what the new one writes to.
        self._under_tls = self._writer
        self._reader, self._writer = reader, StreamWriter(transport, protocol, reader, loop)

    async def authenticate(self, user: str, password: str, mechanisms: str) -> None:
        """Show credentials in the way the server takes."""
        offered = mechanisms.upper().split()
        if "PLAIN" in offered or "LOGIN" not in offered:
            await self._ask(f"AUTH PLAIN {_base64(f'{chr(0)}{user}{chr(0)}{password}')}", 235)
            return
        await self._ask("AUTH LOGIN", 334)
        await self._ask(_base64(user), 334)
        await self._ask(_base64(password), 235)

    async def deliver(self, mail: Mail) -> Outcome:
        """Send a mail to those of its recipients that the server takes."""
        await self._ask(f"MAIL FROM:<{mail.sender}>", 250)
        answers = [await self._recipient(each) for each in mail.recipients]
        refused = [each for each in answers if each is not None]
        if len(refused) == len(mail.recipients):
            raise refused[-1]
        await self._ask("DATA", 354)
        self._writer.write(_stuffed(mail.content))
        said = await self._ask(".", 250)
        self._writer.write(b"QUIT\r\n")
        if not refused:
            return Outcome(said.status)
        several = f"{len(refused)} of {len(mail.recipients)} recipients refused"
        return Outcome(said.status, plain(f"{several}: {refused[-1]}"))

    def close(self) -> None:
        """Let go; nothing is waited for."""
        self._writer.close()

    async def _recipient(self, address: str) -> _Refused | None:
        try:
            await self._ask(f"RCPT TO:<{address}>", 250, 251)
        except _Refused as refused:
            return refused
        return None

    async def _ask(self, command: str, *wanted: int) -> Reply:
        self._writer.write(command.encode() + b"\r\n")
        await self._writer.drain()
        return _expect(await self._reply(), *wanted)

    async def _reply(self) -> Reply:
        lines: list[str] = []
        while len(lines) < REPLY_LINES_MAX:
            line = await self._reader.readuntil(b"\n")
            status, last = line[:3], line[3:4] != b"-"
            if not (status.isdigit() and len(status) == 3):
                raise ConnectionError("the mail server does not speak SMTP")
            lines.append(line[4:].decode("ascii", "replace").strip())
            if last:
                return Reply(int(status), tuple(lines))
        raise ConnectionError(f"the mail server's reply has more than {REPLY_LINES_MAX} lines")


def _expect(said: Reply, *wanted: int) -> Reply:
    if said.status not in wanted:
        raise _Refused(said)
    return said


def _stuffed(content: bytes) -> bytes:
    """A message's lines as they travel, so that none of them ends it."""
    whole = content if content.endswith(b"\r\n") else content + b"\r\n"
    return (b"\r\n" + whole).replace(b"\r\n.", b"\r\n..")[2:]


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")


def _is_loopback(host: str) -> bool:
    address = literal(host)
    return host == "localhost" if address is None else address.is_loopback
