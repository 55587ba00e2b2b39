"""What tokens of a kind count toward a tenant's quota: a cached read a tenth of one, say. Pure.

Quotas alone go by weights. Limits a minute, the journal of calls, reports and prices know the tokens that
providers report. Weights are whole millionths here, so a count is exact up to the one rounding of a call, up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from operator import mul
from typing import Final, Self

from gateway.core.billing.cost import apart
from gateway.core.billing.pricing import ENDLESS
from gateway.core.billing.vector import KINDS, WHOLES, filled

WEIGHT_MAX: Final = 1_000
WEIGHT_DIGITS_MAX: Final = 6
WEIGHTED_PLANS_MAX: Final = 1_000  # every gateway carries the weights of all plans
ONE: Final = 10**WEIGHT_DIGITS_MAX
_INPUT, _OUTPUT = KINDS.index("input"), KINDS.index("output")
_WRITTEN: Final = frozenset({"output", "reasoning", "audio_output", "image_output"})


@dataclass(frozen=True, slots=True)
class Weights:
    """What a token of each kind counts, in millionths by `KINDS`.

    `read` and `written` are the largest of what a call reads and of what it writes.
    """

    by_kind: tuple[int, ...]
    read: int
    written: int

    @classmethod
    def of(cls, millionths: Mapping[str, int]) -> Self:
        """Weights by the kinds that are named; another one counts as what its price falls back to, or 1."""
        by_kind = dict(zip(KINDS, filled(millionths, ONE), strict=True))
        read = max(weight for kind, weight in by_kind.items() if kind not in _WRITTEN)
        return cls(tuple(by_kind.values()), read, max(by_kind[kind] for kind in _WRITTEN))

    def count(self, counts: Sequence[int], total: int) -> int:
        """How many tokens of a quota a call of `total` tokens counts, rounded up once.

        `counts` are by `KINDS`. What a provider reports beyond its kinds counts as input or output, whichever
        is more; and never more is counted than all of it at the largest weight.
        """
        by_kind = self.by_kind
        millionths: int = sum(map(mul, apart(counts), by_kind))
        beyond = total - sum(counts[:WHOLES])
        if beyond > 0:
            millionths += beyond * max(by_kind[_INPUT], by_kind[_OUTPUT])
        most = total * max(self.read, self.written)
        return min(-(-min(millionths, most) // ONE), ENDLESS)

    def at_most(self, tokens: int, read: int) -> int:
        """Return the most that so many tokens count, of which `read` at most are input, of any kind."""
        read = min(tokens, read)
        return min(-(-(read * self.read + (tokens - read) * self.written) // ONE), ENDLESS)

    def covered(self, counted: int, read: int) -> int:
        """Return the most tokens that count no more than this, `read` of them input."""
        left = counted * ONE - read * self.read
        if left < 0:
            return counted * ONE // self.read
        return min(ENDLESS, read + left // self.written) if self.written else ENDLESS


def millionths(document: Mapping[str, str] | None) -> dict[str, int]:
    """A plan's weights as they are stored, decimal strings by kind, in millionths."""
    return {kind: int(Decimal(weight).scaleb(WEIGHT_DIGITS_MAX)) for kind, weight in (document or {}).items()}
