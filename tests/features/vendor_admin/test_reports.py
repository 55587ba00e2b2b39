"""Usage and costs in vendors' own shapes: read by the readers of their reports, compared with each call."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest

from gateway.features.provider_report import anthropic, openai
from gateway.features.provider_report.comparison import Format
from tests.admin.conftest import READONLY, Api
from tests.admin.test_usage import calls  # noqa: F401  # a fixture is found by its name

Sums = dict[tuple[str, str], dict[str, Decimal]]
SINCE, UNTIL = datetime(2026, 3, 30, tzinfo=UTC), datetime(2026, 4, 4, tzinfo=UTC)
OF_ANTHROPIC = f"starting_at={quote('2026-03-30T00:00:00+00:00')}&ending_at=2026-04-04T00:00:00Z&limit=2"
OF_OPENAI = f"start_time={int(SINCE.timestamp())}&end_time={int(UNTIL.timestamp())}&limit=2"


async def pages(api: Api, path: str, query: str, **headers: str) -> list[dict[str, Any]]:
    """The buckets of all pages."""
    found: list[dict[str, Any]] = []
    page = ""
    while page is not None:
        answer = await api.call("GET", f"{path}?{query}" + (f"&page={page}" if page else ""), headers=headers)
        assert answer.status == 200, answer.raw
        assert answer.json["has_more"] is (answer.json["next_page"] is not None)
        found += answer.json["data"]
        page = answer.json["next_page"]
    return found


def read(of: Format, buckets: list[dict[str, Any]]) -> Sums:
    """What a reader of the vendor's own reports finds in them."""
    found: Sums = defaultdict(dict)
    for bucket in buckets:
        since, _, results = of.bucket(json.dumps(bucket).encode())
        for result in results:
            line = of.result(bytes(result))
            sums = found[since.date().isoformat(), line.model]
            for name, amount in line.amounts.items():
                sums[name] = sums.get(name, Decimal(0)) + amount
    return dict(found)


def expected(calls: list[dict[str, Any]], *names: str) -> Sums:  # noqa: F811  # the fixture's rows
    found: Sums = {}
    for call in calls:
        sums = found.setdefault((call["created_at"][:10], call["model"]), dict.fromkeys(names, Decimal(0)))
        usage = dict(call["usage"])
        usage["cache_write"] += usage["cache_write_1h"]
        told = usage | {"requests": 1, "cost": call["cost"] or "0"}
        for name in names:
            sums[name] += Decimal(told[name])
    return found


async def test_anthropic_usage_and_cost_reports_match_the_recorded_calls(
    api: Api,
    calls: list[dict[str, Any]],  # noqa: F811  # the fixture
) -> None:
    path = "/v1/organizations/usage_report/messages"
    buckets = await pages(api, path, f"{OF_ANTHROPIC}&group_by[]=model")
    assert [one["starting_at"][:10] for one in buckets] == [f"2026-03-{day}" for day in (30, 31)] + [
        f"2026-04-0{day}" for day in (1, 2, 3)
    ]
    names = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
    assert read(anthropic.FORMAT, buckets) == expected(calls, *names)
    costs = await pages(api, "/v1/organizations/cost_report", f"{OF_ANTHROPIC}&group_by[]=description")
    assert read(anthropic.FORMAT, costs) == expected(calls, "cost")


async def test_openai_usage_and_cost_reports_match_the_recorded_calls(
    api: Api,
    calls: list[dict[str, Any]],  # noqa: F811  # the fixture
) -> None:
    buckets = await pages(api, "/v1/organization/usage/completions", f"{OF_OPENAI}&group_by=model")
    names = ("requests", "input", "cache_read", "cache_write", "output")
    assert read(openai.FORMAT, buckets) == expected(calls, *names)
    costs = await pages(api, "/v1/organization/costs", f"{OF_OPENAI}&group_by[]=line_item")
    assert read(openai.FORMAT, costs) == expected(calls, "cost")
    embeddings = await pages(api, "/v1/organization/usage/embeddings", OF_OPENAI)
    assert [one["results"] for one in embeddings] == [[]] * 5


