"""Where calls of services may go: what a family's route meters, other services' paths, and nobody's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.calls.binding import Binding, Bindings, makes_batches
from gateway.core.calls.routes import Route, ServiceRules, UpstreamTarget
from gateway.core.families.registry import ALL
from gateway.core.model import Family, Service
from gateway.features.jobs.gateway import create_batch, tell_job
from gateway.http.server.server import HANDLERS
from gateway.run.worker_parts import merged
from gateway.settings.config_file import DEFAULT_ROUTES

SMS = Service(1, "sms", "consumption", counts_tokens=False, credits=10, upstream="mine")
FREE = Service(2, "freebie", "consumption", counts_tokens=False, upstream="mine")
MINE = UpstreamTarget("mine", "http://mine.example:9000")


def bindings(
    *services: Service,
    rules: ServiceRules = ServiceRules(),  # noqa: B008  # frozen and empty
    targets: tuple[UpstreamTarget, ...] = (),
    routes: tuple[Route, ...] = DEFAULT_ROUTES,
) -> Bindings:
    usual = [
        MINE,
        *(UpstreamTarget(name, f"https://{name}.example") for name in ("openai", "anthropic", "gemini")),
    ]
    named = {target.name: target for target in (*usual, *targets)}
    return Bindings(routes, named, rules, {service.key: service for service in services})


def bound(service: Service, *more: Service, **fields: object) -> Binding:
    found = bindings(service, *more, **fields).of(service.key)  # type: ignore[arg-type]  # as `bindings` takes them
    assert found is not None
    return found


def test_a_service_without_an_upstream_goes_nowhere() -> None:
    lone = replace(SMS, upstream="")
    assert bound(lone).refusal_of("/x") == "The service sms has no upstream of its own."
    assert bound(replace(SMS, upstream="nobody")).refusal_of("/x").endswith("is not configured here.")
    assert bindings(SMS).of("other") is None
    assert bound(lone, rules=ServiceRules(shared="mine")).refusal_of("/x") == ""


def test_the_configurations_upstream_goes_before_the_catalogues() -> None:
    assert bound(SMS, rules=ServiceRules((("sms", "openai"),))).upstream == "openai"
    assert bound(SMS, rules=ServiceRules(shared="openai")).upstream == "mine"


def test_a_path_must_be_within_the_paths_of_configuration_and_catalogue() -> None:
    rules = ServiceRules((("sms", "mine"),), (("sms", ("/v1/*",)),))
    one = bound(replace(SMS, paths=("/v1/sms/*", "/v2/*")), rules=rules)
    assert one.refusal_of("/v1/sms/x") == ""
    assert "does not include this path" in one.refusal_of("/v2/x")
    assert "does not include this path" in one.refusal_of("/v1/mail")


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("https://openai.example", "/v1/chat/completions"),
        ("https://openai.example", "/V1/chat/Completions/"),
        ("https://openai.example", "/v1/ch%61t/completions"),
        ("https://openai.example", "/v1/chat/completions%3bx=1"),
        ("https://openai.example", "/v1/responses/resp_1"),
        ("https://OPENAI.example:443/", "/v1/embeddings"),
        ("http://openai.example/v1", "/chat/completions"),
        ("https://openai.example/v1/chat", "/completions"),
        ("https://openai.example/x/..", "/v1/completions"),
        ("https://openai.example", "/openai/deployments/mine/chat/completions"),
        ("https://gemini.example", "/v1/projects/p/publishers/google/models/m:generateContent"),
        ("https://anthropic.example", "/v1/messages"),
        ("https://anthropic.example", "/v1/messages/batches"),
        ("https://gemini.example", "/v1beta/models/gemini-pro:generateContent"),
        ("https://gemini.example", "/v1beta/models/gemini-pro%3AstreamGenerateContent"),
        ("https://gemini.example/v1beta/models", "/m:GENERATEcontent"),
        ("https://openai.example", "/openai/v1/responses"),
        ("https://openai.example", "/openai/responses"),
        ("https://openai.example/openai", "/responses"),
        ("https://openai.example", "/x/openai/deployments/mine/embeddings"),
        ("https://openai.example", "/v1/engines/m/completions"),
        ("https://anthropic.example", "/v1/chat/completions"),
        ("https://anthropic.example", "/v1/complete"),
        ("https://gemini.example", "/v1beta/openai/chat/completions"),
        ("https://gemini.example", "/v1beta/openai/embeddings"),
        ("https://gemini.example", "/v1beta/interactions"),
        ("https://gemini.example", "/v1beta/models/m:batchGenerateContent"),
        ("https://gemini.example", "/v1beta/models/m%3aasyncBatchEmbedContent"),
        ("https://gemini.example", "/v1/projects/p/publishers/anthropic/models/m:streamRawPredict"),
        ("https://openai.example", "/v1/chat/completions.json"),
        ("https://openai.example", "/completions"),
        ("https://openai.example", "/Responses/resp_1"),
        ("https://anthropic.example", "/messages"),
        ("https://openai.example/llm", "/embeddings.json"),
        ("https://openai.example", "/api/chat"),
        ("https://openai.example/api", "/generate"),
        ("https://openai.example", "/completion"),
        ("https://openai.example", "/generate"),
        ("https://openai.example", "/invocations"),
    ],
)
def test_what_a_familys_route_meters_is_no_services(base: str, path: str) -> None:
    one = bound(replace(SMS, upstream="raw"), targets=(UpstreamTarget("raw", base),))
    assert "belongs to an API of its own" in one.refusal_of(path)
    assert one.refusal_of("/something/else") == ""


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("https://openai.example", "/v1/files/file-1"),
        ("https://openai.example", "/V1/Conversations"),
        ("https://openai.example/v1", "/batches/b"),
        ("https://anthropic.example", "/v1/files"),
        ("https://gemini.example", "/v1beta/cachedContents/c"),
        ("https://gemini.example", "/upload/v1beta/files"),
        ("https://gemini.example", "/v1beta/openai/files/x"),
        ("https://gemini.example", "/v1beta/openai/batches/x"),
        ("https://openai.example", "/openai/files/x"),
        ("https://openai.example", "/openai/v1/files/x"),
        ("https://openai.example/openai", "/files/x"),
        ("https://openai.example", "/files/x"),
        ("https://openai.example/llm", "/conversations/x/items"),
        ("https://openai.example", "/Containers"),
        ("https://openai.example", "/vector_stores/x"),
        ("https://openai.example", "/batches/x"),
        ("https://openai.example", "/threads/x"),
        ("https://openai.example", "/assistants"),
        ("https://openai.example", "/fine_tuning/jobs"),
        ("https://gemini.example", "/cachedContents/x"),
    ],
)
def test_objects_that_a_familys_upstream_keeps_are_no_services(base: str, path: str) -> None:
    raw = UpstreamTarget("raw", base)
    one = bound(replace(SMS, upstream="raw"), targets=(raw,))
    assert "belongs to an API of its own" in one.refusal_of(path)
    assert one.refusal_of("/own/files/file-1") == one.refusal_of("/profiles/1") == ""
    shared = tuple(replace(route, objects="shared") for route in DEFAULT_ROUTES)
    why = bound(replace(SMS, upstream="raw"), targets=(raw,), routes=shared).refusal_of(path)
    # What makes these is metered.
    metered = ("/containers", "/vector_stores", "/v1beta/cached", "/cached", "/fine_tuning")
    assert bool(why) is path.lower().startswith(metered)


def test_a_word_alone_is_a_services_where_its_paths_say_so() -> None:
    """Behind a version it is the family's all the same."""
    at_openai = replace(SMS, upstream="openai")
    for path, version in (("/messages/send", "/v1/messages"), ("/files/x", "/v1/files/x")):
        assert "belongs to an API of its own" in bound(at_openai).refusal_of(path)
        assert "belongs to an API of its own" in bound(replace(at_openai, paths=("/*",))).refusal_of(path)
        named = bound(replace(at_openai, paths=(path.rpartition("/")[0] + "/*", "/v1/*")))
        assert named.refusal_of(path) == ""
        assert "belongs to an API of its own" in named.refusal_of(version)
        assert bound(SMS).refusal_of(path) == ""


