"""The values that the keeper stores in Redis for workers, as JSON: catalogue, prices, identities, terms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Annotated
from zlib import crc32

import msgspec

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.definitions import NO_LISTS, OrganizationTerms, Share
from gateway.core.accounts.groups import NO_GROUPS
from gateway.core.accounts.run_policies import NO_POLICIES, RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.billing.price_book import KINDS, NAMED_ALONE, PARTS_OF, of_tier
from gateway.core.billing.sellers import is_known_by_name
from gateway.core.billing.vector import ExchangeRate, ModelPrice, PriceHours, PriceSpan, Vector
from gateway.core.calls.routes import ModelRule
from gateway.core.layout import UnknownLayout
from gateway.core.model import INTERACTIVE, UNSETTLED_CHARGED, USER_ACCEPTED, Caller, Service

_NO_DEFAULT = object()
_BUDGET_DEFAULTS = {field.name: field.default for field in fields(Budget)} | {"raises": {}, "overrides": {}}
# Errors of decoding a value that another version, or another program, has stored.
UNREADABLE = (ValueError, RecursionError)
# The layout of prices: a list with a newer layout is not read.
PRICES_LAYOUT = 1
# Fields of a price that every version with this layout reads.
VECTOR_FIELDS = Vector._fields.index("rate")
_Version = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Identity(msgspec.Struct):
    """The identity of a credential: organization, tenant, key, partition, user, and allowed models (None:
    all).

    Then its expiry in ms since the epoch (0: never), which user its requests may name (`user_header`), what
    happens to unsettled holds (`unsettled`), the highest priority of its calls, its policy of runs, and the
    answer to a spent limit; `g` are the tags of all its calls. `e` is set for a subject of tokens whose key was
    revoked.
    """

    o: int
    t: int
    k: int
    p: int
    u: str = ""
    m: list[str] | None = None
    x: int = 0
    h: str = USER_ACCEPTED
    n: str = UNSETTLED_CHARGED
    y: str = INTERACTIVE
    r: RunPolicy | None = None
    s: SpentAnswer = UNSAID
    e: bool = False
    g: dict[str, str] = {}

    def has_ended(self, now_ms: float) -> bool:
        """Return whether the key was revoked or has expired."""
        return self.e or 0 < self.x <= now_ms


class StoredCatalogue(msgspec.Struct):
    """All services by key, the plans' weights, the configured models, and the shares of upstreams' capacity.

    Weights are in millionths, by plan id and kind of token.
    """

    version: _Version
    services: dict[str, Service]
    weights: dict[int, dict[str, int]] = {}
    models: tuple[ModelRule, ...] = ()
    shares: tuple[Share, ...] = ()


class _Versioned(msgspec.Struct):
    version: _Version


class _StoredTerms(_Versioned):
    terms: OrganizationTerms


class _PricesHead(_Versioned):
    layout: int


class StoredPrices(_PricesHead):
    """All prices and exchange rates that are in force, were a day ago, or will be.

    Prices of units other than tokens are stored apart, by price id, so that a version that does not know them
    reads the rest. The `tables` of service tiers, the kinds of `NAMED_ALONE` that a price has (`named`), and
    the `hours` of prices that change by the hour are stored apart, too.
    """

    prices: list[msgspec.Raw]
    rates: list[ExchangeRate] = []
    units: dict[int, msgspec.Raw] = {}
    tables: dict[int, msgspec.Raw] = {}
    named: dict[int, msgspec.Raw] | None = None
    hours: dict[int, msgspec.Raw] = {}


# By service tier: the prices, and the context tiers with their prices.
_Tables = dict[str, tuple[tuple[int, ...], tuple[tuple[int, tuple[int, ...]], ...]]]


# Decoders of the encoded values.
decode_identity = msgspec.json.Decoder(Identity).decode
decode_catalogue = msgspec.json.Decoder(StoredCatalogue).decode
_decode_terms, _decode_version = (
    msgspec.json.Decoder(_StoredTerms).decode,
    msgspec.json.Decoder(_Versioned).decode,
)
_decode_prices = msgspec.json.Decoder(StoredPrices).decode
NOTHING_LACKS: tuple[str, ...] = ()
_decode_price = msgspec.json.Decoder(ModelPrice).decode
_decode_units = msgspec.json.Decoder(dict[str, int]).decode
_decode_tables = msgspec.json.Decoder(_Tables).decode
_decode_hours = msgspec.json.Decoder(tuple[tuple[PriceSpan, ...], bool] | None).decode
_decode_kinds = msgspec.json.Decoder(list[str]).decode
_decode_prices_head = msgspec.json.Decoder(_PricesHead).decode


def encode_catalogue(
    version: int,
    services: Sequence[Service],
    weights: Mapping[int, Mapping[str, int]] | None = None,
    models: Sequence[ModelRule] = (),
    shares: Sequence[Share] = (),
) -> bytes:
    """Return the catalogue, encoded for Redis."""
    by_key = {service.key: service for service in services}
    more: dict[str, object] = {"weights": weights} if weights else {}
    if models:
        more["models"] = models
    if shares:
        more["shares"] = shares
    return msgspec.json.encode({"version": version, "services": by_key, **more})


def encode_identity(caller: Caller, expires_ms: int = 0, *, revoked: bool = False) -> bytes:
    """Return an identity, encoded for Redis; `expires_ms` is in ms since the epoch, 0 for never."""
    more: dict[str, object] = {"x": expires_ms} if expires_ms else {}
    if revoked:
        more["e"] = True
    if caller.user_header != USER_ACCEPTED:
        more["h"] = caller.user_header
    if caller.unsettled != UNSETTLED_CHARGED:
        more["n"] = caller.unsettled
    if caller.priority != INTERACTIVE:
        more["y"] = caller.priority
    if caller.runs is not None:
        more["r"] = caller.runs
    if caller.spent != UNSAID:
        more["s"] = caller.spent
    if caller.tags:
        more["g"] = dict(caller.tags)
    return msgspec.json.encode(
        {
            **more,
            "o": caller.organization_id,
            "t": caller.tenant_id,
            "k": caller.key_id,
            "p": caller.partition,
            "u": caller.user,
            "m": sorted(caller.models) if caller.models is not None else None,
        }
    )


def key_of(raw: object) -> int:
    """Return the key id of an encoded identity; 0 if it is missing or unreadable."""
    try:
        return decode_identity(raw).k if isinstance(raw, bytes) else 0
    except UNREADABLE:
        return 0


def encode_terms(version: int, terms: OrganizationTerms) -> bytes:
    """Return an organization's terms, encoded for Redis; defaults of budgets are omitted, to save space."""
    written = msgspec.to_builtins(terms)
    written["budgets"] = [
        {name: value for name, value in one.items() if value != _BUDGET_DEFAULTS.get(name, _NO_DEFAULT)}
        for one in written["budgets"]
    ]
    if terms.models == NO_LISTS:
        del written["models"]
    if terms.runs == NO_POLICIES:
        del written["runs"]
    if terms.spent == UNSAID:
        del written["spent"]
    if not terms.tags:
        del written["tags"]
    if terms.groups == NO_GROUPS:
        del written["groups"]
    return msgspec.json.encode({"version": version, "terms": written})


