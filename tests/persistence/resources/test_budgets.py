"""Budgets in the database: what gateways are told of them, whose they may be, raises and their ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, LiteralString

import pytest
from psycopg import errors

from gateway.core.accounts.administration import Actor, Command, CommittedWrite, Query, Realm, Row
from gateway.core.accounts.budget_selectors import BUDGETS_MAX
from gateway.core.accounts.budgets import (
    ORGANIZATION_OVERRIDES_MAX,
    ORGANIZATION_RAISES_MAX,
    OVERRIDES_MAX,
    RAISES_MAX,
    Budget,
    owner_of,
)
from gateway.core.accounts.steps import Step
from gateway.core.accounts.windows import Carry
from gateway.core.times import ms_of
from gateway.errors import Conflict, NotFound, Unprocessable
from persistence import engine as engines
from persistence.keeper.definitions import of_accounts
from persistence.store import Store
from tests.connections import connected
from tests.everywhere import known_everywhere
from tests.persistence.scenario import insert_budget

ACTOR = Actor("builtin:admin", "admin")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ORGANIZATION, OTHER = 1, 2

_numbers = count(1)


@dataclass
class Desk:
    """Two organizations, each with a tenant and a key of the organization's own number."""

    store: Store
    url: str
    now: datetime = NOW

    async def do(
        self, verb: str, row_id: int | None = None, resource: str = "budgets", **values: Any
    ) -> CommittedWrite:
        command = Command(
            resource, verb, ACTOR, "00000000-0000-0000-0000-000000000000", dict, row_id, values,
            closed=frozenset({Realm(ORGANIZATION), Realm(ORGANIZATION, row_id)}),
        )  # fmt: skip
        done = await self.store.write(command)
        assert isinstance(done, CommittedWrite)
        return done

    async def make(self, **over: Any) -> Row:
        usual = {
            "organization_id": ORGANIZATION, "name": f"budget {next(_numbers)}", "unit": "money",
            "amount": Decimal("12.50"), "interval": "month",
        }  # fmt: skip
        return (await self.do("create", **{**usual, **over})).row

    async def refused(self, verb: str = "", row_id: int = 0, **values: Any) -> dict[str, str]:
        with pytest.raises(Unprocessable) as caught:
            await (self.do(verb, row_id, **values) if verb else self.make(**values))
        return dict(caught.value.errors)

    def rows(self, query: LiteralString) -> list[tuple[Any, ...]]:
        with connected(self.url) as connection:
            return connection.execute(query).fetchall()

    async def told(self, organization_id: int = ORGANIZATION) -> list[Budget]:
        """The budgets that gateways are told of."""
        engine = engines.create(self.url)
        async with engine.connect() as connection:
            account = f"organization:{organization_id}"
            [definition] = (await of_accounts(connection, [account]))[account]
        await engine.dispose()
        return list(definition.terms.budgets)  # type: ignore[union-attr]  # an organization's


@pytest.fixture
async def desk(migrated: str) -> AsyncIterator[Desk]:
    with connected(migrated) as connection:
        for one in (ORGANIZATION, OTHER):
            connection.execute("INSERT INTO organization (id, name) VALUES (%s, %s)", (one, f"o{one}"))
            connection.execute(
                "INSERT INTO tenant (id, organization_id, name) VALUES (%s, %s, 't')", (one, one)
            )
            connection.execute(
                "INSERT INTO api_key (id, tenant_id, name, digest, prefix) VALUES (%s, %s, 'k', %s, 'tk')",
                (one, one, f"{one:064}"),
            )
        connection.execute("INSERT INTO tenant (id, organization_id, name) VALUES (3, 1, 'another')")
    engine = engines.create(migrated)
    store = Store(engine, lambda _: 0, lambda: found.now, wait_reason=known_everywhere)
    found = Desk(store, migrated)
    yield found
    await engine.dispose()


async def test_gateways_are_told_of_an_organizations_budgets(desk: Desk) -> None:
    first = await desk.make(name="all", anchor_day=31, time_zone="Europe/Berlin", mode="audit")
    second = await desk.make(
        name="a team", tenant_id=1, user="ada", api_key_id=1, project_id=0, model="gpt-5*", service_id=1,
        each="session", unit="tokens", amount=3000, interval="day", on_exhausted="cut",
    )  # fmt: skip
    await desk.make(organization_id=OTHER)
    all_, team = await desk.told()
    assert (all_.id, all_.name, all_.amount, all_.enforce) == (first["id"], "all", 12_500_000_000, False)
    assert (all_.time_zone, all_.anchor_day, all_.project_id) == ("Europe/Berlin", 31, None)
    assert (team.id, team.amount, team.unit, team.cut) == (second["id"], 3000, "tokens", True)
    assert team.selector == (1, "ada", 1, 0, "gpt-5*", 1, "session")
    assert [len(await desk.told(one)) for one in (ORGANIZATION, OTHER)] == [2, 1]


