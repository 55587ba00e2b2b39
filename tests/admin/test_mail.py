"""Mail goes to addresses that agreed, or that staff wrote, and nobody makes our server send much of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.core.alerts.messages import (
    ASKED_OF_MAILBOX_MAX,
    ASKED_OF_ORGANIZATION_MAX,
    HOURLY_OF_ORGANIZATION_MAX,
    HOURLY_OF_WEBHOOK_MAX,
    DeliveryOutcome,
    Mail,
    mailbox_of,
)
from persistence import engine
from persistence.keeper.news import NOBODY_AGREED, Deliveries
from tests.admin.conftest import Api
from tests.admin.test_roles import holder_of
from tests.background.timed.test_webhooks import Receivers

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


async def test_addresses_of_an_organization_get_mail_once_they_agreed_and_until_they_end_it(
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


async def test_staff_write_addresses_that_get_mail_at_once_until_others_write_them(world: World) -> None:
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


async def test_files_of_configuration_ask_as_well(world: World) -> None:
    objects = {"webhooks": [{"url": f"mailto:{ADA}"}]}
    planned = await world.own.post("configuration", {"objects": objects, "trial": True})
    assert (planned.status, await world.mailed()) == (200, {}), planned.json
    done = await world.own.post("configuration", {"objects": objects, "digest": planned.json["digest"]})
    assert (done.status, await world.mailed()) == (200, {ADA: 1})


async def test_nobody_is_mailed_much_whatever_people_of_an_organization_do(world: World) -> None:
    hooks = []
    for number in range(40):
        to = [
            f"victim+{number}@example.com",
            f"v{number}@example.com",
            "victim@example.com",
            "VICTIM@example.com",
        ]
        answer = await world.own.post("webhooks", {"url": f"mailto:{to[number % 4]}"})
        hooks += [answer.json["id"]] if answer.status == 201 else []
    for hook in hooks * 3:
        await world.own.post(f"webhooks/{hook}/test")
        await world.own.patch(f"webhooks/{hook}", {"url": "mailto:other@example.com"})
        await world.own.patch(f"webhooks/{hook}", {"url": "mailto:victim+x@example.com"})
    mailed = await world.mailed()
    assert mailed.total() <= ASKED_OF_ORGANIZATION_MAX
    by_mailbox = Counter[str]()
    for address, count in mailed.items():
        by_mailbox[mailbox_of(address)] += count
    assert max(by_mailbox.values()) <= ASKED_OF_MAILBOX_MAX


async def test_messages_of_an_hour_are_bounded_and_those_to_try_it_count(world: World) -> None:
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


async def test_a_link_is_good_for_a_while_and_made_up_ones_never(world: World) -> None:
    hook = await world.hook(ADA)
    await world.mailed()
    link = world.links()[ADA]
    world.api.rows("UPDATE mail_consent SET expires_at = now() RETURNING address")
    for over in (link, "/mail/" + "A" * 43, "/mail/x"):
        assert await world.say(over, "yes") == 404
        async with world.api.client.get(over) as page:
            assert page.status == 404
    assert await world.unconfirmed(hook) == [ADA]
