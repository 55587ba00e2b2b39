"""All settings, validated once: defaults, then the configuration file, then `TOLLKEEPER_*`.

The process that a person starts resolves them. Workers receive the result as JSON (`to_json`, `from_json`)
and never read the environment, so all of them agree. Units are in the names. A value is shown in an error
unless its name says that it is a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from gateway.core.billing.stand_ins import StandIns, read_stand_ins
from gateway.core.calls.call import DEFAULT_BOUNDS
from gateway.core.calls.estimate import QUANTILE
from gateway.core.calls.routes import ModelRule, Route, ServiceRules, UpstreamTarget
from gateway.core.certificates import TlsFiles
from gateway.core.http_limits import (
    HOUR_CPU_S,
    HOUR_ROWS,
    HOUR_WORK_S,
    SETTABLE,
    Count,
    HttpLimits,
    Seconds,
)
from gateway.core.issuers import Issuer, SignIn
from gateway.core.lru import POOL_BYTES_MAX
from gateway.core.network import DIRECT, Proxies, authority
from gateway.core.otel import Tracing, read_tracing
from gateway.errors import SettingError
from gateway.extras import install, is_installed
from gateway.feature import features
from gateway.files import UrlFile
from gateway.settings.checking import (
    check_ports,
    check_together,
    check_value,
    check_workloads,
    is_service_link,
    name_of,
    render_value,
    unknown,
    wanted_of,
)
from gateway.settings.config_file import (
    ConfigFile,
    RouteConfig,
    base_url_of,
    default_table,
    read_document,
    table_of,
)
from gateway.settings.controls import refuse_controls
from gateway.settings.documents import convert_document, unreplaced
from gateway.settings.feature_settings import FeatureSettings
from gateway.settings.proxies import read_proxies, without_scheme
from gateway.settings.secret_files import SUFFIX, Environment, both_set, read_secret
from gateway.settings.tls_files import check_pairs, files_of
from gateway.settings.urls import DatabaseUrl, MailUrl, RedisUrl, ServiceUrl
from gateway.settings.value_types import (
    Country,
    Currency,
    DataFolder,
    Days,
    EarlierPeppers,
    FilePath,
    Folder,
    Host,
    Lines,
    MailAddress,
    Port,
    Reclaim,
    Token,
    has_lines,
    is_secret,
)

# The settings of the installed features, by their names.
FEATURE_SETTINGS: dict[str, type[FeatureSettings]] = {
    name: feature.settings
    for feature in features()
    if feature.settings is not None
    for name in feature.settings.__struct_fields__
}
FEATURES = tuple(dict.fromkeys(FEATURE_SETTINGS.values()))
FEATURE_TYPES = {
    name: get_type_hints(kind, include_extras=True)[name] for name, kind in FEATURE_SETTINGS.items()
}
# The secrets that identify a keeper to others. If one was not set at the start, its use was not started.
KEEPERS_SECRETS = ("smtp_url", *(name for name, hint in FEATURE_TYPES.items() if is_secret(hint)))
# Settings for keepers only: credentials that a gateway does not get.
OF_KEEPERS = (
    "database_url", "database_owner_url", "database_read_url", "admin_token", "readonly_token",
    *KEEPERS_SECRETS,
)  # fmt: skip
F = TypeVar("F", bound=FeatureSettings)
# The state of a file: it changes with the content, unless clocks are set back.
Signature = tuple[int, int, int, int] | None


class WatchedFiles:
    """Files that may change at run time, compared by their `signature`."""

    def __init__(self) -> None:
        self._seen: dict[str, Signature] = {}

    def changed(self, paths: Iterable[str]) -> bool:
        """Return whether any of these files changed since the last call; a new path counts as changed."""
        before, self._seen = self._seen, {path: signature(path) for path in paths}
        return before != self._seen

    def forget(self) -> None:
        """Forget the state of all files, so that each counts as changed at the next check.

        The caller does so when it could not apply a change.
        """
        self._seen = {}


def signature(path: str) -> Signature:
    """Return device, inode, size and time of a file, with links followed; None if it does not exist."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Servers(msgspec.Struct, frozen=True, kw_only=True):
    """The servers that a process talks to, and the TLS files of connections and ports."""

    redis_url: RedisUrl = ""
    redis_servers: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    redis_ca_file: FilePath = ""
    redis_cert_file: FilePath = ""
    redis_key_file: FilePath = ""
    tls_cert_file: FilePath = ""
    tls_key_file: FilePath = ""
    tls_client_ca_file: FilePath = ""
    admin_tls_cert_file: FilePath = ""
    admin_tls_key_file: FilePath = ""
    admin_tls_client_ca_file: FilePath = ""
    ops_tls_cert_file: FilePath = ""
    ops_tls_key_file: FilePath = ""
    ops_tls_client_ca_file: FilePath = ""
    database_url: DatabaseUrl = ""
    database_owner_url: DatabaseUrl = ""
    database_read_url: DatabaseUrl = ""


