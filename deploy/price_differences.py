#!/usr/bin/env python3
"""Compare the bundled price list with its two sources, by kind and tier, with a reason for each difference.

`make prices` writes the file, and a test compares it with the list. Its head names the versions of both
sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from deploy.second_prices import read_table, read_unpriced
from gateway.core.billing.price_book import EXACT_NAME, KINDS, PREFIX
from gateway.core.billing.price_changes import Name, Timeline, row_in_force, timelines
from gateway.core.billing.sellers import MAKERS
from gateway.run.bundled_prices import Bundle, Row

FILE: Final = Path(__file__).with_name("price-differences.md")
# Prices from the vendors' pages, of models that neither source has.
OWN: Final = Path(__file__).with_name("own_prices.json")
# When both sources were read: the prices in force at this time are compared.
AS_OF: Final = datetime(2026, 11, 28, tzinfo=UTC)
# A price of a cent a million tokens, rounded.
HALF_CENT: Final = Decimal("0.005")
_TENTH_MORE: Final = Decimal("1.1")


class Reason(NamedTuple):
    """Why a price was chosen, with its source. It applies to the listed names or a class of differences."""

    key: str
    text: str
    names: tuple[tuple[str, str], ...] = ()
    # The source whose price counts, even if lower; empty: the higher price of each kind.
    counts: Literal["first", "second", ""] = ""


REASONS: Final = (
    Reason(
        "page",
        "OpenAI's pages of these models state 2.50 and 1.25 for audio input: "
        "developers.openai.com/api/docs/models, gpt-4o-transcribe and gpt-4o-mini-transcribe, as stored "
        "in November 2026. The second list's price counts.",
        (("openai", "gpt-4o-transcribe"), ("openai", "gpt-4o-mini-transcribe")),
        counts="second",
    ),
    Reason(
        "retired",
        "DeepSeek has retired these names. Its page of 2025, "
        "api-docs.deepseek.com/quick_start/pricing-details-usd, has the first list's prices; its present "
        "page, api-docs.deepseek.com/quick_start/pricing, as stored in October 2026, does not list the "
        "names. For each kind the dearer price counts.",
        (("deepseek", "deepseek-chat"), ("deepseek", "deepseek-reasoner")),
    ),
    Reason(
        "alias",
        "Since May 2026 the name means Mistral Medium 3.5, which costs 1.50 and 7.50 (mistral.ai/pricing, "
        "as github.com/braintrustdata/braintrust-proxy/issues/802 quotes it). The first list has these "
        "prices under the model's other names.",
        (("mistral", "mistral-medium"),),
    ),
    Reason(
        "old alias",
        "The first list has the price of the model that once had this name, the second list the price of "
        "a later model. No page that was read says which model answers today, so the dearer price counts.",
        (("mistral", "mistral-large-latest"),),
    ),
    Reason(
        "recorded",
        "Mistral's list stated 2 and 5 when answers of this name were recorded "
        "(tests/recorded/prices.py). The first list's price counts.",
        (("mistral", "magistral-medium-latest"),),
        counts="first",
    ),
    Reason(
        "place",
        "A name of Bedrock without a region prefix answers in one region. From Claude 4.5 on, this costs "
        "a tenth more than `global.`, to which the second list's price belongs. Source: docs.claude.com, "
        "Claude on Vertex AI and on Amazon Bedrock, as stored in 2025.",
    ),
    Reason(
        "zone",
        "The second list has Azure's retail price of one region, prices.azure.com, a tenth above the "
        "price of a global deployment. A call does not show which deployment it reached, so the dearer "
        "price counts.",
    ),
    Reason(
        "rounded",
        "The prices differ by at most half a cent a million tokens, to which one of the lists rounds. The "
        "dearer price counts.",
    ),
    Reason(
        "dated",
        "The first list states since when its price is in force, the second does not, so the first list's "
        "price counts.",
    ),
    Reason(
        "dearer",
        "Neither list states since when its price is in force, and no page of the vendor decides. For "
        "each kind the dearer price counts, so nobody pays less than in one of the lists.",
    ),
)


# Makers of models that anybody may run and sell, and a word in the names of such models of other makers.
OPEN: Final = frozenset({"deepseek", "minimax", "mistral", "moonshotai", "zai", "zhipuai"})
OPEN_MODELS: Final = "gpt-oss"
# Names of sellers that mean another model there than at its maker, by its prices.
MEANS: Final = {("openrouter", "~google/gemini-pro-latest"): "gemini-4-argon"}
_PLACE_AND_MAKER: Final = re.compile(r"(?:[a-z]+(?:-gov)?\.)+")
# Why a seller's price is below its maker's. An empty name means all names of the seller.
BELOW: Final = (
    Reason(
        "discount",
        "In the first list this seller's prices are parts of the makers' prices.",
        (("quicksilverpro", ""),),
    ),
    Reason(
        "older",
        "At its maker the name now means a newer and dearer model. The seller still has the older one.",
        (
            ("google-vertex", "mistral-medium-3"), ("google-vertex", "mistralai/mistral-medium-3"),
            ("openrouter", "mistralai/mistral-medium-3"),
        ),
    ),
    Reason(
        "two prices",
        "For the maker's name the two lists differ and the dearer price counts. The seller has one price, "
        "the lower of both.",
        (("azure", "grok-code-fast-1"), ("openrouter", "x-ai/grok-code-fast-1")),
    ),
    Reason(
        "own price",
        "The list of this seller has its own, lower price for this model.",
        (
            ("aws", "us-gov.xai.grok-4.7"), ("azure", "ada"), ("azure", "babbage"), ("azure", "davinci"),
            ("azure", "gpt-4o-mini-tts"), ("azure", "grok-3-mini"), ("azure", "text-davinci-002"),
            ("google-vertex", "codestral-2501"), ("openrouter", "openai/gpt-3.5-turbo-0613"),
        ),
    ),
    Reason(
        "batch",
        "The seller's name for batches. The maker has no such price of batches in the list, so its usual "
        "price is compared.",
    ),
    Reason("open", "Anybody may run this model, so its sellers set their own prices."),
)  # fmt: skip


class Difference(NamedTuple):
    """One price of a name that differs: in the list, in both sources, and the reason of the choice."""

    provider: str
    name: str
    what: str
    ours: str
    first: str
    second: str
    reason: str


@cache
def read_own() -> Sequence[Row]:
    """Return the entries of the own prices: each with its page, the day it was read, and prices or a reason."""
    found: Sequence[Row] = json.loads(OWN.read_bytes())
    return found


def written(bundle: Bundle, alone: Bundle) -> str:
    """Return the text of the file of differences: the reasons, and a line for each price that differs.

    `alone` is the price list without the second source.
    """
    library, _ = read_table()
    found = list(differences(bundle, alone))
    named = {one.reason for one in found}
    names = [{(row["provider"], row["model"]) for row in one.rows} for one in (bundle, alone)]
    names[1] |= {(one["provider"], one["model"]) for one in read_own()}
    added, shared = len(names[0] - names[1]), len([*shared_prices(bundle, alone)])
    head = [
        "# Differences of two price lists",
        "",
        f"`make prices` writes this file. It compares {bundle.library} with {library} as of",
        f"{AS_OF:%-d %B %Y}. Both lists contain {shared} names of makers and sellers. If both have the same",
        "`input` and `output` for a name, the second list adds kinds that the first lacks.",
        f"Only the second list contains {added} further names. All differences are below, in dollars a",
        "million tokens. An operator's own price takes precedence over both.",
        "",
        *[f"- **{one.key}**: {one.text}" for one in REASONS if one.key in named],
        "",
    ]
    later = [
        (row["provider"], f"`{row['model']}`", f"{row['effective_from']:%Y-%m-%d}", row.get("input", ""),
         row.get("output", ""))
        for row in bundle.rows if row["effective_from"] > AS_OF and row["match"] == EXACT_NAME
    ]  # fmt: skip
    lines = [
        (one.provider, f"`{one.name}`", one.what, one.first, one.second, one.ours, one.reason)
        for one in found
    ]
    titles = ("Provider", "Name", "What", "genai-prices", "litellm", "List", "Why")
    below = [
        (one.provider, f"`{one.name}`", ", ".join([f"{what} {ours}" for what, (ours, _) in one.prices.items()]),
         ", ".join([theirs for _, theirs in one.prices.values()]), one.reason)
        for one in below_makers(bundle.rows)
    ]  # fmt: skip
    why_below = {line[-1] for line in below}
    own = [
        (one["provider"], f"`{one['model']}`", one["from"], one["page"], one["read"])
        for one in read_own() if "prices" in one
    ]  # fmt: skip
    announced = ["", "## Announced", "", "These prices of the list begin later.", ""]
    here, makers = _in_force(bundle), ("", *MAKERS)
    nowhere: dict[str, list[str]] = {}
    for one in read_unpriced():
        provider, _, name = one.partition(" ")
        if not any(_row_of(here, each, name) for each in (provider, *makers)):
            nowhere.setdefault(provider, []).append(f"`{name}`")
    tables = [
        *_table(titles, lines), *announced,
        *_table(("Provider", "Name", "From", "Input", "Output"), later),
        "", "## Own prices", "",
        "Neither list has these prices. They are in `deploy/own_prices.json`, with all kinds and tiers.", "",
        *_table(("Provider", "Name", "From", "Page", "Read"), own),
        "", "## Sellers below their makers", "",
        f"These prices are below the maker's, on {AS_OF:%-d %B %Y} or on a later date of the list.", "",
        *[f"- **{one.key}**: {one.text}" for one in BELOW if one.key in why_below], "",
        *_table(("Seller", "Name", "Seller's", "Maker's", "Why"), below),
        "", "## Without a price", "",
        "Neither list has a usable price for these names: they need a price of yours.", "",
        *_table(("Provider", "Names"), [(provider, ", ".join(names)) for provider, names in nowhere.items()]),
    ]  # fmt: skip
    return "\n".join([*head, *tables, ""])


def _table(titles: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (titles, ("---",) * len(titles), *lines):
        yield f"| {' | '.join(cells)} |".replace(" --- ", "---")


def shared_prices(bundle: Bundle, alone: Bundle) -> Iterator[tuple[str, str, Row, Row, Row]]:
    """Yield (provider, name, row of the list, row of each source) for names that both sources know.

    `alone` is the price list without the second source.
    """
    ours, first = _in_force(bundle), _in_force(alone)
    for provider, names in sorted(read_table()[1].items()):
        for name, more in sorted(names.items()):
            theirs = _row_of(first, provider, name)
            if theirs:
                yield provider, name, _row_of(ours, provider, name), theirs, more


def differences(bundle: Bundle, alone: Bundle) -> Iterator[Difference]:
    """Yield each price on which the two sources differ."""
    dated = {(row["provider"], row["model"]) for row in alone.rows if row["effective_from"].year > 1970}
    for provider, name, row, first, more in shared_prices(bundle, alone):
        ours, theirs, others = (dict(_prices(one)) for one in (row, first, more))
        for what, price in theirs.items():
            if what in others and Decimal(price) != Decimal(others[what]):
                reason = _reason(provider, name, Decimal(price), Decimal(others[what]))
                if reason == "dearer" and (provider, first["model"]) in dated:
                    reason = "dated"
                yield Difference(provider, name, what, ours[what], price, others[what], reason)


def preferred_source(provider: str, name: str) -> str:
    """Return the source whose prices count for a name: `first`, `second`, or empty for the higher price."""
    return next((one.counts for one in REASONS if (provider, name) in one.names), "")


def _reason(provider: str, name: str, first: Decimal, second: Decimal) -> str:
    named = [one.key for one in REASONS if (provider, name) in one.names]
    if named:
        return named[0]
    if (provider, first) == ("aws", second * _TENTH_MORE):
        return "place"
    if (provider, second) == ("azure", first * _TENTH_MORE):
        return "zone"
    return "rounded" if abs(first - second) <= HALF_CENT else "dearer"


class Sold(NamedTuple):
    """The prices by date that a seller has for a name, and those that the model's maker has."""

    name: Name
    prices: Timeline
    maker: str
    makers: Timeline


