#!/usr/bin/env python3
"""Read a second table of prices, litellm's: it knows service tiers and kinds that `genai-prices` does not.

    python -m deploy.second_prices PATH/model_prices_and_context_window_backup.json VERSION

writes what of it is of interest here, as fields of prices by provider and name, into a file of this folder.
The table has no dates: a row of the first library takes from it where both say the same of plain tokens.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

Row = dict[str, Any]

TABLE: Final = Path(__file__).with_name("second_prices.json")
# Its providers, by ours.
PROVIDERS: Final = {
    "openai": "openai", "text-completion-openai": "openai", "gemini": "google", "anthropic": "anthropic",
    "deepseek": "deepseek", "xai": "x-ai", "mistral": "mistral", "perplexity": "perplexity", "zai": "zai",
    "moonshot": "moonshotai", "cohere_chat": "cohere", "cohere": "cohere", "minimax": "minimax",
}  # fmt: skip
KINDS: Final = {
    "input_cost_per_token": "input", "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read", "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "cache_creation_input_token_cost_above_12hr": "cache_write_12h",
    "output_cost_per_reasoning_token": "reasoning", "input_cost_per_audio_token": "audio_input",
    "output_cost_per_audio_token": "audio_output", "output_cost_per_image_token": "image_output",
}  # fmt: skip
TIERS: Final = {"batches": "batch", "flex": "flex", "priority": "priority", "ultrafast": "ultrafast"}
_KEY: Final = re.compile(
    rf"(?P<kind>{'|'.join(KINDS)})(?:_above_(?P<above>\d+)k_tokens)?(?:_(?P<tier>{'|'.join(TIERS)}))?"
)


def main(path: str, version: str) -> None:
    rows: dict[str, dict[str, Row]] = {}
    for name, said in json.loads(Path(path).read_text(encoding="utf-8")).items():
        provider = PROVIDERS.get(said.get("litellm_provider", ""))
        row = read_row(said)
        if provider is not None and row:
            rows.setdefault(provider, {}).setdefault(name.rpartition("/")[2].lower(), row)
    lines = [
        f'"{provider}": {{\n' + ",\n".join(f"{json.dumps(name)}: {_compact(row)}" for name, row in of.items())
        + "\n}" for provider, of in sorted(rows.items())
    ]  # fmt: skip
    head = f'{{"library": "litellm {version}", "prices": {{\n'
    TABLE.write_text(head + ",\n".join(lines) + "\n}}\n", encoding="utf-8")


def read_row(said: Mapping[str, Any]) -> Row:
    """Return what a model costs, as fields of a price."""
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
    return {**usual, "service_tiers": tiers} if tiers else usual


@cache
def read_table() -> tuple[str, Mapping[str, Mapping[str, Row]]]:
    """Return the name of the library with its version, and rows by provider and name."""
    said = json.loads(TABLE.read_bytes())
    return said["library"], said["prices"]


def _compact(row: Row) -> str:
    return json.dumps(row, separators=(",", ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