def decode_terms(raw: bytes) -> OrganizationTerms:
    """Return an organization's decoded terms."""
    return _decode_terms(raw).terms


def encode_prices(version: int, prices: Sequence[ModelPrice], rates: Sequence[ExchangeRate] = ()) -> bytes:
    """Return the prices, encoded for Redis, in their own currencies: gateways convert them."""
    listed = [(*price[:-1], price.vector[:VECTOR_FIELDS]) for price in prices]
    vectors = [price.vector for price in prices]
    units = {vector.price_id: vector.units for vector in vectors if vector.units}
    tables = {
        vector.price_id: {tier: (of.prices, of.context_tiers) for tier, of in vector.tiers.items()}
        for vector in vectors
        if vector.tiers
    }
    named = {vector.price_id: kinds for vector in vectors if (kinds := _named(vector))}
    more: dict[str, object] = {"named": named}
    if rates:
        more["rates"] = rates
    if units:
        more["units"] = units
    if tables:
        more["tables"] = tables
    if hours := {
        vector.price_id: (vector.hours.spans, vector.hours.by_end) for vector in vectors if vector.hours
    }:
        more["hours"] = hours
    return msgspec.json.encode({"version": version, "layout": PRICES_LAYOUT, "prices": listed, **more})


def decode_prices(raw: bytes, sellers: Collection[str] = ()) -> tuple[StoredPrices, list[ModelPrice]]:
    """Return the stored prices, and decoded those found by model name or sold by one of `sellers`.

    All others, three of four, stay encoded to save memory. ValueError if the list is unreadable.
    """
    layout = _decode_prices_head(raw).layout
    if layout != PRICES_LAYOUT:
        raise UnknownLayout(f"prices of layout {layout}, {PRICES_LAYOUT} is known")
    stored, kept = _decode_prices(raw), list[ModelPrice]()
    for each in stored.prices:
        price = _decode_price(each)
        if is_known_by_name(price) or price.provider in sellers:
            kept.append(price._replace(vector=_whole(stored, price.vector)))
    return stored, kept


