"""OpenAI's Realtime API over a WebSocket: the client's events, the upstream's reports, and tokens of a turn.

Sources: the reference of client and server events, and the guide to costs of the Realtime API. Each response
reports its usage, and so does each transcript of the client's sound, for the model that wrote it. Either one
ends a turn, which is a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.core.billing.vector import CACHE_AUDIO
from gateway.core.calls.call import BLOB_TOKENS, MediaPart, MediaPlaces, media_in, names_in
from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.controlled import (
    ControlledNames,
    Document,
    model_name,
    models_beside,
    refuse_inside,
)
from gateway.core.families.family import LiveEvent, TextExcess, object_in, objects_in
from gateway.core.families.openai.responses import report
from gateway.core.families.tools import tools_of
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, decoded, integer, loose_document
from gateway.errors import InvalidRequest

# Events that a client may send.
_ASKED: Final = frozenset(
    f"conversation.item.{action}" for action in ("create", "delete", "retrieve", "truncate")
) | frozenset(f"input_audio_buffer.{action}" for action in ("append", "clear", "commit"))
_UPDATE, _CREATE, _CANCEL = "session.update", "response.create", "response.cancel"
_CLIENT: Final = _ASKED | {_UPDATE, _CREATE, _CANCEL, "output_audio_buffer.clear"}
_NAMES = ControlledNames("type", "event_id", "session", "response", "item", "audio")
_SESSION = ControlledNames("type", "model", "tools", "audio", "input_audio_transcription")
# Tools of a session: the client runs them, or a server that it names.
_TOOLS: Final = frozenset({"function", "mcp"})
# Files, stores and responses that another caller of the account may have made.
_OTHERS: Final = frozenset(
    {"fileid", "fileids", "vectorstoreid", "vectorstoreids", "containerid", "previousresponseid"}
)
# Values of a response's `conversation`. Any other value names a conversation that the upstream stores.
_CONVERSATIONS: Final = (None, "auto", "none")
_APPEND, _COMMIT, _ITEM = "input_audio_buffer.append", "input_audio_buffer.commit", "conversation.item.create"
# Messages that the upstream answers by an event of their own, or by an error.
_OPENING: Final = frozenset({_UPDATE, _CREATE, _COMMIT})
# The prefix of the gateway's name for a message, in front of the client's own name.
_OURS: Final = "tollkeeper-"
EVENT_ID_MAX: Final = 480
# Events of the upstream that answer messages and end requests. Those with a report of usage end a turn.
_HEARD: Final = "conversation.item.input_audio_transcription."
_DONE, _HEARD_DONE = "response.done", f"{_HEARD}completed"
_CREATED, _ERROR, _COMMITTED = "response.created", "error", "input_audio_buffer.committed"
_CLEARED, _UPDATED = "input_audio_buffer.cleared", "session.updated"
_CONFIGURED: Final = frozenset({"session.created", _UPDATED})
_HEARD_ENDS: Final = frozenset({_HEARD_DONE, f"{_HEARD}failed"})
_REPORTING: Final = frozenset({_DONE, _HEARD_DONE})
# Events that cost nothing: they may pass between turns, when there is no hold.
_BETWEEN: Final = (
    "session.",
    "conversation.",
    "input_audio_buffer.",
    "rate_limits.",
    "mcp_list_tools.",
    "error",
)
MODELS_MAX: Final = 8
# Messages of a client that wait for an answer of the upstream, such as `input_audio_buffer.committed`.
OPEN_MAX: Final = 64
# Fields with the most tokens of one response, of a session and of a response, and the value for no maximum. The
# API takes up to 4,096 (openai 3.51.0).
_MAXIMA: Final = ("max_output_tokens", "max_response_output_tokens")
_ENDLESS: Final = "inf"
OUTPUT_MAX: Final = 4_096
OUTPUT_TOKENS_MAX: Final = 1_000_000  # that a response may state at servers that take more
_PLACES: Final = {_UPDATE: "session", _CREATE: "response"}
_MEDIA = MediaPlaces("said", {"input_image": MediaPart(("image_url",))})
# A token of sound is 100 ms of the client's or 50 ms of the model's, in base64 of 16 bits at 24 kHz. Other
# formats of a client have 8 bits at 8 kHz.
_RATE: Final = 24_000
_SAID_CHARACTERS: Final = 6_400
_SHORT_CHARACTERS: Final = 1_066
_LONG_FORMATS: Final = frozenset({None, "audio/pcm", "pcm16"})
_MADE_CHARACTERS: Final = 3_200


class _LiveEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None
    item_id: Any = None


_event = msgspec.json.Decoder(_LiveEvent).decode


@dataclass(slots=True)
class _OpenRequest:
    """A message of the client that is not answered yet.

    `said`: tokens of the conversation before the message, and what its texts may have beyond them. `tokens`:
    tokens of committed sound that a model transcribes. `writers`: the models that an update of the session
    names for transcripts.
    """

    kind: str
    said: tuple[int, int]
    tokens: int = 0
    writers: tuple[str, ...] = ()


class _OpenRequests:
    """The messages of the client that are not answered yet, by name, and sums of them.

    `tokens`: those of committed sound. `writes`: the number of updates that turn transcripts on.
    """

    __slots__ = ("_by_kind", "tokens", "writes")

    def __init__(self) -> None:
        self._by_kind: dict[str, dict[str, _OpenRequest]] = {kind: {} for kind in _OPENING}
        self.tokens = self.writes = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_kind.values()))

    @property
    def creates(self) -> int:
        """The number of requests for a response."""
        return len(self._by_kind[_CREATE])

    def add(self, name: str, request: _OpenRequest) -> None:
        self._by_kind[request.kind][name] = request
        self.tokens += request.tokens
        self.writes += bool(request.writers)

    def end(self, name: str) -> _OpenRequest | None:
        """Remove and return the request of this name, or None."""
        for requests in self._by_kind.values():
            if name in requests:
                request = requests.pop(name)
                self.tokens -= request.tokens
                self.writes -= bool(request.writers)
                return request
        return None

    def end_first(self, kind: str) -> _OpenRequest | None:
        """Remove and return the first request of a kind, or None."""
        return self.end(next(iter(self._by_kind[kind]), ""))


class _Transcripts:
    """The transcripts under way, by item, with their models, and the sum of their `tokens` of sound."""

    __slots__ = ("_items", "tokens")

    def __init__(self) -> None:
        self._items: dict[str, tuple[int, str]] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def begin(self, item: str, tokens: int, model: str) -> None:
        self.end(item)
        self._items[item] = tokens, model
        self.tokens += tokens

    def end(self, item: str) -> str:
        """Remove a transcript, and return its model, empty if it is unknown."""
        tokens, model = self._items.pop(item, (0, ""))
        self.tokens -= tokens
        return model


@dataclass(slots=True)
class _LastMessage:
    """The counts that the last message added, to undo them; and models and maxima before that message."""

    name: str
    tokens: int
    sound: int
    models: tuple[str, ...]
    maxima: Mapping[str, int | None] = field(default_factory=dict)


class RealtimeSession:
    """One connection of the Realtime API.

    `tokens` is the size of the conversation: by bytes, corrected by the last response. Each open request has
    a name: a message, a response or an item.
    """

    refuses_by_event = True
    named_later = False

    def __init__(self, query: Mapping[str, str]) -> None:
        self.model = query.get("model") or query.get("deployment") or ""
        self.models: tuple[str, ...] = ()
        self.tools = 0  # it takes functions of its caller alone
        self.tokens = 0
        self.has_media = False
        self.output_max: int | None = None
        # The maximum of a response that the session has, and the largest of those asked for; None for none.
        self._maxima: dict[str, int | None] = dict.fromkeys(_PLACES)
        self._number = 0
        self._open_requests = _OpenRequests()
        self.texts = TextExcess()
        # The client's tokens before each response, and what its texts may have beyond them.
        self._responses: dict[str, tuple[int, int]] = {}
        self._transcripts = _Transcripts()
        self._configured = False  # whether the upstream has confirmed transcripts
        self._writer = ""  # the model that writes them, if it is one
        self._partial = False  # whether a response under way reads only a part of the conversation
        self._last = _LastMessage("", 0, 0, ())
        # All tokens of the client; of these uncommitted sound; and characters of sound below a token.
        self._said = self._sound = self._rest = 0
        self._sound_characters = _SAID_CHARACTERS

    @property
    def pending(self) -> bool:
        """Whether a response or a transcript is under way."""
        return bool(self._busy or self._open_requests.tokens or self._transcripts)

    @property
    def needs(self) -> int:
        """The input tokens of all responses under way, and the tokens of sound to transcribe."""
        sound = self._sound if self._transcribes else 0
        return self.tokens * self._answers + self._transcripts.tokens + self._open_requests.tokens + sound

    @property
    def beyond(self) -> int:
        """The input tokens that the texts of all responses under way may have beyond `needs`."""
        return self.texts.there * self._answers

    @property
    def _answers(self) -> int:
        return max(1, self._open_requests.creates + len(self._responses))

    @property
    def _transcribes(self) -> bool:
        return self._configured or self._open_requests.writes > 0

    @property
    def _busy(self) -> bool:
        return bool(self._responses) or self._open_requests.creates > 0

    @property
    def _before(self) -> tuple[int, int]:
        return self._said, self.texts.said

    def waits(self, message: Document) -> bool:
        """Return whether a message must wait: for the end of a response, or because too many are open."""
        kind = message.get("type")
        return (kind == _CREATE and self._busy) or (kind in _OPENING and len(self._open_requests) >= OPEN_MAX)

    def document(self) -> Document:
        """Return the body of the next turn's call, which may read and produce sound."""
        beside = {"beside": [{"model": one} for one in self.models]} if self.models else {}
        said = [{"type": "input_audio"}]
        most = max(filter(None, self._maxima.values()), default=None)
        return {
            "model": self.model, "input_tokens": self.needs, "input_beyond": self.beyond,
            "max_output_tokens": most, "audio": {}, "input": said, **beside,
        }  # fmt: skip

    def ask(self, message: Document, size: int) -> bool:
        """Check a message of the client, of `size` bytes, and count it; return whether `message` was changed.

        Raise `InvalidRequest` for unknown events and other models.
        """
        _NAMES.check(message)
        kind = message.get("type")
        if kind not in _CLIENT:
            right = ", ".join(sorted(_CLIENT))
            raise InvalidRequest(f"type must be one of these: {right}.", param="type")
        own_name = message.get("event_id")
        if isinstance(own_name, str) and (own_name.startswith(_OURS) or len(own_name) > EVENT_ID_MAX):
            raise InvalidRequest(
                f"event_id has {EVENT_ID_MAX} characters at most, and begins not with {_OURS}.",
                param="event_id",
            )
        written: tuple[str, ...] = ()
        if kind == _UPDATE:
            written = self._update(object_in(message, "session"))
        for place in ("session", "response", "item"):
            _check_inside(object_in(message, place), f"{place}.")
        for model in models_beside(message):
            if model != self.model and model not in written:
                raise InvalidRequest(
                    f"The model {model} cannot be asked for on this connection, which is for {self.model}:"
                    " open another.", param="model",
                )  # fmt: skip
        found = dict.fromkeys((*self.models, *written))
        if len(found) > MODELS_MAX:
            raise InvalidRequest(
                f"A connection may name {MODELS_MAX} models of transcripts.", param="session"
            )
        refuse_inside(message, _OTHERS, "")
        stated = self._stated_maximum(message, str(kind))
        self._take(message, str(kind), size, written)
        self._maxima |= stated
        self.models = tuple(found)
        if not self._last.name:
            return False
        message["event_id"] = f"{self._last.name}{own_name if isinstance(own_name, str) else ''}"
        return True

    def _take(self, message: Document, kind: str, size: int, writers: tuple[str, ...]) -> None:
        """Count the tokens of a message of type `kind`, and store its request under a unique name.

        `size` is its size in bytes. `writers` are the models that it names for transcripts.
        """
        tokens, sound, name = self.texts.begin(0), message.get("audio"), ""
        if kind == _APPEND and isinstance(sound, str):
            tokens, self._rest = divmod(self._rest + len(sound), self._sound_characters)
            self._sound += tokens
            self.has_media = True
        elif kind in {_ITEM, _CREATE}:
            items = [object_in(message, "item"), *objects_in(object_in(message, "response"), "input")]
            tokens = self._said_by(items, size)
        elif kind == _UPDATE:
            tokens = self.texts.begin(size)
        if kind in _OPENING:
            self._number += 1
            name = f"{_OURS}{self._number}:"
            owed = self._sound + 1 if kind == _COMMIT and self._transcribes else 0
            self._open_requests.add(name, _OpenRequest(kind, self._before, owed, writers))
        if kind == _CREATE:
            response = object_in(message, "response")
            self._partial = self._partial or "input" in response or response.get("conversation") == "none"
        committed = kind == _COMMIT
        sound_said = tokens if kind == _APPEND else 0
        self._last = _LastMessage(name, tokens, sound_said, self.models, dict(self._maxima))
        self._sound = 0 if committed else self._sound
        self._said += tokens
        self.tokens += tokens

    def _said_by(self, items: list[Document], size: int) -> int:
        """Return the tokens of items in a message of `size` bytes.

        Their sound counts by duration, pictures as in the body of a call, and the rest as text.
        """
        sounds = [part.get("audio") for item in items for part in objects_in(item, "content")]
        characters = sum(len(sound) for sound in sounds if isinstance(sound, str))
        document: Document = {"said": items}
        media = media_in(document, _MEDIA)
        tokens = media.tokens + (names_in(document).files - media.named) * BLOB_TOKENS
        self.has_media = self.has_media or tokens + characters > 0
        tokens += self.texts.begin(max(0, size - characters - media.size))
        return tokens + -(-characters // self._sound_characters)

    def take_back(self) -> None:
        """Undo the counts of the last message, which is not sent."""
        last, self._last = self._last, _LastMessage("", 0, 0, self.models)
        asked = self._open_requests.end(last.name)
        self._sound = max(0, self._sound - last.sound) + (0 if asked is None else asked.tokens)
        self.tokens, self._said = max(0, self.tokens - last.tokens), self._said - last.tokens
        self.texts.take_back()
        self.models = last.models
        self._maxima |= last.maxima

    def limited(self, message: bytes) -> list[bytes]:
        """Return the messages to send for one of the client: with a maximum of output, where none is stated.

        Before sound, to which the API may respond by itself, an update sets the maximum of the session.
        """
        if self.output_max is None:
            return [message]
        most, kind = min(self.output_max, OUTPUT_MAX), ""
        if any(b'"%b"' % asked.encode() in message for asked in _PLACES):
            document = msgspec.json.decode(message)
            kind = document["type"] if document["type"] in _PLACES else ""
            if kind:
                holder = document.setdefault(_PLACES[kind], {})
                if isinstance(holder, dict) and all(holder.get(name) in {None, _ENDLESS} for name in _MAXIMA):
                    holder.pop(_MAXIMA[1], None)
                    holder[_MAXIMA[0]] = most
                    message = msgspec.json.encode(document)
                    self._maxima[kind] = most
        if kind or self._maxima[_UPDATE] or b'"input_audio_buffer.' not in message:
            return [message]
        self._number += 1
        name, self._maxima[_UPDATE] = f"{_OURS}{self._number}:", most
        self._open_requests.add(name, _OpenRequest(_UPDATE, self._before))
        session = {"type": "realtime", _MAXIMA[0]: most}
        return [msgspec.json.encode({"type": _UPDATE, "event_id": name, "session": session}), message]

    def _stated_maximum(self, message: Document, kind: str) -> dict[str, int | None]:
        """Return the maximum of output that a message states, by its kind; empty if its kind states none.

        Raise `InvalidRequest` for another value than a number or `inf`, and above what the present turn holds.
        """
        maxima: dict[str, int | None] = {}
        place = _PLACES.get(kind, "")
        holder = object_in(message, place)
        for name in _MAXIMA:
            value = holder.get(name)
            if name in holder and (value is None or value == _ENDLESS):
                maxima.setdefault(kind, None)
            elif name in holder:
                most = self.output_max or OUTPUT_TOKENS_MAX
                if type(value) is not int or not 0 < value <= most:
                    raise InvalidRequest(
                        f'{place}.{name} must be "{_ENDLESS}" or a whole number up to {most}.',
                        param=f"{place}.{name}",
                    )
                maxima[kind] = max(value, maxima.get(kind) or 0)
        if kind == _CREATE and maxima.get(kind):
            maxima[kind] = max(maxima[kind] or 0, self._maxima[kind] or 0)
        return maxima

    def forget(self) -> None:
        """Note that all open requests are charged."""
        self._open_requests, self._transcripts = _OpenRequests(), _Transcripts()
        self._responses.clear()

    def hear(self, event: bytes) -> LiveEvent:
        """Process an event of the upstream."""
        try:
            read = decoded(_event, event)
        except UNREADABLE:
            return LiveEvent(event, is_free=False, ends=False)
        kind, model = read.type, ""
        if kind == _ERROR:
            event = self._hear_error(event)
        elif kind == _CREATED:
            asked = self._open_requests.end_first(_CREATE)
            name = object_in(loose_document(event), "response").get("id")
            self._responses[str(name)] = self._before if asked is None else asked.said
        elif kind == _COMMITTED:
            asked = self._open_requests.end_first(_COMMIT)
            if asked is None:
                tokens, self._sound = self._sound, 0
            else:
                tokens = asked.tokens
            if self._transcribes or tokens:
                self._transcripts.begin(str(read.item_id), tokens, self._writer)
        elif kind == _CLEARED:
            self._sound = 0
        elif kind in _HEARD_ENDS:
            model = self._transcripts.end(str(read.item_id)) or self._writer
        elif kind in _CONFIGURED:
            self._hear_session(kind, object_in(loose_document(event), "session"))
        elif kind == _DONE:
            self._hear_response(object_in(loose_document(event), "response"))
        is_free = kind.startswith(_BETWEEN) and not kind.startswith(_HEARD)
        return LiveEvent(event, is_free, kind in _REPORTING, model)

    def _hear_error(self, event: bytes) -> bytes:
        """Close the request that an error names, and return the error with the client's own event id."""
        document = loose_document(event)
        error = object_in(document, "error")
        name = error.get("event_id")
        if not isinstance(name, str) or not name.startswith(_OURS):
            return event
        ours, _, theirs = name.partition(":")
        self._open_requests.end(f"{ours}:")
        error["event_id"] = theirs or None
        return msgspec.json.encode(document)

    def _hear_session(self, kind: str, session: Document) -> None:
        """Note which model transcribes the session's sound, as an event of type `kind` about it says."""
        named = _transcribers(session)
        asked = self._open_requests.end_first(_UPDATE) if kind == _UPDATED else None
        writers = {model for model in named if model in self.models} or (asked.writers if asked else ())
        if writers:
            self._writer = next(iter(writers)) if len(writers) == 1 else ""
        self._configured = bool(named) or (self._configured and kind != _UPDATED)

    def _hear_response(self, response: Document) -> None:
        """Set the size of the conversation, in tokens, from the usage of a response that ended.

        Only a completed response that read the whole conversation may lower the number.
        """
        said = self._responses.pop(str(response.get("id")), None)
        total = integer(object_in(response, "usage").get("total_tokens"))
        if total:
            whole = said is not None and not self._partial and response.get("status") == "completed"
            if said is None or not whole:
                self.tokens = max(self.tokens, total)
            else:
                self.tokens = total + self._said - said[0]
                self.texts.report(said[1])
        self._partial = self._partial and self._busy
        self._maxima[_CREATE] = self._maxima[_CREATE] if self._busy else None

    def sent_as(self, message: bytes, model: str, target: UpstreamTarget) -> bytes:
        """Return a message unchanged: the query of the connection names the model."""
        return message

    def _update(self, session: Document) -> tuple[str, ...]:
        """Check the settings in an update of the session; return the models for transcripts that it names."""
        _SESSION.check(session, "session.")
        if session.get("type") not in {None, "realtime"}:
            raise InvalidRequest('session.type must be "realtime" on this connection.', param="session.type")
        heard = object_in(object_in(session, "audio"), "input")
        stated = object_in(heard, "format")
        formats, rate = (stated.get("type"), session.get("input_audio_format")), stated.get("rate", _RATE)
        is_long = all(isinstance(form, str | None) and form in _LONG_FORMATS for form in formats)
        characters = _SHORT_CHARACTERS
        if is_long and isinstance(rate, int) and 0 < rate <= _RATE:
            characters = max(1, _SAID_CHARACTERS * rate // _RATE)
        self._sound_characters = min(self._sound_characters, characters)
        for place in (heard.get("transcription"), session.get("input_audio_transcription")):
            if isinstance(place, dict) and place.get("model") is None:
                raise InvalidRequest("transcription must name its model.", param="transcription.model")
        return _transcribers(session)


def _transcribers(session: Document) -> tuple[str, ...]:
    """Return the models that a session names for transcribing the client's sound."""
    heard = object_in(object_in(session, "audio"), "input")
    places = object_in(heard, "transcription"), object_in(session, "input_audio_transcription")
    return tuple([model_name(place["model"]) for place in places if place.get("model") is not None])


def _check_inside(holder: Document, path: str) -> None:
    """Raise `InvalidRequest` for stored prompts, other conversations, and tools that cannot be charged."""
    if isinstance(holder.get("prompt"), dict):
        raise InvalidRequest(f"{path}prompt is not accepted here: send its text.", param=f"{path}prompt")
    if holder.get("conversation") not in _CONVERSATIONS:
        raise InvalidRequest(f'{path}conversation must be "auto" or "none".', param=f"{path}conversation")
    for tool in tools_of(holder):
        if tool.get("type", "function") not in _TOOLS:
            right = " or ".join(sorted(_TOOLS))
            raise InvalidRequest(f"The type of each of {path}tools must be {right}.", param=f"{path}tools")


def _read_event(meter: Meter, data: bytes) -> bool:
    """Count what an event of a live session reports: text, sound, and the usage of an ended response."""
    try:
        read = decoded(_event, data)
    except UNREADABLE:
        return False
    kind = read.type
    if kind in _REPORTING:
        event = loose_document(data)
        if kind == _DONE:
            response = object_in(event, "response")
            # A response that was cancelled in time has read nothing.
            status, cut = response.get("status"), meter.content_events == 0
            meter.failed = status == "failed" or (cut and status == "cancelled")
            _take(meter, object_in(response, "usage"))
        else:
            others = meter.call.models_beside
            if len(others) == 1:
                meter.detail.answered_by(others[0])
            _take(meter, object_in(event, "usage"))
        meter.phase = CLOSED
    elif kind.startswith("response.") and isinstance(read.delta, str):
        meter.content_events += 1
        if "audio.delta" in kind:
            meter.text_bytes += 4 * (len(read.delta) // _MADE_CHARACTERS)
        else:
            meter.saw(read.delta)
    return False


def _take(meter: Meter, usage: Document) -> None:
    """Report the usage of a response or a transcript, in tokens or in seconds of sound."""
    seconds = usage.get("seconds")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0:
        meter.detail.used_tool("audio_second", -int(-seconds // 1))
        meter.report_units()
        return
    read, made = dict(object_in(usage, "input_token_details")), object_in(usage, "output_token_details")
    cached = object_in(read, "cached_tokens_details")
    read.pop("cached_tokens_details", None)
    for name in ("audio_tokens", "image_tokens"):  # cached tokens have the price of the cache
        if cached.get(name):
            read[name] = max(0, (integer(read.get(name)) or 0) - (integer(cached.get(name)) or 0))
    meter.detail.used_tool(CACHE_AUDIO, integer(cached.get("audio_tokens")) or 0)
    told = {name: usage.get(name) for name in ("input_tokens", "output_tokens", "total_tokens")}
    report(
        meter,
        msgspec.json.encode({**told, "input_tokens_details": read, "output_tokens_details": made}),
    )


def _closing(meter: Meter) -> bytes:
    """Return the error event for a connection whose hold is used up."""
    error = {
        "type": "insufficient_quota", "code": "insufficient_quota", "param": None,
        "message": "What covered this connection is used up.",
    }  # fmt: skip
    return b"data: %b\n\n" % msgspec.json.encode({"type": "error", "error": error})


REALTIME = Dialect(lambda meter, document: None, _read_event, _closing)
