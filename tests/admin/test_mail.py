"""Mail goes to addresses that agreed, or that staff wrote, and nobody makes our server send much of it."""

from __future__ import annotations

import asyncio
import base64
import email
import re
import ssl
from base64 import b64decode
from collections import Counter
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
from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.core.alerts.messages import (
    ASKED_OF_MAILBOX_MAX,
    ASKED_OF_ORGANIZATION_MAX,
    HOURLY_OF_ORGANIZATION_MAX,
    HOURLY_OF_WEBHOOK_MAX,
    Delivery,
    DeliveryOutcome,
    Mail,
    mail_of,
    mailbox_of,
)
from gateway.errors import SettingError
from persistence import engine
from persistence.keeper.news import NOBODY_AGREED, Deliveries
from tests.admin.conftest import Api
from tests.admin.test_roles import holder_of
from tests.background.timed.test_webhooks import Receivers
from tests.mail_server import FakeMailServer

ADA, BOB = "ada@example.com", "bob@example.com"
LINK = re.compile(rb"https://console.example(/mail/[A-Za-z0-9_-]{43})")


class Mails:
    """A mail server that takes everything."""

    sender = "tollkeeper@example.com"

    def __init__(self) -> None:
        self.sent: list[Mail] = []

    async def send(self, mail: Mail) -> DeliveryOutcome:
        self.sent.append(mail)
        return DeliveryOutcome(250)

    def to(self) -> Counter[str]:
        return Counter(address for mail in self.sent for address in mail.recipients)


class World:
    """An organization's administrator, and a keeper that sends whatever waits."""

    def __init__(self, api: Api, owner: int, own: Api, deliveries: WebhookDeliveries, mails: Mails) -> None:
        self.api, self.owner, self.own = api, owner, own
        self._deliveries, self._mails = deliveries, mails

    async def mailed(self) -> Counter[str]:
        """Have all sent that is due: how many mails went to whom."""
        self._mails.sent.clear()
        while some := await self._deliveries.claim():
            for each in some:
                await self._deliveries.attempt(each)
        return self._mails.to()

    def links(self) -> dict[str, str]:
        """The links of the mails that were sent last, by whom they were sent to."""
        return {
            mail.recipients[0]: found[1].decode()
            for mail in self._mails.sent
            if (found := LINK.search(mail.content)) is not None
        }

    async def say(self, link: str, consent: str) -> int:
        origin = {"Origin": str(self.api.client.make_url("/")).rstrip("/")}
        async with self.api.client.post(link, data={"consent": consent}, headers=origin) as answer:
            return answer.status

    async def hook(self, *to: str, **fields: object) -> int:
        made = await self.own.make("webhooks", url=f"mailto:{','.join(to)}", **fields)
        return int(made["id"])

    async def unconfirmed(self, hook: int) -> list[str]:
        found: list[str] = (await self.own.get(f"webhooks/{hook}")).json["unconfirmed"]
        return found

    def errors(self) -> list[str]:
        return [
            said for (said,) in self.api.rows("SELECT DISTINCT error FROM webhook_delivery WHERE error <> ''")
        ]


@pytest.fixture
async def world(api: Api) -> AsyncIterator[World]:
    owner = (await api.make("organizations", name="Acme"))["id"]
    pool, mails = engine.create(api.url), Mails()
    waiting = Deliveries(pool, "https://console.example/mail/{}".format)
    deliveries = WebhookDeliveries(waiting, Receivers(), lambda: datetime.now(UTC), mailer=mails)
    yield World(api, owner, await holder_of(api, "admin", owner), deliveries, mails)
    await pool.dispose()


async def test_mail_address_set_by_an_organization_gets_mail_only_from_consent_until_withdrawal(
    world: World,
) -> None:
    hook = await world.hook(ADA, BOB)
    assert await world.unconfirmed(hook) == [ADA, BOB]
    assert await world.mailed() == {ADA: 1, BOB: 1}  # each is asked, and nothing else is sent
    link = world.links()[ADA]
    stored = str(
        world.api.rows(
            "SELECT c::text FROM mail_consent AS c UNION SELECT d::text FROM webhook_delivery AS d"
        )
    )
    assert link.rpartition("/")[2] not in stored
    async with world.api.client.get(link) as page:  # as mail servers do that look at links
        assert (page.status, "Acme" in await page.text(), ADA in await page.text()) == (200, True, True)
    assert await world.unconfirmed(hook) == [ADA, BOB]
    assert await world.say(link, "yes") == 200
    assert await world.unconfirmed(hook) == [BOB]
    assert (await world.own.post(f"webhooks/{hook}/test")).status == 200
    assert await world.mailed() == {ADA: 1}
    # For this organization alone, in whatever case it is written.
    assert await world.unconfirmed(await world.hook("Ada@Example.com")) == []
    other = (await world.api.make("organizations", name="Beta"))["id"]
    theirs = await (await holder_of(world.api, "admin", other)).make("webhooks", url=f"mailto:{ADA}")
    assert theirs["unconfirmed"] == [ADA]
    await world.mailed()
    assert await world.say(link, "no") == 200
    world.api.rows(
        "INSERT INTO webhook_delivery (webhook_id, event, occasion, payload)"
        f" VALUES ({hook}, 'credits.low', 'x', '{{}}') RETURNING id"
    )
    assert await world.mailed() == {}
    assert world.errors() == [NOBODY_AGREED]
    assert (await world.own.post(f"webhooks/{hook}/test")).status == 409  # they were asked


