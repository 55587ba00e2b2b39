"""One metered call as the gateway understands it: what is asked for, and the body to send.

The body is sent as it came, except that a stream whose client did not ask for its usage gets
`stream_options.include_usage` spliced in. Never knows sockets, limits or prices.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gateway.core.controlled import (
    CHAT,
    COMPLETIONS,
    EMBED,
    EMBEDDINGS,
    GENERATE,
    MESSAGES,
    RESPONSES,
)
from gateway.core.model import Family
from gateway.core.prompt import CountTokens, prompt_tokens
from gateway.core.route import Route
from gateway.core.strict_json import members
from gateway.errors import InvalidRequest

BYTES_PER_TOKEN = 3  # on the careful side: English is nearer 4, so a hold covers its input
BLOB_BYTES_MIN = 2048  # base64 shorter than this counts as text
BLOB_TOKENS = 1_600  # what one image costs at most, near enough, at every provider
BLOB_BYTES_PER_TOKEN = 1_024  # and what a long recording or document adds
MODEL_CHARACTERS_MAX = 256
COUNTED_BYTES_MAX = 1 << 20

T = TypeVar("T")

# Two scans with a literal beginning each are a tenth of the time of one with alternatives.
_RUN = rb"([A-Za-z0-9+/=_\\-]{%d,}+)" % BLOB_BYTES_MIN
_BLOBS = (re.compile(rb";base64," + _RUN), re.compile(rb'"data"[ \t\r\n]*+:[ \t\r\n]*+"' + _RUN))


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest numbers a request may state and a meter will believe or keep."""

    usage_tokens_max: int = 100_000_000
    choices_max: int = 128
    decoded_bytes_max: int = 64 << 20
    kept_bytes_max: int = 8 << 20
    event_bytes_max: int = 4 << 20


DEFAULT_BOUNDS = Bounds()


@dataclass(slots=True)
class Call:
    """What one request asks of its upstream.

    `output_max` is the stated maximum of one choice in tokens, None where none is stated.
    `input_bytes` is text, `blob_tokens` stands for images, sound and files. With
    `strip_usage` the answer must not be compressed: send `accept-encoding: identity`. The
    estimator sets `output_bytes_per_token` and `input_tokens_per_byte` to what it learned of the
    model and `tokens_of` to its tokenizer, where there is one; a meter sets `text_bytes` to the
    text it saw produced.
    """

    meter: str
    family: Family
    body: bytes
    model: str = ""
    streamed: bool = False
    output_max: int | None = None
    choices: int = 1
    input_bytes: int = 0
    blob_tokens: int = 0
    strip_usage: bool = False
    output_bytes_per_token: float = 4.0
    input_tokens_per_byte: float = 1 / BYTES_PER_TOKEN
    tokens_of: CountTokens | None = None
    units_pointer: str = ""
    text_bytes: int = 0

    @property
    def input_estimate(self) -> int:
        """Input tokens by size: by the mean that was learned, on the careful side before that."""
        return math.ceil(round(self.input_bytes * self.input_tokens_per_byte, 6)) + self.blob_tokens


def input_tokens(call: Call) -> int:
    """Input tokens by the model's own tokenizer where it is known, else by size."""
    counted = prompt_tokens(call.body, call.tokens_of) if call.tokens_of is not None else None
    return call.input_estimate if counted is None else counted + call.blob_tokens


def read_call(
    route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds = DEFAULT_BOUNDS
) -> Call:
    """Understand `body` as `route.meter` says; `InvalidRequest` names the field that is wrong.

    The meters `generic` and `none` read no body: theirs may be of any type and streamed.
    """
    reader = _READERS.get(route.meter)
    if reader is None:
        return Call(route.meter, route.family, body, units_pointer=route.units_pointer)
    call = reader(route, path_params, body, bounds)
    size = len(body)
    if size > BLOB_BYTES_MIN:
        size, call.blob_tokens = _without_blobs(body)
    call.input_bytes = size
    return call


