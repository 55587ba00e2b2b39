"""Prices of service tiers: a table or a factor, times the factor of a region of inference. Pure."""

from __future__ import annotations

from typing import Final

from gateway.core.billing.vector import SAME, Factor, Vector

# Service tiers with the usual price; all others need a price of their own, or are unpriced.
USUAL_TIERS: Final = frozenset({
    "", "auto", "default", "global", "on_demand", "standard", "standard_only",
    "unspecified", "service_tier_unspecified", "traffic_type_unspecified",
})  # fmt: skip
# Tiers that are regions of inference. Their factor is applied to another tier too: `fast/us`.
PLACES: Final = frozenset({"us"})
OF_PLACE: Final = "/"


def tier_at(name: str, place: str) -> str:
    """Return the combined name of a tier and a region of inference; either may be empty."""
    return f"{name}{OF_PLACE}{place}" if name and place else name or place


def place_of(tier: str) -> str:
    """Return the region of inference in a tier's name, such as `us`; empty if the name has none."""
    place = tier.rpartition(OF_PLACE)[2]
    return place if place in PLACES else ""


def places_of(vector: Vector) -> dict[str, Factor]:
    """Return the factors of a price by region of inference."""
    return {name: factor for name, factor in vector.service_tiers.items() if name in PLACES}


def at_tier(vector: Vector, tier: str) -> tuple[Vector, Factor]:
    """Return the price table for a service tier, and the factor by which to multiply costs.

    The factor includes that of the region in the tier's name.
    """
    name, _, place = tier.partition(OF_PLACE)
    vector = vector.tiers.get(name, vector)
    numerator, denominator = vector.service_tiers.get(name, SAME)
    if place and place in vector.service_tiers:
        more = vector.service_tiers[place]
        numerator, denominator = numerator * more[0], denominator * more[1]
    return vector, (numerator, denominator)


def lacks_tier(vector: Vector, tier: str) -> bool:
    """Return whether a service tier needs a price of its own, and `vector` has none for it."""
    if tier in USUAL_TIERS or tier in vector.service_tiers or tier in vector.tiers:
        return False
    name, at, place = tier.partition(OF_PLACE)
    return not at or lacks_tier(vector, name) or lacks_tier(vector, place)
