"""Budgets are told of from real rows: each threshold once a window and account, the end before it comes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.budgets import EACH_UNUSED_DAYS
from persistence import engine
from persistence.keeper import news as keeper_news
from persistence.keeper.occasions import WAITING_MAX
from persistence.keeper.verification import KEPT_DAYS, forget_budget_uses
from tests.connections import connected
from tests.persistence.scenario import insert_budget, rows_of, settle_in

NOW = datetime(2026, 11, 20, 13, 0, tzinfo=UTC)
MONTH = datetime(2026, 10, 31, 23, 0, tzinfo=UTC)  # in Berlin
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UNIT = 10**9


class Desk:
    """An organization with a webhook, its budgets, and what was told of them."""

    def __init__(self, url: str, pool: AsyncEngine) -> None:
        self.url, self.pool = url, pool
        [account] = settle_in(url, None)
        self.organization_id = account.organization_id
        self.do("INSERT INTO webhook (url, secret) VALUES ('https://example.com/', 'whsec_AAAA')")
        self.do("UPDATE organization SET name = 'Acme', currency = 'EUR'")

    def do(self, statement: str, *values: object) -> None:
        with connected(self.url) as connection:
            connection.execute(statement, values)

    def budget(self, **fields: object) -> int:
        values = {
            "name": "Team", "interval": "month", "time_zone": "Europe/Berlin", "created_at": EPOCH,
        } | fields  # fmt: skip
        with connected(self.url, autocommit=True) as connection:
            return insert_budget(connection, self.organization_id, **values)

    def use(self, budget: int, used: int, start: datetime = MONTH, value: str = "", name: str = "") -> None:
        self.do(
            "INSERT INTO budget_use (budget_id, start, value, name, used) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (budget_id, start, value) DO UPDATE SET used = excluded.used",
            budget, start, value, name, used,
        )  # fmt: skip

    def carry(self, budget: int, carried: int, start: datetime = MONTH, value: str = "") -> None:
        self.do(
            "UPDATE budget_use SET carried = %s WHERE (budget_id, start, value) = (%s, %s, %s)",
            carried, budget, start, value,
        )  # fmt: skip

    async def look(self, now: datetime = NOW) -> None:
        await keeper_news.reached_budgets(self.pool, now)

    async def foresee(self, now: datetime) -> list[str]:
        await keeper_news.foresee_budgets(self.pool, now)
        return [data["exhausted_local"] for event, data in self.told() if event == "budget.forecast"]

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        rows: list[Any] = rows_of(self.url, "SELECT event, payload FROM webhook_delivery ORDER BY id")
        return rows

    def said(self) -> list[tuple[str, object]]:
        return [(event.removeprefix("budget."), data["percent"]) for event, data in self.told()]


@pytest.fixture
def desk(migrated: str, pool: AsyncEngine) -> Desk:
    return Desk(migrated, pool)


async def test_each_threshold_is_told_once_a_window(desk: Desk) -> None:
    budget = desk.budget()
    expected: list[tuple[str, object]] = []
    for used, news in (
        (49 * UNIT, []),
        (50 * UNIT, [("threshold", 50)]),
        (79 * UNIT, []),
        (81 * UNIT, [("threshold", 80)]),
        (100 * UNIT - 1, []),
        (100 * UNIT, [("threshold", 100), ("exceeded", 100)]),
        (300 * UNIT, []),
    ):
        desk.use(budget, used)
        await desk.look()
        await desk.look()
        expected += news
        assert desk.said() == expected
    december = datetime(2026, 11, 30, 23, tzinfo=UTC)
    desk.use(budget, 60 * UNIT, december)
    await desk.look(december + timedelta(hours=2))
    assert desk.said() == [*expected, ("threshold", 50)]


async def test_a_restart_and_deleted_messages_tell_nothing_again(desk: Desk, migrated: str) -> None:
    budget = desk.budget()
    desk.use(budget, 100 * UNIT)
    await desk.look()
    desk.do("DELETE FROM webhook_delivery")
    again = engine.create(migrated)
    await keeper_news.reached_budgets(again, NOW + timedelta(days=5))
    await again.dispose()
    assert desk.said() == []


async def test_what_is_told(desk: Desk) -> None:
    budget = desk.budget(each="user", thresholds="[0.825]", mode="audit")
    desk.use(budget, 83 * UNIT + UNIT // 2, value="a" * 24, name="ada")
    await desk.look()
    [(event, data)] = desk.told()
    assert event == "budget.threshold"
    assert data == {
        "budget_id": budget, "budget": "Team", "organization_id": desk.organization_id,
        "organization": "Acme", "each": "user", "account": "ada", "unit": "money", "currency": "EUR",
        "mode": "audit", "used": "83.5", "amount": "100", "remaining": "16.5", "percent": 82.5,
        "threshold": 0.825, "interval": "month", "window": "calendar", "length": None, "time_zone": "Europe/Berlin",
        "window_start": "2026-10-31T23:00:00Z", "resets_at": "2026-11-30T23:00:00Z",
    }  # fmt: skip


async def test_every_account_of_each_is_told_of(desk: Desk) -> None:
    budget = desk.budget(each="user", unit="tokens", amount=10, thresholds="[0.5]")
    for value, name, used in (("a", "ada", 5), ("b", "bob", 4), ("other", "", 6), ("n", "", 7)):
        desk.use(budget, used, value=value, name=name)
    await desk.look()
    found = [(data["account"], data["used"], data["currency"]) for _, data in desk.told()]
    assert found == [("ada", 5, None), ("nobody", 7, None), ("all others", 6, None)]


async def test_more_accounts_than_fit_a_page(desk: Desk) -> None:
    budget = desk.budget(each="user", unit="requests", amount=10, thresholds="[0.5]")
    desk.do(
        "INSERT INTO budget_use (budget_id, start, value, used)"
        " SELECT %s, %s, 'u' || n, 5 FROM generate_series(1, %s) AS n",
        budget, MONTH, keeper_news.ACCOUNTS_MAX + 10,
    )  # fmt: skip
    await desk.look()
    assert len(desk.told()) == keeper_news.ACCOUNTS_MAX + 10


async def test_an_account_that_is_raised_is_measured_by_its_own_limit(desk: Desk) -> None:
    """Of 100 Ada may use 200 for an hour: 120 is three fifths of that, and Bob has passed his."""
    budget = desk.budget(each="user", thresholds="[0.5, 0.8]")
    desk.do(
        "INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)"
        " VALUES (%s, 'a', 'ada', 200, %s, 'a fair')",
        budget, NOW + timedelta(hours=1),
    )  # fmt: skip
    for value, name in (("a", "ada"), ("b", "bob")):
        desk.use(budget, 120 * UNIT, value=value, name=name)
    await desk.look()
    found = [
        (event.removeprefix("budget."), data["account"], data["percent"], data["amount"])
        for event, data in desk.told()
    ]
    assert found == [
        ("threshold", "ada", 50, "200"), ("threshold", "bob", 50, "100"), ("threshold", "bob", 80, "100"),
        ("exceeded", "bob", 120, "100"),
    ]  # fmt: skip
    await desk.look(NOW + timedelta(hours=2))
    later = [(event.removeprefix("budget."), data["account"]) for event, data in desk.told()[4:]]
    assert later == [("threshold", "ada"), ("exceeded", "ada")]


async def test_an_account_with_an_override_is_measured_by_its_own_limit(desk: Desk) -> None:
    """Of 100 Ada has 20, Bob 400, Cay no limit and Dan nothing; Eve's 20 is over, and Fay is raised to 30."""
    budget = desk.budget(each="user", thresholds="[0.5, 0.8]")
    names = {name[0]: name for name in ("ada", "bob", "cay", "dan", "eve", "fay")}
    for value, amount, ends in (
        ("a", 20, 1),
        ("b", 400, 1),
        ("c", None, 1),
        ("d", 0, 1),
        ("e", 20, 0),
        ("f", 20, 1),
    ):
        desk.do(
            "INSERT INTO budget_override (budget_id, value, name, amount, until) VALUES (%s, %s, %s, %s, %s)",
            budget, value, names[value], amount, NOW + timedelta(hours=ends),
        )  # fmt: skip
    desk.do(
        "INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)"
        " VALUES (%s, 'f', 'fay', 30, %s, 'a fair')",
        budget, NOW + timedelta(hours=1),
    )  # fmt: skip
    for value, name in names.items():
        desk.use(budget, (120 if value in "bcd" else 16) * UNIT, value=value, name=name)
    await desk.look()
    found = [
        (event.removeprefix("budget."), data["account"], data["percent"], data["amount"])
        for event, data in desk.told()
    ]
    assert found == [
        ("threshold", "ada", 50, "20"), ("threshold", "ada", 80, "20"), ("threshold", "fay", 50, "30"),
    ]  # fmt: skip


