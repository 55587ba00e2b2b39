"""Budgets over the Admin API: what may be said, what is answered of them now, raises and resets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import OTHERS, Budget, account_of, owner_of
from gateway.core.accounts.intervals import window_bounds
from gateway.core.billing.stand_ins import NO_STAND_INS, read_stand_ins
from gateway.core.times import HOUR_MS
from persistence.address import plain_url
from persistence.examining import unpriced_steps
from tests.admin.conftest import Api
from tests.connections import connected

DAY = timedelta(days=1)
THRESHOLDS = [0.5, 0.8, 1]
LATER = "2999-01-31T00:00:00Z"


@dataclass
class Desk:
    """An organization of its own, with a tenant and a key."""

    api: Api
    organization: int
    tenant: int
    key: int

    async def make(self, **over: Any) -> dict[str, Any]:
        answer = await self.api.post("budgets", {**self.usual, **over})
        assert answer.status == 201, answer.json
        found: dict[str, Any] = answer.json
        return found

    @property
    def usual(self) -> dict[str, Any]:
        return {
            "organization_id": self.organization, "name": uuid4().hex, "unit": "money", "amount": "12.50",
            "interval": "month",
        }  # fmt: skip

    async def price(self, **of: object) -> None:
        moment = {"currency": "USD", "effective_from": "2026-01-01T00:00:00Z"}
        await self.api.make("prices", **{**moment, "input": "1.00", **of})

    async def declare(self, *names: str) -> None:
        answer = await self.api.patch(f"organizations/{self.organization}", {"tags": list(names)})
        assert answer.status == 200, answer.json

    async def refused(self, **over: Any) -> dict[str, str]:
        """The fields a budget is refused for."""
        return await self.refusals("POST", "budgets", {**self.usual, **over})

    async def refusals(self, method: str, path: str, body: Any) -> dict[str, str]:
        answer = await self.api.call(method, path, body)
        assert answer.status == 422, answer.json
        return {each["field"]: each["message"] for each in answer.json["errors"]}

    async def shown(self, budget: dict[str, Any]) -> dict[str, Any]:
        answer = await self.api.get(f"budgets/{budget['id']}")
        assert answer.status == 200, answer.json
        found: dict[str, Any] = answer.json
        return found

    def account(self, value: str = "", **selector: Any) -> str:
        return account_of(self.organization, Budget(1, "", "money", 1, "month", **selector), value)

    def hold(
        self, account: str, budget: dict[str, Any], used: int, held: int, start_ms: int | None = None
    ) -> None:
        """Have the counters hold a window of a budget that began now, or when it is said."""
        began = now_ms() if start_ms is None else start_ms
        windows = self.api.counters.windows.setdefault(account, {})
        windows[budget["id"]] = LiveWindow(budget["id"], used, held, began)

    def store(
        self, budget: dict[str, Any], used: int, value: str = "", who: str = "", start_ms: int | None = None
    ) -> None:
        """Have PostgreSQL know of uses in the window that runs, or one that is over."""
        if start_ms is None:
            calendar = budget["interval"], budget["time_zone"], budget["anchor_day"]
            start_ms = window_bounds(*calendar, now_ms())[0]
        with connected(self.api.url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO budget_use (budget_id, start, value, name, used)"
                " VALUES (%s, to_timestamp(%s / 1000.0), %s, %s, %s)",
                (budget["id"], start_ms, value, who, used),
            )


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def said(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


@pytest.fixture
async def desk(api: Api) -> Desk:
    tenant = (await api.post("tenants", {"name": "acme"})).json
    key = (await api.post("api-keys", {"tenant_id": tenant["id"], "name": "k"})).json
    return Desk(api, tenant["organization_id"], tenant["id"], key["id"])


async def test_created_budget_is_returned_with_every_field_that_was_sent(desk: Desk) -> None:
    more = {
        "tenant_id": desk.tenant, "user": "ada", "api_key_id": desk.key, "project_id": 0, "model": "gpt-5*",
        "service_id": 1, "each": "session", "time_zone": "Europe/Berlin", "anchor_day": 31, "mode": "audit",
        "on_exhausted": "cut", "thresholds": [0.25, 1], "tool": "search", "server": "github",
        "window": "calendar", "length": None, "carry": {"max": "5.00", "debt": True},
        "steps": [{"at": 0.8, "models": {"gpt-5": "gpt-5-mini"}, "session": "switch"}],
    }  # fmt: skip
    await desk.price(model="gpt-5-mini")
    asked = {**desk.usual, **more}
    made = await desk.make(**asked)
    assert {name: made[name] for name in asked} == asked
    assert made["currency"] == "USD"
    assert (made["used"], made["held"], made["remaining"]) == (None, None, None)
    assert await desk.shown(made) == made


async def test_budget_created_without_optional_fields_has_default_values(desk: Desk) -> None:
    made = await desk.make()
    assert (made["time_zone"], made["anchor_day"], made["mode"], made["on_exhausted"]) == (
        "UTC",
        1,
        "enforce",
        "finish",
    )
    assert (made["thresholds"], made["steps"]) == (THRESHOLDS, [])
    assert (made["window"], made["length"], made["carry"]) == ("calendar", None, None)
    selector = (
        "tenant_id",
        "user",
        "api_key_id",
        "project_id",
        "model",
        "service_id",
        "each",
        "tool",
        "server",
    )
    assert {made[name] for name in (*selector, "raised_to", "raised_until", "raise_reason")} == {None}
    assert (made["used"], made["held"], made["remaining"]) == ("0.00", "0.00", "12.50")


async def test_fields_that_define_how_budget_use_is_counted_cannot_be_changed(desk: Desk) -> None:
    made = await desk.make()
    for name in (
        "tenant_id",
        "user",
        "each",
        "unit",
        "interval",
        "window",
        "length",
        "group_id",
        "time_zone",
        "anchor_day",
        "organization_id",
    ):
        found = await desk.refusals("PATCH", f"budgets/{made['id']}", {name: made[name]})
        assert "make another budget" in found[name]
    assert await desk.refusals("PATCH", f"budgets/{made['id']}", {"used": "0"}) == {
        "used": "cannot be set here"
    }


async def test_budget_name_amount_mode_exhaustion_behavior_and_thresholds_may_be_changed(desk: Desk) -> None:
    made = await desk.make()
    changes = {"name": "other", "amount": "20.00", "mode": "audit", "on_exhausted": "cut", "thresholds": []}
    answer = await desk.api.patch(f"budgets/{made['id']}", changes)
    assert answer.status == 200
    assert answer.json == {**made, **changes, "remaining": "20.00"}
    assert set(await desk.refusals("PATCH", f"budgets/{made['id']}", {"amount": 20})) == {"amount"}


@pytest.mark.parametrize(("window", "length"), [("rolling", "5h"), ("first_use", "366d"), ("rolling", "5m")])
async def test_window_with_a_length_has_no_interval(desk: Desk, window: str, length: str) -> None:
    made = await desk.make(window=window, length=length, interval=None)
    assert (made["window"], made["length"], made["interval"]) == (window, length, None)
    assert await desk.shown(made) == made
    listed = (await desk.api.get(f"budgets?organization_id={desk.organization}&window={window}")).json[
        "items"
    ]
    assert listed == [made]


@pytest.mark.parametrize(
    ("over", "fields"),
    [
        ({"window": "sliding"}, {"window"}),
        ({"interval": None}, {"interval"}),
        ({"length": "5h"}, {"length"}),
        ({"window": "rolling", "length": "5h"}, {"interval"}),
        ({"window": "rolling", "interval": None}, {"length"}),
        *(
            ({"window": "first_use", "interval": None, "length": length}, {"length"})
            for length in ("4m", "367d", "0h", "05h", "5", "5 h", "5H", "1w", "300s", 300, "")
        ),
        ({"window": "rolling", "interval": None, "length": "7d", "anchor_day": 2}, {"anchor_day"}),
        ({"carry": {}}, {"carry.max"}),
        ({"carry": {"max": 5}}, {"carry.max"}),
        ({"carry": {"max": "-5"}}, {"carry.max"}),
        ({"carry": {"max": "5", "more": 1}}, {"carry.more"}),
        ({"carry": {"max": "5", "debt": "yes"}}, {"carry.debt"}),
        ({"carry": {"max": "5"}, "unit": "tokens", "amount": 10}, {"carry.max"}),
        ({"carry": {"max": "5"}, "interval": "total"}, {"carry"}),
        ({"carry": {"max": "5"}, "interval": None, "window": "rolling", "length": "7d"}, {"carry"}),
        ({"carry": {"max": "5"}, "interval": None, "window": "first_use", "length": "7d"}, {"carry"}),
    ],
)  # fmt: skip
async def test_budget_of_a_wrong_window_or_carry_is_422(
    desk: Desk, over: dict[str, Any], fields: set[str]
) -> None:
    assert set(await desk.refused(**over)) == fields


STEP = {"at": 0.8, "models": {"gpt-5*": "gpt-5-mini"}, "session": "keep"}


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ([STEP | {"at": 1.01}], "steps.0.at"),
        ([STEP | {"at": -0.1}], "steps.0.at"),
        ([STEP | {"at": "0.8"}], "steps.0.at"),
        ([{"models": STEP["models"]}], "steps.0.at"),
        ([{"at": 1}], "steps.0.models"),
        ([STEP | {"models": {}}], "steps.0.models"),
        ([STEP | {"models": {f"m{number}": "a" for number in range(101)}}], "steps.0.models"),
        ([STEP | {"models": {"GPT-5": "a", "gpt-5": "b"}}], "steps.0.models"),
        ([STEP | {"models": {"gpt*5": "a"}}], "steps.0.models"),
        ([STEP | {"models": {"**": "a"}}], "steps.0.models"),
        ([STEP | {"models": {"gpt-5": "gpt-4*"}}], "steps.0.models"),
        ([STEP | {"models": {"gpt-5": "GPT-5"}}], "steps.0.models"),
        ([STEP | {"session": "stay"}], "steps.0.session"),
        ([STEP, STEP | {"models": {"GPT-5*": "b"}}], "steps"),
        ([STEP | {"at": number / 100} for number in range(21)], "steps"),
    ],
)
async def test_wrong_step_is_422_with_the_field_named(
    desk: Desk, steps: list[dict[str, Any]], field: str
) -> None:
    [name] = await desk.refused(steps=steps)
    assert name.startswith(field)


async def test_step_of_a_budget_of_money_names_a_model_with_a_price(desk: Desk) -> None:
    """A price of any provider or time is enough, and that of a stored model's target; no other unit asks for one."""
    target = {"upstream": "openai"}
    await desk.price(model="Own-", match="prefix", provider="us", effective_from="2999-01-01T00:00:00Z")
    await desk.api.make("models", name="fast", targets=[{**target, "model": "own-1"}])
    await desk.api.make("models", name="far/*", targets=[{**target, "model": "own-*"}])
    await desk.api.make("models", name="bare", targets=[target])
    other = await desk.api.make("organizations", name="Other")
    await desk.api.make(
        "models", name="theirs", targets=[{**target, "model": "own-1"}], organization_id=other["id"]
    )
    priced = {f"m{number}": name for number, name in enumerate(("own-mini", "OWN-", "FAST", "far/2"))}
    made = await desk.make(steps=[STEP | {"models": {**priced, "*": "own-1"}}])
    lacking = {"a": "own", "b": "bare", "c": "fast/2", "d": "theirs"}
    steps = [STEP | {"models": priced}, {"at": 0.9, "models": {**lacking, **priced}}]
    fields = {f"steps.1.models.{name}" for name in lacking}
    assert fields == {*await desk.refused(steps=steps)}
    assert fields == {*await desk.refusals("PATCH", f"budgets/{made['id']}", {"steps": steps})}
    await desk.make(unit="tokens", amount=9, steps=steps)


