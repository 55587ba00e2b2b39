"""Every setting, validated once: defaults, then the configuration file, then `TOLLKEEPER_*`.

The process that is started by a person resolves them; workers receive the result as JSON
(`to_json`, `from_json`) and never read the environment, so all of them agree. Units are in the
names. A value is shown in an error unless its name says it is a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec

from gateway.core.alerts.mail import is_address
from gateway.core.billing.stand_ins import WANTED, StandIns, read_stand_ins
from gateway.core.calls.call import DEFAULT_BOUNDS
from gateway.core.calls.route import Route, ServiceRules, UpstreamTarget
from gateway.core.certificate import TlsFiles
from gateway.core.http_limits import SETTABLE, Count, HttpLimits, Seconds
from gateway.core.otel import Tracing, read_tracing
from gateway.errors import SettingError
from gateway.settings.config_file import RouteTable, base_url_of, default_table, read_config, table_of
from gateway.settings.urls import SCHEMES, fault, wanted, without_password

PREFIX = "TOLLKEEPER_"
CONFIG_NAME = f"{PREFIX}CONFIG"
# In the environment besides the settings: where the file is, and where commands find the Admin API.
CLIENT_NAMES = frozenset({"admin_url", "config"})
# What only keepers, and who looks after them, need: credentials that a gateway is not given.
OF_KEEPERS = ("database_url", "database_owner_url", "admin_token", "readonly_token", "smtp_url")
SECRET = re.compile(r"token|secret|pepper|password|credential|_key$|^key_", re.IGNORECASE)

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Token = Annotated[str, msgspec.Meta(pattern=r"^([\x21-\x7e]{16,512})?$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one Tollkeeper process runs with."""

    redis_url: str = ""
    redis_ca_file: str = ""
    redis_cert_file: str = ""
    redis_key_file: str = ""
    database_url: str = ""
    database_owner_url: str = ""
    admin_token: Token = ""
    readonly_token: Token = ""
    key_pepper: Token = ""

    gateway_host: str = "127.0.0.1"
    gateway_port: Port = 8080
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8081
    ops_host: str = "0.0.0.0"  # noqa: S104  # probes and scrapes come from outside the pod
    ops_port: Port = 9090
    data_dir: str = ".tollkeeper"
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"

    hold_ttl_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30.0
    reclaim: Annotated[str, msgspec.Meta(pattern="^(charge_observed|release|charge_hold)$")] = (
        "charge_observed"
    )
    unpriced_models: Annotated[str, msgspec.Meta(pattern="^(free|refuse)$")] = "free"
    price_as: str = ""
    redis_wait_s: Seconds = 1.0
    lease_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.05
    lease_s_max: Annotated[float, msgspec.Meta(ge=1, le=86_400)] = 3600.0
    start_wait_s: Seconds = 60.0
    shutdown_grace_s: Seconds = 18.0
    flush_interval_s: Seconds = 0.25
    waiting_entries_max: Count = 50_000
    calls_keep_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    usage_hours_keep_days: Annotated[int, msgspec.Meta(ge=0, le=36_500)] = 0
    settlement_log_dir: str = ""
    settlement_log_s: Seconds = 60.0
    settlement_log_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 34)] = 512 * 1024 * 1024

    invoice_issuer: str = ""
    invoice_country: Annotated[str, msgspec.Meta(pattern="^([A-Z]{2})?$")] = ""
    invoice_tax_number: str = ""
    invoice_iban: str = ""
    invoice_logo: str = ""
    invoice_notes: str = ""
    invoice_addresses: str = ""
    invoice_schedule: Annotated[str, msgspec.Meta(pattern="^(off|draft|finalize)$")] = "off"
    invoice_grace_hours: Annotated[int, msgspec.Meta(ge=0, le=720)] = 24
    invoices_at_once: Annotated[int, msgspec.Meta(ge=1, le=32)] = 4
    invoice_due_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0
    dunning_reminder_days: Annotated[str, msgspec.Meta(pattern=r"^(\d{1,3}(,\d{1,3}){0,9})?$")] = ""
    dunning_block_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 0
    webhook_private_addresses: bool = False
    smtp_url: str = ""
    smtp_ca_file: str = ""
    smtp_from: str = ""

    http: HttpLimits = HttpLimits()
    object_ttl_s: Annotated[float, msgspec.Meta(ge=60, le=366 * 86_400)] = 30 * 86_400.0
    objects_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    usage_tokens_max: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] = DEFAULT_BOUNDS.usage_tokens_max

    routes: tuple[Route, ...] = ()
    upstreams: tuple[UpstreamTarget, ...] = ()
    services: ServiceRules = ServiceRules()

    tracing: Tracing | None = None

    def require(self, *names: str) -> None:
        """`SettingError` for the first of these that has no value."""
        for name in names:
            if not getattr(self, name):
                raise SettingError(f"{PREFIX}{name.upper()} is not set: expected {_wanted(name)}")

    @property
    def owner_url(self) -> str:
        """Who may change the schema: the owner where there is one as well as the keeper's user."""
        return self.database_owner_url or self.database_url

    @property
    def stand_ins(self) -> StandIns:
        """Which models have the price of another."""
        return read_stand_ins(self.price_as)

    @property
    def settlements_dir(self) -> Path:
        """Where each worker of this machine keeps its settlement log."""
        return Path(self.settlement_log_dir or Path(self.data_dir) / "settlements")

    @property
    def metrics_dir(self) -> Path:
        """Where the workers of this machine leave their tallies."""
        return Path(self.data_dir) / "metrics"

    @property
    def redis_files(self) -> TlsFiles:
        """What a TLS connection to Redis is verified and made with."""
        return TlsFiles(self.redis_ca_file, self.redis_cert_file, self.redis_key_file)

    @property
    def of_gateways(self) -> Settings:
        """The same settings for a gateway: what it does not know, nobody gets from it."""
        return self.with_values(**dict.fromkeys(OF_KEEPERS, ""))

    def values(self) -> dict[str, Any]:
        """Everything by its name, routes and upstreams too."""
        http = {name: getattr(self.http, name) for name in SETTABLE}
        own = {name: getattr(self, name) for name in self.__struct_fields__ if name != "http"}
        return own | http

    def named(self) -> dict[str, Any]:
        """Every setting by its name, without routes and upstreams."""
        values = self.values()
        return {name: values[name] for name in NAMES}

    @property
    def table(self) -> RouteTable:
        """Routes and upstreams together."""
        return RouteTable(self.routes, self.upstreams, self.services)

    def with_table(self, table: RouteTable) -> Settings:
        """The same settings with these routes and upstreams."""
        return msgspec.structs.replace(self, **table._asdict())

    def with_upstream(self, base_url: str) -> Settings:
        """The same settings with every upstream replaced by one base URL."""
        return self.with_table(self.table.redirected(base_url_of(base_url, "--upstream")))

    def with_values(self, **values: Any) -> Settings:
        """The same settings with these values, by name, unchecked: they come from a parsed option."""
        http = {name: values.pop(name) for name in SETTABLE if name in values}
        return msgspec.structs.replace(self, **values, http=replace(self.http, **http))


