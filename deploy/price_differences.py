#!/usr/bin/env python3
"""Compare the bundled list with its two sources, kind by kind and tier by tier: what each says of a name, and why.

`make prices` writes the file, and a test holds it to the list. Both sources are of the versions that its head names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from deploy.second_prices import read_table
from gateway.core.billing.price_book import EXACT_NAME, KINDS
from gateway.run.bundled_prices import Bundle, Row

FILE: Final = Path(__file__).with_name("price-differences.md")
# When both were read: of a price that changes with time, the one in force then is compared.
AS_OF: Final = datetime(2026, 11, 28, tzinfo=UTC)
# A price of a cent a million tokens, rounded.
_HALF_CENT: Final = Decimal("0.005")
_TENTH_MORE: Final = Decimal("1.1")


class Reason(NamedTuple):
    """Why a price is as it is, with its source: of some names of a provider, else of a class of differences."""

    key: str
    text: str
    names: tuple[tuple[str, str], ...] = ()
    # Whether the price of the second counts, be it less or more; else the dearer of each kind does.
    is_second: bool = False


REASONS: Final = (
    Reason(
        "page",
        "OpenAI's pages of these models say 2.50 and 1.25 for what they hear: developers.openai.com/api/docs/models, "
        "gpt-4o-transcribe and gpt-4o-mini-transcribe, as stored in November 2026. The second's price counts.",
        (("openai", "gpt-4o-transcribe"), ("openai", "gpt-4o-mini-transcribe")),
        True,
    ),
    Reason(
        "retired",
        "DeepSeek has retired these names. Its page of 2025, api-docs.deepseek.com/quick_start/pricing-details-usd, has "
        "the first's prices, and its page of today, api-docs.deepseek.com/quick_start/pricing, as stored in October "
        "2026, has none. The dearer of each kind counts.",
        (("deepseek", "deepseek-chat"), ("deepseek", "deepseek-reasoner")),
    ),
    Reason(
        "alias",
        "The name stands for Mistral Medium 3.5 since May 2026, which costs 1.50 and 7.50 (mistral.ai/pricing, as "
        "github.com/braintrustdata/braintrust-proxy/issues/802 quotes it). The first knows that of its other names.",
        (("mistral", "mistral-medium"),),
    ),
    Reason(
        "old alias",
        "The first has the price of the model that the name stood for once, and the second that of a later one. No page "
        "that was read says which one answers today, so the dearer counts.",
        (("mistral", "mistral-large-latest"),),
    ),
    Reason(
        "place",
        "A name of Bedrock without a place answers in one region, which costs a tenth more than `global.` for Claude "
        "from 4.5 on: docs.claude.com, Claude on Vertex AI and on Amazon Bedrock, as stored in 2025. The second's row is "
        "that of `global.`.",
    ),
    Reason(
        "zone",
        "The second has Azure's retail price of one region, prices.azure.com, a tenth above that of a global deployment. "
        "No call says which one it reached, so the dearer counts.",
    ),
    Reason(
        "rounded",
        "They are within half a cent a million tokens, to which one of them rounds. The dearer counts.",
    ),
    Reason(
        "dated",
        "The first says since when its price is in force, the second does not, so the first's counts.",
    ),
    Reason(
        "dearer",
        "Neither says since when its price is in force, and no page of the vendor decides. Of each kind the dearer "
        "counts: nobody pays less than one of the lists says.",
    ),
)


class Difference(NamedTuple):
    """One price of a name: what the list, the first and the second source say, and the reason of the choice."""

    provider: str
    name: str
    what: str
    ours: str
    first: str
    second: str
    reason: str


def written(bundle: Bundle, alone: Bundle) -> str:
    """Return the file: a line a difference of a name that both know, and its reasons."""
    library, _ = read_table()
    found = list(differences(bundle, alone))
    named = {one.reason for one in found}
    lines = [
        f"| {one.provider} | `{one.name}` | {one.what} | {one.first} | {one.second} | {one.ours} | {one.reason} |"
        for one in found
    ]
    reasons = [f"- **{one.key}**: {one.text}" for one in REASONS if one.key in named]
    later = [
        f"| {row['provider']} | `{row['model']}` | {row['effective_from']:%Y-%m-%d} | {row.get('input', '')} "
        f"| {row.get('output', '')} |"
        for row in bundle.rows if row["effective_from"] > AS_OF and row["match"] == EXACT_NAME
    ]  # fmt: skip
    added = len({(row["provider"], row["model"]) for row in bundle.rows}) - len(
        {(row["provider"], row["model"]) for row in alone.rows}
    )
    return (
        f"# Differences of two price lists\n\n"
        f"`make prices` writes this file. It compares {bundle.library} with {library} as of {AS_OF:%-d %B %Y}, for\n"
        f"the {len(both(bundle))} names of makers and sellers that both know. What the first does not know of them, the\n"
        f"second adds where both say the same of `input` and `output`. {added} names that only the second knows are its\n"
        f"own. All that differs is below, in dollars a million tokens. An operator's own price stands above both.\n\n"
        + "\n".join([*reasons, ""])
        + "\n| Provider | Name | What | genai-prices | litellm | List | Why |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n\n## Announced\n\nPrices of the list that begin later.\n\n| Provider | Name | From | Input | Output |\n"
        "|---|---|---|---|---|\n" + "\n".join(later) + "\n"
    )


def both(bundle: Bundle) -> dict[tuple[str, str], tuple[Row, Row]]:
    """Return names that both sources know, each with its row in force and that of the second."""
    second = read_table()[1]
    return {
        (provider, name): (row, second[provider][name])
        for (provider, name), row in _in_force(bundle).items()
        if name in second.get(provider, {})
    }


def differences(bundle: Bundle, alone: Bundle) -> Iterator[Difference]:
    """Yield what differs of the names that both sources know."""
    first = _in_force(alone)
    dated = {(row["provider"], row["model"]) for row in alone.rows if row["effective_from"].year > 1970}
    for (provider, name), (row, more) in sorted(both(bundle).items()):
        if (provider, name) not in first:
            continue
        ours, theirs, others = (dict(_prices(one)) for one in (row, first[provider, name], more))
        for what, price in theirs.items():
            if what in others and Decimal(price) != Decimal(others[what]):
                reason = _reason(provider, name, Decimal(price), Decimal(others[what]))
                if reason == "dearer" and (provider, name) in dated:
                    reason = "dated"
                yield Difference(provider, name, what, ours[what], price, others[what], reason)


def is_seconds(provider: str, name: str) -> bool:
    """Return whether the second source's prices count for a name, be they less or more."""
    return any(one.is_second and (provider, name) in one.names for one in REASONS)


