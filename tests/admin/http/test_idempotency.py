"""`Idempotency-Key`: one write per key and caller, whatever is sent again and whatever dies."""

from __future__ import annotations

import asyncio

from tests.admin.conftest import Api
from tests.connections import connected
from tests.in_turn import in_turn


async def test_repeated_request_with_an_idempotency_key_gets_the_first_answer(api: Api) -> None:
    first = await api.post("organizations", {"name": "x", "limits": None}, key="k1")
    again = await api.call(
        "POST",
        "organizations",
        data=b'{ "limits": null, "name": "\\u0078" }',
        headers={"Idempotency-Key": "k1"},
    )
    assert (first.status, again.status) == (201, 201)
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert "Idempotent-Replayed" not in first.headers
    assert api.rows("select count(*) from organization") == [(1,)]


async def test_answer_repeated_for_an_idempotency_key_leaves_out_the_secret(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    sent = {"tenant_id": tenant["id"], "name": "k"}
    first = await api.post("api-keys", sent, key="k1")
    again = await api.post("api-keys", sent, key="k1")
    first.json.pop("key")
    assert again.json == first.json


async def test_action_repeated_with_the_idempotency_key_is_done_once(api: Api) -> None:
    plan = await api.make("token-plans", name="p", total_amount=100)
    tenant = await api.make("tenants", name="web", plan_id=plan["id"])
    for _ in range(3):
        answer = await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 5}, key="k")
        assert (answer.status, answer.json["tokens_remaining"]) == (200, 105)


@in_turn(
    ("path", "body"), [("organizations", {"name": "y"}), ("tenants", {"name": "x"}), ("organizations", {})]
)
async def test_another_request_under_a_used_idempotency_key_is_409(
    api: Api, path: str, body: dict[str, str]
) -> None:
    await api.post("organizations", {"name": "x"}, key="k")
    assert (await api.post(path, body, key="k")).status == 409
    assert (await api.post(path, {}, key="other")).status == 422


async def test_action_with_another_body_under_a_used_idempotency_key_is_409_even_if_invalid(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    assert (await api.post(f"tenants/{tenant['id']}/recharge", {"amount": 5}, key="k")).status == 200
    assert (await api.post(f"tenants/{tenant['id']}/recharge", {"amount": -5}, key="k")).status == 409


async def test_idempotency_key_of_a_refused_request_may_be_used_again(api: Api) -> None:
    assert (await api.post("tenants", {"name": "x", "organization_id": 5}, key="k")).status == 422
    assert (await api.post("tenants", {"name": "x"}, key="k")).status == 201


async def test_idempotency_keys_of_two_callers_are_separate(api: Api) -> None:
    token = (await api.make("admin-tokens", name="ci", role="admin"))["token"]
    one = await api.post("organizations", {"name": "x"}, key="k")
    two = await api.acting_as(token).post("organizations", {"name": "y"}, key="k")
    assert one.json["id"] != two.json["id"]


@in_turn("key", ["", " ", "x" * 256, "ü", "a\tb"])
async def test_malformed_idempotency_key_is_400(api: Api, key: str) -> None:
    answer = await api.call("POST", "organizations", {"name": "x"}, headers={"Idempotency-Key": key})
    assert answer.status == 400
    assert api.rows("select count(*) from organization") == [(0,)]


async def test_concurrent_requests_with_the_same_idempotency_key_create_a_single_row(api: Api) -> None:
    answers = await asyncio.gather(*(api.post("organizations", {"name": "x"}, key="k") for _ in range(8)))
    assert {answer.status for answer in answers} <= {201, 409}
    assert len({answer.json["id"] for answer in answers if answer.status == 201}) == 1
    assert api.rows("select count(*) from organization") == [(1,)]


async def test_repeated_request_with_an_idempotency_key_is_409_while_the_first_still_runs(api: Api) -> None:
    tenant = await api.make("tenants", name="web")
    with connected(api.url) as holding:
        holding.execute("select id from tenant where id = %s for update", (tenant["id"],))
        first = asyncio.create_task(api.post(f"tenants/{tenant['id']}/reset", {}, key="k"))
        await api.until_locked()
        assert (await api.post(f"tenants/{tenant['id']}/reset", {}, key="k")).status == 409
    assert (await first).status == 200
    assert api.rows("select count(*) from control_write where verb = 'reset'") == [(1,)]


async def test_request_repeated_after_a_crash_is_answered_from_the_row_already_committed(api: Api) -> None:
    made = await api.post("organizations", {"name": "x"}, key="k")
    api.rows("update idempotency_key set status = null")
    assert (await api.post("organizations", {"name": "x"}, key="k")).status == 409
    api.rows("update idempotency_key set created_at = now() - interval '1 minute'")
    again = await api.post("organizations", {"name": "x"}, key="k")
    assert (again.status, again.json) == (201, made.json)


async def test_idempotency_key_is_forgotten_after_30_days(api: Api) -> None:
    await api.post("organizations", {"name": "x"}, key="k")
    await api.post("organizations", {"name": "x"}, key="other")
    [(days,)] = api.rows("select extract(day from expires_at - created_at)::int from idempotency_key limit 1")
    assert days == 30
    api.rows("update idempotency_key set expires_at = now()")
    again = await api.post("organizations", {"name": "x"}, key="k")
    assert "Idempotent-Replayed" not in again.headers
    assert api.rows("select key from idempotency_key") == [("k",)]
