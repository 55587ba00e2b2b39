"""What accounts cost, on the pages of tenants, keys, users and organizations."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, used

PAGES = {"tenants": "tenant_id", "api-keys": "api_key_id", "users": "user_id"}


@pytest.mark.parametrize("name", PAGES)
async def test_an_account_shows_what_it_cost_and_where_more_of_it_is(
    api: Api, reader: Person, name: str
) -> None:
    organization = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name="Search", organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"])
    user = await api.make("users", external_id="ada", organization_id=organization["id"])
    own = {"organization": organization["id"], "tenant": tenant["id"], "key": key["id"], "user": user["id"]}
    now = datetime.now(UTC)
    used(api, now, 354_000, **own, model=HOSTILE, unpriced=2)
    used(api, now - timedelta(days=29), 5 * NANO, **own, model="m2", tokens=7000)
    other = {name: number + 1 for name, number in own.items()}
    used(api, now, 1000 * NANO, **other | {"organization": organization["id"]})
    row = {"tenants": tenant, "api-keys": key, "users": user}[name]
    page = await reader.open(f"/{name}/{row['id']}")
    well_formed(page)
    cost = page.text.split('id="cost"')[1].split("</section>")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<(?!span|/span)[^>]+>", " ", cost))
    text = re.sub(r"<[^>]+>", "", text)
    assert "Last 30 days $5.000354" in text
    assert ("This month $0.000354" in text) == ((now - timedelta(days=29)).month != now.month)
    assert "Without a price 2 requests" in text
    assert re.search(r"m2 \$5.00 7 k 1 ", text)
    assert "1,000" not in text
    for link in (f"/usage?{PAGES[name]}={row['id']}", f"/calls?{PAGES[name]}={row['id']}"):
        assert f'href="{link}"' in cost
        assert (await reader.open(link)).status == 200
    by_tokens = await reader.open(f"/{name}/{row['id']}?of=tokens&by=service")
    assert "7,000 tokens" in by_tokens.text
    assert "no service" in by_tokens.text
    assert (await reader.open(f"/{name}/{row['id']}?of=x&by=y")).text == page.text


async def test_an_organization_shows_what_it_spent_this_month(api: Api, reader: Person) -> None:
    organization = await api.make("organizations", name="Acme", currency="EUR")
    tenant = await api.make("tenants", name="Search", organization_id=organization["id"])
    address = f"/organizations/{organization['id']}"
    assert "Spent this month" not in (await reader.open(address)).text
    used(
        api, datetime.now(UTC), 12_345_678_901, organization=organization["id"], tenant=tenant["id"],
        currency="EUR", tokens=4000,
    )  # fmt: skip
    page = await reader.open(address)
    well_formed(page)
    assert "€12.35" in page.text
    assert "1 requests, 4 k tokens" in page.text


async def test_a_call_is_listed_under_its_model(api: Api, reader: Person) -> None:
    await api.make("prices", model="gpt-4o", currency="USD", effective_from="2026-01-01T00:00:00Z", input="3")
    assert ">gpt-4o</a>" in (await reader.open("/prices")).text
