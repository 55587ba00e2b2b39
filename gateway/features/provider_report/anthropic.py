"""Anthropic's reports: `/v1/organizations/usage_report/messages`, `/v1/organizations/cost_report`, and CSV.

Source: Anthropic's Admin API reference. A cost is in hundredths of its currency; requests are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

import msgspec

from gateway.features.provider_report.comparison import (
    DAYS_A_PAGE,
    EXACT,
    Count,
    CsvExport,
    Format,
    Name,
    ReportLine,
    cell,
    count,
    money,
)

_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_NO_MODEL = "(no model)"


class _AnthropicBucket(msgspec.Struct):
    starting_at: _Moment
    ending_at: _Moment
    results: list[msgspec.Raw]


class _CacheWrites(msgspec.Struct):
    ephemeral_5m_input_tokens: Count
    ephemeral_1h_input_tokens: Count


class _Messages(msgspec.Struct):
    model: Name
    uncached_input_tokens: Count
    cache_read_input_tokens: Count
    cache_creation: _CacheWrites
    output_tokens: Count


class _Cost(msgspec.Struct):
    amount: str
    currency: Name
    model: Name | None
    description: Name | None


class _Kind(msgspec.Struct):
    amount: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_buckets = msgspec.json.Decoder(_AnthropicBucket)
_kinds = msgspec.json.Decoder(_Kind)
_messages = msgspec.json.Decoder(_Messages)
_costs = msgspec.json.Decoder(_Cost)


def _bucket(raw: bytes) -> tuple[datetime, datetime, list[msgspec.Raw]]:
    bucket = _buckets.decode(raw)
    return bucket.starting_at, bucket.ending_at, bucket.results


def _result(raw: bytes) -> ReportLine:
    """Return the line of the report for a result of Anthropic's usage or cost report."""
    if _kinds.decode(raw).amount is not msgspec.UNSET:
        return _cost(_costs.decode(raw))
    result = _messages.decode(raw)
    written = result.cache_creation
    return _usage(
        result.model, result.uncached_input_tokens, result.cache_read_input_tokens,
        (written.ephemeral_5m_input_tokens, written.ephemeral_1h_input_tokens), result.output_tokens,
    )  # fmt: skip


def _cost(cost: _Cost) -> ReportLine:
    """Return a report's line for a cost in Anthropic's answer.

    Costs of tools have no model: then the description is the line's name.
    """
    name = cost.model or cost.description
    if name is None:
        raise ValueError("model and description must not both be null: ask with group_by[]=description")
    try:
        amount = EXACT.scaleb(money(cost.amount), Decimal(-2))
    except ValueError as error:
        raise ValueError(f"amount {error}") from error
    return ReportLine(name, {"cost": amount}, cost.currency.upper())


def _usage(model: str, read: int, cached: int, written: tuple[int, int], output: int) -> ReportLine:
    """Return the line of a model's tokens; `written` are cache writes for five minutes and for an hour."""
    counts = {
        "input": read, "cache_read": cached, "cache_write": sum(written), "cache_write_1h": written[1],
        "output": output,
    }  # fmt: skip
    return ReportLine(model, {name: Decimal(number) for name, number in counts.items()})


# --- CSV, as the Console exports it -----------------------------------------------------------------------

_COUNTS = (
    "usage_input_tokens_no_cache", "usage_input_tokens_cache_read", "usage_input_tokens_cache_write_5m",
    "usage_input_tokens_cache_write_1h", "usage_output_tokens",
)  # fmt: skip


def _usage_row(row: Mapping[str, str]) -> tuple[date, ReportLine | None]:
    day = cell(row, "usage_date_utc", _day)
    if not row["model_version"]:
        raise ValueError("column model_version must name a model")
    read, cached, short, long, output = (cell(row, name, count) for name in _COUNTS)
    return day, _usage(row["model_version"], read, cached, (short, long), output)


def _cost_row(row: Mapping[str, str]) -> tuple[date, ReportLine | None]:
    name = row["model"] or row.get("cost_type") or _NO_MODEL
    return cell(row, "usage_date_utc", _day), ReportLine(name, {"cost": cell(row, "cost_usd", money)}, "USD")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a day such as 2026-01-31") from error


def _span(since: date, until: date) -> dict[str, str]:
    return {"starting_at": f"{since}T00:00:00Z", "ending_at": f"{until}T00:00:00Z"}


_DAILY = {"bucket_width": "1d", "limit": str(DAYS_A_PAGE)}
FORMAT = Format(
    name="anthropic",
    wanted="Anthropic's usage report of messages grouped by model, or its cost report grouped by description",
    bucket=_bucket,
    result=_result,
    tables=(
        CsvExport("cost_usd", ("usage_date_utc", "model"), _cost_row),
        CsvExport("usage_output_tokens", ("usage_date_utc", "model_version", *_COUNTS), _usage_row),
    ),
    url="https://api.anthropic.com",
    key_variable="ANTHROPIC_ADMIN_KEY",
    questions=(
        ("/v1/organizations/usage_report/messages", _DAILY | {"group_by[]": "model"}),
        ("/v1/organizations/cost_report", _DAILY | {"group_by[]": "description"}),
    ),
    span=_span,
    headers=lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
)
