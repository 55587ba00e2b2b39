"""What the units of an entry cost, by tier: as roll-ups add them up, and as its row says it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache

import msgspec

from gateway.core.accounts.ledger import PRICED, Event
from gateway.core.billing.pricing import MICRO, Tier, spread
from gateway.core.billing.tiers import DECIMALS, are_money, read_tiers

PRICES_MAX = 1_024


def portions(event: Event) -> Iterator[tuple[int, int, Decimal]]:
    """First unit of the month, units and price of each tier the event's units lie in."""
    if not event.priced:
        # An entry of before prices were kept: what it cost, spread over its units.
        each = Decimal(event.spend) / (MICRO * event.units) if event.units else Decimal(0)
        yield 0, event.units, round(each, DECIMALS)
        return
    at = int(PRICED.struct.unpack_from(event.priced)[0])
    tiers = _tiers(event.priced[PRICED.size :]) or (Tier(None, Decimal(0)),)
    for portion in spread(tiers, at, event.units):
        yield at, portion.quantity, portion.unit_price
        at += portion.quantity


def unit_prices(event: Event) -> bytes:
    """The price of its units as JSON, or of each tier they lie in; empty where the units are money."""
    packed = event.priced[PRICED.size :]
    if not event.units or are_money(packed):
        return b""
    if event.priced and (flat := _flat(packed)):
        return flat
    found = [(units, f"{price:f}") for _, units, price in portions(event)]
    return msgspec.json.encode(found[0][1] if len(found) == 1 else found)


@lru_cache(maxsize=PRICES_MAX)
def _tiers(packed: bytes) -> tuple[Tier, ...]:
    return read_tiers(packed)


@lru_cache(maxsize=PRICES_MAX)
def _flat(packed: bytes) -> bytes:
    """The price, as JSON, of units that have one price however many there are; else empty."""
    tiers = _tiers(packed)
    return msgspec.json.encode(f"{tiers[0].unit_price:f}") if len(tiers) == 1 else b""