async def test_gateways_get_window_carry_and_steps_of_a_budget(desk: Desk) -> None:
    steps = [{"at": 0.8, "models": {"gpt-5*": "gpt-5-mini"}, "session": "switch"}]
    await desk.make(unit="tokens", amount=9, window="rolling", length="90m", interval=None, steps=steps)
    made = await desk.make(carry={"max": "2.50", "debt": True})
    rolling, monthly = await desk.told()
    assert (rolling.window, rolling.length_ms, rolling.interval) == ("rolling", 90 * 60_000, "")
    assert rolling.steps == (Step(0.8, (("gpt-5*", "gpt-5-mini"),), switches=True),)
    assert (monthly.window, monthly.length_ms, monthly.carry) == (
        "calendar",
        0,
        Carry(2_500_000_000, debt=True),
    )
    await desk.do("change", int(str(made["id"])), carry=None)
    assert [budget.carry for budget in await desk.told()] == [None, None]


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"window": "sliding"}, "budget_window_check"),
        ({"interval": None}, "budget_window_length_check"),
        ({"length": "5h"}, "budget_window_length_check"),
        ({"window": "rolling", "interval": None}, "budget_window_length_check"),
        ({"window": "rolling", "length": "5h"}, "budget_window_length_check"),
        ({"window": "rolling", "interval": None, "length": "5"}, "budget_length_check"),
        ({"interval": "total", "carry": "{}"}, "budget_carry_interval_check"),
        (
            {"window": "rolling", "interval": None, "length": "5h", "carry": "{}"},
            "budget_carry_interval_check",
        ),
        ({"carry": "1"}, "budget_carry_check"),
        ({"steps": "{}"}, "budget_steps_check"),
    ],
)
async def test_database_has_no_budget_with_half_a_window(
    desk: Desk, fields: dict[str, Any], rule: str
) -> None:
    with connected(desk.url) as connection, pytest.raises(errors.CheckViolation) as caught:
        insert_budget(connection, ORGANIZATION, **fields)
    assert caught.value.diag.constraint_name == rule


async def test_each_change_has_the_organization_told_again(desk: Desk) -> None:
    done = await desk.do(
        "create", organization_id=ORGANIZATION, name="a", unit="requests", amount=5, interval="total"
    )
    budget_id = int(str(done.row["id"]))
    raised = {"amount": 9, "until": NOW + timedelta(days=1), "reason": "a fair"}
    for again in (
        done,
        await desk.do("change", budget_id, amount=6, name="b"),
        await desk.do("raise", budget_id, **raised),
        await desk.do("delete", budget_id),
    ):
        assert [intent.account for intent in again.intents] == [f"organization:{ORGANIZATION}"]
    assert await desk.told() == []


async def test_a_raise_is_told_with_its_end(desk: Desk) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    budget_id = int(str((await desk.make(name="a"))["id"]))
    row = (await desk.do("raise", budget_id, amount=Decimal(20), until=until, reason="a fair")).row
    assert (row["raised_to"], row["raised_until"], row["raise_reason"]) == (Decimal(20), until, "a fair")
    [budget] = await desk.told()
    assert (budget.amount, budget.raised_to) == (12_500_000_000, 20_000_000_000)
    assert budget.raised_until_ms == until.timestamp() * 1000


async def raised(desk: Desk, budget_id: int, who: str, amount: int = 20, days: int = 1) -> None:
    until = desk.now + timedelta(days=days)
    await desk.do("raise", budget_id, amount=Decimal(amount), until=until, reason="a fair", who=who)


async def test_a_raise_of_one_is_told_beside_the_budgets_own_amount(desk: Desk) -> None:
    desk.now = datetime.now(UTC).replace(microsecond=0)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    await raised(desk, budget_id, "ada")
    await raised(desk, budget_id, "bob", 30, days=2)
    await raised(desk, budget_id, "ada", 25, days=3)  # in place of the one before
    [budget] = await desk.told()
    assert (budget.amount, budget.raised_to) == (12_500_000_000, 0)
    assert budget.raises == {
        owner_of("ada"): (25_000_000_000, ms_of(desk.now + timedelta(days=3))),
        owner_of("bob"): (30_000_000_000, ms_of(desk.now + timedelta(days=2))),
    }