async def test_account_of_a_member_is_measured_by_the_override_of_the_smallest_group(desk: Desk) -> None:
    """Of 100 members of one group have 20, of another 40, and Bob 400 of his own; Eve is no member."""
    budget = desk.budget(each="user", thresholds="[0.5]")
    owner = "(SELECT organization_id FROM budget WHERE id = %s)"
    for group, amount, members in (
        (7, 20, '["ada", "bob"]'),
        (8, 40, '["ada", "cay"]'),
        (9, None, '["cay"]'),
    ):
        desk.do(
            "INSERT INTO caller_group (id, organization_id, name, kind, members)"
            f" VALUES (%s, {owner}, %s, 'user', %s)",
            group, budget, f"group {group}", members,
        )  # fmt: skip
        desk.do(
            "INSERT INTO budget_override (budget_id, value, name, amount) VALUES (%s, %s, %s, %s)",
            budget, f"group:{group}", f"group:{group}", amount,
        )  # fmt: skip
    desk.do(
        "INSERT INTO budget_override (budget_id, value, name, amount) VALUES (%s, 'b', 'bob', 400)", budget
    )
    for value, name in (("a", "ada"), ("b", "bob"), ("c", "cay"), ("e", "eve")):
        desk.use(budget, 21 * UNIT, value=value, name=name)
    await desk.look()
    found = [(event.removeprefix("budget."), data["account"], data["amount"]) for event, data in desk.told()]
    # Once an amount is used up, its thresholds are not told besides; 21 of 40 is above a half.
    assert sorted(found) == [
        ("exceeded", "ada", "20"),
        ("threshold", "ada", "20"),
        ("threshold", "cay", "40"),
    ]


