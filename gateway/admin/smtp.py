"""Hands mails to the operator's mail server, by aiosmtplib.

A server on another machine is reached by verified TLS only, and no other server gets credentials. Errors of
the server are returned, never raised.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from aiosmtplib import SMTP, SMTPException, SMTPRecipientRefused, SMTPResponseException

from gateway.core.alerts.messages import DeliveryOutcome, Mail
from gateway.core.alerts.words import plain
from gateway.core.network import literal
from gateway.errors import SettingError
from gateway.files import require_regular

# Includes the wait for a free connection; shorter than the claim on a delivery.
TIMEOUT_S: Final = 30.0
CONNECTIONS_MAX: Final = 4
PORTS: Final = {"smtp": 587, "smtps": 465}


class MailServer(NamedTuple):
    """A mail server; `tls` is "first" (from the first byte), "starttls", or "none"."""

    host: str
    port: int
    tls: str
    user: str = ""
    password: str = ""


def read_url(url: str) -> MailServer:
    """Parse `smtp://user:password@host:port` or `smtps://`; only a local server may go without TLS."""
    parts = urlsplit(url)
    host, credentials = parts.hostname or "", (unquote(parts.username or ""), unquote(parts.password or ""))
    address = literal(host)
    is_here = host == "localhost" if address is None else address.is_loopback
    plain_port_tls = "none" if is_here else "starttls"
    tls = "first" if parts.scheme == "smtps" else plain_port_tls
    return MailServer(host, parts.port or PORTS[parts.scheme], tls, *credentials)


class SmtpMailer:
    """Sends mails from `sender` by the current server; `context` returns the TLS context."""

    def __init__(
        self, where: Callable[[], MailServer], sender: str, context: Callable[[], ssl.SSLContext],
        *, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.sender = sender
        self._where = where
        self._context = context
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    @classmethod
    def of(cls, url: Callable[[], str], sender: str, ca_file: str) -> SmtpMailer | None:
        """Return the mailer of the settings, or None; raise `SettingError` if the authorities cannot be read.

        The file of authorities is read for each mail, so a new one applies at once.
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

    async def send(self, mail: Mail) -> DeliveryOutcome:
        """Try to send a mail once; it is delivered if at least one recipient is accepted."""
        try:
            async with asyncio.timeout(self._timeout_s), self._turns:
                return await self._hand_over(mail)
        except SMTPResponseException as said:
            return DeliveryOutcome(said.code if said.code > 0 else None, _describe_error(said))
        except (SMTPException, OSError, TimeoutError, ValueError) as error:
            return DeliveryOutcome(None, plain(error) or type(error).__name__)

    async def _hand_over(self, mail: Mail) -> DeliveryOutcome:
        """Send a mail by the configured server, over TLS and with a login where these are configured."""
        where = self._where()
        context = None if where.tls == "none" else await asyncio.to_thread(self._context)
        server = SMTP(
            hostname=where.host, port=where.port, use_tls=where.tls == "first", start_tls=False,
            tls_context=context, local_hostname="localhost", timeout=None,
        )  # fmt: skip
        try:
            await server.connect()
            server.local_hostname = _host_name(server)
            if where.tls == "starttls":
                await server.starttls(timeout=self._timeout_s)
            if where.user:
                await server.login(where.user, where.password)
            return await _deliver(server, mail)
        finally:
            server.close()


def _verified_by(ca_file: str) -> ssl.SSLContext:
    """Return a TLS context with the authorities of a file, or the system's; raise `OSError` if unreadable."""
    require_regular(ca_file)
    return ssl.create_default_context(cafile=ca_file or None)


async def _deliver(server: SMTP, mail: Mail) -> DeliveryOutcome:
    """Send a mail to those recipients that the server accepts."""
    await server.mail(mail.sender)
    refused = [
        refusal for address in mail.recipients if (refusal := await _refusal(server, address)) is not None
    ]
    if len(refused) == len(mail.recipients):
        raise refused[-1]
    reply = await server.data(mail.content)
    with suppress(SMTPException):  # the server has the mail, so no answer is needed
        assert server.protocol is not None
        server.protocol.write(b"QUIT\r\n")
    if not refused:
        return DeliveryOutcome(reply.code)
    several = f"{len(refused)} of {len(mail.recipients)} recipients refused"
    return DeliveryOutcome(reply.code, plain(f"{several}: {_describe_error(refused[-1])}"))


async def _refusal(server: SMTP, address: str) -> SMTPRecipientRefused | None:
    try:
        await server.rcpt(address)
    except SMTPRecipientRefused as refused:
        return refused
    return None


def _host_name(server: SMTP) -> str:
    """Return the name for EHLO: our IP address, which does not disclose the machine's name."""
    address = ip_address(server.get_transport_info("sockname")[0].partition("%")[0])
    return f"[{'IPv6:' if address.version == 6 else ''}{address}]"


def _describe_error(error: SMTPResponseException) -> str:
    status = f"{error.code} " if error.code > 0 else ""
    return plain(f"{status}{error.message.splitlines()[-1] if error.message else ''}")
