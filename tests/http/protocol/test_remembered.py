"""What is remembered stays within its bytes, whoever chooses the keys."""

from __future__ import annotations

import pytest

from gateway.http.protocol import answer, request
from gateway.http.protocol.request import LruParseCache, ParseCache, field_kind
from gateway.http.routing.head import HeaderLine


def test_the_oldest_goes_for_a_newcomer_and_no_more_than_it_takes() -> None:
    memory: ParseCache[bytes, int] = ParseCache(40, 10, 1, 0)
    for n in range(4):
        memory.keep(b"%010d" % n, n)
    memory.keep(b"tiny", 9)
    assert list(memory.known.values()) == [1, 2, 3, 9]
    assert memory.held_bytes == 34


def test_an_entry_that_is_renewed_makes_nobody_go() -> None:
    memory: ParseCache[bytes, int] = ParseCache(20, 10, 1, 0)
    memory.keep(b"0123456789", 1)
    memory.keep(b"9876543210", 2)
    for n in range(10):
        memory.keep(b"0123456789", n)
    assert memory.known == {b"0123456789": 9, b"9876543210": 2}
    assert memory.held_bytes == 20


def test_what_is_in_use_outlives_any_number_of_others() -> None:
    memory: LruParseCache[bytes, HeaderLine] = LruParseCache(40, 10, 1, 0)
    ours, theirs = HeaderLine(0), HeaderLine(0)
    memory.keep(b"0123456789", ours)
    memory.keep(b"9876543210", theirs)
    for n in range(100):
        assert memory.find(b"0123456789") is ours
        for _ in range(3):  # however often each of the others is used as well
            memory.keep(b"%010d" % n, HeaderLine(0))
            assert memory.find(b"%010d" % n) is not None
        assert memory.held <= 40
    assert memory.find(b"9876543210") is None


def test_what_was_used_longest_ago_goes_first() -> None:
    memory: LruParseCache[bytes, HeaderLine] = LruParseCache(30, 10, 1, 0)
    for n in (0, 1, 2, 0, 3, 2, 4):
        if memory.find(b"%010d" % n) is None:
            memory.keep(b"%010d" % n, HeaderLine(0))
    assert set(memory.known) == {b"%010d" % n for n in (2, 3, 4)}
    memory.keep(b"%010d" % 3, HeaderLine(0))  # kept anew, it makes nobody go
    memory.keep(b"%010d" % 5, HeaderLine(0))
    assert set(memory.known) == {b"%010d" % n for n in (3, 4, 5)}


def test_what_is_too_long_is_not_kept() -> None:
    memory: ParseCache[bytes, int] = ParseCache(1000, 10, 1, 0)
    memory.keep(b"x" * 11, 1)
    assert not memory.known
    assert memory.held_bytes == 0


def test_an_entry_larger_than_the_whole_budget_is_not_kept() -> None:
    memory: ParseCache[str, int] = ParseCache(30, 10, 3, 5)
    memory.keep("x" * 10, 1)
    assert not memory.known
    assert memory.held_bytes == 0


@pytest.mark.parametrize(("length", "count"), [(8, 2000), (64, 2000), (65, 2000), (60_000, 100)])
def test_names_of_fields_stay_within_their_bytes(length: int, count: int) -> None:
    for n in range(count):
        field_kind((b"x-%d-" % n).ljust(length, b"x"))
    assert request._names.held_bytes <= request.NAMES_BYTES_MAX
    assert all(len(name) <= 64 for name in request.known_fields)
    assert field_kind(b"Content-Type").passes
    assert request.known_fields[b"Content-Type"].lower == b"content-type"


def test_lines_of_answers_stay_within_their_bytes() -> None:
    for n in range(20_000):
        answer.read_answer_head(b"HTTP/1.1 200 %d\r\nx-id: %d\r\nlong: %b\r\n\r\n" % (n, n, b"x" * 300))
    assert answer._lines.held_bytes <= answer.READ_LINES_BYTES_MAX
    assert answer._statuses.held_bytes <= answer.STATUS_LINES_BYTES_MAX
