"""Prices as they are sent between processes, as JSON.

These types are not in the price book: msgspec reads them by their annotations, which a compiled module does
not keep. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

# A whole fraction, numerator and denominator.
Factor = tuple[int, int]
SAME: Final[Factor] = (1, 1)
_NONE: Final[Mapping[str, Any]] = {}
# Images as units are `images.<size>/<quality>`.
IMAGES: Final = "images."
AUTO: Final = "auto"
# A token that a provider keeps for an hour. Its price is of a million of them.
CACHE_HOUR: Final = "cache_hour"
# A token of sound that was read from a cache: one of the tokens of `cache_read`. Its price is of a million.
CACHE_AUDIO: Final = "cache_audio"


class Vector(NamedTuple):
    """One price as gateways use it; an array in JSON.

    `prices` are nano-units per million tokens by `KINDS`, with fallbacks filled in. `request` is nano-units
    per call, `tools` nano-units per thousand uses by name. `context_tiers` are (above, prices) in ascending
    order; the last one that a call's input tokens exceed replaces `prices`. `service_tiers` are factors
    (numerator, denominator) on the cost of tokens and of the call.

    A converted price has its amounts rounded up, as holds need them. `exact` is the original price and the
    exchange rate, from which charges are computed, and `rate` is that rate as it was written. `units` are
    nano-units per thousand of other units, such as `character` or `images.1024x1024/high`. `tiers` are
    service tiers with their own prices. `lacks` are kinds that the price does not name, and that no price of
    text covers. `hours` is None unless the price changes by the hour.
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
    hours: PriceHours | None = None


class PriceSpan(NamedTuple):
    """Hours in which a price is multiplied by `factor`: from the minute `since` of a day until before `until`.

    `days` are 1 (Monday) to 7, by the clocks of `time_zone`. `excepted` are ordinals of days (as of `date`).
    If `until` is not above `since`, it is a minute of the next day.
    """

    days: tuple[int, ...]
    since: int
    until: int
    time_zone: str
    factor: Factor
    excepted: tuple[int, ...] = ()


class PriceHours(NamedTuple):
    """The hours of a price; `by_end` if the end of a call decides which one counts, and not its beginning.

    A price at one of its factors has that `factor`, and in `listed` the price as it stands in the list.
    """

    spans: tuple[PriceSpan, ...]
    by_end: bool = False
    factor: Factor = SAME
    listed: Vector | None = None


class ExchangeRate(NamedTuple):
    """The price of a unit of `base` in `currency`, from `effective_ms` on until a later rate of both."""

    currency: str
    base: str
    rate: str
    effective_ms: int


class ModelPrice(NamedTuple):
    """One price and the models that have it: `model` is a whole name, or with `is_prefix` its beginning.

    An empty `provider` means any. It is in force from `effective_ms` on, until a later one replaces it.
    """

    model: str
    is_prefix: bool
    provider: str
    is_bundled: bool
    effective_ms: int
    vector: Vector


def unit_price(vector: Vector, name: str) -> int | None:
    """Return the price of a thousand units in nano-units, None if there is none.

    A picture of an unlisted size and quality costs as the dearest of its size, or of its quality, whichever
    is more, else as the dearest of all.
    """
    units = vector.units
    price = units.get(name)
    if price is not None or not name.startswith(IMAGES):
        return price
    size, _, quality = name.removeprefix(IMAGES).partition("/")
    alike = [units.get(f"{IMAGES}{name}") for name in (f"{size}/{AUTO}", f"{AUTO}/{quality}")]
    return max([price for price in alike if price is not None], default=units.get(f"{IMAGES}{AUTO}/{AUTO}"))
