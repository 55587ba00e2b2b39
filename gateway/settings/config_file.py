"""The configuration file in YAML, and the built-in table: routes, upstreams and issuers of tokens.

The file contains all that is too large for the environment. `${NAME}` and `${NAME:-otherwise}` are replaced
from the environment inside strings, `$$` is a dollar sign. Anything unknown is refused with its place in the
file. Values are never shown, since a header of an upstream may be a credential.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, get_args
from urllib.parse import parse_qsl, urlsplit

import msgspec

from gateway.core.calls.binding import (
    SERVICES_PREFIX,
    UNREAD_METERS,
    conflicting,
    makes_batches,
    reach_of,
)
from gateway.core.calls.models import conflict
from gateway.core.calls.routes import (
    AWS_FIELDS,
    EVERYBODY,
    FALLBACK_CAUSES,
    MODELS_MAX,
    PARAMETER,
    PATHS_MAX,
    PATTERN_CHARACTERS_MAX,
    PER_MINUTE_MAX,
    TARGETS_MAX,
    TOLD,
    Capacity,
    CapacityLimits,
    FallbackCause,
    ModelRule,
    ModelTarget,
    Route,
    ServiceRules,
    TokenCounts,
    UpstreamAuth,
    UpstreamFacts,
    UpstreamTarget,
    check_own_path,
    expression_of,
    read_pattern,
)
from gateway.core.calls.routes import MODELS_MAX as OWN_LIMITS_MAX
from gateway.core.families import mcp
from gateway.core.families.header_fields import may_pass
from gateway.core.families.registry import ALL, FAMILIES, SHAPES
from gateway.core.http_limits import Count, Seconds
from gateway.core.issuers import (
    GROUPS,
    LEEWAY_S,
    SUBJECT,
    USUAL_ALGORITHMS,
    USUAL_SCOPES,
    IdentityProvider,
    Issuer,
    SignIn,
    may_fetch,
)
from gateway.core.model import GENERIC, Family, Service
from gateway.core.network import Proxies, without_password
from gateway.errors import SettingError
from gateway.files import require_regular
from gateway.settings.documents import convert_document, parse_yaml, read_file
from gateway.settings.proxies import own_proxies
from gateway.settings.secret_files import Environment, read_secret
from gateway.settings.tls_files import authority_at

# Issuers of signed tokens in a configuration file.

ISSUERS_MAX = 32

Algorithm: TypeAlias = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Text = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}\Z")]
Claim = Annotated[str, msgspec.Meta(pattern=r"^(/([^~/]|~0|~1)+)+\Z", max_length=256)]
Value = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
# Types of fields for tokens of callers and of people.
Algorithms = Annotated[tuple[Algorithm, ...], msgspec.Meta(min_length=1)]
Leeway = Annotated[float, msgspec.Meta(ge=0, le=300)]
Subjects = Annotated[dict[Value, Value], msgspec.Meta(max_length=1_000)]
Required = Annotated[
    dict[Claim, Annotated[tuple[Value, ...], msgspec.Meta(min_length=1, max_length=1_000)]],
    msgspec.Meta(max_length=16),
]


class IssuerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuer: Text
    audiences: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=16)]
    algorithms: Algorithms = USUAL_ALGORITHMS
    jwks_uri: str = ""
    jwks_file: str = ""
    ca_file: str = ""
    token_file: str = ""
    leeway_s: Leeway = LEEWAY_S
    subject: Claim = SUBJECT
    subjects: Subjects = {}
    user: Claim | Literal[""] = ""
    require: Required = {}
    groups: Claim = GROUPS


def issuers_of(written: Iterable[IssuerConfig]) -> tuple[Issuer, ...]:
    """Return the issuers of a configuration. Raise `SettingError` with the path of a wrong field."""
    issuers: dict[str, Issuer] = {}
    for number, one in enumerate(written):
        place = f"issuers[{number}]"
        if one.issuer in issuers:
            raise SettingError(f"{place}.issuer: {without_password(one.issuer)!r} stands here a second time")
        _check(one, place)
        values = msgspec.structs.asdict(one)
        values |= {"subjects": tuple(one.subjects.items()), "require": tuple(one.require.items())}
        issuers[one.issuer] = Issuer(**values)
    return tuple(issuers.values())


def _check(issuer_config: IssuerConfig, place: str) -> None:
    if issuer_config.jwks_uri and issuer_config.jwks_file:
        raise SettingError(f"{place}: jwks_uri and jwks_file are both set: expected one of them")
    if issuer_config.jwks_uri and not may_fetch(issuer_config.jwks_uri):
        raise SettingError(f"{place}.jwks_uri: keys come over https:// alone, but for this machine's own")
    if not issuer_config.jwks_uri and not issuer_config.jwks_file and not may_fetch(issuer_config.issuer):
        message = "is no https:// address, where its discovery document would be: say jwks_uri or jwks_file"
        raise SettingError(f"{place}.issuer: {without_password(issuer_config.issuer)!r} {message}")
    check_authority(issuer_config.ca_file, place)


def check_authority(ca_file: str, place: str) -> None:
    """Raise `SettingError` if `ca_file` is set and cannot be used."""
    if ca_file:
        authority_at(ca_file, f"{place}.ca_file: {ca_file!r} cannot be used")


# Sign-in to the console in a configuration file.

PROVIDERS_MAX = 16
_AT_CONSOLE = "expected https://host, as browsers reach the console"

Label = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Slug = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")]
Scope = Annotated[str, msgspec.Meta(pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{1,128}\Z")]
Secret = Annotated[str, msgspec.Meta(pattern=r"^[\x20-\x7e]{0,1024}\Z")]


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Slug
    issuer: Text
    client_id: Text
    label: Label | Literal[""] = ""
    client_secret: Secret = ""
    client_secret_file: str = ""
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1, max_length=16)] = USUAL_SCOPES
    algorithms: Algorithms = USUAL_ALGORITHMS
    ca_file: str = ""
    leeway_s: Leeway = LEEWAY_S
    subject: Claim = SUBJECT
    subjects: Subjects = {}
    person: Claim | Literal[""] = ""
    require: Required = {}
    end_session: bool = True
    groups: Claim = GROUPS


class SignInConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    console_url: str = ""
    providers: Annotated[tuple[ProviderConfig, ...], msgspec.Meta(max_length=PROVIDERS_MAX)] = ()


def sign_in_of(written: SignInConfig) -> SignIn:
    """Return the sign-in settings of a configuration. Raise `SettingError` with the path of a wrong field."""
    if written.console_url or written.providers:
        url = written.console_url
        if not url:
            raise SettingError(f"sign_in.console_url is missing: {_AT_CONSOLE}")
        parts = urlsplit(url)
        if not may_fetch(url) or parts.path not in {"", "/"} or parts.query:
            raise SettingError(f"sign_in.console_url: {without_password(url)!r} is not valid: {_AT_CONSOLE}")
    names: set[str] = set()
    issuers: set[str] = set()
    for number, provider in enumerate(written.providers):
        place = f"sign_in.providers[{number}]"
        if provider.name in names or provider.issuer in issuers:
            field = "name" if provider.name in names else "issuer"
            raise SettingError(f"{place}.{field}: {getattr(provider, field)!r} stands here a second time")
        _check_sign_in(provider, place)
        names.add(provider.name)
        issuers.add(provider.issuer)
    return SignIn(written.console_url.rstrip("/"), tuple(map(_provider, written.providers)))


def _provider(provider_config: ProviderConfig) -> IdentityProvider:
    """Return the identity provider of an entry in the configuration file."""
    said = {
        name: getattr(provider_config, name)
        for name in ("algorithms", "ca_file", "leeway_s", "subject", "groups")
    }
    said |= {
        "subjects": tuple(provider_config.subjects.items()),
        "require": tuple(provider_config.require.items()),
    }
    rules = Issuer(provider_config.issuer, (provider_config.client_id,), user=provider_config.person, **said)
    label = provider_config.label or urlsplit(provider_config.issuer).hostname or provider_config.name
    secret = (provider_config.client_secret, provider_config.client_secret_file)
    return IdentityProvider(
        provider_config.name,
        label,
        rules,
        provider_config.client_id,
        *secret,
        provider_config.scopes,
        provider_config.end_session,
    )


def _check_sign_in(provider_config: ProviderConfig, place: str) -> None:
    if not may_fetch(provider_config.issuer):
        message = "is no https:// address, where its discovery document would be"
        raise SettingError(f"{place}.issuer: {without_password(provider_config.issuer)!r} {message}")
    if provider_config.client_secret and provider_config.client_secret_file:
        raise SettingError(
            f"{place}: client_secret and client_secret_file are both set: expected one of them"
        )
    if "openid" not in provider_config.scopes:
        raise SettingError(f"{place}.scopes: openid is missing, without which nobody is named")
    check_authority(provider_config.ca_file, place)


# The value of `context` if the upstream's own list has the context of its models.
LISTED = "listed"
ANY_METHODS = ("ANY",)
# The placeholder of a key in a header of an upstream.
KEY = "{key}"
CONFIG_BYTES_MAX = 1 << 20
WORKLOADS_MAX = 10_000
FIELDS_MAX = 100
UPSTREAM_KEYS_MAX = 16
TOKENS_MAX = 100_000_000  # in one answer or context

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
Method = Literal["ANY", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
if TYPE_CHECKING:
    MeterName: TypeAlias = str
    FamilyName: TypeAlias = str
else:
    MeterName = StrEnum("MeterName", {name: name for name in ("none", "generic", *SHAPES)})
    FamilyName = StrEnum("FamilyName", {name: name for name in FAMILIES})
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Pointer = Annotated[str, msgspec.Meta(pattern=r"^(/([^~/]|~0|~1)*)*\Z", max_length=256)]
FieldName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
HeaderPassed = Annotated[str, msgspec.Meta(pattern=r"^(\*|[A-Za-z0-9.-]{1,64})\Z")]
Query = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~-]{1,64}\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
# A model, as callers or an upstream name it.
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x2b\x2d-\x7e]{1,256}\Z")]
# A workload by the URI of its certificate, and the API key that it uses.
Uri = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*://[\x21-\x7e]{1,2000}\Z")]
Key = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}\Z")]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]
TokensOrNone = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
PerMinute = Annotated[int, msgspec.Meta(ge=1, le=PER_MINUTE_MAX)]
# A factor on the list's prices by which an upstream bills.
PriceFactor = Annotated[str, msgspec.Meta(pattern=r"^(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,9})?\Z")]
Path_ = Annotated[str, msgspec.Meta(pattern=r"^/", max_length=1024)]


class RouteConfig(NamedTuple):
    """The routes, the upstreams they lead to, and the other tables of a configuration file.

    `services` are the upstreams of calls to services.
    """

    routes: tuple[Route, ...]
    upstreams: tuple[UpstreamTarget, ...]
    services: ServiceRules = ServiceRules()
    workloads: tuple[tuple[str, str], ...] = ()
    issuers: tuple[Issuer, ...] = ()
    sign_in: SignIn = SignIn()
    models: tuple[ModelRule, ...] = ()

    def check_services(self, catalogue: Mapping[str, Service]) -> None:
        """Raise `SettingError` if two services with different prices can reach the same paths of an upstream.

        Prices are those of the `catalogue`; a service that is not in it may have any price. Nothing is
        checked if one upstream serves all services.
        """
        targets, paths = {target.name: target for target in self.upstreams}, dict(self.services.paths)
        bound = () if self.services.shared else sorted(self.services.upstreams)
        reaches = [reach_of(key, targets[name], name, paths.get(key, ())) for key, name in bound]
        for one, other in conflicting(reaches, catalogue, unknown=True):
            raise SettingError(
                f"services.{one.service} and services.{other.service}: both get to the same paths of the "
                f"upstream {one.upstream}, so what costs more could be had for less: "
                "give each `paths` of its own, such as [/v1/sms/*]"
            )

    def redirected(self, base_url: str, proxies: Proxies | None = None) -> RouteConfig:
        """Return the table with every upstream and service at one base URL, through these proxies."""
        upstreams = {
            target.name: replace(target, base_url=base_url, proxies=proxies or target.proxies)
            for target in self.upstreams
        }
        upstreams.setdefault("services", UpstreamTarget("services", base_url, proxies=proxies))
        services = replace(self.services, shared="services")
        return self._replace(
            routes=_add_services(self.routes), upstreams=tuple(upstreams.values()), services=services
        )

    def through(self, proxies: Proxies) -> RouteConfig:
        """Return the table with these proxies for all upstreams, issuers and providers without their own."""
        upstreams = tuple(_through(proxies, target) for target in self.upstreams)
        issuers = tuple(replace(issuer, proxies=proxies) for issuer in self.issuers)
        providers = (
            replace(provider, issuer=replace(provider.issuer, proxies=proxies))
            for provider in self.sign_in.providers
        )
        sign_in = replace(self.sign_in, providers=tuple(providers))
        return self._replace(upstreams=upstreams, issuers=issuers, sign_in=sign_in)


def _through(proxies: Proxies, target: UpstreamTarget) -> UpstreamTarget:
    own = proxies if target.proxies is None else target.proxies.with_authority(proxies.ca_file)
    return replace(target, via=own.to(target.base_url))


# The upstream of this route is the service's.
SERVICES_ROUTE = Route(ANY_METHODS, SERVICES_PREFIX + "{service_key}/{path…}", "", meter="generic")

# The first path that matches decides.
DEFAULT_ROUTES: tuple[Route, ...] = (*(route for one in ALL for route in one.routes), SERVICES_ROUTE)


def default_table(environ: Mapping[str, str]) -> RouteConfig:
    """Return the built-in routes of API families and services, with credentials from the usual variables."""
    upstreams = tuple(one.target(environ) for one in reversed(ALL) if one.target is not None)
    return RouteConfig(routes=DEFAULT_ROUTES, upstreams=upstreams)


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    env: str = ""
    file: str = ""


class _Capacity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    concurrency: Count | None = None


class _UpstreamCapacity(_Capacity, frozen=True, forbid_unknown_fields=True):
    models: Annotated[dict[ModelName, _Capacity], msgspec.Meta(max_length=OWN_LIMITS_MAX)] = {}
    learned: bool = False


class _Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base_url: str
    headers: dict[str, str] = {}
    family: FamilyName | None = None
    path: Annotated[str, msgspec.Meta(max_length=PATTERN_CHARACTERS_MAX)] = ""
    query: Annotated[dict[Query, Value], msgspec.Meta(max_length=16)] = {}
    keys: Annotated[tuple[_Key, ...], msgspec.Meta(max_length=UPSTREAM_KEYS_MAX)] = ()
    auth: UpstreamAuth = "header"
    credentials_file: str = ""
    region: Word | Literal[""] = ""
    project: Word | Literal[""] = ""
    first_byte_s: Seconds | None = None
    idle_s: Seconds | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    limits: Literal["account", "caller"] = "account"
    proxy: str = ""
    fields: Annotated[tuple[FieldName, ...], msgspec.Meta(max_length=FIELDS_MAX)] = ()
    headers_pass: Annotated[tuple[HeaderPassed, ...], msgspec.Meta(max_length=FIELDS_MAX)] | None = None
    capacity: _UpstreamCapacity | None = None
    output_max: Tokens | None = None
    output_min: Tokens | dict[MeterName, Tokens] | None = None
    output_default: TokensOrNone | dict[MeterName, TokensOrNone] | None = None
    context: Tokens | Literal["listed"] | None = None
    maximum: Literal["max_tokens", "max_completion_tokens"] | None = None
    adds: tuple[Literal["stream_options", "max_completion_tokens"], ...] = (
        "stream_options", "max_completion_tokens",
    )  # fmt: skip
    choices: Literal["sum", "each"] = "sum"
    on_cut: Literal["stops", "goes_on"] | None = None
    prices: Word | Literal[""] = ""
    price_factor: PriceFactor | Literal[""] = ""
    cost: Literal["book", "reported"] = "book"


class _Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    upstream: Name
    model: ModelName | Literal[""] = ""


class _Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    targets: Annotated[tuple[_Target, ...], msgspec.Meta(min_length=1, max_length=TARGETS_MAX)]
    name: ModelName | Literal[""] = ""
    prefix: ModelName | Literal[""] = ""
    fallback: tuple[FallbackCause, ...] = FALLBACK_CAUSES
    organization_id: Annotated[int, msgspec.Meta(ge=1)] | None = None
    output_max: Tokens | None = None
    context: Tokens | None = None


class _Service(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    upstream: str
    paths: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=PATHS_MAX)] | None = None
    models: Literal["", "unread"] = ""


class _Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: Path_
    upstream: str
    methods: tuple[Method, ...] = ("POST",)
    service: str = ""
    family: FamilyName = GENERIC
    meter: MeterName = "none"
    on_disconnect: Literal["drain", "abort"] = "drain"
    settle: Literal["before_end", "after_reply"] = "before_end"
    trust_client_units: bool = False
    units_pointer: Pointer = ""
    queries: tuple[Query, ...] = ()
    usage: Literal["", "always", "maybe"] = ""
    objects: Literal["owned", "told", "shared"] = "owned"
    models: Literal["", "unread"] = ""


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a configuration file. `settings` have lower-case names without prefix."""

    settings: dict[str, Any] = {}
    upstreams: dict[Name, _Upstream] = {}
    services: dict[Name, _Service] = {}
    models: Annotated[tuple[_Model, ...], msgspec.Meta(max_length=MODELS_MAX)] = ()
    workloads: Annotated[dict[Uri, Key], msgspec.Meta(max_length=WORKLOADS_MAX)] = {}
    issuers: Annotated[tuple[IssuerConfig, ...], msgspec.Meta(max_length=ISSUERS_MAX)] = ()
    sign_in: SignInConfig = SignInConfig()
    routes: tuple[_Route, ...] | None = None
    include_default_routes: bool = False