PREFIX = "TOLLKEEPER_"
CONFIG_NAME = f"{PREFIX}CONFIG"
# Variables besides the settings: the path of the file, and the address of the Admin API for commands.
CLIENT_NAMES = frozenset({"admin_url", "admin_ca_file", "admin_cert_file", "admin_key_file", "config"})


class Settings(Servers, frozen=True, kw_only=True):
    """The settings of one Tollkeeper process."""

    admin_token: Token = ""
    readonly_token: Token = ""
    key_pepper: Token = ""
    earlier_key_peppers: EarlierPeppers = ""
    gateway_host: Host = "127.0.0.1"
    gateway_port: Port = 8080
    admin_host: Host = "127.0.0.1"
    admin_port: Port = 8081
    ops_host: Host = "0.0.0.0"  # noqa: S104  # probes and scrapes come from outside the pod
    ops_port: Port = 9464
    data_dir: DataFolder = ".tollkeeper"
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False
    time_zones: Literal["bundled", "system"] = "bundled"

    hold_ttl_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    hold_quantile: Annotated[float, msgspec.Meta(ge=0.5, le=0.999)] = QUANTILE
    reclaim: Reclaim = "charge_observed"
    spent_status: Literal[429, 402] = 429
    unpriced_models: Literal["free", "refuse"] = "free"
    price_as: str = ""
    cors_origins: str = ""
    redis_wait_s: Seconds = 1.0
    lease_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    lease_s_max: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 3600.0
    start_wait_s: Seconds = 60.0
    shutdown_grace_s: Seconds = 18.0
    organization_cpu_s_an_hour: Annotated[float, msgspec.Meta(gt=0, le=360_000)] = HOUR_CPU_S
    organization_rows_an_hour: Annotated[int, msgspec.Meta(ge=1, le=10**12)] = HOUR_ROWS
    organization_work_s_an_hour: Annotated[float, msgspec.Meta(gt=0, le=360_000)] = HOUR_WORK_S
    worker_silent_s_max: Annotated[float, msgspec.Meta(ge=2, le=3600)] = 15.0
    flush_interval_s: Seconds = 0.25
    waiting_entries_max: Count = 50_000
    calls_keep_days: Days = 0
    partitions_by: Literal["month", "day"] = "month"
    usage_hours_keep_days: Days = 0
    events_keep_days: Days = 0
    reratings_keep_days: Days = 0
    settlement_log_dir: Folder = ""
    settlement_log_s: Seconds = 60.0
    settlement_log_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 34)] = 512 * 1024 * 1024
    cache_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 34)] = POOL_BYTES_MAX

    invoice_issuer: Lines = ""
    invoice_country: Country = ""
    invoice_tax_number: Annotated[str, msgspec.Meta(description="a text such as DE123456789")] = ""
    invoice_tax_currency: Currency = ""
    invoice_seller: Lines = ""
    invoice_iban: Annotated[str, msgspec.Meta(description="an IBAN, with or without blanks")] = ""
    invoice_notes: Lines = ""
    invoice_addresses: FilePath = ""
    invoice_schedule: Literal["off", "draft", "finalize"] = "off"
    invoice_grace_hours: Annotated[int, msgspec.Meta(ge=0, le=720)] = 24
    invoices_at_once: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    invoice_due_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0
    webhook_private_addresses: bool = False
    smtp_url: MailUrl = ""
    smtp_ca_file: FilePath = ""
    proxy_ca_file: FilePath = ""
    smtp_from: MailAddress = ""
    console_url: ServiceUrl = ""
    http: HttpLimits = HttpLimits()
    # The settings of features that have been set, by name; `select` returns all of a feature.
    feature_values: dict[str, Any] = {}
    object_ttl_s: Annotated[float, msgspec.Meta(ge=60, le=366 * 86_400)] = 30 * 86_400.0
    jobs_interval_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    objects_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    usage_tokens_max: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] = DEFAULT_BOUNDS.usage_tokens_max
    routes: tuple[Route, ...] = ()
    upstreams: tuple[UpstreamTarget, ...] = ()
    services: ServiceRules = ServiceRules()
    workloads: tuple[tuple[str, str], ...] = ()
    issuers: tuple[Issuer, ...] = ()
    sign_in: SignIn = SignIn()
    models: tuple[ModelRule, ...] = ()

    proxies: Proxies = DIRECT
    tracing: Tracing | None = None
    # (setting, path) of files with secrets; the setting is empty for a file with a variable's value.
    secret_files: tuple[tuple[str, str], ...] = ()
    config_path: str = ""  # the configuration file
    overruled: tuple[str, ...] = ()  # settings in which the environment overrules the file
    unread: tuple[str, ...] = ()  # slips in how the sources are written, which no value shows

    def require(self, *names: str) -> None:
        """Raise `SettingError` for the first of these settings that has no value."""
        for name in (name for name in names if not self.value(name)):
            raise SettingError(f"{PREFIX}{name.upper()} is not set: expected {wanted_of(name, TYPES[name])}")

    def extras(self, role: str) -> Mapping[str, str]:
        """Return the extras (optional dependencies) that a role needs, each with a setting that needs it.

        The role is `serve`, `keeper` or `all`.
        """
        asking = (
            ("sign_in", "oidc", "keeper", self.sign_in.providers),
            ("issuers", "oidc", "serve", self.issuers),
            *(
                (f"{PREFIX}{name.upper()}", extra, "keeper", self.value(name))
                for kind in FEATURES
                for name, extra in kind.EXTRAS.items()
            ),
            *(
                (f"upstreams.{target.name}.auth", target.auth, "serve", target.auth != "header")
                for target in self.upstreams
            ),
        )
        return {extra: name for name, extra, who, value in asking if value and role in {who, "all"}}

    def require_extras(self, role: str) -> None:
        """Raise `SettingError` for the first needed extra that is not installed."""
        for extra, name in self.extras(role).items():
            if not is_installed(extra):
                raise SettingError(f"{name} is set, and its libraries are not installed: {install(extra)}")

    @property
    def owner_url(self) -> str:
        """The URL of the user who may change the schema: the owner's if set, else the keeper's."""
        return self.database_owner_url or self.database_url

    @property
    def stand_ins(self) -> StandIns:
        return read_stand_ins(self.price_as)

    @property
    def settlements_dir(self) -> Path:
        """The directory of the settlement logs of this machine's workers."""
        return Path(self.settlement_log_dir or Path(self.data_dir) / "settlements")

    @property
    def metrics_dir(self) -> Path:
        """The directory where workers of this machine store their metrics."""
        return Path(self.data_dir) / "metrics"

    @property
    def redis_files(self) -> TlsFiles:
        return TlsFiles(self.redis_ca_file, self.redis_cert_file, self.redis_key_file)

    def tls_files(self, port: str) -> TlsFiles | None:
        """Return the TLS files of a port (`gateway`, `admin`, `ops`); None for a port without TLS."""
        return files_of(port, lambda name: str(getattr(self, name)))

    def url_of(self, port: str, host: str, number: int) -> str:
        return f"{'https' if self.tls_files(port) else 'http'}://{authority(host, number)}"

    @property
    def links_url(self) -> str:
        """The URL of the console for links in mails; empty if unknown."""
        url = self.console_url or self.sign_in.console_url
        here = self.admin_host in {"localhost", "127.0.0.1", "::1"}
        return url.rstrip("/") or (self.url_of("admin", self.admin_host, self.admin_port) if here else "")

    @property
    def calls_url(self) -> str:
        """The URL to which people send calls; empty if unknown."""
        here = self.gateway_host in {"localhost", "127.0.0.1", "::1"}
        own = self.url_of("gateway", self.gateway_host, self.gateway_port) if here else ""
        return self.http.public_url.rstrip("/") or own

    @property
    def of_gateways(self) -> Settings:
        """The settings for a gateway, without secrets that only keepers need."""
        files = tuple(pair for pair in self.secret_files if pair[0] == "redis_url")
        return self.with_values(**dict.fromkeys(OF_KEEPERS, ""), secret_files=files, sign_in=SignIn())

    def url_file(self, name: str) -> UrlFile:
        paths = (path for named, path in self.secret_files if named == name)
        return UrlFile(self.value(name), next(paths, ""))

    def values(self) -> dict[str, Any]:
        """Return all values by name, routes and upstreams included."""
        own = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _OF_SOURCES}
        theirs = {name: self.value(name) for name in FEATURE_SETTINGS}
        return own | theirs | {name: getattr(self.http, name) for name in SETTABLE}

    def select(self, kind: type[F]) -> F:
        """Return the settings of a feature, which are of its type `kind`."""
        return kind(
            **{
                name: self.feature_values[name]
                for name in kind.__struct_fields__
                if name in self.feature_values
            }
        )

    def value(self, name: str) -> Any:
        """Return the value of one setting."""
        if name in FEATURE_SETTINGS:
            return getattr(self.select(FEATURE_SETTINGS[name]), name)
        return getattr(self.http if name in SETTABLE else self, name)

    def named(self) -> dict[str, Any]:
        """Return all settings by name, without routes and upstreams."""
        return {name: value for name, value in self.values().items() if name in NAMES}

    @property
    def table(self) -> RouteConfig:
        return RouteConfig(*(getattr(self, name) for name in RouteConfig._fields))

    def with_table(self, table: RouteConfig) -> Settings:
        """Return the settings with these routes and upstreams, reached through our proxies."""
        return msgspec.structs.replace(self, **table.through(self.proxies)._asdict())

    def with_upstream(self, base_url: str, proxies: Proxies | None = None) -> Settings:
        """Return the settings with every upstream replaced by one base URL, reached through these proxies."""
        return self.with_table(self.table.redirected(base_url_of(base_url, "--upstream"), proxies))

    def with_values(self, **values: Any) -> Settings:
        """Return the settings with these values by name.

        They are not checked, because they come from an option that is already parsed.
        """
        http = {name: values.pop(name) for name in SETTABLE if name in values}
        theirs = self.feature_values | {name: values.pop(name) for name in FEATURE_SETTINGS if name in values}
        return msgspec.structs.replace(self, **values, feature_values=theirs, http=replace(self.http, **http))