def _reason(provider: str, name: str, first: Decimal, second: Decimal) -> str:
    named = [one.key for one in REASONS if (provider, name) in one.names]
    if named:
        return named[0]
    if (provider, first) == ("aws", second * _TENTH_MORE):
        return "place"
    if (provider, second) == ("azure", first * _TENTH_MORE):
        return "zone"
    return "rounded" if abs(first - second) <= _HALF_CENT else "dearer"


def _in_force(bundle: Bundle) -> Mapping[tuple[str, str], Row]:
    rows = [row for row in bundle.rows if row["match"] == EXACT_NAME and row["effective_from"] <= AS_OF]
    return {(row["provider"], row["model"]): row for row in rows}


def _prices(row: Row) -> Iterator[tuple[str, str]]:
    """Yield all prices of a row by their places: a tier that is a factor as the prices that it makes."""
    yield from _of_kinds("", row)
    for tier, said in row.get("service_tiers", {}).items():
        yield from _of_kinds(f"{tier}, ", said if isinstance(said, dict) else _times(row, Decimal(said)))


def _of_kinds(where: str, row: Row) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        if kind in row:
            yield where + kind, row[kind]
    for step in row.get("context_tiers", ()):
        yield from _of_kinds(f"{where}above {step['above']:,}, ", step)


def _times(row: Row, factor: Decimal) -> dict[str, Any]:
    found: dict[str, Any] = {
        kind: f"{(Decimal(row[kind]) * factor).normalize():f}" for kind in KINDS if kind in row
    }
    if "context_tiers" in row:
        found["context_tiers"] = [
            {"above": one["above"], **_times(one, factor)} for one in row["context_tiers"]
        ]
    return found
