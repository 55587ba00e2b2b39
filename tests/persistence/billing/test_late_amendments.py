"""What is told of a plan that has ended, and debt that another plan carried on: owed as if it had been known.

Figures are added up by hand: a plan of 300.00 with 1,000,000 tokens costs 10.00 a day and 0.0003 a token in
April.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
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
async def test_amendment_after_a_cancelled_plan_adjusts_the_charge_for_used_tokens(
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


async def test_usage_event_received_twice_after_the_plan_ended_is_charged_once(april: April) -> None:
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


async def test_late_event_and_amendment_after_a_cancellation_adjust_the_overage_charge(april: April) -> None:
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


async def test_token_debt_carried_between_plans_is_charged_when_an_operator_sets_a_blocking_plan(
    april: April,
) -> None:
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


async def test_each_quota_reset_reduces_the_token_debt_carried_from_an_earlier_plan(april: April) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    for month in (5, 6):
        await april.on(at(month, 1))
        april.account.reset()
        april.flush()
        assert await early(april, ids) == 0
    await act(april, ids, "cancel", when="now")
    # What three times 1,000 tokens did not pay.
    assert await early(april, ids) == Decimal("298.80")


async def test_token_debt_of_a_deleted_tenant_is_charged_when_the_subscription_is_cancelled(
    april: April,
) -> None:
    ids = await big_plan(april)
    small = await plan(april, "Small", "1.00", 1_000, **CARRIES)
    await use(april, 1, 999_000)
    await act(april, ids, "change", plan_id=small, when="now")
    await april.do("tenants", "delete", ids["tenant"])
    await april.do("organization-subscriptions", "cancel", ids["subscription"], when="now")
    assert await early(april, ids) == Decimal("299.70")


async def test_database_refuses_changes_to_the_charged_end_of_a_plan(april: April) -> None:
    ids = await big_plan(april)
    await use(april, 1, 999_000)
    await act(april, ids, "cancel", when="now")
    assert await early(april, ids) == Decimal("299.70")
    for change in ("worth = 1", "quantity = NULL, amount = NULL", "charges = 0", "debt_counted = 1"):
        with pytest.raises(Exception, match=r"stands|violates"):
            rows_of(april.url, f"UPDATE plan_end SET {change} RETURNING id")


@pytest.mark.parametrize("reset_first", [True, False])
async def test_token_debt_at_a_plan_change_on_cycle_end_is_charged_or_carried_but_never_both(
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


async def test_charging_queries_token_debt_carried_through_many_plans_only_once(april: April) -> None:
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


def owed(days: int, used: int) -> Fraction:
    """The big plan, had so many days of April: its days, or its tokens."""
    return max(Fraction(10 * days), Fraction(300 * used, 1_000_000))


async def charged(april: April, ids: dict[str, int], *kinds: str) -> Fraction:
    """All charges there are of these kinds, of all kinds if none is named."""
    await april.charge(ids["organization"])
    assert [each for each in await broken(april.url) if each.invariant != "blocked"] == []
    read = "SELECT coalesce(sum(amount), 0) FROM charge WHERE kind = ANY(%s) OR %s"
    [(amount,)] = rows_of(april.url, read, [list(kinds), not kinds])
    return Fraction(str(amount))


async def told(april: April, ids: dict[str, int], moment: datetime, tokens: int) -> str:
    """Tell of use; the id of its call, which the ledger knows."""
    await send(april, ids["tenant"], moment, tokens)
    [(request_id,)] = rows_of(april.url, "SELECT request_id::text FROM use_event ORDER BY id DESC LIMIT 1")
    counted(april)
    return str(request_id)


async def amended(april: April, request_id: str, tokens: int) -> dict[str, Any]:
    await amend(april, request_id, "IN", tokens)
    counted(april)
    [row] = rows_of(
        april.url, "SELECT used_at, late_tokens + quota_tokens FROM amendment ORDER BY id DESC LIMIT 1"
    )
    return {"used_at": row[0], "tokens": row[1]}


@pytest.mark.parametrize("then", ["cancel", "change"])
@pytest.mark.parametrize("later", [0, 40])
@pytest.mark.parametrize("tokens", [(500_000, 400_000, 400_000), (649_000, 500_000, 200_000)])
async def test_amendment_of_a_late_event_is_billed_by_the_plan_in_force_at_the_event_time(
    april: April, then: str, later: int, tokens: tuple[int, int, int]
) -> None:
    used, late, back = tokens
    big = await plan(april, "Big", "300.00", 1_000_000, **BLOCKS)
    free = await plan(april, "Free", "0.00", 1, **BLOCKS)
    ids = await customer(april, big, BEGINS, None)
    await april.on(at(4, 1))
    call(april, used)
    await april.on(at(4, 4))
    if then == "cancel":
        await act(april, ids, "cancel", when="now")
        has = 0
    else:
        await act(april, ids, "change", plan_id=free, when="now")
        has = 1
    assert await charged(april, ids) == owed(3, used - has)
    if later:
        await april.on(at(5, 12))
        if then == "change":
            april.account.reset()
            april.flush()
    request_id = await told(april, ids, at(4, 1, 14), late)
    assert await charged(april, ids) == owed(3, min(used + late, 1_000_000) - has)
    said = await amended(april, request_id, back)
    assert said == {"used_at": at(4, 1, 14), "tokens": back}
    for _ in range(2):
        counted(april)
        assert await charged(april, ids) == owed(3, min(used + late - back, 1_000_000) - has)
    again = call(april, 10)
    assert await amended(april, again, 10)
