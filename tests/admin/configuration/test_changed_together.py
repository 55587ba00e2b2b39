"""What is changed or deleted with few statements comes out as if each had been changed or deleted alone."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.admin.resources.configuration import DEFAULT_NAME
from persistence import together
from persistence.subjects import SUBJECTS, TOGETHER
from tests.admin.configuration.test_many import (
    KINDS,
    ONCE_MAX,
    STATEMENTS_A_KIND_MAX,
    asked_for,
    audited,
    counted,
    left_of,
    objects_of,
    plain,
)
from tests.admin.configuration.world import Objects, apply, refused
from tests.admin.conftest import Api

__all__ = ["counted"]

SOME = 4
CHANGED = [kind for kind in KINDS if kind != "prices"]


def changed(objects: Objects) -> Objects:
    """The same with something of each row another, of all kinds whose rows can change."""
    new = copy.deepcopy(objects)
    [mark] = {each["name"] for each in new["token-plans"]}
    for n, one in enumerate(new["organizations"]):
        one["limits"] = {"concurrency": 5 + n}
        if n % 2:
            one |= {"credit_limit": 3, "due_days": 9}
    for one in new["users"]:
        one |= {"name": "Ada", "limits": {"tokens_per_minute": 7}}
    for n, one in enumerate(new["tenants"]):
        one["user_limits"] = {"concurrency": 2}
        one["plan"] = mark if n % 2 else None
    for n, one in enumerate(new["api-keys"]):
        one["models"] = ["n*"] if n % 2 else None
    for one in new["organization-services"]:
        one["negotiated_credits"] = 2
    for n, one in enumerate(new["budgets"]):
        one["amount"] = 10 + n
    return new


async def test_as_many_statements_change_a_hundred_rows_as_change_two_hundred(
    counted: tuple[Api, list[str]],
) -> None:
    api, statements = counted
    asked = []
    for mark, count in (("fewer", 15), ("more", 30)):
        objects = objects_of(mark, count)
        await apply(api, objects)
        new = changed(objects)
        for one, before in zip(new["tenants"], objects["tenants"], strict=True):
            one["plan"] = before.get("plan")  # who gets another plan is looked at alone
        asked.append(await asked_for(api, statements, new, DEFAULT_NAME))
    fewer, more = asked
    assert fewer <= more <= fewer + len(CHANGED), Counter(statements)
    assert more <= ONCE_MAX + (STATEMENTS_A_KIND_MAX + 3) * len(CHANGED), Counter(statements)


async def test_what_is_changed_and_pruned_together_is_what_is_one_by_one(api: Api) -> None:
    api.counters.away = True
    at_once, alone = objects_of("together", SOME), objects_of("alone", SOME)
    await apply(api, at_once, name="together")
    await apply(api, alone, name="alone")
    new, own = changed(at_once), changed(alone)
    [(first,)] = api.rows("select max(id) from audit_log")
    done = await apply(api, new, name="together")
    assert Counter(each["resource"] for each in done["changes"]) == dict.fromkeys(CHANGED, SOME)
    [(middle,)] = api.rows("select max(id) from audit_log")
    for kind in CHANGED:
        for at, one in enumerate(own[kind]):
            alone[kind][at] = one
            done = await apply(api, {"token-plans": alone["token-plans"], kind: [one]}, name="alone")
            assert [each["change"] for each in done["changes"]] == ["change"]
    [(last,)] = api.rows("select max(id) from audit_log")
    assert audited(api, "together", first + 1, middle) == audited(api, "alone", middle + 1, last)
    assert middle - first == last - middle == SOME * len(CHANGED), "one entry a change"
    (rows, writes), (own_rows, own_writes) = await left_of(api, "together"), await left_of(api, "alone")
    assert rows == own_rows
    # An organization is told of its own limits, its services and its budgets: alone of each, else once.
    told_once = Counter({str(["define", {}, "organization", f"MARK-{n}"]): 2 for n in range(SOME)})
    assert own_writes == writes + told_once

    gone = await apply(api, {"token-plans": at_once["token-plans"]}, prune=True, name="together")
    assert [each for each in gone["changes"] if each["stays"]] == []
    [(pruned,)] = api.rows("select max(id) from audit_log")
    left: Objects = copy.deepcopy(alone)
    for kind in ("budgets", "organization-services", "api-keys", "tenants", "users", "organizations"):
        while left[kind]:
            left[kind].pop()
            done = await apply(
                api, {name: some for name, some in left.items() if some}, prune=True, name="alone"
            )
            assert [(each["change"], each["stays"]) for each in done["changes"]] == [("delete", "")]
    ended = [each for each in audited(api, "together", last + 1, pruned) if each[3] in CHANGED]
    [(end,)] = api.rows("select max(id) from audit_log")
    assert len(ended) == SOME * len(CHANGED)
    assert ended_alike(ended) == ended_alike(audited(api, "alone", pruned + 1, end))


def ended_alike(entries: list[Any]) -> list[str]:
    """Entries in an order that does not say which came first."""
    return sorted(str(plain(each, "MARK")) for each in entries)


def catalogue_of(mark: str, count: int, *, again: bool = False) -> Objects:
    """So much of what organizations are offered and told by; `again` with something of each another."""
    names = [f"{mark}-{n}" for n in range(count)]
    return {
        "token-plans": [
            {"name": name, "total_amount": 5 + again, "weights": {"cache_read": "0.5"} if n == 3 else {}}
            for n, name in enumerate(names)
        ],
        "services": [
            {
                "name": name, "key": f"s-{name}", "credits": 1 + again, "service_type": "Pay-As-You-Go",
                "business_model": "Consumption", "paths": [f"/{name}/*"], "upstream": "u",
            }
            for name in names
        ],
        "subscription-plans": [
            {
                "name": name, "monthly_cost": "20", "annual_cost": "200", "token_plan": name,
                "feature_access": [f"s-{name}"] if again else [],
            }
            for name in names
        ],
        "webhooks": [
            {"url": f"https://{name}.example.com/", "events": ["budget.threshold"], "enabled": not again}
            for name in names
        ],
    }  # fmt: skip


async def test_what_is_offered_is_made_changed_and_pruned_together_as_one_by_one(api: Api) -> None:
    api.counters.away = True
    edge, found = 0, []
    for mark, alone in (("together", False), ("alone", True)):
        told: list[Any] = []
        for step in (made, changed_then, pruned):
            for objects, prune in step(mark, alone=alone):
                await apply(api, objects, name=mark, prune=prune)
            [(last,)] = api.rows("select max(id) from audit_log")
            entries = [each for each in audited(api, mark, edge + 1, last) if OTHER not in str(each)]
            assert len(entries) == 4 * SOME, "one entry a change"
            told += [ended_alike(entries), stored(api, mark)]
            edge = last
        found.append(told)
    assert found[0] == found[1]


OTHER = "Another"
OFFERED = ("webhooks", "subscription-plans", "services", "token-plans")
Steps = Iterator[tuple[Objects, bool]]


def made(mark: str, *, alone: bool, again: bool = False) -> Steps:
    """Everything at once, or each by itself."""
    objects = catalogue_of(mark, SOME, again=again)
    if not alone:
        yield objects, False
    for kind in reversed(OFFERED) if alone else ():
        yield from (({kind: [one]}, False) for one in objects[kind])


def changed_then(mark: str, *, alone: bool) -> Steps:
    """The same with something of each another."""
    return made(mark, alone=alone, again=True)


def pruned(mark: str, *, alone: bool) -> Steps:
    """All of it gone, but for one that is none of it."""
    left = catalogue_of(mark, SOME, again=True)
    left["token-plans"].append({"name": OTHER})
    for kind in OFFERED:
        while len(left[kind]) > (kind == "token-plans"):
            del left[kind][0]
            if alone:
                yield copy.deepcopy(left), True
    if not alone:
        yield left, True


def stored(api: Api, mark: str) -> list[list[str]]:
    """The rows there are of it, deleted ones too."""
    return [
        sorted(
            re.sub(r"~\d+", "~", str(plain(row, mark)))
            for (row,) in api.rows(f"select to_jsonb(r) from {table} as r where name like %s", f"{mark}-%")
        )
        for table in ("token_plan", "service", "subscription_plan")
    ]


async def test_the_ones_that_must_stay_are_found_among_those_that_go(api: Api) -> None:
    names = [f"o{n}" for n in range(40)]
    objects: Objects = {
        "token-plans": [{"name": "Pro"}],
        "organizations": [{"name": name} for name in names],
        "tenants": [{"organization": name, "name": "Web"} for name in names],
    }
    await apply(api, objects)
    owners = {one["name"]: one["id"] for one in (await api.get("organizations?limit=100")).json["items"]}
    webs = {one["organization_id"]: one["id"] for one in (await api.get("tenants?limit=100")).json["items"]}
    # What people made by hand is of theirs.
    await api.make("tenants", organization_id=owners["o3"], name="By hand")
    await api.make("users", organization_id=owners["o17"], external_id="by-hand")
    await api.make("admin-tokens", organization_id=owners["o18"], name="by hand", role="operator")
    day = {"name": "A day", "unit": "tokens", "amount": 9, "interval": "day"}
    await api.make("budgets", organization_id=owners["o30"], tenant_id=webs[owners["o30"]], **day)
    done = await apply(api, {"token-plans": objects["token-plans"]}, prune=True)
    assert {each["name"]: each["stays"] for each in done["changes"] if each["stays"]} == {
        "o3": "The organization still has tenants; delete them first.",
        "o17": "The organization still has users; delete them first.",
        "o18": "Admin tokens are still of this organization; revoke them first.",
        "o30 / Web": "A budget is of this tenant; delete it first.",
        "o30": "The organization still has tenants; delete them first.",
    }
    there = {one["name"] for one in (await api.get("organizations?limit=100")).json["items"]}
    assert there & {*names} == {"o3", "o17", "o18", "o30"}
    [[deleted]] = api.rows(
        "select count(*) from audit_log where action = 'delete' and resource = 'organizations'"
    )
    assert deleted == len(names) - 4


async def test_one_change_of_many_that_is_wrong_is_named_and_none_is_done(api: Api) -> None:
    names = [f"o{n}" for n in range(20)]
    objects: Objects = {
        "organizations": [{"name": name, "credit_unit_cost": "1000000"} for name in names],
    }
    await apply(api, objects)
    for one in objects["organizations"]:
        one["credit_limit"] = 5
    objects["organizations"][13]["credit_limit"] = 10**12
    wrong = await refused(api, objects, trial=True)
    assert list(wrong) == ["organizations.13.credit_limit"]
    limits = {one["credit_limit"] for one in (await api.get("organizations?limit=100")).json["items"]}
    assert limits == {0}


async def test_a_token_of_one_organization_changes_and_prunes_its_own_together(api: Api) -> None:
    owner = await api.make("organizations", name="Mine")
    await api.make("organizations", name="Theirs")
    token = await api.make("admin-tokens", name="t", role="operator", organization_id=owner["id"])
    mine = api.acting_as(token["token"])
    tenants: list[dict[str, Any]] = [{"name": f"t{n}"} for n in range(SOME)]
    await apply(mine, {"tenants": tenants})
    for one in tenants:
        one["limits"] = {"concurrency": 2}
    done = await apply(mine, {"tenants": tenants})
    assert [each["change"] for each in done["changes"]] == ["change"] * SOME
    done = await apply(mine, {"tenants": tenants[:2]}, prune=True)
    assert [each["change"] for each in done["changes"]] == ["delete"] * (SOME - 2)
    limits = [one["limits"] for one in (await mine.get("tenants")).json["items"]]
    assert limits == [{"concurrency": 2}] * 2


@pytest.mark.parametrize("kind", sorted({kind for kind, verb in TOGETHER if verb == "delete"}))
def test_what_refers_to_one_of_many_is_looked_for_of_that_one(kind: str) -> None:
    for references in SUBJECTS[kind].referenced.values():
        asked = str(together.referred([1, 2], references))
        assert asked.count("unnest") == 1, "a second one would find what refers to any of them"
        assert "asked.this" in asked.partition("EXISTS")[2]
