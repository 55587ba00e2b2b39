"""Prices: what may be set, that nothing is ever changed, and what a call would cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from time import time
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import pytest
from psycopg import errors

from gateway.core.billing.price_book import PriceBook, read_price
from tests.admin.conftest import Answer, Api
from tests.connections import connected
from tests.in_turn import in_turn

AT = "2026-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one model that no other test has; its name begins with `family`."""

    api: Api
    family: str

    @property
    def usual(self) -> dict[str, Any]:
        return {
            "model": f"{self.family}-gpt-x", "currency": "USD", "effective_from": AT, "input": "2.50",
            "output": "10",
        }  # fmt: skip

    async def set(self, **over: Any) -> dict[str, Any]:
        answer = await self.api.post("prices", {**self.usual, **over})
        assert answer.status == 201, answer.json
        found: dict[str, Any] = answer.json
        return found

    async def refused(self, **over: Any) -> dict[str, str]:
        """The fields a price is refused for."""
        answer = await self.api.post("prices", {**self.usual, **over})
        assert answer.status == 422, answer.json
        return {each["field"]: each["message"] for each in answer.json["errors"]}

    async def ask(self, query: str) -> Answer:
        return await self.api.get(f"prices/quote?model={self.family}-{query}")

    async def quoted(self, query: str) -> dict[str, Any]:
        answer = await self.ask(query)
        assert answer.status == 200, answer.json
        found: dict[str, Any] = answer.json
        return found


@pytest.fixture
def prices(api: Api) -> Prices:
    return Prices(api, uuid4().hex[:12])


async def test_created_price_returns_every_field_that_was_set(prices: Prices) -> None:
    more = {
        "provider": "openai", "match": "prefix", "cache_read": "0.125", "request": "0.001",
        "tools": {"web_search": "10"}, "service_tiers": {"batch": "0.5"},
        "context_tiers": [{"above": 200_000, "input": "5"}, {"above": 400_000, "input": "7.5"}],
    }  # fmt: skip
    made = await prices.set(**more)
    assert {name: made[name] for name in (*prices.usual, *more)} == {**prices.usual, **more}
    assert (made["source"], made["cache_write"]) == ("operator", None)
    assert (await prices.api.get(f"prices/{made['id']}")).json == made
    assert prices.api.counters.pushed == ["prices"]


async def test_price_field_cache_write_12h_is_an_alias_of_cache_write_1h(prices: Prices) -> None:
    made = await prices.set(
        cache_write_12h="7.5",
        context_tiers=[{"above": 200_000, "cache_write_12h": "15"}],
        service_tiers={"priority": {"cache_write_12h": "20"}},
    )
    assert made["cache_write_1h"] == "7.5"
    assert made["context_tiers"] == [{"above": 200_000, "cache_write_1h": "15"}]
    assert made["service_tiers"] == {"priority": {"cache_write_1h": "20"}}
    assert (await prices.quoted("gpt-x&cache_write_1h=100000"))["cost"] == "0.75"
    [(_, why)] = (await prices.refused(cache_write_12h="7.5", cache_write_1h="7.5")).items()
    assert "they are the same" in why


async def test_prices_are_listed_by_filter(prices: Prices) -> None:
    first = await prices.set(provider=prices.family)
    second = await prices.set(match="prefix", source="bundled")

    async def listed(query: str) -> list[int]:
        return [row["id"] for row in (await prices.api.get(f"prices?{query}")).json["items"]]

    model = f"model={first['model'].upper()}"
    assert await listed(model) == [first["id"], second["id"]]
    assert await listed(f"provider={prices.family.upper()}") == [first["id"]]
    for query in ("match=prefix", "source=bundled"):
        assert await listed(f"{model}&{query}") == [second["id"]]
    assert await listed(f"{model}&currency=EUR") == []
    assert await listed(f"{model}&from=2026-01-02T00:00:00Z") == []
    assert (await prices.api.get("prices?match=some")).status == 422


async def test_a_price_is_never_changed_in_the_database(prices: Prices) -> None:
    await prices.set()
    for change in ("UPDATE price SET input = 1", "DELETE FROM price", "TRUNCATE price CASCADE"):
        with connected(prices.api.url) as connection, pytest.raises(errors.RestrictViolation):
            connection.execute(change)


