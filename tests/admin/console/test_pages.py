"""Every page: there with data and without, well-formed, inert to hostile text, bounded, closed to others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from gateway.admin.console.screens import SCREENS
from gateway.core.text import hidden_in
from persistence.resources.console_queries import ConsoleQueries
from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.in_turn import in_turn
from tests.search import cases

HOSTILE = """<script>alert("x")</script>'"><img src=x onerror=alert(1)>{{ 7777*7777 }}{% raw %}&amp;"""
VOID = frozenset({"meta", "link", "img", "input", "br", "hr", "rect", "circle", "path"})
ADDRESSES = ["/", "/health", "/reconciliation", "/programs", *(f"/{name}" for name in SCREENS)]
NEW = [f"/{name}/new" for name, screen in SCREENS.items() if screen.resource.create is not None]


TABLES = {
    "api-keys": "api_key",
    "users": "app_user",
    "token-plans": "token_plan",
    "webhooks": "webhook",
    "subscription-plans": "subscription_plan",
    "admin-tokens": "admin_token",
    "organization-subscriptions": "organization_subscription",
    "dead-letters": "dead_letter",
    "organization-services": "organization_service",
    "credit-additions": "credit_addition",
    "webhook-deliveries": "webhook_delivery",
    "business-models": "business_model",
}