async def test_other_fields_of_a_budget_change_while_its_step_has_no_price(desk: Desk) -> None:
    """A release before stored it so; doctor names it."""
    url, made, steps = desk.api.counters.url, await desk.make(), [STEP | {"models": {"*": "lost"}}]
    with psycopg.connect(plain_url(url)) as connection:
        connection.execute("UPDATE budget SET steps = %s WHERE id = %s", [json.dumps(steps), made["id"]])
    [named] = unpriced_steps(url, NO_STAND_INS)
    assert named == f'"{made["name"]}" of organization {desk.organization}: lost'
    await desk.price(model="other")
    assert [len(unpriced_steps(url, read_stand_ins(text))) for text in ("lost=another", "lo*=other")] == [
        1,
        0,
    ]
    assert (await desk.api.patch(f"budgets/{made['id']}", {"name": "new"})).status == 200
    assert {*await desk.refusals("PATCH", f"budgets/{made['id']}", {"steps": steps})} == {"steps.0.models.*"}


async def test_carry_and_steps_of_a_budget_may_be_changed(desk: Desk) -> None:
    await desk.price(model="GPT-5-", match="prefix")
    made, last = await desk.make(), STEP | {"at": 1.0, "models": {"*": "gpt-5-nano"}}
    changes: dict[str, Any] = {"carry": {"max": "5.00", "debt": False}, "steps": [STEP, last]}
    answer = await desk.api.patch(f"budgets/{made['id']}", changes)
    assert (answer.status, answer.json) == (200, {**made, **changes, "carried": "0.00"})
    assert set(await desk.refusals("PATCH", f"budgets/{made['id']}", {"carry": {"max": 5}})) == {"carry.max"}
    rolling = await desk.make(window="rolling", length="7d", interval=None)
    assert set(await desk.refusals("PATCH", f"budgets/{rolling['id']}", {"carry": {"max": "5"}})) == {"carry"}
    for none in ([], None):
        answer = await desk.api.patch(f"budgets/{made['id']}", {"carry": None, "steps": none})
        assert (answer.status, answer.json) == (200, made)


