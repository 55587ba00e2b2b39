"""What a call says of itself in its fields: ours are read and end here, another's are read and pass."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.http.fakes import CALLER, post
from tests.http.stage import Stage

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"traceparent: 00-{TRACE}-b7ad6b7169203331-01\r\n".encode()
CLAUDE = b"X-Claude-Code-Session-Id: 9b2e-7\r\n"
CODEX = b"session-id: 01a2-7\r\n"
OPENCODE = b"x-session-id: ses_A\r\nx-session-affinity: ses_A\r\n"
OURS = b"x-tollkeeper-session: run 7\r\n"


def call(fields: bytes) -> bytes:
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": []}).encode()
    return post(body, b"/v1/chat/completions", b"content-type: application/json\r\n" + fields)


@pytest.mark.parametrize(
    ("fields", "session"),
    [
        (b"", ""),
        (PARENT, TRACE),
        (CLAUDE, "9b2e-7"),
        (PARENT + CLAUDE, "9b2e-7"),
        (PARENT + CLAUDE + OURS, "run 7"),
        (OURS + b"x-tollkeeper-user: ann\r\n", "run 7"),
        (CLAUDE + b"x-tollkeeper-user: ann\r\n", "9b2e-7"),
        (PARENT + CODEX, "01a2-7"),
        (CODEX + OURS, "run 7"),
        (PARENT + OPENCODE, "ses_A"),
        (OPENCODE + CODEX, "01a2-7"),
        (CODEX + CODEX, ""),
        (b"x-tollkeeper-session: \r\n" + CLAUDE, "9b2e-7"),
        # What cannot be one is no session: another's field never refuses a call.
        (PARENT + b"x-claude-code-session-id: " + b"s" * 129 + b"\r\n", TRACE),
        (PARENT + b"x-claude-code-session-id: \xff\r\n", TRACE),
        (PARENT + CLAUDE + CLAUDE, TRACE),
        (PARENT + PARENT, ""),
        (b"traceparent: 00-" + b"0" * 32 + b"-b7ad6b7169203331-01\r\n", ""),
        (b"traceparent: nonsense\r\n", ""),
    ],
)
async def test_a_call_says_which_session_it_is_of(stage: Stage, fields: bytes, session: str) -> None:
    assert (await stage.ask(call(fields))).status == 200
    await stage.settled(1)
    facts = stage.facts()
    assert facts.session == session
    [sent] = stage.upstream.received
    head = {name.lower() for name, _ in sent.headers}
    assert not [name for name in head if name.startswith(b"x-tollkeeper-")]
    assert (b"x-claude-code-session-id" in head) == (b"claude" in fields.lower())
    assert (b"traceparent" in head) == (b"traceparent" in fields)


@pytest.mark.parametrize("path", [b"/v1/messages", b"/services/search/x"])
async def test_a_session_of_one_api_is_none_in_another(stage: Stage, path: bytes) -> None:
    """What other APIs call `session-id` may be a secret: it is not kept."""
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": []}).encode()
    for fields, session in ((CODEX, ""), (CODEX + CLAUDE, "9b2e-7")):
        head = b"content-type: application/json\r\n" + fields
        for _ in range(2):  # and again where it is remembered, in whichever API it came before
            assert (await stage.ask(call(fields))).status == 200
            assert (await stage.ask(post(body, path, head))).status == 200
            facts = stage.facts()
            assert facts.session == session
            assert [value for name, value in stage.upstream.received[-1].headers if name == b"session-id"]


@pytest.mark.parametrize(("path", "session"), [(b"/v1/messages", "ses_A"), (b"/services/search/x", "")])
async def test_opencode_says_its_session_in_every_api_of_models(
    stage: Stage, path: bytes, session: str
) -> None:
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": []}).encode()
    head = b"content-type: application/json\r\n" + OPENCODE
    assert (await stage.ask(post(body, path, head))).status == 200
    assert stage.facts().session == session


@pytest.mark.parametrize("value", ["a\u00a0b", "a\u200bb", "a\u2028b", "a\tb"])
@pytest.mark.parametrize("name", [b"user", b"session", b"feature-version"])
async def test_what_a_call_says_of_itself_is_printable(stage: Stage, name: bytes, value: str) -> None:
    answer = await stage.ask(call(b"x-tollkeeper-" + name + b": " + value.encode() + b"\r\n"))
    assert (answer.status, answer.reason) == (400, "invalid_request")
    assert b"printable" in answer.body


@pytest.mark.parametrize("value", [b"s" * 129, b"\xff", b"a\tb"])
async def test_a_session_of_ours_is_clean_text_within_its_bound(stage: Stage, value: bytes) -> None:
    answer = await stage.ask(call(b"x-tollkeeper-session: " + value + b"\r\n"))
    assert (answer.status, answer.reason) == (400, "invalid_request")
    assert b"x-tollkeeper-session" in answer.body
    assert not stage.upstream.received


RUN = b"baggage: a=1,tollkeeper.run=nightly%2F7;ttl=9, b=2\r\n"


@pytest.mark.parametrize(
    ("fields", "run"),
    [
        (RUN, "nightly/7"),
        (RUN + PARENT + b"x-tollkeeper-user: ann\r\n", "nightly/7"),
        (b"BAGGAGE:  tollkeeper.run = r\t\r\nbaggage: c=3\r\n", "r"),
        (RUN + b"x-tollkeeper-run: own; max=5.00\r\n", "own"),
        (b"baggage: x=tollkeeper.run, tollkeeper.running=r\r\n", None),
        (b"baggage: tollkeeper.run=\r\n", 400),
        (b"baggage: tollkeeper.run=a%20b\r\n", 400),
        (RUN + RUN, 400),
    ],
)
async def test_baggage_names_a_run_by_its_id(stage: Stage, fields: bytes, run: str | int | None) -> None:
    for _ in range(2):  # as something new, and as something known
        client = await stage.client()
        got = await client.ask(call(fields))
        asked = stage.runs.asked
        if run == 400:
            assert (got.status, json.loads(got.body)["error"]["param"], asked) == (400, "baggage", [])
        else:
            assert [one.id for one in asked] == ([] if run is None else [run])
            assert [one.amount for one in asked] == [5 * 10**9 if run == "own" else -1] * len(asked)
        asked.clear()


# --- tags -------------------------------------------------------------------------------------


async def test_call_has_declared_members_of_its_metadata_as_tags(stage: Stage) -> None:
    stage.directory.tag_names = ("feature", "level", "plan", "absent")
    fields = b'x-tollkeeper-metadata: {"feature":"search","level":2,"plan":["x"],"other":"y"}\r\n'
    for _ in range(2):  # and again where the line is remembered
        assert (await stage.ask(call(fields + PARENT))).status == 200
        assert stage.facts().tags == {"feature": "search", "level": "2"}


async def test_tags_of_key_go_before_tags_of_call(stage: Stage) -> None:
    stage.directory.tag_names = ("feature", "team")
    stage.directory.caller = replace(CALLER, tags=(("team", "red"), ("undeclared", "x")))
    fields = b'x-tollkeeper-metadata: {"feature":"search","team":"blue"}\r\n'
    assert (await stage.ask(call(fields))).status == 200
    assert stage.facts().tags == {"feature": "search", "team": "red"}


async def test_call_of_organization_without_tags_has_none(stage: Stage) -> None:
    assert (await stage.ask(call(b'x-tollkeeper-metadata: {"feature":"search"}\r\n'))).status == 200
    assert stage.facts().tags == {}
