"""One look at a body in C says what is found out without it, or nothing: a call is read alike by both."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import combinations
from typing import Any

import msgspec
import pytest

from gateway.core.billing.vector import Vector
from gateway.core.calls import call as module
from gateway.core.calls.call import MEDIA_NAMES, Body, CallRequest, CutParts, FieldNames, names_in
from gateway.core.calls.estimate import answers_within, limit_models
from gateway.core.calls.models import is_repeatable
from gateway.core.calls.output_limits import check_numbers, limit_output
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import Route
from gateway.core.calls.tool_uses import limit_uses, unpriced_tools, uses_of
from gateway.core.families import objects
from gateway.core.families.costs import members_of_cost
from gateway.core.families.family import BodyIds, only_text
from gateway.core.families.objects import ObjectAccess, read_objects
from gateway.core.families.registry import FAMILIES, OF_METER, SHAPES
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from gateway.errors import Refusal
from tests import extensions
from tests.tree import ROOT

SOURCE = ROOT / "gateway" / "core" / "calls" / "_scan.c"
Scan = Callable[[bytes], tuple[int, int, int, int, bytes | None, bytes | None, int, bytes | None] | None]
METERS = (
    "openai_chat",
    "openai_completions",
    "openai_responses",
    "anthropic_messages",
    "gemini_generate",
    "gemini_stream",
    "cohere_chat",
    "ollama_chat",
    "bedrock_converse",
    "bedrock_invoke",
    "generic",
)


def built(flags: str = "") -> Scan:
    found: Scan = extensions.built(SOURCE, flags).scan
    return found


@pytest.fixture(
    scope="session", params=["", "-DWITHOUT_AVX2", "-DWITHOUT_SSE2"], ids=["by 32", "by 16", "by 8"]
)
def scan(request: pytest.FixtureRequest) -> Scan:
    return built(request.param)


@pytest.mark.parametrize("size", [0, 1, 239, 240, 241, 480, 10_007])
def test_digits_and_capitals_are_as_many_as_without_it(size: int) -> None:
    """Each byte, and each place in what is counted at once."""
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    by_python = len(body) - len(body.translate(None, module._DIGITS_AND_CAPITALS))
    dense = extensions.built(SOURCE, "").dense
    assert dense(body) == by_python == sum(chr(one) in "0123456789" or 65 <= one <= 90 for one in body)
    assert dense(b"A" * size) == size


@pytest.fixture(scope="session")
def slowest() -> Scan:
    return built("-DWITHOUT_SSE2")


def read(meter: str, body: bytes, by: Scan | None) -> dict[str, Any]:
    """All that is read of a body, or why it is refused."""
    family = OF_METER.get(meter)
    route = Route(
        ("POST",), "/x", "u", "s", Family("generic" if family is None else meter.partition("_")[0]), meter
    )
    before, module._scan = module._scan, by
    try:
        call = read_call(route, {"model": "m"}, body, reads=meter == "generic")
        decided = decided_of(call)
    except Refusal as refusal:
        return {"refused": type(refusal), "message": refusal.message, "param": refusal.param}
    finally:
        module._scan = before
    found = {one.name: getattr(call, one.name) for one in fields(CallRequest)}
    found |= {one.name: getattr(call.body, one.name) for one in fields(Body)}
    # Texts are cut out of the document, and are in what is sent.
    shown = ("body", "cut", "document", "tools", "plugins")
    found = {name: value for name, value in found.items() if name not in shown} | decided
    found |= {"names": said(call.body.names), "sent": call.write_for("another")}
    for write in (
        limit_output,
        lambda one, tokens: limit_uses(one, (TOOLED,)),
        lambda one, tokens: limit_models(one),
    ):
        write(call, 17)
        found["sent"] += call.write_for("a third")
    return found | {"last": call.take_body()}


def decided_of(call: CallRequest) -> dict[str, Any]:
    """What is decided by a call that was read, up to which upstream it may be sent to."""
    document, family = call.body.document, FAMILIES[call.family]
    if document is None:
        return {}
    excluded, shape = family.exclusions, SHAPES.get(call.meter)
    rules = excluded.cache, excluded.media, excluded.heard, excluded.sound
    found: dict[str, Any] = {
        "excluded": [rule(document, call.body.names) for rule in rules],
        "tiers": [excluded.tier(document, "priority"), excluded.asked_tiers(document)],
        "uses": uses_of(call, document, TOOLED.tools), "unpriced": unpriced_tools(call, (TOOLED,)),
        "within": within(call), "repeatable": is_repeatable(call), "fields": list(document),
        "keeps": shape is not None and shape.keeps is not None and shape.keeps(document),
    }  # fmt: skip
    for name, judged in (
        ("numbers", lambda: check_numbers(call, frozenset())),
        ("objects", lambda: read_objects(ObjectAccess(("path",), shape and shape.keeps), call)),
    ):
        try:
            judged()
        except Refusal as refusal:
            found[name] = type(refusal), refusal.message, refusal.param
    return found


def within(call: CallRequest) -> object:
    found = answers_within(call)
    return found and (found.models, found.compactions)


def said(names: FieldNames) -> tuple[object, ...]:
    return names.ids, names.files, names.caches, names.long_caches, names.media


def judge(scan: Scan, body: bytes) -> bool:
    """Hold what a scan says of a body against what is found out without it; whether it says anything."""
    found = scan(body)
    for meter in METERS:
        assert read(meter, body, scan) == read(meter, body, None)
    if found is None:
        return False
    document = msgspec.json.decode(body)
    assert msgspec.json.encode(document) == body
    assert document == json.loads(body, object_pairs_hook=once)
    flags, files, rare, marks, rest, cuts, left, ids = found
    flagged = tuple(bool(flags & bit) for bit in (1, 2, 4, 8))
    has_ids, named, caches, long_caches, media = said(names_in(document))
    assert (*flagged, files) == (has_ids, caches, long_caches, media, named)
    assert flags & 16 or tools_of({"all": list(document.values())}) == []
    assert rare == sum(byte > 0x7F for byte in body)
    assert marks <= sum(body.count(mark) for mark in (b",", b"[", b"{", b"\\"))
    if rest is None:
        assert (cuts, left, ids) == (None, marks, None)
    else:
        assert cuts is not None
        assert ids is not None
        assert left <= sum(rest.count(mark) for mark in (b",", b"[", b"{", b"\\"))
        parts = CutParts(body, rest, cuts, ids, left)
        assert parts.put_back(plain(msgspec.json.decode(rest))) == body
        spans = [
            body[start:end] for start, end in struct.iter_unpack("=II", cuts) if body[:start].endswith(b'{"')
        ]
        runs: list[Any] = [run_of(span) for span in spans]
        messages: list[Any] = []
        assert is_cut(msgspec.json.decode(rest), document, (runs, messages))
        assert not runs
        assert parts.ids == list(ids_in(messages))
    return True


OBJECT = {"role": "\2"}
_NAMING = [family.objects for family in FAMILIES.values()]


def ids_in(value: Any) -> Iterator[str]:
    """The ids of objects in a message that was cut, as they stand there."""
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        if name == "id":
            yield each
        elif isinstance(each, dict | list):
            yield from ids_in(each)


def run_of(span: bytes) -> Any:
    """The objects that were cut, or tools but for how the first of them begins and the last ends."""
    try:
        return msgspec.json.decode(b'[{"%b}]' % span)
    except msgspec.DecodeError:
        return msgspec.json.decode(b'[{"":{"%b}}]' % span)


Cut = tuple[list[Any], list[Any]]


def is_cut(rest: object, whole: object, cut: Cut, name: str = "", depth: int = 0) -> bool:
    """Whether nothing is not as it was but long texts by certain names, within something in the body, and
    objects in a row that decide nothing: `cut` are those still to come, and the messages among the others.
    """
    runs, messages = cut
    if isinstance(rest, dict):
        assert isinstance(whole, dict)
        if rest == OBJECT != whole:
            assert [whole] == runs.pop(0)
            return (depth, name) in {(3, "input_schema"), (3, "parameters")} or declares(whole)
        assert list(rest) == list(whole)
        return all(is_cut(each, whole[one], cut, one, depth + 1) for one, each in rest.items())
    if isinstance(rest, list):
        assert isinstance(whole, list)
        at = 0
        for each in rest:
            if depth == 1 and name in {"messages", "input"} and each == OBJECT:
                run = runs.pop(0)
                assert run == whole[at : at + len(run)]
                assert all(decides_nothing(one, name) for one in run)
                at, messages[len(messages) :] = at + len(run), run
            elif depth == 1 and name == "tools" and isinstance(each, dict) and OBJECT in each.values():
                tools = whole[at : at + (len(runs[0]) if "" in runs[0][0] else 1)]
                alike = len(tools) > 1 or each.get("parameters") == OBJECT
                assert not alike or all(is_function(one, each) for one in tools)
                at += len(tools)
                for one, value in each.items():
                    if value == OBJECT and len(tools) > 1:
                        runs.pop(0)
                    else:  # in front of what was cut, as no text behind it is
                        assert is_cut(value, tools[0][one] if runs else tools[-1][one], cut, one, depth + 2)
            else:
                assert is_cut(each, whole[at], cut, "", depth + 1)
                at += 1
        return at == len(whole)
    if rest == whole:
        return True
    assert rest == "\1"
    assert isinstance(whole, str)
    return name in TEXTS and depth > 2 and len(plain(whole)) > 32


def decides_nothing(message: Any, place: str) -> bool:
    """Whether a message is known to hold no medium, and names no object to any family."""
    found = [BodyIds() for _ in _NAMING]
    for rules, each in zip(_NAMING, found, strict=True):
        objects._look(rules, [message], place, each)
    return only_text(message) and not any(each.named or each.unknown for each in found)


def is_function(tool: Any, like: Any) -> bool:
    """Whether a tool is the client's own, and has the members of another one."""
    said = tool.get("type", "" if "input_schema" in tool else None)
    return list(tool) == list(like) and (said == "function" or (said == "" and tool.get("input_schema")))


