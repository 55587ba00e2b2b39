"""Configuration that is planned and applied over the Admin API: what is shown is what is done, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.admin.configuration.applying import ApplyRequest, Configurator
from gateway.admin.ports import AdminPorts
from gateway.core.accounts.administration import ADMIN as ADMIN_ROLE
from gateway.core.accounts.administration import Actor
from gateway.errors import Unprocessable
from persistence import engine as engines
from tests.admin.configuration.world import Objects, apply, plan, refused, world
from tests.admin.conftest import READONLY, Api, ports_over
from tests.connections import connected

ACME: Objects = {
    "tenants": [{"name": "Web", "organization": "Acme", "plan": "Pro", "limits": {"concurrency": 5}}],
    "token-plans": [{"name": "Pro", "total_amount": 1000, "reset_interval": "monthly"}],
    "organizations": [{"name": "Acme", "currency": "USD"}],
}


def told(planned: Any) -> list[tuple[str, str, str]]:
    return [(each["change"], each["resource"], each["name"]) for each in planned["changes"]]


async def tenant(api: Api) -> Any:
    [found] = (await api.get("tenants")).json["items"]
    return found


async def test_apply_creates_referenced_rows_first_and_a_plan_or_trial_run_creates_no_rows(api: Api) -> None:
    planned = await plan(api, ACME)
    assert told(planned) == [
        ("create", "organizations", "Acme"),
        ("create", "token-plans", "Pro"),
        ("create", "tenants", "Acme / Web"),
    ]
    tried = await plan(api, ACME, trial=True)
    assert (tried["tried"], tried["digest"]) == (True, planned["digest"])
    assert (await api.get("organizations")).json["items"] == [], "neither a plan nor a trial leaves anything"
    done = await apply(api, ACME)
    assert done["applied"]
    [organization] = (await api.get("organizations")).json["items"]
    web = await tenant(api)
    assert (web["organization_id"], web["limits"]) == (organization["id"], {"concurrency": 5})
    again = await plan(api, ACME)
    assert (again["changes"], again["unchanged"], again["noted"]) == ([], 3, 0)


async def test_configuration_apply_audits_each_change_and_updates_each_account_in_redis_once(
    api: Api,
) -> None:
    await apply(api, ACME)
    entries = (await api.get("audit-log")).json["items"]
    assert [(one["action"], one["resource"]) for one in entries] == [
        ("create", "organizations"), ("create", "token-plans"), ("create", "tenants"),
    ]  # fmt: skip
    assert len({one["request_id"] for one in entries}) == 1
    web = (await tenant(api))["id"]
    assert sorted(api.counters.pushed) == sorted({*api.counters.pushed}), "an account is pushed once"
    writes = api.rows("select verb from control_write where account = %s order by position", f"tenant:{web}")
    assert writes == [("define",), ("plan",)]


async def test_field_removed_from_a_configuration_file_is_reset_and_a_field_never_in_a_file_is_kept(
    api: Api,
) -> None:
    await apply(api, ACME)
    web = await tenant(api)
    await api.patch(f"tenants/{web['id']}", {"user_limits": {"concurrency": 2}})
    assert (await plan(api, ACME))["changes"] == [], "no file ever spoke of user_limits"
    shorter = {**ACME, "tenants": [{"name": "Web", "organization": "Acme", "plan": "Pro"}]}
    planned = await plan(api, shorter)
    [change] = planned["changes"]
    assert change["fields"] == {"limits": {"before": {"concurrency": 5}, "after": None}}
    await apply(api, shorter)
    web = await tenant(api)
    assert (web["limits"], web["user_limits"]) == ({}, {"concurrency": 2})


async def test_apply_of_a_plan_that_no_longer_matches_the_database_is_409_and_changes_no_row(
    api: Api,
) -> None:
    await apply(api, ACME)
    other: Objects = {
        "token-plans": [*ACME["token-plans"], {"name": "Free", "total_amount": 5}],
        "tenants": [{"name": "Web", "organization": "Acme", "plan": "Free", "limits": {"concurrency": 5}}],
    }
    planned = await plan(api, other)
    assert planned["changes"][1]["fields"] == {"plan": {"before": "Pro", "after": "Free"}}
    web = await tenant(api)
    await api.patch(f"tenants/{web['id']}", {"limits": {"concurrency": 7}})
    asked = {"objects": other, "digest": planned["digest"]}
    late = await api.post("configuration", asked)
    assert late.status == 409
    assert "plan again" in late.json["detail"]
    assert (await api.get("token-plans?name=Free")).json["items"] == [], "nothing of it is done"


async def test_second_of_two_concurrent_applies_of_the_same_plan_is_409(api: Api) -> None:
    planned = await plan(api, ACME)
    asked = {"objects": ACME, "digest": planned["digest"]}
    answers = await asyncio.gather(*(api.post("configuration", asked) for _ in range(2)))
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert len((await api.get("tenants")).json["items"]) == 1


async def test_apply_with_a_refused_object_names_the_object_and_writes_no_object(api: Api) -> None:
    objects = world()
    objects["subscription-plans"][0]["feature_access"] = ["chat", "smss"]
    planned = await plan(api, objects)
    answer = await api.post("configuration", {"objects": objects, "digest": planned["digest"]})
    assert answer.status == 422
    assert answer.json["errors"] == [
        {"field": "subscription-plans.0.feature_access", "message": "there is no service 'smss'"}
    ]
    assert (await refused(api, objects, trial=True)).keys() == {"subscription-plans.0.feature_access"}
    assert (await api.get("organizations")).json["items"] == []
    assert (await api.get("audit-log")).json["items"] == []
    assert api.counters.pushed == []


async def test_plan_names_each_invalid_object_and_suggests_the_correct_spelling(api: Api) -> None:
    wrong = await refused(
        api,
        {
            "tenant": [],
            "organizations": [{"name": "Acme"}, {"name": "Acme"}, "Acme"],
            "tenants": [
                {"name": "Web", "organisation": "Acme"},
                {"name": "Web", "organization_id": 7, "organization": "Acme"},
                {"name": "Web", "organization": 7},
                {"name": "Web", "organization": "Acme", "limits": {"concurrency": 0}},
                {"name": "Web", "organization": "Acme", "created_at": "2026-01-01T00:00:00Z"},
            ],
        },
    )
    assert wrong == {
        "tenant": "unknown kind; did you mean tenants?",
        "organizations.2": "must be an object: fields and their values",
        "tenants.0.organisation": "unknown field; did you mean organization?",
        "tenants.0.organization": "required",
        "tenants.1.organization_id": "unknown field; say organization, and its name",
        "tenants.2.organization": "must be its name",
        "tenants.3.limits.concurrency": "Input should be greater than or equal to 1",
        "tenants.4.created_at": "cannot be set here",
    }
    wrong = await refused(
        api,
        {
            "organizations": [{"name": "Acme"}, {"name": "Acme"}],
            "tenants": [{"name": "Web", "organization": "Acmee"}],
        },
    )
    assert wrong == {
        "organizations.1.name": "names the same as organizations.0",
        "tenants.0.organization": "there is no organization named 'Acmee'; did you mean 'Acme'?",
    }


async def test_name_shared_by_several_rows_is_refused_until_the_organization_is_stated(api: Api) -> None:
    for name in ("Acme", "Globex"):
        await apply(
            api, {"organizations": [{"name": name}], "tenants": [{"name": "Web", "organization": name}]}
        )
    key = {"tenant": "Web", "name": "CI"}
    assert await refused(api, {"api-keys": [key]}) == {
        "api-keys.0.tenant": "there are 2 tenants named 'Web': say {organization, name}"
    }
    key["tenant"] = {"organization": "Globex", "name": "Web"}  # type: ignore[assignment]  # as a mapping
    assert told(await plan(api, {"api-keys": [key]})) == [("create", "api-keys", "Globex / Web / CI")]
    budget = {"organization": "Acme", "name": "b", "unit": "tokens", "amount": 5, "interval": "day"}
    planned = await plan(api, {"budgets": [{**budget, "tenant": "Web"}]}, trial=True)
    assert planned["tried"], "the budget's own organization says which tenant"


async def test_change_of_an_immutable_field_is_refused_and_the_error_states_the_kept_value(api: Api) -> None:
    await apply(api, world())
    objects = world()
    objects["budgets"][1]["interval"] = "day"
    objects["subscription-plans"][1]["currency"] = "USD"
    objects["budgets"][0]["tenant"] = {"organization": "Globex", "name": "Web"}
    del objects["budgets"][0]["api_key"]
    assert await refused(api, objects) == {
        "subscription-plans.1.currency": "cannot be changed: it stays EUR, not USD",
        "budgets.0.tenant": "stays, as what is used is counted by it: make another budget",
        "budgets.1.interval": "stays, as what is used is counted by it: make another budget",
    }


async def test_changed_price_or_tax_rate_is_stored_as_a_new_row_effective_from_now(api: Api) -> None:
    name = "model-of-test-apply"
    price = {"model": name, "currency": "USD", "input": "1", "output": "2"}
    await apply(api, {"prices": [price]})
    assert (await plan(api, {"prices": [{**price, "input": "1.0"}]}))["changes"] == [], "the same amount"
    [change] = (await plan(api, {"prices": [{**price, "input": "3"}]}))["changes"]
    assert change["fields"]["effective_from"] == {"before": None, "after": "now"}
    await apply(api, {"prices": [{**price, "input": "3"}]})
    found = (await api.get(f"prices?model={name}")).json["items"]
    assert [one["input"] for one in found] == ["1", "3"]
    quoted = (await api.get(f"prices/quote?model={name}&input=1000000")).json
    assert quoted["cost"] == "3"
    dated = {**price, "input": "9", "effective_from": found[0]["effective_from"]}
    assert await refused(api, {"prices": [dated]}) == {
        "prices.0.effective_from": f"is that of prices {found[0]['id']}, which stays as it is: "
        "name a later one, or none"
    }
    await apply(
        api, {"organizations": [{"name": "Acme"}], "tax-rates": [{"organization": "Acme", "rate": "0.2"}]}
    )
    again: Objects = {"tax-rates": [{"organization": "Acme", "rate": "0.20"}]}
    assert (await plan(api, again))["changes"] == []
    again["tax-rates"][0]["rate"] = "0.25"
    await apply(api, again)
    [acme] = (await api.get("organizations")).json["items"]
    assert acme["tax_rate"] == "0.25"


async def test_apply_moves_a_subscription_to_the_plan_named_in_the_file(api: Api) -> None:
    await apply(api, world())
    objects = world()
    objects["subscription-plans"].append(
        {
            "name": "More",
            "monthly_cost": "40",
            "annual_cost": "400",
            "feature_access": ["chat"],
            "token_plan": "Pro",
        }
    )
    objects["organization-subscriptions"][0] |= {"plan": "More", "start_date": "2020-01-01"}
    planned = await plan(api, objects)
    assert [each["resource"] for each in planned["changes"]] == [
        "subscription-plans", "organization-subscriptions",
    ]  # fmt: skip
    assert planned["changes"][1]["fields"] == {"plan": {"before": "Team", "after": "More"}}
    await apply(api, objects)
    [subscription] = (await api.get("organization-subscriptions")).json["items"]
    [more] = (await api.get("subscription-plans?name=More")).json["items"]
    assert subscription["plan_id"] == more["id"]
    assert (await plan(api, objects))["changes"] == []


async def test_apply_waits_for_a_concurrent_change_of_a_row_and_then_answers_409(api: Api) -> None:
    """Between the plan's reading of a row and its writing, somebody changes it by hand."""
    await apply(api, ACME)
    web = await tenant(api)
    wanted = {**ACME, "tenants": [{"name": "Web", "organization": "Acme", "limits": {"concurrency": 9}}]}
    planned = await plan(api, wanted)
    with connected(api.url) as other:
        other.execute("update tenant set limits = '{\"concurrency\": 1}' where id = %s", (web["id"],))
        asked = {"objects": wanted, "digest": planned["digest"]}
        late = asyncio.create_task(api.post("configuration", asked))
        await api.until_locked()
        other.commit()
    answer = await late
    assert answer.status == 409
    assert (await tenant(api))["limits"] == {"concurrency": 1}


