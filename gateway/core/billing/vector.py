"""A price as whole numbers, for each kind of tokens: as gateways carry it, and costs are counted by it. Pure.

Money is counted in nano-units of a currency (a billionth). A price is whole nano-units a million tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# The kinds of tokens, in the order of every vector. The first five add up to a call's tokens. `PARTS` are
# parts of these: audio and image input of `input`, the other three of `output`.
KINDS: Final = (
    "input", "cache_read", "cache_write", "cache_write_1h", "output",
    "reasoning", "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip
WHOLES: Final = KINDS.index("output") + 1
PARTS: Final = KINDS[WHOLES:]
Counts = tuple[int, ...]
NO_COUNTS: Final[Counts] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# What a kind without a price of its own costs: what this kind costs.
FALLBACK: Final[Mapping[str, str]] = {
    "cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write",
    "audio_input": "input", "image_input": "input",
    "reasoning": "output", "audio_output": "output", "image_output": "output",
}  # fmt: skip
# Of the bundled prices, and of an organization that says none.
BASE_CURRENCY: Final = "USD"
NANO_DIGITS: Final = 9
TOKENS_A_PRICE: Final = 1_000_000
USES_A_PRICE: Final = 1_000
# A whole fraction, numerator and denominator.
Factor = tuple[int, int]
SAME: Final = (1, 1)
_NONE: Final[Mapping[str, Any]] = {}


class Vector(NamedTuple):
    """One price as a gateway carries it; as JSON an array.

    `prices` are nano-units a million tokens by `KINDS`, each filled in by its fallback; `request` nano-units
    a call, `tools` nano-units a thousand uses by name. The last of `context_tiers` (above, prices), in
    ascending order, that a call has read more than has its prices. `service_tiers` are exact fractions
    (numerator, denominator) of what tokens and the call cost.
    """

    price_id: int
    currency: str
    prices: tuple[int, ...]
    request: int = 0
    tools: Mapping[str, int] = _NONE
    context_tiers: tuple[tuple[int, tuple[int, ...]], ...] = ()
    service_tiers: Mapping[str, Factor] = _NONE


class Price(NamedTuple):
    """One price and what it is for; `model` is a whole name or, where `is_prefix`, its beginning.

    `provider` is empty where it is any. In force from `effective_ms` on, until a later one of the same.
    """

    model: str
    is_prefix: bool
    provider: str
    is_bundled: bool
    effective_ms: int
    vector: Vector


def filled(own: Mapping[str, int | None], last: int = 0) -> tuple[int, ...]:
    """A price, or a weight, for each kind: its own, else that of what it falls back to, else the `last`."""

    def one(kind: str) -> int:
        found = own.get(kind)
        return found if found is not None else one(FALLBACK[kind]) if kind in FALLBACK else last

    return tuple(map(one, KINDS))
