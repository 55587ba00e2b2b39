"""What a call costs before it is over: by the tokens seen of it, and at most by all it could use. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.billing.cost import prices_at
from gateway.core.billing.pricing import ENDLESS, NANO, whole_credits
from gateway.core.billing.vector import KINDS, SAME, TOKENS_A_PRICE, USES_A_PRICE, Factor, Vector

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
