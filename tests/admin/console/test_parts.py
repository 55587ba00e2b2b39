"""The parts pages are made of: how values look, what forms mean, how use is stacked, who may try again."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from multidict import MultiDict

from gateway.admin.console import charts, forms, shown
from gateway.admin.console.live import Live
from gateway.admin.console.screens import SCREENS, menu
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.fields import fields_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (10**12, "1,000,000,000,000"),
        (-5000, "−5,000"),
        (None, "—"),
        (2**53, "9,007,199,254,740,992"),
    ],
)
def test_numbers(value: int | None, text: str) -> None:
    assert shown.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.5, "0.5"), (1.234, "1.23"), (99.96, "100"), (999, "999"), (999.6, "1 k"), (1000, "1 k"),
        (1234, "1.23 k"), (12_345, "12.3 k"), (999_499, "999 k"), (999_600, "1 M"), (10**12, "1 T"),
        (123 * 10**12, "123 T"), (-1500, "−1.5 k"),
    ],
)  # fmt: skip
def test_short_numbers(value: float, text: str) -> None:
    assert shown.short(value) == text


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        ("0.00", "USD", "0.00 USD"), ("1234567.5", "", "1,234,567.5"), ("-0.50", "EUR", "−0.50 EUR"),
        ("1000000000000.01", "JPY", "1,000,000,000,000.01 JPY"), (None, "", "—"),
        ("0.000001", "", "0.000001"),
    ],
)  # fmt: skip
def test_money(value: str | None, currency: str, text: str) -> None:
    assert shown.money(value, currency) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"), (0.00042, "0.4 ms"), (0.042, "42 ms"), (1.0, "1.0 s"), (75.0, "75.0 s"),
        (90.0, "1 min 30 s"), (3600.0, "1 h"), (7260.0, "2 h 1 min"), (10**6, "11 d 13 h"),
    ],
)  # fmt: skip
def test_spans_of_time(seconds: float, text: str) -> None:
    assert shown.span(seconds) == text


def test_every_resource_has_its_place_in_the_menu() -> None:
    named = {name for entries in menu().values() for name, _, _ in entries}
    apart = {"token-ledger", "tenant-quotas"}  # on a tenant's page
    assert {*SCREENS, "overview", "reconciliation"} == named
    assert RESOURCES.keys() - SCREENS.keys() == apart
    for screen in SCREENS.values():
        known = {*screen.resource.out.model_fields, "state", "quota"}
        assert set(screen.columns) <= known, screen.name
        assert set(screen.filters) <= screen.resource.filters.keys(), screen.name


def test_fields_come_from_the_model() -> None:
    found = {each.name: each for each in fields_of(RESOURCES["tenants"], RESOURCES["tenants"].create)}  # type: ignore[arg-type]  # has one
    assert found["organization_id"].refers == "organizations"
    assert found["limits.requests_per_minute"].kind == "whole"
    services: Any = RESOURCES["services"].create
    kinds = {each.name: (each.kind, each.required) for each in fields_of(RESOURCES["services"], services)}
    assert kinds["service_type"] == ("choice", True)
    assert kinds["counts_tokens"] == ("flag", False)
    assert kinds["pricing"] == ("json", False)
    plans: Any = RESOURCES["subscription-plans"].create
    kinds = {
        each.name: (each.kind, each.required) for each in fields_of(RESOURCES["subscription-plans"], plans)
    }
    assert (kinds["monthly_cost"], kinds["feature_access"]) == (("money", True), ("lines", True))
    hooks: Any = RESOURCES["webhooks"].create
    [events] = [each for each in fields_of(RESOURCES["webhooks"], hooks) if each.name == "events"]
    assert (events.kind, "quota.80" in events.choices) == ("many", True)


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("5", 5), (" 1 000 000 ", 1_000_000), ("1,000,000", 1_000_000), ("1\u00a0000", 1000), ("1_000", 1000),
        ("-7", -7), ("1,5", "1,5"), ("1.000", "1.000"), ("1e3", "1e3"), ("0x10", "0x10"), ("٣", "٣"),
        ("9" * 31, "9" * 31),
    ],
)  # fmt: skip
def test_whole_numbers_are_read_only_where_they_are_sure(typed: str, sent: object) -> None:
    model: Any = RESOURCES["token-plans"].create
    body = forms.body_of(
        fields_of(RESOURCES["token-plans"], model), MultiDict(name="x", total_amount=typed), changes=False
    )
    assert body["total_amount"] == sent


def test_a_body_holds_what_was_filled_in() -> None:
    model: Any = RESOURCES["api-keys"].create
    posted = MultiDict(tenant_id="7", name="", models="a\r\n\r\n b ", expires_at="2030-01-31T10:00")
    posted["limits.concurrency"] = "3"
    assert forms.body_of(fields_of(RESOURCES["api-keys"], model), posted, changes=False) == {
        "tenant_id": 7,
        "models": ["a", "b"],
        "expires_at": "2030-01-31T10:00:00Z",
        "limits": {"concurrency": 3},
    }


def test_a_change_holds_what_differs() -> None:
    model: Any = RESOURCES["api-keys"].patch
    former = {
        "name": "old", "models": "a\nb", "expires_at": "2030-01-31T10:00:00", "limits.concurrency": "3",
        "limits.requests_per_minute": "60", "user": "u",
    }  # fmt: skip
    same = {**former, "models": "a\r\nb", "expires_at": "2030-01-31T10:00"}
    was = {f"was.{name}": value for name, value in former.items()}
    fields = fields_of(RESOURCES["api-keys"], model)
    assert forms.body_of(fields, MultiDict({**same, **was}), changes=True) == {}
    other = {**same, "user": "", "limits.concurrency": "", "expires_at": ""}
    assert forms.body_of(fields, MultiDict({**other, **was}), changes=True) == {
        "user": None, "expires_at": None, "limits": {"requests_per_minute": 60},
    }  # fmt: skip


DAYS = [date(2026, 1, day) for day in (1, 2, 3)]


def test_use_is_stacked_by_day() -> None:
    amounts = [(DAYS[0], "a", 30), (DAYS[0], "b", 10), (DAYS[2], "b", 20)]
    chart = charts.stacked(amounts, {DAYS[0]: 4}, since=DAYS[0], until=DAYS[2])
    assert (chart.series, chart.top, chart.total) == (("a", "b"), 40, 60)
    assert [column.total for column in chart.columns] == [40, 0, 20]
    first = chart.columns[0]
    assert [(bar.label, bar.y, bar.height) for bar in first.bars] == [("a", 25.0, 75.0), ("b", 0.0, 25.0)]
    assert charts.stacked([], {}, since=DAYS[0], until=DAYS[2]).is_empty


def test_many_series_become_a_few() -> None:
    amounts = [(DAYS[0], f"model {n}", 100 - n) for n in range(20)]
    chart = charts.stacked(amounts, {}, since=DAYS[0], until=DAYS[0])
    assert len(chart.series) == charts.SERIES_MAX
    assert chart.series[-1] == charts.REST
    assert sum(bar.amount for bar in chart.columns[0].bars) == chart.total == sum(n for _, _, n in amounts)


def test_use_by_model_never_says_more_than_the_day_did() -> None:
    days = [{"day": DAYS[0], "tokens": 100}, {"day": DAYS[1], "tokens": 50}]
    models = [
        {"day": DAYS[1], "model": "a", "tokens": 30},
        {"day": DAYS[1], "model": None, "tokens": 40},
    ]
    assert charts.by_model(days, models) == [
        (DAYS[1], "a", 30), (DAYS[1], "no model named", 20), (DAYS[0], charts.EARLIER, 100),
    ]  # fmt: skip


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_samples_start_anew_when_counts_do() -> None:
    clock, counts = Clock(), [100]

    async def snapshot() -> dict[str, Any]:
        return {
            "requests": [["r", 200, "", counts[0]]],
            "bounds": [1.0],
            "request_seconds": {"buckets": [counts[0], 0]},
        }

    live = Live(snapshot, clock)
    await live.now()
    clock.now, counts[0] = 1010.0, 150
    assert (await live.now())["requests_s"] == 5.0
    assert (await live.history())[1] == [5.0]
    clock.now, counts[0] = 1011.0, 3
    assert (await live.now())["requests_s"] == 0.0
    assert await live.history() == [[], [], [], [], [], []]


async def test_no_numbers_are_no_error() -> None:
    async def snapshot() -> dict[str, Any]:
        raise OSError

    assert (await Live(snapshot, Clock()).now())["is_known"] is False
