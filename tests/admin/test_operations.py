"""Documents, health, metrics and what every answer carries."""

from __future__ import annotations

import gzip
import re

from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.admin.api.openapi import document
from gateway.admin.resources.registry import REPORTS, RESOURCES
from tests.admin.conftest import Api
from tests.in_turn import in_turn


def test_the_openapi_document_is_valid() -> None:
    described = document(RESOURCES, REPORTS, version="1")
    OpenAPIV31SpecValidator(described).validate()


async def test_every_route_is_described_and_nothing_else(api: Api) -> None:
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


@in_turn("name", sorted(RESOURCES))
async def test_every_answer_fits_its_description(api: Api, name: str) -> None:
    schema = (await api.get("openapi.json")).json["components"]["schemas"][RESOURCES[name].title]
    assert set(schema["properties"]) == RESOURCES[name].known.keys()
    assert (await api.get(name)).status == 200


async def test_the_docs_are_one_page_that_fetches_nothing(api: Api) -> None:
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
async def test_every_answer_is_guarded(api: Api, path: str) -> None:
    answer = await api.get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "aiohttp" not in answer.headers["Server"]


async def test_other_origins_get_no_permission(api: Api) -> None:
    origin = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    preflight = await api.call("OPTIONS", "organizations", headers=origin)
    assert preflight.status == 405
    plain = await api.call("GET", "organizations", headers=origin)
    assert not [name for name in plain.headers if name.lower().startswith("access-control-")]


async def test_a_compressed_body_is_refused(api: Api) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await api.call("POST", "organizations", data=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status == 415