@pytest.mark.parametrize(
    ("limits", "used", "news"),
    [
        ((100, '{"max": "50"}', 50), 74, []),
        ((100, '{"max": "50"}', 50), 75, [("threshold", 50, "150", "75")]),
        ((100, '{"max": "50"}', 50), 149, [("threshold", 50, "150", "1"), ("threshold", 80, "150", "1")]),
        ((100, '{"max": "50", "debt": true}', -60), 20, [("threshold", 50, "40", "20")]),
        ((100, '{"max": "50", "debt": true}', -60), 40, [("exceeded", 100, "40", "0")]),
        ((100, '{"max": "50", "debt": true}', -100), 40, []),  # there is nothing to use up
        ((100, None, 50), 50, [("threshold", 50, "100", "50")]),  # it carries no longer
        ((20, '{"max": "50", "debt": true}', -10), 5, [("threshold", 50, "10", "5")]),
    ],
)  # fmt: skip
async def test_thresholds_are_of_amount_and_carried_together(
    desk: Desk, limits: tuple[int, str | None, int], used: int, news: list[tuple[object, ...]]
) -> None:
    """Ada has the amount as her override; an account is found once, by that or by what is taken off."""
    amount, carry, carried = limits
    budget = desk.budget(each="user", thresholds="[0.5, 0.8]", carry=carry, amount=100)
    desk.do(
        "INSERT INTO budget_override (budget_id, value, name, amount) VALUES (%s, 'a', 'ada', %s)",
        budget, amount,
    )  # fmt: skip
    desk.use(budget, used * UNIT, value="a", name="ada")
    desk.carry(budget, carried * UNIT, value="a")
    await desk.look()
    found = [
        (event.removeprefix("budget."), data["percent"], data["amount"], data["remaining"])
        for event, data in desk.told()
        if event != "budget.threshold" or data["remaining"] != "0"
    ]
    assert found == news