def read_config(path: Path, environ: Mapping[str, str]) -> ConfigFile:
    """Read a YAML file and replace `${NAME}`. Raise `SettingError` with the path of a wrong field."""
    return convert_document(read_document(path), environ, ConfigFile, str(path))


def read_document(path: Path) -> Any:
    """Return the document in a YAML file as it is written. Raise `SettingError` if there is none."""
    document = parse_yaml(read_file(path, CONFIG_BYTES_MAX), str(path))
    if document is None:
        # A file may be empty while an editor saves it. Then every built-in route would be open.
        raise SettingError(f"{path}: is empty; {{}} stands for a file that says nothing")
    return document


def table_of(config: ConfigFile, environ: Mapping[str, str]) -> RouteConfig:
    """Return the routes and upstreams of a configuration file, added to the built-in ones."""
    default = default_table(environ)
    upstreams = {target.name: target for target in default.upstreams}
    for name, written in config.upstreams.items():
        upstreams[name] = _target(name, written, environ)
    routes = _routes_of(config, upstreams.values())
    services = tuple((key, service.upstream) for key, service in config.services.items())
    used = [(f"routes {route.path}", route.upstream) for route in routes if route is not SERVICES_ROUTE]
    for place, name in [*used, *((f"services.{key}", name) for key, name in services)]:
        if name not in upstreams:
            raise SettingError(f"{place}: upstream {name!r} is not one of {', '.join(sorted(upstreams))}")
    paths = tuple((key, service.paths) for key, service in config.services.items() if service.paths)
    _check_patterns(dict(paths))
    unread = frozenset(key for key, service in config.services.items() if service.models)
    rules = ServiceRules(services, paths, unread=unread)
    workloads, issuers = tuple(config.workloads.items()), issuers_of(config.issuers)
    sign_in = sign_in_of(config.sign_in)
    _check_own_paths(routes, services, upstreams)
    models = models_of(config.models, upstreams)
    return RouteConfig(routes, tuple(upstreams.values()), rules, workloads, issuers, sign_in, models)


