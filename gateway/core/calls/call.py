"""One metered call as the gateway understands it: what is asked for, and the document to send.

A body is read into a document, decided on, and sent written anew: what is decided here, such as
`stream_options.include_usage` or a maximum, is a field of it. Never knows sockets, limits or prices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gateway.core.blobs import BLOB_BYTES_MIN, without_blobs
from gateway.core.calls.document import check_names, read_document, write_document
from gateway.core.calls.route import Route
from gateway.core.families import controlled
from gateway.core.families.controlled import (
    Document,
    flag,
    inner,
    integer,
    model_in_path,
    model_name,
    models_beside,
    stated_user,
)
from gateway.core.families.prompt import PROMPT_BYTES_MAX, CountTokens, prompt_tokens
from gateway.core.model import Family
from gateway.errors import InvalidRequest

BYTES_PER_TOKEN = 3  # on the careful side: English is nearer 4, so a hold covers its input

T = TypeVar("T")


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

    `document` is what was read of a metered body and `body` how it is written, both until
    `take_body`. `output_max` is the stated maximum of one choice in tokens, None where none is
    stated. `input_bytes` is text, `blob_tokens` stands for images, sound and files. `models_beside`
    may answer instead of `model`; `user` is whom the body names as its user, and `named` are the stored
    objects that path and body name. With `strip_usage`
    the answer must not be compressed: send `accept-encoding: identity`. The estimator sets
    `output_bytes_per_token` and `input_tokens_per_byte` to what it learned of the model and
    `tokens_of` to its tokenizer, where there is one, `input_ceiling` and `output_ceiling` to what the
    call and one choice of it could use at most, in tokens; `reports` says that a complete answer always
    tells its use. A meter sets `text_bytes` to the text it saw
    produced.
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
    document: Document | None = None
    models_beside: tuple[str, ...] = ()
    user: str = ""
    changed: bool = False
    input_ceiling: int = 0
    output_ceiling: int = 0
    reports: bool = False
    keeps: bool = False
    named: tuple[str, ...] = ()

    @property
    def input_estimate(self) -> int:
        """Input tokens by size: by the mean that was learned, on the careful side before that."""
        return math.ceil(round(self.input_bytes * self.input_tokens_per_byte, 6)) + self.blob_tokens

    def limit_output(self, tokens: int) -> None:
        """Write a maximum of one choice, in tokens, into a call that states none and produces some."""
        name = _MAXIMUM.get(self.meter)
        if self.document is None or self.output_max is not None or name is None:
            return
        place = self.document
        if self.meter.startswith("gemini_"):
            place = _config_of(place)
        place[name] = self.output_max = tokens
        self.changed = True

    def take_body(self) -> bytes:
        """The body to send, written for the last time; the document is let go."""
        document, body = self.document, self.body
        self.document = None
        if document is not None:
            if self.changed:
                body = write_document(document)
            # A prompt may have to be counted at the end of the answer.
            self.body = body if self.tokens_of is not None and len(body) <= PROMPT_BYTES_MAX else b""
        return body


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
    document = read_document(body)
    call = Call(route.meter, route.family, b"", document=document)
    call.reports = route.usage == "always" or (not route.usage and route.meter in _ALWAYS_REPORTED)
    reader(call, document, path_params, bounds)
    call.models_beside = models_beside(document)
    added = _ask_for_usage(call, document) if call.streamed and call.meter in _REPORT_IF_ASKED else 0
    written = call.body = write_document(document)
    check_names(body, written, added)
    size = len(written)
    if size > BLOB_BYTES_MIN:
        size, call.blob_tokens = without_blobs(written)
    call.input_bytes = size
    return call


def _read_chat(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    _read_openai(call, document, controlled.CHAT, bounds)
    older = _maximum(document, "max_tokens", bounds)
    newer = _maximum(document, "max_completion_tokens", bounds)
    call.output_max = newer if older is None else older if newer is None else max(older, newer)
    call.choices = _choices(document, "n", bounds)


def _read_completions(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    _read_openai(call, document, controlled.COMPLETIONS, bounds)
    call.output_max = _maximum(document, "max_tokens", bounds)
    choices = max(_choices(document, "n", bounds), _choices(document, "best_of", bounds))
    call.choices = choices * _prompts(document.get("prompt"))


def _read_responses(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    _read_openai(call, document, controlled.RESPONSES, bounds)
    if flag(document, "background"):
        raise InvalidRequest("background: its use could not be metered.", param="background")
    call.output_max = _maximum(document, "max_output_tokens", bounds)


def _read_embeddings(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    _read_openai(call, document, controlled.EMBEDDINGS, bounds)
    call.output_max, call.streamed = 0, False


def _read_openai(call: Call, document: Document, names: controlled.Names, bounds: Bounds) -> None:
    """What every API of OpenAI's says alike."""
    names.check(document)
    call.model = model_name(document.get("model"))
    call.streamed = flag(document, "stream")
    call.user = stated_user(document.get("safety_identifier")) or stated_user(document.get("user"))


