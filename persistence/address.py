"""The address of PostgreSQL: its spelling for each library, and the options of every connection."""

from __future__ import annotations

import re
from typing import Any

CONNECT_TIMEOUT_S = 5
# No prepared statements: the next transaction may be in another session. Keepalives: the loss of a server
# with its host is noticed in half a minute, and not after hours.
CONNECT: dict[str, Any] = {
    "prepare_threshold": None, "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000,
    "client_encoding": "UTF8", "fallback_application_name": "tollkeeper",
}  # fmt: skip
# One of several hosts of an address.
_PLACE = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>[0-9]*))?")


def be_known_as(name: str) -> None:
    """Set the application name of this process's connections, unless the address or `PGAPPNAME` sets one."""
    CONNECT["fallback_application_name"] = name


def dialect_url(url: str) -> str:
    """Convert a PostgreSQL address to SQLAlchemy's form, with psycopg 3 as its driver."""
    return f"postgresql+psycopg://{_spelt(url)}"


def plain_url(url: str) -> str:
    """Convert a PostgreSQL address to the form of psycopg and libpq."""
    # SQLAlchemy writes a blank of a password as it is, which libpq does not take.
    return "postgresql://" + _spelt(url).replace(" ", "%20")


def _spelt(url: str) -> str:
    """Return an address without its scheme; several hosts become the parameters `host` and `port`."""
    scheme, _, rest = url.partition("://")
    if scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ValueError(f"not a PostgreSQL address: {scheme}://…")
    before, _, query = rest.partition("?")
    authority, _, path = before.partition("/")
    user, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return rest
    places = [_place(one) for one in hosts.split(",")]
    names = ",".join(place["host"].strip("[]") for place in places)
    ports = ",".join(place["port"] or "5432" for place in places)
    return f"{user}{at}/{path}?host={names}&port={ports}" + (f"&{query}" if query else "")


def _place(host: str) -> re.Match[str]:
    match = _PLACE.fullmatch(host)
    if match is None or not match["host"]:
        raise ValueError(f"not a host of PostgreSQL, HOST or HOST:PORT: {host!r}")
    return match
