"""Whatever a body says, it is refused naming the field, or forwarded as the document it was read into."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests import plain_http
from tests.journey.stack import Stack

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GEMINI_STREAM = "/v1beta/models/demo-small:streamGenerateContent"
DEEP = b"[" * 10_000 + b"]" * 10_000


def chat(extra: bytes) -> bytes:
    """A chat body with more members in front; `%M` is the model's."""
    return b'{%b"model":"demo-small","messages":[{"role":"user","content":"hi"}]}' % (extra and extra + b",")


REFUSED: dict[str, tuple[str, bytes, str | None]] = {
    "max_tokens twice by an escape": (CHAT, chat(b'"max_tokens":1,"max\\u005ftokens":9'), "max_tokens"),
    "model in another case": (CHAT, chat(b'"Model":"other"'), "model"),
    "stream by a letter that folds": (CHAT, chat('"ſtream":true'.encode()), "stream"),
    "n as a billion": (CHAT, chat(b'"n":1000000000'), "n"),
    "include_usage twice": (
        CHAT, chat(b'"stream":true,"stream_options":{"include_usage":false,"include_usage":true}'),
        "stream_options.include_usage",
    ),
    "stream as text": (CHAT, chat(b'"stream":"yes"'), "stream"),
    "max_tokens as 5,000 digits": (CHAT, chat(b'"max_tokens":' + b"9" * 5000), "max_tokens"),
    "members twice far inside": (
        CHAT, chat(b'"x":[{"y":{"a":1}},{"y":{"a":1,"\\u0061":1}}]'), "x.1.y.a",
    ),
    "huge numbers elsewhere": (CHAT, chat(b'"x":1e400'), "x"),
    "no model": (CHAT, b'{"messages":[]}', "model"),
    "UTF-16": (CHAT, chat(b"").decode().encode("utf-16"), None),
    "half a surrogate pair, escaped": (CHAT, chat(b'"x":"\\ud800"'), None),
    "two documents": (CHAT, chat(b"") * 2, None),
    "cut off": (CHAT, chat(b"")[:-1], None),
    "10,000 deep in a field": (CHAT, b'{"model":' + DEEP + b"}", None),
    "background and a stream": (
        RESPONSES, b'{"model":"demo-small","input":"x","background":true,"stream":true}', "background",
    ),
    "messages' max_tokens negative": (
        MESSAGES, b'{"model":"demo-small","max_tokens":-1,"messages":[]}', "max_tokens",
    ),
    "two spellings of a maximum": (
        GEMINI_STREAM, b'{"contents":[],"generationConfig":{"maxOutputTokens":1,"max_output_tokens":9}}',
        "generationConfig.maxOutputTokens",
    ),
}  # fmt: skip

FORWARDED: dict[str, tuple[str, bytes]] = {
    "no maximum": (CHAT, chat(b"")),
    "a controlled name as text": (CHAT, chat(b'"x":"max_tokens","y":{"max_tokens":-1,"MODEL":0}')),
    "spaces and escapes": (CHAT, b' \r\n{ "m\\u006fdel" : "demo-small" , "messages" : [ ] }\n'),
    "10 MB of prompt": (CHAT, chat(b'"x":"' + b"word " * 2_000_000 + b'"')),
    "unusual text": (
        MESSAGES,
        '{"model":"demo-small","max_tokens":9,"messages":[],"x":"\\u0000 𝕏 \u202e"}'.encode(),
    ),
}


@pytest.fixture(scope="module")
def caller(stack: Stack) -> tuple[int, dict[str, str]]:
    tenant, key = stack.tenant(None)
    return tenant, {"authorization": f"Bearer {key}", "content-type": "application/json"}


def forwarded(stack: Stack) -> list[Any]:
    calls: list[Any] = plain_http.get(f"{stack.upstream_url}/demo/calls", timeout=60).json()["calls"]
    return calls


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_and_impossible_bodies_are_refused_by_field(
    stack: Stack, caller: tuple[int, dict[str, str]], case: str
) -> None:
    path, body, param = REFUSED[case]
    answer = plain_http.post(stack.gateway_url + path, content=body, headers=caller[1], timeout=60)
    assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (400, "invalid_request"), (
        answer.text
    )
    if param is not None:
        assert param in answer.text
        if path == CHAT:
            assert answer.json()["error"]["param"] == param
    assert answer.headers["x-request-id"] not in {one["request_id"] for one in forwarded(stack)[-50:]}


@pytest.mark.parametrize("case", FORWARDED)
def test_what_is_not_refused_is_forwarded_as_it_was_read(
    stack: Stack, caller: tuple[int, dict[str, str]], case: str
) -> None:
    path, body = FORWARDED[case]
    answer = plain_http.post(stack.gateway_url + path, content=body, headers=caller[1], timeout=60)
    assert answer.status_code == 200, answer.text
    (one,) = [one for one in forwarded(stack)[-50:] if one["request_id"] == answer.headers["x-request-id"]]
    read = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
    assert one["body_sha256"] == hashlib.sha256(read).hexdigest()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("x-tollkeeper-metadata", "{"),
        ("x-tollkeeper-metadata", json.dumps({"x": "y" * 2048})),
        ("x-tollkeeper-metadata", '{"x":' + "[" * 1000 + "]" * 1000 + "}"),
        ("x-tollkeeper-content-id", "-1"),
        ("x-tollkeeper-user", "u" * 129),
        ("x-tollkeeper-units", "5"),
    ],
)
def test_attribution_that_cannot_be_kept_is_refused_by_field(
    stack: Stack, caller: tuple[int, dict[str, str]], field: str, value: str
) -> None:
    headers = caller[1] | {field: value}
    answer = plain_http.post(stack.gateway_url + CHAT, content=chat(b""), headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_nothing_was_charged_for_any_refusal(stack: Stack, caller: tuple[int, dict[str, str]]) -> None:
    known = {one["request_id"] for one in forwarded(stack)}
    rows = [row for row in stack.ledger(caller[0]) if row["transaction_type"] == "consume"]
    assert {row["request_id"] for row in rows} <= known