async def test_budget_use_is_read_from_the_counters_rather_than_from_the_database(desk: Desk) -> None:
    made = await desk.make()
    desk.store(made, 1_000_000_000)
    desk.hold(desk.account(), made, 2_500_000_000, 250_000_001)
    shown = await desk.shown(made)
    assert (shown["used"], shown["held"], shown["remaining"]) == ("2.50", "0.250000001", "10.00")
    listed = (await desk.api.get(f"budgets?organization_id={desk.organization}")).json["items"]
    assert listed == [shown]


async def test_budget_shows_use_from_the_database_while_the_counters_are_unreachable(desk: Desk) -> None:
    made = await desk.make()
    desk.store(made, 1_000_000_000)
    desk.hold(desk.account(), made, 2_500_000_000, 1)
    desk.api.counters.away = True
    shown = await desk.shown(made)
    assert (shown["used"], shown["held"], shown["remaining"]) == ("1.00", "0.00", "11.50")
    assert shown["is_current"] is False


async def test_budget_shows_use_from_the_database_while_the_counter_account_is_unreadable(desk: Desk) -> None:
    made = await desk.make()
    desk.store(made, 1_000_000_000)
    assert (await desk.shown(made))["is_current"] is True
    desk.api.counters.unreadable = {desk.account()}
    shown = await desk.shown(made)
    assert (shown["used"], shown["is_current"]) == ("1.00", False)


