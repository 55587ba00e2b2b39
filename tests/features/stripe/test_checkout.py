"""Customers buy credits: at the price of our record, paid at Stripe, and given once by what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from html import unescape
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin.application import build
from gateway.features.stripe.administration import mount_events
from gateway.features.stripe.service import StripeApi, StripeCheckout
from persistence import engine as engines
from tests.admin.conftest import Api, MemoryCounters, ports_over
from tests.admin.console.conftest import Person
from tests.features.stripe.stripe_server import KEY, Stripe, stripe_server
from tests.features.stripe.test_events import READ, SECRET, send

BUY = "/account/credits"


@dataclass
class Shop:
    """An organization that may buy credits at 0.01, with a fifth of tax, and where it pays for them."""

    api: Api
    stripe: Stripe
    organization: int
    persons: dict[str, Person]

    async def begin(self, count: str = "1000") -> Any:
        return await self.persons["billing"].fill("/account", BUY, credits=count)

    async def told(self, **more: Any) -> bool:
        """Stripe tells of its last session that it was paid, or something else."""
        session = {**list(self.stripe.sessions.values())[-1], "payment_status": "paid"}
        kind, secret = more.pop("kind", "checkout.session.completed"), more.pop("secret", SECRET)
        sent = {"id": more.pop("event", "evt_1"), "type": kind, "data": {"object": session | more}}
        answer = await send(self.api, sent, secret=secret)
        return bool(answer.status == 200 and answer.json["taken"])

    @property
    def given(self) -> list[Any]:
        return self.api.rows(
            "select a.credits_added, a.control_write_id is not null, i.total_amount::float8, i.payment_status"
            " from credit_addition as a left join invoice as i on i.id = a.invoice_id"
        )


@pytest.fixture
async def shop(admin_database: str, keeper_database: str) -> AsyncIterator[Shop]:
    async with shop_of(admin_database, keeper_database) as found:
        yield found


@asynccontextmanager
async def shop_of(admin_database: str, keeper_database: str) -> AsyncIterator[Shop]:
    engine, counters = engines.create(keeper_database), MemoryCounters(admin_database)
    async with stripe_server() as stripe:
        there = StripeApi(lambda: KEY, stripe.url)
        ports = replace(
            ports_over(engine, counters), routes=[partial(mount_events, READ, None)],
            checkout=StripeCheckout(there, 50, "https://console.example"),
        )  # fmt: skip
        async with TestClient(TestServer(build(ports)), cookie_jar=DummyCookieJar()) as client:
            api = Api(client, counters, admin_database, failures=ports.failures)
            made = await api.make(
                "organizations", name="Acme", credit_unit_cost="0.01", tax_rate="0.20",
                stripe_customer="cus_1", address=["1 Street"], country="GB",
            )  # fmt: skip
            persons = {}
            for role in ("billing", "operator"):
                token = await api.make("admin-tokens", name=role, role=role, organization_id=made["id"])
                persons[role] = Person(client)
                await persons[role].sign_in(token["token"])
            yield Shop(api, stripe, made["id"], persons)
        await there.aclose()
    await engine.dispose()


async def test_credits_paid_at_stripe_checkout_are_added_once_with_a_paid_invoice(shop: Shop) -> None:
    offer = (await shop.persons["billing"].open("/account")).text
    assert "$5.00" in offer
    assert "$50.00" in offer
    hidden = (await shop.persons["billing"].open("/account")).fields(BUY)
    page = await shop.persons["billing"].post(BUY, [*hidden, ("credits", "1000")])
    again = await shop.persons["billing"].post(BUY, [*hidden, ("credits", "1000")])
    assert (page.status, again.status) == (201, 201)
    assert "$12.00" in unescape(page.text)
    [session] = shop.stripe.sessions.values()
    assert (session["amount_total"], session["currency"]) == (1200, "usd")
    assert session["metadata"]["tollkeeper_organization"] == str(shop.organization)
    assert session["url"] in page.text
    assert session["url"] in again.text
    assert shop.given == []
    assert not await shop.told(payment_status="unpaid")
    kinds = ["checkout.session.async_payment_succeeded", *["checkout.session.completed"] * 3]
    told = [shop.told(event=f"evt_{n}", kind=kind) for n, kind in enumerate(kinds)]
    assert await asyncio.gather(*told) == [True] * 4
    assert shop.given == [(1000, True, 12.0, "paid")]
    # Stripe has the money: it gets no invoice to collect it again.
    assert {state for (state,) in shop.api.rows("select state from handover")} == {"canceled"}
    paid = shop.api.rows("select reference, amount::float8 from payment")
    assert paid == [(f"stripe:{session['id']}", 12.0)]
    [(actor,)] = shop.api.rows(
        "select distinct actor from audit_log where resource = 'checkouts' and action = 'take'"
    )
    assert actor == "stripe"


async def test_forged_or_mismatched_stripe_checkout_event_adds_no_credits(shop: Shop) -> None:
    await shop.begin()
    other = (await shop.api.make("organizations", name="Other"))["id"]
    [session] = shop.stripe.sessions.values()
    marks = session["metadata"]
    for wrong in (
        {"secret": "whsec_of_somebody_else"}, {"amount_total": 1}, {"currency": "eur"},
        {"metadata": {**marks, "tollkeeper_organization": str(other)}}, {"metadata": {}},
        {"metadata": {**marks, "tollkeeper_checkout": "0" * 32}}, {"payment_status": "unpaid"},
        {"kind": "checkout.session.expired"},
    ):  # fmt: skip
        assert not await shop.told(**wrong), wrong
    assert shop.given == []
    assert await shop.told()
    assert len(shop.given) == 1


async def test_credit_purchase_is_refused_without_the_billing_role_a_valid_count_or_a_unit_price(
    shop: Shop,
) -> None:
    operator = shop.persons["operator"]
    page = (await operator.open("/account")).text
    assert BUY not in page
    assert "To buy credits, write to" in page
    token = dict((await shop.persons["billing"].open("/account")).fields(BUY))["form_token"]
    assert (await operator.post(BUY, {"credits": "1000", "form_token": token})).status in {400, 403}
    for count in ("499", "5001", "0", "-1", "1e3", "1000.5", "9" * 40):
        refused = await shop.begin(count)
        assert refused.status == 422, count
    assert shop.stripe.sessions == {}
    await shop.api.patch(f"organizations/{shop.organization}", {"credit_unit_cost": None})
    assert BUY not in (await shop.persons["billing"].open("/account")).text
