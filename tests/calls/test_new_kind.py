"""A kind of use that is made up here, minutes of phone calls, is limited, charged and counted like any other.

All that it needs is in this file: no file of the product names it.
"""

from __future__ import annotations

import json

from gateway.calls.admit import admit
from gateway.calls.charge import NO_DETAIL, MeteredUse, UseTerms, charge, release
from gateway.core.accounts.call_facts import NONE
from gateway.core.billing.price_book import NO_COUNTS
from gateway.core.calls.call import Body, CallRequest
from gateway.core.calls.routes import Route
from gateway.core.calls.use_request import KindOfUse, UseRequest
from gateway.core.model import GENERIC
from gateway.features.record import Feature
from gateway.http.admission import cached_caller, identify
from gateway.http.relay import own_answer
from gateway.http.server.exchange import Exchange
from tests.features.websockets.test_live import REFUSAL
from tests.http.fakes import SERVICES, post
from tests.http.stage import staged

DIAL = Route(("POST",), "/v9/dial", "")
PHONE = KindOfUse(is_aimed=False, is_sent=False)
MINUTES_MAX = 60


class Dialed:
    """The door by which a phone call comes in."""

    is_held = False

    def __init__(self, exchange: Exchange) -> None:
        self.shield = exchange.shield

    def check_paused(self, call: CallRequest) -> None:
        """Return at once: nobody is asked for it."""

    async def hold_by_head(self) -> None:
        """Return at once: a refused one is no request."""


async def dial(exchange: Exchange) -> None:
    """Hold an hour of a phone call, then charge the minutes that it took."""
    caller, ports = cached_caller(exchange) or await identify(exchange), exchange.worker.ports
    body = await exchange.whole_body(caller, 1_024)
    call, said = CallRequest("none", GENERIC, Body()), exchange.head.attribution
    use = UseRequest(PHONE, exchange.request_id, caller, "", said, call, "search", units=MINUTES_MAX)
    service, prices, _, _ = (await admit(exchange.worker.admission, use, Dialed(exchange))).terms
    terms = UseTerms(caller, exchange.request_id, "", service, prices)
    minutes = json.loads(body)["minutes"]
    if not minutes:
        await ports.counters.settle(release(terms))
    else:
        use = MeteredUse(
            True, NO_COUNTS, 0, minutes, False, NO_DETAIL, "phone", DIAL.path, GENERIC, 200, NONE
        )
        made = charge(ports.directory.price, ports.refusals.now_ms(), use, terms)
        await ports.counters.settle(made.settlement)
        ports.tally.charged(made.counted)
    own_answer(exchange, 200, [], b"")


FEATURE = Feature(name="phone", answers=lambda *_: {DIAL: dial})


async def test_a_new_kind_of_use_is_held_charged_counted_and_refused() -> None:
    service = SERVICES["search"]  # three credits a unit
    async with staged(answers=FEATURE.answers(None, None)) as stage:  # type: ignore[arg-type]  # it asks neither
        assert (await stage.ask(post(b'{"minutes": 7}', b"/v9/dial"))).status == 200
        assert (await stage.ask(post(b'{"minutes": 0}', b"/v9/dial"))).status == 200
        first, second = stage.counters.settlements
        assert [one.credits for one in stage.counters.holds] == [MINUTES_MAX * service.credits] * 2
        assert (first.charge, first.units, first.credits, first.tokens) == (True, 7, 21, 0)
        assert (second.charge, second.units, second.credits) == (False, 0, 0)
        facts = stage.facts()
        assert (facts.model, facts.route, facts.units, facts.status) == ("phone", "/v9/dial", 7, 200)
        told = stage.tally.snapshot()
        assert (told["units"], told["credits"]) == ([("search", 7)], [("search", 21)])
        stage.counters.decision = REFUSAL
        refused = await stage.ask(post(b'{"minutes": 7}', b"/v9/dial"))
        assert (refused.status, refused.reason) == (429, "quota_exceeded")
        assert len(stage.counters.settlements) == 2
        stage.counters.holds.pop()