async def test_price_in_a_currency_no_organization_uses_is_refused(prices: Prices) -> None:
    told = (await prices.refused(currency="ISK"))["currency"]
    assert told == "no organization's money is in ISK, and no exchange rate is from it"
    await prices.api.post("organizations", {"name": "Acme", "currency": "ISK"})
    assert (await prices.set(currency="ISK"))["currency"] == "ISK"


async def test_second_price_for_the_same_model_and_start_time_is_refused(prices: Prices) -> None:
    first = await prices.set()
    same = {"model": first["model"].upper(), "effective_from": "2026-01-01T01:00:00+01:00"}
    said = await prices.refused(**same, input="3")
    assert f"price {first['id']} is for the same" in said["effective_from"]
    for over in (
        {"effective_from": "2026-01-02T00:00:00Z"}, {"match": "prefix"}, {"provider": "openai"},
        {"source": "bundled"},
    ):  # fmt: skip
        await prices.set(**over)


# --- quotes -----------------------------------------------------------------------------


async def test_price_quote_lists_the_cost_of_each_kind_of_token_tool_and_request(prices: Prices) -> None:
    made = await prices.set(
        cache_read="0.25", tools={"web_search": "10"}, request="0.001", service_tiers={"flex": "0.5"}
    )
    quote = await prices.quoted(
        "gpt-x&input=1000&cache_read=1&output=200&tools.web_search=7&tools.image_generation=1"
        "&tools[web_fetch]=5&service_tier=flex"
    )
    assert quote["lines"] == [
        {"kind": "input", "quantity": 1000, "unit_price": "1.25", "per": 1_000_000, "amount": "0.00125"},
        {"kind": "cache_read", "quantity": 1, "unit_price": "0.125", "per": 1_000_000,
         "amount": "0.000000125"},
        {"kind": "output", "quantity": 200, "unit_price": "5", "per": 1_000_000, "amount": "0.001"},
        {"kind": "request", "quantity": 1, "unit_price": "0.0005", "per": 1, "amount": "0.0005"},
        {"kind": "tools.web_search", "quantity": 7, "unit_price": "10", "per": 1000, "amount": "0.07"},
    ]  # fmt: skip
    assert (quote["cost"], quote["currency"], quote["price_id"]) == ("0.072750125", "USD", made["id"])
    assert quote["unpriced"] == ["image_generation"]


async def test_price_quote_includes_the_hourly_cost_of_cached_tokens(prices: Prices) -> None:
    assert (await prices.set(cache_hour="4.500001"))["cache_hour"] == "4.500001"
    quote = await prices.quoted("gpt-x&cache_hour=900000")
    assert (quote["cost"], quote["unpriced"]) == ("4.0500009", [])
    assert (quote["lines"][0]["kind"], quote["lines"][0]["per"]) == ("cache_hour", 1_000_000)
    assert await prices.refused(cache_hour="4.5000001") == {"cache_hour": "must have at most six decimals"}


async def test_price_quote_refuses_a_tool_count_given_twice(prices: Prices) -> None:
    await prices.set(tools={"web_search": "10"})
    answer = await prices.ask("gpt-x&input=1&tools.web_search=7&tools[web_search]=8")
    assert (answer.status, "tools.web_search" in str(answer.json["errors"])) == (422, True)


async def test_price_quote_uses_the_price_in_force_at_the_given_time(prices: Prices) -> None:
    await prices.set()
    await prices.set(input="5", effective_from="2026-02-01T00:00:00Z")
    for at, cost in (("2026-01-31T23:59:59Z", "2.5"), ("2026-02-01T01:00:00+01:00", "5")):
        assert (await prices.quoted(f"gpt-x&input=1000000&at={at}"))["cost"] == cost
    answer = await prices.ask("gpt-x&input=1&at=2025-12-31T00:00:00Z")
    assert answer.status == 404
    assert answer.json["detail"].startswith(f"There is no price in USD of the model '{prices.family}-gpt-x'")


