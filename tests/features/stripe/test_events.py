"""What Stripe tells: believed by its signature, once, in time; whoever else asks there gets nothing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
import stripe
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy.exc import SQLAlchemyError

from gateway.admin.application import build
from gateway.features.stripe.administration import LookUp, Reader, mount_events
from gateway.features.stripe.handover import CollectionStatus, PaymentReturn
from gateway.features.stripe.service import TOLERANCE_S, StripeEvents
from persistence import engine as engines
from persistence.stripe.queue import forget
from tests.admin.conftest import Answer, Api, MemoryCounters, ports_over
from tests.admin.test_payments import finalized
from tests.connections import connected
from tests.in_turn import in_turn

SECRET = "whsec_of_the_tests_only"
READ = StripeEvents(lambda: SECRET).read


@pytest.fixture
async def told(admin_database: str, keeper_database: str) -> AsyncIterator[Api]:
    async with told_by(admin_database, keeper_database) as api:
        yield api


@asynccontextmanager
async def told_by(
    admin_database: str,
    keeper_database: str,
    look_up: LookUp | None = None,
    read: Reader | None = READ,
) -> AsyncIterator[Api]:
    """The Admin API of a keeper that Stripe tells something."""
    engine, counters = engines.create(keeper_database), MemoryCounters(admin_database)
    ports = replace(ports_over(engine, counters), routes=[partial(mount_events, read, look_up)])
    async with TestClient(TestServer(build(ports)), cookie_jar=DummyCookieJar()) as client:
        yield Api(client, counters, admin_database, failures=ports.failures)
    await engine.dispose()


def event(name: str, **of_invoice: Any) -> dict[str, Any]:
    invoice = {
        "id": "in_1", "object": "invoice", "status": "paid", "currency": "usd", "total": 6960,
        "amount_due": 6960, "amount_paid": 6960, "amount_remaining": 0,
        "pre_payment_credit_notes_amount": 0, "metadata": {},
    }  # fmt: skip
    return {"id": name, "object": "event", "type": "invoice.paid", "data": {"object": invoice | of_invoice}}


async def send(
    api: Api, sent: Any, *, age_s: float = 0, secret: str = SECRET, header: str | None = None
) -> Answer:
    body = sent if isinstance(sent, str) else json.dumps(sent)
    signed = stripe.WebhookSignature.generate_signature_header(body, secret, int(time.time() - age_s))
    headers = {"Stripe-Signature": signed if header is None else header}
    return await api.acting_as(None).call("POST", "/stripe/events", data=body.encode(), headers=headers)


async def handed(api: Api) -> dict[str, Any]:
    """An invoice of 69.60 that Stripe knows as in_1."""
    made = await finalized(api, stripe_customer="cus_1")
    api.rows("update handover set remote = 'in_1', state = 'done', done_at = now()")
    return made


async def test_stripe_invoice_paid_event_records_the_payment_once(told: Api) -> None:
    made = await handed(told)
    assert (await send(told, event("evt_1"))).json == {"taken": True}
    assert (await send(told, event("evt_1"))).json == {"taken": True}
    now = (await told.get(f"invoices/{made['id']}")).json
    assert (now["payment_status"], now["amount_paid"]) == ("paid", "69.60")
    [payment] = (await told.get("payments")).json["items"]
    assert (payment["reference"], payment["amount"]) == ("stripe:evt_1", "69.60")
    [kept] = (await told.get("handover-events?name=evt_1")).json["items"]
    assert (kept["amount"], kept["remains"], kept["invoice_id"]) == ("69.60", None, made["id"])
    [(actor, role)] = told.rows(
        "select actor, role from audit_log where resource = 'handover-events' limit 1"
    )
    assert (actor, role) == ("stripe", "billing")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"secret": "whsec_of_somebody_else"}, "not Stripe's"),
        ({"age_s": TOLERANCE_S + 60}, "too old"),
        ({"age_s": -TOLERANCE_S - 60}, "of the future"),
        ({"header": ""}, "not Stripe's"),
        ({"header": "t=1,v0=00"}, "not Stripe's"),
        ({"header": "nonsense"}, "not Stripe's"),
    ],
)
async def test_stripe_event_with_a_wrong_or_old_signature_is_401_and_counted_in_metrics(
    told: Api, how: dict[str, Any], said: str
) -> None:
    await handed(told)
    before = told.failures.counts["unknown"]
    refused = await send(told, event("evt_1"), **how)
    assert (refused.status, said in refused.json["detail"]) == (401, True)
    assert told.failures.counts["unknown"] == before + 1
    assert told.rows("select id from handover_event") == []


async def test_stripe_event_with_a_changed_byte_is_401(told: Api) -> None:
    await handed(told)
    body = json.dumps(event("evt_1"))
    signed = stripe.WebhookSignature.generate_signature_header(body, SECRET, int(time.time()))
    refused = await send(told, body.replace("6960", "6961"), header=signed)
    assert refused.status == 401


@in_turn(
    "body",
    [
        "{}",
        "[]",
        "nothing",
        '{"data": 1}',
        '{"data": {"object": {"object": "invoice"}}}',
        "[" * 50_000,
        json.dumps(event("evt_1")).replace("6960", "Infinity"),
    ],
)
async def test_signed_request_body_that_is_no_stripe_event_is_400(told: Api, body: str) -> None:
    assert (await send(told, body)).status == 400


async def test_stripe_event_about_an_unknown_object_is_answered_and_not_stored(told: Api) -> None:
    await handed(told)
    other = {
        "id": "evt_2",
        "type": "customer.created",
        "data": {"object": {"object": "customer", "id": "cus_9"}},
    }
    assert (await send(told, other)).json == {"taken": False}
    assert (await send(told, event("evt_3", id="in_9"))).json == {"taken": False}
    assert told.rows("select id from handover_event") == []


async def test_stripe_payment_event_in_another_currency_records_no_payment_and_stores_the_reason(
    told: Api,
) -> None:
    await handed(told)
    await send(told, event("evt_1", currency="jpy"))
    [kept] = (await told.get("handover-events")).json["items"]
    assert (kept["amount"], kept["remains"]) == ("0", "JPY 6960 came in for an invoice in USD.")
    assert (await told.get("payments")).json["items"] == []


@pytest.mark.parametrize(
    ("kind", "about"),
    [("charge.refunded", "charge"), ("refund.failed", "refund"), ("charge.dispute.closed", "dispute")],
)
async def test_stripe_refund_event_is_checked_at_stripe_or_answered_503_without_an_api_key(
    admin_database: str, keeper_database: str, kind: str, about: str
) -> None:
    asked: list[PaymentReturn] = []

    async def look_up(told: PaymentReturn) -> Sequence[CollectionStatus]:
        asked.append(told)
        back = CollectionStatus(
            told.name, kind, "in_1", "", "USD", Decimal("69.60"), given_back=Decimal("9.60")
        )
        return [replace(back, name="evt_1:in_9", remote_id="in_9"), back]

    money = {"object": about, "id": "x_1", "payment_intent": "pi_1"}
    sent = {"id": "evt_1", "type": kind, "data": {"object": money}}
    async with told_by(admin_database, keeper_database) as told:
        made = await handed(told)
        refused = await send(told, sent)
        assert (refused.status, "STRIPE_API_KEY" in refused.json["detail"]) == (503, True)
        assert told.failures.counts["unknown"] == 0
    async with told_by(admin_database, keeper_database, look_up) as told:
        assert (await send(told, sent)).json == {"taken": True}
        now = (await told.get(f"invoices/{made['id']}")).json
        assert (now["payment_status"], now["amount_paid"], now["amount_due"]) == ("open", "60.00", "9.60")
        for other in ({**money, "payment_intent": None}, {**money, "object": "payout"}):
            assert (await send(told, {**sent, "data": {"object": other}})).json == {"taken": False}
    assert asked == [PaymentReturn("evt_1", kind, "pi_1")]


async def test_stripe_events_route_is_404_without_a_webhook_secret(
    admin_database: str, keeper_database: str
) -> None:
    async with told_by(admin_database, keeper_database, read=None) as deaf:
        assert (await send(deaf, event("evt_1"))).status == 404


@in_turn("customer", ["", "cus 1", "cus/1", "x" * 256, 7])
async def test_malformed_stripe_customer_id_of_an_organization_is_refused(api: Api, customer: Any) -> None:
    refused = await api.post("organizations", {"name": "Acme", "stripe_customer": customer})
    assert (refused.status, refused.json["errors"][0]["field"]) == (422, "stripe_customer")


async def test_organization_token_may_not_change_the_stripe_customer_of_the_organization(api: Api) -> None:
    mine = await api.make("organizations", name="Acme", stripe_customer="cus_1")
    made = await api.make("admin-tokens", name="theirs", role="billing", organization_id=mine["id"])
    theirs = api.acting_as(made["token"])
    where = f"organizations/{mine['id']}"
    assert (await theirs.patch(where, {"stripe_customer": "cus_2"})).status == 403
    assert (await theirs.patch(where, {"country": "DE"})).status == 200


async def test_transfer_of_an_invoice_to_stripe_can_be_listed_canceled_and_retried(api: Api) -> None:
    made = await finalized(api, stripe_customer="cus_1")
    [row] = (await api.get(f"handovers?invoice_id={made['id']}")).json["items"]
    assert (row["kind"], row["state"], row["customer"], row["remote"]) == (
        "invoice",
        "waiting",
        "cus_1",
        None,
    )
    assert (await api.post(f"handovers/{row['id']}/retry")).status == 409
    assert (await api.post(f"handovers/{row['id']}/cancel")).json["state"] == "canceled"
    again = await api.post(f"handovers/{row['id']}/retry")
    assert (again.status, again.json["state"], again.json["done_at"]) == (200, "waiting", None)
    assert (await api.post(f"invoices/{made['id']}/hand-over")).status == 409


async def test_received_stripe_events_are_deleted_only_after_the_retention_days(
    told: Api, keeper_database: str
) -> None:
    await handed(told)
    for name in ("evt_1", "evt_2"):
        await send(told, event(name))
    at = "update handover_event set created_at = now() - make_interval(days => %s) where name = %s"
    with connected(told.url, autocommit=True) as owner:
        owner.execute("alter table handover_event disable trigger append_only")
        for days, name in ((401, "evt_1"), (34, "evt_2")):
            owner.execute(at, (days, name))
        owner.execute("alter table handover_event enable trigger append_only")
    engine = engines.create(keeper_database)
    assert await forget(engine, 400) == 1
    assert await forget(engine, 400, at_once=1) == 0
    # The table itself lets go of none that Stripe may tell again.
    with pytest.raises(SQLAlchemyError, match="DELETE refused"):
        await forget(engine, 30)
    await engine.dispose()
    assert [each["name"] for each in (await told.get("handover-events")).json["items"]] == ["evt_2"]


async def test_organization_token_may_not_cancel_the_transfer_of_an_invoice_to_stripe(api: Api) -> None:
    made = await finalized(api, stripe_customer="cus_1")
    [row] = (await api.get(f"handovers?invoice_id={made['id']}")).json["items"]
    terms = {"role": "billing", "organization_id": made["organization_id"]}
    theirs = api.acting_as((await api.make("admin-tokens", name="theirs", **terms))["token"])
    ours = api.acting_as((await api.make("admin-tokens", name="ours", role="billing"))["token"])
    refused = await theirs.post(f"handovers/{row['id']}/cancel")
    assert (refused.status, "takes a token of all" in refused.json["detail"]) == (403, True)
    assert (await theirs.get(f"handovers/{row['id']}")).json["state"] == "waiting"
    assert (await ours.post(f"handovers/{row['id']}/cancel")).json["state"] == "canceled"
