#!/usr/bin/env python3
"""Write the bundled price list: all prices that `genai-prices` knows, in US dollars.

A second table (`second_prices.py`) adds what this library lacks: service tiers, prices of audio, full names
of models. Where both have a price without a date and the two differ, the higher one counts. Prices of our own
(`own_prices.json`), from the vendors' pages, are read last. A seller whose price stands to that of the model's
maker in one ratio keeps this ratio at the maker's later dates.

    make prices

A test compares the list with the locked version of the library. Prices that cannot be expressed here are
left out and listed in `left_out`, never guessed:

- an exact pattern of a name stays exact, and a beginning becomes a prefix. A pattern found anywhere in a name
  becomes a prefix, a pattern at the end becomes an exact name, and a date of digits becomes the prefix of its
  century. For other patterns only the names that the library lists are kept;
- a variant for a service tier becomes one factor for all kinds of tokens, or a table of prices;
- of prices by hour of the day the highest always counts;
- prices per hours, characters and pages become prices per second, character and page. Others are left out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from genai_prices import types
from genai_prices.data import providers

from deploy import price_differences
from deploy.price_differences import AS_OF, preferred_source, read_own, sold, times
from deploy.second_prices import read_table
from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import (
    BASE_CURRENCY,
    BUNDLED,
    EXACT_NAME,
    FALLBACK,
    KINDS,
    MODEL_CHARS_MAX,
    NANO_DIGITS,
    PREFIX,
    PriceBook,
    in_table,
    read_price,
)
from gateway.core.billing.price_changes import UNDATED, row_in_force
from gateway.core.billing.sellers import Seller
from gateway.core.metering.refusals import VIOLATION
from gateway.run.bundled_prices import LIST, Bundle, Row

Moment = tuple[datetime, types.ModelPrice, Mapping[str, types.ModelPrice]]

# Kinds of tokens by the library's keys of prices; tools by theirs, priced per thousand uses.
KIND_OF = {
    "input_mtok": "input", "output_mtok": "output", "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write", "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning", "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output", "input_image_mtok": "image_input",
    "output_image_mtok": "image_output",
}  # fmt: skip
TOOL_OF = {
    "web_searches_kcount": "web_search", "storage_searches_kcount": "file_search",
    "social_searches_kcount": "social_search", "code_executions_kcount": "code_execution",
}  # fmt: skip
A_CALL = "requests_kcount"
# Units other than tokens by the library's keys, and how many of our units one of its units is.
UNIT_OF = {
    "audio_hours": ("audio_second", 3600), "input_audio_hours": ("audio_second", 3600),
    "input_mchars": ("character", 1_000_000), "input_document_kpages": ("page", 1_000),
    "cache_audio_read_mtok": ("cache_audio", 1),
}  # fmt: skip
# Fields by which the library selects a variant that we call a service tier.
SELECTORS = ("processing", "service_tier", "speed")
# Factors by region that the library lacks, and the first version of models they apply to: Anthropic's
# `inference_geo`.
REGIONAL = {"anthropic": ((4, 6), {"us": "1.1"})}
# Google bills searches per prompt for models up to this version, and per query for later ones.
BY_PROMPT = (2, 99)
GOOGLES = ("google", "google-vertex")
# Google's price of a million tokens in a cache for an hour (https://ai.google.dev/gemini-api/docs/pricing,
# "storage price", as it stood in October 2026), by the beginning of a model's name: neither table knows it.
# Models that are not here have no cache of a caller's own, such as Gemini 4, or none that the page prices.
# Until the end of 2026 the page halves it for 3.6, 3.7 and 3.8: the later price counts from the beginning.
CACHE_HOURS = {
    "gemini-1.5-flash": "1", "gemini-flash-1.5": "1", "gemini-1.5-pro": "4.5", "gemini-pro-1.5": "4.5",
    "gemini-2.0-flash": "1", "gemini-2.5-flash": "1", "gemini-2.5-pro": "4.5",
    "gemini-3-flash": "1", "gemini-3-pro": "4.5", "gemini-3.1-flash": "1", "gemini-3.1-pro": "4.5",
    "gemini-3.5-flash": "1", "gemini-3.6-flash": "1", "gemini-3.7-flash": "1", "gemini-3.8-flash": "1",
    "gemini-flash-latest": "1", "gemini-flash-lite-latest": "1", "gemini-pro-latest": "4.5",
}  # fmt: skip
# Fees of a thousand refused requests, by seller: 0.05 dollars each (https://docs.x.ai/docs/models, "Usage
# Guidelines Violation Fee", since September 2025), which neither table knows.
FEES = {"x-ai": {VIOLATION: "50"}}
# Words in the names of models that have no such cache.
NO_CACHE = ("image", "tts", "live", "audio")
# Regions of inference, as Bedrock writes them in front of a model's name.
BEDROCK = "aws"
PLACES = ("us.", "eu.", "apac.", "global.", "jp.", "au.", "ca.", "us-gov.", "sa.", "me.", "af.", "il.", "in.")
_VERSION = re.compile(r"(\d)(?:[-.](\d{1,2})(?!\d))?")
# Endings that do not make it another model: a date, a version.
_ENDS = re.compile(r"(?:[-@]20\d[\d-]+)?(?:-v\d+)?(?::\d+)?")
_DIGITS = r"(?:\\d(?:\{\d\})?-?)+"
_DATED = re.compile(rf"\^(?P<name>[^\[\](){{}}*+?|^$]+?)(?P<between>\[-@\])?(?:{_DIGITS})\$")
_NUMBERED = re.compile(r"\^(?P<name>[^\[\](){}*+?|^$]+?)\\d")
_SPELLED = re.compile(r"\^(?P<name>(?:[\w=/@-]|\\.)+)\$")
_NANO = Decimal(1).scaleb(-NANO_DIGITS)


def main() -> None:
    bundle = made()
    price_differences.FILE.write_text(price_differences.written(bundle, made(alone=True)), encoding="utf-8")
    LIST.write_text(written(bundle), encoding="utf-8")
    sys.stdout.write(f"written: {LIST}\n")


@cache
def made(*, alone: bool = False) -> Bundle:
    """Build the price list from `genai-prices` and the second table; with `alone`, without that table."""
    bundle = Bundle(f"genai-prices {version('genai-prices')}", [], [])
    for provider in providers:
        taken: set[tuple[str, str]] = set()
        for model in provider.models:
            _add(bundle, provider, model, taken, alone=alone)
    if not alone:
        bundle.rows.extend([*_unknown_names(bundle.rows)])
        for row in bundle.rows:
            fees = FEES.get(row["provider"])
            if fees is not None and "input" in row:
                row["tools"] = {**row.get("tools", {}), **fees}
        _add_peaks(bundle)
        _add_own(bundle)
        bundle.rows.extend([*_later_dates(bundle.rows)])
    return bundle


def _add_own(bundle: Bundle) -> None:
    """Put our own prices in the place of all that the libraries say of these names."""
    entries = read_own()
    named = {(EXACT_NAME, one["provider"], one["model"]) for one in entries}
    kept = [row for row in bundle.rows if (row["match"], row["provider"], row["model"]) not in named]
    own = [
        {
            "provider": one["provider"], "model": one["model"], "match": EXACT_NAME, "currency": BASE_CURRENCY,
            "effective_from": datetime.fromisoformat(one["from"]).replace(tzinfo=UTC), "source": BUNDLED,
            **one["prices"],
        }
        for one in entries if "prices" in one
    ]  # fmt: skip
    bundle.rows[:] = [*kept, *own]
    bundle.left_out.extend(
        [f"{one['provider']} {one['model']}: {one['without']}" for one in entries if "without" in one]
    )


def _later_dates(known: Sequence[Row]) -> Iterator[Row]:
    """Yield the later prices that makers announce and sellers lack.

    The seller's prices of today stand to the maker's in one ratio, which lasts. A seller with a later price
    of its own has none of the maker's.
    """
    for _, prices, _, makers in sold(known):
        now, ours = row_in_force(makers, AS_OF), row_in_force(prices, AS_OF)
        if now is None or ours is None or max(prices) > AS_OF:
            continue
        if not all(Decimal(row.get(kind, 0)) for row in (now, ours) for kind in ("input", "output")):
            continue
        ratio = Decimal(ours["input"]) / Decimal(now["input"])
        usual = times(now, ratio)
        if not _is_same(usual, ours):
            continue
        for since in sorted(moment for moment in makers if moment > AS_OF):
            becomes = times(makers[since], ratio)
            row = {
                name: becomes.get(name) if said == usual.get(name) else said for name, said in ours.items()
            }
            row["effective_from"] = since
            yield {name: said for name, said in row.items() if said is not None}


def _add_peaks(bundle: Bundle) -> None:
    """Replace the prices of names in `OFF_PEAK` by those outside of peaks, with the hours of the peaks."""
    for row in bundle.rows:
        usual = OFF_PEAK.get((row["model"], row["effective_from"])) if row["provider"] == PEAKS_OF else None
        if usual is not None:
            dear = {kind: _text(2 * Decimal(price)) for kind, price in usual.items()}
            listed = {kind: row[kind] for kind in usual}
            assert listed in (usual, dear), f"the library has other prices of {row['model']}: {listed}"
            row |= {**usual, "hours": PEAKS}
    named = tuple([f"{PEAKS_OF} {model}: {DEAREST}" for model, _ in OFF_PEAK])
    bundle.left_out[:] = [line for line in bundle.left_out if line not in named]


DEAREST = "prices of certain hours of the day: the dearest count always"
# DeepSeek's prices outside of its peaks, and the peaks, in which all of them cost twice: api-docs.deepseek.com/
# quick_start/pricing, footnote 2, as read on 2026-09-21 ("01:00 - 04:00 and 06:00 - 10:00 UTC, Monday through
# Friday, excluding Chinese public holidays"), and in Beijing's time in its Chinese edition. Which moment of a
# call counts it does not say. Holidays are those of the State Council's notice for 2026 (4 November 2025); those
# of 2027 were not announced on 30 November 2026, so their weekdays have peaks.
PEAKS_OF = "deepseek"
OFF_PEAK: Final[Mapping[tuple[str, datetime], Mapping[str, str]]] = {
    ("deepseek-v4-flash", datetime(2026, 8, 17, tzinfo=UTC)): {
        "input": "0.22", "cache_read": "0.007", "output": "0.66",
    },
    ("deepseek-v4-flash", datetime(2026, 9, 10, tzinfo=UTC)): {
        "input": "0.15", "cache_read": "0.003", "output": "0.6",
    },
    ("deepseek-flash", UNDATED): {"input": "0.15", "cache_read": "0.003", "output": "0.6"},
    ("deepseek-v4-pro", datetime(2026, 8, 17, tzinfo=UTC)): {
        "input": "0.66", "cache_read": "0.022", "output": "1.98",
    },
}  # fmt: skip
# Those that are weekdays since the first of these prices.
HOLIDAYS = ["2026-09-25", "2026-10-01", "2026-10-02", "2026-10-05", "2026-10-06", "2026-10-07"]
PEAKS = [
    {"days": [1, 2, 3, 4, 5], "from": begin, "to": end, "time_zone": "Asia/Shanghai", "factor": "2",
     "except": HOLIDAYS}
    for begin, end in (("09:00", "12:00"), ("14:00", "18:00"))
]  # fmt: skip

# Fields that identify a price, and not its amounts.
_WHOSE = ("provider", "model", "match", "currency", "effective_from", "source")


def _unknown_names(known: Sequence[Row]) -> Iterator[Row]:
    """Yield price rows for names in the second table that `known` lacks or prices incompletely."""
    tables = read_table()[1]
    empty = {"request": None, "tools": None, "context_tiers": None, "service_tiers": None}
    prices = [read_price({**empty, **row, "id": number}) for number, row in enumerate(known)]
    book = PriceBook(prices)
    for provider, names in tables.items():
        for name, more in names.items():
            vector = book.vector(name, BASE_CURRENCY, ENDLESS, Seller(provider))
            row = {} if vector is None else known[vector.price_id]
            added = _rename_kinds(more)
            if row.get("provider") == provider:
                # The fields by which this name differs from the row of a pattern.
                own = {kind: price for kind, price in row.items() if kind not in _WHOSE}
                added = (
                    {} if row["match"] == EXACT_NAME or _complete(provider, name, own, True) == own else own
                )
            elif row and _has_prices(row, more):
                added = {}
            if added and len(name) <= MODEL_CHARS_MAX:
                yield {
                    "provider": provider, "model": name,
                    "match": PREFIX if name.startswith("ft:") else EXACT_NAME, "currency": BASE_CURRENCY,
                    "effective_from": UNDATED, "source": BUNDLED, **_complete(provider, name, added, True),
                }  # fmt: skip


def _has_prices(row: Row, more: Row) -> bool:
    """Return whether `row`, prices of a model's maker, has all prices that the second table has in `more`.

    A tier of the seller's may cost less than the maker's, or as much but for rounding. The seller's prices of
    long calls are not compared: Azure answers those by the usual tier (learn.microsoft.com, priority
    processing).
    """
    tiers, theirs = row.get("service_tiers", {}), more.get("service_tiers", {})
    same = all(row.get(kind) == price for kind, price in _rename_kinds(more).items() if kind in KINDS)
    return same and all(tier in tiers and _covers(row, tiers[tier], of) for tier, of in theirs.items())


def _covers(row: Row, tier: str | Row, of: Row) -> bool:
    """Return whether `tier`, a factor or table for the prices of `row`, costs no less than the table `of`.

    That table is of another source. Differences of rounding do not count.
    """
    usual = {kind: Decimal(row[kind]) for kind in KINDS if kind in row}
    if isinstance(tier, str):
        ours = {kind: price * Decimal(tier) for kind, price in usual.items()}
    else:
        ours = {kind: Decimal(price) for kind, price in in_table(usual, tier).items() if kind in usual}
    theirs = {kind: Decimal(price) for kind, price in _rename_kinds(of).items() if kind in ours}
    return all(price - ours[kind] <= price_differences.HALF_CENT for kind, price in theirs.items())


def written(bundle: Bundle) -> str:
    """Return the JSON text of the file: one row a line, without fields that have the usual value."""
    usual = {"currency": BASE_CURRENCY, "source": BUNDLED, "effective_from": UNDATED}
    rows = ({key: value for key, value in row.items() if usual.get(key) != value} for row in bundle.rows)
    as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat).encode
    parts = {"left_out": map(as_json, bundle.left_out), "rows": map(as_json, rows)}
    lists = (f'"{name}": [\n' + ",\n".join(lines) + "\n]" for name, lines in parts.items())
    return "{" + ",\n".join([f'"library": {json.dumps(bundle.library)}', *lists]) + "}\n"


def _add(
    bundle: Bundle,
    provider: types.Provider,
    model: types.ModelInfo,
    taken: set[tuple[str, str]],
    *,
    alone: bool,
) -> None:
    """Add a model's rows to `bundle`, one for each name by which the library finds it, and each period.

    Names in `taken` are skipped, and the new ones added. With `alone`, rows are not completed from the second
    table.
    """

    def told(what: str) -> None:
        bundle.left_out.append(f"{provider.id} {model.id}: {what}")

    periods = list(_periods(model, told))
    names = list(dict.fromkeys(_names(provider.id, model, told))) if periods else ()
    for match, name in names:
        # Check with a full name: a prefix that ends before the date is not yet one.
        dated = match == PREFIX and name[-3:] in {"-20", "@20"}
        samples = (f"{name}260101", f"{name}26-01-01") if dated else (name,)
        found = [next((each for each in provider.models if each.is_match(one)), None) for one in samples]
        if (match, name) in taken or model not in found or not 0 < len(name) <= MODEL_CHARS_MAX:
            continue
        taken.add((match, name))
        before: Row | None = None
        for since, prices in periods:
            whole = prices if alone else _complete(provider.id, name, prices, len(periods) == 1)
            if whole == before:
                continue
            before = whole
            bundle.rows.append(
                {
                    "provider": provider.id, "model": name, "match": match, "currency": BASE_CURRENCY,
                    "effective_from": since, "source": BUNDLED, **whole,
                }
            )  # fmt: skip


def _complete(provider: str, name: str, prices: Row, is_undated: bool) -> Row:
    """Return a row of prices, completed from the second table for a model of this name.

    If the model has a single period (`is_undated`), higher prices of that table may count.
    """
    row: dict[str, Any] = deepcopy(dict(prices))
    tiers = dict(row.get("service_tiers", {}))
    more = _find_second(provider, name)
    which = preferred_source(provider, name)
    if which == "second":
        row |= {kind: more[kind] for kind in KINDS if kind in row and kind in more}
    elif is_undated and not which:
        row |= _dearer(row, more)
    for tier, said in _shared_tiers(more).items():
        if isinstance(said, str) or (more and _is_same(more, row)):
            tiers.setdefault(tier, said)
    if more and _is_same(more, row):
        named = {kind: price for kind, price in _rename_kinds(more).items() if kind in KINDS and price != "0"}
        row = {**named, **row}
        row |= {kind: price for kind, price in _rename_kinds(more).items() if kind == "cache_write_1h"}
        later = {step["above"]: _rename_kinds(step) for step in more.get("context_tiers", ())}
        if "cache_write_1h" in row and "context_tiers" in row:
            row["context_tiers"] = [
                {**{kind: price for kind, price in later.get(step["above"], {}).items()
                    if kind == "cache_write_1h"}, **step}
                for step in row["context_tiers"]
            ]  # fmt: skip
    tiers |= _regional(provider, name)
    if tiers:
        row["service_tiers"] = dict(sorted(tiers.items()))
    return _complete_google(name, row) if provider in GOOGLES else row


def _is_same(more: Row, row: Row) -> bool:
    return all(more.get(kind) == row.get(kind) for kind in ("input", "output"))


def _dearer(row: Row, more: Row) -> Row:
    """Return the prices of `more`, from the second table, that are higher than those of `row`."""
    found: dict[str, Any] = {
        kind: more[kind] for kind in KINDS
        if kind in row and kind in more and Decimal(more[kind]) > Decimal(row[kind])
    }  # fmt: skip
    steps, others = row.get("context_tiers", ()), more.get("context_tiers", ())
    if [one["above"] for one in steps] == [one["above"] for one in others]:
        dearer = [{**one, **_dearer(one, other)} for one, other in zip(steps, others, strict=True)]
        found |= {"context_tiers": dearer} if dearer else {}
    elif not steps:
        found["context_tiers"] = [_rename_kinds(one) for one in others]
    return found


def _shared_tiers(more: Row) -> dict[str, str | Row]:
    """Return prices by service tier: a factor if it is the same for all kinds of tokens, else a table."""
    usual = {kind: price for kind, price in more.items() if kind != "service_tiers"}
    found: dict[str, str | Row] = {}
    for tier, table in more.get("service_tiers", {}).items():
        ratios = {
            Fraction(table[kind]) / Fraction(usual[kind]) if kind in table else None
            for kind in usual.keys() & set(KIND_OF.values())
            if Fraction(usual[kind]) and usual[kind] != usual.get(FALLBACK.get(kind, ""))
        }
        factor = next(iter(ratios)) if len(ratios) == 1 else None
        if factor is None or "context_tiers" in {*usual, *table}:
            found[tier] = _rename_kinds(table)
        else:
            found[tier] = f"{Decimal(factor.numerator) / factor.denominator:f}"
    return found


def _rename_kinds(said: Row) -> dict[str, Any]:
    """Return the prices of a row under our names of token kinds.

    A cache that is kept for twelve hours counts as one of one hour.
    """
    row = {kind: price for kind, price in said.items() if kind not in {"cache_write_12h", "service_tiers"}}
    if "cache_write_12h" in said:
        row["cache_write_1h"] = said["cache_write_12h"]
    if "context_tiers" in row and "service_tiers" not in said:
        row["context_tiers"] = [_rename_kinds(step) for step in row["context_tiers"]]
    return row


def _find_second(provider: str, name: str) -> Row:
    """Return the second table's row for a name; {} if it has none.

    For a name without date or version, return the row of the newest.
    """
    rows = read_table()[1].get(provider, {})
    if name in rows:
        return rows[name]
    stem = name[:-3] if name.endswith(("-20", "@20")) else name
    ends = [other for other in rows if other.startswith(name) and _ENDS.fullmatch(other[len(stem) :])]
    return rows[max(ends)] if ends else {}


_OF_GOOGLE = ("gemini", "gemma")  # its other models read no sound


def _complete_google(name: str, row: dict[str, Any]) -> Row:
    """Add Google's rules to a price row: audio costs as text unless priced, time in caches, and searches."""
    tables = [one for one in row.get("service_tiers", {}).values() if isinstance(one, dict)]
    if "audio_input" not in row and any(own in name for own in _OF_GOOGLE):
        for one in (row, *tables):
            for level in (one, *one.get("context_tiers", ())):
                if "input" in level:
                    level["audio_input"] = level["input"]
    kept = next((price for begins, price in CACHE_HOURS.items() if name.startswith(begins)), None)
    if kept is not None and "input" in row and not any(word in name for word in NO_CACHE):
        row["cache_hour"] = kept
    tools = dict(row.get("tools", {}))
    if "web_search" in tools and _version_of(name) <= BY_PROMPT:
        tools["web_search_prompt"] = tools.pop("web_search")
        row["tools"] = tools
    return row


