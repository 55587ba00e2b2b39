"""URLs of servers and services: which a setting may have, and what would be right instead of a wrong one."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_OF_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
SCHEMES = {
    "redis_url": (
        "redis",
        "redis+cluster",
        "redis+sentinel",
        "redis+shards",
        "rediss",
        "rediss+cluster",
        "rediss+sentinel",
        "rediss+shards",
        "unix",
    ),
    "database_url": _OF_POSTGRES,
    "database_owner_url": _OF_POSTGRES,
    "database_read_url": _OF_POSTGRES,
    "smtp_url": ("smtp", "smtps"),
    "stripe_api_url": ("https", "http"),
    "usage_feed_url": ("https", "http", "file"),
    "console_url": ("https", "http"),
    "agents_keeper_url": ("https", "http"),
    "agents_collector_url": ("https", "http"),
}
_SHAPES = {
    "redis_url": "redis://user:password@host:port/database",
    "smtp_url": "smtp://user:password@host:port",
    "stripe_api_url": "https://host:port",
    "usage_feed_url": "https://host:port",
    "console_url": "https://host:port",
    "agents_keeper_url": "https://host:port",
    "agents_collector_url": "https://host:port",
}
PORT_MAX = 65_535
# The port: the text after a host that is no IPv6 address, or after the brackets of one.
_PORT = re.compile(r"(?:^[^:]*|\]):(.*)$")


def wanted(name: str) -> str:
    """Return the valid beginnings of a setting's URL, in words."""
    return "a URL beginning with " + " or ".join(f"{each}://" for each in SCHEMES[name])


def fault(name: str, url: str) -> str:
    """Return what would be right if the URL of a setting is wrong; empty if it is usable.

    For a URL of Redis with several hosts, or a socket, only the scheme is checked here: the Redis client
    parses the rest.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES[name] or "://" not in url:
        return wanted(name)
    if scheme.endswith(("+sentinel", "+cluster", "+shards")) or scheme == "unix":
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
    behind = database or parts.query or parts.fragment
    if name == "smtp_url" and (not host or behind):
        return f"{shape}, and nothing behind it, {escaped}"
    if name.startswith("agents_") and (not host or behind or "@" in parts.netloc):
        return f"{shape}, and nothing else"
    if name != "redis_url" and "@" in database:
        return f"{shape}, {escaped}"
    return ""


def _with_one_host(url: str) -> str:
    """Return a URL of several hosts with a single one: the first that has a wrong port, else the first."""
    scheme, _, rest = url.partition("://")
    authority, slash, tail = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    ports = ((one, _PORT.search(one)) for one in hosts.split(","))
    wrong = (one for one, at in ports if at and not (at[1].isdecimal() and 0 < int(at[1]) <= PORT_MAX))
    return f"{scheme}://{user}{at}{next(wrong, hosts.partition(',')[0])}{slash}{tail}"
