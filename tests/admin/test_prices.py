"""Prices: what may be set, that nothing is ever changed, and what a call would cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from time import time
from typing import Any
from urllib.parse import quote_plus
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors

from gateway.core.billing.price_book import PriceBook, read_price
from tests.admin.conftest import READONLY, Answer, Api
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


async def test_a_price_comes_back_as_it_was_set(prices: Prices) -> None:
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


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "PUT"])
async def test_a_price_is_never_changed(prices: Prices, method: str) -> None:
    made = await prices.set()
    answer = await prices.api.call(method, f"prices/{made['id']}", {"input": "1"})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "change", ["UPDATE price SET input = 1", "DELETE FROM price", "TRUNCATE price CASCADE"]
)
async def test_nor_in_the_database(prices: Prices, change: str) -> None:
    await prices.set()
    with psycopg.connect(prices.api.url) as connection, pytest.raises(errors.RestrictViolation):
        connection.execute(change)


@in_turn(
    ("over", "field"),
    [
        ({"input": "-1"}, "input"),
        ({"input": 2.5}, "input"),
        ({"input": "a few"}, "input"),
        ({"input": "0.0000000001"}, "input"),
        ({"input": "1e3"}, "input"),
        ({"request": "-0.1"}, "request"),
        ({"tools": {"web_search": "-10"}}, "tools.web_search"),
        ({"tools": {"web_search": 10}}, "tools.web_search"),
        ({"service_tiers": {"batch": "half"}}, "service_tiers.batch"),
        ({"service_tiers": {"PRIORITY": "3", "batch": "0.5"}}, "service_tiers.PRIORITY"),
        ({"service_tiers": {"Batch": "1", "batch": "0.5"}}, "service_tiers.Batch"),
        ({"tools": {"Web_Search": "10"}}, "tools.Web_Search"),
        ({"context_tiers": [{"above": 5, "input": "-1"}]}, "context_tiers.0.input"),
        ({"context_tiers": [{"above": 5, "inputs": "1"}]}, "context_tiers.0.inputs"),
        ({"context_tiers": [{"above": 5}]}, "context_tiers.0"),
        ({"context_tiers": [{"input": "1"}]}, "context_tiers.0.above"),
        ({"context_tiers": []}, "context_tiers"),
        ({"context_tiers": [{"above": 5, "input": "1"}, {"above": 5, "input": "2"}]}, "context_tiers"),
        ({"context_tiers": [{"above": 6, "input": "1"}, {"above": 5, "input": "2"}]}, "context_tiers"),
        ({"cached": "1"}, "cached"),
        ({"images": {}}, "images"),
        ({"images": {"1024x1024": "1"}}, "images"),
        ({"images": {"1024x1024/": "1"}}, "images"),
        ({"images": {"1024x1024/HIGH": "1"}}, "images.1024x1024/HIGH"),
        ({"images": {"1024x1024/high": "-1"}}, "images.1024x1024/high"),
        ({"images": {"1024x1024/high": 1}}, "images.1024x1024/high"),
        ({"page": "-1"}, "page"),
        ({"search": 1}, "search"),
        ({"character": "0.0000000001"}, "character"),
        ({"currency": "usd"}, "currency"),
        ({"currency": "XTS"}, "currency"),
        ({"model": ""}, "model"),
        ({"model": "gpt-*"}, "model"),
        ({"match": "suffix"}, "match"),
        ({"source": "library"}, "source"),
        ({"effective_from": "2026-01-01"}, "effective_from"),
        ({"input": None, "output": None}, "input"),
        ({"input": None, "output": None, "tools": {}}, "input"),
    ],
)
async def test_what_is_no_price_is_refused_by_its_field(
    prices: Prices, over: dict[str, Any], field: str
) -> None:
    assert list(await prices.refused(**over)) == [field]


async def test_required_fields_are_named(prices: Prices) -> None:
    answer = await prices.api.post("prices", {"input": "1"})
    assert [each["field"] for each in answer.json["errors"]] == ["model", "currency", "effective_from"]


async def test_a_currency_counts_once_an_organization_has_it(prices: Prices) -> None:
    told = (await prices.refused(currency="ISK"))["currency"]
    assert told == "no organization's money is in ISK, and no exchange rate is from it"
    await prices.api.post("organizations", {"name": "Acme", "currency": "ISK"})
    assert (await prices.set(currency="ISK"))["currency"] == "ISK"


async def test_two_prices_for_the_same_from_the_same_time_overlap(prices: Prices) -> None:
    first = await prices.set()
    same = {"model": first["model"].upper(), "effective_from": "2026-01-01T01:00:00+01:00"}
    said = await prices.refused(**same, input="3")
    assert f"price {first['id']} is for the same" in said["effective_from"]
    for over in (
        {"effective_from": "2026-01-02T00:00:00Z"}, {"match": "prefix"}, {"provider": "openai"},
        {"source": "bundled"},
    ):  # fmt: skip
        await prices.set(**over)


async def test_an_idempotency_key_makes_one_price(prices: Prices) -> None:
    first, again = [await prices.api.post("prices", prices.usual, key=prices.family) for _ in range(2)]
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_a_reader_reads_and_sets_nothing(prices: Prices) -> None:
    made, reader = await prices.set(), prices.api.acting_as(READONLY)
    assert (await reader.get(f"prices/{made['id']}")).status == 200
    assert (await reader.get(f"prices/quote?model={made['model']}&input=5")).status == 200
    assert (await reader.post("prices", prices.usual)).status == 403


# --- quotes -----------------------------------------------------------------------------


async def test_a_quote_says_what_each_kind_costs(prices: Prices) -> None:
    made = await prices.set(
        cache_read="0.25", tools={"web_search": "10"}, request="0.001", service_tiers={"flex": "0.5"}
    )
    quote = await prices.quoted(
        "gpt-x&input=1000&cache_read=1&output=200&tools.web_search=7&tools.image_generation=1"
        "&tools.web_fetch=5&service_tier=flex"
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


async def test_a_quote_counts_units_and_names_what_has_no_price(prices: Prices) -> None:
    made = await prices.set(
        input=None, output=None, images={"1024x1024/high": "0.167"}, character="0.000015", container="0.03"
    )
    assert made["images"] == {"1024x1024/high": "0.167"}
    assert (made["character"], made["page"]) == ("0.000015", None)
    quote = await prices.quoted(
        "gpt-x&images.1024x1024/high=3&images.512x512/high=1&character=100&page=2&tools.code_interpreter=1"
    )
    assert quote["cost"] == "0.5325"
    assert sorted(quote["unpriced"]) == ["images.512x512/high", "page"]
    assert {line["kind"]: line["amount"] for line in quote["lines"]} == {
        "images.1024x1024/high": "0.501", "character": "0.0015", "tools.code_interpreter": "0.03",
    }  # fmt: skip


async def test_a_quote_is_by_the_price_of_its_time(prices: Prices) -> None:
    await prices.set()
    await prices.set(input="5", effective_from="2026-02-01T00:00:00Z")
    for at, cost in (("2026-01-31T23:59:59Z", "2.5"), ("2026-02-01T01:00:00+01:00", "5")):
        assert (await prices.quoted(f"gpt-x&input=1000000&at={at}"))["cost"] == cost
    answer = await prices.ask("gpt-x&input=1&at=2025-12-31T00:00:00Z")
    assert answer.status == 404
    assert answer.json["detail"].startswith(f"There is no price in USD of the model '{prices.family}-gpt-x'")


async def test_a_quote_is_by_the_price_that_counts_most(prices: Prices) -> None:
    beginning = f"{prices.family}-gpt"
    await prices.set(model=beginning, match="prefix", source="bundled", provider="openai", input="1")
    assert (await prices.quoted("gpt-x-mini&input=1000000"))["cost"] == "1"
    await prices.set(source="bundled", provider="openai", input="2")
    assert (await prices.quoted("gpt-X&input=1000000"))["cost"] == "2"
    await prices.set(source="bundled", provider="groq", input="3")
    assert (await prices.quoted("gpt-x&input=1000000"))["cost"] == "2"
    assert (await prices.quoted("gpt-x&input=1000000&provider=groq"))["cost"] == "3"
    await prices.set(model=prices.family, match="prefix", input="4")
    assert (await prices.quoted("gpt-x&input=1000000"))["cost"] == "4"


@pytest.mark.parametrize("beyond", ["İ", "i̇", "\u212a", "ſ", "ẞ", "Σ"])
async def test_a_quote_is_by_the_price_that_a_gateway_charges_by(prices: Prices, beyond: str) -> None:
    """Languages and libraries fold letters beyond ASCII each in their own way: no price is of such a name."""
    assert list(await prices.refused(model=prices.family + beyond)) == ["model"]
    assert list(await prices.refused(provider=prices.family + beyond)) == ["provider"]
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
async def test_a_quote_names_what_it_cannot_read(prices: Prices, query: str, field: str) -> None:
    answer = await prices.ask(query)
    assert answer.status == 422
    assert [each["field"] for each in answer.json["errors"]] == [field]