def _regional(provider: str, name: str) -> Row:
    """Return price factors by region of inference for a model of this name."""
    since, factors = REGIONAL.get(provider, ((0, 0), {}))
    return factors if _version_of(name) >= since else {}


def _version_of(name: str) -> tuple[int, int]:
    found = _VERSION.search(name)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


# --- names ------------------------------------------------------------------------------


def _names(provider: str, model: types.ModelInfo, told: Any) -> Iterator[tuple[str, str]]:
    """Yield (match, name) for each name of a model, in lower case; match is exact or by prefix.

    `told` is called with a text for names that cannot be expressed.
    """
    for clause in _clauses(model.match):
        kind, wanted = next(iter(vars(clause).items()))
        if kind == "equals":
            yield EXACT_NAME, wanted.lower()
        elif kind in {"starts_with", "contains"}:
            yield PREFIX, wanted.lower()
            if kind == "contains" and provider == BEDROCK:
                yield from ((PREFIX, name) for name in _of_bedrock(model.id, wanted.lower()))
            if kind == "contains":
                told(f"names with {wanted!r} further on")
        elif kind == "ends_with":
            yield EXACT_NAME, wanted.lower()
            told(f"names that end in {wanted!r}")
        else:
            found = list(_spelled(wanted)) if kind == "regex" else []
            if not found:
                told(f"names by a rule of their own ({kind})")
            yield from found
    if model.is_match(model.id):
        yield EXACT_NAME, model.id.lower()


