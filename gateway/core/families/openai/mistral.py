"""Mistral's agents and conversations. The id of an agent that Mistral stores stands for the model.

Tokens are those of the prompt, of connectors (tools of the provider, whose tokens are read too), and of the
answer.
"""

from __future__ import annotations

from typing import Final

from gateway.core.calls.call import Body, CallSpec, UsageBounds
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    choices,
    flag,
    inner,
    maximum,
    model_name,
)
from gateway.core.families.family import ids_of, object_in
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import integer, loose_document, loose_event
from gateway.core.metering.report import see_content, see_whole
from gateway.errors import InvalidRequest

_AGENT = ControlledNames("agent_id", "model", "stream", "n", "max_tokens", *OF_EVERY_FAMILY)
_CONVERSATION = ControlledNames(
    "agent_id", "model", "stream", "completion_args", "inputs", "handoff_execution", *OF_EVERY_FAMILY
)
_ARGUMENTS = ControlledNames("max_tokens")
_ENDING: Final = ENDINGS["conversations"]


def read_agent(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a chat with an agent, whose id stands for the model."""
    _AGENT.check(document)
    model = _answering(document, agents_alone=True)
    streamed = flag(document, "stream")
    output_max = maximum(document, "max_tokens", bounds.usage_tokens_max)
    return CallSpec(model, streamed, output_max, choices(document, "n", bounds.choices_max))


def read_conversation(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read the first turn of a conversation with a model, or with an agent.

    The client must execute hand-overs to other agents (`handoff_execution: client`).
    """
    _CONVERSATION.check(document)
    model = _answering(document, agents_alone=False)
    streamed = flag(document, "stream")
    if document.get("agent_id") is not None and document.get("handoff_execution") != "client":
        raise InvalidRequest(
            'handoff_execution must be "client": else agents that nobody names may answer.',
            param="handoff_execution",
        )
    arguments = inner(document, "completion_args", _ARGUMENTS) or {}
    output_max = maximum(arguments, "max_tokens", bounds.usage_tokens_max, "completion_args.")
    return CallSpec(model, streamed, output_max)


def _answering(document: Document, *, agents_alone: bool) -> str:
    agent, model = document.get("agent_id"), document.get("model")
    if agent is not None and model is not None:
        raise InvalidRequest("The field model is not accepted beside agent_id.", param="model")
    return model_name(model) if agent is None and not agents_alone else model_name(agent, "agent_id")


def _read_whole(meter: Meter, document: bytes) -> None:
    answer = loose_document(document)
    meter.detail.answered_by(answer.get("model"))
    _take(meter, object_in(answer, "usage"))


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a conversation reports: text, usage, its end, and the conversation's id."""
    event = loose_event(meter, data)
    kind, content = event.get("type"), event.get("content")
    if kind == "conversation.response.error":
        meter.failed = True
    elif kind == "conversation.response.started":
        meter.told += ids_of(event.get("conversation_id"))
    elif kind in _ENDING.events:
        _take(meter, object_in(event, "usage"))
        see_whole(meter, event)
        meter.close()
    elif isinstance(content, str):
        meter.detail.answered_by(event.get("model"))
        meter.saw(content)
        meter.content_events += 1
    else:
        see_content(meter, event, 0)
    return False


def _take(meter: Meter, usage: Document) -> None:
    read, written = integer(usage.get("prompt_tokens")), integer(usage.get("completion_tokens"))
    if read is None or written is None:
        return
    for name, uses in object_in(usage, "connectors").items():
        meter.detail.used_tool(name, integer(uses) or 0)
    read += integer(usage.get("connector_tokens")) or 0
    meter.report(read, written, 0, 0, read + written, final=True)


DIALECT: Final = Dialect(_read_whole, _read_event, ending=_ENDING)