# What the file's routes and the standard OTEL_* variables say has no name of ours.
_ELSEWHERE = {*RouteTable._fields, "tracing", "http"}
NAMES = (*(name for name in Settings.__struct_fields__ if name not in _ELSEWHERE), *SETTABLE)


def load(environ: Mapping[str, str], config: Path | None = None) -> Settings:
    """Resolve every setting; `SettingError` names the one that is unknown or invalid.

    Without `config` the file is the one named by `TOLLKEEPER_CONFIG`, if any.
    """
    if config is None and environ.get(CONFIG_NAME):
        config = Path(environ[CONFIG_NAME])
    written = read_config(config, environ) if config else None
    values: dict[str, Any] = {}
    for name, value in (written.settings if written else {}).items():
        if name not in NAMES:
            raise _unknown(f"{config}: settings.{name}", name, str(value), NAMES, "")
        values[name] = _checked(f"{config}: settings.{name}", name, value)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or _is_service_link(variable, text):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name in CLIENT_NAMES:
            continue
        if name not in NAMES or variable != variable.upper():
            raise _unknown(variable, name, text, NAMES, PREFIX)
        values[name] = _checked(variable, name, text)
    if values.get("readonly_token") and values["readonly_token"] == values.get("admin_token"):
        raise SettingError(
            f"{PREFIX}READONLY_TOKEN=(hidden) is not valid: expected another one than {PREFIX}ADMIN_TOKEN"
        )
    if values.get("smtp_url") and not values.get("smtp_from"):
        raise SettingError(f"{PREFIX}SMTP_FROM is not set: expected name@example.com, whom mails are from")
    settings = Settings(tracing=read_tracing(environ)).with_values(**values)
    return settings.with_table(table_of(written, environ) if written else default_table(environ))


