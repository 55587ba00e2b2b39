"""Gemini's Live API over a WebSocket: the client's messages, the upstream's reports, and the tokens of a
turn.

Source: the reference of the Live API, `BidiGenerateContent`. The first message names the model. A turn ends
when its usage is reported and the model has finished, was interrupted, or waits for its tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.core.calls.call import BLOB_TOKENS, Media, MediaPart, MediaPlaces, media_in
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.controlled import (
    Document,
    elements,
    maximum,
    model_name,
    models_beside,
    refuse_inside,
)
from gateway.core.families.costs import FREE, tool_costs
from gateway.core.families.family import LiveEvent, TextExcess, object_in, objects_in
from gateway.core.families.gemini.answers import Grounding, note_grounding, report
from gateway.core.families.gemini.calls import CHOOSING
from gateway.core.families.tools import kinds_of
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import integer, loose_document
from gateway.errors import InvalidRequest

# Kinds of messages, in both spellings of proto3 JSON.
_SETUP, _CONTENT, _INPUT, _TOOLS, _CONTEXT = (
    "setup", "clientContent", "realtimeInput", "toolResponse", "contextUpdate",
)  # fmt: skip
_KINDS: Final = {
    name: kind
    for kind in (_SETUP, _CONTENT, _INPUT, _TOOLS, _CONTEXT)
    for name in (kind, re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", kind))
}
# Messages that cost nothing: they may pass between turns, when there is no hold.
_FREE: Final = frozenset(
    {
        "setupComplete", "goAway", "sessionResumptionUpdate", "toolCallCancellation", "voiceActivity",
        "voiceActivityDetectionSignal",
    }
)  # fmt: skip
# Fields that end a turn of the client, and its live input. Absent, null and false are the same.
_COMPLETE: Final = ("turnComplete", "turn_complete")
_INPUT_ENDS: Final = ("activityEnd", "activity_end", "audioStreamEnd", "audio_stream_end")
_UNSET: Final[tuple[object, ...]] = (None, False)
# Fields that end an answer of the model.
_OVER: Final = ("turnComplete", "interrupted")
# Members of `groundingMetadata`, in the order of `Grounding`.
_GROUNDING: Final = ("webSearchQueries", "imageSearchQueries", "groundingChunks")
# Files, and sessions, that another caller of the account may have made.
_OTHERS: Final = frozenset({"handle", "filedata", "cachedcontent", "retrieval", *map(str.lower, CHOOSING)})
_MODEL = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/google/)?(?:models/)?([^/]+)")
_TYPES: Final = ("mimeType", "mime_type")
_INLINE = MediaPart(("data",), "application/pdf", _TYPES)
_FILE = MediaPart(("",), "application/pdf", _TYPES, named=(("fileUri",), ("file_uri",)))
# A second of sound is 32 tokens. A second of video is one frame: 258 tokens, 280 at most since Gemini 3, and its
# timestamp (Google's pages on tokens and on media resolution, 2026-11-30).
TOKENS_S: Final = 32
FRAME_TOKENS: Final = 300
# Parts of contents, within a body too. A page is 258 tokens (Google's page on documents, 2026-11-30).
PARTS: Final = MediaPlaces(
    "",
    by_name={"inlineData": _INLINE, "inline_data": _INLINE, "fileData": _FILE, "file_data": _FILE},
    inside=frozenset(
        {
            "contents", "content", "requests", "parts", "functionResponse", "function_response",
            "systemInstruction", "system_instruction", "turns", "functionResponses", "function_responses",
        }
    ),
    page=258, second=TOKENS_S, frame=FRAME_TOKENS,
    paces=frozenset({"videoMetadata", "video_metadata", "mediaProcessing", "media_processing"}),
    spans=frozenset({"startOffset", "endOffset", "start_offset", "end_offset"}),
)  # fmt: skip
# Where `realtimeInput` has media, and the types that these may have if they state none.
_STREAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "audio": ("audio/pcm",), "video": ("image/jpeg",),
    "mediaChunks": ("audio/pcm", "image/jpeg"), "media_chunks": ("audio/pcm", "image/jpeg"),
}  # fmt: skip
# Sound is base64 of 16 bits at the stated rate, and at the lowest usual one if none is stated, or none that a
# microphone has. The API takes no other sound (Google's page on the Live API, 2026-11-30).
_PCM: Final = frozenset({"audio/pcm", "audio/l16"})
_RATE_MIN, _RATE_MAX = 8_000, 48_000
# Of a model a token is 40 ms at 24 kHz.
_MADE_CHARACTERS: Final = 2_560
# The most answers under way that are held for: the API runs one, and an ask on its way interrupts it.
ANSWERS_MAX: Final = 8
# The most tokens of one answer, which the setup states for the session, in both spellings of proto3 JSON.
_CONFIGS: Final = ("generationConfig", "generation_config")
_MAXIMA: Final = ("maxOutputTokens", "max_output_tokens")
OUTPUT_TOKENS_MAX: Final = 1_000_000


class GeminiLiveSession:
    """One connection of the Live API. `tokens` is the size of its context: by bytes, corrected by reports.

    What its texts may have beyond that is in `texts`.

    There is one answer at a time, and another request interrupts it. Answers have no ids, so the session
    counts those under way, up to `ANSWERS_MAX`.
    """

    refuses_by_event = False
    named_later = True

    def __init__(self, query: Mapping[str, str]) -> None:
        self.model = ""
        self.models: tuple[str, ...] = ()
        self.tokens = 0
        self.has_media = False
        self.texts = TextExcess()
        self._beyond_before = 0  # tokens that texts before the present answer may have beyond the likely ones
        self.output_max: int | None = None
        self._output_max: int | None = None  # of an answer, as the setup says
        self.tools, self._tools = 0, list[Document]()
        self._answers_due = 0  # answers under way
        self._client_tokens = self._said_before = (
            0  # tokens of the client in all, and before the present answer
        )
        self._unasked = False  # whether there is live input that no message has asked about
        self._last = 0, 0, 0, False  # tokens, answers and tools of the last message; `_unasked` before it
        self._begun = self._reported = self._over = False

    @property
    def pending(self) -> bool:
        """Whether the client asked for an answer that the model has not finished."""
        return self._answers_due > 0

    @property
    def needs(self) -> int:
        """The input tokens of all answers under way. Each of them reads the whole context."""
        return self.tokens * max(1, self._answers_due)

    @property
    def beyond(self) -> int:
        """The input tokens that the texts of all answers under way may have beyond `needs`."""
        return self.texts.there * max(1, self._answers_due)

    def waits(self, message: Document) -> bool:
        """Return False: messages are forwarded at once."""
        return False

    def document(self) -> Document:
        """Return the body of the next turn's call, which may read and produce sound."""
        sound = {"responseModalities": ["AUDIO"]}
        return {
            "model": self.model, "input_tokens": self.needs, "input_beyond": self.beyond,
            "max_output_tokens": self._output_max, "generationConfig": sound, "tools": self._tools,
            "contents": [{"parts": [{"inlineData": {}}]}],
        }  # fmt: skip

    def ask(self, message: Document, size: int) -> bool:
        """Check a client's message of `size` bytes, and count its tokens.

        Return False, which means that the message is unchanged. Raise `InvalidRequest` for an unknown
        message, and unless the first message is the only setup.
        """
        name = next(iter(message), "")
        kind, said = _KINDS.get(name, ""), object_in(message, name)
        if len(message) != 1 or not kind or name not in message or not isinstance(message[name], dict):
            raise InvalidRequest(f"A message must be one of {', '.join(sorted(_KINDS))}.", param=name or None)
        if (kind == _SETUP) is bool(self.model):
            raise InvalidRequest("The setup is the first message, and there is one.", param=_SETUP)
        refuse_inside(said, _OTHERS, f"{name}.")
        tools = elements(object_in(said, "tools") if kind == _CONTEXT else said, "tools", f"{name}.")
        stated = _MODEL.fullmatch(str(said.get("model", ""))) if kind == _SETUP else None
        others = models_beside({**said, "tools": tools} if kind != _TOOLS else {})
        if others:
            raise InvalidRequest(f"{name} names the model {others[0]} beside its own.", param=name)
        if kind == _SETUP:
            if stated is None:
                raise InvalidRequest("setup.model must be a model, such as models/gemini-live-2.5-flash.")
            self.model = model_name(stated[1])
            self._output_max = _stated_maximum(said)
        self._tools += tools
        self.tools += _billed(tools)
        # Input that comes before the answer begins belongs to the same answer.
        joins = kind == _INPUT and self._answers_due > 0 and not self._begun
        before, streams = self._unasked, kind == _INPUT and any(name in said for name in _STREAMS)
        self._unasked, self.has_media = before or streams, self.has_media or streams
        asks = _asks(kind, said, self._unasked)
        asked = int(asks and not joins and self._answers_due < ANSWERS_MAX)
        self._answers_due += asked
        self._unasked = self._unasked and not asks
        if kind == _INPUT:
            tokens, characters = _streamed_use(said)
            tokens += self.texts.begin(size - characters) if "text" in said else 1 + self.texts.begin(0)
        else:
            media = media_in(said, PARTS)
            seen = _tokens_of_media(media, name)
            tokens = self.texts.begin(size - media.size) + seen
            self.has_media = self.has_media or seen > 0
        self._last = tokens, asked, len(tools), before
        self.tokens += tokens
        self._client_tokens += tokens
        return False

    def take_back(self) -> None:
        """Undo the counts of the last message, which is not sent."""
        (tokens, asked, tools, self._unasked), self._last = self._last, (0, 0, 0, self._unasked)
        self.tokens, self._client_tokens = max(0, self.tokens - tokens), self._client_tokens - tokens
        self.texts.take_back()
        self._answers_due = max(0, self._answers_due - asked)
        kept = len(self._tools) - tools
        self.tools -= _billed(self._tools[kept:])
        del self._tools[kept:]

    def forget(self) -> None:
        """Note that all answers that the client asked for are charged, and none is awaited."""
        self._answers_due = 0

    def hear(self, event: bytes) -> LiveEvent:
        """Process a message of the upstream."""
        said = loose_document(event)
        content, usage = object_in(said, "serverContent"), object_in(said, "usageMetadata")
        if content.get("modelTurn") is not None and not self._begun:
            self._begun, self._said_before, self._beyond_before = True, self._client_tokens, self.texts.said
            self._answers_due = self._answers_due or 1  # it may speak by itself
        if usage:
            self._reported = True
            told = integer(usage.get("promptTokenCount")), integer(usage.get("responseTokenCount"))
            read = sum(one for one in told if one)
            if read:
                since = self._client_tokens - self._said_before
                self.tokens = read + since if self._begun else max(self.tokens, read)
                if self._begun:
                    self.texts.report(self._beyond_before)
        self._over = self._over or _is_over(said, content)
        ends = self._reported and self._over
        if ends:
            self._answers_due = max(0, self._answers_due - 1)
            self._begun = self._reported = self._over = False
        return LiveEvent(event, bool(said) and said.keys() <= _FREE, ends)

    def limited(self, message: bytes) -> list[bytes]:
        """Return the message to send: a setup that states no maximum of output with that of its hold."""
        if self.output_max is None or self._output_max is not None or b'"setup"' not in message:
            return [message]
        document = msgspec.json.decode(message)
        if _SETUP not in document:
            return [message]
        self._output_max = self.output_max
        named = next((name for name in _CONFIGS if name in document[_SETUP]), _CONFIGS[0])
        config = document[_SETUP][named] = object_in(document[_SETUP], named)
        config.pop(_MAXIMA[1], None)
        config[_MAXIMA[0]] = self.output_max
        return [msgspec.json.encode(document)]

    def sent_as(self, message: bytes, model: str, target: UpstreamTarget) -> bytes:
        """Return the setup message with the model's name at its upstream."""
        document = msgspec.json.decode(message)
        name = f"models/{model or self.model}"
        if target.project:
            name = f"projects/{target.project}/locations/{target.region}/publishers/google/{name}"
        document[_SETUP]["model"] = name
        return msgspec.json.encode(document)


