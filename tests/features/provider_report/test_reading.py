"""Reports as providers write them are read exactly; what is wrong in one is said with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.features.provider_report.comparison import (
    COUNT_MAX,
    BadReport,
    ProviderReport,
    ReportLine,
    money,
)
from gateway.features.provider_report.reading import FORMATS, ReportPosition, add_page, read_file, within

SAMPLES = Path(__file__).parent / "samples"
FIRST, SECOND = date(2026, 3, 1), date(2026, 3, 2)
GPT, OPUS = "gpt-4o-2024-08-06", "claude-opus-4-5-20251101"


def read(data: bytes, provider: str = "openai") -> ProviderReport:
    report = ProviderReport()
    read_file(report, data, ReportPosition("report.json", FORMATS[provider]))
    return report


def sample(name: str) -> ProviderReport:
    return read((SAMPLES / name).read_bytes(), name.partition("_")[0])


def counts(requests: int | None, *others: int) -> dict[str, Decimal]:
    found = {} if requests is None else {"requests": Decimal(requests)}
    return found | dict(
        zip(("input", "cache_read", "cache_write", "output"), map(Decimal, others), strict=True)
    )


def cached(hour: int, *others: int) -> dict[str, Decimal]:
    """Of a report that tells entries of a cache for an hour apart."""
    return counts(None, *others) | {"cache_write_1h": Decimal(hour)}


def cost(amount: str) -> dict[str, Decimal]:
    return {"cost": Decimal(amount)}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("openai_completions.json", {GPT: counts(6, 220, 700, 100, 503)}),
        ("openai_embeddings.json", {"text-embedding-3-small": counts(7, 12345, 0, 0, 0)}),
        (
            "openai_costs.json",
            {
                GPT: cost("0.006625"),
                "gpt-audio-mini-2025-12-15": cost("1"),
                "web search tool calls": cost("0.03"),
            },
        ),
        ("openai_usage.csv", {GPT: counts(11, 54000, 6000, 0, 10700)}),
        ("openai_costs.csv", {GPT: cost("0.00383598")}),
        ("anthropic_usage.json", {OPUS: cached(15000, 3, 180000, 20000, 500)}),
        ("anthropic_cost.json", {OPUS: cost("1.3279062"), "web search usage": cost("0.07")}),
        ("anthropic_usage.csv", {OPUS: cached(1, 47000, 20, 16001, 17000)}),
        ("anthropic_cost.csv", {"claude opus 4.5": cost("0.07"), "web_search": cost("0.07")}),
    ],
)
def test_provider_report_amounts_are_read_exactly(name: str, rows: dict[str, dict[str, Decimal]]) -> None:
    report = sample(name)
    assert report.rows == {(FIRST, model): amounts for model, amounts in rows.items()}
    assert report.currency == ("USD" if "cost" in name else "")


def test_provider_report_includes_days_without_any_use() -> None:
    for name in ("openai_completions.json", "openai_usage.csv", "openai_costs.csv", "anthropic_usage.json"):
        assert sample(name).days == {FIRST, SECOND}


def test_several_provider_report_files_are_read_as_a_single_report() -> None:
    report = ProviderReport()
    for name in ("openai_completions.json", "openai_embeddings.json", "openai_costs.json"):
        read_file(report, (SAMPLES / name).read_bytes(), ReportPosition(name, FORMATS["openai"]))
    assert report.rows[FIRST, GPT] == counts(6, 220, 700, 100, 503) | cost("0.006625")
    assert report.states == {"requests", "input", "cache_read", "cache_write", "output", "cost"}


def document(name: str) -> Any:
    return json.loads((SAMPLES / name).read_bytes())


def test_provider_report_may_be_a_json_array_or_a_json_document_per_line() -> None:
    name = "openai_completions.json"
    last, whole = document(name), sample(name).rows
    first = {**last, "data": last["data"][1:], "has_more": True, "next_page": "AAAA"}
    two = [first, {**last, "data": last["data"][:1]}]
    for forms in (two, last["data"]):
        assert read(json.dumps(forms).encode()).rows == whole
        assert read("\n\n".join(map(json.dumps, forms)).encode() + b"\n").rows == whole
        assert read(json.dumps(forms, indent=1).encode()).rows == whole


def changed(name: str, change: Callable[[Any], object]) -> bytes:
    page = document(name)
    change(page["data"][0]["results"][0])
    return json.dumps(page).encode()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("openai_completions.json", field) for field in
          ("object", "model", "num_model_requests", "input_tokens", "input_cached_tokens", "output_tokens")),
        *(("openai_embeddings.json", field) for field in ("model", "num_model_requests", "input_tokens")),
        *(("openai_costs.json", field) for field in ("amount", "line_item")),
        *(("anthropic_usage.json", field) for field in
          ("model", "uncached_input_tokens", "cache_read_input_tokens", "cache_creation", "output_tokens")),
        *(("anthropic_cost.json", field) for field in ("currency", "model", "description")),
    ],
)  # fmt: skip
def test_missing_provider_report_field_is_refused_with_the_place_named(name: str, field: str) -> None:
    for change in (lambda result: result.pop(field), lambda result: result.update({field: []})):
        with pytest.raises(BadReport, match=rf"report.json, data\[0\], results\[0\].*{field}.*Readable are"):
            read(changed(name, change), name.partition("_")[0])


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("openai_completions.json", "model", None, "grouped by model"),
        ("openai_completions.json", "input_tokens", -1, ">= 0"),
        ("openai_completions.json", "input_tokens", 699, "input_tokens must not be less"),
        ("openai_completions.json", "output_tokens", COUNT_MAX + 1, "<= 9007199254740991"),
        ("openai_completions.json", "output_tokens", 1.5, "got `float`"),
        ("openai_completions.json", "object", "organization.usage.images.result", "images"),
        ("openai_completions.json", "model", "m" * 513, "512 characters"),
        ("openai_costs.json", "line_item", None, "grouped by line_item"),
        (
            "openai_costs.json",
            "amount",
            {"value": "NaN", "currency": "usd"},
            "amount.value must be a decimal",
        ),
        ("openai_costs.json", "amount", {"value": 1e16, "currency": "usd"}, "15 digits before the point"),
        ("openai_costs.json", "amount", {"value": 1e-41, "currency": "usd"}, "40 behind it"),
        ("openai_costs.json", "amount", {"value": None, "currency": "usd"}, "amount.value must be a decimal"),
        (
            "openai_costs.json",
            "amount",
            {"value": 1, "currency": "eur"},
            "one currency, not in EUR and in USD",
        ),
        ("anthropic_cost.json", "amount", 9, "Expected `str`"),
        ("anthropic_cost.json", "amount", "9,0", "amount must be a decimal number such as 12.50"),
        (
            "anthropic_usage.json",
            "cache_creation",
            {"ephemeral_5m_input_tokens": 1},
            "ephemeral_1h_input_tokens",
        ),
    ],
)
def test_wrong_provider_report_field_is_refused_with_the_expected_value(
    name: str, field: str, value: object, said: str
) -> None:
    with pytest.raises(BadReport) as refused:
        read(changed(name, lambda result: result.update({field: value})), name.partition("_")[0])
    assert said in refused.value.message


def test_error_message_about_a_huge_provider_report_field_is_cut_short() -> None:
    data = changed("openai_completions.json", lambda result: result.update(object="o" * 10**6))
    with pytest.raises(BadReport) as refused:
        read(data)
    assert len(refused.value.message) < 600


def test_anthropic_cost_report_without_model_and_description_is_refused_with_advice_to_group() -> None:
    data = changed("anthropic_cost.json", lambda result: result.update(model=None, description=None))
    with pytest.raises(BadReport, match=r"group_by\[\]=description"):
        read(data, "anthropic")


def bucket(**fields: object) -> bytes:
    return json.dumps({"start_time": 1772323200, "end_time": 1772409600, "results": [], **fields}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "must not be empty"),
        (b" \n\t\n", "must not be empty"),
        (b"\xff\xfe{", "UTF-8, and byte 0"),
        (b"{", "Input data was truncated"),
        (b'{"data": []}', "has_more"),
        (b"{}", "`data`, or a bucket"),
        (b"[1]", r", [0]: Expected `object`, got `int`"),
        (b'{"data": [], "has_more": true}', "next_page"),
        (b'{"data": [], "has_more": true, "next_page": "AAA="}', "the page 'AAA=' must follow"),
        (b'{"data": [], "has_more": true, "next_page": "' + b"A" * 4097 + b'"}', "length <= 4096"),
        (b'{"data": [{"start_time": 1772323200, "results": []}], "has_more": false}', "`end_time`"),
        (bucket(end_time=1772409601), "within one day of UTC"),
        (bucket(end_time=1772323200), "within one day of UTC"),
        (bucket(start_time=-1), ">= 0"),
        (bucket(end_time=10**18), "<= 4102444800"),
        (bucket() + b"\n{" + bucket(), "line 2"),
        (b"[" * 100_000, "too many brackets"),
        (b'{"data":' * 100_000, "Expected `array`"),
        (b'{"data":[' * 100_000, "too many brackets"),
    ],
)
def test_malformed_provider_report_page_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadReport) as refused:
        read(data)
    assert said in refused.value.message


@pytest.mark.parametrize("name", [path.name for path in sorted(SAMPLES.glob("*.csv"))])
def test_missing_csv_column_of_a_provider_report_is_named(name: str) -> None:
    head, first, *_ = (SAMPLES / name).read_text("utf-8-sig").splitlines()
    provider = name.partition("_")[0]
    table = next(table for table in FORMATS[provider].tables if table.mark in head.split(","))
    for column in table.columns:
        renamed = ",".join(f"other_{cell}" if cell == column else cell for cell in head.split(","))
        with pytest.raises(BadReport, match=rf"line 1: .*{column if column != table.mark else 'columns'}"):
            read(f"{renamed}\n{first}\n".encode(), provider)


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("openai_usage.csv", "59200.0", "59200.5", "line 2: column input_tokens must be a whole number"),
        ("openai_usage.csv", "59200.0", "-1", "line 2: column input_tokens must be a whole number"),
        ("openai_usage.csv", "800.0", "", "line 3: column input_tokens must be a whole number"),
        ("openai_usage.csv", "1772409600,1772496000", "1772409601,1", "line 4: column start_time must be"),
        ("openai_usage.csv", "1772409600,1772496000", "9" * 30 + ",1", "line 4: column start_time"),
        ("openai_usage.csv", f"key_other,{GPT}", "key_other,", "line 3: column model must name one"),
        ("openai_usage.csv", ",0.0\n1772409600", "\n1772409600", "line 3: it must have 24 cells"),
        ("openai_costs.csv", '"gpt-4o-2024-08-06, input"', "", "line 2: columns line_item"),
        ("openai_costs.csv", "0.00383598", "$0.00383598", "line 2: column amount_value must be a decimal"),
        ("openai_costs.csv", '"gpt-4o', 'x"gpt-4o', "it must have 17 cells"),
        ("openai_costs.csv", ', input"', ', input"x', "line 2"),
        ("openai_costs.csv", "usd,1000", f'usd,"{"1" * 200_000}"', "field larger than"),
        ("anthropic_usage.csv", "2026-03-01,", "03/01/2026,", "column usage_date_utc must be a day"),
        ("anthropic_usage.csv", "46981", "46,981", "it must have 14 cells"),
        ("anthropic_usage.csv", OPUS, "", "line 2: column model_version"),
        ("anthropic_cost.csv", ",0.02,", ",,", "line 3: column cost_usd"),
        ("anthropic_cost.csv", "workspace", "model", "each once"),
        ("anthropic_cost.csv", "cost_usd", "cost", "one of the columns cost_usd, usage_output_tokens"),
    ],
)  # fmt: skip
def test_wrong_csv_row_of_a_provider_report_is_refused_with_the_line_number(
    name: str, old: str, new: str, said: str
) -> None:
    text = (SAMPLES / name).read_text("utf-8-sig")
    assert old in text
    with pytest.raises(BadReport) as refused:
        read(text.replace(old, new, 1).encode(), name.partition("_")[0])
    assert said in refused.value.message


def test_provider_report_page_contains_the_token_of_the_next_page() -> None:
    page = json.dumps({"data": [], "has_more": True, "next_page": "AAA="}).encode()
    assert add_page(ProviderReport(), page, ReportPosition("api", FORMATS["anthropic"])) == "AAA="
    assert not add_page(
        ProviderReport(), page.replace(b"true", b"false"), ReportPosition("api", FORMATS["anthropic"])
    )


def test_provider_report_cut_to_a_time_span_contains_only_days_of_that_span() -> None:
    report = sample("openai_completions.json")
    assert within(report, SECOND, date(2026, 3, 9)).rows == {}
    assert within(report, FIRST, SECOND).days == {FIRST}
    assert within(report, FIRST, SECOND).rows == report.rows


def test_provider_report_of_more_than_the_maximum_of_rows_is_refused() -> None:
    report = ProviderReport(rows_max=2)
    for model in ("a", "b", "a"):
        report.add(FIRST, ReportLine(model, {}))
    with pytest.raises(BadReport, match="at most 2 days and models"):
        report.add(FIRST, ReportLine("c", {}))


@given(st.text(), st.sampled_from(sorted(FORMATS)))
def test_random_text_is_refused_as_a_provider_report(text: str, provider: str) -> None:
    with pytest.raises(BadReport):
        read(text.encode("utf-8", "surrogatepass"), provider)


@given(st.binary(max_size=40), st.integers(0, 400), st.sampled_from(sorted(SAMPLES.iterdir())))
def test_a_damaged_report_is_read_or_refused(some: bytes, at: int, path: Path) -> None:
    data = path.read_bytes()
    place = ReportPosition("report", FORMATS[path.name.partition("_")[0]])
    with suppress(BadReport):
        read_file(ProviderReport(), data[:at] + some + data[at + len(some) :], place)


@given(st.decimals(-(10**14), 10**14, allow_nan=False, places=12))
def test_money_amount_of_a_provider_report_is_read_exactly(amount: Decimal) -> None:
    assert money(f"{amount:f}") == amount
    assert money(f"{amount:E}") == amount
