"""OpenAI's pictures, speech and transcripts, and Mistral's OCR: requests and answers.

Pictures are charged by n × size × quality, as the answer states them, else the request. Speech is charged by
the characters of its `input`. A transcript is charged by the tokens or seconds in its answer, else by the
seconds of its file. Tokens are those that the answer reports.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Final

import msgspec

from gateway.core.billing.vector import AUTO, IMAGES
from gateway.core.calls.call import (
    BYTES_PER_TOKEN,
    NO_MEDIA,
    Body,
    CallSpec,
    Media,
    Recording,
    RequestedUnits,
    UsageBounds,
)
from gateway.core.calls.forms import FormKind
from gateway.core.calls.recordings import (
    SOUND_BYTES_PER_SECOND_MIN,
    SOUND_TOKENS_PER_SECOND,
    Length,
    flac_claim,
    wav_head,
)
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    choices,
    elements,
    flag,
    model_name,
    stated_user,
)
from gateway.core.families.family import object_in
from gateway.core.families.openai.calls import model_of
from gateway.core.families.openai.responses import report
from gateway.core.families.openai.tool_usage import svg_part
from gateway.core.metering.endings import ENDINGS
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import integer, loose_document, loose_event
from gateway.errors import InvalidRequest, ObjectNotFound

_IMAGES = ControlledNames("model", "n", "size", "quality", "stream", "user", *OF_EVERY_FAMILY)
_SPEECH = ControlledNames("model", "stream_format", *OF_EVERY_FAMILY)
_OCR = ControlledNames("model", "pages", "document", *OF_EVERY_FAMILY)
_ANNOTATIONS: Final = ("bbox_annotation_format", "document_annotation_format")
# Pages of one document that Mistral reads at most.
OCR_PAGES_MAX: Final = 1_000
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9:.x-]{0,31}")
# Models with a default size and quality of a picture, whose answers report no tokens.
_PLAIN: Final = "dall-e-"
_PLAIN_USUAL: Final = ("1024x1024", "standard")
_REPORTING: Final = "gpt-image-"
_ENDING: Final = ENDINGS["media"]
# The tokens that each partial picture of a stream adds, and the most of these (OpenAI's guide to image generation).
PARTIAL_TOKENS: Final = 100
PARTIAL_MAX: Final = 3
# The most tokens of one edited picture, in high fidelity.
EDITED_TOKENS: Final = 6_800
EDIT_FORM: Final = FormKind(
    ControlledNames("mask", *_IMAGES.exact),
    frozenset({"image", "image[]", "mask"}),
    numbers=frozenset({"n"}),
    flags=frozenset({"stream"}),
)
_VIDEO = ControlledNames("model", "seconds", "size", "n", "user", "input_reference", *OF_EVERY_FAMILY)
VIDEO_FORM: Final = FormKind(_VIDEO, frozenset({"input_reference"}), numbers=frozenset({"n"}))
# OpenAI's documented default length of a video, and the most seconds that a call may ask for.
VIDEO_SECONDS, VIDEO_SECONDS_MAX = 4, 600
_HEARD = ControlledNames("model", "stream", "response_format", "file", "user", *OF_EVERY_FAMILY)
HEARD_FORM: Final = FormKind(
    _HEARD,
    frozenset({"file"}),
    flags=frozenset({"stream"}),
    refused=frozenset({"url", "file_url", "file_id"}),
    alone=True,
)
# Formats of a transcript with a report of usage, and those of a text alone.
_TELLING: Final = (None, "json", "verbose_json", "diarized_json")
_TEXTS: Final = ("text", "srt", "vtt")
# The longest recording that models of sound take, by the beginning of their names. Whisper's has 25 MB at most, and
# no documented length: a day (OpenAI's page on speech to text, its help on the Audio API, 2026-11-30).
RECORDING_SECONDS_MAX: Final = 1_500
_LIMITED: Final = "gpt-"
_DAY: Final = 86_400


# The tokens of one picture by the beginning of its model's name, size and quality, and the most of one.
#
# GPT Image 1, 1.5 and the chat's: the table of tokens of OpenAI's guide to image generation, 2025-12-17. 1 mini: the
# prices of a picture on its page (developers.openai.com, 2026-11), at 8 dollars a million. 2 and 2.5: the formula
# of the guide's calculator, which fits its table of prices (community.openai.com/t/1382699, 2026-06-05; the base
# values of 2.5 by five readers of that page, 2026-09). MAI: a token for 32 x 32 pixels (fal.ai's page of 2.7, which
# is billed by tokens, 2026-11); at most 2048 x 2048. Nobody documents 2.6, nor models of others: they count as
# GPT Image 1, whose table is the one that a vendor publishes in tokens.
_SIZES: Final = ("1024x1024", "1024x1536", "1536x1024")
_QUALITIES: Final = ("low", "medium", "high")
_PUBLISHED: Final = ((272, 1_056, 4_160), (408, 1_584, 6_240), (400, 1_568, 6_208))
_MINI: Final = ((625, 1_375, 4_500), (750, 1_875, 6_500), (750, 1_875, 6_500))
_BASES: Final = {
    "gpt-image-2.5": {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96},
    "gpt-image-2": {"low": 16, "medium": 48, "high": 96},
}
_MAI: Final = "mai-image-"
_MAI_TOKENS_MAX: Final = 4_096
_PIXELS: Final = re.compile(r"([1-9][0-9]{2,3})x([1-9][0-9]{2,3})")


def count_picture_tokens(model: str, size: str, quality: str) -> int:
    """Return the output tokens of one picture, as its vendor documents them.

    Where the size or the quality is unknown, or chosen by the model, the dearest documented picture counts.
    """
    name = model.lower().rpartition("/")[2]
    match = _PIXELS.fullmatch(size)
    sides = (int(match[1]), int(match[2])) if match is not None else None
    if name.startswith(_MAI):
        return min(-(-sides[0] * sides[1] // 1_024), _MAI_TOKENS_MAX) if sides else _MAI_TOKENS_MAX
    bases = next((bases for model, bases in _BASES.items() if f"{name}-".startswith(f"{model}-")), None)
    if bases is not None:
        most = max(bases.values())
        if sides is not None and quality in bases:
            return _calculate_tokens(bases[quality], *sides)
        return max(_calculate_tokens(most, 1_024, 1_024), _calculate_tokens(most, *sides) if sides else 0)
    table = _MINI if name.startswith("gpt-image-1-mini") else _PUBLISHED
    if size in _SIZES and quality in _QUALITIES:
        return table[_SIZES.index(size)][_QUALITIES.index(quality)]
    return max(map(max, table))


def _calculate_tokens(base: int, width: int, height: int) -> int:
    """Return the tokens of a picture by the calculator's formula: `base` are the steps of its longer side."""
    long, short = max(width, height), min(width, height)
    other = (2 * base * short + long) // (2 * long)
    return -(-base * other * (2_000_000 + width * height) // 4_000_000)


def read_images(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    _IMAGES.check(document)
    model = model_of(body, document, params)
    streamed = flag(document, "stream")
    user = stated_user(document.get("user"))
    pictures = choices(document, "n", bounds.choices_max)
    size, quality = _PLAIN_USUAL if model.lower().startswith(_PLAIN) else (AUTO, AUTO)
    size, quality = _read_word(document, "size", size), _read_word(document, "quality", quality)
    most = None
    if not model.lower().startswith(_PLAIN):
        partial = min(_read_count(document.get("partial_images")), PARTIAL_MAX)
        most = count_picture_tokens(model, size, quality) + PARTIAL_TOKENS * partial
    return CallSpec(
        model, streamed, most, pictures, user, RequestedUnits({f"{IMAGES}{size}/{quality}": pictures}),
        reports=model.lower().startswith(_REPORTING),
    )  # fmt: skip


def read_edits(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call that edits pictures. They are files of a form, or named in the JSON list `images`."""
    spec = read_images(body, document, params, bounds)
    if not body.files and not elements(document, "images"):
        raise InvalidRequest("image must be a file of the form.", param="image")
    prompt = document.get("prompt")
    tokens = -(-len(prompt.encode()) // BYTES_PER_TOKEN) if isinstance(prompt, str) else 0
    return spec._replace(prompt_tokens=tokens, media=Media(tokens=len(body.files) * EDITED_TOKENS))


def read_heard(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call that transcribes or translates a recording."""
    _HEARD.check(document)
    model = model_of(body, document, params)
    streamed = flag(document, "stream")
    user = stated_user(document.get("user"))
    written = document.get("response_format")
    if written not in _TELLING and written not in _TEXTS:
        right = ", ".join((*filter(None, _TELLING), *_TEXTS))
        raise InvalidRequest(f"response_format must be one of {right}.", param="response_format")
    if len(body.files) != 1:
        raise InvalidRequest("file must be a file of the form.", param="file")
    file, media = body.files[0], NO_MEDIA
    if file.at and body.content:
        recording = Recording(memoryview(body.content)[file.at : file.at + file.size])
        media = Media(recordings=(recording,))
    return hear(body, CallSpec(model, streamed, user=user, media=media), None)


def hear(body: Body, spec: CallSpec, length: Length | None) -> CallSpec:
    """Return what a call asks with the recording of its form; `length` is None if it is unknown.

    Then its likely seconds follow from its bytes, and the most are those that its model takes.
    """
    file, document = body.files[0], body.document or {}
    tells = document.get("response_format") in _TELLING
    per_second, starts, bits = wav_head(file.begins)
    is_long_wav = bits == 16  # which may be an MP3
    if length is None and per_second and not is_long_wav and file.size > starts:
        length = Length((file.size - starts) / per_second)  # of a file that is too long to be read
    is_known = length is not None and length.exact
    if length is not None and length.exact:
        seconds = most = max(1, math.ceil(length.seconds))
    else:
        by_size = -(-file.size // SOUND_BYTES_PER_SECOND_MIN)
        seconds = max(1, by_size, math.ceil(flac_claim(file.begins)[0]))
        limited = is_long_wav or spec.model.startswith(_LIMITED)
        most = max(seconds, RECORDING_SECONDS_MAX if limited else _DAY)
        # An answer that reports nothing is charged what is held: all that no bytes bound.
        seconds = seconds if tells or is_long_wav else most
    tokens, beyond = seconds * SOUND_TOKENS_PER_SECOND, (most - seconds) * SOUND_TOKENS_PER_SECOND
    media = replace(spec.media, tokens=tokens, heard=tokens, sound_beyond=beyond)
    units = RequestedUnits(
        {"audio_second": seconds} if is_known or tells else {"audio_file": 1},
        {"audio_second": most} if tells and most > seconds else None,
    )
    return spec._replace(media=media, units=units)


def read_speech(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for speech, charged by the characters of its input. The answer is streamed."""
    _SPEECH.check(document)
    model = model_of(body, document, params)
    said = document.get("input")
    if not isinstance(said, str) or not said:
        raise InvalidRequest("input must be a text.", param="input")
    # Events report tokens, and sound alone does not.
    output_max = None if document.get("stream_format") == "sse" else 0
    units = RequestedUnits({"character": len(said)})
    return CallSpec(model, streamed=True, output_max=output_max, units=units)


def read_video(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for a video, made later. A video made from another one has that one's model and length."""
    _VIDEO.check(document)
    stated, own = document.get("seconds"), params.get("seconds")
    if "id" in params and own is None:
        raise ObjectNotFound("Nobody here knows the length of that video any more.")
    model = model_of(body, document, params)
    user = stated_user(document.get("user"))
    if choices(document, "n", bounds.choices_max) != 1:
        raise InvalidRequest("n must be 1: a call makes one video.", param="n")
    if own is not None and stated is not None:
        raise InvalidRequest("seconds is not accepted: the length stays as it is.", param="seconds")
    stated = own if stated is None else stated
    seconds = VIDEO_SECONDS if stated is None else _read_count(stated)
    if not 0 < seconds <= VIDEO_SECONDS_MAX:
        right = f"a whole number from 1 to {VIDEO_SECONDS_MAX}"
        raise InvalidRequest(f"seconds must be {right}.", param="seconds")
    units = RequestedUnits({"video_second": seconds})
    return CallSpec(model, output_max=0, user=user, units=units, background=True)


def _read_count(stated: object) -> int:
    """Return a number of seconds or pictures, or its text, as an integer; 0 for anything else."""
    text = str(stated) if type(stated) in {int, str} else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _read_whole_video(meter: Meter, document: bytes) -> None:
    """Report the seconds of a finished video, as the upstream states them, else as requested."""
    answer = loose_document(document)
    meter.failed = answer.get("error") is not None
    meter.detail.answered_by(answer.get("model"))
    there = answer.get("status") == "completed" or integer(answer.get("completed_at")) is not None
    if not there or not 200 <= meter.status < 300:
        return
    seconds = _read_count(answer.get("seconds")) or (meter.call.spec.units.likely or {}).get(
        "video_second", 0
    )
    meter.detail.used_tool("video_second", seconds)
    meter.report_units()


def read_ocr(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call for OCR at Mistral. Pages are reserved for it: those named, else the most possible."""
    _OCR.check(document)
    model = model_name(document.get("model"))
    for name in _ANNOTATIONS:
        if document.get(name) is not None:
            raise InvalidRequest(f"{name} is not accepted: such pages have a price of their own.", param=name)
    pages, shown = document.get("pages"), document.get("document")
    most = 1 if isinstance(shown, dict) and shown.get("type") == "image_url" else OCR_PAGES_MAX
    units = RequestedUnits({"page": len(pages) if isinstance(pages, list) and pages else most})
    return CallSpec(model, output_max=0, units=units)


def _read_ocr(meter: Meter, document: bytes) -> None:
    answer = loose_document(document)
    meter.detail.answered_by(answer.get("model"))
    told = answer.get("usage_info")
    pages = integer(told.get("pages_processed")) if isinstance(told, dict) else None
    if pages is not None and 200 <= meter.status < 300:
        meter.detail.used_tool("page", pages)
        meter.report_units()


def _read_word(document: Document, name: str, usual: str) -> str:
    """Return the word in a field in lower case, or the `usual` one; raise `InvalidRequest`."""
    value = document.get(name)
    if value is None:
        return usual
    if not isinstance(value, str) or _WORD.fullmatch(value) is None:
        raise InvalidRequest(f"{name} must be a word such as {usual}.", param=name)
    return value.lower()


def _read_whole(meter: Meter, document: bytes) -> None:
    """Report usage, model and drawn images of a whole answer to `meter`."""
    answer = loose_document(document)
    meter.failed = answer.get("error") is not None
    meter.detail.answered_by(answer.get("model"))
    _take(meter, answer)
    pictures = answer.get("data")
    if isinstance(pictures, list) and 200 <= meter.status < 300:
        _see_pictures(meter, answer, len(pictures))


def _see_pictures(meter: Meter, answer: dict[str, object], number: int) -> None:
    """Note the number of pictures in an answer, by size and quality. The request has those that it does not state."""
    call = meter.call
    for name in call.spec.units.likely or ():
        if name.startswith(IMAGES):
            size, _, quality = name.removeprefix(IMAGES).partition("/")
            size, quality = _stated_value(answer, "size", size), _stated_value(answer, "quality", quality)
            meter.detail.used_tool(f"{IMAGES}{size}/{quality}", number)
            if call.output_max:  # what they cost without a report
                meter.answer_tokens = count_picture_tokens(call.spec.model, size, quality)


def _read_event(meter: Meter, data: bytes) -> bool:
    event = loose_event(meter, data)
    if event.get("type") == "error":
        meter.failed, meter.phase = True, CLOSED
    else:
        meter.content_events += 1
    _take(meter, event)
    if event.get("type") in _ENDING.events:
        meter.close()
        if not meter.reported:
            _see_pictures(meter, event, meter.call.spec.choices)
    return False


def _read_whole_heard(meter: Meter, document: bytes) -> None:
    answer = loose_document(document)
    meter.failed = answer.get("error") is not None
    meter.detail.answered_by(answer.get("model"))
    if 200 <= meter.status < 300:
        _take_heard(meter, answer)


def _read_event_heard(meter: Meter, data: bytes) -> bool:
    """Count what an event of a transcription reports: text, usage and the end."""
    event = loose_event(meter, data)
    kind, piece = event.get("type"), event.get("delta")
    if kind == "error" or event.get("error") is not None:
        meter.failed = True
    elif isinstance(piece, str):
        meter.saw(piece)
        meter.content_events += 1
    _take_heard(meter, event)
    if kind in _ENDING.events:
        meter.close()
    elif kind == "error":
        meter.phase = CLOSED
    return False


def _take_heard(meter: Meter, answer: dict[str, object]) -> None:
    """Report the usage of a transcript: the tokens in the answer, or the seconds of sound."""
    usage = dict(object_in(answer, "usage"))
    if usage.pop("type", None) == "tokens" or "input_tokens" in usage:
        if "input_token_details" in usage:  # as OpenAI spells it here alone
            usage["input_tokens_details"] = usage.pop("input_token_details")
        report(meter, msgspec.json.encode(usage))
        return
    told = usage.get("seconds", usage.get("prompt_audio_seconds", answer.get("duration")))
    seconds = integer(told)
    if seconds is not None and seconds >= 0:
        meter.detail.replaces_units = True
        meter.detail.used_tool("audio_second", seconds)
        meter.report_units()


def _take(meter: Meter, answer: dict[str, object]) -> None:
    usage, svg = answer.get("usage"), answer.get("svg_usage")
    if isinstance(usage, dict) and any(
        name.startswith(IMAGES) for name in meter.call.spec.units.likely or ()
    ):
        usage = _complete_output(usage)
    if isinstance(usage, dict):
        beside = [] if svg is None else svg_part(meter, msgspec.Raw(msgspec.json.encode(svg)))
        report(meter, msgspec.json.encode(usage), beside)


def _complete_output(usage: dict[str, object]) -> dict[str, object] | None:
    """Return the usage of pictures with its output, which a total may tell alone; None if nothing tells it.

    A picture has output: a report without any is none, as one of zeros is.
    """
    read, written, total = [
        integer(usage.get(name)) or 0 for name in ("input_tokens", "output_tokens", "total_tokens")
    ]
    if written <= 0 and total > read:
        usage, written = {**usage, "output_tokens": total - read}, total - read
    return usage if written > 0 else None


def _stated_value(answer: dict[str, object], name: str, asked: str) -> str:
    value = answer.get(name)
    return value.lower() if isinstance(value, str) and _WORD.fullmatch(value) is not None else asked


DIALECT = Dialect(_read_whole, _read_event, ending=_ENDING)
HEARD = Dialect(_read_whole_heard, _read_event_heard, ending=_ENDING)
VIDEO = Dialect(_read_whole_video)
OCR = Dialect(_read_ocr)