def _of_bedrock(model: str, word: str) -> Iterator[str]:
    """Yield the names that Bedrock gives a model with `word` in its name.

    The maker stands in front, and a region before that.
    """
    maker = model.lower().removeprefix("regional.").removeprefix("global.").partition(".")[0] + "."
    if word.startswith(PLACES):
        return
    whole = word if word.startswith(maker) else maker + word
    yield whole
    yield from (place + whole for place in PLACES)


def _clauses(match: Any) -> Iterator[Any]:
    alternatives = getattr(match, "or_", None)
    if alternatives is None:
        yield match
    else:
        for each in alternatives:
            yield from _clauses(each)


def _spelled(regex: str) -> Iterator[tuple[str, str]]:
    """Yield (match, name) for a regular expression that is a plain name, or a name followed by digits."""
    if dated := _DATED.fullmatch(regex):
        for between in "-@" if dated["between"] else ("",):
            yield PREFIX, f"{_plain(dated['name'])}{between}20"
    elif numbered := _NUMBERED.fullmatch(regex):
        for digit in range(10):
            yield PREFIX, f"{_plain(numbered['name'])}{digit}"
    elif spelled := _SPELLED.fullmatch(regex):
        yield EXACT_NAME, _plain(spelled["name"])


def _plain(escaped: str) -> str:
    return re.sub(r"\\(.)", r"\1", escaped).lower()