async def test_apply_repeated_with_the_same_idempotency_key_returns_the_first_answer_without_secrets(
    api: Api,
) -> None:
    objects = {**ACME, "api-keys": [{"tenant": "Web", "name": "CI"}]}
    planned = await plan(api, objects)
    asked = {"objects": objects, "digest": planned["digest"]}
    first = await api.post("configuration", asked, key="once")
    [secret] = first.json["secrets"]
    assert secret["value"].startswith("tk_")
    again = await api.post("configuration", asked, key="once")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json == {**first.json, "secrets": []}
    assert secret["value"] not in str(api.rows("select response from idempotency_key"))
    assert (await api.post("configuration", {**asked, "prune": True}, key="once")).status == 409


async def test_prune_deletes_only_rows_that_the_same_configuration_name_applied_before(api: Api) -> None:
    await api.make("organizations", name="By hand")
    full: Objects = {
        "organizations": [{"name": "Acme"}, {"name": "By hand", "limits": {"concurrency": 3}}],
        "tenants": [{"organization": "Acme", "name": "Web"}],
        "api-keys": [{"tenant": "Web", "name": "CI"}],
        "token-plans": [{"name": "Pro"}],
    }
    await apply(api, full)
    await apply(api, {"token-plans": [{"name": "Of others"}]}, name="another repository")
    rest = {"token-plans": [{"name": "Pro"}]}
    assert (await plan(api, rest))["changes"] == [], "nothing is deleted unless it is asked for"
    tried = await plan(api, rest, prune=True, trial=True)
    assert told(tried) == [
        ("delete", "api-keys", "Acme / Web / CI"),
        ("delete", "tenants", "Acme / Web"),
        ("delete", "organizations", "Acme"),
    ]
    done = await apply(api, rest, prune=True)
    assert [each["stays"] for each in done["changes"]] == ["", "", ""]
    assert [one["name"] for one in (await api.get("organizations")).json["items"]] == ["By hand"]
    assert [one["name"] for one in (await api.get("token-plans")).json["items"]] == ["Pro", "Of others"]
    [key] = (await api.get("api-keys")).json["items"]
    assert key["revoked_at"] is not None
    assert (await plan(api, rest, prune=True))["changes"] == []
    nothing = await refused(api, {}, prune=True)
    assert nothing == {"prune": "needs objects: without any, everything would be deleted"}


