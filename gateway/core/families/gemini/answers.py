"""Gemini generateContent, streamGenerateContent (events or one JSON array) and embedContent.

Tokens are `usageMetadata.totalTokenCount`. Thoughts are output, and so is the rest of the total beyond its
parts. Every element of a stream repeats the metadata so far, and the one with a `finishReason` is the last
word.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import ceil
from typing import Any, Final

import msgspec

from gateway.core.billing.vector import CACHE_AUDIO
from gateway.core.families.family import object_in, objects_in
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import Detail, Dialect, Meter
from gateway.core.metering.reading import (
    UNREADABLE,
    Reports,
    count_text,
    decoded,
    integer,
    is_there,
    loose_document,
    summed,
)
from gateway.core.metering.report import UsageShape, bounded_output, may_hold_more, see_content
from gateway.core.model import INTEGER_MAX

# The delay before a retry in the body of Gemini's 429: google.rpc.RetryInfo (AIP-193).

REFUSED = 429
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")  # a Duration in JSON


class _Detail(msgspec.Struct, rename={"retry_delay": "retryDelay"}):
    retry_delay: Any = None


class _Error(msgspec.Struct):
    details: list[_Detail] | None = None


class _ErrorAnswer(msgspec.Struct):
    error: _Error


_refusals = msgspec.json.Decoder(_ErrorAnswer | list[_ErrorAnswer]).decode  # streams may be lists


def retry_delay(document: bytes) -> float:
    """Return the seconds to wait before the next try by the body of a 429 answer; 0 if not stated."""
    try:
        read = _refusals(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0.0
    errors = [answer.error for answer in read] if isinstance(read, list) else [read.error]
    delays = [detail.retry_delay for error in errors for detail in error.details or ()]
    matches = [_SECONDS.fullmatch(delay) for delay in delays if isinstance(delay, str)]
    return next((float(match[1]) for match in matches if match), 0.0)


class _Modality(UsageShape, rename="camel"):
    modality: str | None = None
    token_count: int | None = None


class _GeminiUsage(UsageShape, rename="camel"):
    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    total_token_count: int | None = None
    prompt_tokens_details: list[_Modality] | None = None
    cache_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None
    tool_use_prompt_tokens_details: list[_Modality] | None = None
    traffic_type: str | None = None
    service_tier: str | None = None


_REPORTS = Reports(_GeminiUsage)
_AUDIO = frozenset({"AUDIO"})
# Kinds of tokens, by the first part of a type; the bytes of made media that count as text.
_MADE: Final = {"image": "image_output", "audio": "audio_output"}
_MEDIA: Final = (0, "media")
_IMAGES = frozenset({"IMAGE", "DOCUMENT"})  # a document is read as pictures of its pages
# The first value of a proto3 enumeration means that the field is not set.
_NO_END: Final = frozenset({None, "", "FINISH_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED"})
_READ_MAX: Final = 2_097_152  # tokens from a model's own tools: no model reads more at once
_ON_DEMAND = "on_demand_"  # prefix of tiers at Vertex AI


class Grounding(msgspec.Struct, rename="camel"):
    """What an answer of a model was looked up by, as far as Google bills it."""

    web_search_queries: list[Any] | None = None
    image_search_queries: list[Any] | None = None
    grounding_chunks: list[Any] | None = None


class _Blob(msgspec.Struct, rename="camel"):
    mime_type: str | None = None


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    inline_data: _Blob | None = None
    function_call: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    index: Any = None
    content: _Content | None = None
    finish_reason: str | None = None
    grounding_metadata: Grounding | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: Any = None


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    usage_metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    model_version: Any = None
    prompt_feedback: _Feedback | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    continuation_token: Any = None


_answer = msgspec.json.Decoder(_Answer).decode


def _read_whole(meter: Meter, document: bytes) -> None:
    if meter.status == REFUSED:
        meter.detail.retry_s = retry_delay(document)
    take(meter, document, True)


def _read_event(meter: Meter, data: bytes) -> bool:
    take(meter, data, False)
    return False


def take(meter: Meter, document: bytes, final: bool) -> None:
    """Read one response: a whole answer (`final`), or one element of a stream."""
    try:
        read = decoded(_answer, document)
    except UNREADABLE:
        count_text(meter, document)
        _report_loose(meter, document)
        return
    if is_there(read.error):
        meter.failed = True
    meter.detail.answered_by(read.model_version)
    if isinstance(read.continuation_token, str):
        meter.continues = read.continuation_token
    before, whole = meter.text_bytes, final
    for place, candidate in enumerate(read.candidates or ()):
        if candidate.grounding_metadata is not None:
            note_grounding(meter.detail, candidate.grounding_metadata)
        _see(meter, candidate)
        finished = candidate.finish_reason not in _NO_END
        meter.note_choice(candidate.index, place, finished=finished)
        if finished:
            final = True
        if candidate.finish_reason is not None:
            meter.finished += 1
    if read.candidates and not whole and may_hold_more(meter, document, meter.text_bytes - before):
        seen = meter.text_bytes
        _see_more(meter, document, seen - before)
        if meter.detail.main_output:
            meter.said[_MEDIA] = meter.said.get(_MEDIA, 0) + meter.text_bytes - seen
    if read.prompt_feedback is not None and _ends(read.prompt_feedback.block_reason):  # nothing follows
        final = meter.last_word = True
        meter.finished += 1
    if is_there(read.usage_metadata):
        report(meter, bytes(read.usage_metadata), final)


def note_grounding(detail: Detail, grounding: Grounding) -> None:
    """Note the searches of an answer, of pages and of pictures, and whether it has places of a map."""
    for kind, queries in (("", grounding.web_search_queries), ("image", grounding.image_search_queries)):
        if queries:
            detail.searched(queries, kind)
    if any(isinstance(chunk, dict) and "maps" in chunk for chunk in grounding.grounding_chunks or ()):
        detail.used_tool("google_maps", 1)  # an answer with places is one use


def _ends(reason: object) -> bool:
    return reason not in _NO_END if isinstance(reason, str) else bool(reason)


def _see(meter: Meter, candidate: _Candidate) -> None:
    if candidate.content is None or not candidate.content.parts:
        return
    for part in candidate.content.parts:
        if part.text:
            meter.saw(part.text)
        elif part.function_call is not msgspec.UNSET:
            meter.text_bytes += len(bytes(part.function_call))
        elif part.inline_data is not None:
            kind = (part.inline_data.mime_type or "").partition("/")[0]
            meter.detail.main_output = _MADE.get(kind, meter.detail.main_output)
    meter.content_events += 1


def _see_more(meter: Meter, document: bytes, seen: int) -> None:
    candidates = loose_document(document).get("candidates")
    if isinstance(candidates, list):
        see_content(
            meter,
            [candidate.get("content") for candidate in candidates if isinstance(candidate, dict)],
            seen,
            len(document),
        )


def report(meter: Meter, raw: bytes, final: bool) -> None:
    """Report the usage in the `usageMetadata` object `raw`. `final` marks the last one of the answer."""
    usage = _REPORTS.read(meter, raw)
    if usage is None:
        return
    # An absent number keeps its last value: a stream may tell its prompt early alone.
    prompt, tools = usage.prompt_token_count, usage.tool_use_prompt_token_count
    if tools is not None and tools > _READ_MAX:
        tools, meter.marked = _READ_MAX, True
    used = meter.input if prompt is None and meter.input > (tools or 0) else summed(prompt, tools)
    thoughts, candidates = usage.thoughts_token_count or 0, usage.candidates_token_count
    written = candidates is not None or usage.thoughts_token_count is not None
    output = summed(candidates, thoughts) if written else meter.output
    if thoughts > 0 and output > 0:
        output = bounded_output(meter, candidates or 0, output)
    total, cached = usage.total_token_count, usage.cached_content_token_count or 0
    if cached > used >= 0:  # cached tokens cannot exceed the prompt
        used += cached
    total = _carry_numbers(
        total, used + output, (0 if written else output) + (used - (tools or 0) if prompt is None else 0)
    )
    if total is None:
        if prompt is None and candidates is None:
            return
        total = used + output
    elif total != used + output and min(used, output) >= 0:
        if total == used + output - thoughts:  # these candidates include the thoughts
            output -= thoughts
        else:
            output = bounded_output(meter, output, total - used)
            if final:
                meter.detail.keep(raw)
    elif output < 0 <= used <= total:  # invalid candidates: the total is charged all the same
        output, meter.marked = bounded_output(meter, 0, total - used), True
    if used >= 0 and output >= 0 and total > used + output:
        total = used + output
    _note(meter, usage)
    meter.partial = usage.total_token_count is None and not (meter.reported and not meter.partial)
    meter.report(used, output, cached, thoughts, total, final=final)


def _carry_numbers(total: int | None, parts: int, carried: int) -> int | None:
    """Return the total of a report with the numbers that an earlier one told alone, at most the sum of `parts`."""
    if total is None or carried <= 0 or total >= parts:
        return total
    return min(total + carried, parts)


def _note(meter: Meter, usage: _GeminiUsage) -> None:
    """Note the service tier in a usage report, and its tokens of sound and images."""
    detail = meter.detail
    tier = usage.service_tier or usage.traffic_type
    detail.served_as(tier and tier.lower().removeprefix(_ON_DEMAND))
    read, tools, cached, written = (
        usage.prompt_tokens_details, usage.tool_use_prompt_tokens_details,
        usage.cache_tokens_details, usage.candidates_tokens_details,
    )  # fmt: skip
    if cached is not None:
        detail.used_tool(CACHE_AUDIO, _sum_of_modalities(cached, _AUDIO))
    if read is not None or tools is not None:
        detail.audio_input = (
            _sum_of_modalities(read, _AUDIO)
            + _sum_of_modalities(tools, _AUDIO)
            - _sum_of_modalities(cached, _AUDIO)
        )
        detail.image_input = (
            _sum_of_modalities(read, _IMAGES)
            + _sum_of_modalities(tools, _IMAGES)
            - _sum_of_modalities(cached, _IMAGES)
        )
        detail.text_input = INTEGER_MAX
    if written is not None:
        detail.text_output = INTEGER_MAX
        detail.audio_output, detail.image_output = (
            _sum_of_modalities(written, _AUDIO),
            _sum_of_modalities(written, _IMAGES),
        )
    elif detail.main_output:
        text = meter.seen_bytes - meter.said.get(_MEDIA, 0)
        detail.text_output = ceil(text / meter.call.learned.output_bytes_per_token)


def _sum_of_modalities(details: list[_Modality] | None, modalities: frozenset[str]) -> int:
    return sum(detail.token_count or 0 for detail in details or () if detail.modality in modalities)


def _report_loose(meter: Meter, document: bytes) -> None:
    """Report the usage in an answer whose fields have other types than documented."""
    answer = loose_document(document)
    for place, item in enumerate(objects_in(answer, "candidates")):
        meter.note_choice(item.get("index"), place, finished=_ends(item.get("finishReason")))
    meter.detail.answered_by(answer.get("modelVersion"))
    usage = answer.get("usageMetadata")
    if isinstance(usage, dict):
        report(meter, msgspec.json.encode(usage), True)
        meter.marked = True


def end_of(meter: Meter) -> bytes:
    """Return the JSON response that ends a stream with `finishReason: MAX_TOKENS`."""
    counted = meter.usage()
    return msgspec.json.encode(
        {
            "candidates": [
                {"content": {"parts": [], "role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}
            ],
            "usageMetadata": {
                "promptTokenCount": counted.input,
                "candidatesTokenCount": counted.output,
                "totalTokenCount": counted.total,
            },
        }
    )


def _closing(meter: Meter) -> bytes:
    """Return the event that ends a stream with `finishReason: MAX_TOKENS`."""
    return b"data: " + end_of(meter) + b"\r\n\r\n"


ENDING = ENDINGS["gemini"]
DIALECT = Dialect(_read_whole, _read_event, _closing, ending=ENDING)


def _read_cached(meter: Meter, document: bytes) -> None:
    total = integer(object_in(loose_document(document), "usageMetadata").get("totalTokenCount"))
    if total is not None and 200 <= meter.status < 300:
        meter.report(total, 0, 0, 0, total, final=True)


def _read_video(meter: Meter, document: bytes) -> None:
    """Report the seconds of the videos made, by requested length. Videos that Google withheld are free."""
    answer = loose_document(document)
    meter.failed = answer.get("error") is not None
    if answer.get("done") is not True or meter.failed or not 200 <= meter.status < 300:
        return
    made = object_in(object_in(answer, "response"), "generateVideoResponse")
    samples, asked = made.get("generatedSamples"), meter.call.spec.choices
    held, unlisted = (meter.call.spec.units.likely or {}).get("video_second", 0), 0 if made else asked
    number = min(len(samples), asked) if isinstance(samples, list) else unlisted
    meter.detail.used_tool("video_second", held // asked * number)
    meter.report_units()


VIDEO = Dialect(_read_video)

# An answer about cached contents: the model has read all their tokens.
CACHED = Dialect(_read_cached)


def _read_extended(meter: Meter, document: bytes) -> None:
    """Report one unit, and the size of cached contents that were not known before."""
    contents, storage = loose_document(document), meter.call.storage
    if not 200 <= meter.status < 300:
        return
    if storage is not None and not storage.tokens:
        tokens = integer(object_in(contents, "usageMetadata").get("totalTokenCount")) or 0
        meter.call.storage = replace(storage, tokens=tokens)
    meter.report_units()


EXTENDED = Dialect(_read_extended)


def _read_predicted(meter: Meter, document: bytes) -> None:
    """Report the number of pictures in a `predict` answer, or the tokens of the texts that it embeds."""
    answer = loose_document(document)
    meter.failed = answer.get("error") is not None
    made = objects_in(answer, "predictions")
    if meter.failed or "predictions" not in answer or not 200 <= meter.status < 300:
        return
    embedded = [
        object_in(object_in(prediction, "embeddings"), "statistics").get("token_count") for prediction in made
    ]
    tokens = sum([integer(count) or 0 for count in embedded])
    drawn = sum(
        [
            isinstance(prediction.get("bytesBase64Encoded") or prediction.get("gcsUri"), str)
            for prediction in made
        ]
    )
    for name in meter.call.spec.units.likely or ():
        meter.detail.used_tool(name, drawn)
    meter.detail.replaces_units = True
    if drawn:
        meter.report_units()
    else:
        meter.report(tokens, 0, 0, 0, tokens, final=True)


PREDICTED = Dialect(_read_predicted)