def declares(function: Any) -> bool:
    """Whether nothing of what a tool says of its function can name an object."""
    rest = {name: value for name, value in function.items() if name != "parameters"}
    return rest.keys() <= {"name", "description", "strict"} and not any(
        isinstance(one, dict | list) for one in rest.values()
    )


TEXTS = {
    *("text", "output", "content", "thinking", "arguments", "signature", "description"),
    *("reasoning_content", "encrypted_content"),
}
TOOLED = Vector(1, "USD", (1,), tools={"web_search": 1})


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def plain(document: object) -> bytes:
    return msgspec.json.encode(document)


PICTURE = "iVBORw0KGgo" + "A" * 2_048
AGENT: dict[str, Any] = {
    "model": "m",
    "max_tokens": 4096,
    "stream": True,
    "temperature": 0.7,
    "system": [{"type": "text", "text": "Code.\n" * 9, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
    "tools": [
        {
            "name": "read",
            "description": 'A "file"\tof\\x',
            "input_schema": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "limit": {"type": "integer", "minimum": -1}},
            },
        }
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "größer \x1b[1m株式会社 😀"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "read", "input": {}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "x\r\n" * 99}],
        },
    ],
}
CHAT = {
    "model": "m",
    "stream": True,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}},
                {"type": "file", "file": {"file_id": "f"}},
            ],
        }
    ],
}
TURNS: list[Any] = [
    {"role": "user", "content": "What is owed? " * 9},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":"b"}' * 9}},
            {"id": "call_2", "type": "other", "function": {"name": "f", "arguments": "x" * 99}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "3" * 99, "file_id": "file_" + "4" * 99},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "y" * 64}],
    },
    {"type": "reasoning", "id": "rs_1", "encrypted_content": "z" * 64, "content": "9" * 32},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "model " * 20, "parameters": {}}},
    {"type": "web_search_20250305", "name": "n" * 99, "description": "web_search " * 9},
    {"type": "advisor_20260301", "name": "a", "model": "other", "text": "t" * 99},
]
_DECLARED = {"name": "g", "parameters": {"type": "object", "properties": {"id": {"model": "x"}}}}
FUNCTIONS: list[Any] = [
    *TOOLS,
    {"type": "function", "function": _DECLARED | {"strict": None}},
    {"type": "function", "function": _DECLARED | {"other": 1}},
    {"function": _DECLARED, "type": "function"},
    {"type": "function", **_DECLARED, "strict": True},
    {"type": "function", **_DECLARED, "strict": "yes"},
    {"type": "function", **_DECLARED, "description": "web_search " * 9},
    {"type": "namespace", **_DECLARED, "tools": [{"type": "web_search"}]},
    {**_DECLARED, "type": "other"},
    _DECLARED,
    {"name": "web_search", "description": "d" * 40, "input_schema": {"type": "object"}},
    {"name": "web_search", "description": None, "input_schema": {"id": "file_1"}},
    {"type": "web_search_20250305", "name": "x", "input_schema": {"id": "file_1"}},
    {"name": "x", "input_schema": {}},
    {"name": "x", "input_schema": {"a": 1}, "cache_control": {"type": "ephemeral"}},
]
_ADVISOR = {"type": "advisor_20260301", "name": "a", "model": "other"}
SAID: list[Any] = [
    *TURNS,
    {"type": "additional_tools", "role": "developer", "tools": [{"type": "web_search"}, *TOOLS]},
    {"type": "message", "role": "user", "content": "x" * 64, "tool": _ADVISOR},
    {
        "role": "system",
        "content": [{"type": "tool_addition", "tool": {"type": "tool_definition", "definition": _ADVISOR}}],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "t",
                "content": [{"type": "text", "text": "t" * 64}, {"tool": _ADVISOR}],
            }
        ],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "t", "input": {"tools": [_ADVISOR]}}]},
    {"role": "user", "content": [{"Tool": _ADVISOR}]},
    {"role": "user", "tool\u017f": [_ADVISOR]},
    *AGENT["messages"],
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": ""},
    {"type": "function_call_output", "id": "fo_1", "call_id": "c", "output": [{"type": "text", "text": "t"}]},
    {
        "type": "reasoning",
        "id": "r",
        "summary": [{"type": "summary_text", "text": "s"}],
        "encrypted_content": "e",
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"},
            {"type": "tool_use", "id": "tu", "name": "n", "input": {"path": "a", "list": [1, {"x": "y"}]}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "tu", "content": [{"type": "text", "text": "r"}]}],
    },
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", "function": {"arguments": "{}"}, "index": 0}],
    },
]
MEMBERS: dict[str, Any] = {
    "id": "id_1", "file_id": "f", "x_ids": ["a"], "ID": "b", "type": "image", "role": None, "content": [],
    "input": {}, "container": "c", "fileUri": "files/x", "Conversation": "d", "s3Location": {"uri": "u"},
    "variables": {"id": "v"}, "input_schema": {"id": "s"}, "function": {}, "arguments": {"id": "a"}, "n": 1,
    "output": "", "summary": [{"id": "e"}], "tool_calls": [{"id": "g", "type": "custom"}], "text": ["x"],
    "cache_control": {"type": "ephemeral"},
}  # fmt: skip
# Members of parts, and of messages, that are known to decide nothing where there is a type.
PART: dict[str, Any] = {
    "text": "x", "id": "i", "name": "n", "input": {"a": 1}, "tool_use_id": "t", "is_error": True,
    "thinking": "t", "content": [{"type": "text", "text": "r"}], "signature": "s", "data": "d",
    "refusal": "r", "annotations": [], "cache_control": {"type": "ephemeral"}, "type": "tool_result",
}  # fmt: skip
MESSAGE: dict[str, Any] = {
    "role": "user", "content": "x", "type": "message", "tool_calls": [], "tool_call_id": "t", "call_id": "c",
    "id": "i", "name": "n", "arguments": "{}", "output": "o", "status": "s", "phase": "p", "refusal": "r",
    "reasoning": "r", "reasoning_content": "c", "encrypted_content": "e", "annotations": [],
    "summary": [{"type": "summary_text", "text": "t"}], "cache_control": {"type": "ephemeral"},
}  # fmt: skip
CALLS = [
    AGENT,
    {"model": "m", "messages": SAID, "tools": TOOLS, "store": True},
    {"model": "m", "messages": [{"type": ["x"]}], "tools": [{"type": {}}], "modalities": [["text"]]},
    {"model": "m", "input": SAID, "tools": [{"name": "r", "input_schema": {"properties": {"file_id": {}}}}]},
    {"model": "m", "messages": TURNS, "tools": TOOLS},
    {"model": "m", "stream": True, "messages": TURNS, "tools": TOOLS[:1], "max_tokens": 0},
    {
        "model": "m",
        "stream": True,
        "stream_options": None,
        "input": TURNS,
        "tools": TOOLS,
        "content": "8" * 99,
    },
    {"model": "m", "input": TURNS, "text": {"content": "5" * 64}, "generationConfig": {"text": "6" * 64}},
    {"model": "m", "messages": [[{"content": "7" * 99}]], "arguments": ["8" * 99], "output": [[["9" * 99]]]},
    {
        "model": "m",
        "messages": [{"content": "\1" + "a" * 99}, {"content": "\1"}],
        "tools": [{"text": "b" * 99}],
    },
    CHAT,
    CHAT | {"stream_options": {}},
    CHAT | {"stream_options": None},
    CHAT | {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_usage": True}} | CHAT,
    {"model": "m", "prompt": ["a", "b"], "n": 2, "cached_content": None, "uri": "x", "ttl": "2h"},
    {"model": "m", "input": [1, 2, 3], "stream": True, "previous_response_id": "r"},
    {
        "contents": [
            {
                "role": "user",
                "parts": [{"text": "é"}, {"inlineData": {"mimeType": "image/png", "data": PICTURE}}],
            }
        ],
        "generationConfig": {"maxOutputTokens": 5},
    },
    {"model": "m"},
    {},
]


@pytest.mark.parametrize("document", CALLS)
def test_calls_are_read_alike(scan: Scan, document: dict[str, Any]) -> None:
    assert judge(scan, plain(document))
    for spelled in ({"ensure_ascii": True}, {"ensure_ascii": False, "indent": 1}):
        judge(scan, json.dumps(document, **spelled).encode())  # type: ignore[arg-type]  # options of it


def test_what_has_no_type_is_read_alike_whatever_its_members_are(scan: Scan) -> None:
    """A part without a type may be sound, and so may a message without a role."""
    for place, members in (("content", PART), ("messages", MESSAGE)):
        for names in (names for count in (1, 2) for names in combinations(members, count)):
            said = {name: members[name] for name in names}
            messages = [said if place == "messages" else {"role": "user", "content": [said]}]
            judge(scan, plain({"model": "m", "messages": messages}))


def test_what_is_recorded_is_read_alike(scan: Scan) -> None:
    known = 0
    for file in sorted((ROOT / "tests" / "recorded").glob("*.txt")):
        for line in file.read_text().splitlines():
            try:
                document = json.loads(line.removeprefix("data: "))
            except ValueError:
                continue
            if isinstance(document, dict):
                body = plain(document)
                found, names = scan(body), said(names_in(document))
                known += found is not None
                assert found is None or (bool(found[0] & 1), found[1]) == names[:2]
                assert msgspec.json.decode(body) == document
    assert known > 100


def test_a_body_that_is_cut_or_broken_is_read_alike(scan: Scan) -> None:
    short = {
        "m": "é\n\x02",
        "n": [1, -20, 0.5, None, True, False],
        "id": {"url": "x", "d": {}, "l": []},
        "a": "",
    }
    body = plain(short)
    assert judge(scan, body)
    for at in range(len(body)):
        assert scan(body[:at]) is None
        for other in b'"\\{}[],:0-.eu \x00\x1f\x7f\x80\xc3\xed\xff':
            for broken in (
                body[:at] + bytes((other,)) + body[at + 1 :],
                body[:at] + bytes((other,)) + body[at:],
            ):
                if scan(broken) is not None:
                    assert judge(scan, broken)


NO_NUMBERS = (
    b"NaN Infinity -Infinity nul nulL True tru falsee - +1 01 -01 -0 -0.0 0. .5 1. 1.50 1.00 0.00 0.000001 "
    b"1e5 1E5 1e400 1234567890123456.5 0.1234567890123456 0x1 1_0"
)
NO_TEXTS = [
    *(rb"\ \x \/ \' \u \u00 \u000a \u0008 \u001B \u0020 \u0041 \ud800 \udc00 \ud83d\ude00".split()),
    *(b"\x00", b"\n", b"\x1f", b"\x80", b"\xc0\xaf", b"\xc1\xbf", b"\xc3", b"\xe0\x80\x80", b"\xe0\x9f\xbf"),
    *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),
    *(b"\xe2\x82", b"\xf0\x9f\x98", b"\xff"),
]


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"[]",
            b"1",
            b'""',
            b"{",
            b"}",
            b'{"a":1}}',
            b'{"a":1} ',
            b' {"a":1}',
            b'{"a":1}\x00',
            b"{\x00}",
        ),
        *(
            b'{"a":1,}',
            b'{,"a":1}',
            b'{"a"}',
            b'{"a":}',
            b'{"a":1 }',
            b'{"a": 1}',
            b'{"a":[1,]}',
            b'{"a":[,1]}',
        ),
        *(
            b'{"a":[1}',
            b'{"a":{"b":1]}',
            b"{1:2}",
            b'{"a":"b" "c"}',
            b"\xef\xbb\xbf{}",
            b"{'a':1}",
            b"{/**/}",
        ),
        *(
            b'{"a":1,"a":1}',
            b'{"a":1,"\\u0061":2}',
            b'{"\\u0061":1}',
            b'{"a\\n":1}',
            b'{"\\\\":1}',
            b'{"":1,"":2}',
        ),
        *(b'{"x":[{"b":{"c":1,"d":{},"c":2}}]}', b'{"a\x00b":1}', b'{"a\\u0000":1}', b'{"a":{"b":1},"a":2}'),
        *(b'{"a":%s}' % one for one in NO_NUMBERS.split()),
        *(b'{"a":%s}' % one for one in (b"9" * 19, b"9" * 5000, b"1" + b"0" * 310)),
        *(b'{"a":"%s"}' % one for one in NO_TEXTS),
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"a":' + b"[" * 10_000,
        b'{"a":' * 10_000,
        b"{" + b",".join(b'"a%d":1' % one for one in range(129)) + b"}",
    ],
)
def test_nothing_is_said_of_what_parsers_may_read_differently(scan: Scan, body: bytes) -> None:
    assert not judge(scan, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * 64 + b"1" + b"}" * 64,
        b"{" + b",".join(b'"a%d":1' % one for one in range(128)) + b"}",
        b'{"x":{"a":{"b":1},"c":[{"b":1},{"b":2}]},"a":{"a":1},"b":[{}],"A":[[],[[]]]}',
        plain(
            {
                "a": [
                    0,
                    -1,
                    10,
                    999999999999999999,
                    -999999999999999999,
                    0.0,
                    1.0,
                    -1.5,
                    0.00001,
                    12345678901234.5,
                ]
            }
        ),
        plain({"a": "".join(map(chr, range(0x2100)))}),
        plain({"a": "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff", "é": 1, "e\u0301": 2}),
        plain({"x" * 5000 + str(one): one for one in range(9)}),
        plain(dict.fromkeys(("ID", "x_Id", "yIDS", "z_iDs", "url", "URL", "uri", "my_file_id", "İd"), "x")),
        plain(dict.fromkeys(("CACHe", "cac", "cache_control", "ttl"), "1h")),
        plain({"ri": ["x"], "l": [{"ttl": "1h"}]}),
        plain({"x": {"İd": 1, "_İd": 2, "ſ": 3, "_idſ": 4, "caĉh": 5}, "ttl": ["1h"]}),
    ],
)
def test_what_all_read_alike_is_known(scan: Scan, body: bytes) -> None:
    assert judge(scan, body)


