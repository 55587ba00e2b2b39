"""Amazon Bedrock: Converse for all models, and InvokeModel for Anthropic's, with Anthropic's own bodies.

An upstream of this family has its own routes. The model is in the path alone. Tokens of Converse are
`inputTokens` + cache reads + cache writes + `outputTokens`; a stream reports them in its last event.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final

import msgspec

from gateway.core.calls.call import (
    Body,
    CallSpec,
    FieldNames,
    MediaPart,
    MediaPlaces,
    RequestedUnits,
    UsageBounds,
)
from gateway.core.calls.routes import Route
from gateway.core.families import anthropic
from gateway.core.families.anthropic import calls, messages
from gateway.core.families.anthropic.fallbacks import FALLBACKS, read_fallbacks
from gateway.core.families.cohere import searches_of
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    elements,
    id_in,
    inner,
    maximum,
    model_in_path,
    model_name,
    object_at,
)
from gateway.core.families.family import (
    ApiFamily,
    BodyIds,
    CallKind,
    Exclusions,
    ObjectRules,
    always,
    object_in,
    objects_in,
    only_own_tools,
    only_text,
)
from gateway.core.families.model_differences import Difference
from gateway.core.families.openai.calls import STORED
from gateway.core.families.seals import NOBODY
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.eventstream import EventStreamMeter
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import Reports, integer, loose_document, loose_event, summed
from gateway.core.metering.refusals import REFUSAL, attempts_of, refuse, see_blocks
from gateway.core.metering.report import UsageShape, see_content
from gateway.core.model import Family
from gateway.errors import InvalidRequest, Refusal

NAME = Family("bedrock")

_CONVERSE = ControlledNames(
    "inferenceConfig", "additionalModelRequestFields", "guardrailConfig", "promptVariables",
    "performanceConfig", "serviceTier", *OF_EVERY_FAMILY,
)  # fmt: skip
_INFERENCE = ControlledNames("maxTokens")
_RERANK = ControlledNames("queries", "sources", "rerankingConfiguration", "nextToken", *OF_EVERY_FAMILY)
_CHECKED = ControlledNames("source", "content", "outputScope", *OF_EVERY_FAMILY)
# Policies of a guardrail by their names in answers and in prices. A text unit has so many characters.
_POLICIES: Final = {
    "topicPolicyUnits": "guardrail_topic", "contentPolicyUnits": "guardrail_content",
    "wordPolicyUnits": "guardrail_word", "sensitiveInformationPolicyUnits": "guardrail_sensitive",
    "contextualGroundingPolicyUnits": "guardrail_grounding",
}  # fmt: skip
_UNIT_CHARACTERS: Final = 1_000
# Fields that cost more than tokens, or insert a stored prompt, which may name another model.
_UNMETERED: Final = ("guardrailConfig", "promptVariables")
# Model-specific fields that change neither the maximum of tokens nor the charge.
_OWN_FIELDS: Final = frozenset(
    {"top_k", "topK", "thinking", "anthropic_beta", "reasoning_effort", "reasoning_config", "output_config"}
)


def read_invoke(
    body: Body, document: Document, params: PathParams, bounds: UsageBounds, *, streamed: bool
) -> CallSpec:
    """Read a call of InvokeModel, whose body must be an Anthropic message."""
    version = document.get("anthropic_version")
    if not isinstance(version, str) or not version:
        raise InvalidRequest(
            "anthropic_version must be a text such as bedrock-2023-05-31: only Anthropic's messages are "
            "metered here, other models are called by converse.",
            param="anthropic_version",
        )
    if "stream" in document:
        raise InvalidRequest("stream: the path says it, leave the field out.", param="stream")
    return calls.read_messages(body, document, params, bounds)._replace(streamed=streamed)


def read_converse(
    body: Body, document: Document, params: PathParams, bounds: UsageBounds, *, streamed: bool
) -> CallSpec:
    """Read a call of Converse or ConverseStream, for any model."""
    _CONVERSE.check(document)
    model = model_in_path(document, params.get("model"))
    config = inner(document, "inferenceConfig", _INFERENCE) or {}
    output_max = maximum(config, "maxTokens", bounds.usage_tokens_max, "inferenceConfig.")
    for name in _UNMETERED:
        if document.get(name) is not None:
            raise InvalidRequest(f"{name} is not accepted: what it costs cannot be metered.", param=name)
    more = document.get("additionalModelRequestFields")
    if more is not None and (not isinstance(more, dict) or not more.keys() <= _OWN_FIELDS):
        right = ", ".join(sorted(_OWN_FIELDS))
        raise InvalidRequest(
            f"additionalModelRequestFields may hold {right}.", param="additionalModelRequestFields"
        )
    if any("systemTool" in tool for tool in objects_in(object_in(document, "toolConfig"), "tools")):
        raise InvalidRequest(
            "toolConfig.tools: a systemTool is not accepted, its uses cannot be metered.", param="toolConfig"
        )
    return CallSpec(model, streamed, output_max)


def read_rerank(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a reranking, and estimate its search units from its documents and queries."""
    _RERANK.check(document)
    config = object_in(object_in(document, "rerankingConfiguration"), "bedrockRerankingConfiguration")
    model = model_name(object_in(config, "modelConfiguration").get("modelArn"), "modelArn")
    sources, queries = document.get("sources"), document.get("queries")
    if not isinstance(sources, list) or not sources or not isinstance(queries, list) or not queries:
        raise InvalidRequest("sources and queries must be lists.", param="sources")
    searches = searches_of(sources) * len(queries)
    return CallSpec(model, output_max=0, units=RequestedUnits({"search": searches}))


