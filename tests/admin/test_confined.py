"""A token of one organization: all that is another's is not there, in whatever way it is asked for.

Every operation of the OpenAPI document is walked, and so is every page of the console. An operation that is
added is walked by itself; what it needs to be asked with has to be said here, else a test fails.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import product
from typing import Any
from urllib.parse import quote

import pyarrow.parquet
import pytest

from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.admin.resources.resource import ReportEndpoint, Resource
from gateway.core.accounts.administration import BILLING, OPERATOR, READONLY, ROLES, TEAM_ROLES, RowScope
from gateway.core.accounts.usage import GROUPS
from tests.admin import two_organizations
from tests.admin.conftest import Answer, Api
from tests.admin.console.conftest import Person
from tests.admin.test_roles import app_of
from tests.admin.two_organizations import UNKNOWN, World, state, traces
from tests.search import cases

# Bodies that are good, so that what is refused is refused for whose it is. Those left out need none.
BODIES: dict[str, dict[str, Any]] = {
    "organizations.change": {"limits": {"concurrency": 1}},
    "tenants.change": {"name": "mine now"},
    "tenants.recharge": {"amount": 5},
    "tenants.adjust": {"amount": 5, "direction": "IN", "reason": "mine"},
    "users.change": {"name": "mine now"},
    "api-keys.change": {"name": "mine now"},
    "admin-tokens.change": {"name": "mine now"},
    "tenant-quotas.change": {"plan_id": None},
    "organization-services.change": {"negotiated_credits": 0},
    "organization-subscriptions.extend": {"end_date": None},
    "organization-subscriptions.change": {"plan_id": 1},
    "organization-subscriptions.terms": {"from": "2999-01-01", "quantity": 2},
    "organization-subscriptions.cancel": {"when": "now"},
    "budgets.change": {"amount": 9},
    "budgets.override": {"amount": "1"},
    "budgets.raise": {"amount": 900, "until": "2099-01-01T00:00:00Z", "reason": "mine"},
    "invoices.payments": {"amount": "1", "reference": "mine"},
    "invoices.apply": {"invoice_id": 1, "amount": "1"},
    "invoices.refund": {"amount": "1", "reference": "mine"},
    "payments.reverse": {"reference": "mine"},
    "webhooks.change": {"enabled": False},
    "quarantine.release": {"reason": "mine"},
    "dead-letters.resolve": {"reason": "mine"},
}
# What makes a row of Alpha's own.
CREATES: dict[str, dict[str, Any]] = {
    "tenants": {"name": "t"},
    "users": {"external_id": "u"},
    "api-keys": {"name": "k"},
    "admin-tokens": {"name": "a", "role": "readonly"},
    "organization-services": {"negotiated_credits": 1},
    "credit-additions": {"credits_added": 1},
    "organization-subscriptions": {"plan_id": 1, "start_date": "2026-01-01"},
    "budgets": {"name": "b", "unit": "tokens", "amount": 5, "interval": "day"},
    "groups": {"name": "g", "kind": "user"},
    "raise-requests": {"amount": 9, "reason": "mine"},
    "invoices": {"period_start": "2026-04-01", "period_end": "2026-05-01"},
    "tax-rates": {"rate": "0.1", "effective_from": "2026-06-01"},
    "webhooks": {"url": "https://alpha.example/hook"},
    "amendments": {"request_id": two_organizations.REQUEST, "reason": "mine", "tokens": 1},
}
# Operations that the document does not have: limits of spend in the shapes of vendors.
SPEND, SPEND_OF_ALL = "/v1/organizations/spend_limits", "/v1/organization/spend_limit"
_OPENAI = {"threshold_amount": 1, "currency": "USD", "interval": "month"}
SPEND_LIMITS: list[tuple[str, str, Any]] = [
    *(
        ("POST", SPEND, {"scope": scope, "amount": "300", "period": period})
        for scope in ({"type": "organization"}, {"type": "user", "user_id": "zed"})
        for period in ("daily", "monthly")
    ),
    ("POST", SPEND_OF_ALL, _OPENAI), ("DELETE", SPEND_OF_ALL, None), ("DELETE", f"{SPEND}/spl_1", None),
]  # fmt: skip
# Tables that a refused request may write to: when its token was last used.
REFUSED_WRITES = {"admin_token"}
CONSOLE_APART = {"/sign-in", "/static/{mark}/{name}"}


@pytest.fixture
async def world(api: Api) -> World:
    return await two_organizations.make(api)


@pytest.fixture
async def few(api: Api) -> World:
    return await two_organizations.few(api)


async def test_organization_token_may_not_read_rows_or_reports_of_another_organization(world: World) -> None:
    assert two_organizations.owned() <= world.bravos.keys(), "each has a row of Bravo's to look for"
    for resource in RESOURCES.values():
        seen = await world.admin.get(f"{resource.name}?limit=1000")
        told = await world.alpha.get(f"{resource.name}?limit=1000")
        if resource.access.reach is RowScope.WHOLE:
            one = await world.alpha.get(f"{resource.name}/{world.shared[resource.name]}")
            assert (seen.status, told.status, one.status) == (200, 403, 403), resource.name
            continue
        if resource.access.reach is RowScope.OWNED:
            assert traces(seen.raw.decode()), f"{resource.name}: what is looked for is there"
        assert told.status == 200
        assert traces(told.raw.decode()) == [], resource.name
        await _look_for_rows(world, resource)
        await _look_by_filters(world, resource, seen.json["items"])
    for report in REPORTS.values():
        await _look_in_report(world, report)


async def _look_for_rows(world: World, resource: Resource) -> None:
    below = ["", *(f"/{part.name}" for part in resource.parts if part.out is not None)]
    below += [file.suffix for file in resource.documents]
    for suffix in below:
        if resource.access.reach is RowScope.OWNED:
            found = await world.alpha.get(f"{resource.name}/{world.bravos[resource.name]}{suffix}")
            unknown = await world.alpha.get(f"{resource.name}/{UNKNOWN}{suffix}")
            assert (found.status, told(found)) == (404, told(unknown)), f"{resource.name}{suffix}"
            own = world.alphas.get(resource.name)
            if own is not None:
                assert (await world.alpha.get(f"{resource.name}/{own}{suffix}")).status != 404, suffix
        else:
            assert (await world.alpha.get(f"{resource.name}/{world.shared[resource.name]}")).status == 200


async def _look_by_filters(world: World, resource: Resource, rows: list[dict[str, Any]]) -> None:
    bravos = [row for row in rows if traces(str(row))]
    for name, wanted in resource.filters.items():
        target = resource.target(name)
        values = {row[name] for row in bravos if isinstance(row.get(name), str | int)}
        if target in world.bravos:
            values.add(world.bravos[target])
        if name == "search":
            values.add("bravo")
        for value in values:
            if isinstance(value, bool) or (wanted.choices and value not in wanted.choices):
                continue
            asked = f"{resource.name}?{name}={quote(str(value))}"
            assert traces((await world.alpha.get(asked)).raw.decode()) == [], asked
    first = await world.admin.get(f"{resource.name}?limit=1&order=desc")
    if first.json["next_cursor"]:
        asked = f"{resource.name}?order=desc&cursor={first.json['next_cursor']}"
        assert traces((await world.alpha.get(asked)).raw.decode()) == [], asked


async def _look_in_report(world: World, report: ReportEndpoint) -> None:
    if report.access.reach is RowScope.WHOLE:
        assert (await world.alpha.get(report.name)).status == 403
        return
    if report.name == "activity":
        world.admin.counters.busy = [((world.bravos["tenants"], "requests"), 5), ((0, "unknown"), 4)]
        assert traces((await world.admin.get("activity")).raw.decode())
        answer = (await world.alpha.get("activity")).json
        assert (answer["items"], answer["requests"]) == ([], 0)
        return
    if report.name == "configuration":
        assert traces((await world.admin.get("configuration")).raw.decode())
        assert traces((await world.alpha.get("configuration")).raw.decode()) == []
        return
    if report.name.startswith("reports/"):
        for suffix in ("", *(file.suffix for file in report.documents)):
            asked = f"{report.name}{suffix}?currency=USD"
            theirs = await world.alpha.get(f"{asked}&organization_id={world.bravos['organizations']}")
            nobodys = await world.alpha.get(f"{asked}&organization_id={UNKNOWN}")
            assert traces(_text(await world.alpha.get(asked))) == [], asked
            assert (theirs.status, told(theirs)) == (404, told(nobodys)), asked
        return
    assert report.name == "usage", "a report that is added says here how it is looked into"
    for filters in ("", *(f"&{GROUPS[one]}={world.bravos[name]}" for one, name in _BY_ID.items())):
        for group in GROUPS:
            for suffix in ("", ".csv", ".parquet") if group == "tenant" else ("",):
                asked = f"usage{suffix}?group_by={group}{filters}"
                assert traces(_text(await world.alpha.get(asked))) == [], asked
        assert (await world.alpha.get(f"usage?{filters.lstrip('&')}")).json["items"] == []
        assert traces(_text(await world.alpha.get(f"usage/focus.csv?{filters.lstrip('&')}"))) == []
    for suffix in (".csv", ".parquet"):
        assert traces(_text(await world.admin.get(f"usage{suffix}?group_by=tenant"))), suffix


_BY_ID = {"organization": "organizations", "tenant": "tenants", "user": "users", "api_key": "api-keys"}


def _text(answer: Answer) -> str:
    assert answer.status == 200, answer.raw
    if answer.headers["Content-Type"].endswith("parquet"):
        return str(pyarrow.parquet.read_table(io.BytesIO(answer.raw)).to_pylist())
    return answer.raw.decode()


def told(answer: Answer) -> tuple[object, ...]:
    """What a refusal says, without the numbers that were asked with."""
    detail = re.sub(r"\d+", "N", str((answer.json or {}).get("detail")))
    errors = re.sub(r"\d+", "N", str((answer.json or {}).get("errors")))
    return answer.status, detail, errors


async def test_organization_token_may_not_change_rows_of_another_organization(world: World) -> None:
    before = state(world.admin)
    for name, operation, method, path, spec in await _writes(world.admin):
        access = (RESOURCES.get(name) or REPORTS[name]).access
        reach, is_of_all = access.reach, operation.partition(".")[2] in access.of_all
        if "{id}" in path:
            row = world.bravos.get(name) or world.shared[name]
            body = BODIES.get(operation, {}) if "requestBody" in spec else None
            answer = await world.alpha.call(method, path.replace("{id}", str(row)), body)
            wanted = 404 if reach is RowScope.OWNED and not is_of_all else 403
            assert answer.status == wanted, (operation, answer.raw)
        elif reach is not RowScope.OWNED or name == "organizations" or is_of_all:
            assert (await world.alpha.call(method, path, {})).status == 403, operation
        elif name not in {"events", "configuration"}:
            await _refer_to_theirs(world, RESOURCES[name])
    assert state(world.admin) == before


async def _refer_to_theirs(world: World, resource: Resource) -> None:
    """Make a row that names what is Bravo's: it is not there."""
    assert resource.create is not None
    good = {**CREATES[resource.name]}
    for name in resource.create.model_fields:
        target = resource.target(name)
        if target == "organizations" and resource.create.model_fields[name].is_required():
            good[name] = world.alphas["organizations"]
        elif target in world.alphas and resource.create.model_fields[name].is_required():
            good[name] = world.alphas[target]
        elif target in world.shared and resource.create.model_fields[name].is_required():
            good[name] = world.shared[target]
    for name in resource.create.model_fields:
        target = resource.target(name)
        if target not in two_organizations.owned():
            continue
        foreign = await world.alpha.post(resource.name, {**good, name: world.bravos[target]})
        unknown = await world.alpha.post(resource.name, {**good, name: UNKNOWN})
        assert foreign.status == 422, (resource.name, name, foreign.raw)
        assert told(foreign) == told(unknown)
        assert [error["field"] for error in foreign.json["errors"]] == [name]
        if target == "organizations" and not resource.create.model_fields[name].is_required():
            everybodys = await world.alpha.post(resource.name, {**good, name: None})
            assert everybodys.status == 422, "nobody's, or everybody's, is more than its own"
    if resource.name == "amendments":
        assert (await world.alpha.post(resource.name, good)).status == 422


