"""The parts pages are made of: how values look, what forms mean, how use is stacked, who may try again."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from multidict import MultiDict

from gateway.admin import console
from gateway.admin.console import formatting, forms
from gateway.admin.console.reports import Live
from gateway.admin.console.screens import FIRST_MAX, HEADINGS, PAGES, SCREENS, menu, screens_off
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.resource import fields_of
from gateway.core.accounts.administration import KEY_HOLDER, ROLES, Actor
from gateway.core.integrity.reconciliation import NO_FAULTS, DifferenceKind
from gateway.settings.settings import Settings

ROLLING = {
    "window": "rolling",
    "interval": None,
    "length": "5h",
    "resets_at": None,
    "unit": "money",
    "currency": "USD",
}
SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


@pytest.mark.parametrize(
    ("more", "texts"),
    [
        ({}, ("in any 5 hours", "The last 5 hours", "by and by", "")),
        ({"length": "1h", "frees": []}, ("in any hour", "The last hour", "by and by", "")),
        (
            {"frees": [{"at": SOON.isoformat(), "amount": "2.10"}, {"at": "2999-01-02T03:04:05Z", "amount": "1"}]},
            ("in any 5 hours", "The last 5 hours", f"$2.10 at {SOON:%H:%M}, $1.00 at 2999-01-02 03:04", ""),
        ),
        (
            {"window": "first_use", "length": "90m", "steps": [{}, {}]},
            ("in 90 minutes from a first call, 2 steps", "In 90 minutes from a first call", "with a first call", ""),
        ),
        (
            {"window": "calendar", "interval": "month", "carry": {"max": "5.00"}, "carried": "-2.50"},
            ("a month, up to $5.00 goes on", "This month", "never", "$2.50 taken off for use from before"),
        ),
        (
            {"window": "calendar", "interval": "total", "carried": "3.00", "resets_at": "2999-01-02T03:04:05Z"},
            ("in all", "In all", "2999-01-02 03:04", "$3.00 more from before"),
        ),
        (
            {"window": "calendar", "interval": "day", "carried": "0.00"}, ("a day", "This day", "never", ""),
        ),
    ],
)  # fmt: skip
def test_window_of_a_budget_in_words(more: dict[str, Any], texts: tuple[str, ...]) -> None:
    row = ROLLING | more
    said = (formatting.window_text(row), formatting.window_title(row))
    assert (*said, formatting.resets_text(row), formatting.carried_text(row)) == texts


@pytest.mark.parametrize(
    ("used", "remaining", "of", "share"),
    [("30", "95", "$125.00", 24.0), ("30", "-10", "$20.00", 100.0), ("0", "-40", "$0.00", 0.0)],
)
def test_use_of_a_budget_that_carries_is_of_amount_and_carried_together(
    used: str, remaining: str, of: str, share: float
) -> None:
    row = {
        "unit": "money",
        "currency": "USD",
        "amount": "100",
        "used": used,
        "held": "0",
        "remaining": remaining,
    }
    use = formatting.use_of({**row, "carried": "25", "raised_to": None})
    assert use is not None
    assert (use.limit, use.used_share) == (of, share)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (10**12, "1,000,000,000,000"), (-5000, "−5,000"), (None, "—"),
        (2**53, "9,007,199,254,740,992"), ("2500", "2,500"), ("1.50", "1.50"),
    ],
)  # fmt: skip
def test_numbers(value: int | str | None, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.5, "0.5"), (1.234, "1.23"), (99.96, "100"), (999, "999"), (999.6, "1 k"), (1000, "1 k"),
        (1234, "1.23 k"), (12_345, "12.3 k"), (999_499, "999 k"), (999_600, "1 M"), (10**12, "1 T"),
        (123 * 10**12, "123 T"), (-1500, "−1.5 k"),
    ],
)  # fmt: skip
def test_large_number_is_shortened_to_three_digits_and_a_unit(value: float, text: str) -> None:
    assert formatting.short(value) == text


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        ("0.00", "USD", "$0.00"), ("1234567.5", "", "1,234,567.5"), ("-0.50", "EUR", "−€0.50"),
        ("0.000354", "USD", "$0.000354"), ("12.345678901", "USD", "$12.345678901"), ("0.1", "USD", "$0.10"),
        ("1E-9", "GBP", "£0.000000001"), ("3", "USD", "$3.00"), ("7.5", "CHF", "7.5 CHF"),
        ("1000000000000.01", "JPY", "1,000,000,000,000.01 JPY"), (None, "", "—"),
        ("0.000001", "", "0.000001"),
    ],
)  # fmt: skip
def test_money(value: str | None, currency: str, text: str) -> None:
    assert formatting.money(value, currency) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "$0.00"), ("0.354", "$0.354"), ("0.000354123", "$0.000354"), ("0.000000001", "$0.000000001"),
        ("12.345678901", "$12.35"), ("0.0999999", "$0.10"), ("1234.5", "$1,234.50"), ("-0.004", "−$0.004"),
    ],
)  # fmt: skip
def test_approximate_money_amount_is_rounded_to_a_few_digits(value: str, text: str) -> None:
    assert formatting.round_money(value, "USD") == text


def test_dates_and_times_of_lists_are_shown_as_times() -> None:
    dated = [
        (screen, name)
        for screen in SCREENS.values()
        for name, field in screen.resource.out.model_fields.items()
        if "datetime." in str(field.annotation)
    ]
    assert len(dated) > 50
    for screen, name in dated:
        shown = formatting.cell(screen, {name: "2999-01-02T03:04:05Z"}, name, {})
        assert (shown.kind, shown.text[:10]) == ("time", "2999-01-02"), (screen.name, name)
    assert formatting.cell(SCREENS["tax-rates"], {"rate": "0.19"}, "rate", {}).text == "19 %"
    prices = SCREENS["prices"]
    ever = formatting.cell(prices, {"effective_from": "1970-01-01T00:00:00Z"}, "effective_from", {})
    assert (ever.kind, ever.text) == ("time", "always")


def test_money_amounts_in_a_table_column_are_split_for_aligned_decimals() -> None:
    assert formatting.money_parts("12.345678", "USD", 6) == ("$12.34", "5678", "")
    assert formatting.money_parts("0.000354", "USD", 6) == ("$0.000354", "", "")
    assert formatting.money_parts("0", "USD", 6) == ("$0.00", "0000", "")
    assert formatting.money_parts("7", "CHF", 2) == ("7.00", "", " CHF")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 ms"), (0.00042, "0.4 ms"), (0.042, "42 ms"), (1.0, "1.0 s"), (75.0, "75.0 s"),
        (90.0, "1 min 30 s"), (3600.0, "1 h"), (7260.0, "2 h 1 min"), (10**6, "11 d 13 h"),
    ],
)  # fmt: skip
def test_time_span_is_shown_in_the_most_suitable_unit(seconds: float, text: str) -> None:
    assert formatting.time_span(seconds) == text


# Pages of people who are not staff.
OF_OTHERS = {"me", "team", "account"}


def test_every_console_page_is_in_the_menu_exactly_once() -> None:
    found = menu(Actor("builtin:admin", "admin"))
    entries = [entry for part in found.values() for entry in (*part.shown, *part.more)]
    named = {name for name, _, _ in entries}
    assert tuple(found) == HEADINGS
    assert len(entries) == len(named)
    apart = {"token-ledger", "tenant-quotas"}  # on a tenant's page
    assert {*SCREENS, *(page.name for page in PAGES)} - OF_OTHERS == named
    assert RESOURCES.keys() - SCREENS.keys() == apart
    for screen in SCREENS.values():
        known = {*screen.resource.out.model_fields, "state", "quota", "use", "of"}
        assert set(screen.columns) <= known, screen.name
        assert set(screen.filters) <= screen.resource.filters.keys(), screen.name


def test_menu_hides_pages_of_features_that_are_not_configured() -> None:
    off = screens_off(Settings())
    assert {"handovers", "handover-events", "usage-feeds", "usage-events", "dunning-steps"} <= off
    found = menu(Actor("builtin:admin", "admin"), off)
    named = {name for part in found.values() for name, _, _ in (*part.shown, *part.more)}
    assert named == {*SCREENS, *(page.name for page in PAGES)} - off - OF_OTHERS
    assert (
        screens_off(Settings().with_values(stripe_api_key="sk", usage_feed="file", dunning_block_days=9))
        == frozenset()
    )


@pytest.mark.parametrize("role", ["admin", "billing", "operator", "member", "readonly"])
def test_menu_of_an_organization_token_hides_lists_meant_for_staff(role: str) -> None:
    staffs = {
        "token-plans", "exchange-rates", "models", "shares", "business-models", "quarantine", "dead-letters",
        "handovers", "handover-events", "usage-events",
    }  # fmt: skip
    customer = Actor("token:1", role, organization_id=5)
    found = menu(customer)
    named = {name for part in found.values() for name, _, _ in (*part.shown, *part.more)}
    assert not named & staffs
    catalogue = found["Catalogue"]
    assert {name for name, _, _ in (*catalogue.shown, *catalogue.more)} == {
        "services", "subscription-plans", "prices", "organization-services",
    }  # fmt: skip
    health = {"quarantine", "dead-letters"} if role in {"admin", "operator"} else set()
    theirs = menu(replace(customer, is_ours=True))["Operation"]
    assert {name for name, _, _ in theirs.more} == {"webhooks", "webhook-deliveries", *health}


@pytest.mark.parametrize("role", [*ROLES, KEY_HOLDER])
@pytest.mark.parametrize("tenant", [None, 7])
@pytest.mark.parametrize("organization", [None, 5])
def test_menu_shows_at_most_twelve_entries_of_a_role_before_more(
    role: str, organization: int | None, tenant: int | None
) -> None:
    actor = Actor("token:1", role, organization_id=organization, tenant_id=tenant and organization and tenant)
    parts = menu(actor).values()
    assert 1 <= sum(len(part.shown) for part in parts) <= FIRST_MAX


def test_menu_begins_with_the_work_of_a_role() -> None:
    shown = {
        role: {name for part in menu(Actor("token:1", role)).values() for name, _, _ in part.shown}
        for role in ROLES
    }
    assert shown["billing"] >= {"budgets", "invoices", "payments", "organization-subscriptions", "unbilled"}
    assert shown["operator"] >= {"budgets", "raise-requests", "api-keys", "reconciliation"}
    assert shown["member"] >= {"api-keys", "calls", "models"}
    assert shown["admin"] >= {"organizations", "tenants", "prices", "models"}
    assert shown["readonly"] == shown["admin"]


def test_menu_folds_the_list_that_has_only_the_own_organization_or_tenant() -> None:
    for own, reach in (("organizations", {}), ("tenants", {"tenant_id": 7})):
        parts = menu(Actor("token:1", "operator", organization_id=5, **reach))["Access"]
        assert own in {name for name, _, _ in parts.more}
        assert "api-keys" in {name for name, _, _ in parts.shown}


def test_pages_without_a_list_are_called_in_the_menu_as_on_themselves() -> None:
    pages = Path(console.__file__).parent / "templates"
    headings = {
        path.stem: found[1]
        for path in pages.glob("*.html")
        if (found := re.search(r"<h1>([^<{]+)</h1>", path.read_text()))
    }
    called = {page.name: page.title for page in PAGES if page.name in headings}
    assert len(called) >= 6
    assert called == {name: headings[name] for name in called}


def test_every_empty_list_has_a_next_step() -> None:
    for screen in SCREENS.values():
        text, address = screen.next_step
        assert text, screen.name
        known = {"/", *(f"/{name}" for name in SCREENS), *(page.address for page in PAGES)}
        assert address in known - {f"/{screen.name}"}, screen.name


@pytest.mark.parametrize(
    ("status", "word", "tone"),
    [
        (200, "answered", "good"), (400, "wrong request", "calm"), (401, "not allowed", "bad"),
        (402, "limit reached", "warn"), (403, "not allowed", "bad"), (404, "wrong request", "calm"),
        (429, "limit reached", "warn"), (502, "failed", "bad"),
    ],
)  # fmt: skip
def test_call_outcome_has_a_word_and_a_color_for_each_status(status: int, word: str, tone: str) -> None:
    assert formatting.outcome_of(status) == (word, tone)


@pytest.mark.parametrize("name", ["credit-transactions", "feature-usage"])
def test_request_id_in_the_token_ledger_links_to_the_call(name: str) -> None:
    request = "0190aaaa-0000-7000-8000-000000000001"
    found = formatting.cell(SCREENS[name], {"request_id": request}, "request_id", {})
    assert (found.text, found.href) == (request, f"/calls?request_id={request}")
    assert formatting.cell(SCREENS["calls"], {"request_id": request}, "request_id", {}).href == ""
    assert formatting.cell(SCREENS[name], {"request_id": None}, "request_id", {}).kind == "none"


def test_form_derives_field_types_and_required_marks_from_the_api_model() -> None:
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


def test_form_reads_a_number_with_spaces_and_does_not_guess_an_ambiguous_number() -> None:
    """As on the command line, and with blanks that pages are copied with."""
    model: Any = RESOURCES["token-plans"].create
    fields = fields_of(RESOURCES["token-plans"], model)
    for typed, sent in ((" 1 000 000 ", 1_000_000), ("1\u00a0000", 1000), ("1.000", "1.000")):
        found = forms.body_of(fields, MultiDict(total_amount=typed), changes=False)
        assert found["total_amount"] == sent


def test_create_form_sends_only_the_fields_that_were_filled_in() -> None:
    model: Any = RESOURCES["api-keys"].create
    posted = MultiDict(tenant_id="7", name="", models="a\r\n\r\n b ", expires_at="2030-01-31T10:00")
    posted["limits.concurrency"] = "3"
    assert forms.body_of(fields_of(RESOURCES["api-keys"], model), posted, changes=False) == {
        "tenant_id": 7,
        "models": ["a", "b"],
        "expires_at": "2030-01-31T10:00:00Z",
        "limits": {"concurrency": 3},
    }


def test_change_form_sends_only_the_fields_that_were_changed() -> None:
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


def test_usage_chart_stacks_the_use_of_each_day() -> None:
    used = [(DAYS[0], 1, 30), (DAYS[0], 2, 10), (DAYS[2], 2, 20)]
    chart = formatting.stacked(used, DAYS, {1: "a", 2: "b"}, unit="tokens")
    assert (chart.series, chart.top, chart.total) == (("a", "b"), 40, 60)
    assert [(column.total, column.parts) for column in chart.columns] == [
        (40, (30, 10)),
        (0, (0, 0)),
        (20, (0, 20)),
    ]
    assert [(bar.colour, bar.y, bar.height) for bar in chart.columns[0].bars] == [
        (0, 25.0, 75.0),
        (1, 0.0, 25.0),
    ]
    assert chart.columns[1].seconds == 1767312000
    assert formatting.stacked([], DAYS, {}, unit="tokens").is_empty


def test_chart_merges_groups_beyond_the_maximum_and_keeps_the_exact_total() -> None:
    used = [(DAYS[0], n, Decimal(f"{100 - n}.000000001")) for n in range(20)]
    chart = formatting.stacked(used, DAYS[:1], {n: f"m{n}" for n in range(20)}, unit="cost", currency="USD")
    assert len(chart.series) == formatting.SERIES_MAX
    assert chart.legend[-1] == (formatting.SERIES_MAX, formatting.REST)
    assert sum(chart.columns[0].parts) == chart.total == sum(amount for _, _, amount in used)
    assert chart.render_amount(chart.total) == "$1,810.00000002"


@pytest.mark.parametrize(
    ("interval", "label"), [("hour", "2026-01-31 13:00"), ("day", "2026-01-31"), ("month", "2026-01")]
)
def test_chart_formats_the_time_label_by_the_interval_of_the_chart(interval: str, label: str) -> None:
    at = datetime(2026, 1, 31, 13, tzinfo=UTC)
    chart = formatting.stacked([(at, 1, 1)], [at], {1: "a"}, unit="tokens", interval=interval)
    assert chart.label(chart.columns[0]) == label


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_live_rates_restart_from_zero_after_the_request_counts_are_reset() -> None:
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


async def test_live_numbers_are_marked_unknown_when_the_counters_cannot_be_read() -> None:
    async def snapshot() -> dict[str, Any]:
        raise OSError

    assert (await Live(snapshot, Clock()).now())["is_known"] is False


def test_reconciliation_differences_that_are_faults_and_no_others_are_shown_as_bad() -> None:
    tones = {kind: formatting.status_tone(kind) for kind in DifferenceKind}
    assert {kind for kind, tone in tones.items() if tone == "bad"} == {*DifferenceKind} - NO_FAULTS
    assert "plain" not in tones.values()
