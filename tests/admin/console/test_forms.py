"""Forms: sent from a page of ours by who may, done once, and what is wrong is said beside its field."""

from __future__ import annotations

from html import unescape
from typing import Any
from urllib.parse import urlencode

import pytest

from gateway.admin.console.records import CONFIRMED, DANGEROUS, address_of
from gateway.admin.console.screens import SCREENS
from gateway.core.accounts.administration import CHANGE, DELETE
from tests.admin.conftest import ADMIN, Api
from tests.admin.console.conftest import Person
from tests.admin.console.test_pages import furnish, well_formed
from tests.in_turn import in_turn


async def tenant_of(api: Api, total: int | None = 1000) -> Any:
    plan = await api.make("token-plans", name="Plan", total_amount=total)
    return await api.make("tenants", name="Acme", plan_id=plan["id"])


async def test_tenant_recharge_adjust_reset_block_and_unblock_forms_take_effect_and_are_audited(
    api: Api, admin: Person
) -> None:
    made = await tenant_of(api)
    page, one = f"/tenants/{made['id']}", f"/tenants/{made['id']}"
    done = await admin.fill(page, f"{one}/recharge", amount="1,000,000")
    assert (done.status, done.headers["Location"]) == (303, f"{one}?done=recharge")
    assert "1,001,000" in (await admin.open(one)).text
    await admin.fill(page, f"{one}/adjust", amount="1000", direction="OUT", reason="typed wrong")
    assert api.counters.quotas[made["id"]].tokens_remaining == 1_000_000
    await admin.fill(page, f"{one}/reset")
    assert api.counters.quotas[made["id"]].tokens_remaining == 1000
    assert (await admin.fill(page, f"{one}/block")).status == 303
    shown = await admin.open(one)
    assert "Blocked by hand" in shown.text
    assert f'action="{one}/block"' not in shown.text
    await admin.fill(page, f"{one}/unblock")
    said = api.rows("select action, actor from audit_log where resource = 'tenants' order by id offset 1")
    assert [action for action, _ in said] == ["recharge", "adjust", "reset", "block", "unblock"]
    assert {actor for _, actor in said} == {"builtin:admin"}


def test_every_dangerous_console_action_asks_for_a_confirmation() -> None:
    for screen in SCREENS.values():
        for action in screen.resource.actions:
            if action.name in DANGEROUS:
                assert action.confirmed or (screen.name, action.name) in CONFIRMED, (screen.name, action.name)


async def test_console_shows_a_success_message_after_every_action(admin: Person) -> None:
    silent = [
        (screen.name, action.name)
        for screen in SCREENS.values()
        for action in screen.resource.actions
        if not action.mints and 'role="status"' not in (await admin.open(f"/search?done={action.name}")).text
    ]
    assert silent == []


async def test_block_and_delete_forms_state_the_consequence_and_need_a_tick(api: Api, admin: Person) -> None:
    made = await tenant_of(api)
    page = (await admin.open(f"/tenants/{made['id']}")).text
    for verb, said in (("block", "Every call of the tenant is refused"), ("delete", "gone from all lists")):
        form = page.split(f'action="/tenants/{made["id"]}/{verb}"')[1].split("</form>")[0]
        assert 'name="confirmed" value="yes" required' in form, verb
        assert said in form


async def test_a_form_that_is_sent_twice_is_done_once(api: Api, admin: Person) -> None:
    made = await tenant_of(api)
    action = f"/tenants/{made['id']}/recharge"
    fields = [*(await admin.open(f"/tenants/{made['id']}")).fields(action), ("amount", "5")]
    assert [(await admin.post(action, fields)).status for _ in range(3)] == [303, 303, 303]
    assert api.counters.quotas[made["id"]].tokens_remaining == 1005


async def test_a_key_is_shown_once(api: Api, admin: Person) -> None:
    made = await tenant_of(api)
    fields = [
        *(await admin.open("/api-keys/new")).fields("/api-keys"),
        ("tenant_id", str(made["id"])),
        ("name", "k"),
    ]
    first = await admin.post("/api-keys", fields)
    assert first.status == 201
    [(digest, prefix)] = api.rows("select digest, prefix from api_key")
    assert prefix in first.text
    assert digest not in first.text
    again = await admin.post("/api-keys", fields)
    assert "shown then" in again.text
    assert "tk_" not in again.text
    assert api.rows("select count(*) from api_key") == [(1,)]
    page = await admin.open(f"/tenants/{made['id']}")
    assert prefix in page.text
    [(key_id,)] = api.rows("select id from api_key")
    await admin.fill(f"/api-keys/{key_id}", f"/api-keys/{key_id}/revoke")
    assert "revoked" in (await admin.open(f"/tenants/{made['id']}")).text


