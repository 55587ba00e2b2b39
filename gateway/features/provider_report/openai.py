"""OpenAI's reports: `/v1/organization/usage/completions`, `…/embeddings`, `/v1/organization/costs`, and CSV.

Source: OpenAI's API reference, "Usage" and "Costs". `input_tokens` includes cached and written tokens. The
`line_item` of a cost begins with its model, as in `gpt-4o-2024-08-06, cached input`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated

import msgspec

from gateway.features.provider_report.comparison import (
    DAYS_A_PAGE,
    Count,
    CsvExport,
    Format,
    Name,
    ReportLine,
    cell,
    count,
    money,
)

_YEAR_2100_S = 4_102_444_800
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=_YEAR_2100_S)]
# A tier precedes the model, a modality follows it, and the kind of token comes after a comma.
_LINE_ITEM = re.compile(r"(?:[\w -]+ \| )?(?P<model>[^\s,|]+)(?: (?:text|audio|image))?, .+", re.ASCII)


class _OpenAiBucket(msgspec.Struct):
    start_time: _Seconds
    end_time: _Seconds
    results: list[msgspec.Raw]


class _Completions(msgspec.Struct, tag_field="object", tag="organization.usage.completions.result"):
    model: Name
    num_model_requests: Count
    input_tokens: Count
    input_cached_tokens: Count
    output_tokens: Count
    input_cache_write_tokens: Count | None = None


class _Embeddings(msgspec.Struct, tag_field="object", tag="organization.usage.embeddings.result"):
    model: Name
    num_model_requests: Count
    input_tokens: Count


class _Amount(msgspec.Struct):
    value: msgspec.Raw
    currency: Name


class _OpenAiCosts(msgspec.Struct, tag_field="object", tag="organization.costs.result"):
    amount: _Amount
    line_item: Name


_results = msgspec.json.Decoder(_Completions | _Embeddings | _OpenAiCosts)
_buckets = msgspec.json.Decoder(_OpenAiBucket)


def _bucket(raw: bytes) -> tuple[datetime, datetime, list[msgspec.Raw]]:
    bucket = _buckets.decode(raw)
    return (
        datetime.fromtimestamp(bucket.start_time, UTC), datetime.fromtimestamp(bucket.end_time, UTC),
        bucket.results,
    )  # fmt: skip


def _result(raw: bytes) -> ReportLine:
    """Return the line of the report for a result of OpenAI's API of costs or usage."""
    result = _results.decode(raw)
    if isinstance(result, _OpenAiCosts):
        try:
            value = money(bytes(result.amount.value).decode().strip('"'))
        except ValueError as error:
            raise ValueError(f"amount.value {error}") from error
        return _cost(result.line_item, value, result.amount.currency)
    if isinstance(result, _Embeddings):
        return _usage_line(result.model, result.num_model_requests, result.input_tokens)
    return _usage_line(
        result.model,
        result.num_model_requests,
        result.input_tokens,
        cached=result.input_cached_tokens,
        written=result.input_cache_write_tokens or 0,
        output=result.output_tokens,
    )


def _usage_line(
    model: str, requests: int, read: int, *, cached: int = 0, written: int = 0, output: int = 0
) -> ReportLine:
    """Return the usage of a model as a line; raise `ValueError` if parts exceed the input."""
    if cached + written > read:
        raise ValueError("input_tokens must not be less than those of it that were cached or written")
    counts = {
        "requests": requests, "input": read - cached - written, "cache_read": cached,
        "cache_write": written, "output": output,
    }  # fmt: skip
    return ReportLine(model, {name: Decimal(number) for name, number in counts.items()})


def _cost(line_item: str, value: Decimal, currency: str) -> ReportLine:
    """Return a report's line for a cost; without a model, as for tools, `line_item` is its name."""
    named = _LINE_ITEM.fullmatch(line_item)
    return ReportLine(named["model"] if named else line_item, {"cost": value}, currency.upper())


# --- CSV, as the dashboard exports it; a day without anything is a row of nothing but its time -------------
def _read_usage_row(row: Mapping[str, str]) -> tuple[date, ReportLine | None]:
    """Return the day and the usage in a row of an export; None for an empty row."""
    day = cell(row, "start_time", _day)
    if not row["model"] and not row["num_model_requests"]:
        return day, None
    if not row["model"]:
        raise ValueError("column model must name one: export the usage grouped by model")
    more = ("input_cached_tokens", "input_cache_write_tokens", "output_tokens")
    cached, written, output = (cell(row, name, count) if row.get(name) else 0 for name in more)
    requests, read = cell(row, "num_model_requests", count), cell(row, "input_tokens", count)
    return day, _usage_line(row["model"], requests, read, cached=cached, written=written, output=output)


def _read_cost_row(row: Mapping[str, str]) -> tuple[date, ReportLine | None]:
    """Return the day and the cost in a row of an export; None for an empty row."""
    day = cell(row, "start_time", _day)
    if not row["amount_value"]:
        return day, None
    if not row["line_item"] or not row["amount_currency"]:
        raise ValueError("columns line_item and amount_currency must be filled: export costs by line item")
    return day, _cost(row["line_item"], cell(row, "amount_value", money), row["amount_currency"])


def _day(text: str) -> date:
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_YEAR_2100_S)) else -1
    if not 0 <= seconds < _YEAR_2100_S or seconds % 86_400:
        raise ValueError("must be the first second of a day in UTC, as Unix time")
    return datetime.fromtimestamp(seconds, UTC).date()


def _span(since: date, until: date) -> dict[str, str]:
    return {"start_time": _unix_s(since), "end_time": _unix_s(until)}


def _unix_s(day: date) -> str:
    return str((day - date(1970, 1, 1)) // timedelta(seconds=1))


_DAILY = {"bucket_width": "1d", "limit": str(DAYS_A_PAGE)}
FORMAT = Format(
    name="openai",
    wanted="OpenAI's usage of completions or embeddings grouped by model, or its costs grouped by line_item",
    bucket=_bucket,
    result=_result,
    tables=(
        CsvExport(
            "amount_value", ("start_time", "amount_value", "amount_currency", "line_item"), _read_cost_row
        ),
        CsvExport(
            "output_tokens",
            ("start_time", "model", "num_model_requests", "input_tokens", "input_cached_tokens"),
            _read_usage_row,
        ),
        CsvExport("num_model_requests", ("start_time", "model", "input_tokens"), _read_usage_row),
    ),
    url="https://api.openai.com",
    key_variable="OPENAI_ADMIN_KEY",
    questions=(
        ("/v1/organization/usage/completions", _DAILY | {"group_by": "model"}),
        ("/v1/organization/usage/embeddings", _DAILY | {"group_by": "model"}),
        ("/v1/organization/costs", _DAILY | {"group_by": "line_item"}),
    ),
    span=_span,
    headers=lambda key: {"Authorization": f"Bearer {key}"},
)