async def test_budget_use_of_an_ended_interval_does_not_count_in_the_current_interval(desk: Desk) -> None:
    stored, live = await desk.make(interval="hour"), await desk.make(interval="hour")
    desk.store(stored, 7, start_ms=now_ms() - 7_200_000)
    desk.hold(desk.account(), live, 9, 3, now_ms() - 7_200_000)
    assert (await desk.shown(stored))["used"] == "0.00"
    shown = await desk.shown(live)
    assert (shown["used"], shown["held"]) == ("0.00", "0.000000003")


async def test_exceeded_budget_in_audit_mode_shows_a_negative_remaining_amount(desk: Desk) -> None:
    made = await desk.make(unit="tokens", amount=100, mode="audit")
    desk.hold(desk.account(), made, 130, 0)
    assert (await desk.shown(made))["remaining"] == -30


async def test_raised_budget_shows_the_new_amount_end_and_reason_and_gateways_are_updated(desk: Desk) -> None:
    made = await desk.make()
    until = said(datetime.now(UTC).replace(microsecond=0) + DAY)
    answer = await desk.api.post(
        f"budgets/{made['id']}/raise", {"amount": "20.00", "until": until, "reason": "a fair"}
    )
    assert answer.status == 200, answer.json
    raised = {"raised_to": "20.00", "raised_until": until, "raise_reason": "a fair", "remaining": "20.00"}
    assert answer.json == {**made, **raised}
    assert f"organization:{desk.organization}" in desk.api.counters.pushed


