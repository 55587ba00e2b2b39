"""The types of the allow-list: the served paths, and the upstreams that they are forwarded to.

They are separate from `model.py`, because settings are converted straight into them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from gateway.core.billing.sellers import seller_of
from gateway.core.model import GENERIC, Family
from gateway.core.network import Proxies, Proxy, address_refusal


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the allow-list: a path, its upstream, and how its calls are metered.

    `path` is a template: `{name}` matches one segment (`{model}` may hold no slash), `{+name}` one or more
    with the slashes between them, a last `{path…}` the rest.
    """

    methods: tuple[str, ...]
    path: str
    upstream: str
    service: str = ""  # key of its service, empty for a free route; `{service_key}` in `path` replaces it
    family: Family = GENERIC
    meter: str = "none"
    on_disconnect: str = "drain"
    settle: str = "before_end"
    trust_client_units: bool = False
    units_pointer: str = ""  # JSON pointer (RFC 6901) to the units in a generic answer
    queries: tuple[str, ...] = ()  # query parameters that pass besides those of its family
    usage: str = ""
    objects: str = "owned"  # `owned`, `told` or `shared`: who may use stored objects
    models: str = ""  # `unread`: keys with a model list may call it


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """The configured destinations of calls of `/services/{key}/…`."""

    upstreams: tuple[tuple[str, str], ...] = ()  # upstream by service key
    paths: tuple[tuple[str, tuple[str, ...]], ...] = ()  # allowed patterns by service key
    shared: str = ""  # the upstream of services without their own
    unread: frozenset[str] = frozenset()  # services that keys with a model list may call


