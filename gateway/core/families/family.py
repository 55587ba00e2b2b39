"""What a family of APIs is: everything in which one provider's API differs from another's.

A family is one object, made in its own file or folder and named in `registry.py`. Nothing else knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from gateway.core.blobs import MediaPlaces
from gateway.core.calls.call import Bounds, Call
from gateway.core.calls.route import Route, UpstreamTarget
from gateway.core.families.controlled import Document
from gateway.core.families.exclusions import NONE, Exclusions
from gateway.core.metering.meter import Dialect, Meter
from gateway.core.model import Family
from gateway.core.names import Names
from gateway.errors import Refusal

SEGMENT = "[^/]+"
ID_CHARACTERS_MAX = 512
TOLD_MAX = 1_024  # ids kept of one answer

# Fills in a call from its document and the parameters of its path; `InvalidRequest` names a wrong field.
Reader = Callable[[Call, Document, Mapping[str, str], Bounds], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of metered call: `read` takes its body, `dialect` its answers.

    `maximum` is the field that states a maximum of the output, in what `place` finds in the document; it
    is empty where a call produces none. With `always_reports` a complete answer tells its use; with
    `asks_for_usage` a stream does where `stream_options.include_usage` says so. `keeps` tells whether the
    upstream keeps something of an answer under an id. `unframed` meters a stream that is no events. The most
    uses of provider's tools is stated for all of them by the call's field `uses`, or by each tool's field
    `tool_uses`, which those take whose type begins with one of `limited_tools`. `operation` is what
    OpenTelemetry calls it. `numbers` are those that `read` takes. `media` are the places where it takes
    pictures, sound and files.
    """

    read: Reader
    dialect: Dialect
    maximum: str = ""
    place: Callable[[Document], Document] | None = None
    always_reports: bool = False
    asks_for_usage: bool = False
    keeps: Callable[[Document], bool] | None = None
    unframed: Callable[[Call, int, Bounds], Meter] | None = None
    uses: str = ""
    tool_uses: str = ""
    limited_tools: tuple[str, ...] = ()
    operation: str = "chat"
    numbers: frozenset[str] = frozenset()
    media: MediaPlaces = field(default_factory=MediaPlaces)


