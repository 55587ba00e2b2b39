"""What one call costs: its counts times the prices of its admission, in whole numbers.

Everything is an exact integer up to the one rounding of a call, half up. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.core.billing.pricing import EXACT
from gateway.core.billing.vector import (
    KINDS,
    NANO_DIGITS,
    SAME,
    TOKENS_A_PRICE,
    USES_A_PRICE,
    Factor,
    Vector,
)

_NONE: Final[Mapping[str, int]] = {}
# Uses that providers count and take nothing for, beside the tokens. The last two are run by clients.
FREE_TOOLS: Final = frozenset({"web_fetch", "tool_search", "mcp", "local_shell", "apply_patch"})


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

    `counts` are tokens by `KINDS`, `tools` uses by name, `tier` is the service tier that answered. A tier
    that the price does not name costs nothing more, and nobody says what a tool costs that it does not name.
    """
    prices = vector.prices
    if vector.context_tiers:
        prices = prices_at(vector, counts[0] + counts[1] + counts[2] + counts[3])
    whole = vector.request * TOKENS_A_PRICE
    for kind, count in enumerate(apart(counts)):
        if count:
            whole += count * prices[kind]
    scale = TOKENS_A_PRICE
    if tier and tier in vector.service_tiers:
        numerator, denominator = vector.service_tiers[tier]
        whole *= numerator
        scale *= denominator
    if tools:
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


def unpriced(vector: Vector, tools: Mapping[str, int]) -> list[str]:
    """Names of tools whose uses no price covers."""
    return [
        name for name, uses in tools.items() if uses and name not in vector.tools and name not in FREE_TOOLS
    ]


def prices_at(vector: Vector, read: int) -> tuple[int, ...]:
    """The prices of a call that has read so many tokens."""
    prices = vector.prices
    for above, dearer in vector.context_tiers:
        if read > above:
            prices = dearer
    return prices


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
