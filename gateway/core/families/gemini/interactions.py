"""Gemini's interactions: their requests, and the usage in one document or in typed events.

Tokens are `usage.total_tokens`, counted like those of `usageMetadata`. Agents, machines of the provider and
background work are refused, because no answer reports which models they used.
"""

from __future__ import annotations

from typing import Final

import msgspec

from gateway.core.calls.call import Body, CallSpec, UsageBounds
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    elements,
    flag,
    inner,
    maximum,
    model_name,
)
from gateway.core.families.family import object_in, objects_in, told_of
from gateway.core.families.gemini.answers import report
from gateway.core.families.gemini.calls import OBJECTS
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import integer, loose_document, loose_event
from gateway.core.metering.report import may_hold_more, see_content, see_whole
from gateway.errors import InvalidRequest

_ELSEWHERE: Final = (
    "agent", "agent_config", "background", "continuation_token", "environment", "webhook_config",
)  # fmt: skip
_NOTHING: Final = (None, False)
_INTERACTION = ControlledNames(
    "model", "stream", "generation_config", "previous_interaction_id", "response_modalities",
    *_ELSEWHERE, *OF_EVERY_FAMILY,
)  # fmt: skip
_CONFIG = ControlledNames("max_output_tokens")
# Counts and modalities in a report, by their names in `usageMetadata`.
_NAMES: Final = {
    "total_input_tokens": "promptTokenCount", "total_tool_use_tokens": "toolUsePromptTokenCount",
    "total_output_tokens": "candidatesTokenCount", "total_thought_tokens": "thoughtsTokenCount",
    "total_cached_tokens": "cachedContentTokenCount", "total_tokens": "totalTokenCount",
    "input_tokens_by_modality": "promptTokensDetails", "cached_tokens_by_modality": "cacheTokensDetails",
    "tool_use_tokens_by_modality": "toolUsePromptTokensDetails",
    "output_tokens_by_modality": "candidatesTokensDetails",
}  # fmt: skip
_GROUNDED: Final = "grounding_tool_count"
# Counts beside tokens, and one that is in `total_input_tokens`.
_WITHIN: Final = frozenset({_GROUNDED, "initial_input_tokens"})
_ENDING: Final = ENDINGS["interactions"]
_COMPLETED: Final = "interaction.completed"


def read_interaction(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call of the Interactions API, one turn of a model, which may continue an earlier one."""
    _INTERACTION.check_spelling(document)
    for name in _ELSEWHERE:
        if document.get(name) not in _NOTHING:
            raise InvalidRequest(
                f"{name} is not accepted: nobody says whose it is, or which models answer there.", param=name
            )
    model = document.get("model")
    model = model_name(model.removeprefix("models/") if isinstance(model, str) else model)
    streamed = flag(document, "stream")
    config = inner(document, "generation_config", _CONFIG) or {}
    _CONFIG.check_spelling(config, "generation_config.")
    output_max = maximum(config, "max_output_tokens", bounds.usage_tokens_max, "generation_config.")
    if any(element.get("type") == "retrieval" for element in elements(document, "tools")):
        raise InvalidRequest("tools: retrieval is not accepted, its stores are no caller's.", param="tools")
    return CallSpec(model, streamed, output_max)


def _read_whole(meter: Meter, document: bytes) -> None:
    _take(meter, loose_document(document), final=True)


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, usage, the end, and ids of stored objects."""
    event = loose_event(meter, data)
    kind, before = event.get("event_type"), meter.text_bytes
    if kind == "error":
        meter.failed = True
        return False
    delta, interaction = object_in(event, "delta"), object_in(event, "interaction")
    text = delta.get("text")
    if isinstance(text, str) and text:
        meter.saw(text)
        meter.content_events += 1
    if may_hold_more(meter, data, meter.text_bytes - before):
        see_content(meter, delta or object_in(event, "step"), meter.text_bytes - before, len(data))
    _report(meter, object_in(object_in(event, "metadata"), "total_usage"), final=False)
    if interaction:
        if meter.call.objects.keeps:
            meter.told += told_of(OBJECTS, interaction, meter.call.objects.named)
        _take(meter, interaction, final=kind == _COMPLETED)
        see_whole(meter, {"interaction": interaction})
    if kind in _ENDING.events:
        meter.close()
    return False


def _take(meter: Meter, document: Document, *, final: bool) -> None:
    if document.get("status") == "failed" or document.get("error") is not None:
        meter.failed = True
    meter.detail.answered_by(document.get("model"))
    meter.detail.served_as(document.get("service_tier"))
    _report(meter, object_in(document, "usage"), final=final)


def _report(meter: Meter, usage: Document, *, final: bool) -> None:
    if not usage:
        return
    for item in objects_in(usage, _GROUNDED):
        name = str(item.get("type")).replace("google_search", "web_search")
        meter.detail.used_tool(name, integer(item.get("count")) or 0)
    said = {_NAMES.get(name, name): _parts(value) for name, value in usage.items() if name not in _WITHIN}
    report(meter, msgspec.json.encode(said), final)


def _parts(value: object) -> object:
    """Return a list of tokens by modality in the form of `usageMetadata`; any other value unchanged."""
    if not isinstance(value, list):
        return value
    return [
        {"modality": str(one.get("modality")).upper(), "tokenCount": one.get("tokens")}
        for one in value
        if isinstance(one, dict)
    ]


def _closing(meter: Meter) -> bytes:
    """Return the event that ends an interaction with the status `incomplete`."""
    counted = meter.usage()
    usage = {
        "total_input_tokens": counted.input, "total_output_tokens": counted.output,
        "total_tokens": counted.total,
    }  # fmt: skip
    interaction = object_in(loose_document(meter.opening or b""), "interaction")
    return _event(
        {"event_type": _COMPLETED, "interaction": {**interaction, "status": "incomplete", "usage": usage}}
    )


def _failing(meter: Meter, body: bytes) -> bytes:
    error = object_in(loose_document(body), "error")
    said = {"code": str(error.get("status")).lower(), "message": error.get("message")}
    return _event({"event_type": "error", "error": said})


def _event(document: Document) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (str(document["event_type"]).encode(), msgspec.json.encode(document))


DIALECT: Final = Dialect(_read_whole, _read_event, _closing, _failing, ending=_ENDING)