def _billed(tools: Sequence[Document]) -> int:
    """Return how many of these tools a provider may bill."""
    costs = tool_costs("gemini")
    return sum([any(cost not in FREE for _, cost in kinds_of(tool, costs)) for tool in tools])


def _stated_maximum(setup: Document) -> int | None:
    """Return the maximum of output tokens that a setup states; raise `InvalidRequest` if it states several."""
    places = [object_in(setup, name) for name in _CONFIGS if setup.get(name)]
    stated = [place for place in places for name in _MAXIMA if place.get(name) is not None]
    if len(places) > 1 or len(stated) > 1:
        raise InvalidRequest(
            "setup.generationConfig, or its maxOutputTokens, is stated in two spellings: state it once.",
            param="setup.generationConfig",
        )
    if not stated:
        return None
    name = next(name for name in _MAXIMA if stated[0].get(name) is not None)
    return maximum(stated[0], name, OUTPUT_TOKENS_MAX, "setup.generationConfig.")


def _streamed_use(message: Document) -> tuple[int, int]:
    """Return the tokens of the media in a `realtimeInput`, and their characters."""
    tokens = characters = 0
    for name, usual in _STREAMS.items():
        for blob in (object_in(message, name), *objects_in(message, name)):
            if isinstance(data := blob.get("data"), str):
                stated = [kind for field in _TYPES if isinstance(kind := blob.get(field), str)]
                tokens += max([_tokens_of(kind, data) for kind in stated or usual])
                characters += len(data)
    return tokens, characters