def _named(vector: Vector) -> list[str]:
    """Return those kinds of tokens that a price names itself, of `NAMED_ALONE`, the ones it may lack.

    A whole that it lacks stands there with `-` before it, which older versions skip.
    """
    wholes = [f"-{kind}" for kind in vector.lacks if kind in PARTS_OF]
    return [kind for kind in NAMED_ALONE if kind not in vector.lacks] + wholes


def _whole(stored: StoredPrices, vector: Vector) -> Vector:
    """Return a price with the parts that `stored` has in separate fields, which older versions skip.

    ValueError if a price list does not cover every kind of token.
    """
    number, lacks = vector.price_id, NOTHING_LACKS
    if stored.named is not None:
        named = _decode_kinds(stored.named.get(number, b"[]"))
        lacks = tuple([kind for kind in NAMED_ALONE if kind not in named])
        lacks += tuple([kind[1:] for kind in named if kind.startswith("-")])
    said = _decode_hours(stored.hours.get(number, b"null"))
    usual = vector._replace(
        units=_decode_units(stored.units.get(number, b"{}")), lacks=lacks, hours=said and PriceHours(*said)
    )
    tables = _decode_tables(stored.tables.get(number, b"{}"))
    rows = [(vector.prices, vector.context_tiers), *tables.values()]
    every = [row for prices, steps in rows for row in (prices, *[dearer for _, dearer in steps])]
    if any(len(prices) != len(KINDS) for prices in every):
        raise ValueError(f"price {number} has not a price for each of {len(KINDS)} kinds")
    if not tables:
        return usual
    return usual._replace(
        tiers={tier: of_tier(usual, prices, steps) for tier, (prices, steps) in tables.items()}
    )


def services_of(raw: object) -> Mapping[str, Service]:
    """Return the services of an encoded catalogue by key; {} if it is missing or unreadable."""
    try:
        return decode_catalogue(raw).services if isinstance(raw, bytes) else {}
    except UNREADABLE:
        return {}


def encode_head(version: int, raw: bytes) -> bytes:
    """Return the version and checksum of the price list: read often, to see whether the list changed."""
    return msgspec.json.encode({"version": version, "crc32": crc32(raw)})


def version_of(raw: bytes) -> int:
    """Return the version in encoded terms, prices or catalogue."""
    return _decode_version(raw).version


def version_standing(raw: object) -> int:
    """Return the version of a value in Redis: 0 if it is missing, -1 if it is unreadable."""
    try:
        return version_of(raw) if isinstance(raw, bytes) else 0
    except UNREADABLE:
        return -1
