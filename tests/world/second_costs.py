"""Cost reports of usage by litellm's own code and table, and write what they cost as facts for a test.

    PYTHON_WITH_LITELLM -m tests.world.second_costs SEED > tests/run/second_costs.txt
    PYTHON_WITH_LITELLM -m tests.world.second_costs < tests/run/usage_reports.txt

Reports are drawn over all names, tiers and kinds that its table prices. Without a seed it reads reports, and
writes these with its own cost in the place of the last but one column: `-` of a name that it does not know.
Nothing that charges calls is loaded.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # type: ignore[import-not-found]  # where this is run
from litellm.cost_calculator import batch_cost_calculator  # type: ignore[import-not-found]
from litellm.litellm_core_utils.llm_cost_calc.utils import (  # type: ignore[import-not-found]
    generic_cost_per_token,
)
from litellm.types.utils import Usage  # type: ignore[import-not-found]

from deploy.second_prices import PROVIDERS, TIERS, VERTEX, spell

TABLE: Final = "model_prices_and_context_window_backup.json"
REPORTS: Final = 260
KINDS: Final = ("input", "cache_read", "cache_write", "cache_write_1h", "output", "reasoning", "audio_input")
# Hosts in one place, as this code calls them, of each provider.
PLACES: Final = {"openai": {"data_residency": "eu"}, "google-vertex": {"vertex_location": "europe-west1"}}


def main(seed: str) -> None:
    draw = random.Random(seed)
    table = json.loads(Path(litellm.__file__).with_name(TABLE).read_bytes())  # without names of its own
    names = sorted(name for name, said in table.items() if _is_priced(name, said))
    sys.stdout.write(f"# litellm {version('litellm')}, seed {seed}\n")
    sys.stdout.write(f"# provider | name | tier | place | {' '.join(KINDS)} | nano-dollars\n")
    written = set[tuple[str, ...]]()
    while len(written) < REPORTS:
        name = draw.choice(names)
        said = litellm.model_cost[name]
        provider = _provider(said)
        tier = draw.choice(["", *_tiers(said)])
        place = draw.random() < 0.3 and provider in PLACES and not tier
        used = dict(_used(draw, said, tier))
        line = (provider, spell(provider, name), tier, "place" if place else "")
        if line not in written:
            written.add(line)
            cost = _cost(name, said, used, tier, PLACES[provider] if place else {})
            if not cost:
                continue  # free while it is tried
            counts = " ".join(str(used.get(kind, 0)) for kind in KINDS)
            sys.stdout.write(f"{' | '.join(line)} | {counts} | {cost}\n")


def price_again() -> None:
    """Write the reports of the input with what the library's code says that they cost."""
    names = {
        (_provider(said), spell(_provider(said), name)): name
        for name, said in sorted(litellm.model_cost.items(), key=lambda one: -len(one[0]))
    }
    for line in sys.stdin.read().splitlines():
        parts = line.split(" | ")
        if not line.startswith("#"):
            provider, spelled, tier, used, *_ = map(str.strip, parts)
            name = names.get((provider, spelled))
            counted = {kind: int(count) for kind, count in (one.split("=") for one in used.split())}
            counted["input"] -= counted.get("audio_input", 0)
            parts[-2] = "-" if name is None else str(_cost(name, litellm.model_cost[name], counted, tier, {}))
        sys.stdout.write(" | ".join(parts) + "\n")


def _is_priced(name: str, said: Mapping[str, Any]) -> bool:
    provider = _provider(said)
    tokens = said.get("mode") in {"chat", "responses", "embedding"} and said.get("input_cost_per_token")
    return bool(provider and tokens and spell(provider, name)) and name.count("/") < 2


def _provider(said: Mapping[str, Any]) -> str:
    owner = said.get("litellm_provider") or ""
    return "google-vertex" if owner.startswith(VERTEX) else PROVIDERS.get(owner, "")


def _tiers(said: Mapping[str, Any]) -> list[str]:
    return [tier for key, tier in TIERS.items() if f"input_cost_per_token_{key}" in said]


def _used(draw: random.Random, said: Mapping[str, Any], tier: str) -> Iterator[tuple[str, int]]:
    long = draw.random() < 0.3
    yield "input", draw.randrange(1, 400_000 if long else 20_000)
    if said.get("output_cost_per_token"):
        yield "output", 2_000 + draw.randrange(6_000)
        yield "reasoning", draw.randrange(2_000)
    for kind, key in (("cache_read", "cache_read_input_token_cost"),
                      ("cache_write", "cache_creation_input_token_cost"),
                      ("cache_write_1h", "cache_creation_input_token_cost_above_1hr"),
                      ("audio_input", "input_cost_per_audio_token")):  # fmt: skip
        if said.get(key) and (not tier or any(f"{key}_{one}" in said for one in TIERS)):
            yield kind, draw.randrange(1, 9_000)


def _cost(name: str, said: Mapping[str, Any], used: dict[str, int], tier: str, place: dict[str, str]) -> int:
    of = {kind: used.get(kind, 0) for kind in (*KINDS, "audio_output")}
    if of["audio_input"]:
        used["input"] = of["input"] = of["input"] + of["audio_input"]  # a part of it
    read = of["input"] + of["cache_read"] + of["cache_write"] + of["cache_write_1h"]
    written = of["cache_write"] + of["cache_write_1h"]
    usage = Usage(
        prompt_tokens=read,
        completion_tokens=of["output"],
        total_tokens=read + of["output"],
        prompt_tokens_details={
            "cached_tokens": of["cache_read"],
            "audio_tokens": of["audio_input"],
            "text_tokens": of["input"] - of["audio_input"],
            "cache_creation_tokens": written,
            "cache_creation_token_details": {
                "ephemeral_5m_input_tokens": of["cache_write"],
                "ephemeral_1h_input_tokens": of["cache_write_1h"],
            },
        },
        completion_tokens_details={
            "reasoning_tokens": of["reasoning"],
            "audio_tokens": of["audio_output"],
            "text_tokens": of["output"] - of["audio_output"],
        },
        cache_read_input_tokens=of["cache_read"],
        cache_creation_input_tokens=written,
    )
    provider = said["litellm_provider"]
    if tier == "batch":
        parts = batch_cost_calculator(usage, name, provider)
    else:
        parts = generic_cost_per_token(name, usage, provider, service_tier=tier or None, **place)
    exact = sum(Decimal(repr(part)) for part in parts) * 10**9
    return int(exact.quantize(Decimal(1), ROUND_HALF_UP))


if __name__ == "__main__":
    main(*sys.argv[1:]) if sys.argv[1:] else price_again()