def read_guardrail(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read contents for a guardrail to check, and estimate the text units of each policy."""
    _CHECKED.check(document)
    model = model_name(f"guardrail/{params.get('guardrail', '')}")
    size = sum(len(str(element)) for element in elements(document, "content"))
    units = dict.fromkeys(_POLICIES.values(), 1 + size // _UNIT_CHARACTERS)
    return CallSpec(model, output_max=0, units=RequestedUnits(units))


def _read_checked(meter: Meter, document: bytes) -> None:
    """Report the units of policies that a guardrail has checked."""
    usage = object_in(loose_document(document), "usage")
    if not usage or not 200 <= meter.status < 300:
        return
    for name, units in usage.items():
        if not name.endswith("FreeUnits"):
            meter.detail.used_tool(_POLICIES.get(name, name), integer(units) or 0)
    meter.detail.replaces_units = True
    meter.report_units()


# The upstream would read a file in a bucket with its own credentials, so no caller may name one.
_BUCKET = re.compile(rb'"s3_?location":', re.IGNORECASE)


def _add_files(name: str, inside: object, holder: Document, place: str, ids: BodyIds) -> bool:
    if name.lower().replace("_", "") != "s3location":
        return False
    ids.named.append(id_in(inside.get("uri") if isinstance(inside, dict) else inside, name))
    return True


def _is_free(name: str, holder: Document) -> bool:
    """Return whether a field holds input or output of a caller's function, and thus no id of an object."""
    return name == "json" or (name == "input" and "toolUseId" in holder)


OBJECTS: Final = ObjectRules(
    collections={"async-invoke": ""},
    marks=_BUCKET,
    add=_add_files,
    is_free=_is_free,
)


def _no_media(document: Document, names: FieldNames) -> bool:
    said = only_text(document.get("messages")) and only_text(document.get("system"))
    return said and only_own_tools(document) and "container" not in document


def _no_tier(document: Document, tier: str) -> bool:
    return tier not in _tiers(document)


def _tiers(document: Document) -> tuple[object, object]:
    """Return the service tier and the latency, raw, in a request or an answer."""
    tier, performance = object_in(document, "serviceTier"), object_in(document, "performanceConfig")
    return tier.get("type"), performance.get("latency")


class _CacheDetail(UsageShape, rename="camel"):
    ttl: str | None = None
    input_tokens: int | None = None


class _Usage(UsageShape, rename="camel"):
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    # Other names of the same numbers, used by some models.
    cache_read_input_token_count: Any = None
    cache_write_input_token_count: Any = None
    cache_details: list[_CacheDetail] | None = None


_ENDING: Final = ENDINGS["converse"]
_REPORTS = Reports(_Usage)


def _read_whole(meter: Meter, document: bytes) -> None:
    answer = loose_document(document)
    _see_refusal(meter, answer, object_in(object_in(answer, "output"), "message").get("content"))
    _take(meter, answer)


def _see_refusal(meter: Meter, end: Document, content: object) -> None:
    """Note a refusal of Claude; the model's own fields have its category, where the call asks for them."""
    if end.get("stopReason") == REFUSAL:
        see_blocks(meter, content)
        refuse(meter, object_in(end, "additionalModelResponseFields").get("stop_details"))


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a stream reports: text, refusal, usage and the end."""
    event = loose_event(meter, data)
    for holder in ("contentBlockStart", "contentBlockDelta"):
        piece = object_in(event, holder)
        if piece:
            _see(meter, object_in(piece, "delta") or object_in(piece, "start"))
    if "messageStop" in event:
        meter.finished += 1
        _see_refusal(meter, object_in(event, "messageStop"), None)
    if "metadata" in event:
        _take(meter, object_in(event, "metadata"))
        meter.phase = CLOSED
    meter.last_word = meter.last_word or not _ENDING.events.isdisjoint(event)
    return False


def _see(meter: Meter, piece: Document) -> None:
    """Count the text or other content of a block's piece."""
    text = piece.get("text") or object_in(piece, "toolUse").get("input")
    text = text or object_in(piece, "reasoningContent").get("text")
    if isinstance(text, str):
        meter.saw(text)
        meter.content_events += 1
    else:
        see_content(meter, piece, 0)
        attempts_of(meter).has_content |= "text" not in piece


def _take(meter: Meter, document: Document) -> None:
    """Report the usage in a whole answer, or in the last event of a stream."""
    tier, latency = _tiers(document)
    meter.detail.served_as(latency if latency == "optimized" else tier)
    report = document.get("usage")
    raw = msgspec.json.encode(report)
    usage = _REPORTS.read(meter, raw) if isinstance(report, dict) else None
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return
    read, written = usage.cache_read_input_tokens or 0, usage.cache_write_input_tokens or 0
    hour = sum(part.input_tokens or 0 for part in usage.cache_details or () if part.ttl == "1h")
    meter.detail.cache_write_1h, meter.detail.cache_write = hour, written - hour
    used, output = summed(usage.input_tokens, read, written), usage.output_tokens
    if usage.total_tokens not in {None, used + output, usage.input_tokens + output}:
        meter.detail.keep(raw)
    meter.report(used, output, read, 0, used + output, final=True)


CHECKED: Final = Dialect(_read_checked)
CONVERSE: Final = Dialect(_read_whole, _read_event, ending=_ENDING)
_IN_BUCKET: Final = (("source", "s3Location", "uri"),)
_MEDIA: Final = MediaPlaces(
    by_name={
        "document": MediaPart(("source", "bytes"), "application/pdf", ("format",), named=_IN_BUCKET),
        "image": MediaPart(("source", "bytes"), "image"),
        **{kind: MediaPart(("source", "bytes"), kind, named=_IN_BUCKET) for kind in ("audio", "video")},
    },
    inside=frozenset({"messages", "system", "content", "toolResult", "guardContent"}),
    page=3_000,
)
_ANTHROPIC = anthropic.FAMILY.shapes["anthropic_messages"]
_TYPES: Final = {
    401: "AccessDeniedException", 402: "ServiceQuotaExceededException", 403: "AccessDeniedException",
    404: "ResourceNotFoundException", 405: "ValidationException", 429: "ThrottlingException",
    503: "ServiceUnavailableException", 504: "ModelTimeoutException",
}  # fmt: skip


def _refusal(refusal: Refusal, request_id: str) -> dict[str, object]:
    other = "ValidationException" if refusal.status < 500 else "InternalServerException"
    kind = _TYPES.get(refusal.status, other)
    return {"code": kind, "message": refusal.told_of_field, "request_id": request_id}


def _shape(*, invoke: bool, streamed: bool) -> CallKind:
    """Return how calls are read: of InvokeModel or Converse, whole or streamed."""
    dialect = messages.DIALECT if invoke else CONVERSE
    unframed = partial(EventStreamMeter, dialect=dialect) if streamed else None
    if invoke:
        return CallKind(
            partial(read_invoke, streamed=streamed), dialect, "max_tokens", always_reports=True, unframed=unframed,
            numbers=_ANTHROPIC.numbers, media=_ANTHROPIC.media, tool_uses=_ANTHROPIC.tool_uses,
            limited_tools=_ANTHROPIC.limited_tools, skips_texts=True,
        )  # fmt: skip
    return CallKind(
        partial(read_converse, streamed=streamed), dialect, "maxTokens", object_at("inferenceConfig"), always_reports=True,
        unframed=unframed, numbers=frozenset({"maxTokens"}), media=_MEDIA, skips_texts=True,
    )  # fmt: skip


def _routes(upstream: str) -> tuple[Route, ...]:
    """Return the routes of Bedrock's API at an upstream."""
    checks = Route(
        ("POST",), "/guardrail/{guardrail}/version/{version}/apply", upstream, "guardrails", NAME,
        "bedrock_guardrail",
    )  # fmt: skip
    return checks, *tuple(
        Route(("POST",), f"/model/{{+model}}/{path}", upstream, service, NAME, meter)
        for path, service, meter in (
            ("converse", "chat", "bedrock_converse"),
            ("converse-stream", "chat", "bedrock_converse_stream"),
            ("invoke", "messages", "bedrock_invoke"),
            ("invoke-with-response-stream", "messages", "bedrock_invoke_stream"),
        )
    )


FAMILY = ApiFamily(
    NAME,
    _refusal,
    # Claude's, with InvokeModel and Converse.
    differences=(
        *anthropic.DIFFERENCES,
        *(
            row._replace(path=("additionalModelRequestFields", *row.path))
            for row in anthropic.DIFFERENCES
            if row.path
        ),
        *(
            Difference(name, ("inferenceConfig", name), anthropic.SINCE_4_7, plain=1)
            for name in ("temperature", "topP")
        ),
    ),
    seals={**anthropic.SEALS, "redactedContent": NOBODY},  # of InvokeModel, and of Converse in botocore 1.44.5
    model_lists={FALLBACKS: read_fallbacks},
    shapes={
        "bedrock_rerank": CallKind(read_rerank, STORED, operation="embeddings"),
        "bedrock_guardrail": CallKind(read_guardrail, CHECKED, operation="generate_content"),
        "bedrock_converse": _shape(invoke=False, streamed=False),
        "bedrock_converse_stream": _shape(invoke=False, streamed=True),
        "bedrock_invoke": _shape(invoke=True, streamed=False),
        "bedrock_invoke_stream": _shape(invoke=True, streamed=True),
    },
    brings=_routes,
    prefixes=("/model/",),
    # A client's signature is for another request, and the other headers change the price.
    withheld=frozenset(
        {
            b"accept", b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256", b"amz-sdk-request",
            b"amz-sdk-invocation-id", b"x-amzn-bedrock-accept", b"x-amzn-bedrock-request-metadata",
        }
    ),
    # botocore 1.44.5, and AWS' SDK for JavaScript.
    headers=frozenset({b"x-amz-user-agent"}),
    withheld_prefixes=(b"x-amzn-bedrock-",),
    refused_prefixes=(b"x-amzn-bedrock-",),
    objects=OBJECTS,
    exclusions=Exclusions(
        cache=lambda document, names: not names.caches,
        media=_no_media,
        sound=always,
        tier=_no_tier,
        tier_fields=("serviceTier", "performanceConfig", "service_tier", "speed"),
        tier_objects={"serviceTier": "type", "performanceConfig": "latency"},
    ),
    provider="aws.bedrock",
    tool_prompts=anthropic.FAMILY.tool_prompts,
    pictures=anthropic.FAMILY.pictures,
    ceilings={"anthropic.claude": 128_000},
)  # fmt: skip
