"""What one call costs: its counts times the prices of its admission, in whole numbers.

Everything is an exact integer up to the one rounding of a call, half up. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from gateway.core.billing.money import ENDLESS, EXACT, NANO, whole_credits
from gateway.core.billing.price_book import (
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


# What a call costs before it is over: by the tokens seen of it, and at most by all it could use. Pure.


_INPUT: Final = KINDS.index("input")
_OUTPUT: Final = KINDS.index("output")
_TEXT: Final = (_INPUT, KINDS.index("cache_read"))
_CACHES: Final = (KINDS.index("cache_write"), KINDS.index("cache_write_1h"))
_BLOBS: Final = (KINDS.index("audio_input"), KINDS.index("image_input"))
_WRITTEN: Final = (_OUTPUT, KINDS.index("reasoning"), KINDS.index("image_output"))
_SOUND: Final = KINDS.index("audio_output")
PRICES_MAX: Final = 4_096


@dataclass(slots=True)
class TokenRate:
    """What a call under way costs by the tokens seen of it: `fixed`, and the first `read` were its input.

    Prices are nano-units a million tokens, `fixed` nano-units. What they come to, times `factor`, are
    nano-credits; or units of money, where those are charged (`in_money`) and no credits.
    """

    read: int
    input: int
    output: int
    fixed: int = 0
    factor: Factor = SAME
    in_money: bool = False

    def nano(self, tokens: int) -> int:
        """What so many tokens cost, rounded up: no less than what is charged for them."""
        read = min(tokens, self.read)
        return -(-self.cost(read, tokens - read) * self.factor[0] // self.factor[1])

    def cost(self, read: int, written: int) -> int:
        """What so many tokens cost in nano-units, the factor apart, rounded up."""
        return self.fixed - -(read * self.input + written * self.output) // TOKENS_A_PRICE

    def credits(self, tokens: int) -> int:
        """Whole credits of so many tokens, rounded up, never more than are counted exactly."""
        return 0 if self.in_money else min(whole_credits(self.nano(tokens))[0], ENDLESS)

    def seen(self, tokens: int) -> int:
        """What a call of which no more was seen is charged: credits, or units."""
        return min(self.nano(tokens), ENDLESS) if self.in_money else self.credits(tokens)

    def covered(self, credits_: int) -> int:
        """Return the most tokens so many credits pay; more than any call has where they cost nothing."""
        return ENDLESS if self.in_money else self.paid(credits_ * NANO * self.factor[1] // self.factor[0])

    def paid(self, nano: int) -> int:
        """Return the most tokens so many nano-units pay, the factor apart."""
        there = (nano - self.fixed) * TOKENS_A_PRICE
        left = there - self.read * self.input
        if left < 0:
            return max(0, there) // self.input if self.input else 0
        return self.read + left // self.output if self.output else ENDLESS


@dataclass(slots=True)
class Asks:
    """What of a call says which prices it may have: whether it may write to a cache, has more than text in
    it, may be answered with sound; the tiers it may be served at, None for any; uses of tools by name.
    """

    caches: bool = True
    blobs: bool = True
    sound: bool = True
    tiers: Collection[str] | None = None
    tools: Mapping[str, int] | None = None


@dataclass(slots=True)
class Dearest:
    """The dearest price of text that is read, of what goes to caches, of blobs, of what is written, sound."""

    text: int
    caches: int
    blobs: int
    written: int
    sound: int


def usual_rate(vectors: Sequence[Vector], read: int, factor: Factor = SAME, *, in_money: bool) -> TokenRate:
    """What the tokens of a call cost that reads so many, none of them by a cache."""
    prices = [prices_at(one, read) for one in vectors]
    return TokenRate(
        read, max([each[_INPUT] for each in prices]), max([each[_OUTPUT] for each in prices]),
        max([one.request for one in vectors]), factor, in_money,
    )  # fmt: skip


def dearest_rate(
    vectors: Sequence[Vector], read: int, asks: Asks, factor: Factor = SAME, *, in_money: bool
) -> TokenRate:
    """The most a call could cost by its tokens: of all prices it may have, the dearest."""
    input_ = output = fixed = 0
    for one in vectors:
        tier = _dearest_tier(one, asks.tiers) if one.service_tiers else SAME
        for prices in prices_within(one, read):
            dearest = dearest_kinds(prices)
            text, written = dearest.text, dearest.written
            if asks.caches:
                text = max(text, dearest.caches)
            if asks.blobs:
                text = max(text, dearest.blobs)
            if asks.sound:
                written = max(written, dearest.sound)
            input_, output = max(input_, _times(text, tier)), max(output, _times(written, tier))
        tools = 0
        if asks.tools:
            tools = sum([uses * one.tools.get(name, 0) for name, uses in asks.tools.items()])
        fixed = max(fixed, _times(one.request, tier) - -tools // USES_A_PRICE)
    return TokenRate(read, input_, output, fixed, factor, in_money)


def prices_within(vector: Vector, read: int) -> list[tuple[int, ...]]:
    """All prices of a call that reads up to so many tokens."""
    found = [vector.prices]
    if vector.context_tiers:
        found += [dearer for above, dearer in vector.context_tiers if read > above]
    return found


def dearest_kinds(prices: tuple[int, ...]) -> Dearest:
    """The dearest of prices by kind, remembered for up to `PRICES_MAX` of them."""
    found = _dearest.get(prices)
    if found is None:
        text, caches, blobs, written = [
            max([prices[kind] for kind in kinds]) for kinds in (_TEXT, _CACHES, _BLOBS, _WRITTEN)
        ]
        found = Dearest(text, caches, blobs, written, prices[_SOUND])
        if len(_dearest) >= PRICES_MAX:
            _dearest.clear()
        _dearest[prices] = found
    return found


_dearest: Final[dict[tuple[int, ...], Dearest]] = {}


def _dearest_tier(vector: Vector, tiers: Collection[str] | None) -> Factor:
    found = SAME
    for tier, (numerator, denominator) in vector.service_tiers.items():
        if tiers is not None and tier not in tiers:
            continue
        if numerator * found[1] > found[0] * denominator:
            found = (numerator, denominator)
    return found


def _times(nano: int, factor: Factor) -> int:
    """Rounded up: a hold is no less than a charge."""
    return -(-nano * factor[0] // factor[1])
