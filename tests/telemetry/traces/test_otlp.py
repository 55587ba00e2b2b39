"""What is written by hand is what OpenTelemetry's own messages read."""

from __future__ import annotations

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from gateway.core.traces import Span, SpanKind, Value
from gateway.telemetry.traces import encoded_request, encoded_resource, encoded_span
from tests.traces.collector import attributes

TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(16)), bytes(range(8)), bytes(range(8, 16))


def read(*spans: bytes) -> ExportTraceServiceRequest:
    resource = encoded_resource({"service.name": "toll", "workers": 3})
    return ExportTraceServiceRequest.FromString(encoded_request(resource, "tollkeeper", "1.2", spans))


def span(**changes: object) -> Span:
    whole = {
        "name": "POST /v1/chat", "kind": SpanKind.SERVER, "span_id": SPAN_ID, "parent_id": b"",
        "started": 10.0, "ended": 10.25,
    }  # fmt: skip
    return Span(**{**whole, **changes})  # type: ignore[arg-type]  # as the test names them


def one(written: Span, *, remote_parent: bool = False, state: str = "") -> Message:
    [message] = (
        read(encoded_span(TRACE_ID, written, 1.0, remote_parent=remote_parent, state=state))
        .resource_spans[0]
        .scope_spans[0]
        .spans
    )
    return message


def test_a_span_is_read_back_whole() -> None:
    facts: dict[str, Value] = {
        "text": "ünïcode",
        "yes": True,
        "no": False,
        "many": 2**53 - 1,
        "debt": -5,
        "soon": 0.25,
    }
    message = one(span(attributes=facts, parent_id=PARENT_ID, kind=SpanKind.CLIENT))
    assert (message.name, message.kind) == ("POST /v1/chat", Message.SPAN_KIND_CLIENT)
    assert (message.trace_id, message.span_id, message.parent_span_id) == (TRACE_ID, SPAN_ID, PARENT_ID)
    assert (message.start_time_unix_nano, message.end_time_unix_nano) == (11_000_000_000, 11_250_000_000)
    assert attributes(message.attributes) == facts
    assert message.status.code == Status.STATUS_CODE_UNSET
    assert message.flags == 0x101


def test_a_span_has_the_state_of_its_trace_and_names_what_its_words_mean() -> None:
    assert one(span(), state="vendor=1,foo=bar").trace_state == "vendor=1,foo=bar"
    [of_resource] = read(encoded_span(TRACE_ID, span(), 1.0)).resource_spans
    [of_scope] = of_resource.scope_spans
    assert of_scope.spans[0].trace_state == ""
    assert of_resource.schema_url == of_scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_an_error_has_its_status_and_type() -> None:
    message = one(span(error="upstream_timeout"))
    assert message.status.code == Status.STATUS_CODE_ERROR
    assert attributes(message.attributes) == {"error.type": "upstream_timeout"}


def test_a_root_has_no_parent_and_a_remote_one_is_marked() -> None:
    assert one(span()).parent_span_id == b""
    assert one(span(parent_id=PARENT_ID), remote_parent=True).flags == 0x301


def test_text_longer_than_one_byte_of_length_says() -> None:
    message = one(span(name="x" * 300, attributes={"long": "y" * 20_000, "broken": "\ud800"}))
    assert message.name == "x" * 300
    assert attributes(message.attributes) == {"long": "y" * 20_000, "broken": "?"}


def test_a_request_names_resource_and_scope_of_all_its_spans() -> None:
    spans = [encoded_span(TRACE_ID, span(name=str(number)), 0.0) for number in range(3)]
    [resource] = read(*spans).resource_spans
    assert attributes(resource.resource.attributes) == {"service.name": "toll", "workers": 3}
    [scope] = resource.scope_spans
    assert (scope.scope.name, scope.scope.version) == ("tollkeeper", "1.2")
    assert [message.name for message in scope.spans] == ["0", "1", "2"]