# Fields that say how the sources are written, and are no values; and all that are no settings: tables of the
# file, and values of standard variables.
_OF_SOURCES = {"http", "feature_values", "overruled", "unread"}
_ELSEWHERE = {*RouteConfig._fields, *_OF_SOURCES, "tracing", "proxies", "secret_files", "config_path"}
NAMES = (
    *(name for name in Settings.__struct_fields__ if name not in _ELSEWHERE),
    *FEATURE_SETTINGS,
    *SETTABLE,
)


def load(environ: Mapping[str, str], config: Path | None = None, role: str = "") -> Settings:
    """Resolve all settings. Raise `SettingError` for one that is unknown or invalid.

    Without `config` the file is the one named by `TOLLKEEPER_CONFIG`, if any. The ports that a process of
    `role` listens on must differ.
    """
    refuse_controls(CONFIG_NAME, environ.get(CONFIG_NAME))
    config = config or (Path(environ[CONFIG_NAME]) if environ.get(CONFIG_NAME) else None)
    environment = Environment(environ)
    document = read_document(config) if config else None
    written = convert_document(document, environment, ConfigFile, str(config)) if config else None
    files: dict[str, str] = {}
    of_file = written.settings.items() if written else ()
    theirs = [(name, f"{config}: settings.{name}", value) for name, value in of_file]
    of_config = _read(theirs, environment, files, "")
    ours = [
        (name_of(variable, PREFIX), variable, text)
        for variable, text in environ.items()
        if variable.startswith(PREFIX) and not is_service_link(variable, text)
    ]
    values = of_config | _read(
        [row for row in ours if row[0] not in CLIENT_NAMES], environment, files, PREFIX
    )
    check_together(values, PREFIX)
    check_pairs(values, PREFIX)
    check_workloads(written.workloads if written else (), values, PREFIX)
    settings = Settings(tracing=read_tracing(environment), proxies=read_proxies(environment, values))
    settings = settings.with_table(table_of(written, environment) if written else default_table(environment))
    read, path = environment.named(files), str(config or "")
    over = tuple(sorted(name for name in of_config if of_config[name] != values[name]))
    own = (
        {f"upstreams.{name}.proxy": upstream.proxy for name, upstream in written.upstreams.items()}
        if written
        else {}
    )
    unread = (*unreplaced(document, path), *without_scheme(environment, own))
    settings = settings.with_values(
        **values, secret_files=read, config_path=path, overruled=over, unread=unread
    )
    for kind in FEATURES:
        settings.select(kind).check_together(PREFIX)
    check_ports(settings.values(), role, PREFIX)
    return settings


