"""Mails handed to a real server: under TLS, with credentials, bounded, and whatever it says is told."""

from __future__ import annotations

import asyncio
import base64
import email
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.admin.smtp import MailServer, SmtpMailer, read_url
from gateway.core.alerts.messages import Delivery, Mail, mail_of
from gateway.errors import SettingError
from tests.mail_server import FakeMailServer

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)
FROM = "tollkeeper@example.com"
HOST = "127.0.0.1"


@dataclass
class Place:
    """Where servers are: a name of its own that stands for this machine, and its authority."""

    ca_file: str
    context: ssl.SSLContext

    @asynccontextmanager
    async def open(self, *, tls: bool = False, **said: Any) -> AsyncIterator[FakeMailServer]:
        async with FakeMailServer(self.context, **said).listening(tls=tls) as server:
            yield server

    def mail_server(self, server: FakeMailServer, tls: str = "starttls", **how: Any) -> SmtpMailer:
        context = ssl.create_default_context(cafile=self.ca_file)
        credentials = () if tls == "none" else ("user", "p@ss")
        where = MailServer(HOST, server.port, tls, *credentials)
        return SmtpMailer(lambda: where, FROM, lambda: context, **how)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return Place(str(ca_file), context)


def mail(*recipients: str) -> Mail:
    url = "mailto:" + ",".join(recipients or ("a@example.com",))
    return mail_of(Delivery(7, url, "", "webhook.test", {"webhook_id": 3}, NOW, 1), FROM, NOW)


async def test_a_mail_goes_out_under_tls_with_credentials(place: Place) -> None:
    async with place.open() as server:
        outcome = await place.mail_server(server).send(mail("a@example.com", "b@example.org"))
    assert (outcome.status, outcome.error, outcome.delivered) == (250, None, True)
    assert server.tls
    shown = base64.b64encode(b"\0user\0p@ss").decode()
    assert server.said[:2] == ["EHLO [127.0.0.1]", "STARTTLS"]
    assert [line for line in server.said[2:] if line != "QUIT"] == [
        "EHLO [127.0.0.1]", f"AUTH PLAIN {shown}", f"MAIL FROM:<{FROM}>", "RCPT TO:<a@example.com>",
        "RCPT TO:<b@example.org>", "DATA",
    ]  # fmt: skip
    [sent] = server.mails
    read = email.message_from_bytes(sent, policy=default)
    assert (read["subject"], read["to"]) == ("[Tollkeeper] A test", "a@example.com, b@example.org")


async def test_a_server_that_wants_tls_from_the_first_byte_and_a_login(place: Place) -> None:
    async with place.open(tls=True, offers=("AUTH LOGIN",)) as server:
        outcome = await place.mail_server(server, "first").send(mail())
    assert outcome.delivered, outcome
    assert server.said[1:3] == ["AUTH LOGIN dXNlcg==", "cEBzcw=="]


async def test_without_starttls_nothing_is_said(place: Place) -> None:
    async with place.open(offers=("AUTH PLAIN",)) as server:
        outcome = await place.mail_server(server).send(mail())
    assert (outcome.status, outcome.delivered) == (None, False)
    assert "STARTTLS" in (outcome.error or "")
    assert server.said == ["EHLO [127.0.0.1]"]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("smtp://user:p%40ss@mail.example", MailServer("mail.example", 587, "starttls", "user", "p@ss")),
        ("smtps://mail.example", MailServer("mail.example", 465, "first")),
        ("smtp://10.0.0.1:25", MailServer("10.0.0.1", 25, "starttls")),
        ("smtp://localhost:25", MailServer("localhost", 25, "none")),
        ("smtp://[::1]:25", MailServer("::1", 25, "none")),
        ("smtp://localhost.example:25", MailServer("localhost.example", 25, "starttls")),
        ("smtps://localhost", MailServer("localhost", 465, "first")),
    ],
)
def test_only_a_server_on_this_machine_needs_no_tls(url: str, where: MailServer) -> None:
    assert read_url(url) == where


async def test_on_this_machine_mail_goes_without_tls(place: Place) -> None:
    async with place.open(offers=()) as server:
        outcome = await place.mail_server(server, "none").send(mail())
    assert outcome.delivered
    assert not any(line.startswith(("AUTH", "STARTTLS")) for line in server.said)