def _routes_of(config: ConfigFile, upstreams: Iterable[UpstreamTarget]) -> tuple[Route, ...]:
    """Return the routes of a file, or the built-in ones, and those that families of upstreams have besides."""
    routes: tuple[Route, ...] = DEFAULT_ROUTES
    if config.routes is not None:
        routes = tuple(_route(written) for written in config.routes)
        _check_each_once(routes)
        routes += DEFAULT_ROUTES if config.include_default_routes else ()
    if config.services:
        routes = _add_services(routes)
    paths = {route.path for route in routes}
    for target in upstreams:
        if target.family:
            brought = FAMILIES[Family(target.family)].brings(target.name)
            routes += tuple(route for route in brought if route.path not in paths)
            paths |= {route.path for route in brought}
    return routes


def _check_patterns(paths: Mapping[str, Sequence[str]]) -> None:
    """Raise `SettingError` for a path of a service, by its key, that is no pattern."""
    for key, patterns in paths.items():
        for number, text in enumerate(patterns):
            try:
                read_pattern(text)
            except ValueError as error:
                raise SettingError(f"services.{key}.paths[{number}]: {text!r} {error}") from error


def models_of(written: Iterable[_Model], upstreams: Mapping[str, UpstreamTarget]) -> tuple[ModelRule, ...]:
    """Return the models of a configuration. Raise `SettingError` with the path of a wrong or double entry."""
    model_rules: list[ModelRule] = []
    for number, one in enumerate(written):
        place = f"models[{number}]"
        if bool(one.name) == bool(one.prefix):
            raise SettingError(f"{place}: expected one of name and prefix")
        for at, target in enumerate(one.targets):
            if target.upstream not in upstreams:
                known = ", ".join(sorted(upstreams))
                where = f"{place}.targets[{at}]"
                raise SettingError(f"{where}: upstream {target.upstream!r} is not one of {known}")
            if "*" in target.model and not one.prefix:
                raise SettingError(f"{place}.targets[{at}].model: * belongs to a model with a prefix")
        targets = tuple(ModelTarget(target.upstream, target.model) for target in one.targets)
        if len(set(targets)) < len(targets):
            raise SettingError(f"{place}.targets: a target is there twice, and each is tried once")
        fallback, owner = frozenset(one.fallback), one.organization_id or EVERYBODY
        limits = one.output_max, one.context
        rule = ModelRule(one.name or one.prefix, bool(one.prefix), targets, fallback, owner, place, *limits)
        model_rules.append(rule)
    both = conflict(model_rules)
    if both is not None:
        kind, name = "prefix" if both[0].prefix else "name", both[0].name
        raise SettingError(f"{both[0].place} and {both[1].place}: both are of the {kind} {name!r}")
    return tuple(model_rules)


