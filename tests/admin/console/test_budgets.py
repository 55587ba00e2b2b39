"""Budgets on pages: bars of what is used, accounts of everybody, forms to make, change and raise one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest

from tests.admin.conftest import Api
from tests.admin.console.conftest import Page, Person
from tests.admin.console.test_pages import HOSTILE, well_formed
from tests.admin.test_budgets import Desk

NANO = 10**9


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


async def test_a_list_shows_what_is_used_of_each(desk: Desk, reader: Person) -> None:
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
    for of in ("everything", "model gpt-5*", "user ada", "tenant Search, each user"):
        assert of in said
    assert 'aria-label="50.0 % used, 10.0 % held"' in page.text


async def test_a_page_says_what_is_left_and_until_when(desk: Desk, reader: Person) -> None:
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


async def test_accounts_of_everybody_are_there_those_that_used_most_first(desk: Desk, reader: Person) -> None:
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


async def test_hostile_names_are_text(desk: Desk, reader: Person) -> None:
    made = await desk.make(name=HOSTILE[:200], user=HOSTILE[:128])
    each = await desk.make(each="user")
    desk.store(each, NANO, "a" * 24, HOSTILE)
    for address in (
        "/budgets",
        f"/budgets/{made['id']}",
        f"/budgets/{each['id']}",
        f"/budgets/{each['id']}/use",
    ):
        page = await reader.open(address)
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text


async def test_pages_of_accounts_show_their_budgets(desk: Desk, reader: Person) -> None:
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
    own = {of_keys["id"]: str(desk.key), of_users["id"]: "ada"}
    for budget in (of_keys, of_users):
        account = desk.account(each=budget["each"], value=own[budget["id"]])
        desk.hold(account, budget, 3 * NANO, 0)
    for address, there in (
        (f"/tenants/{desk.tenant}", ["the tenant's"]),
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


async def test_where_the_counters_are_away_an_own_account_is_what_was_stored(
    desk: Desk, reader: Person
) -> None:
    user = await desk.api.make("users", external_id="ada", organization_id=desk.organization)
    made = await desk.make(name="per user", each="user")
    desk.store(made, 2 * NANO, desk.account(each="user", value="ada").partition(":")[2], "ada")
    desk.api.counters.away = True
    assert "$2.00 of $12.50" in words_of(await reader.open(f"/users/{user['id']}"), "budgets")


async def test_a_person_makes_changes_raises_and_deletes_one(desk: Desk, admin: Person) -> None:
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


async def test_a_wrong_form_comes_back_with_what_is_wrong(desk: Desk, admin: Person) -> None:
    page = await admin.fill(
        "/budgets/new", "/budgets", organization_id=str(desk.organization), name="team", unit="tokens",
        amount="1.5", interval="day", thresholds="half", time_zone="Mars/Base",
    )  # fmt: skip
    assert page.status == 422
    well_formed(page)
    assert 'value="half"' in page.text
    assert "must be" in words_of(page)
