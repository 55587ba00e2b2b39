"""One request and its three children, whatever becomes of it; who is told what, and what is never told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.core.billing.price_book import read_price
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.model import SettleResult
from gateway.core.traces import Parent, Span, SpanKind, Trace, begin_trace
from tests.core.billing.prices import price_row
from tests.http.fakes import (
    ANSWER,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    KEY,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Close, Stage, staged
from tests.waiting import eventually

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01".encode()
PARENT_LINE = b"traceparent: " + PARENT + b"\r\n"


class Spans:
    """A tracer that keeps what it is given."""

    def __init__(self, recorded: bool = True) -> None:
        self.recorded = recorded
        self.parents: list[Parent | None] = []
        self.ended: list[tuple[Trace, list[Span]]] = []

    def begin(self, parent: Parent | None) -> Trace:
        self.parents.append(parent)
        return begin_trace(parent, self.recorded, bytes(range(1, 49)))

    def end(self, trace: Trace, spans: list[Span]) -> None:
        self.ended.append((trace, spans))

    async def one(self) -> dict[str, Span]:
        await eventually(lambda: self.ended)
        [(_, spans)] = self.ended
        named = {span.name: span for span in spans}
        assert len(named) == len(spans)
        assert all(span.started <= span.ended for span in spans)
        assert spans[0].kind is SpanKind.SERVER
        assert {span.parent_id for span in spans[1:]} <= {spans[0].span_id}
        return named


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def stage(spans: Spans) -> AsyncIterator[Stage]:
    async with staged(tracer=spans) as made:
        yield made


async def test_a_call_has_a_span_and_three_children(stage: Stage, spans: Spans) -> None:
    got = await stage.ask(post(CHAT, fields=PARENT_LINE))
    named = await spans.one()
    assert list(named) == ["POST /v1/chat/completions", "reserve", "upstream", "settle"]
    request = named["POST /v1/chat/completions"]
    assert (spans.ended[0][0].trace_id.hex(), request.parent_id.hex()) == (TRACE_ID, SPAN_ID)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "tollkeeper.request_id": got.one(b"x-request-id").decode(),
        "tollkeeper.organization_id": 1,
        "tollkeeper.tenant_id": 2,
        "tollkeeper.service": "chat",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 5,
        "tollkeeper.streamed": False,
        "tollkeeper.estimated": False,
    }
    assert named["reserve"].attributes["tollkeeper.verdict"] == "admitted"
    assert named["settle"].attributes["tollkeeper.tokens"] == 12
    assert named["upstream"].attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "tollkeeper.upstream": "up",
        "server.address": "127.0.0.1",
        "server.port": stage.upstream.port,
    }
    assert not any(span.error for span in named.values())
    assert not stage.plane._timed.traces  # type: ignore[attr-defined]  # a traced plane's


async def test_a_late_body_is_of_the_span_of_its_head(stage: Stage, spans: Spans) -> None:
    client, asked = await stage.client(), post(CHAT, fields=PARENT_LINE)
    await client.send(asked[:-5])
    await eventually(lambda: stage.counters.heads)
    await client.ask(asked[-5:])
    assert list(await spans.one())[1:] == ["reserve", "upstream", "settle"]


async def test_the_upstream_is_told_of_our_span_and_no_other(stage: Stage, spans: Spans) -> None:
    await stage.ask(
        post(CHAT, fields=PARENT_LINE.replace(b"traceparent", b"TraceParent") + b"tracestate: a=1\r\n")
    )
    named = await spans.one()
    [received] = stage.upstream.received
    own = named["upstream"].span_id.hex()
    assert received.all(b"traceparent") == [f"00-{TRACE_ID}-{own}-01".encode()]
    assert received.all(b"tracestate") == [b"a=1"]
    [(trace, _)] = spans.ended
    assert trace.state == "a=1"


@pytest.mark.parametrize("fields", [b"traceparent: nonsense\r\n", PARENT_LINE + PARENT_LINE])
async def test_an_unreadable_parent_is_none_and_its_state_ends_here(
    stage: Stage, spans: Spans, fields: bytes
) -> None:
    await stage.ask(post(CHAT, fields=fields + b"tracestate: a=1\r\n"))
    assert spans.parents == [None]
    [received] = stage.upstream.received
    [parent] = received.all(b"traceparent")
    assert parent.startswith(b"00-" + bytes(range(1, 17)).hex().encode())
    assert received.all(b"tracestate") == []


async def test_what_is_not_recorded_passes_on_as_it_came_and_leaves_no_span() -> None:
    spans = Spans(recorded=False)
    async with staged(tracer=spans) as stage:
        unsampled = PARENT_LINE.replace(b"-01\r", b"-00\r")
        await stage.ask(post(CHAT, fields=unsampled))
        assert stage.upstream.received[0].all(b"traceparent") == [PARENT[:-1] + b"0"]
        assert spans.ended == []


async def test_without_tracing_the_callers_fields_pass_untouched() -> None:
    fields = b"traceparent: anything at all\r\ntracestate: a=1\r\n"
    async with staged() as stage:
        await stage.ask(post(CHAT, fields=fields))
        [received] = stage.upstream.received
    assert received.all(b"traceparent") == [b"anything at all"]
    assert received.all(b"tracestate") == [b"a=1"]


async def test_a_remembered_head_has_a_trace_of_its_own_each_time(stage: Stage, spans: Spans) -> None:
    client = await stage.client()
    for _ in range(3):
        await client.ask(post(CHAT))
    await eventually(lambda: len(spans.ended) == 3)
    assert spans.parents == [None, None, None]
    assert all(len(received.all(b"traceparent")) == 1 for received in stage.upstream.received)


async def test_a_stream_is_timed_to_its_end(stage: Stage, spans: Spans) -> None:
    stage.upstream.scripts = [[STREAM_HEAD, chunks(EVENT, USAGE_EVENT, DONE_EVENT)]]
    assert (await stage.ask(post(CHAT_STREAM))).complete
    named = await spans.one()
    assert named["upstream"].ended <= named["settle"].started
    told = named["POST /v1/chat/completions"].attributes
    assert told["tollkeeper.streamed"] is True
    soon = told["gen_ai.response.time_to_first_chunk"]  # in seconds
    assert isinstance(soon, float)
    assert 0 <= soon <= named["POST /v1/chat/completions"].ended


async def test_the_model_that_answered_is_told_beside_the_one_that_was_asked(
    stage: Stage, spans: Spans
) -> None:
    stage.upstream.scripts = [[answer(ANSWER.replace(b"{", b'{"model":"m-2026-01-01",', 1))]]
    assert (await stage.ask(post(CHAT))).status == 200
    told = (await spans.one())["POST /v1/chat/completions"].attributes
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("m", "m-2026-01-01")


async def test_what_is_no_call_to_a_model_has_no_name_of_one(stage: Stage, spans: Spans) -> None:
    await stage.ask(get(b"/services/search/x"))
    (request, *_) = (await spans.one()).values()
    assert not [name for name in request.attributes if name.startswith("gen_ai.")]


def test_each_meter_is_an_operation_that_opentelemetry_names() -> None:
    operations = {"chat", "text_completion", "generate_content", "embeddings", "execute_tool"}
    assert {shape.operation for shape in SHAPES.values()} == operations
    assert {family.provider for family in OF_METER.values()} == {
        "openai", "anthropic", "gcp.gemini", "mcp", "aws.bedrock", "cohere", "ollama",
    }  # fmt: skip


async def test_a_refusal_says_why_and_is_no_error_of_ours(stage: Stage, spans: Spans) -> None:
    stage.directory.known = False
    assert (await stage.ask(post(CHAT))).status == 401
    named = await spans.one()
    assert list(named) == ["POST /v1/chat/completions"]
    request = named["POST /v1/chat/completions"]
    assert request.attributes["tollkeeper.reason"] == "invalid_api_key"
    assert request.error == ""


async def test_what_is_not_http_has_a_span_too(stage: Stage, spans: Spans) -> None:
    await stage.ask(b"POST nowhere HTTP/1.1\r\nhost: a\r\n\r\n")
    assert list(await spans.one()) == ["HTTP unknown"]


async def test_counters_that_do_not_answer_are_an_error(stage: Stage, spans: Spans) -> None:
    stage.counters.decision = None
    assert (await stage.ask(post(CHAT))).status == 503
    named = await spans.one()
    assert named["reserve"].error == "unanswered"
    assert named["POST /v1/chat/completions"].error == "counters_unavailable"


async def test_an_upstream_that_fails_is_an_error_and_its_hold_is_released(
    stage: Stage, spans: Spans
) -> None:
    stage.upstream.scripts = [[Close()]]
    assert (await stage.ask(post(CHAT))).status == 502
    named = await spans.one()
    assert named["upstream"].error == "upstream_unreachable"
    assert named["settle"].attributes["tollkeeper.charged"] is False
    assert "http.response.status_code" not in named["upstream"].attributes


@pytest.mark.parametrize(("status", "error"), [(b"399 Odd", ""), (b"400 Bad Request", "400")])
async def test_a_refusal_by_an_upstream_is_an_error_of_its_span(
    stage: Stage, spans: Spans, status: bytes, error: str
) -> None:
    stage.upstream.scripts = [[answer(ANSWER, status=status)]]
    await stage.ask(post(CHAT))
    assert (await spans.one())["upstream"].error == error


async def test_a_call_that_failed_has_the_name_of_its_model_where_that_has_a_price(
    stage: Stage, spans: Spans
) -> None:
    stage.directory.prices["m"] = read_price(price_row(input="1")).vector
    stage.upstream.scripts = [[Close()]]
    assert (await stage.ask(post(CHAT))).status == 502
    told = (await spans.one())["POST /v1/chat/completions"].attributes
    assert told["gen_ai.request.model"] == "m"


async def test_a_settlement_that_is_not_acknowledged_is_an_error(stage: Stage, spans: Spans) -> None:
    stage.counters.settled = SettleResult.UNVERIFIED
    await stage.ask(post(CHAT))
    assert (await spans.one())["settle"].error == "unverified"


async def test_a_model_an_upstream_does_not_know_is_only_a_callers_word(stage: Stage, spans: Spans) -> None:
    stage.upstream.scripts = [[answer(ANSWER, status=b"404 Not Found")]]
    await stage.ask(post(CHAT))
    named = await spans.one()
    assert "gen_ai.request.model" not in named["POST /v1/chat/completions"].attributes


async def test_nothing_secret_and_nothing_a_caller_wrote_is_told(stage: Stage, spans: Spans) -> None:
    fields = (
        b'x-tollkeeper-user: alice\r\nx-tollkeeper-metadata: {"mine": "note", "model": "forged"}\r\n'
        b"cookie: session=1\r\n"
    )
    body = CHAT.replace(b'"hi"', b'"a private prompt"')
    await stage.ask(post(body, path=b"/v1/chat/completions?trail=query", fields=fields))
    told = repr(await spans.one())
    for word in (
        KEY,
        "upstream-secret",
        "alice",
        "note",
        "forged",
        "session",
        "private",
        "trail",
        "hello",
    ):
        assert word not in told


async def test_a_free_route_holds_a_request_and_a_slot(stage: Stage, spans: Spans) -> None:
    await stage.ask(get(b"/v1/models"), "GET")
    assert list(await spans.one()) == ["GET /v1/models", "reserve", "upstream", "settle"]
