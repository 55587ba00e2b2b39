"""Exchange rates: what may be set, that nothing is ever changed, and what a quote says of them."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors

from tests.admin.conftest import Api
from tests.connections import connected

AT, LATER = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"


def rate(currency: str, **over: Any) -> dict[str, Any]:
    """No test takes rates away: each has a currency of its own."""
    return {"currency": currency, "rate": "0.92", "effective_from": AT, **over}


async def test_exchange_rate_is_from_us_dollars_by_default_and_is_sent_to_the_gateways(api: Api) -> None:
    made = await api.make("exchange-rates", **rate("EUR"))
    assert {name: made[name] for name in ("currency", "base", "rate", "effective_from")} == {
        "currency": "EUR", "base": "USD", "rate": "0.92", "effective_from": AT,
    }  # fmt: skip
    assert api.counters.pushed == ["prices"]
    listed = (await api.get("exchange-rates?currency=EUR&base=USD")).json["items"]
    assert [one["id"] for one in listed] == [made["id"]]


async def test_exchange_rate_cannot_be_changed_or_deleted(api: Api) -> None:
    made = await api.make("exchange-rates", **rate("SEK"))
    assert (await api.patch(f"exchange-rates/{made['id']}", {"rate": "1"})).status == 405
    assert (await api.delete(f"exchange-rates/{made['id']}")).status == 405
    for statement in ("UPDATE exchange_rate SET rate = 1", "DELETE FROM exchange_rate"):
        with connected(api.url) as connection, pytest.raises(errors.RestrictViolation):
            connection.execute(statement)
    again = await api.post("exchange-rates", rate("SEK"))
    assert (again.status, again.json["errors"][0]["field"]) == (422, "effective_from")
    await api.make("exchange-rates", **rate("SEK", effective_from=LATER, rate="0.9"))


async def test_price_quote_in_another_currency_shows_the_exchange_rate_in_force(api: Api) -> None:
    await api.make("prices", model="rated", currency="USD", effective_from=AT, input="2.5", output="10")
    asked = "prices/quote?model=rated&currency=GBP&input=1001&output=200"
    none = await api.get(asked)
    assert none.status == 404
    assert "USD" in none.json["detail"]
    assert "GBP" in none.json["detail"]
    await api.make("exchange-rates", **rate("GBP"))
    await api.make("exchange-rates", **rate("GBP", effective_from=LATER, rate="0.5"))
    quote = (await api.get(asked)).json
    assert (quote["cost"], quote["currency"], quote["base"], quote["exchange_rate"]) == (
        "0.00225125", "GBP", "USD", "0.5",
    )  # fmt: skip
    assert [line["unit_price"] for line in quote["lines"]] == ["1.25", "5"]
    before = (await api.get(f"{asked}&at=2026-01-31T23:59:59Z")).json
    assert (before["cost"], before["exchange_rate"]) == ("0.0041423", "0.92")
    own = (await api.get("prices/quote?model=rated&input=1000")).json
    assert (own["currency"], own["base"], own["exchange_rate"]) == ("USD", None, None)


async def test_price_in_another_currency_is_refused_until_an_exchange_rate_from_that_currency_exists(
    api: Api,
) -> None:
    price = {"model": "swiss", "currency": "CHF", "effective_from": AT, "input": "1"}
    assert (await api.post("prices", price)).status == 422
    await api.make("exchange-rates", **rate("PLN", base="CHF", rate="1.05"))
    await api.make("prices", **price)
    quote = (await api.get("prices/quote?model=swiss&currency=PLN&input=1000000")).json
    assert (quote["cost"], quote["base"]) == ("1.05", "CHF")