async def test_prune_keeps_rows_with_money_or_recorded_use_and_states_the_reason(api: Api) -> None:
    await apply(api, world())
    tried = await plan(api, {"users": world()["users"][1:]}, prune=True, trial=True)
    stays = {f"{each['resource']} {each['name']}": each["stays"] for each in tried["changes"]}
    assert stays["organization-subscriptions Acme"] == "organization-subscriptions cannot be deleted"
    assert "cancel it first" in stays["organizations Acme"]
    assert stays["organizations Globex"] == ""
    assert stays["budgets Globex / SMS"] == ""
    assert not [name for name in stays if name.startswith(("prices", "tax-rates"))], "they are history"


async def test_configuration_apply_allows_a_role_only_the_changes_that_role_may_make(api: Api) -> None:
    await apply(api, ACME)
    operator, billing = [
        api.acting_as((await api.make("admin-tokens", name=role, role=role))["token"])
        for role in ("operator", "billing")
    ]
    limits = {"organizations": [{"name": "Acme", "limits": {"concurrency": 5}}]}
    capped = {"organizations": [{"name": "Acme", "spend_cap": "5"}]}
    other = {"organizations": [{"name": "Acme", "limits": {"concurrency": 6}}]}
    for name, holder, may, may_not in (
        ("limits", operator, limits, capped), ("money", billing, capped, other),
    ):  # fmt: skip
        # Of fields that others' files say nothing is known under another name.
        mine = {"name": name}
        assert (await plan(holder, may_not, **mine))["changes"], "whoever may read may compare"
        answer = await holder.post("configuration", {"objects": may_not, "trial": True, **mine})
        assert answer.status == 403
        assert "organizations.0" in answer.json["detail"]
        assert (await apply(holder, may, **mine))["applied"]
    reader = api.acting_as(READONLY)
    assert (await plan(reader, {"token-plans": [{"name": "New"}]}))["changes"]
    digest = (await plan(reader, {"token-plans": [{"name": "New"}]}))["digest"]
    asked = {"objects": {"token-plans": [{"name": "New"}]}, "digest": digest}
    assert (await reader.post("configuration", asked)).status == 403
    assert (await reader.post("configuration", {**asked, "digest": None, "trial": True})).status == 403


