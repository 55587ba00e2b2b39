"""The allow-list and where it leads: routes and upstreams, built in or read from YAML; who says who calls.

A configuration file says everything the environment is too small for. `${NAME}` and
`${NAME:-otherwise}` are replaced from the environment inside strings, `$$` is a dollar sign.
Anything unknown is refused with its place in the file; values are never shown, since a header
of an upstream is a credential.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec

from gateway.core.calls.binding import (
    SERVICES_PREFIX,
    UNREAD_METERS,
    conflicting,
    makes_batches,
    reach_of,
)
from gateway.core.calls.paths import PARAMETER, PATHS_MAX, read_pattern
from gateway.core.calls.route import Route, ServiceRules, UpstreamTarget
from gateway.core.calls.templates import expression_of
from gateway.core.families.registry import ALL, FAMILIES, SHAPES
from gateway.core.issuers.issuer import Issuer
from gateway.core.issuers.sign_in import SignIn
from gateway.core.model import GENERIC, Family, Service
from gateway.core.upstreams.proxies import Proxies
from gateway.errors import SettingError
from gateway.files import read_regular, require_regular
from gateway.settings.issuers import ISSUERS_MAX, WrittenIssuer, issuers_of
from gateway.settings.proxies import own_proxies
from gateway.settings.sign_in import WrittenSignIn, sign_in_of
from gateway.settings.tls_files import authority_at

ANY_METHODS = ("ANY",)
CONFIG_BYTES_MAX = 1 << 20
WORKLOADS_MAX = 10_000
FIELDS_MAX = 100

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
Method = Literal["ANY", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
if TYPE_CHECKING:
    MeterName: TypeAlias = str
    FamilyName: TypeAlias = str
else:
    MeterName = StrEnum("MeterName", {name: name for name in ("none", "generic", *SHAPES)})
    FamilyName = StrEnum("FamilyName", {name: name for name in FAMILIES})
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Pointer = Annotated[str, msgspec.Meta(pattern=r"^(/([^~/]|~0|~1)*)*$", max_length=256)]
FieldName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Query = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
# A workload by the URI of its certificate, and the API key that it uses.
Uri = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*://[\x21-\x7e]{1,2000}$")]
Key = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,512}$")]
Path_ = Annotated[str, msgspec.Meta(pattern=r"^/", max_length=1024)]


class RouteTable(NamedTuple):
    """What may pass and where it goes; `services` says where calls of services go."""

    routes: tuple[Route, ...]
    upstreams: tuple[UpstreamTarget, ...]
    services: ServiceRules = ServiceRules()
    workloads: tuple[tuple[str, str], ...] = ()
    issuers: tuple[Issuer, ...] = ()
    sign_in: SignIn = SignIn()

    def check_services(self, catalogue: Mapping[str, Service]) -> None:
        """`SettingError` where two services get to the same paths, unless one upstream serves all.

        Those that the catalogue knows to cost the same may; what is not known may cost anything.
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

    def redirected(self, base_url: str, proxies: Proxies | None = None) -> RouteTable:
        """The same table with every upstream, and the services', at one base URL, through these proxies."""
        upstreams = {
            target.name: replace(target, base_url=base_url, proxies=proxies or target.proxies)
            for target in self.upstreams
        }
        upstreams.setdefault("services", UpstreamTarget("services", base_url, proxies=proxies))
        services = replace(self.services, shared="services")
        return self._replace(
            routes=_with_services(self.routes), upstreams=tuple(upstreams.values()), services=services
        )

    def through(self, proxies: Proxies) -> RouteTable:
        """The same table, everybody in it reached through these proxies, unless it has its own."""
        upstreams = tuple(_through(proxies, target) for target in self.upstreams)
        issuers = tuple(replace(issuer, proxies=proxies) for issuer in self.issuers)
        providers = (
            replace(one, issuer=replace(one.issuer, proxies=proxies)) for one in self.sign_in.providers
        )
        sign_in = replace(self.sign_in, providers=tuple(providers))
        return self._replace(upstreams=upstreams, issuers=issuers, sign_in=sign_in)


def _through(proxies: Proxies, target: UpstreamTarget) -> UpstreamTarget:
    own = proxies if target.proxies is None else target.proxies.with_authority(proxies.ca_file)
    return replace(target, via=own.to(target.base_url))


# Its upstream is the service's.
SERVICES_ROUTE = Route(ANY_METHODS, SERVICES_PREFIX + "{service_key}/{path…}", "", meter="generic")

# The first path that matches decides.
DEFAULT_ROUTES: tuple[Route, ...] = (*(route for one in ALL for route in one.routes), SERVICES_ROUTE)


def default_table(environ: Mapping[str, str]) -> RouteTable:
    """The routes of the API families and of services; their credentials from the usual variables."""
    upstreams = tuple(one.target(environ) for one in reversed(ALL) if one.target is not None)
    return RouteTable(routes=DEFAULT_ROUTES, upstreams=upstreams)


