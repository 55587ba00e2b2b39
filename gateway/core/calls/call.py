"""One metered call as the gateway understands it: what is asked for, and the document to send."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.core.calls.document import write_document
from gateway.core.families.controlled import Document
from gateway.core.families.prompt import PROMPT_BYTES_MAX, CountTokens, prompt_tokens
from gateway.core.model import Family
from gateway.core.names import NO_NAMES, Names

BYTES_PER_TOKEN = 3  # on the careful side: English is nearer 4, so a hold covers its input


# What a number has more of beyond a whole one counts; of less than a third of it nothing is left by rounding.
_INEXACT = 1e-6


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
    stated. `input_bytes` is text, of which `rare_bytes` are no ASCII; `blob_tokens` stands for images, sound
    and files, of whose bytes `unsure_bytes` may cost more than that. `models_beside` may answer instead of
    `model`; `user` is whom the body names as its user, and `named` are the stored objects that path and body
    name, `brought` ids of what its body has whole, and that its answer told already, `names` what the names
    in it end like. With `strip_usage` the answer must not be compressed: send `accept-encoding: identity`.
    The estimator sets `output_bytes_per_token` and `input_tokens_per_byte` to what it learned of the model,
    `tokens_of` to its tokenizer, where there is one, `input_ceiling` and `output_ceiling` to what the call
    and one choice of it could use at most, in tokens; `reports` says that a complete answer always tells its
    use. `narrow` makes of a whole list of models what of it the caller may see, in turns: it gives nothing
    before the last one. One that `gives_up` states a timeout of its own, by which its upstream may end it. A
    meter sets `text_bytes` to the text it saw produced.
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
    gives_up: bool = False
    named: tuple[str, ...] = ()
    brought: frozenset[str] = frozenset()
    names: Names = NO_NAMES
    narrow: Callable[[bytes], Iterator[bytes]] | None = None
    rare_bytes: int = 0
    unsure_bytes: int = 0

    @property
    def has_input(self) -> bool:
        """Whether it is paid by tokens at all: something of its body was read."""
        return self.input_bytes > 0 or self.blob_tokens > 0

    @property
    def input_estimate(self) -> int:
        """Input tokens by size: by the mean that was learned, on the careful side before that."""
        return _whole(self.input_bytes * self.input_tokens_per_byte) + self.blob_tokens

    @property
    def most(self) -> int:
        """The most tokens the call can use, if its upstream keeps to its maximum; 0: nobody estimated."""
        output = self.output_ceiling if self.output_max is None else self.output_max
        return self.input_ceiling + output * self.choices if self.input_ceiling else 0

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


def _whole(tokens: float) -> int:
    """The next whole number above, but for what is no more than an inexact product."""
    whole = int(tokens)
    beyond = tokens - whole
    if beyond > _INEXACT:
        return whole + 1
    return math.ceil(round(tokens, 6)) if beyond > _INEXACT / 3 else whole


def input_tokens(call: Call) -> int:
    """Input tokens by the model's own tokenizer where it is known, else by size."""
    counted = prompt_tokens(call.body, call.tokens_of) if call.tokens_of is not None else None
    return call.input_estimate if counted is None else counted + call.blob_tokens
