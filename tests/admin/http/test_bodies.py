"""Bodies and addresses nobody should send: always a problem that says what is wrong, never a 500."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import MultiDict
from yarl import URL

from gateway.admin.http.guard import guard
from gateway.admin.http.requests import LIMIT_MAX, check_body, parse_body, read_query
from gateway.admin.http.server import API, Answers
from gateway.admin.resources.registry import RESOURCES
from gateway.core.credentials import Failures
from gateway.errors import AdminRefusal, Unprocessable
from tests.admin.conftest import ADMIN, Api
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
def test_what_is_not_one_unambiguous_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(AdminRefusal) as refused:
        parse_body(raw)
    assert refused.value.status == 400


async def test_malformed_bodies_are_400_problems(api: Api) -> None:
    for raw in MALFORMED[:17]:
        answer = await api.call("POST", "organizations", data=raw)
        assert answer.status == 400, raw
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["instance"] == "/admin/v1/organizations"
    assert api.rows("select count(*) from organization") == [(0,)]


@in_turn("hidden", ["\u202e", "\u200b", "\u2066", "\ufeff", "\x9b", "\U000e0041"])
@in_turn(
    ("resource", "fields", "named"),
    [
        ("organizations", {"name": "a{}b"}, "name"),
        ("token-plans", {"name": "a{}b", "total_amount": 1, "reset_interval": "none"}, "name"),
        ("token-plans", {"name": "a", "description": "{}", "total_amount": 1}, "description"),
        ("admin-tokens", {"name": "{}root", "role": "admin"}, "name"),
    ],
)
async def test_characters_nobody_sees_are_refused_in_names(
    api: Api, resource: str, fields: dict[str, Any], named: str, hidden: str
) -> None:
    sent = {name: value.format(hidden) if isinstance(value, str) else value for name, value in fields.items()}
    refused = await api.post(resource, sent)
    assert refused.status == 422, refused.raw
    [error] = [error for error in refused.json["errors"] if error["field"] == named]
    assert f"U+{ord(hidden):04X}" in error["message"]


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\t"])
async def test_a_name_is_one_line(api: Api, mark: str) -> None:
    for name in (f"a{mark}b", f"a{mark}"):
        refused = await api.post("organizations", {"name": name})
        assert (refused.status, [one["field"] for one in refused.json["errors"]]) == (422, ["name"])
    described = {"name": "a", "total_amount": 1, "reset_interval": "none", "description": f"a{mark}b"}
    assert (await api.post("token-plans", described)).status == 201


async def test_a_body_that_is_too_large(api: Api) -> None:
    answer = await api.call("POST", "organizations", data=b'{"name":"' + b"x" * 70_000 + b'"}')
    assert (answer.status, answer.json["status"]) == (413, 413)


async def test_a_body_said_to_be_too_large_is_refused_before_it_comes(api: Api) -> None:
    reader, writer = await _sent(api, length=10**9)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_client_that_leaves_amid_its_body_is_no_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def left(_request: web.Request) -> web.StreamResponse:
        raise ConnectionResetError("Connection lost")

    request = make_mocked_request("POST", "/admin/v1/organizations")
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


async def test_unknown_fields_are_named(api: Api) -> None:
    answer = await api.post("organizations", {"name": "x", "colour": "red", "id": 5})
    assert answer.status == 422
    assert answer.json["errors"] == [
        {"field": "colour", "message": "unknown field"},
        {"field": "id", "message": "cannot be set here"},
    ]


async def test_every_problem_has_its_members(api: Api) -> None:
    answer = await api.post("organizations", {})
    assert set(answer.json) == {"type", "title", "status", "detail", "instance", "errors"}
    assert answer.json["errors"] == [{"field": "name", "message": "required"}]
    assert answer.headers["x-request-id"]


@in_turn(
    "path",
    [
        *("organizations/0", "organizations/-1", "organizations/x", "organizations/99", "organizations/1%00"),
        *("organizations/9" + "9" * 30, "organizations/1/2/3", "nothing", "/admin", "/x", "/admin/v1/"),
    ],
)
async def test_addresses_that_do_not_exist(api: Api, path: str) -> None:
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
async def test_methods_a_path_does_not_know(api: Api, method: str, path: str, allow: str) -> None:
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


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, str, Any]:
    name, verb = draw(st.sampled_from(writable))
    model = RESOURCES[name].create if verb == "POST" else RESOURCES[name].patch
    assert model is not None
    fields = st.sampled_from(sorted(model.model_fields)) | st.text(max_size=8)
    likely = anything | st.sampled_from(
        [
            1,
            2**53 - 1,
            2**53,
            -1,
            "1.50",
            "x",
            "2030-01-01T00:00:00Z",
            "IN",
            "admin",
            {"concurrency": 1},
            ["chat"],
        ]
    )
    return name, verb, draw(st.dictionaries(fields, likely, max_size=6) | anything)


@given(bodies())
@settings(max_examples=examples(300))
def test_no_body_is_beyond_the_checks(sent: tuple[str, str, Any]) -> None:
    name, verb, body = sent
    model = RESOURCES[name].create if verb == "POST" else RESOURCES[name].patch
    assert model is not None
    with suppress(AdminRefusal):
        check_body(model, parse_body(json.dumps(body).encode()), known=RESOURCES[name].known)


async def test_no_body_gives_a_500(api: Api) -> None:
    """One database, many bodies: each is made, changed or refused."""
    seen: list[tuple[str, str, Any]] = []

    @given(bodies())
    @settings(max_examples=examples(150), database=None)
    def collect(sent: tuple[str, str, Any]) -> None:
        seen.append(sent)

    collect()
    for name, verb, body in seen:
        path = name if verb == "POST" else f"{name}/1"
        answer = await api.call(verb, path, data=json.dumps(body).encode())
        assert answer.status in {200, 201, 202, 400, 404, 409, 422}, (name, verb, body, answer.raw)


@given(
    st.sampled_from(sorted(RESOURCES)),
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30)), max_size=4),
)
@settings(max_examples=examples(200))
def test_no_query_is_beyond_the_checks(name: str, sent: list[tuple[str, str]]) -> None:
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
async def test_strange_targets_are_refused(api: Api, target: str) -> None:
    async with api.client.session.get(
        URL(str(api.client.make_url("/admin/v1/")) + target, encoded=True),
        headers={"Authorization": f"Bearer {ADMIN}"},
    ) as response:
        assert response.status in {200, 400, 404, 422}
        assert b"Traceback" not in await response.read()