@pytest.mark.parametrize("apart_ms", [-HOUR_MS, HOUR_MS])
async def test_accounts_of_a_window_that_another_edition_of_the_time_zones_began_are_listed(
    desk: Desk, apart_ms: int
) -> None:
    anchor_day = (datetime.now(UTC).day + 14) % 28 + 1  # no month begins today
    made = await desk.make(each="user", amount="20", interval="month", anchor_day=anchor_day)
    start_ms, _, after_ms = window_bounds("month", "UTC", anchor_day, now_ms())
    desk.store(made, 1_000_000_000, owner_of("ada"), "ada")
    desk.store(made, 2_000_000_000, owner_of("bob"), "bob", start_ms + apart_ms)
    desk.store(made, 9_000_000_000, owner_of("cay"), "cay", start_ms - (after_ms - start_ms) // 2)
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {one["who"]: one["used"] for one in found} == {"ada": "1.00", "bob": "2.00"}


async def test_raise_of_a_per_user_budget_for_a_single_user_leaves_the_limit_of_other_users(
    desk: Desk,
) -> None:
    made = await desk.make(each="user", amount="20")
    for n, name in enumerate(("ada", "bob")):
        desk.store(made, (n + 1) * 1_000_000_000, owner_of(name), name)
    said = {"amount": "50", "until": LATER, "reason": "a fair"}
    answer = await desk.api.post(f"budgets/{made['id']}/raise", {**said, "who": "ada"})
    assert (answer.status, answer.json) == (200, made)
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    told = {one["who"]: (one["limit"], one["limit_by"], one["remaining"]) for one in found}
    assert told == {"ada": ("50.00", "raise", "49.00"), "bob": ("20.00", "budget", "18.00")}
    [entry] = (await desk.api.get("audit-log?resource=budgets&action=raise")).json["items"]
    assert (entry["after"]["who"], entry["after"]["amount"]) == ("ada", "50")
    everybody = await desk.api.post(f"budgets/{made['id']}/raise", {**said, "amount": "60"})
    assert everybody.json["raised_to"] == "60"
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {(one["limit"], one["limit_by"]) for one in found} == {("60.00", "budget")}


async def test_override_of_a_single_user_is_put_listed_shown_and_removed(desk: Desk) -> None:
    """Of 20 Ada has 50 for a while, Bob nothing and Cay no limit; who is spelled as a path has to."""
    made = await desk.make(each="user", amount="20")
    names = {"ada": "ada", "bob": "bob", "cay/{c} %": "cay%2F%7Bc%7D%20%25", "dan": "dan"}
    for n, name in enumerate(names):
        desk.store(made, (n + 1) * 1_000_000_000, owner_of(name), name)
    path = f"budgets/{made['id']}/overrides"
    said = {"ada": {"amount": "50", "until": LATER, "reason": "a fair"}, "bob": {"amount": "0"}}
    said["cay/{c} %"] = {"amount": None}
    whole = {name: {"who": name, "until": None, "reason": None, **body} for name, body in said.items()}
    for name, body in said.items():
        answer = await desk.api.call("PUT", f"{path}/{names[name]}", body)
        assert (answer.status, answer.json) == (200, whole[name])
    assert f"organization:{desk.organization}" in desk.api.counters.pushed
    assert (await desk.api.get(path)).json == {"items": [*whole.values()], "next_cursor": None}
    page = (await desk.api.get(f"{path}?limit=2")).json
    rest = (await desk.api.get(f"{path}?limit=2&cursor={page['next_cursor']}")).json
    assert page["items"] + rest["items"] == [*whole.values()]
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {one["who"]: (one["limit"], one["limit_by"], one["used"], one["remaining"]) for one in found} == {
        "ada": ("50.00", "override", "1.00", "49.00"), "bob": ("0.00", "override", "2.00", "-2.00"),
        "cay/{c} %": (None, "override", "3.00", None), "dan": ("20.00", "budget", "4.00", "16.00"),
    }  # fmt: skip
    assert (await desk.api.get(f"budgets/{made['id']}")).json == made
    [entry] = (await desk.api.get("audit-log?resource=budgets&action=override&limit=1")).json["items"]
    assert (entry["resource_id"], entry["organization_id"]) == (str(made["id"]), desk.organization)
    assert (entry["after"]["who"], entry["after"]["amount"]) == ("ada", "50")
    less = {"amount": "49.99", "until": LATER, "reason": "-", "who": "ada"}
    assert set(await desk.refusals("POST", f"budgets/{made['id']}/raise", less)) == {"amount"}
    assert (await desk.api.post(f"budgets/{made['id']}/raise", {**less, "amount": "60"})).status == 200
    everybody = {name: each for name, each in less.items() if name != "who"} | {"amount": "70"}
    assert (await desk.api.post(f"budgets/{made['id']}/raise", everybody)).json["raised_to"] == "70"
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {one["who"]: (one["limit"], one["limit_by"]) for one in found} == {
        "ada": ("60.00", "raise"), "bob": ("0.00", "override"), "cay/{c} %": (None, "override"),
        "dan": ("70.00", "budget"),
    }  # fmt: skip
    removed = await desk.api.delete(f"{path}/{names['cay/{c} %']}")
    assert (removed.status, removed.raw) == (204, b"")
    assert [one["who"] for one in (await desk.api.get(path)).json["items"]] == ["ada", "bob"]
    assert (await desk.api.delete(f"{path}/{names['cay/{c} %']}")).status == 404
    [entry] = (await desk.api.get("audit-log?resource=budgets&action=remove-override")).json["items"]
    assert entry["after"] == {"who": "cay/{c} %"}


async def test_override_of_a_group_limits_members_and_keeps_the_group(desk: Desk) -> None:
    """Of 20 a member has 5, but Bob 30 of his own; a raise of a member is measured by the 5."""
    owner = {"organization_id": desk.organization}
    of_users = await desk.api.make("groups", **owner, name="a", kind="user", members=["ada", "bob"])
    of_keys = await desk.api.make("groups", **owner, name="b", kind="api_key")
    made = await desk.make(each="user", amount="20")
    for n, name in enumerate(("ada", "bob", "eve")):
        desk.store(made, (n + 1) * 1_000_000_000, owner_of(name), name)
    path = f"budgets/{made['id']}/overrides"
    other = await desk.api.make("organizations", name="elsewhere")
    theirs = await desk.api.make("groups", organization_id=other["id"], name="a", kind="user")
    assert set(await desk.refusals("PUT", f"{path}/group:{of_keys['id']}", {"amount": "5"})) == {"who"}
    for who in (f"group:{theirs['id']}", "group:999999", "group:a"):
        assert (await desk.api.call("PUT", f"{path}/{who}", {"amount": "5"})).status == 404
    who = f"group:{of_users['id']}"
    answer = await desk.api.call("PUT", f"{path}/{who}", {"amount": "5"})
    assert (answer.status, answer.json) == (200, {"who": who, "amount": "5", "until": None, "reason": None})
    assert (await desk.api.call("PUT", f"{path}/bob", {"amount": "30"})).status == 200
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {one["who"]: (one["limit"], one["limit_by"], one["remaining"]) for one in found} == {
        "ada": ("5.00", "group", "4.00"), "bob": ("30.00", "override", "28.00"),
        "eve": ("20.00", "budget", "17.00"),
    }  # fmt: skip
    refused = await desk.api.call("DELETE", f"groups/{of_users['id']}")
    assert (refused.status, refused.json["detail"].rpartition(": ")[2]) == (409, f"{made['name']}.")
    less = {"amount": "4.99", "until": LATER, "reason": "-", "who": "ada"}
    assert set(await desk.refusals("POST", f"budgets/{made['id']}/raise", less)) == {"amount"}
    assert (await desk.api.post(f"budgets/{made['id']}/raise", {**less, "amount": "6"})).status == 200
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert [(one["limit"], one["limit_by"]) for one in found if one["who"] == "ada"] == [("6.00", "raise")]
    assert (await desk.api.delete(f"{path}/{who}")).status == 204
    assert (await desk.api.call("DELETE", f"groups/{of_users['id']}")).status == 204


async def test_invalid_override_is_refused_with_the_field_named(desk: Desk) -> None:
    whole, user = await desk.make(amount="20"), await desk.make(each="user", amount="20")
    key = await desk.make(each="key", amount="20")
    good = {"amount": "5"}
    for budget, who, body, field in (
        (whole, "ada", good, "who"), (user, "ada", {}, "amount"), (user, "ada", {"amount": 5}, "amount"),
        (user, "ada", {"amount": "-1"}, "amount"), (user, "ada", {**good, "until": "2020-01-01T00:00:00Z"}, "until"),
        (user, "ada", {**good, "reason": ""}, "reason"), (user, "ada", {**good, "who": "eve"}, "who"),
        (user, "%20", good, "who"), (user, "a%0Ab", good, "who"),
        (user, "u" * 129, good, "who"), (key, "laptop", good, "who"), (key, "999", good, "who"),
    ):  # fmt: skip
        path = f"budgets/{budget['id']}/overrides/{who}"
        assert set(await desk.refusals("PUT", path, body)) == {field}, (who, body)
    assert (await desk.api.call("PUT", "budgets/999999/overrides/ada", good)).status == 404


async def test_invalid_raise_for_a_single_user_key_or_project_is_refused_with_the_field_named(
    desk: Desk,
) -> None:
    user, key, project = [await desk.make(each=each, amount="20") for each in ("user", "key", "project")]
    whole = await desk.make()
    elsewhere = (await desk.api.post("tenants", {"name": "elsewhere"})).json
    foreign = (await desk.api.post("api-keys", {"tenant_id": elsewhere["id"], "name": "f"})).json["id"]
    team = await desk.make(each="key", amount="20", tenant_id=desk.tenant)
    other = {"name": "other", "organization_id": desk.organization}
    beside = (await desk.api.post("tenants", other)).json
    of_beside = (await desk.api.post("api-keys", {"tenant_id": beside["id"], "name": "b"})).json["id"]
    for budget, who, amount, fields in (
        (whole, "ada", "20", {"who"}),
        (user, "ada", "19.99", {"amount"}),
        (user, "", "20", {"who"}),
        (key, str(foreign), "20", {"who"}),
        (key, "12345", "20", {"who"}),
        (key, "k", "20", {"who"}),
        (team, str(of_beside), "20", {"who"}),
        (project, "x", "20", {"who"}),
    ):
        said = {"amount": amount, "until": LATER, "reason": "a fair", "who": who}
        assert set(await desk.refusals("POST", f"budgets/{budget['id']}/raise", said)) == fields, who
    for budget, who in ((key, str(of_beside)), (team, str(desk.key)), (project, "0")):
        said = {"amount": "20", "until": LATER, "reason": "a fair", "who": who}
        assert (await desk.api.post(f"budgets/{budget['id']}/raise", said)).status == 200, who


@pytest.mark.parametrize("each", [None, "user"])
async def test_budget_reset_queues_a_reset_command_for_the_counters(desk: Desk, each: str | None) -> None:
    made = await desk.make(each=each)
    answer = await desk.api.post(f"budgets/{made['id']}/reset")
    assert (answer.status, answer.json) == (200, made)
    [(payload,)] = desk.api.rows("SELECT payload FROM control_write WHERE verb = 'budget'")
    selector = {"each": each} if each else {}
    assert payload == {"budget_id": made["id"], "account": desk.account(**selector)}
    assert set(await desk.refusals("POST", f"budgets/{made['id']}/reset", {"amount": "1"})) == {"amount"}


async def test_use_of_each_user_of_a_per_user_budget_is_listed_page_by_page(desk: Desk) -> None:
    made = await desk.make(each="user")
    for n in range(5):
        desk.store(made, n * 1_000_000_000, f"{n:024x}", f"user {n}")
    desk.hold(f"{desk.account(each='user').partition(':')[0]}:{2:024x}", made, 5_000_000_000, 1_000_000_000)
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await desk.api.get(f"budgets/{made['id']}/accounts?limit=2{cursor}")).json
        found += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert [each["who"] for each in found] == [f"user {n}" for n in range(5)]
    assert [each["used"] for each in found] == ["0.00", "1.00", "5.00", "3.00", "4.00"]
    assert (found[2]["held"], found[2]["remaining"]) == ("1.00", "7.50")
    assert {each["resets_at"] for each in found} == {made["resets_at"]}


