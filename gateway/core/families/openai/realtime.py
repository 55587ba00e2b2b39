"""OpenAI's Realtime API by a WebSocket: what a client asks for, what events report, and what a turn may use.

Sources: the reference of client and server events, and the guide to costs of the Realtime API. Each response
reports its use, and so does each transcript of the sound that is heard, by the model that wrote it down. So
either ends a turn, which is a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gateway.core.calls.routes import UpstreamTarget
from gateway.core.families.controlled import (
    ControlledNames,
    Document,
    elements,
    model_name,
    models_beside,
    refuse_inside,
)
from gateway.core.families.family import object_in
from gateway.core.families.openai.responses import report
from gateway.core.metering.meter import CLOSED, Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, decoded, integer, loose_document
from gateway.errors import InvalidRequest

# Events that a client may send.
_ASKED: Final = frozenset(
    f"conversation.item.{action}" for action in ("create", "delete", "retrieve", "truncate")
) | frozenset(f"input_audio_buffer.{action}" for action in ("append", "clear", "commit"))
_UPDATE, _CREATE, _CANCEL = "session.update", "response.create", "response.cancel"
_CLIENT: Final = _ASKED | {_UPDATE, _CREATE, _CANCEL, "output_audio_buffer.clear"}
_NAMES = ControlledNames("type", "session", "response", "item", "audio")
_SESSION = ControlledNames("type", "model", "tools", "audio", "input_audio_transcription")
# Tools of a session: the client runs them, or a server that it names.
_TOOLS: Final = frozenset({"function", "mcp"})
# Files, stores and responses that another caller of the account may have made.
_OTHERS: Final = frozenset(
    {"fileid", "fileids", "vectorstoreid", "vectorstoreids", "containerid", "previousresponseid"}
)
# What a response may say of the conversation: another one is kept by the upstream.
_CONVERSATIONS: Final = (None, "auto", "none")
# What events of the upstream open and close of `pending`; those that report a use end a turn.
_HEARD: Final = "conversation.item.input_audio_transcription."
_DONE, _HEARD_DONE = "response.done", f"{_HEARD}completed"
_OPEN: Final = {"response.created": "response", "input_audio_buffer.committed": "transcript"}
_CLOSE: Final = {
    _DONE: "response", _HEARD_DONE: "transcript", f"{_HEARD}failed": "transcript",
    "response.created": "asked", "error": "asked",
}  # fmt: skip
_REPORTING: Final = frozenset({_DONE, _HEARD_DONE})
# Events that cost nothing: they may pass while no turn is held for.
_BETWEEN: Final = (
    "session.",
    "conversation.",
    "input_audio_buffer.",
    "rate_limits.",
    "mcp_list_tools.",
    "error",
)
MODELS_MAX: Final = 8
# A token of sound is 100 ms that are said, 50 ms that are made, as base64 of 16 bits at 24 kHz.
_SAID_CHARACTERS: Final = 6_400
_MADE_CHARACTERS: Final = 3_200
_BYTES_PER_TOKEN: Final = 3


class _LiveEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None


_event = msgspec.json.Decoder(_LiveEvent).decode


class RealtimeSession:
    """One connection; `tokens` are those of its conversation, as far as the last response told them."""

    refuses_by_event = True
    named_later = False

    def __init__(self, query: Mapping[str, str]) -> None:
        self.model = query.get("model") or query.get("deployment") or ""
        self.models: tuple[str, ...] = ()
        self.tokens = 0
        self._transcribes = False
        # How many of each are on their way: the upstream may make several responses at once.
        self._open: Counter[str] = Counter()

    @property
    def pending(self) -> bool:
        """Whether a response or a transcript is on its way."""
        return bool(self._open)

    @property
    def busy(self) -> bool:
        """Whether a response is on its way."""
        return self._open["asked"] > 0 or self._open["response"] > 0

    def waits(self, message: Document) -> bool:
        """Those that ask for a response wait for the one before, which alone is held for."""
        return message.get("type") == _CREATE and self.busy

    def document(self) -> Document:
        """The body of the call that the next turn is: it may hear, and answer by sound."""
        beside = {"beside": [{"model": one} for one in self.models]} if self.models else {}
        return {"model": self.model, "input_tokens": self.tokens, "audio": {}, **beside}

    def ask(self, message: Document, size: int) -> None:
        """Take a message: one of the events there are, for the model of the connection alone."""
        _NAMES.check(message)
        kind = message.get("type")
        if kind not in _CLIENT:
            right = ", ".join(sorted(_CLIENT))
            raise InvalidRequest(f"type must be one of these: {right}.", param="type")
        written: tuple[str, ...] = ()
        if kind == _UPDATE:
            written = self._update(object_in(message, "session"))
        for place in ("session", "response"):
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
        self.models = tuple(found)
        if kind == _CREATE:
            self._open["asked"] += 1
        sound = message.get("audio")
        self.tokens += (
            len(sound) // _SAID_CHARACTERS + 1 if isinstance(sound, str) else size // _BYTES_PER_TOKEN
        )

    def hear(self, event: bytes) -> tuple[bool, bool]:
        """Take an event of the upstream's."""
        try:
            kind = decoded(_event, event).type
        except UNREADABLE:
            return False, False
        opens = _OPEN.get(kind)
        if opens is not None and (opens != "transcript" or self._transcribes):
            self._open[opens] += 1
        closes = _CLOSE.get(kind, "")
        left = self._open.pop(closes, 0) - 1
        if left > 0:
            self._open[closes] = left
        if kind in {"session.created", "session.updated"}:
            named = _transcribers(object_in(loose_document(event), "session"))
            self._transcribes = bool(named)
        if kind == _DONE:
            usage = object_in(object_in(loose_document(event), "response"), "usage")
            self.tokens = integer(usage.get("total_tokens")) or self.tokens
        ends = kind in _REPORTING
        return kind.startswith(_BETWEEN) and not kind.startswith(_HEARD), ends

    def sent_as(self, message: bytes, model: str, target: UpstreamTarget) -> bytes:
        """The query names the model: no message does."""
        return message

    def _update(self, session: Document) -> tuple[str, ...]:
        """The models of transcripts that an update of the session names."""
        _SESSION.check(session, "session.")
        if session.get("type") not in {None, "realtime"}:
            raise InvalidRequest('session.type must be "realtime" on this connection.', param="session.type")
        heard = object_in(object_in(session, "audio"), "input")
        for place in (heard.get("transcription"), session.get("input_audio_transcription")):
            if isinstance(place, dict) and place.get("model") is None:
                raise InvalidRequest("transcription must name its model.", param="transcription.model")
        return _transcribers(session)


