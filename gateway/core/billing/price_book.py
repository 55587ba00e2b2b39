"""The price of a call: by provider, model, currency and time, chosen among all prices ever set.

A price is never changed: one with a later `effective_from` replaces it. Prices of the operator come before
the bundled list. Then an exact name comes before the longest prefix, then the provider decides, then the
newest price by the time of the call. Names are compared `folded`. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from gateway.core.billing.hours import factor_at, read_hours
from gateway.core.billing.money import (
    ENDLESS,
    EXACT,
    NANO,
    whole_credits,
)
from gateway.core.billing.sellers import Seller, order_prices, place_factor, rank
from gateway.core.billing.service_tiers import PLACES, at_tier, lacks_tier, places_of
from gateway.core.billing.vector import (
    AUTO,
    CACHE_AUDIO,
    CACHE_HOUR,
    IMAGES,
    SAME,
    ExchangeRate,
    Factor,
    ModelPrice,
    Vector,
    unit_price,
)
from gateway.core.times import floor_ms

# A price as whole numbers for each kind of tokens, as gateways use it to compute costs. Pure.
#
# Money is counted in nano-units of a currency (a billionth). A price is whole nano-units a million tokens.

# The kinds of tokens, in the order of every vector. The first five add up to a call's tokens. `PARTS` are
# parts of these: audio and image input of `input`, the other three of `output`.
KINDS: Final = (
    "input", "cache_read", "cache_write", "cache_write_1h", "output",
    "reasoning", "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip
WHOLES: Final = KINDS.index("output") + 1
PARTS: Final = KINDS[WHOLES:]
# Kinds that are parts of another one.
PARTS_OF: Final = {
    "input": ("audio_input", "image_input"),
    "output": ("reasoning", "audio_output", "image_output"),
}
# The kinds beside each whole. A whole without a price costs as the dearest of these.
_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "input": ("cache_read", "cache_write", "cache_write_1h", *PARTS_OF["input"]), "output": PARTS_OF["output"]
}  # fmt: skip
Counts = tuple[int, ...]
NO_COUNTS: Final[Counts] = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# The kind whose price applies to a kind without one.
FALLBACK: Final[Mapping[str, str]] = {
    "cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write",
    "audio_input": "input", "image_input": "input",
    "reasoning": "output", "audio_output": "output", "image_output": "output",
}  # fmt: skip
# Kinds whose price in a service tier follows that of another kind. Reading and writing caches do not.
FOLLOWS: Final[Mapping[str, str]] = {
    part: whole for part, whole in FALLBACK.items() if part not in {"cache_read", "cache_write"}
}
# Kinds that cost many times as much as text: their price is unknown if it is not named.
NAMED_ALONE: Final = ("audio_input", "audio_output", "image_output")
# The currency of bundled prices, and of organizations by default.
BASE_CURRENCY: Final = "USD"
# Units other than tokens and images, with a price each.
UNITS: Final = (
    "audio_second", "video_second", "character", "page", "search", "container", CACHE_HOUR, CACHE_AUDIO,
)  # fmt: skip
# The number of units that a price is of, where it is more than one.
UNITS_A_PRICE: Final = {CACHE_HOUR: 1_000_000, CACHE_AUDIO: 1_000_000}
# Tools whose uses are priced as units if a price does not name the tool.
TOOLS_OF_UNITS: Final[Mapping[str, tuple[str, ...]]] = {
    "search": ("web_search", "web_search_preview", "file_search"),
    "container": ("code_interpreter", "code_execution"),
}
# Searches are priced per query, or per answer with any number of queries.
SEARCH: Final = "web_search"
SEARCH_PROMPT: Final = "web_search_prompt"
NANO_DIGITS: Final = 9
TOKENS_A_PRICE: Final = 1_000_000
USES_A_PRICE: Final = 1_000
_NONE: Final[Mapping[str, Any]] = {}


def filled(own: Mapping[str, int | None], last: int = 0) -> tuple[int, ...]:
    """Return a price or weight for each kind: its own, else that of its fallback kind, else `last`."""

    def price_of(kind: str) -> int:
        price = own.get(kind)
        return price if price is not None else price_of(FALLBACK[kind]) if kind in FALLBACK else last

    return tuple(map(price_of, KINDS))


EXACT_NAME, PREFIX = MATCHES = ("exact", "prefix")
BUNDLED, OPERATOR = SOURCES = ("bundled", "operator")
MODELS_REMEMBERED_MAX: Final = 4_096
MODEL_CHARS_MAX: Final = 200
_CAPITALS: Final = {ord(capital): ord(capital) + 32 for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def folded(name: str) -> str:
    """Return a name in the form in which names are compared: A to Z in lower case, all else unchanged.

    It equals `lower(name COLLATE "C")` in PostgreSQL. Beyond ASCII, every language and library folds case
    differently.
    """
    return name.lower() if name.isascii() else name.translate(_CAPITALS)


def read_price(row: Mapping[str, Any]) -> ModelPrice:
    """Return the price in a database row, or in a row of the bundled list, where amounts may be strings."""
    return ModelPrice(
        folded(str(row["model"])),
        row["match"] == PREFIX,
        folded(row["provider"] or ""),
        row["source"] == BUNDLED,
        floor_ms(row["effective_from"]),
        _vector(row),
    )


def choose(
    prices: Iterable[ModelPrice], model: str, currency: str, at_ms: int, provider: str = ""
) -> ModelPrice | None:
    """Return the price of a model in force at a time (Unix ms), or None.

    If a provider is named, only its prices and those of any provider count. If there are none, the provider
    is ignored.
    """
    name = folded(model)
    matching = [price for price in prices if price.vector.currency == currency and _matches(price, name)]
    ordered = order_prices(sorted(matching, key=rank), folded(provider))
    return next((price for price in ordered if price.effective_ms <= at_ms), None)


class PriceBook:
    """A gateway's prices, with a cache for up to `models_max` pairs of model and currency.

    A model without a price in a currency has its price in another currency, converted by the exchange rate in
    force.
    """

    __slots__ = ("_exact", "_found_vectors", "_lengths", "_models_max", "_prefixes", "_rates")

    def __init__(
        self,
        prices: Iterable[ModelPrice] = (),
        rates: Iterable[ExchangeRate] = (),
        *,
        models_max: int = MODELS_REMEMBERED_MAX,
    ) -> None:
        # By name, each with its rank: the lower one counts.
        self._exact: dict[str, list[tuple[int, ModelPrice]]] = {}
        self._prefixes: dict[str, list[tuple[int, ModelPrice]]] = {}
        for place in enumerate(sorted(prices, key=rank)):
            into = self._prefixes if place[1].is_prefix else self._exact
            into.setdefault(place[1].model, []).append(place)
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})
        # By model, currency and seller: (since, price), the preferred first.
        self._found_vectors: dict[tuple[str, str, Seller | None], list[tuple[int, Vector]]] = {}
        self._models_max = models_max
        self._rates = sorted(rates, key=_rate_rank)

    def vector(self, model: str, currency: str, at_ms: float, seller: Seller | None = None) -> Vector | None:
        """Return a model's price in force at `at_ms` (Unix ms), or None; its seller's list comes first.

        A price that changes by the hour is that of its hour at that time.
        """
        found = self._found_vectors.get((model, currency, seller))
        if found is None:
            found = self._look(model, currency, seller)
        for since_ms, vector in found:
            if since_ms <= at_ms:
                return vector if vector.hours is None else at_moment(vector, at_ms)
        return None

    def base_rate(self, currency: str, at_ms: float) -> str | None:
        """Return the rate from the base currency at a time (Unix ms), as decimal text; None if unknown."""
        fitting = (rate for rate in self._rates if (rate.currency, rate.base) == (currency, BASE_CURRENCY))
        return next((rate.rate for rate in fitting if rate.effective_ms <= at_ms), None)

    def _look(self, model: str, currency: str, seller: Seller | None) -> list[tuple[int, Vector]]:
        """Return (first Unix ms, price) of all prices of a model in a currency, the preferred one first."""
        name = folded(model)
        places = list(self._exact.get(name, ()))
        for length in self._lengths:
            if length > len(name):
                break
            places += self._prefixes.get(name[:length], ())
        places.sort()
        provider = "" if seller is None else seller.name

        in_place = SAME if seller is None else place_factor(seller, name)

        def ordered(base: str) -> list[ModelPrice]:
            ordered_prices = order_prices(
                [price for _, price in places if price.vector.currency == base], provider
            )
            if in_place == SAME:
                return ordered_prices
            return [_regional_price(price, in_place) for price in ordered_prices]

        dated_vectors = [(price.effective_ms, price.vector) for price in ordered(currency)]
        # Each price once by every rate that may convert it: the first in force counts.
        for base in dict.fromkeys(rate.base for rate in self._rates if rate.currency == currency):
            dated = [rate for rate in self._rates if (rate.currency, rate.base) == (currency, base)]
            for price in ordered(base):
                dated_vectors += [
                    (max(price.effective_ms, rate.effective_ms), converted(price.vector, rate))
                    for rate in dated
                ]
        if seller is not None and seller.factor != SAME:
            dated_vectors = [
                (since_ms, _multiply_price(vector, seller.factor, vector.currency, vector.rate))
                for since_ms, vector in dated_vectors
            ]
        if len(model) <= MODEL_CHARS_MAX:
            if len(self._found_vectors) >= self._models_max:
                self._found_vectors.clear()
            self._found_vectors[model, currency, seller] = dated_vectors
        return dated_vectors


# Prices in another currency, by exchange rates. A charge is the exact price times the rate, rounded once. For
# holds the converted price is rounded up, so that a hold is not less than the charge.


def read_rate(row: Mapping[str, Any]) -> ExchangeRate:
    return ExchangeRate(row["currency"], row["base"], f"{row['rate']:f}", floor_ms(row["effective_from"]))


def converted(vector: Vector, rate: ExchangeRate) -> Vector:
    """Return a price converted to the currency of `rate`."""
    return _multiply_price(vector, _fraction(rate.rate), rate.currency, rate.rate)


def _regional_price(price: ModelPrice, factor: Factor) -> ModelPrice:
    """Return a bundled price times the `factor` of a regional host; an operator's own price unchanged."""
    if not price.is_bundled:
        return price
    vector = price.vector
    return price._replace(vector=_multiply_price(vector, factor, vector.currency, vector.rate))