def _check_own_paths(
    routes: Iterable[Route], services: Iterable[tuple[str, str]], upstreams: Mapping[str, UpstreamTarget]
) -> None:
    """Raise `SettingError` for a route or service that its upstream's own path or signature excludes.

    An upstream with a path of its own cannot serve the caller's path, and `auth: aws` cannot sign a body that
    is not read.
    """
    bound = [(f"services.{key}", name, True) for key, name in services]
    for route in routes:
        unread = route.meter in UNREAD_METERS and not {"GET", "HEAD"}.issuperset(route.methods)
        bound.append((f"routes {route.path}", route.upstream, unread))
    for place, name, unread in bound:
        target = upstreams.get(name)
        if target is not None and target.path and (place.startswith("services.") or "…" in place):
            raise SettingError(
                f"{place}: the upstream {name} has a path of its own, and this goes to the caller's path"
            )
        if target is not None and target.auth == "aws" and unread:
            raise SettingError(
                f"{place}: the upstream {name} has auth: aws, which signs bodies that a family's meter reads"
            )


def _add_services(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    there = any("{service_key}" in route.path for route in routes)
    return routes if there else (*routes, SERVICES_ROUTE)


def base_url_of(url: str, place: str) -> str:
    """Return the base URL of an upstream without a slash at its end. Raise `SettingError` if it is wrong."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise SettingError(f"{place}: not a base URL such as https://api.example.com")
    if parts.query or parts.fragment or parts.username is not None:
        raise SettingError(f"{place}: a base URL has no user, query or fragment; put credentials in headers")
    return url.rstrip("/")


# Fields of an upstream that its target copies.
_AS_WRITTEN = (
    "ca_file", "limits", "cert_file", "key_file", "region", "project", "first_byte_s", "idle_s", "auth",
    "credentials_file", "prices", "price_factor", "cost",
)  # fmt: skip


def _target(name: str, written: _Upstream, environ: Mapping[str, str]) -> UpstreamTarget:
    """Return the upstream of an entry in the configuration file; raise SettingError naming a wrong field."""
    for field, value in written.headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", field) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise SettingError(f"upstreams.{name}.headers.{field}: not a valid header")
    place = f"upstreams.{name}"
    _check_files(place, written)
    _check_auth(place, written)
    path, query = _own_path(written, place)
    headers, keys = _split_keys(written, place, environ)
    base_url = base_url_of(written.base_url, f"{place}.base_url")
    if written.family == mcp.NAME and not path:  # its whole address: all messages go there
        parts = urlsplit(written.base_url)
        base_url, path = f"{parts.scheme}://{parts.netloc}", parts.path or "/"
    return UpstreamTarget(
        name,
        base_url,
        headers,
        **{one: getattr(written, one) for one in _AS_WRITTEN},
        proxies=own_proxies(written.proxy, f"{place}.proxy"),
        fields=frozenset(written.fields),
        headers_pass=_headers_pass(written, place),
        family="" if written.family is None else str(written.family),
        path=path,
        query=query,
        keys=keys,
        capacity=None if written.capacity is None else _capacity(written.capacity, place),
        told=tuple((name.lower(), value) for name, value in written.headers.items() if TOLD.search(value)),
        held=_held(written, place),
        facts=_facts(written, place),
    )


def _headers_pass(written: _Upstream, place: str) -> frozenset[str] | None:
    """Return the header fields that an upstream gets besides those that its API's clients send.

    Raise `SettingError` for a field that no upstream gets.
    """
    if written.headers_pass is None:
        return None
    for number, name in enumerate(written.headers_pass):
        if not may_pass(name):
            raise SettingError(
                f"{place}.headers_pass[{number}]: {name} reaches no upstream: it is a credential, ends here, or "
                "asks for another answer or account. What every call is to have stands in `headers`"
            )
    return frozenset(name.lower() for name in written.headers_pass)


def _facts(written: _Upstream, place: str) -> UpstreamFacts | None:
    """Return the limits and abilities that an upstream in the file states; None without any.

    Raise `SettingError` with the path, which begins with `place`, if they contradict each other.
    """
    if written.context == LISTED and written.auth != "header":
        raise SettingError(
            f"{place}.context: no list of models is read by auth: {written.auth}: say a number"
        )
    least, most, context = written.output_min, written.output_max, written.context
    facts = UpstreamFacts(
        most, _counts(least), _counts(written.output_default), None if isinstance(context, str) else context,
        context == LISTED, written.maximum or "", frozenset(written.adds), written.choices,
        written.on_cut or "",
    )  # fmt: skip
    if isinstance(least, int) and least > facts.most(least):
        raise SettingError(f"{place}.output_min is more than an answer may have there")
    return None if facts == UpstreamFacts() else facts


def _counts(written: int | Mapping[MeterName, int] | None) -> TokenCounts:
    if written is None or isinstance(written, int):
        return TokenCounts(written)
    return TokenCounts(None, tuple([(str(meter), tokens) for meter, tokens in written.items()]))


def _held(written: _Upstream, place: str) -> tuple[str, ...]:
    """Return the path of each credential of an upstream in the configuration file, for messages."""
    if written.auth != "header":
        return (f"{place}.credentials_file" if written.credentials_file else f"{place}.auth",)
    if written.keys:
        return tuple(f"{place}.keys[{at}] ({key.env or key.file})" for at, key in enumerate(written.keys))
    return (f"{place}.headers.{next(iter(written.headers))}" if written.headers else f"{place}.headers",)


def _check_auth(place: str, written: _Upstream) -> None:
    """Raise `SettingError` if the credentials of an upstream are stated in two ways, or incompletely."""
    if written.auth == "header":
        if written.credentials_file:
            clouds = ", ".join(arg for arg in get_args(UpstreamAuth) if arg != written.auth)
            raise SettingError(f"{place}.credentials_file belongs to an auth of a cloud: {clouds}")
        return
    if written.keys:
        raise SettingError(
            f"{place}.keys: its credentials come by auth: {written.auth}: leave one of them out"
        )
    twice = [name for name in written.headers if name.lower() in {"authorization", *AWS_FIELDS}]
    if twice:
        raise SettingError(f"{place}.headers.{twice[0]}: its value comes by auth: {written.auth}")
    if written.auth == "aws" and not written.region:
        raise SettingError(f"{place}.region is missing: a signature is for one region, such as eu-central-1")


def _capacity(written: _UpstreamCapacity, place: str) -> Capacity:
    """Return the capacity of an upstream. Raise `SettingError` if none is stated."""
    said = msgspec.structs.asdict(written)
    if not any(said.values()):
        raise SettingError(f"{place}.capacity: expected one of {', '.join(said)}")
    limits, models = _limits(written), tuple((name, _limits(model)) for name, model in written.models.items())
    if written.learned and limits != CapacityLimits():
        raise SettingError(f"{place}.capacity.learned: limits are stated beside it: leave one out")
    return Capacity(limits, models, written.learned)


def _limits(capacity: _Capacity) -> CapacityLimits:
    return CapacityLimits(
        capacity.requests_per_minute or 0, capacity.tokens_per_minute or 0, capacity.concurrency or 0
    )


def _own_path(written: _Upstream, place: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the template of an upstream's own path, and the query parameters of each call.

    Parameters in the template come first. Raise `SettingError` if the template is wrong.
    """
    words = [word for word, value in (("region", written.region), ("project", written.project)) if value]
    if written.path:
        try:
            check_own_path(written.path, words)
        except ValueError as error:
            raise SettingError(f"{place}.path: {written.path!r} {error}") from error
    path, _, said = written.path.partition("?")
    query = dict(parse_qsl(said, keep_blank_values=True)) | written.query
    return path, tuple(query.items())


Fields: TypeAlias = tuple[tuple[str, str], ...]


def _split_keys(
    written: _Upstream, place: str, environ: Mapping[str, str]
) -> tuple[Fields, tuple[Fields, ...]]:
    """Return the header fields that all calls to an upstream have, and for each key the fields with that key.

    The key replaces `{key}` in a field; if no field has it, the key is sent as the upstream's API expects.
    """
    fields = tuple((name.lower(), value) for name, value in written.headers.items() if not TOLD.search(value))
    placed = tuple(field for field in fields if KEY in field[1])
    if not written.keys:
        if placed:
            raise SettingError(f"{place}.headers.{placed[0][0]}: {KEY} is one of `keys`, and none is there")
        return fields, ()
    if not placed:
        family = FAMILIES.get(Family(str(written.family))) if written.family is not None else None
        name, scheme = ("authorization", "Bearer ") if family is None else family.key_field
        placed = ((name, scheme + KEY),)
    shared = tuple(field for field in fields if KEY not in field[1])
    twice = [name for name, _ in shared if name in dict(placed)]
    if twice:
        raise SettingError(f"{place}.headers.{twice[0]}: its value comes from `keys`: leave one of them out")
    found = [_key(key, f"{place}.keys[{number}]", environ) for number, key in enumerate(written.keys)]
    keys = tuple(tuple((name, value.replace(KEY, key)) for name, value in placed) for key in found)
    if len(set(keys)) < len(keys):
        raise SettingError(f"{place}.keys: a key is there twice")
    return shared, keys


def _key(one: _Key, place: str, environ: Mapping[str, str]) -> str:
    """Return the value of an upstream's key, which no message shows."""
    if bool(one.env) == bool(one.file):
        raise SettingError(f"{place}: expected one of env and file")
    if one.file:
        reads = environ.read if isinstance(environ, Environment) else read_secret
        key = reads(f"{place}.file", one.file)
    else:
        key = environ.get(one.env, "")
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        where = f"the file {one.file}" if one.file else f"the variable {one.env}"
        raise SettingError(f"{place}: {where} holds no key: expected visible ASCII without blanks")
    return key


def _check_files(place: str, written: _Upstream) -> None:
    """Raise `SettingError` if TLS files of an upstream cannot be used."""
    certificate, key = written.cert_file, written.key_file
    if (certificate is None) != (key is None):
        missing = "key_file" if key is None else "cert_file"
        raise SettingError(f"{place}.{missing} is missing: a certificate goes with its key")
    if written.ca_file is None and certificate is None:
        return
    context = authority_at(written.ca_file, f"{place}.ca_file: {written.ca_file!r} cannot be used")
    if certificate is not None:
        try:
            require_regular(certificate, key)
            context.load_cert_chain(certificate, key, password=lambda: b"")  # prevents a prompt
        except OSError as error:
            message = f"{place}.cert_file: {certificate!r} with key_file {key!r}"
            raise SettingError(f"{message} cannot be used: not there, not PEM, or not a pair") from error


def _route(written: _Route) -> Route:
    """Return the route of an entry in the configuration file; raise SettingError naming a wrong field."""
    methods = ANY_METHODS if "ANY" in written.methods else tuple(dict.fromkeys(written.methods))
    if written.meter != "none" and not written.service and "{service_key}" not in written.path:
        raise SettingError(f"routes {written.path}: a metered route needs a service")
    if written.units_pointer and written.meter != "generic":
        raise SettingError(f"routes {written.path}: units_pointer belongs to meter: generic")
    if written.usage and written.meter in UNREAD_METERS:
        raise SettingError(f"routes {written.path}: usage belongs to the meters of a family")
    if written.queries and written.meter in UNREAD_METERS and written.family == GENERIC:
        raise SettingError(f"routes {written.path}: queries belongs to the routes of a family")
    if written.models and written.meter not in UNREAD_METERS - {"none"}:
        raise SettingError(f"routes {written.path}: models belongs to meter: generic, the others read them")
    path, family = written.path.replace("{path...}", "{path…}"), Family(str(written.family))
    try:
        expression_of(path, FAMILIES[family].segment)
    except ValueError as error:
        raise SettingError(f"routes {written.path}: path {error}") from error
    fields = msgspec.structs.asdict(written) | {
        "methods": methods, "path": path, "family": family, "meter": str(written.meter),
    }  # fmt: skip
    route = Route(**fields)
    charged = {paths.batches for paths in FAMILIES[route.family].batches[1:]}  # the first are default routes
    if route.meter not in {"generic", "vllm_chats"} and makes_batches(route) and route.path not in charged:
        raise SettingError(
            f"routes {written.path}: a batch is many calls of models, and nothing here meters what it uses: "
            "leave the route out, or have it cost units of a service (meter: generic)"
        )
    return route


def _check_each_once(routes: tuple[Route, ...]) -> None:
    """Raise `SettingError` for two routes of one method and path: the second would never be used."""
    served: dict[tuple[str, str], Route] = {}
    for route in routes:
        path = PARAMETER.sub(lambda parameter: f"{{{parameter[1]}{parameter[3] or ''}}}", route.path)
        methods = METHODS if route.methods == ANY_METHODS else route.methods
        for method in methods:
            if served.setdefault((path, method), route) is not route:
                raise SettingError(f"routes {route.path}: {method} of this path is there twice")
