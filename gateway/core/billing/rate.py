"""What a call costs before it is over: by the tokens seen of it, and at most by all it could use. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.billing.cost import (
    KINDS,
    SAME,
    TOKENS_A_PRICE,
    USES_A_PRICE,
    Factor,
    Vector,
    prices_at,
)
from gateway.core.billing.pricing import ENDLESS, NANO, whole_credits

_INPUT, _OUTPUT = KINDS.index("input"), KINDS.index("output")
_TEXT = (_INPUT, KINDS.index("cache_read"))
_CACHES = (KINDS.index("cache_write"), KINDS.index("cache_write_1h"))
_BLOBS = (KINDS.index("audio_input"), KINDS.index("image_input"))
_WRITTEN = (_OUTPUT, KINDS.index("reasoning"), KINDS.index("image_output"))
_SOUND = KINDS.index("audio_output")


@dataclass(frozen=True, slots=True)
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
        cost = self.fixed - -(read * self.input + (tokens - read) * self.output) // TOKENS_A_PRICE
        return -(-cost * self.factor[0] // self.factor[1])

    def credits(self, tokens: int) -> int:
        """Whole credits of so many tokens, rounded up, never more than are counted exactly."""
        return 0 if self.in_money else min(whole_credits(self.nano(tokens))[0], ENDLESS)

    def seen(self, tokens: int) -> int:
        """What a call of which no more was seen is charged: credits, or units."""
        return min(self.nano(tokens), ENDLESS) if self.in_money else self.credits(tokens)

    def covered(self, credits_: int) -> int:
        """Return the most tokens so many credits pay; more than any call has where they cost nothing."""
        if self.in_money:
            return ENDLESS
        cost = credits_ * NANO * self.factor[1] // self.factor[0]
        there = (cost - self.fixed) * TOKENS_A_PRICE
        left = there - self.read * self.input
        if left < 0:
            return max(0, there) // self.input if self.input else 0
        return self.read + left // self.output if self.output else ENDLESS


@dataclass(frozen=True, slots=True)
class Asks:
    """What of a call says which prices it may have: whether it may write to a cache, has more than text in
    it, may be answered with sound or be served at another tier than the usual; uses of tools by name.
    """

    caches: bool = True
    blobs: bool = True
    sound: bool = True
    tiers: bool = True
    tools: Mapping[str, int] = field(default_factory=dict)


def usual_rate(vectors: Sequence[Vector], read: int, factor: Factor = SAME, *, in_money: bool) -> TokenRate:
    """What the tokens of a call cost that reads so many, none of them by a cache."""
    prices = [prices_at(one, read) for one in vectors]
    return TokenRate(
        read, max(each[_INPUT] for each in prices), max(each[_OUTPUT] for each in prices),
        max(one.request for one in vectors), factor, in_money,
    )  # fmt: skip


def dearest_rate(
    vectors: Sequence[Vector], read: int, asks: Asks, factor: Factor = SAME, *, in_money: bool
) -> TokenRate:
    """The most a call could cost by its tokens: of all prices it may have, the dearest."""
    read_kinds = _TEXT + (_CACHES if asks.caches else ()) + (_BLOBS if asks.blobs else ())
    written_kinds = (*_WRITTEN, _SOUND) if asks.sound else _WRITTEN
    input_ = output = fixed = 0
    for one in vectors:
        tier = _dearest_tier(one) if asks.tiers else SAME
        for prices in (one.prices, *(dearer for above, dearer in one.context_tiers if read > above)):
            input_ = max(input_, _times(max(prices[kind] for kind in read_kinds), tier))
            output = max(output, _times(max(prices[kind] for kind in written_kinds), tier))
        tools = sum(uses * one.tools.get(name, 0) for name, uses in asks.tools.items())
        fixed = max(fixed, _times(one.request, tier) - -tools // USES_A_PRICE)
    return TokenRate(read, input_, output, fixed, factor, in_money)


def _dearest_tier(vector: Vector) -> Factor:
    found = SAME
    for numerator, denominator in vector.service_tiers.values():
        if numerator * found[1] > found[0] * denominator:
            found = (numerator, denominator)
    return found


def _times(nano: int, factor: Factor) -> int:
    """Rounded up: a hold is no less than a charge."""
    return -(-nano * factor[0] // factor[1])