class Elements(HTMLParser):
    """Opens and closes elements as they come, and keeps every attribute."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.wrong.append(f"{tag} says {names}")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")


def well_formed(page: Page) -> Elements:
    """The elements of a page whose tags match, whose ids are its own, and which runs nothing of its own."""
    elements = Elements()
    elements.feed(page.text)
    elements.close()
    assert elements.wrong == []
    assert elements.open == []
    assert len(elements.ids) == len(set(elements.ids)), sorted(elements.ids)
    for tag, name, value in elements.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "style", tag
        if name in {"src", "href", "action", "hx-get"}:
            assert value.startswith(("/", "#", "?")), (tag, name, value)
            assert not value.startswith("//"), (tag, name, value)
    return elements


async def furnish(api: Api) -> dict[str, Any]:
    """One of everything, with names that mean harm."""
    plan = await api.make("token-plans", name=HOSTILE, total_amount=10**12, description=HOSTILE)
    organization = await api.make("organizations", name=HOSTILE, spend_cap="9000000000")
    tenant = await api.make(
        "tenants", name=HOSTILE, organization_id=organization["id"], plan_id=plan["id"],
        limits={"requests_per_minute": 60},
    )  # fmt: skip
    await api.make("api-keys", tenant_id=tenant["id"], name=HOSTILE)
    await api.make("users", external_id=HOSTILE[:100], organization_id=organization["id"], name=HOSTILE)
    service = await api.make(
        "services", name=HOSTILE, key="hostile", credits=10**12, service_type="One-Time",
        business_model_id=(await api.get("business-models?name=Pay-Per-Use")).json["items"][0]["id"],
        pricing={"tiers": [{"up_to": None, "unit_price": "0.001"}]}, description=HOSTILE,
    )  # fmt: skip
    await api.make(
        "organization-services", organization_id=organization["id"], service_id=service["id"],
        negotiated_credits=0,
    )  # fmt: skip
    gold = await api.make(
        "subscription-plans", name=HOSTILE, monthly_cost="0", annual_cost="10.50", feature_access=["hostile"]
    )
    await api.make(
        "organization-subscriptions", organization_id=organization["id"], plan_id=gold["id"],
        start_date="2026-01-01", end_date="2028-01-01",
    )  # fmt: skip
    await api.make("credit-additions", organization_id=organization["id"], credits_added=5, remark=HOSTILE)
    await api.make("webhooks", url="https://hooks.example/<script>", events=["quota.80"])
    await api.make("admin-tokens", name=HOSTILE, role="readonly")
    invoice = await api.make(
        "invoices", organization_id=organization["id"], period_start="2026-01-01", period_end="2026-02-01"
    )
    await api.post("reconciliation")
    _write_ledgers(api, organization["id"], tenant["id"], service["id"])
    return {"tenants": tenant, "organizations": organization, "invoices": invoice, "services": service}


def _write_ledgers(api: Api, organization: int, tenant: int, service: int) -> None:
    metadata = '{"model": "<script>alert(1)</script>"}'
    api.rows(
        "insert into token_ledger (tenant_id, transaction_type, amount, total_remaining, direction,"
        " created_at, epoch, seq, cycle, service_id, request_id, metadata)"
        " select %s, 'consume', 1000000000000, 0, 'OUT', now(), 1, n, 1, %s, gen_random_uuid(), %s::jsonb"
        " from generate_series(1, 60) as n",
        tenant, service, metadata,
    )  # fmt: skip
    api.rows(
        "insert into usage_daily (day, organization_id, tenant_id, service_id, requests, tokens, credits)"
        " values (current_date, %s, %s, %s, 60, 60000000000001, 5)",
        organization, tenant, service,
    )  # fmt: skip
    for table, amount in (("credit_transaction", "credits_used"), ("feature_usage", "usage_amount")):
        api.rows(
            f"insert into {table} (organization_id, tenant_id, feature_id, timestamp, {amount}, epoch, seq,"
            " metadata) values (%s, %s, %s, now(), 7, 1, 1, %s::jsonb)",
            organization, tenant, service, metadata,
        )  # fmt: skip
    api.rows(
        "insert into dead_letter (partition, entry_id, raw, reason, organization_id)"
        " values (1, '1-0', '\\x3c7363726970743e', %s, %s)",
        HOSTILE, organization,
    )  # fmt: skip
    api.rows(
        "insert into webhook_delivery (webhook_id, event, occasion, state, error)"
        " select id, 'quota.80', 'once', 'failed', %s from webhook",
        HOSTILE,
    )


async def test_every_console_page_is_well_formed_html_without_any_data(admin: Person) -> None:
    for address in [*cases([*ADDRESSES, *NEW]), "/sign-in"]:
        page = await admin.open(address)
        assert page.status == (303 if address == "/sign-in" else 200), address
        if page.status == 200:
            well_formed(page)


async def test_every_console_page_escapes_invisible_characters(api: Api, admin: Person) -> None:
    made = await furnish(api)
    for table in ("organization", "tenant", "api_key", "token_plan", "service", "subscription_plan"):
        api.rows(f"update {table} set name = 'a' || chr(8238) || chr(8203) || id")
    api.rows("update app_user set external_id = chr(8238) || chr(155) || id")
    api.rows("update dead_letter set reason = chr(8238)")
    owners = [f"/{name}/{row['id']}" for name, row in made.items()]
    rows = [f"/{name}/{api.rows(f'select max(id) from {table}')[0][0]}" for name, table in TABLES.items()]
    shown = 0
    for address in [*cases(ADDRESSES), *owners, *rows, *(f"{address}/edit" for address in owners)]:
        text = (await admin.open(address)).text
        assert hidden_in(text) == "", address
        shown += "\\u202e" in text
    assert shown > len(owners)


async def test_every_console_page_escapes_hostile_data(api: Api, admin: Person) -> None:
    made = await furnish(api)
    owners = [f"/{name}/{row['id']}" for name, row in made.items()]
    rows = [f"/{name}/{api.rows(f'select max(id) from {table}')[0][0]}" for name, table in TABLES.items()]
    fragments = ["/live", f"/tenants/{made['tenants']['id']}/quota", "/find/tenants?tenant_id=script"]
    for address in [
        *cases(ADDRESSES),
        *owners,
        *rows,
        *fragments,
        f"{owners[0]}?by=service",
        f"{owners[1]}?of=credits",
    ]:
        page = await admin.open(address)
        assert page.status == 200, address
        elements = well_formed(page)
        assert "<script>alert" not in page.text, address
        assert "<img src=x" not in page.text, address
        assert not any(tag == "img" and value == "x" for tag, _, value in elements.attributes)
        assert "60481729" not in page.text, address
    page = await admin.open(owners[0])
    assert "1,000,000,000,000" in page.text
    assert "&lt;script&gt;alert" in page.text


async def test_console_lists_show_failed_states_right_aligned_numbers_and_links_to_rows(
    api: Api, admin: Person
) -> None:
    await api.make("organizations", name="No cap")
    made = await furnish(api)
    deliveries = await admin.open("/webhook-deliveries")
    assert '<span class="mark bad">failed</span>' in deliveries.text
    assert '<span class="mark good">active</span>' not in deliveries.text
    delivery = await admin.open("/webhook-deliveries/1")
    assert "failed</span>" in delivery.text.split("</header>")[1]
    # A column of numbers stands right, also where it begins with none.
    organizations = (await admin.open("/organizations")).text
    caps = re.findall(r'<td data-label="Spend cap" class="([^"]*)">', organizations)
    assert [each.split() for each in caps[:2]] == [["right", "none"], ["right"]]
    audited = await admin.open("/audit-log?resource=tenants")
    assert f'href="/tenants/{made["tenants"]["id"]}"' in audited.text
    assert "/console-sessions/" not in (await admin.open("/audit-log")).text


async def test_console_pages_load_only_scripts_of_the_console_under_a_strict_security_policy(
    admin: Person,
) -> None:
    page = await admin.open("/tenants")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    for part in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
        assert part in policy
    assert "unsafe" not in policy
    wanted = {
        "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
    }  # fmt: skip
    assert {name: page.headers[name] for name in wanted} == wanted
    scripts = [value for tag, name, value in well_formed(page).attributes if (tag, name) == ("script", "src")]
    assert len(scripts) == 3
    for address in scripts:
        script = await admin.open(address)
        assert (script.status, script.headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")
        assert "immutable" in script.headers["Cache-Control"]
    old = await admin.open("/static/000000000000/console.css")
    assert old.headers["Cache-Control"] == "no-store"
    for address in ("/static/x/nothing.js", "/static/x/..%2f..%2fapi.py", "/static/x/__init__.py"):
        assert (await admin.open(address)).status == 404


async def test_console_theme_follows_the_theme_cookie(admin: Person) -> None:
    assert "data-theme=" not in (await admin.open("/")).text.split("<body")[0]
    admin.cookie += "; tollkeeper_theme=dark"
    assert '<html lang="en" data-theme="dark">' in (await admin.open("/")).text
    admin.cookie = admin.cookie.replace("=dark", '="><script>')
    assert "data-theme=" not in (await admin.open("/")).text.split("<body")[0]


async def test_unknown_address_is_an_html_page_in_the_console_and_problem_json_in_the_api(
    admin: Person,
) -> None:
    for address in ("/nothing", "/tenants/99", "/tenants/0", f"/tenants/{'9' * 30}", "/invoices/99.pdf"):
        page = await admin.open(address)
        assert (page.status, "404" in page.text) == (404, True), address
    page = await admin.send("GET", "/admin/v1/nothing")
    assert page.headers["Content-Type"] == "application/problem+json"


async def test_paging_through_a_console_list_shows_every_row_once(api: Api, admin: Person) -> None:
    made = await api.make("tenants", name="Tenant 0")
    api.rows(
        "insert into tenant (organization_id, name)"
        " select %s, 'Tenant ' || n from generate_series(1, 119) as n",
        made["organization_id"],
    )
    seen: list[str] = []
    address: str | None = "/tenants?search=tenant"
    pages = 0
    while address:
        page = await admin.open(address)
        pages += 1
        found = list(links(page, "/tenants/"))
        assert len(found) <= 50
        seen += found
        address = next((link for link in links(page, "/tenants?") if "cursor=" in link), None)
    assert (pages, len(seen), len(set(seen))) == (3, 120, 120)


def links(page: Page, prefix: str) -> Iterator[str]:
    elements = well_formed(page)
    return (
        value for tag, name, value in elements.attributes
        if (tag, name) == ("a", "href") and value.startswith(prefix) and not value.endswith("/new")
    )  # fmt: skip


async def test_invoice_of_230_lines_is_shown_in_pages_of_at_most_100_lines(api: Api, admin: Person) -> None:
    made = await furnish(api)
    invoice = made["invoices"]["id"]
    api.rows("delete from invoice_line where invoice_id = %s", invoice)
    api.rows(
        "insert into invoice_line"
        " (invoice_id, position, kind, description, tenant_id, quantity, unit_price, amount)"
        " select %s, n, 'overage', 'Overage no. ' || n || ';', %s, 10, 0.5, 5"
        " from generate_series(1, 230) as n",
        invoice, made["tenants"]["id"],
    )  # fmt: skip
    found: list[str] = []
    address = f"/invoices/{invoice}"
    while address:
        page = await admin.open(address)
        well_formed(page)
        lines = re.findall(r"Overage no. (\d+);", page.text)
        assert 0 < len(lines) <= 100
        found += lines
        following = re.search(r'href="([^"]*after=\d+)"', page.text)
        address = following[1] if following else ""
    assert found == [str(n) for n in range(1, 231)]
    assert '<span class="number">$0.50</span>' in page.text
    assert "Overage" not in (await admin.open("/invoices")).text
    for other in ("9" * 9, "-1", "x", "9" * 40):
        assert (await admin.open(f"/invoices/{invoice}?after={other}")).status == 200


async def test_organization_page_charts_fewer_days_when_the_organization_has_many_tenants(
    api: Api, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await furnish(api)
    address = f"/organizations/{made['organizations']['id']}"
    page = (await admin.open(address)).text
    assert 'all 30 days</span> <span class="number">60 T</span>' in page
    tenants_of = ConsoleQueries.tenants_of

    async def many_of_each(figures: ConsoleQueries, organization_id: int, most: int) -> int:
        return most // 7 * await tenants_of(figures, organization_id, most)

    monkeypatch.setattr(ConsoleQueries, "tenants_of", many_of_each)
    assert "all 7 days" in (await admin.open(address)).text
    await api.make("tenants", name="Another", organization_id=made["organizations"]["id"])
    assert "all 3 days" in (await admin.open(address)).text


@in_turn(
    "address",
    [
        *("/tenants?organization_id=x", "/tenants?cursor=bad", "/audit-log?to=9999-12-31"),
    ],
)
async def test_list_with_an_invalid_filter_is_a_422_page(admin: Person, address: str) -> None:
    page = await admin.open(address)
    assert page.status == 422
    assert "cannot be used" in page.text
    well_formed(page)


async def test_console_list_filters_and_search_select_matching_rows(api: Api, admin: Person) -> None:
    made = await furnish(api)
    tenant = f"/tenants/{made['tenants']['id']}"
    assert "Nothing matches" in (await admin.open(f"{tenant}?transaction_type=recharge")).text
    assert "−1,000,000,000,000" in (await admin.open(f"{tenant}?transaction_type=consume")).text
    assert "Nothing matches" in (await admin.open("/tenants?search=nobody")).text
    assert "&lt;script" in (await admin.open("/tenants?search=alert")).text
    assert "Nothing matches" in (await admin.open("/audit-log?actor=nobody")).text


async def test_name_lookup_suggests_matching_rows_and_list_filters_accept_names(
    api: Api, admin: Person
) -> None:
    made = await api.make("organizations", name="Acme <Europe>")
    page = await admin.open("/find/organizations?organization_id=eur")
    assert f'<option value="{made["id"]}">Acme &lt;Europe&gt;</option>' in page.text
    tenant = await api.make("tenants", name="T", organization_id=made["id"])
    key = await api.make("api-keys", tenant_id=tenant["id"], name="The batch key")
    user = await api.make("users", external_id="u_1", organization_id=made["id"])
    for found, row in (("api-keys?q=BATCH", key), ("users?user_id=u_", user)):
        assert f'<option value="{row["id"]}">' in (await admin.open(f"/find/{found}")).text, found
    # A name that is typed out stands for the row, in filters as in files.
    for address in ("/api-keys?tenant_id=t", "/api-keys.csv?tenant_id=T"):
        assert "The batch key" in (await admin.open(address)).text, address
    assert (await admin.open("/calls?api_key_id=another key")).status == 422
    for address in (
        "/find/users?q=u1",
        "/find/organizations",
        "/find/organizations?q=",
        "/find/admin-tokens?q=a",
        "/find/x?q=" + "a" * 300,
    ):
        assert "<option" not in (await admin.open(address)).text


async def test_live_and_health_pages_show_totals_over_all_gateways(api: Api, admin: Person) -> None:
    assert "Nothing was called elsewhere" in (await admin.open("/live")).text
    api.counters.busy = [((7, "requests"), 60), ((7, "tokens"), 6000), ((0, "invalid_api_key"), 12)]
    elsewhere = await admin.open("/live")
    for said in ("of all gateways", "72 in the last minute", "invalid api key", ">100<"):
        assert said in elsewhere.text, said
    api.counters.away = True
    assert (await admin.open("/live")).status == 200
    api.counters.away = False
    api.counters.numbers = {
        "bounds": [0.1, 1.0],
        "requests": [["/v1/chat", 200, "", 90], ["/v1/chat", 429, "quota_exceeded", 10]],
        "tokens": [["chat", "total", 1000]], "credits": [["chat", 5]], "holds": 3, "outbox_entries": 10**12,
        "outbox_oldest_seconds": 75.0, "drift_tokens": 7, "drift_credits": 0,
        "request_seconds": {"buckets": [90, 10, 0], "sum": 3.0},
        "overhead_seconds": {"buckets": [90, 10, 0], "sum": 3.0},
    }  # fmt: skip
    page = await admin.open("/health")
    while "100 in all" not in page.text:  # samples are taken half a second apart
        page = await admin.open("/live")
    for said in ("quota exceeded", "1,000,000,000,000", "oldest 75.0 s", ">3<", ">7<"):
        assert said in page.text, said
    history = await admin.open("/live/history")
    assert history.headers["Content-Type"].startswith("application/json")


async def test_documents_of_an_invoice_need_a_session(api: Api, admin: Person, nobody: Person) -> None:
    made = await furnish(api)
    address = f"/invoices/{made['invoices']['id']}"
    assert (await admin.open(f"{address}.pdf")).headers["Content-Type"] == "application/pdf"
    assert "usage" in (await admin.open(f"{address}/usage.csv")).headers["Content-Disposition"]
    assert (await nobody.open(f"{address}.pdf")).status in {303, 401}