# --- prices -----------------------------------------------------------------------------


def _periods(model: types.ModelInfo, told: Any) -> Iterator[tuple[datetime, Row]]:
    """Yield a model's prices with the time since which they are in force. Equal neighbours are merged.

    `told` is called with a text for prices that cannot be expressed.
    """
    before: Row | None = None
    for since, prices, variants in _moments(model, told):
        row = _fields(prices, variants, told)
        if row and row != before:
            yield since, row
            before = row
    if before is None:
        told("nothing that is counted in tokens, calls, tools or units")


def _moments(model: types.ModelInfo, told: Any) -> Iterator[Moment]:
    """Yield each day on which a price changes, with the library's prices of that day.

    `told` is called with a text for prices that cannot be expressed.
    """
    dated = model.prices if isinstance(model.prices, list) else []
    lasting = _dearest_of_day(dated)
    if len(lasting) < len(dated):
        told(DEAREST)
        model = replace(model, prices=lasting)
    days: set[date] = set()
    contexts: dict[str, dict[str, str]] = {}
    for variant in model.price_variants or ():
        selector, wanted = next(iter(variant.when.items()))
        if len(variant.when) > 1 or selector not in SELECTORS:
            told(f"prices for {selector} {wanted}")
            continue
        contexts["batch" if selector == "processing" else wanted] = variant.when
    for each in (*lasting, *(model.price_variants or ())):
        if each.constraint is not None:
            days.add(each.constraint.start_date)
    for since in (UNDATED, *(datetime(day.year, day.month, day.day, tzinfo=UTC) for day in sorted(days))):
        variants = {tier: model.get_prices(since, when) for tier, when in contexts.items()}
        yield since, model.get_prices(since), variants


