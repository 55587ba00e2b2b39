"""The nouns of the allow-list: what is served, and where it is forwarded to.

Apart from `model.py`, because settings are read straight into these.
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

from gateway.core.calls.capacity import Capacity
from gateway.core.model import GENERIC, Family
from gateway.core.network import Proxies, Proxy


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the allow-list.

    `path` is a template: `{name}` takes one segment (`{model}` may hold no slash), `{+name}` one or
    more with the slashes between them, a last `{path…}` takes the rest. `service` is a service key, empty
    for a free route; a route whose template holds `{service_key}` takes its service from the path.
    `units_pointer` is a JSON pointer (RFC 6901) to the units in an answer of a generic route, empty for
    none. `queries` are query parameters that pass beside those its family has. `objects` are `owned` by the
    organization whose call made them, `told` if an answer that another gateway tells makes them its
    organization's too, or `shared` where each has an upstream account of its own. `models` is
    `unread` where a key with a list of models may call what is metered without reading which one is asked.
    """

    methods: tuple[str, ...]
    path: str
    upstream: str
    service: str = ""
    family: Family = GENERIC
    meter: str = "none"
    on_disconnect: str = "drain"
    settle: str = "before_end"
    trust_client_units: bool = False
    units_pointer: str = ""
    queries: tuple[str, ...] = ()
    usage: str = ""
    objects: str = "owned"
    models: str = ""


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """Where a configuration has calls of `/services/{key}/…` go.

    `upstreams` has the name of an upstream by service key, `paths` the patterns its calls must be within.
    `shared` names the upstream of every service that has none of its own; empty where each must have one.
    `unread` are those that keys with a list of models may call all the same, wherever they go.
    """

    upstreams: tuple[tuple[str, str], ...] = ()
    paths: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shared: str = ""
    unread: frozenset[str] = frozenset()


