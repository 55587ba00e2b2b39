"""`GET calls/{request_id}/explanation`: the steps of a call, for everybody who may read the call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.admin.conftest import Api
from tests.admin.console.usage_rows import call
from tests.admin.test_cli_explain import ADMITTED, REFUSED, ids, step
from tests.admin.test_teams import narrowed

__all__ = ["ids"]  # a fixture


def outcomes(found: Any) -> dict[str, str]:
    return {each["step"]: each["outcome"] for each in found["steps"]}


async def test_call_explanation_marks_decisions_as_passed_or_names_the_step_that_refused_the_call(
    api: Api, ids: dict[str, Any]
) -> None:
    admitted = (await api.get(f"calls/{ADMITTED}/explanation")).json
    deciding = ("caller", "service", "limits", "budgets")
    assert outcomes(admitted) == dict.fromkeys(
        ("request", "hold", "use", "price", "settlement"), "stated"
    ) | dict.fromkeys(deciding, "passed")
    refused = (await api.get(f"calls/{REFUSED}/explanation")).json
    assert outcomes(refused) == {**dict.fromkeys(outcomes(refused), "stated"), "budgets": "refused"}


async def test_call_explanation_for_a_tenant_token_shows_budgets_but_no_organization_data(
    api: Api, ids: dict[str, Any]
) -> None:
    organization = {"organization_id": ids["organization"]}
    await api.patch(f"organizations/{ids['organization']}", {"spend_cap": "431.00"})
    await api.make("users", external_id="ann", **organization)
    await api.make(
        "budgets", **organization, name="each of us", each="user", unit="requests", interval="day", amount=9
    )
    [(tenant, key, user)] = api.rows(
        "select t.id, k.id, u.id from tenant t join api_key k on k.tenant_id = t.id, app_user u"
        " where u.external_id = 'ann' and t.name = 'Search'"
    )
    anns = "00000000-0000-4000-8000-000000000004"
    call(
        api, anns, organization=ids["organization"], tenant=tenant, api_key_id=key, user_id=user,
        model="gpt-4o", status=429, reason="budget_exceeded", refused=True,
    )  # fmt: skip
    for role in ("operator", "member", "readonly"):
        found = await (await narrowed(api, tenant, role)).get(f"calls/{anns}/explanation")
        assert [fact.partition(":")[0] for fact in step(found.json, "budgets")["facts"]] == [
            '"search"', f'"keys", key {key}', '"each of us", user ann',
        ]  # fmt: skip
        assert "user ann" in step(found.json, "caller")["detail"]
        assert ("431" in found.raw.decode(), "Acme" in found.raw.decode()) == (False, False)
    [(shop,)] = api.rows("select id from tenant where name = 'Shop'")
    assert (await (await narrowed(api, shop, "operator")).get(f"calls/{anns}/explanation")).status == 404


async def test_call_explanation_says_by_which_budget_a_call_went_as_another_model(
    api: Api, ids: dict[str, Any]
) -> None:
    [(tenant, key)] = api.rows(
        "select t.id, k.id from tenant t join api_key k on k.tenant_id = t.id where t.name = 'Search'"
    )
    of = {
        "organization": ids["organization"],
        "tenant": tenant,
        "api_key_id": key,
        "model": "sonnet",
        "currency": "USD",
    }
    by = {"model_asked": "opus", "substituted_by": '{"id": 7, "name": "team"}'}
    calls = {
        saved: f"00000000-0000-4000-8000-0000000000c{number}"
        for number, saved in enumerate((1_500_000_000, -1, None))
    }
    for saved, id_ in calls.items():
        call(api, id_, **of, **by, saved=saved)
    says = "opus was asked for, and sent as sonnet: by a step of the budget team (7)."
    told = {
        saved: [f"as opus the same tokens would have cost {text}"] if text else []
        for saved, text in zip(calls, ("1.5 USD more", "0.000000001 USD less", ""), strict=True)
    }
    for saved, id_ in calls.items():
        shown = (await api.get(f"calls?request_id={id_}")).json["items"][0]
        assert (shown["model_asked"], shown["substituted_by"]) == ("opus", {"id": 7, "name": "team"})
        found = step((await api.get(f"calls/{id_}/explanation")).json, "model")
        assert (found["detail"], found["facts"]) == (says, told[saved])
    mine = f"calls?organization_id={ids['organization']}"
    for narrowing, shown in (
        ("model_asked=opus", {*calls.values()}), ("substituted_by=7", {*calls.values()}), ("substituted_by=70", set()),
        ("model_asked=sonnet", set()), ("model_asked=opus&substituted_by=7&model=sonnet", {*calls.values()}),
    ):  # fmt: skip
        found = (await api.get(f"{mine}&{narrowing}")).json["items"]
        assert {item["request_id"] for item in found} == shown


async def test_call_explanation_has_only_budgets_of_the_tags_of_the_call(
    api: Api, ids: dict[str, Any]
) -> None:
    own = ids["organization"]
    assert (await api.patch(f"organizations/{own}", {"tags": ["feature"]})).status == 200
    terms = {"organization_id": own, "unit": "requests", "interval": "day", "amount": 9}
    for feature in ("search", "chat"):
        await api.make("budgets", **terms, name=f"of {feature}", tags={"feature": feature})
    await api.make("budgets", **terms, name="each feature", each="tag:feature")
    [(tenant, key)] = api.rows(
        "select t.id, k.id from tenant t join api_key k on k.tenant_id = t.id where t.name = 'Search'"
    )
    tagged = "00000000-0000-4000-8000-0000000000b0"
    call(api, tagged, organization=own, tenant=tenant, api_key_id=key, tags='{"feature": "search"}')
    found = (await api.get(f"calls/{tagged}/explanation")).json
    assert "tag feature search" in step(found, "caller")["detail"]
    assert [fact.partition(": ")[0] for fact in step(found, "budgets")["facts"]][2:] == [
        '"of search"', '"each feature", tag:feature search',
    ]  # fmt: skip


async def test_call_explanation_says_which_limit_is_by_an_override_or_a_raise(
    api: Api, ids: dict[str, Any]
) -> None:
    """Of nine requests a day Ann has four, then five by a raise; Bob has no limit."""
    organization = {"organization_id": ids["organization"]}
    each = await api.make(
        "budgets", **organization, name="each of us", each="user", unit="requests", interval="day", amount=9
    )
    calls = {}
    for number, (user, amount) in enumerate((("ann", 4), ("bob", None))):
        made = await api.make("users", external_id=user, **organization)
        path = f"budgets/{each['id']}/overrides/{user}"
        assert (await api.call("PUT", path, {"amount": amount})).status == 200
        calls[user] = f"00000000-0000-4000-8000-0000000000a{number}"
        [(tenant, key)] = api.rows(
            "select t.id, k.id from tenant t join api_key k on k.tenant_id = t.id where t.name = 'Search'"
        )
        call(
            api, calls[user], organization=ids["organization"], tenant=tenant, api_key_id=key,
            user_id=made["id"], model="gpt-4o", status=200,
        )  # fmt: skip

    async def said(user: str) -> str:
        found = (await api.get(f"calls/{calls[user]}/explanation")).json
        [fact] = [fact for fact in step(found, "budgets")["facts"] if fact.startswith('"each of us"')]
        return str(fact)

    ann, bob = await said("ann"), await said("bob")
    assert ann.startswith('"each of us", user ann: 4 of 4 requests a day are left (0 used), resets at ')
    assert ann.endswith(", by an override.")
    assert bob.startswith('"each of us", user bob: no limit (0 requests used), resets at ')
    group = await api.make("groups", name="Interns", kind="user", members=["ann"], **organization)
    assert (await api.call("DELETE", f"budgets/{each['id']}/overrides/ann")).status == 204
    path = f"budgets/{each['id']}/overrides/group:{group['id']}"
    assert (await api.call("PUT", path, {"amount": 3})).status == 200
    ann = await said("ann")
    assert ": 3 of 3 requests a day are left" in ann
    assert ann.endswith(f", by an override of the group Interns ({group['id']}).")
    raised = {"amount": 5, "until": "2999-01-31T00:00:00Z", "reason": "a fair", "who": "ann"}
    assert (await api.post(f"budgets/{each['id']}/raise", raised)).status == 200
    ann = await said("ann")
    assert ": 5 of 5 requests a day are left" in ann
    assert ann.endswith(", by a raise until 2999-01-31 00:00:00 UTC.")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("calls/that-one/explanation", 404),
        ("calls/00000000-0000-4000-8000-00000000000f/explanation", 404),
        (f"calls/{ADMITTED}/explanation?limit=1", 422),
    ],
)
async def test_call_explanation_is_refused_for_unknown_calls_and_unknown_parameters(
    api: Api, ids: dict[str, Any], path: str, status: int
) -> None:
    assert (await api.get(path)).status == status


@pytest.mark.parametrize(
    ("cause", "fact"),
    [
        ("", "the tenant is blocked by a person; `tollkeeper tenant unblock` lets it go"),
        ("dunning", "the tenant is blocked because an invoice is not paid; its payment lets it go"),
        ("backlog", "the tenant is blocked because too much of its use waits to be stored"),
    ],
)
async def test_explanation_of_a_blocked_call_names_the_cause_and_the_end_of_the_block(
    api: Api, ids: dict[str, Any], cause: str, fact: str
) -> None:
    [(tenant,)] = api.rows("select id from tenant where name = 'Search'")
    await api.post(f"tenants/{tenant}/block")
    api.rows(
        "update control_write set payload = %s::jsonb where verb = 'block'",
        json.dumps({"cause": cause} if cause else {}),
    )
    api.rows(
        "insert into tenant_quota (tenant_id, is_blocked, manual_block) values (%s, true, true)"
        " on conflict (tenant_id) do update set is_blocked = true, manual_block = true", tenant,
    )  # fmt: skip
    api.counters.quotas.clear()  # the stored block counts where the counters know nothing
    blocked = "00000000-0000-4000-8000-000000000005"
    call(api, blocked, organization=ids["organization"], tenant=tenant, status=403, reason="tenant_blocked",
         refused=True)  # fmt: skip
    found = step((await api.get(f"calls/{blocked}/explanation")).json, "caller")
    assert (found["outcome"], found["facts"][-1].startswith(fact)) == ("refused", True)


async def test_refused_call_shows_the_run_and_the_current_name_of_the_budget_run_or_plan_at_fault(
    api: Api, ids: dict[str, Any]
) -> None:
    [(tenant, key, budget)] = api.rows(
        "select t.id, k.id, b.id from tenant t join api_key k on k.tenant_id = t.id, budget b"
        " where t.name = 'Search' and b.name = 'keys'"
    )
    plan = (await api.make("token-plans", name="Small", total_amount=9))["id"]
    api.rows(
        "insert into run (id, organization_id, tenant_id, name, unit, amount, created_at, expires_at)"
        " values (%s, %s, %s, 'nightly', 'money', 5000000000, now(), now() + interval '1 h')",
        2**52, ids["organization"], tenant,
    )  # fmt: skip
    refused = {"organization": ids["organization"], "tenant": tenant, "api_key_id": key, "status": 429}
    by = {"budget": budget, "run": 2**52, "plan": plan, "gone": 77}
    for number, (kind, id_) in enumerate(by.items()):
        call(
            api, f"00000000-0000-4000-8000-0000000001{number:02}", **refused, refused=True, run_id=2**52,
            reason="run_exceeded" if kind == "run" else "budget_exceeded", refused_by=id_,
            refused_kind=kind.replace("gone", "budget"),
        )  # fmt: skip
    await api.patch(f"budgets/{budget}", {"name": "renamed"})
    found = (await api.get("calls?order=desc&limit=4")).json["items"][::-1]
    names = {"budget": "renamed", "run": "nightly", "plan": "Small"}
    told = [{"kind": kind, "id": by[kind], "name": name} for kind, name in names.items()]
    assert [each["refused_by"] for each in found] == [*told, None]
    assert [each["run"] for each in found] == ["nightly"] * 4
    budgets, run, *_ = [(await api.get(f"calls/{each['id']}/explanation")).json for each in found]
    marked = [fact for fact in step(budgets, "budgets")["facts"] if fact.endswith("It refused this call.")]
    assert [fact.partition(",")[0] for fact in marked] == ['"renamed"']
    assert (step(run, "run")["outcome"], step(run, "run")["facts"]) == ("refused", ["0 of 5 USD are used"])
