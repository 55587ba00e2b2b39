"""A family that is made up here, of one object: it is served, limited, metered and refused like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from gateway.core.calls.call import Body, CallSpec, UsageBounds
from gateway.core.calls.routes import Route
from gateway.core.families import registry
from gateway.core.families.controlled import ControlledNames, Document, flag, maximum, model_name
from gateway.core.families.family import ApiFamily, CallKind
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import loose_document
from gateway.core.model import Family
from gateway.errors import Refusal
from tests.http.fakes import ROUTES, answer, chunks, post
from tests.http.stage import staged

_CONTROLLED = ControlledNames("model", "live", "most")


def read(body: Body, document: Document, path_params: Mapping[str, str], bounds: UsageBounds) -> CallSpec:
    _CONTROLLED.check(document)
    model, streamed = model_name(document.get("model")), flag(document, "live")
    return CallSpec(model, streamed, maximum(document, "most", bounds.usage_tokens_max))


def report(meter: Meter, data: bytes) -> bool:
    said = loose_document(data)
    spent = said.get("spent")
    if isinstance(spent, list):
        meter.report(spent[0], spent[1], 0, 0, sum(spent), final=True)
        meter.phase = CLOSED
    else:
        meter.saw(str(said.get("word", "")))
        meter.content_events += 1
    return False


def whole(meter: Meter, document: bytes) -> None:
    report(meter, document)


ECHO = ApiFamily(
    Family("echo"),
    lambda refusal, request_id: {"oops": refusal.reason, "of": request_id},
    shapes={
        "echo_say": CallKind(
            read,
            Dialect(whole, report, lambda meter: b'data: {"spent": [0, 0]}\n\n'),
            "most",
            always_reports=True,
        )
    },
    routes=(Route(("POST",), "/v9/say", "up", "chat", Family("echo"), "echo_say"),),
    queries={b"trace": None},
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the line in the registry does."""
    monkeypatch.setitem(registry.FAMILIES, ECHO.name, ECHO)
    for meter, shape in ECHO.shapes.items():
        monkeypatch.setitem(registry.SHAPES, meter, shape)
        monkeypatch.setitem(registry.OF_METER, meter, ECHO)


def said(**fields: object) -> bytes:
    return json.dumps({"model": "m", "most": 10, **fields}).encode()


async def test_what_an_answer_reports_is_charged() -> None:
    async with staged(routes=(*ROUTES, *ECHO.routes)) as stage:
        stage.upstream.scripts.append([answer(b'{"word": "hello", "spent": [3, 4]}')])
        got = await stage.ask(post(said(), b"/v9/say?trace=on"))
        assert (got.status, got.body) == (200, b'{"word": "hello", "spent": [3, 4]}')
        assert [charge.tokens for charge in stage.counters.charges] == [7]


async def test_a_stream_is_read_event_by_event_and_its_end_comes_once_it_is_charged() -> None:
    events = [b'data: {"word": "a"}\n\n', b'data: {"word": "b"}\n\n', b'data: {"spent": [3, 2]}\n\n']
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with staged(routes=(*ROUTES, *ECHO.routes)) as stage:
        stage.upstream.scripts.append([head, chunks(*events)])
        got = await stage.ask(post(said(live=True), b"/v9/say"))
        assert got.body == b"".join(events)
        assert [charge.tokens for charge in stage.counters.charges] == [5]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (said(Most=10), b"/v9/say"),
        (said(most="10"), b"/v9/say"),
        (said(most=-1), b"/v9/say"),
        (b'{"most": 1}', b"/v9/say"),
        (said(), b"/v9/say?fields=word"),
    ],
)
async def test_what_it_does_not_take_is_refused_in_its_own_shape(body: bytes, path: bytes) -> None:
    async with staged(routes=(*ROUTES, *ECHO.routes)) as stage:
        got = await stage.ask(post(body, path))
        assert got.status == 400
        assert json.loads(got.body)["oops"] == "invalid_request"
        assert stage.upstream.received == []


async def test_a_call_without_a_maximum_may_be_given_one() -> None:
    from gateway.core.calls.output_limits import limit_output
    from gateway.core.calls.parsing import read_call

    call = read_call(ECHO.routes[0], {}, b'{"model":"m"}')
    limit_output(call, 77)
    assert (json.loads(call.take_body()), call.output_max) == ({"model": "m", "most": 77}, 77)


def test_what_a_family_leaves_out_it_has_like_any_other() -> None:
    plain = replace(ECHO, shapes={})
    assert re.fullmatch(plain.segment, "any")
    assert (plain.objects.collections, plain.withheld, plain.names_requests) == ({}, frozenset(), False)
    assert isinstance(ECHO.refusal(Refusal("x"), "id"), dict)
