"""Cohere's API, v2 and v1: chats, embeddings, rerankings and classifications, charged by `billed_units`.

These are tokens, images, search units of a reranking, and classified texts. An upstream of this family has
its own routes.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gateway.core.billing.vector import IMAGES
from gateway.core.calls.call import Body, CallSpec, MediaPart, MediaPlaces, RequestedUnits, UsageBounds
from gateway.core.calls.routes import Route
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    flag,
    maximum,
    model_name,
)
from gateway.core.families.family import ApiFamily, CallKind, object_in
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.eventstream import LinesMeter
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import integer, loose_document, loose_event
from gateway.core.metering.report import see_content, see_whole
from gateway.core.model import Family
from gateway.errors import InvalidRequest, Refusal

NAME = Family("cohere")

# Refused fields of API v1, and the reason.
_REFUSED: Final = {
    "connectors": "no answer tells their searches",
    "conversation_id": "callers choose it, so it may be another's; send the chat_history",
}
_CHAT = ControlledNames("model", "stream", "max_tokens", *_REFUSED, *OF_EVERY_FAMILY)
_PLAIN = ControlledNames("model", "documents", "inputs", *OF_EVERY_FAMILY)
# A search unit is a query with up to so many documents. A longer document counts once for each part.
_DOCUMENTS: Final = 100
_PART_BYTES: Final = 1_500
_ENDING: Final = ENDINGS["cohere"]
_CONTENT: Final = frozenset(
    {"content-start", "content-delta", "tool-plan-delta", "tool-call-start", "tool-call-delta"}
)


def read_chat(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    _CHAT.check(document)
    model = model_name(document.get("model"))
    streamed = flag(document, "stream")
    output_max = maximum(document, "max_tokens", bounds.usage_tokens_max)
    for name, why in _REFUSED.items():
        if document.get(name):
            raise InvalidRequest(f"{name} is not accepted: {why}.", param=name)
    return CallSpec(model, streamed, output_max)


def read_classify(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a classification, which is charged by the number of texts."""
    spec = read_embed(body, document, params, bounds)
    return spec._replace(units=RequestedUnits({"classification": len(_texts(document, "inputs"))}))


def read_embed(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for embeddings, which produce no tokens."""
    _PLAIN.check(document)
    return CallSpec(model_name(document.get("model")), output_max=0)


def read_rerank(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a reranking, and hold the search units that its documents need."""
    spec = read_embed(body, document, params, bounds)
    return spec._replace(units=RequestedUnits({"search": searches_of(_texts(document, "documents"))}))


def _texts(document: Document, name: str) -> list[object]:
    """Return a list by whose length a call is charged; raise `InvalidRequest` if it is empty or missing."""
    texts = document.get(name)
    if not isinstance(texts, list) or not texts:
        raise InvalidRequest(f"{name} must be a list of texts.", param=name)
    return texts


def searches_of(documents: list[object]) -> int:
    """Return the search units of one query over these documents."""
    parts = sum(1 + len(str(document).encode("utf-8", "replace")) // _PART_BYTES for document in documents)
    return -(-parts // _DOCUMENTS)


def _read_whole(meter: Meter, document: bytes) -> None:
    answer = loose_document(document)
    meter.detail.answered_by(answer.get("model"))
    _take(meter, object_in(answer, "usage") or object_in(answer, "meta"))


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, usage and the end."""
    event = loose_event(meter, data)
    kind, delta = event.get("type") or event.get("event_type"), object_in(event, "delta")
    if kind == "stream-end":  # of v1, whose events have the text at their top
        delta = {"usage": object_in(event, "response").get("meta")}
    elif isinstance(event.get("text"), str):
        meter.saw(str(event["text"]))
        meter.content_events += 1
    if kind in _CONTENT:
        text = object_in(object_in(delta, "message"), "content").get("text")
        if isinstance(text, str):
            meter.saw(text)
            meter.content_events += 1
        else:
            see_content(meter, delta, 0)
    elif kind == "message-start":
        see_whole(meter, delta)
    elif kind in _ENDING.events:
        meter.failed = delta.get("error") is not None
        _take(meter, object_in(delta, "usage"))
        see_whole(meter, {**event, **delta})
        meter.finished += 1
        meter.close()
    return False


def _take(meter: Meter, document: Document) -> None:
    """Report the billed units in the usage of an answer to `meter`."""
    billed = object_in(document, "billed_units")
    if not billed:
        billed = object_in(document, "tokens")
    if not billed or not 200 <= meter.status < 300:
        return
    counts = {name: integer(value) or 0 for name, value in billed.items()}
    pictures = counts.get("image_tokens", 0)
    used, output = counts.get("input_tokens", 0), counts.get("output_tokens", 0)
    if "text_tokens" in counts:
        used = max(used, counts["text_tokens"] + pictures)
    elif "input_tokens" not in counts:
        used = pictures
    meter.detail.image_input = pictures
    meter.detail.used_tool("search", counts.get("search_units", 0))
    meter.detail.used_tool("classification", counts.get("classifications", 0))
    meter.detail.used_tool(f"{IMAGES}auto/auto", 0 if pictures else counts.get("images", 0))
    if not any(name.endswith("_tokens") for name in counts):
        meter.report_units()
        return
    cached = integer(document.get("cached_tokens")) or 0
    meter.report(used, output, cached, 0, used + output, final=True)


DIALECT: Final = Dialect(_read_whole, _read_event, ending=_ENDING)


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    return {"id": request_id, "message": refusal.told_of_field, "code": refusal.reason}


def _routes(upstream: str) -> tuple[Route, ...]:
    return (
        *(
            Route(("POST",), f"/{version}/{path}", upstream, service, NAME, f"cohere_{path}")
            for path, service in (("chat", "chat"), ("embed", "embeddings"), ("rerank", "rerank"))
            for version in (("v2",) if path == "chat" else ("v2", "v1"))
        ),
        Route(("POST",), "/v1/chat", upstream, "chat", NAME, "cohere_chat_v1"),
        Route(("POST",), "/v1/classify", upstream, "embeddings", NAME, "cohere_classify"),
        *(Route(("POST",), f"/v1/{path}", upstream, family=NAME) for path in ("tokenize", "detokenize")),
    )


_IMAGES: Final = {"image_url": MediaPart(("image_url", "url"))}

FAMILY = ApiFamily(
    NAME,
    _refusal,
    shapes={
        "cohere_chat": CallKind(
            read_chat, DIALECT, "max_tokens", always_reports=True, numbers=frozenset({"max_tokens"}),
            media=MediaPlaces("messages", _IMAGES),
            skips_texts=True,
        ),
        "cohere_chat_v1": CallKind(
            read_chat, DIALECT, "max_tokens", always_reports=True, numbers=frozenset({"max_tokens"}),
            unframed=partial(LinesMeter, dialect=DIALECT),
        ),
        "cohere_classify": CallKind(read_classify, DIALECT, operation="embeddings"),
        "cohere_embed": CallKind(
            read_embed, DIALECT, always_reports=True, operation="embeddings",
            media=MediaPlaces(
                by_type=_IMAGES, by_name={"images": MediaPart((), "image")},
                inside=frozenset({"inputs", "content"}),
            ),
        ),
        "cohere_rerank": CallKind(
            read_rerank, DIALECT, operation="embeddings",
            media=MediaPlaces(inside=frozenset({"query", "documents", "content"})),  # of Jina
        ),
    },
    brings=_routes,
    prefixes=("/v2/",),
    headers=frozenset({b"x-client-name"}),  # cohere 5
    provider="cohere",
    ceilings={"command": 4_096, "command-a": 8_192},
)  # fmt: skip
