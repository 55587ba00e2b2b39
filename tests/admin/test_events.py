"""Events: what is taken in, what is known already, and why others are refused, each alone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from gateway.core.accounts.administration import Claim, Row
from gateway.core.billing.events import AGE_DAYS_MAX, AMOUNT_MAX, EVENTS_MAX, request_of
from gateway.errors import StoreUnavailable
from persistence.store import Store
from tests.admin.conftest import Answer, Api, api_of
from tests.connections import connected
from tests.in_turn import in_turn


def event(subject: str, /, **over: Any) -> dict[str, Any]:
    usual = {
        "specversion": "1.0", "type": "use", "source": "importer", "id": str(uuid4()), "subject": subject,
        "time": datetime.now(UTC).isoformat(), "data": {"service": "chat", "usage": {"output": 7}},
    }  # fmt: skip
    return {name: value for name, value in {**usual, **over}.items() if value is not None}


async def tenant(api: Api, name: str = "Main") -> Any:
    plan = await api.make("token-plans", name=f"p {name}", total_amount=1000)
    return await api.make("tenants", name=name, plan_id=plan["id"])


def waiting(api: Api) -> list[tuple[Any, ...]]:
    return api.rows("select id, payload from control_write where verb = 'use' order by position")


async def test_accepted_usage_event_is_stored_and_queued_for_charging_under_the_same_request_id(
    api: Api,
) -> None:
    made = await tenant(api)
    sent = event(f"tenant:{made['id']}", data={"service": "chat", "usage": {"input": 3, "output": 4}})
    answer = await api.post("events", sent)
    assert (answer.status, answer.json) == (200, {"accepted": 1, "duplicates": 0, "rejected": []})
    [row] = (await api.get("events")).json["items"]
    assert (row["event_id"], row["tenant_id"], row["late_tokens"]) == (sent["id"], made["id"], 0)
    assert row["actor"] == "builtin:admin"
    assert row["request_id"] == str(request_of("importer", sent["id"]))
    [(write_id, payload)] = waiting(api)
    assert str(write_id) == row["request_id"]
    assert (payload["tokens"], payload["weighed"], payload["counts_tokens"]) == (7, 7, True)
    assert (await api.get(f"events/{row['id']}")).json == row
    [(after,)] = api.rows("select after from audit_log where resource = 'events'")
    assert after == {"accepted": 1, "duplicates": 0, "rejected": []}


async def test_usage_events_delivered_again_count_as_duplicates_even_when_concurrent(api: Api) -> None:
    made = await tenant(api)
    sent = [event(f"tenant:{made['id']}") for _ in range(5)]
    answers = await asyncio.gather(*(api.post("events", sent) for _ in range(4)))
    assert sum(answer.json["accepted"] for answer in answers) == 5
    assert sum(answer.json["duplicates"] for answer in answers) == 15
    assert len(waiting(api)) == 5


async def test_usage_event_still_counts_as_a_duplicate_after_the_stored_event_is_deleted(api: Api) -> None:
    """Whoever told it names it, whomever it is of."""
    made, other = await tenant(api), await tenant(api, "Other")
    sent = event(f"tenant:{made['id']}")
    assert (await api.post("events", sent)).json["accepted"] == 1
    with connected(api.url) as owner:
        owner.execute("SET LOCAL session_replication_role = replica")
        owner.execute("DELETE FROM use_event")
    for subject in (made, other):
        again = {**sent, "subject": f"tenant:{subject['id']}"}
        assert (await api.post("events", again)).json == {"accepted": 0, "duplicates": 1, "rejected": []}
    assert len(waiting(api)) == 1


async def test_concurrent_usage_event_batches_in_opposite_orders_do_not_deadlock(api: Api) -> None:
    made = await tenant(api)
    first, second = (event(f"tenant:{made['id']}", id=name) for name in ("a", "b"))
    [(service,)] = api.rows("select id from service where key = 'chat'")
    take = (
        "insert into use_event (source, event_id, type, organization_id, tenant_id, service_id, request_id,"
        " used_at, late_tokens, actor) values ('importer', %s, 'use', %s, %s, %s, %s, now(), 0, 'other')"
    )
    whose = (made["organization_id"], made["id"], service)
    with connected(api.url) as other:
        other.execute("set lock_timeout = '60s'")
        other.execute(take, ("a", *whose, uuid4()))
        ours = asyncio.create_task(api.post("events", [second, first]))
        await api.until_locked()
        # Ours waits for the first of them by name, and has nothing that this one would wait for.
        other.execute("set lock_timeout = '1ms'")
        other.execute(take, ("b", *whose, uuid4()))
        other.commit()
    assert (await ours).json == {"accepted": 0, "duplicates": 2, "rejected": []}


async def test_usage_events_are_queued_for_charging_in_the_order_of_the_batch(api: Api) -> None:
    made = await tenant(api)
    sent = [event(f"tenant:{made['id']}", id=name) for name in ("c", "a", "b")]
    assert (await api.post("events", sent)).json["accepted"] == 3
    assert [str(write_id) for write_id, _ in waiting(api)] == [
        str(request_of("importer", name)) for name in ("c", "a", "b")
    ]


class Silent(Store):
    """PostgreSQL that is away as soon as a write is committed."""

    async def refusal(self, intents: Sequence[str]) -> str | None:
        raise StoreUnavailable

    async def finish(self, claim: Claim, body: Row, status: int) -> None:
        raise StoreUnavailable


async def test_stored_usage_events_are_answered_202_even_if_postgres_fails_after_the_commit(
    api: Api, keeper_database: str
) -> None:
    made = await tenant(api)
    sent = [event(f"tenant:{made['id']}")]
    async with api_of(api.url, keeper_database, store=Silent) as silent:
        first, second = [await silent.post("events", sent, key="once") for _ in range(2)]
        assert (first.status, first.json["accepted"]) == (202, 1)
        # The key is kept with the write: who asks again too soon is told that the first one may still run.
        assert second.status == 409
    assert (await api.post("events", sent)).json == {"accepted": 0, "duplicates": 1, "rejected": []}
    assert len(waiting(api)) == 1


async def test_usage_event_is_accepted_with_202_while_the_counters_are_unreachable(api: Api) -> None:
    made = await tenant(api)
    api.counters.away = True
    answer = await api.post("events", event(f"tenant:{made['id']}"))
    assert (answer.status, answer.json["accepted"]) == (202, 1)


@pytest.fixture
async def subject(api: Api) -> str:
    return f"tenant:{(await tenant(api))['id']}"


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("specversion", {"specversion": "0.3"}),
    ("id", {"id": None}),
    ("id", {"id": ""}),
    ("source", {"source": 7}),
    ("type", {"type": None}),
    ("subject", {"subject": None}),
    ("subject", {"subject": "nobody"}),
    ("subject", {"subject": "tenant:999999"}),
    ("subject", {"subject": "organization:999999"}),
    ("subject", {"subject": "organization:None"}),
    ("subject", {"subject": "9" * 30}),
    ("time", {"time": "yesterday"}),
    ("time", {"time": "2026-01-01T00:00:00"}),
    ("time", {"time": (datetime.now(UTC) + timedelta(days=1)).isoformat()}),
    ("time", {"time": (datetime.now(UTC) - timedelta(days=AGE_DAYS_MAX + 1)).isoformat()}),
    ("time", {"time": "0001-01-01T00:00:00Z"}),
    ("datacontenttype", {"datacontenttype": "text/xml"}),
    ("", {"data_base64": "e30="}),
    ("", {"NoExtension": 1}),
    ("data", {"data": None}),
    ("data", {"data": [1]}),
    ("data", {"data": {"service": "chat"}}),
    ("data", {"data": {"service": "chat", "usage": {}}}),
    ("data.service", {"data": {"service": "nothing", "units": 1}}),
    ("data.service", {"data": {"units": 1}}),
    ("data.usage", {"data": {"service": "chat", "units": 1}}),
    ("data.units", {"data": {"service": "chat", "units": 10**30}}),
    ("data.units", {"data": {"service": "chat", "units": AMOUNT_MAX + 1}}),
    ("data.units", {"data": {"service": "chat", "units": -1}}),
    ("data.units", {"data": {"service": "chat", "units": 0}}),
    ("data.units", {"data": {"service": "chat", "units": 1.5}}),
    ("data.units", {"data": {"service": "chat", "units": "1"}}),
    ("data.units", {"data": {"service": "chat", "units": True}}),
    ("data.usage.output", {"data": {"service": "chat", "usage": {"output": -1}}}),
    ("data.usage.words", {"data": {"service": "chat", "usage": {"words": 1}}}),
    ("data.usage.output", {"data": {"service": "chat", "usage": {"output": 1, "reasoning": 2}}}),
    ("data.usage", {"data": {"service": "chat", "usage": {"input": AMOUNT_MAX, "output": AMOUNT_MAX}}}),
    ("data.tokens", {"data": {"service": "chat", "units": 1, "tokens": 1}}),
    ("data.project_id", {"data": {"service": "chat", "units": 1, "project_id": -1}}),
    ("data.user", {"data": {"service": "chat", "units": 1, "user": "x" * 129}}),
    ("data.model", {"data": {"service": "chat", "units": 1, "model": "gpt*"}}),
    ("data.model", {"data": {"service": "chat", "units": 1, "model": "gpt\u202eo4"}}),
]  # fmt: skip


async def test_bad_usage_event_in_a_batch_is_rejected_alone_with_field_and_reason(
    api: Api, subject: str
) -> None:
    good, before = [event(subject), event(subject)], len(waiting(api))
    answer = await api.post("events", [good[0], *(event(subject, **over) for _, over in WRONG), good[1]])
    assert (answer.status, answer.json["accepted"]) == (200, 2), answer.json
    found = [(each["index"], each["field"]) for each in answer.json["rejected"]]
    assert found == [(at, field) for at, (field, _) in enumerate(WRONG, 1)]
    assert all(each["reason"] for each in answer.json["rejected"])
    assert len(waiting(api)) == before + 2


async def test_usage_event_time_may_have_any_fraction_of_a_second(api: Api) -> None:
    made = await tenant(api)
    day = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    times = [f"{day}T10:00:00.{digits}Z" for digits in ("1234567", "9" * 9)]
    sent = [event(f"tenant:{made['id']}", time=one) for one in times]
    assert (await api.post("events", sent)).json["accepted"] == 2
    used = [row["used_at"] for row in (await api.get("events")).json["items"]]
    assert sorted(used) == [f"{day}T10:00:00.123456Z", f"{day}T10:00:00.999999Z"]


async def test_usage_event_in_binary_mode_is_stored_like_the_same_event_in_structured_mode(api: Api) -> None:
    made = await tenant(api, "Zoë")
    sent = event("Zoë")
    data = sent.pop("data")
    head = {f"Ce-{name}": quote(value, safe=" :+/") for name, value in sent.items()}
    head["ce-traceparent"] = "00-x"
    body = json.dumps(data).encode()
    kind = {"Content-Type": "application/json"}
    answer = await api.call("POST", "events", data=body, headers=head | kind)
    assert (answer.status, answer.json["accepted"]) == (200, 1)
    [row] = (await api.get("events")).json["items"]
    assert (row["event_id"], row["source"], row["tenant_id"]) == (sent["id"], "importer", made["id"])
    assert (await api.post("events", sent | {"data": data})).json["duplicates"] == 1
    wrong = await api.call("POST", "events", data=b"{}", headers=head | kind | {"ce-id": "other"})
    assert (wrong.status, wrong.json["errors"][0]["field"]) == (422, "0.data.service")


async def test_usage_event_data_in_base64_is_read_as_json(api: Api) -> None:
    await tenant(api)
    sent = event("Main")
    said = base64.b64encode(json.dumps(sent.pop("data")).encode()).decode()
    assert (await api.post("events", sent | {"data_base64": said})).json["accepted"] == 1
    for wrong in ("{}", base64.b64encode(b"{").decode(), 7, None):
        answer = await api.post("events", event("Main", data=None) | {"data_base64": wrong})
        assert (answer.status, "data_base64" in str(answer.json["errors"])) == (422, True)


@in_turn(
    ("data", "kind", "status"),
    [
        (b'{"specversion":"1.0","specversion":"1.0"}', "application/json", 400),
        (b'[{"data":{"units":NaN}}]', "application/json", 400),
        (b'[{"data":{"units":1e400}}]', "application/json", 422), (b"[" * 100_000, "application/json", 413),
        (b"[" * 20_000, "application/json", 400), (b"\xff\xfe[]", "application/json", 400),
        (b"7", "application/json", 400), (b"", "application/json", 400),
        (b"[]", "application/cloudevents+json", 400), (b"{}", "application/cloudevents-batch+json", 400),
        (b"[]", "text/xml", 415), (b"[]", "application/cloudevents-batch+json", 200),
        (b"[1,null,[]]", "application/cloudevents-batch+json", 422),
        (b"[" + b",".join([b"{}"] * (EVENTS_MAX + 1)) + b"]", "application/json", 422),
    ],
)  # fmt: skip
async def test_request_body_that_is_not_a_batch_of_usage_events_is_refused_whole(
    api: Api, data: bytes, kind: str, status: int
) -> None:
    answer: Answer = await api.call("POST", "events", data=data, headers={"Content-Type": kind})
    assert answer.status == status, answer.raw[:200]
    assert waiting(api) == []
    if status == 200:
        assert answer.json["accepted"] == 0


async def test_usage_event_subject_may_be_a_tenant_or_an_organization_with_a_single_tenant(api: Api) -> None:
    made = await tenant(api, "Only")
    await tenant(api, "Same")
    await tenant(api, "Same 2")
    organization = made["organization_id"]
    subjects = [f"organization:{organization}", str(made["id"]), "Only", "tenant:Only"]
    more = {"traceparent": "00-1", "dataschema": "u:1"}  # of extensions
    answer = await api.post("events", [event(each, **more) for each in subjects])
    assert answer.json == {"accepted": 4, "duplicates": 0, "rejected": []}
    await api.make("tenants", name="Second", organization_id=organization)
    answer = await api.post("events", event(f"organization:{organization}"))
    assert (answer.status, [each["field"] for each in answer.json["errors"]]) == (422, ["0.subject"])
    assert {row[0] for row in api.rows("select distinct tenant_id from use_event")} == {made["id"]}


async def test_usage_event_of_an_at_cost_service_is_priced_by_the_model_price_at_the_event_time(
    api: Api,
) -> None:
    made = await tenant(api)
    [(own,)] = api.rows("select id from business_model where meter = 'pay_per_use'")
    service = await api.make(
        "services", name="At cost", key="at-cost", credits=0, service_type="Pay-As-You-Go",
        business_model_id=own, pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    now = datetime.now(UTC)
    for days, price in ((30, "1"), (10, "2")):
        await api.make(
            "prices", model="dated", currency="USD", input=price,
            effective_from=(now - timedelta(days=days)).isoformat(),
        )  # fmt: skip
    data = {"service": service["key"], "model": "dated", "usage": {"input": 1_000_000}}
    subject = f"tenant:{made['id']}"
    sent = [event(subject, data=data, time=(now - timedelta(days=days)).isoformat()) for days in (40, 20, 5)]
    answer = await api.post("events", sent)
    assert [(each["index"], each["field"]) for each in answer.json["rejected"]] == [(0, "data.model")]
    assert [payload["units"] for _, payload in waiting(api)] == [1_000_000_000, 2_000_000_000]
    assert [payload["money"] for _, payload in waiting(api)] == [1_000_000_000, 2_000_000_000]


async def test_usage_event_is_priced_by_the_price_before_a_change_to_its_last_microsecond(api: Api) -> None:
    made = await tenant(api)
    [(own,)] = api.rows("select id from business_model where meter = 'pay_per_use'")
    service = await api.make(
        "services", name="At cost", key="at-cost", credits=0, service_type="Pay-As-You-Go",
        business_model_id=own, pricing={"at_cost": {"markup": "1"}},
    )  # fmt: skip
    change = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
    for since, price in ((change - timedelta(days=9), "1"), (change, "2")):
        sent = {"model": "dated", "currency": "USD", "input": price, "effective_from": since.isoformat()}
        await api.make("prices", **sent)
    data = {"service": service["key"], "model": "dated", "usage": {"input": 1_000_000}}
    for at in (change - timedelta(microseconds=1), change):
        reported = event(f"tenant:{made['id']}", data=data, time=at.isoformat())
        assert (await api.post("events", reported)).json["accepted"] == 1
    assert [payload["money"] for _, payload in waiting(api)] == [1_000_000_000, 2_000_000_000]
