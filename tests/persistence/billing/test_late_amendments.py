"""What is told of a plan that has ended, and debt that another plan carried on: owed as if it had been known.

Figures are added up by hand: a plan of 300.00 with 1,000,000 tokens costs 10.00 a day and 0.0003 a token in
April.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from operator import itemgetter
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from gateway.core.accounts.outbox import EventKind
from gateway.errors import Unprocessable
from persistence.billing import charges
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import act, billed, customer
from tests.persistence.billing.test_early_use import BEGINS, BLOCKS, use
from tests.persistence.billing.test_events import send
from tests.persistence.scenario import broken, document, rows_of

__all__ = ["april"]

OPEN = "SELECT count(*) FROM plan_end WHERE quantity IS NULL"
CARRIES = BLOCKS | {"overage_policy": "carry"}


async def big_plan(april: April, **terms: Any) -> dict[str, int]:
    """A customer of the big plan since 1 April."""
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS | terms)
    return await customer(april, big, BEGINS, None)


def call(april: April, tokens: int) -> str:
    request_id = str(uuid4())
    facts = b'{"model":"gpt-4o","input":%d,"output":0}' % tokens
    april.account.consume(tokens, request_id=request_id, metadata=facts)
    april.flush()
    return request_id


async def amend(april: April, request_id: str, direction: str, tokens: int) -> None:
    await april.do(
        "amendments", "create", request_id=request_id, reason="a test", direction=direction, tokens=tokens
    )


def counted(april: April) -> None:
    """Have the counters move what was told, and the ledger know it."""
    found: Any = rows_of(
        april.url,
        "UPDATE control_write SET state = 'applied' WHERE state = 'pending' AND verb IN ('use', 'amend')"
        " RETURNING position, id::text, verb, payload",
    )
    for _, write_id, verb, payload in sorted(found, key=itemgetter(0)):
        if verb == "use":
            april.account.consume(payload["weighed"], request_id=write_id)
        else:
            told = document(
                **{name: payload[name] for name in ("corrects", "reason", "supplied_on", "told_on")}
            )
            april.account.grant(EventKind.ADJUST, payload["tokens"], write_id, metadata=told)
    april.flush()


async def due_by_use(april: April) -> Sequence[int]:
    """Who has something to charge that is not of days."""
    async with april.pool.connect() as connection:
        return await connection.run_sync(charges.charges_due, date.min, 0, 9)


async def early(april: April, ids: dict[str, int]) -> Decimal:
    """What is charged for tokens used ahead of days, by hand as by the clock."""
    due = await due_by_use(april)
    before = rows_of(april.url, OPEN)
    await april.charge(ids["organization"])
    assert due == ([] if rows_of(april.url, OPEN) == before else [ids["organization"]])
    [(amount,)] = rows_of(
        april.url, "SELECT coalesce(sum(amount), 0) FROM charge WHERE kind = 'early_use' AND amount <> 0"
    )
    return Decimal(str(amount))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("direction", "tokens", "due"),
    [
        ("IN", 300_000, "-90.00"),
        ("IN", 999_000, "-299.70"),
        ("OUT", 500, "0.15"),
        ("OUT", 5_000, "0.30"),  # the plan has no more than its fee
    ],
)
async def test_an_amendment_behind_a_plan_moves_what_was_used_of_it(
    april: April, direction: str, tokens: int, due: str, late: bool
) -> None:
    ids = await big_plan(april)
    await april.on(at(4, 1))
    request_id = call(april, 999_000)
    await act(april, ids, "cancel", when="now")
    assert await billed(april, ids, 4) == Decimal("299.70")
    if late:
        await april.on(at(5, 1, 6))
        april.account.reset()
        april.flush()
    await amend(april, request_id, direction, tokens)
    assert await broken(april.url) == []
    for _ in range(2):
        counted(april)
        await april.charge(ids["organization"])
        assert await broken(april.url) == []
    assert await billed(april, ids, 5) == Decimal(due)


async def test_an_event_behind_a_plan_is_used_of_it_once(april: April) -> None:
    ids = await big_plan(april)
    await use(april, 1, 500_000)
    await april.on(at(4, 4))
    # Told in time: it is in the ledger before the plan's end.
    await send(april, ids["tenant"], at(4, 3), 100_000, "in time")
    counted(april)
    await act(april, ids, "cancel", when="now")
    # Three days are 30.00.
    assert await early(april, ids) == Decimal("150.00")
    await send(april, ids["tenant"], at(4, 3), 200_000, "behind")
    await send(april, ids["tenant"], at(4, 3), 200_000, "behind")
    await april.on(at(4, 4, 14))
    with pytest.raises(Unprocessable):  # no plan was in force
        await send(april, ids["tenant"], at(4, 4, 13), 50_000, "used behind")
    assert await early(april, ids) == Decimal("210.00")
    counted(april)
    assert await early(april, ids) == Decimal("210.00")


async def test_ends_of_one_cycle_go_on_from_each_other_when_one_is_told_of(april: April) -> None:
    """Whatever order it is known in, a cycle comes to what was used of the plan, and to its fee at most."""
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **BLOCKS)
    big = rows_of(april.url, "SELECT id FROM subscription_plan WHERE name = 'Big'")[0][0]
    await april.on(at(4, 1))
    first = call(april, 500_000)
    await act(april, ids, "change", plan_id=small, when="now")
    assert await early(april, ids) == Decimal("149.70")
    await act(april, ids, "change", plan_id=big, when="now")
    await april.on(at(4, 1, 14))
    call(april, 400_000)
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == 270
    await amend(april, first, "IN", 450_000)
    counted(april)
    # 450,000 in the end, all of them had by the plan that ended last.
    quantities = rows_of(april.url, "SELECT quantity FROM plan_end WHERE total_amount = 1000000 ORDER BY id")
    assert await early(april, ids) == Decimal("135.00")
    assert quantities == [(0,), (450_000,)]


async def test_tokens_beyond_a_plan_that_bills_are_owed_behind_it_too(april: April) -> None:
    ids = await big_plan(april, total_amount=1_000, overage_policy="bill", overage_unit_price=Decimal("0.01"))
    await april.on(at(4, 2))
    request_id = call(april, 900)
    await april.on(at(4, 5))
    await act(april, ids, "cancel", when="now")
    await send(april, ids["tenant"], at(4, 3), 600, "behind")
    charged = "SELECT coalesce(sum(amount), 0)::text FROM charge WHERE kind = 'overage'"
    assert Decimal(str(rows_of(april.url, charged)[0][0])) == 5
    counted(april)
    await amend(april, request_id, "IN", 300)
    assert Decimal(str(rows_of(april.url, charged)[0][0])) == 2
    counted(april)
    await april.charge(ids["organization"])
    assert Decimal(str(rows_of(april.url, charged)[0][0])) == 2


async def test_what_was_used_of_a_plan_costs_its_price_and_not_the_next_ones(april: April) -> None:
    bills = {"overage_policy": "bill"}
    ids = await big_plan(april, total_amount=1_000, overage_unit_price=Decimal("0.01"), **bills)
    dear = await plan(april, "Dear", "600.00", 2_000, overage_unit_price=Decimal("0.07"))
    await april.on(at(4, 2))
    call(april, 900)
    await april.on(at(4, 5))
    await act(april, ids, "change", plan_id=dear, when="now")
    await send(april, ids["tenant"], at(4, 3), 1_300, "behind")
    counted(april)
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    # Beyond the first 1,200 at its price, as if it had been told in time; beyond the second 200 of them.
    charged = "SELECT sum(quantity)::bigint, sum(amount)::text FROM charge WHERE kind = 'overage'"
    [(quantity, amount)] = rows_of(april.url, charged)
    assert (quantity, Decimal(str(amount))) == (1_200, 12)


async def test_debt_that_a_plan_carried_is_owed_where_nobody_carries_it_on(april: April) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    assert await early(april, ids) == 0
    assert await billed(april, ids, 4) == 1  # thirty days of the small one
    await april.on(at(5, 1, 0))
    april.account.reset()
    april.flush()
    await april.on(at(5, 10))
    assert april.account.remaining == -997_000
    await act(april, ids, "cancel", when="now")
    # May's first thousand paid a thousand of the 998,000 back.
    assert await early(april, ids) == Decimal("299.10")
    assert await billed(april, ids, 5) == Decimal("299.10") + Decimal("0.29")


@pytest.mark.parametrize(
    ("name", "tokens", "terms", "due"),
    [
        ("Small", 1_000, BLOCKS, "299.40"),
        ("Middle", 500_000, BLOCKS, "149.70"),
        ("Huge", 2_000_000, BLOCKS, "0"),
        ("Bills", 1_000, {}, "0"),  # owed there, at its price
    ],
)
async def test_the_plan_behind_debt_has_what_it_has(
    april: April, name: str, tokens: int, terms: dict[str, Any], due: str
) -> None:
    ids = await big_plan(april)
    carries = await plan(april, "Carries", "1.00", 1_000, **CARRIES)
    behind = await plan(april, name, "1.00", tokens, **terms)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=carries, when="now")
    await act(april, ids, "change", plan_id=behind, when="now")
    assert await early(april, ids) == Decimal(due)
    # What is told now of the big one is owed as well, where it was not had.
    await send(april, ids["tenant"], at(4, 1), 500, "behind")
    assert await early(april, ids) == Decimal(due) + (Decimal("0.15") if Decimal(due) else 0)
    april.is_sound = False  # a plan that bills blocks nobody, but for the account of these tests
    assert [each for each in await broken(april.url) if each.invariant != "blocked"] == []


async def test_debt_goes_from_one_plan_that_carries_to_another_and_a_person_ends_it(april: April) -> None:
    ids = await big_plan(april)
    first, second = [await plan(april, name, "1.00", 1_000, **CARRIES) for name in ("First", "Second")]
    await use(april, 1, 999_000)
    for each in (first, second):
        await act(april, ids, "change", plan_id=each, when="now")
        assert await early(april, ids) == 0
    own = await april.do("token-plans", "create", name="Own", total_amount=999, **BLOCKS)
    await april.do("tenant-quotas", "change", ids["tenant"], plan_id=own["id"])
    april.follow()
    assert await early(april, ids) == Decimal("299.40")


async def test_debt_of_a_tenant_that_is_deleted_is_owed_with_the_end_of_its_plan(april: April) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    await april.do("tenants", "delete", ids["tenant"])
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    assert await early(april, ids) == Decimal("299.70")


async def test_ends_of_plans_are_changed_by_what_is_known_alone(april: April) -> None:
    ids = await big_plan(april)
    await use(april, 1, 999_000)
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == Decimal("299.70")
    for change in ("worth = 1", "quantity = NULL, amount = NULL", "charges = 0", "debt_counted = 1"):
        with pytest.raises(Exception, match=r"stands|violates"):
            rows_of(april.url, f"UPDATE plan_end SET {change} RETURNING id")


@pytest.mark.parametrize("reset_first", [True, False])
async def test_a_plan_that_ends_with_its_cycle_is_owed_for_or_carried_on(
    april: April, reset_first: bool
) -> None:
    """Whichever the ledger has first: never both, and never neither."""
    first = await plan(april, "First", "1.00", 1_000, **BLOCKS)
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    carries = await plan(april, "Carries", "1.00", 1_000, **CARRIES)
    ids = await customer(april, first, BEGINS, None)
    await april.on(at(4, 30))
    await act(april, ids, "change", plan_id=big, when="now")
    await use(april, 30, 960_000)
    await act(april, ids, "change", plan_id=carries, when="period_end")
    for what in ("reset", "plan") if reset_first else ("plan", "reset"):
        april.account.at_ms = int(at(5, 1, 0).timestamp() * 1000)
        if what == "reset":
            april.account.reset()
            april.flush()
        else:
            await april.on(at(5, 1, 0))
    # The days of April pay 10.9667 of the 288.00 that these tokens are. The plan that carries has a thousand.
    due = Decimal("277.0333")
    assert april.account.remaining == (1_000 if reset_first else 1_000 + 1_000 - 960_000)
    assert (await early(april, ids)).quantize(Decimal("0.0001")) == (due if reset_first else 0)
    await april.on(at(5, 10))
    await act(april, ids, "cancel", when="now")
    assert (await early(april, ids)).quantize(Decimal("0.0001")) == (
        due if reset_first else due - Decimal("0.3")
    )


async def test_debt_that_a_reset_forgives_is_owed_then(april: April) -> None:
    """Its plan carries no more: a person has changed that."""
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    for month in (5, 6):
        april.account.at_ms = int(at(month, 1, 0).timestamp() * 1000)
        if month == 6:
            [(own,)] = rows_of(april.url, "SELECT id FROM token_plan WHERE name = 'Small'")
            await april.do("token-plans", "change", int(str(own)), overage_policy="block")
            april.account.policy = "block"
        assert await early(april, ids) == 0
        april.account.reset()
        april.flush()
        await april.on(at(month, 1, 0))
    # May's thousand paid a thousand back.
    assert april.account.remaining == 1_000
    assert await early(april, ids) == Decimal("299.10")
    await april.on(at(6, 10))
    april.account.consume(10)
    april.flush()
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == Decimal("299.10")


async def test_debt_that_many_plans_carried_on_is_read_once(april: April) -> None:
    ids = await big_plan(april, overage_policy="carry")
    await use(april, 1, 999_000)
    for count in range(4):
        small = await plan(april, f"Small {count}", "1.00", 1_000, **CARRIES)
        await act(april, ids, "change", plan_id=small, when="now")
    await act(april, ids, "cancel", when="now")
    lots, turns = list[str](), list[str]()

    def asked(_: object, __: object, statement: str, *___: object) -> None:
        for word, found in (("debt_write_id IS NOT DISTINCT FROM", lots), ("AS is_reset", turns)):
            found.extend([statement] if word in statement else ())

    event.listen(april.pool.sync_engine, "before_cursor_execute", asked)
    ends = rows_of(april.url, OPEN)
    await april.charge(ids["organization"])
    assert (ends, rows_of(april.url, OPEN)) == ([(5,)], [(0,)])
    assert len(lots) == 1
    # Of each end its turns, of the plan it was of and of the one that carried it.
    assert len(turns) <= 3 * 5


async def test_what_was_owed_for_is_not_carried_on_besides(april: April) -> None:
    ids = await big_plan(april)
    blocks = await plan(april, "Blocks", "1.00", 1_000, **BLOCKS)
    carries = await plan(april, "Carries", "1.00", 900, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=blocks, when="now")
    assert await early(april, ids) == Decimal("299.40")
    await act(april, ids, "change", plan_id=carries, when="now")
    april.account.at_ms = int(at(5, 1, 0).timestamp() * 1000)
    april.account.reset()
    april.flush()
    await april.on(at(5, 1, 0))
    assert april.account.remaining == 900
    # A hundred tokens more are not in the third one.
    assert await early(april, ids) == Decimal("299.43")
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == Decimal("299.43")


async def test_debt_that_was_paid_back_is_owed_no_more_whoever_goes_beyond_then(april: April) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 600_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    for month in (5, 6):  # 399,000 are paid back in May
        april.account.at_ms = int(at(month, 1, 0).timestamp() * 1000)
        april.account.reset()
        april.flush()
        await april.on(at(month, 1, 6))
    april.account.consume(900_000)
    april.flush()
    assert april.account.remaining == -300_000
    await act(april, ids, "cancel", when="now")
    # June's tokens of the small one alone.
    assert await early(april, ids) == 1


async def test_what_two_plans_left_as_debt_is_no_more_than_there_is(april: April) -> None:
    """What came last is paid back first: a thousand of the second one's."""
    first = await plan(april, "First", "300.00", 10_000, **BLOCKS)
    second = await plan(april, "Second", "3000.00", 4_000, **CARRIES)
    third = await plan(april, "Third", "0.00", 1_000, **CARRIES)
    ids = await customer(april, first, BEGINS, None)
    await use(april, 1, 9_000)
    await act(april, ids, "change", plan_id=second, when="now")
    await act(april, ids, "change", plan_id=third, when="now")
    april.account.at_ms = int(at(5, 1, 0).timestamp() * 1000)
    april.account.reset()
    april.flush()
    await april.on(at(5, 2))
    assert april.account.remaining == -7_000
    await act(april, ids, "cancel", when="now")
    # All of it was used of the first one, at 0.03.
    assert await early(april, ids) == 210


async def test_what_is_told_while_debt_is_carried_is_part_of_it(april: April) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    await april.on(at(4, 2))
    await send(april, ids["tenant"], at(4, 1), 500)
    counted(april)
    assert (april.account.remaining, await early(april, ids)) == (-998_500, 0)
    await act(april, ids, "cancel", when="now")
    # 999,500 tokens, less a day of the small one.
    assert await early(april, ids) == Decimal("299.85") - Decimal("0.033333333")


async def test_a_cycle_that_comes_with_a_smaller_plan_pays_no_more_back_than_that_has(april: April) -> None:
    ids = await big_plan(april)
    first = await plan(april, "First", "0.00", 1_000, **CARRIES)
    second = await plan(april, "Second", "0.00", 500, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=first, when="now")
    await act(april, ids, "change", plan_id=second, when="period_end")
    april.account.at_ms = int(at(5, 1, 0).timestamp() * 1000)
    april.account.reset()
    april.flush()
    await april.on(at(5, 1, 0))
    assert april.account.remaining == -997_500
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == Decimal("299.25")
