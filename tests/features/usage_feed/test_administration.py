"""Usage feeds over the Admin API: how it does, and what is done about what was refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.conftest import Api, migrated  # noqa: F401  # the database of the Admin API is another one

FILL = """
insert into usage_outbox (
       feed_id, place, name, kind, state, error, at, organization_id, tenant_id, api_key_id, user_id,
       project_id,
       service_id, model, currency, requests, input, cache_read, cache_write, output, reasoning, tokens,
       credits, units, cost)
select (select max(id) from usage_feed), n, 'e' || n, 'use',
       case when n <= 3 then 'failed' else 'waiting' end,
       case when n <= 3 then 'no such metric' end, now(), %s, 1, 0, 0, -1,
       1, 'm', 'USD', 1, 2, 0, 0, 3, 0, 5, 0, 1, -1500000001
  from generate_series(1, 5) as n returning id"""


@pytest.fixture
async def fed(api: Api) -> Api:
    """The Admin API of a feed that pauses, with two events that wait and three that were refused."""
    owner = await api.make("organizations", name="Acme")
    api.rows(
        "insert into usage_feed (service, waiting_max, sent, attempts, paused_until, error)"
        " values ('lago', 1000, 7, 2, now() + interval '1 hour', 'it answers 503') returning id"
    )
    api.rows(FILL, owner["id"])
    return api


async def listed(api: Api, asked: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.get(f"usage-events{asked}")).json["items"]
    return found


async def test_usage_feed_page_shows_the_state_of_the_feed_and_the_refused_events(fed: Api) -> None:
    [feed] = (await fed.get("usage-feeds")).json["items"]
    assert {name: feed[name] for name in ("service", "sent", "attempts", "error", "ended_at")} == {
        "service": "lago", "sent": 7, "attempts": 2, "error": "it answers 503", "ended_at": None,
    }  # fmt: skip
    assert "leased_by" not in feed
    failed = await listed(fed, "?state=failed")
    assert {each["name"] for each in failed} == {"e1", "e2", "e3"}
    first = failed[0]
    assert (first["cost"], first["tokens"], first["error"]) == ("-1.500000001", 5, "no such metric")
    assert [first[name] for name in ("user_id", "api_key_id", "project_id", "request_id")] == [None] * 4


async def test_resume_action_ends_the_pause_of_a_usage_feed(fed: Api) -> None:
    [feed] = (await fed.get("usage-feeds")).json["items"]
    resumed = await fed.post(f"usage-feeds/{feed['id']}/resume")
    assert (resumed.status, resumed.json["paused_until"], resumed.json["attempts"]) == (200, None, 0)


async def test_failed_usage_event_can_be_canceled_or_retried_behind_the_waiting_events(fed: Api) -> None:
    one, two, three = sorted(await listed(fed, "?state=failed"), key=lambda each: str(each["name"]))
    again = await fed.post(f"usage-events/{one['id']}/retry")
    assert (again.json["state"], again.json["error"]) == ("waiting", None)
    assert fed.rows("select name from usage_outbox where state = 'waiting' order by place") == [
        ("e4",),
        ("e5",),
        ("e1",),
    ]
    assert (await fed.post(f"usage-events/{one['id']}/retry")).status == 409
    assert (await fed.post(f"usage-events/{one['id']}/cancel")).status == 409
    assert (await fed.post(f"usage-events/{two['id']}/cancel")).json["state"] == "canceled"
    assert (await fed.post(f"usage-events/{two['id']}/retry")).json["state"] == "waiting"
    assert (await fed.post(f"usage-events/{three['id']}/cancel")).json["state"] == "canceled"
    # All again are those that failed: what a person left stays.
    [feed] = (await fed.get("usage-feeds")).json["items"]
    assert (await fed.post(f"usage-feeds/{feed['id']}/retry")).status == 200
    assert [each["name"] for each in await listed(fed, "?state=canceled")] == ["e3"]


async def test_retry_action_of_a_usage_feed_queues_all_failed_events_again(fed: Api) -> None:
    [feed] = (await fed.get("usage-feeds")).json["items"]
    assert (await fed.post(f"usage-feeds/{feed['id']}/retry")).status == 200
    assert len(await listed(fed, "?state=waiting")) == 5


async def test_ended_usage_feed_can_be_resumed_and_retried_until_an_administrator_drops_the_feed(
    fed: Api,
) -> None:
    [feed] = (await fed.get("usage-feeds")).json["items"]
    assert (feed["waiting"], feed["failed"], feed["dropped"]) == (2, 3, None)
    where = f"usage-feeds/{feed['id']}"
    open_one = await fed.post(f"{where}/drop")
    assert (open_one.status, "end it first" in str(open_one.json)) == (409, True)
    assert (await fed.post(f"{where}/end")).json["ended_at"] is not None
    assert (await fed.post(f"{where}/end")).status == 409
    assert (await fed.post(f"{where}/resume")).json["paused_until"] is None
    assert (await fed.post(f"{where}/retry")).json["waiting"] == 5
    one = min(int(str(each["id"])) for each in await listed(fed, "?state=waiting"))
    dropped = (await fed.post(f"{where}/drop")).json
    assert (dropped["dropped_at"] is not None, dropped["dropped"]) == (True, 5)
    for verb in ("end", "resume", "retry", "drop"):
        assert (await fed.post(f"{where}/{verb}")).status == 409
    assert await listed(fed) == []
    assert (await fed.post(f"usage-events/{one}/retry")).status == 404
    [(before,)] = fed.rows("select before from audit_log where resource = 'usage-feeds' and action = 'drop'")
    assert (before["id"], before["waiting"]) == (feed["id"], 5)


async def test_new_usage_feed_can_be_opened_only_after_the_former_feed_has_ended(fed: Api) -> None:
    [feed] = (await fed.get("usage-feeds")).json["items"]
    where = f"usage-feeds/{feed['id']}"
    assert (await fed.post(f"{where}/begin")).status == 409
    await fed.post(f"{where}/end")
    again = (await fed.post(f"{where}/begin")).json
    assert again["id"] != feed["id"]
    assert {name: again[name] for name in ("service", "waiting_max", "ended_at", "sent")} == {
        "service": "lago", "waiting_max": 1000, "ended_at": None, "sent": 0,
    }  # fmt: skip
    assert (await fed.post(f"{where}/begin")).status == 409
    # What waits is of the feed it was used in.
    assert {each["feed_id"] for each in await listed(fed)} == {feed["id"]}
    assert await listed(fed, f"?feed_id={again['id']}") == []