async def test_organization_token_applies_and_exports_only_rows_of_the_own_organization(api: Api) -> None:
    await apply(
        api, {"organizations": [{"name": "Acme"}, {"name": "Globex"}], "token-plans": [{"name": "Pro"}]}
    )
    await apply(api, {"tenants": [{"organization": "Globex", "name": "Web"}]})
    [acme] = (await api.get("organizations?name=Acme")).json["items"]
    token = await api.make("admin-tokens", name="theirs", role="operator", organization_id=acme["id"])
    theirs = api.acting_as(token["token"])
    own: Objects = {"tenants": [{"name": "Web"}]}
    assert (await apply(theirs, own))["applied"]
    planned = {"objects": {"tenants": [{"name": "Web", "plan": "Pro"}]}, "trial": True}
    said = await theirs.post("configuration", planned)
    assert said.status == 403, "what a tenant may use is staff's to say"
    message = "there is no organization named 'Globex'; no object here makes one"
    assert await refused(theirs, {"tenants": [{"organization": "Globex", "name": "New"}]}) == {
        "tenants.0.organization": message
    }
    shared = await theirs.post(
        "configuration", {"objects": {"token-plans": [{"name": "New"}]}, "trial": True}
    )
    assert shared.status == 403
    found = (await theirs.get("configuration")).json["objects"]
    assert [one["name"] for one in found["organizations"]] == ["Acme"]
    assert found["tenants"] == [{"name": "Web", "organization": "Acme"}]
    # What is noted of theirs is not ours, and the other way round.
    assert (await plan(api, {"token-plans": [{"name": "Pro"}]}, prune=True))["changes"] == [
        each
        for each in (await plan(api, {"token-plans": [{"name": "Pro"}]}, prune=True))["changes"]
        if each["name"] != "Acme / Web"
    ]
    assert told(await plan(theirs, {"tenants": [{"organization": "Acme", "name": "Other"}]}, prune=True)) == [
        ("create", "tenants", "Acme / Other"), ("delete", "tenants", "Acme / Web"),
    ]  # fmt: skip


