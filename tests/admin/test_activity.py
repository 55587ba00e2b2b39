"""`GET /activity`: who is busy, by name, within bounds."""

from __future__ import annotations

from tests.admin.conftest import READONLY, Api


async def test_the_busiest_tenants_are_named(api: Api) -> None:
    one, other = [await api.make("tenants", name=name) for name in ("web", "batch <b>")]
    api.counters.busy = [
        ((one["id"], "requests"), 3),
        ((one["id"], "tokens"), 42),
        ((other["id"], "rate_limited"), 9),
        ((999_999, "requests"), 1),
        ((0, "invalid_api_key"), 5),
    ]
    report = (await api.acting_as(READONLY).get("activity")).json
    assert (report["requests"], report["tokens"], report["window_s"]) == (4, 42, 60.0)
    assert report["refused"] == {"rate_limited": 9, "invalid_api_key": 5}
    assert [(item["tenant"], item["requests"], item["refused"]) for item in report["items"]] == [
        ("batch <b>", 0, {"rate_limited": 9}),
        ("web", 3, {}),
        (None, 1, {}),
    ]
    assert len((await api.get("activity?limit=1&window=5")).json["items"]) == 1


async def test_what_is_asked_wrongly_is_named(api: Api) -> None:
    for query in ("window=4", "window=61", "limit=0", "limit=x", "limit=101"):
        answer = await api.get(f"activity?{query}")
        assert answer.status == 422
        assert [error["field"] for error in answer.json["errors"]] == [query.partition("=")[0]]


async def test_nobody_knows_while_redis_is_away(api: Api) -> None:
    api.counters.away = True
    assert (await api.get("activity")).status == 503


async def test_it_needs_a_token(api: Api) -> None:
    assert (await api.acting_as(None).get("activity")).status == 401