@pytest.mark.parametrize("apart", [timedelta(hours=-1), timedelta(hours=1)])
async def test_window_that_another_edition_of_the_time_zones_began_is_reported_once(
    desk: Desk, apart: timedelta
) -> None:
    plain, each = desk.budget(), desk.budget(name="Each", each="user")
    desk.use(plain, 60 * UNIT, MONTH + apart)
    desk.use(each, 70 * UNIT, MONTH + apart, value="b", name="bob")
    desk.use(each, 10 * UNIT, MONTH, value="a", name="ada")
    for _ in range(2):
        await desk.look()
        await desk.foresee(NOW)
    assert [(data["budget"], data["account"], data["percent"]) for _, data in desk.told()] == [
        ("Team", None, 50),
        ("Each", "bob", 50),
    ]
    await keeper_news.tell_resets(desk.pool, datetime(2026, 11, 30, 23, 1, tzinfo=UTC))
    event, data = desk.told()[-1]
    assert (event, data["budget"], data["used"]) == ("budget.reset", "Team", "60")


async def test_end_of_amount_and_carried_is_foreseen(desk: Desk) -> None:
    """A hundred a day last to the 29th of 2,000 and 800 carried; of 2,000 alone they had been used up before."""
    budget = desk.budget(amount=2_000, carry='{"max": "800"}')
    for day in (2, 9, 16, 20):
        desk.use(budget, 100 * day * UNIT)
        desk.carry(budget, 800 * UNIT)
        found = await desk.foresee(MONTH + timedelta(days=day))
    assert found == ["2026-11-29T00:00:00+01:00"]


async def test_a_raise_counts_while_it_lasts(desk: Desk) -> None:
    budget = desk.budget(thresholds="[0.8]", raised_to=200, raised_until=NOW + timedelta(hours=1))
    desk.use(budget, 120 * UNIT)
    await desk.look()
    assert desk.said() == []
    await desk.look(NOW + timedelta(hours=2))
    assert desk.said() == [("threshold", 80), ("exceeded", 120)]


async def test_a_raised_amount_that_is_used_up_is_told_again_once(desk: Desk) -> None:
    budget = desk.budget()
    desk.use(budget, 100 * UNIT)
    await desk.look()
    expected: list[tuple[str, object]] = [
        ("threshold", 50), ("threshold", 80), ("threshold", 100), ("exceeded", 100),
    ]  # fmt: skip
    assert desk.said() == expected
    for raised_to, used, news in (
        (150, 119, []),  # half of 150 is less than what was told
        (150, 120, [("threshold", 80)]),
        (150, 150, [("threshold", 100), ("exceeded", 100)]),
        (100, 160, []),  # the raise is over
        (150, 160, []),
        (200, 200, [("threshold", 80), ("threshold", 100), ("exceeded", 100)]),
    ):
        until = NOW + timedelta(days=1)
        desk.do("UPDATE budget SET raised_to = %s, raised_until = %s", raised_to, until)
        desk.use(budget, used * UNIT)
        await desk.look()
        await desk.look()
        expected += news
        assert desk.said() == expected
    assert [data["amount"] for _, data in desk.told()] == ["100"] * 4 + ["150"] * 3 + ["200"] * 3


