"""Where Redis is, as its URL says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

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


def parse_url(url: str) -> Address:
    """The address a URL names; SettingError where it names none."""
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
    tls = ssl.create_default_context() if parts.scheme == "rediss" else None
    return Address(parts.hostname, parts.port or 6379, "", int(database), user, password, tls)
