"""Documents, health, metrics and what every answer carries."""

from __future__ import annotations

import gzip
import re
from datetime import UTC, datetime

import pytest

from gateway.admin.api.openapi import document
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.cli.admin.usage import Scrape, read_scrape
from gateway.core.histograms import SECONDS
from gateway.core.layout import LAYOUT
from gateway.telemetry.scrape import render
from tests.admin.conftest import READONLY, Api
from tests.in_turn import in_turn


def test_schemas_have_no_alternatives_beside_fields() -> None:
    """Generators of clients lose such fields: openapi-python-client 0.29.1 made a class without them."""
    schemas = document(RESOURCES, REPORTS, version="1")["components"]["schemas"]
    both = [name for name, one in schemas.items() if "properties" in one and {"oneOf", "anyOf"} & one.keys()]
    assert both == []


async def test_openapi_document_describes_exactly_the_served_routes(api: Api) -> None:
    described = (await api.acting_as(None).get("openapi.json")).json
    told = {
        (method.upper(), path)
        for path, methods in described["paths"].items()
        for method in methods
        if method != "parameters"
    }
    served = {
        (route.method, route.resource.canonical)
        for route in api.client.app.router.routes()  # type: ignore[union-attr]  # an application has one
        if route.resource is not None and route.method != "HEAD"
    }
    assert told == {(method, path) for method, path in served if path.startswith("/admin/v1/")} - {
        ("GET", "/admin/v1/openapi.json")
    }


async def test_openapi_schema_lists_exactly_the_fields_of_each_resource(api: Api) -> None:
    schemas = (await api.get("openapi.json")).json["components"]["schemas"]
    for name, resource in RESOURCES.items():
        assert set(schemas[resource.title]["properties"]) == resource.known.keys()
        assert (await api.get(name)).status == 200


async def test_api_docs_page_describes_every_resource_and_loads_no_external_file(api: Api) -> None:
    answer = await api.acting_as(None).get("/admin/docs")
    page = answer.raw.decode()
    assert answer.status == 200
    for resource in RESOURCES:
        assert f'id="{resource}"' in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy


async def test_health_and_metrics_need_no_token(api: Api) -> None:
    nobody = api.acting_as(None)
    live, ready, metrics = [await nobody.get(path) for path in ("/livez", "/readyz", "/metrics")]
    assert (live.status, live.json) == (200, {"status": "ok", "dependencies": {"postgres": True}})
    assert (ready.status, ready.json["dependencies"]) == (503, {"postgres": False, "redis": False})
    assert ready.json["reasons"] == {"redis": "its memory is full"}
    assert metrics.raw == b"tollkeeper_build_info 1\n"
    assert metrics.headers["Content-Type"].startswith("text/plain")


@in_turn("path", ["organizations", "organizations/9", "/admin/docs", "/livez", "/nothing"])
async def test_every_admin_api_answer_has_the_security_headers(api: Api, path: str) -> None:
    answer = await api.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "aiohttp" not in answer.headers["Server"]


async def test_admin_api_gives_other_origins_no_cors_permission(api: Api) -> None:
    origin = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    preflight = await api.call("OPTIONS", "organizations", headers=origin)
    assert preflight.status == 405
    plain = await api.call("GET", "organizations", headers=origin)
    assert not [name for name in plain.headers if name.lower().startswith("access-control-")]


