"""OpenAI's pictures and speech, and Mistral's pages: what they ask for, and what answers say they used.

Pictures are n × size × quality, by the answer where it says them, else by the request. Speech is the
characters of its `input`. Tokens are those that the answer reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from gateway.core.billing.price_book import AUTO, IMAGES
from gateway.core.calls.call import CallRequest, UsageBounds
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    choices,
    flag,
    model_name,
    stated_user,
)
from gateway.core.families.openai.responses import report
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import integer, loose_document
from gateway.errors import InvalidRequest

_IMAGES = ControlledNames("model", "n", "size", "quality", "stream", "user", *OF_EVERY_FAMILY)
_SPEECH = ControlledNames("model", "stream_format", *OF_EVERY_FAMILY)
_OCR = ControlledNames("model", "pages", "document", *OF_EVERY_FAMILY)
_ANNOTATIONS: Final = ("bbox_annotation_format", "document_annotation_format")
# What Mistral reads of one document at most.
OCR_PAGES_MAX: Final = 1_000
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9:.x-]{0,31}")
# Of these a picture has a size and a quality though none is asked for, and answers report no tokens.
_PLAIN: Final = "dall-e-"
_PLAIN_USUAL: Final = ("1024x1024", "standard")
_REPORTING: Final = "gpt-image-"
_DONE: Final = frozenset({"image_generation.completed", "image_edit.completed", "speech.audio.done", "error"})


def read_images(
    call: CallRequest, document: Document, path_params: Mapping[str, str], bounds: UsageBounds
) -> None:
    """Pictures."""
    _IMAGES.check(document)
    call.model = model_name(document.get("model"))
    call.streamed = flag(document, "stream")
    call.user = stated_user(document.get("user"))
    call.choices = choices(document, "n", bounds.choices_max)
    call.reports = call.reports or call.model.lower().startswith(_REPORTING)
    size, quality = _PLAIN_USUAL if call.model.lower().startswith(_PLAIN) else (AUTO, AUTO)
    size, quality = _word(document, "size", size), _word(document, "quality", quality)
    call.measured = {f"{IMAGES}{size}/{quality}": call.choices}


def read_speech(
    call: CallRequest, document: Document, path_params: Mapping[str, str], bounds: UsageBounds
) -> None:
    """Speech, which passes as it comes."""
    _SPEECH.check(document)
    call.model = model_name(document.get("model"))
    said = document.get("input")
    if not isinstance(said, str) or not said:
        raise InvalidRequest("input must be a text.", param="input")
    call.streamed, call.output_max = True, 0
    call.measured = {"character": len(said)}


def read_ocr(
    call: CallRequest, document: Document, path_params: Mapping[str, str], bounds: UsageBounds
) -> None:
    """Pages to read, as Mistral takes them: as many as are named, else as many as a document may have."""
    _OCR.check(document)
    call.model, call.output_max = model_name(document.get("model")), 0
    for name in _ANNOTATIONS:
        if document.get(name) is not None:
            raise InvalidRequest(f"{name} is not accepted: such pages have a price of their own.", param=name)
    pages, shown = document.get("pages"), document.get("document")
    most = 1 if isinstance(shown, dict) and shown.get("type") == "image_url" else OCR_PAGES_MAX
    call.measured = {"page": len(pages) if isinstance(pages, list) and pages else most}


def _read_ocr(meter: Meter, document: bytes) -> None:
    said = loose_document(document)
    meter.detail.answered_by(said.get("model"))
    told = said.get("usage_info")
    pages = integer(told.get("pages_processed")) if isinstance(told, dict) else None
    if pages is not None and 200 <= meter.status < 300:
        meter.detail.used_tool("page", pages)
        meter.report(0, 0, 0, 0, 0, final=True)


def _word(document: Document, name: str, usual: str) -> str:
    value = document.get(name)
    if value is None:
        return usual
    if not isinstance(value, str) or _WORD.fullmatch(value) is None:
        raise InvalidRequest(f"{name} must be a word such as {usual}.", param=name)
    return value.lower()


def _read_whole(meter: Meter, document: bytes) -> None:
    said = loose_document(document)
    meter.failed = said.get("error") is not None
    meter.detail.answered_by(said.get("model"))
    _take(meter, said)
    pictures, asked = said.get("data"), meter.call.measured
    if not isinstance(pictures, list) or not asked or not 200 <= meter.status < 300:
        return
    for name in asked:
        if name.startswith(IMAGES):
            size, _, quality = name.removeprefix(IMAGES).partition("/")
            size, quality = _told(said, "size", size), _told(said, "quality", quality)
            meter.detail.used_tool(f"{IMAGES}{size}/{quality}", len(pictures))


def _read_event(meter: Meter, data: bytes) -> bool:
    event = loose_document(data)
    if event.get("type") == "error":
        meter.failed = True
    else:
        meter.content_events += 1
    _take(meter, event)
    if event.get("type") in _DONE:
        meter.phase = CLOSED
    return False


def _take(meter: Meter, said: dict[str, object]) -> None:
    usage = said.get("usage")
    if isinstance(usage, dict):
        report(meter, msgspec.json.encode(usage))


def _told(said: dict[str, object], name: str, asked: str) -> str:
    value = said.get(name)
    return value.lower() if isinstance(value, str) and _WORD.fullmatch(value) is not None else asked


DIALECT = Dialect(_read_whole, _read_event, lambda meter: b"")
OCR = Dialect(_read_ocr, lambda meter, data: False, lambda meter: b"")
