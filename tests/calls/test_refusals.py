"""What an answer costs that a model refused, or in which another model took over, in each API."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from gateway.calls.charge import ChargedUse, MeteredUse, UseTerms, charge
from gateway.core.accounts.call_facts import NONE, CallFacts
from gateway.core.billing.money import NO_PRICING
from gateway.core.billing.price_book import read_price
from gateway.core.billing.vector import Vector
from gateway.core.calls.tariff import CallPrices, PriceMatch
from gateway.core.metering.meters import make_meter
from gateway.core.model import Caller, Service
from tests.core.billing.prices import price_row
from tests.core.metering.recorded import SSE, call, chat_chunk, delta, frame

JSON = b"application/json"
LINES = b"application/x-ndjson"
OCTOBER = 1000 * round(datetime(2026, 10, 1, tzinfo=UTC).timestamp())
JULY = 1000 * round(datetime(2026, 7, 1, tzinfo=UTC).timestamp())
# Dollars a million tokens, read and written.
PRICES: dict[str, Vector] = {
    name: read_price(price_row(id=number, model=name, input=read, output=written)).vector
    for number, (name, read, written) in enumerate(
        [("model-1", "10", "50"), ("second", "5", "25"), ("third", "1", "5")], 1
    )
}


def charged(meter: str, parts: list[bytes], at_ms: int = OCTOBER, *, named: bool = True) -> ChargedUse:
    """The charge of an answer to a call of `model-1`, or of `second` besides where that is `named`."""
    streamed = len(parts) > 1
    made = make_meter(call(meter, streamed=streamed), 200, SSE if streamed else JSON)
    for part in parts:
        made.feed(part)
    made.finish()
    usage, detail = made.usage(), made.detail
    use = MeteredUse(
        True, detail.counts(usage), usage.total, 1, usage.estimated, detail, "model-1", "/", "anthropic", 200,
        NONE, at_ms=at_ms,
    )  # fmt: skip
    names = ["model-1", "second"] if named else ["model-1"]
    prices = CallPrices((), tuple([PriceMatch(name, PRICES[name]) for name in names]))
    service = Service(1, "messages", "subscription", True, 0, False, NO_PRICING)
    terms = UseTerms(Caller(1, 2, 3, 4), "id", "", service, prices, currency="USD", budgeted=True)
    return charge(lambda _, model, *__: PRICES.get(model), 0.0, use, terms)


def usage(read: int, written: int, **more: Any) -> dict[str, Any]:
    return {"input_tokens": read, "output_tokens": written, **more}


def details(category: str | None) -> dict[str, Any]:
    return {"type": "refusal", "category": category, "explanation": "It may help somebody to do harm."}


def message(category: str | None, content: list[Any], used: dict[str, Any]) -> bytes:
    return json.dumps(
        {"id": "msg_1", "type": "message", "role": "assistant", "model": "model-1", "content": content,
         "stop_reason": "refusal", "stop_details": details(category), "usage": used}
    ).encode()  # fmt: skip


def begun(used: dict[str, Any]) -> bytes:
    return frame({"type": "message_start", "message": {"model": "model-1", "content": [], "usage": used}})


def ended(category: str | None, used: dict[str, Any]) -> list[bytes]:
    stop = {"stop_reason": "refusal", "stop_details": details(category)}
    return [frame({"type": "message_delta", "delta": stop, "usage": used}), frame({"type": "message_stop"})]


def converse(category: str | None, content: list[Any]) -> bytes:
    fields = {"stop_details": details(category)}
    used = {"inputTokens": 1000, "outputTokens": 4, "totalTokens": 1004}
    return json.dumps(
        {"output": {"message": {"role": "assistant", "content": content}}, "stopReason": "refusal",
         "additionalModelResponseFields": fields, "usage": used}
    ).encode()  # fmt: skip


def chat(category: str | None, text: str | None) -> bytes:
    choice = {"index": 0, "finish_reason": "refusal", "message": {"role": "assistant", "content": text}}
    used = {"prompt_tokens": 1000, "completion_tokens": 4, "total_tokens": 1004}
    return json.dumps({"choices": [choice | {"stop_details": details(category)}], "usage": used}).encode()


def chat_stream(category: str | None, text: str) -> list[bytes]:
    end = {"index": 0, "delta": {}, "finish_reason": "refusal", "stop_details": details(category)}
    used = {"prompt_tokens": 1000, "completion_tokens": 4, "total_tokens": 1004}
    texts = [frame(delta(text))] if text else []
    return [*texts, frame(chat_chunk(choices=[end])), frame(chat_chunk(choices=[], usage=used)),
            frame("[DONE]")]  # fmt: skip


TEXT = {"type": "text", "text": "I can"}
THOUGHT = {"type": "thinking", "thinking": "", "signature": "c2ln"}
PIECES = [
    frame({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    frame({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "I can"}}),
]
START = begun(usage(1000, 1))
SIGNED = frame({"type": "content_block_start", "index": 0, "content_block": THOUGHT})

# Answers that were refused before any content, and behind some; both tell 4 tokens of output.
EMPTY = {
    "whole": lambda of: ("anthropic_messages", [message(of, [], usage(1000, 4))]),
    "stream": lambda of: ("anthropic_messages", [START, *ended(of, usage(1000, 4))]),
    "invoke": lambda of: ("bedrock_invoke", [message(of, [], usage(1000, 4))]),
    "converse": lambda of: ("bedrock_converse", [converse(of, [])]),
    "chat": lambda of: ("openai_chat", [chat(of, None)]),
    "chat stream": lambda of: ("openai_chat", chat_stream(of, "")),
}
BEHIND_CONTENT = {
    "whole": lambda of: ("anthropic_messages", [message(of, [TEXT], usage(1000, 4))]),
    "thought": lambda of: ("anthropic_messages", [message(of, [THOUGHT], usage(1000, 4))]),
    "stream": lambda of: ("anthropic_messages", [START, *PIECES, *ended(of, usage(1000, 4))]),
    "stream thought": lambda of: ("anthropic_messages", [START, SIGNED, *ended(of, usage(1000, 4))]),
    "converse": lambda of: ("bedrock_converse", [converse(of, [{"text": "I can"}])]),
    "chat": lambda of: ("openai_chat", [chat(of, "I can")]),
    "chat stream": lambda of: ("openai_chat", chat_stream(of, "I can")),
}
WHOLE_COST = (1000 * 10 + 4 * 50) * 1000


@pytest.mark.parametrize("api", EMPTY)
@pytest.mark.parametrize(("category", "at_ms"), [("cyber", OCTOBER), (None, OCTOBER), ("bio", JULY)])
def test_a_refusal_before_any_content_that_is_not_billed_charges_nothing(
    api: str, category: str | None, at_ms: int
) -> None:
    made = charged(*EMPTY[api](category), at_ms)
    settled, facts = made.settlement, CallFacts(*made.facts)
    assert (settled.charge, settled.tokens, settled.money, settled.budget_tokens) == (False, 0, 0, 0)
    assert (facts.cost, facts.total, facts.units, sum(facts.counts), facts.beside) == (0, 0, 0, 0, ())


@pytest.mark.parametrize("api", EMPTY)
@pytest.mark.parametrize(("category", "at_ms"), [("bio", OCTOBER), ("frontier_llm", OCTOBER), ("cyber", 0)])
def test_a_refusal_of_a_billed_category_or_time_costs_what_it_reports(
    api: str, category: str, at_ms: int
) -> None:
    made = charged(*EMPTY[api](category), at_ms)
    assert (made.settlement.charge, made.settlement.tokens, made.cost) == (True, 1004, WHOLE_COST)


@pytest.mark.parametrize("api", BEHIND_CONTENT)
def test_a_refusal_behind_content_costs_what_it_reports(api: str) -> None:
    made = charged(*BEHIND_CONTENT[api]("cyber"))
    assert (made.settlement.charge, made.settlement.tokens, made.cost) == (True, 1004, WHOLE_COST)


def test_the_last_word_of_a_refused_stream_tells_its_output() -> None:
    """`message_start` says 1 before anything was written."""
    made = charged("anthropic_messages", [START, *ended("bio", usage(1000, 0))])
    assert (made.settlement.tokens, made.cost) == (1000, 1000 * 10 * 1000)


# --- several models ---------------------------------------------------------------------


def attempt(model: str, read: int, written: int, kind: str = "message", **more: Any) -> dict[str, Any]:
    return {"type": kind, "model": model, **usage(read, written), **more}


def fallback(of: str, to: str, category: str | None) -> dict[str, Any]:
    trigger = {"type": "refusal", "category": category}
    return {"type": "fallback", "from": {"model": of}, "to": {"model": to}, "trigger": trigger}


def opened(index: int, block: dict[str, Any]) -> list[bytes]:
    """The events of a block of content; a text comes behind the begin of its block."""
    text = block["text"] if block["type"] == "text" else ""
    begin = block | {"text": ""} if text else block
    parts = [frame({"type": "content_block_start", "index": index, "content_block": begin})]
    if text:
        delta_ = {"type": "text_delta", "text": text}
        parts.append(frame({"type": "content_block_delta", "index": index, "delta": delta_}))
    return [*parts, frame({"type": "content_block_stop", "index": index})]


def answer_of(
    attempts: list[dict[str, Any]], hops: list[dict[str, Any]], *, streamed: bool, reason: str = "end_turn",
    category: str | None = None,
) -> list[bytes]:  # fmt: skip
    """An answer with these attempts, whose top level has the tokens of the last one."""
    last = last_of(attempts)
    used = usage(last["input_tokens"], last["output_tokens"], iterations=attempts)
    stop = {"stop_reason": reason, "stop_details": details(category) if reason == "refusal" else None}
    content = [*hops, TEXT] if reason == "end_turn" else hops
    if not streamed:
        whole = {"type": "message", "model": last["model"], "content": content, **stop, "usage": used}
        return [json.dumps(whole).encode()]
    parts = [begun(usage(attempts[0]["input_tokens"], 1))]
    for index, block in enumerate(content):
        parts += opened(index, block)
    parts.append(frame({"type": "message_delta", "delta": stop, "usage": used}))
    return [*parts, frame({"type": "message_stop"})]


def last_of(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in reversed(attempts) if "model" in each)


def compaction(read: int, written: int) -> dict[str, Any]:
    """A step whose entry has no model, as the SDK types it."""
    return {"type": "compaction", **usage(read, written)}


HOP = [fallback("model-1", "second", "cyber")]
SERVED = attempt("second", 412, 264, "fallback_message")
THIRD = attempt("third", 400, 20, "fallback_message")
SEARCH = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
]
SECOND_COST = 412 * 5 + 264 * 25


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("attempts", "hops", "tokens", "dollars"),
    [
        ([attempt("model-1", 535, 0), SERVED], HOP, 676, SECOND_COST),
        ([attempt("model-1", 535, 200), SERVED], HOP, 1_411, SECOND_COST + 535 * 10 + 200 * 50),
        ([attempt("model-1", 535, 0), SERVED], [fallback("model-1", "second", "frontier_llm")], 1_211,
         SECOND_COST + 535 * 10),
        # The second one ran a tool first, and the first one was left in a category that is not billed.
        ([attempt("model-1", 535, 0), attempt("second", 100, 10), SERVED], HOP, 786,
         SECOND_COST + 100 * 5 + 10 * 25),
        # Each hop has its own category.
        ([attempt("model-1", 535, 0), attempt("second", 300, 0), THIRD],
         [*HOP, fallback("second", "third", "bio")], 720, 300 * 5 + 400 * 1 + 20 * 5),
        # Caches are of the attempt that used them: without a price of their own they cost what input does.
        ([attempt("model-1", 5, 7, cache_read_input_tokens=530), SERVED], [TEXT, *HOP], 542 + 676,
         SECOND_COST + 535 * 10 + 7 * 50),
        # What stood before the hop is of the model that gave way, however few tokens it reports.
        ([attempt("model-1", 100_000, 30), attempt("model-1", 100_000, 0), SERVED], [*SEARCH, *HOP],
         200_030 + 676, SECOND_COST + 200_000 * 10 + 30 * 50),
        ([attempt("model-1", 100_000, 30), attempt("model-1", 100_000, 0), attempt("second", 412, 264)],
         [*SEARCH, *HOP], 200_030 + 676, SECOND_COST + 200_000 * 10 + 30 * 50),
        ([attempt("model-1", 535, 0), SERVED], [TEXT, *HOP], 535 + 676, SECOND_COST + 535 * 10),
        ([attempt("model-1", 535, 0), SERVED], [THOUGHT, *HOP], 535 + 676, SECOND_COST + 535 * 10),
        # A few tokens without content are none; more of them were written.
        ([attempt("model-1", 535, 5), SERVED], HOP, 676, SECOND_COST),
        ([attempt("model-1", 535, 16), SERVED], HOP, 676, SECOND_COST),
        ([attempt("model-1", 535, 17), SERVED], HOP, 552 + 676, SECOND_COST + 535 * 10 + 17 * 50),
        # Each hop has its own content. Without its block none is known to have refused.
        ([attempt("model-1", 535, 0), attempt("second", 300, 0), THIRD],
         [*HOP, TEXT, fallback("second", "third", "cyber")], 720, 300 * 5 + 400 * 1 + 20 * 5),
        ([attempt("model-1", 535, 0), attempt("second", 300, 0), THIRD],
         [TEXT, *HOP, fallback("second", "third", "cyber")], 955, 535 * 10 + 400 * 1 + 20 * 5),
        ([attempt("model-1", 535, 0), attempt("second", 300, 0), THIRD], HOP, 720,
         300 * 5 + 400 * 1 + 20 * 5),
        # A compaction is of the attempt that follows it, else of the last one.
        ([compaction(100_000, 1_000), attempt("model-1", 535, 0), SERVED], HOP, 101_000 + 676,
         SECOND_COST + 100_000 * 10 + 1_000 * 50),
        ([attempt("model-1", 535, 0), compaction(1_000, 100), SERVED], HOP, 1_100 + 676,
         SECOND_COST + 1_000 * 5 + 100 * 25),
        ([attempt("model-1", 535, 0), SERVED, compaction(1_000, 100)], HOP, 1_100 + 676,
         SECOND_COST + 1_000 * 5 + 100 * 25),
        # One model that has a compaction in its totals' place is no fallback.
        ([attempt("model-1", 10, 5)], [], 15, 10 * 10 + 5 * 50),
    ],
)  # fmt: skip
def test_each_attempt_costs_the_price_of_its_model(  # noqa: PLR0917  # a table's columns
    attempts: list[dict[str, Any]], hops: list[dict[str, Any]], tokens: int, dollars: int,
    streamed: bool, named: bool,
) -> None:  # fmt: skip
    made = charged("anthropic_messages", answer_of(attempts, hops, streamed=streamed), named=named)
    facts = CallFacts(*made.facts)
    assert (made.settlement.tokens, made.cost, facts.total) == (tokens, dollars * 1000, tokens)
    assert (facts.response_model, facts.estimated) == (last_of(attempts)["model"], False)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("category", "dollars"), [("cyber", 0), ("bio", 300 * 5)])
def test_a_chain_in_which_all_refuse_costs_the_attempts_that_are_billed(
    streamed: bool, category: str, dollars: int
) -> None:
    attempts = [attempt("model-1", 535, 0), attempt("second", 300, 0)]
    parts = answer_of(attempts, HOP, streamed=streamed, reason="refusal", category=category)
    made = charged("anthropic_messages", parts)
    assert (made.settlement.charge, made.cost) == (dollars > 0, dollars * 1000)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("content", "tokens", "dollars"), [([TEXT, *HOP], 535, 535 * 10), ([*HOP, TEXT], 300, 300 * 5)]
)
def test_a_chain_in_which_all_refuse_costs_the_attempt_that_has_content(
    streamed: bool, content: list[dict[str, Any]], tokens: int, dollars: int
) -> None:
    attempts = [attempt("model-1", 535, 0), attempt("second", 300, 0)]
    parts = answer_of(attempts, content, streamed=streamed, reason="refusal", category="cyber")
    made = charged("anthropic_messages", parts)
    assert (made.settlement.tokens, made.cost) == (tokens, dollars * 1000)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_compaction_before_a_refusal_costs_what_it_reports(streamed: bool) -> None:
    steps = [compaction(100_000, 1_000), attempt("model-1", 535, 0)]
    made = charged(
        "anthropic_messages", answer_of(steps, [], streamed=streamed, reason="refusal", category="cyber")
    )
    assert (made.settlement.tokens, made.cost) == (101_000, (100_000 * 10 + 1_000 * 50) * 1000)


def test_a_report_that_comes_twice_counts_once() -> None:
    parts = answer_of([attempt("model-1", 535, 200), SERVED], HOP, streamed=True)
    made = charged("anthropic_messages", [*parts[:-2], parts[-2], *parts[-2:]])
    assert made.cost == (SECOND_COST + 535 * 10 + 200 * 50) * 1000


def test_facts_of_a_refusal_are_written() -> None:
    """A settlement that charges nothing still says what came of its call."""
    made = charged(*EMPTY["whole"]("cyber"))
    assert msgspec.json.decode(made.settlement.metadata)[:2] == ["model-1", "model-1"]
