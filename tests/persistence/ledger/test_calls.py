"""The journal: one row a call, in the flush's transaction, whatever callers and upstreams say."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from psycopg.rows import dict_row

from gateway.core.accounts.call_facts import CallFacts, mark_as_correction, write_facts
from gateway.core.accounts.outbox import EventKind, WindowKey
from gateway.core.accounts.runs import BUDGET_ID_MIN
from gateway.core.accounts.usage import SPANS
from gateway.core.accounts.usage_sums import SUMS
from gateway.core.times import DAY_MS, HOUR_MS, moment_of
from persistence.ledger.rows import NULL, json_field
from persistence.ledger.writer import LedgerWriter
from tests.connections import connected
from tests.persistence.scenario import Account, batch_of, broken, settle_in

FACTS = CallFacts(
    model="m", response_model="m-1", streamed=True, status=200, duration_ms=9, first_token_ms=4,
    counts=(5, 4, 3, 2, 7, 6, 1, 0, 0, 0), total=21, units=1, tools={"web_search": 2},
    service_tier="priority", cost=354_000_001, currency="USD", price_id=3, route="/v1/messages",
    session="s", upstream_request_id="req_1", unknown=msgspec.Raw(b'{"new":1}'), unpriced="web_search",
    exchange_rate="0.92", hour=(HOUR_MS + 1, "1.5"), tags={"feature": "search"}, groups=(7, 9),
    step=("asked", 12, "team", -3),
)  # fmt: skip


def calls_in(url: str) -> list[dict[str, Any]]:
    with connected(url, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM call ORDER BY id").fetchall()


def opened(url: str) -> Account:
    [account] = settle_in(url, 1000)
    account.reset()
    return account


async def test_a_call_is_told_whole(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    event = account.consume(21, user="ann", attribution="7\t8\tv3", metadata=write_facts(FACTS))
    await writer.write(batch_of(account))
    [call] = calls_in(migrated)
    assert str(call["request_id"]) == event.source
    assert call["user_id"] is not None
    assert {name: call[name] for name in call.keys() - {"id", "request_id", "created_at", "user_id"}} == {
        "organization_id": account.organization_id, "tenant_id": account.tenant_id, "api_key_id": 5,
        "service_id": 1, "project_id": 8, "content_id": 7, "feature_version": "v3", "session": "s",
        "route": "/v1/messages", "model": "m", "response_model": "m-1", "service_tier": "priority",
        "input": 5, "cache_read": 4, "cache_write": 3, "cache_write_1h": 2, "output": 7,
        "reasoning": 6, "audio_input": 1,
        "audio_output": 0, "image_input": 0, "image_output": 0, "tools": {"web_search": 2}, "tokens": 21,
        "credits": 0, "units": 1, "cost": 354_000_001, "currency": "USD", "price_id": 3, "status": 200,
        "reason": None, "streamed": True, "estimated": False, "duration_ms": 9, "first_token_ms": 4,
        "upstream_request_id": "req_1", "unknown_usage": '{"new":1}', "unpriced": "web_search",
        "exchange_rate": "0.92", "priced_at": moment_of(HOUR_MS + 1), "hour_factor": "1.5",
        "tags": {"feature": "search"}, "groups": [7, 9], "refused": False, "amended": 0, "rerated": 0,
        "run_id": None, "refused_kind": None, "refused_by": None, "model_asked": "asked", "saved": -3,
        "substituted_by": {"id": 12, "name": "team"},
    }  # fmt: skip
    assert await broken(migrated) == []


async def test_a_call_of_a_run_is_of_the_nearest_one(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    child, parent = BUDGET_ID_MIN + 8, BUDGET_ID_MIN + 2
    windows = tuple(WindowKey(each, 0) for each in (7, child, child + 1, parent, parent + 1))
    account.consume(1, metadata=write_facts(FACTS), budgets=windows)
    account.consume(1, metadata=write_facts(FACTS), budgets=windows[:1])
    await writer.write(batch_of(account))
    assert [call["run_id"] for call in calls_in(migrated)] == [child, None]


async def test_a_call_of_several_ledgers_is_one_row_and_no_other_movement_is_one(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    account.credit(100)
    account.consume(10, credits_=3, units=2, metadata=write_facts(FACTS))
    account.grant(EventKind.RECHARGE, 5)
    batch = batch_of(account)
    await writer.write(batch)
    await writer.write(batch)
    [call] = calls_in(migrated)
    assert (call["tokens"], call["credits"], call["units"]) == (21, 3, 2)


async def test_a_call_that_was_charged_by_what_was_seen_is_corrected_in_its_row(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    account.credit(100)
    reclaimed = b'{"estimated":true,"reclaimed":true}'
    account.consume(5, credits_=1, request_id=request, metadata=reclaimed)
    await writer.write(batch_of(account))
    [before] = calls_in(migrated)
    assert (before["tokens"], before["credits"], before["estimated"], before["model"]) == (5, 1, True, None)
    more = mark_as_correction(write_facts(FACTS), request, "settled late")
    account.consume(16, credits_=2, kind=EventKind.ADJUST, metadata=more)
    await writer.write(batch_of(account))
    [after] = calls_in(migrated)
    told = ("tokens", "credits", "estimated", "model", "cache_read", "cost")
    assert [after[name] for name in told] == [21, 3, False, "m", 4, 354_000_001]
    assert (after["id"], after["created_at"]) == (before["id"], before["created_at"])


@pytest.mark.parametrize(
    "facts",
    [
        msgspec.structs.replace(FACTS, response_model="a\0b" * 200, upstream_request_id="😀"),
        msgspec.structs.replace(FACTS, tools={"a\0": 1, "ü": 2, "good": 3}),
        msgspec.structs.replace(FACTS, counts=(-1, 2**60, *FACTS.counts[2:]), cost=2**70),
        msgspec.structs.replace(FACTS, unknown=msgspec.Raw(b'{"a":"\\u0000"}')),
        msgspec.structs.replace(FACTS, unknown=msgspec.Raw(f'["x{"é" * 2100}"]'.encode())),
        msgspec.structs.replace(FACTS, counts=(*FACTS.counts, 9, 9)),
        msgspec.structs.replace(FACTS, metadata=msgspec.Raw(b'["none"]')),
    ],
)
async def test_nothing_an_upstream_says_keeps_a_charge_from_its_ledger(
    migrated: str, writer: LedgerWriter, facts: CallFacts
) -> None:
    account = opened(migrated)
    account.consume(21, metadata=msgspec.json.encode(facts))
    report = await writer.write(batch_of(account))
    assert (report.rows["token_ledger"], report.rows["call"], report.dead_letters) == (2, 1, 0)


def rollup_in(url: str, span: str) -> list[dict[str, Any]]:
    with connected(url, row_factory=dict_row) as connection:
        return connection.execute(
            "SELECT * FROM usage_rollup WHERE span = %s ORDER BY start, tenant_id, model, user_id", (span,)
        ).fetchall()


def added(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: int(sum(row[name] for row in rows)) for name in SUMS}


async def test_calls_add_up_by_hour_and_by_day(migrated: str, writer: LedgerWriter) -> None:
    account, other = settle_in(migrated, 10**9, None)
    for each in (account, other):
        each.reset()
        each.at_ms -= each.at_ms % DAY_MS
        for number in range(60):
            each.consume(
                21, user=f"u{number % 3}", attribution=f"\t{number % 2}\t" if number % 4 else "",
                metadata=write_facts(msgspec.structs.replace(FACTS, model=f"m{number % 2}", cost=number)),
            )  # fmt: skip
            each.at_ms += HOUR_MS
    await writer.write(batch_of(account, other))
    calls = calls_in(migrated)
    by_span = {span: rollup_in(migrated, span) for span in SPANS}
    hours, days = by_span["hour"], by_span["day"]
    assert len(by_span["month"]) <= len(by_span["week"]) < len(days) < len(hours) <= len(calls) == 120
    assert len(by_span["team_day"]) < len(days)
    assert {(row["user_id"], row["api_key_id"]) for row in by_span["team_hour"]} == {(0, 0)}
    for rows in by_span.values():
        assert added(rows) == added(days)
    assert added(days) == {
        "requests": 120, "refused": 0, "input": 600, "cache_read": 480, "cache_write": 600, "output": 840,
        "reasoning": 720, "tokens": 2520, "credits": 0, "units": 120, "cost": 2 * sum(range(60)),
        "estimated": 0, "unpriced": 120, "cache_write_1h": 240, "saved": -3 * 120,
    }  # fmt: skip
    assert {row["start"].hour for row in days} == {0}
    assert await broken(migrated) == []


async def test_a_correction_moves_what_a_call_added(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    account.consume(5, request_id=request, metadata=b'{"estimated":true,"reclaimed":true}')
    await writer.write(batch_of(account))
    assert [row["unpriced"] for row in rollup_in(migrated, "day")] == [1]
    more = mark_as_correction(write_facts(FACTS), request, "settled late")
    account.consume(16, kind=EventKind.ADJUST, metadata=more)
    await writer.write(batch_of(account))
    rows = {row["model"]: row for row in rollup_in(migrated, "hour")}
    assert (rows[""]["requests"], rows[""]["tokens"], rows[""]["unpriced"]) == (0, 0, 0)
    assert (rows["m"]["requests"], rows["m"]["tokens"], rows["m"]["cost"]) == (1, 21, 354_000_001)
    assert (rows["m"]["unpriced"], calls_in(migrated)[0]["unpriced"]) == (1, "web_search")
    assert "usage_adds_up" not in {one.invariant for one in await broken(migrated)}


async def test_a_roll_up_that_was_changed_is_found(migrated: str, writer: LedgerWriter) -> None:
    account = opened(migrated)
    account.consume(21, metadata=write_facts(FACTS))
    await writer.write(batch_of(account))
    with connected(migrated, autocommit=True) as connection:
        connection.execute("UPDATE usage_rollup SET cost = cost + 1 WHERE span = 'day'")
    assert [one.invariant for one in await broken(migrated)] == ["usage_adds_up"]


async def test_nothing_an_upstream_says_keeps_a_correction_from_its_row(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    request = str(uuid.uuid4())
    account.consume(5, request_id=request, metadata=b'{"estimated":true,"reclaimed":true}')
    strange = msgspec.structs.replace(
        FACTS, response_model="a\0b" * 200, counts=(-1, 2**60, *FACTS.counts[2:], 9), cost=2**70
    )
    more = mark_as_correction(msgspec.json.encode(strange), request, "settled late")
    account.consume(16, kind=EventKind.ADJUST, metadata=more)
    report = await writer.write(batch_of(account))
    [call] = calls_in(migrated)
    assert (call["tokens"], call["cost"], call["input"], report.dead_letters) == (21, 2**63 - 1, 0, 0)


async def test_costs_that_are_more_than_a_sum_holds_keep_no_charge_from_being_stored(
    migrated: str, writer: LedgerWriter
) -> None:
    account = opened(migrated)
    strange = msgspec.structs.replace(FACTS, cost=2**70, counts=(-1, 2**60, *FACTS.counts[2:]))
    for _ in range(2):  # within one write, and on top of what is stored
        account.consume(21, metadata=msgspec.json.encode(strange))
        account.consume(21, metadata=msgspec.json.encode(strange))
        await writer.write(batch_of(account))
    assert len(calls_in(migrated)) == 4
    for span in SPANS:
        rows = added(rollup_in(migrated, span))
        assert (rows["requests"], rows["cost"], rows["input"], rows["cache_read"]) == (4, 2**63 - 1, 0, 0)


@pytest.mark.parametrize(
    ("document", "stored"),
    [
        (rb'{"a":"\u0000x\u0000\u0000"}', b'{"a":"x"}'),
        (rb'{"a":"\\u0000"}', rb'{"a":"\\u0000"}'),
        (rb'{"a":"\\\u0000b"}', rb'{"a":"\\b"}'),
    ],
)
def test_an_escaped_nul_is_stored_in_no_document(document: bytes, stored: bytes) -> None:
    assert json_field(document)[5:] == stored
    assert json_field(b"") == NULL
