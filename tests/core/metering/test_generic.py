"""Any API: one unit an answer, or what the upstream says; free routes cost nothing."""

from __future__ import annotations

import pytest

from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.metering.meters import AnswerMeter, make_meter
from gateway.core.model import Family, TokenUsage


def generic(
    status: int = 200, amount: bytes = b"", pointer: str = "", bounds: UsageBounds | None = None
) -> AnswerMeter:
    call = CallRequest("generic", Family("generic"), b"", units_pointer=pointer)
    return make_meter(call, status, b"image/png", b"", bounds or UsageBounds(), usage_amount=amount)


def test_one_unit_an_answer() -> None:
    meter = generic()
    assert not meter.produced
    assert meter.usage() == TokenUsage(units=0)
    assert meter.feed(b"\x89PNG") == b"\x89PNG"
    assert meter.produced
    assert meter.usage() == TokenUsage(units=1)
    meter = generic(204)
    meter.finish()
    assert meter.usage() == TokenUsage(units=1)


@pytest.mark.parametrize("status", [304, 404, 500])
def test_an_error_is_free_unless_it_reports(status: int) -> None:
    meter = generic(status)
    meter.feed(b"x")
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)
    assert generic(status, b"3").usage() == TokenUsage(units=3, reported=True)


@pytest.mark.parametrize(
    ("amount", "units", "reported", "estimated"),
    [
        (b"0", 0, True, False),
        (b"42", 42, True, False),
        (b" 7 ", 7, True, False),
        (b"0007", 7, True, False),
        (b"-1", 1, False, True),
        (b"1.5", 1, False, True),
        (b"x", 1, False, True),
        (b"9" * 5000, 10**9, True, True),
        (b"1000000001", 10**9, True, True),
        ("٣".encode(), 1, False, True),
    ],
)
def test_the_stated_amount(amount: bytes, units: int, reported: bool, estimated: bool) -> None:
    meter = generic(amount=amount)
    meter.feed(b"x")
    meter.finish()
    assert meter.usage() == TokenUsage(units=units, reported=reported, estimated=estimated)


@pytest.mark.parametrize(
    ("body", "units", "estimated"),
    [
        (b'{"a/b":[{"~n":5}]}', 5, False),
        (b'{"a/b":[{"~n":5.0}]}', 5, False),
        (b'{"a/b":[{"~n":-5}]}', 1, True),
        (b'{"a/b":[{"~n":"5"}]}', 1, True),
        (b'{"a/b":[{"~n":true}]}', 1, True),
        (b'{"a/b":[]}', 1, True),
        (b'{"a/b":7}', 1, True),
        (b"[]", 1, True),
        (b"not json", 1, True),
        (b'{"a/b":[{"~n":' + b"9" * 30 + b"}]}", 10**9, True),
    ],
)
def test_units_by_pointer(body: bytes, units: int, estimated: bool) -> None:
    meter = generic(pointer="/a~1b/0/~0n")
    for at in range(0, len(body), 3):
        assert meter.feed(body[at : at + 3]) == body[at : at + 3]
    meter.finish()
    assert meter.usage().units == units
    assert meter.usage().estimated == estimated


def test_the_header_goes_before_the_pointer_and_memory_is_bounded() -> None:
    meter = generic(amount=b"3", pointer="/n")
    meter.feed(b'{"n":9}')
    meter.finish()
    assert meter.usage().units == 3
    meter = generic(pointer="/n", bounds=UsageBounds(kept_bytes_max=4))
    meter.feed(b'{"n":9}')
    meter.finish()
    assert meter.usage() == TokenUsage(units=1, estimated=True)


def test_a_free_answer_costs_nothing() -> None:
    meter = make_meter(CallRequest("none", Family("openai"), b""), 200)
    assert meter.feed(b'{"usage":{"prompt_tokens":5}}') == b'{"usage":{"prompt_tokens":5}}'
    meter.finish()
    assert meter.usage() == TokenUsage(units=0)
    assert meter.observed() == 0
