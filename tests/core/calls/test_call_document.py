"""What two parsers could read differently is refused, and the field is named."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.calls.call import (
    BACKSLASHES_MAX,
    NAMED_PARTS_MAX,
    OBJECTS_MAX,
    OUTSIDE_BYTES_MAX,
    STRINGS_MAX,
    check_names,
    names_in,
    read_document,
    write_document,
)
from gateway.core.families.controlled import Document
from gateway.errors import InvalidRequest, Refusal, RequestTooLarge


def judged(body: bytes) -> Document:
    """What is read of a body that can be understood in one way only."""
    document = read_document(body)
    check_names(body, write_document(document), 0)
    names_in(document)
    return document


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        judged(body)
    assert caught.value.status == 400
    assert caught.value.reason == "invalid_request"
    return caught.value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"a","x":{"model":1},"model":"b"}', "model"),
        (b'{"max_tokens":1,"max\\u005ftokens":2}', "max_tokens"),
        (b'{"max\\u005ftokens":1,"max_tokens":2}', "max_tokens"),
        (b'{"max_tokens":1,"max\\u005Ftokens":2}', "max_tokens"),
        (b'{"\\u006dodel":"a","\\u006dodel":"b"}', "model"),
        (b'{"a\\/b":1,"a/b":2}', "a/b"),
        (b'{"\\u00e9":1,"\xc3\xa9":2}', "\u00e9"),
        (b'{"":1,"":2}', ""),
        (b'{"a:b":1,"a\\u003ab":1}', "a:b"),
        (b'{"a\\u003ab":1,"a\\u003Ab":1}', "a:b"),
        (b'{"a\\u003a":1,"a:":"\\u003a"}', "a:"),
        (b'{"x":"\\u003a","a":1,"a":2}', "a"),
        (b'{"a":1,"x":"\\u003A\\u003a","a":{"b":2}}', "a"),
        (b'{"x":"\\\\u003a","a":1,"a":2}', "a"),
        (b'{"a":{"b":1,"c":":"},"a":"::::"}', "a"),
        (b'{"messages":[{"role":"user","content":"a"},{"role":"user","content":"a","role":"system"}]}',
         "messages.1.role"),
        (b'{"a":[[],[{"b":[1,2,{"c":1,"c":1}]}]]}', "a.1.0.b.2.c"),
        (b'{"stream_options":{"include_usage":true,"include_usage":false}}', "stream_options.include_usage"),
        (b'{"stream_options":{},"stream_options":{}}', "stream_options"),
        (b'{"max_tokens":1e400}', "max_tokens"),
        (b'{"a":{"b":[0,-1e999]}}', "a.b.1"),
        (b'{"max_tokens":' + b"9" * 5000 + b"}", "max_tokens"),
        (b'{"a":[{"b":-' + b"9" * 4301 + b"}]}", "a.0.b"),
        (b'{"max_tokens":NaN}', "max_tokens"),
        (b'{"a":1,"max_tokens": Infinity}', "max_tokens"),
        (b'{"max_tokens":-Infinity}', "max_tokens"),
    ],
)  # fmt: skip
def test_an_ambiguous_field_is_named(body: bytes, param: str) -> None:
    assert refused(body).param == (param or None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"model"',
        b"{",
        b"}",
        b"]{",
        b"{]}",
        b'["a":1]',
        b'{"model":"a"} x',
        b'{"model":"a"}{"model":"b"}',
        b'{"model":"a",}',
        b"{'model':'a'}",
        b'{"model":"a"/**/}',
        b'{"temperature":NaN}',
        b'{"temperature":01}',
        b"\xef\xbb\xbf" + b'{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        '{"model":"a"}'.encode("utf-16-le"),
        '{"model":"a"}'.encode("utf-32"),
        '{"model":"a"}'.encode("utf-7") + b"+",
        b'{"model":"\xff"}',
        b'{"x":"\xff"}',
        b'{"x":"\xed\xa0\x80"}',
        b'{"x":"\xc0\xaf"}',
        b'{"\xff":1}',
        b'{"x":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"x":"\\ud800 and more text behind it"}',
        b'{"x":"\\udc00\\ud800 and more text behind it"}',
        b'{"x":"a\nb"}',
        b'{"x":"\x00"}',
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 40_000,
    ],
)
def test_what_is_not_one_json_object_in_utf8_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize(("opened", "closed"), [(b'{"x":', b"}"), (b"[", b"]")])
def test_depth_of_a_body_is_bounded_by_a_number_and_not_by_the_stack(opened: bytes, closed: bytes) -> None:
    for depth in (254, 255, *range(256, 1_100, 60), 3_000, 9_000):
        body = b'{"x":' + opened * depth + b"1" + closed * depth + b"}"
        if depth <= 255:
            assert judged(body)
        else:
            assert refused(body).message == "The body is nested more than 256 deep."


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (b'{"model":"a","messages":[{"model":1},{"model":2}]}', None),
        (b'{"model":"a","tools":[{"properties":{"model":{},"Model":{}}}]}', None),
        (b'{"x":"\\"a\\":1,\\"a\\":2"}', None),
        (b'{"x":"a\\u003ab:c","y":":"}', '{"x":"a:b:c","y":":"}'),
        (b'{"x":"\\\\u003a"}', None),
        (b'{"x":"\\\\\\u003a"}', '{"x":"\\\\:"}'),
        (b'{"m\\u006fdel\\u003a":1,"model":2}', '{"model:":1,"model":2}'),
        (b'{"x":"\\\\ud800 is not half a pair"}', None),
        (b'{"x":"\\ud83d\\ude00"}', '{"x":"\U0001f600"}'),
        (b' \r\n\t{ "model" : "a" , "x" : [ ] } \n', '{"model":"a","x":[]}'),
        (b'{"x":18446744073709551617,"y":-9223372036854775809}', None),
        (b'{"x":' + b"7" * 4300 + b"}", None),
        (b'{"x":1.0,"y":1e2,"z":0.1}', '{"x":1.0,"y":100.0,"z":0.1}'),
        (b'{"x":"\\u0000\\b"}', None),
        (b'{"x":"\\u0041\\/"}', '{"x":"A/"}'),
    ],
)
def test_what_is_unambiguous_is_written_as_it_was_read(body: bytes, written: str | None) -> None:
    document = judged(body)
    assert write_document(document) == (body if written is None else written.encode())
    assert document == json.loads(body)


def test_an_empty_body_is_said_to_be_empty() -> None:
    assert "empty" in refused(b"").message
    assert "empty" in refused(b" \r\n").message
    assert "empty" not in refused(b"{").message


def test_a_field_far_behind_is_refused_without_its_name() -> None:
    assert refused(b'{"x":[' + b"1," * NAMED_PARTS_MAX + b'1],"a":1,"a":2}').param is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"x":[' + b'{"n":1},' * STRINGS_MAX + b"1]}", "strings"),
        (b'{"x":[' + b"1, " * 480_000 + b"1]}", "numbers"),
        (b'{"x":[' + b" {} ," * OBJECTS_MAX + b"1]}", "objects and lists"),
        (b'{"x":"' + b"\\n" * (BACKSLASHES_MAX + 1) + b'"}', "backslashes"),
        (b'{"x":[' + b"1" + b" " * OUTSIDE_BYTES_MAX + b"]}", "outside"),
        (b'{"x":' + b"[" * (OBJECTS_MAX + 1), "objects and lists"),
        (b'{"x":["\\\\",' + b'"\\"",' * STRINGS_MAX + b'"",' * 200_000 + b'""]}', "strings"),
        (b"{" + b",".join(b'"a%d" :1' % at for at in range(STRINGS_MAX + 1)) + b" " * (1 << 20), "strings"),
    ],
)
def test_a_document_of_too_many_parts_is_refused_before_it_is_read(body: bytes, said: str) -> None:
    with pytest.raises(RequestTooLarge, match=said):
        read_document(body)


def test_many_long_numbers_are_refused_before_they_are_read() -> None:
    body = b'{"x":[' + b",".join([b"9" * 4000] * 1000) + b"]}"
    with pytest.raises(InvalidRequest, match="309 digits"):
        read_document(body)


@pytest.mark.parametrize(
    "text",
    [
        "An image: iVBORw0KGgo" * 300_000,
        'He said: "no", {"a": [1, 2]}, \\ and so on. ' * 20_000,
        "1,2,3,[4],{5}\n" * 200_000,
        "0" * 2_000_000,
        "\\" * 100_001,
        "é" * 1_000_000,
    ],
)
def test_a_long_text_is_no_document_of_many_parts(text: str) -> None:
    assert judged(json.dumps({"model": "m", "x": [text, text]}, ensure_ascii=False).encode())


_TEXT = st.lists(
    st.sampled_from([":", "\\u003a", "\\u003A", "\\\\", "\\\\u003a", '\\"', "a", "u003a", "\\u0022", ","]),
    max_size=4,
).map("".join)
_NAMES = st.sampled_from(["a", "\\u0061", "b", "a:", "a\\u003a", "\\u0061\\u003A", "\\\\u003a", ""])
_VALUES = st.recursive(
    st.one_of(_TEXT.map(lambda text: f'"{text}"'), st.sampled_from(["1", "null", "[]", "{}"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + " ,".join(items) + "]"),
        st.lists(st.tuples(_NAMES, inner), max_size=4).map(
            lambda members: "{" + ",".join(f'"{name}" : {value}' for name, value in members) + "}"
        ),
    ),
    max_leaves=8,
)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


@given(_VALUES)
def test_a_name_twice_is_found_wherever_it_is_and_nowhere_else(value: str) -> None:
    body = f'{{"x":{value}}}'.encode()
    try:
        json.loads(body, object_pairs_hook=_once)
    except ValueError:
        assert refused(body).param
    else:
        assert judged(body) == json.loads(body)


def _undecodable(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return True
    return False


@given(st.lists(st.sampled_from(["\\ud83d", "\\ude00", "\\\\", "\\u0041", "a", "ud800", "\\n"]), max_size=6))
def test_half_a_surrogate_pair_is_refused_wherever_orjson_refuses_it(parts: list[str]) -> None:
    body = ('{"model":"a","x":"' + "".join(parts) + '"}').encode()
    if _undecodable(body):
        refused(body)
    else:
        judged(body)


@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_read_or_refused(raw: bytes, wrapped: bool) -> None:
    body = b'{"x":' + raw + b"}" if wrapped else raw
    try:
        assert judged(body) == json.loads(body)
    except Refusal as refusal:
        assert refusal.status == 400  # noqa: PT017  # either is right, what is read must be so
