"""Lines of batches have the names of theirs alone; one of a result that is odd in places is charged for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.accounts.batch_lines import (
    BatchLine,
    BatchResult,
    batch_lines,
    calls_of,
    inline_lines,
    results,
)
from gateway.errors import InvalidRequest

DEEP = b"[" * 5_000 + b"]" * 5_000


@pytest.mark.parametrize(
    ("line", "custom_id", "status", "free"),
    [
        (b'{"custom_id": "a", "response": {"status_code": 200, "request_id": null}}', "a", 200, False),
        (b'{"custom_id": "a", "response": {"status_code": 200, "body": {"id": "\\ud800"}}}', "a", 200, False),
        (b'{"custom_id": "a", "response": {"status_code": "?", "body": ' + DEEP + b"}}", "a", 200, False),
        (b'{"custom_id": 7, "response": {"status_code": 429, "body": {}}, "error": null}', "", 429, True),
        (b'{"custom_id": "a", "response": null, "error": {"code": "batch_expired"}}', "a", 200, True),
        (b'{"custom_id": "a", "result": {"type": "succeeded", "message": {}}}', "a", 200, False),
        (b'{"custom_id": "a", "result": {"type": "errored", "error": {}}}', "a", 200, True),
        (b'{"custom_id": "a"}', "a", 200, False),
        (b"cut off {", "", 200, False),
    ],
)  # fmt: skip
def test_a_line_of_a_result_is_free_only_where_it_says_so(
    line: bytes, custom_id: str, status: int, free: bool
) -> None:
    (found,) = results(b"\n" + line + b"\n\n")
    assert (found.custom_id, found.status, found.free) == (custom_id, status, free)


def test_an_answer_nested_too_deep_keeps_its_report() -> None:
    body = b'{"usage": {"total_tokens": 5}, "tool": ' + DEEP + b"}"
    (found,) = results(b'{"custom_id": "a", "response": {"status_code": 200, "body": ' + body + b"}}")
    assert isinstance(found, BatchResult)
    assert b'"total_tokens": 5' in found.body


LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"body": {"model": "m", "n": 100}, %s', "body appears twice"),
        (b'{"b\\u006fdy": {"model": "dear"}, %s', "body appears twice"),
        (b'{"custom_id": "b", %s', "custom_id appears twice"),
        (b'{"url": "/v1/responses", %s', "url appears twice"),
        (b'{"Body": {"model": "dear"}, %s', "unknown field `Body`"),
        (b'{"extra": 1, %s', "unknown field `extra`"),
    ],
)
def test_a_line_has_each_of_its_names_once_and_no_other(line: bytes, why: str) -> None:
    whole = json.dumps(LINE).encode()
    second = whole.replace(b'"a"', b'"c:\\u003ad"')
    assert [one.custom_id for one in batch_lines(whole + b"\n" + second, (LINE["url"],))] == ["a", "c::d"]
    with pytest.raises(InvalidRequest, match=f"Line 2: .*{why}"):
        list(batch_lines(whole + b"\n" + line % second[1:], (LINE["url"],)))


@pytest.mark.parametrize("extra", ["Params", "model", "url"])
def test_a_call_of_a_body_has_no_other_name_than_its_own(extra: str) -> None:
    call = {"custom_id": "a", "params": {"model": "m"}}
    assert len(list(inline_lines([call], "/v1/messages", "requests"))) == 1
    with pytest.raises(InvalidRequest, match=f"Line 1: .*unknown field `{extra}`"):
        list(inline_lines([call | {extra: {"model": "dear"}}], "/v1/messages", "requests"))


@pytest.mark.parametrize("extra", ["Request", "model", "metaData"])
def test_a_call_of_a_model_in_a_path_has_a_request_and_metadata(extra: str) -> None:
    def of(call: dict[str, Any]) -> list[BatchLine]:
        return list(calls_of({"batch": {"requests": [call]}}, "/v1", "batch.requests", "m"))

    call = {"request": {"contents": []}, "metadata": {"key": "a"}}
    assert len(of(call)) == 1
    with pytest.raises(InvalidRequest, match=f"Line 1: .*unknown field `{extra}`"):
        of(call | {extra: {}})
    with pytest.raises(InvalidRequest, match=r"Line 1: .*that of the path: models/m"):
        of({"request": {"model": "models/dear"}})