async def test_a_raise_of_one_is_not_lowered_and_ends_earlier_where_it_is_told_so(desk: Desk) -> None:
    desk.now = datetime.now(UTC).replace(microsecond=0)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    await raised(desk, budget_id, "ada", 80, days=3)
    less = {"amount": Decimal("79.99"), "until": desk.now + timedelta(days=1), "reason": "-", "who": "ada"}
    assert set(await desk.refused("raise", budget_id, **less)) == {"amount"}
    assert set(await desk.refused("raise", budget_id, **less | {"who": "group:1"})) == {"who"}
    await raised(desk, budget_id, "ada", 80, days=1)
    [budget] = await desk.told()
    assert budget.raises == {owner_of("ada"): (80_000_000_000, ms_of(desk.now + timedelta(days=1)))}


async def test_raises_of_one_that_are_over_are_not_told_and_go_with_the_next(desk: Desk) -> None:
    budget_id = int(str((await desk.make(each="user"))["id"]))
    desk.now = datetime.now(UTC) - timedelta(days=9)
    await raised(desk, budget_id, "ada")
    assert (await desk.told())[0].raises == {}
    desk.now = datetime.now(UTC)
    await raised(desk, budget_id, "bob")
    assert desk.rows("SELECT name FROM budget_raise") == [("bob",)]


async def test_an_amount_of_as_much_ends_a_raise_of_one(desk: Desk) -> None:
    desk.now = datetime.now(UTC)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    for who, amount in (("ada", 20), ("bob", 21)):
        await raised(desk, budget_id, who, amount)
    await desk.do("change", budget_id, amount=Decimal(20))
    assert (await desk.told())[0].raises.keys() == {owner_of("bob")}


async def test_so_many_of_a_budget_and_of_an_organization_are_raised(desk: Desk) -> None:
    desk.now = datetime.now(UTC)
    first, second, third = [int(str((await desk.make(each="user"))["id"])) for _ in range(3)]

    def fill(budget_id: int, count: int) -> None:
        with connected(desk.url) as connection:
            connection.execute(
                "INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)"
                " SELECT %s, n, n, 20, now() + interval '1 day', '-' FROM generate_series(1, %s) AS n",
                (budget_id, count),
            )

    said = {"amount": Decimal(20), "until": desk.now + timedelta(days=1), "reason": "-", "who": "ada"}
    fill(first, RAISES_MAX - 1)
    await raised(desk, first, "ada")
    await raised(desk, first, "ada", 30)
    assert set(await desk.refused("raise", first, **{**said, "who": "bob"})) == {"who"}
    fill(second, ORGANIZATION_RAISES_MAX - RAISES_MAX)
    assert set(await desk.refused("raise", third, **said)) == {"who"}
    assert len((await desk.told())[0].raises) == RAISES_MAX


async def overridden(desk: Desk, budget_id: int, who: str, amount: object, days: int | None = None) -> None:
    until = None if days is None else desk.now + timedelta(days=days)
    await desk.do("override", budget_id, amount=amount, until=until, who=who)


async def test_gateways_get_overrides_beside_the_amount_of_the_budget(desk: Desk) -> None:
    desk.now = datetime.now(UTC).replace(microsecond=0)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    for who, amount, days in (("ada", Decimal(9), None), ("ada", Decimal(5), 2), ("bob", None, None)):
        await overridden(desk, budget_id, who, amount, days)
    await overridden(desk, budget_id, "eve", Decimal(0))
    [budget] = await desk.told()
    assert budget.overrides == {
        owner_of("ada"): (5_000_000_000, ms_of(desk.now + timedelta(days=2))),
        owner_of("bob"): (None, 0),
        owner_of("eve"): (0, 0),
    }
    done = await desk.do("remove-override", budget_id, who="bob")
    assert [intent.account for intent in done.intents] == [f"organization:{ORGANIZATION}"]
    assert (await desk.told())[0].overrides.keys() == {owner_of("ada"), owner_of("eve")}
    with pytest.raises(NotFound):
        await desk.do("remove-override", budget_id, who="bob")