def _transcribers(session: Document) -> tuple[str, ...]:
    """The models that write down what is said, where a session names them."""
    heard = object_in(object_in(session, "audio"), "input")
    places = object_in(heard, "transcription"), object_in(session, "input_audio_transcription")
    return tuple([model_name(place["model"]) for place in places if place.get("model") is not None])


def _check_inside(holder: Document, path: str) -> None:
    """Refuse what another caller of the account may have made, and tools that nobody here counts."""
    if isinstance(holder.get("prompt"), dict):
        raise InvalidRequest(f"{path}prompt is not accepted here: send its text.", param=f"{path}prompt")
    if holder.get("conversation") not in _CONVERSATIONS:
        raise InvalidRequest(f'{path}conversation must be "auto" or "none".', param=f"{path}conversation")
    for tool in elements(holder, "tools", path):
        if tool.get("type", "function") not in _TOOLS:
            right = " or ".join(sorted(_TOOLS))
            raise InvalidRequest(f"The type of each of {path}tools must be {right}.", param=f"{path}tools")


def _read_event(meter: Meter, data: bytes) -> bool:
    try:
        read = decoded(_event, data)
    except UNREADABLE:
        return False
    kind = read.type
    if kind in _REPORTING:
        event = loose_document(data)
        if kind == _DONE:
            response = object_in(event, "response")
            # One that is cancelled in time has read nothing.
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
    """Take the use of a response, or of a transcript: tokens, or seconds of sound."""
    seconds = usage.get("seconds")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0:
        meter.detail.used_tool("audio_second", -int(-seconds // 1))
        meter.report_units()
        return
    read, made = dict(object_in(usage, "input_token_details")), object_in(usage, "output_token_details")
    cached = object_in(read, "cached_tokens_details")
    read.pop("cached_tokens_details", None)
    for name in ("audio_tokens", "image_tokens"):  # those of the cache have the cache's price
        if cached.get(name):
            read[name] = max(0, (integer(read.get(name)) or 0) - (integer(cached.get(name)) or 0))
    told = {name: usage.get(name) for name in ("input_tokens", "output_tokens", "total_tokens")}
    report(
        meter,
        msgspec.json.encode({**told, "input_tokens_details": read, "output_tokens_details": made}),
    )


def _closing(meter: Meter) -> bytes:
    """Say that what covers the turn is used up."""
    error = {
        "type": "insufficient_quota", "code": "insufficient_quota", "param": None,
        "message": "What covered this connection is used up.",
    }  # fmt: skip
    return b"data: %b\n\n" % msgspec.json.encode({"type": "error", "error": error})


REALTIME = Dialect(lambda meter, document: None, _read_event, _closing)