async def test_apply_of_too_many_objects_is_422_an_overlong_body_413_and_an_unknown_plan_409(
    api: Api,
) -> None:
    many = [{"name": f"plan {number}"} for number in range(20_001)]
    assert "at most 20000 at once" in (await refused(api, {"token-plans": many}))["token-plans"]
    asked = {"objects": ACME, "digest": "0" * 64}
    assert (await api.post("configuration", asked)).status == 409
    assert (await api.post("configuration", {"objects": ACME, "digest": "shown"})).status == 422
    large = b'{"objects": {"token-plans": [{"name": "' + b"a" * (17 << 20) + b'"}]}}'
    assert (await api.call("POST", "configuration", data=large)).status == 413
    nobody = api.acting_as(None)
    assert (await nobody.call("POST", "configuration", data=b"{}" * (1 << 20))).status == 401


@pytest.fixture
async def ports(api: Api, keeper_database: str) -> AsyncIterator[AdminPorts]:
    engine = engines.create(keeper_database)
    yield ports_over(engine, api.counters).of(Actor("builtin:admin", ADMIN_ROLE))
    await engine.dispose()


async def bounded(ports: AdminPorts, rows_max: int, objects: Objects, **more: Any) -> Any:
    configurator = Configurator(ports, "a request", lambda: datetime.now(UTC), rows_max=rows_max)
    return (await configurator.do(ApplyRequest(objects, **more))).content


async def test_plan_of_names_that_match_too_many_rows_is_refused(api: Api, ports: AdminPorts) -> None:
    everybody = [{"name": name} for name in ("Acme", "Bell", "Cole", "Dell")]
    webs = [{"name": "Web", "organization": one["name"]} for one in everybody]
    await apply(api, {"organizations": everybody, "tenants": webs})
    for some in (webs[:3], [*webs[:2], {"name": "App", "organization": "Cole"}]):
        told = await bounded(ports, 3, {"tenants": some}, name="other")
        assert told["unchanged"] == sum(each["name"] == "Web" for each in some)
    key = {"name": "CI", "tenant": {"name": "Web", "organization": "Acme"}}
    with pytest.raises(Unprocessable) as refused:
        await bounded(ports, 3, {"api-keys": [key]}, name="other")
    assert refused.value.errors == (
        ("tenants", "more than 3 rows have these names: apply fewer objects at once"),
    )
    assert (await bounded(ports, 4, {"api-keys": [key]}, name="other"))["unchanged"] == 0


async def test_apply_is_refused_when_the_configuration_name_already_has_too_many_rows(
    api: Api, ports: AdminPorts
) -> None:
    plans: list[object] = [{"name": name} for name in ("One", "Two", "Three")]
    await apply(api, {"token-plans": plans})
    assert (await bounded(ports, 3, {"token-plans": plans}))["unchanged"] == 3
    with pytest.raises(Unprocessable) as refused:
        await bounded(ports, 2, {"token-plans": plans[:2]})
    [(field, message)] = refused.value.errors
    assert (field, "more than 2 rows" in message) == ("name", True)
    assert (await bounded(ports, 2, {"token-plans": plans[:2]}, name="other"))["unchanged"] == 2
