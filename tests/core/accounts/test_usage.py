"""Which roll-ups a report reads: each hour of its time once, in as few rows as there are."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple
from msgspec.structs import replace as replaced

from gateway.core.accounts.call_facts import (
    CallFacts,
    facts_in,
    mark_as_correction,
    read_facts,
    told_of,
    write_facts,
)
from gateway.core.accounts.flush_batch import FlushReport, control_id, fan_out
from gateway.core.accounts.outbox import BUDGETED, HEAD, EventKind, EventNote, WindowKey, decode
from gateway.core.accounts.refusals import NOBODY, bound_tenants, busiest
from gateway.core.accounts.usage import SPANS, UsageQuery, hourly_parts, in_parts, pieces
from gateway.core.billing.price_book import NO_COUNTS
from tests.builders import BLANK, encode
from tests.persistence.scenario import Account, entry_id

HOUR = timedelta(hours=1)
MOMENTS = st.integers(0, 24 * 800).map(lambda hours: datetime(2027, 11, 1, tzinfo=UTC) + hours * HOUR)
# On which days a row of a unit may start, Monday being 0.
WEEKDAYS = {"day": range(7), "half_week": (0, 3), "week": (0,)}
INTERVALS = ("none", "hour", "day", "month")


def asked(since: datetime, until: datetime, interval: str = "none", *groups: str) -> UsageQuery:
    return UsageQuery(since, until, interval, groups, {}, 100)


def starts(unit: str, since: datetime, until: datetime) -> list[datetime]:
    """When rows of a unit start, told by the calendar, hour by hour."""
    hours = [since + n * HOUR for n in range(int((until - since) / HOUR))]
    return [
        at
        for at in hours
        if unit == "hour"
        or (at.hour == 0 and at.weekday() in WEEKDAYS.get(unit, ()))
        or (unit == "month" and (at.day, at.hour) == (1, 0))
    ]


def hours_of(unit: str, start: datetime) -> list[datetime]:
    """The hours a row of a unit is of."""
    if unit == "month":
        count = int(((start + 32 * 24 * HOUR).replace(day=1) - start) / HOUR)
    elif unit == "half_week":
        count = 72 if start.strftime("%a") == "Mon" else 96
    else:
        count = {"hour": 1, "day": 24, "week": 168}[unit]
    return [start + n * HOUR for n in range(count)]


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS), st.booleans())
def test_the_pieces_of_a_report_are_each_hour_of_its_time_once(
    ends: tuple[datetime, datetime], interval: str, people: bool
) -> None:
    since, until = min(ends), max(ends) + HOUR
    found: list[datetime] = []
    for piece in pieces(asked(since, until, interval, *(["user"] if people else []))):
        unit, whole = SPANS[piece.span]
        assert not people or "user_id" not in whole
        for start in starts(unit, piece.since, piece.until):
            found += hours_of(unit, start)
            # A row that began in another interval would be told in that one.
            if interval in ("day", "month"):
                ends_in = hours_of(unit, start)[-1]
                assert ends_in.month == start.month
                assert interval == "month" or ends_in.day == start.day
    assert found == [since + n * HOUR for n in range(int((until - since) / HOUR))]


@pytest.mark.parametrize(
    ("since", "until", "spans"),
    [
        ("2026-10-01", "2026-11-01", ["month"]),
        ("2026-10-13", "2026-11-12", ["day", "half_week", "week", "half_week"]),
        ("2026-09-30", "2026-12-02", ["day", "month", "day"]),
        ("2026-11-09", "2026-11-16", ["week"]),
        ("2026-11-10T05", "2026-11-10T07", ["hour"]),
        ("2026-11-10T22", "2026-11-12", ["hour", "day"]),
    ],
)
def test_the_longest_rows_are_read_that_lie_within_a_time(since: str, until: str, spans: list[str]) -> None:
    ends = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (since, until)]
    assert [piece.span for piece in pieces(asked(*ends, "none", "user", "model"))] == spans


def test_what_names_nobody_reads_the_rows_of_teams() -> None:
    since = datetime(2026, 10, 1, tzinfo=UTC)
    [piece] = pieces(asked(since, since + 365 * 24 * HOUR, "none", "tenant", "project", "model"))
    assert piece == ("team_day", since, since + 365 * 24 * HOUR)
    report = UsageQuery(since, since + HOUR, "none", ("model",), {"user_id": 4}, 100)
    assert [piece.span for piece in pieces(report)] == ["hour"]


@pytest.mark.parametrize(
    ("interval", "groups", "span"),
    [
        ("hour", (), "model_hour"),
        ("hour", ("organization", "service", "model"), "model_hour"),
        ("hour", ("tenant", "model"), "team_hour"),
        ("hour", ("api_key",), "hour"),
        ("day", ("model",), "team_day"),
        ("day", ("tenant", "api_key", "model"), "key_day"),
        ("day", ("api_key", "project"), "day"),
        ("day", ("user",), "day"),
    ],
)
def test_the_rows_of_a_unit_are_the_fewest_that_tell_apart_what_is_asked_for(
    interval: str, groups: tuple[str, ...], span: str
) -> None:
    since = datetime(2026, 10, 13, tzinfo=UTC)
    assert pieces(asked(since, since + 48 * HOUR, interval, *groups)) == [(span, since, since + 48 * HOUR)]


def test_a_part_of_a_time_has_as_many_intervals_as_fill_the_page() -> None:
    since = datetime(2026, 10, 13, tzinfo=UTC)
    parts = in_parts(asked(since, since + 30 * 24 * HOUR, "day"))
    found, part = [], next(parts)
    while sum(found) < 19:
        found.append(int((part.until - part.since) / HOUR) // 24)
        part = parts.send(5 * found[-1])
    # A page is of a hundred rows, and a day has five of them.
    assert found == [1, 2, 4, 8, 5]


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS))
def test_windows_of_a_report_follow_each_other_and_end_with_intervals(
    ends: tuple[datetime, datetime], interval: str
) -> None:
    report = asked(min(ends), max(ends) + HOUR, interval)
    found = list(in_parts(report))
    assert [found[0].since, *(each.until for each in found)] == [
        *(each.since for each in found),
        report.until,
    ]
    first = {"hour": 1, "day": 24, "month": 24 * 31, "none": 24 * 900}[interval]
    assert found[0].until - found[0].since <= first * HOUR
    for each in found[:-1]:
        assert interval == "hour" or each.until.hour == 0
        assert interval != "month" or each.until.day == 1
    assert len(found) <= 16


def test_a_report_of_thousands_of_years_of_hours_is_cut_at_once() -> None:
    report = asked(datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC), "hour")
    assert len(list(in_parts(report))) < 30


@given(st.tuples(MOMENTS, MOMENTS), st.sampled_from(INTERVALS), st.booleans(), MOMENTS)
def test_what_asks_for_hours_is_named_whenever_hours_before_a_month_are_read(
    ends: tuple[datetime, datetime], interval: str, people: bool, kept: datetime
) -> None:
    report = asked(min(ends), max(ends) + HOUR, interval, *(["user"] if people else []))
    month = kept.replace(day=1, hour=0)
    hours = [piece for piece in pieces(report) if SPANS[piece.span].unit == "hour"]
    named = [name for name, at in hourly_parts(report).items() if at < month]
    assert bool(named) == any(piece.since < month for piece in hours)


# --- activity ---------------------------------------------------------------------------
# Who is busy, told in few rows.


COUNTS = {
    (7, "requests"): 5, (7, "tokens"): 500, (8, "requests"): 2, (8, "rate_limited"): 9,
    (9, "requests"): 1, (NOBODY, "invalid_api_key"): 40,
}  # fmt: skip


def test_tenants_are_ranked_by_their_calls_refused_ones_included() -> None:
    everybody, tenants = busiest(COUNTS.items(), 2)
    assert [(busy.tenant_id, busy.requests, busy.tokens, busy.refused) for busy in tenants] == [
        (8, 2, 0, {"rate_limited": 9}),
        (7, 5, 500, {}),
    ]
    assert (everybody.requests, everybody.tokens) == (8, 500)
    assert everybody.refused == {"rate_limited": 9, "invalid_api_key": 40}


def test_the_same_count_from_several_gateways_adds_up() -> None:
    _, [busy] = busiest([*COUNTS.items(), *COUNTS.items()], 1)
    assert (busy.tenant_id, busy.requests, busy.refused) == (8, 4, {"rate_limited": 18})


def test_too_many_tenants_are_nobody_and_nothing_is_lost() -> None:
    kept = bound_tenants(COUNTS, 1)
    assert {tenant_id for tenant_id, _ in kept} == {8, NOBODY}
    assert busiest(kept.items(), 9)[0] == busiest(COUNTS.items(), 9)[0]
    assert bound_tenants(COUNTS, 4) == COUNTS


# --- facts ------------------------------------------------------------------------------
# The facts of a call: what is written is read, older and newer ones too, and rows are told as before.


CALL = CallFacts(
    model="m", response_model="m-1", streamed=True, status=200, duration_ms=9, first_token_ms=4,
    counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0), total=21, units=1, tools={"web_search": 2},
    service_tier="priority",
    cost=12, currency="USD", price_id=3, route="/v1/messages", upstream_request_id="req_1",
)  # fmt: skip


@given(st.text(max_size=20), st.integers(0, 2**53), st.dictionaries(st.text(max_size=5), st.integers(0, 9)))
def test_what_is_written_is_read(model: str, total: int, tools: dict[str, int]) -> None:
    facts = replaced(CALL, model=model, total=total, tools=tools)
    written = write_facts(facts)
    assert read_facts(written) == facts
    assert write_facts(astuple(facts)) == written


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
    facts = replaced(CALL, **much)
    written = write_facts(facts)
    assert write_facts(astuple(facts)) == written
    for metadata in (written, mark_as_correction(written, "r" * 36, "settled after its hold was reclaimed")):
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
    facts = read_facts(mark_as_correction(write_facts(CALL), "r-1", "why"))
    assert facts is not None
    assert json.loads(told_of(facts))["corrects"] == facts.corrects == "r-1"
    assert json.loads(mark_as_correction(b'{"input":3}', "r-2", "why")) == {
        "input": 3, "corrects": "r-2", "reason": "why",
    }  # fmt: skip
    assert json.loads(mark_as_correction(b"", "r-3", "why"))["corrects"] == "r-3"


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


# --- outbox -----------------------------------------------------------------------------
# What the flusher hands to the writer: entries decoded, in order, none left out.


def test_entries_keep_their_order_and_bytes() -> None:
    account = Account(1, 1, 100)
    events = [account.reset(), account.consume(1), account.credit(5)]
    entries = account.take()
    assert fan_out({7: entries, 8: []}) == {
        7: [(id_, packed, event) for (id_, packed), event in zip(entries, events, strict=True)]
    }


def test_what_cannot_be_decoded_is_handed_over_without_an_event() -> None:
    account = Account(1, 1, 100)
    account.reset()
    [(id_, packed)] = account.take()
    for broken in (b"", b"\x04" + packed[1:], b"\x02" + packed[1:], packed[:-1], packed + b"x", packed[:100]):
        assert fan_out({0: [(id_, broken)]}) == {0: [(id_, broken, None)]}


def test_an_entry_says_which_windows_it_moves_and_by_how_much() -> None:
    windows = WindowKey(7, 1_700_000), WindowKey(8, 0, "0123456789abcdef01234567"), WindowKey(9, 5, "other")
    moves = replace(Account(1, 1, 100).reset(), money=-3, raw_tokens=4, requests=1, budgets=windows)
    packed = encode(moves)
    assert decode(packed) == moves
    lengths = packed[HEAD.size :].rindex(struct.pack("<H", 3 * BUDGETED.size))
    cut = packed[: HEAD.size + lengths] + struct.pack("<H", BUDGETED.size + 1) + bytes(BUDGETED.size + 1)
    assert fan_out({0: [(b"1-0", cut)]})[0][0][2] is None


def test_grants_and_late_posts_are_remembered_by_their_source() -> None:
    account = Account(1, 1, 100)
    assert control_id(account.reset()) == ""
    assert control_id(account.consume(1)) == ""
    assert control_id(account.consume(1, note=EventNote.RECLAIMED)) == ""
    late = account.consume(1, note=EventNote.LATE)
    assert control_id(late) == late.source
    grant = account.grant(EventKind.RECHARGE, 5)
    assert control_id(grant) == grant.source


def test_a_report_counts_what_may_be_deleted() -> None:
    report = FlushReport(acknowledged={1: [entry_id(), entry_id()], 2: [entry_id()]})
    assert report.entries() == 3