async def test_a_window_that_has_just_ended_is_told_of_too(desk: Desk) -> None:
    start = datetime(2026, 11, 20, 12, tzinfo=UTC)
    budget = desk.budget(interval="hour", thresholds="[0.5]")
    desk.use(budget, 60 * UNIT, start)
    await desk.look(start + timedelta(hours=2, seconds=-1))
    assert desk.said() == [("threshold", 50)]
    desk.use(budget, 60 * UNIT, start - timedelta(hours=1))
    await desk.look(start + timedelta(hours=2, seconds=-1))
    assert len(desk.told()) == 1


async def test_a_budget_that_never_begins_again(desk: Desk) -> None:
    budget = desk.budget(interval="total")
    desk.use(budget, 100 * UNIT, EPOCH)
    await desk.look()
    assert desk.said() == [("threshold", 50), ("threshold", 80), ("threshold", 100), ("exceeded", 100)]
    assert {data["resets_at"] for _, data in desk.told()} == {None}
    await desk.look(NOW + timedelta(days=1_000))
    assert len(desk.told()) == 4


async def test_nobody_hears_of_others_budgets_and_of_deleted_ones(desk: Desk) -> None:
    [other] = settle_in(desk.url, None)
    desk.do("UPDATE webhook SET organization_id = %s", other.organization_id)
    desk.use(desk.budget(), 100 * UNIT)
    await desk.look()
    assert rows_of(desk.url, "SELECT count(*) FROM budget_told") == [(0,)]
    desk.do("UPDATE webhook SET organization_id = NULL")
    desk.do("UPDATE budget SET deleted_at = now()")
    await desk.look()
    assert desk.told() == []


async def test_only_what_is_asked_for_is_told(desk: Desk) -> None:
    desk.do("""UPDATE webhook SET events = '["budget.exceeded", "quota.50"]'""")
    desk.use(desk.budget(), 100 * UNIT)
    await desk.look()
    assert desk.said() == [("exceeded", 100)]


async def test_the_end_is_foreseen_once_in_the_budgets_own_time(desk: Desk) -> None:
    """Seven hundred in seven hours, in three of twenty parts: the other six hundred last six hours more."""
    start = datetime(2026, 11, 19, 23, tzinfo=UTC)
    budget = desk.budget(interval="day", amount=1_300, unit="requests")
    for hour in (2, 4):
        desk.use(budget, 100 * hour, start)
        assert await desk.foresee(start + timedelta(hours=hour)) == []
    desk.use(budget, 700, start)
    assert await desk.foresee(start + timedelta(hours=7)) == ["2026-11-20T13:00:00+01:00"]
    desk.use(budget, 900, start)
    assert len(await desk.foresee(start + timedelta(hours=8))) == 1
    [(_, data)] = desk.told()
    assert (data["exhausted_at"], data["percent"]) == ("2026-11-20T12:00:00Z", 53)


async def test_the_pace_is_that_of_the_last_hours(desk: Desk) -> None:
    start = datetime(2026, 11, 19, 23, tzinfo=UTC)
    budget = desk.budget(interval="day", amount=1_000, unit="requests")
    for hour in (9, 12, 15):
        desk.use(budget, 100 + hour, start)
        assert await desk.foresee(start + timedelta(hours=hour)) == []
    desk.use(budget, 412, start)
    # 300 in 181 minutes since the sample of noon: the other 588 last 354 minutes.
    assert await desk.foresee(start + timedelta(hours=15, minutes=1)) == ["2026-11-20T20:55:45+01:00"]


async def test_bursts_are_no_pace_whichever_keeper_looks(desk: Desk) -> None:
    """Sixty of a hundred in one burst, seen by many looks, and a second burst hours later."""
    start = datetime(2026, 11, 19, 23, tzinfo=UTC)
    budget = desk.budget(interval="day", amount=100, unit="requests")
    desk.use(budget, 60, start)
    for hour in (1, 3, 6):
        assert await desk.foresee(start + timedelta(hours=hour)) == []
    desk.use(budget, 90, start)
    for hour in (7, 8):
        assert await desk.foresee(start + timedelta(hours=hour)) == []
    # A third time: 91 in nine hours, and the other 9 last 53 minutes.
    desk.use(budget, 91, start)
    assert len(await desk.foresee(start + timedelta(hours=9))) == 1


