"""Calls under `/services/`: each service at its own upstream, on its own paths, at its own price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.calls.routes import Route, ServiceRules
from gateway.core.model import Service
from gateway.errors import CountersUnavailable, ServiceNotIncluded
from tests.http.fakes import ROUTES, SERVICES, get, post
from tests.http.stage import Stage, staged

SMS = Service(10, "sms", "consumption", counts_tokens=False, credits=10, upstream="up")
FREE = Service(11, "freebie", "consumption", counts_tokens=False, upstream="up")
LONE = ServiceRules()
# Without the fixed route of a service that has a price of its own.
PLAIN = tuple(route for route in ROUTES if route.path != "/trusted")


def serve(stage: Stage, *services: Service) -> None:
    stage.directory.services = SERVICES | {service.key: service for service in services}


async def asked(stage: Stage, path: bytes) -> tuple[int, str]:
    """Status and reason of a call; a refused one has reached nobody."""
    before = len(stage.upstream.received), len(stage.counters.holds)
    answer = await stage.ask(post(b"any", path))
    if answer.status != 200:
        assert (len(stage.upstream.received), len(stage.counters.holds)) == before
        return answer.status, answer.reason
    return answer.status, ""


async def test_a_service_without_an_upstream_of_its_own_is_not_found() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, SMS)
        assert await asked(stage, b"/services/search/x") == (404, "unknown_route")
        assert await asked(stage, b"/services/sms/x") == (200, "")
        answer = await stage.ask(post(b"", b"/services/search/x"))
        assert b"application/problem+json" in answer.one(b"content-type")


@pytest.mark.parametrize("rules", [LONE, ServiceRules(shared="up"), ServiceRules((("sms", "up"),))])
async def test_what_a_family_meters_is_not_had_of_a_service(rules: ServiceRules) -> None:
    async with staged(PLAIN, services=rules) as stage:
        serve(stage, SMS)
        for path in (
            b"/v1/chat/completions", b"/v1/chat/completions/", b"/v1/Chat/completions",
            b"/v1/ch%61t/completions", b"/v1/chat/completions%3bx", b"/v1/chat%252fcompletions",
            b"/v1/chat/completions?x=1", b"/v1/messages", b"/v1beta/models/m:generateContent",
            b"/v1beta/models/m%3AgenerateContent",
        ):  # fmt: skip
            assert await asked(stage, b"/services/sms" + path) == (404, "unknown_route"), path
            assert await asked(stage, b"/services/%73ms" + path) == (404, "unknown_route"), path
        assert await asked(stage, b"/services/sms/v1/other") == (200, "")


async def test_a_fixed_route_under_services_is_bound_as_well() -> None:
    route = Route(("ANY",), "/services/ocr/{path…}", "up", "search", meter="generic")
    async with staged((route, *PLAIN), services=LONE) as stage:
        assert await asked(stage, b"/services/ocr/scan") == (200, "")
        assert await asked(stage, b"/services/ocr/v1/chat/completions") == (404, "unknown_route")


async def test_a_service_is_kept_to_its_paths() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, replace(SMS, paths=("/v1/sms/*",)))
        assert await asked(stage, b"/services/sms/v1/sms/send?to=1") == (200, "")
        assert stage.upstream.received[-1].target == b"/v1/sms/send?to=1"
        for path in (b"/v1/mail", b"/v1/sms", b"/v1/SMS/send", b"/v1/sm%73/send", b"/v1/sms/%252e%252e/mail"):
            assert await asked(stage, b"/services/sms" + path) == (404, "unknown_route"), path


async def test_services_at_different_prices_share_no_paths() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, SMS, FREE)
        for key in (b"sms", b"freebie"):
            assert await asked(stage, b"/services/%b/expensive/search" % key) == (404, "unknown_route")
        await asked(stage, b"/services/sms/again")
        told = stage.events("services_share_paths")
        assert [(one["service"], one["shares_with"]) for one in told] == [
            ("sms", "freebie"),
            ("freebie", "sms"),
        ]
        serve(stage, replace(SMS, paths=("/expensive/*",)), replace(FREE, paths=("/cheap/*",)))
        assert await asked(stage, b"/services/sms/expensive/search") == (200, "")
        assert await asked(stage, b"/services/freebie/cheap/search") == (200, "")
        assert await asked(stage, b"/services/freebie/expensive/search") == (404, "unknown_route")


async def test_services_that_cost_the_same_may_share_and_all_may_where_one_upstream_serves_all() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, SMS, replace(FREE, credits=10))
        assert await asked(stage, b"/services/sms/x") == (200, "")
        assert await asked(stage, b"/services/freebie/x") == (200, "")
    async with staged(PLAIN) as stage:
        serve(stage, SMS, FREE)
        assert await asked(stage, b"/services/sms/x") == (200, "")
        assert await asked(stage, b"/services/freebie/x") == (200, "")


async def test_prices_are_compared_as_the_caller_has_them() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, SMS, replace(FREE, credits=10))
        stage.directory.terms = {"freebie": replace(FREE, credits=1)}
        assert await asked(stage, b"/services/sms/x") == (404, "unknown_route")
        assert await asked(stage, b"/services/freebie/x") == (404, "unknown_route")
        stage.directory.terms = {"freebie": ServiceNotIncluded()}
        assert await asked(stage, b"/services/sms/x") == (200, "")
        assert await asked(stage, b"/services/freebie/x") == (403, "service_not_included")


async def test_a_head_seen_before_follows_the_catalogue() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        for services, expected in (
            ((), (404, "unknown_route")),
            ((replace(SMS, upstream=""),), (404, "unknown_route")),
            ((SMS,), (200, "")),
            ((replace(SMS, paths=("/y",)),), (404, "unknown_route")),
            ((replace(SMS, upstream="nobody"),), (404, "unknown_route")),
            ((SMS,), (200, "")),
        ):
            serve(stage, *services)
            for _ in range(2):
                assert await asked(stage, b"/services/sms/x") == expected
        assert len(stage.events("service_without_upstream")) == 1


async def test_before_a_catalogue_nobody_is_told_that_a_service_is_unknown() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        stage.directory.trouble = CountersUnavailable()
        assert await asked(stage, b"/services/sms/x") == (503, "counters_unavailable")
        stage.directory.trouble = None
        serve(stage, SMS)
        assert await asked(stage, b"/services/sms/x") == (200, "")


async def test_a_services_own_route_is_not_undercut_by_another_service() -> None:
    async with staged(services=LONE) as stage:
        serve(stage, SMS)
        assert await asked(stage, b"/services/sms/trusted") == (404, "unknown_route")
        assert await asked(stage, b"/trusted") == (200, "")
        serve(stage, replace(SMS, paths=("/sms/*",)))
        assert await asked(stage, b"/services/sms/sms/x") == (200, "")


async def test_a_service_that_another_route_meters_is_still_no_service() -> None:
    async with staged(PLAIN, services=LONE) as stage:
        serve(stage, replace(SERVICES["chat"], upstream="up"))
        assert (await stage.ask(get(b"/services/chat/x"), "GET")).status == 404
