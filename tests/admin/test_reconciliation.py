"""The last comparison, and a new one on demand."""

from __future__ import annotations

from tests.admin.conftest import READONLY, Api


async def test_runs_and_the_last_result(api: Api) -> None:
    before = await api.get("reconciliation")
    assert (before.status, before.json["items"], before.json["checked"]) == (200, [], 0)
    assert (before.json["started_at"], before.json["finished_at"]) == (None, None)
    found = await api.post("reconciliation")
    assert (found.status, found.json["checked"], found.json["drift_tokens"]) == (200, 3, 7)
    assert found.json["items"] == []
    assert (await api.get("reconciliation")).json == found.json
    assert (await api.post("reconciliation", {"repair": True})).json["drift_tokens"] == 0


async def test_all_rows_are_asked_where_somebody_says_so(api: Api) -> None:
    assert (await api.post("reconciliation", {"whole": False})).json["items"] == []
    [item] = (await api.post("reconciliation", {"whole": True})).json["items"]
    assert (item["account"], item["kind"], item["seq"]) == ("tenant:1", "contradiction", 4)


async def test_who_may_run_it(api: Api) -> None:
    reader = api.acting_as(READONLY)
    assert (await reader.post("reconciliation")).status == 403
    assert (await api.acting_as(None).post("reconciliation")).status == 401
    assert (await api.acting_as(None).get("reconciliation")).status == 401


async def test_wrong_fields(api: Api) -> None:
    for sent in ({"repair": "yes"}, {"whole": "all"}, {"fix": True}):
        assert (await api.post("reconciliation", sent)).status == 422


async def test_a_run_is_done_once_under_a_key(api: Api) -> None:
    first = await api.post("reconciliation", {"repair": True}, key="k")
    again = await api.post("reconciliation", {"repair": True}, key="k")
    assert (again.status, again.json, again.headers["Idempotent-Replayed"]) == (200, first.json, "true")
    assert (await api.post("reconciliation", key="k")).status == 409
    assert (await api.post("reconciliation", {"repair": 1}, key="k")).status == 409
    assert (await api.post("reconciliation", {"repair": True})).json != first.json


async def test_a_run_under_a_key_may_take_its_ten_minutes(api: Api) -> None:
    await api.post("reconciliation", key="k")
    api.rows("update idempotency_key set status = null, created_at = now() - interval '9 minutes'")
    assert (await api.post("reconciliation", key="k")).status == 409


async def test_a_run_that_came_to_no_end_is_done_again(api: Api) -> None:
    first = await api.post("reconciliation", key="k")
    api.rows("update idempotency_key set status = null, created_at = now() - interval '11 minutes'")
    again = await api.post("reconciliation", key="k")
    assert "Idempotent-Replayed" not in again.headers
    assert again.json["started_at"] > first.json["started_at"]
    assert (await api.post("reconciliation", key="k")).json == again.json


async def test_one_run_at_a_time_and_a_key_that_was_refused_is_free(api: Api) -> None:
    api.counters.comparing = True
    refused = await api.post("reconciliation", key="k")
    assert (refused.status, refused.json["type"][-10:]) == (503, "overloaded")
    api.counters.comparing = False
    assert (await api.post("reconciliation", key="k")).status == 200
