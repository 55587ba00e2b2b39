"""`/prices/quote`: the cost of a call at a time, line by line, by the price in force then."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.http import bodies
from gateway.admin.http.callers import admit
from gateway.admin.http.requests import (
    number_or_text,
    read_once,
    require_read,
    with_plus,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.catalogue import QUOTE, Quote, QuoteQuery
from gateway.admin.resources.registry import RESOURCES
from gateway.calls.rating import cost_of
from gateway.core.accounts.administration import (
    Row,
)
from gateway.core.billing.hours import decimal_of
from gateway.core.billing.price_book import (
    BASE_CURRENCY,
    KINDS,
    UNITS,
    PriceFound,
    at_moment,
    lines,
    money,
    unpriced_names,
)
from gateway.core.billing.vector import IMAGES
from gateway.core.times import floor_ms
from gateway.errors import (
    NotFound,
    Unprocessable,
)

# Groups of counts with free names, and the form of these names.
_NAMED = {"tools": "NAME", "images": "SIZE/QUALITY"}
PRICES = RESOURCES["prices"]


def mount_quotes(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve quotes of prices. Mount them before the resources, whose paths would match, too."""

    async def quote(request: web.Request) -> web.Response:
        """Answer with the cost of the tokens and uses in the query, by the price in force at a time."""
        mine = await admit(ports, request)
        require_read(mine.actor, PRICES)
        asked = bodies.check_body(QuoteQuery, _read_quote(request.query))
        at = asked.get("at")
        at = at if isinstance(at, datetime) else datetime.now(UTC)
        currency = str(asked.get("currency", BASE_CURRENCY))
        model, provider = str(asked["model"]), str(asked.get("provider") or "")
        price = await mine.store.price_of(model, currency, at, provider)
        if price is None:
            why = f"There is no price in {currency} of the model {model!r} at that time"
            other = currency != BASE_CURRENCY and await mine.store.price_of(
                model, BASE_CURRENCY, at, provider
            )
            more = f", and no exchange rate from {BASE_CURRENCY} to {currency}" if other else ""
            raise NotFound(f"{why}{more}. The list of prices has those that there are.")
        return web.json_response(_render_quote(asked, price, floor_ms(at)))

    app.router.add_get(f"{root}/prices/{QUOTE.name}", quote)


def _read_quote(sent: MultiMapping[str]) -> bodies.Body:
    """Return the query of a quote; `tools.NAME` and `tools[NAME]` are members of one mapping."""
    asked: dict[str, Any] = {}
    for name, text in read_once(sent).items():
        # As tools.NAME, or as OpenAPI's deepObject has it: tools[NAME].
        group, mark, leaf = name.partition("[" if name.endswith("]") else ".")
        if group in _NAMED and mark:
            leaf, there = leaf.removesuffix("]"), asked.setdefault(group, {})
            if leaf in there:
                raise Unprocessable(
                    "Some query parameters are wrong.", ((name, f"{group}.{leaf} is said twice"),)
                )
            there[leaf] = number_or_text(text)
        elif group in _NAMED:
            wrong = ((group, f"must name one: {group}.{_NAMED[group]}"),)
            raise Unprocessable("Some query parameters are wrong.", wrong)
        elif name == "at":
            asked[name] = with_plus(text)
        else:
            asked[name] = number_or_text(text) if name in KINDS or name in UNITS else text
    return asked


def _render_quote(asked: Mapping[str, Any], price: PriceFound, at_ms: int) -> Row:
    """Return the answer to a quote: what the amounts `asked` cost by a price, with a line for each."""
    tier, vector, rate = asked.get("service_tier") or "", price.price.vector, price.rate
    if vector.hours is not None:
        vector = at_moment(vector, at_ms)
    counts = tuple([asked.get(kind, 0) for kind in KINDS])
    tools = dict(asked.get("tools", {}))
    tools |= {IMAGES + name: count for name, count in asked.get("images", {}).items()}
    tools |= {name: asked[name] for name in UNITS if asked.get(name)}
    return Quote.model_validate(
        {
            **price.row,
            "price_id": vector.price_id,
            "currency": vector.currency,
            "base": None if rate is None else rate.base,
            "exchange_rate": None if rate is None else rate.rate,
            "cost": money(cost_of(vector, counts, tools, tier)),
            "lines": [line._asdict() for line in lines(vector, counts, tools, tier)],
            "unpriced": unpriced_names(vector, tools, counts, tier),
            "hour_factor": None if vector.hours is None else decimal_of(vector.hours.factor),
        }
    ).model_dump(mode="json")