async def test_gateways_get_the_time_of_the_last_change_of_an_amount(desk: Desk) -> None:
    desk.now = datetime.now(UTC)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    for change in (
        lambda: overridden(desk, budget_id, "ada", Decimal(5)),
        lambda: raised(desk, budget_id, "bob", 15),
        lambda: desk.do("remove-override", budget_id, who="ada"),
        lambda: desk.do("change", budget_id, amount=Decimal(13)),
    ):
        assert desk.rows("UPDATE budget SET updated_at = 'epoch' RETURNING id") == [(budget_id,)]
        await change()
        assert (await desk.told())[0].changed_ms >= ms_of(desk.now)


async def test_ended_override_is_not_sent_to_gateways_and_goes_with_the_next_write(desk: Desk) -> None:
    budget_id = int(str((await desk.make(each="user"))["id"]))
    desk.now = datetime.now(UTC) - timedelta(days=9)
    await overridden(desk, budget_id, "ada", Decimal(5), 1)
    assert (await desk.told())[0].overrides == {}
    assert (
        await desk.store.page("budget-overrides", Query({"budget_id": budget_id}, None, None, None, 9))
    ).rows == ()
    with pytest.raises(NotFound):
        await desk.do("remove-override", budget_id, who="ada")
    desk.now = datetime.now(UTC)
    await overridden(desk, budget_id, "bob", Decimal(5))
    assert desk.rows("SELECT name FROM budget_override") == [("bob",)]


async def test_a_raise_of_an_override_outlives_a_change_of_the_amount(desk: Desk) -> None:
    """Ada has 5 of 12.50 and is raised to 8: everybody's 13 is not hers. Bob's raise to 13 is nothing more."""
    desk.now = datetime.now(UTC)
    budget_id = int(str((await desk.make(each="user"))["id"]))
    await overridden(desk, budget_id, "ada", Decimal(5))
    less = {"until": desk.now + timedelta(days=1), "reason": "-", "who": "ada"}
    assert set(await desk.refused("raise", budget_id, amount=Decimal("4.99"), **less)) == {"amount"}
    for who, amount in (("ada", 8), ("bob", 13)):
        await raised(desk, budget_id, who, amount)
    await desk.do("change", budget_id, amount=Decimal(13))
    assert (await desk.told())[0].raises.keys() == {owner_of("ada")}


async def test_an_override_names_a_key_or_tenant_that_the_budget_applies_to(desk: Desk) -> None:
    of_keys, of_tenants = [int(str((await desk.make(each=each))["id"])) for each in ("key", "tenant")]
    team = int(str((await desk.make(each="key", tenant_id=3))["id"]))
    for budget_id, who in ((of_keys, "1"), (of_tenants, "1"), (of_tenants, "3")):
        await overridden(desk, budget_id, who, Decimal(5))
    for budget_id, who in ((of_keys, "2"), (of_keys, "9"), (of_tenants, "2"), (of_tenants, "9"), (team, "1")):
        said = {"amount": Decimal(5), "until": None, "who": who}
        assert set(await desk.refused("override", budget_id, **said)) == {"who"}, (budget_id, who)


async def test_so_many_of_a_budget_and_of_an_organization_are_overridden(desk: Desk) -> None:
    first, second, third = [int(str((await desk.make(each="user"))["id"])) for _ in range(3)]

    def fill(budget_id: int, count: int) -> None:
        with connected(desk.url) as connection:
            connection.execute(
                "INSERT INTO budget_override (budget_id, value, name, amount)"
                " SELECT %s, n, n, 20 FROM generate_series(1, %s) AS n",
                (budget_id, count),
            )

    fill(first, OVERRIDES_MAX - 1)
    await overridden(desk, first, "ada", Decimal(20))
    await overridden(desk, first, "ada", None)
    said = {"amount": Decimal(20), "until": None, "who": "bob"}
    assert set(await desk.refused("override", first, **said)) == {"who"}
    fill(second, ORGANIZATION_OVERRIDES_MAX - OVERRIDES_MAX)
    assert set(await desk.refused("override", third, **said)) == {"who"}
    assert len((await desk.told())[0].overrides) == OVERRIDES_MAX


async def test_a_raise_that_is_over_is_not_shown(desk: Desk) -> None:
    budget_id = int(str((await desk.make())["id"]))
    desk.now = datetime(2020, 1, 1, tzinfo=UTC)
    await desk.do("raise", budget_id, amount=Decimal(20), until=desk.now + timedelta(days=1), reason="a fair")
    row = await desk.store.get("budgets", budget_id)
    assert (row["raised_to"], row["raised_until"], row["raise_reason"]) == (None, None, None)