async def test_console_shows_a_rotated_api_key_once_and_links_the_old_key_to_the_new_key(
    api: Api, admin: Person
) -> None:
    made = await tenant_of(api)
    old = await api.make("api-keys", tenant_id=made["id"], name="k")
    where = f"/api-keys/{old['id']}"
    fields = [*(await admin.open(where)).fields(f"{where}/rotate"), ("overlap_s", "60")]
    first = await admin.post(f"{where}/rotate", fields)
    assert first.status == 201
    [(digest, prefix, new_id)] = api.rows("select digest, prefix, id from api_key where id <> %s", old["id"])
    assert (prefix in first.text, digest in first.text) == (True, False)
    again = await admin.post(f"{where}/rotate", fields)
    assert ("shown then" in again.text, "tk_" in again.text) == (True, False)
    page = await admin.open(where)
    assert f'href="/api-keys/{new_id}"' in page.text
    assert f'action="{where}/rotate"' not in page.text


@pytest.fixture
async def web(api: Api) -> dict[str, Any]:
    return await tenant_of(api)


@in_turn(
    ("typed", "said"),
    [
        ({"amount": "0"}, "greater than or equal to 1"),
        ({"amount": ""}, "required"),
        ({"amount": "<script>alert(1)</script>"}, "must be a whole number"),
    ],
)
async def test_recharge_form_shows_an_error_beside_the_invalid_amount(
    api: Api, admin: Person, web: dict[str, Any], typed: dict[str, str], said: str
) -> None:
    answer = await admin.fill(f"/tenants/{web['id']}", f"/tenants/{web['id']}/recharge", **typed)
    assert answer.status == 422
    well_formed(answer)
    field = answer.text.partition('name="amount"')[2].partition("</form>")[0]
    assert said in field.partition('class="error"')[2]
    assert "<script>alert" not in answer.text
    assert api.rows("select count(*) from control_write where verb = 'recharge'") == [(0,)]


@pytest.mark.parametrize(("typed", "said"), [("Twin", "one of their numbers"), ("Nope", "names nothing")])
async def test_form_shows_an_error_beside_the_field_for_an_unknown_or_ambiguous_name(
    api: Api, admin: Person, typed: str, said: str
) -> None:
    for name in ("First", "Second"):
        whose = await api.make("organizations", name=name)
        await api.make("tenants", name="Twin", organization_id=whose["id"])
    form = {"tenant_id": typed, "organization_id": str(whose["id"]), "amount": "20"}
    form |= {"unit": "money", "interval": "day"}
    assert (await admin.open(f"/budgets/meaning?{urlencode(form)}")).status == 200
    for page, more in (("budgets", form), ("api-keys", {"tenant_id": typed, "name": "laptop"})):
        answer = await admin.fill(f"/{page}/new", f"/{page}", **more)
        assert (answer.status, f'value="{typed}"' in answer.text) == (422, True)
        assert said in answer.text.partition('name="tenant_id"')[2].partition("</form>")[0]