def sold(rows: Iterable[Row]) -> Iterator[Sold]:
    """Yield each name that a seller prices and whose maker prices the same model."""
    named = timelines(rows)
    made: dict[tuple[str, str], Name] = {}
    for name in named:
        if _makes(*name[:2]):
            made.setdefault((name[2], name[1]), name)
    for name, prices in named.items():
        provider, model, *_ = name
        if _makes(provider, model):
            continue
        model = MEANS.get((provider, model), model.rpartition("/")[2])
        model = _PLACE_AND_MAKER.sub("", model) if provider == "aws" else model.partition(":")[0]
        begins = [(PREFIX, model[:end]) for end in range(len(model), 0, -1)]
        theirs = next((made[one] for one in [(EXACT_NAME, model), *begins] if one in made), None)
        if theirs is not None:
            yield Sold(name, prices, theirs[0], named[theirs])


def _makes(provider: str, name: str) -> bool:
    """Return whether the provider makes its model of this name. Perplexity also sells those of others."""
    return provider in MAKERS and (provider != "perplexity" or "sonar" in name)


class Below(NamedTuple):
    """Prices of a seller's name that are lower than its maker's, and the reason; "" without one."""

    provider: str
    name: str
    # By kind and tier, the price of each of both.
    prices: Mapping[str, tuple[str, str]]
    reason: str


