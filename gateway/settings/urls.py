"""URLs of servers and services: which a setting may have, and what would be right instead of a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult

import msgspec

from gateway.files import PORT_MAX, split_servers
from gateway.settings.value_types import IS_SECRET, metas_of


@dataclass(frozen=True, slots=True)
class UrlForm:
    """The valid URLs of a setting: their schemes, a sample, and the parts that may follow the host.

    With `number` that is the number of a database, with `nothing` it is nothing. `origin` allows no user either.
    """

    schemes: tuple[str, ...]
    sample: str
    rest: Literal["any", "number", "nothing", "origin"] = "any"


def form_of(hint: Any) -> UrlForm | None:
    """Return the form of the URLs of a setting of this type; None if its values are no URLs."""
    forms = (meta.extra.get("url") for meta in metas_of(hint) if meta.extra)
    return next((form for form in forms if form is not None), None)


_OF_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
_OF_REDIS = tuple(
    name + kind for name in ("redis", "rediss") for kind in ("", "+cluster", "+sentinel", "+shards")
)
_SERVICE = "https://host:port"
RedisUrl = Annotated[
    str,
    IS_SECRET,
    msgspec.Meta(
        extra={"url": UrlForm((*_OF_REDIS, "unix"), "redis://user:password@host:port/database", "number")}
    ),
]
DatabaseUrl = Annotated[
    str,
    IS_SECRET,
    msgspec.Meta(extra={"url": UrlForm(_OF_POSTGRES, "postgresql://user:password@host:port/database")}),
]
MailUrl = Annotated[
    str,
    IS_SECRET,
    msgspec.Meta(extra={"url": UrlForm(("smtp", "smtps"), "smtp://user:password@host:port", "nothing")}),
]
ServiceUrl = Annotated[str, msgspec.Meta(extra={"url": UrlForm(("https", "http"), _SERVICE)})]
FeedUrl = Annotated[str, msgspec.Meta(extra={"url": UrlForm(("https", "http", "file"), _SERVICE)})]
# The URL of an origin alone.
OriginUrl = Annotated[str, msgspec.Meta(extra={"url": UrlForm(("https", "http"), _SERVICE, "origin")})]


def wanted(form: UrlForm) -> str:
    """Return the valid beginnings of URLs of this form, in words."""
    return "a URL beginning with " + " or ".join(f"{scheme}://" for scheme in form.schemes)


def fault(form: UrlForm, url: str) -> str:
    """Return what would be right if a URL has not this form; empty if it is usable.

    For a URL of Redis with several hosts, or a socket, only the scheme is checked here: the Redis client
    parses the rest.
    """
    scheme = url.partition("://")[0]
    if scheme not in form.schemes or "://" not in url:
        return wanted(form)
    if scheme.endswith(("+sentinel", "+cluster", "+shards")) or scheme == "unix":
        return ""
    sample = form.sample
    escaped = "with @ : / ? # % of a user or password written as %40 %3A %2F %3F %23 %25"
    try:
        parts, servers = split_servers(url)
    except ValueError:
        return f"{sample}, with a port from 1 to {PORT_MAX}, and {escaped}"
    if any(port == 0 for _, port in servers):
        return f"a port from 1 to {PORT_MAX}"
    return _fault_behind(form, parts, servers[0][0] if len(servers) == 1 else "", escaped)


def _fault_behind(form: UrlForm, parts: SplitResult, host: str, escaped: str) -> str:
    """Return what would be right if a URL of this form lacks its one host, or has other parts behind it; else ""."""
    sample, database = form.sample, parts.path.strip("/")
    if form.rest == "number" and (not host or not (database or "0").isdecimal()):
        return f"{sample}, the database being a number, {escaped}"
    if form.rest == "number" and (parts.query or parts.fragment):
        return f"{sample}, and nothing behind it, {escaped}"
    behind = database or parts.query or parts.fragment
    if form.rest == "nothing" and (not host or behind):
        return f"{sample}, and nothing behind it, {escaped}"
    if form.rest == "origin" and (not host or behind or "@" in parts.netloc):
        return f"{sample}, and nothing else"
    if form.rest != "number" and "@" in database:
        return f"{sample}, {escaped}"
    return ""