@pytest.mark.parametrize("separator", ["", "_", "-", "x", "xu", "u", "_u"])
def test_a_name_that_ends_like_an_id_is_one_in_both(scan: Scan, separator: str) -> None:
    for start in ("", "a", "_", "uu"):
        for end in ("id", "ids", "ID", "iDs", "uuid", "UUIDs", "d", "s", "idss", "uid"):
            document = {start + separator + end: "x"}
            found = scan(plain(document))
            assert found is not None
            assert bool(found[0] & 1) is names_in(document).ids, document
    assert names_in({"a-uuids": ""}).ids


def test_media_are_known_by_the_names_of_their_places(scan: Scan) -> None:
    names = [*MEDIA_NAMES, "url", "image_url", "fileUri", "dat", "datas", "file-data", "fata", "x"]
    for name in [*names, *map(str.upper, names), *map(str.title, names)]:
        for value in (
            "",
            "A",
            "é",
            "data:",
            "DaTa:x",
            "dat\n:",
            "https://x",
            [],
            ["A"],
            [[]],
            {},
            {"a": 1},
            1,
            None,
        ):
            for document in ({name: value}, {"a": [{name: value}]}, {"a": {name: value, "b": "c"}}):
                found = scan(plain(document))
                assert found is not None
                assert bool(found[0] & 8) is names_in(document).media
    for family in FAMILIES.values():
        for shape in family.shapes.values():
            for places in (shape.media.by_type, shape.media.by_name):
                for name, part in places.items():
                    last = part.path[-1] if part.path else name
                    assert last in MEDIA_NAMES or last.endswith(("url", "ri")) or part.named


