"""The facts of a call: what is written is read, older and newer ones too, and rows are told as before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as replaced

from gateway.core.accounts.outbox import (
    CallFacts,
    corrected,
    decode,
    facts_in,
    read_facts,
    told_of,
    write_facts,
)
from gateway.core.billing.price_book import NO_COUNTS
from tests.builders import BLANK, encode

CALL = CallFacts(
    model="m", response_model="m-1", streamed=True, status=200, duration_ms=9, first_token_ms=4,
    counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0), total=21, units=1, tools={"web_search": 2},
    service_tier="priority",
    cost=12, currency="USD", price_id=3, route="/v1/messages", upstream_request_id="req_1",
)  # fmt: skip


@given(st.text(max_size=20), st.integers(0, 2**53), st.dictionaries(st.text(max_size=5), st.integers(0, 9)))
def test_what_is_written_is_read(model: str, total: int, tools: dict[str, int]) -> None:
    facts = replaced(CALL, model=model, total=total, tools=tools)
    assert read_facts(write_facts(facts)) == facts


def test_older_and_newer_facts_are_read_as_far_as_both_know_them() -> None:
    whole = json.loads(write_facts(CALL))
    older = read_facts(json.dumps(whole[:7]).encode())
    assert older is not None
    assert (older.counts, older.total, older.tools, older.cost) == (CALL.counts, 0, {}, None)
    assert read_facts(json.dumps([*whole, "later", {"more": 1}]).encode()) == CALL


def test_kinds_of_a_newer_version_are_left_out() -> None:
    newer = read_facts(write_facts(replaced(CALL, counts=(*CALL.counts, 8, 9))))
    assert newer is not None
    assert newer.counts == CALL.counts


@pytest.mark.parametrize(
    "much",
    [
        {"tools": {"n" * 100_000: 1}},
        {"unknown": msgspec.Raw(b'"' + b"u" * 70_000 + b'"'), "metadata": msgspec.Raw(b'{"a":1}')},
        {"upstream_request_id": "\xff" * 33_000},
        {"model": "m" * 70_000, "response_model": '"' * 40_000, "session": "\0" * 20_000},
    ],
)
def test_facts_fit_an_entry_whatever_they_say_and_the_counts_with_them(much: dict[str, Any]) -> None:
    written = write_facts(replaced(CALL, **much))
    for metadata in (written, corrected(written, "r" * 36, "settled after its hold was reclaimed")):
        event = decode(encode(replace(decode(BLANK), kind=1, metadata=metadata)))
        assert event.facts is not None
        assert (event.facts.counts, event.facts.total, event.facts.cost) == (CALL.counts, 21, 12)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"model":"m"}', b"[", b"[1]", b'["m",1]', b"null"])
def test_what_is_no_facts_is_none(raw: bytes) -> None:
    assert read_facts(raw) is None


def test_a_row_is_told_what_it_always_was_and_a_callers_words_never_win() -> None:
    facts = replaced(CALL, metadata=msgspec.Raw('{"a":[1],"status":"mine","ü":1e3}'.encode()))
    assert json.loads(told_of(facts)) == {
        "a": [1], "ü": 1000.0, "model": "m", "streamed": True, "status": 200, "duration_ms": 9, "input": 14,
        "output": 7, "cached": 4, "reasoning": 6, "estimated": False,
    }  # fmt: skip


def test_a_row_says_when_its_use_was_told_late() -> None:
    late = told_of(replaced(CALL, used_ms=86_400_000 * 20_000 + 1_000))
    said = {name: json.loads(late)[name] for name in ("used_at", "supplied_on")}
    assert said == {"used_at": "2024-10-04T00:00:01Z", "supplied_on": "2024-10-04"}
    assert "supplied_on" not in json.loads(told_of(CALL))


def test_a_correction_says_what_it_corrects_whatever_it_was_written_as() -> None:
    facts = read_facts(corrected(write_facts(CALL), "r-1", "why"))
    assert facts is not None
    assert json.loads(told_of(facts))["corrects"] == facts.corrects == "r-1"
    assert json.loads(corrected(b'{"input":3}', "r-2", "why")) == {
        "input": 3, "corrects": "r-2", "reason": "why",
    }  # fmt: skip
    assert json.loads(corrected(b"", "r-3", "why"))["corrects"] == "r-3"


def test_entries_of_before_say_what_they_can() -> None:
    said = facts_in(
        b'{"model":"m","status":200,"input":10,"cached":4,"output":3,"reasoning":1,"estimated":true}'
    )
    assert said.counts == (6, 4, 0, 0, 3, 1, 0, 0, 0, 0)
    assert (said.model, said.status, said.total, said.estimated) == ("m", 200, 13, True)
    for strange in (b"", b"[]", b'{"input":-1,"model":7,"cached":true}', b'{"input":1,"cached":9}'):
        assert min(facts_in(strange).counts) >= 0
    assert facts_in(b"{}").counts == NO_COUNTS


def test_an_entry_gives_back_the_facts_it_came_with() -> None:
    event = decode(encode(replace(decode(BLANK), kind=1, metadata=write_facts(CALL))))
    assert event.facts == CALL
    assert json.loads(event.metadata)["model"] == "m"