def _read_messages(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    controlled.MESSAGES.check(document)
    call.model = model_name(document.get("model"))
    call.streamed = flag(document, "stream")
    call.output_max = _maximum(document, "max_tokens", bounds)
    metadata = inner(document, "metadata", controlled.METADATA)
    if metadata is not None:
        call.user = stated_user(metadata.get("user_id"))


def _read_generate(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    controlled.GENERATE.check(document)
    call.model = model_in_path(document, path_params.get("model"))
    call.streamed = call.meter == "gemini_stream"
    camel = inner(document, "generationConfig", controlled.GENERATION_CONFIG)
    snake = inner(document, "generation_config", controlled.GENERATION_CONFIG)
    config = _one(camel, snake, "generationConfig")
    if config is not None:
        inside = "generationConfig."
        call.output_max = _one(
            _maximum(config, "maxOutputTokens", bounds, inside),
            _maximum(config, "max_output_tokens", bounds, inside),
            "generationConfig.maxOutputTokens",
        )
        call.choices = max(
            _choices(config, "candidateCount", bounds, inside),
            _choices(config, "candidate_count", bounds, inside),
        )
        _one(config.get("candidateCount"), config.get("candidate_count"), "generationConfig.candidateCount")


def _read_embed(call: Call, document: Document, path_params: Mapping[str, str], bounds: Bounds) -> None:
    controlled.EMBED.check(document)
    call.model = model_in_path(document, path_params.get("model"))
    call.output_max = 0


_READERS: dict[str, Callable[[Call, Document, Mapping[str, str], Bounds], None]] = {
    "openai_chat": _read_chat,
    "openai_completions": _read_completions,
    "openai_responses": _read_responses,
    "openai_embeddings": _read_embeddings,
    "anthropic_messages": _read_messages,
    "gemini_generate": _read_generate,
    "gemini_stream": _read_generate,
    "gemini_embed": _read_embed,
}
# APIs of one provider, who never leaves it out; many servers speak OpenAI's, and some cannot.
_ALWAYS_REPORTED = ("anthropic_messages", "gemini_generate", "gemini_stream")
_REPORT_IF_ASKED = ("openai_chat", "openai_completions")
_MAXIMUM: dict[str, str] = {
    "openai_chat": "max_completion_tokens",
    "openai_completions": "max_tokens",
    "openai_responses": "max_output_tokens",
    "anthropic_messages": "max_tokens",
    "gemini_generate": "maxOutputTokens",
    "gemini_stream": "maxOutputTokens",
}


def _config_of(document: Document) -> Document:
    """Gemini's configuration in the spelling the call has it, made where it has none."""
    for name in ("generation_config", "generationConfig"):
        config = document.get(name)
        if isinstance(config, dict):
            return config
    made: Document = {}
    document["generationConfig"] = made
    return made


def _maximum(document: Document, name: str, bounds: Bounds, path: str = "") -> int | None:
    stated = integer(document, name, path)
    if stated is not None and not 0 <= stated <= bounds.usage_tokens_max:
        raise InvalidRequest(
            f"{path}{name} must be between 0 and {bounds.usage_tokens_max}.", param=path + name
        )
    return stated


def _choices(document: Document, name: str, bounds: Bounds, path: str = "") -> int:
    stated = integer(document, name, path)
    if stated is not None and not 1 <= stated <= bounds.choices_max:
        raise InvalidRequest(f"{path}{name} must be between 1 and {bounds.choices_max}.", param=path + name)
    return 1 if stated is None else stated


def _one(camel: T | None, snake: T | None, param: str) -> T | None:
    """Both spellings of proto3 JSON are one field: refuse it given in both."""
    if camel is not None and snake is not None:
        raise InvalidRequest(f"The field {param} appears twice.", param=param)
    return snake if camel is None else camel


def _prompts(prompt: object) -> int:
    """How many prompts a completions body holds: each makes its own choices."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


def _ask_for_usage(call: Call, document: Document) -> int:
    """Set `stream_options.include_usage` unless the client did itself; how many members that adds."""
    options = inner(document, "stream_options", controlled.STREAM_OPTIONS)
    if options is None:
        added = 1 if "stream_options" in document else 2
        options = document["stream_options"] = {}
    elif flag(options, "include_usage", "stream_options."):
        return 0
    else:
        added = 0 if "include_usage" in options else 1
    options["include_usage"] = call.strip_usage = True
    return added