def test_each_letter_is_seen_wherever_it_stands(scan: Scan) -> None:
    for letter in ('"', "\\", "\n", "\x01", "é", "株", "😀", "\x7f"):
        for at in range(40):
            for behind in (0, 1, 15, 16, 33):
                assert judged_alone(scan, {"a" * at + "b": "x" * at + letter + "y" * behind})


def judged_alone(scan: Scan, document: dict[str, Any]) -> bool:
    body = plain(document)
    found = scan(body)
    assert found is not None
    assert found[2] == sum(byte > 0x7F for byte in body)
    for at in (1, len(body) - 2):
        assert scan(body[:at] + b"\x01" + body[at:]) is None
        assert scan(body[:at] + b"\xff" + body[at:]) is None
    return True


def at_most(scan: Scan) -> Iterator[tuple[bytes, bytes]]:
    """Bodies with as much of something as there may be, and with one more."""

    def numbers(count: int, digits: int = 1) -> bytes:
        return b'{"a":[' + b",".join([b"1" * digits] * count) + b"]}"

    most = module.STRINGS_MAX + module.OBJECTS_MAX + module.NUMBERS_MAX
    yield numbers(most + 1), numbers(most + 2)
    outside = [b'{"a":[' + b",".join([b"1" * 18] * 440_000 + [b"1" * more]) + b"]}" for more in (1, 2)]
    short = module.OUTSIDE_BYTES_MAX - (len(outside[0]) - 3)
    count, rest = divmod(short, 19)
    fill = b",".join([b"1" * 18] * (440_000 + count) + [b"1" * (rest + 1)])
    yield b'{"a":[' + fill + b"]}", b'{"a":[' + fill + b"1]}"
    for part, count, before in ((b'""', module.STRINGS_MAX - 1, 0), (b"{}", module.OBJECTS_MAX - 2, 0)):
        yield tuple(b'{"a":[' + b",".join([part] * (count + more)) + b"]}" for more in (before, before + 1))  # type: ignore[misc]  # two
    yield tuple(b'{"a":"' + b"\\n" * (module.BACKSLASHES_MAX + more) + b'"}' for more in (0, 1))  # type: ignore[misc]  # two


