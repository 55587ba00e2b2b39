"""When Gemini says to try again: its own words, and bodies that say nothing."""

from __future__ import annotations

import pytest

from gateway.core.families.gemini.answers import retry_told

RETRY = b'{"error":{"code":429,"details":[{"@type":"x","violations":[]},{"@type":"y","retryDelay":"%b"}]}}'


@pytest.mark.parametrize(("delay", "seconds"), [(b"34s", 34), (b"34.074824224s", 34.074824224), (b"0s", 0)])
def test_a_duration_is_in_seconds(delay: bytes, seconds: float) -> None:
    assert retry_told(RETRY % delay) == seconds
    assert retry_told(b"[" + RETRY % delay + b"]") == seconds  # of a stream


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{}", b"[]", b"null", b"nonsense", b"\xff", b"[" * 100_000, b'{"error":null}', b'{"error":{}}',
        b'{"error":{"details":null}}', b'{"error":{"details":{}}}', b'{"error":{"details":[1]}}',
        b'{"error":{"details":[{"retryDelay":34}]}}', b'{"error":{"details":[{"retryDelay":{}}]}}',
        RETRY % b"-34s", RETRY % b"34", RETRY % b"34m", RETRY % b"1e9s",
        RETRY % b"9999999999s", RETRY % b"NaNs",
    ],
)  # fmt: skip
def test_what_is_no_duration_says_nothing(document: bytes) -> None:
    assert retry_told(document) == 0