async def test_a_budget_that_lasts_is_not_told_of(desk: Desk) -> None:
    budget = desk.budget(amount=3_000, unit="requests")
    for day in range(1, 30):
        desk.use(budget, 99 * day)
        assert await desk.foresee(MONTH + timedelta(days=day)) == []


async def test_what_windows_that_are_over_were_told_is_forgotten(desk: Desk) -> None:
    start = datetime(2026, 11, 20, 12, tzinfo=UTC)
    hourly, total = desk.budget(interval="hour"), desk.budget(name="All", interval="total")
    desk.use(hourly, 60 * UNIT, start)
    desk.use(total, 60 * UNIT, EPOCH)
    await desk.look(start)
    kept = "SELECT budget_id FROM budget_told ORDER BY 1"
    await desk.foresee(start + timedelta(hours=1))
    assert rows_of(desk.url, kept) == [(hourly,), (total,)]
    await desk.foresee(start + timedelta(hours=3))
    assert rows_of(desk.url, kept) == [(total,)]
    desk.do("UPDATE budget SET deleted_at = now()")
    await desk.foresee(start + timedelta(hours=3))
    assert rows_of(desk.url, kept) == []


HOURS_5: dict[str, Any] = {"interval": None, "window": "rolling", "length": "5h", "unit": "requests"}
PART = timedelta(minutes=10)


async def test_rolling_window_is_reported_again_after_use_fell_below_nine_tenths_of_a_threshold(
    desk: Desk,
) -> None:
    """Of 100 in 5 hours: parts leave 5 hours and 10 minutes after they began."""
    budget = desk.budget(**HOURS_5, amount=100, thresholds="[0.5, 0.8]", each="user")
    for hours, used in ((0, 30), (1, 9), (2, 42)):
        desk.use(budget, used, NOW + timedelta(hours=hours), "a", "ada")
    await desk.look(NOW + timedelta(hours=2))
    told = [("threshold", 50), ("threshold", 80)]
    assert desk.said() == told
    [(_, data), _] = desk.told()
    ends = (
        data["window"],
        data["length"],
        data["interval"],
        data["window_start"],
        data["resets_at"],
        data["used"],
    )
    assert ends == ("rolling", "5h", None, None, None, 81)
    for after, more, news in (
        (timedelta(hours=5, minutes=9), 0, []),  # 81 still
        (timedelta(hours=5, minutes=10), 0, []),  # 51: below 72, and not below 45
        (timedelta(hours=5, minutes=20), 30, [("threshold", 80)]),  # 81
        (timedelta(hours=6, minutes=11), 5, []),  # 77: not below 72
        (timedelta(hours=6, minutes=12), 8, []),  # 80
        (timedelta(hours=10, minutes=35), 3, []),  # 3
        (timedelta(hours=10, minutes=40), 50, [("threshold", 50)]),  # 50
    ):
        now = NOW + after
        desk.use(budget, more, now - (now - NOW) % PART, "a", "ada")
        await keeper_news.foresee_budgets(desk.pool, now)
        await desk.look(now)
        await desk.look(now)
        told += news
        assert [said for said in desk.said() if said[0] == "threshold"] == told, after
    await desk.foresee(NOW + timedelta(hours=30))
    assert rows_of(desk.url, "SELECT * FROM budget_told") == []


