#!/usr/bin/env python3
"""Read litellm's table of prices, which has tiers, kinds and names that `genai-prices` lacks.

    python -m deploy.second_prices PATH/model_prices_and_context_window_backup.json VERSION

writes the parts used here, as fields of prices by provider and name, into a file of this folder. The table
has no dates: a row of `genai-prices` is completed from it if both agree on prices of plain tokens.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

Row = dict[str, Any]

TABLE: Final = Path(__file__).with_name("second_prices.json")
# Our providers by litellm's: makers of models first, then sellers of others' models.
PROVIDERS: Final = {
    "openai": "openai", "text-completion-openai": "openai", "gemini": "google", "anthropic": "anthropic",
    "deepseek": "deepseek", "xai": "x-ai", "mistral": "mistral", "perplexity": "perplexity", "zai": "zai",
    "moonshot": "moonshotai", "cohere_chat": "cohere", "cohere": "cohere", "minimax": "minimax",
    "voyage": "voyageai", "bedrock": "aws", "bedrock_converse": "aws", "azure": "azure",
    "azure_ai": "azure", "groq": "groq", "cerebras": "cerebras",
}  # fmt: skip
VERTEX: Final = "vertex_ai"
# Providers whose model names keep a path after the seller's: calls write them so.
PATHS: Final = ("google-vertex", "groq", "cerebras")
KINDS: Final = {
    "input_cost_per_token": "input", "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read", "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
    "output_cost_per_reasoning_token": "reasoning", "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output", "output_cost_per_image_token": "image_output",
}  # fmt: skip
# Units other than tokens by the kind of call, with the fields that hold their prices.
UNITS: Final = {
    "audio_transcription": ("audio_second", ("input_cost_per_second",)),
    "audio_speech": ("character", ("input_cost_per_character",)),
    "ocr": ("page", ("ocr_cost_per_page",)),
    "rerank": ("search", ("input_cost_per_query",)),
    "video_generation": ("video_second", ("output_cost_per_second", "output_cost_per_video_per_second")),
}
# Names of Bedrock that the table lacks, by a name that costs the same.
ALIKE: Final = {
    # In one region, as `us.` does. Beyond 272,000 tokens an invoice of AWS doubles what is read, and adds a
    # half to what is written: github.com/BerriAI/litellm/pull/38615.
    "openai.gpt-5.4": "us.openai.gpt-5.4", "openai.gpt-5.5": "us.openai.gpt-5.5",
    # At Mantle, without a version: github.com/BerriAI/litellm-docs/pull/1217.
    "openai.gpt-oss-20b": "openai.gpt-oss-20b-1:0", "openai.gpt-oss-120b": "openai.gpt-oss-120b-1:0",
}  # fmt: skip
SEARCHES: Final = "search_context_cost_per_query"
_NANO: Final = Decimal("1e-9")
TIERS: Final = {"batches": "batch", "flex": "flex", "priority": "priority", "ultrafast": "ultrafast"}
_KEY: Final = re.compile(
    rf"(?P<kind>{'|'.join(KINDS)})(?:_above_(?P<above>\d+)k_tokens)?(?:_(?P<tier>{'|'.join(TIERS)}))?"
)


def main(path: str, version: str) -> None:
    rows: dict[str, dict[str, Row]] = {}
    ranks: dict[tuple[str, str], tuple[bool, Decimal]] = {}
    without: set[tuple[str, str]] = set()
    for name, said in json.loads(Path(path).read_text(encoding="utf-8")).items():
        owner = said.get("litellm_provider") or ""
        provider = "google-vertex" if owner.startswith(VERTEX) else PROVIDERS.get(owner)
        row = read_row(said)
        if provider is None or not (spelled := spell(provider, name)):
            continue
        if not row:
            without.add((provider, spelled))
            continue
        # Of several entries with one name the most expensive counts, with the tiers of all. One of a region
        # counts only without another.
        rank = not _region(name), Decimal(row.get("input", 0))
        before, known = ranks.get((provider, spelled), rank), rows.setdefault(provider, {})
        tiers = {**known.get(spelled, {}).get("service_tiers", {}), **row.get("service_tiers", {})}
        if rank >= before:
            ranks[provider, spelled] = rank
            known[spelled] = {**row, "service_tiers": tiers} if rank == before and tiers else row
    lines = [
        f'"{provider}": {{\n' + ",\n".join(f"{json.dumps(name)}: {_compact(row)}" for name, row in of.items())
        + "\n}" for provider, of in sorted(rows.items())
    ]  # fmt: skip
    head = f'{{"library": "litellm {version}", "prices": {{\n'
    unpriced = json.dumps(sorted(f"{provider} {name}" for provider, name in without - ranks.keys()), indent=0)
    TABLE.write_text(head + ",\n".join(lines) + f'\n}}, "unpriced": {unpriced}}}\n', encoding="utf-8")


def _region(name: str) -> str:
    """Return the region in a name `bedrock/REGION/MODEL`; empty if the name has another form."""
    parts = name.split("/")
    return parts[1] if parts[0] == "bedrock" and len(parts) == 3 else ""


def spell(provider: str, name: str) -> str:
    """Return a model's name as calls to a provider write it, in lower case.

    Empty for names of image sizes, zones and commitments, which no call uses.
    """
    first, _, rest = name.lower().partition("/")
    if provider in PATHS:
        return rest if first in {VERTEX, *PATHS} else name.lower()
    parts = name.lower().split("/")
    whole = len(parts) <= (3 if _region(name) else 2) and "x-1024" not in first
    return parts[-1] if whole or provider not in {"aws", "azure"} else ""


def read_row(said: Mapping[str, Any]) -> Row:
    """Return a model's prices, read from an entry of litellm's table, as fields of a price."""
    usual: Row = {}
    steps: dict[str, dict[int, Row]] = {}
    tiers: dict[str, Row] = {}
    for key, price in said.items():
        found = _KEY.fullmatch(key)
        if found is None or not isinstance(price, int | float):
            continue
        kind, tier = KINDS[found["kind"]], TIERS.get(found["tier"] or "", "")
        into = tiers.setdefault(tier, {}) if tier else usual
        if found["above"]:
            into = steps.setdefault(tier, {}).setdefault(1000 * int(found["above"]), {})
        into[kind] = f"{(Decimal(repr(price)) * 1_000_000).normalize():f}"
    for tier, of in steps.items():
        into = tiers.setdefault(tier, {}) if tier else usual
        into["context_tiers"] = [{"above": above, **of[above]} for above in sorted(of)]
    usual |= _units(said)
    return {**usual, "service_tiers": tiers} if tiers else usual


def _units(said: Mapping[str, Any]) -> Row:
    """Return the highest unit price in an entry `said` of litellm's table, and that of a thousand searches.

    The unit is that of the entry's kind of call, such as an image or a second.
    """
    found: Row = {}
    unit, keys = UNITS.get(said.get("mode") or "", ("", ()))
    # The field of a price for one resolution ends in its name.
    prices = [Decimal(repr(price)) for key, price in said.items()
              if key.startswith(keys) and isinstance(price, int | float)] if keys else []  # fmt: skip
    if prices and max(prices):
        found[unit] = f"{max(prices).quantize(_NANO).normalize():f}"
    searches = said.get(SEARCHES)
    if isinstance(searches, dict):
        dearest = max((Decimal(repr(price)) for price in searches.values()), default=Decimal(0))
        if dearest:
            found["tools"] = {"web_search": f"{(dearest * 1000).normalize():f}"}
    return found


@cache
def read_table() -> tuple[str, Mapping[str, Mapping[str, Row]]]:
    """Return litellm's name with its version, and rows of prices by provider and name, with those `ALIKE`."""
    said = json.loads(TABLE.read_bytes())
    prices: dict[str, dict[str, Row]] = said["prices"]
    prices["aws"] |= {name: prices["aws"][other] for name, other in ALIKE.items()}
    return said["library"], prices


def read_unpriced() -> Sequence[str]:
    """Return providers of models whose prices are all in units that are not counted here."""
    found: list[str] = json.loads(TABLE.read_bytes())["unpriced"]
    return found


def _compact(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
