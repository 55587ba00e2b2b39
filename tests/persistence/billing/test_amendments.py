"""Amendments of cycles that are over: what was billed of them stays, the next invoice gives it back."""

from __future__ import annotations

import os
from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from gateway.core.billing.money import PriceTier, read_tiers
from gateway.errors import Conflict, Unprocessable
from gateway.http.protocol.request_ids import RequestIds
from tests.persistence.april import April, april, at, invoiced, plan, service
from tests.persistence.billing.test_due import customer, total
from tests.persistence.billing.test_events import send
from tests.persistence.scenario import Account, broken, rows_of

__all__ = ["april"]


async def amend(april: April, request_id: str, **values: Any) -> dict[str, Any]:
    return await april.do("amendments", "create", request_id=request_id, reason="a test", **values)


async def billed(april: April, given: str = "") -> tuple[dict[str, int], str]:
    """A customer whose April is billed with 1,000,000 tokens beyond, and a call of it of 400,000."""
    starter = await plan(april, "Starter", "0.00", 2_000_000)
    ids = await customer(april, starter, date(2026, 4, 1), date(2027, 4, 1))
    await april.on(at(4, 1))
    april.account.consume(2_600_000)
    request_id = given or str(uuid4())
    april.account.consume(
        400_000, request_id=request_id, metadata=b'{"model":"gpt-4o","input":400000,"output":0}'
    )
    april.flush()
    await april.on(at(5, 1, 6))
    april.account.reset()
    april.flush()
    assert total(await invoiced(april, ids, date(2026, 4, 1), date(2026, 5, 1))) == Decimal("3.00")
    return ids, request_id


async def test_amendment_of_usage_in_a_billed_cycle_is_refunded_on_the_next_invoice(april: April) -> None:
    ids, request_id = await billed(april)
    made = await amend(april, request_id, tokens=300_000)
    assert made["late_tokens"] == 300_000
    assert rows_of(april.url, "SELECT count(*) FROM control_write WHERE verb = 'amend'") == [(0,)]
    assert await broken(april.url) == []
    april.account.consume(1)
    april.flush()
    await april.on(at(6, 1, 6))
    may = await invoiced(april, ids, date(2026, 5, 1), date(2026, 6, 1))
    assert total(may) == Decimal("-0.90")
    [line] = [line for line in may["lines"] if line["kind"] == "overage"]
    assert line["description"].endswith("cycle from 1 April 2026, given back")


@pytest.mark.parametrize("ledger", ["token_ledger", "credit_transaction", "feature_usage"])
async def test_amendment_of_a_call_in_an_archived_month_is_refused(april: April, ledger: str) -> None:
    """Its row is here: what it moved may not be."""
    _, request_id = await billed(april)
    rows_of(april.url, "INSERT INTO kept_since VALUES (%s, %s) RETURNING 1", [ledger, at(4, 2)])
    with pytest.raises(Unprocessable) as caught:
        await amend(april, request_id, tokens=300_000)
    [(field, why)] = caught.value.errors
    assert (field, why) == ("request_id", "is of a month that is archived: it cannot be amended")
    rows_of(april.url, "UPDATE kept_since SET since = %s RETURNING 1", [at(4, 1)])
    assert (await amend(april, request_id, tokens=300_000))["late_tokens"] == 300_000


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(days=365)])
async def test_call_recorded_by_a_gateway_clock_a_year_ahead_can_be_amended(
    april: April, ahead: timedelta
) -> None:
    given = RequestIds(os.urandom, (at(4, 1) + ahead).timestamp).next_id(0.0)
    _, request_id = await billed(april, given)
    made = await amend(april, request_id, tokens=300_000)
    assert (made["late_tokens"], made["tokens"]) == (300_000, 300_000)
    assert rows_of(april.url, "SELECT tokens, amended FROM call WHERE request_id = %s", [given]) == [
        (100_000, 300_000)
    ]


async def test_usage_event_cannot_be_amended_before_the_matching_call_is_stored(april: April) -> None:
    ids, _ = await billed(april)
    await send(april, ids["tenant"], at(4, 20), 300_000, "late")
    [(request_id,)] = rows_of(april.url, "SELECT request_id::text FROM use_event")
    with pytest.raises(Unprocessable):  # its call is not stored yet
        await amend(april, str(request_id), tokens=1)


async def test_call_is_amended_only_once_and_by_no_more_than_the_recorded_usage(april: April) -> None:
    _, request_id = await billed(april)
    for values in ({"tokens": 400_001}, {"credits": 1}, {"units": 1}, {"amount": Decimal("0.01")}):
        with pytest.raises(Unprocessable) as refused:
            await amend(april, request_id, **values)
        assert [name for name, _ in refused.value.errors] == list(values)
    await amend(april, request_id, tokens=400_000)
    with pytest.raises(Conflict):
        await amend(april, request_id, tokens=1)
    assert rows_of(april.url, "SELECT tokens, amended FROM call WHERE request_id = %s", [request_id]) == [
        (0, 400_000)
    ]


@pytest.mark.parametrize(
    ("used", "direction", "units", "worth"),
    [
        (10, "IN", 2, "-0.20"), (10, "IN", 6, "-1.20"), (10, "IN", 10, "-10.40"),
        (10, "OUT", 3, "0.30"), (10, "OUT", 10, "1.00"), (0, "OUT", 3, "0.15"),
    ],
)  # fmt: skip
async def test_amendment_of_units_priced_in_several_tiers_uses_the_price_of_each_tier(
    april: April, used: int, direction: str, units: int, worth: str
) -> None:
    """Where a call used none, at the price of now."""
    await april.on(at(4, 1))
    now = {"tiers": [{"up_to": None, "unit_price": "0.05"}]}
    rerank = await service(april, "rerank", "Pay-Per-Use", pricing=now)
    tenant = await april.do("tenants", "create", name="Main")
    april.account = Account(tenant["organization_id"], tenant["id"], None, service_id=rerank)
    april.account.tiers = (
        PriceTier(1, Decimal(8)),
        PriceTier(6, Decimal("0.4")),
        PriceTier(None, Decimal("0.1")),
    )
    request_id = str(uuid4())
    april.account.consume(None, units=used, request_id=request_id)
    april.flush()
    await amend(april, request_id, direction=direction, units=units)
    waiting: Any = rows_of(
        april.url, "SELECT payload FROM control_write WHERE verb = 'amend' ORDER BY position"
    )
    moved = [(-payload["units"], read_tiers(bytes.fromhex(payload["tiers"]))) for (payload,) in waiting]
    assert sum(many for many, _ in moved) == (units if direction == "OUT" else -units)
    assert all(len(tiers) == 1 for _, tiers in moved)
    assert sum(many * tiers[0].unit_price for many, tiers in moved) == Decimal(worth)