async def test_use_shared_by_all_unlisted_users_of_a_per_user_budget_is_marked_as_shared(desk: Desk) -> None:
    made = await desk.make(each="user")
    desk.store(made, 1_000_000_000, OTHERS, "")
    desk.store(made, 2_000_000_000, f"{1:024x}", "ada")
    found = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert {each["who"]: each["shared"] for each in found} == {"": True, "ada": False}


async def test_per_user_budget_lists_no_use_of_ended_intervals(desk: Desk) -> None:
    made = await desk.make(each="user", interval="hour")
    desk.store(made, 7, "a" * 24, "ada", now_ms() - 7_200_000)
    assert (await desk.api.get(f"budgets/{made['id']}/accounts")).json == {"items": [], "next_cursor": None}


async def test_budget_that_is_not_per_user_lists_a_single_row_of_use(desk: Desk) -> None:
    made = await desk.make(unit="tokens", amount=50)
    desk.hold(desk.account(), made, 20, 10)
    [one] = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert one == {
        "unit": "tokens", "who": None, "limit": 50, "limit_by": "budget", "used": 20, "held": 10,
        "remaining": 30,
        "resets_at": made["resets_at"], "shared": False, "is_current": True, "carried": None, "frees": None,
    }  # fmt: skip


@pytest.mark.parametrize("window", ["rolling", "first_use"])
async def test_accounts_of_a_window_with_a_length_have_the_uses_that_still_count(
    desk: Desk, window: str
) -> None:
    """Rows of a rolling window of 5 hours are of its parts, 10 minutes each."""
    made = await desk.make(window=window, length="5h", interval=None, each="user")
    part_ms = 10 * 60_000
    latest_ms = now_ms() // part_ms * part_ms
    for parts, amount in ((0, 1), (24, 2), (28, 4), (33, 8)):
        desk.store(made, amount * 10**9, "a" * 24, "ada", latest_ms - parts * part_ms)
    [account] = (await desk.api.get(f"budgets/{made['id']}/accounts")).json["items"]
    assert (account["who"], account["used"]) == ("ada", "7.00")


