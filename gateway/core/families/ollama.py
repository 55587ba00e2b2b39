"""Ollama's own API: chats, completions and embeddings, with streams of one JSON object a line.

Tokens are `prompt_eval_count` + `eval_count` of the last object. An upstream of this family has its own
routes.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gateway.core.calls.call import Body, CallSpec, MediaPart, MediaPlaces, UsageBounds
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    flag,
    inner,
    maximum,
    model_name,
    object_at,
)
from gateway.core.families.family import ApiFamily, CallKind, object_in
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.eventstream import LinesMeter
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import integer, loose_document, loose_event
from gateway.core.metering.report import see_content
from gateway.core.model import Family
from gateway.errors import Refusal

NAME = Family("ollama")

_CALL = ControlledNames("model", "stream", "options", *OF_EVERY_FAMILY)
_OPTIONS = ControlledNames("num_predict")


def read_call(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a chat or a completion, which is streamed unless `stream` is false."""
    _CALL.check(document)
    model = model_name(document.get("model"))
    streamed = document.get("stream") is None or flag(document, "stream")
    options = inner(document, "options", _OPTIONS) or {}
    return CallSpec(model, streamed, maximum(options, "num_predict", bounds.usage_tokens_max, "options."))


def read_embed(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for embeddings, which produce no tokens."""
    _CALL.check(document)
    return CallSpec(model_name(document.get("model")), output_max=0)


def _read_whole(meter: Meter, document: bytes) -> None:
    _report(meter, loose_document(document))


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, tool calls, usage and the end."""
    event = loose_event(meter, data)
    if event.get("error") is not None:
        meter.failed = True
        return False
    holder = object_in(event, "message") or {name: event.get(name) for name in ("response", "thinking")}
    text = holder.get("content") or holder.get("response") or holder.get("thinking")
    if isinstance(text, str) and text:
        meter.saw(text)
        meter.content_events += 1
    elif holder.get("tool_calls"):
        see_content(meter, holder, 0)
    if any(event.get(word) is True for word in _ENDING.events):
        _report(meter, event)
        meter.finished += 1
        meter.close()
    return False


def _report(meter: Meter, document: Document) -> None:
    meter.detail.answered_by(document.get("model"))
    meter.failed = document.get("error") is not None
    used, output = integer(document.get("prompt_eval_count")), integer(document.get("eval_count"))
    if used is not None and (output is not None or meter.call.output_max == 0):
        output = output or 0
        meter.report(used, output, 0, 0, used + output, final=True)


_ENDING: Final = ENDINGS["ollama"]
DIALECT: Final = Dialect(_read_whole, _read_event, ending=_ENDING)


_MEDIA: Final = MediaPlaces(
    by_name={"images": MediaPart((), "image")}, inside=frozenset({"messages"}), folds=True
)


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    return {"error": refusal.told_of_field}


def _shape(operation: str) -> CallKind:
    return CallKind(
        read_call, DIALECT, "num_predict", object_at("options"), operation=operation, skips_texts=True,
        unframed=partial(LinesMeter, dialect=DIALECT), numbers=frozenset({"num_predict"}), media=_MEDIA,
    )  # fmt: skip


def _routes(upstream: str) -> tuple[Route, ...]:
    return tuple(
        Route(("POST",), f"/api/{path}", upstream, service, NAME, f"ollama_{kind}")
        for path, service, kind in (
            ("chat", "chat", "chat"), ("generate", "completions", "generate"),
            ("embed", "embeddings", "embed"),
            ("embeddings", "embeddings", "embed"),
        )
    )  # fmt: skip


FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes={
        "ollama_chat": _shape("chat"),
        "ollama_generate": _shape("text_completion"),
        "ollama_embed": CallKind(read_embed, DIALECT, operation="embeddings"),
    },
    brings=_routes,
    prefixes=("/api/",),
    provider="ollama",
)