def below_makers(rows: Iterable[Row]) -> Iterator[Below]:
    """Yield each name that costs less at a seller than at its maker, at `AS_OF` or a later date."""
    for name, prices, maker, makers in sold(rows):
        provider, model, *_ = name
        tier = model.rpartition(":")[2]
        found: dict[str, tuple[str, str]] = {}
        for moment in (AS_OF, *sorted(since for since in {*prices, *makers} if since > AS_OF)):
            most = dict(_prices(row_in_force(makers, moment) or {}))
            for what, price in _prices(row_in_force(prices, moment) or {}):
                theirs = most.get(f"{tier}, {what}", most.get(what, price))
                if Decimal(price) < Decimal(theirs):
                    found.setdefault(what, (price, theirs))
        if found:
            yield Below(provider, model, found, _reason_below(provider, model, maker))


def _reason_below(provider: str, name: str, maker: str) -> str:
    named = (one.key for one in BELOW if {(provider, name), (provider, "")} & {*one.names})
    is_open = maker in OPEN or OPEN_MODELS in name
    return next(named, "batch" if name.endswith(":batch") else "open" if is_open else "")


def _in_force(bundle: Bundle) -> Mapping[tuple[str, str, str], Row]:
    rows = [row for row in bundle.rows if row["effective_from"] <= AS_OF]
    return {(row["match"], row["provider"], row["model"]): row for row in rows}


