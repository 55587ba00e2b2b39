"""What both sides have is matched by day and model; a difference is never lost, and none is made up."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.features.provider_report.comparison import (
    FIELDS,
    BadReport,
    ComparisonResult,
    NameMatch,
    ProviderReport,
    ReportLine,
    Tolerance,
    bare,
    compare_reports,
    counted,
    groups,
    is_dated,
    lost_rows,
    read_tolerance,
    total,
)

DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
NONE = Tolerance()


def report(currency: str = "", **inputs: int | str) -> ProviderReport:
    """A report of one day: input by model; a text is a cost."""
    made = ProviderReport()
    for model, said in inputs.items():
        name = "cost" if isinstance(said, str) else "input"
        made.add(
            DAY,
            ReportLine(model.replace("_", "-"), {name: Decimal(said)}, currency if name == "cost" else ""),
        )
    return made


def verdicts(
    ours: ProviderReport, theirs: ProviderReport, tolerance: Tolerance = NONE, **answered: set[str]
) -> dict[str, str]:
    asked = {name.replace("_", "-"): names for name, names in answered.items()}
    return {row.model: row.verdict.value for row in compare_reports(ours, theirs, tolerance, asked)}


def test_provider_report_comparison_gives_a_verdict_for_each_day_and_model() -> None:
    ours, theirs = report(a=1, b=2, c=3), report(a=1, b=5, d=4)
    assert verdicts(ours, theirs) == {"a": "matched", "b": "differs", "c": "ours only", "d": "theirs only"}
    rows = compare_reports(ours, theirs, NONE, {})
    assert counted(rows) == {"matched": 1, "differs": 1, "ours only": 1, "theirs only": 1}
    assert (rows[1].difference("input"), rows[1].percent("input")) == (Decimal(-3), Decimal("-60.00"))
    assert rows[2].percent("input") is None
    whole = total(rows, theirs.states)
    assert (whole.verdict, whole.ours, whole.theirs) == (
        ComparisonResult.DIFFERS, {"input": Decimal(6)}, {"input": Decimal(10)},
    )  # fmt: skip
    theirs.rows[NEXT, "a"] = {"input": Decimal(1)}
    assert [(row.day, row.model) for row in compare_reports(ours, theirs, NONE, {})][-1] == (NEXT, "a")


def test_provider_report_comparison_covers_only_fields_that_the_report_contains() -> None:
    ours = report("USD", a=5)
    ours.add(DAY, ReportLine("a", {"requests": Decimal(9), "cost": Decimal(1)}, "USD"))
    assert verdicts(ours, report(a=5)) == {"a": "matched"}
    # Of a report with costs, what it does not charge for is a cost of nothing.
    assert verdicts(ours, report("USD", a=5, b="1")) == {"a": "differs", "b": "theirs only"}


def test_provider_report_comparison_ignores_calls_that_used_no_tokens() -> None:
    ours = report()
    ours.add(DAY, ReportLine("mistyped", {"requests": Decimal(3), "input": Decimal(0), "cost": Decimal(0)}))
    assert compare_reports(ours, report(mistyped=0), NONE, {}) == []


@pytest.mark.parametrize(
    ("name", "plain", "dated"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        ("claude-sonnet-4-20250514", "claude-sonnet-4", True),
        ("claude-sonnet-4@20250514", "claude-sonnet-4", True),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo", True),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku", False),
        ("Claude Haiku 4.5", "claude-haiku-4-5", False),
        ("Claude 3.5 Sonnet 2024-10-22", "claude-3-5-sonnet", True),
        ("gpt-4.1", "gpt-4.1", False),
        ("-0613", "-0613", False),
        ("model-9999", "model-9999", False),
    ],
)
def test_dated_model_name_is_shortened_to_the_name_without_the_date(
    name: str, plain: str, dated: bool
) -> None:
    assert (bare(name), is_dated(name)) == (plain, dated)


def test_use_of_a_model_without_a_date_is_compared_with_the_sum_of_all_dated_versions() -> None:
    ours, theirs = report(gpt_4o=100, other=1), report(other=1)
    for model, tokens in (("gpt-4o-2024-08-06", 60), ("gpt-4o-2024-11-20", 50)):
        theirs.add(DAY, ReportLine(model, {"input": Decimal(tokens)}))
    ours.add(DAY, ReportLine("gpt-4o-2024-11-20", {"input": Decimal(10)}))
    row, other = compare_reports(ours, theirs, NONE, {})
    assert (row.model, row.verdict, row.by, other.by) == (
        "gpt-4o",
        ComparisonResult.MATCHED,
        NameMatch.DATE,
        NameMatch.NAME,
    )
    assert row.our_names == ("gpt-4o", "gpt-4o-2024-11-20")
    assert row.their_names == ("gpt-4o-2024-08-06", "gpt-4o-2024-11-20")


def test_model_versions_of_different_dates_are_not_compared_with_each_other() -> None:
    ours, theirs = ProviderReport(), ProviderReport()
    ours.add(DAY, ReportLine("gpt-4o-2024-08-06", {"input": Decimal(1)}))
    theirs.add(DAY, ReportLine("gpt-4o-2024-11-20", {"input": Decimal(1)}))
    assert verdicts(ours, theirs) == {"gpt-4o-2024-08-06": "ours only", "gpt-4o-2024-11-20": "theirs only"}


def test_model_alias_is_compared_under_the_name_of_the_model_that_answered() -> None:
    ours, theirs = report(house=7), report(gpt_5=7)
    assert lost_rows(compare_reports(ours, theirs, NONE, {})) == {"house"}
    [row] = compare_reports(ours, theirs, NONE, {"house": {"gpt-5", "gpt-unknown"}})
    assert (row.verdict, row.by, row.our_names, row.their_names) == (
        ComparisonResult.MATCHED, NameMatch.ANSWERED, ("house",), ("gpt-5",),
    )  # fmt: skip
    assert lost_rows(compare_reports(ours, report(), NONE, {})) == set()


@pytest.mark.parametrize(("requests", "verdict"), [(9, "matched"), (10, "matched"), (11, "differs")])
def test_provider_may_report_fewer_requests_than_the_gateway_but_not_more(
    requests: int, verdict: str
) -> None:
    ours, theirs = report(a=1), report(a=1)
    ours.add(DAY, ReportLine("a", {"requests": Decimal(10)}))
    theirs.add(DAY, ReportLine("a", {"requests": Decimal(requests)}))
    assert verdicts(ours, theirs) == {"a": verdict}


def test_provider_report_comparison_refuses_costs_in_two_currencies() -> None:
    with pytest.raises(BadReport, match="Our costs are in EUR, theirs in USD"):
        compare_reports(report("EUR", a="1"), report("USD", a="1"), NONE, {})


def test_provider_report_comparison_ignores_rounding_below_a_nano_unit() -> None:
    ours, theirs = report("USD", a="0.000000003"), report("USD", a="0.0000000021")
    assert verdicts(ours, theirs) == {"a": "matched"}
    assert verdicts(ours, report("USD", a="0.0000000019999")) == {"a": "differs"}
    ours.add(DAY, ReportLine("a", {"requests": Decimal(3)}))
    assert verdicts(ours, report("USD", a="0.000000006")) == {"a": "matched"}
    assert verdicts(ours, report("USD", a="0.0000000061")) == {"a": "differs"}


@pytest.mark.parametrize(
    ("texts", "verdict"),
    [
        ([], "differs"), (["1%"], "matched"), (["0.9%"], "differs"), (["input=1%"], "matched"),
        (["cost=1%"], "differs"), (["9"], "differs"), (["10"], "matched"), (["1%", "input=0.5%"], "differs"),
        (["0.1%", "input=10"], "matched"),
    ],
)  # fmt: skip
def test_difference_within_a_percentage_or_amount_of_tolerance_is_accepted(
    texts: list[str], verdict: str
) -> None:
    assert verdicts(report(a=1010), report(a=1000), read_tolerance(texts)) == {"a": verdict}
    assert verdicts(report(a=990), report(a=1000), read_tolerance(texts)) == {"a": verdict}


@pytest.mark.parametrize(
    "text", ["", "%", "-1", "much", "tokens=1", "input=", "=1", "1%%", "cost=-1%", "nan"]
)
def test_malformed_tolerance_of_a_provider_report_comparison_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        read_tolerance([text])


names = st.sampled_from(
    ["a", "a-latest", "a-2024-08-06", "a-20250514", "a-0613", "b", "b-0125", "c 4.5", "c-4-5-20250101", "d"]
)
days = st.sampled_from([DAY, NEXT])
amounts = st.fixed_dictionaries(
    {name: st.decimals(0, 10**12, places=9 if name == "cost" else 0) for name in FIELDS}
)
lines = st.lists(st.tuples(days, names, amounts), max_size=12)


def made(some: list[tuple[date, str, dict[str, Decimal]]]) -> ProviderReport:
    whole = ProviderReport()
    for day, name, said in some:
        whole.add(day, ReportLine(name, said))
    return whole


@given(lines, lines, st.dictionaries(names, st.sets(names)))
def test_provider_report_comparison_rows_add_up_to_the_totals_of_both_reports(
    mine: list[tuple[date, str, dict[str, Decimal]]],
    its: list[tuple[date, str, dict[str, Decimal]]],
    answered: dict[str, set[str]],
) -> None:
    ours, theirs = made(mine), made(its)
    rows = compare_reports(ours, theirs, NONE, answered)
    whole = total(rows, FIELDS)
    for name in FIELDS[1:]:
        assert whole.ours.get(name, 0) == sum(said[name] for *_, said in mine)
        assert whole.theirs.get(name, 0) == sum(said[name] for *_, said in its)
    for row in rows:
        assert bool(row.our_names) == (row.verdict is not ComparisonResult.THEIRS_ONLY)
        assert bool(row.their_names) == (row.verdict is not ComparisonResult.OURS_ONLY)
        differ = row.difference("requests") < 0 or any(row.difference(name) for name in FIELDS[1:-1])
        if row.verdict is ComparisonResult.MATCHED:
            assert not differ
        assert row.verdict is not ComparisonResult.DIFFERS or differ or row.difference("cost")


@given(lines)
def test_a_report_matches_itself(mine: list[tuple[date, str, dict[str, Decimal]]]) -> None:
    assert {row.verdict for row in compare_reports(made(mine), made(mine), NONE, {})} <= {
        ComparisonResult.MATCHED
    }


@given(st.sets(names), st.dictionaries(names, st.sets(names)))
def test_each_model_name_is_compared_in_a_single_group_of_names(
    some: set[str], answered: dict[str, set[str]]
) -> None:
    found = groups(some, answered)
    assert sorted(name for group in found for name in group) == sorted(some)