def _multiply_price(vector: Vector, factor: Factor, currency: str, rate: str) -> Vector:
    """Return a price times a factor, rounded up for holds, exact for charges, in `currency` (by `rate`)."""
    exact, whole = vector, factor
    if vector.exact is not None:
        exact, (numerator, denominator) = vector.exact
        whole = numerator * factor[0], denominator * factor[1]
    return Vector(
        vector.price_id,
        currency,
        _all_times(vector.prices, factor),
        _times(vector.request, factor),
        {name: _times(price, factor) for name, price in vector.tools.items()},
        tuple([(above, _all_times(prices, factor)) for above, prices in vector.context_tiers]),
        vector.service_tiers,
        rate,
        (exact, whole),
        {name: _times(price, factor) for name, price in vector.units.items()},
        {tier: _multiply_price(table, factor, currency, rate) for tier, table in vector.tiers.items()},
        vector.lacks,
        vector.hours,
    )


def at_moment(vector: Vector, at_ms: float) -> Vector:
    """Return a price with hours as it is at a moment (Unix ms): listed times its factor then."""
    assert vector.hours is not None
    return at_factor(vector, factor_at(vector.hours, at_ms))


def at_factor(vector: Vector, factor: Factor) -> Vector:
    """Return a price with hours at another of its factors: rounded up for holds, exact for charges.

    Prices of tools and units stay. The same object is returned again, as other caches go by it.
    """
    hours = vector.hours
    assert hours is not None
    listed = hours.listed or vector
    if factor in {SAME, hours.factor}:
        return vector if factor == hours.factor else listed
    known = _at_factors.get((id(listed), factor))
    if known is None:
        if len(_at_factors) >= PRICES_MAX:
            _at_factors.clear()
        known = _at_factors[id(listed), factor] = listed._replace(
            prices=_all_times(listed.prices, factor),
            request=_times(listed.request, factor),
            context_tiers=tuple([(above, _all_times(row, factor)) for above, row in listed.context_tiers]),
            exact=listed.exact or (listed, SAME),
            tiers={tier: at_factor(table, factor) for tier, table in listed.tiers.items()},
            hours=hours._replace(factor=factor, listed=listed),
        )
    return known