async def test_page_cursor_of_budget_use_is_refused_by_another_budget_and_by_the_budget_list(
    desk: Desk,
) -> None:
    first, second = await desk.make(each="user"), await desk.make(each="user")
    for n in range(2):
        desk.store(first, 1, f"{n:024x}", "u")
    cursor = (await desk.api.get(f"budgets/{first['id']}/accounts?limit=1")).json["next_cursor"]
    for path in (f"budgets/{second['id']}/accounts", "budgets"):
        assert set(await desk.refusals("GET", f"{path}?cursor={cursor}", None)) == {"cursor"}


# --- tags -------------------------------------------------------------------------------------


async def test_budget_names_declared_tags_alone(desk: Desk) -> None:
    assert await desk.refused(tags={"feature": "search"}) == {
        "tags": "its organization declares no tag feature"
    }
    assert await desk.refused(each="tag:feature") == {"each": "its organization declares no tag feature"}
    await desk.declare("feature", "team")
    found = await desk.make(tags={"feature": True}, each="tag:team")
    assert (found["tags"], found["each"]) == ({"feature": "true"}, "tag:team")
    assert (await desk.make())["tags"] == {}


async def test_budgets_are_listed_by_every_kind_of_each(desk: Desk) -> None:
    await desk.declare("team")
    for each in ("user", "tenant", "tag:team"):
        made = await desk.make(each=each)
        listed = (await desk.api.get(f"budgets?each={each}")).json["items"]
        assert [budget["id"] for budget in listed] == [made["id"]]
    for wrong in ("tag:", "tag:a%20b", "team"):
        assert set(await desk.refusals("GET", f"budgets?each={wrong}", None)) == {"each"}


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ({"tags": {"feature": ""}}, {"tags.feature"}), ({"tags": {"feature": "x" * 65}}, {"tags.feature"}),
        ({"tags": {"feature": ["x"]}}, {"tags.feature"}), ({"tags": {"feature": "a\u202eb"}}, {"tags.feature"}),
        ({"tags": ["feature"]}, {"tags"}), ({"tags": {f"t{n}": "x" for n in range(9)}}, {"tags"}),
        ({"each": "tag:"}, {"each"}), ({"each": "feature"}, {"each"}), ({"each": "tag:a b"}, {"each"}),
        ({"each": "tag:feature", "tags": {"feature": "search"}}, {"each"}),
    ],
)  # fmt: skip
async def test_budget_of_wrong_tags_is_422(desk: Desk, said: dict[str, Any], fields: set[str]) -> None:
    await desk.declare("feature")
    assert {name.removesuffix(".[key]") for name in await desk.refused(**said)} == fields


