"""The definition of an API family: everything in which one provider's API differs from another's.

A family is one object, defined in its own file or folder and listed in `registry.py`. Nothing else imports
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from gateway.core.accounts.upstream_states import OPERATIONS
from gateway.core.calls.call import (
    BYTES_PER_TOKEN,
    Body,
    CallRequest,
    CallSpec,
    FieldNames,
    Media,
    MediaPlaces,
    NameCheck,
    UsageBounds,
)
from gateway.core.calls.forms import FormKind
from gateway.core.calls.recordings import Length
from gateway.core.calls.routes import Route, UpstreamTarget
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    ListReaders,
    PathParams,
    is_untyped_function,
    maximum,
    model_name,
)
from gateway.core.families.credit import OF_ALL, CreditSign
from gateway.core.families.hearing import may_hear
from gateway.core.families.model_differences import Difference
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, decoded
from gateway.core.model import BudgetWindow, Family
from gateway.errors import InvalidRequest, Refusal, UpstreamUnreachable

# Which of the higher prices apply to a call, by fields that its provider documents. Pure.
#
# The maximum cost of a call starts at the highest price, and only a rule here lowers it. Its likely cost
# starts at the plain price, and only a field that asks for more raises it. A family has one such
# table.

Rule = Callable[[Document, FieldNames], bool]


def never(document: Document, names: FieldNames) -> bool:
    """Return False: no call of this API is safe from the higher price, whatever its fields."""
    return False


def always(document: Document, names: FieldNames) -> bool:
    """Return True: the higher price never applies to a call of this API."""
    return True


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Rules of one API. Each returns True if a call cannot incur a higher price, as for cache writes."""

    cache: Rule = never  # writes to a cache
    media: Rule = never  # sound, images and files that the model reads
    heard: Rule = lambda document, names: not may_hear(document)  # sound that the model reads
    sound: Rule = never  # sound that the model makes
    pictures: Rule = always  # images that the model makes
    tier: Callable[[Document, str], bool] = lambda document, tier: False  # a service tier with prices
    tier_fields: tuple[str, ...] = ("service_tier",)  # fields in which a call names a tier
    # the field of the tier in an object of `tier_fields`
    tier_objects: Mapping[str, str] = field(default_factory=dict)

    def asked_tiers(self, document: Document) -> tuple[str, ...]:
        """Return the service tiers that a call names; `InvalidRequest` if one is not a text.

        Google also accepts numbers of its enumerations. The `speed` of a call for speech is a number, and no
        tier.
        """
        found: tuple[str, ...] = ()
        for name in self.tier_fields:
            stated = document.get(name)
            if isinstance(stated, dict) and name in self.tier_objects:
                stated = stated.get(self.tier_objects[name])
            if isinstance(stated, str):
                found = (*found, stated.lower().removeprefix("service_tier_"))
            elif stated is not None and not (name == _SPEED and isinstance(stated, int | float)):
                raise InvalidRequest(f"{name} must be the name of a tier.")
        return found


_SPEED: Final = "speed"
# The rules of an API that documents nothing.
NONE: Final = Exclusions()

# Kinds of parts and items that hold text alone, and the fields that one may have. Values of `_INSIDE`
# are checked too.
_TEXTUAL: Final = frozenset(
    {
        "text", "refusal", "input_text", "output_text", "message", "function_call", "function_call_output",
        "reasoning", "reasoning_text", "summary_text", "thinking", "redacted_thinking", "tool_use",
        "tool_result",
    }
)  # fmt: skip
_INSIDE: Final = ("content", "output", "summary")
_BESIDE: Final = frozenset(
    {
        "role", "type", "text", "name", "id", "status", "call_id", "tool_call_id", "tool_use_id", "refusal",
        "arguments", "input", "tool_calls", "function_call", "cache_control", "annotations", "logprobs",
        "encrypted_content", "reasoning_content", "reasoning", "thinking", "signature", "data", "is_error",
        "phase", *_INSIDE,
    }
)  # fmt: skip
_OF_CLIENT: Final = ("function", "custom")


def only_text(said: object) -> bool:
    """Return whether a message, or a list of them, certainly contains nothing but text."""
    if isinstance(said, list):
        return all(map(only_text, said))
    if not isinstance(said, dict):
        return True
    kind = said.get("type", "message")
    if not isinstance(kind, str) or kind not in _TEXTUAL or not said.keys() <= _BESIDE:
        return False
    return all(only_text(said[name]) for name in _INSIDE if name in said)