@dataclass(slots=True)
class Found:
    """What a body says of ids: those it names objects by, and those of what it brings itself."""

    named: list[object] = field(default_factory=list)
    brought: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects the family's upstreams keep, and where their ids stand.

    `collections` are their paths behind a version; with `by_path` an id is its path there. A body that
    `may_name` none names none in what was said. `add` finds what a field of a body names: it is given its
    holder, and the list that this is an element of, if it is. `is_free` says that a caller's model wrote a
    field, `chosen` that a body chooses a name. `told` has the ids an answer tells of; without any of
    the bytes `tell` it tells of none. The answer that makes an object tells of it; what it `refers` to was
    there before, and is kept for longer where the request named it. One of `results` has the
    ids of what its upstream made of it since, in whatever answer shows it. `actions` are paths
    of what is done with a collection, where an id would stand: they make nothing that is kept.
    """

    collections: tuple[str, ...]
    may_name: Callable[[bytes, Names], bool]
    add: Callable[[str, object, Document, str, Found], None]
    told: Callable[[Document], Iterator[str]]
    is_free: Callable[[str, Document], bool] = lambda name, holder: False
    chosen: Callable[[Document], str | None] = lambda document: None
    by_path: bool = False
    results: frozenset[str] = frozenset()
    actions: frozenset[str] = frozenset()
    tell: tuple[bytes, ...] = ()
    refers: Callable[[Document], Iterator[str]] = lambda document: iter(())

    @property
    def path(self) -> re.Pattern[str]:
        """The place of an object in a path: its collection in any case, its id if there is one, the rest."""
        return re.compile(rf"/({'|'.join(self.collections)})(?:/([^/]+))?(/.*)?\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Listing:
    """How models are listed: the field of the list, that of a name in it, and what stands before a name."""

    field: str = "data"
    name: str = "id"
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class ApiFamily:
    """One family; what it leaves out it has like any other API.

    `refusal` is the body of a refusal, given its request id. `prefixes` begin paths whose unknown ones get
    this family's shape, `own_paths` are those no other has; `spoken_by` is a field by which its clients are
    known on a path of several families (`shares_paths`). `segment` is what a parameter of a path matches.
    `queries` are the parameters of a metered call with the values each may have, None for any plain word.
    `withheld` are fields of a metered call that do not pass; none passes that begins with
    `withheld_prefixes`, whosever call it is. `credentials` are fields its clients send their key in,
    `limits_prefix` begins those that tell an upstream's limits. With `names_requests` its clients expect
    their request id as `request-id`; by `names_session` they name the session of any call, by `own_session`,
    whose name others may use for something else, that of a call in this API. `ceilings` are the most tokens
    an answer may have, by prefixes of names of models, `pictures` what one image costs at most where that is
    more than usual. `target` is where its calls go by
    default, given the environment. `lists` is how it lists models at a path that ends in `/models`.
    `exclusions` tell which dear prices a call cannot have. Tools of the kinds `free_tools` (in small letters,
    without `_` and a date) cost nothing beside their tokens: a client runs them, or their provider takes
    nothing. `provider` is what OpenTelemetry calls whose API it is.
    """

    name: Family
    refusal: Callable[[Refusal, str], dict[str, object]]
    content_type: bytes = b"application/json"
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    target: Callable[[Mapping[str, str]], UpstreamTarget] | None = None
    prefixes: tuple[str, ...] = ()
    own_paths: re.Pattern[str] | None = None
    shares_paths: bool = False
    spoken_by: bytes = b""
    segment: str = SEGMENT
    queries: Mapping[bytes, frozenset[bytes] | None] = field(default_factory=dict)
    withheld: frozenset[bytes] = frozenset()
    withheld_prefixes: tuple[bytes, ...] = ()
    credentials: tuple[bytes, ...] = ()
    limits_prefix: bytes = b"x-ratelimit-"
    names_requests: bool = False
    names_session: bytes = b""
    own_session: bytes = b""
    objects: Objects | None = None
    ceilings: Mapping[str, int] = field(default_factory=dict)
    pictures: Mapping[str, int] = field(default_factory=dict)
    lists: Listing | None = None
    exclusions: Exclusions = NONE
    free_tools: frozenset[str] = frozenset()
    provider: str = ""


def target(
    name: str, base_url: str, variable: str, header: str, scheme: str = ""
) -> Callable[[Mapping[str, str]], UpstreamTarget]:
    """Where calls go, with the credential that an environment variable holds, if it does."""

    def of(environ: Mapping[str, str]) -> UpstreamTarget:
        credential = environ.get(variable, "")
        return UpstreamTarget(name, base_url, ((header, scheme + credential),) if credential else ())

    return of


def ids_of(value: object) -> tuple[str, ...]:
    """The id that a value is, cut where it is longer than any that is kept."""
    return (value[: ID_CHARACTERS_MAX + 1],) if isinstance(value, str) and value else ()


def told_of(objects: Objects, document: object, named: Collection[str] = ()) -> tuple[str, ...]:
    """The ids of objects that an answer, or an event, tells of, its own first; its request `named` these."""
    if not isinstance(document, dict):
        return ()
    again = [one for one in objects.refers(document) if one in named] if named else ()
    return tuple(dict.fromkeys((*objects.told(document), *again)))[:TOLD_MAX]


def object_in(value: Document, name: str) -> Document:
    """The object under a name; empty where none is."""
    inside = value.get(name)
    return inside if isinstance(inside, dict) else {}


def objects_in(value: Document, name: str) -> list[Document]:
    """The objects of a list under a name."""
    inside = value.get(name)
    return [each for each in inside if isinstance(each, dict)] if isinstance(inside, list) else []
