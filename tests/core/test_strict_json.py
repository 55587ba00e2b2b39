"""What two parsers could read differently is refused, and the field is named."""

from __future__ import annotations

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.strict_json import TOKENS_MAX, StrictReader, members
from gateway.errors import InvalidRequest


class Shape(msgspec.Struct):
    model: str | None = None
    max_tokens: int | None = None
    stream: bool | None = None


READER = StrictReader(
    Shape, ("model", "max_tokens", "stream", "stream_options"), {"stream_options": ("include_usage",)}
)


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        READER.read(body)
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
        (b'{"model":"a","Model":"b"}', "model"),
        (b'{"MODEL":"b"}', "model"),
        (b'{"\\u004dodel":"b"}', "model"),
        (b'{"Max_Tokens" : 1}', "max_tokens"),
        (b'{"max_token\xc5\xbf":1}', "max_tokens"),
        (b'{"max_token\\u017f":1}', "max_tokens"),
        (b'{"max_to\xe2\x84\xaaens":1}', "max_tokens"),
        (b'{"max_to\\u212aens":1}', "max_tokens"),
        (b'{"max_to\\u212Aens":1}', "max_tokens"),
        (b'{"stream_options":{"include_usage":true,"include_usage":false}}', "stream_options.include_usage"),
        (b'{"stream_options":{"Include_Usage":true}}', "stream_options.include_usage"),
        (b'{"stream_options":{},"stream_options":{}}', "stream_options"),
        (b'{"max_tokens":"1"}', "max_tokens"),
        (b'{"max_tokens":1.5}', "max_tokens"),
        (b'{"max_tokens":1.0}', "max_tokens"),
        (b'{"max_tokens":1e2}', "max_tokens"),
        (b'{"max_tokens":1e400}', "max_tokens"),
        (b'{"max_tokens":true}', "max_tokens"),
        (b'{"max_tokens":[1]}', "max_tokens"),
        (b'{"max_tokens":' + b"9" * 5000 + b"}", "max_tokens"),
        (b'{"max_tokens":NaN}', "max_tokens"),
        (b'{"max_tokens": Infinity}', "max_tokens"),
        (b'{"max_tokens":-Infinity}', "max_tokens"),
        (b'{"model":1}', "model"),
        (b'{"stream":"true"}', "stream"),
        (b'{"stream":1}', "stream"),
    ],
)
def test_an_ambiguous_or_wrong_field_is_named(body: bytes, param: str) -> None:
    assert refused(body).param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"model"',
        b"{",
        b'{"model":"a"} x',
        b'{"model":"a"}{"model":"b"}',
        b'{"model":"a",}',
        b"{'model':'a'}",
        b'{"model":"a"/**/}',
        b'{"temperature":NaN}',
        b'{"temperature":-Infinity}',
        b'{"temperature":01}',
        b"\xef\xbb\xbf" + b'{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        '{"model":"a"}'.encode("utf-16-le"),
        '{"model":"a"}'.encode("utf-32"),
        b'{"model":"\xff"}',
        b'{"x":"\xff"}',
        b'{"x":"\xed\xa0\x80"}',
        b'{"x":"\xc0\xaf"}',
        b'{"\xff":1}',
        b'{"x":"\\ud800"}',
        b'{"x":"\\ud800 and more text behind it"}',
        b'{"x":"\\udc00\\ud800 and more text behind it"}',
        b'{"x":"a\nb"}',
        b'{"x":"\x00"}',
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 100_000,
    ],
)
def test_what_is_not_one_json_object_in_utf8_is_refused(body: bytes) -> None:
    refused(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","messages":[{"model":1},{"model":2}]}',
        b'{"model":"a","tools":[{"properties":{"model":{},"Model":{},"stream":{}}}]}',
        b'{"model":"a","x":"\\"model\\":\\"b\\""}',
        b'{"model":"a","metadata":{"include_usage":1,"Include_Usage":2}}',
        b'{"model":"a","x":"max\\u005ftokens"}',
        b'{"model":"a","x":"\\\\ud800 is not half a pair"}',
        b'{"model":"a","x":"\\ud83d\\ude00"}',
        b' \r\n\t{ "model" : "a" , "x" : [ ] } \n',
        '{"model":"a","x":"ſtream and \u212aelvin"}'.encode(),
        b'{"model":"a","models":["model"],"stream_option":1}',
    ],
)
def test_what_is_unambiguous_is_read(body: bytes) -> None:
    assert READER.read(body).model == "a"


def test_an_empty_body_is_said_to_be_empty() -> None:
    assert "empty" in refused(b"").message
    assert "empty" in refused(b" \r\n").message
    assert "empty" not in refused(b"{").message


def test_a_suspicious_body_with_too_many_parts_is_refused() -> None:
    body = b'{"model":"a","x":[' + b'"",' * (TOKENS_MAX + 1) + b'""],"Model":"b"}'
    assert "too many parts" in refused(body).message


def test_members_yields_names_and_places_of_values() -> None:
    body = b' {"a" : {"b":[1,{"c":"}"}]}, "d\\"" :2,"e":"{" }'
    assert [(name, body[at : at + 1]) for name, at in members(body)] == [
        (b'"a"', b"{"),
        (b'"d\\""', b"2"),
        (b'"e"', b'"'),
    ]


_VALUES = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "null",
        '""',
        '"model"',
        '"\\"model\\":1"',
        '{"model":1}',
        '[{"Model":[]}]',
        '"é\\u00e9"',
        '"\\ud83d\\ude00"',
    ]
)
_NAMES = st.sampled_from(["model", "Model", "max_tokens", "stream", "stream_options", "x", "ſtream", "modèl"])
_CONTROLLED = ("model", "max_tokens", "stream", "stream_options")
_TYPED = {"model": '"m"', "max_tokens": "7", "stream": "true"}


def _spelled(name: str, escaped: int) -> str:
    """One of the ways to write a name in JSON: bit n of `escaped` says how its letter n is written."""
    return "".join(f"\\u{ord(c):04x}" if escaped >> n & 1 else c for n, c in enumerate(name))


@st.composite
def _objects(draw: st.DrawFn) -> tuple[list[str], bytes]:
    members = draw(st.lists(st.tuples(_NAMES, st.integers(0, 255), _VALUES), max_size=5))
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    parts = [
        f'"{_spelled(name, escaped)}"{space}:{space}{_TYPED.get(name, value)}'
        for name, escaped, value in members
    ]
    body = f"{space}{{{space}{f'{space},'.join(parts)}}}{space}"
    return [name for name, _, _ in members], body.encode()


@given(_objects())
def test_a_body_is_read_only_where_every_parser_agrees(given_object: tuple[list[str], bytes]) -> None:
    names, body = given_object
    controlled = [name.casefold() for name in names if name.casefold() in _CONTROLLED]
    if len(set(controlled)) != len(controlled) or "Model" in names or "ſtream" in names:
        assert refused(body).param in controlled
        return
    read = READER.read(body)
    assert (read.model == "m") == ("model" in names)
    assert (read.max_tokens == 7) == ("max_tokens" in names)


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
        READER.read(body)