def test_there_may_be_as_much_of_everything_as_is_counted_without_it(scan: Scan) -> None:
    for most, more in at_most(scan):
        assert scan(most) is not None
        module.check_size(most)
        assert scan(more) is None
        with pytest.raises(Refusal):
            module.check_size(more)


def test_its_constants_are_those_of_the_definition() -> None:
    stated = dict(re.findall(r"#define (\w+) \(?([\d <]+)\)?$", SOURCE.read_text(), re.MULTILINE))
    shared = {name: text for name, text in stated.items() if hasattr(module, name) and name != "DEPTH_MAX"}
    assert len(shared) == 5
    for name, text in shared.items():
        number, _, shift = text.partition("<<")
        assert int(number) << int(shift or 0) == getattr(module, name)


@pytest.mark.parametrize("said", ["\\u0001", "\\\\u0001", "\\u0002", "\1", "\2", "\\\1", 'role":"\\u0002"'])
def test_what_reads_like_a_mark_of_a_cut_is_none(scan: Scan, said: str) -> None:
    message = {"role": "user", "content": "x" * 200}
    assert judge(scan, plain({"messages": [message, {"role": said, "content": said}], "stop": said}))


def test_functions_in_a_row_are_cut_as_one(scan: Scan) -> None:
    said = {"name": "f", "description": "Does it. " * 9, "parameters": {"type": "object", "id": "x"}}
    schema: dict[str, Any] = {
        "input_schema" if one == "parameters" else one: each for one, each in said.items()
    }
    texts = b'"name":"f","description":"\\u0001",'
    for tool, left in (
        ({"type": "function", "function": said}, b'"type":"function","function":{"role":"\\u0002"}'),
        ({"type": "function", **said}, b'"type":"function",' + texts + b'"parameters":{"role":"\\u0002"}'),
        (schema, texts + b'"input_schema":{"role":"\\u0002"}'),
    ):
        tools = [{**tool, "strict": one} for one in (None, True, False)]
        body = plain({"model": "m", "messages": TURNS, "tools": tools})
        assert judge(scan, body)
        found = scan(body)
        assert found is not None
        assert found[4] is not None
        assert found[4].endswith(b'"tools":[{%b,"strict":false}]}' % left)


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_what_a_function_was_given_is_judged_alike_by_each_name_of_an_object(scan: Scan, api: str) -> None:
    names = members_of_cost(api, "object")
    assert len(names) > 20
    for name in names:
        used = {"type": "tool_use", "id": "t", "name": "f", "input": {name: "x" * 9, "y": "z" * 400}}
        said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [used]}]
        assert judge(scan, plain({"model": "m", "max_tokens": 1, "messages": [*said, said[0]]}))


