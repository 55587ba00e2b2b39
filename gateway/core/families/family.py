"""What a family of APIs is: everything in which one provider's API differs from another's.

A family is one object, made in its own file or folder and named in `registry.py`. Nothing else knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import quote

import msgspec

from gateway.core.accounts.jobs import OPERATIONS
from gateway.core.calls.call import CallRequest, FieldNames, MediaPlaces, NameCheck, UsageBounds
from gateway.core.calls.forms import FormKind
from gateway.core.calls.routes import Route, UpstreamTarget
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    PathParams,
    maximum,
    model_name,
)
from gateway.core.families.hearing import may_hear
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.metering.reading import UNREADABLE, decoded
from gateway.core.model import BudgetWindow, Family
from gateway.errors import InvalidRequest, Refusal, UpstreamUnreachable

# Which dear prices a call can have, and which it asks for, by fields that its provider documents. Pure.
#
# A claim of the most starts at the dearest price, and only a rule here lowers it. A claim of likely use
# starts at the plain price, and only a field that asks for more makes it dearer. A family has one such
# table.

Rule = Callable[[Document, FieldNames], bool]


def never(document: Document, names: FieldNames) -> bool:
    """Return no field of the API rules it out."""
    return False


def always(document: Document, names: FieldNames) -> bool:
    """Return True: calls of the API cannot ask for it."""
    return True


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Each rule answers whether a call cannot have such prices.

    `cache` are those of writing to a cache, `media` of sound, images and files that are read, `heard` of
    sound that is read, `sound` and `pictures` of those that are made. `tier` is asked for each service tier
    that has a price; a call asks for one by its name in one of `tier_fields`, or in the field of an object
    that `tier_objects` names for these.
    """

    cache: Rule = never
    media: Rule = never
    heard: Rule = lambda document, names: not may_hear(document)
    sound: Rule = never
    pictures: Rule = always
    tier: Callable[[Document, str], bool] = lambda document, tier: False
    tier_fields: tuple[str, ...] = ("service_tier",)
    tier_objects: Mapping[str, str] = field(default_factory=dict)

    def asked_tiers(self, document: Document) -> tuple[str, ...]:
        """Return the tiers that a call asks for by name; `InvalidRequest` where one is no text.

        Google reads numbers of its enumerations too. The `speed` of speech is a number, and no tier.
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
# Of an API that documents nothing.
NONE: Final = Exclusions()

# Kinds of parts and items that hold text alone, and the names that may stand in one. Values in `_INSIDE`
# are looked through.
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
    """Return whether what was said is known to hold nothing but text."""
    if isinstance(said, list):
        return all(map(only_text, said))
    if not isinstance(said, dict):
        return True
    kind = said.get("type", "message")
    if not isinstance(kind, str) or kind not in _TEXTUAL or not said.keys() <= _BESIDE:
        return False
    return all(only_text(said[name]) for name in _INSIDE if name in said)


def only_own_tools(document: Document) -> bool:
    """Return whether all tools of a call are the client's own: the provider's may read images and files."""
    tools = document.get("tools")
    return tools is None or (
        isinstance(tools, list)
        and all(
            isinstance(one, dict) and (one.get("type") in _OF_CLIENT or "input_schema" in one)
            for one in tools
        )
    )


# How long what an answer tells of is its organization's: as something that was made to be kept, as an answer
# of a model, as one that its upstream stores nothing of, or as one that a later call may go on from by the
# answer's own id.
KEPT_NOTHING: Final = 0
KEPT_OBJECTS: Final = 1
KEPT_ANSWERS: Final = 2
KEPT_BRIEFLY: Final = 3
KEPT_LINKED: Final = 4

SEGMENT = "[^/]+"
ID_CHARACTERS_MAX = 512
TOLD_MAX = 1_024  # ids kept of one answer

# Fills in a call from its document and the parameters of its path; `InvalidRequest` names a wrong field.
Reader = Callable[[CallRequest, Document, PathParams, UsageBounds], None]


class SocketMessages(Protocol):
    """The messages of one WebSocket: `read` makes the document of a call of one.

    One may go on from events that were given to `hear`, up to the `end` of its answer: `size` bytes are kept
    for that, until all of it is to `forget`.
    """

    @property
    def size(self) -> int: ...
    def read(self, document: Document) -> None: ...
    def hear(self, event: str) -> None: ...
    def end(self) -> None: ...
    def forget(self) -> None: ...


class LiveSession(Protocol):
    """A WebSocket that passes to its upstream: what its client asks for there, and what that reports.

    Each of its turns is a call for `model`, which the first message names where it is `named_later`; its body
    is `document`, and `models` may answer beside it. It is `pending` while requests are open, and `needs` are
    the tokens that the conversation and all of them may read. It is given each message of the client's to
    `ask`, with its size, which raises `InvalidRequest` where that may not pass, and returns whether it has
    changed the message; `take_back` undoes the last message, as it is not sent. Each event of the upstream's
    is given to `hear`, which returns the event for the client, whether that may pass between turns, and
    whether it ends one. It is to `forget` open requests that are charged by estimate. `sent_as` is the first
    message for an upstream that has this name for the model, empty for the same one. A message `waits` that
    asks for an answer while another one is made.
    """

    refuses_by_event: bool
    named_later: bool
    model: str
    models: tuple[str, ...]

    @property
    def pending(self) -> bool: ...
    @property
    def needs(self) -> int: ...
    def waits(self, message: Document) -> bool: ...
    def document(self) -> Document: ...
    def ask(self, message: Document, size: int) -> bool: ...
    def take_back(self) -> None: ...
    def forget(self) -> None: ...
    def hear(self, event: bytes) -> tuple[bytes, bool, bool]: ...
    def sent_as(self, message: bytes, model: str, target: UpstreamTarget) -> bytes: ...


_TURN = ControlledNames("model", "input_tokens", *OF_EVERY_FAMILY)


def read_turn(call: CallRequest, document: Document, params: PathParams, bounds: UsageBounds) -> None:
    """Read one turn of a `LiveSession`: its model, and the input as far as that is known."""
    _TURN.check(document)
    call.model, call.streamed = model_name(document.get("model")), True
    call.blob_tokens = maximum(document, "input_tokens", bounds.usage_tokens_max) or 0


@dataclass(frozen=True, slots=True)
class CallKind:
    """One kind of metered call: `read` takes its body, `dialect` its answers.

    `maximum` is the field that states a maximum of the output, in what `place` finds in the document; it
    is empty where a call produces none. Where it states none, the API itself has one of `output_default`
    tokens, 0 for none. With `always_reports` a complete answer tells its use; with
    `asks_for_usage` a stream does where `stream_options.include_usage` says so. `keeps` tells how the
    upstream keeps what an answer has ids of. `unframed` meters a stream that is no events. The most
    uses of provider's tools is stated for all of them by the call's field `uses`, or by each tool's field
    `tool_uses`, which those take whose type begins with one of `limited_tools`. `operation` is what
    OpenTelemetry calls it. `numbers` are those that `read` takes. `media` are the places where it takes
    pictures, sound and files. One `of_tools` names no models and has no tokens: it asks a server for a tool.
    Its body may be a `form`. One of `any_model` has models answer that its body does not name.
    Where it can be asked for by messages of a WebSocket, `messages` reads those of one connection. One that
    is asked for by a WebSocket alone is `live`: that makes the session, given the parameters of its query.
    One that `stores` changes what its upstream keeps, by a body that is closed.
    One that `skips_texts` is not shown the longer texts of messages and tools, nor messages of nothing but
    texts and calls of functions (`CutParts`): no rule of its API goes by what these say.
    """

    read: Reader
    dialect: Dialect
    maximum: str = ""
    place: Callable[[Document], Document] | None = None
    output_default: int = 0
    always_reports: bool = False
    asks_for_usage: bool = False
    keeps: Callable[[Document], int] | None = None
    unframed: Callable[[CallRequest, int, UsageBounds], Meter] | None = None
    uses: str = ""
    tool_uses: str = ""
    limited_tools: tuple[str, ...] = ()
    operation: str = "chat"
    numbers: frozenset[str] = frozenset()
    media: MediaPlaces = field(default_factory=MediaPlaces)
    of_tools: bool = False
    any_model: bool = False
    form: FormKind | None = None
    messages: Callable[[], SocketMessages] | None = None
    stores: bool = False
    skips_texts: bool = False
    live: Callable[[Mapping[str, str]], LiveSession] | None = None


@dataclass(slots=True)
class BodyIds:
    """Ids in a body: those it names objects by, and those of objects it brings itself.

    Fields that are `unknown` end like an id, and no table says what they name.
    """

    named: list[object] = field(default_factory=list)
    brought: list[object] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ObjectLists:
    """Collections that are listed, to each organization its own objects, by their `paths`.

    `after` names the object that a page begins behind, `size` how many it has, `name` an object's id;
    `headers` are sent where a page is asked for. Pages that go on by a token tell it, and are in the field of
    the path's last word, or that of `fields`. Members `apart` are not listed, and a path
    `asks` for no more than the rest.
    """

    paths: tuple[str, ...]
    after: str = "after"
    headers: tuple[tuple[str, str], ...] = ()
    size: str = "limit"
    name: str = "id"
    fields: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, frozenset[str]] = field(default_factory=dict)
    asks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectRules:
    """Objects the family's upstreams keep, and where their ids stand.

    `collections` are their paths behind a version; with `by_path` an id is its path there. A body that
    `may_name` none names none in what was said. `add` finds what a field of a body names: it is given its
    holder, and the list that this is an element of, if it is. `is_free` says that a caller's model wrote a
    field, `chosen` that a body chooses a name. `told` has the ids an answer tells of; without any of the
    bytes `tell` it tells of none. The answer that makes an object tells of it; what it `refers` to was
    there before, and is kept for longer where the request named it. One of `results` has the ids that its
    upstream made of it since, in any answer that shows it. `actions` are paths of actions on a collection,
    where an id would stand: they make nothing that is kept. Routes of `makers` make an object elsewhere.
    A POST to a path of `within`, below an object, makes another. A body for a path of `takes` may say
    these fields alone, and an object under a name of `kinds` is of one of these types, with its fields:
    another one selects by a query what all organizations keep. Names of `models` that begin with one of
    these are made by the provider, and its maker's as an id is. Ids that begin with `lasting` outlive the
    answer that tells of them; one that is `linked` is an answer's own, by which a later call goes on from it.
    """

    collections: tuple[str, ...]
    may_name: Callable[[bytes, FieldNames], bool]
    add: Callable[[str, object, Document, str, BodyIds], None]
    told: Callable[[Document], Iterator[str]]
    is_free: Callable[[str, Document], bool] = lambda name, holder: False
    chosen: Callable[[Document], str | None] = lambda document: None
    by_path: bool = False
    results: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()
    within: frozenset[str] = frozenset()
    makers: frozenset[str] = frozenset()
    takes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    lists: ObjectLists | None = None
    tell: tuple[bytes, ...] = ()
    refers: Callable[[Document], Iterator[str]] = lambda document: iter(())
    linked: Callable[[Document], Iterator[str]] = lambda document: iter(())

    @property
    def path(self) -> re.Pattern[str]:
        """The place of an object in a path: its collection in any case, its id if there is one, the rest."""
        return re.compile(rf"/({'|'.join(self.collections)})(?:/([^/]+))?(/.*)?\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class UploadRules:
    """Files that are sent to an address that an upstream hands out in the field `address` of an answer.

    The address is of a path below `path`, and names an upload by its parameter `id`: what is sent to it is
    no JSON. Fields that begin with `fields` say what a request does with an upload. `hidden` are addresses
    that no client is told of.
    """

    path: str
    address: bytes
    id: str
    fields: bytes
    hidden: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """How models are listed: the field of the list, that of a name in it, and the prefix of a name.

    A model that is configured here has the fields `each` as well and its name in `shown`, and the list has
    the fields `around`; a list that names its `ends` has the first and the last name in these.
    """

    field: str = "data"
    name: str = "id"
    prefix: str = ""
    each: tuple[tuple[str, object], ...] = ()
    shown: str = ""
    around: tuple[tuple[str, object], ...] = ()
    ends: tuple[str, str] | None = None

    def one(self, model: str) -> bytes:
        """Return a configured model as its API tells of one."""
        return msgspec.json.encode(self._fields(model))

    def written(self, models: Sequence[str]) -> bytes:
        """Encode configured models as their API lists them."""
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
    """Where an upstream lists the jobs of an account, the newest first, each with its time.

    `after` names the job that a page begins behind, `headers` are sent with it, and `operations` says that it
    has these. One that `guesses` tells enough of each that the only one which may be a job is that job.
    """

    path: str
    after: str = "after"
    headers: tuple[tuple[str, str], ...] = ()
    operations: bool = False
    guesses: bool = False


@dataclass(frozen=True, slots=True)
class BatchPaths:
    """Where an API takes batches of calls: their files, themselves, and the paths that calls may be of.

    `calls` has the meter of each. An API without files has the calls in the body that makes a batch, in its
    field `inline`, and a path of the results. `headers` are sent where a batch is asked for, and `after`
    names the batch that a page of a list begins behind. Where batches are made of calls of the model in a
    path, `makers` has by that path the path of the calls: such a batch is an operation, with its results.
    The content of a file is at `download`, else below the file.
    """

    files: str
    batches: str
    calls: Mapping[str, str]
    inline: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    after: str = "after"
    makers: Mapping[str, str] = field(default_factory=dict)
    download: str = ""

    def content(self, file_id: str) -> str:
        """Return the path of the content of a file."""
        template = self.download or f"{self.files}/{{id}}/content"
        return template.replace("{id}", quote(file_id, safe=""))

    @property
    def one(self) -> str:
        """The template of one batch."""
        return f"{self.batches}/{{id}}"

    @property
    def cancel(self) -> str:
        """The template that cancels it."""
        return f"{self.one}:cancel" if self.makers else f"{self.one}/cancel"

    @property
    def listed(self) -> JobList:
        """Where its upstream lists batches: by calls and time alone, which is no proof."""
        asks = f"pageSize=100&{OPERATIONS}" if self.makers else "limit=100"
        return JobList(f"{self.batches}?{asks}", self.after, self.headers, bool(self.makers))

    @property
    def results(self) -> str:
        """The template of its results, where these are neither a file nor a part of it."""
        return f"{self.one}/results" if self.inline and not self.makers else ""


@dataclass(frozen=True, slots=True)
class JobPaths:
    """Where an API takes calls that it works off later, and tells of each: all jobs of a `kind`.

    `remake` makes one more of an earlier one, and `results` has what came of one. One job is `shown` below
    its `path`, where nothing else is said.
    """

    kind: str
    path: str
    remake: str = ""
    results: str = ""
    shown: str = ""
    listed: JobList | None = None

    @property
    def one(self) -> str:
        """The template of one job."""
        return self.shown or f"{self.path}/{{id}}"

    def of(self, model: str, id_: str) -> str:
        """Return the path of one job, whose id may be its own path there."""
        named = self.one.replace("{model}", quote(model, safe=""))
        return named.replace("{id}", quote(id_.rpartition("/")[2], safe=""))

    @property
    def cancel(self) -> str:
        """The template that cancels it."""
        return f"{self.one}/cancel"


@dataclass(frozen=True, slots=True)
class SdkExample:
    """How people call a family: a program for its SDK, and the path and body of a call by hand.

    `{base}` and `{model}` stand in them. `model` is one of the vendor's, `begins` how names of these begin.
    """

    sdk: str
    model: str
    begins: tuple[str, ...]
    program: str
    path: str
    body: str


@dataclass(frozen=True, slots=True)
class ApiFamily:
    """One family; what it leaves out it has like any other API.

    `refusal` is the body of a refusal, given its request id. `prefixes` begin paths whose unknown ones get
    this family's shape, `own_paths` are those no other has; each upstream of the family
    `brings` routes of its own, by its name; `spoken_by` is a field by which its clients are
    known on a path of several families (`shares_paths`), and on paths that it has `also`, as
    another has them, and below: each ends in a slash here. Its clients may begin paths by another version,
    which is read as the second one of `versions`. `segment` is what a parameter of a path matches.
    A protocol of a WebSocket that begins with `key_protocol` is a key, as its clients in browsers send it.
    The parameter `key_query` of its address is one too.
    `queries` are the parameters of a metered call with the values each may have, None for any plain word.
    `withheld` are fields of a metered call that do not pass; none passes that begins with
    `withheld_prefixes`, whosever call it is: some choose which of the operator's accounts pays.
    `credentials` are fields its clients send their key in,
    `limits_prefix` begins those that tell an upstream's limits. With `names_requests` its clients expect
    their request id as `request-id`; by `names_session` they name the session of any call, by `own_session`,
    whose name others may use for something else, that of a call in this API. `ceilings` are the most tokens
    an answer may have, by prefixes of names of models, `pictures` what one image costs at most where that is
    more than usual, `tokenizers` the ones that are public. `target` is where its calls go by
    default, given the environment; `key_field` is the field that its upstreams
    take a key in, and its scheme. `lists` is how it lists models at a path that ends in `/models`; its
    upstreams do so at `models_at`.
    `exclusions` tell which dear prices a call cannot have. Tools of the kinds `free_tools` (in small letters,
    without `_` and a date) cost nothing beside their tokens: a client runs them, or their provider takes
    nothing. `provider` is what OpenTelemetry calls whose API it is. `budget_fields` tell its clients how much
    of a budget is used, with an answer or with the refusal they are given. `session_field` names a session
    that an upstream has opened, in requests and answers: it belongs to who opened it, and so does one of the
    `uploads`. Fields `said_twice` say what a body does as well, and are read with it. `example` shows how to
    call it.
    """

    name: Family
    refusal: Callable[[Refusal, str], dict[str, object]]
    content_type: bytes = b"application/json"
    shapes: Mapping[str, CallKind] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    brings: Callable[[str], tuple[Route, ...]] = lambda upstream: ()
    target: Callable[[Mapping[str, str]], UpstreamTarget] | None = None
    key_field: tuple[str, str] = ("authorization", "Bearer ")
    prefixes: tuple[str, ...] = ()
    own_paths: re.Pattern[str] | None = None
    shares_paths: bool = False
    also: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    spoken_by: bytes = b""
    key_protocol: bytes = b""
    key_query: bytes = b""
    segment: str = SEGMENT
    queries: Mapping[bytes, frozenset[bytes] | None] = field(default_factory=dict)
    withheld: frozenset[bytes] = frozenset()
    withheld_prefixes: tuple[bytes, ...] = ()
    credentials: tuple[bytes, ...] = ()
    limits_prefix: bytes = b"x-ratelimit-"
    names_requests: bool = False
    names_session: bytes = b""
    own_session: bytes = b""
    objects: ObjectRules | None = None
    ceilings: Mapping[str, int] = field(default_factory=dict)
    pictures: Mapping[str, int] = field(default_factory=dict)
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    lists: Listing | None = None
    models_at: str = ""
    batches: tuple[BatchPaths, ...] = ()
    jobs: tuple[JobPaths, ...] = ()
    exclusions: Exclusions = NONE
    free_tools: frozenset[str] = frozenset()
    provider: str = ""
    budget_fields: Callable[[BudgetWindow, Refusal | None], list[tuple[bytes, bytes]]] | None = None
    session_field: bytes = b""
    uploads: UploadRules | None = None
    said_twice: tuple[bytes, ...] = ()
    example: SdkExample | None = None


def target(
    name: str, base_url: str, variable: str, header: str, scheme: str = ""
) -> Callable[[Mapping[str, str]], UpstreamTarget]:
    """Return a function that makes an upstream's target, with an environment variable's credential."""

    def of(environ: Mapping[str, str]) -> UpstreamTarget:
        credential = environ.get(variable, "")
        headers = ((header, scheme + credential),) if credential else ()
        return UpstreamTarget(name, base_url, headers, family=name, held=(variable,))

    return of


def ids_of(value: object) -> tuple[str, ...]:
    """Return the id that a value is, cut where it is longer than any that is kept."""
    return (value[: ID_CHARACTERS_MAX + 1],) if isinstance(value, str) and value else ()


def told_of(
    objects: ObjectRules, document: object, named: Collection[str] = (), keeps: int = KEPT_OBJECTS
) -> tuple[str, ...]:
    """Return ids of objects in an answer or event, its own first; `named` are those of its request."""
    if not isinstance(document, dict):
        return ()
    again = [one for one in objects.refers(document) if one in named] if named else ()
    linked = objects.linked(document) if keeps == KEPT_LINKED else ()
    return tuple(dict.fromkeys((*linked, *objects.told(document), *again)))[:TOLD_MAX]


def object_in(value: Document, name: str) -> Document:
    """Return the object under a name; empty where none is."""
    inside = value.get(name)
    return inside if isinstance(inside, dict) else {}


def objects_in(value: Document, name: str) -> list[Document]:
    """Return the objects of a list under a name."""
    inside = value.get(name)
    return [each for each in inside if isinstance(each, dict)] if isinstance(inside, list) else []


# Lists of models: which path is one, and what of one a caller is shown. Pure.

MODELS_MAX = 5_000
AT_ONCE_MODELS_MAX = 50  # looked at in one turn: a key may have a hundred patterns
_LIST = "/models"
_ONE = re.compile(r".*/models/\{\+?([a-z_]+)\}")


def is_list(route: Route) -> bool:
    """Return whether a route that costs nothing lists models."""
    return route.path.endswith(_LIST)


def one_of(route: Route, params: Mapping[str, str]) -> str:
    """Return the model that a route that costs nothing tells of; empty for any other route."""
    found = _ONE.fullmatch(route.path)
    return params.get(found[1], "") if found is not None else ""


def narrowed(
    document: bytes, listing: Listing, shows: Callable[[str], bool], checks: NameCheck | None = None
) -> Iterator[bytes]:
    """Yield the document with only the models to be shown, in turns: nothing before the last one.

    Between the first turn and the second, the caller answers whose the names in `checks` are.

    Beside the models only plain values stay. `UpstreamUnreachable` where it cannot be read as a list.
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