@pytest.mark.parametrize("beyond", ["i̇", "\u212a"])
async def test_price_quote_matches_model_names_exactly_as_the_gateway_does(
    prices: Prices, beyond: str
) -> None:
    """Languages and libraries fold letters beyond ASCII each in their own way: no price is of such a name."""
    made = await prices.set(model=f"{prices.family}-KISS")
    row = {**made, "effective_from": datetime.fromisoformat(made["effective_from"])}
    book = PriceBook([read_price(row)])
    for name, is_it in (("kiss", True), (f"kis{beyond}", False), ("\u212aiss", False), ("kıss", False)):
        asked = f"{prices.family}-{name}"
        assert ((await prices.ask(quote_plus(name))).status == 200) is is_it
        assert (book.vector(asked, "USD", time() * 1000) is not None) is is_it
        listed = (await prices.api.get(f"prices?model={quote_plus(asked)}")).json["items"]
        assert (listed == [made]) is is_it


@in_turn(
    ("query", "field"),
    [
        ("gpt-x&model=b", "model"), ("gpt-x&input=-1", "input"), ("gpt-x&input=1.5", "input"),
        ("gpt-x&inputs=1", "inputs"), ("gpt-x&tools.web_search=many", "tools.web_search"),
        ("gpt-x&tools=1", "tools"), ("gpt-x&tools.a=-1", "tools.a"), ("gpt-x&at=now", "at"),
        ("gpt-x&currency=dollars", "currency"), ("gpt-x&service_tier=Flex", "service_tier"),
        ("gpt-x&tools.Web_Search=1", "tools.Web_Search"),
    ],
)  # fmt: skip
async def test_price_quote_with_an_invalid_parameter_is_422_naming_the_parameter(
    prices: Prices, query: str, field: str
) -> None:
    answer = await prices.ask(query)
    assert answer.status == 422
    assert [each["field"] for each in answer.json["errors"]] == [field]


NIGHT = {
    "days": [5],
    "from": "22:00",
    "to": "06:00",
    "time_zone": "Europe/Berlin",
    "factor": "0.5",
}


async def test_quote_is_by_the_hour_of_its_time(prices: Prices) -> None:
    """Berlin is an hour ahead of UTC in December, and two in July. 3 July and 4 December 2026 are Fridays."""
    made = await prices.set(hours=[NIGHT], input="2")
    assert (made["hours"], made["hours_at"]) == ([NIGHT], "begin")
    excepted = {**NIGHT, "except": ["2026-12-25"]}
    assert (await prices.set(hours=[excepted], model="of-holidays"))["hours"] == [excepted]
    million = "gpt-x&input=1000000&at="
    for at, cost, factor in (
        ("2026-12-04T20:59:59Z", "2.00", "1.00"), ("2026-12-04T21:00:00Z", "1.00", "0.50"),
        ("2026-12-05T04:59:59Z", "1.00", "0.50"), ("2026-12-05T05:00:00Z", "2.00", "1.00"),
        ("2026-07-03T19:59:59.999999Z", "2.00", "1.00"), ("2026-07-03T20:00:00Z", "1.00", "0.50"),
    ):  # fmt: skip
        quoted = await prices.quoted(million + at)
        assert (Decimal(quoted["cost"]), Decimal(quoted["hour_factor"])) == (
            Decimal(cost),
            Decimal(factor),
        ), at
        assert sum(Decimal(line["amount"]) for line in quoted["lines"]) == Decimal(cost)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
async def test_quote_refuses_a_time_beyond_the_calendar_of_its_hours(prices: Prices, at: str) -> None:
    span = {**NIGHT, "days": [1, 2, 3, 4, 5, 6, 7]}
    zones = [span, {**span, "time_zone": "America/New_York", "from": "10:00", "to": "11:00"}]
    await prices.set(hours=zones, effective_from="0001-01-01T00:00:00Z")
    answer = await prices.ask(f"gpt-x&at={at}")
    assert (answer.status, [wrong["field"] for wrong in answer.json["errors"]]) == (422, ["at"])


async def test_amendment_keeps_unnamed_hours(prices: Prices) -> None:
    made = await prices.set(hours=[NIGHT], hours_at="end", input="2")
    answer = await prices.api.post(f"prices/{made['id']}/amend", {"input": "3", "reason": "typed 2 for 3"})
    assert (answer.json["hours"], answer.json["hours_at"]) == ([NIGHT], "end")
    answer = await prices.api.post(f"prices/{answer.json['id']}/amend", {"hours": None, "reason": "none"})
    assert answer.json["hours"] is None