async def test_budget_form_takes_and_describes_every_part_of_a_window(api: Api, admin: Person) -> None:
    owner = await api.make("organizations", name="Hooli")
    whose = {"organization_id": "Hooli", "each": "user", "amount": "20", "unit": "money"}
    form = whose | {"window": "rolling", "length": "5h"}
    meant = "Each user may use $20.00 in any 5 hours. A call that does not fit is refused (429) until enough is free"
    assert meant in (await admin.open(f"/budgets/meaning?{urlencode(form)}")).text
    for wrong in ({"length": "4m"}, {"length": ""}, {"interval": "day"}, {"steps": "x"}, {"window": "odd"}):
        assert "may use" not in (await admin.open(f"/budgets/meaning?{urlencode(form | wrong)}")).text
    assert (await admin.fill("/budgets/new", "/budgets", **form, interval="", name="five")).status == 303
    steps = '- at: 0.8\n  models:\n    "claude-opus-*": claude-sonnet-4-6'
    form = whose | {"interval": "month", "carry.max": "5", "carry.debt": "true", "steps": steps}
    sentences = unescape((await admin.open(f"/budgets/meaning?{urlencode(form)}")).text)
    assert "Up to $5.00 of the rest goes on into the next month, and use beyond it is taken off." in sentences
    assert "From 80 % on, models are sent as others: claude-opus-* as claude-sonnet-4-6; running" in sentences
    typed = {name.replace(".", "__"): text for name, text in form.items()}
    assert (
        "names claude-sonnet-4-6, which has no price"
        in (await admin.fill("/budgets/new", "/budgets", **typed, name="m")).text
    )
    of_model = {
        "model": "claude-sonnet-4-6",
        "currency": "USD",
        "input": "3",
        "effective_from": "2026-01-01T00:00:00Z",
    }
    await api.make("prices", **of_model)
    made = await admin.fill("/budgets/new", "/budgets", **typed, name="monthly")
    number = made.headers["Location"].split("/")[2].partition("?")[0]
    budget = (await api.get(f"budgets/{number}")).json
    assert budget["carry"] == {"max": "5", "debt": True}
    assert budget["steps"] == [
        {"at": 0.8, "models": {"claude-opus-*": "claude-sonnet-4-6"}, "session": "keep"}
    ]
    where = f"/budgets/{number}"
    assert (await admin.fill(where, f"{where}/change", carry__max="", carry__debt="", steps="")).status == 303
    budget = (await api.get(f"budgets/{number}")).json
    assert (budget["carry"], budget["steps"], budget["organization_id"]) == (None, [], owner["id"])
    rows = unescape((await admin.open("/budgets")).text)
    assert ("in any 5 hours" in rows, "a month" in rows) == (True, True)


async def test_page_of_a_budget_describes_overrides(api: Api, admin: Person) -> None:
    owner = await api.make("organizations", name="Hooli")
    budget = await api.make(
        "budgets", organization_id=owner["id"], name="each", unit="tokens", amount=20, each="user", window="first_use",
        length="90m", steps=[{"at": 0, "models": {"a": "b"}}], mode="audit",
    )  # fmt: skip
    for who, amount in (("ada", 50), ("bob", None), ("cy", 0), ("dan", 1)):
        await api.call(
            "PUT",
            f"budgets/{budget['id']}/overrides/{who}",
            {"amount": amount, "until": "2999-12-04T00:00:00Z"},
        )
    page = unescape((await admin.open(f"/budgets/{budget['id']}")).text)
    assert "Each user may use 20 tokens in 90 minutes from a first call. Alerts are sent" in page
    said = "ada may use 50 tokens until 2999-12-04 00:00; bob has no limit until 2999-12-04 00:00; cy may use 0 tokens"
    assert (said in page, "others have other limits too." in page) == (True, True)
    assert "As it only counts, its steps are not taken." in page


async def test_refused_console_form_is_shown_again_with_the_typed_values(admin: Person) -> None:
    answer = await admin.fill(
        "/services/new", "/services", name="Vision", key="NOT A KEY", credits="12", service_type="One-Time",
        business_model_id="1", pricing='{"tiers": [{"up_to": 5, "unit_price": "x"}]}', description='"><b>',
    )  # fmt: skip
    assert answer.status == 422
    for kept in (
        'value="NOT A KEY"',
        'value="12"',
        "&#34;&gt;&lt;b&gt;",
        "must be 1 to 64",
        "tiers.0.unit_price",
    ):
        assert kept in answer.text, kept
    assert '<option value="One-Time" selected>' in answer.text


async def test_change_form_saves_only_the_fields_the_user_edited(api: Api, admin: Person) -> None:
    made = await api.make("token-plans", name="Team", total_amount=5, description="first", rollover_max=3)
    one = f"/token-plans/{made['id']}"
    hidden = (await admin.open(one)).fields(f"{one}/change")
    former = {name.removeprefix("was."): value for name, value in hidden if name.startswith("was.")}
    await api.patch(f"token-plans/{made['id']}", {"rollover_max": 9})
    typed = {**former, "name": "Team 2", "total_amount": ""}
    answer = await admin.post(f"{one}/change", [*hidden, *typed.items()])
    assert answer.headers.get("Location") == f"{one}?done=changed", answer.text
    now = (await api.get(f"token-plans/{made['id']}")).json
    assert (now["name"], now["total_amount"], now["rollover_max"], now["description"]) == (
        "Team 2",
        None,
        9,
        "first",
    )
    same = await admin.post(f"{one}/change", [*(await admin.open(one)).fields(f"{one}/change")])
    assert same.headers["Location"] == f"{one}?done=nothing"


