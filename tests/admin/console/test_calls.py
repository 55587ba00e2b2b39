"""A call's page: what it used, and its cost line by line by the price it was admitted at."""

from __future__ import annotations

import json
import re
from html import unescape
from uuid import uuid4

from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, call


def text_of(html: str) -> str:
    joined = re.sub(r"</?(span|code|a)\b[^>]*>", "", html)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", joined)))


async def test_it_says_what_each_kind_cost(api: Api, reader: Person) -> None:
    organization = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name=HOSTILE, organization_id=organization["id"])
    user = await api.make("users", external_id=HOSTILE[:100], organization_id=organization["id"])
    price = await api.make(
        "prices", model="claude", currency="USD", effective_from="2026-01-01T00:00:00Z", input="3",
        cache_read="0.3", cache_write="3.75", cache_write_1h="6", output="15", tools={"web_search": "10"},
        service_tiers={"priority": "1.5"},
    )  # fmt: skip
    request_id = str(uuid4())
    facts = {
        "organization": organization["id"], "tenant": tenant["id"], "user_id": user["id"], "model": "claude",
        "input": 3, "cache_read": 180_000, "cache_write": 15_000, "cache_write_1h": 5_000, "output": 500,
        "reasoning": 100, "tools": json.dumps({"web_search": 7}), "service_tier": "priority",
        "tokens": 200_503,
        "price_id": price["id"], "currency": "USD", "session": HOSTILE, "cost": 291_638_500,
    }  # fmt: skip
    page = await reader.open(f"/calls/{call(api, request_id, **facts)}")  # type: ignore[arg-type]  # fields
    well_formed(page)
    said = text_of(page.text)
    for line in (
        "Input 3 × $4.50 a million $0.0000135", "Cache read 180,000 × $0.45 a million $0.081",
        "Cache write 1h 5,000 × $9.00 a million $0.045", "Tool web search 7 × $10.00 a thousand $0.07",
        "Reasoning part of output 100",
    ):  # fmt: skip
        assert line in said, (line, said)
    assert "add up to something else" not in said
    assert "no price" not in said
    drawn = facts | {"tools": '{"image_generation": 3}', "unpriced": "image_generation, shell"}
    lacking = await reader.open(f"/calls/{call(api, str(uuid4()), **drawn)}")  # type: ignore[arg-type]  # fields
    assert "Tool image_generation no price 3" in text_of(lacking.text)
    for link in (
        f"/prices/{price['id']}", f"/tenants/{tenant['id']}", f"/users/{user['id']}",
        f"/credit-transactions?request_id={request_id}",
    ):  # fmt: skip
        assert f'href="{link}"' in page.text
        assert (await reader.open(link)).status == 200
    [session] = re.findall(r'href="(/calls\?session=[^"]*)"', page.text)
    assert request_id in (await reader.open(unescape(session))).text
    beyond = call(api, str(uuid4()), **facts | {"unknown_usage": '{"<b>": 7}'})  # type: ignore[arg-type]  # fields
    reported = await reader.open(f"/calls/{beyond}")
    well_formed(reported)
    assert "reported more than is documented" in reported.text
    assert "&lt;b&gt;" in reported.text
    wrong = call(api, str(uuid4()), **facts | {"cost": 5 * NANO})  # type: ignore[arg-type]  # fields
    assert "add up to something else" in (await reader.open(f"/calls/{wrong}")).text


async def test_without_a_price_and_refused_it_says_so(api: Api, reader: Person) -> None:
    tenant = await api.make("tenants", name="Search")
    own = {"organization": tenant["organization_id"], "tenant": tenant["id"]}
    unpriced = await reader.open(f"/calls/{call(api, str(uuid4()), **own, model='mine', output=5, tokens=5)}")
    assert "No price was in force" in unpriced.text
    refused = await reader.open(
        f"/calls/{call(api, str(uuid4()), **own, status=429, reason='quota_exceeded')}"
    )
    well_formed(refused)
    assert "429 quota exceeded" in text_of(refused.text)
    gone = await reader.open(f"/calls/{call(api, str(uuid4()), **own, price_id=999, cost=5, currency='USD')}")
    assert "not known any more" in gone.text
