"""Weights of kinds of tokens in a plan, exact. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import mul
from typing import Final, Self

from gateway.core.billing.money import ENDLESS
from gateway.core.billing.price_book import KINDS, WHOLES, apart, filled

_INPUT, _OUTPUT = KINDS.index("input"), KINDS.index("output")

WEIGHT_MAX: Final = 1_000
WEIGHT_DIGITS_MAX: Final = 6
WEIGHTED_PLANS_MAX: Final = 1_000  # every gateway holds the weights of all plans
ONE: Final = 10**WEIGHT_DIGITS_MAX
_WRITTEN: Final = frozenset({"output", "reasoning", "audio_output", "image_output"})


@dataclass(frozen=True, slots=True)
class Weights:
    """How much a token of each kind counts toward a quota, in millionths by `KINDS`.

    `read` and `written` are the largest weights of input kinds and of output kinds.
    """

    by_kind: tuple[int, ...]
    read: int
    written: int

    @classmethod
    def of(cls, millionths: Mapping[str, int]) -> Self:
        """Make weights from millionths by kind. A missing kind weighs as much as its fallback kind, or 1."""
        by_kind = dict(zip(KINDS, filled(millionths, ONE), strict=True))
        read = max(weight for kind, weight in by_kind.items() if kind not in _WRITTEN)
        return cls(tuple(by_kind.values()), read, max(by_kind[kind] for kind in _WRITTEN))

    def count(self, counts: Sequence[int], total: int) -> int:
        """Return the quota tokens that a call of `total` tokens counts as, rounded up once.

        `counts` are by `KINDS`. Tokens that belong to no kind count as input or output, whichever weighs
        more. The result is at most `total` times the largest weight.
        """
        by_kind = self.by_kind
        millionths: int = sum(map(mul, apart(counts), by_kind))
        beyond = total - sum(counts[:WHOLES])
        if beyond > 0:
            millionths += beyond * max(by_kind[_INPUT], by_kind[_OUTPUT])
        most = total * max(self.read, self.written)
        return min(-(-min(millionths, most) // ONE), ENDLESS)

    def at_most(self, tokens: int, read: int) -> int:
        """Return the most quota tokens that `tokens` can count as, if at most `read` of them are input."""
        read = min(tokens, read)
        return min(-(-(read * self.read + (tokens - read) * self.written) // ONE), ENDLESS)

    def covered(self, counted: int, read: int) -> int:
        """Return the most tokens of a call, `read` of them input, that count as `counted` quota tokens."""
        left = counted * ONE - read * self.read
        if left < 0:
            return counted * ONE // self.read
        return min(ENDLESS, read + left // self.written) if self.written else ENDLESS


def millionths(document: Mapping[str, str] | None) -> dict[str, int]:
    """Return a plan's stored weights, decimal strings by kind, in millionths."""
    return {kind: int(Decimal(weight).scaleb(WEIGHT_DIGITS_MAX)) for kind, weight in (document or {}).items()}
