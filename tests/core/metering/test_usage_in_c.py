"""What C reads of an answer is what Python does, the definition, or nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.calls.call import DEFAULT_BOUNDS
from gateway.core.families.openai import chat
from gateway.core.metering import stream
from gateway.core.metering.meter import Detail, Meter
from gateway.core.metering.report import ENVELOPE_BYTES
from gateway.core.metering.stream import known_at
from tests import extensions
from tests.core.metering.recorded import call
from tests.http.protocol.test_framing import mutated
from tests.search import examples
from tests.tree import ROOT

SOURCE = ROOT / "gateway" / "core" / "metering" / "_usage.c"
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Say \\"toll\\" \\u00e9 \xc3\xa9 '
    b'\\ud83d\\ude00.","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},"completion_tokens_details":{'
    b'"reasoning_tokens":4,"audio_tokens":0,"accepted_prediction_tokens":2,"rejected_prediction_tokens":0}},'
    b'"service_tier":"default","system_fingerprint":"fp_1"}'
)
PLAIN = (
    b'{"usage":{"prompt_tokens":8,"total_tokens":8},"model":"m",'
    b'"data":[{"embedding":[0.1,-2e-5,1E+3,[{}],[]]}]}'
)
TAKEN = [
    WHOLE,
    PLAIN,
    b' {"usage" : {\n"completion_tokens" :\t4 } }\r\n ',
    b'{"usage":{"prompt_tokens":0,"completion_tokens":0}}',
    b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":null},"error":null,"service_tier":null}',
    b'{"usage":{"prompt_tokens":1,"completion_tokens_details":{"text_tokens":null,"image_tokens":0}}}',
    b'{"a":"\xff\x7f","usage":{"prompt_tokens":999999999999999}}',
    b'{"a":"' + b"long " * 40 + b'\\n","usage":{"prompt_tokens":100000001}}',
    b'{"a":' + b"[" * 60 + b"]" * 60 + b',"usage":{"prompt_tokens":1}}',
]
LEFT = [
    b"", b"{}", b"[]", b"null", b"{", WHOLE[:-1], WHOLE + b"x", WHOLE + b"\0", b"\xef\xbb\xbf" + WHOLE,
    b'{"usage":null}', b'{"usage":{}}', b'{"usage":[]}', b'{"usage":{"prompt_tokens":null}}',
    b'{"usage":{"total_tokens":1}}', b'{"usage":{"prompt_tokens":-1}}', b'{"usage":{"prompt_tokens":1.0}}',
    b'{"usage":{"prompt_tokens":1e2}}', b'{"usage":{"prompt_tokens":01}}',
    b'{"usage":{"prompt_tokens":true}}', b'{"usage":{"prompt_tokens":"1"}}',
    b'{"usage":{"prompt_tokens":1000000000000000}}',
    b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":4}}',
    b'{"usage":{"prompt_tokens":1,"prompt_tokens":2}}', b'{"usage":{"prompt_tokens":1,"cost":2}}',
    b'{"usage":{"prompt_tokens":1},"usage":{"prompt_tokens":2}}', b'{"usage":{"prompt_tokens":1,}}',
    b'{"usage":{"prompt_tokens":1},}', b'{"us\\u0061ge":{"prompt_tokens":2},"usage":{"prompt_tokens":1}}',
    b'{"usage":{"prompt_tokens":1},"error":{"code":1}}', b'{"usage":{"prompt_tokens":1},"error":0}',
    b'{"usage":{"prompt_tokens":1},"model":null}', b'{"usage":{"prompt_tokens":1},"model":"\xc3\xa9"}',
    b'{"usage":{"prompt_tokens":1},"model":"a\\nb"}', b'{"usage":{"prompt_tokens":1},"model":"\x7f"}',
    b'{"usage":{"prompt_tokens":1},"model":"' + b"m" * 129 + b'"}',
    b'{"usage":{"prompt_tokens":1},"service_tier":1}', b'{"usage":{"prompt_tokens":1},"a":"\x01"}',
    b'{"usage":{"prompt_tokens":1},"a":"\\ud800"}', b'{"usage":{"prompt_tokens":1},"a":"\\ud800\\u0041"}',
    b'{"usage":{"prompt_tokens":1},"a":"\\udc00"}', b'{"usage":{"prompt_tokens":1},"a":"\\x"}',
    b'{"usage":{"prompt_tokens":1},"a":"\\u00g0"}', b'{"usage":{"prompt_tokens":1},"a":NaN}',
    b'{"usage":{"prompt_tokens":1},"a":1.}', b'{"usage":{"prompt_tokens":1},"a":-}',
    b'{"usage":{"prompt_tokens":1},"a":[1,]}', b'{"usage":{"prompt_tokens":1},"a":{"b"}}',
    b'{"usage":{"prompt_tokens":1},"a":[}]}', b'{"usage":{"prompt_tokens":1},"a":nul}',
    b'{"usage":{"prompt_tokens":1},"a":"\\', b'{"usage":{"prompt_tokens":1},"a":"\\u12',
    b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"audio_tokens":1}}}',
    b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":1,"cache_write_tokens":1}}}',
    b'{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}',
    b'{"usage":{"completion_tokens":1,"completion_tokens_details":{"reasoning_tokens":2}}}',
    b'{"a":' + b"[" * 61 + b"]" * 61 + b',"usage":{"prompt_tokens":1}}',
]  # fmt: skip
PARTS = [
    b'"usage":', b'"error":', b'"model":"m",', b'"service_tier":"flex",', b"null", b"{}", b"[", b"]", b"{",
    b"}", b",", b":", b'"', b"\\", b"\\u", b"0", b"1", b"-", b".", b"e", b" ", b"\n", b"\0", b"\x1f", b"\x7f",
    b"\xff", b'"audio_tokens":', b'"prompt_tokens":7,', b'"cached_tokens":50,', b"true", b"9" * 16,
]  # fmt: skip


@pytest.fixture(scope="module", params=["", "-DWITHOUT_SSE2"], ids=["by 16", "by 1"])
def usage(request: pytest.FixtureRequest) -> Any:
    return extensions.built(SOURCE, request.param)


def seen(document: bytes, by: Callable[[bytes], Any] | None) -> list[object]:
    """All that a meter says once it has read a document."""
    meter = Meter(call("openai_chat"), 200, DEFAULT_BOUNDS)
    before, chat._usage_of = chat._usage_of, by
    try:
        chat.DIALECT.read_whole(meter, document)
    finally:
        chat._usage_of = before
    said = [getattr(meter, name) for name in attributes(Meter) if name not in {"call", "bounds", "detail"}]
    return said + [getattr(meter.detail, name) for name in attributes(Detail)]


def attributes(kind: type) -> list[str]:
    """What objects of a class with slots have; of a compiled class as well, which does not name its slots."""
    kept = MemberDescriptorType, GetSetDescriptorType
    return sorted(name for name, value in vars(kind).items() if isinstance(value, kept))


@pytest.mark.parametrize("document", TAKEN)
def test_a_usual_answer_is_read_in_c(document: bytes, usage: Any) -> None:
    assert usage.usage_of(document) is not None
    assert seen(document, usage.usage_of) == seen(document, None)


@pytest.mark.parametrize("document", LEFT)
def test_anything_else_is_left_to_python(document: bytes, usage: Any) -> None:
    assert usage.usage_of(document) is None


def test_a_prefix_of_an_answer_says_nothing(usage: Any) -> None:
    assert [size for size in range(len(WHOLE)) if usage.usage_of(WHOLE[:size]) is not None] == []
    assert usage.usage_of(bytearray(WHOLE)) is None


@settings(max_examples=examples(600))
@given(
    st.sampled_from([WHOLE, *TAKEN]),
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 12), st.sampled_from(PARTS) | st.binary(max_size=3)),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_what_is_altered_is_read_alike_or_left(
    usage: Any, document: bytes, mutations: list[tuple[int, int, bytes]]
) -> None:
    document = mutated(document, mutations)
    if usage.usage_of(document) is not None:
        assert seen(document, usage.usage_of) == seen(document, None)


COUNTS = st.integers(0, 12) | st.none() | st.sampled_from([10**8, 10**8 + 1, 10**15 - 1])


@settings(max_examples=examples(200))
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS,
            "prompt_tokens_details": st.none() | st.dictionaries(
                st.sampled_from(["cached_tokens", "audio_tokens", "image_tokens", "text_tokens"]), COUNTS
            ),
            "completion_tokens_details": st.none() | st.dictionaries(
                st.sampled_from(["reasoning_tokens", "text_tokens", "rejected_prediction_tokens"]), COUNTS
            ),
        },
    ),
    st.text(max_size=20) | st.floats(allow_nan=False),
)  # fmt: skip
def test_reports_of_any_numbers_are_read_alike(
    usage: Any, report: dict[str, Any], beside: str | float
) -> None:
    document = json.dumps({"said": [beside], "usage": report, "model": "m"}).encode()
    assert seen(document, usage.usage_of) == seen(document, None)


FIRST = b'data: {"delta":"'
BEHIND = b'"}\n\n'
DIFFERS = [
    [("text", BEHIND)],
    [("padding", b'","n":'), ("number", b',"t":"'), ("text", BEHIND)],
    [("text", b'","p":"'), ("padding", BEHIND)],
]
SAID = [b"a", b"word ", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\\n", b'\\"', b'"', b"\xff", b"\x01", b"\x7f"]
NUMBERS = [b"0", b"7", b"01", b"", b"-1", b"1.5", b"9" * 15, b"9" * 16]


@settings(max_examples=examples(400))
@given(
    st.sampled_from(DIFFERS),
    st.lists(st.lists(st.sampled_from(SAID), max_size=4).map(b"".join), min_size=2, max_size=2),
    st.sampled_from(NUMBERS), st.sampled_from([0, 1, 100, 508, 600]),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 3), st.binary(max_size=2)), max_size=1),
)  # fmt: skip
def test_an_event_like_a_known_one_is_read_alike(  # noqa: PLR0917  # what it is made of
    usage: Any, differs: list[tuple[str, bytes]], said: list[bytes], number: bytes, size: int,
    mutations: list[tuple[int, int, bytes]],
) -> None:  # fmt: skip
    texts, parts = iter(said), [(kind, behind) for kind, behind in differs]
    parts[-1] = parts[-1][0], b'","x":"' + b"x" * size + parts[-1][1]
    first = FIRST if differs[0][0] != "number" else FIRST[:-1]
    event = first + b"".join([(number if kind == "number" else next(texts)) + end for kind, end in parts])
    for chunk, at in ((event, 0), (event * 2, len(event)), (mutated(event, mutations), 0)):
        found, read = usage.event_at(chunk, at, first, parts), known_at(chunk, at, first, parts)
        assert found in {None, read}
        plain = not set(b'\\"\x01') & set(b"".join(said)) and differs[0][0] == "text" and said[1].isascii()
        assert found is not None or read is None or not plain or chunk not in {event, event * 2}


def test_c_says_the_constants_and_kinds_that_python_says() -> None:
    stated = dict(re.findall(r"^#define (\w+) (\d+)", SOURCE.read_text(), re.MULTILINE))
    assert int(stated["ENVELOPE_BYTES"]) == ENVELOPE_BYTES
    assert (stream._TEXT_PART[0], stream._NUMBER_PART[0]) == ("t", "n")
    assert stream._PADDING[0] not in {"t", "n"}


def test_an_event_is_looked_for_within_its_chunk(usage: Any) -> None:
    event, parts = FIRST + b"a" + BEHIND, [("text", BEHIND)]
    assert usage.event_at(event, 0, FIRST, parts) == (len(event), "a", -1)
    for at in (-1, 1, len(event), len(event) + 1, 2**70):
        assert usage.event_at(event, at, FIRST, parts) is None
    for size in range(len(event)):
        assert usage.event_at(event[:size], 0, FIRST, parts) is None
    for odd in ([], [("text",)], [(1, BEHIND)], [("text", "x")], [("", BEHIND)], [("text", b"")]):
        assert usage.event_at(event, 0, FIRST, odd) is None