async def test_mail_address_set_by_staff_needs_no_consent_until_the_organization_changes_the_address(
    world: World,
) -> None:
    made = await world.api.make(
        "admin-tokens", name="x", role="admin", organization_id=world.owner, ours=True
    )
    for staff in (world.api, world.api.acting_as(made["token"])):
        hook = await staff.make("webhooks", url=f"mailto:{ADA}", organization_id=world.owner)
        one = f"webhooks/{hook['id']}"
        assert (await world.own.patch(one, {"events": [], "url": hook["url"]})).json["unconfirmed"] == []
        assert (await world.own.post(f"{one}/test")).status == 200
        assert await world.mailed() == {ADA: 1}
        changed = await world.own.patch(one, {"url": "mailto:eve@example.com"})
        assert changed.json["unconfirmed"] == ["eve@example.com"]
        assert (await staff.patch(one, {"url": f"mailto:{BOB}"})).json["unconfirmed"] == []
        await world.own.delete(one)


async def test_mail_address_in_an_applied_configuration_is_sent_a_consent_request(world: World) -> None:
    objects = {"webhooks": [{"url": f"mailto:{ADA}"}]}
    planned = await world.own.post("configuration", {"objects": objects, "trial": True})
    assert (planned.status, await world.mailed()) == (200, {}), planned.json
    done = await world.own.post("configuration", {"objects": objects, "digest": planned.json["digest"]})
    assert (done.status, await world.mailed()) == (200, {ADA: 1})


async def test_consent_requests_are_limited_per_organization_and_per_mailbox(world: World) -> None:
    hooks = []
    for number in range(24):
        to = [
            f"victim+{number}@example.com",
            f"v{number}@example.com",
            "victim@example.com",
            "VICTIM@example.com",
        ]
        answer = await world.own.post("webhooks", {"url": f"mailto:{to[number % 4]}"})
        hooks += [answer.json["id"]] if answer.status == 201 else []
    for hook in hooks:
        await world.own.post(f"webhooks/{hook}/test")
        await world.own.patch(f"webhooks/{hook}", {"url": "mailto:other@example.com"})
        await world.own.patch(f"webhooks/{hook}", {"url": "mailto:victim+x@example.com"})
    mailed = await world.mailed()
    assert mailed.total() <= ASKED_OF_ORGANIZATION_MAX
    by_mailbox = Counter[str]()
    for address, count in mailed.items():
        by_mailbox[mailbox_of(address)] += count
    assert max(by_mailbox.values()) <= ASKED_OF_MAILBOX_MAX


async def test_mails_per_hour_including_test_mails_are_limited_per_webhook_and_organization(
    world: World,
) -> None:
    hooks = [await world.hook(ADA, events=["credits.low"])]
    await world.mailed()
    await world.say(world.links()[ADA], "yes")
    tried = [
        (await world.own.post(f"webhooks/{hooks[0]}/test")).status for _ in range(HOURLY_OF_WEBHOOK_MAX + 5)
    ]
    assert tried.count(200) == HOURLY_OF_WEBHOOK_MAX - 1  # it asked once
    assert await world.mailed() == {ADA: tried.count(200)}
    hooks += [await world.hook(ADA) for _ in range(5)]
    world.api.rows(
        "INSERT INTO webhook_delivery (webhook_id, event, occasion, payload)"
        " SELECT id, 'credits.low', 'n' || n, '{}' FROM webhook, generate_series(1, 100) AS n RETURNING id"
    )
    mailed = (await world.mailed())[ADA]
    assert mailed >= HOURLY_OF_ORGANIZATION_MAX - HOURLY_OF_WEBHOOK_MAX
    # Some are taken at once, so that it is that much more.
    assert mailed <= HOURLY_OF_ORGANIZATION_MAX - HOURLY_OF_WEBHOOK_MAX + 32
    assert (
        max(count for (count,) in world.api.rows("SELECT hourly FROM webhook")) <= HOURLY_OF_WEBHOOK_MAX + 4
    )
    # An hour later it goes on, and webhooks that were deleted still count.
    world.api.rows("UPDATE webhook SET hour = hour - interval '1 hour' RETURNING id")
    assert (await world.mailed())[ADA] > 0
    for hook in hooks:
        await world.own.delete(f"webhooks/{hook}")
    refused = await world.own.post(f"webhooks/{await world.hook(ADA)}/test")
    assert (refused.status, "in this hour" in refused.json["detail"]) == (409, True)


