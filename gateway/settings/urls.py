"""URLs of databases and of a mail server: which can be used, and what is wrong with one."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_OF_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
SCHEMES = {
    "redis_url": (
        "redis",
        "redis+cluster",
        "redis+sentinel",
        "rediss",
        "rediss+cluster",
        "rediss+sentinel",
        "unix",
    ),
    "database_url": _OF_POSTGRES,
    "database_owner_url": _OF_POSTGRES,
    "database_read_url": _OF_POSTGRES,
    "smtp_url": ("smtp", "smtps"),
    "stripe_api_url": ("https", "http"),
    "usage_feed_url": ("https", "http"),
    "console_url": ("https", "http"),
}
_SHAPES = {
    "redis_url": "redis://user:password@host:port/database",
    "smtp_url": "smtp://user:password@host:port",
    "stripe_api_url": "https://host:port",
    "usage_feed_url": "https://host:port",
    "console_url": "https://host:port",
}
PORT_MAX = 65_535
# What stands behind a host that is none of IPv6, or behind the brackets of one.
_PORT = re.compile(r"(?:^[^:]*|\]):(.*)$")


def wanted(name: str) -> str:
    """What the URL of this setting begins with, in words."""
    return "a URL beginning with " + " or ".join(f"{each}://" for each in SCHEMES[name])


def fault(name: str, url: str) -> str:
    """What would be right where this URL of a setting cannot be used; empty where it can.

    Of a URL of Redis that names several places, or a socket, only the scheme is looked at: the door to Redis
    reads the rest.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES[name] or "://" not in url:
        return wanted(name)
    if scheme.endswith(("+sentinel", "+cluster")) or scheme == "unix":
        return ""
    shape = _SHAPES.get(name, "postgresql://user:password@host:port/database")
    escaped = "with @ : / ? # % of a user or password written as %40 %3A %2F %3F %23 %25"
    if scheme in _OF_POSTGRES:
        url = _with_one_host(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{shape}, with a port from 1 to {PORT_MAX}, and {escaped}"
    if port == 0:
        return f"a port from 1 to {PORT_MAX}"
    database = parts.path.strip("/")
    if name == "redis_url" and (not host or not (database or "0").isdecimal()):
        return f"{shape}, the database being a number, {escaped}"
    if name == "redis_url" and (parts.query or parts.fragment):
        return f"{shape}, and nothing behind it, {escaped}"
    if name == "smtp_url" and (not host or database or parts.query or parts.fragment):
        return f"{shape}, and nothing behind it, {escaped}"
    if name != "redis_url" and "@" in database:
        return f"{shape}, {escaped}"
    return ""


def _with_one_host(url: str) -> str:
    """The same URL where it names one host; of several the first whose port is none, else the first."""
    scheme, _, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    wrong = (one for one in hosts.split(",") if (port := _PORT.search(one)) and not _is_port(port[1]))
    return f"{scheme}://{user}{at}{next(wrong, hosts.partition(',')[0])}{slash}{tail}"


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) <= PORT_MAX