def _dearest_of_day(dated: list[Any]) -> list[Any]:
    """Return prices that hold for whole days: for each kind the highest of all hours."""
    lasting: list[Any] = []
    for each in dated:
        if not hasattr(each.constraint, "start_time"):
            lasting.append(each)
            continue
        before = vars(lasting[-1].prices)
        dearest = {
            key: price if before.get(key) is None else max(price, before[key])
            for key, price in vars(each.prices).items()
            if price is not None
        }
        prices = type(each.prices)(**{**before, **dearest})
        lasting[-1] = replace(lasting[-1], prices=prices)
    return lasting


def _fields(prices: types.ModelPrice, variants: Mapping[str, types.ModelPrice], told: Any) -> Row:
    """Return the fields of a price row with decimals as strings; empty if no price can be expressed.

    `variants` are the prices by service tier. `told` is called with a text for each price left out.
    """
    row: dict[str, Any] = {}
    tools: dict[str, str] = {}
    steps: dict[int, dict[str, Any]] = {}
    known = {key: value for key, value in vars(prices).items() if value is not None}
    for key, price in known.items():
        if key in KIND_OF:
            row[KIND_OF[key]] = _text(_base(price))
            for tier in getattr(price, "tiers", ()):
                steps.setdefault(tier.start, {})
        elif key in TOOL_OF:
            tools[TOOL_OF[key]] = _text(_base(price))
        elif key == A_CALL:
            row["request"] = _text(_base(price) / 1000)
        elif key in UNIT_OF:
            unit, units = UNIT_OF[key]
            row[unit] = _text(_base(price) / units)
        else:
            told(f"prices of {key}")
    for above, step in steps.items():
        step["above"] = above
        for key, kind in KIND_OF.items():
            if hasattr(known.get(key), "tiers"):
                step[kind] = _text(_at(known[key], above))
    factors = {tier: _tier(known, vars(variant), tier, told) for tier, variant in variants.items()}
    more = {
        "tools": tools,
        "context_tiers": [steps[above] for above in sorted(steps)],
        "service_tiers": {tier: factor for tier, factor in sorted(factors.items()) if factor is not None},
    }
    return {**row, **{name: value for name, value in more.items() if value}} if row or tools else {}


