"""What accounts cost, on the pages of tenants, keys, users and organizations."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import quote
from uuid import uuid4

import pytest

from gateway.core.accounts.budgets import owner_of
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.console.usage_rows import NANO, call, used
from tests.admin.test_budgets import Desk
from tests.admin.test_invoices import acme, draft

PAGES = {"tenants": "tenant_id", "api-keys": "api_key_id", "users": "user_id"}


async def test_tenant_key_and_user_pages_show_cost_and_link_to_usage_and_calls(
    api: Api, reader: Person
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
    for name, row in (("tenants", tenant), ("api-keys", key), ("users", user)):
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
        by_tokens = await reader.open(f"/{name}/{row['id']}?of=tokens&by=service")
        assert ("7,000 tokens" in by_tokens.text, "no service" in by_tokens.text) == (True, True)
        assert (await reader.open(f"/{name}/{row['id']}?of=x&by=y")).text == page.text


async def test_organization_page_shows_the_spend_of_this_month(api: Api, reader: Person) -> None:
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
    assert "1 request, 4 k tokens" in page.text


# --- overview ---------------------------------------------------------------------------
# What the overview says is spent: today, this month, where it leads to, and for what.


async def overview_of(person: Person, address: str = "/") -> Page:
    """The overview, once everything is added up: each page waits for that a while."""
    page = await person.open(address)
    while "Spend is being added up" in page.text:
        page = await person.open(address)
    return page


async def test_overview_shows_spend_per_currency_and_by_tenant_key_and_model(
    api: Api, reader: Person
) -> None:
    organization = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name=HOSTILE, organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name="ci")
    own = {"organization": organization["id"], "tenant": tenant["id"], "key": key["id"]}
    now = datetime.now(UTC)
    used(api, now, 354_000, **own)
    used(api, now, 3 * NANO, **own, model="m2")
    used(api, now, 5 * NANO, **own, currency="EUR")
    used(api, now.replace(day=1) - timedelta(days=40), 9999 * NANO, **own)
    page = await overview_of(reader)
    well_formed(page)
    tiles = dict(
        re.findall(r'<p class="label">([^<]*)</p>\s*<p class="figure number" title="([^"]*)"', page.text)
    )
    assert tiles["Spend today"] == tiles["This month"] == "€5.00"
    assert tiles["Forecast to the month&#39;s end"].startswith("€")
    assert 'title="$3.000354"' in page.text
    assert "9,999" not in page.text
    parts = page.text.split('aria-label="Who and what"')[1]
    assert f'href="/tenants/{tenant["id"]}"' in parts
    assert f'href="/api-keys/{key["id"]}"' in parts
    assert re.search(r'title="m2">m2.*?title="\$3.00"', parts, re.DOTALL)
    fragment = await reader.open("/spend")
    assert "<html" not in fragment.text
    assert "€5.00" in fragment.text


async def test_overview_filtered_by_tenant_and_time_range_shows_spend_budgets_and_refusals(
    api: Api, admin: Person
) -> None:
    organization = await api.make("organizations", name="Acme")
    tenant, other = [
        await api.make("tenants", name=name, organization_id=organization["id"]) for name in ("Search", "Ads")
    ]
    now = datetime.now(UTC)
    for one, cost in ((tenant, 3), (other, 40)):
        used(api, now - timedelta(days=2), cost * NANO, organization=organization["id"], tenant=one["id"])
    await api.make(
        "budgets", organization_id=organization["id"], tenant_id=tenant["id"], name="Engineers", unit="money",
        amount="20", interval="day", each="user",
    )  # fmt: skip
    for status, reason, count in ((429, "budget_exceeded", 3), (404, "unknown_route", 1), (200, None, 5)):
        api.rows(
            "insert into call (request_id, created_at, organization_id, tenant_id, api_key_id, input,"
            " cache_read, cache_write, cache_write_1h, output, reasoning, audio_input, audio_output,"
            " image_input, image_output, tokens, credits, units, status, reason, streamed, estimated,"
            " duration_ms, refused) select gen_random_uuid(), now(), %s, %s, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,"
            " 0, 0, 0, %s, %s, false, false, 1, %s from generate_series(1, %s)",
            organization["id"], tenant["id"], status, reason, status >= 400, count,
        )  # fmt: skip
    page = await overview_of(admin, f"/?range=7d&tenant_id={tenant['id']}")
    well_formed(page)
    said = words_of(page)
    assert "$3.00" in said
    assert "$40.00" not in said
    assert "$20.00 each" in said
    assert "429 limit reached budget exceeded A budget's amount is used up. 3" in said
    assert "404 wrong request unknown route" in said
    assert f'href="/calls?tenant_id={tenant["id"]}&amp;reason=budget_exceeded"' in page.text
    assert re.search(r'href="/usage\.csv\?[^"]*tenant_id=', page.text)
    assert "$40.00" in words_of(await overview_of(admin, "/?range=7d"))
    assert "Nothing was used in this time" in words_of(await overview_of(admin, "/?range=today"))
    assert [(await admin.open(f"/?{wrong}")).status for wrong in ("range=ever", "tenant_id=x")] == [422, 422]
    calls = await admin.open("/calls")
    assert '<span class="mark warn">429 budget exceeded</span>' in calls.text
    assert '<span class="mark good">200</span>' in calls.text


async def test_overview_page_warns_of_unreachable_redis_and_of_calls_that_could_not_be_stored(
    api: Api, admin: Person
) -> None:
    api.rows(
        "insert into dead_letter (partition, entry_id, raw, reason) values (1, '1-0', '\\x00', 'unreadable')"
    )
    said = words_of(await admin.open("/"), "trouble")
    assert "redis is away" in said
    assert "1 call that could not be stored" in said


async def test_overview_page_says_first_how_many_budgets_are_used_up_and_names_the_fullest(
    desk: Desk, reader: Person
) -> None:
    full, half = await desk.make(name="full", amount="10"), await desk.make(amount="10", model="m")
    desk.hold(desk.account(), full, 12 * NANO, 0)
    desk.hold(desk.account(model="m"), half, 5 * NANO, 0)
    tiles = words_of(await overview_of(reader)).split("Budgets used up")[1].split("Refused,")[0]
    assert tiles.split() == ["1", "of", "2:", "full"]


async def test_overview_page_without_spend_shows_zero_and_links_to_a_90_day_range(
    reader: Person, nobody: Person
) -> None:
    page = await overview_of(reader)
    assert "Who and what" not in page.text
    assert '<p class="figure number">0</p>' in page.text
    assert 'href="/?range=90d">Look at 90 days</a>' in page.text
    assert (await nobody.open("/spend")).status == 303


# --- budgets ----------------------------------------------------------------------------
# Budgets on pages: bars of what is used, accounts of everybody, forms to make, change and raise one.


def words_of(page: Page, part: str = "") -> str:
    """What a page says, or what is in the section of an id."""
    text = page.text.split(f'id="{part}"')[1].split("</section>")[0] if part else page.text
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


@pytest.fixture
async def desk(api: Api) -> Desk:
    organization = await api.make("organizations", name="Acme")
    tenant = await api.make("tenants", name="Search", organization_id=organization["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name="the batch key")
    return Desk(api, organization["id"], tenant["id"], key["id"])


async def test_budget_list_shows_use_limit_state_and_scope_of_each_budget(desk: Desk, reader: Person) -> None:
    half = await desk.make(name="all of it", amount="10")
    over = await desk.make(name="a model", model="gpt-5*", unit="tokens", amount=5_000_000, interval="day")
    told = await desk.make(name="told", user="ada", amount="1", mode="audit")
    await desk.make(name="one each", each="user", amount="20", tenant_id=desk.tenant, interval="total")
    desk.hold(desk.account(), half, 5 * NANO, 1 * NANO)
    desk.hold(desk.account(model="gpt-5*"), over, 6_000_000, 0)
    desk.hold(desk.account(user="ada"), told, 1 * NANO, 0)
    page = await reader.open("/budgets")
    well_formed(page)
    said = words_of(page, "list")
    assert "$5.00 of $10.00" in said
    assert "6,000,000 of 5,000,000 tokens" in said
    assert "$20.00 each" in said
    for state in ("within", "used up", "passed", "each user"):
        assert state in said
    for of in ("the whole organization", "model gpt-5*", "user ada", "tenant Search, each user"):
        assert of in said
    assert 'aria-label="50.0 % used, 10.0 % held"' in page.text


async def test_budget_page_shows_the_amount_left_or_the_time_until_which_calls_are_refused(
    desk: Desk, reader: Person
) -> None:
    made = await desk.make(amount="10", thresholds=[0.5, 1])
    desk.hold(desk.account(), made, 9 * NANO, NANO // 2)
    page = await reader.open(f"/budgets/{made['id']}")
    well_formed(page)
    assert "$1.00 left of $10.00" in words_of(page, "use")
    assert "50 %, 100 %" in words_of(page)
    desk.hold(desk.account(), made, 12 * NANO, 0)
    fragment = await reader.open(f"/budgets/{made['id']}/use")
    assert "<html" not in fragment.text
    assert "Used up: calls are refused until" in words_of(fragment)


async def test_budget_page_lists_use_by_api_key_with_the_largest_use_first(
    desk: Desk, reader: Person
) -> None:
    made = await desk.make(each="key", amount="10")
    desk.store(made, 2 * NANO, "a" * 24, "999999")
    desk.store(made, 9 * NANO, "b" * 24, str(desk.key))
    page = await reader.open(f"/budgets/{made['id']}")
    well_formed(page)
    said = words_of(page, "use")
    assert said.index("the batch key") < said.index("999999")
    assert "$9.00 of $10.00" in said
    assert "all others" not in said
    desk.store(made, NANO, "other", "")
    assert "all others" in words_of(await reader.open(f"/budgets/{made['id']}"), "use")


async def test_budget_pages_escape_html_in_names(desk: Desk, reader: Person) -> None:
    made = await desk.make(name=HOSTILE[:200], user=HOSTILE[:128])
    each = await desk.make(each="user")
    desk.store(each, NANO, "a" * 24, HOSTILE)
    path = f"budgets/{each['id']}/overrides/{quote(HOSTILE[:128], safe='')}"
    assert (await desk.api.call("PUT", path, {"amount": "1", "reason": HOSTILE[:200]})).status == 200
    for address in (
        "/budgets",
        f"/budgets/{made['id']}",
        f"/budgets/{each['id']}",
        f"/budgets/{each['id']}/use",
    ):
        page = await reader.open(address)
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text


async def test_tenant_key_and_user_pages_show_the_budgets_that_apply(desk: Desk, reader: Person) -> None:
    user = await desk.api.make("users", external_id="ada", organization_id=desk.organization)
    for name, selector in (
        ("the tenant's", {"tenant_id": desk.tenant}), ("the key's", {"api_key_id": desk.key}),
        ("the user's", {"user": "ada"}), ("nobody else's", {"user": "bob"}),
    ):  # fmt: skip
        await desk.make(name=name, **selector)
    of_keys, of_users = (
        await desk.make(name="per key", each="key"),
        await desk.make(name="per user", each="user"),
    )
    of_tenants = await desk.make(name="per tenant", each="tenant")
    own = {of_keys["id"]: str(desk.key), of_users["id"]: "ada", of_tenants["id"]: str(desk.tenant)}
    for budget in (of_keys, of_users, of_tenants):
        account = desk.account(each=budget["each"], value=own[budget["id"]])
        desk.hold(account, budget, 3 * NANO, 0)
    for address, there in (
        (f"/tenants/{desk.tenant}", ["the tenant's", "per tenant"]),
        (f"/api-keys/{desk.key}", ["the key's", "per key"]),
        (f"/users/{user['id']}", ["the user's", "per user"]),
    ):
        page = await reader.open(address)
        well_formed(page)
        said = words_of(page, "budgets")
        assert [name for name in there if name not in said] == []
        assert "nobody else's" not in said
        assert ("$3.00 of $12.50" in said) == (len(there) == 2)
    staff = await desk.api.make("users", external_id="eve")
    assert 'id="budgets"' not in (await reader.open(f"/users/{staff['id']}")).text


async def test_raising_a_per_key_budget_for_a_single_key_leaves_the_limit_of_other_keys(
    desk: Desk, admin: Person
) -> None:
    made = await desk.make(each="key", amount="20", interval="day")
    desk.store(made, 5 * NANO, owner_of(str(desk.key)), str(desk.key))
    desk.store(made, 5 * NANO, owner_of("0"), "0")
    where = f"/budgets/{made['id']}"
    until = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    raised = await admin.fill(
        where, f"{where}/raise", amount="50", until=until, reason="a fair", who=str(desk.key)
    )
    assert raised.status == 303, words_of(raised)
    said = words_of(await admin.open(where), "use")
    assert ("$5.00 of $50.00" in said, "$5.00 of $20.00" in said, "Raised to" in said) == (True, True, False)
    own = words_of(await admin.open(f"/api-keys/{desk.key}"), "budgets")
    assert "$5.00 of $50.00" in own


async def test_override_of_a_single_key_is_given_shown_with_its_reason_and_removed(
    desk: Desk, admin: Person
) -> None:
    made = await desk.make(each="key", amount="20", interval="day")
    where, key = f"/budgets/{made['id']}", str(desk.key)
    desk.store(made, 5 * NANO, owner_of(key), key)
    assert f'action="{where}/remove-override"' not in (await admin.open(where)).text
    given = await admin.fill(where, f"{where}/override", who=key, amount="50", reason="a migration")
    assert given.status == 303, words_of(given)
    page = await admin.open(where)
    well_formed(page)
    assert "Actions" in page.text
    shown = words_of(page, "overrides")
    assert [word in shown for word in ("$50.00", "for ever", "a migration")] == [True] * 3
    assert ["$5.00 of $50.00" in words_of(page, "use"), "override" in words_of(page, "use")] == [True] * 2
    own = words_of(await admin.open(f"/api-keys/{desk.key}"), "budgets")
    assert "$5.00 of $50.00" in own
    assert (await admin.fill(where, f"{where}/override", who=key, amount="none")).status == 303
    page = await admin.open(where)
    assert "no limit" in words_of(page, "overrides")
    assert "$5.00 of no limit" in words_of(page, "use")
    assert "$5.00 of no limit" in words_of(await admin.open(f"/api-keys/{desk.key}"), "budgets")
    refused = await admin.fill(where, f"{where}/override", who=key, amount="")
    assert refused.status == 422
    assert (await admin.fill(where, f"{where}/remove-override", who=key)).status == 303
    assert 'id="overrides"' not in (await admin.open(where)).text
    assert "$5.00 of $20.00" in words_of(await admin.open(where), "use")


async def test_override_of_a_group_is_shown_by_its_name(desk: Desk, admin: Person) -> None:
    made = await desk.make(each="key", amount="20", interval="day")
    group = await desk.api.make(
        "groups", organization_id=made["organization_id"], name="Platform", kind="api_key", members=[desk.key]
    )
    where = f"/budgets/{made['id']}"
    assert (
        await admin.fill(where, f"{where}/override", who=f"group:{group['id']}", amount="50")
    ).status == 303
    page = await admin.open(where)
    assert "each of Platform" in words_of(page, "overrides")
    assert "each of Platform may use $50.00" in words_of(page)


async def test_budget_is_created_changed_raised_and_deleted_through_console_forms(
    desk: Desk, admin: Person
) -> None:
    form = await admin.fill(
        f"/budgets/new?organization_id={desk.organization}", "/budgets",
        organization_id=str(desk.organization), name="team", unit="tokens", amount="5,000,000",
        interval="month", thresholds="0.5, 0.9",
        time_zone="Europe/Berlin", anchor_day="1", mode="enforce", on_exhausted="finish",
    )  # fmt: skip
    assert form.status == 303, words_of(form)
    where = form.headers["Location"].partition("?")[0]
    path = f"budgets{where.removeprefix('/budgets')}"
    made = (await desk.api.get(path)).json
    assert (made["amount"], made["thresholds"], made["time_zone"]) == (5_000_000, [0.5, 0.9], "Europe/Berlin")

    changed = await admin.fill(where, f"{where}/change", amount="6M", name="team")
    assert changed.status == 303, words_of(changed)
    until = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    raised = await admin.fill(where, f"{where}/raise", amount="7 000 000", until=until, reason="a fair")
    assert raised.status == 303, words_of(raised)
    now = (await desk.api.get(path)).json
    assert (now["amount"], now["raised_to"], now["raise_reason"]) == (6_000_000, 7_000_000, "a fair")
    assert "Raised to 7,000,000 tokens until" in words_of(await admin.open(where), "use")
    assert (await admin.fill(where, f"{where}/delete")).status == 303
    assert (await desk.api.get(path)).status == 404


# --- calls ------------------------------------------------------------------------------
# A call's page: what it used, and its cost line by line by the price it was admitted at.


def text_of(html: str) -> str:
    joined = re.sub(r"</?(span|code|a)\b[^>]*>", "", html)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", joined)))


async def test_call_page_shows_cost_per_kind_of_token_and_tool(api: Api, reader: Person) -> None:
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


async def test_call_page_says_when_a_call_has_no_price_or_was_refused(api: Api, reader: Person) -> None:
    tenant = await api.make("tenants", name="Search")
    own = {"organization": tenant["organization_id"], "tenant": tenant["id"]}
    reported = {"model": "mine", "output": 5, "tokens": 5, "units": 1, "api_key_id": 0}
    unpriced = await reader.open(f"/calls/{call(api, str(uuid4()), **own, **reported)}")
    assert "No price was in force" in unpriced.text
    assert "/api-keys/None" not in unpriced.text
    assert " 1 unit " in words_of(unpriced)
    assert re.search("Without a value: [^.]*API key", words_of(unpriced))
    refused = await reader.open(
        f"/calls/{call(api, str(uuid4()), **own, status=429, reason='quota_exceeded')}"
    )
    well_formed(refused)
    assert "429 quota exceeded" in text_of(refused.text)
    assert "A refused call costs nothing." in text_of(refused.text)
    gone = await reader.open(f"/calls/{call(api, str(uuid4()), **own, price_id=999, cost=5, currency='USD')}")
    assert "not known any more" in gone.text


# --- invoices ---------------------------------------------------------------------------
# Invoices in the console: states, due date, payments and history with links; and who owes what.


def history(text: str) -> list[str]:
    """What the page says happened, in order, as it reads."""
    found = re.search(r'<ol class="history">(.*?)</ol>', text, re.DOTALL)
    assert found
    items = re.findall(r"<li>.*?</time>(.*?)</li>", found[1], re.DOTALL)
    return [" ".join(unescape(re.sub("<[^>]+>", " ", item)).split()) for item in items]


async def test_invoice_page_history_lists_finalization_payment_and_credit_note(
    api: Api, admin: Person
) -> None:
    ids = await acme(api)
    made = await draft(api, ids)
    one = f"/invoices/{made['id']}"
    assert history((await admin.open(one)).text) == ["Drafted draft"]
    done = (await api.post(f"invoices/{made['id']}/finalize")).json
    assert (await admin.fill(one, f"{one}/payments", amount="9.60", reference="bank-1")).status == 303
    [payment] = (await api.get(f"payments?invoice_id={made['id']}")).json["items"]
    asked = {"lines": [{"position": 1, "amount": "10.00"}]}
    note = (await api.post(f"invoices/{made['id']}/credit-note", asked)).json
    noted = (await api.post(f"invoices/{note['id']}/finalize")).json
    page = await admin.open(one)
    assert f"due {done['due_date']}" in page.text
    assert history(page.text) == [
        "Drafted draft",
        f"Final as {done['number']}, due on {done['due_date']} finalized",
        "Paid: $9.60, bank-1",
        f"Credit note {noted['number']}: −$12.00 finalized",
        "Credit applied: $12.00 own",
    ]
    assert f'href="/payments/{payment["id"]}"' in page.text
    assert f'href="/invoices/{note["id"]}"' in page.text
    said = history((await admin.open(f"/invoices/{note['id']}")).text)
    assert said[0] == f"Drafted, of invoice {done['number']} draft"


async def test_invoice_page_shows_the_state_of_the_transfer_to_stripe(api: Api, admin: Person) -> None:
    ids = await acme(api, stripe_customer="cus_1")
    made = await draft(api, ids)
    await api.post(f"invoices/{made['id']}/finalize")
    one = f"/invoices/{made['id']}"
    assert history((await admin.open(one)).text)[-1] == "For Stripe: invoice waiting"
    [(row,)] = api.rows(
        "update handover set state = 'failed', attempts = 1, error = 'No such customer' returning id"
    )
    page = (await admin.open(f"/handovers/{row}")).text
    assert "No such customer" in page
    assert (await admin.fill(f"/handovers/{row}", f"/handovers/{row}/retry")).status == 303
    api.rows("update handover set state = 'done', remote = 'in_1', done_at = now() + interval '1 minute'")
    page = (await admin.open(one)).text
    assert history(page)[-1] == "Stripe has in_1: invoice done"
    assert f'href="/handovers/{row}"' in page
    assert f"/handovers/{row}/retry" not in (await admin.open(f"/handovers/{row}")).text


async def test_irreversible_invoice_actions_need_a_ticked_confirmation(
    api: Api, admin: Person, reader: Person
) -> None:
    made = await draft(api, await acme(api))
    one = f"/invoices/{made['id']}"

    def ticked(text: str, action: str) -> bool:
        form = re.search(rf'<form method="post" action="{one}/{action}".*?</form>', text, re.DOTALL)
        return form is not None and 'name="confirmed" value="yes" required' in form[0]

    page = (await admin.open(one)).text
    assert (ticked(page, "finalize"), ticked(page, "recompute")) == (True, False)
    await api.post(f"invoices/{made['id']}/finalize")
    page = (await admin.open(one)).text
    assert all(ticked(page, action) for action in ("void", "payments", "uncollectible"))
    assert not any(ticked(page, action) for action in ("apply", "refund"))
    await api.post(f"invoices/{made['id']}/payments", {"amount": "9.60", "reference": "bank"})
    note = (await api.post(f"invoices/{made['id']}/credit-note")).json["id"]
    await api.post(f"invoices/{note}/finalize")
    of_note = (await admin.open(f"/invoices/{note}")).text
    for action in ("apply", "refund"):
        assert f'action="/invoices/{note}/{action}"' in of_note
    assert ("Open credit" in of_note, history(of_note)[-1]) == (True, "Credit applied: $60.00 own")
    assert history((await admin.open(one)).text)[-1] == "Credit applied: $60.00 own"
    assert "<form" not in (await reader.open(one)).text.split("<main")[1]


async def test_receivables_page_shows_amounts_owed_by_organization_and_age(
    api: Api, admin: Person, reader: Person
) -> None:
    assert "Nobody has anything to pay." in (await admin.open("/receivables")).text
    ids = await acme(api)
    made = await draft(api, ids)
    await api.post(f"invoices/{made['id']}/finalize")
    page = await reader.open("/receivables")
    assert page.status == 200
    assert f'href="/organizations/{ids["organization"]}"' in page.text
    assert "$69.60" in page.text
    assert 'href="/receivables" aria-current="page"' in page.text
    late = datetime.now(UTC).date() + timedelta(days=14 + 31)
    aged = (await admin.open(f"/receivables?at={late}")).text
    cell = re.search(r'data-label="31–60 days">(.*?)</td>', aged, re.DOTALL)
    assert cell is not None
    assert "$69.60" in cell[1]
    assert (await admin.open("/receivables?at=yesterday")).status == 422
    assert "All that was charged is billed." in (await admin.open("/unbilled")).text
    account = (await reader.open(f"/balances?organization_id={ids['organization']}")).text
    for shown in ("Open credit", "$69.60", f'href="/invoices/{made["id"]}"', "Applied credit", "Payments"):
        assert shown in account
    assert (
        f'href="/balances?organization_id={ids["organization"]}"'
        in (await admin.open(f"/organizations/{ids['organization']}")).text
    )
    assert (await admin.open("/receivables?colour=red")).status == 422


async def test_new_budget_form_is_a_sentence_and_names_the_created_budget_after_the_sentence(
    desk: Desk, admin: Person
) -> None:
    form = await admin.open("/budgets/new")
    well_formed(form)
    sentence = form.text.split('class="sentence"')[1].split("</div>\n  <div hx-get")[0]
    assert re.findall(r'<(?:select|input)[^>]* name="([^"]+)"', sentence) == [
        "each", "tenant_id", "organization_id", "amount", "unit", "interval", "window", "length",
    ]  # fmt: skip
    assert 'hx-get="/budgets/meaning"' in form.text
    folded = form.text.split("<summary>More</summary>")[-1]
    assert all(f'name="{name}"' in folded for name in ("model", "mode", "thresholds", "time_zone"))
    typed = {"each": "user", "tenant_id": "search", "amount": "20", "unit": "money", "interval": "day"}
    made = await admin.fill("/budgets/new", "/budgets", **typed)
    assert made.status == 303, words_of(made)
    [row] = (await desk.api.get("budgets")).json["items"]
    assert (row["tenant_id"], row["organization_id"]) == (desk.tenant, desk.organization)
    assert row["name"] == "Each user of tenant Search may use $20.00 a day"
    shown = words_of(await admin.open(f"/budgets/{row['id']}"))
    assert f"{row['name']}. A call that does not fit is refused (429) until the next day begins." in shown
    nobody = await admin.fill("/budgets/new", "/budgets", **(typed | {"tenant_id": "Nobody"}))
    assert nobody.status == 422
    assert 'value="Nobody"' in nobody.text


MEANINGS = (
    ("amount=20&interval=day", "All calls together may use $20.00 a day."),
    ("amount=20&interval=day", "would have been used up 1 time: $10.00 of $48.00 came after that."),
    ("amount=20&interval=day&each=user", "used up 1 time for 1 of 2 users: $10.00 of $48.00 came"),
    ("amount=50&interval=week", "it would have refused nothing: the most was $48.00."),
    ("amount=20&interval=day&model=M1*", "used up 1 time: $10.00 of $48.00 came after that."),
    ("amount=20&interval=day&model=m2", "In the last 7 days there was no such use."),
    ("amount=20&interval=day&user=ada", "used up 1 time: $10.00 of $30.00 came after that."),
    ("amount=20&interval=total&mode=audit", "in all. Alerts are sent, and no call is refused."),
)


async def test_new_budget_form_explains_the_budget_and_shows_past_spend_above_the_limit(
    desk: Desk, admin: Person
) -> None:
    ada, bob = [
        (await desk.api.make("users", external_id=name, organization_id=desk.organization))["id"]
        for name in ("ada", "bob")
    ]
    own = {"organization": desk.organization, "tenant": desk.tenant}
    for days, user, cost in ((2, ada, 30), (3, bob, 18)):
        used(desk.api, datetime.now(UTC) - timedelta(days=days), cost * NANO, user=user, **own)
    for typed, said in MEANINGS:
        fragment = await admin.open(
            f"/budgets/meaning?organization_id={desk.organization}&unit=money&{typed}"
        )
        assert said in words_of(fragment), typed
    assert words_of(await admin.open("/budgets/meaning?unit=money&amount=x&interval=day")).strip() == ""


async def test_new_budget_form_replays_the_calls_of_a_month(desk: Desk, admin: Person) -> None:
    form = await admin.open(f"/budgets/new?organization_id={desk.organization}")
    assert 'hx-post="/budgets/replay"' in form.text
    hidden = form.fields("/budgets")
    typed = [
        ("organization_id", str(desk.organization)),
        ("unit", "money"),
        ("amount", "0.01"),
        ("interval", "day"),
    ]
    kept = [each for each in hidden if each[0] not in dict(typed)]
    shown = await admin.post("/budgets/replay", [*kept, *typed])
    assert shown.status == 200
    assert "calls of the last 30 days it had refused" in shown.text
    assert (shown.text.count('class="day"') >= 30, 'class="limit"' in shown.text) == (True, True)
    wrong = await admin.post("/budgets/replay", [*kept, *typed[:2], ("amount", "x"), typed[3]])
    assert "This cannot be replayed: Amount must be a decimal" in words_of(wrong)
