"""A price as it travels between processes, as JSON.

These stay apart from the price book: they are read by their annotations, and a compiled module keeps none
of those whole. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# A whole fraction, numerator and denominator.
Factor = tuple[int, int]
SAME: Final[Factor] = (1, 1)
_NONE: Final[Mapping[str, Any]] = {}


class Vector(NamedTuple):
    """One price as a gateway carries it; as JSON an array.

    `prices` are nano-units a million tokens by `KINDS`, each filled in by its fallback; `request` nano-units
    a call, `tools` nano-units a thousand uses by name. The last of `context_tiers` (above, prices), in
    ascending order, that a call has read more than has its prices. `service_tiers` are exact fractions
    (numerator, denominator) of the cost of tokens and of the call.

    One that was converted has its prices rounded up, as holds need them. `exact` is the price as it was set
    and the exchange rate, by which a charge is counted, and `rate` that rate as it was written. `units` are
    nano-units a thousand of the units beside tokens, such as `character` or `images.1024x1024/high`.
    `tiers` are the service tiers that have a table of their own, each a whole price. `lacks` are kinds that
    the price does not name, and that no price of text stands for.
    """

    price_id: int
    currency: str
    prices: tuple[int, ...]
    request: int = 0
    tools: Mapping[str, int] = _NONE
    context_tiers: tuple[tuple[int, tuple[int, ...]], ...] = ()
    service_tiers: Mapping[str, Factor] = _NONE
    rate: str = ""
    exact: tuple[Vector, Factor] | None = None
    units: Mapping[str, int] = _NONE
    tiers: Mapping[str, Vector] = _NONE
    lacks: tuple[str, ...] = ()


class ExchangeRate(NamedTuple):
    """How much of `currency` a unit of `base` is, from `effective_ms` on until a later one of the same."""

    currency: str
    base: str
    rate: str
    effective_ms: int


class ModelPrice(NamedTuple):
    """One price and what it is for; `model` is a whole name or, where `is_prefix`, its beginning.

    `provider` is empty where it is any. In force from `effective_ms` on, until a later one of the same.
    """

    model: str
    is_prefix: bool
    provider: str
    is_bundled: bool
    effective_ms: int
    vector: Vector
