"""Which price a call has: by provider, model, currency and time, of all that were ever set.

A price is never changed: one with a later `effective_from` takes its place. What the operator set stands
above the bundled list, whatever it matches; then an exact name above the longest prefix; then the
provider; then the newest that is not after the time. Names are compared `folded`. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from gateway.core.billing.pricing import NANO
from gateway.core.billing.vector import KINDS, Price, Vector, filled
from gateway.core.moments import ms_of

EXACT_NAME, PREFIX = MATCHES = ("exact", "prefix")
BUNDLED, OPERATOR = SOURCES = ("bundled", "operator")
# Whose models are known by their names alone, in the order in which a name is looked for. What others of
# the bundled list sell is a price only where they are named: a name there says nothing of who answers.
MAKERS: Final = (
    "anthropic", "cohere", "deepseek", "google", "meta", "minimax", "mistral", "moonshotai", "openai",
    "voyageai", "x-ai", "zhipuai",
)  # fmt: skip
_MAKER_ORDER: Final = {maker: order for order, maker in enumerate(("", *MAKERS))}
MODELS_REMEMBERED_MAX: Final = 4_096
MODEL_CHARS_MAX: Final = 200
_CAPITALS: Final = {ord(capital): ord(capital) + 32 for capital in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def folded(name: str) -> str:
    """A name as names are compared: A to Z as a to z, all else as it is.

    The database says the same as `lower(name COLLATE "C")`. Beyond ASCII, capitals are matched otherwise by
    every language and library.
    """
    return name.lower() if name.isascii() else name.translate(_CAPITALS)


def read_price(row: Mapping[str, Any]) -> Price:
    """Read a row of the table, or of the bundled list; its money is exact decimals, or their strings."""
    return Price(
        folded(str(row["model"])),
        row["match"] == PREFIX,
        folded(row["provider"] or ""),
        row["source"] == BUNDLED,
        ms_of(row["effective_from"]),
        _vector(row),
    )


def choose(
    prices: Iterable[Price], model: str, currency: str, at_ms: int, provider: str = ""
) -> Price | None:
    """The price in force of a model at a time, None where there is none.

    Where a provider is named, its own prices and those of any provider count; only where there are none,
    the model's are found as if nobody were named.
    """
    name = folded(model)
    now = [
        price
        for price in prices
        if price.effective_ms <= at_ms and price.vector.currency == currency and _matches(price, name)
    ]
    if provider:
        own = [price for price in now if price.provider in {"", folded(provider)}]
        now = own or now
    return min((price for price in now if is_known_by_name(price, provider)), key=_rank, default=None)


def is_known_by_name(price: Price, provider: str = "") -> bool:
    """Whether a price counts where this provider is asked for, or where none is."""
    return not price.is_bundled or price.provider in _MAKER_ORDER or price.provider == folded(provider)


class PriceBook:
    """Prices as a gateway looks them up, remembered for up to `models_max` models of a currency."""

    __slots__ = ("_exact", "_found", "_lengths", "_models_max", "_prefixes")

    def __init__(self, prices: Iterable[Price] = (), *, models_max: int = MODELS_REMEMBERED_MAX) -> None:
        # By name, each with its place among all: the lesser counts.
        self._exact: dict[str, list[tuple[int, Price]]] = {}
        self._prefixes: dict[str, list[tuple[int, Price]]] = {}
        for place in enumerate(sorted(filter(is_known_by_name, prices), key=_rank)):
            into = self._prefixes if place[1].is_prefix else self._exact
            into.setdefault(place[1].model, []).append(place)
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})
        # By model and currency, since when and what, the one that counts most first.
        self._found: dict[tuple[str, str], list[tuple[int, Vector]]] = {}
        self._models_max = models_max

    def vector(self, model: str, currency: str, at_ms: float) -> Vector | None:
        """The price in force of a model at a time, None where there is none."""
        found = self._found.get((model, currency))
        if found is None:
            found = self._look(model, currency)
        for since_ms, vector in found:
            if since_ms <= at_ms:
                return vector
        return None

    def _look(self, model: str, currency: str) -> list[tuple[int, Vector]]:
        """Every price a model may have in a currency."""
        name = folded(model)
        places = list(self._exact.get(name, ()))
        for length in self._lengths:
            if length > len(name):
                break
            places += self._prefixes.get(name[:length], ())
        places.sort()
        found = [
            (price.effective_ms, price.vector) for _, price in places if price.vector.currency == currency
        ]
        if len(model) <= MODEL_CHARS_MAX:
            if len(self._found) >= self._models_max:
                self._found.clear()
            self._found[model, currency] = found
        return found


def _matches(price: Price, name: str) -> bool:
    return name.startswith(price.model) if price.is_prefix else name == price.model


def _rank(price: Price) -> tuple[object, ...]:
    """Of two prices of a model the lesser counts; of one provider's the newest, those of any time."""
    return (
        price.is_bundled,
        price.is_prefix,
        -len(price.model),
        _MAKER_ORDER.get(price.provider, len(_MAKER_ORDER)),
        price.provider,
        -price.effective_ms,
    )


def _vector(row: Mapping[str, Any]) -> Vector:
    own = {kind: row.get(kind) for kind in KINDS}
    return Vector(
        int(row["id"]),
        str(row["currency"]),
        _filled(own),
        _nano(row["request"]),
        {name: _nano(price) for name, price in (row["tools"] or {}).items()},
        tuple((int(tier["above"]), _filled({**own, **tier})) for tier in row["context_tiers"] or ()),
        {name: _fraction(factor) for name, factor in (row["service_tiers"] or {}).items()},
    )


def _filled(own: Mapping[str, Any]) -> tuple[int, ...]:
    return filled({kind: None if own[kind] is None else _nano(own[kind]) for kind in KINDS})


def _nano(price: Decimal | str | None) -> int:
    nano = Decimal(price or 0) * NANO
    assert nano == int(nano), price
    return int(nano)


def _fraction(factor: Decimal | str) -> tuple[int, int]:
    exact = Fraction(factor)
    return exact.numerator, exact.denominator