async def test_a_tenant_moves_to_another_plan_and_gets_limits(api: Api, admin: Person) -> None:
    made = await tenant_of(api)
    other = await api.make("token-plans", name="Other", total_amount=7)
    one = f"/tenants/{made['id']}"
    page = await admin.open(one)
    assert "<summary>Change plan, name or limits</summary>" in page.text
    hidden = page.fields(f"{one}/change")
    typed = [("plan_id", str(other["id"])), ("limits.requests_per_minute", "60"), ("limits.concurrency", "")]
    assert (await admin.post(f"{one}/change", [*hidden, *typed])).status == 303
    now = (await api.get(f"tenants/{made['id']}")).json
    assert (now["plan_id"], now["limits"], now["name"]) == (other["id"], {"requests_per_minute": 60}, "Acme")


async def test_refused_invoice_finalization_shows_the_pending_movements_as_the_reason(
    api: Api, admin: Person
) -> None:
    made = await furnish(api)
    one = f"/invoices/{made['invoices']['id']}"
    api.counters.unsettled = "Movements of tenant 7 are still on their way."
    answer = await admin.fill(one, f"{one}/finalize")
    assert answer.status == 409
    assert "Movements of tenant 7 are still on their way." in answer.text
    assert '<details name="actions" open><summary>Finalize' in answer.text


async def test_submitting_an_old_form_for_an_action_no_longer_allowed_is_409_with_an_alert(
    api: Api, admin: Person
) -> None:
    made = await furnish(api)
    one = f"/invoices/{made['invoices']['id']}"
    hidden = (await admin.open(one)).fields(f"{one}/recompute")
    await admin.fill(one, f"{one}/finalize")
    answer = await admin.post(f"{one}/recompute", hidden)
    assert answer.status == 409
    assert 'role="alert"' in answer.text


async def test_recharge_form_says_the_recharge_applies_later_while_counters_are_unreachable(
    api: Api, admin: Person
) -> None:
    made = await tenant_of(api)
    api.counters.away = True
    answer = await admin.fill(f"/tenants/{made['id']}", f"/tenants/{made['id']}/recharge", amount="5")
    assert answer.headers["Location"].endswith("?done=recharge&later=1")
    assert "as soon as the counters" in (await admin.open(answer.headers["Location"])).text


async def test_reconciliation_is_run_and_audited(api: Api, admin: Person) -> None:
    answer = await admin.fill("/reconciliation", "/reconciliation")
    assert answer.headers["Location"] == "/reconciliation?done=reconciled"
    assert ">7<" in (await admin.open("/reconciliation")).text
    await admin.fill("/reconciliation", "/reconciliation/repair")
    said = api.rows("select action, after from audit_log where resource = 'reconciliation' order by id")
    assert said == [("run", {"repair": repair, "whole": False}) for repair in (False, True)]


async def test_form_hint_refers_to_other_fields_by_the_labels_on_the_page(admin: Person) -> None:
    assert "How much of “Currency” a unit of “Base” is." in (await admin.open("/exchange-rates/new")).text


async def test_webhook_is_created_and_deleted_and_a_tenant_with_keys_is_not_deleted(
    api: Api, admin: Person
) -> None:
    answer = await admin.fill("/webhooks/new", "/webhooks", url="https://hooks.example/x", enabled="false")
    assert answer.status == 201
    assert "whsec_" in answer.text
    [(row_id, enabled, events)] = api.rows("select id, enabled, events from webhook")
    assert (enabled, events) == (False, [])
    assert (await admin.fill(f"/webhooks/{row_id}", f"/webhooks/{row_id}/delete")).status == 303
    assert (await admin.open(f"/webhooks/{row_id}")).status == 404
    made = await tenant_of(api)
    await api.make("api-keys", tenant_id=made["id"])
    refused = await admin.fill(f"/tenants/{made['id']}", f"/tenants/{made['id']}/delete")
    assert refused.status == 409
    assert "still has API keys" in refused.text


