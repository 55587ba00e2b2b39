"""Made answers of all kinds, through a worker: each costs what the hand table says, to the nano-unit.

With the recorded ones they are more than three hundred. The cost of each is counted once more by fractions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.billing.price_book import converted, read_price
from gateway.core.billing.vector import ExchangeRate, Vector
from gateway.core.calls.routes import Route
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.metering.eventstream import frame_of
from gateway.core.model import Service
from tests.core.billing.prices import price_row
from tests.core.calls.test_forms import FILE, form
from tests.core.calls.test_recordings import wav
from tests.http.fakes import CALLER, answer, post
from tests.http.stage import staged
from tests.recorded.answers import answers
from tests.recorded.made import MADE_PRICES, Made, made

ANSWERS_MIN = 300
# Whose path names the model, or a guardrail.
_IN_PATH = ("gemini_generate", "gemini_predict", "bedrock_c", "bedrock_i", "anthropic")
_FORMS = "openai_transcriptions"


def path_of(meter: str) -> str:
    if meter == "bedrock_guardrail":
        return f"/made/{meter}/{{guardrail}}"
    return f"/made/{meter}/{{model}}" if meter.startswith(_IN_PATH) else f"/made/{meter}"


ROUTES = tuple(
    Route(("POST",), path_of(meter), "up", "made", OF_METER[meter].name, meter, objects="shared")
    for meter in dict.fromkeys(one.meter for one in made())
)


def vector_of(one: Made) -> Vector:
    listed, units = MADE_PRICES[one.model].listed, MADE_PRICES[one.model].units
    above = None if listed.over is None else [{"above": listed.over[0], **listed.over[1]}]
    images = {
        name.removeprefix("images."): cost for name, cost in units.items() if name.startswith("images.")
    }
    others = {name: cost for name, cost in units.items() if not name.startswith("images.")}
    row = price_row(
        id=5, model=one.model, tools=listed.tools, service_tiers=listed.tiers, context_tiers=above,
        images=images or None, **listed.million, **others,
    )  # fmt: skip
    vector = read_price(row).vector
    return converted(vector, ExchangeRate("EUR", "USD", one.rate, 0)) if one.rate else vector


def request_of(one: Made) -> bytes:
    """The call that was answered so: a form has a recording of some seconds."""
    path = path_of(one.meter).replace("{model}", one.model).replace("{guardrail}", "g").encode()
    if one.meter == _FORMS:
        body = form((FILE, wav(one.asked["seconds"])), (b"model", one.model.encode()))
        return post(body, path, b"content-type: multipart/form-data; boundary=b\r\n")
    asked: dict[str, Any] = dict(one.asked)
    if not {"agent_id", "model", "rerankingConfiguration", "source"} & asked.keys() and "{" not in path_of(
        one.meter
    ):
        asked["model"] = one.model
    return post(json.dumps(asked).encode(), path)


def answer_of(one: Made) -> bytes:
    """A document; or events, frames, lines, or sound, as they stand in the table."""
    first = one.lines[0]
    if one.meter == "bedrock_converse_stream":
        said = [line.split(" ", 1) for line in one.lines]
        parts = [
            frame_of([(b":message-type", b"event"), (b":event-type", name.encode())], payload.encode())
            for name, payload in said
        ]
        kind, body = b"application/vnd.amazon.eventstream", b"".join(parts)
    elif first.startswith("data: "):
        kind, body = b"text/event-stream", "\n\n".join((*one.lines, "")).encode()
    elif len(one.lines) > 1:
        kind, body = b"application/x-ndjson", "\n".join((*one.lines, "")).encode()
    elif not first.startswith("{"):
        kind, body = b"audio/mpeg", first.encode()
    else:
        return answer(first.encode())
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


async def test_every_made_answer_costs_what_the_table_says() -> None:
    assert len(answers()) + len(made()) >= ANSWERS_MIN
    assert {one.meter for one in made()} <= SHAPES.keys()
    wrong: list[tuple[object, ...]] = []
    async with staged(ROUTES) as stage:
        stage.directory.services["made"] = Service(91, "made", "subscription")
        for one in made():
            stage.directory.prices = {one.model: vector_of(one)}
            currency = stage.directory.currency = "EUR" if one.rate else "USD"
            stage.upstream.scripts = [[answer_of(one)]]
            got = await stage.ask(request_of(one))
            assert got.status == 200, (one.name, got.body)
            facts = stage.facts()
            counted = dict(zip(one.counts, facts.counts, strict=True))
            told = (facts.cost, facts.tools, facts.service_tier, facts.currency, facts.exchange_rate)
            by_fractions = MADE_PRICES[one.model].nano(one.counts, one.uses, one.tier, one.rate)
            if told != (by_fractions, one.uses, one.tier, currency, one.rate) or one.nano != by_fractions:
                wrong.append((one.name, one.nano, told))
            # Tokens that nobody reports, beside units, are counted here, and have no price.
            if facts.unpriced or not (facts.estimated or counted == one.counts):
                wrong.append((one.name, facts.unpriced, counted))
    assert not wrong


@pytest.mark.parametrize(
    ("meter", "asked", "param"),
    [
        (
            "cohere_chat_v1",
            {"model": "m", "message": "hi", "connectors": [{"id": "web-search"}]},
            "connectors",
        ),
        ("cohere_chat_v1", {"model": "m", "message": "hi", "conversation_id": "c"}, "conversation_id"),
        ("cohere_classify", {"model": "m", "inputs": []}, "inputs"),
        ("mistral_conversations", {"agent_id": "ag_1", "inputs": "hi"}, "handoff_execution"),
        ("mistral_conversations", {"agent_id": "ag_1", "model": "m", "inputs": "hi"}, "model"),
        ("mistral_agents", {"model": "m", "messages": []}, "agent_id"),
        ("vllm_chats", {"model": "m", "messages": [{"role": "user"}]}, "messages"),
        ("bedrock_rerank", {"queries": [], "sources": []}, "modelArn"),
    ],
)
async def test_what_no_answer_tells_of_is_refused(meter: str, asked: dict[str, Any], param: str) -> None:
    async with staged(ROUTES) as stage:
        stage.directory.services["made"] = Service(91, "made", "subscription")
        got = await stage.ask(post(json.dumps(asked).encode(), path_of(meter).encode()))
        assert (got.status, got.reason) == (400, "invalid_request")
        assert param in got.body.decode()
        assert not stage.upstream.received


async def test_an_agent_is_a_model_for_a_keys_list() -> None:
    async with staged(ROUTES) as stage:
        stage.directory.services["made"] = Service(91, "made", "subscription")
        asked = post(b'{"agent_id":"ag_1","messages":[]}', b"/made/mistral_agents")
        for models, status in (({"mistral"}, 403), ({"ag_1"}, 200)):
            stage.directory.caller = replace(CALLER, models=frozenset(models))
            assert (await stage.ask(asked)).status == status