def _tokens_of(kind: str, data: str) -> int:
    """Return the tokens of a medium of this type: of sound by its duration, else as in the body of a call."""
    tokens = _tokens_of_sound(kind, data)
    if tokens is not None:
        return tokens
    part = {"inlineData": {"data": data, "mimeType": kind.lower().partition(";")[0].strip()}}
    return max(BLOB_TOKENS, _tokens_of_media(media_in(part, PARTS), _INPUT))


def _tokens_of_sound(kind: str, data: str) -> int | None:
    """Return the tokens of sound that is not compressed; None of another medium."""
    name, *parameters = kind.lower().replace(" ", "").split(";")
    if name not in _PCM:
        return None
    rates = [parameter[5:] for parameter in parameters if parameter.startswith("rate=")]
    bytes_s = 2 * min([_rate(rate) for rate in rates], default=_RATE_MIN)
    return -(-len(data) * 3 * TOKENS_S // (4 * bytes_s))


def _tokens_of_media(media: Media, name: str) -> int:
    """Return the tokens of media in the message `name`; raise `InvalidRequest` if those of one are unknown."""
    heard = [_tokens_of_sound(recording.kind, str(recording.data)) for recording in media.recordings]
    known = [tokens for tokens in heard if tokens is not None]
    if media.documents or media.endless or len(known) < len(heard):
        raise InvalidRequest(
            f"{name} has a document, a video or compressed sound: a live session takes text, pictures and"
            " sound as audio/pcm or audio/l16.", param=name,
        )  # fmt: skip
    return media.tokens + sum(known)


def _rate(stated: str) -> int:
    rate = int(stated) if stated.isascii() and stated.isdecimal() and len(stated) < 6 else 0
    return rate if 0 < rate <= _RATE_MAX else _RATE_MIN


def _asks(kind: str, said: Document, unasked: bool) -> bool:
    """Return whether a message asks the model for an answer.

    The end of live input does so only if the session has input that no answer was asked for (`unasked`).
    Content that is not marked as complete awaits more.
    """
    if kind == _CONTENT:
        return any(said.get(name, False) not in _UNSET for name in _COMPLETE)
    ends = unasked and any(said.get(name, False) not in _UNSET for name in _INPUT_ENDS)
    return kind == _TOOLS or (kind == _INPUT and (ends or "text" in said))


def _is_over(said: Document, content: Document) -> bool:
    return "toolCall" in said or any(content.get(name) is True for name in _OVER)


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what a message of a live session reports: content, searches and usage."""
    said = loose_document(data)
    content = object_in(said, "serverContent")
    for part in objects_in(object_in(content, "modelTurn"), "parts"):
        text, sound = part.get("text"), object_in(part, "inlineData").get("data")
        meter.content_events += 1
        if isinstance(text, str):
            meter.saw(text)
        elif isinstance(sound, str):
            meter.text_bytes += 4 * (len(sound) // _MADE_CHARACTERS)
    grounding = object_in(content, "groundingMetadata")
    lists = [value if isinstance(value := grounding.get(name), list) else None for name in _GROUNDING]
    note_grounding(meter.detail, Grounding(*lists))
    usage = dict(object_in(said, "usageMetadata"))
    if usage:
        for name in ("TokenCount", "TokensDetails"):
            if f"response{name}" in usage:
                usage[f"candidates{name}"] = usage.pop(f"response{name}")
        report(meter, msgspec.json.encode(usage), True)
    if _is_over(said, content):
        meter.position = 0
    if meter.reported and meter.position == 0:
        meter.phase = CLOSED
    return False


LIVE = Dialect(lambda meter, document: None, _read_event)
