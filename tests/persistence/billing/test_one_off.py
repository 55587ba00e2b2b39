"""One-off invoices: of one source alone, without a period, and in no other invoice's way."""

from __future__ import annotations

import csv
import io
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict, Unprocessable
from tests.persistence.april import April, april, at, invoiced, set_up, use
from tests.persistence.credits import give
from tests.persistence.scenario import broken

__all__ = ["april"]


async def one_off(april: April, ids: dict[str, int], **what: object) -> dict[str, Any]:
    return await april.do("invoices", "create", organization_id=ids["organization"], **what)


def kinds(made: Row) -> list[str]:
    lines = made["lines"]
    assert isinstance(lines, list)
    return [line["kind"] for line in lines]


async def test_a_top_up_is_billed_at_once_and_the_month_without_it(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 10))
    first = give(april.url, april.account, 1_000, unit_cost="0.01")
    give(april.url, april.account, 500, unit_cost="0.02")
    use(april.account, ids["rerank"], units=100)
    april.flush()
    made = await one_off(april, ids, source="credit_addition", source_id=first)
    assert (made["period_start"], made["period_end"]) == (date(2026, 4, 10), date(2026, 4, 11))
    done = await april.do("invoices", "finalize", made["id"])
    assert kinds(done) == ["credits_purchased", "tax"]
    assert (done["source"], done["source_id"], done["total_amount"]) == (
        "credit_addition", first, Decimal("12.00"),
    )  # fmt: skip
    behind = b"".join([piece async for piece in april.store.usage(done["id"])]).decode()
    assert [row["kind"] for row in csv.DictReader(io.StringIO(behind))] == ["credits_purchased", "tax"]
    with pytest.raises(Conflict):
        await one_off(april, ids, source="credit_addition", source_id=first)
    await april.on(at(5, 2))
    month = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert kinds(month) == ["subscription", "credits_purchased", "usage", "tax"]
    assert month["total_amount"] == Decimal("46.92")
    assert await broken(april.url) == []


async def test_a_year_is_billed_ahead_alone_and_its_use_by_month(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 2))
    year = await one_off(april, ids, source="subscription_segment", period_end=date(2027, 4, 1))
    done = await april.do("invoices", "finalize", year["id"])
    assert (done["subtotal"], done["period_start"], done["period_end"]) == (
        Decimal("348.00"), date(2026, 4, 1), date(2027, 4, 1),
    )  # fmt: skip
    use(april.account, ids["rerank"], units=1_000)
    april.flush()
    await april.on(at(5, 2))
    month = await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))
    assert (kinds(month), month["subtotal"]) == (["usage", "tax"], Decimal("1.00"))
    assert await broken(april.url) == []


async def test_one_that_is_void_is_owed_again(april: April) -> None:
    ids = await set_up(april)
    await april.on(at(4, 10))
    give(april.url, april.account, 1_000, unit_cost="0.01")
    april.flush()
    made = await one_off(april, ids, source="credit_addition")
    await april.do("invoices", "finalize", made["id"])
    await april.do("invoices", "void", made["id"])
    again = await one_off(april, ids, source="credit_addition")
    assert again["subtotal"] == Decimal("10.00")
    assert await broken(april.url) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["period_start", "period_end"]),
        ({"period_start": date(2026, 4, 1)}, ["period_end"]),
        (
            {"period_start": date(2026, 4, 1), "period_end": date(2026, 5, 1), "source_id": 1},
            ["source_id"],
        ),
        ({"source": "credit_addition", "period_start": date(2026, 4, 1)}, ["period_start"]),
        ({"source": "subscription_segment", "period_end": date(2036, 4, 1)}, ["period_end"]),
    ],
)
async def test_wrong_fields(april: April, fields: dict[str, object], named: list[str]) -> None:
    ids = await set_up(april)
    with pytest.raises(Unprocessable) as refused:
        await one_off(april, ids, **fields)
    assert [name for name, _ in refused.value.errors] == named
