"""Where Redis is, as its URL says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from gateway.core.certificate import TlsFiles
from gateway.counters.redis.secured import Secured
from gateway.errors import CountersUnavailable, SettingError
from gateway.files import UrlFile

DEFAULT_PORT, SENTINEL_PORT = 6379, 26379
PLACES_MAX = 16
# Why there is no connection where it ended before anything was said.
NO_REDIS = "what answers there is no Redis, or closed the connection"
_PREFIX = "TOLLKEEPER_REDIS_"
# What the query of a URL may say, by how its scheme ends.
_QUERIES = {"unix": ("db",), "+sentinel": ("username", "password")}


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is and who we are there; `parse_url` says how it is written.

    With `sentinels` the host is theirs to name: that of the primary called `primary_name`. With `members`, of
    a cluster, it is one of them.
    """

    host: str
    port: int
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Secured | None = None
    sentinels: tuple[tuple[str, int], ...] = ()
    primary_name: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    members: tuple[tuple[str, int], ...] = ()
    file: UrlFile | None = field(default=None, repr=False, compare=False)

    def now(self) -> Address:
        """The same place, and who we are there by what the URL's file says now."""
        if self.file is None:
            return self
        user, password, sentinel_user, sentinel_password = _logins(urlsplit(self.file.url()))
        return replace(
            self, username=user, password=password,
            sentinel_username=sentinel_user, sentinel_password=sentinel_password,
        )  # fmt: skip


def parse_url(
    url: str | UrlFile,
    files: TlsFiles = TlsFiles(),  # noqa: B008  # it cannot change
) -> Address:
    """The address a URL names; SettingError where it names none, or a file cannot be used.

    `redis://user:password@host:port/database`, `rediss://…` with TLS, `unix:///path?db=0`,
    `redis+sentinel://user:password@host:port,host:port/primary/database` (`rediss+sentinel://`), where
    the query may hold the sentinels' own `username` and `password`, or
    `redis+cluster://user:password@host:port,host:port` (`rediss+cluster://`), some members of a cluster.
    """
    if isinstance(url, UrlFile):
        return replace(parse_url(url.url(), files), file=url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SettingError(f"{_PREFIX}URL cannot be read: {error}") from error
    _refuse_rest(parts)
    if parts.scheme in ("redis+cluster", "rediss+cluster"):
        return _by_members(parts, Secured(files) if parts.scheme.startswith("rediss") else None)
    if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
        return _by_sentinels(parts, Secured(files) if parts.scheme.startswith("rediss") else None)
    user, password, *_ = _logins(parts)
    if parts.scheme == "unix":
        database = dict(parse_qsl(parts.query)).get("db", "0")
        if parts.path in ("", "/") or parts.hostname or not database.isdecimal():
            raise SettingError(f"{_PREFIX}URL must be unix:///path or unix:///path?db=0, the path a socket's")
        return Address("", 0, parts.path, int(database), user, password)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise SettingError(
            f"{_PREFIX}URL must be redis://, rediss://, redis+sentinel://, redis+cluster:// or unix://"
            " and name a host"
        )
    database = parts.path.strip("/") or "0"
    if not database.isdigit():
        raise SettingError(f"{_PREFIX}URL must end in a database number or nothing")
    tls = Secured(files) if parts.scheme == "rediss" else None
    return Address(parts.hostname, parts.port or DEFAULT_PORT, "", int(database), user, password, tls)


def _refuse_rest(parts: SplitResult) -> None:
    """SettingError for what nobody would read: who writes it means something by it, such as a database."""
    known = next((names for kind, names in _QUERIES.items() if parts.scheme.endswith(kind)), ())
    said = parse_qsl(parts.query, keep_blank_values=True)
    if parts.fragment or (parts.query and not said) or not {name for name, _ in said} <= {*known}:
        what = f"no other query than {' and '.join(known)}" if known else "no query"
        raise SettingError(f"{_PREFIX}URL must have {what}, and no fragment (# is written as %23)")


def _logins(parts: SplitResult) -> tuple[str, str, str, str]:
    """User and password of the servers, and of the sentinels before them."""
    theirs = dict(parse_qsl(parts.query)) if "sentinel" in parts.scheme else {}
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return user, password, theirs.get("username", ""), theirs.get("password", "")


def _by_members(parts: SplitResult, tls: Secured | None) -> Address:
    members = _places(parts, DEFAULT_PORT, f"1 to {PLACES_MAX} members of a cluster")
    if parts.path.strip("/") not in ("", "0") or parts.query:
        raise SettingError(f"{_PREFIX}URL must end behind the members: a cluster has one database alone")
    return Address("", 0, "", 0, *_logins(parts)[:2], tls, members=members)


def _places(parts: SplitResult, port: int, wanted: str) -> tuple[tuple[str, int], ...]:
    """Each host and port of a URL that names several."""
    hosts = parts.netloc.rpartition("@")[2]
    try:
        found = [urlsplit(f"//{place}") for place in hosts.split(",")]
        places = tuple((place.hostname or "", port if place.port is None else place.port) for place in found)
    except ValueError:
        places = ()
    if not places or not all(host and at for host, at in places) or len(places) > PLACES_MAX:
        raise SettingError(f"{_PREFIX}URL must name {wanted} as host:port,host:port")
    return places


def _by_sentinels(parts: SplitResult, tls: Secured | None) -> Address:
    sentinels = _places(parts, SENTINEL_PORT, f"1 to {PLACES_MAX} sentinels")
    name, _, database = parts.path.strip("/").partition("/")
    if not name or not (database or "0").isdigit():
        raise SettingError(f"{_PREFIX}URL must end in the primary's name, and a database number or nothing")
    user, password, sentinel_user, sentinel_password = _logins(parts)
    return Address(
        "", 0, "", int(database or "0"), user, password, tls,
        sentinels, unquote(name), sentinel_user, sentinel_password,
    )  # fmt: skip


def why_not(error: Exception) -> str:
    """Why there is no connection, in words an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return NO_REDIS
    if isinstance(error, CountersUnavailable) and error.message == CountersUnavailable().message:
        return NO_REDIS
    return str(error) or type(error).__name__