def test_a_familys_route_behind_a_prefix_is_known_without_it() -> None:
    routes = (Route(("POST",), "/chat", "azure", "chat", Family("openai"), "openai_chat"),)
    azure = UpstreamTarget("azure", "https://h.example/openai/v1")
    one = bound(
        replace(SMS, upstream="raw"),
        targets=(azure, UpstreamTarget("raw", "https://h.example")),
        routes=routes,
    )
    assert "belongs to an API of its own" in one.refusal_of("/openai/v1/chat")
    assert one.refusal_of("/chat") == ""


def test_a_familys_route_that_takes_any_path_leaves_nothing_to_services() -> None:
    routes = (Route(("POST",), "/llm/{path…}", "mine", "chat", Family("openai"), "openai_chat"),)
    assert "belongs to an API of its own" in bound(SMS, routes=routes).refusal_of("/anything")


def test_other_upstreams_have_those_paths_for_services() -> None:
    assert bound(SMS).refusal_of("/v1/chat/completions") == ""
    elsewhere = ServiceRules((("chat", "mine"), ("sms", "mine")))
    assert "belongs to an API of its own" in bound(SMS, rules=elsewhere).refusal_of("/v1/chat/completions")


def test_services_that_get_to_the_same_paths_overlap() -> None:
    assert bound(SMS, FREE).overlapping == ("freebie",)
    apart = replace(SMS, paths=("/sms/*",)), replace(FREE, paths=("/free/*",))
    assert bound(*apart).overlapping == ()
    assert bound(SMS, FREE, rules=ServiceRules(shared="mine")).overlapping == ()
    twin = UpstreamTarget("twin", "http://MINE.example:9000/sms")
    assert bound(SMS, replace(FREE, upstream="twin"), targets=(twin,)).overlapping == ("freebie",)
    assert bound(apart[1], replace(SMS, upstream="twin"), targets=(twin,)).overlapping == ()


