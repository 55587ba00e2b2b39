"""Reports of usage that people compared by hand cost what both libraries say, or differ by a named reason.

`usage_reports.txt` has what each costs here, by `genai-prices` and by litellm, both by their own code; the
last is written by `tests/world/second_costs.py`. More names and tiers are drawn in `test_second_costs.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from gateway.core.billing.price_book import PriceBook, cost_nano
from gateway.core.billing.sellers import seller_of
from gateway.core.times import ms_of
from tests.run.test_bundled_prices import HOSTS, counts, prices, searches, theirs

REPORTS: Final = Path(__file__).with_name("usage_reports.txt")
# Why a cost differs: whose counts here ("first", "second", or neither), and the reason.
REASONS: Final = {
    "no sound": ("second", "the first has no price of sound for these names, and takes that of text"),
    "no name": ("second", "the first does not know the name"),
    "unknown": ("first", "the second does not know the name as calls spell it"),
    "unknown sound": ("", "the first has no price of sound, and the second none of a name without a date"),
    "no tier": ("second", "the first does not know the tier"),
    "fine-tuned": ("second", "the first has no price of cached input for fine-tuned models"),
    "long": ("first", "a tier has no price of long calls: openai.com/api-priority-processing excludes them"),
    "by prompt": ("", "Google bills prompts of Gemini 2.5 that searched: ai.google.dev, pricing"),
    "searches": ("first", "the second counts searches in documents, not in reports"),
    "fee": ("first", "a fee a request: docs.perplexity.ai/getting-started/pricing"),
    "window": ("first", "the second has no price of long calls of Sonnet 4.5 any more; the dearer counts"),
    "peak": ("first", "its peak, which the second does not know: api-docs.deepseek.com/quick_start/pricing, Oct 2026"),
    "12 hours": ("", "the longer lifetime of a cache costs twice the shorter, by the second's table alone"),
    "place": ("", "inference in the US costs 1.1 times: platform.claude.com/docs, data residency"),
    "dearer": ("second", "the first has no tier, and no page that was read says what Vertex bills"),
    "rounded": ("", "the first has no tier, and the second rounds half of 3.75 up to 1.88"),
    "usual tier": ("", "Azure answers long calls by it: learn.microsoft.com, priority processing"),
    "speed": ("first", "the second was not told the speed: it is no service tier there"),
}  # fmt: skip


class Report(NamedTuple):
    """A report of usage, what it costs here and by two libraries (`-`: not at all), and why they differ."""

    provider: str
    name: str
    tier: str
    used: str
    ours: str
    first: str
    second: str
    reason: str


def reports() -> Iterator[Report]:
    for line in REPORTS.read_text().splitlines():
        if not line.startswith("#"):
            yield Report(*(part.strip() for part in line.split("|")))


# A Monday at 02:00 UTC: DeepSeek's peak.
AT_MS = ms_of(datetime(2026, 11, 30, 2, tzinfo=UTC))


@pytest.mark.parametrize("report", [*reports()], ids=" ".join)
def test_a_report_costs_what_two_libraries_say_or_a_reason_says_why_not(report: Report) -> None:
    used = {kind: int(count) for kind, count in (one.split("=") for one in report.used.split())}
    queries = used.pop("web_search", 0)
    seller = seller_of("", "", "", f"https://{HOSTS[report.provider]}")
    vector = PriceBook(prices()).vector(report.name, "USD", AT_MS, seller)
    assert vector is not None
    tools = {"web_search": searches(vector, queries)} if queries else {}
    assert str(cost_nano(vector, counts(used), tools, report.tier)) == report.ours
    context = dict.fromkeys(("service_tier", "processing", "speed"), report.tier) if report.tier else None
    try:
        said = str(theirs(report.name, used, queries, provider_id=report.provider, price_context=context))
    except LookupError:
        said = "-"
    assert said == report.first
    if not report.reason:
        assert report.ours == report.first == report.second
    else:
        counting = {"first": report.first, "second": report.second}.get(REASONS[report.reason][0])
        assert report.ours == (counting or report.ours)
        assert report.ours not in {report.first, report.second} - {counting}


def test_each_reason_is_that_of_a_report() -> None:
    assert {report.reason for report in reports()} == {"", *REASONS}