def _tier(known: Row, variant: Row, tier: str, told: Any) -> str | Row | None:
    """Return a service tier's factor, or a table of its prices; None if it costs the usual price.

    `known` has the usual prices, `variant` those of the tier. `told` is called with a text if they cannot be
    expressed.
    """
    found = {
        Fraction(dear) / Fraction(usual) if usual else None
        for key in known.keys() & {*KIND_OF, A_CALL}
        for usual, dear in _pairs(known[key], variant[key])
        if usual or dear
    }
    if found in ({Fraction(1)}, set()):
        return None
    factor = next(iter(found))
    if len(found) == 1 and factor is not None:
        exact = Decimal(factor.numerator) / factor.denominator
        if Fraction(exact) == factor and exact == exact.quantize(_NANO):
            return _text(exact)
    if _base(known.get(A_CALL, 0)) != _base(variant.get(A_CALL, 0)):
        told(f"a call's own price of the tier {tier}")
    prices = {key: variant[key] for key in KIND_OF if variant.get(key) is not None}
    table: dict[str, Any] = {KIND_OF[key]: _text(_base(price)) for key, price in prices.items()}
    ends = sorted({step.start for price in prices.values() for step in getattr(price, "tiers", ())})
    steps = [
        {"above": above}
        | {KIND_OF[key]: _text(_at(price, above)) for key, price in prices.items() if hasattr(price, "tiers")}
        for above in ends
    ]
    return {**table, "context_tiers": steps} if steps else table


def _pairs(usual: Any, other: Any) -> Iterator[tuple[Decimal, Decimal]]:
    yield _base(usual), _base(other)
    for above in {tier.start for price in (usual, other) for tier in getattr(price, "tiers", ())}:
        yield _at(usual, above), _at(other, above)


def _base(price: Any) -> Decimal:
    found: Decimal = getattr(price, "base", price)
    return found


def _at(price: Any, above: int) -> Decimal:
    """Return the price for calls with more than `above` input tokens."""
    found = _base(price)
    for tier in getattr(price, "tiers", ()):
        if tier.start <= above:
            found = tier.price
    return found


def _text(price: Decimal) -> str:
    """Return a decimal as the Admin API writes it, rounded to nine decimals."""
    return f"{price.quantize(_NANO, ROUND_HALF_UP).normalize():f}"


if __name__ == "__main__":
    main()
