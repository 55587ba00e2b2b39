"""Webhooks through the API: an allowed address, a secret shown once, what came of the last message."""

from __future__ import annotations

import pytest

from gateway.core.accounts.administration import Actor, Command
from gateway.core.alerts.events.registry import selectable_events
from gateway.counters.redis.keys import partition_of
from gateway.errors import Unprocessable
from persistence import engine
from persistence.store import Store
from tests.admin.conftest import Api

URL = "https://example.com/hook"


async def test_webhook_secret_is_shown_once_and_never_in_the_audit_log(api: Api) -> None:
    made = await api.make("webhooks", url=URL, events=["quota.80", "invoice.finalized"])
    assert made["secret"].startswith("whsec_")
    assert api.rows("select secret from webhook") == [(made["secret"],)]
    shown = (await api.get(f"webhooks/{made['id']}")).json
    assert "secret" not in shown
    assert (shown["url"], shown["events"], shown["enabled"], shown["last_delivery"]) == (
        URL, ["quota.80", "invoice.finalized"], True, None,
    )  # fmt: skip
    off = await api.patch(f"webhooks/{made['id']}", {"enabled": False, "events": []})
    assert (off.json["enabled"], off.json["events"]) == (False, [])
    assert api.rows("select count(*) from audit_log where position('whsec' in after::text) > 0") == [(0,)]
    assert (await api.delete(f"webhooks/{made['id']}")).status == 204
    assert (await api.get(f"webhooks/{made['id']}")).status == 404


async def test_webhook_can_belong_to_a_single_organization_or_to_all(api: Api) -> None:
    one = await api.make("organizations", name="Acme")
    made = await api.make("webhooks", url=URL, organization_id=one["id"])
    everybody = await api.make("webhooks", url=URL)
    assert (made["organization_id"], everybody["organization_id"]) == (one["id"], None)
    listed = (await api.get(f"webhooks?organization_id={one['id']}")).json["items"]
    assert [row["id"] for row in listed] == [made["id"]]
    mail = {"url": "mailto:ada@example.com,ops@example.org"}
    assert (await api.patch(f"webhooks/{everybody['id']}", mail)).json["url"] == mail["url"]
    assert (await api.patch(f"webhooks/{made['id']}", {"organization_id": None})).json[
        "organization_id"
    ] is None


async def test_webhook_with_an_unknown_event_is_refused_listing_the_known_events(api: Api) -> None:
    refused = await api.post("webhooks", {"url": URL, "events": ["quota.99"]})
    [error] = refused.json["errors"]
    assert all(event in error["message"] for event in selectable_events()), error


async def test_webhook_to_a_mail_address_is_refused_without_a_configured_mail_server(
    admin_database: str,
) -> None:
    pool = engine.create(admin_database)
    store, actor = Store(pool, partition_of), Actor("builtin:admin", "admin")
    values = {"url": "mailto:ada@example.com"}
    with pytest.raises(Unprocessable) as caught:
        await store.write(Command("webhooks", "create", actor, "", dict, None, values))
    await pool.dispose()
    [(field, said)] = caught.value.errors
    assert (field, "TOLLKEEPER_SMTP_URL is not set" in said) == ("url", True)


async def test_webhook_deliveries_can_be_listed_and_a_webhook_shows_the_last_delivery(api: Api) -> None:
    made = await api.make("webhooks", url=URL)
    assert (await api.post(f"webhooks/{made['id']}/test")).status == 200
    [waiting] = (await api.get(f"webhook-deliveries?webhook_id={made['id']}")).json["items"]
    assert (waiting["event"], waiting["state"], waiting["attempts"]) == ("webhook.test", "pending", 0)
    api.rows("update webhook_delivery set attempts = 1, response_status = 500, error = 'Oops'")
    api.rows(
        "insert into webhook_delivery (webhook_id, event, occasion)"
        " select id, 'webhook.test', 'w' || n from webhook, generate_series(2, 100) as n"
    )
    assert (await api.post(f"webhooks/{made['id']}/test")).status == 409
    api.rows("delete from webhook_delivery where attempts = 0")
    last = (await api.get(f"webhooks/{made['id']}")).json["last_delivery"]
    assert (last["event"], last["state"], last["response_status"], last["error"]) == (
        "webhook.test", "pending", 500, "Oops",
    )  # fmt: skip
    assert (await api.get("webhook-deliveries?state=delivered")).json["items"] == []
