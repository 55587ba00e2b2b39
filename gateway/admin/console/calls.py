"""What a call's page shows beyond its fields: what it used by kind, and its cost line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.admin.console.desk import Desk
from gateway.core.accounts.administration import Row
from gateway.core.billing.cost import Line, lines
from gateway.core.billing.price_book import read_price
from gateway.core.billing.pricing import EXACT, ONE_NANO
from gateway.core.billing.vector import KINDS, PARTS, TOKENS_A_PRICE, USES_A_PRICE
from gateway.errors import NotFound

# What a price is of.
PER = {TOKENS_A_PRICE: "a million", USES_A_PRICE: "a thousand", 1: "a call"}


async def about_call(desk: Desk, _: web.Request, row: Row) -> Mapping[str, Any]:
    """A call's tokens by kind, its cost by the price it was admitted at, and where it left rows."""
    usage: Any = row["usage"]
    tools: Mapping[str, int] = usage.get("tools") or {}
    price = await _price(desk, row["price_id"])
    found: Sequence[Line] = ()
    if price is not None:
        counts = [usage.get(kind, 0) for kind in KINDS]
        tier = str(row["service_tier"] or "")
        found = lines(read_price(price).vector, counts, tools, tier)
    owners = {"tenants": "tenant_id", "api-keys": "api_key_id", "users": "user_id"}
    names = await desk.names({name: {int(str(row[of]))} for name, of in owners.items() if row[of]})
    summed = sum((line.amount for line in found), Decimal(0))
    return {
        "kinds": [(kind, usage[kind], kind in PARTS) for kind in KINDS if usage.get(kind)],
        "tools": sorted(tools.items()),
        "unknown": usage.get("unknown"),
        "price": price,
        "lines": [(line, PER[line.per]) for line in found],
        "adds_up": row["cost"] is not None and _rounded(summed) == Decimal(str(row["cost"])),
        "called": {name: text for (name, _), text in names.items()},
        "ledgers": [
            ("Token ledger", f"/tenants/{row['tenant_id']}?request_id={row['request_id']}#ledger"),
            ("Credit transactions", f"/credit-transactions?request_id={row['request_id']}"),
            ("Feature usage", f"/feature-usage?request_id={row['request_id']}"),
        ],
    }


async def _price(desk: Desk, price_id: object) -> Row | None:
    if not isinstance(price_id, int):
        return None
    try:
        return await desk.ports.store.get("prices", price_id)
    except NotFound:
        return None


def _rounded(amount: Decimal) -> Decimal:
    """To whole nano-units, half up, as a call's cost is rounded once."""
    return amount.quantize(ONE_NANO, "ROUND_HALF_UP", EXACT)
