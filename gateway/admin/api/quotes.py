"""`/prices/quote`: what a call would cost at a time, line by line, by the price it would have."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.http import body
from gateway.admin.http.auth import admit, require_read
from gateway.admin.http.listing import number_or_text, read_once, with_plus
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.prices import QUOTE, Asked, Quote
from gateway.core.accounts.administration import Row
from gateway.core.billing.cost import cost_nano, lines, money, unpriced
from gateway.core.billing.price_book import choose, read_price
from gateway.core.billing.vector import BASE_CURRENCY, KINDS
from gateway.core.moments import ms_of
from gateway.errors import NotFound, Unprocessable

TOOL = "tools."
PRICES = RESOURCES["prices"]


def mount_quotes(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve quotes; before the resources, whose paths are wider."""

    async def quote(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, PRICES)
        asked = body.check(Asked, _read(request.query))
        at = asked.get("at")
        at = at if isinstance(at, datetime) else datetime.now(UTC)
        currency = str(asked.get("currency", BASE_CURRENCY))
        rows = await mine.store.prices_of(str(asked["model"]), currency, at)
        return web.json_response(_quoted(asked, rows, at))

    app.router.add_get(f"{root}/prices/{QUOTE.name}", quote)


def _read(sent: MultiMapping[str]) -> body.Body:
    """A query string as the body it stands for."""
    asked: dict[str, Any] = {}
    for name, text in read_once(sent).items():
        if name.startswith(TOOL):
            asked.setdefault("tools", {})[name.removeprefix(TOOL)] = number_or_text(text)
        elif name == "tools":
            raise Unprocessable("Some query parameters are wrong.", (("tools", "must name one: tools.NAME"),))
        elif name == "at":
            asked[name] = with_plus(text)
        else:
            asked[name] = number_or_text(text) if name in KINDS else text
    return asked


def _quoted(asked: Mapping[str, Any], rows: Any, at: datetime) -> Row:
    currency, tier = asked.get("currency", BASE_CURRENCY), asked.get("service_tier") or ""
    prices = {price.vector.price_id: (price, row) for row in rows for price in (read_price(row),)}
    at_ms = ms_of(at)
    found = choose(
        (price for price, _ in prices.values()), asked["model"], currency, at_ms, asked.get("provider") or ""
    )
    if found is None:
        raise NotFound(f"There is no price in {currency} of the model {asked['model']!r} at that time.")
    vector = found.vector
    counts = [asked.get(kind, 0) for kind in KINDS]
    tools = asked.get("tools", {})
    return Quote.model_validate(
        {
            **prices[vector.price_id][1],
            "price_id": vector.price_id,
            "cost": money(cost_nano(vector, counts, tools, tier)),
            "lines": [line._asdict() for line in lines(vector, counts, tools, tier)],
            "unpriced": unpriced(vector, tools),
        }
    ).model_dump(mode="json")
