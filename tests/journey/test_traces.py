"""A caller's trace, followed through a whole Tollkeeper to a collector."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ROOT, Stack
from tests.journey.test_bound_services import Lone
from tests.traces.collector import Collector, attributes, collecting
from tests.waiting import HUNG_S, wait_until

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_call_is_one_trace_from_caller_to_upstream(stack: Stack, tmp_path: Path) -> None:
    with collecting() as collector:
        gateway = Lone(
            stack, tmp_path, f"upstreams: {{openai: {{base_url: '{stack.upstream_url}'}}}}",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="toll-house",
            OTEL_EXPORTER_OTLP_HEADERS="x-collector-key=secret", OTEL_BSP_SCHEDULE_DELAY="50",
        )  # fmt: skip
        try:
            wait_until(lambda: called(gateway.url, stack.api_key))
            answer = called(gateway.url, stack.api_key, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")
            assert answer is not None
            follow(collector, answer.headers["x-request-id"])
        finally:
            gateway.process.terminate()
            assert gateway.process.wait(HUNG_S) == 0


def called(url: str, key: str, **said: str) -> httpx.Response | None:
    """A call that is answered; none while nobody listens."""
    said |= {"authorization": f"Bearer {key}", "x-demo-usage": "3,4"}
    body = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}]}
    with suppress(httpx.TransportError):
        answer = plain_http.post(f"{url}/v1/chat/completions", json=body, timeout=60, headers=said)
        return answer if answer.status_code == 200 else None
    return None


def follow(collector: Collector, request_id: str) -> None:
    wait_until(lambda: sum(span.trace_id.hex() == TRACE_ID for span in collector.spans()) == 4)
    spans = {span.name: span for span in collector.spans() if span.trace_id.hex() == TRACE_ID}
    request = spans["POST /v1/chat/completions"]
    assert request.parent_span_id.hex() == SPAN_ID
    assert {spans[name].parent_span_id for name in ("reserve", "upstream", "settle")} == {request.span_id}
    assert attributes(request.attributes)["tollkeeper.request_id"] == request_id
    assert attributes(request.attributes)["gen_ai.usage.output_tokens"] == 4
    assert collector.resource()["service.name"] == "toll-house"
    assert collector.posts[0].fields["x-collector-key"] == "secret"
    started = [spans[name].start_time_unix_nano for name in ("reserve", "upstream", "settle")]
    assert request.start_time_unix_nano <= started[0] < started[1] < started[2] <= request.end_time_unix_nano


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