def test_long_texts_are_walked_alike(scan: Scan, slowest: Scan) -> None:
    """However many backslashes there are, and wherever an escape stands in what is looked at in one go."""
    draw = random.Random(7)
    for letters in ('\\"', 'aaaa\\"\n', "a\\u01", "x\n\té\x02\x7f", "ab" * 99 + "\\"):
        for _ in range(200):
            text = "".join(draw.choices(letters, k=draw.randrange(400)))
            body = plain({"a": text, "b": "x" * draw.randrange(9)})
            found = scan(body)
            assert found == slowest(body)
            assert found is not None
            assert found[3] == 1 + 1 + body.count(b"\\")
            for _ in range(8):
                at, put = draw.randrange(len(body)), draw.choice(b'"\\u/n\n\x80\xc3a01')
                broken = body[:at] + bytes((put,)) + body[at + draw.randrange(2) :]
                assert scan(broken) == slowest(broken)


def test_an_agents_body_is_all_but_cut(scan: Scan) -> None:
    found = scan(plain({"model": "m", "messages": SAID[-3:] * 50}))
    assert found is not None
    assert found[4] == b'{"model":"m","messages":[{"role":"\\u0002"}]}'


def test_names_in_great_number_are_looked_at_once(scan: Scan) -> None:
    """What is said of them takes no longer the more objects there are around it."""
    deep = b"".join(b'{"a%d":1,"b":' % one for one in range(60)) + b"1" + b"}" * 60
    assert judge(scan, deep)
    wide = b"[" + b",".join([plain({f"n{one}": 1 for one in range(128)})] * 20) + b"]"
    assert scan(b'{"a":' + wide + b"}") is not None
    many = b"{" + b",".join(b'"%d":1' % one for one in range(200_000)) + b"}"
    assert scan(many) is None


def test_a_body_is_as_heavy_as_what_is_read_of_it(scan: Scan) -> None:
    texts = plain({"messages": [{"content": "a\n" * 50_000}]})
    fields_ = plain({"messages": [{"other": "a\n" * 50_000}]})
    picture = plain({"messages": [{"content": "a\n" * 50_000, "data": PICTURE}]})
    before = module._scan
    try:
        module._scan = scan
        light = {
            skips: [is_light(body, skips) for body in (texts, fields_, picture)] for skips in (True, False)
        }
        module._scan = None
        light[None] = [is_light(texts, skips=True)]
    finally:
        module._scan = before
    assert light == {True: [True, False, True], False: [False, False, False], None: [False]}


def is_light(body: bytes, skips: bool) -> bool:
    look = module.look_out_of_turn(body, skips)
    assert look is not None
    return look.light
