"""Events of cycles that are over: what they are beyond a plan is owed, and falls due in the next invoice."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event as sqlalchemy_event

from gateway.errors import Unprocessable
from tests.persistence.april import April, april, at, invoiced, plan
from tests.persistence.billing.test_due import act, customer, total
from tests.persistence.scenario import broken, rows_of
from tests.search import examples

__all__ = ["april"]


async def send(april: April, tenant_id: int, moment: datetime, tokens: int, event_id: str = "") -> Any:
    event = {
        "id": event_id or str(uuid4()), "source": "test", "type": "use", "subject": f"tenant:{tenant_id}",
        "time": moment, "data": {"service": "chat", "usage": {"input": tokens}},
    }  # fmt: skip
    return await april.do("events", "create", events=[(0, event)], rejected=[])


async def test_tokens_of_a_late_event_beyond_the_plan_are_billed_as_overage_of_the_ended_cycle(
    april: April,
) -> None:
    starter = await plan(april, "Starter", "0.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(1_800_000)
    april.flush()
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    assert total(await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))) == 0
    # 200,000 more were in the plan.
    await send(april, ids["tenant"], at(4, 20), 150_000, "first")
    assert await broken(april.url) == []
    assert rows_of(april.url, "SELECT sum(amount) FROM charge WHERE kind = 'overage'") == [(None,)]
    await send(april, ids["tenant"], at(4, 21), 1_050_000, "second")
    await send(april, ids["tenant"], at(4, 21), 1_050_000, "second")
    await send(april, ids["tenant"], at(4, 2), 1_000_000, "third")
    assert await broken(april.url) == []
    [(quantity, start)] = rows_of(
        april.url, "SELECT sum(quantity), min(period_start) FROM charge WHERE kind = 'overage'"
    )
    assert (quantity, start) == (2_000_000, datetime(2026, 4, 1, tzinfo=UTC))
    await april.on(at(6, 1, 6))
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    assert total(may) == Decimal("6.00")
    [line] = [line for line in may["lines"] if line["kind"] == "overage"]
    assert "cycle from 1 April 2026" in line["description"]


@pytest.mark.parametrize(("day", "late"), [(5, 700), (20, 0)])
async def test_late_event_counts_in_the_current_cycle_only_if_the_plan_then_carries_overage(
    april: April, day: int, late: int
) -> None:
    blocks, carries = [
        await plan(april, each, "1.00", 1_000, overage_policy=each) for each in ("block", "carry")
    ]
    ids = await customer(april, blocks, date(2026, 4, 1), None)
    await april.on(at(4, 1))
    await april.on(at(4, 10))
    await act(april, ids, "change", plan_id=carries, when="now")
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    await send(april, ids["tenant"], at(4, day), 700)
    assert april.rows("SELECT late_tokens FROM use_event") == [(late,)]


async def test_ledger_flush_while_an_event_is_being_stored_does_not_make_the_event_late(april: April) -> None:
    """The first cycle of a tenant is stored between what is read of it and its event."""
    starter = await plan(april, "Starter", "0.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    april.rows("UPDATE tenant SET inherited_plan_id = (SELECT id FROM token_plan) RETURNING id")
    april.account.total = 2_000_000
    april.account.at_ms = int(at(4, 1).timestamp() * 1000)
    april.account.reset()
    april.now = at(4, 2)
    flushed: list[str] = []

    def flush(*of: Any) -> None:
        if "FROM tenant AS t JOIN organization" in of[2] and not flushed:
            flushed.append(of[2])
            april.flush()

    listened = april.pool.sync_engine, "after_cursor_execute", flush
    sqlalchemy_event.listen(*listened)
    try:
        await send(april, ids["tenant"], at(4, 1, 13), 5)
    finally:
        sqlalchemy_event.remove(*listened)
    assert len(flushed) == 1
    assert april.rows("SELECT cycle FROM tenant_quota") == [(1,)]
    assert april.rows("SELECT late_tokens FROM use_event") == [(0,)]


async def test_batch_of_sixty_events_runs_as_many_sql_statements_as_a_batch_of_three(april: April) -> None:
    """Each has a time of its own, before and in the cycle that runs; one statement asks for all of them."""
    starter = await plan(april, "Starter", "0.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(1_800_000)
    april.flush()
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    await april.on(at(5, 20))
    models, asked = ("gpt-5.4", "claude-opus-5", "gemini-2.5-pro"), list[str]()

    async def statements(count: int) -> int:
        asked.clear()
        events = [
            {
                "id": str(uuid4()), "source": "test", "type": "use", "subject": f"tenant:{ids['tenant']}",
                "time": at(4, 15 + number % 28 - 14) if number % 2 else at(5, 2 + number % 17, number % 6),
                "data": {"service": "chat", "model": models[number % 3], "usage": {"input": 1 + number}},
            }
            for number in range(count)
        ]  # fmt: skip
        told = await april.do("events", "create", events=[*enumerate(events)], rejected=[])
        assert (told["accepted"], told["rejected"]) == (count, [])
        return len(asked)

    def note(*of: Any) -> None:
        asked.append(of[2])

    listened = april.pool.sync_engine, "before_cursor_execute", note
    sqlalchemy_event.listen(*listened)
    try:
        few, many = await statements(3), await statements(60)
    finally:
        sqlalchemy_event.remove(*listened)
    assert many == few
    written = "SELECT sum(tokens), count(*) FROM (SELECT (payload->>'tokens')::bigint AS tokens"
    [found] = april.rows(f"{written} FROM control_write WHERE verb = 'use') AS each")
    assert found == (sum(range(1, 4)) + sum(range(1, 61)), 63)
    assert await broken(april.url) == []


async def test_usage_event_dated_when_the_tenant_had_no_plan_is_refused(april: April) -> None:
    blocks = {"overage_policy": "block", "overage_unit_price": None}
    small = await plan(april, "Small", "300.00", 1_000_000, **blocks)
    ids = await customer(april, small, date(2026, 4, 3), None)
    await april.on(at(4, 4))
    april.account.consume(100_000)
    april.flush()
    await april.on(at(4, 10))
    await act(april, ids, "cancel", when="now")
    facts = "SELECT count(*) FROM use_event"
    # Of the plan's time: its 7 days paid 70.00, and half of its tokens are 150.00.
    told = await send(april, ids["tenant"], at(4, 5), 400_000)
    assert (told["accepted"], told["rejected"]) == (1, [])
    await april.charge(ids["organization"])
    [(early,)] = rows_of(april.url, "SELECT sum(amount) FROM charge WHERE kind = 'early_use'")
    assert early == 80
    await april.on(at(4, 12))
    for moment in (at(3, 20), at(4, 11)):
        with pytest.raises(Unprocessable) as refused:
            await send(april, ids["tenant"], moment, 400_000)
        [(field, why)] = refused.value.errors
        assert (field, "no plan of the tenant was in force" in why) == ("0.time", True)
    assert rows_of(april.url, facts) == [(1,)]


@settings(max_examples=examples(15))
@given(st.permutations([("a", 300_000), ("b", 900_000), ("c", 5), ("a", 300_000), ("c", 5)]), st.data())
async def test_late_events_bill_the_same_overage_in_any_order_and_when_delivered_twice(
    april: April, sent: list[tuple[str, int]], data: st.DataObject
) -> None:
    name = str(uuid4())
    starter = await plan(april, f"Starter {name}", "0.00", 1_000_000)
    await april.on(at(4, 1))
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(400_000)
    april.flush()
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    for event_id, tokens in sent:
        day = data.draw(st.integers(2, 30))
        await send(april, ids["tenant"], at(4, day), tokens, f"{event_id} {name}")
    charged = "SELECT sum(quantity), sum(amount) FROM charge WHERE tenant_id = %s AND kind = 'overage'"
    assert rows_of(april.url, charged % ids["tenant"]) == [(600_005, Decimal("1.800015"))]