async def test_another_servers_certificate_is_refused(place: Place) -> None:
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(HOST).configure_cert(other)
    place.context = other
    async with place.open() as server:
        outcome = await place.mail_server(server).send(mail())
    assert (outcome.status, server.mails) == (None, [])
    assert "CERTIFICATE_VERIFY_FAILED" in (outcome.error or "")


async def test_another_authority_and_another_password_are_gone_by_from_the_next_mail_on(
    place: Place, tmp_path: Path
) -> None:
    async with place.open(tls=True) as server:
        now = f"smtps://user:one@{HOST}:{server.port}"
        authorities = tmp_path / "authorities.pem"
        trustme.CA().cert_pem.write_to_path(str(authorities))
        mailer = SmtpMailer.of(lambda: now, FROM, str(authorities))
        assert mailer is not None
        assert "CERTIFICATE_VERIFY_FAILED" in ((await mailer.send(mail())).error or "")
        authorities.write_bytes(Path(place.ca_file).read_bytes())
        assert (await mailer.send(mail())).delivered
        now = now.replace(":one@", ":two@")
        assert (await mailer.send(mail())).delivered
    known = [line.split()[-1] for line in server.said if line.startswith("AUTH PLAIN")]
    assert [b64decode(each).split(b"\0")[-1] for each in known] == [b"one", b"two"]


async def test_what_comes_before_tls_counts_for_nothing(place: Place) -> None:
    """An answer slipped in behind that to STARTTLS is not taken for the answer to what is asked under TLS."""
    async with place.open(injected=b"250-evil\r\n250 AUTH LOGIN\r\n") as server:
        outcome = await place.mail_server(server).send(mail())
    assert not any(line.startswith("AUTH LOGIN") for line in server.said)
    assert outcome.delivered or outcome.status is None


@pytest.mark.parametrize(
    ("refuses", "status"),
    [
        ({"AUTH": "535 5.7.8 wrong"}, 535),
        ({"MAIL": "451 later"}, 451),
        ({"RCPT": "550 nobody"}, 550),
        ({"DATA": "554 no"}, 554),
    ],
)
async def test_what_is_refused_is_told(place: Place, refuses: dict[str, str], status: int) -> None:
    async with place.open(refuses=refuses) as server:
        outcome = await place.mail_server(server).send(mail())
    assert (outcome.status, outcome.delivered, server.mails) == (status, False, [])
    assert (outcome.error or "").startswith(str(status))


async def test_a_mail_that_some_get_is_delivered_and_says_so(place: Place) -> None:
    async with place.open(refuses={"RCPT TO:<b@": "550 nobody"}) as server:
        outcome = await place.mail_server(server).send(mail("a@example.com", "b@example.com"))
    assert (outcome.delivered, outcome.error) == (True, "1 of 2 recipients refused: 550 nobody")


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n", b"220" + b"x" * 5_000, b"220-more\r\n" * 200, b"\xff\xff\xff\xff\r\n", b""],
)
async def test_a_server_that_speaks_something_else(place: Place, said: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as sockets:
        server = FakeMailServer(port=sockets.sockets[0].getsockname()[1])
        outcome = await place.mail_server(server).send(mail())
    assert outcome.status is None
    assert outcome.error


async def test_a_server_that_says_nothing_is_left(place: Place) -> None:
    done = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as sockets:
        server = FakeMailServer(port=sockets.sockets[0].getsockname()[1])
        outcome = await place.mail_server(server, timeout_s=0.05).send(mail())
        done.set()
    assert (outcome.status, outcome.error) == (None, "TimeoutError")


async def test_lines_of_a_mail_do_not_end_it(place: Place) -> None:
    content = b"Subject: x\r\n\r\n.\r\nMAIL FROM:<evil@example.com>\r\n..\r\n"
    async with place.open() as server:
        outcome = await place.mail_server(server).send(Mail(FROM, ("a@example.com",), content))
    assert outcome.delivered
    assert server.mails == [b"Subject: x\r\n\r\n..\r\nMAIL FROM:<evil@example.com>\r\n...\r\n.\r\n"]
    assert sum(line.startswith("MAIL") for line in server.said) == 1


def test_a_file_of_authorities_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    assert SmtpMailer.of(lambda: "", "", "") is None
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(SettingError, match="TOLLKEEPER_SMTP_CA_FILE"):
            SmtpMailer.of(lambda: "smtp://h", FROM, str(tmp_path / name))