async def test_tags_of_budget_never_change(desk: Desk) -> None:
    await desk.declare("feature")
    made = await desk.make(tags={"feature": "search"})
    for body in ({"tags": {"feature": "chat"}}, {"each": "tag:feature"}):
        assert await desk.refusals("PATCH", f"budgets/{made['id']}", body)


async def test_tag_that_budget_names_stays_declared(desk: Desk) -> None:
    await desk.declare("feature", "team", "free")
    of = await desk.make(tags={"feature": "search"})
    each = await desk.make(each="tag:team")
    await desk.declare("team", "feature")
    where = f"organizations/{desk.organization}"
    for names, budget in ((["team"], of), (["feature"], each)):
        answer = await desk.api.patch(where, {"tags": names})
        assert answer.status == 409, answer.json
        assert budget["name"] in answer.json["detail"]
    assert (await desk.api.get(where)).json["tags"] == ["team", "feature"]
    for one in (of, each):
        assert (await desk.api.delete(f"budgets/{one['id']}")).status == 204
    await desk.declare()
    assert (await desk.api.get(where)).json["tags_since"] == {}


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["a b"],
        ["user"],
        ["model"],
        ["project"],
        [""],
        ["n" * 65],
        [f"t{n}" for n in range(9)],
        "a",
        [1],
    ],
)
async def test_organization_of_wrong_tags_is_422(desk: Desk, names: Any) -> None:
    fields = await desk.refusals("PATCH", f"organizations/{desk.organization}", {"tags": names})
    assert all(field.startswith("tags") for field in fields)


async def test_key_fixes_declared_tags_alone_and_rotation_keeps_tags(desk: Desk) -> None:
    body = {"tenant_id": desk.tenant, "tags": {"team": "red"}}
    assert await desk.refusals("POST", "api-keys", body) == {"tags": "its organization declares no tag team"}
    await desk.declare("team")
    made = (await desk.api.post("api-keys", body)).json
    assert made["tags"] == {"team": "red"}
    rotated = await desk.api.post(f"api-keys/{made['id']}/rotate", {})
    assert rotated.json["tags"] == {"team": "red"}
    assert await desk.refusals("PATCH", f"api-keys/{made['id']}", {"tags": {"other": "x"}})
    assert (await desk.api.patch(f"api-keys/{made['id']}", {"tags": {}})).json["tags"] == {}


async def test_override_that_no_call_can_match_is_422(desk: Desk) -> None:
    await desk.declare("team")
    tagged, each = await desk.make(name="t", each="tag:team"), await desk.make(name="u", each="user")
    for budget, who in ((tagged, "x" * 65), (tagged, "a%E2%80%AEb"), (tagged, "%ff"), (each, "%ff")):
        path = f"budgets/{budget['id']}/overrides/{who}"
        assert list(await desk.refusals("PUT", path, {"amount": None})) == ["who"], who
    path = f"budgets/{tagged['id']}/overrides/{'x' * 64}"
    assert (await desk.api.call("PUT", path, {"amount": None})).status == 200


async def test_tag_that_an_active_key_fixes_stays_declared(desk: Desk) -> None:
    await desk.declare("team", "feature")
    made = (await desk.api.post("api-keys", {"tenant_id": desk.tenant, "tags": {"team": "red"}})).json
    where = f"organizations/{desk.organization}"
    refused = await desk.api.patch(where, {"tags": ["feature"]})
    assert (refused.status, made["prefix"] in refused.json["detail"]) == (409, True)
    assert (await desk.api.patch(where, {"tags": ["team"]})).status == 200
    assert (await desk.api.post(f"api-keys/{made['id']}/revoke", {})).status == 200
    assert (await desk.api.patch(where, {"tags": []})).status == 200


async def test_tags_of_key_that_meet_too_many_budgets_are_422(desk: Desk) -> None:
    """Sixteen of a feature may be met, and one of a team, but not by one call."""
    await desk.declare("feature", "team")
    for at in range(16):
        narrowed = {"tenant_id": desk.tenant, "user": "ada", "project_id": 1, "model": "m"}
        chosen = {name: value for bit, (name, value) in enumerate(narrowed.items()) if at >> bit & 1}
        await desk.make(name=f"b{at}", tags={"feature": "search"}, **chosen)
    tags = {"feature": "search", "team": "red"}
    made = await desk.api.post("api-keys", {"tenant_id": desk.tenant, "tags": tags})
    assert made.status == 201
    field = await desk.refused(tags={"team": "red"})
    assert list(field) == ["organization_id"]
    assert (await desk.api.patch(f"api-keys/{made.json['id']}", {"tags": {}})).status == 200
    assert (await desk.make(tags={"team": "red"}))["tags"] == {"team": "red"}
    refused = await desk.refusals("PATCH", f"api-keys/{made.json['id']}", {"tags": tags})
    assert list(refused) == ["tags"]
    assert "b15" in refused["tags"]