# Up to `PRICES_MAX` prices at their factors, by the id of the listed one, which each refers to.
_at_factors: Final[dict[tuple[int, Factor], Vector]] = {}


def vector_in(price: ModelPrice, currency: str, rate: str) -> Vector:
    """Return the price by which a call was charged, converted to `currency` by `rate` if one is given."""
    if not rate:
        return price.vector
    return converted(price.vector, ExchangeRate(currency, price.vector.currency, rate, 0))


class PriceFound(NamedTuple):
    """The price of a model at a time, its row, and the exchange rate if it was converted."""

    price: ModelPrice
    row: Mapping[str, Any]
    rate: ExchangeRate | None


def choose_converted(  # noqa: PLR0917  # a price is of all these
    prices: Sequence[ModelPrice], rates: Iterable[ExchangeRate], model: str, currency: str, at_ms: int,
    provider: str = "",
) -> tuple[ModelPrice, ExchangeRate | None] | None:  # fmt: skip
    """Return a model's price in `currency`, chosen as by `choose`, else a converted one with its rate."""
    chosen = choose(prices, model, currency, at_ms, provider)
    if chosen is not None:
        return chosen, None
    there = sorted(rates, key=_rate_rank)
    for base in dict.fromkeys(rate.base for rate in there if rate.currency == currency):
        mine = (rate for rate in there if (rate.currency, rate.base) == (currency, base))
        rate = max((one for one in mine if one.effective_ms <= at_ms), key=_since, default=None)
        chosen = choose(prices, model, base, at_ms, provider)
        if rate is not None and chosen is not None:
            return chosen._replace(vector=converted(chosen.vector, rate)), rate
    return None


def _rate_rank(rate: ExchangeRate) -> tuple[bool, str, int]:
    """Return the sort key of exchange rates: those from the base currency first, then newer ones first."""
    return rate.base != BASE_CURRENCY, rate.base, -rate.effective_ms


def _since(rate: ExchangeRate) -> int:
    return rate.effective_ms


def _all_times(prices: Sequence[int], factor: Factor) -> tuple[int, ...]:
    return tuple([_times(price, factor) for price in prices])


def without_request(vector: Vector) -> Vector:
    """Return the price without its fee per call."""
    if vector.exact is not None:
        vector = vector._replace(exact=(vector.exact[0]._replace(request=0), vector.exact[1]))
    if vector.tiers:
        vector = vector._replace(tiers={tier: without_request(table) for tier, table in vector.tiers.items()})
    return vector._replace(request=0)


def _matches(price: ModelPrice, name: str) -> bool:
    return name.startswith(price.model) if price.is_prefix else name == price.model


def _vector(row: Mapping[str, Any]) -> Vector:
    """Return the price vector of a row of the price book, with tiers, tools, units and hours."""
    own = {kind: row.get(kind) for kind in KINDS}
    units = _units(row)
    tools = {name: _nano(price) for name, price in (row["tools"] or {}).items()}
    for unit in TOOLS_OF_UNITS.keys() & units.keys():
        for name in TOOLS_OF_UNITS[unit]:
            if not (name == SEARCH and SEARCH_PROMPT in tools):
                tools.setdefault(name, units[unit])
    prices, tiers = _filled(own), row["service_tiers"] or {}
    usual = Vector(
        int(row["id"]),
        str(row["currency"]),
        prices,
        _nano(row["request"]),
        tools,
        _steps(own, row["context_tiers"]),
        {name: _fraction(factor) for name, factor in tiers.items() if not isinstance(factor, Mapping)},
        units=units,
        lacks=(
            *lacking(prices, [kind for kind in NAMED_ALONE if own[kind] is not None]),
            *_find_missing_wholes(own),
        ),
        hours=read_hours(row),
    )
    tables = {name: _table(usual, own, tier) for name, tier in tiers.items() if isinstance(tier, Mapping)}
    return usual._replace(tiers=tables) if tables else usual