def to_json(settings: Settings) -> bytes:
    """Settings for a worker, secrets included: hand them over privately."""
    return msgspec.json.encode(settings)


def from_json(data: bytes) -> Settings:
    """Settings as `to_json` wrote them."""
    return msgspec.json.decode(data, type=Settings)


_TYPES = get_type_hints(Settings, include_extras=True) | SETTABLE


def _checked(place: str, name: str, value: Any) -> Any:
    try:
        checked = msgspec.convert(value, _TYPES[name], strict=False)
    except msgspec.ValidationError as error:
        raise SettingError(f"{place}={_shown(name, value)} is not valid: expected {_wanted(name)}") from error
    if name == "smtp_from" and not is_address(checked, private=True):
        raise SettingError(f"{place}={_shown(name, value)} is not valid: expected name@example.com")
    if name in SCHEMES and (expected := fault(name, str(checked))):
        raise SettingError(f"{place}={_shown(name, value)} is not valid: expected {expected}")
    if name == "price_as":
        try:
            read_stand_ins(checked)
        except ValueError as error:
            shown = f"{place}={_shown(name, value)}"
            raise SettingError(f"{shown} is not valid: {error}; expected {WANTED}") from error
    return checked


def _wanted(name: str) -> str:
    """What would be valid, in words, from the type itself."""
    if name in SCHEMES:
        return wanted(name)
    hint = _TYPES[name]
    meta = next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, msgspec.Meta)), None)
    kind = getattr(hint, "__origin__", hint)
    if meta is not None and meta.pattern is not None:
        if meta.pattern.startswith("^(") and "[" not in meta.pattern:
            return f"one of {', '.join(meta.pattern[2:-2].split('|'))}"
        return "16 to 512 visible ASCII characters"
    noun = {int: "a whole number", float: "a number"}.get(kind, "text")
    if meta is None:
        return noun
    low = f"above {meta.gt}" if meta.gt is not None else f"from {meta.ge}"
    unit = " seconds" if name.endswith("_s") else " bytes" if "_bytes_" in name else ""
    return f"{noun} {low} to {meta.le}{unit}"


def _unknown(place: str, name: str, value: str, names: tuple[str, ...], prefix: str) -> SettingError:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    spelled = [prefix + (each.upper() if prefix else each) for each in close or names]
    hint = f"did you mean {spelled[0]}?" if close else f"known are {', '.join(spelled)}"
    secret = name if SECRET.search(name) else (close[0] if close else name)
    return SettingError(f"{place}={_shown(secret, value)} is not a setting; {hint}")


def _shown(name: str, value: Any) -> str:
    if SECRET.search(name):
        return "(hidden)"
    text = without_password(str(value))
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _is_service_link(variable: str, text: str) -> bool:
    """Kubernetes puts `<SERVICE>_PORT=tcp://…` and the like into a pod; those are nobody's settings."""
    return bool(
        re.search(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)", variable)
        or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text))
    )