def only_own_tools(document: Document) -> bool:
    """Return whether the client itself runs all tools of a call: a provider's own may read images."""
    tools = document.get("tools")
    return tools is None or (
        isinstance(tools, list)
        and all(
            isinstance(one, dict) and (one.get("type") in _OF_CLIENT or is_untyped_function(one))
            for one in tools
        )
    )


# How long an organization owns the ids in an answer: not at all, like a stored object, like an answer of a
# model, like an answer that its upstream does not store, or like one that a later call may continue.
KEPT_NOTHING: Final = 0
KEPT_OBJECTS: Final = 1
KEPT_ANSWERS: Final = 2
KEPT_BRIEFLY: Final = 3
KEPT_LINKED: Final = 4

SEGMENT = "[^/]+"
ID_CHARACTERS_MAX = 512
TOLD_MAX = 1_024  # stored ids of one answer

# Reads what a call asks from its document and the parameters of its path; `InvalidRequest` names a wrong field.
Reader = Callable[[Body, Document, PathParams, UsageBounds], CallSpec]


class SocketMessages(Protocol):
    """The messages of one WebSocket, each with a call in it.

    `read` turns a message into the body of a call. `hear` takes the events of the answer, and `end` marks the
    end of it. A later message may continue that answer: `size` bytes are stored for this until `forget`.
    """

    @property
    def size(self) -> int: ...
    def read(self, document: Document) -> None: ...
    def hear(self, event: str) -> None: ...
    def end(self) -> None: ...
    def forget(self) -> None: ...


class LiveEvent(NamedTuple):
    """An event of a live session's upstream, as its client gets it."""

    data: bytes
    is_free: bool  # it may pass between turns
    ends: bool  # it ends a turn
    model: str = ""  # the model that answered, if that is known


