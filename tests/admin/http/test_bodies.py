"""Bodies and addresses nobody should send: always a problem that says what is wrong, never a 500."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from yarl import URL

from gateway.admin.api.openapi import body_of
from gateway.admin.http.answers import API, Answers
from gateway.admin.http.bodies import check_body, parse_body
from gateway.admin.http.guard import guard
from gateway.admin.http.requests import LIMIT_MAX, read_query
from gateway.admin.resources.registry import RESOURCES
from gateway.core.failures import Failures
from gateway.errors import AdminRefusal, Unprocessable
from tests.admin import two_organizations
from tests.admin.conftest import ADMIN, Api
from tests.admin.resources.test_refusals import TIER
from tests.in_turn import in_turn
from tests.search import examples

MALFORMED = [
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b'{"name":"a","name":"b"}',
    b'{"name":"a","na\\u006de":"b"}',
    b'{"limits":{"concurrency":1,"concurrency":2}}',
    b'{"name":NaN}',
    b'{"name":Infinity}',
    b'{"name":-Infinity}',
    b'{"name":"\\ud800"}',
    b'{"\\udc00":1}',
    b'{"name":"\xff"}',
    b'\xef\xbb\xbf{"name":"a"}',
    '{"name":"a"}'.encode("utf-16"),
    b'{"name":"a"} x',
    b'{"a":' * 20_000,
    b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    b'{"name":' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:24]))
def test_request_body_that_is_not_a_single_unambiguous_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(AdminRefusal) as refused:
        parse_body(raw)
    assert refused.value.status == 400


@pytest.mark.parametrize(("opened", "closed"), [(b'{"x":', b"}"), (b"[", b"]")])
def test_depth_of_a_request_body_is_bounded_by_a_number_and_not_by_the_stack(
    opened: bytes, closed: bytes
) -> None:
    for depth in (254, 255, *range(256, 1_100, 60), 9_000):
        body = b'{"x":' + opened * depth + b"1" + closed * depth + b"}"
        if depth <= 255:
            assert parse_body(body)
        else:
            with pytest.raises(AdminRefusal, match="nested more than 256 deep") as refused:
                parse_body(body)
            assert refused.value.status == 400


async def test_malformed_bodies_are_400_problems(api: Api) -> None:
    for raw in MALFORMED[:17:8]:
        answer = await api.call("POST", "organizations", data=raw)
        assert answer.status == 400, raw
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["instance"] == "/admin/v1/organizations"
    assert api.rows("select count(*) from organization") == [(0,)]


async def test_request_body_that_is_too_large_is_413(api: Api) -> None:
    answer = await api.call("POST", "organizations", data=b'{"name":"' + b"x" * 70_000 + b'"}')
    assert (answer.status, answer.json["status"]) == (413, 413)


async def test_request_with_too_large_a_content_length_is_413_before_the_body_arrives(api: Api) -> None:
    reader, writer = await _sent(api, length=10**9)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_client_that_disconnects_mid_body_is_counted_as_400_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def left(_request: web.Request) -> web.StreamResponse:
        raise ConnectionResetError("Connection lost")

    request = make_mocked_request("POST", "/admin/v1/organizations", app=web.Application())
    answers = Answers()
    guarded = guard(request_timeout_s=1.0, failures=Failures(time.monotonic), answers=answers)
    answer = await guarded(request, left)
    assert (answer.status, caplog.text) == (400, "")
    assert answers.counts[API, 400] == 1


async def _sent(api: Api, *, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The head of a request and the beginning of a body of that length."""
    reader, writer = await asyncio.open_connection(api.client.host, api.client.port)
    writer.write(
        f"POST /admin/v1/organizations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{".encode()
    )
    await writer.drain()
    return reader, writer


