"""Whose call it is: the key's own user, the request's field, its body; or nobody's, where the key allows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.core.model import Caller
from tests.http.fakes import AUTH, CALLER, USAGE_BODY, get, post
from tests.http.stage import Answer, Stage

CHAT, MESSAGES = b"/v1/chat/completions", b"/v1/messages"
GEMINI = b"/v1beta/models/m:generateContent"
FIELD = b"x-tollkeeper-user: ann\r\n"
AUTH_AND_USER = AUTH + FIELD
ACCEPT = replace(CALLER, user="")
REQUIRE = replace(ACCEPT, user_header="require")
IGNORE = replace(ACCEPT, user_header="ignore")


def call(path: bytes = CHAT, fields: bytes = b"", **more: object) -> bytes:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    if path == GEMINI:
        body = {"contents": [{"parts": [{"text": "hi"}]}]}
    return post(json.dumps(body | more).encode(), path, b"content-type: application/json\r\n" + fields)


async def user_of(stage: Stage, request: bytes) -> str:
    """Whose call the hold and the settlement of a request say it is."""
    assert (await stage.ask(request)).status == 200
    await stage.settled(len(stage.counters.holds))
    assert stage.counters.holds[-1].user == stage.counters.settlements[-1].user
    return stage.counters.holds[-1].user


@pytest.mark.parametrize("caller", [ACCEPT, REQUIRE])
@pytest.mark.parametrize(
    ("request_", "user"),
    [
        (call(fields=FIELD), "ann"),
        (call(user="bob"), "bob"),
        (call(user="bob", safety_identifier="cyd"), "cyd"),
        (call(fields=FIELD, user="bob"), "ann"),
        (call(MESSAGES, metadata={"user_id": "dan"}), "dan"),
        (call(GEMINI, FIELD), "ann"),
    ],
)
async def test_the_request_says_whose_it_is(stage: Stage, caller: Caller, request_: bytes, user: str) -> None:
    stage.directory.caller = caller
    assert await user_of(stage, request_) == user


async def test_a_key_that_ignores_users_hears_of_none(stage: Stage) -> None:
    stage.directory.caller = IGNORE
    for request in (call(fields=FIELD, user="bob"), call(MESSAGES, metadata={"user_id": "dan"})):
        assert await user_of(stage, request) == ""
    assert (await stage.ask(get(b"/services/search/x", AUTH_AND_USER), "GET")).status == 200
    assert stage.counters.holds[-1].user == ""
    assert (await stage.ask(get(b"/.tollkeeper/usage", AUTH_AND_USER), "GET")).body == USAGE_BODY


@pytest.mark.parametrize("user_header", ["accept", "require", "ignore"])
async def test_a_keys_own_user_wins(stage: Stage, user_header: str) -> None:
    stage.directory.caller = replace(CALLER, user="eve", user_header=user_header)
    for request in (call(), call(fields=FIELD, user="bob")):
        assert await user_of(stage, request) == "eve"


def message(answer: Answer, *where: str) -> str:
    said = json.loads(answer.body)
    for name in where:
        said = said[name]
    return str(said)


@pytest.mark.parametrize(
    ("request_", "where"),
    [
        (call(), ("error", "message")),
        (call(user=""), ("error", "message")),
        (call(user="x" * 129), ("error", "message")),
        (call(user=7), ("error", "message")),
        (call(fields=b"x-tollkeeper-user: \r\n"), ("error", "message")),
        (call(MESSAGES), ("error", "message")),
        (call(GEMINI), ("error", "message")),
        (post(b"any", b"/services/search/x"), ("detail",)),
    ],
)
async def test_a_key_that_requires_a_user_refuses_nobodys_calls(
    stage: Stage, request_: bytes, where: tuple[str, ...]
) -> None:
    stage.directory.caller = REQUIRE
    answer = await stage.ask(request_)
    assert (answer.status, answer.reason) == (400, "user_required")
    assert "x-tollkeeper-user" in message(answer, *where)
    assert not stage.counters.holds
    assert not stage.upstream.received


async def test_what_charges_nothing_needs_no_user(stage: Stage) -> None:
    stage.directory.caller = REQUIRE
    assert (await stage.ask(get(b"/v1/models"), "GET")).status == 200
    assert (await stage.ask(get(b"/.tollkeeper/usage"), "GET")).status == 200
