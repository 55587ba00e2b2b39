"""Results of batches: a line that is odd in places is charged for all the same."""

from __future__ import annotations

import pytest

from gateway.core.accounts.jobs import BatchResult, results

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