@in_turn(
    "path",
    [
        *("organizations/0", "organizations/-1", "organizations/x", "organizations/99", "organizations/1%00"),
        *("organizations/9" + "9" * 30, "organizations/1/2/3", "nothing", "/admin", "/x", "/admin/v1/"),
        *("invoices/9.pdf", "invoices/9/usage.csv", "invoices/99999999999999999999.pdf", "invoices/0.pdf"),
    ],
)
async def test_unknown_api_address_is_404_with_a_problem_document(api: Api, path: str) -> None:
    answer = await api.get(path)
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@in_turn(
    ("method", "path", "allow"),
    [
        ("PUT", "organizations", "GET, HEAD, POST"),
        ("POST", "organizations/1", "DELETE, GET, HEAD, PATCH"),
        ("POST", "tenant-quotas", "GET, HEAD"),
        ("DELETE", "token-ledger", "GET, HEAD"),
        ("GET", "tenants/1/reset", "POST"),
    ],
)
async def test_unknown_method_of_a_path_is_405_with_the_allowed_methods(
    api: Api, method: str, path: str, allow: str
) -> None:
    answer = await api.call(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
writable = sorted(
    (name, verb)
    for name, resource in RESOURCES.items()
    for verb, model in (("POST", resource.create), ("PATCH", resource.patch))
    if model is not None
)


HOSTILE: list[Any] = [
    *(0, 1, -1, 2**31, 2**53 - 1, 2**53, 2**63, 10**40, 0.5, 1.0, 1e308, None, True, [], {}, [None]),
    *("", " ", "0", "-0", "1.50", "+1", ".5", "1e5", "1_000", "NaN", "Infinity", "0.0000000001", 10**12),
    *("١٢", "１２", "2026-02-29", "3000-01-01", "0001-01-01T00:00:00+23:59", "2016-12-31T23:59:60Z"),
    *("\x00", "a\x00b", "\u200b1", "a" * 201, "usd", "XAU", "IN", "admin", {"concurrency": 1}, ["chat"]),
    {"tiers": [TIER | {"unit_price": "999999999999.999999999"}]}, [{"above": 0, "input": "1"}],
]  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A body of anything, or one that is right but for a value or two."""
    name, verb = draw(st.sampled_from(writable))
    model = RESOURCES[name].create if verb == "POST" else RESOURCES[name].patch
    assert model is not None
    fields = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=8)
    over = draw(st.dictionaries(fields, anything | st.sampled_from(HOSTILE), max_size=3))
    example = dict(body_of(model.__name__, {model.__name__: model.model_json_schema()}))
    return name, verb, draw(st.sampled_from([{**example, **over}, {**example, **over}, over]) | anything)


@given(bodies())
@settings(max_examples=examples(300))
def test_random_request_body_is_accepted_or_refused_without_an_unexpected_exception(
    sent: tuple[str, str, Any],
) -> None:
    name, verb, body = sent
    model = RESOURCES[name].create if verb == "POST" else RESOURCES[name].patch
    assert model is not None
    with suppress(AdminRefusal):
        check_body(model, parse_body(json.dumps(body).encode()), known=RESOURCES[name].known)


async def test_random_request_body_is_stored_as_sent_or_refused_by_field_and_never_a_500(api: Api) -> None:
    """One database, many bodies: each is made, changed or refused."""
    await two_organizations.few(api)
    seen: list[tuple[str, str, Any]] = []

    @given(bodies())
    @settings(max_examples=examples(500), database=None)
    @example(("credit-additions", "POST", {"organization_id": 1, "credits_added": 5, "priority": None}))
    @example(("events", "POST", {"specversion": "1.0", "source": "a\x00b", "id": "1", "type": "use"}))
    def collect(sent: tuple[str, str, Any]) -> None:
        seen.append(sent)

    collect()
    met = set()
    for name, verb, body in seen:
        path = name if verb == "POST" else f"{name}/1"
        answer = await api.call(verb, path, data=json.dumps(body).encode())
        what = (name, verb, body, answer.raw)
        assert answer.status in {200, 201, 202, 400, 404, 409, 422}, what
        met.add(answer.status)
        if answer.status == 422:
            assert answer.json["errors"], what
            for error in answer.json["errors"]:  # one of several fields is in its message
                assert error["field"] or any(one in error["message"] for one in body), what
        elif answer.status in {200, 201} and name != "events":
            told = answer.json
            assert all(is_same(value, told[one]) for one, value in body.items() if one in told), what
    assert met >= {200, 201, 422}


def is_same(said: Any, told: Any) -> bool:
    """Whether an answer tells what was said; null may be a default, documents are told by parts."""
    if said is None or said == told or isinstance(said, dict | list):
        return True
    for reads in (Decimal, datetime.fromisoformat):
        try:
            return bool(reads(said) == reads(told))
        except (InvalidOperation, ValueError, TypeError):
            continue
    return False


@given(
    st.sampled_from(sorted(RESOURCES)),
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30)), max_size=4),
)
@settings(max_examples=examples(200))
def test_random_query_string_is_accepted_or_refused_without_an_unexpected_exception(
    name: str, sent: list[tuple[str, str]]
) -> None:
    with suppress(Unprocessable):
        assert 1 <= read_query(name, RESOURCES[name].filters, MultiDict(sent)).limit <= LIMIT_MAX


@in_turn(
    "target",
    [
        *("organizations?name=%ff", "organizations?name=%ed%a0%80", "organizations?limit=%D9%A1"),
        *("organizations?cursor=%F0%9F%92%A9", "organizations?%ff=1", "organizations?from=%00"),
        *("organizations/%ff", "organizations/%D9%A1", "organizations/1%2F2", "%2e%2e/v1/organizations"),
        *("token-ledger?request_id=1", "token-ledger?request_id=" + "f" * 150),
        "organizations?name=" + "x" * 300,
    ],
)
async def test_malformed_request_targets_never_cause_a_500(api: Api, target: str) -> None:
    async with api.client.session.get(
        URL(str(api.client.make_url("/admin/v1/")) + target, encoded=True),
        headers={"Authorization": f"Bearer {ADMIN}"},
    ) as response:
        assert response.status in {200, 400, 404, 422}
        assert b"Traceback" not in await response.read()
