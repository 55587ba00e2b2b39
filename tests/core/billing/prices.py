"""Rows of prices as the database has them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def price_row(**over: Any) -> dict[str, Any]:
    """A price of any provider's `m` in dollars, with these fields."""
    return {
        "id": 1, "provider": None, "model": "m", "match": "exact", "currency": "USD", "effective_from": EPOCH,
        "request": None, "tools": None, "context_tiers": None, "service_tiers": None, "source": "operator",
        **over,
    }  # fmt: skip