class TextExcess:
    """The tokens that texts of a live session may have beyond the likely ones.

    `there`: of its context. `said`: of all messages. `size`: bytes of text in the last message.
    """

    __slots__ = ("_last", "said", "size", "there")

    def __init__(self) -> None:
        self.there = self.said = self.size = self._last = 0

    def begin(self, size: int) -> int:
        """Note that a message has `size` bytes of text, and return its likely tokens."""
        self.size, self._last = size, 0
        return size // BYTES_PER_TOKEN

    def add(self, most: int) -> None:
        """Note that the text of the last message has `most` tokens at most."""
        self._last = max(0, most - self.size // BYTES_PER_TOKEN)
        self.there, self.said = self.there + self._last, self.said + self._last

    def take_back(self) -> None:
        """Undo the counts of the last message."""
        self.there, self.said = max(0, self.there - self._last), self.said - self._last
        self._last = 0

    def report(self, before: int) -> None:
        """Note that the upstream told the tokens of the messages with the first `before` of `said`."""
        self.there = self.said - before


class LiveSession(Protocol):
    """A WebSocket that is forwarded to its upstream: its client's requests, and the upstream's reports.

    Each turn of the conversation is a call for `model` with the body `document`; `models` may answer too.
    """

    refuses_by_event: bool  # a refusal is an event, not the end of the connection
    named_later: bool  # the first message names the model, not the path
    output_max: int | None  # the most tokens of an answer in the present turn, None where no hold binds it
    model: str
    models: tuple[str, ...]
    tools: int  # those of its messages that a provider may bill
    has_media: bool  # whether the client has sent sound, pictures or video
    texts: TextExcess

    @property
    def pending(self) -> bool: ...  # whether requests of the client are open
    @property
    def needs(self) -> int: ...  # tokens that all open requests are likely to read
    @property
    def beyond(self) -> int: ...  # tokens that they may read beyond these
    def waits(self, message: Document) -> bool: ...  # whether it asks for an answer during another one
    def document(self) -> Document: ...
    # Check a message of the client, or raise `InvalidRequest`; return whether `message` was changed.
    def ask(self, message: Document, size: int) -> bool: ...
    def take_back(self) -> None: ...  # undo the last message, which is not sent
    def forget(self) -> None: ...  # close open requests: they are charged by estimate
    def hear(self, event: bytes) -> LiveEvent: ...  # process an event of the upstream
    # Return the messages to send for one of the client. Where a hold binds the turn, no answer has more tokens.
    def limited(self, message: bytes) -> list[bytes]: ...
    # Return the first message, with the upstream's own name of the model.
    def sent_as(self, message: bytes, model: str, target: UpstreamTarget) -> bytes: ...


_TURN = ControlledNames("model", "input_tokens", "input_beyond", "max_output_tokens", *OF_EVERY_FAMILY)


def read_turn(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read one turn of a `LiveSession` (a WebSocket): its model, and the input tokens known so far."""
    _TURN.check(document)
    model = model_name(document.get("model"))
    tokens = maximum(document, "input_tokens", bounds.usage_tokens_max) or 0
    beyond = maximum(document, "input_beyond", bounds.usage_tokens_max) or 0
    output_max = maximum(document, "max_output_tokens", bounds.usage_tokens_max)
    return CallSpec(model, True, output_max, media=Media(tokens=tokens, text_beyond=beyond))


@dataclass(frozen=True, slots=True)
class CallKind:
    """One kind of metered call: how the gateway reads its body and its answers."""

    read: Reader  # reads a request body
    dialect: Dialect  # reads answers
    maximum: str = ""  # the field with the maximum of output tokens, empty if there is no output
    place: Callable[[Document], Document] | None = None  # finds the object with the field `maximum`
    output_default: int = 0  # the API's own maximum of output tokens, 0 for none
    always_reports: bool = False  # each complete answer reports its usage
    asks_for_usage: bool = False  # a stream reports its usage if `stream_options.include_usage` is true
    keeps: Callable[[Document], int] | None = None  # how long the ids in an answer stay valid, by its request
    continued: bool = False  # a later call may name the text of an answer by its id
    unframed: Callable[[CallRequest, int, UsageBounds], Meter] | None = None  # meters a stream without events
    uses: str = ""  # the field with the maximum of tool uses of a call
    tool_uses: str = ""  # the field with the maximum of uses of one tool
    limited_tools: frozenset[str] = frozenset()  # types of tools that have the field `tool_uses`
    operation: str = "chat"  # the operation's name in OpenTelemetry
    # The kinds of tokens of input and output that no report splits; empty if those are text.
    main_input: str = ""
    main_output: str = ""
    numbers: frozenset[str] = frozenset()  # number fields that `read` uses
    media: MediaPlaces = field(default_factory=MediaPlaces)  # fields with pictures, sound and files
    of_tools: bool = False  # calls a tool of a server: there is no model, and no token
    any_model: bool = False  # other models may answer than the body names
    form: FormKind | None = None  # the body may be a form
    # returns what a call asks with the one recording of its form, once the seconds of that are counted
    hear: Callable[[Body, CallSpec, Length | None], CallSpec] | None = None
    # reads the messages of one WebSocket, if calls may come by one
    messages: Callable[[], SocketMessages] | None = None
    stores: bool = False  # changes stored objects: its body may have known fields alone
    unpaid: bool = False  # its upstream bills nothing
    lasts: bool = False  # its upstream bills what it makes by time (`gateway/core/calls/storage.py`)
    # Long texts, and messages with nothing but texts and function calls, are cut before `read` (`CutParts`).
    skips_texts: bool = False
    # makes the session of a WebSocket from its query
    live: Callable[[Mapping[str, str]], LiveSession] | None = None


def live_kind(dialect: Dialect, live: Callable[[Mapping[str, str]], LiveSession]) -> CallKind:
    """Return the kind of a WebSocket's turns: their answers are read by `dialect`, and `live` makes a session."""
    numbers = frozenset({"input_tokens", "input_beyond", "max_output_tokens"})
    return CallKind(read_turn, dialect, "max_output_tokens", numbers=numbers, live=live)


@dataclass(slots=True)
class BodyIds:
    """Ids of stored objects in a request body.

    `named` refer to objects of the upstream. `brought` belong to objects inside the body itself. `unknown` are
    texts in fields that end like an id and are in no table.
    `known` says whether the APIs have the top field that is searched: an `id` in it refers to an object.
    """

    named: list[object] = field(default_factory=list)
    brought: list[object] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    known: bool = True


@dataclass(frozen=True, slots=True)
class ObjectLists:
    """Collections of stored objects that can be listed; each organization sees only its own objects."""

    paths: tuple[str, ...]  # paths of the collections
    after: str = "after"  # parameter with the object before a page
    headers: tuple[tuple[str, str], ...] = ()  # sent with a request for a page
    size: str = "limit"  # parameter with the length of a page
    name: str = "id"  # field of an object's id
    # field of the objects in a page, by path, if pages have tokens
    fields: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, frozenset[str]] = field(default_factory=dict)  # members that are left out
    asks: Mapping[str, str] = field(default_factory=dict)  # query to add, by path


@dataclass(frozen=True, slots=True)
class ObjectRules:
    """The objects that upstreams of a family store, and the fields with their ids; by default there are none."""

    # Their paths after the version; the unit that the upstream bills after the answer, "" if there is none.
    collections: Mapping[str, str] = field(default_factory=dict)
    # Paths below an object whose calls are uses of a tool instead, and the tools.
    uses: Mapping[str, str] = field(default_factory=dict)
    marks: re.Pattern[bytes] | None = None  # fields of messages with ids, whose names do not end like an id
    # Add the ids in a field, and return whether the API's tables know it; the arguments are its name, value
    # and holder, the list around the holder or the field of the holder with a point, and the result.
    add: Callable[[str, object, Document, str, BodyIds], bool] = lambda *_: False
    # the key of an id in the store that knows the owners of objects, by the server that it is sent to
    key: Callable[[str, str], str] = lambda server, id_: id_
    # the ids that a text in a field of no table may stand for
    readings: Callable[[str], tuple[str, ...]] = lambda text: (text,)
    told: Callable[[Document], Iterator[str]] = lambda document: iter(())  # the ids in an answer
    # whether the model of a caller wrote the field
    is_free: Callable[[str, Document], bool] = lambda name, holder: False
    # the field by which a body chooses the name of its object
    chosen: Callable[[Document], str | None] = lambda document: None
    by_path: bool = False  # an id is the path of its object
    # Collections whose answers contain ids of objects that the upstream made later.
    results: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()  # paths of actions on a collection: they make no object
    within: frozenset[str] = frozenset()  # paths below an object: a POST makes another object
    makers: frozenset[str] = frozenset()  # routes that make an object of another collection
    # the only fields that a body for a path may have
    takes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Types of an object under a name, each with its fields. Other types would query the objects of all
    # organizations.
    kinds: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    # Fields by which a free call puts text into an object, and the meter of the calls that read it there.
    puts: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()  # prefixes of models that the provider made for one organization
    lasting: tuple[str, ...] = ()  # prefixes of ids that outlive their answer
    lists: ObjectLists | None = None
    tell: tuple[bytes, ...] = ()  # bytes without which an answer contains no id
    # Ids of earlier objects in an answer, which are stored again if the request named them.
    refers: Callable[[Document], Iterator[str]] = lambda document: iter(())
    # the id of an answer that a later call may continue
    linked: Callable[[Document], Iterator[str]] = lambda document: iter(())

    @property
    def path(self) -> re.Pattern[str]:
        """A pattern for paths of stored objects, with groups for the collection, the id and the rest.

        The id and the rest may be missing. Case is ignored.
        """
        kinds = "|".join(self.collections) or "(?!)"
        return re.compile(rf"/({kinds})(?:/([^/]+))?(/.*)?\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class UploadRules:
    """Uploads of files to an address that the upstream sends in the header `address` of an answer.

    The address is below `path`, and its parameter `id` names the upload; the bytes sent there are no JSON.
    Headers that begin with `fields` control an upload. Headers in `hidden` contain other addresses, which no
    client gets.
    """

    path: str
    address: bytes
    id: str
    fields: bytes
    hidden: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """The JSON shape of a list of models.

    `field` is the field of the list, `name` that of a model's name, and `prefix` begins each name. An entry
    for a configured model also has the fields `each`, and its name in the field `shown`. The document has the
    fields `around`, and the first and the last name in the fields `ends`.
    """

    field: str = "data"
    name: str = "id"
    prefix: str = ""
    each: tuple[tuple[str, object], ...] = ()
    shown: str = ""
    around: tuple[tuple[str, object], ...] = ()
    ends: tuple[str, str] | None = None

    def render_model(self, model: str) -> bytes:
        """Return the JSON entry of a configured model, as this API answers for one model."""
        return msgspec.json.encode(self._fields(model))

    def written(self, models: Sequence[str]) -> bytes:
        """Return the JSON list of configured models, as this API answers it."""
        document: dict[str, object] = dict(self.around)
        document[self.field] = [self._fields(one) for one in models]
        if self.ends is not None:
            first, last = self.ends
            document |= {first: models[0] if models else None, last: models[-1] if models else None}
        return msgspec.json.encode(document)

    def _fields(self, model: str) -> dict[str, object]:
        fields: dict[str, object] = {self.name: self.prefix + model, **dict(self.each)}
        if self.shown:
            fields[self.shown] = model
        return fields


@dataclass(frozen=True, slots=True)
class JobList:
    """The list of an account's jobs at an upstream, newest first, each with its time of creation.

    The parameter `after` names the job before a page, and `headers` are sent with the request. With
    `operations` an entry is a long-running operation. With `guesses` a lost job is identified if only one
    entry fits.
    """

    path: str
    after: str = "after"
    headers: tuple[tuple[str, str], ...] = ()
    operations: bool = False
    guesses: bool = False


@dataclass(frozen=True, slots=True)
class BatchPaths:
    """The paths of an API's batches, of their files, and of the calls that a batch may contain."""

    files: str  # empty if the calls are in the body that makes a batch
    batches: str  # below it are the results, if there are no files
    calls: Mapping[str, str]  # the meter of a call, by its path
    inline: str = ""  # the field of the calls in that body
    headers: tuple[tuple[str, str], ...] = ()  # sent with a request for a batch
    after: str = "after"  # parameter with the batch before a page of a list
    # paths that make a batch for one model, and the path of its calls: such a batch is an operation
    makers: Mapping[str, str] = field(default_factory=dict)
    download: str = ""  # path of a file's content, by default below the file

    def content(self, file_id: str) -> str:
        """Return the path at which to download the content of a file."""
        template = self.download or f"{self.files}/{{id}}/content"
        return template.replace("{id}", quote(file_id, safe=""))

    @property
    def one(self) -> str:
        """The path template of one batch."""
        return f"{self.batches}/{{id}}"

    @property
    def cancel(self) -> str:
        """The path template that cancels a batch."""
        return f"{self.one}:cancel" if self.makers else f"{self.one}/cancel"

    @property
    def listed(self) -> JobList:
        """The path, with its query, of the upstream's list of batches, and how to read that list."""
        asks = f"pageSize=100&{OPERATIONS}" if self.makers else "limit=100"
        return JobList(f"{self.batches}?{asks}", self.after, self.headers, bool(self.makers))

    @property
    def results(self) -> str:
        """The path template of a batch's results, empty if they are a file or a part of the batch."""
        return f"{self.one}/results" if self.inline and not self.makers else ""


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The paths of calls that an API processes later as jobs of one `kind`, such as videos.

    `remake` makes a job from an earlier one, `results` is the path of its result, and `shown` that of one
    job, by default below `path`.
    """

    kind: str
    path: str
    remake: str = ""
    results: str = ""
    shown: str = ""
    listed: JobList | None = None

    @property
    def one(self) -> str:
        """The path template of one job."""
        return self.shown or f"{self.path}/{{id}}"

    def of(self, model: str, id_: str) -> str:
        """Return the path of one job. If its id is itself a path, only the last segment of it is used."""
        named = self.one.replace("{model}", quote(model, safe=""))
        return named.replace("{id}", quote(id_.rpartition("/")[2], safe=""))

    @property
    def cancel(self) -> str:
        """The path template that cancels a job."""
        return f"{self.one}/cancel"


@dataclass(frozen=True, slots=True)
class SdkExample:
    """An example of a family's calls: a program for its SDK, and the path and body of a call by hand.

    `{base}` and `{model}` are placeholders in these. `model` is a model of the vendor, `begins` are prefixes
    of its models' names.
    """

    sdk: str
    model: str
    begins: tuple[str, ...]
    program: str
    path: str
    body: str


@dataclass(frozen=True, slots=True)
class ApiFamily:
    """One family of APIs. What it does not define is the same as for any other API."""

    name: Family
    # makes the body of a refusal from it and its request id
    refusal: Callable[[Refusal, str], dict[str, object]]
    content_type: bytes = b"application/json"
    shapes: Mapping[str, CallKind] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    # the routes of an upstream of this family, by its name
    brings: Callable[[str], tuple[Route, ...]] = lambda upstream: ()
    # the default upstream, by environment variables
    target: Callable[[Mapping[str, str]], UpstreamTarget] | None = None
    # the header of an upstream's key, and the scheme
    key_field: tuple[str, str] = ("authorization", "Bearer ")
    prefixes: tuple[str, ...] = ()  # refusals on unknown paths below these have this family's shape
    own_paths: re.Pattern[str] | None = None  # paths that no other family has
    shares_paths: bool = False  # other families have the same paths
    also: tuple[str, ...] = ()  # more prefixes of shared paths, each with a slash at its end
    versions: tuple[tuple[str, str], ...] = ()  # a version in a path, and the one that it is read as
    spoken_by: bytes = b""  # the header by which its clients are known on a shared path
    key_protocol: bytes = b""  # the prefix of a WebSocket protocol that carries a key
    key_query: bytes = b""  # the query parameter of a WebSocket that carries a key
    segment: str = SEGMENT  # the pattern of a path parameter
    # query parameters of a metered call, and their values; None for any plain word
    queries: Mapping[bytes, frozenset[bytes] | None] = field(default_factory=dict)
    # headers that its SDKs and clients send: they reach upstreams that get no others
    headers: frozenset[bytes] = frozenset()
    withheld: frozenset[bytes] = frozenset()  # headers that are not forwarded with a metered call
    # Headers that are never forwarded: some choose which account of the operator pays.
    withheld_prefixes: tuple[bytes, ...] = ()
    # Prefixes of headers that guard a call or choose, but for those in `withheld`: it is refused on all APIs.
    refused_prefixes: tuple[bytes, ...] = ()
    credentials: tuple[bytes, ...] = ()  # headers in which clients send their key
    limits_prefix: bytes = b"x-ratelimit-"  # the prefix of headers with an upstream's limits
    names_requests: bool = False  # answers have the request id as `request-id`
    names_session: bytes = b""  # the header with a session's id, on any call
    own_session: bytes = b""  # the same on calls of this API, where other APIs may use the header otherwise
    objects: ObjectRules = field(default_factory=ObjectRules)
    # the maximum of output tokens, by prefix of a model's name
    ceilings: Mapping[str, int] = field(default_factory=dict)
    # tokens of one image at most, by model, if more than usual
    pictures: Mapping[str, int] = field(default_factory=dict)
    # tokens of the prompt that a provider adds to a call with any tool, at most, by prefix
    tool_prompts: Mapping[str, int] = field(default_factory=dict)
    # the side in pixels of a part of an image that is at most so many hundredths of a token, by prefix
    patches: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # the most tokens of a second of sound, by prefix
    seconds: Mapping[str, int] = field(default_factory=dict)
    # the most tokens of text on a page of a PDF, beside its picture, by prefix
    page_text: Mapping[str, int] = field(default_factory=dict)
    # the most tokens that a model reads, by prefix
    contexts: Mapping[str, int] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # public tokenizers by model
    lists: Listing | None = None  # the shape of its list of models
    models_at: str = ""  # the path of that list at an upstream
    batches: tuple[BatchPaths, ...] = ()
    jobs: tuple[JobPaths, ...] = ()
    credit: tuple[CreditSign, ...] = OF_ALL  # answers that an account is out of money or quota
    seals: Mapping[str, str] = field(
        default_factory=dict
    )  # members that its provider sealed, by who opens them
    differences: tuple[Difference, ...] = ()  # parts of calls that some of its models refuse
    exclusions: Exclusions = NONE  # which of the higher prices do not apply to a call
    model_lists: ListReaders = field(default_factory=dict)  # readers of lists that hold more than names
    provider: str = ""  # the provider's name in OpenTelemetry
    # headers that state the used part of a budget
    budget_fields: Callable[[BudgetWindow, Refusal | None], list[tuple[bytes, bytes]]] | None = None
    session_field: bytes = b""  # the header with the id of a session that the upstream opened for one caller
    uploads: UploadRules | None = None
    said_twice: tuple[bytes, ...] = ()  # headers that repeat fields of the body
    example: SdkExample | None = None  # how to call this API


def target(
    name: str, base_url: str, variable: str, header: str, scheme: str = ""
) -> Callable[[Mapping[str, str]], UpstreamTarget]:
    """Return a function that makes the configuration of an upstream from environment variables.

    `variable` has the credential, to send in the header field `header` after the prefix `scheme`.
    """

    def of(environ: Mapping[str, str]) -> UpstreamTarget:
        credential = environ.get(variable, "")
        headers = ((header, scheme + credential),) if credential else ()
        return UpstreamTarget(name, base_url, headers, family=name, held=(variable,))

    return of


def ids_of(value: object) -> tuple[str, ...]:
    """Return a tuple with the id in a value; empty if the value is no text.

    A longer id than the maximum is cut to one character more, so that it cannot equal a valid one.
    """
    return (value[: ID_CHARACTERS_MAX + 1],) if isinstance(value, str) and value else ()


def told_of(
    objects: ObjectRules, document: object, named: Collection[str] = (), keeps: int = KEPT_OBJECTS
) -> tuple[str, ...]:
    """Return the ids of stored objects in an answer or event (`document`), the object's own id first.

    `named` are the ids in its request. `keeps` is the `KEPT_…` constant for how long ids stay valid.
    """
    if not isinstance(document, dict):
        return ()
    again = [one for one in objects.refers(document) if one in named] if named else ()
    linked = objects.linked(document) if keeps == KEPT_LINKED else ()
    return tuple(dict.fromkeys((*linked, *objects.told(document), *again)))[:TOLD_MAX]


def object_in(value: Document, name: str) -> Document:
    """Return the object in the field `name`, or an empty one if there is none."""
    inside = value.get(name)
    return inside if isinstance(inside, dict) else {}


def objects_in(value: Document, name: str) -> list[Document]:
    """Return the objects of the list in the field `name`; empty if there is none."""
    inside = value.get(name)
    return [each for each in inside if isinstance(each, dict)] if isinstance(inside, list) else []


# Lists of models: which paths are lists, and which entries a caller sees. Pure.

MODELS_MAX = 5_000
AT_ONCE_MODELS_MAX = 50  # compared at a time: a key may have a hundred patterns
_LIST = "/models"
_ONE = re.compile(r".*/models/\{\+?([a-z_]+)\}")


def is_list(route: Route) -> bool:
    """Return whether the path of a free route lists models."""
    return route.path.endswith(_LIST)


def one_of(route: Route, params: Mapping[str, str]) -> str:
    """Return the model in the path of a route for model metadata; empty if the path has none."""
    found = _ONE.fullmatch(route.path)
    return params.get(found[1], "") if found is not None else ""


def filter_models(
    document: bytes, listing: Listing, shows: Callable[[str], bool], checks: NameCheck | None = None
) -> Iterator[bytes]:
    """Filter a list of models to the entries that `shows` accepts.

    Yield empty bytes after each step, so that other tasks can run, and the new list at the end. After the
    first step the caller looks up the owners of the names in `checks`. Nested values besides the models
    are left out. Raise `UpstreamUnreachable` if the document is no list of models.
    """
    try:
        said = decoded(msgspec.json.decode, document)
    except UNREADABLE:
        said = None
    models = said.get(listing.field) if isinstance(said, dict) else said
    if not isinstance(models, list):
        raise UpstreamUnreachable("The upstream's list of models cannot be read.")
    if len(models) > MODELS_MAX:
        raise UpstreamUnreachable(f"The upstream lists more than {MODELS_MAX} models.")
    if checks is not None:
        names = [str(one.get(listing.name)) for one in models if isinstance(one, dict)]
        checks.asked = [one for one in names if one.lower().startswith(checks.begins)]
    shown: list[object] = []
    for start in range(0, len(models), AT_ONCE_MODELS_MAX):
        yield b""
        part = models[start : start + AT_ONCE_MODELS_MAX]
        shown += [each for each in part if _is_shown(each, listing, shows)]
    if isinstance(said, dict):
        plain = {name: each for name, each in said.items() if not isinstance(each, list | dict)}
        yield msgspec.json.encode({**plain, listing.field: shown})
    else:
        yield msgspec.json.encode(shown)


def _is_shown(model: object, listing: Listing, shows: Callable[[str], bool]) -> bool:
    name = model.get(listing.name) if isinstance(model, dict) else None
    return isinstance(name, str) and shows(name.removeprefix(listing.prefix))
