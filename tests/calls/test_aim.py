"""A call is aimed at targets, and may be aimed at others: nothing of the first aim is left."""

from __future__ import annotations

import json
from typing import Any

from gateway.calls.aim import aim_at
from gateway.calls.ports import AdmissionPorts
from gateway.calls.prices import prices_of
from gateway.core.billing.price_book import read_price
from gateway.core.calls.aim import Aim
from gateway.core.calls.facts import fit_body
from gateway.core.calls.parsing import read_call
from gateway.core.calls.routes import ModelRule, TokenCounts, UpstreamFacts
from gateway.core.calls.use_request import CALL, UseRequest
from gateway.core.model import Attribution
from tests.core.billing.prices import price_row
from tests.http.fakes import CALLER, ROUTES
from tests.http.test_models import paired, rule

CHEAP, DEAR = rule("fast", ("up", "first")), rule("fast", ("other", "second"))
SMALL = UpstreamFacts(output_max=40, output_default=TokenCounts(30))
LARGE = UpstreamFacts(output_min=TokenCounts(200), output_default=TokenCounts(700))
MESSAGES = [{"role": "user", "content": "hi"}]
STATED: dict[str, Any] = {"model": "fast", "messages": MESSAGES, "max_tokens": 90}
BARE: dict[str, Any] = {"model": "fast", "messages": MESSAGES}


def asked_of(body: dict[str, Any]) -> UseRequest:
    route = next(one for one in ROUTES if one.path == "/v1/chat/completions")
    call = read_call(route, {}, json.dumps(body).encode())
    return UseRequest(CALL, "1", CALLER, "", Attribution(), call, route.service, "up")


def aimed(ports: AdmissionPorts, asked: UseRequest, at: ModelRule) -> tuple[Aim, list[Any], bytes]:
    """Aim a call; return the aim, the ids of its prices with what it holds, and the body that is sent."""
    call = asked.call
    aim = aim_at(ports, asked, at)
    call.take_aim(aim)
    service = ports.calls.directory.resolve(CALLER, asked.service_key)
    assert service is not None
    prices = prices_of(ports.calls, CALLER, service, call, None)
    estimate = ports.estimator.hold(call, 1, service.key)
    ids = [one.vector.price_id for one in prices.named if one.vector is not None]
    fit_body(call, aim.facts[0])
    return aim, [ids, estimate, call.output_max], call.write_for(aim.targets[0].model)


async def test_call_aimed_twice_is_as_a_fresh_call_at_each_target() -> None:
    async with paired(CHEAP, of_target={"facts": SMALL}, of_other={"facts": LARGE}) as pair:
        ports = pair.stage.plane._worker.admission
        for number, model in ((1, "first"), (2, "second")):
            row = price_row(id=number, model=model, input="1", output=str(number))
            pair.stage.directory.prices[model] = read_price(row).vector
        for body in (STATED, BARE):
            asked = asked_of(body)
            twice = [aimed(ports, asked, at) for at in (CHEAP, DEAR, CHEAP)]
            fresh = [aimed(ports, asked_of(body), at) for at in (CHEAP, DEAR, CHEAP)]
            assert twice == fresh


async def test_aim_has_the_bounds_the_price_and_the_body_of_its_target() -> None:
    async with paired(CHEAP, of_target={"facts": SMALL}, of_other={"facts": LARGE}) as pair:
        ports = pair.stage.plane._worker.admission
        for number, model in ((1, "first"), (2, "second")):
            row = price_row(id=number, model=model, input="1", output=str(number))
            pair.stage.directory.prices[model] = read_price(row).vector
        stated, bare = asked_of(STATED), asked_of(BARE)
        # 90 stated tokens: the one takes 40 at most, the other 200 at least. Without: what each gives by itself.
        for at, price, most, default, model in ((CHEAP, 1, 40, 30, "first"), (DEAR, 2, 200, 700, "second")):
            _, (ids, _, output_max), sent = aimed(ports, stated, at)
            assert (ids, output_max) == ([price], most)
            assert json.loads(sent) == STATED | {"model": model, "max_tokens": most}
            _, _, sent = aimed(ports, bare, at)
            assert json.loads(sent) == BARE | {"model": model}
            assert bare.call.output_default == default
            assert (bare.call.output_max, bare.call.said.output_max) == (None, None)
            assert stated.call.said.output_max == 90