async def test_403_leaves_no_row_control_write_or_event(world: World) -> None:
    """Of every operation that writes, by every role: of staff, of the organization and of its tenant."""
    asked: list[tuple[str, str, Any]] = [*SPEND_LIMITS]
    for name, operation, method, path, spec in await _writes(world.admin):
        row = world.alphas.get(name) or world.shared.get(name) or UNKNOWN
        body = BODIES.get(operation, CREATES.get(name, {})) if "requestBody" in spec else None
        asked.append((method, path.replace("{id}", str(row)), body))
    callers = [await _caller(world, role, owner) for role, owner in _callers(world)]
    refused = 0
    for caller, (method, path, body) in [
        *product(callers, SPEND_LIMITS), *cases([*product(callers, asked[len(SPEND_LIMITS) :])])
    ]:  # fmt: skip
        before = _next_transaction(world)
        if (await caller.call(method, path, body)).status == 403:
            refused += 1
            assert _written_since(world, before) <= REFUSED_WRITES, (caller.token, method, path)
    assert refused > len(callers) * len(SPEND_LIMITS) // 2


def _callers(world: World) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield roles with the owner of their token; the narrowest first, as rows of others would be in their way."""
    organization = {"organization_id": world.alphas["organizations"]}
    yield from ((role, {"tenant_id": world.alphas["tenants"]}) for role in TEAM_ROLES)
    yield from ((role, organization) for role in ROLES[::-1])
    yield from ((role, {}) for role in (BILLING, OPERATOR, READONLY))


async def _caller(world: World, role: str, owner: dict[str, int]) -> Api:
    made = await world.admin.make("admin-tokens", name=f"{role} of {owner}", role=role, **owner)
    return world.admin.acting_as(made["token"])


def _next_transaction(world: World) -> int:
    """The id of the next transaction that writes."""
    [(found,)] = world.admin.rows("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return int(found)


def _written_since(world: World, first: int) -> set[str]:
    """Tables with rows that transactions from `first` on wrote."""
    if _next_transaction(world) == first:
        return set()
    tables = world.admin.rows(
        "select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    written = (
        f"select '{name}' from {name} where xmin::text::bigint >= {first % 2**32}" for (name,) in tables
    )
    return {name for (name,) in world.admin.rows(" union all ".join(written))}


async def _writes(api: Api) -> list[tuple[str, str, str, str, Any]]:
    document = (await api.get("openapi.json")).json

    def found() -> Iterator[tuple[str, str, str, str, Any]]:
        for path, methods in document["paths"].items():
            for method, spec in methods.items():
                if method not in {"parameters", "get"}:
                    yield spec["tags"][0], spec["operationId"], method.upper(), path, spec

    return list(found())


async def test_organization_token_creates_rows_that_belong_to_the_organization_of_the_token(
    few: World,
) -> None:
    own = few.alphas["organizations"]
    for name in ("tenants", "users", "webhooks", "admin-tokens", "budgets", "credit-additions", "tax-rates"):
        made = await few.alpha.make(name, **CREATES[name])
        assert made["organization_id"] == own, name
        assert (await few.alpha.get(f"{name}/{made['id']}")).status == 200
    hook = await few.alpha.make("webhooks", **CREATES["webhooks"])
    refused = await few.alpha.patch(f"webhooks/{hook['id']}", {"organization_id": None})
    assert refused.status == 422


async def test_organization_token_may_send_usage_events_only_for_own_tenants(world: World) -> None:
    event = {
        "specversion": "1.0", "id": "bravo event", "source": "bravo source", "type": "use",
        "data": {"service": "sms", "units": 1},
    }  # fmt: skip
    theirs = ("bravo", "bravo tenant", f"tenant:{world.bravos['tenants']}")
    theirs += (f"organization:{world.bravos['organizations']}", str(world.bravos["tenants"]))
    for subject in theirs:
        refused = await world.alpha.post("events", {**event, "subject": subject})
        nobody = await world.alpha.post("events", {**event, "subject": f"no{subject}"})
        assert (refused.status, nobody.status) == (422, 422), subject
        assert refused.json["errors"] == nobody.json["errors"]
    own = {**event, "subject": "alpha tenant"}
    assert (await world.alpha.post("events", own)).json["accepted"] == 1, "Bravo's names are not its own"
    assert (await world.alpha.post("events", own)).json["duplicates"] == 1
    assert (await world.admin.post("events", own)).json["duplicates"] == 1, "it is Alpha's already"
    assert (await world.admin.post("events", {**event, "subject": "bravo tenant"})).json["duplicates"] == 1


async def test_console_shows_no_row_of_another_organization_to_a_person_with_an_organization_token(
    world: World,
) -> None:
    person, everybody = Person(world.alpha.client), Person(world.alpha.client)
    await person.sign_in(str(world.alpha.token))
    await everybody.sign_in(str(world.admin.token))
    shown = 0
    for route in app_of(world.alpha.client).router.routes():
        path = route.resource.canonical
        if route.method != "GET" or path.startswith(("/admin", "/v1/")) or path in CONSOLE_APART:
            continue
        name = path.split("/")[1].removesuffix(".csv")
        is_row = "{id" in path
        if is_row:
            path = re.sub(r"\{id[^}]*\}", str(world.bravos.get(name) or world.shared[name]), path)
        path = path.replace("{resource}", "tenants")
        asked = {"/search": "?q=bravo%20tenant", "/find/tenants": "?name=bravo"}.get(path, "")
        page = await person.open(path + asked)
        # What was asked for stands in the answer again.
        found = page.text.replace(path, "")
        assert traces(found.replace("bravo tenant", "") if path == "/search" else found) == [], path
        if is_row and name in two_organizations.owned():
            nobodys = await person.open(path.replace(str(world.bravos[name]), str(UNKNOWN)))
            assert page.status == nobodys.status, path
            assert page.status == 404 or page.text == nobodys.text, path
            shown += bool(traces((await everybody.open(path)).text))
    assert shown > 20, "to who may see everything they do show it"


async def test_audit_log_shown_to_an_organization_names_own_tokens_but_no_staff_member(few: World) -> None:
    await few.admin.patch(f"tenants/{few.alphas['tenants']}", {"name": "renamed by staff"})
    await few.alpha.patch(f"tenants/{few.alphas['tenants']}", {"name": "renamed by itself"})
    told_all = (await few.admin.get("audit-log?resource=tenants&action=change")).json["items"]
    assert [each["token"] for each in told_all] == [None, "alpha's own"]
    own = (await few.alpha.get("audit-log?resource=tenants&action=change")).json["items"]
    assert [(each["actor"], each["token"], each["role"]) for each in own] == [
        ("staff", None, "admin"),
        (f"token:{few.token['id']}", "alpha's own", "admin"),
    ]


async def test_organization_token_does_not_see_the_author_and_reason_of_a_price_amendment(few: World) -> None:
    since = {"currency": "USD", "effective_from": "2026-01-01T00:00:00Z"}
    price = await few.admin.make("prices", model="wrong", input="100", **since)
    amended = await few.admin.post(f"prices/{price['id']}/amend", {"reason": "typed wrong", "input": "1"})
    right = f"prices/{amended.json['id']}"
    few.admin.rows(
        "insert into rerating (price_id, request_id, organization_id, tenant_id, service_id, cost_before,"
        " cost_after, charged, currency, reason, actor) values (%s, gen_random_uuid(), %s, %s, 1, 1, 1, 0,"
        " 'USD', 'a price', 'token:4')",
        amended.json["id"], few.alphas["organizations"], few.alphas["tenants"],
    )  # fmt: skip
    for caller, reason, actor in ((few.admin, "typed wrong", "token:4"), (few.alpha, None, "staff")):
        assert (await caller.get(right)).json["amend_reason"] == reason
        rows = (await caller.get(f"reratings?price_id={amended.json['id']}")).json["items"]
        assert [row["actor"] for row in rows] == [actor]


async def test_admin_token_cannot_create_a_token_with_more_rights(few: World) -> None:
    made = await few.alpha.make("admin-tokens", name="reader", role="readonly")
    reader = few.alpha.acting_as(made["token"])
    assert (await reader.post("admin-tokens", {"name": "x", "role": "admin"})).status == 403
    widened = await few.alpha.patch(f"admin-tokens/{made['id']}", {"organization_id": None})
    assert widened.json["errors"] == [{"field": "organization_id", "message": "cannot be set here"}]
    both = {"name": "x", "role": "admin", "organization_id": few.alphas["organizations"]}
    refused = await few.admin.post("admin-tokens", {**both, "user_id": few.bravos["users"]})
    assert refused.json["errors"] == [{"field": "user_id", "message": "is a user of another organization"}]
    for operator in ("operator", "billing"):
        other = await few.alpha.make("admin-tokens", name=operator, role=operator)
        assert (await few.alpha.acting_as(other["token"]).get("admin-tokens")).status == 403


async def test_organization_token_is_refused_after_expiry_revocation_or_organization_deletion(
    few: World,
) -> None:
    one = f"admin-tokens/{few.token['id']}"
    assert (await few.admin.get(one)).json["last_used_at"] is None
    assert (await few.alpha.get("tenants")).status == 200
    assert (await few.admin.get(one)).json["last_used_at"] is not None
    await few.admin.patch(one, {"expires_at": "2026-01-01T00:00:00Z"})
    assert (await few.alpha.get("tenants")).status == 401
    await few.admin.patch(one, {"expires_at": None})
    few.admin.rows("update organization set deleted_at = now() where name = 'alpha'")
    assert (await few.alpha.get("tenants")).status == 401
    few.admin.rows("update organization set deleted_at = null where name = 'alpha'")
    assert (await few.alpha.post(f"{one}/revoke")).status == 200, "a token may revoke itself"
    assert (await few.alpha.get("tenants")).status == 401


async def test_organization_with_unrevoked_admin_tokens_cannot_be_deleted(few: World) -> None:
    made = await few.admin.make("organizations", name="short lived")
    token = await few.admin.make("admin-tokens", name="t", role="readonly", organization_id=made["id"])
    refused = await few.admin.delete(f"organizations/{made['id']}")
    assert (refused.status, "Admin tokens" in refused.json["detail"]) == (409, True)
    await few.admin.post(f"admin-tokens/{token['id']}/revoke")
    assert (await few.admin.delete(f"organizations/{made['id']}")).status == 204


async def test_same_idempotency_key_used_with_two_tokens_creates_two_rows(few: World) -> None:
    body = {"name": "once"}
    first = await few.admin.post("tenants", body, key="bravo's key")
    own = await few.alpha.post("tenants", body, key="bravo's key")
    assert own.status == 201
    assert own.json["id"] != first.json["id"]
    assert "Idempotent-Replayed" not in own.headers