def test_a_route_of_its_own_makes_a_service_overlap() -> None:
    route = Route(("POST",), "/v1/reports/{id}/render", "mine", "sms", meter="generic")
    made = replace(SMS, upstream="")
    assert bound(FREE, made, routes=(route,)).overlapping == ("sms",)
    assert bound(replace(FREE, paths=("/v2/*",)), made, routes=(route,)).overlapping == ()
    through = replace(route, path="/reports/{path…}")
    assert bound(replace(FREE, paths=("/v2/*",)), made, routes=(through,)).overlapping == ("sms",)


def test_conflicts_and_services_without_a_place_are_told() -> None:
    stray = Service(3, "lost", upstream="nobody")
    equal = Service(4, "same", "consumption", counts_tokens=False, credits=10, upstream="mine", paths=("/a",))
    found = bindings(SMS, FREE, stray, equal)
    assert set(found.conflicts()) == {("sms", "freebie", "mine"), ("freebie", "same", "mine")}
    assert list(found.unplaced()) == [("lost", "nobody")]
    assert not list(bindings(SMS, FREE, rules=ServiceRules(shared="mine")).conflicts())


def test_a_pattern_that_cannot_be_read_lets_nothing_pass() -> None:
    assert "does not include" in bound(replace(SMS, paths=("/v1/**",))).refusal_of("/v1/x")


@pytest.mark.parametrize(
    ("methods", "path", "family", "makes"),
    [
        ("POST", "/v1/batches", "openai", True),
        ("POST", "/v1/batches", "generic", True),
        ("ANY", "/v1/batches/{path…}", "openai", True),
        ("PUT", "/openai/v1/Batches/", "openai", True),
        ("POST", "/v1/b%61tches", "openai", True),
        ("POST", "/openai/deployments/{name}/batches", "openai", True),
        ("POST", "/{version}/batches", "openai", True),
        ("POST", "/v1/{path…}", "openai", True),
        ("POST", "/{path…}", "openai", True),
        ("POST", "/v1/batch/jobs", "openai", True),
        ("POST", "/v1/messages/batches", "anthropic", True),
        ("POST", "/v1/messages/{id}", "anthropic", True),
        ("POST", "/v1beta/models/{model}:batchGenerateContent", "gemini", True),
        ("POST", "/v1beta/models/{model}:{action}", "gemini", True),
        ("GET", "/v1/batches", "openai", False),
        ("GET", "/v1/{path…}", "openai", False),
        ("POST", "/v1/batches/{id}/cancel", "openai", False),
        ("POST", "/v1/vector_stores/{path…}", "openai", False),
        ("POST", "/v1/vector_stores/{id}/file_batches", "openai", False),
        ("POST", "/v1/files", "openai", False),
        ("POST", "/v1/{path…}", "generic", False),
    ],
)
def test_a_route_that_may_make_a_batch_is_known_by_its_path(
    methods: str, path: str, family: str, makes: bool
) -> None:
    assert makes_batches(Route((methods,), path, "u", family=Family(family))) is makes


def test_a_family_serves_batches_by_default_only_if_it_says_how_they_are_charged() -> None:
    served_by = HANDLERS | merged(lambda one: one.handlers())
    for family in ALL:
        served = {route.path for route in family.routes}
        paths = family.batches[0] if family.batches else None
        for route in family.routes:
            if route.meter == "none" and makes_batches(route):
                assert paths is not None, f"{route.path} would make batches that nobody charges"
                assert route.path in {*paths.makers, *(() if paths.makers else (paths.batches,))}
        if paths is not None:
            assert {paths.batches, paths.one, paths.cancel} <= served
            assert served_by[paths.batches] is create_batch
            assert served_by[paths.one] is served_by[paths.cancel] is tell_job