def _read_chat(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    read = CHAT.read(body)
    model = _model(read.model)
    output_max = read.max_tokens
    if output_max is not None:
        _check_maximum(output_max, "max_tokens", bounds)
    other = read.max_completion_tokens
    if other is not None:
        _check_maximum(other, "max_completion_tokens", bounds)
        output_max = other if output_max is None else max(other, output_max)
    choices = 1 if read.n is None else _choices(read.n, "n", bounds)
    call = Call(route.meter, route.family, body, model, bool(read.stream), output_max, choices)
    if read.stream:
        _ask_for_usage(call, read.stream_options)
    return call


def _read_completions(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    read = COMPLETIONS.read(body)
    model = _model(read.model)
    if read.max_tokens is not None:
        _check_maximum(read.max_tokens, "max_tokens", bounds)
    choices = max(
        1 if read.n is None else _choices(read.n, "n", bounds),
        1 if read.best_of is None else _choices(read.best_of, "best_of", bounds),
    )
    if read.prompt is not msgspec.UNSET:
        choices *= _prompts(bytes(read.prompt))
    call = Call(route.meter, route.family, body, model, bool(read.stream), read.max_tokens, choices)
    if read.stream:
        _ask_for_usage(call, read.stream_options)
    return call


def _read_responses(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    read = RESPONSES.read(body)
    model = _model(read.model)
    if read.background:
        raise InvalidRequest("background: its use could not be metered.", param="background")
    if read.max_output_tokens is not None:
        _check_maximum(read.max_output_tokens, "max_output_tokens", bounds)
    return Call(route.meter, route.family, body, model, bool(read.stream), read.max_output_tokens)


def _read_embeddings(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    return Call(route.meter, route.family, body, _model(EMBEDDINGS.read(body).model), False, 0)


def _read_messages(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    read = MESSAGES.read(body)
    model = _model(read.model)
    if read.max_tokens is not None:
        _check_maximum(read.max_tokens, "max_tokens", bounds)
    return Call(route.meter, route.family, body, model, bool(read.stream), read.max_tokens)


def _read_generate(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    read = GENERATE.read(body)
    model = _model(path_params.get("model"))
    config = _one(read.camel_config, read.snake_config, "generationConfig")
    output_max, choices = None, 1
    if config is not None:
        inside = "generationConfig."
        output_max = _one(config.camel_output, config.snake_output, inside + "maxOutputTokens")
        if output_max is not None:
            _check_maximum(output_max, inside + "maxOutputTokens", bounds)
        count = _one(config.camel_count, config.snake_count, inside + "candidateCount")
        if count is not None:
            choices = _choices(count, inside + "candidateCount", bounds)
    streamed = route.meter == "gemini_stream"
    return Call(route.meter, route.family, body, model, streamed, output_max, choices)


def _read_embed(route: Route, path_params: Mapping[str, str], body: bytes, bounds: Bounds) -> Call:
    EMBED.read(body)
    return Call(route.meter, route.family, body, _model(path_params.get("model")), False, 0)


_READERS: dict[str, Callable[[Route, Mapping[str, str], bytes, Bounds], Call]] = {
    "openai_chat": _read_chat,
    "openai_completions": _read_completions,
    "openai_responses": _read_responses,
    "openai_embeddings": _read_embeddings,
    "anthropic_messages": _read_messages,
    "gemini_generate": _read_generate,
    "gemini_stream": _read_generate,
    "gemini_embed": _read_embed,
}


def _model(model: str | None) -> str:
    """Every API requires a model; without one no model list and no price could be checked."""
    if not model:
        raise InvalidRequest("The field model is missing.", param="model")
    if len(model) > MODEL_CHARACTERS_MAX or not model.isprintable():
        raise InvalidRequest("The field model is not the name of a model.", param="model")
    return model


def _check_maximum(stated: int, param: str, bounds: Bounds) -> None:
    if not 0 <= stated <= bounds.usage_tokens_max:
        raise InvalidRequest(f"{param} must be between 0 and {bounds.usage_tokens_max}.", param=param)


def _choices(stated: int, param: str, bounds: Bounds) -> int:
    if not 1 <= stated <= bounds.choices_max:
        raise InvalidRequest(f"{param} must be between 1 and {bounds.choices_max}.", param=param)
    return stated


def _one(camel: T | None, snake: T | None, param: str) -> T | None:
    """Both spellings of proto3 JSON are one field: refuse it given in both."""
    if camel is not None and snake is not None:
        raise InvalidRequest(f"The field {param} is there twice.", param=param)
    return snake if camel is None else camel


def _prompts(prompt: bytes) -> int:
    """How many prompts a completions body holds: each makes its own choices."""
    if prompt[:1] != b"[":
        return 1
    if len(prompt) > COUNTED_BYTES_MAX:
        return max(1, prompt.count(b'"') // 2, prompt.count(b"[") - 1)
    items = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    if not items or bytes(items[0])[:1] not in (b'"', b"["):
        return 1
    return len(items)


def _ask_for_usage(call: Call, options: msgspec.Raw | msgspec.UnsetType) -> None:
    """Splice `stream_options.include_usage` into the body unless the client asked for it itself."""
    body = call.body
    if options is msgspec.UNSET:
        at = body.index(b"{") + 1
        call.body = b"".join((body[:at], b'"stream_options":{"include_usage":true},', body[at:]))
    else:
        raw = bytes(options)
        stated = {} if raw == b"null" else _options(raw)
        if bytes(stated.get("include_usage", b"")) == b"true":
            return
        stated["include_usage"] = msgspec.Raw(b"true")
        at = next(at for name, at in members(body) if json.loads(name) == "stream_options")
        call.body = b"".join((body[:at], msgspec.json.encode(stated), body[at + len(raw) :]))
    call.strip_usage = True


def _options(raw: bytes) -> dict[str, msgspec.Raw]:
    try:
        stated = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise InvalidRequest("stream_options must be an object.", param="stream_options") from error
    if bytes(stated.get("include_usage", b"null")) not in (b"true", b"false", b"null"):
        raise InvalidRequest(
            "stream_options.include_usage must be true or false.", param="stream_options.include_usage"
        )
    return stated


def _without_blobs(body: bytes) -> tuple[int, int]:
    """Bytes of `body` that are text, and tokens for what is base64."""
    size, tokens = len(body), 0
    for pattern in _BLOBS:
        for match in pattern.finditer(body):
            length = match.end(1) - match.start(1)
            size -= length
            tokens += BLOB_TOKENS + length // BLOB_BYTES_PER_TOKEN
    return size, tokens