# Fields that the gateway may put into a body beside those its caller wrote.
ADDED = ("stream_options", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """A number of tokens for calls of every API, or of those with a meter of `by_meter` alone."""

    every: int | None = None
    by_meter: tuple[tuple[str, int], ...] = ()

    def of(self, meter: str) -> int | None:
        """Return the number for calls with this meter, None where nobody states one."""
        return dict(self.by_meter).get(meter, self.every)


@dataclass(frozen=True, slots=True)
class UpstreamFacts:
    """What an upstream takes and makes, as far as its operator states it.

    `output_max` is the most tokens of one answer, `context` those of prompt and answer together, None where
    nobody knows; it is looked up in the upstream's own list of models where it is `listed`. A lower maximum
    than `output_min` is none there; without a maximum an answer has `output_default` at most, 0 where
    nothing ends it. `maximum` is the only name of the field of a maximum that it knows, empty for that of
    the API. `adds` are the fields that it takes where no caller wrote them. Its reports of use are about all
    choices (`sum`) or one (`each`). Where a connection to it is cut, it `stops` or `goes_on`; empty where
    nobody says.
    """

    output_max: int | None = None
    output_min: TokenCounts = TokenCounts()
    output_default: TokenCounts = TokenCounts()
    context: int | None = None
    listed: bool = False
    maximum: str = ""
    adds: frozenset[str] = frozenset(ADDED)
    choices: str = "sum"
    on_cut: str = ""

    def most(self, unknown: int) -> int:
        """Return the most tokens that one answer may state, `unknown` where nobody says it."""
        known = [one for one in (self.output_max, self.context) if one is not None]
        return min(known) if known else unknown


# What proves to an upstream who calls: fields of the head, or credentials of a cloud.
UpstreamAuth = Literal["header", "aws", "google"]


# What a header field of an upstream may say of each call.
TOLD = re.compile(r"\{(organization|tenant|priority)\}")


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Where a route is forwarded to. `headers` carry the upstream's own credential.

    `cert_file` and `key_file` are the certificate that it is shown. `limits` says whom it refuses by limits
    of its own: its whole `account`, or the `caller` alone. `proxies` are its own where it names any;
    `via` is the one that connections go through, None where they go straight there. `fields` are numbers in
    bodies that may go there unread. `family` is the API it speaks, empty where it may speak any. `path` is
    the template of its own paths, empty where they are the caller's; `query` goes with each call. `keys` are
    its credentials where it has several, each the header fields of one: they come after `headers`.
    `first_byte_s` and `idle_s` are its own time-outs, None where it has the usual ones. `capacity` is what it
    can take, None where nobody states that. `auth` says what proves who calls: its headers, or a cloud's
    credentials (`aws`, `google`), which are in `credentials_file` or where the machine has them. `told` are
    header fields whose values say of a call whose it is (`TOLD`). `held` says where each credential is kept:
    the variable or the setting. `facts` are None where nobody states any. It bills by the list of `prices`,
    empty for that of its family or host, and `price_factor` times what that says. Where `cost` is `reported`,
    a call costs what its report of use says.
    """

    name: str
    base_url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_file: str | None = None
    limits: str = "account"
    cert_file: str | None = None
    key_file: str | None = None
    proxies: Proxies | None = None
    via: Proxy | None = None
    fields: frozenset[str] = frozenset()
    family: str = ""
    path: str = ""
    query: tuple[tuple[str, str], ...] = ()
    keys: tuple[tuple[tuple[str, str], ...], ...] = field(default=(), repr=False)
    region: str = ""
    project: str = ""
    first_byte_s: float | None = None
    idle_s: float | None = None
    capacity: Capacity | None = None
    auth: str = "header"
    credentials_file: str = ""
    told: tuple[tuple[str, str], ...] = ()
    held: tuple[str, ...] = ()
    facts: UpstreamFacts | None = None
    prices: str = ""
    price_factor: str = ""
    cost: str = "book"

    def place_of_key(self, key: int) -> str:
        """Return the name of the variable or setting that holds this credential."""
        return self.held[key] if key < len(self.held) else f"upstreams.{self.name}.headers"

    @property
    def by_model(self) -> bool:
        """Whether where a call goes there depends on its model."""
        return "{model}" in self.path


# What a signature of Amazon's adds to a head.
AWS_FIELDS = ("x-amz-date", "x-amz-security-token", "authorization")

# Models that people configure: the nouns of `models.py`.
MODELS_MAX = 2_000
TARGETS_MAX = 16
UNREACHABLE, LIMITED, FAILED = "unreachable", "429", "5xx"
FALLBACK_CAUSES = (UNREACHABLE, LIMITED, FAILED)
EVERYBODY = 0


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """One upstream that answers for a model, and what it calls that; empty is the name that is asked for."""

    upstream: str
    model: str


@dataclass(frozen=True, slots=True)
class ModelRule:
    """One configured model: an exact `name`, or what names begin with where it is a `prefix`.

    `targets` are tried in order where one fails by a cause of `fallback`; a * in their model is what stands
    behind a prefix. An `organization_id` of 0 is everybody's. `place` says where it was configured. Its own
    `output_max` and `context` go before those of its upstreams.
    """

    name: str
    prefix: bool
    targets: tuple[ModelTarget, ...]
    fallback: frozenset[str] = frozenset(FALLBACK_CAUSES)
    organization_id: int = EVERYBODY
    place: str = ""
    output_max: int | None = None
    context: int | None = None

    @property
    def claim(self) -> tuple[str, bool, int]:
        """What nobody else may claim."""
        return self.name.casefold(), self.prefix, self.organization_id


# Paths of upstreams: where two spellings lead to the same, and which patterns a path is within.
#
# Pure. A path is compared as it is sent, and in the plainest form that any upstream could read it in:
# decoded, without dots, parameters and empty segments, in one case. A path that could be read as
# forbidden is forbidden.

PATHS_MAX = 100
PATTERN_CHARACTERS_MAX = 256
DECODINGS_MAX = 8
READINGS_MAX = 4096  # a catalogue has the same ones again and again
ANY = "*"
VERSION = re.compile(r"v[0-9][a-z0-9]*")

Plain = tuple[str, ...]

# What a segment of a request's path is made of (RFC 3986, 3.3), without the ; that some read as its end.
CHARACTER = r"(?:[A-Za-z0-9\-._~!$&'()*+,=:@]|%[0-9A-Fa-f]{2})"
# Paths with these are refused before any route is looked for, so no pattern could ever let them pass.
TWO_READINGS = r"//|/\.{1,2}(?:/|\Z)|%(?:2[eEfF]|5[cC]|[01][0-9A-Fa-f]|7[fF])"
_PATTERN = re.compile(f"/(?:{CHARACTER}|/)*")
_NEVER_SENT = re.compile(TWO_READINGS)
# Of a template: whether it takes slashes too, its name, and whether it takes the rest.
PARAMETER = re.compile(r"\{(\+?)([A-Za-z_]+)(…|\.\.\.)?\}")
_USUAL_PORTS = {80, 443}
HERE = "localhost"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Paths such as `/v1/sms/*`: a last `*` is whatever follows, one before it a whole segment.

    `written` is an expression of a path as it is sent, `segments` with `rest` its plain form.
    """

    written: str
    segments: Plain
    rest: bool

    def takes(self, path: str, plainly: Plain) -> bool:
        """Return whether a path is within it, in every reading."""
        more = len(plainly) - len(self.segments)
        if re.fullmatch(self.written, path) is None or more < 0 or (more and not self.rest):
            return False
        return all(mine in (ANY, theirs) for mine, theirs in zip(self.segments, plainly, strict=False))

    def below(self, prefix: Plain) -> Pattern:
        """Return the same paths where they stand behind a base URL's own path."""
        return Pattern(self.written, prefix + self.segments, self.rest)

    def meets(self, other: Pattern) -> bool:
        """Return whether any path could be within both."""
        for mine, theirs in zip(self.segments, other.segments, strict=False):
            if mine != theirs and ANY not in (mine, theirs):
                return False
        more = len(self.segments) - len(other.segments)
        return more == 0 or (other.rest if more > 0 else self.rest)


EVERY_PATH = Pattern(".*", (), True)


@lru_cache(READINGS_MAX)
def read_pattern(text: str) -> Pattern:
    """Read a pattern; ValueError says what would be one."""
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
    """Raise ValueError if a path, or a pattern of paths, has parts that are refused before any routing."""
    if _NEVER_SENT.search(path) is not None:
        raise ValueError("must not hold //, dots as a segment, or an encoded slash, backslash or dot")


def of_template(template: str) -> Pattern:
    """Return the paths of a route's template, and everything that lies below them."""
    names = [each for each in template.replace("...", "…").split("/") if each]
    if any("…" in each for each in names):
        return EVERY_PATH  # only the rest is sent on
    plainly = tuple(ANY if "{" in each else part for each in names for part in _plain_part(each))
    return Pattern(".*", plainly, True)


def template_expression(template: str, prefix: Plain) -> re.Pattern[str]:
    """Return a pattern for plain paths, `shown`, that a route behind a prefix takes, or paths below them.

    What names more than a word behind its version (`chat/completions`, `models/{model}:…`) is the same call
    behind any other front: compatible APIs and deployments have theirs.
    """
    names = [each for each in template.replace("...", "…").split("/") if each]
    parts: list[str] = []
    for name in names if not any("…" in each for each in names) else ():
        literals = PARAMETER.split(name)[:: 1 + PARAMETER.groups]
        parts.append("[^/]+".join(re.escape(literal.casefold()) for literal in literals))
    tail = parts[1:] if parts and VERSION.fullmatch(parts[0]) else parts
    if len(tail) > 1:
        return re.compile("(?:/.*)?" + "".join(f"/{part}" for part in tail) + "(?:/.*)?", re.DOTALL)
    front = [re.escape(each) for each in prefix]
    return re.compile("".join(f"/{part}" for part in front + parts) + "(?:/.*)?", re.DOTALL)


def shown(path: Plain) -> str:
    """Return a plain path in one line."""
    return "/" + "/".join(path)


def plain(path: str) -> Plain | None:
    """Return the plainest reading of a path; None where it is encoded over and over, which nobody needs."""
    found = decoded_segments(path)
    return None if found is None else tuple([segment.casefold() for segment in found])


def decoded_segments(path: str) -> Plain | None:
    """Return the same in the case it is written in, which decides in ids."""
    for _ in range(DECODINGS_MAX):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    else:
        return None
    normal = unicodedata.normalize("NFKC", path).replace("\\", "/")
    found: list[str] = []
    for segment in re.split(r"[?#]", normal, maxsplit=1)[0].split("/"):
        name = segment.partition(";")[0].strip()
        if name == ".." and found:
            found.pop()
        elif name.strip("."):
            found.append(name.rstrip(". "))
    return tuple(found)


@lru_cache(READINGS_MAX)
def place_of(base_url: str) -> tuple[str, Plain]:
    """Return the server at a base URL, in one spelling of its host, and the plain path in front of every
    path.

    The usual ports of http and https count as one, for behind them is one server as a rule; so do all names
    of this machine.
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
    """Return a segment of a pattern in its plain form: none where it is empty."""
    return (segment,) if segment == ANY else plain(segment) or ()


# Templates of paths on the allow-list: what one may be written like, and what matches it.
#
# Pure. Settings and the data plane read them by this one reader, so a checked pattern is the served one.

_LITERAL = re.compile(f"(?:{CHARACTER}|/)*")
REST = "rest_of_path"


def expression_of(template: str, segment: str) -> str:
    """Return a regular expression of a path template; ValueError says what would be one.

    `{name}` takes what `segment` matches, `{+name}` slashes too, `{name…}` at the end the rest, as `REST`.
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
    # ValueError where the text between parameters could be in no request's path
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
    """Raise ValueError if a template is not valid; `words` are parameters that the upstream has."""
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
    """Return a call's path at its upstream, without the path of the base URL; its own where there is no
    template.

    Its route says which action it is, whatever stands in the path.
    """
    if not target.path:
        return path
    action, version = _ACTION.search(route.path), _VERSIONED.search(path)
    operation = (
        action[1] if action is not None else path[version.end() :] if version is not None else path[1:]
    )
    words = {
        "model": quote(model, safe="@"), "operation": operation, "path": path[1:],
        "region": quote(target.region, safe=""), "project": quote(target.project, safe=""),
    }  # fmt: skip
    return _OWN.sub(lambda parameter: words[parameter[1]], target.path)


def own_query(target: UpstreamTarget, query: str) -> str:
    """Return a call's query at its upstream, with ? if not empty: fixed values replace the caller's."""
    if not target.query:
        return query
    fixed = {name for name, _ in target.query}
    pairs = [pair for pair in query[1:].split("&") if pair and unquote(pair.partition("=")[0]) not in fixed]
    pairs += [f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in target.query]
    return "?" + "&".join(pairs)