def _read(
    rows: Iterable[tuple[str, str, Any]], environment: Environment, files: dict[str, str], prefix: str
) -> dict[str, Any]:
    """Return the settings of one source, such as the file or the environment, checked and converted.

    `rows` has (name, place, value) of each; `place` and `prefix` are for messages. A secret may be in a file:
    then `files` gets the path by setting. Values of this source replace those of an earlier one.
    """
    values: dict[str, Any] = {}
    by_file: list[tuple[str, str, str]] = []
    for name, place, value in rows:
        refuse_controls(place, value, lines=name in LINES)
        secret = name.removesuffix(SUFFIX.lower())
        is_path = name not in NAMES and secret in SECRETS and name != secret
        if is_path and value:
            by_file.append((secret, place, str(value)))
        elif name in NAMES:
            # Another text than a URL may be a password or a token in the wrong place.
            is_hidden = name in SECRETS and "://" not in str(value)
            text = "(hidden)" if is_hidden else render_value(name, value)
            values[name] = check_value(f"{place}={text}", name, value, TYPES[name])
        elif not is_path:
            raise unknown(place, name, str(value), NAMES, prefix)
    for name in values:
        files.pop(name, None)
    for name, place, path in by_file:
        if values.get(name):
            raise both_set(place.removesuffix(SUFFIX).removesuffix(SUFFIX.lower()), place)
        text = environment.read(place, path)
        values[name] = check_value(f"what {place}={path!r} holds", name, text, TYPES[name])
        files[name] = path
    return values


def reread(name: str, path: str) -> str:
    """Return a secret read again from its file. Raise `SettingError` if it is invalid."""
    place = f"{PREFIX}{name.upper()}{SUFFIX}"
    return str(check_value(f"what {place}={path!r} holds", name, read_secret(place, path), TYPES[name]))


def to_json(settings: Settings) -> bytes:
    """Return the settings as JSON for a worker, secrets included: pass it privately."""
    return msgspec.json.encode(settings)


def from_json(data: bytes) -> Settings:
    return msgspec.json.decode(data, type=Settings)


TYPES = get_type_hints(Settings, include_extras=True) | FEATURE_TYPES | SETTABLE
SECONDS = frozenset(name for name in NAMES if TYPES[name] == Seconds)
LINES = frozenset(name for name in NAMES if has_lines(TYPES[name]))
SECRETS = frozenset(name for name in NAMES if is_secret(TYPES[name]))