async def test_compressed_request_body_is_refused(api: Api) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await api.call("POST", "organizations", data=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status == 415


# --- counters ---------------------------------------------------------------------------
# Accounts that nobody can read, and their rebuild.


async def test_counters_tell_how_many_accounts_the_keeper_cannot_read(api: Api) -> None:
    assert (await api.get("counters")).json == {"unreadable": 0}
    api.counters.numbers = {"left_alone": [["hold", 1], ["account", 4]]}
    assert (await api.get("counters")).json == {"unreadable": 4}


async def test_a_rebuild_counts_written_accounts_by_kind_and_is_in_the_audit_log(
    api: Api,
) -> None:
    found = await api.post("counters", {"organization_id": 7})
    assert (found.status, found.json) == (
        200,
        {"organizations": 0, "tenants": 2, "api_keys": 0, "users": 0, "services": 0, "budgets": 3},
    )
    assert api.counters.rebuilt == [7]
    [entry] = (await api.get("audit-log?resource=counters")).json["items"]
    assert (entry["action"], entry["after"]) == ("rebuild", {"organization_id": 7})


async def test_a_refused_rebuild_is_409_by_name_and_leaves_no_entry(api: Api) -> None:
    api.counters.no_rebuild = "Programs with another layout run, end these first: keeper 1.0.0 on web-7."
    refused = await api.post("counters", {"organization_id": 7})
    assert (refused.status, refused.json["detail"]) == (409, api.counters.no_rebuild)
    assert (await api.get("audit-log?resource=counters")).json["items"] == []
    assert (await api.post("counters", {})).status == 422
    assert api.counters.rebuilt == []


# --- reconciliation ---------------------------------------------------------------------
# The last comparison, and a new one on demand.


async def test_reconciliation_result_is_returned_by_later_reads(api: Api) -> None:
    before = await api.get("reconciliation")
    assert (before.status, before.json["items"], before.json["checked"]) == (200, [], 0)
    assert (before.json["started_at"], before.json["finished_at"]) == (None, None)
    found = await api.post("reconciliation")
    assert (found.status, found.json["checked"], found.json["drift_tokens"]) == (200, 3, 7)
    assert found.json["items"] == []
    assert (await api.get("reconciliation")).json == found.json
    assert (await api.post("reconciliation", {"repair": True})).json["drift_tokens"] == 0


async def test_reconciliation_of_all_rows_lists_contradictory_ledger_rows(api: Api) -> None:
    assert (await api.post("reconciliation", {"whole": False})).json["items"] == []
    [item] = (await api.post("reconciliation", {"whole": True})).json["items"]
    assert (item["account"], item["kind"], item["seq"]) == ("tenant:1", "contradiction", 4)


async def test_reconciliation_repeated_with_the_same_idempotency_key_returns_the_first_result(
    api: Api,
) -> None:
    first = await api.post("reconciliation", {"repair": True}, key="k")
    again = await api.post("reconciliation", {"repair": True}, key="k")
    assert (again.status, again.json, again.headers["Idempotent-Replayed"]) == (200, first.json, "true")
    assert (await api.post("reconciliation", key="k")).status == 409
    assert (await api.post("reconciliation", {"repair": 1}, key="k")).status == 409
    assert (await api.post("reconciliation", {"repair": True})).json != first.json


async def test_reconciliation_retried_within_ten_minutes_of_an_unfinished_run_is_409(api: Api) -> None:
    await api.post("reconciliation", key="k")
    api.rows("update idempotency_key set status = null, created_at = now() - interval '9 minutes'")
    assert (await api.post("reconciliation", key="k")).status == 409


async def test_retry_with_same_idempotency_key_reruns_an_abandoned_reconciliation(api: Api) -> None:
    first = await api.post("reconciliation", key="k")
    api.rows("update idempotency_key set status = null, created_at = now() - interval '11 minutes'")
    again = await api.post("reconciliation", key="k")
    assert "Idempotent-Replayed" not in again.headers
    assert again.json["started_at"] > first.json["started_at"]
    assert (await api.post("reconciliation", key="k")).json == again.json


async def test_reconciliation_during_another_is_503_and_may_be_retried_with_the_same_idempotency_key(
    api: Api,
) -> None:
    api.counters.comparing = True
    refused = await api.post("reconciliation", key="k")
    assert (refused.status, refused.json["type"][-10:]) == (503, "overloaded")
    api.counters.comparing = False
    assert (await api.post("reconciliation", key="k")).status == 200


# --- programs ---------------------------------------------------------------------------
# `GET /programs`: who runs which version, for those who look after all organizations.


OLD = {
    "id": "b", "role": "gateway", "version": "0.9", "layout": LAYOUT - 1, "schema_version": None,
    "host": "<b>old</b>", "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    "said_at": datetime(2026, 1, 2, tzinfo=UTC), "refused": "Redis holds another layout: run a newer one",
}  # fmt: skip
NEW = OLD | {"id": "a", "role": "keeper", "version": "1.0", "host": "new", "layout": LAYOUT, "refused": None}


async def test_list_of_running_processes_shows_version_and_reason_an_old_version_is_refused(api: Api) -> None:
    api.counters.running = [NEW, OLD]
    found = (await api.acting_as(READONLY).get("programs")).json
    assert (found["layout"], found["runs_from"]) == (LAYOUT, "0069")
    assert [(one["version"], one["layout"], one["refused"]) for one in found["items"]] == [
        ("1.0", LAYOUT, None), ("0.9", LAYOUT - 1, OLD["refused"]),
    ]  # fmt: skip
    assert found["items"][0]["started_at"] == "2026-01-01T00:00:00Z"


async def test_list_of_running_processes_is_503_while_redis_is_unavailable(api: Api) -> None:
    api.counters.away = True
    assert (await api.get("programs")).status == 503


# --- activity ---------------------------------------------------------------------------
# `GET /activity`: who is busy, by name, within bounds.


async def test_activity_report_names_the_busiest_tenants(api: Api) -> None:
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


# --- scrape -----------------------------------------------------------------------------
# What `tollkeeper top` reads out of a scrape.


def scrape(*counts: int) -> Scrape:
    """A real scrape in which so many calls fell into the first buckets."""
    buckets = [*counts, *[0] * (len(SECONDS) + 1 - len(counts))]
    snapshot = {
        "bounds": list(SECONDS),
        "request_seconds": {"buckets": buckets, "sum": 1.0},
        "holds": 3,
        "requests": [["/v1/x", 200, "", 5]],
    }
    return read_scrape(render("text/plain", snapshot)[0].decode())


def test_metrics_scrape_reads_values_and_histograms_and_ignores_labelled_series() -> None:
    read = scrape(1, 2)
    assert read.values["holds"] == 3
    assert "requests_total" not in read.values
    assert read.histograms["request_seconds"][float("inf")] == 3


def test_metrics_quantile_is_interpolated_linearly_between_two_histogram_bounds() -> None:
    assert scrape(0, 100).quantile("request_seconds", 0.5) == pytest.approx((SECONDS[0] + SECONDS[1]) / 2)
    assert scrape(50, 50).quantile("request_seconds", 0.5) == pytest.approx(SECONDS[0])


def test_metrics_quantile_counts_only_calls_since_the_earlier_scrape() -> None:
    earlier = scrape(100)
    assert scrape(100, 0, 10).quantile("request_seconds", 0.99, earlier) > SECONDS[1]  # type: ignore[operator]  # there are calls
    assert earlier.quantile("request_seconds", 0.5, earlier) is None


def test_metrics_quantile_is_none_without_calls_and_at_most_the_last_histogram_bound() -> None:
    assert Scrape().quantile("request_seconds", 0.5) is None
    slow = scrape(*[0] * len(SECONDS), 4)
    assert slow.quantile("request_seconds", 0.5) == SECONDS[-1]
