"""OpenAI's reports: `/v1/organization/usage/completions`, `…/embeddings` and `/v1/organization/costs`.

Source: OpenAI's API reference, "Usage" and "Costs". A project is one of our tenants. Input includes cached
and written tokens. Usage of the service `embeddings` is reported as embeddings, all other usage as
completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from gateway.core.accounts.administration import Row
from gateway.features.vendor_admin.report import VendorQuery, VendorReport, message_of, summed

ROOT: Final = "/v1/organization"
_GROUPS = {"model": "model", "api_key_id": "api_key", "project_id": "tenant", "user_id": "user"}
_FILTERS = {"models": "model", "api_key_ids": "api_key", "project_ids": "tenant", "user_ids": "user"}
_COST_GROUPS = {"line_item": "model", "project_id": "tenant"}
_COST_FILTERS = {"project_ids": "tenant", "api_key_ids": "api_key"}
EMBEDDINGS = "embeddings"
_SECONDS_MAX = 4_102_444_800  # of the year 2100


def _usage(rows: Sequence[Row], asked: VendorQuery, *, embeds: bool) -> list[dict[str, Any]]:
    """Return rows of usage as results of OpenAI's usage API, for completions or embeddings."""
    results = []
    ours = [row for row in rows if (row["service"] == EMBEDDINGS) is embeds]
    for (*ids, _), sums in summed(ours, [_GROUPS[name] for name in asked.groups]).items():
        cached, written = int(sums["cache_read"]), int(sums["cache_write"])
        read = {"input_tokens": int(sums["input"]) + cached + written}
        counts = {
            "output_tokens": int(sums["output"]), "input_cached_tokens": cached,
            "input_cache_write_tokens": written, "input_audio_tokens": 0, "output_audio_tokens": 0,
        }  # fmt: skip
        kind = "embeddings" if embeds else "completions"
        results.append(
            {
                "object": f"organization.usage.{kind}.result",
                **(read if embeds else read | counts),
                "num_model_requests": int(sums["requests"]),
                **dict.fromkeys(_GROUPS),
                **dict(zip(asked.groups, ids, strict=True)),
                **({} if embeds else {"batch": None}),
            }
        )
    return results


def _render_costs(rows: Sequence[Row], asked: VendorQuery) -> list[dict[str, Any]]:
    """Return the costs of a bucket in OpenAI's form, by group and currency."""
    return [
        {
            "object": "organization.costs.result",
            "amount": {"value": sums["cost"], "currency": str(currency).lower()},
            **dict.fromkeys(_COST_GROUPS),
            **dict(zip(asked.groups, ids, strict=True)),
        }
        for (*ids, currency), sums in summed(rows, [_COST_GROUPS[name] for name in asked.groups]).items()
    ]


def _bucket(since: datetime, until: datetime, results: list[dict[str, Any]]) -> dict[str, Any]:
    times = {"start_time": int(since.timestamp()), "end_time": int(until.timestamp())}
    return {"object": "bucket", **times, "results": results}


def _page(buckets: list[dict[str, Any]], following: str | None) -> dict[str, Any]:
    return {"object": "page", "data": buckets, "has_more": following is not None, "next_page": following}


def refusal(problem: Mapping[str, Any]) -> dict[str, Any]:
    param = next((wrong["field"] for wrong in problem.get("errors", ())), None)
    kind = "invalid_request_error" if problem["status"] < 500 else "server_error"
    code = "invalid_api_key" if problem["status"] == 401 else None
    return {"error": {"message": message_of(problem), "type": kind, "param": param, "code": code}}


def _moment(text: str) -> datetime:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < _SECONDS_MAX):
        raise ValueError("must be Unix time in seconds, such as 1767225600")
    return datetime.fromtimestamp(int(text), UTC)


REPORTS = (
    *(
        VendorReport(
            f"/v1/organization/usage/{name}", _GROUPS, _FILTERS, partial(_usage, embeds=name == EMBEDDINGS),
            _bucket, refusal, _moment, "start_time", "end_time", _page, grouped=("service",),
        )
        for name in ("completions", EMBEDDINGS)
    ),
    VendorReport(
        "/v1/organization/costs", _COST_GROUPS, _COST_FILTERS, _render_costs, _bucket, refusal, _moment,
        "start_time", "end_time", _page, daily=True,
    ),
)  # fmt: skip