async def test_expired_or_made_up_consent_link_is_404(world: World) -> None:
    hook = await world.hook(ADA)
    await world.mailed()
    link = world.links()[ADA]
    world.api.rows("UPDATE mail_consent SET expires_at = now() RETURNING address")
    for over in (link, "/mail/" + "A" * 43, "/mail/x"):
        assert await world.say(over, "yes") == 404
        async with world.api.client.get(over) as page:
            assert page.status == 404
    assert await world.unconfirmed(hook) == [ADA]


# --- smtp -------------------------------------------------------------------------------
# Mails handed to a real server: under TLS, with credentials, bounded, and whatever it says is told.


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


async def test_mail_is_sent_under_tls_with_credentials(place: Place) -> None:
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


async def test_mail_is_sent_to_a_server_with_implicit_tls_that_needs_auth_login(place: Place) -> None:
    async with place.open(tls=True, offers=("AUTH LOGIN",)) as server:
        outcome = await place.mail_server(server, "first").send(mail())
    assert outcome.delivered, outcome
    assert server.said[1:3] == ["AUTH LOGIN dXNlcg==", "cEBzcw=="]


async def test_mail_and_credentials_are_withheld_from_a_server_without_starttls(place: Place) -> None:
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
def test_smtp_url_allows_mail_without_tls_for_a_local_server_only(url: str, where: MailServer) -> None:
    assert read_url(url) == where


async def test_mail_to_a_local_server_is_sent_without_tls_or_credentials(place: Place) -> None:
    async with place.open(offers=()) as server:
        outcome = await place.mail_server(server, "none").send(mail())
    assert outcome.delivered
    assert not any(line.startswith(("AUTH", "STARTTLS")) for line in server.said)


async def test_mail_server_with_an_untrusted_certificate_is_refused(place: Place) -> None:
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(HOST).configure_cert(other)
    place.context = other
    async with place.open() as server:
        outcome = await place.mail_server(server).send(mail())
    assert (outcome.status, server.mails) == (None, [])
    assert "CERTIFICATE_VERIFY_FAILED" in (outcome.error or "")


async def test_changed_smtp_ca_file_and_password_are_used_for_the_next_mail(
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


async def test_smtp_answers_injected_before_the_tls_handshake_are_ignored(place: Place) -> None:
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
async def test_mail_refused_by_the_smtp_server_is_reported_with_status_and_text(
    place: Place, refuses: dict[str, str], status: int
) -> None:
    async with place.open(refuses=refuses) as server:
        outcome = await place.mail_server(server).send(mail())
    assert (outcome.status, outcome.delivered, server.mails) == (status, False, [])
    assert (outcome.error or "").startswith(str(status))


async def test_mail_refused_for_a_single_recipient_counts_as_delivered_and_reports_the_refusal(
    place: Place,
) -> None:
    async with place.open(refuses={"RCPT TO:<b@": "550 nobody"}) as server:
        outcome = await place.mail_server(server).send(mail("a@example.com", "b@example.com"))
    assert (outcome.delivered, outcome.error) == (True, "1 of 2 recipients refused: 550 nobody")


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 200 OK\r\n", b"220" + b"x" * 5_000, b"220-more\r\n" * 200, b"\xff\xff\xff\xff\r\n", b""],
)
async def test_mail_to_a_server_that_does_not_speak_smtp_fails_with_an_error(
    place: Place, said: bytes
) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as sockets:
        server = FakeMailServer(port=sockets.sockets[0].getsockname()[1])
        outcome = await place.mail_server(server).send(mail())
    assert outcome.status is None
    assert outcome.error


async def test_mail_to_a_server_that_never_answers_fails_after_the_timeout(place: Place) -> None:
    done = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as sockets:
        server = FakeMailServer(port=sockets.sockets[0].getsockname()[1])
        outcome = await place.mail_server(server, timeout_s=0.05).send(mail())
        done.set()
    assert (outcome.status, outcome.error) == (None, "TimeoutError")


async def test_mail_line_consisting_of_a_dot_does_not_end_the_message(place: Place) -> None:
    content = b"Subject: x\r\n\r\n.\r\nMAIL FROM:<evil@example.com>\r\n..\r\n"
    async with place.open() as server:
        outcome = await place.mail_server(server).send(Mail(FROM, ("a@example.com",), content))
    assert outcome.delivered
    assert server.mails == [b"Subject: x\r\n\r\n..\r\nMAIL FROM:<evil@example.com>\r\n...\r\n.\r\n"]
    assert sum(line.startswith("MAIL") for line in server.said) == 1


def test_start_fails_naming_the_setting_when_the_smtp_ca_file_is_unusable(tmp_path: Path) -> None:
    assert SmtpMailer.of(lambda: "", "", "") is None
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(SettingError, match="TOLLKEEPER_SMTP_CA_FILE"):
            SmtpMailer.of(lambda: "smtp://h", FROM, str(tmp_path / name))
