"""A caller's trace, followed through a whole Tollkeeper to a collector."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import plain_http
from tests.journey.stack import ROOT, Stack
from tests.traces.collector import Collector, attributes, collecting
from tests.waiting import wait_until

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(
        tmp_path_factory.mktemp("traced") / "data",
        "--workers",
        "1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-collector-key=secret",
        OTEL_SERVICE_NAME="toll-house",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    yield stack
    assert stack.stop() == 0


def test_a_call_is_one_trace_from_caller_to_upstream(traced: Stack, collector: Collector) -> None:
    answer = plain_http.post(
        f"{traced.gateway_url}/v1/chat/completions",
        json={"model": "demo-small", "messages": [{"role": "user", "content": "hello"}]},
        timeout=60,
        headers={
            "authorization": f"Bearer {traced.api_key}",
            "x-demo-usage": "3,4",
            "traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01",
        },
    )
    assert answer.status_code == 200
    wait_until(lambda: sum(span.trace_id.hex() == TRACE_ID for span in collector.spans()) == 4)
    spans = {span.name: span for span in collector.spans() if span.trace_id.hex() == TRACE_ID}
    request = spans["POST /v1/chat/completions"]
    assert request.parent_span_id.hex() == SPAN_ID
    assert {spans[name].parent_span_id for name in ("reserve", "upstream", "settle")} == {request.span_id}
    assert attributes(request.attributes)["tollkeeper.request_id"] == answer.headers["x-request-id"]
    assert attributes(request.attributes)["gen_ai.usage.output_tokens"] == 4
    assert collector.resource()["service.name"] == "toll-house"
    assert collector.posts[0].fields["x-collector-key"] == "secret"
    started = [spans[name].start_time_unix_nano for name in ("reserve", "upstream", "settle")]
    assert request.start_time_unix_nano <= started[0] < started[1] < started[2] <= request.end_time_unix_nano
    sent = 'tollkeeper_spans_total{outcome="sent"}'
    wait_until(lambda: sent in plain_http.get(f"{traced.admin_url}/metrics", timeout=60).text)


def test_a_worker_without_traces_loads_nothing_of_them() -> None:
    words = "import sys, gateway.app; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(said.stdout.split())
    assert "gateway.app" in loaded
    assert not {
        name
        for name in loaded
        if name.startswith(("gateway.telemetry.traces", "gateway.http.server.traced", "opentelemetry"))
    }