async def test_an_amount_of_as_much_ends_a_raise(desk: Desk) -> None:
    budget_id = int(str((await desk.make())["id"]))
    until = datetime.now(UTC) + timedelta(days=1)
    await desk.do("raise", budget_id, amount=Decimal(20), until=until, reason="a fair")
    assert (await desk.do("change", budget_id, amount=Decimal(19))).row["raised_to"] == Decimal(20)
    assert (await desk.do("change", budget_id, amount=Decimal(20))).row["raised_to"] is None


async def test_a_raise_below_the_amount_or_into_the_past_is_refused(desk: Desk) -> None:
    budget_id = int(str((await desk.make())["id"]))
    found = await desk.refused("raise", budget_id, amount=Decimal(12), until=NOW, reason="a fair")
    assert set(found) == {"amount", "until"}


async def test_an_amount_is_of_the_budgets_own_unit(desk: Desk) -> None:
    budget_id = int(str((await desk.make())["id"]))
    assert set(await desk.refused("change", budget_id, amount=5)) == {"amount"}
    assert set(await desk.refused(unit="tokens")) == {"amount"}


async def test_what_is_of_another_organization_is_refused(desk: Desk) -> None:
    assert await desk.refused(tenant_id=OTHER) == {"tenant_id": "is of another organization"}
    assert await desk.refused(api_key_id=OTHER) == {"api_key_id": "is of another organization"}
    assert await desk.refused(tenant_id=3, api_key_id=1) == {"api_key_id": "is not of tenant 3"}
    for name in ("organization_id", "tenant_id", "api_key_id", "service_id"):
        assert set(await desk.refused(**{name: 404})) == {name}


async def test_a_name_is_an_organizations_own_until_its_budget_is_deleted(desk: Desk) -> None:
    first = await desk.make(name="all")
    with pytest.raises(Conflict):
        await desk.make(name="all")
    await desk.make(name="all", organization_id=OTHER)
    await desk.do("delete", int(str(first["id"])))
    await desk.make(name="all")


async def test_an_organization_has_so_many(desk: Desk) -> None:
    with connected(desk.url) as connection:
        connection.execute(
            'INSERT INTO budget (organization_id, name, tenant_id, "user", unit, amount, "interval")'
            " SELECT 1, n, 1, 'u' || n, 'tokens', 1, 'day' FROM generate_series(2, %s) AS n",
            (BUDGETS_MAX,),
        )
    await desk.make()
    assert set(await desk.refused()) == {"organization_id"}
    await desk.make(organization_id=OTHER)


async def test_so_many_windows_are_of_the_same_calls(desk: Desk) -> None:
    for _ in range(16):
        await desk.make(model="GPT-5")
    assert set(await desk.refused(model="gpt-5")) == {"name"}


async def test_what_budgets_are_of_is_not_deleted_before_them(desk: Desk) -> None:
    key = await desk.make(api_key_id=1)
    tenant = await desk.make(tenant_id=3)
    with connected(desk.url, autocommit=True) as connection:
        connection.execute("UPDATE api_key SET revoked_at = now()")
    for resource, row_id in (("api-keys", 1), ("tenants", 3)):
        with pytest.raises(Conflict, match="A budget is of this"):
            await desk.do("delete", row_id, resource)
    for row in (key, tenant):
        await desk.do("delete", int(str(row["id"])))
    for resource, row_id in (("api-keys", 1), ("tenants", 3)):
        await desk.do("delete", row_id, resource)


async def test_a_currency_stays_while_there_are_budgets_in_it(desk: Desk) -> None:
    await desk.make(unit="tokens", amount=5)
    await desk.do("change", ORGANIZATION, "organizations", currency="EUR")
    await desk.make()
    with pytest.raises(Conflict, match="budgets in money"):
        await desk.do("change", ORGANIZATION, "organizations", currency="USD")


async def test_what_was_stored_is_of_the_last_window(desk: Desk) -> None:
    plain, each = await desk.make(), await desk.make(each="user")
    with connected(desk.url) as connection:
        for row, value in ((plain, ""), (each, "abc")):
            for day, used in ((1, 7), (2, 9)):
                connection.execute(
                    "INSERT INTO budget_use (budget_id, start, value, used) VALUES (%s, %s, %s, %s)",
                    (row["id"], NOW.replace(day=day), value, used),
                )
    page = await desk.store.page("budgets", Query({"organization_id": ORGANIZATION}, None, None, None, 10))
    uses = [[ms_of(NOW.replace(day=day)), used, None, None, None] for day, used in ((2, 9), (1, 7))]
    assert [(row["stored_uses"], row["currency"]) for row in page.rows] == [(uses, "USD"), (None, "USD")]