def lacking(prices: Sequence[int], named: Collection[str]) -> tuple[str, ...]:
    """Return the kinds of tokens in `NAMED_ALONE` that a price does not name, though it charges for text."""
    return tuple([kind for kind in NAMED_ALONE if kind not in named and prices[KINDS.index(FALLBACK[kind])]])


def _steps(
    own: Mapping[str, Any], tiers: Iterable[Mapping[str, Any]] | None
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return tuple([(int(tier["above"]), _filled({**own, **tier})) for tier in tiers or ()])


def _table(usual: Vector, own: Mapping[str, Any], stated: Mapping[str, Any]) -> Vector:
    """Return the price of a service tier from its table `stated`. Context tiers are not inherited."""
    mine = in_table(own, stated)
    steps = [
        (int(step["above"]), _filled(in_table(mine, step))) for step in stated.get("context_tiers") or ()
    ]
    return of_tier(usual, _filled(mine), tuple(steps))


def in_table(usual: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return prices by kind in a service tier: those in its `table`, else the usual ones.

    A kind in `FOLLOWS` without a price in the table changes by the same factor as the kind that it follows.
    """
    prices = {**usual, **{kind: table[kind] for kind in KINDS if kind in table}}
    for kind, whole in FOLLOWS.items():
        price, before = usual.get(kind), usual.get(whole)
        if whole in table and kind not in table and price is not None and before and Decimal(before):
            exact = EXACT.divide(EXACT.multiply(Decimal(price), Decimal(table[whole])), Decimal(before))
            prices[kind] = exact.quantize(Decimal(1).scaleb(-NANO_DIGITS), ROUND_HALF_UP, EXACT)
    return prices


def of_tier(usual: Vector, prices: tuple[int, ...], steps: tuple[tuple[int, tuple[int, ...]], ...]) -> Vector:
    """Return the price of a service tier from its own `prices` by kind and its context tiers `steps`.

    Cached sound changes by the same factor as `cache_read`.
    """
    units, before = usual.units, usual.prices[_CACHED]
    if CACHE_AUDIO in units and before:
        units = {**units, CACHE_AUDIO: -(-units[CACHE_AUDIO] * prices[_CACHED] // before)}
    return usual._replace(
        prices=prices, context_tiers=steps, service_tiers=places_of(usual), tiers={}, units=units
    )


def _units(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the price of 1000 of each unit in nano-units; images of unknown size cost as the dearest."""
    prices = {
        name: _nano(row[name]) * USES_A_PRICE // UNITS_A_PRICE.get(name, 1)
        for name in UNITS
        if row.get(name) is not None
    }
    for name, price in (row.get("images") or {}).items():
        nano = _nano(price) * USES_A_PRICE
        size, _, quality = name.partition("/")
        for like in dict.fromkeys((name, f"{size}/{AUTO}", f"{AUTO}/{quality}", f"{AUTO}/{AUTO}")):
            place = IMAGES + like
            prices[place] = nano if like == name else max(nano, prices.get(place, 0))
    return prices


def _filled(own: Mapping[str, Any]) -> tuple[int, ...]:
    """Return a price for each kind. A whole without a price costs as its dearest part that has one."""
    prices = {kind: None if own[kind] is None else _nano(own[kind]) for kind in KINDS}
    for whole in _find_missing_wholes(own):
        prices[whole] = max(filter(None, map(prices.get, _PARTS[whole])), default=0)
    return filled(prices)


def _find_missing_wholes(own: Mapping[str, Any]) -> list[str]:
    """Return the wholes that a price does not name, though it names a part of them."""
    return [
        whole
        for whole, parts in _PARTS.items()
        if own[whole] is None and any(own[part] is not None for part in parts)
    ]


def _nano(price: Decimal | str | None) -> int:
    nano = EXACT.multiply(Decimal(price or 0), Decimal(NANO))
    assert nano == int(nano), price
    return int(nano)


def _fraction(factor: Decimal | str) -> tuple[int, int]:
    exact = Fraction(factor)
    return exact.numerator, exact.denominator


def dearest(vectors: Sequence[Vector]) -> Vector:
    """Return the first price with the highest price of each kind of token: any of the models may answer."""
    first, *others = vectors
    if not others:
        return first
    return first._replace(prices=tuple(map(max, *(vector.prices for vector in vectors))))


# What one call costs: its counts times the prices of its admission, in whole numbers.
#
# Everything is an exact integer up to the one rounding of a call, half up. Pure.

# Positions of kinds in counts and prices.
_WRITES: Final = KINDS.index("output")
_SEEN: Final = KINDS.index("image_input")
_CACHED: Final = KINDS.index("cache_read")
# The kind of tokens that an answer may report for the same thing as a unit. Pictures that are made are `images.…`.
_SAME_AS: Final = {
    "audio_second": "audio_input", "audio_file": "audio_input", "character": "audio_output", "page": "input",
    "search": "input",
}  # fmt: skip
TIER: Final = "service_tier."  # the prefix of a tier without a price
# Tools whose uses providers count without a price, besides tokens. Clients run the last two.
FREE_TOOLS: Final = frozenset({"web_fetch", "tool_search", "mcp", "local_shell", "apply_patch"})


class CostLine(NamedTuple):
    """One part of a call's cost, exact: `amount` is `quantity` × `unit_price` / `per`.

    `kind` is one of `KINDS`, `request`, a unit, or `tools.` with a tool's name. The price includes the
    service tier.
    """

    kind: str
    quantity: int
    unit_price: Decimal
    per: int
    amount: Decimal


def cost_nano(vector: Vector, counts: Sequence[int], tools: Mapping[str, int] = _NONE, tier: str = "") -> int:
    """Return the cost of a call in nano-units, rounded half up once.

    `counts` are tokens by `KINDS`, `tools` uses by name, `tier` is the service tier that answered. A tier or
    tool that the price does not name adds nothing.
    """
    tier_factor = SAME
    if tier and (vector.tiers or vector.service_tiers):
        vector, tier_factor = at_tier(vector, tier)
    numerator, denominator = SAME
    if vector.exact is not None:
        if vector.hours is not None:
            tier_factor = _product(tier_factor, vector.hours.factor)
        vector, (numerator, denominator) = vector.exact
    prices = vector.prices
    if vector.context_tiers:
        prices = prices_at(vector, counts[0] + counts[1] + counts[2] + counts[3])
    whole = vector.request * TOKENS_A_PRICE
    apiece = apart(counts)
    for kind in range(len(KINDS)):
        count = apiece[kind]
        if count:
            whole += count * prices[kind]
    if tools and CACHE_AUDIO in tools:
        sound, price = _cached_sound(vector, apiece, prices, tools)
        whole += sound * (price - prices[_CACHED])
    scale = TOKENS_A_PRICE
    if tier_factor != SAME:
        whole *= tier_factor[0]
        scale *= tier_factor[1]
    if tools:
        for name, uses in tools.items():
            whole += uses_price(vector, name, uses, counts) * scale // USES_A_PRICE
    if numerator != denominator:
        whole *= numerator
        scale *= denominator
    return (2 * whole + scale) // (2 * scale)


def lines(
    vector: Vector, counts: Sequence[int], tools: Mapping[str, int] = _NONE, tier: str = ""
) -> list[CostLine]:
    """Return parts of a call's cost, one for each kind of token or tool. Their rounded sum is the cost."""
    vector, factor = at_tier(vector, tier)
    rate = SAME
    if vector.hours is not None:
        factor = _product(factor, vector.hours.factor)
    if vector.exact is not None:
        vector, rate = vector.exact
    prices = prices_at(vector, sum(counts[:4]))
    factor = _product(factor, rate)
    apiece = apart(counts)
    sound, of_sound = _cached_sound(vector, apiece, prices, tools)
    apiece = tuple([count - sound if kind == _CACHED else count for kind, count in enumerate(apiece)])
    made = [
        _line(kind, count, price, TOKENS_A_PRICE, factor)
        for kind, count, price in zip(
            (*KINDS, CACHE_AUDIO), (*apiece, sound), (*prices, of_sound), strict=True
        )
        if count
    ]
    if vector.request:
        made.append(_line("request", 1, vector.request, 1, factor))
    made += [
        _line(f"tools.{name}", uses, vector.tools[name], USES_A_PRICE, rate)
        for name, uses in [_billed_uses(vector, *used) for used in tools.items()]
        if uses and name in vector.tools
    ]
    made += [
        _line(name, uses, price * (per := UNITS_A_PRICE.get(name, 1)) // USES_A_PRICE, per, rate)
        for name, uses, price in [(name, uses, unit_price(vector, name)) for name, uses in tools.items()]
        if uses
        and price is not None
        and name not in vector.tools
        and name != CACHE_AUDIO
        and not is_paid_by_tokens(vector, name, counts)
    ]
    return made


def _cached_sound(
    vector: Vector, counts: Sequence[int], prices: Sequence[int], tools: Mapping[str, int]
) -> tuple[int, int]:
    """Return the tokens of `cache_read` that are sound and have a price of their own, and that of a million."""
    price = vector.units.get(CACHE_AUDIO)
    if price is None:
        return 0, prices[_CACHED]
    return min(tools.get(CACHE_AUDIO, 0), counts[_CACHED]), price * USES_A_PRICE


def uses_price(vector: Vector, name: str, uses: int, counts: Sequence[int] = NO_COUNTS) -> int:
    """Return a thousand times the cost of uses of a tool or unit, in nano-units; 0 if it has no price.

    Cached sound costs nothing here: it is one of the kinds of tokens. A unit that tokens pay for costs nothing, too.
    """
    if is_paid_by_tokens(vector, name, counts):
        return 0
    name, uses = _billed_uses(vector, name, uses)
    price = vector.tools.get(name)
    if price is None and name != CACHE_AUDIO:
        price = unit_price(vector, name)
    return 0 if price is None else uses * price


def find_kind_of_unit(name: str) -> str:
    """Return the kind of tokens that is the same thing as a unit; empty if none is."""
    return "image_output" if name.startswith(IMAGES) else _SAME_AS.get(name, "")


def is_paid_by_tokens(vector: Vector, name: str, counts: Sequence[int]) -> bool:
    """Return whether a price names the kind of the tokens that were reported for the same thing as a unit.

    Then the unit itself costs nothing. A price that names a unit and only the whole of such tokens takes both.
    An answer that writes is no reranking: its searches are beside its tokens.
    """
    kind = find_kind_of_unit(name)
    if not kind or kind in vector.lacks or (name == "search" and counts[_WRITES]):
        return False
    place = KINDS.index(kind)
    return counts[place] > 0 and vector.prices[place] > 0


def is_by_dearest(vector: Vector, counts: Sequence[int]) -> bool:
    """Return whether some tokens cost their dearest part, because the price does not name their whole."""
    if not vector.lacks or vector.lacks[-1] not in PARTS_OF:  # wholes are the last
        return False
    apiece = apart(counts)
    return any(kind in PARTS_OF and apiece[KINDS.index(kind)] > 0 for kind in vector.lacks)


def _billed_uses(vector: Vector, name: str, uses: int) -> tuple[str, int]:
    """Return the name and number by which uses of a tool are billed: all searches may count as one."""
    if name == SEARCH and SEARCH not in vector.tools and SEARCH_PROMPT in vector.tools:
        return SEARCH_PROMPT, min(uses, 1)
    return name, uses


def unpriced_names(
    vector: Vector, tools: Mapping[str, int], counts: Sequence[int] | None = None, tier: str = ""
) -> list[str]:
    """Return the names of used tools, units, kinds of tokens and the tier that a price does not cover.

    Units without a price may be paid by the tokens of the same thing, at the price of the whole if the price
    does not name their kind. `counts` is None as long as nothing was counted.
    """
    kinds = [] if counts is None else [kind for kind in vector.lacks if counts[KINDS.index(kind)] > 0]
    if kinds:  # a whole costs as its dearest part, and a unit says the main kind of its route
        known = {*PARTS_OF, *map(find_kind_of_unit, tools)}
        kinds = [kind for kind in kinds if kind not in known]
    if lacks_tier(vector, tier):
        kinds.append(TIER + tier)
    return [*_unpriced_uses(vector, tools, counts), *kinds] if tools else kinds


def _unpriced_uses(vector: Vector, tools: Mapping[str, int], counts: Sequence[int] | None) -> list[str]:
    """Return the names in `tools` that were used and that `vector` has no price for."""
    return [
        name
        for name, uses in tools.items()
        if uses
        and _billed_uses(vector, name, uses)[0] not in vector.tools
        and name not in vector.units
        and name not in FREE_TOOLS
        and name != CACHE_AUDIO  # without a price it costs what `cache_read` does
        and not (name == SEARCH and vector.request > 0)  # as a price of each request covers its search
        and not _may_be_tokens(vector, name, counts)
    ]


def _may_be_tokens(vector: Vector, name: str, counts: Sequence[int] | None) -> bool:
    """Return whether tokens pay for a unit; before an answer, whether the price shows that they would."""
    kind = find_kind_of_unit(name)
    if not kind or vector.prices[place := KINDS.index(kind)] <= 0:
        return False
    if counts is not None and counts[place] > 0:
        return True
    # A price of tokens of pictures has one for those that are read, too.
    named = kind not in vector.lacks or (
        kind == "image_output" and vector.prices[_SEEN] != vector.prices[_INPUT]
    )
    whole = _OUTPUT if kind.endswith("output") else _INPUT
    if counts is None:  # an answer tells the tokens of sound that it makes only in events
        return named and name not in {"page", "character"}
    return named and counts[whole] > 0


def pictures_by_tokens(vector: Vector, units: Mapping[str, int]) -> bool:
    """Return whether the pictures that a call asks for are paid by their tokens."""
    return any(name.startswith(IMAGES) for name in unpriced_names(vector, units, NO_COUNTS)) and not any(
        name.startswith(IMAGES) for name in unpriced_names(vector, units)
    )


def prices_at(vector: Vector, read: int) -> tuple[int, ...]:
    """Return prices by `KINDS` for a call with `read` input tokens: long inputs may have higher ones."""
    prices = vector.prices
    for above, dearer in vector.context_tiers:
        if read > above:
            prices = dearer
    return prices


def money(nano: int) -> Decimal:
    """Return nano-units as a decimal amount of the currency."""
    return EXACT.scaleb(Decimal(nano), -NANO_DIGITS)


def apart(overlapping: Sequence[int]) -> Counts:
    """Return counts without overlap: image tokens, for example, are subtracted from the input, down to 0."""
    counts = tuple(overlapping)
    assert len(counts) == len(KINDS)
    if not (counts[5] or counts[6] or counts[7] or counts[8] or counts[9]):
        return counts
    read, cached, written, written_1h, output, reasoning, audio, audio_output, image, image_output = counts
    if audio or image:
        read = max(0, read - audio - image)
    if reasoning or audio_output or image_output:
        output = max(0, output - reasoning - audio_output - image_output)
    return (
        read, cached, written, written_1h, output, reasoning, audio, audio_output, image, image_output
    )  # fmt: skip


def _line(kind: str, quantity: int, nano: int, per: int, factor: Factor) -> CostLine:
    numerator, denominator = factor
    unit_price = EXACT.divide(money(nano * numerator), Decimal(denominator))
    amount = EXACT.divide(EXACT.multiply(unit_price, Decimal(quantity)), Decimal(per))
    return CostLine(kind, quantity, unit_price, per, amount)


# The cost of a running call: by its tokens so far, and at most by all that it may use. Pure.

_INPUT: Final = KINDS.index("input")
_OUTPUT: Final = KINDS.index("output")
_TEXT: Final = (_INPUT, KINDS.index("cache_read"))
_CACHE: Final = KINDS.index("cache_write")
_LONG_CACHE: Final = KINDS.index("cache_write_1h")
_BLOBS: Final = (KINDS.index("audio_input"), KINDS.index("image_input"))
_WRITTEN: Final = (_OUTPUT, KINDS.index("reasoning"), KINDS.index("image_output"))
SPOKEN: Final = KINDS.index("audio_output")
PRICES_MAX: Final = 4_096
DEAREST_MAX: Final = 16  # remembered rates of each of them: there are few kinds of calls to a model
# What rates are remembered by: steps passed, then the fields of `PriceQualifiers`.
_Asked = tuple[int, bool, bool, bool, bool, tuple[str, ...] | None]


@dataclass(slots=True)
class TokenRate:
    """The cost of a running call by its tokens so far: `fixed`, and prices of input and output.

    The first `read` tokens are input. Prices are nano-units per million tokens, `fixed` is nano-units. The
    result times `factor` is nano-credits; with `in_money` it is units of money, and no credits are charged.
    """

    read: int
    input: int
    output: int
    fixed: int = 0
    factor: Factor = SAME
    in_money: bool = False

    def nano(self, tokens: int) -> int:
        """Return the cost of the first `tokens` of a call times `factor`, rounded up to nano-units."""
        read = min(tokens, self.read)
        return -(-self.cost(read, tokens - read) * self.factor[0] // self.factor[1])

    def cost(self, read: int, written: int) -> int:
        """Return the cost of input and output tokens in nano-units, rounded up, without applying `factor`."""
        return self.fixed - -(read * self.input + written * self.output) // TOKENS_A_PRICE

    def credits(self, tokens: int) -> int:
        """Return the credits for the first `tokens` of a call, rounded up; 0 if it is charged in money."""
        return 0 if self.in_money else min(whole_credits(self.nano(tokens))[0], ENDLESS)

    def charge_for(self, tokens: int) -> int:
        """Return the charge for the first `tokens` of a running call: in credits, or in units of money."""
        return min(self.nano(tokens), ENDLESS) if self.in_money else self.credits(tokens)

    def covered(self, credits_: int) -> int:
        """Return the most tokens that `credits_` pay for; `ENDLESS` if the call is charged in money."""
        return ENDLESS if self.in_money else self.paid(credits_ * NANO * self.factor[1] // self.factor[0])

    def paid(self, nano: int) -> int:
        """Return the most tokens whose cost is within `nano` nano-units, without applying `factor`."""
        there = (nano - self.fixed) * TOKENS_A_PRICE
        left = there - self.read * self.input
        if left < 0:
            return max(0, there) // self.input if self.input else 0
        return self.read + left // self.output if self.output else ENDLESS


@dataclass(slots=True)
class PriceQualifiers:
    """Properties of a call that select prices it may have.

    It may write to a cache (`long_caches`: for an hour), contain more than text (`blobs`), be answered with
    sound, and be served at `tiers` (None: any). `tools` are uses by name.
    """

    caches: bool = True
    long_caches: bool = True
    blobs: bool = True
    sound: bool = True
    tiers: tuple[str, ...] | None = None
    tools: Mapping[str, int] | None = None


class HighestRates:
    """The highest price of each kind over several price rows, in the unit of `Vector.prices`.

    `dear_caches`, `dear_blobs`, `dear_sound`: in one row that kind costs more than plain text (sound: than
    written text).
    """

    __slots__ = (
        "blobs", "caches", "dear_blobs", "dear_caches", "dear_sound", "long_caches", "sound", "text",
        "written",
    )  # fmt: skip

    def __init__(self, vectors: Sequence[tuple[int, ...]]) -> None:
        self.text = self.caches = self.long_caches = self.blobs = self.written = self.sound = 0
        self.dear_caches = self.dear_blobs = self.dear_sound = False
        for prices in vectors:
            text, blobs, written = [
                max([prices[kind] for kind in kinds]) for kinds in (_TEXT, _BLOBS, _WRITTEN)
            ]
            cache, long_cache, sound = prices[_CACHE], prices[_LONG_CACHE], prices[SPOKEN]
            self.text, self.blobs, self.written = (
                max(self.text, text), max(self.blobs, blobs), max(self.written, written),
            )  # fmt: skip
            self.caches, self.long_caches = max(self.caches, cache), max(self.long_caches, long_cache)
            self.sound = max(self.sound, sound)
            self.dear_caches = self.dear_caches or max(cache, long_cache) > text
            self.dear_blobs = self.dear_blobs or blobs > text
            self.dear_sound = self.dear_sound or sound > written


def usual_rate(vectors: Sequence[Vector], read: int, factor: Factor = SAME, *, in_money: bool) -> TokenRate:
    """Return the rate of a call with `read` uncached input tokens; `factor` leads from cost to charge."""
    prices = [prices_at(vector, read) for vector in vectors]
    return TokenRate(
        read, max([price[_INPUT] for price in prices]), max([price[_OUTPUT] for price in prices]),
        max([vector.request for vector in vectors]), factor, in_money,
    )  # fmt: skip


def dearest_rate(
    vectors: Sequence[Vector], read: int, asks: PriceQualifiers, factor: Factor = SAME, *, in_money: bool
) -> TokenRate:
    """Return the highest rate that a call of `read` input tokens and the priced extras `asks` can have."""
    if len(vectors) == 1 and not asks.tools:  # most calls: remembered with the price
        price, tiers = vectors[0], asks.tiers
        if tiers:  # a caller may name any
            tiers = tuple([tier for tier in tiers if tier in price.tiers or tier in price.service_tiers])
        known = _rates_of(price)
        passed = bisect_left(known.steps, read)
        key = passed, asks.caches, asks.long_caches, asks.blobs, asks.sound, tiers
        prices = known.dearest.get(key)
        if prices is None:
            if len(known.dearest) >= DEAREST_MAX:
                known.dearest.clear()
            prices = known.dearest[key] = _dearest_prices(vectors, read, asks)
    else:
        prices = _dearest_prices(vectors, read, asks)
    input_, output, fixed = prices
    return TokenRate(read, input_, output, fixed, factor, in_money)


def _dearest_prices(vectors: Sequence[Vector], read: int, asks: PriceQualifiers) -> tuple[int, int, int]:
    """Return the highest price of a token of input, of one of output, and of all that is fixed."""
    input_ = output = fixed = 0
    for table in _tables(vectors, asks.tiers):
        dearest = highest_rates(table, read)
        text, written, request = dearest.text, dearest.written, table.request
        if asks.caches:
            text = max(text, dearest.caches)
            if asks.long_caches:
                text = max(text, dearest.long_caches)
        if asks.blobs:
            text = max(text, dearest.blobs)
        if asks.sound:
            written = max(written, dearest.sound)
        if table.service_tiers:
            tier = _dearest_tier(table, asks.tiers)
            text, written, request = _times(text, tier), _times(written, tier), _times(request, tier)
        if asks.tools:
            tools = sum([uses_price(table, name, uses) for name, uses in asks.tools.items()])
            request -= -tools // USES_A_PRICE
        input_, output, fixed = max(input_, text), max(output, written), max(fixed, request)
    return input_, output, fixed


def _tables(vectors: Sequence[Vector], tiers: Collection[str] | None) -> Sequence[Vector]:
    """Return these prices, and those of the service tiers that may answer (`tiers`; None means all)."""
    if not any(vector.tiers for vector in vectors):
        return vectors
    tables = []
    for vector in vectors:
        tables.append(vector)
        tables += [table for tier, table in vector.tiers.items() if tiers is None or tier in tiers]
    return tables


def plain_rate(vector: Vector, read: int) -> TokenRate | None:
    """Return the highest rate in money of a call without tools that reads up to `read` tokens.

    None if caches, files, sound or service tiers may cost more than text: then use `dearest_rate`.
    """
    rates = highest_rates(vector, read)
    dear = rates.dear_caches or rates.dear_blobs or rates.dear_sound
    if dear or vector.service_tiers or vector.tiers:
        return None
    return TokenRate(read, rates.text, rates.written, max(0, vector.request), SAME, True)


def highest_rates(vector: Vector, read: int) -> HighestRates:
    """Return the highest prices by kind for a call that reads up to `read` tokens, which may be cached."""
    known = _rates_of(vector)
    rate = known.rates[0]
    if len(known.rates) > 1:
        for number, tier in enumerate(vector.context_tiers, 1):
            if read > tier[0]:
                rate = known.rates[number]
    return rate


class _VectorRates:
    """The highest rates of a price by the number of `context_tiers` that a call has passed.

    `steps` are the input tokens above which the price, or a table of it, has others. `dearest` are up to `DEAREST_MAX`
    results of `_dearest_prices` by the number of steps that a call has passed, and by what it asks.
    """

    __slots__ = ("dearest", "rates", "steps", "vector")

    def __init__(self, vector: Vector) -> None:
        self.vector = vector  # the reference keeps its id from being reused
        prices = [vector.prices, *[dearer for _, dearer in vector.context_tiers]]
        self.rates = [HighestRates(prices[: passed + 1]) for passed in range(len(prices))]
        tables = vector, *vector.tiers.values()
        self.steps = sorted({above for table in tables for above, _ in table.context_tiers})
        self.dearest: dict[_Asked, tuple[int, int, int]] = {}


def _rates_of(vector: Vector) -> _VectorRates:
    """Return the remembered rates of a price."""
    known = _highest.get(id(vector))
    if known is None:
        if len(_highest) >= PRICES_MAX:
            _highest.clear()
        known = _highest[id(vector)] = _VectorRates(vector)
    return known


# A cache of up to `PRICES_MAX` prices, by the id of the object.
_highest: Final[dict[int, _VectorRates]] = {}


def _dearest_tier(vector: Vector, tiers: Collection[str] | None) -> Factor:
    """Return the highest factor by service tier, times that by region, within `tiers` (None means all)."""
    found = at = SAME
    for tier, (numerator, denominator) in vector.service_tiers.items():
        if tiers is not None and tier not in tiers:
            continue
        if tier in PLACES:
            if numerator * at[1] > at[0] * denominator:
                at = (numerator, denominator)
        elif numerator * found[1] > found[0] * denominator:
            found = (numerator, denominator)
    return found[0] * at[0], found[1] * at[1]


def _product(factor: Factor, other: Factor) -> Factor:
    return factor[0] * other[0], factor[1] * other[1]


def charged(nano: int, factor: Factor) -> int:
    """Return a cost times a factor in nano-units, rounded half up."""
    numerator, denominator = factor
    return (2 * nano * numerator + denominator) // (2 * denominator)


def _times(nano: int, factor: Factor) -> int:
    """Return a cost times a factor, rounded up, because a hold must not be less than the later charge."""
    return -(-nano * factor[0] // factor[1])
