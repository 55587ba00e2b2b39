"""Made answers of kinds that no recorded one has: units, other hosts, tiers, long contexts, currencies.

`made.txt` has for each its meter, the model, what is asked and what is answered, and what a hand has
counted in that: tokens by kind, units and tools, the tier, an exchange rate, and the cost in nano-units.
Prices are written down here. Nothing of the product is used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from math import floor
from pathlib import Path
from typing import Any

from tests.recorded.prices import KINDS, NANO, ListPrice

_HERE = "no library has it"


@dataclass(frozen=True)
class UnitPrice:
    """Of tokens and tools as `listed`; `units` cost so much each, pictures by `images.<size>/<quality>`."""

    listed: ListPrice
    units: dict[str, str] = field(default_factory=dict)

    def nano(self, counts: dict[str, int], uses: dict[str, int], tier: str, rate: str) -> int:
        """What a call costs in nano-units, by fractions, rounded once."""
        exact = self.listed.nano(counts, uses, tier)
        for name, n in uses.items():
            exact += Fraction(self._unit(name)) * n * NANO / (1_000_000 if name == "cache_hour" else 1)
        return floor(exact * Fraction(rate or "1") + Fraction(1, 2))

    def _unit(self, name: str) -> str:
        """A picture of a size or a quality that nobody says costs as much as the dearest that it may be."""
        if name in self.units or not name.startswith("images."):
            return self.units.get(name, "0")
        size, _, quality = name.removeprefix("images.").partition("/")
        fitting = [
            price
            for each, price in self.units.items()
            if size in {"auto", each.removeprefix("images.").partition("/")[0]}
            and quality in {"auto", each.partition("/")[2]}
        ]
        return max(fitting, key=Fraction, default="0")


def _price(
    million: dict[str, str] | None = None,
    over: tuple[int, dict[str, str]] | None = None,
    tools: dict[str, str] | None = None,
    tiers: dict[str, str] | None = None,
    **units: str,
) -> UnitPrice:
    return UnitPrice(
        ListPrice(_HERE, million or {"input": "0", "output": "0"}, over, tools or {}, tiers or {}), units
    )


_PICTURES = {
    "images.1024x1024/standard": "0.04", "images.1024x1024/high": "0.167", "images.1536x1024/high": "0.25",
    "images.1024x1792/hd": "0.12", "images.256x256/standard": "0.016",
}  # fmt: skip
MADE_PRICES: dict[str, UnitPrice] = {
    "draw": _price(**_PICTURES),
    "dall-e-3": _price(**_PICTURES),
    "gpt-image-1": _price({"input": "5", "image_input": "10", "output": "40"}),
    "gpt-image-1.5": _price({"input": "5", "image_input": "8", "output": "10", "image_output": "32"}),
    "voice": _price(character="0.000015"),
    "voice-hd": _price(character="0.00003"),
    "heard": _price(audio_second="0.0001"),
    "heard-tokens": _price({"input": "2.5", "audio_input": "6", "output": "10"}),
    "ocr": _price(page="0.002"),
    "rerank": _price(search="0.002"),
    "classify": _price(tools={"classification": "0.25"}),
    "embed": _price({"input": "0.12", "image_input": "0.47", "output": "0"}),
    "command": _price({"input": "2.5", "output": "10"}),
    "anthropic.claude": _price(
        {"input": "3", "cache_read": "0.3", "cache_write": "3.75", "cache_write_1h": "6", "output": "15"},
        tools={"web_search": "10"}, tiers={"priority": "1.75", "flex": "0.5", "optimized": "1.25"},
    ),
    "nova": _price({"input": "0.8", "cache_read": "0.2", "output": "3.2"}, tiers={"flex": "0.5"}),
    "guardrail/g": _price(tools={
        "guardrail_topic": "0.15", "guardrail_content": "0.15", "guardrail_word": "0",
        "guardrail_sensitive": "0.1", "guardrail_grounding": "0.1",
    }),
    "gemini-x": _price(
        {"input": "1.25", "cache_read": "0.125", "audio_input": "3", "output": "10"},
        (200_000, {"input": "2.5", "cache_read": "0.25", "output": "15"}), {"web_search": "35"},
        {"flex": "0.5", "priority": "1.8"}, cache_hour="4.5",
    ),
    "imagen": _price(**{"images.1k/standard": "0.04", "images.2k/standard": "0.06"}),
    "mistral": _price({"input": "0.4", "output": "2"}, tools={"web_search": "30", "code_interpreter": "5"}),
    "llama": _price({"input": "0.1", "output": "0.2"}),
    "gpt": _price(
        {"input": "2", "cache_read": "0.5", "output": "8"}, (272_000, {"input": "4", "output": "12"}),
        {"web_search": "10", "file_search": "2.5", "code_interpreter": "30"},
        {"flex": "0.5", "priority": "1.75"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One made answer, and what a hand has counted in it."""

    name: str
    meter: str
    model: str
    asked: dict[str, Any]
    lines: tuple[str, ...]
    counts: dict[str, int]
    uses: dict[str, int]
    tier: str
    rate: str
    nano: int


@cache
def made() -> tuple[Made, ...]:
    """All of them, in the order of the file."""
    text = (Path(__file__).parent / "made.txt").read_text()
    return tuple(_read(block) for block in text.split("@@ ")[1:])


def _read(block: str) -> Made:
    """A head, what is asked, the lines of the answer, and what counts."""
    head, asked, *lines, counted = block.strip().split("\n")
    name, meter, model = head.split(" | ")
    said = dict(part.split("=", 1) for part in counted.split())
    counts = {kind: int(said.pop(kind, 0)) for kind in KINDS}
    tier, rate, nano = said.pop("tier", ""), said.pop("rate", ""), int(said.pop("nano"))
    uses = {each: int(n) for each, n in said.items()}
    return Made(name, meter, model, json.loads(asked), tuple(lines), counts, uses, tier, rate, nano)