async def test_rolling_window_without_a_recent_use_is_reported_by_the_look_of_each_minute(desk: Desk) -> None:
    budget = desk.budget(**HOURS_5, amount=100, thresholds="[0.5]", each="user")
    for user in ("ada", "bob"):
        desk.use(budget, 30, NOW - timedelta(hours=4), user[0], user)
        desk.use(budget, 30, NOW, user[0], user)
    desk.do("UPDATE budget_use SET moved_at = now() - interval '1 minute' WHERE value = 'b'")
    await desk.look()
    assert [data["account"] for _, data in desk.told()] == ["ada"]
    await desk.foresee(NOW)
    assert [data["account"] for event, data in desk.told() if event == "budget.threshold"] == ["ada", "bob"]


async def test_window_from_first_use_is_reported_once_until_an_hour_behind_its_end(desk: Desk) -> None:
    budget = desk.budget(**HOURS_5 | {"window": "first_use"}, amount=100, thresholds="[0.5]", each="user")
    desk.use(budget, 50, NOW, "a", "ada")
    desk.use(budget, 40, NOW + timedelta(minutes=1), "b", "bob")
    await desk.look(NOW + timedelta(hours=4))
    [(_, data)] = desk.told()
    window = (data["account"], data["window_start"], data["resets_at"])
    assert window == ("ada", "2026-11-20T13:00:00Z", "2026-11-20T18:00:00Z")
    desk.use(budget, 60, NOW + timedelta(hours=6), "a", "ada")
    desk.use(budget, 51, NOW + timedelta(minutes=1), "b", "bob")
    for after in (5, 6, 7):
        await desk.look(NOW + timedelta(hours=after))
    found = [(data["account"], data["used"]) for _, data in desk.told()]
    assert found == [("ada", 50), ("bob", 51), ("ada", 60)]
    await desk.foresee(NOW + timedelta(hours=20))
    assert rows_of(desk.url, "SELECT * FROM budget_told") == []


async def test_end_of_windows_with_a_length_is_foreseen_once(desk: Desk) -> None:
    """Forty in 35 minutes, in three of twenty parts: the other 120 last 105 minutes more."""
    rolling = desk.budget(**HOURS_5, amount=160)
    begun = desk.budget(**HOURS_5 | {"window": "first_use"}, name="Begun", amount=160)
    for part in range(7):
        desk.use(rolling, 10, NOW + part * PART)
        desk.use(begun, 10 * (part + 1), NOW)
        await desk.foresee(NOW + part * PART + PART / 2)
    for _ in range(2):
        found = await desk.foresee(NOW + 7 * PART)
    assert len(found) == 2
    [by_budget] = [{data["budget_id"]: data["exhausted_at"] for _, data in desk.told()}]
    assert by_budget[rolling] == "2026-11-20T15:20:00Z"
    for part in range(7, 50):
        desk.use(rolling, 10 if part < 16 else 0, NOW + part * PART)
    assert len(await desk.foresee(NOW + timedelta(hours=4))) == 2


async def test_reset_is_reported_once_an_interval_with_use_and_amount_at_its_end(desk: Desk) -> None:
    start = datetime(2026, 11, 30, 23, tzinfo=UTC)  # in Berlin
    desk.use(desk.budget(amount=12.5, carry='{"max": 5}'), 81_500_000_000)
    raised = desk.budget(unit="tokens", raised_to=200, raised_until=start, amount=100, name="Raised")
    desk.use(raised, 150)
    desk.use(raised, 7, start)
    desk.do("UPDATE budget_use SET carried = 2500000000 WHERE used > 10^9")
    desk.do("UPDATE budget SET updated_at = %s", EPOCH)
    for now in (59, 60, 120, 3_599):  # the last calls of an interval are waited for
        await keeper_news.tell_resets(desk.pool, start + timedelta(seconds=now))
        assert len(desk.told()) == (0 if now < 60 else 2)
    first, second = sorted((data for _, data in desk.told()), key=lambda data: data["budget_id"])
    assert (first["used"], first["amount"], first["currency"]) == ("81.5", "15", "EUR")
    assert (second["used"], second["amount"], second["currency"]) == (150, 200, None)
    assert (second["window_start"], second["resets_at"]) == ("2026-11-30T23:00:00Z", "2026-12-31T23:00:00Z")