async def test_vendor_report_can_be_grouped_and_filtered_by_tenant_and_user_ids(
    api: Api,
    calls: list[dict[str, Any]],  # noqa: F811  # the fixture
) -> None:
    tenant = calls[0]["tenant_id"]
    buckets = await pages(
        api,
        "/v1/organization/usage/completions",
        f"{OF_OPENAI}&project_ids={tenant}&group_by=project_id,user_id",
    )
    results = [each for one in buckets for each in one["results"]]
    assert {each["project_id"] for each in results} == {str(tenant)}
    assert {each["user_id"] for each in results} == {"u0", "u1", "u2", "u3"}
    mine = [one for one in calls if one["tenant_id"] == tenant]
    assert sum(each["num_model_requests"] for each in results) == len(mine)
    hourly = OF_ANTHROPIC.replace("limit=2", "limit=168&bucket_width=1h")
    buckets = await pages(
        api, "/v1/organizations/usage_report/messages", f"{hourly}&models[]=m1&workspace_ids[]={tenant}"
    )
    read_ = sum(each["uncached_input_tokens"] for one in buckets for each in one["results"])
    assert read_ == sum(one["usage"]["input"] for one in mine if one["model"] == "m1")


async def test_organization_token_sees_only_use_of_the_own_organization_in_vendor_reports(
    api: Api,
    calls: list[dict[str, Any]],  # noqa: F811  # the fixture
) -> None:
    owner = calls[0]["organization_id"]
    token = (await api.make("admin-tokens", name="theirs", role="readonly", organization_id=owner))["token"]
    theirs = api.acting_as(None)
    path = "/v1/organizations/usage_report/messages"
    buckets = await pages(theirs, path, f"{OF_ANTHROPIC}&group_by[]=model", **{"x-api-key": token})
    own = [one for one in calls if one["organization_id"] == owner]
    assert 0 < len(own) < len(calls)
    assert read(anthropic.FORMAT, buckets) == expected(
        own, "input", "cache_read", "cache_write", "cache_write_1h", "output"
    )


DIFFER = "Authorization and x-api-key have 2 credentials that differ: send one."
NO_TOKEN = "A valid admin token is needed: send `Authorization: Bearer <token>`."


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, NO_TOKEN),
        ({"x-api-key": "nobody"}, NO_TOKEN),
        ({"x-api-key": "a", "authorization": "Bearer b"}, DIFFER),
        ({"x-api-key": READONLY, "authorization": "Bearer b"}, DIFFER),
    ],
)
async def test_vendor_report_without_a_valid_token_is_401_with_the_error_format_of_the_vendor(
    api: Api, headers: dict[str, str], said: str
) -> None:
    nobody = api.acting_as(None)
    answer = await nobody.call("GET", f"/v1/organization/costs?{OF_OPENAI}", headers=headers)
    wrong = {"type": "invalid_request_error", "param": None, "code": "invalid_api_key", "message": said}
    assert (answer.status, answer.json) == (401, {"error": wrong})
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    answer = await nobody.call("GET", f"/v1/organizations/cost_report?{OF_ANTHROPIC}", headers=headers)
    wrong = {"type": "authentication_error", "message": said}
    assert (answer.status, answer.json) == (401, {"type": "error", "error": wrong})


async def test_vendor_report_accepts_the_same_token_in_two_headers(api: Api) -> None:
    headers = {"x-api-key": READONLY, "authorization": f"bearer  {READONLY}"}
    path = f"/v1/organizations/cost_report?{OF_ANTHROPIC}"
    assert (await api.acting_as(None).call("GET", path, headers=headers)).status == 200


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "start_time"),
        ("start_time=soon", "start_time"),
        (f"{OF_OPENAI}&limit=3", "limit"),
        (OF_OPENAI.replace("limit=2", "limit=32"), "limit"),
        (f"{OF_OPENAI}&bucket_width=1m", "bucket_width"),
        (f"{OF_OPENAI}&group_by=batch", "group_by"),
        (f"{OF_OPENAI}&page=page_7", "page"),
        (f"{OF_OPENAI}&batch=true", "batch"),
        ("start_time=1775000000&end_time=1775000000", "end_time"),
    ],
)
async def test_invalid_openai_report_parameter_is_refused_with_the_parameter_named(
    api: Api, query: str, name: str
) -> None:
    answer = await api.acting_as(READONLY).get(f"/v1/organization/usage/completions?{query}")
    assert answer.status in {400, 422}
    assert answer.json["error"]["param"] == name
    assert name in answer.json["error"]["message"]


async def test_refused_anthropic_report_has_the_error_format_of_anthropic(api: Api) -> None:
    answer = await api.get("/v1/organizations/cost_report?starting_at=2026-01-01")
    assert answer.json["type"] == "error"
    assert "time zone" in answer.json["error"]["message"]
