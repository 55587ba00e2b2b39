"""A message of a raise request has a link to decide it by, good for that alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from gateway.background.timed.deliveries import WebhookDeliveries
from gateway.core.alerts.messages import DeliveryOutcome
from gateway.features.raise_requests.signed import link_of
from persistence import engine as engines
from persistence.keeper.news import Deliveries
from tests.admin.conftest import PEPPERS, Api
from tests.admin.test_roles import holder_of
from tests.features.raise_requests.test_raise_requests import asked, budget

CONSOLE = "https://console.example"
CHAT = "https://chat.example.com/in"


class Chats:
    """Webhooks of others, by URL what came last."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, Any]] = {}

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        self.told[url] = json.loads(body)
        return DeliveryOutcome(204)


class Links:
    """An organization with a budget, whose webhooks are told at once."""

    def __init__(
        self, api: Api, here: dict[str, Any], own: Api, deliveries: WebhookDeliveries, chats: Chats
    ) -> None:
        self.api, self.here, self.own, self.chats = api, here, own, chats
        self._deliveries = deliveries

    async def told(self, url: str = CHAT) -> dict[str, Any]:
        while some := await self._deliveries.claim():
            for each in some:
                await self._deliveries.attempt(each)
        return self.chats.told[url]

    async def link(self) -> str:
        """Ask for more; the link that the chat gets."""
        assert (await asked(self.own, self.here, "20")).status == 201
        found = str((await self.told())["data"]["link"])
        assert found.startswith(f"{CONSOLE}/raise/")
        return found.removeprefix(CONSOLE)

    async def opened(self, link: str) -> tuple[int, str]:
        async with self.api.client.get(link) as page:
            return page.status, await page.text()

    async def decided(self, link: str, decision: str) -> tuple[int, str]:
        origin = {"Origin": str(self.api.client.make_url("/")).rstrip("/")}
        async with self.api.client.post(link, data={"decision": decision}, headers=origin) as page:
            return page.status, await page.text()

    async def raised_to(self) -> object:
        return (await self.api.get(f"budgets/{self.here['id']}")).json["raised_to"]


@pytest.fixture
async def links(api: Api) -> AsyncIterator[Links]:
    here = await budget(api)
    own = await holder_of(api, "admin", here["organization_id"])
    await own.make("webhooks", url=CHAT, events=["raise.requested"])
    pool, chats = engines.create(api.url), Chats()
    waiting = Deliveries(pool, links={"raise.requested": partial(link_of, PEPPERS.digest, CONSOLE)})
    yield Links(api, here, own, WebhookDeliveries(waiting, chats, lambda: datetime.now(UTC)), chats)
    await pool.dispose()


async def test_link_in_a_raise_request_message_approves_the_request_only_once(links: Links) -> None:
    link = await links.link()
    said = links.chats.told[CHAT]
    assert (said["data"]["amount"], said["data"]["reason"]) == ("20", "release")
    assert said["text"].endswith(f"{CONSOLE}{link}")
    kept = (await links.own.get("webhook-deliveries")).json["items"]
    assert kept
    assert link not in str(kept)  # who may read what was sent decides nothing
    status, page = await links.opened(link)
    assert (status, "release" in page, await links.raised_to()) == (200, True, None)
    status, page = await links.decided(link, "approve")
    assert (status, "It is approved" in page, await links.raised_to()) == (200, True, "20")
    assert (await links.decided(link, "deny"))[0] == 409
    rows = (await links.own.get("raise-requests")).json["items"]
    hook = (await links.own.get("webhooks")).json["items"][0]["id"]
    assert [(one["status"], one["decided_by"]) for one in rows] == [("approved", f"webhook:{hook}")]
    by = (await links.own.get("audit-log?resource=raise-requests")).json["items"]
    assert f"webhook:{hook}" in {one["actor"] for one in by}


async def test_raise_request_message_and_linked_page_name_the_user_that_gets_the_raise(links: Links) -> None:
    links.here = await budget(links.api, each="user", name="each engineer",
                              organization_id=links.here["organization_id"])  # fmt: skip
    assert (await asked(links.own, links.here, who="ada")).status == 201
    said = await links.told()
    assert (said["data"]["account"], said["data"]["each"]) == ("ada", "user")
    assert "“each engineer” of user ada (" in said["text"]
    link = str(said["data"]["link"]).removeprefix(CONSOLE)
    assert "<dt>Whose</dt><dd>user ada</dd>" in (await links.opened(link))[1]
    assert (await links.decided(link, "approve"))[0] == 200
    assert links.api.rows("SELECT name FROM budget_raise") == [("ada",)]
    assert await links.raised_to() is None


async def test_link_in_a_raise_request_message_can_deny_the_request(links: Links) -> None:
    status, page = await links.decided(await links.link(), "deny")
    assert (status, "It is denied" in page, await links.raised_to()) == (200, True, None)


async def test_forged_or_altered_raise_request_link_is_404(links: Links) -> None:
    link = await links.link()
    first, hook, ends, mac = link.rpartition("/")[2].split("-")
    there = await budget(links.api, name="theirs")
    other = (await asked(links.api, there, "20")).json["id"]
    forged = "0" * len(mac)
    for token in (
        f"{other}-{hook}-{ends}-{mac}", f"{first}-{int(hook) + 1}-{ends}-{mac}",
        f"{first}-{hook}-{int(ends) + 1}-{mac}", f"{first}-{hook}-{ends}-{forged}",
        f"{first}-{hook}-{ends}-{mac}0", f"0{first}-{hook}-{ends}-{mac}", "x",
    ):  # fmt: skip
        assert (await links.opened(f"/raise/{token}"))[0] == 404
        assert (await links.decided(f"/raise/{token}", "approve"))[0] == 404
    assert (await links.decided(link, "delete"))[0] == 404
    assert await links.raised_to() is None


@pytest.mark.parametrize("change", [{"enabled": False}, {"url": "https://chat.example.com/other"}, None])
async def test_raise_request_link_is_404_after_the_webhook_is_disabled_deleted_or_given_another_url(
    links: Links, change: dict[str, object] | None
) -> None:
    link = await links.link()
    hook = (await links.own.get("webhooks")).json["items"][0]["id"]
    done = await links.own.call("DELETE" if change is None else "PATCH", f"webhooks/{hook}", change)
    assert done.status in {200, 204}
    assert (await links.decided(link, "approve"))[0] == 404
    assert await links.raised_to() is None


async def test_raise_request_link_older_than_a_week_is_404(links: Links) -> None:
    await links.own.get("webhooks")
    assert (await asked(links.own, links.here, "20")).status == 201
    links.api.rows("UPDATE webhook_delivery SET created_at = now() - interval '8 days' RETURNING id")
    link = str((await links.told())["data"]["link"]).removeprefix(CONSOLE)
    assert (await links.decided(link, "approve"))[0] == 404