async def test_only_ended_intervals_of_an_enforced_amount_are_reported_as_reset(desk: Desk) -> None:
    start = datetime(2026, 11, 30, 23, tzinfo=UTC)
    others = (
        {"mode": "audit"}, {"each": "user"}, {"interval": "total"}, {"interval": "year"},
        {"interval": None, "window": "rolling", "length": "5h"}, {"created_at": start}, {"time_zone": "Gone/Away"},
    )  # fmt: skip
    for number, fields in enumerate(others):
        desk.budget(name=f"b{number}", **fields)
    desk.do("UPDATE budget SET updated_at = %s", EPOCH)
    desk.budget(name="of another calendar until now")
    changed = desk.budget(name="changed since")
    desk.use(changed, 5)
    await keeper_news.tell_resets(desk.pool, start + timedelta(minutes=1))
    assert [data["budget"] for _, data in desk.told()] == ["changed since"]
    desk.do("""UPDATE webhook SET events = '["budget.exceeded"]'""")
    await keeper_news.tell_resets(desk.pool, start + timedelta(minutes=1))
    assert len(desk.told()) == 1


async def test_two_keepers_tell_once(desk: Desk, migrated: str) -> None:
    budget = desk.budget(each="user")
    for user in range(50):
        desk.use(budget, 100 * UNIT, value=f"u{user}")
    other = engine.create(migrated)
    async with asyncio.TaskGroup() as both:
        for pool in (desk.pool, other):
            both.create_task(keeper_news.reached_budgets(pool, NOW))
    await other.dispose()
    assert len(desk.told()) == 50 * 4


async def test_a_webhook_with_too_much_waiting_hears_nothing_new(desk: Desk) -> None:
    desk.do(
        "INSERT INTO webhook_delivery (webhook_id, event, occasion)"
        " SELECT w.id, 'webhook.test', 'w' || n FROM webhook AS w, generate_series(1, %s) AS n",
        WAITING_MAX,
    )
    desk.use(desk.budget(), 100 * UNIT)
    await desk.look()
    assert len(desk.told()) == WAITING_MAX


# --- budget uses ------------------------------------------------------------------------
# What was used of budgets is kept for some time, and as long as anybody can go by it.


async def test_windows_that_ended_long_ago_are_forgotten(migrated: str, pool: AsyncEngine) -> None:
    [account] = settle_in(migrated, None)
    with connected(migrated, autocommit=True) as connection:
        for name, interval, each in (
            ("year", "year", None), ("each", "day", "user"), ("total", "total", None),
            ("users", "total", "user"), ("sessions", "total", "session"), ("gone", "total", "user"),
        ):  # fmt: skip
            budget = insert_budget(
                connection, account.organization_id, name=name, interval=interval, each=each
            )
            for days in (EACH_UNUSED_DAYS - 1, EACH_UNUSED_DAYS + 1, KEPT_DAYS - 1, KEPT_DAYS + 1):
                connection.execute(
                    "INSERT INTO budget_use (budget_id, start, value, used, moved_at) SELECT id,"
                    " CASE WHEN interval = 'total' THEN 'epoch' ELSE now() - make_interval(days => %s) END,"
                    " %s::text, 1, now() - make_interval(days => %s) FROM budget WHERE id = %s",
                    (days, days, days, budget),
                )
        connection.execute(
            "UPDATE budget SET deleted_at = now() - make_interval(days => %s) WHERE id = %s",
            (KEPT_DAYS + 1, budget),
        )
    assert await forget_budget_uses(pool, at_once=2) == 9
    assert await forget_budget_uses(pool) == 0
    kept = "SELECT b.name, count(*) FROM budget_use AS u JOIN budget AS b ON b.id = u.budget_id GROUP BY 1"
    assert dict(rows_of(migrated, kept)) == {"year": 3, "each": 3, "total": 4, "users": 4, "sessions": 1}