FORGED = [
    ({"Origin": "http://evil.example"}, True),
    ({"Origin": "null"}, True),
    ({"Origin": ""}, True),
    ({"Sec_Fetch_Site": "cross-site"}, True),
    ({"Sec_Fetch_Site": "same-site"}, True),
    ({"Sec_Fetch_Site": "none"}, True),
    ({}, False),
]


@in_turn(("headers", "with_token"), FORGED)
async def test_a_forged_form_is_refused(
    api: Api, admin: Person, web: dict[str, Any], headers: dict[str, str], *, with_token: bool
) -> None:
    action = f"/tenants/{web['id']}/recharge"
    fields = (await admin.open(f"/tenants/{web['id']}")).fields(action)
    if not with_token:
        fields = [(name, value if name != "form_token" else "0" * 64) for name, value in fields]
    answer = await admin.post(action, [*fields, ("amount", "5")], **headers)
    assert answer.status == 403
    assert "did not come from a page" in answer.text
    assert api.counters.quotas[web["id"]].tokens_remaining == 1000


async def test_console_form_with_the_form_token_of_another_session_is_refused(
    api: Api, admin: Person
) -> None:
    other = Person(admin.client)
    await other.sign_in(ADMIN)
    stolen = (await other.open("/")).form_token
    made = await tenant_of(api)
    answer = await admin.post(f"/tenants/{made['id']}/recharge", {"form_token": stolen, "amount": "5"})
    assert answer.status == 403


async def test_console_form_with_a_wrong_content_type_bad_encoding_or_overlong_body_is_refused(
    api: Api, admin: Person
) -> None:
    made = await tenant_of(api)
    token = (await admin.open("/")).form_token
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        body = f'{{"form_token": "{token}", "amount": 5}}'.encode()
        answer = await admin.post(f"/tenants/{made['id']}/recharge", body, Content_Type=kind)
        assert answer.status == 415, kind
    typed = f"form_token={token}&amount=5".encode()
    kind = "application/x-www-form-urlencoded"
    address = f"/tenants/{made['id']}/recharge"
    assert (await admin.post(address, typed, Content_Type=f"{kind}; charset=utf-16")).status == 415
    assert (await admin.post(address, typed, Content_Type=f"{kind}; charset=nothing")).status == 415
    assert (await admin.post(address, typed + b"&x=\xff", Content_Type=kind)).status == 400
    assert (await admin.post(address, typed + b"&x=" + b"y" * 100_000, Content_Type=kind)).status == 413
    assert api.counters.quotas[made["id"]].tokens_remaining == 1000


def writes() -> list[str]:
    """Where every form of every page is sent to."""
    found = ["/reconciliation", "/reconciliation/repair"]
    for name, screen in SCREENS.items():
        resource = screen.resource
        found += [f"/{name}"] if resource.create is not None else []
        found += [f"/{name}/1/{CHANGE}"] if resource.patch is not None else []
        found += [f"/{name}/1/{DELETE}"] if resource.deletable else []
        found += [f"/{name}/1/{address_of(action)}" for action in resource.actions]
        found += [f"/{name}/1/{action.name}" for part in resource.parts for _, action in part.writes]
    return found


async def test_readonly_person_is_refused_every_write_in_the_console(api: Api, reader: Person) -> None:
    await furnish(api)
    before = api.rows("select count(*) from audit_log")
    token = (await reader.open("/")).form_token
    assert len(writes()) > 40
    for address in writes():
        answer = await reader.post(address, {"form_token": token, "amount": "5", "name": "x"})
        assert answer.status == 403, address
    assert api.rows("select count(*) from audit_log") == before


async def test_console_pages_of_a_readonly_person_have_no_forms_except_search_and_sign_out(
    api: Api, reader: Person
) -> None:
    made = await furnish(api)
    for address in [f"/{name}/{row['id']}" for name, row in made.items()] + [f"/{name}" for name in SCREENS]:
        page = await reader.open(address)
        assert page.status == 200, address
        assert page.text.count('method="post"') == 2, address  # to search, and to sign out
        assert "/new" not in page.text, address
        assert "Actions" not in page.text, address
    assert (await reader.open("/tenants/new")).status == 404
