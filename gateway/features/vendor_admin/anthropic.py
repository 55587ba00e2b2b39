"""Anthropic's reports: `/v1/organizations/usage_report/messages` and `/v1/organizations/cost_report`.

Source: Anthropic's Admin API reference. A workspace is one of our tenants; amounts are in cents of a
currency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from gateway.core.accounts.administration import Row
from gateway.core.billing.money import EXACT
from gateway.core.families.anthropic import ERROR_TYPES
from gateway.core.times import rfc3339
from gateway.features.vendor_admin.report import VendorQuery, VendorReport, message_of, summed

ROOT: Final = "/v1/organizations"
_GROUPS = {"model": "model", "api_key_id": "api_key", "workspace_id": "tenant"}
_FILTERS = {"models": "model", "api_key_ids": "api_key", "workspace_ids": "tenant"}
_COST_GROUPS = {"description": "model", "workspace_id": "tenant"}


def _messages(rows: Sequence[Row], asked: VendorQuery) -> list[dict[str, Any]]:
    """Return rows of usage as results of Anthropic's usage report."""
    results = []
    for (*ids, _), sums in summed(rows, [_GROUPS[name] for name in asked.groups]).items():
        named = dict.fromkeys(_GROUPS) | dict(zip(asked.groups, ids, strict=True))
        long = int(sums["cache_write_1h"])
        results.append(
            {
                "uncached_input_tokens": int(sums["input"]),
                "cache_read_input_tokens": int(sums["cache_read"]),
                "cache_creation": {
                    "ephemeral_5m_input_tokens": int(sums["cache_write"]) - long,
                    "ephemeral_1h_input_tokens": long,
                },
                "output_tokens": int(sums["output"]),
                "server_tool_use": {"web_search_requests": 0},
                **named,
                "service_tier": None,
                "context_window": None,
            }
        )
    return results


def _costs(rows: Sequence[Row], asked: VendorQuery) -> list[dict[str, Any]]:
    """Return rows of costs as results of Anthropic's cost report."""
    results = []
    for (*ids, currency), sums in summed(rows, [_COST_GROUPS[name] for name in asked.groups]).items():
        named = dict.fromkeys(_COST_GROUPS) | dict(zip(asked.groups, ids, strict=True))
        results.append(
            {
                "amount": f"{EXACT.scaleb(sums['cost'], Decimal(2)).normalize():f}",
                "currency": currency,
                **named,
                "model": named["description"],
                "cost_type": "tokens",
                "token_type": None,
                "service_tier": None,
                "context_window": None,
            }
        )
    return results


def _bucket(since: datetime, until: datetime, results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"starting_at": rfc3339(since), "ending_at": rfc3339(until), "results": results}


def _page(buckets: list[dict[str, Any]], following: str | None) -> dict[str, Any]:
    return {"data": buckets, "has_more": following is not None, "next_page": following}


def refusal(problem: Mapping[str, Any]) -> dict[str, Any]:
    other = "invalid_request_error" if problem["status"] < 500 else "api_error"
    kind = ERROR_TYPES.get(problem["status"], other)
    return {"type": "error", "error": {"type": kind, "message": message_of(problem)}}


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("must be a time such as 2026-01-31T00:00:00Z") from error
    if moment.tzinfo is None:
        raise ValueError("must name its time zone, such as 2026-01-31T00:00:00Z")
    return moment


REPORTS = (
    VendorReport(
        "/v1/organizations/usage_report/messages", _GROUPS, _FILTERS, _messages, _bucket, refusal, _moment,
        "starting_at", "ending_at", _page, bracketed=True,
    ),
    VendorReport(
        "/v1/organizations/cost_report", _COST_GROUPS, {}, _costs, _bucket, refusal, _moment,
        "starting_at", "ending_at", _page, bracketed=True, daily=True,
    ),
)  # fmt: skip
