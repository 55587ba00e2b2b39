"""Usage costs what a second library's own code says, but where a reason says why it costs more here.

The facts are drawn over all names, tiers and kinds that the library prices (tests/world/second_costs.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from deploy.bundled_prices import made
from deploy.price_differences import differences
from gateway.core.billing.price_book import KINDS, PriceBook, cost_nano
from gateway.core.billing.sellers import seller_of
from tests.run.test_bundled_prices import HOSTS, counts, prices

FACTS: Final = Path(__file__).with_name("second_costs.txt")
AT_MS: Final = 1000 * datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()
COUNTED: Final = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "output",
    "reasoning",
    "audio_input",
)
# Hosts in one place, of providers that bill more there.
IN_PLACE: Final = {"openai": "eu.api.openai.com", "google-vertex": "europe-west1-aiplatform.googleapis.com"}
# Why names of a provider cost more than the library says: by how they begin, the tier, and the source.
DEARER: Final = (
    (
        "deepseek",
        "deepseek-",
        "",
        "peak hours count always: api-docs.deepseek.com/quick_start/pricing, Oct 2026",
    ),
    ("perplexity", "sonar", "", "a fee a request: docs.perplexity.ai/getting-started/pricing"),
    ("aws", "anthropic.", "", "in one region a tenth more: docs.claude.com, Claude on Amazon Bedrock"),
    ("aws", "openai.", "", "in one region a tenth more, as for Claude"),
    ("aws", "anthropic.", "batch", "the library halves `global.` prices, and these are a region's"),
    ("google", "gemini-", "flex", "what the first list says of sound, which halves it as batches"),
    ("google-vertex", "gemini-", "flex", "what the first list says of sound, which halves it as batches"),
)


class Fact(NamedTuple):
    """A report of usage, and what the library's code says that it costs."""

    provider: str
    name: str
    tier: str
    place: str
    used: dict[str, int]
    nano: int


def facts() -> Iterator[Fact]:
    for line in FACTS.read_text().splitlines():
        if not line.startswith("#"):
            *named, used, nano = (part.strip() for part in line.split("|"))
            numbers = zip(COUNTED, map(int, used.split()), strict=True)
            yield Fact(*named, dict(numbers), int(nano))


def explained(of: Fact) -> bool:
    return any(
        (provider, tier) == (of.provider, of.tier) and of.name.startswith(begins)
        for provider, begins, tier, _ in DEARER
    )


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook(prices())


def test_drawn_reports_cost_what_a_second_library_says_of_them(book: PriceBook) -> None:
    """A nano-dollar apart is the library's: it counts in floats."""
    apart = {(one.provider, one.name) for one in differences(made(), made(alone=True))}
    equal, dearer = 0, list[Fact]()
    for of in facts():
        host = IN_PLACE[of.provider] if of.place else HOSTS[of.provider]
        vector = book.vector(of.name, "USD", AT_MS, seller_of("", "", "", f"https://{host}"))
        assert vector is not None, of
        ours = cost_nano(vector, counts(of.used), {}, of.tier)
        if abs(ours - of.nano) <= 1:
            equal += 1
            continue
        assert ours > of.nano, of
        assert explained(of) or (of.provider, of.name) in apart, of
        dearer.append(of)
    assert equal > 240
    assert equal + len(dearer) == 260
    drawn = [of.used for of in facts()]
    assert all(sum(kind in KINDS and used[kind] > 0 for used in drawn) > 2 for kind in COUNTED)
    assert {of.tier for of in facts()} >= {"", "batch", "flex", "priority"}
    assert {bool(of.place) for of in facts()} == {True, False}


def test_each_explanation_is_of_a_report_that_was_drawn() -> None:
    for provider, begins, tier, _ in DEARER:
        assert any(
            (of.provider, of.tier) == (provider, tier) and of.name.startswith(begins) for of in facts()
        ), (provider, begins, tier)