def _row_of(rows: Mapping[tuple[str, str, str], Row], provider: str, name: str) -> Row:
    """Return the row of a provider's name: the exact one, else that of the longest prefix, else {}."""
    found = rows.get((EXACT_NAME, provider, name))
    for end in range(len(name), 0, -1):
        found = found or rows.get((PREFIX, provider, name[:end]))
    return found or {}


def _prices(row: Row) -> Iterator[tuple[str, str]]:
    """Yield each price of a row with a label of tier, kind and context step. Factors become prices."""
    yield from _of_kinds("", row)
    for tier, said in row.get("service_tiers", {}).items():
        yield from _of_kinds(f"{tier}, ", said if isinstance(said, dict) else times(row, Decimal(said)))


def _of_kinds(where: str, row: Row) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        if kind in row:
            yield where + kind, row[kind]
    for step in row.get("context_tiers", ()):
        yield from _of_kinds(f"{where}above {step['above']:,}, ", step)


def times(row: Row, factor: Decimal) -> dict[str, Any]:
    """Return the prices of a row's kinds times a factor, as texts."""
    found: dict[str, Any] = {
        kind: f"{(Decimal(row[kind]) * factor).normalize():f}" for kind in KINDS if kind in row
    }
    if "context_tiers" in row:
        found["context_tiers"] = [
            {"above": one["above"], **times(one, factor)} for one in row["context_tiers"]
        ]
    return found
