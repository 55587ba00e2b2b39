"""A price that was set wrong is amended: its calls cost what they would have, each once, and what follows from that.

Amounts are worked out by hand: a million tokens cost 100.00 by mistake, and 1.00 by right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from gateway.admin.http import bodies
from gateway.admin.resources.catalogue import PriceAmend, PriceCreate
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.outbox import EventKind
from gateway.core.billing.money import IN_MONEY, NANO
from gateway.core.times import ms_of
from gateway.errors import Conflict, Overloaded
from persistence.schema.partitions import why_unbilled
from tests.connections import connected
from tests.persistence.april import April, april, at, invoiced, plan, service
from tests.persistence.billing.test_due import customer, total
from tests.persistence.billing.test_usage_file import adds_up, read
from tests.persistence.billing.whole_histories import told_of
from tests.persistence.scenario import Account, broken, rows_of
from tests.waiting import eventually

__all__ = ["april"]

MILLION = 1_000_000
CALLS = "SELECT cost::bigint, price_id, rerated FROM call ORDER BY id"
ROLLED_UP = "SELECT sum(cost)::bigint FROM usage_rollup WHERE span = 'day'"
MARKUP = 2
WAITING = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7805 AND NOT granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


async def price(april: April, day: int = 1, *, model: str = "dated", **amounts: Any) -> int:
    asked: dict[str, object] = {
        "model": model,
        "currency": "USD",
        "effective_from": at(4, day).isoformat(),
        **amounts,
    }
    sent: Any = bodies.check_body(PriceCreate, asked)
    made = int((await april.do("prices", "create", **sent))["id"])
    await april.rate()
    return made


async def amend(april: April, price_id: int, **amounts: str | None) -> dict[str, Any]:
    asked: Any = bodies.check_body(PriceAmend, {"reason": "typed wrong", **amounts})
    made = await april.do("prices", "amend", price_id, **asked)
    await april.rate()
    return made


def call(april: April, price_id: int, cost: int, **more: Any) -> str:
    """A call of a million tokens, which cost so many nano-units by a price, in a plan unless `units` are said."""
    used = {"model": "dated", "counts": (MILLION, *[0] * 9), "total": MILLION, "currency": "USD"}
    facts = CallFacts(**used | {"status": 200, "cost": cost, "price_id": price_id} | more.pop("facts", {}))
    request_id = str(uuid4())
    april.account.consume(
        more.pop("tokens", MILLION), request_id=request_id, metadata=write_facts(facts), **more
    )
    april.flush()
    return request_id


async def in_plan(april: April) -> dict[str, int]:
    await april.on(at(4, 1))
    return await customer(april, await plan(april, "Starter", "29.00", 50 * MILLION), date(2026, 4, 1), None)


async def at_cost(april: April, ids: Mapping[str, int]) -> None:
    made = await service(april, "at-cost", "Pay-Per-Use", pricing={"at_cost": {"markup": str(MARKUP)}})
    april.account = Account(ids["organization"], ids["tenant"], None, service_id=made)
    april.account.tiers = IN_MONEY


def cost_call(april: April, price_id: int, cost: int) -> str:
    return call(april, price_id, cost, tokens=None, units=MARKUP * cost, facts={"units": 1})


def settled(april: April) -> None:
    """Have the counters move what corrections say, and the ledger know it."""
    found: Any = rows_of(
        april.url,
        "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb = 'amend'"
        " AND payload ? 'corrects' RETURNING id::text, payload",
    )
    for write_id, payload in sorted(found):
        april.account.consume(
            None,
            units=-payload["units"],
            request_id=write_id,
            kind=EventKind.ADJUST,
            metadata=told_of(payload),
        )
    april.flush()


async def looked_at(april: April) -> None:
    """Have the keeper look again at prices that are done but for calls that come late."""
    rows_of(april.url, "UPDATE rerating_left SET looked_at = 'epoch' RETURNING 1")
    rating = april.loop("rating")
    while await rating.turn():
        pass


async def test_an_amended_price_sets_the_cost_of_calls_in_a_plan_right(april: April) -> None:
    await in_plan(april)
    wrong, other = await price(april, input="100"), await price(april, model="other", input="7")
    await april.on(at(4, 10))
    for _ in range(3):
        call(april, wrong, 100 * NANO)
    call(april, other, 7 * NANO, facts={"model": "other"})
    made = await amend(april, wrong, input="1")
    assert (made["amends_id"], made["input"], made["effective_from"]) == (wrong, Decimal(1), at(4, 1))
    again = (NANO, made["id"], -99 * NANO)
    assert rows_of(april.url, CALLS) == [again, again, again, (7 * NANO, other, 0)]
    assert rows_of(april.url, ROLLED_UP) == [(10 * NANO,)]
    told = "SELECT cost_before, cost_after, charged, credits, reason, actor FROM rerating"
    reason = f"price {made['id']} of dated amends price {wrong}"
    assert rows_of(april.url, told) == [(100 * NANO, NANO, 0, 0, reason, "builtin:admin")] * 3
    # Nothing is owed by calls in a plan, and their tokens stay.
    assert rows_of(april.url, "SELECT 1 FROM control_write WHERE verb = 'amend'") == []
    assert await broken(april.url) == []


async def test_price_amendment_audit_has_both_prices_and_the_count_of_rerated_calls(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    for _ in range(2):
        call(april, wrong, 100 * NANO)
    made = await amend(april, wrong, input="1")
    found: Any = rows_of(
        april.url, "SELECT action, resource_id, actor, after FROM audit_log WHERE action IN ('amend', 'rated')"
        " ORDER BY action",
    )  # fmt: skip
    assert [row[:3] for row in found] == [
        ("amend", str(made["id"]), "builtin:admin"), ("rated", str(made["id"]), "builtin:admin")
    ]  # fmt: skip
    [rated] = found[1][3]["rated"]
    assert (rated["calls"], rated["left_out"], rated["currency"]) == (2, 0, "USD")
    assert (rated["cost_before"], rated["cost_after"]) == ("200", "2")


async def test_price_amendment_keeps_amounts_left_out_and_removes_null_amounts(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100", output="5", request="0.5")
    made = await amend(april, wrong, input="1", request=None)
    assert (made["input"], made["output"], made["request"]) == (1, 5, None)
    with pytest.raises(Conflict, match="changes no amount"):
        await amend(april, made["id"], input="1.0")
    with pytest.raises(Conflict, match="without any amount"):
        await amend(april, made["id"], input=None, output=None)


async def test_request_that_amends_a_price_leaves_its_calls_to_the_keeper(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    call(april, wrong, 100 * NANO)
    asked: Any = bodies.check_body(PriceAmend, {"reason": "typed wrong", "input": "1"})
    made = await april.do("prices", "amend", wrong, **asked)
    assert rows_of(april.url, CALLS) == [(100 * NANO, wrong, 0)]
    await april.rate()
    assert rows_of(april.url, CALLS) == [(NANO, made["id"], -99 * NANO)]


async def test_second_amendment_of_a_price_is_409_without_waiting_for_the_first(april: April) -> None:
    """Behind a keeper that rates calls; other prices wait, and not for long."""
    wrong, other = await price(april, input="100"), await price(april, model="other", input="100")
    amended = await amend(april, other, input="1")
    rows_of(april.url, "UPDATE rerating_left SET rated_at = NULL RETURNING 1")
    with connected(april.url) as keeper:
        keeper.execute("SELECT pg_advisory_xact_lock(7805, 0)")
        first = asyncio.ensure_future(amend(april, wrong, input="1"))
        await eventually(lambda: rows_of(april.url, WAITING) == [(1,)])
        for refused, why in (
            (wrong, "by another request"),
            (other, "already"),
            (amended["id"], "rated again"),
        ):
            with pytest.raises(Conflict, match=why):
                await asyncio.wait_for(amend(april, refused, input="2"), 60)
        assert rows_of(april.url, WAITING) == [(1,)], "the first still waits"
        with pytest.raises(Overloaded, match="try again in a while"):
            await first
        second = asyncio.ensure_future(amend(april, wrong, input="2"))
        await eventually(lambda: rows_of(april.url, WAITING) == [(1,)])
        keeper.rollback()
    assert (await second)["amends_id"] == wrong


async def test_price_is_amended_once_and_its_amendment_may_be_amended_again(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    call(april, wrong, 100 * NANO)
    first = await amend(april, wrong, input="10")
    with pytest.raises(Conflict, match=f"amended already, by price {first['id']}"):
        await amend(april, wrong, input="1")
    # One that was admitted before, and comes now.
    call(april, wrong, 100 * NANO)
    last = await amend(april, first["id"], input="1")
    assert rows_of(april.url, CALLS) == [(NANO, last["id"], -99 * NANO)] * 2
    assert await broken(april.url) == []


async def test_a_call_that_comes_after_the_amendment_is_rated_once(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    made = await amend(april, wrong, input="1")
    call(april, wrong, 100 * NANO)
    call(april, made["id"], NANO)
    for _ in range(2):
        await looked_at(april)
    assert rows_of(april.url, CALLS) == [(NANO, made["id"], -99 * NANO), (NANO, made["id"], 0)]
    assert rows_of(april.url, "SELECT count(*) FROM rerating") == [(1,)]
    # A call can come no later than a week.
    await april.on(at(4, 18))
    await looked_at(april)
    assert rows_of(april.url, "SELECT count(*) FROM rerating_left") == [(0,)]


async def test_a_later_price_reaches_calls_in_a_plan_too(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    call(april, wrong, 100 * NANO)
    late = await price(april, day=5, input="1")
    assert rows_of(april.url, CALLS) == [(NANO, late, -99 * NANO)]


async def test_price_amendment_changes_the_unbilled_amount_of_services_sold_at_cost(april: April) -> None:
    ids = await in_plan(april)
    await at_cost(april, ids)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    cost_call(april, wrong, 100 * NANO)
    draft = await april.do(
        "invoices", "create", organization_id=ids["organization"], period_start=date(2026, 4, 1),
        period_end=date(2026, 5, 1),
    )  # fmt: skip
    before = total(draft)
    await amend(april, wrong, input="1")
    await looked_at(april)
    # 200.00 and 2.00 with the markup. The draft waits for the ledger.
    read = f"SELECT total_amount FROM invoice WHERE id = {draft['id']}"
    assert rows_of(april.url, read) == [(before,)]
    settled(april)
    await looked_at(april)
    assert rows_of(april.url, read) == [(before - 198,)]
    assert rows_of(april.url, "SELECT count(*) FROM rerating_bill") == [(0,)]
    assert await broken(april.url) == []


@pytest.mark.parametrize(("right", "back"), [("1", "-198.00"), ("150", None)])
async def test_a_final_invoice_is_followed_by_a_credit_note_or_the_next_invoice(
    april: April, right: str, back: str | None
) -> None:
    ids = await in_plan(april)
    await at_cost(april, ids)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    cost_call(april, wrong, 100 * NANO)
    await april.on(at(5, 1, 6))
    final = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert total(final) == Decimal("229.00")
    await amend(april, wrong, input=right)
    settled(april)
    await looked_at(april)
    documents = "SELECT number, kind, status, total_amount, document->'corrects' FROM invoice ORDER BY id"
    found: Any = rows_of(april.url, documents)
    first, *notes = found
    assert first[:4] == (final["number"], "invoice", "finalized", Decimal("229.00"))
    if back is None:
        assert notes == []
        # 300.00 were right: the next invoice has 100.00 more, and May's fee.
        await april.on(at(6, 1, 6))
        assert total(await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))) == Decimal("129.00")
    else:
        [(_, kind, status, amount, corrects)] = notes
        assert (kind, status, amount) == ("credit_note", "finalized", Decimal(back))
        assert [each["number"] for each in corrects] == [final["number"]]
    assert await broken(april.url) == []


async def test_the_files_of_a_note_and_of_the_next_invoice_add_up(april: April) -> None:
    ids = await in_plan(april)
    await at_cost(april, ids)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    cost_call(april, wrong, 100 * NANO)
    await april.on(at(5, 1, 6))
    final = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    made = await amend(april, wrong, input="1")
    settled(april)
    await looked_at(april)
    [(note_id,)] = rows_of(april.url, "SELECT id FROM invoice WHERE kind = 'credit_note'")
    note = await april.store.get("invoices", int(str(note_id)))
    await april.on(at(5, 10))
    cost_call(april, made["id"], NANO)
    await april.on(at(6, 1, 6))
    following = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    assert total(following) == Decimal("31.00")
    for document in (final, note, following):
        adds_up(await read(april, document), document)


async def test_a_price_of_archived_months_or_of_the_bundled_list_is_not_amended(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    bundled = await price(april, model="listed", input="100", source="bundled")
    with pytest.raises(Conflict, match="bundled list"):
        await amend(april, bundled, input="1")
    rows_of(april.url, "INSERT INTO kept_since VALUES ('call', %s) RETURNING 1", [at(4, 2)])
    with pytest.raises(Conflict, match="archived, those before 2026-04"):
        await amend(april, wrong, input="1")


async def test_price_amendment_is_refused_while_calls_are_still_rated_by_the_price(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    call(april, wrong, 100 * NANO)
    made = await amend(april, wrong, input="1")
    rows_of(april.url, "UPDATE rerating_left SET rated_at = NULL RETURNING 1")
    with pytest.raises(Conflict, match="still rated again"):
        await amend(april, made["id"], input="2")
    async with april.pool.connect() as connection:  # nor is its month dropped
        why = await why_unbilled(connection, date(2026, 5, 1))
    assert why == f"price {made['id']} still rates calls again: from 2026-04-01"


async def test_an_exchange_rate_stays_with_an_amended_price(april: April) -> None:
    await in_plan(april)
    await april.do("organizations", "create", name="Euros", currency="EUR")
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    call(april, wrong, 92 * NANO, facts={"currency": "EUR", "exchange_rate": "0.92"})
    made = await amend(april, wrong, input="1")
    assert rows_of(april.url, "SELECT cost, currency, exchange_rate, price_id FROM call") == [
        (92 * NANO // 100, "EUR", "0.92", made["id"])
    ]
    assert rows_of(april.url, "SELECT currency FROM rerating") == [("EUR",)]


async def test_amended_price_of_an_inner_model_rerates_only_the_tokens_of_that_model(april: April) -> None:
    await in_plan(april)
    main, advisor = await price(april, input="1"), await price(april, model="advisor", input="1000")
    await april.on(at(4, 10))
    part = ("advisor", advisor, (MILLION // 4, *[0] * 9))
    call(april, main, (750_000 * 1_000) + 250_000 * 1_000_000, facts={"beside": (part,)})
    await amend(april, advisor, input="10")
    # 0.75 of the model's own tokens, and 2.50 of the advisor's.
    assert rows_of(april.url, "SELECT cost, price_id FROM call") == [(3_250_000_000, main)]
    assert await broken(april.url) == []


async def budget_since(april: April, ids: Mapping[str, int], day: int, **terms: Any) -> int:
    made = await april.do(
        "budgets", "create", organization_id=ids["organization"], name=str(uuid4()),
        **{"unit": "money", "amount": Decimal(1000), "interval": "month"} | terms,
    )  # fmt: skip
    rows_of(
        april.url, "UPDATE budget SET created_at = %s WHERE id = %s RETURNING 1", [at(4, day), made["id"]]
    )
    return int(made["id"])


def taken(april: April) -> dict[int, tuple[int, list[int]]]:
    """By budget, the start of the window and what is taken from its accounts."""
    found: Any = rows_of(
        april.url, "SELECT payload FROM control_write WHERE payload ? 'taken' ORDER BY position"
    )
    return {said["budget_id"]: (said["start_ms"], sorted(said["taken"].values())) for (said,) in found}


async def test_price_amendment_moves_only_running_budgets_that_counted_the_call(april: April) -> None:
    ids = await in_plan(april)
    wrong = await price(april, input="100")
    month = await budget_since(april, ids, 1)
    day = await budget_since(april, ids, 1, interval="day")
    total_ = await budget_since(april, ids, 1, interval="total", each="user")
    await budget_since(april, ids, 1, unit="tokens", amount=10**9)
    await budget_since(april, ids, 1, model="other")
    await april.do("organizations", "change", ids["organization"], tags=["feature"])
    tagged = await budget_since(april, ids, 1, tags={"feature": "search"})
    by_tag = await budget_since(april, ids, 1, each="tag:feature")
    later = await budget_since(april, ids, 8)
    reset = await budget_since(april, ids, 1)
    await april.do("budgets", "reset", reset)
    rows_of(
        april.url, "UPDATE control_write SET applied_at = %s WHERE verb = 'budget' RETURNING 1", [at(4, 9)]
    )
    deleted = await budget_since(april, ids, 1)
    await april.do("budgets", "delete", deleted)
    # Another edition of the time zones began its month an hour earlier.
    earlier = await budget_since(april, ids, 1)
    begun = "INSERT INTO budget_use (budget_id, start, used) VALUES (%s, %s, 0) RETURNING 1"
    rows_of(april.url, begun, [earlier, at(4, 1, 0) - timedelta(hours=1)])
    for when, user, feature in ((7, "ann", "search"), (7, "bob", "chat"), (10, "ann", "search")):
        await april.on(at(4, when))
        call(april, wrong, 100 * NANO, user=user, facts={"tags": {"feature": feature}})
    await amend(april, wrong, input="1")
    ms = {when: int(at(4, when, 0).timestamp() * 1000) for when in (1, 10)}
    one = 99 * NANO
    assert taken(april) == {
        month: (ms[1], [3 * one]),
        day: (ms[10], [one]),  # of the days that are over nothing
        total_: (0, [one, 2 * one]),
        tagged: (ms[1], [2 * one]),
        by_tag: (ms[1], [one, 2 * one]),
        later: (ms[1], [one]),
        reset: (ms[1], [one]),
        earlier: (ms[1] - 3_600_000, [3 * one]),
    }


async def test_credits_at_cost_come_back_or_are_charged(april: April) -> None:
    """A dollar costs 10 credits. So 100.00 cost 1,000, and 1.00 costs 10. A debt of 10.5 is rounded down to 10."""
    ids = await in_plan(april)
    at_cost = {"at_cost": {"markup": "1", "credits_per_unit": "10"}}
    made = await service(april, "paid", "Consumption", pricing=at_cost)
    april.account = Account(ids["organization"], ids["tenant"], None, service_id=made)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    first = call(april, wrong, 100 * NANO, tokens=None, credits_=1000)
    first_right = await amend(april, wrong, input="1")
    given = "SELECT credits_added, category, remark FROM credit_addition ORDER BY id"
    remark = f"price {first_right['id']} of dated amends price {wrong}: 1 calls"
    assert rows_of(april.url, given) == [(990, "refund", remark)]
    assert rows_of(april.url, "SELECT credits FROM call") == [(10,)]
    assert rows_of(april.url, "SELECT request_id::text, credits, charged FROM rerating") == [(first, -990, 0)]
    # What it costs now is 2.05.
    second_right = await amend(april, first_right["id"], input="2.05")
    moved = "SELECT payload->'credits', payload->>'corrects' FROM control_write WHERE verb = 'amend'"
    assert rows_of(april.url, moved) == [(-10, first)]
    assert rows_of(april.url, "SELECT credits, price_id FROM call") == [(20, second_right["id"])]


async def test_a_call_of_the_model_twice_is_rated_once_by_either_way(april: April) -> None:
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    made = await amend(april, wrong, input="1")
    part = ("dated", wrong, (MILLION // 2, *[0] * 9))
    call(april, wrong, 100 * NANO, facts={"beside": (part,)})
    await looked_at(april)
    assert rows_of(april.url, CALLS) == [(NANO, made["id"], -99 * NANO)]
    assert rows_of(april.url, "SELECT count(*) FROM rerating") == [(1,)]


async def test_rerating_interrupted_half_way_resumes_without_rating_a_call_twice(april: April) -> None:
    """The amendment dies behind its first piece; another keeper has the rest, and none twice."""
    await in_plan(april)
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    for _ in range(3):
        call(april, wrong, 100 * NANO)
    made = await amend(april, wrong, input="1")
    [(last,)] = rows_of(april.url, "SELECT max(id) FROM call")
    call(april, wrong, 100 * NANO)
    # As a piece leaves it that ended with the third call.
    rows_of(april.url, "UPDATE rerating_left SET rated_at = NULL, after_id = %s RETURNING 1", [last])
    rating = april.loop("rating")
    while await rating.turn():
        pass
    assert rows_of(april.url, CALLS) == [(NANO, made["id"], -99 * NANO)] * 4
    assert rows_of(april.url, "SELECT count(*) FROM rerating") == [(4,)]
    told: Any = rows_of(
        april.url, "SELECT after->'rated'->0->'calls' FROM audit_log WHERE action = 'rated' ORDER BY id"
    )
    assert told == [(3,), (4,)]


async def test_rerating_leaves_out_a_call_amended_by_hand_and_its_row_states_the_reason(april: April) -> None:
    await at_cost(april, await in_plan(april))
    wrong = await price(april, input="100")
    await april.on(at(4, 10))
    by_hand = cost_call(april, wrong, 100 * NANO)
    cost_call(april, wrong, 100 * NANO)
    await april.do("amendments", "create", request_id=by_hand, reason="an outage", amount=Decimal(1))
    made = await amend(april, wrong, input="1")
    reason = f"price {made['id']} of dated amends price {wrong}"
    rows = "SELECT cost_before, cost_after, charged, reason FROM rerating ORDER BY request_id = %s DESC"
    assert rows_of(april.url, rows, [by_hand]) == [
        (100 * NANO, 100 * NANO, 0, f"{reason}: left out, its charge was amended by hand"),
        (100 * NANO, NANO, -99 * NANO * MARKUP, reason),
    ]
    logged: Any = rows_of(april.url, "SELECT after FROM audit_log WHERE action = 'rated'")
    [rated] = logged[-1][0]["rated"]
    assert (rated["calls"], rated["left_out"]) == (2, 1)


EVERY_DAY = {
    "days": [1, 2, 3, 4, 5, 6, 7], "from": "00:00", "to": "24:00", "time_zone": "UTC", "factor": "2",
    "except": ["2026-04-08"],
}  # fmt: skip


async def test_amended_price_by_the_hour_rates_each_call_by_its_own_hour(april: April) -> None:
    """One call of 7 April at twice its price, and one of the 8th, which is excepted, stored on the 10th."""
    await in_plan(april)
    wrong = await price(april, input="100", hours=[EVERY_DAY])
    await april.on(at(4, 10))
    for day, factor in ((7, 2), (8, 1)):
        hour = (ms_of(at(4, day)), str(factor))
        call(april, wrong, factor * 100 * NANO, facts={"hour": hour})
    made = await amend(april, wrong, input="1")
    assert made["hours"] == [EVERY_DAY]
    told = "SELECT cost::bigint, price_id, priced_at, hour_factor FROM call ORDER BY id"
    assert rows_of(april.url, told) == [
        (2 * NANO, made["id"], at(4, 7), "2"), (NANO, made["id"], at(4, 8), "1"),
    ]  # fmt: skip
    plain = await amend(april, made["id"], hours=None)
    assert rows_of(april.url, told) == [
        (NANO, plain["id"], at(4, 7), None), (NANO, plain["id"], at(4, 8), None),
    ]  # fmt: skip
