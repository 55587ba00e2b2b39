"""What the overview says is spent: today, this month, where it leads to, and for what."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, used


async def test_it_says_what_is_spent_in_each_currency_and_for_what(api: Api, reader: Person) -> None:
    organization = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name=HOSTILE, organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name="ci")
    own = {"organization": organization["id"], "tenant": tenant["id"], "key": key["id"]}
    now = datetime.now(UTC)
    used(api, now, 354_000, **own)
    used(api, now, 3 * NANO, **own, model="m2")
    used(api, now, 5 * NANO, **own, currency="EUR")
    used(api, now.replace(day=1) - timedelta(days=40), 9999 * NANO, **own)
    page = await reader.open("/")
    well_formed(page)
    tiles = dict(
        re.findall(r'<p class="label">([^<]*)</p>\s*<p class="figure number" title="([^"]*)"', page.text)
    )
    assert tiles["Spend today"] == tiles["This month"] == "€5.00"
    assert tiles["Forecast to the month&#39;s end"].startswith("€")
    assert 'title="$3.000354"' in page.text
    assert "9,999" not in page.text
    parts = page.text.split('aria-label="Spend of this month"')[1]
    assert f'href="/tenants/{tenant["id"]}"' in parts
    assert f'href="/api-keys/{key["id"]}"' in parts
    assert re.search(r'title="m2">m2.*?title="\$3.00"', parts, re.DOTALL)
    fragment = await reader.open("/spend")
    assert "<html" not in fragment.text
    assert "€5.00" in fragment.text


async def test_without_spend_it_says_so(reader: Person, nobody: Person) -> None:
    page = await reader.open("/")
    assert "Spend of this month" not in page.text
    assert '<p class="figure number">0</p>' in page.text
    assert (await nobody.open("/spend")).status == 303