# Fields that the gateway may put into a body beside those its caller wrote.
ADDED = ("stream_options", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """A number of tokens for the calls of every API, or by meter."""

    every: int | None = None
    by_meter: tuple[tuple[str, int], ...] = ()

    def of(self, meter: str) -> int | None:
        """Return the tokens configured for calls of an API (`meter`), or None if none are."""
        return dict(self.by_meter).get(meter, self.every)


@dataclass(frozen=True, slots=True)
class UpstreamFacts:
    """What an upstream accepts and produces, as its operator configures it."""

    output_max: int | None = None  # most tokens of one answer
    output_min: TokenCounts = TokenCounts()  # smallest maximum that it accepts
    # most tokens of an answer without a stated maximum, 0 for no end
    output_default: TokenCounts = TokenCounts()
    context: int | None = None  # most tokens of prompt and answer together
    listed: bool = False  # look up `context` in its list of models
    maximum: str = ""  # its name for the field of a maximum, empty for the API's own
    adds: frozenset[str] = frozenset(ADDED)  # fields that the gateway may add to a body
    choices: str = "sum"  # its reports are about all choices, or `each`
    on_cut: str = ""  # after a lost connection it `stops` or `goes_on`; empty if unknown

    def most(self, unknown: int) -> int:
        """Return the most tokens that a call may state for one answer, or `unknown` if none is configured."""
        known = [maximum for maximum in (self.output_max, self.context) if maximum is not None]
        return min(known) if known else unknown


# How calls are authenticated at an upstream: by headers, or by credentials of a cloud.
UpstreamAuth = Literal["header", "aws", "google"]


# Placeholders in an upstream's header that name the caller.
TOLD = re.compile(r"\{(organization|tenant|priority)\}")


# The capacity of an upstream, as its operator states it.
MODELS_MAX = 100
PER_MINUTE_MAX = 10**12


@dataclass(frozen=True, slots=True)
class CapacityLimits:
    """The limits that all calls of an account share; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of an upstream, and of models with their own limits, whose calls count there alone.

    With `learned`, each model has an account with the limits that answers to its calls state.
    """

    limits: CapacityLimits = CapacityLimits()
    models: tuple[tuple[str, CapacityLimits], ...] = ()
    learned: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """One upstream: its address, its credentials, and how calls are sent to it."""

    name: str
    base_url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # with the upstream's own credential
    ca_file: str | None = None
    limits: str = "account"  # its own limits apply to the whole `account`, or to the `caller`
    cert_file: str | None = None  # client certificate
    key_file: str | None = None  # key of the client certificate
    proxies: Proxies | None = None  # its own, if any
    via: Proxy | None = None  # the proxy to connect through, None for a direct connection
    fields: frozenset[str] = frozenset()  # numbers in bodies that need no check
    family: str = ""  # its API, empty for any
    path: str = ""  # template of its own paths, empty for the caller's
    query: tuple[tuple[str, str], ...] = ()  # query parameters of each call
    # further credentials, as headers, used after `headers`
    keys: tuple[tuple[tuple[str, str], ...], ...] = field(default=(), repr=False)
    region: str = ""
    project: str = ""
    first_byte_s: float | None = None  # time-out, None for the usual one
    idle_s: float | None = None  # time-out, None for the usual one
    capacity: Capacity | None = None
    auth: str = "header"  # `header`, or a cloud's credentials: `aws`, `google`
    credentials_file: str = ""  # else the machine's own credentials are used
    told: tuple[tuple[str, str], ...] = ()  # headers that name the caller's organization or the like (`TOLD`)
    held: tuple[str, ...] = ()  # the variable or setting of each credential
    facts: UpstreamFacts | None = None
    prices: str = ""  # its price list, empty for that of its family or host
    price_factor: str = ""  # factor on all its prices
    cost: str = "book"  # `reported`: its usage reports state the cost
    # header fields that it gets besides those that its API's clients send, `*` for any; None: by its address
    headers_pass: frozenset[str] | None = None

    def place_of_key(self, key: int) -> str:
        """Return the name of the variable or setting that holds this credential."""
        return self.held[key] if key < len(self.held) else f"upstreams.{self.name}.headers"

    @property
    def by_model(self) -> bool:
        """Whether the path at this upstream contains the model."""
        return "{model}" in self.path

    @property
    def other_fields(self) -> frozenset[str]:
        """The header fields that it gets besides those that its API's clients send, with `*` for any.

        By default a vendor's API gets none, and a server of one's own or of tools gets any.
        """
        if self.headers_pass is not None:
            return self.headers_pass
        sold = self.auth != "header" or seller_of(self.prices, "", self.family, self.base_url) is not None
        of_vendor = sold or address_refusal(self.base_url, private=False) is None
        return frozenset() if of_vendor and self.family != "mcp" else frozenset({ANY})


# Headers that an AWS signature adds.
AWS_FIELDS = ("x-amz-date", "x-amz-security-token", "authorization")

# Types of configured models, for `models.py`.
MODELS_MAX = 2_000
TARGETS_MAX = 16
FallbackCause = Literal["unreachable", "429", "5xx", "credit"]
FALLBACK_CAUSES: tuple[FallbackCause, ...] = ("unreachable", "429", "5xx", "credit")
UNREACHABLE, LIMITED, FAILED, CREDIT = FALLBACK_CAUSES
EVERYBODY = 0


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """One upstream that serves a model, and its name for the model, empty for the requested name."""

    upstream: str
    model: str


@dataclass(frozen=True, slots=True)
class ModelRule:
    """One configured model: an exact `name`, or a `prefix` of names."""

    name: str
    prefix: bool
    targets: tuple[ModelTarget, ...]  # tried in order; * in a model is the rest of the name behind a prefix
    fallback: frozenset[str] = frozenset(FALLBACK_CAUSES)  # kinds of failures that lead to the next target
    organization_id: int = EVERYBODY  # 0: everybody's
    place: str = ""  # where it is configured
    output_max: int | None = None  # overrides its upstreams'
    context: int | None = None  # overrides its upstreams'

    @property
    def claim(self) -> tuple[str, bool, int]:
        """The rule's name, kind and organization: no two rules may have the same."""
        return self.name.casefold(), self.prefix, self.organization_id


# Paths of upstreams: which spellings are equal, and which patterns match a path.
#
# Pure. A path is compared as it is sent, and in the plainest form that any upstream could read it in:
# decoded, without dots, parameters and empty segments, in one case. A path that could be read as
# forbidden is forbidden.

PATHS_MAX = 100
PATTERN_CHARACTERS_MAX = 256
DECODINGS_MAX = 8
READINGS_MAX = 4096  # cached results: a catalogue repeats the same paths
ANY = "*"
VERSION = re.compile(r"v[0-9][a-z0-9]*")

Plain = tuple[str, ...]

# A character in a path segment (RFC 3986, 3.3), without the ; at which some servers end a segment.
CHARACTER = r"(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})"
# Paths with these are refused before any route is looked for, so no pattern could ever let them pass.
TWO_READINGS = r"//|/\.{1,2}(?:/|$)|%(?:2[eEfF]|5[cC]|[01][0-9A-Fa-f]|7[fF])"
_PATTERN = re.compile(f"/(?:{CHARACTER}|/)*")
_NEVER_SENT = re.compile(TWO_READINGS)
# What `read_pattern` takes, as JSON Schema has it: a regular expression of ECMA 262.
PATTERN_SCHEMA = {
    "type": "string",
    "maxLength": PATTERN_CHARACTERS_MAX,
    "pattern": rf"^(?!.*(?:{TWO_READINGS}|[^/]\*|\*[^/])){_PATTERN.pattern}$",
}
# A parameter in a template: whether slashes match too, its name, and whether it matches the rest.
PARAMETER = re.compile(r"\{(\+?)([A-Za-z_]+)(…|\.\.\.)?\}")
_USUAL_PORTS = {80, 443}
HERE = "localhost"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of paths such as `/v1/sms/*`. A last `*` is any rest, another one is a whole segment.

    `written` is a regular expression for raw paths; `segments` and `rest` are the same for plain paths.
    """

    written: str
    segments: Plain
    rest: bool

    def takes(self, path: str, plainly: Plain) -> bool:
        """Return whether a path matches, both as it was sent and in its decoded form `plainly`."""
        more = len(plainly) - len(self.segments)
        if re.fullmatch(self.written, path) is None or more < 0 or (more and not self.rest):
            return False
        return all(mine in (ANY, theirs) for mine, theirs in zip(self.segments, plainly, strict=False))

    def below(self, prefix: Plain) -> Pattern:
        """Return the pattern of the same paths below `prefix`, the path of a base URL."""
        return Pattern(self.written, prefix + self.segments, self.rest)

    def meets(self, other: Pattern) -> bool:
        """Return whether some path could match both patterns."""
        for mine, theirs in zip(self.segments, other.segments, strict=False):
            if mine != theirs and ANY not in (mine, theirs):
                return False
        more = len(self.segments) - len(other.segments)
        return more == 0 or (other.rest if more > 0 else self.rest)


EVERY_PATH = Pattern(".*", (), rest=True)


@lru_cache(READINGS_MAX)
def read_pattern(text: str) -> Pattern:
    """Parse a pattern of paths; ValueError says what a valid one looks like."""
    if len(text) > PATTERN_CHARACTERS_MAX:
        raise ValueError(f"must be at most {PATTERN_CHARACTERS_MAX} characters")
    if _PATTERN.fullmatch(text) is None:
        raise ValueError("must be a path that begins with /, such as /v1/sms/*, without query")
    refuse_never_sent(text)
    segments = text[1:].split("/")
    if any(ANY in segment and segment != ANY for segment in segments):
        raise ValueError("must have * as a whole segment: one in the middle, the rest at the end")
    rest = segments[-1] == ANY
    named = segments[:-1] if rest else segments
    written = "".join("/[^/]+" if segment == ANY else f"/{re.escape(segment)}" for segment in named)
    plainly = tuple(ANY if segment == ANY else part for segment in named for part in _plain_part(segment))
    return Pattern(written + "/.*" if rest else written, plainly, rest)


def refuse_never_sent(path: str) -> None:
    """Raise ValueError if a path has parts with which the gateway refuses any request, such as `//`."""
    if _NEVER_SENT.search(path) is not None:
        raise ValueError("must not hold //, dots as a segment, or an encoded slash, backslash or dot")


def of_template(template: str) -> Pattern:
    """Return the pattern of all paths that match a route's template, or lie below such a path."""
    names = [segment for segment in template.replace("...", "…").split("/") if segment]
    if any("…" in name for name in names):
        return EVERY_PATH  # only the rest is sent on
    plainly = tuple(ANY if "{" in name else part for name in names for part in _plain_part(name))
    return Pattern(".*", plainly, rest=True)


def template_expression(template: str, prefix: Plain) -> re.Pattern[str]:
    """Return an expression for the plain paths of a route behind a prefix, and all paths below them.

    A template with more than one segment after its version (`chat/completions`, `models/{model}:…`)
    matches behind any prefix, because compatible APIs and deployments have other prefixes. Paths are in
    the form of `shown`.
    """
    names = [segment for segment in template.replace("...", "…").split("/") if segment]
    parts: list[str] = []
    if any("…" in name for name in names):
        names = []
    for name in names:
        literals = PARAMETER.split(name)[:: 1 + PARAMETER.groups]
        parts.append("[^/]+".join(re.escape(literal.casefold()) for literal in literals))
    tail = parts[1:] if parts and VERSION.fullmatch(parts[0]) else parts
    if len(tail) > 1:
        return re.compile("(?:/.*)?" + "".join(f"/{part}" for part in tail) + "(?:/.*)?", re.DOTALL)
    front = [re.escape(segment) for segment in prefix]
    return re.compile("".join(f"/{part}" for part in front + parts) + "(?:/.*)?", re.DOTALL)


def render_path(path: Plain) -> str:
    """Return the segments of a plain path joined by `/`, such as `/v1/models`."""
    return "/" + "/".join(path)


def plain(path: str) -> Plain | None:
    """Return a path in its plainest form: decoded, in lower case; None if it is encoded too many times."""
    segments = decoded_segments(path)
    return None if segments is None else tuple([segment.casefold() for segment in segments])


def decoded_segments(path: str) -> Plain | None:
    """Return the decoded segments of a path in their own case, or None if it is encoded too many times."""
    for _ in range(DECODINGS_MAX):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    else:
        return None
    normal = unicodedata.normalize("NFKC", path).replace("\\", "/")
    names: list[str] = []
    for segment in re.split(r"[?#]", normal, maxsplit=1)[0].split("/"):
        name = segment.partition(";")[0].strip()
        if name == ".." and names:
            names.pop()
        elif name.strip("."):
            names.append(name.rstrip(". "))
    return tuple(names)


@lru_cache(READINGS_MAX)
def place_of(base_url: str) -> tuple[str, Plain]:
    """Return the host of a base URL in one spelling, and the plain path of the URL.

    Ports 80 and 443 count as the same server, and so do all names of this machine.
    """
    parts = urlsplit(base_url)
    host = (parts.hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        host = unicodedata.normalize("NFKC", host).casefold()
    else:
        inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        address = inner or address
        host = HERE if address.is_loopback or address.is_unspecified else str(address)
    port = parts.port
    usual = port is None or port in _USUAL_PORTS
    return host if usual else f"{host}:{port}", plain(parts.path) or ()


def _plain_part(segment: str) -> Plain:
    """Return a segment of a pattern as decoded lower-case segments; empty if `segment` is empty."""
    return (segment,) if segment == ANY else plain(segment) or ()


# Templates of paths on the allow-list: their syntax, and what they match.
#
# Pure. Settings and the data plane read them by this one reader, so a checked pattern is the served one.

_LITERAL = re.compile(f"(?:{CHARACTER}|/)*")
REST = "rest_of_path"


def expression_of(template: str, segment: str) -> str:
    """Return a regular expression for a path template; ValueError says what a valid one looks like.

    `{name}` matches one segment, by the expression `segment`; `{+name}` matches several; `{name…}` at the
    end matches the rest of the path, in a group called `REST`.
    """
    parts: list[str] = []
    literals: list[str] = []
    names: set[str] = set()
    at = 0
    for match in PARAMETER.finditer(template):
        if literals and match.start() == at:
            raise ValueError("must have a character between two parameters")
        literals.append(template[at : match.start()])
        several, name, rest = match.groups()
        if name in names or name == REST:
            raise ValueError(f"must name each parameter once and none {REST}: {{{name}}}")
        if rest and (several or match.end() != len(template)):
            raise ValueError(f"must have the rest, {{{name}…}}, at its end and without a +")
        names.add(name)
        taken = f"{segment}(?:/{segment})*" if several else segment
        parts += re.escape(literals[-1]), f"(?P<{REST}>.*)" if rest else f"(?P<{name}>{taken})"
        at = match.end()
    literals.append(template[at:])
    # ValueError if no request's path could contain the text between parameters
    for literal in literals:
        if "{" in literal or "}" in literal:
            raise ValueError("must name parameters by letters and _: {name}, {+name} or a last {name…}")
        if _LITERAL.fullmatch(literal) is None:
            raise ValueError("must be a path without query or ;, other characters are written as %XX")
    if ANY in "x".join(literals).split("/"):
        raise ValueError("must not have * as a segment, which stands for itself: write {name} or {path…}")
    refuse_never_sent("x".join(literals))
    return "".join((*parts, re.escape(literals[-1])))


# Templates of an upstream's own paths: what a call is sent to there, by its model and by what it does.
#
# Pure. `{path}` is the caller's whole path without its first slash, `{operation}` what is behind its version
# or its deployment, or behind the colon of an action; `{region}` and `{project}` are the upstream's words.

OWN_PARAMETERS = ("model", "operation", "path", "region", "project")
_OWN = re.compile(r"\{([^{}]*)\}")
_ACTION = re.compile(r"/[^/:]+:([A-Za-z]+)\Z")
_VERSIONED = re.compile(
    rf"/(?:{VERSION.pattern}/(?:projects/[^/]+/locations/[^/]+/endpoints/openapi/)?|deployments/[^/]+/)"
)


def check_own_path(template: str, words: Collection[str]) -> None:
    """Raise ValueError if an upstream's path template is not valid.

    `words` are the parameters, such as `region`, that the upstream's configuration defines.
    """
    path, _, query = template.partition("?")
    named = _OWN.findall(path)
    unknown = [name for name in named if name not in OWN_PARAMETERS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in OWN_PARAMETERS)
        raise ValueError(f"must have no parameter {{{unknown[0]}}}: expected {known}")
    missing = [name for name in named if name in {"region", "project"} and name not in words]
    if missing:
        raise ValueError(f"must not have {{{missing[0]}}} where the upstream has no `{missing[0]}`")
    plainly = _OWN.sub("x", path)
    if not plainly.startswith("/") or _LITERAL.fullmatch(plainly) is None:
        raise ValueError("must be a path that begins with /, such as /openai/deployments/{model}/{operation}")
    if re.fullmatch(r"[A-Za-z0-9._~=&%:,+-]*", query) is None:
        raise ValueError("must have a query of plain names and values behind its ?")
    refuse_never_sent(plainly)
    if not {"operation", "path"}.intersection(named):
        raise ValueError("must have {operation} or {path}: every call would be the same one there")


def own_path(target: UpstreamTarget, route: Route, path: str, model: str) -> str:
    """Return a call's path at its upstream, without the path of the base URL.

    Without a configured template it is the caller's path. In a template `{operation}` is the part of the
    path after the version, or the action of the route.
    """
    if not target.path:
        return path
    action, version = _ACTION.search(route.path), _VERSIONED.search(path)
    operation = path[1:] if version is None else path[version.end() :]
    if action is not None:
        operation = action[1]
    words = {
        "model": quote(model, safe="@"), "operation": operation, "path": path[1:],
        "region": quote(target.region, safe=""), "project": quote(target.project, safe=""),
    }  # fmt: skip
    return _OWN.sub(lambda parameter: words[parameter[1]], target.path)


def own_query(target: UpstreamTarget, query: str) -> str:
    """Return a call's query at its upstream, with `?` if not empty.

    Values that the upstream's configuration fixes replace those of the caller.
    """
    if not target.query:
        return query
    fixed = {name for name, _ in target.query}
    pairs = [pair for pair in query[1:].split("&") if pair and unquote(pair.partition("=")[0]) not in fixed]
    pairs += [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in target.query]
    return "?" + "&".join(pairs)