class _Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base_url: str
    headers: dict[str, str] = {}
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    limits: Literal["account", "caller"] = "account"
    proxy: str = ""
    fields: Annotated[tuple[FieldName, ...], msgspec.Meta(max_length=FIELDS_MAX)] = ()


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
    objects: Literal["owned", "shared"] = "owned"
    models: Literal["", "unread"] = ""


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A configuration file as it is written; `settings` are lower-case names without prefix."""

    settings: dict[str, Any] = {}
    upstreams: dict[Name, _Upstream] = {}
    services: dict[Name, _Service] = {}
    workloads: Annotated[dict[Uri, Key], msgspec.Meta(max_length=WORKLOADS_MAX)] = {}
    issuers: Annotated[tuple[WrittenIssuer, ...], msgspec.Meta(max_length=ISSUERS_MAX)] = ()
    sign_in: WrittenSignIn = WrittenSignIn()
    routes: tuple[_Route, ...] | None = None
    include_default_routes: bool = False


def read_config(path: Path, environ: Mapping[str, str]) -> ConfigFile:
    """Read a YAML file and replace `${NAME}`; `SettingError` names the place of what is wrong."""
    from gateway.settings.config_errors import explained, parsed, substituted  # noqa: PLC0415  # spares workers, which never read it, memory

    try:
        text = read_regular(path, CONFIG_BYTES_MAX)
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > CONFIG_BYTES_MAX:
        raise SettingError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes")
    document = parsed(text, str(path))
    if document is None:
        # As it is for a moment while an editor writes it again: every built-in route would be open.
        raise SettingError(f"{path}: is empty; {{}} stands for a file that says nothing")
    document = substituted(document, environ, str(path))
    try:
        return msgspec.convert(document, ConfigFile)
    except msgspec.ValidationError as error:
        raise SettingError(f"{path}: {explained(str(error), document, ConfigFile)}") from error


def table_of(config: ConfigFile, environ: Mapping[str, str]) -> RouteTable:
    """The table a configuration file describes, over the built-in one."""
    default = default_table(environ)
    upstreams = {target.name: target for target in default.upstreams}
    for name, written in config.upstreams.items():
        upstreams[name] = _target(name, written)
    if config.routes is None:
        routes: tuple[Route, ...] = DEFAULT_ROUTES
    else:
        routes = tuple(_route(written) for written in config.routes)
        _check_each_once(routes)
        routes += DEFAULT_ROUTES if config.include_default_routes else ()
    if config.services:
        routes = _with_services(routes)
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
    return RouteTable(routes, tuple(upstreams.values()), rules, workloads, issuers, sign_in)


def _with_services(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The routes with one for services, unless there is one."""
    there = any("{service_key}" in route.path for route in routes)
    return routes if there else (*routes, SERVICES_ROUTE)


def _check_patterns(paths: Mapping[str, tuple[str, ...]]) -> None:
    for key, patterns in paths.items():
        for number, text in enumerate(patterns):
            try:
                read_pattern(text)
            except ValueError as error:
                raise SettingError(f"services.{key}.paths[{number}]: {text!r} {error}") from error


def base_url_of(url: str, place: str) -> str:
    """A usable upstream base URL without its last slash, or `SettingError`."""
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


def _target(name: str, written: _Upstream) -> UpstreamTarget:
    for field, value in written.headers.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", field) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise SettingError(f"upstreams.{name}.headers.{field}: not a valid header")
    _check_files(f"upstreams.{name}", written)
    return UpstreamTarget(
        name,
        base_url_of(written.base_url, f"upstreams.{name}.base_url"),
        tuple((field.lower(), value) for field, value in written.headers.items()),
        written.ca_file,
        written.limits,
        written.cert_file,
        written.key_file,
        own_proxies(written.proxy, f"upstreams.{name}.proxy"),
        fields=frozenset(written.fields),
    )


def _check_files(place: str, written: _Upstream) -> None:
    """`SettingError` where what a connection is made with cannot be used."""
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
            context.load_cert_chain(certificate, key, password=lambda: b"")  # nobody is asked for one
        except OSError as error:
            said = f"{place}.cert_file: {certificate!r} with key_file {key!r}"
            raise SettingError(f"{said} cannot be used: not there, not PEM, or not a pair") from error


def _route(written: _Route) -> Route:
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
    if route.meter != "generic" and makes_batches(route):
        raise SettingError(
            f"routes {written.path}: a batch is many calls of models, and nothing here meters what it uses: "
            "leave the route out, or have it cost units of a service (meter: generic)"
        )
    return route


def _check_each_once(routes: tuple[Route, ...]) -> None:
    """`SettingError` where two routes are of the same method and path: the second one would never serve."""
    served: dict[tuple[str, str], Route] = {}
    for route in routes:
        path = PARAMETER.sub(lambda parameter: f"{{{parameter[1]}{parameter[3] or ''}}}", route.path)
        for method in METHODS if route.methods == ANY_METHODS else route.methods:
            if served.setdefault((path, method), route) is not route:
                raise SettingError(f"routes {route.path}: {method} of this path is there twice")
