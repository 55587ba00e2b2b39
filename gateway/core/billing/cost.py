"""What one call costs: its counts times the prices of its admission, in whole numbers.

Money is counted in nano-units of a currency (a billionth). A price is whole nano-units a million tokens,
so everything is an exact integer up to the one rounding of a call, half up. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import mul
from typing import Any, Final, NamedTuple

from gateway.core.billing.pricing import EXACT

# The kinds of tokens, in the order of every vector. The first five add up to a call's tokens. `PARTS` are
# parts of these: audio and image input of `input`, the other three of `output`.
KINDS: Final = (
    "input", "cache_read", "cache_write", "cache_write_1h", "output",
    "reasoning", "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip
WHOLES: Final = KINDS.index("output") + 1
PARTS: Final = KINDS[WHOLES:]
Counts = tuple[int, int, int, int, int, int, int, int, int, int]
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


class Line(NamedTuple):
    """One part of a call's cost, exact: `amount` is `quantity` × `unit_price` / `per`.

    `kind` is one of `KINDS`, `request`, or `tools.` and a tool's name; the price has its service tier in it.
    """

    kind: str
    quantity: int
    unit_price: Decimal
    per: int
    amount: Decimal


def cost_nano(vector: Vector, counts: Sequence[int], tools: Mapping[str, int] = _NONE, tier: str = "") -> int:
    """What a call costs in nano-units, rounded half up once.

    `counts` are tokens by `KINDS`, `tools` uses by name, `tier` is the service tier that answered. A tool
    or a tier that the price does not name costs nothing more.
    """
    prices = vector.prices
    if vector.context_tiers:
        prices = prices_at(vector, counts[0] + counts[1] + counts[2] + counts[3])
    whole: int = vector.request * TOKENS_A_PRICE + sum(map(mul, apart(counts), prices))
    scale = TOKENS_A_PRICE
    if tier and tier in vector.service_tiers:
        numerator, denominator = vector.service_tiers[tier]
        whole *= numerator
        scale *= denominator
    for name, uses in tools.items():
        whole += uses * vector.tools.get(name, 0) * scale // USES_A_PRICE
    return (2 * whole + scale) // (2 * scale)


def lines(
    vector: Vector, counts: Sequence[int], tools: Mapping[str, int] = _NONE, tier: str = ""
) -> list[Line]:
    """What a call's cost is made of, a line a kind that was used; their sum, rounded half up, is its cost."""
    prices = prices_at(vector, sum(counts[:4]))
    factor = vector.service_tiers.get(tier, SAME)
    made = [
        _line(kind, count, price, TOKENS_A_PRICE, factor)
        for kind, count, price in zip(KINDS, apart(counts), prices, strict=True)
        if count
    ]
    if vector.request:
        made.append(_line("request", 1, vector.request, 1, factor))
    made += [
        _line(f"tools.{name}", uses, vector.tools[name], USES_A_PRICE, SAME)
        for name, uses in tools.items()
        if uses and name in vector.tools
    ]
    return made


def prices_at(vector: Vector, read: int) -> tuple[int, ...]:
    """The prices of a call that has read so many tokens."""
    prices = vector.prices
    for above, dearer in vector.context_tiers:
        if read > above:
            prices = dearer
    return prices


def filled(own: Mapping[str, int | None], last: int = 0) -> tuple[int, ...]:
    """A price, or a weight, for each kind: its own, else that of what it falls back to, else the `last`."""

    def one(kind: str) -> int:
        found = own.get(kind)
        return found if found is not None else one(FALLBACK[kind]) if kind in FALLBACK else last

    return tuple(map(one, KINDS))


def money(nano: int) -> Decimal:
    """Nano-units as an amount of the currency."""
    return EXACT.scaleb(Decimal(nano), -NANO_DIGITS)


def apart(counts: Sequence[int]) -> Sequence[int]:
    """Counts of which none is part of another. What parts have beyond their whole is theirs all the same."""
    read, cached, written, written_1h, output, reasoning, audio, audio_output, image, image_output = counts
    if not (reasoning or audio or audio_output or image or image_output):
        return counts
    if audio or image:
        read = max(0, read - audio - image)
    if reasoning or audio_output or image_output:
        output = max(0, output - reasoning - audio_output - image_output)
    return (
        read, cached, written, written_1h, output, reasoning, audio, audio_output, image, image_output
    )  # fmt: skip


def _line(kind: str, quantity: int, nano: int, per: int, factor: Factor) -> Line:
    numerator, denominator = factor
    unit_price = EXACT.divide(money(nano * numerator), Decimal(denominator))
    amount = EXACT.divide(EXACT.multiply(unit_price, Decimal(quantity)), Decimal(per))
    return Line(kind, quantity, unit_price, per, amount)
