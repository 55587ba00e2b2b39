"""Where Redis is, as its URL says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from gateway.core.certificate import TlsFiles
from gateway.errors import SettingError


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is and who we are there; parsed from `redis[s]://user:password@host:port/db` or `unix://…`."""

    host: str
    port: int
    path: str = ""
    database: int = 0
    username: str = ""
    password: str = ""
    tls: ssl.SSLContext | None = None


def parse_url(url: str, files: TlsFiles = TlsFiles()) -> Address:  # noqa: B008  # it cannot change
    """The address a URL names; SettingError where it names none, or a file cannot be used."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        query = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
        return Address("", 0, parts.path, int(query.get("db", 0)), user, password)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise SettingError("REDIS_URL must be redis://, rediss:// or unix:// and name a host")
    database = parts.path.strip("/") or "0"
    if not database.isdigit():
        raise SettingError("REDIS_URL must end in a database number or nothing")
    tls = _context(files) if parts.scheme == "rediss" else None
    return Address(parts.hostname, parts.port or 6379, "", int(database), user, password, tls)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Certificate and name are always verified; who may vouch for them can be said."""
    try:
        context = ssl.create_default_context(cafile=files.authority or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"REDIS_CA_FILE={files.authority!r} cannot be used: {_why(error)}") from error
    if files.certificate:
        try:
            context.load_cert_chain(files.certificate, files.key or None, password="")
        except (OSError, ssl.SSLError) as error:
            shown = f"REDIS_CERT_FILE={files.certificate!r} and REDIS_KEY_FILE={files.key!r}"
            raise SettingError(f"{shown} cannot be used: {_why(error)}") from error
    return context


def _why(error: OSError) -> str:
    return "not PEM, or not a pair" if isinstance(error, ssl.SSLError) else str(error.strerror)


def why_not(error: Exception) -> str:
    """Why there is no connection, in words an operator can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be verified: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
